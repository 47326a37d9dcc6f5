"""Error functions, gamma functions and hypot on vectors. Layer 2.

The one idea: erf near 0 is x times a polynomial in x^2; beyond 1 it is 1 - erfc(x), and erfc is
exp(-x^2) times a slowly varying function (M. Shepherd and J. Laframboise, Chebyshev approximation
of (1 + 2x) exp(x^2) erfc(x), 1981). Rare functions of float32 are computed in float64.
"""

from __future__ import annotations

import math

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_exp import exp, exp_normal
from gossamer.compile.vecmath_log import log
from gossamer.compile.vecmath_tables import (
    ERF_32,
    ERF_64,
    ERF_PIECES,
    ERF_TAIL_32,
    ERFCX_64,
    ERFINV_32,
    ERFINV_TAIL_32,
    ERFINV_TAIL_64,
)
from gossamer.compile.vecmath_trig import tan
from gossamer.core.dtype import bool_

__all__ = ["digamma", "erf", "erfc", "erfcx_positive", "erfinv", "hypot", "lgamma"]

_INF, _NAN = float("inf"), float("nan")
# Asymptotic series of digamma: B(2k) / (2k), k = 1..7 (Abramowitz and Stegun 6.3.18).
_BERNOULLI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)


def erf(e: Memory, x: str) -> str:
    """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    a = e.abs(x)
    if e.zmm and e.bits == 32:
        return _erf_by_pieces(e, x, a)
    near = e.fma(x, e.polynomial(e.mul(x, x), ERF_32 if e.bits == 32 else ERF_64), x)
    if e.bits == 32:
        t = e.minimum(a, e.const(4.0))  # erf(4) is 1 to the last bit
        complement = exp_normal(e, e.polynomial(t, ERF_TAIL_32))
    else:
        complement = _erfc_positive(e, e.minimum(a, e.const(7.0)))
    far = e.copysign(e.sub(e.const(1), complement), x)
    return e.select(e.lt(a, e.const(1)), near, far)


def _erf_by_pieces(e: Memory, x: str, a: str) -> str:
    """|x| (f(c) + t Q(t)), c the centre of |x|'s piece, where a register holds the coefficients of
    all 16 pieces: a third of the instructions of a polynomial and an exponential."""
    centres, starts, *slopes = ERF_PIECES
    a = e.minimum(a, e.const(4.0))  # erf(4) is 1 to the last bit
    # The number of the piece, round(15.5 / 4 a), is left in the low bits of a float; 4 is in 15.
    index = e.to_bits(e.fma(a, e.const(3.8749), e.const(1.5 * 2.0 ** 23)))
    t = e.sub(a, e.pick(centres, index))
    q = e.pick(slopes[-1], index)
    for column in reversed(slopes[:-1]):
        q = e.fma(q, t, e.pick(column, index))
    y = e.fma(e.mul(a, t), q, e.mul(a, e.pick(starts, index)))
    return e.copysign(e.minimum(y, e.const(1)), x)


def erfcx_positive(e: Memory, a: str) -> str:
    """e^(a^2) erfc(a) in float64 for 0 <= a <= 28."""
    u = e.div(e.sub(a, e.const(2)), e.add(a, e.const(2)))
    top, twice = e.polynomial(u, ERFCX_64), e.add(a, a)
    inverse = e.reciprocal(e.add(twice, e.const(1)))
    p = e.mul(top, inverse)  # and corrected by its remainder, which also undoes 1 + 2a's rounding
    return e.fma(e.sub(e.fma(e.neg(p), twice, top), p), inverse, p)


def _erfc_positive(e: Memory, a: str) -> str:
    """erfc(a) in float64 for 0 <= a <= 28."""
    p, square = erfcx_positive(e, a), e.mul(a, a)
    lost = e.fma(e.neg(a), a, square)  # -a^2 = -square + lost
    return e.mul(exp(e, e.neg(square), lost), p)


def erfc(e: Memory, x: str) -> str:
    """1 - erf(x) without cancellation for large x; float32 through float64."""
    if e.bits == 32:
        return e.wide.cast(erfc(e.wide, e.cast(x, e.wide.dtype)), e.dtype)
    a = e.abs(x)
    y = _erfc_positive(e, e.minimum(a, e.const(28.0)))  # 0 beyond 27.3
    y = e.select(e.lt(x, e.const(0)), e.sub(e.const(2), y), y)
    near = e.fma(x, e.polynomial(e.mul(x, x), ERF_64), x)
    return e.select(e.lt(a, e.const(0.5)), e.sub(e.const(1), near), y)


def erfinv(e: Memory, x: str) -> str:
    """The y with erf(y) = x: a polynomial in w = -log(1 - x^2) (M. Giles, Approximating the erfinv
    function, 2010); in float64 followed by one step of Halley's method."""
    w = e.neg(log(e, e.fma(e.neg(x), x, e.const(1))))
    near = e.polynomial(e.sub(w, e.const(2.5)), ERFINV_32)
    tail = ERFINV_TAIL_32 if e.bits == 32 else ERFINV_TAIL_64
    far = e.polynomial(e.sub(e.sqrt(w), e.const(3)), tail)
    central = e.lt(w, e.const(5))
    whole = e.mul(x, e.select(central, e.const(1), e.const(3)))
    y = e.fma(x, e.select(central, near, far), whole)
    if e.bits == 64:
        y = _halley(e, x, y)
    y = e.select(e.eq(x, e.const(0)), x, y)  # keeps -0.0
    end = e.eq(e.abs(x), e.const(1))
    return e.select(end, e.copysign(e.const(_INF), x), y)


def _halley(e: Memory, x: str, y: str) -> str:
    """y corrected by u / (1 + y u), u = (erf(y) - x) / erf'(y): the error is cubed."""
    # Beyond 1/2 the difference is taken between the distances from 1, where it cancels less.
    distance = e.sub(e.const(1), e.abs(x))
    outer = e.copysign(e.const(1), x)
    outer = e.mul(outer, e.sub(distance, _erfc_positive(e, e.abs(y))))
    inner = e.lt(e.abs(x), e.const(0.5))
    error = e.select(inner, e.sub(erf(e, y), x), outer)
    u = e.mul(error, e.mul(exp(e, e.mul(y, y)), e.const(math.sqrt(math.pi) / 2)))
    return e.sub(y, e.div(u, e.fma(y, u, e.const(1))))


def lgamma(e: Memory, x: str) -> str:
    """log |gamma(x)| by C's library in float64, lane by lane: exact enough, but not fast yet."""
    if e.bits == 32:
        return e.wide.cast(lgamma(e.wide, e.cast(x, e.wide.dtype)), e.dtype)
    return e.libm("lgamma", x)


def digamma(e: Memory, x: str) -> str:
    """The derivative of lgamma; relative error 1e-13 except near its zeros (absolute there).

    psi(x) = psi(x + 10) - sum of 1/(x + i), where psi(x + 10) is an asymptotic series; negative x
    by reflection: psi(x) = psi(1 - x) - pi / tan(pi x). NaN at negative integers, as PyTorch.
    """
    if e.bits == 32:
        return e.wide.cast(digamma(e.wide, e.cast(x, e.wide.dtype)), e.dtype)
    zero, one = e.const(0), e.const(1)
    negative = e.lt(x, zero)
    t = e.select(negative, e.sub(one, x), x)
    small = e.lt(t, e.const(10))
    s = e.select(small, t, one)
    top, below = one, s  # sum of 1/(s + i) = top / below
    for i in range(1, 10):
        factor = e.add(s, e.const(i))
        top, below = e.fma(top, factor, below), e.mul(below, factor)
    shifted = e.select(small, e.add(t, e.const(10)), t)
    z = e.reciprocal(e.mul(shifted, shifted))
    series = e.mul(z, e.polynomial(z, _BERNOULLI))
    y = e.sub(log(e, shifted), e.add(e.div(e.const(0.5), shifted), series))
    y = e.select(small, e.sub(y, e.div(top, below)), y)
    return _digamma_specials(e, x, y, negative)


def _digamma_specials(e: Memory, x: str, y: str, negative: str) -> str:
    fraction = e.sub(x, e.rint(x))
    cotangent = e.div(e.const(math.pi), tan(e, e.mul(fraction, e.const(math.pi))))
    pole = e.of(bool_).and_(negative, e.eq(fraction, e.const(0)))
    y = e.select(negative, e.sub(y, cotangent), y)
    y = e.select(pole, e.const(_NAN), y)
    return e.select(e.eq(x, e.const(0)), e.copysign(e.const(_INF), e.neg(x)), y)


def hypot(e: Memory, x: str, y: str) -> str:
    """sqrt(x^2 + y^2) without overflow on the way; infinite if one of them is."""
    ax, ay = e.abs(x), e.abs(y)
    if e.bits == 32:
        w = e.wide
        a, b = e.cast(ax, w.dtype), e.cast(ay, w.dtype)
        r = w.cast(w.sqrt(w.fma(a, a, w.mul(b, b))), e.dtype)
    else:
        r = _scaled_hypot(e, ax, ay)
    inf, m = e.const(_INF), e.of(bool_)
    return e.select(m.or_(e.eq(ax, inf), e.eq(ay, inf)), inf, r)


def _scaled_hypot(e: Memory, a: str, b: str) -> str:
    """Both sides times 2^-E, E the exponent of the larger one, which is multiplied back."""
    i = e.integer
    field = i.and_(e.to_bits(e.maximum(a, b)), i.const(0x7FF << 52))
    field = i.maximum(field, i.const(1 << 52))
    down = e.from_bits(i.sub(i.const(0x7FE << 52), field))
    a, b = e.mul(a, down), e.mul(b, down)
    return e.mul(e.sqrt(e.fma(a, a, e.mul(b, b))), e.from_bits(field))
