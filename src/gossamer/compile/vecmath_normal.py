"""GELU and its derivative on vectors, by the tail of the normal distribution. Layer 2.

The one idea: with a = |x| and the tail q = Phi(-a), gelu(x) = max(x, 0) - a q and its derivative
is d = q - a phi(a) left of 0 and 1 - d right of it. Nothing cancels, and q = e^(-a^2/2) R(a)
keeps its relative accuracy down to denormals: R varies slowly (W. J. Cody, Rational Chebyshev
approximations for the error function, 1969), and a^2 is taken with the half that its rounding
loses. x (1 + erf(x/sqrt(2))) / 2 instead has no correct digit below x = -5.6.

In AVX-512's registers R (times a, or less a phi(0)) is a polynomial on each of 16 pieces; elsewhere
one polynomial serves all a, which costs digits in the far tail: at most 2 units of the last place
with AVX-512, at most 8 without, at the speed of the form with erf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_exp import exp
from gossamer.compile.vecmath_special import erfcx_positive
from gossamer.compile.vecmath_tables import (
    GELU_EXP_32,
    GELU_PIECES,
    GELU_SLOPE_PIECES,
    GELU_TAIL_32,
)

__all__ = ["gelu", "gelu_slope"]

_PEAK = 1 / math.sqrt(2 * math.pi)  # phi(0)
_LN_4 = 45426 / 2 ** 15  # ln 4 with 16 bits; tools/minimax.py knows it too
_ETA = 2 * math.log(2) / _LN_4 - 1  # see _bell_in_parts
# From here on a phi(a) is below half of the least denormal.
_ALL_32, _ALL_64 = 15.0, 39.0


def _magnitude(e: Memory, x: str) -> str:
    """|x|, up to where the tail is 0; AVX-512's scalef leaves out what is beyond by itself."""
    a = e.abs(x)
    if e.zmm and e.bits == 32:
        return a
    return e.minimum(a, e.const(_ALL_32 if e.bits == 32 else _ALL_64))


def gelu(e: Memory, x: str) -> str:
    """x Phi(x); -0.0 for -infinity, which is the limit."""
    positive = e.maximum(x, e.const(-0.0))  # whose sign is that of a product that vanishes
    if e.bits == 64:
        a = _magnitude(e, x)
        return e.sub(positive, e.mul(_bell(e, a), e.mul(a, _ratio_64(e, a))))
    a = _magnitude(e, x)
    r, p, scale = _bell_in_parts(e, a)
    if not e.zmm:
        ratio = _ratio_32(e, a)
        return e.sub(positive, scale(e.mul(a, e.fma(p, e.mul(r, ratio), ratio))))
    start, t, slope = _by_pieces(e, a, GELU_PIECES)
    # (1 + r p) (start + t slope), with the rounding errors of the smaller terms only.
    smaller = e.fma(t, slope, e.mul(p, e.mul(r, e.fma(t, slope, start))))
    return e.sub(positive, scale(e.add(start, smaller)))


def gelu_slope(e: Memory, x: str) -> str:
    """Phi(x) + x phi(x), the derivative of gelu."""
    if e.bits == 64:
        a = _magnitude(e, x)
        d = e.mul(_bell(e, a), e.fma(a, e.const(-_PEAK), _ratio_64(e, a)))
    else:
        a = _magnitude(e, x)
        r, p, scale = _bell_in_parts(e, a)
        if e.zmm:
            start, t, slope = _by_pieces(e, a, GELU_SLOPE_PIECES)
            d = e.fma(t, slope, start)
        else:
            peak = e.fma(e.mul(a, a), e.const(_PEAK * _ETA / 2), e.const(_PEAK))
            d = e.fma(e.neg(a), peak, _ratio_32(e, a))
        d = scale(e.fma(p, e.mul(r, d), d))
    return e.select(e.lt(x, e.const(0)), d, e.sub(e.const(1), d))


# float64 -----------------------------------------------------------------------------------------


def _bell(e: Memory, a: str) -> str:
    """e^(-a^2/2) in float64: -a^2/2 = s + lost."""
    half = e.mul(a, e.const(-0.5))
    s = e.mul(half, a)
    return exp(e, s, e.fma(half, a, e.neg(s)))


def _ratio_64(e: Memory, a: str) -> str:
    """R(a) = e^(a^2/2) Phi(-a) in float64."""
    return e.mul(e.const(0.5), erfcx_positive(e, e.mul(a, e.const(math.sqrt(0.5)))))


# float32 -----------------------------------------------------------------------------------------


def _bell_in_parts(e: Memory, a: str) -> tuple[str, str, Callable[[str], str]]:
    """(r, p, a function that multiplies by 2^n): e^(-a^2/2) = (1 + r p) 2^n e^(eta a^2/2).

    e^(-a^2/2) = 2^n e^r with an integer n, and 2 r = -a^2 - n ln 4. In the place of ln 4 stands a
    number of so few bits that its product with n is exact, so that a fused a^2 + n ln 4 loses
    nothing of a^2. By that r is wrong by a share eta of r + a^2/2; the coefficients of p
    contain the first term, and the tables of pieces the second.
    """
    t = e.fma(e.mul(a, a), e.const(-1 / _LN_4), e.const(1.5 * 2.0 ** 23))
    n = e.sub(t, e.const(1.5 * 2.0 ** 23))
    r = e.fma(a, a, e.mul(n, e.const(_LN_4)))  # -2 r
    # NaN is within, so that it comes out; infinity is not.
    within = e.builder.value(f"fcmp ult {e.t} {a}, {e.const(_ALL_32)}")
    if e.zmm:
        return r, e.polynomial(r, GELU_EXP_32), lambda x: e.scalef(x, n, within)
    i = e.integer  # 2^n = 2^(n + 64) 2^-64, where n + 64 is the exponent of a normal number
    high = e.from_bits(i.add(i.shl(e.to_bits(t), i.const(23)), i.const((127 + 64) << 23)))
    low = e.select(within, e.const(2.0 ** -64), e.const(0))
    return r, e.polynomial(r, GELU_EXP_32), lambda x: e.mul(e.mul(x, high), low)


def _ratio_32(e: Memory, a: str) -> str:
    """R(a) e^(eta a^2/2) where there are no registers for pieces."""
    u = e.div(e.sub(a, e.const(2)), e.add(a, e.const(2)))
    return e.polynomial(u, GELU_TAIL_32)


def _by_pieces(e: Memory, a: str,
               pieces: Sequence[Sequence[float]]) -> tuple[str, str, str]:
    """(f(c), t, Q(t)) of f(a) = f(c) + t Q(t), c the centre of a's piece and t = a - c."""
    centres, starts, *slopes = pieces
    i = e.integer
    # Two bits of the exponent of 1.5 + 1.5 a and two of its fraction: a quarter of an octave.
    index = i.lshr(e.to_bits(e.fma(a, e.const(1.5), e.const(1.5))), i.const(21))
    t = e.sub(a, e.pick(centres, index))
    slope = e.pick(slopes[-1], index)
    for column in reversed(slopes[:-1]):
        slope = e.fma(slope, t, e.pick(column, index))
    return e.pick(starts, index), t, slope
