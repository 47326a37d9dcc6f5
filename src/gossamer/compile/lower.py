"""Graph to loops: what one kernel computes, element by element. Layer 2.

The one idea: a kernel's outputs are asked for at a symbolic index, and the question travels through
the graph. A movement operator changes the index; an elementwise operator asks its inputs at the
same index; a node that is in memory answers with a load; a reduction of this kernel answers with
its accumulator. So views cost nothing, and fusion is simply not storing.

Loops start flat, one variable for all kept and one for all reduced elements; they are split only
where an access cannot be written without a quotient (a transposed or broadcast operand).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from gossamer.compile.calls import Param
from gossamer.core.dtype import bool_, int32
from gossamer.core.errors import CompileError
from gossamer.core.traced import gcd
from gossamer.ir.index import (
    Condition,
    Index,
    Quotient,
    Read,
    Remainder,
    Var,
    const,
    is_var,
    var,
)
from gossamer.ir.loop import Axis, Kernel, Pass, Reduce, Store, Val
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import TABLE

__all__ = ["Lowering", "Misfit", "Nest", "Place", "Space", "lower_loops", "ravel", "unravel"]

Space = tuple[tuple[int, bool], ...]  # (extent, reduced?) per axis, neighbours of one kind merged
_COUNT = 8  # whole numbers beyond this, in composites of floats, are counts of elements
COMBINE = {"reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min"}


class Misfit(CompileError):
    """A cluster's node is asked at an index this kernel does not compute: split the cluster."""


@dataclass(frozen=True)
class Place:
    """Where the elements of a part lie in its whole: runs of `run`, `stride` apart, from `offset`
    on. A part that has a buffer of its own is read there."""

    run: int
    stride: int
    offset: int

    def of(self, linear: Index) -> Index:
        """Index in the whole of element `linear` of the part."""
        return linear // self.run * self.stride + linear % self.run + self.offset


@dataclass
class Nest:
    """What a loop kernel is to compute.

    Args:
        name: for `explain`.
        space: the iteration space.
        reductions: reduction nodes computed here, in topological order.
        outputs: (node, buffer number) to store.
        rows: ids of outputs that have one element per row.
        places: of outputs that are parts of a larger tensor, by id.
    """

    name: str
    space: Space
    reductions: list[Node]
    outputs: list[tuple[Node, int]]
    rows: set[int] = field(default_factory=set)
    places: dict[int, Place] = field(default_factory=dict)


def ravel(index: Iterable[Index], shape: Shape) -> Index:
    """Row-major linear index."""
    linear = const(0)
    stride = 1
    for i, extent in zip(reversed(tuple(index)), reversed(shape), strict=True):
        linear = linear + i * stride
        stride *= extent
    return linear


def unravel(linear: Index, shape: Shape) -> tuple[Index, ...]:
    """The inverse of `ravel`, for 0 <= linear < prod(shape)."""
    out: list[Index] = []
    for axis in range(len(shape) - 1, 0, -1):
        out.append(linear % shape[axis] if shape[axis] > 0 else const(0))
        linear = linear // max(shape[axis], 1)
    if shape:
        out.append(linear if shape[0] != 1 else const(0))
    return tuple(reversed(out))


class Lowering:
    """Answers "the value of this node at this index" for one kernel.

    Args:
        buffers: id of node -> number of the program buffer that holds it.
    """

    def __init__(self, buffers: dict[int, int]) -> None:
        self.buffers = buffers
        self.accumulators: dict[int, tuple[int, Node]] = {}
        self.row: Index = const(0)
        self.asked: dict[object, Val] = {}
        self.tile: tuple[Node, Index] | None = None  # epilogue: the contraction, its linear index
        self.own: set[int] = set()  # nodes to compute although a buffer holds (will hold) them

    def value(self, node: Node, index: tuple[Index, ...], cond: Condition | None = None) -> Val:
        key = (id(node), index, cond)
        found = self.asked.get(key)
        if found is None:
            found = self.asked[key] = self._value(node, index, cond)
        return found

    def _value(self, node: Node, index: tuple[Index, ...], cond: Condition | None) -> Val:
        if id(node) in self.accumulators:
            return self._accumulator(node, index)
        if self.tile is not None and node is self.tile[0]:
            apart = ravel(index, node.shape) - self.tile[1]
            if apart.low or apart.high:
                raise Misfit(f"{node.op.name}: the epilogue asks at another index")
            return Val("tile", node.dtype, None, (), ("m", "n"))
        buffer = self.buffers.get(id(node))
        if buffer is not None and id(node) not in self.own:
            return self._load(buffer, node, index, cond)
        name = node.op.name
        if name == "constant":
            number = node.attrs["value"]
            if isinstance(number, Param):
                return Val("param", node.dtype, number.index)
            if number.__class__ is not float and node.dtype.kind == "f" and number > _COUNT:
                return self._index_value(node, const(number))  # a word: one text for all sizes
            return Val("const", node.dtype, number)
        if name == "iota":
            return self._index_value(node, index[node.attrs["axis"]])
        if node.op.kind == "movement":
            return self._movement(node, index, cond)
        if node.op.kind == "elementwise":
            inputs = tuple(self.value(x, index, cond) for x in node.inputs)
            return Val("op", node.dtype, (node.op, node.attrs), inputs)
        if name == "take":
            table, where = node.inputs
            atom = Read(self.value(where, index[:where.ndim], cond), index[:where.ndim],
                        table.shape[0], cond)
            return self.value(table, (Index(0, {atom: 1}), *index[where.ndim:]), cond)
        raise Misfit(f"{name} cannot be computed inside another kernel")

    def _accumulator(self, node: Node, index: tuple[Index, ...]) -> Val:
        number, _ = self.accumulators[id(node)]
        if ravel(index, node.shape) != self.row:
            raise Misfit(f"{node.op.name} is asked at another row")
        names = [v.name for v in self.row.variables()]
        if node.dtype is bool_:
            inner = Val("acc", int32, number, (), names)
            return Val("op", bool_, (TABLE["cast"], {"dtype": bool_}), (inner,))
        return Val("acc", node.dtype, number, (), names)

    def _load(self, buffer: int, node: Node, index: tuple[Index, ...],
              cond: Condition | None) -> Val:
        linear = ravel(index, node.shape)
        names = [v.name for v in linear.variables()]
        if cond is not None:
            names += [v.name for v in cond.variables()]
        return Val("load", node.dtype, (buffer, linear, cond), (), names)

    def _index_value(self, node: Node, index: Index) -> Val:
        return Val("index", node.dtype, index, (), [v.name for v in index.variables()])

    def _movement(self, node: Node, index: tuple[Index, ...], cond: Condition | None) -> Val:
        shapes = tuple(x.shape for x in node.inputs)
        result: Val | None = None
        for number, at, when in reversed(node.op.lower(index, shapes, **node.attrs)):
            if when is not None and when.always:
                when = None
            inner = self.value(node.inputs[number], at, cond if when is None else when & cond)
            if when is None:
                result = inner
                continue
            if result is None:
                result = Val("const", node.dtype, node.attrs.get("value", 0))
            names = [v.name for v in when.variables()]
            result = Val("select", node.dtype, when, (inner, result), names)
        if result is None:  # every part is empty
            result = Val("const", node.dtype, node.attrs.get("value", 0))
        return result


@dataclass
class _Axes:
    """The loop variables: for each axis of the space, its factors outermost first."""

    space: Space
    factors: list[list[int]]

    def names(self, position: int) -> list[str]:
        return [f"{'r' if self.space[position][1] else 'i'}{position}_{k}"
                for k in range(len(self.factors[position]))]

    def axes(self, reduced: bool) -> list[Axis]:
        return [Axis(name, extent) for p, (_, r) in enumerate(self.space) if r == reduced
                for name, extent in zip(self.names(p), self.factors[p], strict=True)]

    def linear(self, position: int) -> Index:
        total = const(0)
        for name, extent in zip(self.names(position), self.factors[position], strict=True):
            total = total * extent + var(name, extent)
        return total

    def element(self) -> Index:
        """Linear index over the whole space."""
        return ravel([self.linear(p) for p in range(len(self.space))],
                     tuple(n for n, _ in self.space))

    def row(self) -> Index:
        """Linear index over the kept axes."""
        kept = [p for p, (_, r) in enumerate(self.space) if not r]
        return ravel([self.linear(p) for p in kept], tuple(self.space[p][0] for p in kept))

    def split(self, name: str, factor: int) -> bool:
        """Split the loop `name` into (extent / factor, factor)."""
        for p, parts in enumerate(self.factors):
            for k, own in enumerate(self.names(p)):
                if own == name and 1 < factor < parts[k] and parts[k] % factor == 0:
                    parts[k:k + 1] = [parts[k] // factor, factor]
                    return True
        return False


def _wanted_split(index: Index, lanes: str = "") -> tuple[str, int] | None:
    """A split of a loop that would remove a quotient or remainder of `index`. The loop `lanes`
    keeps its neighbours together: halves and quarters of it are found inside a vector."""
    for atom in index.terms:
        if isinstance(atom, (Quotient, Remainder)):
            inner = _wanted_split(atom.value, lanes)
            if inner is not None:
                return inner
            if atom.divisor in (2, 4) and is_var(atom.value, lanes):
                continue
            for x, k in atom.value.terms.items():
                if isinstance(x, Var):
                    factor = atom.divisor // gcd(k, atom.divisor)
                    if 1 < factor < x.extent and x.extent % factor == 0:
                        return x.name, factor
    return None


def _indices(values: Iterable[Val]) -> Iterable[Index]:
    for v in values:
        condition = None
        if v.kind == "load":
            yield v.data[1]
            condition = v.data[2]
        elif v.kind == "index":
            yield v.data
        elif v.kind == "select":
            condition = v.data
        if condition is not None:
            yield from (b[0] for b in condition.bounds)
            yield from (m[0] for m in condition.multiples)


def lower_loops(nest: Nest, buffers: dict[int, int]) -> Kernel:
    """The loops of a nest.

    Raises:
        Misfit: a node of the nest is needed at an index that these loops do not reach.
    """
    axes = _Axes(nest.space, [[n] for n, _ in nest.space])
    for _ in range(24):
        kernel = _attempt(nest, axes, buffers)
        wanted = None
        lanes = kernel.kept[-1].name if kernel.kept and not kernel.reduced else ""
        for index in _indices(kernel.values()):
            wanted = _wanted_split(index, lanes)
            if wanted is not None and axes.split(*wanted):
                break
            wanted = None
        if wanted is None:
            for s in kernel.stores():
                wanted = _wanted_split(s.index)
                if wanted is not None and axes.split(*wanted):
                    break
                wanted = None
        if wanted is None:
            return kernel
    return kernel


def _attempt(nest: Nest, axes: _Axes, buffers: dict[int, int]) -> Kernel:
    ask = Lowering(buffers)
    ask.own = {id(n) for n, _ in nest.outputs} - nest.places.keys()
    ask.row = axes.row()
    element = axes.element()
    level: dict[int, int] = {}
    passes: list[Pass] = []
    sizes = [axes.linear(p) for p in range(len(axes.space))]

    def at(p: int) -> Pass:
        while len(passes) <= p:
            passes.append(Pass())
        return passes[p]

    for number, node in enumerate(nest.reductions):
        source = node.inputs[0]
        value = ask.value(source, unravel(ravel(sizes, tuple(n for n, _ in axes.space)),
                                          source.shape))
        if node.dtype is bool_:
            value = Val("op", int32, (TABLE["cast"], {"dtype": int32}), (value,))
        level[number] = depth = _depth(value, level)
        at(depth).reduces.append(Reduce(number, COMBINE[node.op.name], value))
        ask.accumulators[id(node)] = (number, node)
    for node, buffer in nest.outputs:
        is_row = id(node) in nest.rows
        linear = ask.row if is_row else element
        value = ask.value(node, unravel(linear, node.shape))
        depth = _depth(value, level)
        place = nest.places.get(id(node))
        target = linear if place is None else place.of(linear)
        store = Store(buffer, target, value, node.dtype)
        if is_row and nest.reductions:
            at(max(depth - 1, 0)).row_stores.append(store)
        else:
            at(depth).stores.append(store)
    return Kernel(nest.name, axes.axes(False), axes.axes(True), passes)


def _depth(root: Val, level: dict[int, int]) -> int:
    """The first pass in which `root` can be computed."""
    depth = 0
    done: set[int] = set()
    stack = [root]
    while stack:
        val = stack.pop()
        if id(val) in done:
            continue
        done.add(id(val))
        if val.kind == "acc":
            depth = max(depth, level[val.data] + 1)
        stack.extend(val.inputs)
        if val.kind == "load":
            stack.extend(a.source for a in val.data[1].terms if isinstance(a, Read))
    return depth


def space_size(space: Space, reduced: bool | None = None) -> int:
    """Number of points of a space: all, or only of its kept or reduced axes."""
    return prod(n for n, r in space if reduced is None or r == reduced)
