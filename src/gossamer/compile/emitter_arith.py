"""Typed scalar-or-vector arithmetic written into a FunctionBuilder. Layer 2.

The one idea: an `Arithmetic` is a point of view on a builder: one dtype, one width. The rule of an
operator reads like scalar code (`e.add(a, b)`) and becomes instructions on <width x T>. Values are
strings: SSA names or constants. float16 and bfloat16 live in registers as float32; bool as i1.

Floating-point flags: `contract` only (a*b+c may become one fused operation, design §4 Numerics).
NaN, infinities, the sign of zero and the order of additions are kept; vecmath uses no flag at all.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Self

from gossamer.compile.builder import FunctionBuilder
from gossamer.core.dtype import DType, bool_, float32, float64, int16, int32, int64
from gossamer.core.errors import CompileError

__all__ = ["Arithmetic", "float_literal", "is_constant"]

_INT_BY_BITS = {16: int16, 32: int32, 64: int64}
_DOUBLE = struct.Struct("<d")
_PREDICATES = {"lt": ("olt", "lt"), "le": ("ole", "le"), "gt": ("ogt", "gt"),
               "ge": ("oge", "ge"), "eq": ("oeq", "eq"), "ne": ("une", "ne")}


def is_constant(value: str) -> bool:
    """Whether an operand is a literal rather than an SSA name."""
    return not value.startswith("%")


def float_literal(x: float, dtype: DType) -> str:
    """LLVM's exact hexadecimal literal of `x`, rounded to float32 unless `dtype` is float64."""
    if dtype is not float64:
        try:
            x = struct.unpack("<f", struct.pack("<f", x))[0]
        except OverflowError:  # beyond float32's range: rounds to an infinity
            x = float("inf") if x > 0 else float("-inf")
    return f"0x{int.from_bytes(_DOUBLE.pack(x), 'little'):016X}"


def _register_type(dtype: DType) -> str:
    if dtype.kind == "b":
        return "i1"
    if dtype.kind == "f":
        return "double" if dtype is float64 else "float"
    return dtype.llvm


class Arithmetic:
    """Arithmetic, comparisons and bit operations on one dtype and one width.

    Args:
        builder: the function being written.
        dtype: dtype of the operands of the current operator.
        width: lanes; 0 and 1 are scalar code.
        flags: fast-math flags of float instructions, written as LLVM does.
    """

    def __init__(self, builder: FunctionBuilder, dtype: DType, width: int,
                 flags: str = "contract") -> None:
        self.builder = builder
        self.dtype = dtype
        self.width = 0 if width <= 1 else width
        self.flags = flags
        self.scalar = _register_type(dtype)  # LLVM type of one lane
        self.bits = {"double": 64, "float": 32}.get(self.scalar) or int(self.scalar[1:])
        self.t = self.vector_of(self.scalar)
        self.mask = self.vector_of("i1")
        self.int_t = self.vector_of(f"i{self.bits}")
        self.is_float = dtype.kind == "f"
        lane = {"double": "f64", "float": "f32"}.get(self.scalar, self.scalar)
        self.suffix = f"v{self.width}{lane}" if self.width else lane  # of intrinsics
        self._f = f" {flags}" if flags else ""

    # siblings -----------------------------------------------------------------------------------
    def of(self, dtype: DType, width: int | None = None, flags: str | None = None) -> Self:
        """The emitter of another dtype (or width, or flags) over the same builder."""
        return type(self)(self.builder, dtype, self.width if width is None else width,
                          self.flags if flags is None else flags)

    @property
    def strict(self) -> Self:
        """A sibling without fast-math flags: every operation rounds as written."""
        return self if not self.flags else self.of(self.dtype, flags="")

    @property
    def integer(self) -> Self:
        """The sibling of signed integers as wide as this emitter's lanes."""
        return self if self.dtype.kind == "i" else self.of(_INT_BY_BITS[self.bits])

    def vector_of(self, scalar_type: str) -> str:
        """`scalar_type` at this emitter's width, e.g. `i32` -> `<8 x i32>`."""
        return f"<{self.width} x {scalar_type}>" if self.width else scalar_type

    # constants ----------------------------------------------------------------------------------
    def const(self, x: bool | int | float) -> str:
        """The literal `x` in every lane; integers wrap to the type, floats round to it."""
        if self.dtype.kind == "b":
            return self.splat("true" if x else "false")
        if self.is_float:
            return self.splat(float_literal(float(x), self.dtype))
        half = 1 << (self.bits - 1)
        return self.splat(str((int(x) + half) % (2 * half) - half))

    def splat(self, scalar_value: str) -> str:
        """One scalar in every lane."""
        if not self.width:
            return scalar_value
        if is_constant(scalar_value):
            return f"splat ({self.scalar} {scalar_value})"
        t, b = self.t, self.builder
        one = b.value(f"insertelement {t} poison, {self.scalar} {scalar_value}, i64 0")
        zeros = f"<{self.width} x i32> zeroinitializer"
        return b.value(f"shufflevector {t} {one}, {t} poison, {zeros}")

    def lanes(self) -> str:
        """The lane numbers 0, 1, ..., width-1 (0 for a scalar), in an integer dtype."""
        if not self.width:
            return "0"
        return "<" + ", ".join(f"{self.scalar} {i}" for i in range(self.width)) + ">"

    # plumbing -----------------------------------------------------------------------------------
    def binary(self, instruction: str, a: str, b: str) -> str:
        return self.builder.value(f"{instruction} {self.t} {a}, {b}")

    def intrinsic(self, name: str, *operands: str) -> str:
        """`llvm.<name>` on operands of this type, with the emitter's flags when it is a float."""
        symbol = f"llvm.{name}.{self.suffix}"
        types = ", ".join([self.t] * len(operands))
        self.builder.declare(symbol, f"declare {self.t} @{symbol}({types})")
        text = ", ".join(f"{self.t} {x}" for x in operands)
        flags = self._f if self.is_float else ""
        return self.builder.value(f"call{flags} {self.t} @{symbol}({text})")

    def _unsupported(self, what: str) -> CompileError:
        return CompileError(f"Emitter.{what}: operands are {self.dtype!r}; this instruction does "
                            "not exist for them. Cast in the operator's type rule first.")

    def _float_only(self, what: str) -> None:
        if not self.is_float:
            raise self._unsupported(what)

    # arithmetic ---------------------------------------------------------------------------------
    def add(self, a: str, b: str) -> str:
        """a + b; logical or for bool."""
        if self.is_float:
            return self.binary(f"fadd{self._f}", a, b)
        return self.binary("or" if self.dtype.kind == "b" else "add", a, b)

    def sub(self, a: str, b: str) -> str:
        """a - b."""
        if self.dtype.kind == "b":
            raise self._unsupported("sub")
        return self.binary(f"fsub{self._f}" if self.is_float else "sub", a, b)

    def mul(self, a: str, b: str) -> str:
        """a * b; logical and for bool."""
        if self.is_float:
            return self.binary(f"fmul{self._f}", a, b)
        return self.binary("and" if self.dtype.kind == "b" else "mul", a, b)

    def div(self, a: str, b: str) -> str:
        """a / b, floats only (true division of integers casts first)."""
        self._float_only("div")
        return self.binary(f"fdiv{self._f}", a, b)

    def neg(self, a: str) -> str:
        if self.is_float:
            return self.builder.value(f"fneg{self._f} {self.t} {a}")
        return self.sub(self.const(0), a)

    def abs(self, a: str) -> str:
        """|a|; the most negative integer stays as it is."""
        if self.is_float:
            return self.intrinsic("fabs", a)
        if self.dtype.kind != "i":
            return a
        return self.builder.intrinsic(f"llvm.abs.{self.suffix}", self.t,
                                      [(self.t, a), ("i1", "false")])

    def fma(self, a: str, b: str, c: str) -> str:
        """a * b + c with one rounding (integers: product and sum)."""
        if not self.is_float:
            return self.add(self.mul(a, b), c)
        return self.intrinsic("fma", a, b, c)

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """Sum of coefficients[k] * x^k by Horner's rule in fused multiply-adds."""
        result = self.const(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            result = self.fma(result, x, self.const(c))
        return result

    def sqrt(self, a: str) -> str:
        """Square root, correctly rounded; NaN below zero."""
        self._float_only("sqrt")
        return self.intrinsic("sqrt", a)

    def reciprocal(self, a: str) -> str:
        return self.div(self.const(1), a)

    def rsqrt(self, a: str) -> str:
        """1 / sqrt(a) by a division: the hardware's estimate has 12 to 14 bits only."""
        return self.reciprocal(self.sqrt(a))

    # minima and maxima --------------------------------------------------------------------------
    def _extreme(self, predicate: str, a: str, b: str) -> str:
        """`predicate`(a, b) ? a : b, which is x86's vmaxps/vminps: b if one of them is NaN."""
        chosen = self.builder.value(f"fcmp {predicate} {self.t} {a}, {b}")
        return self.select(chosen, a, b)

    def _propagating(self, predicate: str, a: str, b: str) -> str:
        if is_constant(b):  # a literal is never NaN: one instruction that returns a NaN of `a`
            a, b = b, a
        result = self._extreme(predicate, a, b)
        return result if is_constant(a) else self.select(self.isnan(a), a, result)

    def _ignoring(self, predicate: str, a: str, b: str) -> str:
        if is_constant(a):
            a, b = b, a
        result = self._extreme(predicate, a, b)
        return result if is_constant(b) else self.select(self.isnan(b), a, result)

    def _integer_extreme(self, which: str, a: str, b: str) -> str:
        if self.dtype.kind == "b":
            return self.binary("or" if which == "max" else "and", a, b)
        return self.intrinsic(("s" if self.dtype.kind == "i" else "u") + which, a, b)

    def maximum(self, a: str, b: str) -> str:
        """The larger; NaN if one of them is NaN. Literals must not be NaN."""
        if self.is_float:
            return self._propagating("ogt", a, b)
        return self._integer_extreme("max", a, b)

    def minimum(self, a: str, b: str) -> str:
        """The smaller; NaN if one of them is NaN. Literals must not be NaN."""
        if self.is_float:
            return self._propagating("olt", a, b)
        return self._integer_extreme("min", a, b)

    def larger(self, a: str, b: str) -> str:
        """`a` if it is larger than `b`, else `b`, also where one is NaN: one instruction."""
        return self._extreme("ogt", a, b)

    def fmax(self, a: str, b: str) -> str:
        """The larger; the other one if one is NaN."""
        return self._ignoring("ogt", a, b) if self.is_float else self._integer_extreme("max", a, b)

    def fmin(self, a: str, b: str) -> str:
        """The smaller; the other one if one is NaN."""
        return self._ignoring("olt", a, b) if self.is_float else self._integer_extreme("min", a, b)

    # rounding -----------------------------------------------------------------------------------
    def floor(self, a: str) -> str:
        return self.intrinsic("floor", a) if self.is_float else a

    def ceil(self, a: str) -> str:
        return self.intrinsic("ceil", a) if self.is_float else a

    def trunc(self, a: str) -> str:
        return self.intrinsic("trunc", a) if self.is_float else a

    def rint(self, a: str) -> str:
        """Nearest integer, ties to even."""
        return self.intrinsic("roundeven", a) if self.is_float else a

    # comparisons --------------------------------------------------------------------------------
    def compare(self, name: str, a: str, b: str) -> str:
        """The mask of a comparison named lt, le, gt, ge, eq or ne; NaN compares as in IEEE 754."""
        floating, integral = _PREDICATES[name]
        if self.is_float:
            return self.builder.value(f"fcmp {floating} {self.t} {a}, {b}")
        sign = "" if name in ("eq", "ne") else "s" if self.dtype.kind == "i" else "u"
        return self.builder.value(f"icmp {sign}{integral} {self.t} {a}, {b}")

    def lt(self, a: str, b: str) -> str:
        return self.compare("lt", a, b)

    def le(self, a: str, b: str) -> str:
        return self.compare("le", a, b)

    def gt(self, a: str, b: str) -> str:
        return self.compare("gt", a, b)

    def ge(self, a: str, b: str) -> str:
        return self.compare("ge", a, b)

    def eq(self, a: str, b: str) -> str:
        return self.compare("eq", a, b)

    def ne(self, a: str, b: str) -> str:
        return self.compare("ne", a, b)

    def select(self, mask: str, a: str, b: str) -> str:
        """a where `mask` (bool lanes) holds, else b; a and b have this emitter's dtype."""
        return self.builder.value(f"select {self.mask} {mask}, {self.t} {a}, {self.t} {b}")

    # bits ---------------------------------------------------------------------------------------
    def and_(self, a: str, b: str) -> str:
        return self.binary("and", a, b)

    def or_(self, a: str, b: str) -> str:
        return self.binary("or", a, b)

    def xor(self, a: str, b: str) -> str:
        return self.binary("xor", a, b)

    def not_(self, a: str) -> str:
        """Bitwise complement; logical not for bool."""
        return self.binary("xor", a, self.const(True if self.dtype.kind == "b" else -1))

    def _in_range(self, count: str) -> str:
        """Whether 0 <= count < bits, by one unsigned comparison."""
        return self.builder.value(f"icmp ult {self.t} {count}, {self.const(self.bits)}")

    def _shift(self, instruction: str, a: str, count: str, beyond: str) -> str:
        if is_constant(count):
            return self.binary(instruction, a, count)
        ok = self._in_range(count)
        # A shift by too much is poison in LLVM, which a select of the other arm does not pick up.
        return self.select(ok, self.binary(instruction, a, count), beyond)

    def shl(self, a: str, count: str) -> str:
        """a << count; 0 if count is negative or at least the number of bits (as PyTorch).

        A literal count must be in range; this holds for `shr` and `lshr` too.
        """
        return self._shift("shl", a, count, self.const(0))

    def lshr(self, a: str, count: str) -> str:
        """Logical shift right; 0 if count is out of range."""
        return self._shift("lshr", a, count, self.const(0))

    def shr(self, a: str, count: str) -> str:
        """a >> count: arithmetic for signed types; the sign (or 0) if count is out of range."""
        if self.dtype.kind != "i":
            return self.lshr(a, count)
        if is_constant(count):
            return self.binary("ashr", a, count)
        last = self.const(self.bits - 1)
        return self.binary("ashr", a, self.select(self._in_range(count), count, last))

    def mulhi_u32(self, a: str, b: str) -> str:
        """The upper 32 bits of the unsigned product of two 32-bit integers (random generators)."""
        if self.bits != 32 or self.is_float:
            raise self._unsupported("mulhi_u32")
        wide = self.vector_of("i64")
        x, y = (self.builder.value(f"zext {self.t} {v} to {wide}") for v in (a, b))
        product = self.builder.value(f"mul {wide} {x}, {y}")
        by = "splat (i64 32)" if self.width else "32"
        high = self.builder.value(f"lshr {wide} {product}, {by}")
        return self.builder.value(f"trunc {wide} {high} to {self.t}")

    def mulhi_u64(self, a: str, b: str) -> str:
        """The upper 64 bits of the unsigned product of two 64-bit integers."""
        if self.bits != 64 or self.is_float:
            raise self._unsupported("mulhi_u64")
        low, by = self.const(0xFFFFFFFF), self.const(32)
        a0, a1 = self.and_(a, low), self.lshr(a, by)
        b0, b1 = self.and_(b, low), self.lshr(b, by)
        cross = self.add(self.mul(a1, b0), self.lshr(self.mul(a0, b0), by))
        other = self.add(self.mul(a0, b1), self.and_(cross, low))
        return self.add(self.mul(a1, b1), self.add(self.lshr(cross, by), self.lshr(other, by)))

    # classification of floats -------------------------------------------------------------------
    def isnan(self, a: str) -> str:
        if not self.is_float:
            return self.of(bool_).const(False)
        return self.builder.value(f"fcmp uno {self.t} {a}, {a}")

    def isinf(self, a: str) -> str:
        if not self.is_float:
            return self.of(bool_).const(False)
        return self.eq(self.abs(a), self.const(float("inf")))

    def isfinite(self, a: str) -> str:
        if not self.is_float:
            return self.of(bool_).const(True)
        return self.lt(self.abs(a), self.const(float("inf")))

    def signbit(self, a: str) -> str:
        """Whether the sign bit is set (true for -0.0); a < 0 for integers."""
        if not self.is_float:
            return self.lt(a, self.const(0))
        return self.integer.lt(self.to_bits(a), self.integer.const(0))

    def copysign(self, magnitude: str, sign: str) -> str:
        self._float_only("copysign")
        return self.intrinsic("copysign", magnitude, sign)

    def sign(self, a: str) -> str:
        """-1, 0 or 1; 0 for NaN, as PyTorch."""
        if self.dtype.kind == "b":
            return a
        positive = self.select(self.gt(a, self.const(0)), self.const(1), self.const(0))
        return self.select(self.lt(a, self.const(0)), self.const(-1), positive)

    def to_bits(self, a: str) -> str:
        """The bits of a float as an integer of the same width."""
        return self.builder.value(f"bitcast {self.t} {a} to {self.int_t}")

    def from_bits(self, a: str) -> str:
        """The float with these bits."""
        return self.builder.value(f"bitcast {self.int_t} {a} to {self.t}")

    def bitcast(self, value: str, to: DType) -> str:
        """The same bits as another dtype of the same register width (float32 with int32, ...)."""
        other = self.of(to)
        if other.bits != self.bits:
            raise CompileError(f"Emitter.bitcast({self.dtype!r} to {to!r}): {self.bits} and "
                               f"{other.bits} bits in registers; the widths must agree.")
        if other.t == self.t:
            return value
        return self.builder.value(f"bitcast {self.t} {value} to {other.t}")

    @property
    def wide(self) -> Self:
        """The float64 sibling."""
        return self.of(float64)

    @property
    def single(self) -> Self:
        """The float32 sibling."""
        return self.of(float32)
