"""The last rewriting before kernels are formed: what every kernel may rely on. Layer 2.

The one idea: make hidden costs explicit nodes. A copy (written as a cast to the same dtype) where a
kernel needs its operand in memory in a certain order; two stages where a reduction has too few rows
to occupy the cores; a float32 sum and one rounding for products of 16-bit floats; and for every
indexed access a flag that says whether an index was out of range. And the other way round: what a
product may make from fewer bytes while it packs its operand is not made before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from gossamer.compile.attention import rows_of
from gossamer.compile.cluster import STREAMED_BYTES
from gossamer.compile.contraction import Product, canonical_operand, describe, strides_of
from gossamer.compile.implicit import View, leaves
from gossamer.compile.schedule import MIN_ROWS, SPLIT_WORK, canonical_space
from gossamer.compile.simplify import Rebuilder
from gossamer.core.dtype import DType, bfloat16, bool_, float16, float32, float64, int64
from gossamer.core.traced import largest_divisor
from gossamer.ir.node import STATE, Node, toposort
from gossamer.ir.op import CONSTANT, INPUT, TABLE
from gossamer.ops.movement import shown

__all__ = ["IndexCheck", "copy", "index_checks", "prepare"]

_MEMORY = frozenset({"argsort", "quantized_linear"})  # operators that read their operands in order
_LARGE = 16  # least extent of products that low precision makes faster: others only read
_SHORT = 96  # rows of a product that are too few to pack the other operand for
_FEW_PARTS = 8  # of a concatenation that its readers choose from: a select each
_INLINE_COST = 8.0  # operations for an element that may be computed wherever it is packed
_CORES = 8  # parts of a matrix that is summed down its columns: memory is not faster for more
_PARTS = 64  # stages of a long reduction: enough for any number of cores this is made for


@dataclass(frozen=True)
class IndexCheck:
    """A flag to look at after the run: true means that `node` was given an index out of range."""

    node: Node
    flag: Node


def copy(node: Node) -> Node:
    """A node that puts `node` in memory in its own order."""
    with _line_of(node):
        return TABLE["cast"](node, dtype=node.dtype)


@contextmanager
def _line_of(node: Node) -> Iterator[None]:
    """New nodes get the user's line of `node`."""
    before, STATE.where = STATE.where, node.where
    try:
        yield
    finally:
        STATE.where = before


def index_checks(order: list[Node]) -> list[IndexCheck]:
    """One flag for each distinct (index, extent) pair that is read through."""
    checks: dict[tuple[int, int], IndexCheck] = {}
    for node in order:
        if node.op.name not in ("take", "scatter", "scatter_add"):
            continue
        index, extent = node.inputs[1], node.inputs[0].shape[0]
        known = index.attrs["value"] if index.op is CONSTANT else None  # or a program's parameter
        if isinstance(known, int) and -extent <= known < extent or not index.size:
            continue
        key = (id(index), extent)
        if key in checks:
            continue
        with _line_of(node):
            low = CONSTANT(value=-extent, shape=index.shape, dtype=index.dtype)
            high = CONSTANT(value=extent, shape=index.shape, dtype=index.dtype)
            bad = TABLE["bitwise_or"](TABLE["lt"](index, low), TABLE["ge"](index, high))
            flag = bad
            if index.shape:
                flag = TABLE["reduce_max"](bad, axes=tuple(range(index.ndim)))
            checks[key] = IndexCheck(node, flag)
    return list(checks.values())


def prepare(roots: list[Node], low: DType | None = None) -> list[Node]:
    """Rewrite a simplified graph; equal values, except that long sums are summed in parts.

    Args:
        roots: nodes wanted.
        low: what the operands of large float32 products may be rounded to, or None.
    """
    b = Rebuilder()
    new: dict[int, Node] = {}
    order = toposort(roots, stop=lambda n: n.value is not None)
    assembled = _assembled(order)
    users = Counter(id(x) for node in order for x in node.inputs)
    users.update(id(r) for r in roots)
    for node in order:
        if not node.inputs:
            new[id(node)] = node
            continue
        inputs = tuple(new[id(x)] for x in node.inputs)
        name = node.op.name
        if node.op.kind == "contraction":
            with _line_of(node):
                new[id(node)] = (low is None and _inlined(b, node, inputs, users)
                                 or _contraction(b, node, inputs, low))
        elif name in _MEMORY:
            new[id(node)] = b.again(node, tuple(_in_memory(x) for x in inputs))
        elif name in ("attention", "attention_grad"):
            new[id(node)] = b.again(node, tuple(_readable(x, i) for i, x in enumerate(inputs)))
        elif name in ("conv", "conv_weight", "max_pool_grad"):
            seen = name == "conv" and strides_of(inputs[1])  # a weight is read through strides
            second = inputs[1] if seen else _in_memory(inputs[1])
            new[id(node)] = b.again(node, (_in_memory(inputs[0]), second))
        elif name in ("reduce_sum", "reduce_max", "reduce_min"):
            new[id(node)] = _reduction(b, node, inputs[0])
        elif id(node) in assembled:
            new[id(node)] = b.make(node, "cast", b.again(node, inputs), dtype=node.dtype)
        else:
            new[id(node)] = b.again(node, inputs)
    return [new[id(r)] for r in roots]


def _assembled(order: list[Node]) -> set[int]:
    """Ids of the concatenations that are put in memory: those of many parts, which every element
    would have to choose from, and those that a product reads, which reads them several times."""
    found: set[int] = set()
    read: set[int] = set()  # ids of what products read, seen through movements
    for node in reversed(order):
        if node.op.kind == "contraction" or id(node) in read and node.op.kind == "movement":
            read.update(id(x) for x in shown(node))
        if node.op.name == "concat" and node.value is None \
                and (id(node) in read or len(node.inputs) > _FEW_PARTS):
            found.add(id(node))
    return found


def _readable(node: Node, position: int) -> Node:
    """An operand of attention: q, k, v and g through strides, the statistics in order."""
    if position in (3, 5) or node.dtype is int64:
        return _in_memory(node)
    return node if rows_of(node) is not None else copy(node)


def _in_memory(node: Node) -> Node:
    """`node`, or a copy if it is a view or a constant."""
    base = node
    while base.op.name == "reshape":
        base = base.inputs[0]
    view = base.op.kind == "movement" or base.op.name in ("constant", "iota")
    return copy(node) if view else node


def _contraction(b: Rebuilder, node: Node, inputs: tuple[Node, ...], low: DType | None) -> Node:
    """A product that its kernel can read; `low` is what float32 operands may be rounded to."""
    if node.dtype in (float16, bfloat16):
        wide = tuple(_unrounded(b, x) for x in inputs)
        product = b.make(node, "dot_general", *wide, **{**node.attrs, "low": node.dtype})
        product = _contraction(b, product, wide, None)
        return b.make(node, "cast", product, dtype=node.dtype)
    if low is not None and node.dtype is float32 and _is_large(node):
        found = describe(b.again(node, inputs))
        if found is not None and found.in_memory:
            return b.make(node, "dot_general", *inputs, **{**node.attrs, "low": low})
    node = b.again(node, inputs)
    found = describe(node)
    if found is not None:
        return _straightened(b, node, found)
    at: dict[str, Any] = dict(node.attrs)
    x, y = node.inputs
    x = canonical_operand(x, at["a_batch"], at["a_contract"])
    count, summed = len(at["a_batch"]), len(at["a_contract"])
    at["a_batch"] = tuple(range(count))
    at["a_contract"] = tuple(range(x.ndim - summed, x.ndim))
    candidate = b.make(node, "dot_general", x, y, **at)
    if describe(candidate) is not None:
        return candidate
    y = canonical_operand(y, at["b_batch"], at["b_contract"])
    at["b_batch"] = tuple(range(count))
    at["b_contract"] = tuple(range(y.ndim - summed, y.ndim))
    candidate = b.make(node, "dot_general", x, y, **at)
    if describe(candidate) is not None:
        return candidate
    return _flat_product(b, node, x, y, count, summed)


def _inlined(b: Rebuilder, node: Node, inputs: tuple[Node, ...],
             users: Counter[int]) -> Node | None:
    """The product that computes an operand where it packs it, if that reads half the bytes or less
    (packed weights, wider types), costs little, and nobody else needs the operand."""
    if node.dtype not in (float32, float64) or not _is_large(node):
        return None
    for number, x in enumerate(node.inputs):
        work = _alone(x, users)
        below = leaves(x, computed=True)
        if not work or sum(w.op.cost for w in work) > _INLINE_COST \
                or any(leaf.op.name == "take" for leaf in below) \
                or 2 * sum(map(_bytes, below)) > _bytes(x):
            continue
        made = b.make(node, "dot_general", *inputs, **{**node.attrs, "inline": number})
        found = describe(made)
        if found is not None and isinstance((found.a, found.b)[number], View):
            return made
    return None


def _bytes(node: Node) -> int:
    return node.size * node.dtype.itemsize


def _alone(node: Node, users: Counter[int]) -> list[Node]:
    """The elementwise operators that make `node` from memory; none if something else reads one of
    them, or a movement among them."""
    work: dict[int, Node] = {}
    stack, done = [node], set()
    while stack:
        x = stack.pop()
        if id(x) in done or x.value is not None or x.op.kind not in ("movement", "elementwise"):
            continue
        done.add(id(x))
        if users[id(x)] > 1 or x.op.name in ("concat", "after"):
            return []
        if x.op.kind == "elementwise":
            work[id(x)] = x
        stack.extend(x.inputs)
    return list(work.values())


def _straightened(b: Rebuilder, node: Node, found: Product) -> Node:
    """The product of copies of those operands whose order in memory would cost more than the copy:
    rows in short pieces (a batch put behind time), each of which would be a product of its own, and
    summed axes that lie in another order than the other operand's."""
    bent = _bends(found)
    inputs = list(node.inputs)
    for i in bent:
        x = inputs[i]
        view = strides_of(x)
        if view is not None and x.size == view[0].size and 0 not in view[2]:
            inputs[i] = b.make(x, "cast", x, dtype=x.dtype)
    if inputs == list(node.inputs):
        return node
    straight = b.make(node, "dot_general", *inputs, **node.attrs)
    better = describe(straight)
    return node if better is None or len(_bends(better)) >= len(bent) else straight


def _bends(p: Product) -> list[int]:
    """Numbers of the operands that are not read in the order that a product likes."""
    if not p.in_memory:
        return [i for i, x in enumerate((p.a, p.b)) if isinstance(x, View)]
    pieces = p.groups[2].extent < _SHORT and any(g.extent > 1 and g.a and not g.b
                                                 for g in p.groups[:2])
    return [0] if pieces else []


def _is_large(node: Node) -> bool:
    """Whether a product multiplies more than it reads: others are bound by memory."""
    summed = prod(node.inputs[0].shape[i] for i in node.attrs["a_contract"])
    batch = prod(node.inputs[0].shape[i] for i in node.attrs["a_batch"])
    rows = node.inputs[0].size // max(summed * batch, 1)
    columns = node.inputs[1].size // max(summed * batch, 1)
    return min(summed, rows, columns) >= _LARGE


def _unrounded(b: Rebuilder, node: Node) -> Node:
    """The float32 input that `node`, an operand of 16 bits, is rounded from, in the same view; or
    `node`. The product rounds it while packing: the cast costs no pass over memory."""
    views: list[Node] = []
    base = node
    while base.op.kind == "movement":
        views.append(base)
        if len(base.inputs) != 1:
            return node
        base = base.inputs[0]
    if base.op.name != "cast" or base.inputs[0].dtype is not float32:
        return node
    root = found = base.inputs[0]
    while root.op.kind == "movement" and len(root.inputs) == 1:
        root = root.inputs[0]
    if root.op is not INPUT:
        return node
    for view in reversed(views):
        found = b.again(view, (found,))
    return found


def _flat_product(b: Rebuilder, node: Node, x: Node, y: Node, batch: int, summed: int) -> Node:
    """Both operands copied in (batch, free, contract) order and flattened to three axes."""
    def flat(v: Node) -> Node:
        sizes = [1, 1, 1]
        for axis, extent in enumerate(v.shape):
            sizes[0 if axis < batch else 2 if axis >= v.ndim - summed else 1] *= extent
        return b.make(node, "reshape", v, shape=tuple(sizes))

    at = {**node.attrs, "a_batch": (0,), "a_contract": (2,), "b_batch": (0,), "b_contract": (2,)}
    product = b.make(node, "dot_general", flat(x), flat(y), **at)
    return b.make(node, "reshape", product, shape=node.shape)


def _reduction(b: Rebuilder, node: Node, x: Node) -> Node:
    """Two stages when few rows share much work, and for sums of large columns, of which each core
    is to read whole rows: parts of fixed number, then the parts together."""
    axes = node.attrs["axes"]
    order = _common_order(x) if axes == (x.ndim - 1,) else None
    if order is not None:
        plain = b.make(x, x.op.name, *(y.inputs[0] for y in x.inputs), **x.attrs)
        return b.make(node, "permute", b.make(node, node.op.name, plain, axes=axes),
                      axes=order[:-1])
    whole = b.again(node, (x,))
    space = canonical_space(x.shape, axes)
    rows = prod(extent for extent, reduced in space if not reduced)
    if len(space) == 2 and space[0][1] and x.size * x.dtype.itemsize >= STREAMED_BYTES \
            and rows >= MIN_ROWS and x.dtype.kind == "f":
        return _columns(b, node, x, space[0][0], space[1][0])
    if x.size < SPLIT_WORK or rows >= MIN_ROWS or not rows:
        return whole
    axis = max(axes, key=lambda a: x.shape[a])
    parts = largest_divisor(x.shape[axis], _PARTS)
    if parts < 4 or x.dtype is bool_ or x.dtype is int64 and node.op.name != "reduce_sum":
        return whole
    shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1:])
    split = b.make(node, "reshape", x, shape=shape)
    inner = tuple(a + (a >= axis) for a in axes)  # the part itself stays
    stage = b.make(node, node.op.name, split, axes=inner)
    place = axis - sum(a < axis for a in axes)
    return b.make(node, node.op.name, stage, axes=(place,))


def _common_order(x: Node) -> tuple[int, ...] | None:
    """The permutation through which an elementwise operator sees all its operands, if it leaves
    the last axis where it is: rows are reduced in the order in which they lie, and the results, of
    which there are fewer, are permuted. (Rows of heads, 128 bytes each, took 2 ms instead of 0.4.)
    """
    if x.op.kind != "elementwise" or x.value is not None or x.shape[-1] < _LARGE:
        return None
    first = x.inputs[0]
    if any(y.op.name != "permute" or y.attrs["axes"] != first.attrs.get("axes") for y in x.inputs):
        return None
    order: tuple[int, ...] = first.attrs["axes"]
    return order if order[-1] == x.ndim - 1 else None


def _columns(b: Rebuilder, node: Node, x: Node, rows: int, columns: int) -> Node:
    """A reduction of the rows of a large matrix, in stages."""
    parts = largest_divisor(rows, _CORES)
    if parts < 2 or rows // parts < _CORES:
        return b.again(node, (x,))
    split = b.make(node, "reshape", x, shape=(parts, rows // parts, columns))
    stage = b.make(node, node.op.name, split, axes=(1,))
    whole = b.make(node, node.op.name, stage, axes=(0,))
    return b.make(node, "reshape", whole, shape=node.shape)
