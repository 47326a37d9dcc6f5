"""Values of a kernel as LLVM instructions: expressions, indices, loads and stores. Layer 2.

The one idea: a Val that does not depend on the vector axis is one scalar, computed once in the
loop it belongs to; a Val that does is one vector per `Lane` (a Lane is one vector's worth of
consecutive points of the vector axis). Scopes remember what has been computed in which loop.
"""

from __future__ import annotations

from math import copysign
from typing import Any

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, FloatWord, Param, Word
from gossamer.compile.emitter import Emitter
from gossamer.core.dtype import DType, bool_, float32, float64, int64
from gossamer.core.errors import CompileError
from gossamer.ir.index import Condition, Index, Quotient, Read, Var, is_var
from gossamer.ir.loop import Kernel, Reduce, Store, Val

__all__ = ["Lane", "Scope", "ValueWriter"]

# Sum of 4096 rows of 1024 along axis 0: 0.38 of the time without (0.33 to 0.4 with 2 to 8 rows).
ROWS_AHEAD = 8
FAR_ROWS = 2048  # bytes


class Scope:
    """What has been computed in a loop; inner loops see the outer ones' values."""

    def __init__(self, parent: Scope | None = None) -> None:
        self.parent = parent
        self.known: dict[object, str] = {}

    def get(self, key: object) -> str | None:
        scope: Scope | None = self
        while scope is not None:
            found = scope.known.get(key)
            if found is not None:
                return found
            scope = scope.parent
        return None


class Lane:
    """One vector of consecutive points of the vector axis.

    Args:
        start: i64 value of the axis in lane 0.
        mask: <W x i1> of the points that exist, or None for all.
        aligned: `start` is a multiple of the vector's width.
    """

    def __init__(self, start: str, mask: str | None, scope: Scope | None = None,
                 aligned: bool = False) -> None:
        self.start = start
        self.mask = mask
        self.aligned = aligned
        self.scope = Scope(scope)


class ValueWriter:
    """Writes Vals into a function.

    Args:
        builder: the function.
        width: lanes of a vector.
        vector: name of the vector axis, or None for scalar code.
        specialize: sizes and strides become literals; otherwise they are words of the argument
            block, so that one kernel serves every shape.
    """

    def __init__(self, builder: FunctionBuilder, width: int, vector: str | None,
                 specialize: bool) -> None:
        self.builder = builder
        self.width = width
        self.vector = vector
        self.specialize = specialize
        self.words: list[Word] = []
        self.pointers: dict[int, str] = {}
        self.params: dict[tuple[int, str], str] = {}
        self.scope = Scope()
        self.env: dict[str, str] = {}  # loop variable -> i64
        self.accumulators: dict[tuple[int, int], str] = {}  # (number, lane id or 0) -> value
        self.tile: Any = None  # epilogue: (pointer, pitch, row in the tile, first column)
        self.column: str | None = None  # the axis down which columns are walked
        self.streamed: set[int] = set()  # ids of stores past the caches; all are aligned
        self._emitters: dict[tuple[int, int], Emitter] = {}
        self._keep: list[Any] = []  # Vals made here; ids in scopes must stay theirs

    # words ------------------------------------------------------------------------------------
    def word(self, word: Word, type_: str = "i64") -> str:
        """A word of the argument block, loaded at the function's entry."""
        self.words.append(word)
        pointer = self.builder.at_entry(
            f"getelementptr inbounds i64, ptr %args, i64 {len(self.words) - 1}")
        return self.builder.at_entry(f"load {type_}, ptr {pointer}, align 8, !invariant.load !0")

    def size(self, value: int) -> str:
        """A size, stride or offset: a literal, or a word when the kernel serves every shape."""
        if self.specialize or -1 <= value <= 1:
            return str(value)
        return self.word(value)

    def pointer(self, buffer: int) -> str:
        if buffer not in self.pointers:
            self.pointers[buffer] = self.word(BufferRef(buffer), "ptr")
        return self.pointers[buffer]

    def emitter(self, dtype: DType, width: int) -> Emitter:
        key = (id(dtype), width)
        if key not in self._emitters:
            self._emitters[key] = Emitter(self.builder, dtype, width)
        return self._emitters[key]

    # scopes -----------------------------------------------------------------------------------
    def varies(self, val: Val) -> bool:
        return self.vector is not None and self.vector in val.vars

    def index_varies(self, index: Index) -> bool:
        return self.vector is not None and any(v.name == self.vector for v in index.variables())

    def varies_acc(self, reduce: Reduce, kernel: Kernel) -> bool:
        """Whether an accumulator differs from lane to lane (the vector axis is a kept one)."""
        return self.vector is not None and any(a.name == self.vector for a in kernel.kept)

    def emit(self, val: Val, lane: Lane | None) -> str:
        """The value as a scalar, or as a vector when it varies along the vector axis."""
        varying = lane is not None and self.varies(val)
        scope = lane.scope if varying and lane is not None else self.scope
        found = scope.get(id(val))
        if found is None:
            found = self._emit(val, lane if varying else None)
            scope.known[id(val)] = found
        return found

    def vector_of(self, val: Val, lane: Lane | None) -> str:
        """The value at the lane's width: a uniform value is repeated."""
        text = self.emit(val, lane)
        if lane is None or self.varies(val):
            return text
        key = ("splat", id(val))
        found = self.scope.get(key)
        if found is None:
            found = self.emitter(val.dtype, self.width).splat(text)
            self.scope.known[key] = found
        return found

    # expressions ------------------------------------------------------------------------------
    def _emit(self, val: Val, lane: Lane | None) -> str:
        width = self.width if lane is not None else 0
        if val.kind == "op":
            op, attrs = val.data
            operand = val.inputs[1] if op.name == "where" else val.inputs[0]
            texts = [self.vector_of(x, lane) for x in val.inputs]
            return str(op.lower(self.emitter(operand.dtype, width), *texts, **attrs))
        if val.kind == "load":
            return self._load(val, lane)
        if val.kind == "const":
            return self.emitter(val.dtype, width).const(val.data)
        if val.kind == "param":
            return self._param(val)
        if val.kind == "index":
            text = self.index(val.data, lane)
            return self.emitter(int64, width).cast(text, val.dtype)
        if val.kind == "select":
            if _zero_outside(val):
                return self.vector_of(val.inputs[0], lane)
            inside, outside = (self.vector_of(x, lane) for x in val.inputs)
            condition = self.condition(val.data, lane)
            return self.emitter(val.dtype, width).select(condition, inside, outside)
        if val.kind == "acc":
            return self.accumulators[val.data, id(lane) if lane is not None else 0]
        if val.kind == "tile":
            pointer, pitch, row, first = self.tile
            assert lane is not None
            offset = self.builder.add(self.builder.mul(row, pitch),
                                      self.builder.sub(lane.start, first))
            at = self.builder.gep(pointer, offset, self.tile_dtype.llvm)
            e = self.emitter(self.tile_dtype, width)
            got = e.load_masked(at, lane.mask) if lane.mask else e.load(at)
            return got if val.dtype is self.tile_dtype else e.cast(got, val.dtype)
        raise CompileError(f"kernel value {val.kind!r} has no code; please report this")

    tile_dtype: DType = float32

    def _param(self, val: Val) -> str:
        key = (val.data, val.dtype.name)
        if key not in self.params:
            wide = float64 if val.dtype.kind == "f" else int64
            raw = self.word(Param(val.data), wide.llvm)
            self.params[key] = self._at_entry_cast(raw, wide, val.dtype)
        return self.params[key]

    def _at_entry_cast(self, raw: str, wide: DType, dtype: DType) -> str:
        if dtype is wide:
            return raw
        b = self.builder
        if dtype.kind == "f":
            return b.at_entry(f"fptrunc double {raw} to float")
        if dtype is bool_:
            return b.at_entry(f"icmp ne i64 {raw}, 0")
        return b.at_entry(f"trunc i64 {raw} to {dtype.llvm}")

    # indices ----------------------------------------------------------------------------------
    def index(self, index: Index, lane: Lane | None) -> str:
        """An Index as i64, or as <W x i64> when `lane` is given."""
        if lane is None:
            return self._scalar_index(index)
        e = self.emitter(int64, self.width)
        uniform: dict[Any, int] = {}
        total: str | None = None
        for atom, k in index.terms.items():
            if not self.index_varies(Index(0, {atom: 1})):
                uniform[atom] = k
                continue
            text = self._lane_atom(atom, lane)
            if k != 1:
                text = e.mul(text, e.splat(self.size(k)))
            total = text if total is None else e.add(total, text)
        rest = e.splat(self._scalar_index(Index(index.constant, uniform)))
        return rest if total is None else e.add(total, rest)

    def _scalar_index(self, index: Index) -> str:
        b = self.builder
        total = self.size(index.constant) if index.constant or not index.terms else None
        for atom, k in index.terms.items():
            text = self._scalar_atom(atom)
            if k != 1:
                text = b.mul(text, self.size(k))
            total = text if total is None else b.add(total, text)
        assert total is not None
        return total

    def _scalar_atom(self, atom: Any) -> str:
        if isinstance(atom, Var):
            return self.env[atom.name]
        key = ("atom", atom)
        found = self.scope.get(key)
        if found is not None:
            return found
        b = self.builder
        if isinstance(atom, Read):
            text = self._clamp(self.emit(atom.source, None), atom, 0)
        else:
            name = "udiv" if isinstance(atom, Quotient) else "urem"
            inner = self._scalar_index(atom.value)
            text = b.value(f"{name} i64 {inner}, {self.size(atom.divisor)}")
        self.scope.known[key] = text
        return text

    def _lane_atom(self, atom: Any, lane: Lane) -> str:
        e = self.emitter(int64, self.width)
        if isinstance(atom, Var):
            return e.add(e.splat(lane.start), e.lanes())
        key = ("atom", atom)
        found = lane.scope.get(key)
        if found is not None:
            return found
        if isinstance(atom, Read):
            text = self._clamp(self.vector_of(atom.source, lane), atom, self.width)
        else:
            name = "udiv" if isinstance(atom, Quotient) else "urem"
            text = e.binary(name, self.index(atom.value, lane), e.splat(self.size(atom.divisor)))
        lane.scope.known[key] = text
        return text

    def _clamp(self, text: str, atom: Read, width: int) -> str:
        """Negative indices count from the end; what is still outside is clamped, reported later."""
        e = self.emitter(int64, width)
        text = self.emitter(atom.source.dtype, width).cast(text, int64)
        extent = e.splat(self.size(atom.extent))
        text = e.select(e.lt(text, e.const(0)), e.add(text, extent), text)
        last = e.sub(extent, e.const(1))
        return e.maximum(e.minimum(text, last), e.const(0))

    def condition(self, condition: Condition, lane: Lane | None) -> str:
        """A Condition as i1, or as a mask when `lane` is given."""
        scope, key = self.scope if lane is None else lane.scope, ("condition", condition)
        found = scope.get(key)
        if found is None:
            found = scope.known[key] = self._condition(condition, lane)
        return found

    def _condition(self, condition: Condition, lane: Lane | None) -> str:
        width = self.width if lane is not None else 0
        e = self.emitter(int64, width)
        total: str | None = None

        def also(text: str) -> None:
            nonlocal total
            total = text if total is None else self.emitter(bool_, width).and_(total, text)

        def at(index: Index) -> tuple[str, int, str]:
            return self.index(index, lane), width, ""

        for index, low, high in condition.bounds:
            text = at(index)[0]
            # One unsigned comparison checks both ends.
            moved = e.sub(text, e.splat(self.size(low))) if low else text
            also(self.builder.value(f"icmp ult {e.t} {moved}, {e.splat(self.size(high - low))}"))
        for index, divisor in condition.multiples:
            rest = e.binary("srem", at(index)[0], e.splat(self.size(divisor)))
            also(e.eq(rest, e.const(0)))
        if total is None:
            return self.emitter(bool_, width).const(True)
        return total

    # memory -----------------------------------------------------------------------------------
    def _stride(self, index: Index) -> int | None:
        """Stride along the vector axis, or None if the index is not linear in it."""
        stride = 0
        for atom, k in index.terms.items():
            if isinstance(atom, Var):
                if atom.name == self.vector:
                    stride = k
            elif self.index_varies(Index(0, {atom: 1})):
                return None
        return stride

    def _base(self, index: Index, lane: Lane) -> str:
        """Scalar index of lane 0, for an index that is linear in the vector axis."""
        rest, stride = {}, 0
        for atom, k in index.terms.items():
            if isinstance(atom, Var) and atom.name == self.vector:
                stride = k
            else:
                rest[atom] = k
        base = self._scalar_index(Index(index.constant, rest))
        step = lane.start if stride == 1 else self.builder.mul(lane.start, self.size(stride))
        return self.builder.add(base, step)

    def _load(self, val: Val, lane: Lane | None) -> str:
        buffer, index, condition = val.data
        pointer = self.pointer(buffer)
        if lane is None:
            return self._scalar_load(val, pointer, index, condition)
        e = self.emitter(val.dtype, self.width)
        mask = lane.mask
        if condition is not None:
            guard = self.condition(condition, lane)
            mask = guard if mask is None else self.emitter(bool_, self.width).and_(mask, guard)
        stride = self._stride(index)
        if stride == 1:
            at = self.builder.gep(pointer, self._base(index, lane), val.dtype.llvm)
            if self.column is not None and mask is None:
                self._fetch_ahead(at, index, val.dtype)
            return e.load(at) if mask is None else e.load_masked(at, mask)
        if stride in (2, 3, 4) and val.dtype is not bool_:
            return self._apart(e, pointer, self._base(index, lane), stride, mask)
        repeated = self._repeated(index, lane)
        if repeated is not None and val.dtype is not bool_:
            found = self._repeats(val.dtype, pointer, *repeated, mask)
            return found if condition is None else e.select(mask or "", found, e.const(0))
        return e.gather(pointer, self.index(index, lane), mask)

    def _fetch_ahead(self, at: str, index: Index, dtype: DType) -> None:
        """Ask for the same columns some rows ahead, where rows lie too far apart for the processor
        to see the stride."""
        step = sum(k for atom, k in index.terms.items()
                   if isinstance(atom, Var) and atom.name == self.column)
        if step * dtype.itemsize >= FAR_ROWS:
            ahead = self.builder.gep(at, str(ROWS_AHEAD * step), dtype.llvm)
            self.builder.intrinsic("llvm.prefetch.p0", "void", [
                ("ptr", ahead), ("i32", "0"), ("i32", "3"), ("i32", "1")])  # read, keep, data

    def _shuffled(self, type_: str, x: str, y: str, lanes: int, places: list[int]) -> str:
        """Lanes of x and, from `lanes` on, of y, by their places; -1 is any value."""
        mask = ", ".join("i32 poison" if i < 0 else f"i32 {i}" for i in places)
        return self.builder.value(f"shufflevector <{lanes} x {type_}> {x}, <{lanes} x {type_}> "
                                  f"{y}, <{len(places)} x i32> <{mask}>")

    def _apart(self, e: Emitter, pointer: str, base: str, stride: int, mask: str | None) -> str:
        """Elements `stride` apart: neighbours loaded and sorted out, which costs a third of a
        gather. No memory behind the last element is touched."""
        width, found = self.width, ""
        scalar = e.t.removeprefix(f"<{width} x ").removesuffix(">")
        for part in range(stride):
            own = [(part * width + i) // stride if (part * width + i) % stride == 0 else -1
                   for i in range(width)]
            at = self.builder.gep(pointer, self.builder.add(base, str(part * width)), e.dtype.llvm)
            if mask is None and part < stride - 1:
                loaded = e.load(at)
            elif mask is None:
                wanted = ", ".join(f"i1 {str(i >= 0).lower()}" for i in own)
                loaded = e.load_masked(at, f"<{wanted}>")
            else:
                spread = [i if i >= 0 else width for i in own]
                loaded = e.load_masked(at, self._shuffled("i1", mask, "zeroinitializer", width,
                                                          spread))
            places = [width + own.index(i) if i in own else i if found else -1
                      for i in range(width)]
            found = self._shuffled(scalar, found or "poison", loaded, width, places)
        return found

    def _repeated(self, index: Index, lane: Lane) -> tuple[str, int] | None:
        """(index of lane 0, s) if the elements are neighbours, each for s lanes: `lane // s`."""
        rest: dict[Any, int] = {}
        found = 0
        for atom, k in index.terms.items():
            if not self.index_varies(Index(0, {atom: 1})):
                rest[atom] = k
            elif k == 1 and not found and isinstance(atom, Quotient) and is_var(
                    atom.value, self.vector or ""):
                found = atom.divisor
            else:
                return None
        if not found or not lane.aligned or self.width % found or self.width // found < 2:
            return None
        b = self.builder
        base = self._scalar_index(Index(index.constant, rest))
        return b.add(base, b.udiv(lane.start, str(found))), found

    def _repeats(self, dtype: DType, pointer: str, base: str, times: int,
                 mask: str | None) -> str:
        """Neighbours from `base` on, each for `times` lanes."""
        width = self.width
        e = self.emitter(dtype, width // times)
        at = self.builder.gep(pointer, base, dtype.llvm)
        if mask is None:
            loaded = e.load(at)
        else:
            needed = ""
            for i in range(times):
                own = self._shuffled("i1", mask, "poison", width, list(range(i, width, times)))
                needed = self.emitter(bool_, width // times).or_(needed, own) if needed else own
            loaded = e.load_masked(at, needed)
        scalar = e.t.removeprefix(f"<{width // times} x ").removesuffix(">")
        return self._shuffled(scalar, loaded, "poison", width // times,
                              [i // times for i in range(width)])

    def _scalar_load(self, val: Val, pointer: str, index: Index,
                     condition: Condition | None) -> str:
        b = self.builder
        e = self.emitter(val.dtype, 0)
        at = self._scalar_index(index)
        if condition is None:
            return e.load(b.gep(pointer, at, val.dtype.llvm))
        guard = self.condition(condition, None)
        address = b.gep(pointer, b.select(guard, at, "0"), val.dtype.llvm)
        return e.load_masked(address, guard)

    def store(self, store: Store, lane: Lane | None) -> None:
        """Write a value; a store that does not vary along the vector axis is scalar."""
        b = self.builder
        if lane is not None and self.index_varies(store.index):
            self._vector_store(store, lane)
            return
        pointer = self.pointer(store.buffer)
        e = self.emitter(store.dtype, 0)
        value = self.emit(store.value, None)
        at = b.gep(pointer, self._scalar_index(store.index), store.dtype.llvm)
        if store.update == "add":
            value = e.add(e.load(at), value)
        e.store(value, at)

    def _vector_store(self, store: Store, lane: Lane) -> None:
        b = self.builder
        pointer = self.pointer(store.buffer)
        e = self.emitter(store.dtype, self.width)
        value = self.vector_of(store.value, lane)
        if self._stride(store.index) == 1:
            at = b.gep(pointer, self._base(store.index, lane), store.dtype.llvm)
            if store.update == "add":
                old = e.load(at) if lane.mask is None else e.load_masked(at, lane.mask)
                value = e.add(old, value)
            if lane.mask is None:
                past = id(store) in self.streamed
                e.store(value, at, note=", !nontemporal !1" if past else "",
                        align=self.width * store.dtype.itemsize if past else 0)
            else:
                e.store_masked(value, at, lane.mask)
            return
        if store.update == "add":
            raise CompileError("scatter-add lanes may collide; the schedule must keep them apart")
        at = self.index(store.index, lane)
        t = e.vector_of("ptr")
        pointers = b.value(f"getelementptr {store.dtype.llvm}, ptr {pointer}, "
                           f"{e.vector_of('i64')} {at}", "p")
        symbol = f"llvm.masked.scatter.{e._memory_suffix()}.v{self.width}p0"
        m, raw = e.memory_t, e._to_memory(value)
        b.declare(symbol, f"declare void @{symbol}({m}, {t}, i32, {e.mask})")
        mask = lane.mask or "splat (i1 true)"
        b.line(f"call void @{symbol}({m} {raw}, {t} {pointers}, i32 {store.dtype.itemsize}, "
               f"{e.mask} {mask})")


def _zero_outside(val: Val) -> bool:
    """Whether a select only repeats the condition of its load, which is 0 where that fails."""
    inside, outside = val.inputs
    if inside.kind != "load" or outside.kind != "const" or inside.data[2] is None:
        return False
    if outside.data or copysign(1.0, outside.data) < 0:  # -0.0 is not what a failed load gives
        return False
    own, checked = val.data, inside.data[2]
    return (set(own.bounds) <= set(checked.bounds)
            and set(own.multiples) <= set(checked.multiples))


def float_word(value: float) -> FloatWord:
    """A Python float as a word."""
    return FloatWord(float(value))
