"""Conversions, memory access, division and reductions over lanes. Layer 2.

The one idea: memory types and register types differ (bfloat16 is i16 in memory and float in a
register, bool is i8 and i1), and only the functions of this file know both. Everything here is
free of branches and of calls to run-time libraries, except `fmod`, which is exact by a call when
the quotient is large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.emitter_arith import Arithmetic, float_literal, is_constant
from gossamer.core.dtype import DType, bfloat16, bool_, float16, float32, float64, int32
from gossamer.core.errors import CompileError

__all__ = ["Memory"]

# Lanes that a gather leaves out read from here: always a valid address, and the value is zero.
_ZEROS = "gossamer.zeros"
_ZEROS_LINE = f"@{_ZEROS} = private unnamed_addr constant [8 x i8] zeroinitializer, align 8"


class Memory(Arithmetic):
    """`Arithmetic` plus conversions, loads, stores, division and lane reductions."""

    # conversions ----------------------------------------------------------------------------------
    def _convert(self, instruction: str, value: str, to: str) -> str:
        return self.builder.value(f"{instruction} {self.t} {value} to {to}")

    def cast(self, value: str, to: DType) -> str:
        """`value` (of this emitter's dtype) as `to`, by PyTorch's rules.

        Float to integer truncates towards zero (out of range: some value, never a trap; narrow
        integers wrap as through int32); anything to bool is != 0 (NaN is true); to float16 and
        bfloat16 rounds to nearest even, NaN and infinities kept, and the result stays a float32.
        """
        if to is self.dtype:
            return value
        if to.kind == "b":
            return self.ne(value, self.const(0))
        target = self.of(to)
        if to.kind == "f":
            return self._cast_to_float(value, to, target)
        if self.is_float:
            return self._float_to_int(value, target)
        if self.bits == target.bits:
            return value
        if self.bits > target.bits:
            return self._convert("trunc", value, target.t)
        return self._convert("sext" if self.dtype.kind == "i" else "zext", value, target.t)

    def _float_to_int(self, value: str, target: Memory) -> str:
        wide = target if target.bits >= 32 else self.of(int32)
        result = self._convert("fptosi", value, wide.t)
        # Out of range is poison in LLVM: freeze makes it some integer.
        result = self.builder.value(f"freeze {wide.t} {result}")
        return wide._convert("trunc", result, target.t) if wide.bits > target.bits else result

    def _cast_to_float(self, value: str, to: DType, target: Memory) -> str:
        if self.dtype.kind == "b":
            return target.select(value, target.const(1), target.const(0))
        if not self.is_float:
            value = self._convert("sitofp" if self.dtype.kind == "i" else "uitofp", value, target.t)
        elif self.bits != target.bits:
            value = self._convert("fptrunc" if self.bits == 64 else "fpext", value, target.t)
        return target.round(value)

    def round(self, value: str) -> str:
        """A register value rounded to this emitter's dtype (float16 and bfloat16 only change)."""
        if self.dtype is float16:
            half = self._convert("fptrunc", value, self.vector_of("half"))
            return self.builder.value(f"fpext {self.vector_of('half')} {half} to {self.t}")
        if self.dtype is bfloat16:
            if self.builder.flushes:
                low = self._convert("fptrunc", value, self.vector_of("bfloat"))
                return self.builder.value(f"fpext {self.vector_of('bfloat')} {low} to {self.t}")
            return self._from_bfloat16_bits(self._bfloat16_bits(value))
        return value

    def _from_bfloat16_bits(self, bits: str) -> str:
        """The float32 of an i32 below 2^16, remembered so that a store rounds no second time."""
        i = self.integer
        value = self.from_bits(i.shl(bits, i.const(16)))
        self.builder.bfloat16[value] = bits
        return value

    def _bfloat16_bits(self, value: str) -> str:
        """The bfloat16 nearest to a float32, as an i32 below 2^16; ties to even, NaN stays NaN."""
        known = self.builder.bfloat16.get(value)
        if known is not None:
            return known
        i = self.integer
        bits = self.to_bits(value)
        top = i.lshr(bits, i.const(16))
        odd = i.and_(top, i.const(1))
        rounded = i.lshr(i.add(bits, i.add(odd, i.const(0x7FFF))), i.const(16))
        # Rounding could carry a NaN into infinity: set its quiet bit instead.
        return i.select(self.isnan(value), i.or_(top, i.const(0x40)), rounded)

    # register <-> memory --------------------------------------------------------------------------
    @property
    def memory_t(self) -> str:
        """LLVM type of the lanes in memory."""
        return self.vector_of(self.dtype.llvm)

    def _from_memory(self, raw: str) -> str:
        if self.dtype is bool_:
            zero = "zeroinitializer" if self.width else "0"
            return self.builder.value(f"icmp ne {self.memory_t} {raw}, {zero}")
        if self.dtype is float16:
            return self.builder.value(f"fpext {self.memory_t} {raw} to {self.t}")
        if self.dtype is bfloat16:
            return self._from_bfloat16_bits(
                self.builder.value(f"zext {self.memory_t} {raw} to {self.int_t}"))
        return raw

    def _to_memory(self, value: str) -> str:
        if self.dtype is bool_:
            return self._convert("zext", value, self.memory_t)
        if self.dtype is float16:
            return self._convert("fptrunc", value, self.memory_t)
        if self.dtype is bfloat16:
            if self.builder.flushes:
                t = self.vector_of("bfloat")
                low = self._convert("fptrunc", value, t)
                return self.builder.value(f"bitcast {t} {low} to {self.memory_t}")
            bits = self._bfloat16_bits(value)
            return self.builder.value(f"trunc {self.int_t} {bits} to {self.memory_t}")
        return value

    def load(self, pointer: str, note: str = "") -> str:
        """`width` consecutive elements from `pointer`, aligned to one element.

        `note` is appended to the instruction (alias metadata).
        """
        size = self.dtype.itemsize
        return self._from_memory(self.builder.load(self.memory_t, pointer, size, note))

    def store(self, value: str, pointer: str, note: str = "", align: int = 0) -> None:
        """Write `width` consecutive elements; float16 and bfloat16 round to nearest even."""
        raw = self._to_memory(value)
        self.builder.store(self.memory_t, raw, pointer, align or self.dtype.itemsize, note)

    def _memory_suffix(self) -> str:
        names = {"double": "f64", "float": "f32", "half": "f16"}
        lane = names.get(self.dtype.llvm, self.dtype.llvm)
        return f"v{self.width}{lane}"

    def load_masked(self, pointer: str, mask: str, passthru: str | None = None) -> str:
        """Elements where `mask` holds; elsewhere `passthru` (0), and no memory is touched."""
        if not self.width:
            kept = self.load(self._safe(pointer, mask))
            return kept if passthru is None else self.select(mask, kept, passthru)
        symbol = f"llvm.masked.load.{self._memory_suffix()}.p0"
        t, size = self.memory_t, self.dtype.itemsize
        self.builder.declare(symbol, f"declare {t} @{symbol}(ptr, i32, {self.mask}, {t})")
        raw = self.builder.value(f"call {t} @{symbol}(ptr {pointer}, i32 {size}, "
                                 f"{self.mask} {mask}, {t} zeroinitializer)")
        value = self._from_memory(raw)
        return value if passthru is None else self.select(mask, value, passthru)

    def store_masked(self, value: str, pointer: str, mask: str) -> None:
        """Write the elements where `mask` holds; the others' memory is not touched."""
        raw, size = self._to_memory(value), self.dtype.itemsize
        if not self.width:
            with self.builder.when(mask):
                self.builder.store(self.memory_t, raw, pointer, size)
            return
        symbol = f"llvm.masked.store.{self._memory_suffix()}.p0"
        t = self.memory_t
        self.builder.declare(symbol, f"declare void @{symbol}({t}, ptr, i32, {self.mask})")
        self.builder.line(f"call void @{symbol}({t} {raw}, ptr {pointer}, i32 {size}, "
                          f"{self.mask} {mask})")

    def _safe(self, pointers: str, mask: str) -> str:
        """`pointers` where `mask` holds, elsewhere the address of a zero."""
        self.builder.declare(_ZEROS, _ZEROS_LINE)
        t = self.vector_of("ptr")
        zero = f"splat (ptr @{_ZEROS})" if self.width else f"@{_ZEROS}"
        return self.builder.value(f"select {self.mask} {mask}, {t} {pointers}, {t} {zero}")

    def gather(self, base: str, index: str, mask: str | None = None) -> str:
        """base[index[lane]] for each lane; 0 where `mask` does not hold, without touching memory.

        Args:
            base: pointer to element 0.
            index: i64 lanes, counted in elements.
            mask: bool lanes, or None for all.
        """
        t = self.vector_of("ptr")
        lane = self.dtype.llvm
        pointers = self.builder.value(
            f"getelementptr {lane}, ptr {base}, {self.vector_of('i64')} {index}", "p")
        if mask is not None:
            pointers = self._safe(pointers, mask)
        if not self.width:
            return self.load(pointers)
        # All lanes are on: the masked form without AVX-512 becomes a branch per lane.
        symbol = f"llvm.masked.gather.{self._memory_suffix()}.v{self.width}p0"
        m, size = self.memory_t, self.dtype.itemsize
        self.builder.declare(symbol, f"declare {m} @{symbol}({t}, i32, {self.mask}, {m})")
        raw = self.builder.value(f"call {m} @{symbol}({t} {pointers}, i32 {size}, "
                                 f"{self.mask} splat (i1 true), {m} poison)")
        return self._from_memory(raw)

    # AVX-512 --------------------------------------------------------------------------------------
    @property
    def zmm(self) -> bool:
        """Whether a value is one 512-bit register of floats, on a processor with AVX-512."""
        return self.builder.avx512 and self.is_float and self.width * self.bits == 512

    def scalef(self, x: str, n: str, where: str | None = None) -> str:
        """x 2^n rounded once, n integral; 0 where the mask does not hold (`zmm` only)."""
        kind, count = ("ps", 16) if self.bits == 32 else ("pd", 8)
        mask = "-1"
        if where is not None:
            mask = self.builder.value(f"bitcast {self.mask} {where} to i{count}")
        return self.builder.intrinsic(
            f"llvm.x86.avx512.mask.scalef.{kind}.512", self.t,
            [(self.t, x), (self.t, n), (self.t, "zeroinitializer"), (f"i{count}", mask),
             ("i32", "4")])  # 4: round as the processor is set, to nearest

    def pick(self, table: Sequence[float], index: str) -> str:
        """table[index mod 16] in each lane of int32 (`zmm` of float32 only): one instruction."""
        numbers = ", ".join(f"float {float_literal(x, self.dtype)}" for x in table)
        return self.builder.intrinsic("llvm.x86.avx512.permvar.sf.512", self.t,
                                      [(self.t, f"<{numbers}>"), (self.int_t, index)])

    # lanes ----------------------------------------------------------------------------------------
    def extract(self, value: str, lane: int | str) -> str:
        """One lane as a scalar."""
        if not self.width:
            return value
        return self.builder.value(f"extractelement {self.t} {value}, i64 {lane}")

    def insert(self, vector: str, scalar_value: str, lane: int | str) -> str:
        """`vector` with one lane replaced."""
        if not self.width:
            return scalar_value
        return self.builder.value(
            f"insertelement {self.t} {vector}, {self.scalar} {scalar_value}, i64 {lane}")

    def reduce(self, kind: str, value: str) -> str:
        """All lanes combined into a scalar, always in the same order: halves are folded together.

        Args:
            kind: add, mul, max, min (both propagate NaN), and, or.
            value: <width x T>; width must be a power of two.
        """
        names = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum",
                 "and": "and_", "or": "or_"}
        width = self.width or 1
        if kind not in names or width & (width - 1):
            raise CompileError(f"Emitter.reduce({kind!r}) over {width} lanes: the kind must be "
                               f"one of {', '.join(names)} and the width a power of two.")
        if self.scalar == "i1" and self.width:  # one test of the mask register
            name = {"add": "or", "max": "or", "or": "or"}.get(kind, "and")
            return self.builder.intrinsic(f"llvm.vector.reduce.{name}.{self.suffix}", "i1",
                                          [(self.t, value)])
        if self.is_float and self.width and kind in ("max", "min"):
            return self._extreme_lane("ogt" if kind == "max" else "olt", value)
        return self._folded(value, lambda e, low, high: str(getattr(e, names[kind])(low, high)))

    def _folded(self, value: str, combine: Callable[[Memory, str, str], str]) -> str:
        """The lanes as one scalar, halves combined with halves."""
        e: Memory = self
        while e.width:
            half = e.width // 2
            low, high = (e._part(value, start, half) for start in (0, half))
            e = e.of(e.dtype, half)
            value = combine(e, low, high)
        return value

    def _extreme_lane(self, predicate: str, value: str) -> str:
        """The largest or smallest lane; NaN if one is, which is asked once for all of them."""
        strange = self.any(self.isnan(value))
        one = self.of(self.dtype, 0)
        found = self._folded(value, lambda e, low, high: e._extreme(predicate, low, high))
        return one.select(strange, one.const(float("nan")), found)

    def _part(self, value: str, start: int, count: int) -> str:
        if count == 1:
            return self.extract(value, start)
        picks = ", ".join(f"i32 {i}" for i in range(start, start + count))
        return self.builder.value(f"shufflevector {self.t} {value}, {self.t} poison, "
                                  f"<{count} x i32> <{picks}>")

    def any(self, mask: str) -> str:
        """Whether one lane of a mask holds (i1)."""
        return self.of(bool_).reduce("or", mask)

    def all(self, mask: str) -> str:
        """Whether every lane of a mask holds (i1)."""
        return self.of(bool_).reduce("and", mask)

    def if_any(self, mask: str, then: Callable[[], str], value: str) -> str:
        """`value`, or what `then` computes if one lane of `mask` holds: a rare slow path."""
        b = self.builder
        condition, before = self.any(mask), b.block
        slow, done = b.name("slow"), b.name("done")
        b.branch_if(condition, slow, done)
        b.label(slow)
        other = then()
        after = b.block
        b.branch(done)
        b.label(done)
        return b.value(f"phi {self.t} [ {value}, %{before} ], [ {other}, %{after} ]")

    def outlined(self, name: str, scalar: Callable[[Self, str], str], x: str) -> str:
        """`scalar(e, lane)` for every lane, by a loop in a function of its own: for rare code.

        A module has it once, however often it is called. (Unoptimized, sin would compile in 22 ms
        instead of 37, but LLVM prints a line for every pass that it then skips.) `scalar` must be
        the same for equal names and types.
        """
        symbol = f"gossamer.{name}.{self.suffix}"
        if symbol not in self.builder.declares:
            f = FunctionBuilder(f"internal {self.t} @{symbol}({self.t} %x)",
                                "cold noinline #0")
            one = type(self)(f, self.dtype, 0, self.flags)
            lanes = f.alloca(self.t)
            f.store(self.t, "%x", lanes)
            with f.loop("0", str(self.width or 1)) as i:
                at = f.gep(lanes, i, self.scalar)
                f.store(self.scalar, scalar(one, f.load(self.scalar, at)), at)
            text = f.finish(f"ret {self.t} {f.load(self.t, lanes)}")
            self.builder.declares.update(f.declares)
            self.builder.declare(symbol, text)
        return self.builder.value(f"call {self.t} @{symbol}({self.t} {x})")

    def each_lane(self, scalar: Callable[[Memory, list[str]], str], *operands: str) -> str:
        """Apply scalar code to every lane of operands of this type, one after the other."""
        if not self.width:
            return scalar(self, list(operands))
        one, result = self.of(self.dtype, 0), "poison"
        for lane in range(self.width):
            parts = [self.extract(x, lane) for x in operands]
            result = self.insert(result, scalar(one, parts), lane)
        return result

    def libm(self, name: str, *operands: str) -> str:
        """C's math function on every lane (float32 calls the `f` variant): exact, slow, no SIMD."""
        symbol = name if self.bits == 64 else name + "f"

        def call(one: Memory, parts: list[str]) -> str:
            return one.builder.intrinsic(symbol, one.scalar, [(one.t, p) for p in parts])

        return self.each_lane(call, *operands)

    # division -------------------------------------------------------------------------------------
    def _quotient(self, a: str, b: str) -> str:
        """Truncated integer quotient; garbage for b = 0 and for b = -1, but never a trap.

        x86 has no vector integer division, so lanes up to 32 bits divide as floats: with p-bit
        operands a fraction is at least 2^-p (relative) away from the next integer, so that
        float32 (24 bits) is exact for 16-bit lanes and float64 (53) for 32-bit lanes.
        """
        signed = self.dtype.kind == "i"
        if is_constant(b) or self.bits == 64 or not self.width:
            if not is_constant(b):
                bad = self.eq(b, self.const(0))
                if signed:
                    bad = self.of(bool_).or_(bad, self.eq(b, self.const(-1)))
                b = self.select(bad, self.const(1), b)
            return self.binary("sdiv" if signed else "udiv", a, b)
        real = self.of(float64 if self.bits == 32 else float32)
        x, y = self.cast(a, real.dtype), self.cast(b, real.dtype)
        return self._from_real(real, real.div(x, y))

    def _from_real(self, real: Memory, quotient: str) -> str:
        return real._float_to_int(quotient, self)

    def _integer_divide(self, a: str, b: str) -> tuple[str, str]:
        """(quotient, remainder) truncated; both 0 for b = 0; the minimum / -1 wraps."""
        if is_constant(b) and b in (self.const(0), self.const(-1)):
            zero = self.const(0)
            return (zero if b == zero else self.neg(a)), zero
        quotient = self._quotient(a, b)
        if not is_constant(b):
            if self.dtype.kind == "i":
                quotient = self.select(self.eq(b, self.const(-1)), self.neg(a), quotient)
            none = self.eq(b, self.const(0))
            quotient = self.select(none, self.const(0), quotient)
            remainder = self.sub(a, self.mul(quotient, b))
            return quotient, self.select(none, self.const(0), remainder)
        return quotient, self.sub(a, self.mul(quotient, b))

    def _needs_step(self, remainder: str, b: str) -> str:
        """Where a truncated division differs from a floored one: remainder and b differ in sign."""
        zero, m = self.const(0), self.of(bool_)
        return m.and_(self.ne(remainder, zero), m.xor(self.lt(remainder, zero), self.lt(b, zero)))

    def trunc_divide(self, a: str, b: str) -> str:
        """a / b rounded towards zero. Integers: 0 for b = 0 (no trap), the minimum / -1 wraps."""
        if self.is_float:
            return self.trunc(self.div(a, b))
        return self._integer_divide(a, b)[0]

    def floor_divide(self, a: str, b: str) -> str:
        """a / b rounded down, as Python's //. Integers: 0 for b = 0, the minimum // -1 wraps.

        Floats follow PyTorch: the quotient comes from the exact remainder, a/0 is infinite or NaN.
        """
        if self.is_float:
            return self._float_floor_divide(a, b)
        quotient, remainder = self._integer_divide(a, b)
        if self.dtype.kind == "u":
            return quotient
        step = self._needs_step(remainder, b)
        return self.select(step, self.sub(quotient, self.const(1)), quotient)

    def _float_floor_divide(self, a: str, b: str) -> str:
        e = self.strict
        plain = e.div(a, b)
        modulus = e.fmod(a, b)
        quotient = e.div(e.sub(a, modulus), b)
        quotient = e.select(e._needs_step(modulus, b), e.sub(quotient, e.const(1)), quotient)
        down = e.floor(quotient)
        up = e.gt(e.sub(quotient, down), e.const(0.5))
        result = e.select(up, e.add(down, e.const(1)), down)
        zero = e.eq(quotient, e.const(0))
        result = e.select(zero, e.copysign(e.const(0), plain), result)
        return e.select(e.eq(b, e.const(0)), plain, result)

    def fmod(self, a: str, b: str) -> str:
        """The remainder with the sign of `a` (C's fmod), exact. Integers: 0 for b = 0."""
        if not self.is_float:
            return self._integer_divide(a, b)[1]
        e = self.strict
        quotient = e.trunc(e.div(a, b))
        # Below 2^(p-1) the rounded quotient is off by at most one, and the fused multiply-add
        # leaves an exact remainder, which one step of b corrects.
        result = e.fma(e.neg(quotient), b, a)
        wrong = e._differ_in_sign(result, a)
        result = e.select(wrong, e.add(result, e.copysign(e.abs(b), a)), result)
        result = e.select(e.ge(e.abs(result), e.abs(b)),
                          e.sub(result, e.copysign(e.abs(b), a)), result)
        result = e.copysign(result, a)
        limit = e.const(2.0 ** (22 if e.bits == 32 else 51))
        simple = e.of(bool_).and_(e.lt(e.abs(quotient), limit), e.isfinite(b))
        hard = e.of(bool_).not_(simple)
        return e.if_any(hard, lambda: e.select(hard, e.binary("frem", a, b), result), result)

    def _differ_in_sign(self, result: str, a: str) -> str:
        """result < 0 < a or a < 0 < result."""
        return self.lt(self.mul(self.copysign(self.const(1), a), result), self.const(0))

    def remainder(self, a: str, b: str) -> str:
        """The remainder with the sign of `b`, as Python's %. Integers: 0 for b = 0 (no trap)."""
        modulus = self.fmod(a, b)
        if self.dtype.kind == "u":
            return modulus
        return self.select(self._needs_step(modulus, b), self.add(modulus, b), modulus)
