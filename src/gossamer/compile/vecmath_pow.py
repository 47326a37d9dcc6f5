"""x^y on vectors, with C's special cases. Layer 2.

The one idea: |x|^y = 2^(y log2 |x|), where an error of log2 is multiplied by up to 1075 ln 2, so
it needs about 11 bits more than the result: float64 carries it as a sum of two floats (T. Dekker,
A floating-point technique for extending the available precision, 1971), float32 computes it in
float64. The sign and the special cases are selects at the end.
"""

from __future__ import annotations

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_exp import exp2_of_sum, exp2_rough
from gossamer.compile.vecmath_log import split
from gossamer.compile.vecmath_tables import POW_36, POW_64
from gossamer.core.dtype import bool_

__all__ = ["power"]

_INF = float("inf")
_LOG2_E = (1.4426950408889634, 2.0355273740931033e-17)  # mpmath: 1/ln 2 as a sum of two float64
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)  # likewise


def _two_sum(e: Memory, a: str, b: str) -> tuple[str, str]:
    """a + b = high + low exactly, if |a| >= |b| or a = 0 (Dekker)."""
    high = e.add(a, b)
    return high, e.sub(b, e.sub(high, a))


def _two_product(e: Memory, a: str, b: str) -> tuple[str, str]:
    """a * b = high + low exactly."""
    high = e.mul(a, b)
    return high, e.fma(a, b, e.neg(high))


def _log_of_mantissa(e: Memory, f: str) -> tuple[str, str]:
    """log(1 + f) = high + low with about 65 bits, in float64.

    log(1 + f) = 2 s + (2/3) s^3 + s^5 P(s^2), s = f / (2 + f). s and the cubic term are carried
    as sums; P's term is below 2^-12 of the result, so 53 bits are enough for it.
    """
    d, d_low = _two_sum(e, e.const(2), f)
    inverse = e.reciprocal(d)
    s = e.mul(f, inverse)
    s_low = e.mul(e.fma(e.neg(s), d_low, e.fma(e.neg(s), d, f)), inverse)
    z, z_low = _two_product(e, s, s)
    z_low = e.fma(e.add(s, s), s_low, z_low)
    cube, cube_low = _two_product(e, s, z)
    cube_low = e.fma(s, z_low, e.fma(s_low, z, cube_low))
    third, third_low = (e.const(c) for c in _TWO_THIRDS)
    c, c_low = _two_product(e, cube, third)
    c_low = e.fma(cube, third_low, e.fma(cube_low, third, c_low))
    t, t_low = _two_sum(e, c, e.mul(e.mul(cube, z), e.polynomial(z, POW_64)))
    high, low = _two_sum(e, e.add(s, s), t)
    return high, e.add(low, e.add(e.add(s_low, s_low), e.add(t_low, c_low)))


def _log2_in_two(e: Memory, x: str) -> tuple[str, str]:
    """log2(x) = high + low for positive finite float64."""
    k, f = split(e, x)
    m, m_low = _log_of_mantissa(e, f)
    factor, factor_low = (e.const(c) for c in _LOG2_E)
    p, p_low = _two_product(e, m, factor)
    p_low = e.fma(m_low, factor, e.fma(m, factor_low, p_low))
    high, low = _two_sum(e, k, p)
    return _two_sum(e, high, e.add(low, p_low))


def _double(e: Memory, magnitude: str, y: str) -> str:
    """magnitude^y in float64; both ends of the range of magnitudes are set right here."""
    high, low = _log2_in_two(e, magnitude)
    high = e.select(e.eq(magnitude, e.const(0)), e.const(-_INF), high)
    high = e.select(e.eq(magnitude, e.const(_INF)), magnitude, high)
    product, error = _two_product(e, y, high)
    return exp2_of_sum(e, product, e.fma(y, low, error))


def _single(e: Memory, magnitude: str, y: str) -> str:
    """magnitude^y in float32, through float64 with polynomials cut to what float32 needs."""
    w = e.wide
    x = e.cast(magnitude, w.dtype)  # normal in float64, even if denormal in float32
    k, f = split(w, x, normal=True)
    s = w.div(f, w.add(f, w.const(2)))
    z = w.mul(s, s)
    m = w.fma(w.mul(s, z), w.polynomial(z, POW_36), w.add(s, s))
    log2 = w.fma(m, w.const(_LOG2_E[0]), k)
    log2 = w.select(w.eq(x, w.const(0)), w.const(-_INF), log2)
    log2 = w.select(w.eq(x, w.const(_INF)), x, log2)
    t = w.mul(e.cast(y, w.dtype), log2)
    t = w.minimum(w.maximum(t, w.const(-160)), w.const(160))
    return w.cast(exp2_rough(w, t), e.dtype)


def power(e: Memory, x: str, y: str) -> str:
    """x^y with every special case of C's pow (IEEE 754-2019, 9.2.1).

    x^0 = 1^y = 1 even for NaN; a negative x needs an integral y, odd ones keep the sign.
    """
    b = e.of(bool_)
    magnitude = e.abs(x)
    result = (_single if e.bits == 32 else _double)(e, magnitude, y)
    result = e.select(b.or_(e.isnan(x), e.isnan(y)), e.add(x, y), result)
    half = e.mul(y, e.const(0.5))
    integral = e.eq(e.trunc(y), y)
    odd = b.and_(integral, e.ne(e.trunc(half), half))
    result = e.select(b.and_(odd, e.signbit(x)), e.neg(result), result)
    domain = b.and_(b.and_(e.lt(x, e.const(0)), e.gt(x, e.const(-_INF))), b.not_(integral))
    result = e.select(domain, e.const(float("nan")), result)
    minus_one = b.and_(e.eq(x, e.const(-1)), e.isinf(y))
    one = b.or_(minus_one, b.or_(e.eq(x, e.const(1)), e.eq(y, e.const(0))))
    return e.select(one, e.const(1), result)
