"""Logarithms and inverse hyperbolic functions on vectors. Layer 2.

The one idea: x = 2^k m with m in [sqrt(1/2), sqrt(2)), taken from the bits by subtracting those of
sqrt(1/2); log(x) = k ln 2 + log(1 + f), f = m - 1, which is exact. float32 uses a polynomial in f;
float64 uses one in s = f / (2 + f), as fdlibm's e_log.c does (Sun Microsystems, 1993).
"""

from __future__ import annotations

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_tables import LOG_32, LOG_64

__all__ = ["acosh", "asinh", "atanh", "log", "log10", "log1p", "log2", "split"]

# Constants as sums: mpmath, rounded to 24 (53) bits, and the rest rounded likewise.
_LN_2 = {32: (0.6931471824645996, -1.9046542121259336e-09),
         64: (0.6931471805599453, 2.3190468138462996e-17)}
_LOG2_E = {32: (1.4426950216293335, 1.925963033500011e-08),
           64: (1.4426950408889634, 2.0355273740931033e-17)}
_LOG10_E = {32: (0.4342944920063019, -1.0103049952192578e-08),
            64: (0.4342944819032518, 1.098319650216765e-17)}
_LOG10_2 = {32: (0.3010300099849701, -1.432098883924482e-08),
            64: (0.3010299956639812, -2.8037281277851704e-18)}
_SQRT_HALF = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}  # bits of sqrt(1/2)
_ONE = {32: 0x3F800000, 64: 0x3FF0000000000000}
_MANTISSA = {32: 23, 64: 52}
_INF, _NAN = float("inf"), float("nan")


def _exponent(e: Memory, bits: str) -> str:
    """The float k of bits whose exponent field holds k (32, signed) or k + bias (64)."""
    i = e.integer
    field = i.const(_MANTISSA[e.bits])
    if e.bits == 32:
        return i.cast(i.shr(bits, field), e.dtype)
    # AVX2 has neither a 64-bit arithmetic shift nor a conversion: k + bias is put into the low
    # bits of 2^52 and taken off again.
    k = i.or_(i.lshr(bits, field), i.const(0x4330000000000000))
    return e.sub(e.from_bits(k), e.const(2.0 ** 52 + 1023))


def split(e: Memory, x: str, normal: bool = False) -> tuple[str, str]:
    """(k, f) of x = 2^k (1 + f) for positive finite x; `normal` if it cannot be denormal."""
    i, n = e.integer, e.bits
    up = 23 if n == 32 else 54
    tiny = e.lt(x, e.const(2.0 ** (-126 if n == 32 else -1022)))
    if not normal:
        x = e.select(tiny, e.mul(x, e.const(2.0 ** up)), x)
    offset = i.sub(e.to_bits(x), i.const(_SQRT_HALF[n]))
    fraction = i.and_(offset, i.const((1 << _MANTISSA[n]) - 1))
    k = _exponent(e, offset if n == 32 else i.add(offset, i.const(_ONE[64])))
    if not normal:
        k = e.sub(k, e.select(tiny, e.const(up), e.const(0)))
    return k, e.sub(e.from_bits(i.add(fraction, i.const(_SQRT_HALF[n]))), e.const(1))


def _tail(e: Memory, f: str) -> str:
    """log(1 + f) - f."""
    half_square = e.mul(e.mul(f, f), e.const(0.5))
    if e.bits == 32:
        cube = e.mul(e.mul(f, f), f)
        return e.fma(cube, e.polynomial(f, LOG_32), e.neg(half_square))
    s = e.div(f, e.add(f, e.const(2)))
    z = e.mul(s, s)
    r = e.mul(z, e.polynomial(z, LOG_64))
    return e.fma(s, e.add(half_square, r), e.neg(half_square))


def _natural(e: Memory, k: str, f: str) -> str:
    """k ln 2 + log(1 + f)."""
    high, low = _LN_2[e.bits]
    y = e.fma(k, e.const(low), _tail(e, f))
    return e.fma(k, e.const(high), e.add(y, f))


def _specials(e: Memory, x: str, result: str, pole: float) -> str:
    """-inf at the pole, NaN below it and for NaN, inf at infinity."""
    below = e.builder.value(f"fcmp ult {e.t} {x}, {e.const(pole)}")
    result = e.select(e.eq(x, e.const(_INF)), x, result)
    result = e.select(e.eq(x, e.const(pole)), e.const(-_INF), result)
    return e.select(below, e.const(_NAN), result)


def log(e: Memory, x: str) -> str:
    """Natural logarithm."""
    k, f = split(e, x)
    return _specials(e, x, _natural(e, k, f), 0.0)


def _other_base(e: Memory, x: str, factor: tuple[float, float],
                unit: tuple[float, float]) -> str:
    """k unit + log(1 + f) factor, both constants as sums."""
    k, f = split(e, x)
    y = e.mul(_tail(e, f), e.const(factor[0]))
    y = e.fma(f, e.const(factor[1]), y)
    if unit[1]:
        y = e.fma(k, e.const(unit[1]), y)
    y = e.fma(f, e.const(factor[0]), y)
    return _specials(e, x, e.fma(k, e.const(unit[0]), y), 0.0)


def log2(e: Memory, x: str) -> str:
    """Logarithm to base 2; exact for powers of two."""
    return _other_base(e, x, _LOG2_E[e.bits], (1.0, 0.0))


def log10(e: Memory, x: str) -> str:
    """Logarithm to base 10."""
    return _other_base(e, x, _LOG10_E[e.bits], _LOG10_2[e.bits])


def log1p(e: Memory, x: str) -> str:
    """log(1 + x), accurate near 0: 1 + x = 2^k (1 + f) with f = 2^-k x + (2^-k - 1) fused.

    2^-k is formed as 2^(2-k) / 4, since k reaches the largest exponent plus one.
    """
    i, n = e.integer, e.bits
    offset = i.sub(e.to_bits(e.add(x, e.const(1))), i.const(_SQRT_HALF[n]))
    exponent = i.and_(offset, i.const(-(1 << _MANTISSA[n])))  # k in place
    scale = e.from_bits(i.sub(i.const(_ONE[n] + (2 << _MANTISSA[n])), exponent))
    f = e.fma(e.mul(x, e.const(0.25)), scale, e.fma(scale, e.const(0.25), e.const(-1)))
    k = _exponent(e, exponent if n == 32 else i.add(exponent, i.const(_ONE[64])))
    result = _specials(e, x, _natural(e, k, f), -1.0)
    # Keeps -0.0, and denormals of which a quarter would lose bits.
    return e.select(e.lt(e.abs(x), e.const(2.0 ** (-26 if n == 32 else -55))), x, result)


def asinh(e: Memory, x: str) -> str:
    """asinh(x) = log1p(a + a^2 / (1 + sqrt(1 + a^2))), a = |x|; log(a) + ln 2 when a is large."""
    a = e.abs(x)
    large = e.gt(a, e.const(2.0 ** (_MANTISSA[e.bits] + 2)))
    small = e.select(large, e.const(1), a)
    square = e.mul(small, small)
    root = e.sqrt(e.add(square, e.const(1)))
    inner = e.add(small, e.div(square, e.add(root, e.const(1))))
    return e.copysign(_log1p_or_log2x(e, inner, a, large), x)


def _log1p_or_log2x(e: Memory, inner: str, a: str, large: str) -> str:
    """log1p(inner), or log(2 a) where a is `large`, by one logarithm."""
    y = log1p(e, e.select(large, a, inner))  # log1p(a) is log(a) to the last bit there
    return e.select(large, e.add(y, e.const(0.6931471805599453)), y)


def acosh(e: Memory, x: str) -> str:
    """acosh(x) = log1p(t + sqrt(2 t + t^2)), t = x - 1; NaN below 1."""
    t = e.sub(x, e.const(1))
    large = e.gt(x, e.const(2.0 ** (_MANTISSA[e.bits] + 2)))
    inner = e.add(t, e.sqrt(e.fma(t, t, e.add(t, t))))
    y = _log1p_or_log2x(e, inner, x, large)
    return e.select(e.lt(x, e.const(1)), e.const(_NAN), y)


def atanh(e: Memory, x: str) -> str:
    """atanh(x) = log1p(2 a / (1 - a)) / 2, a = |x|; NaN beyond 1. float32 through float64."""
    if e.bits == 32:
        return e.wide.cast(atanh(e.wide, e.cast(x, e.wide.dtype)), e.dtype)
    a = e.abs(x)
    y = log1p(e, e.div(e.add(a, a), e.sub(e.const(1), a)))
    return e.copysign(e.mul(y, e.const(0.5)), x)
