"""Conversions that LLVM expects from a compiler's runtime library. Layer 3.

The one idea: where a processor lacks an instruction (float64 to float16 on all x86, every float16
conversion without F16C), LLVM calls a function of libgcc or compiler-rt. No Python process is sure
to have those, so they are kernels' texts like any other, compiled when one is asked for. All are
integer arithmetic, since a conversion in their text would call them again.

Source of names and rounding (to nearest, ties to even): compiler-rt, `lib/builtins/fp_trunc.h`
and `fp_extend.h`; IEEE 754-2019, 4.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource

__all__ = ["SOFTFLOAT"]


@dataclass(frozen=True)
class _Format:
    """A binary floating-point format: LLVM type, bits, and bits of the stored significand."""

    type: str
    bits: int
    mantissa: int

    @property
    def bias(self) -> int:
        return (1 << (self.bits - self.mantissa - 2)) - 1

    @property
    def infinity(self) -> int:
        """Bits of +infinity."""
        return ((1 << (self.bits - self.mantissa - 1)) - 1) << self.mantissa


_HALF, _BFLOAT = _Format("half", 16, 10), _Format("bfloat", 16, 7)
_FLOAT, _DOUBLE = _Format("float", 32, 23), _Format("double", 64, 52)


def _truncation(symbol: str, wide: _Format, narrow: _Format) -> KernelSource:
    """narrow(x) for a wide x, rounded to nearest, ties to even."""
    f = FunctionBuilder(f"{narrow.type} @{symbol}({wide.type} %x)")
    bits = f.value(f"bitcast {wide.type} %x to i{wide.bits}")
    if wide.bits < 64:
        bits = f.value(f"zext i{wide.bits} {bits} to i64")
    magnitude = f.value(f"and i64 {bits}, {(1 << (wide.bits - 1)) - 1}")
    sign = f.value(f"lshr i64 {bits}, {wide.bits - 16}")
    sign = f.value(f"and i64 {sign}, {1 << 15}")
    cut, rebias = wide.mantissa - narrow.mantissa, wide.bias - narrow.bias
    result = _rounded(f, f.sub(magnitude, str(rebias << wide.mantissa)), str(cut))
    if rebias:  # below the narrow format's normal numbers: shift the significand into place
        exponent = f.value(f"lshr i64 {magnitude}, {wide.mantissa}")
        significand = f.value(f"and i64 {magnitude}, {(1 << wide.mantissa) - 1}")
        significand = f.value(f"or i64 {significand}, {1 << wide.mantissa}")
        shift = f.minimum(f.sub(str(cut + rebias + 1), exponent), "63")
        # Shifts below `cut + 1` belong to normal numbers; keep the unused value defined.
        shift = f.select(f.compare("slt", shift, "1"), "1", shift)
        tiny = f.compare("ult", magnitude, str((rebias + 1) << wide.mantissa))
        result = f.select(tiny, _rounded(f, significand, shift), result)
    large = f.compare("ugt", magnitude, str((rebias << wide.mantissa) + (narrow.infinity << cut)))
    result = f.select(large, str(narrow.infinity), result)
    payload = f.value(f"lshr i64 {magnitude}, {cut}")
    payload = f.value(f"and i64 {payload}, {(1 << narrow.mantissa) - 1}")
    quiet = f.value(f"or i64 {payload}, {narrow.infinity | 1 << (narrow.mantissa - 1)}")
    result = f.select(f.compare("ugt", magnitude, str(wide.infinity)), quiet, result)
    short = f.value(f"trunc i64 {f.value(f'or i64 {result}, {sign}')} to i16")
    value = f.value(f"bitcast i16 {short} to {narrow.type}")
    return KernelSource(symbol, f.finish(f"ret {narrow.type} {value}"))


def _rounded(f: FunctionBuilder, value: str, shift: str) -> str:
    """value >> shift, to nearest, ties to even; shift is in [1, 63]."""
    odd = f.value(f"and i64 {f.value(f'lshr i64 {value}, {shift}')}, 1")
    half = f.value(f"shl i64 1, {f.value(f'sub i64 {shift}, 1')}")
    nudge = f.value(f"add i64 {f.value(f'sub i64 {half}, 1')}, {odd}")
    return f.value(f"lshr i64 {f.value(f'add i64 {value}, {nudge}')}, {shift}")


def _extension(symbol: str, narrow: _Format, wide: _Format) -> KernelSource:
    """wide(x) for a narrow x: exact."""
    f = FunctionBuilder(f"{wide.type} @{symbol}({narrow.type} %x)")
    bits = f.value(f"zext i16 {f.value(f'bitcast {narrow.type} %x to i16')} to i64")
    magnitude = f.value(f"and i64 {bits}, {(1 << 15) - 1}")
    cut, rebias = wide.mantissa - narrow.mantissa, wide.bias - narrow.bias
    normal = f.add(f.value(f"shl i64 {magnitude}, {cut}"), str(rebias << wide.mantissa))
    special = f.value(f"or i64 {f.value(f'shl i64 {magnitude}, {cut}')}, {wide.infinity}")
    # Subnormal numbers: move the leading bit to where a normal number has its hidden one.
    zeros = f.intrinsic("llvm.ctlz.i64", "i64", [("i64", magnitude), ("i1", "false")])
    up = f.value(f"and i64 {f.sub(zeros, str(63 - wide.mantissa))}, 63")
    shifted = f.value(f"xor i64 {f.value(f'shl i64 {magnitude}, {up}')}, {1 << wide.mantissa}")
    exponent = f.sub(str(rebias + cut + 1), up)
    subnormal = f.value(f"or i64 {shifted}, {f.value(f'shl i64 {exponent}, {wide.mantissa}')}")
    result = f.select(f.compare("ult", magnitude, str(1 << narrow.mantissa)), subnormal, normal)
    result = f.select(f.compare("uge", magnitude, str(narrow.infinity)), special, result)
    result = f.select(f.compare("eq", magnitude, "0"), "0", result)
    sign = f.value(f"shl i64 {f.value(f'and i64 {bits}, {1 << 15}')}, {wide.bits - 16}")
    whole = f.value(f"trunc i64 {f.value(f'or i64 {result}, {sign}')} to i{wide.bits}")
    value = f.value(f"bitcast i{wide.bits} {whole} to {wide.type}")
    declares = "\n".join(f.declares.values())
    return KernelSource(symbol, f.finish(f"ret {wide.type} {value}") + declares + "\n")


# By the name that LLVM calls.
SOFTFLOAT: dict[str, KernelSource] = {
    source.symbol: source for source in (
        _truncation("__truncdfhf2", _DOUBLE, _HALF), _truncation("__truncsfhf2", _FLOAT, _HALF),
        _truncation("__truncdfbf2", _DOUBLE, _BFLOAT), _truncation("__truncsfbf2", _FLOAT, _BFLOAT),
        _extension("__extendhfsf2", _HALF, _FLOAT))
}
