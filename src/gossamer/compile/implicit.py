"""Operands of a product that are computed while they are packed. Layer 2.

The one idea: an operand that no strides describe (windows of a padded image, several summed axes,
weights of 4 bits) is still a function of (batch, row, k), and packing copies every element anyway;
so the packing loops ask for elements through the graph instead of reading a matrix. Rows and k are
numbers with several digits, one for each axis: a block is cut where the last digit overflows, and
between two cuts neighbours in memory are copied as vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.gemm import Packed, Target
from gossamer.compile.llvm import module_text, named
from gossamer.compile.llvm_values import Lane, Scope, ValueWriter
from gossamer.compile.lower import Lowering, unravel
from gossamer.core.dtype import DType, int64
from gossamer.ir.index import Condition, Index, Var, var
from gossamer.ir.loop import Val
from gossamer.ir.node import Node
from gossamer.ops.movement import shown

__all__ = ["Digits", "View", "leaves", "pack_view", "scope", "vectors", "view_of"]

_UNROLL = 64  # places of the last digits of k that are written out: a kernel of 7 x 7
_RUN = 4  # neighbours in memory that are worth a vector
_LANES = 16  # neighbours without which it is not worth computing an operand here
_APART = 4  # elements up to so far apart are neighbours that vectors sort out

_SIGNATURE = ("void @pack(ptr noalias %args, ptr noalias %dst, i64 %b0, i64 %b1, i64 %r0, "
              "i64 %rows, i64 %k0, i64 %kc, i64 %width)")


@dataclass(frozen=True)
class View:
    """An operand X[b0, b1, r, k] as a function of its indices.

    Args:
        node: the operand, under movements and whatever else is computed here.
        batch: its axis for b0 and b1; None where it does not depend on that one.
        r, k: its axes that are digits of r and of k, outermost first; those that step alike in
            memory are one digit.
        along: which of the two has neighbours in memory.
        leaves: the nodes in memory that it reads.
    """

    node: Node
    batch: tuple[int | None, int | None]
    r: tuple[tuple[int, ...], ...]
    k: tuple[tuple[int, ...], ...]
    along: str
    leaves: tuple[Node, ...]


# what an operand reads ---------------------------------------------------------------------------


def leaves(node: Node, computed: bool = False) -> list[Node]:
    """What lies in memory under the movement operators above it; `computed`: and under the
    elementwise ones."""
    inside = ("movement", "elementwise") if computed else ("movement",)
    found: dict[int, Node] = {}
    stack, done = [node], set()
    while stack:
        x = stack.pop()
        if id(x) in done:
            continue
        done.add(id(x))
        if x.op.kind in inside and x.value is None:
            stack.extend(shown(x))
        elif x.op.name not in ("constant", "iota"):
            found[id(x)] = x
    return list(found.values())


class _Reads:
    """How the loads of an operand depend on its axes."""

    def __init__(self, node: Node, leaves: list[Node]) -> None:
        self.shape = node.shape
        axes = tuple(var(f"d{i}", n) for i, n in enumerate(node.shape))
        ask = Lowering({id(leaf): i for i, leaf in enumerate(leaves)})
        self.steps: list[dict[str, int]] = []  # of each load: its stride along each axis
        self.tangled: set[str] = set()  # axes that loads use otherwise
        self.checked: set[str] = set()  # axes that conditions look at
        stack, done = [ask.value(node, axes)], set()
        while stack:
            val = stack.pop()
            if id(val) in done:
                continue
            done.add(id(val))
            stack.extend(val.inputs)
            self._note(val)

    def _note(self, val: Val) -> None:
        condition = val.data if val.kind == "select" else None
        if val.kind == "load":
            _, linear, condition = val.data
            self.steps.append({})
            for atom, k in linear.terms.items():
                if isinstance(atom, Var):
                    self.steps[-1][atom.name] = k
                else:
                    self.tangled.update(v.name for v in Index(0, {atom: 1}).variables())
        elif val.kind == "index":
            self.tangled.update(v.name for v in val.data.variables())
        if condition is not None:
            self.checked.update(v.name for v in condition.variables())

    def follow(self, outer: int, inner: int) -> bool:
        """Whether two axes go on like one in every load."""
        names = {f"d{outer}", f"d{inner}"}
        return not names & (self.tangled | self.checked) and all(
            s.get(f"d{outer}", 0) == s.get(f"d{inner}", 0) * self.shape[inner]
            for s in self.steps)

    def stride(self, axis: int) -> int:
        """Distance in memory along an axis, the same in every load; 0 if there is none."""
        name = f"d{axis}"
        found = {s.get(name, 0) for s in self.steps} or {1}
        return found.pop() if len(found) == 1 and name not in self.tangled else 0

    def size(self) -> int:
        """Number of elements, those counted once that are repeated along an axis."""
        own = self.tangled | self.checked | {name for s in self.steps for name in s}
        return prod(n for i, n in enumerate(self.shape) if f"d{i}" in own)

    def digits(self, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Axes that go on like one together; axes of extent 1 vanish."""
        found: list[tuple[int, ...]] = []
        for axis in axes:
            if self.shape[axis] == 1:
                continue
            if found and self.follow(found[-1][-1], axis):
                found[-1] = (*found[-1], axis)
            else:
                found.append((axis,))
        return tuple(found)

    def run(self, digits: tuple[tuple[int, ...], ...]) -> int:
        """Number of neighbours in memory along the last digit; those a few places apart, which
        vectors sort out, count for less."""
        stride = self.stride(digits[-1][-1]) if digits else 0
        if not 1 <= stride <= _APART:
            return 0
        return prod(self.shape[a] for a in digits[-1]) // stride

    def near(self, digits: tuple[tuple[int, ...], ...]) -> bool:
        """Whether every load finds whole vectors of neighbours, or one number, along the last
        digit."""
        if not digits or self.shape[digits[-1][-1]] < _LANES:
            return False
        name = f"d{digits[-1][-1]}"
        return name not in self.tangled and all(
            0 <= s.get(name, 0) <= _APART for s in self.steps)


def view_of(node: Node, batch: tuple[int | None, int | None], r: tuple[int, ...],
            k: tuple[int, ...], computed: bool = False) -> View | None:
    """The operand as something to compute while packing; None if copying it first is better.

    Args:
        node: the operand.
        batch, r, k: its axes in each role, outermost first.
        computed: through elementwise operators, not only through movements.
    """
    below = leaves(node, computed)
    if not node.size:
        return None
    reads = _Reads(node, below)
    rows, summed = reads.digits(r), reads.digits(k)
    if computed:
        near = [name for name, digits in (("r", rows), ("k", summed)) if reads.near(digits)]
        return View(node, batch, rows, summed, near[0], tuple(below)) if near else None
    r_run, k_run = reads.run(rows), reads.run(summed)
    grows = reads.size() > sum(leaf.size for leaf in below)
    if max(r_run, k_run) < _RUN and not grows:
        return None
    # Blocks along k are transposed afterwards, which costs as much again as a short run.
    along = "k" if k_run >= _RUN and k_run > 2 * r_run else "r"
    return View(node, batch, rows, summed, along, tuple(below))


# the packing function ----------------------------------------------------------------------------


class Digits:
    """A number as loop variables, outermost first.

    Args:
        extents: of each digit.
        names: of its variables.
    """

    def __init__(self, extents: list[int], names: list[str]) -> None:
        self.extents, self.names = extents or [1], names or [""]

    def variables(self) -> list[Index]:
        # The last digit is the vector axis, also when there is only one of it.
        last = Index(0, {Var(self.names[-1], self.extents[-1]): 1})
        return [*(var(n, e) for n, e in zip(self.names[:-1], self.extents[:-1], strict=True)), last]

    def bind(self, values: ValueWriter, number: str, count: int) -> None:
        """Set the variables of the first `count` digits from a number made of these alone."""
        b = values.builder
        for position in range(count - 1, -1, -1):
            if position == 0:
                values.env[self.names[0]] = number
                return
            extent = values.size(self.extents[position])
            values.env[self.names[position]] = b.urem(number, extent)
            number = b.udiv(number, extent)

    @contextmanager
    def runs(self, values: ValueWriter, start: str, end: str) -> Iterator[tuple[str, str, str]]:
        """Cut [start, end) where the last digit overflows, and bind the digits before it.

        Yields (first number, number behind the last, number at which the last digit is 0).
        """
        b = values.builder
        if len(self.extents) == 1:
            yield start, end, "0"
            return
        extent = values.size(self.extents[-1])
        behind = b.udiv(b.sub(b.add(end, extent), "1"), extent)
        with b.loop(b.udiv(start, extent), behind) as run, scope(values):
            self.bind(values, run, len(self.extents) - 1)
            origin = b.mul(run, extent)
            low = b.select(b.compare("sgt", origin, start), origin, start)
            yield low, b.minimum(b.add(origin, extent), end), origin


@contextmanager
def scope(values: ValueWriter) -> Iterator[None]:
    """A loop's body: what is computed in it is forgotten behind it."""
    values.scope = Scope(values.scope)
    yield
    parent = values.scope.parent
    assert parent is not None
    values.scope = parent


def vectors(values: ValueWriter, start: str, end: str,
            body: Callable[[str, str | None], None]) -> None:
    """Run body(first, mask) over [start, end): whole vectors, then the rest under a mask."""
    b, width = values.builder, values.width
    count = b.sub(end, start)
    whole = b.add(start, b.sub(count, b.value(f"urem i64 {count}, {width}")))
    with b.loop(start, whole, width) as j:
        body(j, None)
    with b.when(b.compare("slt", whole, end)):
        e = values.emitter(int64, width)
        body(whole, e.lt(e.lanes(), e.splat(b.sub(end, whole))))


class _PackWriter:
    def __init__(self, view: View, buffers: dict[int, int], dtype: DType, target: Target,
                 specialize: bool) -> None:
        shape = view.node.shape
        self.view, self.dtype = view, dtype
        self.r, self.k = (
            Digits([prod(shape[a] for a in axes) for axes in digits],
                   [f"{name}{i}" for i in range(len(digits))])
            for name, digits in (("r", view.r), ("k", view.k)))
        lane = (self.r if view.along == "r" else self.k).names[-1]
        width = target.vector_bytes // dtype.itemsize
        self.builder = FunctionBuilder(_SIGNATURE, avx512=target.vector_bytes == 64)
        self.values = ValueWriter(self.builder, width, lane, specialize)
        self.values.env.update(b0="%b0", b1="%b1")
        self.value = Lowering(buffers).value(view.node, self.index())
        self.step = 1
        self.unrolled = 0  # last digits of k that are written out
        if view.along == "r":
            for extent in reversed(self.k.extents[1:]):
                if self.step * extent > _UNROLL:
                    break
                self.step *= extent
                self.unrolled += 1

    def index(self) -> tuple[Index, ...]:
        shape = self.view.node.shape
        found = [var("", 1)] * len(shape)
        for name, axis in zip(("b0", "b1"), self.view.batch, strict=True):
            if axis is not None:
                found[axis] = var(name, shape[axis])
        for digits, variables in ((self.view.r, self.r.variables()),
                                  (self.view.k, self.k.variables())):
            for axes, number in zip(digits, variables, strict=False):
                parts = unravel(number, tuple(shape[a] for a in axes))
                for axis, part in zip(axes, parts, strict=True):
                    found[axis] = part
        return tuple(found)

    def write(self) -> Packed:
        b = self.builder
        if self.view.along == "r":
            self.along_r()
        else:
            self.along_k()
        source = named(module_text(b), "@pack")
        return Packed(source, tuple(self.values.words), self.view.along, self.step)

    def along_r(self) -> None:
        """dst[k * width + r]: for each run of rows, down all k."""
        b, values = self.builder, self.values
        outer = len(self.k.extents) - self.unrolled
        first, last = (b.udiv(x, str(self.step)) for x in ("%k0", b.add("%k0", "%kc")))
        with self.r.runs(values, "%r0", b.add("%r0", "%rows")) as (low, high, origin):
            def piece(j: str, mask: str | None) -> None:
                start, place = b.sub(j, origin), b.sub(j, "%r0")
                mask = mask and self.kept(mask)
                lanes = [self.checked(q, start, mask) for q in range(self.step)]
                with b.loop(first, last) as c, scope(values):
                    self.k.bind(values, c, outer)
                    row = b.sub(b.mul(c, str(self.step)), "%k0")
                    for q, lane in enumerate(lanes):
                        self.bind_unrolled(q)
                        self.copy(lane, b.add(b.mul(b.add(row, str(q)), "%width"), place))

            vectors(values, low, high, piece)

    def checked(self, q: int, start: str, mask: str | None) -> Lane:
        """The lanes of place q, with the conditions that are the same for all k before it."""
        lane = Lane(start, mask, self.values.scope)
        self.bind_unrolled(q)
        outer = set(self.k.names[:len(self.k.names) - self.unrolled])
        for condition in self.conditions():
            if not outer & {v.name for v in condition.variables()}:
                text = self.values.condition(condition, lane)
                lane.scope.known["condition", condition] = self.kept(text)
        return lane

    def kept(self, mask: str) -> str:
        """The same mask, through memory that LLVM must not look into: else it would compute the
        comparisons again inside the loop, for every k."""
        b, width = self.builder, self.values.width
        bits = f"i{width}" if width >= 8 else "i8"
        raw = b.value(f"bitcast <{width} x i1> {mask} to i{width}")
        if width < 8:
            raw = b.value(f"zext i{width} {raw} to i8")
        slot = b.alloca(bits, align=8)
        b.line(f"store volatile {bits} {raw}, ptr {slot}")
        raw = b.value(f"load volatile {bits}, ptr {slot}")
        if width < 8:
            raw = b.value(f"trunc i8 {raw} to i{width}")
        return b.value(f"bitcast i{width} {raw} to <{width} x i1>")

    def conditions(self) -> list[Condition]:
        """The conditions of all loads and selects."""
        found: dict[Condition, None] = {}
        stack, done = [self.value], set()
        while stack:
            val = stack.pop()
            if id(val) in done:
                continue
            done.add(id(val))
            stack.extend(val.inputs)
            condition = val.data if val.kind == "select" else \
                val.data[2] if val.kind == "load" else None
            if condition is not None:
                found[condition] = None
        return list(found)

    def bind_unrolled(self, q: int) -> None:
        for position in range(len(self.k.extents) - 1, len(self.k.extents) - 1 - self.unrolled, -1):
            extent = self.k.extents[position]
            self.values.env[self.k.names[position]] = str(q % extent)
            q //= extent

    def along_k(self) -> None:
        """dst[r * width + k]: row by row, runs of k."""
        b, values = self.builder, self.values
        with b.loop("0", "%rows") as i, scope(values):
            self.r.bind(values, b.add("%r0", i), len(self.r.extents))
            row = b.sub(b.mul(i, "%width"), "%k0")
            with self.k.runs(values, "%k0", b.add("%k0", "%kc")) as (low, high, origin):
                vectors(values, low, high, lambda j, mask: self.copy(
                    Lane(b.sub(j, origin), mask, values.scope), b.add(row, j)))

    def copy(self, lane: Lane, place: str) -> None:
        """One vector of the operand to dst[place]."""
        values = self.values
        with scope(values):
            own = Lane(lane.start, lane.mask, values.scope)
            own.scope.known.update(lane.scope.known)  # what was computed before the loop
            value = values.vector_of(self.value, own)
            at = self.builder.gep("%dst", place, self.dtype.llvm)
            e = values.emitter(self.dtype, values.width)
            if lane.mask is None:
                e.store(value, at)
            else:
                e.store_masked(value, at, lane.mask)


def pack_view(view: View, buffers: dict[int, int], dtype: DType, target: Target,
              specialize: bool) -> Packed:
    """The packing function of a view.

    Args:
        view: the operand.
        buffers: id of node -> number of the program buffer that holds it.
        dtype: float32 or float64, of the product.
        target: the CPU.
        specialize: sizes as literals.
    """
    return _PackWriter(view, buffers, dtype, target, specialize).write()
