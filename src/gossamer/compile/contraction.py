"""Contractions in the graph as products with strides, and their epilogues. Layer 2.

The one idea: an operand of `dot_general` is a view of something in memory; the movement operators
between are folded into one stride per axis, and axes that step alike are merged until the product
has two batch, one row, one column and one summed axis. What cannot be described so is copied first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call
from gossamer.compile.gemm import Epilogue, Operand, Output, Target, gemm
from gossamer.compile.llvm import module_text, named
from gossamer.compile.llvm_values import Lane, Scope, ValueWriter
from gossamer.compile.lower import Lowering, ravel, unravel
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import DType, float32 as f32, float64, int64
from gossamer.ir.index import Index, Var, const, var
from gossamer.ir.loop import Axis, Kernel, Pass, Store, show
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE

__all__ = ["Product", "canonical_operand", "contraction_calls", "describe", "strides_of"]


@dataclass(frozen=True)
class _Group:
    """Axes that move together: extent and strides in A, B and C."""

    extent: int
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Product:
    """A contraction ready for the generator; `groups` are (batch 0, batch 1, m, n, k)."""

    a: Node
    a_offset: int  # elements
    b: Node
    b_offset: int
    groups: tuple[_Group, _Group, _Group, _Group, _Group]


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


def describe(node: Node) -> Product | None:
    """The product that a `dot_general` is, or None if an operand must be copied first."""
    left, right = strides_of(node.inputs[0]), strides_of(node.inputs[1])
    if left is None or right is None:
        return None
    a, a_offset, sa = left
    b, b_offset, sb = right
    at, x, y = node.attrs, node.inputs[0], node.inputs[1]
    a_free = [i for i in range(x.ndim) if i not in at["a_batch"] and i not in at["a_contract"]]
    b_free = [i for i in range(y.ndim) if i not in at["b_batch"] and i not in at["b_contract"]]
    sc = [prod(node.shape[i + 1:]) for i in range(node.ndim)]
    nb, na = len(at["a_batch"]), len(a_free)
    batch = [_Group(x.shape[i], sa[i], sb[j], sc[k])
             for k, (i, j) in enumerate(zip(at["a_batch"], at["b_batch"], strict=True))]
    rows = [_Group(x.shape[i], sa[i], 0, sc[nb + k]) for k, i in enumerate(a_free)]
    columns = [_Group(y.shape[j], 0, sb[j], sc[nb + na + k]) for k, j in enumerate(b_free)]
    summed = [_Group(x.shape[i], sa[i], sb[j], 0)
              for i, j in zip(at["a_contract"], at["b_contract"], strict=True)]
    batch, rows, columns = _merge(batch), _merge(rows), _merge(columns)
    summed = _merge(sorted(summed, key=lambda g: -max(abs(g.a), abs(g.b))))
    batch += rows[:-1] + columns[:-1]
    if len(batch) > 2 or len(summed) > 1:
        return None
    one = _Group(1, 0, 0, 0)
    batch = [one] * (2 - len(batch)) + batch
    return Product(a, a_offset, b, b_offset, (
        batch[0], batch[1], rows[-1] if rows else one,
        columns[-1] if columns else _Group(1, 0, 0, 1), summed[0] if summed else one))


def canonical_operand(node: Node, batch: tuple[int, ...], contract: tuple[int, ...]) -> Node:
    """A copy of an operand with axes (batch, free, contract): always describable."""
    free = [i for i in range(node.ndim) if i not in batch and i not in contract]
    moved = TABLE["permute"](node, axes=(*batch, *free, *contract))
    return TABLE["cast"](moved, dtype=node.dtype)


def contraction_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                      specialize: bool) -> tuple[list[Call], Kernel | None]:
    """The calls of a contraction's cluster, and the loops of its epilogue if it has one."""
    dot = cluster.members[0]
    product = describe(dot)
    assert product is not None, "the graph was prepared before scheduling"
    b0, b1, m, n, k = product.groups
    dtype = dot.dtype
    size = dtype.itemsize
    a = Operand(buffers[id(product.a)], product.a_offset * size, (b0.a, b1.a, m.a, k.a))
    b = Operand(buffers[id(product.b)], product.b_offset * size, (b0.b, b1.b, k.b, n.b))
    out: Output | Epilogue
    loops: Kernel | None = None
    if len(cluster.outputs) == 1 and cluster.outputs[0] is dot:
        out = Output(buffers[id(dot)], 0, (b0.c, b1.c, m.c, n.c))
    else:
        out, loops = _epilogue(cluster, product, buffers, target, dtype, specialize)
    calls = gemm((b0.extent, b1.extent), m.extent, n.extent, k.extent, dtype, a, b, out, target)
    return calls, loops


_SIGNATURE = ("void @epilogue(ptr noalias %args, ptr noalias %tile, i64 %ld, i64 %b0, i64 %b1, "
              "i64 %m0, i64 %rows, i64 %n0, i64 %cols)")


def _epilogue(cluster: Cluster, product: Product, buffers: dict[int, int], target: Target,
              dtype: DType, specialize: bool) -> tuple[Epilogue, Kernel]:
    """The callback that computes what follows the product, block by block."""
    dot = cluster.members[0]
    names = ("b0", "b1", "m", "n")
    linear = const(0)
    for name, g in zip(names, product.groups, strict=False):
        # The column is the vector axis, also when there is only one.
        step = Index(0, {Var("n", g.extent): 1}) if name == "n" else var(name, g.extent)
        linear = linear + step * g.c
    ask = Lowering(buffers)
    ask.tile = (dot, linear)
    ask.own = {id(o) for o in cluster.outputs}
    stores = []
    for node in cluster.outputs:
        value = ask.value(node, unravel(linear, node.shape))
        stores.append(Store(buffers[id(node)], linear, value, node.dtype))
    axes = [Axis(name, g.extent) for name, g in zip(names, product.groups, strict=False)]
    kernel = Kernel("epilogue", axes, [], [Pass(stores=stores)])
    width = target.vector_bytes // (8 if dtype is float64 else 4)
    builder = FunctionBuilder(_SIGNATURE)
    values = ValueWriter(builder, width, "n", specialize)
    values.tile_dtype = f32 if dtype is not float64 else float64
    values.env.update(b0="%b0", b1="%b1")
    with builder.loop("0", "%rows") as i:
        values.scope = Scope(values.scope)
        values.env["m"] = builder.add("%m0", i)
        values.tile = ("%tile", "%ld", i, "%n0")
        whole = builder.sub("%cols", builder.value(f"urem i64 %cols, {width}"))

        def lanes(j: str, mask: str | None) -> None:
            values.scope = Scope(values.scope)
            lane = Lane(builder.add("%n0", j), mask)
            for s in stores:
                values.store(s, lane)
            values.scope = values.scope.parent or values.scope

        with builder.loop("0", whole, width) as j:
            lanes(j, None)
        with builder.loop(whole, "%cols", width) as j:
            e = values.emitter(int64, width)
            lanes(j, e.lt(e.lanes(), e.splat(builder.sub("%cols", j))))
        values.scope = values.scope.parent or values.scope
    source = named(module_text(builder), "@epilogue", show(kernel))
    written = tuple(buffers[id(o)] for o in cluster.outputs)
    read = tuple({w.index for w in values.words if isinstance(w, BufferRef)} - set(written))
    return Epilogue(source, tuple(values.words), read, written), kernel
