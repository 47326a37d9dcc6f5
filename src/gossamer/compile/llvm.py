"""Loops to LLVM: one kernel function with explicit vectors. Layer 2.

The one idea: of all axes one becomes vector lanes, the one along which the accesses are contiguous.
If it is a reduced axis, rows are worked off one by one (softmax, layer norm: "row mode"); if it is
a kept axis, neighbouring rows are worked off side by side (column sums: "column mode"). Each vector
loop is written twice: unrolled for whole vectors, then masked for what is left.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import PLAIN, KernelSource, Word
from gossamer.compile.cluster import STREAMED_BYTES
from gossamer.compile.emitter import Emitter
from gossamer.compile.llvm_values import Lane, Scope, ValueWriter
from gossamer.core.dtype import DType, int64
from gossamer.ir.index import Index, Var
from gossamer.ir.loop import Axis, Kernel, Pass, Reduce, Store, Val, index_values, operands, show

__all__ = ["Split", "Written", "module_text", "write_kernel", "write_split"]

# Elements of work below which a kernel is not worth waking another thread: a fork-join of parked
# workers costs 12-44 us (measured), and one core does about 2-4 elements a nanosecond.
SERIAL_WORK = 1 << 15
CHUNK_WORK = 1 << 14  # elements a worker claims at a time
# Bytes of a result from which rows are written past the caches, so that memory is not read first:
# nothing would be left of them there. Layer norm of 4096 rows of 1024 takes 0.7 of the time.
STREAM_BYTES = 1 << 24
_MANY = 2  # turns of a loop; one turn needs no loop
# Matrices of STREAMED_BYTES are added up row by row, as they lie in memory, on sums of all columns
# in the first cache: 25 to 32 GB/s from memory. Column by column it is 13, and so it is with two
# rows at a time: the processor fetches ahead what lies in one run.
_SUMS_BYTES = 1 << 14  # of the sums, at most


@dataclass(frozen=True)
class Written:
    """A kernel ready to be called: source, argument words, parallel extent and grain."""

    source: KernelSource
    words: tuple[Word, ...]
    n: int
    grain: int


@dataclass(frozen=True)
class Split:
    """How a kernel's work is cut into parts: what of it does not depend on sizes.

    Attributes:
        vector: name of the vector axis, or None.
        step: points of a whole unrolled vector.
        operations: work for each point.
    """

    vector: str | None
    step: int
    operations: float

    def of(self, kernel: Kernel) -> tuple[int, int]:
        """(n, grain): the parallel extent of the loops, and indices a worker claims at a time."""
        others = [a for a in kernel.kept if a.name != self.vector]
        lanes_only = len(others) < len(kernel.kept) and not others
        n = prod(a.extent for a in kernel.kept if lanes_only or a in others)
        points = prod(a.extent for a in [*kernel.kept, *kernel.reduced])
        weight = max(8, int(self.operations))  # in eighths of an operation a point
        if n < 2 or points * weight < 8 * SERIAL_WORK:
            return n, 0
        per_index = max(points // n, 1) * weight
        grain = max(1, 8 * CHUNK_WORK // per_index)
        if lanes_only:  # whole cache lines and whole unrolled vectors
            grain = -(-grain // self.step) * self.step
        return n, grain if grain < n else 0


def module_text(builder: FunctionBuilder) -> str:
    """The function with its declarations, as a module."""
    lines = [builder.declares[k] for k in sorted(builder.declares)]
    return builder.finish() + "\n".join([*lines, "!0 = !{}", "!1 = !{i32 1}"]) + "\n"


def named(text: str, placeholder: str, loops: str = "") -> KernelSource:
    """A KernelSource whose symbol is made from its text."""
    symbol = "k" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return KernelSource(symbol, text.replace(placeholder, "@" + symbol), loops)


def write_kernel(kernel: Kernel, vector_bytes: int, specialize: bool) -> Written:
    """LLVM text of a kernel.

    Args:
        kernel: the loops.
        vector_bytes: width of the machine's vector registers.
        specialize: write sizes as literals (compiled programs) instead of argument words.
    """
    return write_split(kernel, vector_bytes, specialize)[0]


def write_split(kernel: Kernel, vector_bytes: int, specialize: bool) -> tuple[Written, Split]:
    """`write_kernel`, and how the work of such loops is split at any size."""
    writer = _KernelWriter(kernel, vector_bytes, specialize)
    split = Split(writer.vector, writer.width * writer.unroll, writer.operations)
    return writer.write(*split.of(kernel)), split


def choose_vector(kernel: Kernel) -> str | None:
    """The axis to vectorise: the last kept or last reduced one, by the strides of all accesses."""
    candidates: list[Axis] = []
    if kernel.reduced and not kernel.serial:  # a serial axis has an order that lanes would break
        candidates.append(kernel.reduced[-1])
    if kernel.kept:
        candidates.append(kernel.kept[-1])
    accesses: list[Index] = [v.data[1] for v in kernel.values() if v.kind == "load"]
    stored = [s.index for s in kernel.stores()]
    best: tuple[float, str] | None = None
    for axis in candidates:
        if axis.extent < 2:
            continue
        cost = sum(_stride_cost(i, axis.name) for i in accesses)
        cost += sum(2 * _stride_cost(i, axis.name) for i in stored)
        if axis in kernel.reduced and len(kernel.kept) and kernel.kept[-1].extent > 1:
            cost += 0.5  # lanes are folded together at the end of each row
        if axis.extent < 8:
            cost += 2
        if best is None or cost < best[0]:
            best = (cost, axis.name)
    return best[1] if best else None


def _stride_cost(index: Index, name: str) -> float:
    """0 for a broadcast, 1 for contiguous lanes, more for a gather."""
    stride = 0
    for atom, k in index.terms.items():
        if isinstance(atom, Var):
            if atom.name == name:
                stride = k
        elif any(v.name == name for v in Index(0, {atom: 1}).variables()):
            return 10.0
    return {0: 0.0, 1: 0.25}.get(stride, 6.0)


class _KernelWriter:
    def __init__(self, kernel: Kernel, vector_bytes: int, specialize: bool) -> None:
        self.kernel = kernel
        self.vector = choose_vector(kernel)
        values = kernel.values()
        self.width = vector_bytes // (8 if any(v.dtype.itemsize == 8 and v.dtype.kind == "f"
                                               and self.vector in v.vars for v in values) else 4)
        self.operations = sum(v.data[0].cost if v.kind == "op" else 1.0 for v in values)
        self.builder = FunctionBuilder(
            "void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)",
            avx512=vector_bytes == 64)
        self.values = ValueWriter(self.builder, self.width, self.vector, specialize)
        self.specialize = specialize
        self.whole = False  # whether every call is for the whole parallel extent
        self.lane_axis = next((a for a in [*kernel.kept, *kernel.reduced]
                               if a.name == self.vector), None)
        self.streams = self._streams()
        self.unroll = 2 if self.streams else self._unrolled()
        if self._down_columns() and not self.streams:
            self.values.column = kernel.reduced[-1].name if specialize else None

    def _down_columns(self) -> bool:
        """Whether rows are added to each other: lanes are columns."""
        return bool(self.kernel.reduced) and self.lane_axis in self.kernel.kept

    def _streams(self) -> bool:
        """Whether rows are added to sums of all columns in the order in which they lie."""
        k, axis = self.kernel, self.lane_axis
        if not self.specialize or axis is None or not self._down_columns() or len(k.kept) < 2 \
                or len(k.reduced) != 1 or len(k.passes) != 1 or any(k.inner_stores()):
            return False
        sizes = [r.value.dtype.itemsize for r in k.passes[0].reduces]
        size = prod(a.extent for a in [*k.kept, *k.reduced]) * min(sizes, default=0)
        return (size >= STREAMED_BYTES and axis.extent * sum(sizes) <= _SUMS_BYTES
                and axis.extent > self._unrolled() * self.width)  # else rows are whole anyway

    def _unrolled(self) -> int:
        """Vectors worked off side by side: the fewer, the more is to be done with each."""
        work = self.operations
        if self._down_columns():  # what is done once a column, behind the loop, does not count
            work = sum(v.data[0].cost if v.kind == "op" else 1.0
                       for v in self.kernel.values(inner=True))
        most = 4 if work <= 12 else 2 if work <= 40 else 1
        if most == 4 and self._down_columns() \
                and sum(len(p.reduces) for p in self.kernel.passes) <= 2:
            most = 8  # 512 bytes of a row at a time
        if self.lane_axis is None or not self.specialize:
            return most
        # No more lanes than there are points, and no rest if it can be: it would be walked alone.
        vectors = self.lane_axis.extent // self.width
        fits = [n for n in range(most, most // 2, -1) if n <= vectors and vectors % n == 0]
        while most > 1 and self.lane_axis.extent < most * self.width:
            most //= 2
        return fits[0] if fits and self._down_columns() else most

    # the function -------------------------------------------------------------------------------
    def write(self, n: int, grain: int) -> Written:
        kernel = self.kernel
        others = [a for a in kernel.kept if a.name != self.vector]
        lanes_kept = self.vector is not None and self.vector in {a.name for a in kernel.kept}
        self.whole = self.specialize and grain == 0  # words of sizes may be those of larger loops
        copied = kernel.copied()
        if copied is None:
            self._streaming(lambda: self._loops(lanes_kept, others))
        else:  # a state written over its old value: a copy onto itself is nothing to do
            source, destination = (self.values.pointer(buffer) for buffer in copied)
            with self.builder.when(self.builder.value(f"icmp ne ptr {source}, {destination}")):
                self._loops(lanes_kept, others)
        straight = self.builder.block == "entry"
        text = PLAIN * straight + module_text(self.builder)
        made = named(text, "@kernel", show(kernel))
        return Written(made, tuple(self.values.words), n, grain)

    def _streaming(self, loops: Callable[[], None]) -> None:
        """Write `loops`, and once more for aligned results with the stores that pass by the caches,
        if there are any."""
        stores = [s for s in self.kernel.stores() if self._passes_by(s)]
        if not stores:
            loops()
            return
        b, size = self.builder, self.values.width * max(s.dtype.itemsize for s in stores)
        places = [b.value(f"ptrtoint ptr {self.values.pointer(s.buffer)} to i64") for s in stores]
        together = functools.reduce(lambda x, y: b.value(f"or i64 {x}, {y}"), places)
        aligned = b.compare("eq", b.value(f"and i64 {together}, {size - 1}"), "0")

        def version(streamed: set[int]) -> None:
            self.values.scope, self.values.streamed = Scope(self.values.scope), streamed
            self.values.accumulators.clear()
            loops()
            self._close()

        def aligned_version() -> None:
            version({id(s) for s in stores})
            b.intrinsic("llvm.x86.sse.sfence", "void", [])  # other threads read what is written

        b.either(aligned, aligned_version, lambda: version(set()))

    def _passes_by(self, store: Store) -> bool:
        """Whether a store is one of whole vectors along large rows that nothing here reads."""
        kernel, width = self.kernel, self.values.width
        if not self.specialize or self.lane_axis not in kernel.reduced or store.update or width < 8:
            return False
        size = prod(a.extent for a in [*kernel.kept, *kernel.reduced]) * store.dtype.itemsize
        read = any(v.kind == "load" and v.data[0] == store.buffer for v in kernel.values())
        terms = store.index.terms.items()
        return (size >= STREAM_BYTES and not read and store.index.constant % width == 0
                and all(isinstance(x, Var) and (k == 1) == (x.name == self.vector)
                        and (k == 1 or k % width == 0) for x, k in terms))

    def _loops(self, lanes_kept: bool, others: list[Axis]) -> None:
        """The parallel loop: over lanes, or over the other kept axes, or one row."""
        if lanes_kept and not others:
            if self.whole:
                self._rows(lanes_kept)
                return
            self._hoist({self.vector or ""})
            self._lane_loop("%lo", "%hi", self._body, whole=False)
        elif others:
            single = all(a.extent == 1 for a in others)
            with nullcontext("0") if single else self.builder.loop("%lo", "%hi") as p:
                self._open(others, p)
                self._rows(lanes_kept)
                self._close()
        else:
            self._rows(lanes_kept)

    def _rows(self, lanes_kept: bool) -> None:
        if lanes_kept:
            assert self.lane_axis is not None
            self._hoist({self.vector or ""})
            if self.streams:
                self._row_by_row()
                return
            self._lane_loop("0", self.values.size(self.lane_axis.extent), self._body, whole=True)
        else:
            self._body([])

    def _row_by_row(self) -> None:
        """All rows added to sums of all columns; then what is done once a column."""
        b, p, axis = self.builder, self.kernel.passes[0], self.kernel.reduced[0]
        assert self.lane_axis is not None
        extent = self.lane_axis.extent
        room = -(-extent // self.width) * self.width
        sums = {r.number: b.alloca(r.value.dtype.llvm, room) for r in p.reduces}

        def add(lanes: list[Lane]) -> None:
            slots = self._sums(p, lanes, sums)
            self._point(p, lanes, slots)
            for r, e, k, at in self._each_sum(p, lanes, sums):
                e.store(b.load(e.t, slots[r.number][k]), at)

        def begin(lanes: list[Lane]) -> None:
            for r, e, _, at in self._each_sum(p, lanes, sums):
                e.store(e.const(identity(r.combine, r.value.dtype)), at)

        def finish(lanes: list[Lane]) -> None:
            self._finish(p, lanes, self._sums(p, lanes, sums), False)
            self._row_stores(p, lanes)

        self._lane_loop("0", str(extent), begin, whole=True)
        with b.loop("0", str(axis.extent)) as row, self._row(axis, row, []):
            self._hoist({self.vector or ""})
            self._lane_loop("0", str(extent), add, whole=True)
        self._lane_loop("0", str(extent), finish, whole=True)

    def _sums(self, p: Pass, lanes: list[Lane], sums: dict[int, str]) -> dict[int, list[str]]:
        """Accumulators of some columns, with what was added so far."""
        slots = self._accumulators(p, lanes, False)
        for r, e, k, at in self._each_sum(p, lanes, sums):
            self.builder.store(e.t, e.load(at), slots[r.number][k])
        return slots

    def _each_sum(self, p: Pass, lanes: list[Lane],
                  sums: dict[int, str]) -> Iterator[tuple[Reduce, Emitter, int, str]]:
        """(reduction, writer of its numbers, lane, where the lane's sums lie)."""
        for r in p.reduces:
            e = self.values.emitter(r.value.dtype, self.width)
            for k, lane in enumerate(lanes):
                yield r, e, k, self.builder.gep(sums[r.number], lane.start, r.value.dtype.llvm)

    @contextmanager
    def _row(self, axis: Axis, number: str, lanes: list[Lane]) -> Iterator[None]:
        """Inside one row of a reduced axis: what is computed here is forgotten behind it."""
        self.values.scope = Scope(self.values.scope)
        outer = [lane.scope for lane in lanes]
        for lane in lanes:
            lane.scope = Scope(lane.scope)
        self.values.env[axis.name] = number
        yield
        self._close()
        del self.values.env[axis.name]
        for lane, scope in zip(lanes, outer, strict=True):
            lane.scope = scope

    def _open(self, axes: list[Axis], flat: str) -> None:
        """Enter a flattened loop: the axes' variables from the flat index."""
        self.values.scope = Scope(self.values.scope)
        b = self.builder
        rest = flat
        for axis in reversed(axes[1:]):
            extent = self.values.size(axis.extent)
            self.values.env[axis.name] = b.urem(rest, extent)
            rest = b.udiv(rest, extent)
        self.values.env[axes[0].name] = rest

    def _close(self) -> None:
        parent = self.values.scope.parent
        assert parent is not None
        self.values.scope = parent

    def _hoist(self, unbound: set[str]) -> None:
        """Compute now what does not depend on the loops still to be entered."""
        for val in self.kernel.values():
            if val.kind in ("load", "op") and not (val.vars & unbound) and self._ready(val):
                self.values.emit(val, None)

    def _ready(self, val: Val) -> bool:
        """Whether every accumulator that `val` needs exists already."""
        stack, done = [val], set()
        while stack:
            v = stack.pop()
            if id(v) in done:
                continue
            done.add(id(v))
            if v.kind == "acc" and (v.data, 0) not in self.values.accumulators:
                return False
            stack.extend(operands(v))
        return all(name in self.values.env for name in val.vars)

    # vector loops -------------------------------------------------------------------------------
    def _lane_loop(self, start: str, end: str, body: Callable[[list[Lane]], None], *,
                   whole: bool) -> None:
        """Run `body` over the vector axis: unrolled whole vectors, then masked ones.

        `whole`: the range is the whole axis, so that a known extent may need no masked loop.
        """
        b, w = self.builder, self.width
        assert self.lane_axis is not None
        step = w * self.unroll
        extent = self.lane_axis.extent
        known = self.specialize and whole
        if known:
            full_end = str(extent // step * step)
            main, tail = extent // step, -(-(extent % step) // w)
        else:
            count = b.sub(end, start)
            full_end = b.add(start, b.sub(count, b.value(f"urem i64 {count}, {step}")))
            main = tail = _MANY
        if main:
            with b.loop(start, full_end, step) if main > 1 else nullcontext(start) as i:
                self._lanes(body, [b.add(i, str(u * w)) if u else i for u in range(self.unroll)],
                            None)
        if tail:
            first = full_end if main else start
            with b.loop(first, end, w) if tail > 1 else nullcontext(first) as i:
                e = self.values.emitter(int64, w)
                left = b.sub(end, i)
                mask = e.lt(e.lanes(), e.splat(left))
                self._lanes(body, [i], mask)

    def _lanes(self, body: Callable[[list[Lane]], None], starts: list[str],
               mask: str | None) -> None:
        self.values.scope = Scope(self.values.scope)
        body([Lane(s, mask, aligned=True) for s in starts])
        self._close()

    # passes -------------------------------------------------------------------------------------
    def _body(self, lanes: list[Lane]) -> None:
        """All passes, for one row (no lanes given) or for the rows of some lanes."""
        for p in self.kernel.passes:
            self._pass(p, lanes)

    def _pass(self, p: Pass, lanes: list[Lane]) -> None:
        reduced = self.kernel.reduced
        if not reduced:
            for s in p.stores:
                for lane in lanes or [None]:  # type: ignore[list-item]
                    self.values.store(s, lane)
            self._row_stores(p, lanes)
            return
        row_lanes = not lanes and self.vector is not None and self.lane_axis in reduced
        slots = self._accumulators(p, lanes, row_lanes)
        if p.reduces or p.stores:
            self._hoist({a.name for a in reduced} | ({self.vector} if self.vector else set()))
            self._hoist_lanes(p, lanes)
            self._reduced_loops(p, lanes, slots, row_lanes)
        self._finish(p, lanes, slots, row_lanes)
        self._row_stores(p, lanes)

    def _row_stores(self, p: Pass, lanes: list[Lane]) -> None:
        for s in p.row_stores:
            for lane in lanes or [None]:  # type: ignore[list-item]
                self.values.store(s, lane)

    def _hoist_lanes(self, p: Pass, lanes: list[Lane]) -> None:
        """Column mode: load per-lane values that do not change along the reduced axes."""
        names = {a.name for a in self.kernel.reduced}
        for val in self.kernel.values():
            if val.kind != "load" or val.vars & names or not self.values.varies(val):
                continue
            for lane in lanes:
                if self._ready_lane(val, lane):
                    self.values.emit(val, lane)

    def _ready_lane(self, val: Val, lane: Lane) -> bool:
        bound = set(self.values.env) | {self.vector or ""}
        inner = list(index_values(val.data[1]))
        return val.vars <= bound and not any(x.kind != "load" for x in inner)

    def _accumulators(self, p: Pass, lanes: list[Lane], row_lanes: bool) -> dict[int, list[str]]:
        """Stack slots of each reduction: one per lane, or per unrolled vector in row mode."""
        slots: dict[int, list[str]] = {}
        for r in p.reduces:
            width = self.width if (lanes and self.values.varies_acc(r, self.kernel)) or row_lanes \
                else 0
            e = self.values.emitter(r.value.dtype, width)
            count = self.unroll if row_lanes else max(len(lanes), 1)
            slots[r.number] = []
            for _ in range(count):
                slot = self.builder.alloca(e.t)
                self.builder.store(e.t, e.const(identity(r.combine, r.value.dtype)), slot)
                slots[r.number].append(slot)
        return slots

    def _reduced_loops(self, p: Pass, lanes: list[Lane], slots: dict[int, list[str]],
                       row_lanes: bool) -> None:
        reduced = [a for a in self.kernel.reduced if not (row_lanes and a is self.lane_axis)]
        self._nest(reduced, p, lanes, slots, row_lanes)

    def _nest(self, axes: list[Axis], p: Pass, lanes: list[Lane], slots: dict[int, list[str]],
              row_lanes: bool) -> None:
        if axes:
            with self.builder.loop("0", self.values.size(axes[0].extent)) as i, \
                    self._row(axes[0], i, lanes):
                self._hoist({a.name for a in axes[1:]} | ({self.vector} if self.vector else set()))
                self._nest(axes[1:], p, lanes, slots, row_lanes)
        elif row_lanes:
            assert self.lane_axis is not None
            self._lane_loop("0", self.values.size(self.lane_axis.extent),
                            lambda inner: self._point(p, inner, slots), whole=True)
        else:
            self._point(p, lanes, slots)

    def _point(self, p: Pass, lanes: list[Lane], slots: dict[int, list[str]]) -> None:
        """One point of the reduced axes, for all lanes."""
        b = self.builder
        for r in p.reduces:
            for k, lane in enumerate(lanes or [None]):
                slot = slots[r.number][min(k, len(slots[r.number]) - 1)]
                wide = lane is not None and self._slot_is_vector(r, lane)
                e = self.values.emitter(r.value.dtype, self.width if wide else 0)
                value = self.values.vector_of(r.value, lane) if wide \
                    else self.values.emit(r.value, None)
                old = b.load(e.t, slot)
                if r.factor is None:
                    new = combine(e, r.combine, old, value)
                else:
                    factor = self.values.vector_of(r.factor, lane) if wide \
                        else self.values.emit(r.factor, None)
                    new = e.fma(old, factor, value)
                if wide and lane is not None and lane.mask is not None:
                    new = e.select(lane.mask, new, old)
                b.store(e.t, new, slot)
                if r.running is not None:
                    self._running(r, lane, new)
        for s in p.stores:
            for lane in lanes or [None]:  # type: ignore[list-item]
                self.values.store(s, lane)

    def _running(self, r: Reduce, lane: Lane | None, value: str) -> None:
        """A scan: store the accumulator as it is now."""
        assert r.running is not None
        scope = lane.scope if lane is not None else self.values.scope
        scope.known[id(r.running.value)] = value
        self.values.store(r.running, lane)

    def _slot_is_vector(self, r: Reduce, lane: Lane) -> bool:
        return self.lane_axis in self.kernel.reduced or self.values.varies_acc(r, self.kernel)

    def _finish(self, p: Pass, lanes: list[Lane], slots: dict[int, list[str]],
                row_lanes: bool) -> None:
        """Read the accumulators: folded over lanes in row mode, one per lane in column mode."""
        b = self.builder
        for r in p.reduces:
            if row_lanes:
                e = self.values.emitter(r.value.dtype, self.width)
                total = b.load(e.t, slots[r.number][0])
                for slot in slots[r.number][1:]:
                    total = combine(e, r.combine, total, b.load(e.t, slot))
                self.values.accumulators[r.number, 0] = e.reduce(r.combine, total)
                continue
            for k, lane in enumerate(lanes or [None]):
                wide = lane is not None and self._slot_is_vector(r, lane)
                e = self.values.emitter(r.value.dtype, self.width if wide else 0)
                value = b.load(e.t, slots[r.number][k])
                self.values.accumulators[r.number, id(lane) if wide else 0] = value


def combine(e: object, name: str, a: str, b: str) -> str:
    """One step of a reduction."""
    method = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum"}[name]
    return str(getattr(e, method)(a, b))


def identity(name: str, dtype: DType) -> float | int:
    """The neutral element of a reduction."""
    if name in ("add", "mul"):
        return 0 if name == "add" else 1
    if dtype.kind == "f":
        return float("-inf") if name == "max" else float("inf")
    bits = dtype.itemsize * 8
    if dtype.kind == "u":
        return 0 if name == "max" else (1 << bits) - 1
    return -(1 << bits - 1) if name == "max" else (1 << bits - 1) - 1
