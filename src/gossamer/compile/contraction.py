"""Contractions in the graph as products with strides, and their epilogues. Layer 2.

The one idea: an operand of `dot_general` is a view of something in memory; the movement operators
between are folded into one stride per axis, and axes that step alike are merged until the product
has two batch, one row, one column and one summed axis. What cannot be described so is copied first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call
from gossamer.compile.gemm import (
    Epilogue,
    Operand,
    Output,
    Packed,
    Stored,
    Target,
    gemm,
    low_gemm,
)
from gossamer.compile.gemm.target import pair_tile
from gossamer.compile.implicit import Digits, View, pack_view, scope, vectors, view_of
from gossamer.compile.llvm import module_text, named
from gossamer.compile.llvm_values import Lane, ValueWriter
from gossamer.compile.lower import Lowering, ravel, unravel
from gossamer.compile.pairs import in_pairs, pair_step
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import DType, bfloat16, float32 as f32, float64
from gossamer.ir.index import Index, Var, var
from gossamer.ir.loop import Axis, Kernel, Pass, Store, show
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE

__all__ = ["Product", "canonical_operand", "contraction_calls", "describe", "strides_of"]

_WIDE = 128  # columns of a product, below which products with a common operand are joined


@dataclass(frozen=True)
class _Group:
    """Axes that move together: extent and strides in A, B and C."""

    extent: int
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Strided:
    """An operand in memory: strides of (batch 0, batch 1, row or column, k), in elements."""

    base: Node
    offset: int
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class Product:
    """A contraction ready for the generator.

    `groups` are (batch 0, batch 1, m, n, k); `rows` and `columns` are the digits of m and n that
    move apart in C, outermost first.
    """

    a: Strided | View
    b: Strided | View
    groups: tuple[_Group, _Group, _Group, _Group, _Group]
    rows: tuple[_Group, ...]
    columns: tuple[_Group, ...]

    @property
    def in_memory(self) -> bool:
        """Whether both operands are read through strides."""
        return isinstance(self.a, Strided) and isinstance(self.b, Strided)


def strides_of(node: Node) -> tuple[Node, int, list[int]] | None:
    """The node in memory under a chain of movements, the offset and the stride of each axis, in
    elements; None if no strides describe the view."""
    axes = tuple(var(f"d{i}", n) for i, n in enumerate(node.shape))
    index = axes
    base = node
    while base.op.kind == "movement" and base.value is None:
        parts = base.op.lower(index, tuple(x.shape for x in base.inputs), **base.attrs)
        if len(parts) != 1:
            return None
        number, index, when = parts[0]
        if when is not None and not when.always:
            return None
        base = base.inputs[number]
    if base.op.name in ("constant", "iota"):
        return None
    linear: Index = ravel(index, base.shape)
    strides = [0] * node.ndim
    for atom, k in linear.terms.items():
        if not isinstance(atom, Var):
            return None
        strides[int(atom.name[1:])] = k
    return base, linear.constant, strides


def _merge(groups: list[_Group]) -> list[_Group]:
    out: list[_Group] = []
    for g in groups:
        if g.extent == 1:
            continue
        if out:
            o = out[-1]
            if o.a == g.a * g.extent and o.b == g.b * g.extent and o.c == g.c * g.extent:
                out[-1] = _Group(o.extent * g.extent, g.a, g.b, g.c)
                continue
        out.append(g)
    return out


@dataclass(frozen=True)
class _Axis:
    """An axis of a contraction: its place in both operands, if it has one, and its stride in C."""

    extent: int
    x: int | None
    y: int | None
    c: int


@dataclass
class _Roles:
    """What the axes of a contraction do."""

    batch: list[_Axis]
    rows: list[_Axis]
    columns: list[_Axis]
    summed: list[_Axis]


def _roles(node: Node) -> _Roles:
    at, x, y = node.attrs, node.inputs[0], node.inputs[1]
    a_free = [i for i in range(x.ndim) if i not in at["a_batch"] and i not in at["a_contract"]]
    b_free = [i for i in range(y.ndim) if i not in at["b_batch"] and i not in at["b_contract"]]
    sc = [prod(node.shape[i + 1:]) for i in range(node.ndim)]
    nb, na = len(at["a_batch"]), len(a_free)
    return _Roles(
        [_Axis(x.shape[i], i, j, sc[k])
         for k, (i, j) in enumerate(zip(at["a_batch"], at["b_batch"], strict=True))],
        [_Axis(x.shape[i], i, None, sc[nb + k]) for k, i in enumerate(a_free)],
        [_Axis(y.shape[j], None, j, sc[nb + na + k]) for k, j in enumerate(b_free)],
        [_Axis(x.shape[i], i, j, 0)
         for i, j in zip(at["a_contract"], at["b_contract"], strict=True)])


_ONE = _Group(1, 0, 0, 0)
_Strides = tuple[Node, int, list[int]] | None


def describe(node: Node) -> Product | None:
    """The product that a `dot_general` is, or None if an operand must be copied first."""
    inline = node.attrs.get("inline")
    left, right = (None if i == inline else strides_of(x) for i, x in enumerate(node.inputs))
    roles = _roles(node)
    nothing = not all(g.extent for g in roles.summed)  # to add up: nothing to pack
    if left is not None and right is not None and (
            nothing or not _gathers_images(roles, left, right)):
        found = _strided(roles, left, right)
        if found is not None:
            return found
    return None if nothing else _implicit(node, roles, left, right)


def _gathers_images(roles: _Roles, left: _Strides, right: _Strides) -> bool:
    """Whether there are many narrow products with one common left operand: then their columns
    together are one wide product, whose right operand is packed."""
    columns = prod(g.extent for g in roles.columns)
    shared = [g for g in roles.batch if g.extent > 1 and left is not None
              and left[2][g.x or 0] == 0]
    return bool(shared) and columns < _WIDE


def _strided(roles: _Roles, left: _Strides, right: _Strides) -> Product | None:
    """The product of two operands with strides."""
    assert left is not None and right is not None
    a, a_offset, sa = left
    b, b_offset, sb = right

    def groups(axes: list[_Axis]) -> list[_Group]:
        return [_Group(g.extent, 0 if g.x is None else sa[g.x], 0 if g.y is None else sb[g.y], g.c)
                for g in axes]

    batch, rows, columns = (_merge(groups(part))
                            for part in (roles.batch, roles.rows, roles.columns))
    summed = _merge(sorted(groups(roles.summed), key=lambda g: -max(abs(g.a), abs(g.b))))
    batch += rows[:-1] + columns[:-1]
    if len(batch) > 2 or len(summed) > 1:
        return None
    b0, b1 = [_ONE] * (2 - len(batch)) + batch
    m, n = rows[-1] if rows else _ONE, columns[-1] if columns else _Group(1, 0, 0, 1)
    k = summed[0] if summed else _ONE
    return Product(Strided(a, a_offset, (b0.a, b1.a, m.a, k.a)),
                   Strided(b, b_offset, (b0.b, b1.b, n.b, k.b)), (b0, b1, m, n, k), (m,), (n,))


def _implicit(node: Node, roles: _Roles, left: _Strides, right: _Strides) -> Product | None:
    """A product with at least one operand that is computed while it is packed."""
    if not node.size or node.dtype not in (f32, float64):
        return None
    batch, rows, columns = [], list(roles.rows), list(roles.columns)
    for g in roles.batch:
        if g.extent == 1:
            continue
        if left is not None and left[2][g.x or 0] == 0:
            columns.insert(len(columns) - len(roles.columns), g)
        elif right is not None and right[2][g.y or 0] == 0:
            rows.insert(len(rows) - len(roles.rows), g)
        else:
            batch.append(g)
    if len(batch) > 2:
        return None
    steps = left or right  # summed in the order of whichever lies in memory
    summed = [g for g in roles.summed if g.extent > 1]
    if steps is not None:
        own = [steps[2][(g.x if steps is left else g.y) or 0] for g in summed]
        summed = [g for _, g in sorted(zip(own, summed, strict=True), key=lambda p: -abs(p[0]))]
    inline = node.attrs.get("inline")
    a = _operand(node.inputs[0], left, [g.x for g in batch], [g.x for g in rows],
                 [g.x for g in summed], inline == 0)
    b = _operand(node.inputs[1], right, [g.y for g in batch], [g.y for g in columns],
                 [g.y for g in summed], inline == 1)
    if a is None or b is None:
        return None
    b0, b1 = [_ONE] * (2 - len(batch)) + [_Group(g.extent, 0, 0, g.c) for g in batch]
    m, n = (tuple(_merge([_Group(g.extent, 0, 0, g.c) for g in part])) or (_Group(1, 0, 0, 1),)
            for part in (rows, columns))
    k = _Group(prod(g.extent for g in summed), 0, 0, 0)

    def whole(digits: tuple[_Group, ...]) -> _Group:
        return _Group(prod(g.extent for g in digits), 0, 0, digits[-1].c)

    return Product(a, b, (b0, b1, whole(m), whole(n), k), m, n)


def _operand(node: Node, seen: _Strides, batch: list[int | None], r: list[int | None],
             k: list[int | None], computed: bool) -> Strided | View | None:
    """An operand with these axes for batch, rows (or columns) and k, outermost first."""
    own_r, own_k = [i for i in r if i is not None], [i for i in k if i is not None]
    b0, b1 = [None] * (2 - len(batch)) + batch
    if seen is not None and len(own_r) == len(r):
        base, offset, s = seen
        rows = _merge([_Group(node.shape[i], s[i], 0, 0) for i in own_r])
        summed = _merge([_Group(node.shape[i], s[i], 0, 0) for i in own_k])
        if len(rows) <= 1 and len(summed) <= 1:
            return Strided(base, offset, (
                0 if b0 is None else s[b0], 0 if b1 is None else s[b1],
                rows[0].a if rows else 0, summed[0].a if summed else 0))
    return view_of(node, (b0, b1), tuple(own_r), tuple(own_k), computed)


def canonical_operand(node: Node, batch: tuple[int, ...], contract: tuple[int, ...]) -> Node:
    """A copy of an operand with axes (batch, free, contract): always describable. What is repeated
    along a batch axis is copied once."""
    free = [i for i in range(node.ndim) if i not in batch and i not in contract]
    moved = TABLE["permute"](node, axes=(*batch, *free, *contract))
    seen = strides_of(moved)
    again = tuple(i for i in range(len(batch))
                  if seen is not None and moved.shape[i] > 1 and seen[2][i] == 0
                  and len(batch) <= 2)
    if not again:
        return TABLE["cast"](moved, dtype=node.dtype)
    stops = tuple(1 if i in again else n for i, n in enumerate(moved.shape))
    once = TABLE["slice"](moved, starts=(0,) * moved.ndim, stops=stops, steps=(1,) * moved.ndim)
    rest = tuple(n for i, n in enumerate(moved.shape) if i not in again)
    once = TABLE["cast"](TABLE["reshape"](once, shape=rest), dtype=node.dtype)
    return TABLE["broadcast"](once, shape=moved.shape, axes=again)


# calls -------------------------------------------------------------------------------------------
def contraction_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                      specialize: bool) -> tuple[list[Call], Kernel | None]:
    """The calls of a contraction's cluster, and the loops of its epilogue if it has one."""
    dot = cluster.members[0]
    product = describe(dot)
    assert product is not None, "the graph was prepared before scheduling"
    b0, b1, m, n, k = product.groups
    dtype = dot.dtype
    out: Output | Epilogue
    loops: Kernel | None = None
    plain = len(product.rows) == len(product.columns) == 1
    if plain and len(cluster.outputs) == 1 and cluster.outputs[0] is dot:
        out = Output(buffers[id(dot)], 0, (b0.c, b1.c, m.c, n.c))
    else:
        out, loops = _epilogue(cluster, product, buffers, target, dtype, specialize)
    sizes = (b0.extent, b1.extent), m.extent, n.extent, k.extent
    if "low" in dot.attrs:
        low = dot.attrs["low"]
        left, right = (_low_operand(x, buffers, low, target, specialize)
                       for x in (product.a, product.b))
        views = [x for x in (left, right) if isinstance(x, Packed)]
        paired = (bool(views) and low is bfloat16 and pair_tile(target) is not None
                  and not any(k.extent % (2 * pair_step(x)) for x in views))
        if paired:
            left, right = (in_pairs(x, target) if isinstance(x, Packed) else x
                           for x in (left, right))
        return low_gemm(*sizes, low, left, right, out, target, paired), loops
    a, b = (_packed_or_placed(x, buffers, dtype, target, specialize)
            for x in (product.a, product.b))
    if isinstance(b, Operand):  # strides (.., k, n), as `gemm` wants them
        b = replace(b, strides=(*b.strides[:2], b.strides[3], b.strides[2]))
    return gemm(*sizes, dtype, a, b, out, target), loops


def _low_operand(x: Strided | View, buffers: dict[int, int], low: DType, target: Target,
                 specialize: bool) -> Stored | Packed:
    """An operand of a product of numbers rounded to `low`: as it is stored, or as a function that
    rounds, and widens to float32."""
    if isinstance(x, View):
        rounded = replace(x, node=TABLE["cast"](x.node, dtype=low))
        return pack_view(rounded, buffers, f32, target, specialize)
    place = Operand(buffers[id(x.base)], x.offset * x.base.dtype.itemsize, x.strides)
    return Stored(place, x.base.dtype)


def _packed_or_placed(x: Strided | View, buffers: dict[int, int], dtype: DType, target: Target,
                      specialize: bool) -> Operand | Packed:
    if isinstance(x, View):
        return pack_view(x, buffers, dtype, target, specialize)
    return Operand(buffers[id(x.base)], x.offset * dtype.itemsize, x.strides)


_SIGNATURE = ("void @epilogue(ptr noalias %args, ptr noalias %tile, i64 %ld, i64 %b0, i64 %b1, "
              "i64 %m0, i64 %rows, i64 %n0, i64 %cols)")


def _epilogue(cluster: Cluster, product: Product, buffers: dict[int, int], target: Target,
              dtype: DType, specialize: bool) -> tuple[Epilogue, Kernel]:
    """The callback that computes what follows the product, block by block."""
    dot = cluster.members[0]
    m, n = (Digits([g.extent for g in digits],
                   [f"{name}{i}" for i in range(len(digits) - 1)] + [name])
            for name, digits in (("m", product.rows), ("n", product.columns)))
    b0, b1 = product.groups[:2]
    linear = var("b0", b0.extent) * b0.c + var("b1", b1.extent) * b1.c
    for digits, groups in ((m, product.rows), (n, product.columns)):
        for step, g in zip(digits.variables(), groups, strict=True):
            linear = linear + step * g.c
    ask = Lowering(buffers)
    ask.tile = (dot, linear)
    ask.own = {id(o) for o in cluster.outputs}
    stores = []
    for node in cluster.outputs:
        value = ask.value(node, unravel(linear, node.shape))
        stores.append(Store(buffers[id(node)], linear, value, node.dtype))
    axes = [Axis("b0", b0.extent), Axis("b1", b1.extent),
            *(Axis(name, extent) for d in (m, n)
              for name, extent in zip(d.names, d.extents, strict=True))]
    kernel = Kernel("epilogue", axes, [], [Pass(stores=stores)])
    flushes = dot.attrs.get("low") is bfloat16 and pair_tile(target) is not None  # as its products
    builder = FunctionBuilder(_SIGNATURE, avx512=target.vector_bytes == 64, flushes=flushes)
    values = ValueWriter(builder, target.vector_bytes // dtype.itemsize, "n", specialize)
    values.tile_dtype = dtype
    values.env.update(b0="%b0", b1="%b1")
    _epilogue_loops(values, m, n, stores)
    source = named(module_text(values.builder), "@epilogue", show(kernel))
    written = tuple(buffers[id(o)] for o in cluster.outputs)
    read = tuple({w.index for w in values.words if isinstance(w, BufferRef)} - set(written))
    return Epilogue(source, tuple(values.words), read, written), kernel


def _epilogue_loops(values: ValueWriter, m: Digits, n: Digits, stores: list[Store]) -> None:
    """Row by row; columns in runs in which only their last digit changes."""
    b = values.builder
    with b.loop("0", "%rows") as i, scope(values):
        m.bind(values, b.add("%m0", i), len(m.extents))
        with n.runs(values, "%n0", b.add("%n0", "%cols")) as (low, high, origin):
            values.tile = ("%tile", "%ld", i, b.sub("%n0", origin))

            def lanes(j: str, mask: str | None) -> None:
                with scope(values):
                    lane = Lane(b.sub(j, origin), mask)
                    for s in stores:
                        values.store(s, lane)

            vectors(values, low, high, lanes)
