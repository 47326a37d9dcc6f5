"""exp and what follows from it, on vectors: expm1, exp2, sigmoid, tanh, sinh, cosh. Layer 2.

The one idea: x = n ln 2 + r with an integer n and |r| <= ln(2)/2; exp(x) = 2^n (1 + expm1(r)).
n is found by adding 1.5 * 2^(p-1), which leaves it in the low bits of a float, where a shift turns
it into the exponent of 2^n. No branch, no table; NaN flows through the arithmetic.

Source of the scheme: W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_tables import EXP2_32, EXP_32, EXPM1_32, EXPM1_36, EXPM1_64

__all__ = ["cosh", "exp", "exp2", "expm1", "sigmoid", "sinh", "tanh"]

_LOG2_E = 1.4426950408889634  # log2(e)
_LN_2 = 0.6931471805599453


@dataclass(frozen=True)
class _Format:
    """What the reduction needs to know about float32 and float64."""

    mantissa: int  # bits of the fraction
    bias: int  # of the exponent
    half: int  # 2^half times itself stays finite and covers half of the range of exponents
    ln2: tuple[float, float]  # ln 2 = high + low, high rounded to the format
    least: float  # exp is below half of the smallest denormal here
    largest: float  # exp overflows here
    poly: tuple[float, ...]  # expm1(r) = r + r^2 P(r)
    whole: tuple[float, ...]  # exp(r)
    base2: tuple[float, ...]  # 2^r for |r| <= 1/2; empty: by `whole`

    @property
    def magic(self) -> float:
        return 1.5 * 2.0 ** self.mantissa


# ln 2 as a sum: mpmath, log(2) rounded to 24 (53) bits, and the rest rounded likewise.
_F32 = _Format(23, 127, 64, (0.6931471824645996, -1.9046542121259336e-09), -104.0, 89.0, EXPM1_32,
               (1.0, 1.0, *EXP_32), (1.0, *EXP2_32))
_F64 = _Format(52, 1023, 512, (_LN_2, 2.3190468138462996e-17), -746.0, 710.0, EXPM1_64,
               (1.0, 1.0, *EXPM1_64), ())


def _format(e: Memory) -> _Format:
    return _F32 if e.bits == 32 else _F64


def _split(e: Memory, x: str) -> tuple[str, str, str]:
    """(n in the low bits of a float, n, r) of x = n ln 2 + r."""
    f = _format(e)
    t = e.fma(x, e.const(_LOG2_E), e.const(f.magic))
    n = e.sub(t, e.const(f.magic))
    r = e.fma(n, e.const(-f.ln2[0]), x)  # exact: r has no more bits than x
    return t, n, e.fma(n, e.const(-f.ln2[1]), r)


def _reduce(e: Memory, x: str) -> tuple[str, str]:
    """(n shifted to the exponent's bits, r) of x = n ln 2 + r."""
    t, _, r = _split(e, x)
    return e.integer.shl(e.to_bits(t), e.integer.const(_format(e).mantissa)), r


def _expm1_of_r(e: Memory, r: str) -> str:
    p = e.polynomial(r, _format(e).poly)
    return e.fma(e.mul(r, r), p, r)


def _power_of_two(e: Memory, shifted: str, offset: int = 0) -> str:
    """2^(n + offset); the exponent must be that of a normal number."""
    f, i = _format(e), e.integer
    return e.from_bits(i.add(shifted, i.const((f.bias + offset) << f.mantissa)))


def _scale(e: Memory, p: str, shifted: str, negative: str) -> str:
    """p 2^n for every n that does not leave the range of denormals: two factors, one rounding."""
    f, i = _format(e), e.integer
    up, down = ((f.bias + h) << f.mantissa for h in (-f.half, f.half))
    factor = e.from_bits(i.add(shifted, i.select(negative, i.const(down), i.const(up))))
    rest = e.select(negative, e.const(2.0 ** -f.half), e.const(2.0 ** f.half))
    return e.mul(e.mul(p, factor), rest)


def _leave_out(e: Memory, x: str, least: float) -> tuple[str, str]:
    """(x < least, x with those lanes set to 0): where a result is 0, nothing may underflow.

    A product that underflows takes the processor about a hundred times longer than any other, and
    such lanes are common: masked attention scores are all -inf.
    """
    nothing = e.lt(x, e.const(least))
    return nothing, e.select(nothing, e.const(0), x)


def exp(e: Memory, x: str, low: str | None = None) -> str:
    """e^x, or e^(x + low) with |low| below the last bit of x; denormal results included."""
    f = _format(e)
    if e.zmm:
        return _exp_by_scalef(e, e.minimum(x, e.const(f.largest)), low)
    nothing, x = _leave_out(e, x, f.least)
    x = e.minimum(x, e.const(f.largest))
    shifted, r = _reduce(e, x)
    if low is not None:
        r = e.add(r, low)
    p = e.polynomial(r, f.whole)
    return e.select(nothing, e.const(0), _scale(e, p, shifted, e.lt(x, e.const(0))))


def _exp_by_scalef(e: Memory, x: str, low: str | None = None, fine: bool = False) -> str:
    """e^x below overflow, by the instruction that multiplies by 2^n in the whole range; `fine`
    takes two instructions more for a rounding error less."""
    f = _format(e)
    something = e.builder.value(f"fcmp uge {e.t} {x}, {e.const(f.least)}")  # NaN is something
    _, n, r = _split(e, x)
    if low is not None:
        r = e.add(r, low)
    p = e.add(_expm1_of_r(e, r), e.const(1)) if fine else e.polynomial(r, f.whole)
    return e.scalef(p, n, something)


def exp_of_negative(e: Memory, x: str) -> str:
    """e^x for x <= 0, which saves the choice of the two factors; as exact as `sigmoid` needs it."""
    if e.zmm:
        return _exp_by_scalef(e, x, fine=True)
    f, i = _format(e), e.integer
    nothing, x = _leave_out(e, x, f.least)
    shifted, r = _reduce(e, x)
    p = e.add(_expm1_of_r(e, r), e.const(1))
    factor = e.from_bits(i.add(shifted, i.const((f.bias + f.half) << f.mantissa)))
    rest = e.select(nothing, e.const(0), e.const(2.0 ** -f.half))
    return e.mul(e.mul(p, factor), rest)


def exp_normal(e: Memory, x: str) -> str:
    """e^x where the result is known to be a normal number."""
    shifted, r = _reduce(e, x)
    return e.mul(e.polynomial(r, _format(e).whole), _power_of_two(e, shifted))


def exp2(e: Memory, x: str) -> str:
    """2^x; exact for integers."""
    f = _format(e)
    least, largest = e.const(float(-f.bias - f.mantissa - 1)), e.const(float(f.bias + 2))
    if e.zmm:
        x = e.minimum(x, largest)
        something = e.builder.value(f"fcmp uge {e.t} {x}, {least}")
        n = e.rint(x)
        return e.scalef(_exp2_of_fraction(e, e.sub(x, n)), n, something)
    nothing, x = _leave_out(e, x, float(-f.bias - f.mantissa - 1))
    x = e.minimum(x, largest)
    t = e.add(x, e.const(f.magic))
    p = _exp2_of_fraction(e, e.sub(x, e.sub(t, e.const(f.magic))))
    shifted = e.integer.shl(e.to_bits(t), e.integer.const(f.mantissa))
    return e.select(nothing, e.const(0), _scale(e, p, shifted, e.lt(x, e.const(0))))


def _exp2_of_fraction(e: Memory, r: str) -> str:
    """2^r for |r| <= 1/2."""
    f = _format(e)
    if f.base2:
        return e.polynomial(r, f.base2)
    return e.polynomial(e.mul(r, e.const(_LN_2)), f.whole)


def exp2_of_sum(e: Memory, high: str, low: str) -> str:
    """2^(high + low), |low| far below 1 (powers)."""
    f = _format(e)
    lowest = float(-f.bias - f.mantissa - 2)
    inside = e.lt(e.abs(high), e.const(2.0 * f.bias))
    high = e.minimum(e.maximum(high, e.const(lowest)), e.const(float(f.bias + 2)))
    low = e.select(inside, low, e.const(0))  # of an infinity it is NaN
    t = e.add(high, e.const(f.magic))
    r = e.add(e.sub(high, e.sub(t, e.const(f.magic))), low)
    p = e.add(_expm1_of_r(e, e.mul(r, e.const(_LN_2))), e.const(1))
    shifted = e.integer.shl(e.to_bits(t), e.integer.const(f.mantissa))
    return _scale(e, p, shifted, e.lt(high, e.const(0)))


def exp2_rough(e: Memory, x: str) -> str:
    """2^x in float64 to about 2^-32, for results that are rounded to float32; -160 <= x <= 160."""
    f = _format(e)
    t = e.add(x, e.const(f.magic))
    r = e.mul(e.sub(x, e.sub(t, e.const(f.magic))), e.const(_LN_2))
    p = e.fma(e.mul(r, r), e.polynomial(r, EXPM1_36), r)
    shifted = e.integer.shl(e.to_bits(t), e.integer.const(f.mantissa))
    scale = _power_of_two(e, shifted)
    return e.fma(p, scale, scale)


def _expm1_scaled(e: Memory, x: str, halvings: int) -> str:
    """(e^x - 1) 2^-halvings for x clamped to where 2^(n - halvings) is normal."""
    shifted, r = _reduce(e, x)
    scale = _power_of_two(e, shifted, -halvings)
    return e.fma(_expm1_of_r(e, r), scale, e.sub(scale, e.const(2.0 ** -halvings)))


def _tiny_is_itself(e: Memory, x: str, result: str) -> str:
    """`result`, but x where f(x) = x to the last bit: keeps -0.0 and denormals exact."""
    return e.select(e.lt(e.abs(x), e.const(2.0 ** (-26 if e.bits == 32 else -55))), x, result)


def expm1(e: Memory, x: str) -> str:
    """e^x - 1 without cancellation near 0."""
    f = _format(e)
    least = -0.7 * (f.mantissa + 3)  # the result is -1 to the last bit
    clamped = e.minimum(e.maximum(x, e.const(least)), e.const(f.largest))
    half = _expm1_scaled(e, clamped, 1)
    return _tiny_is_itself(e, x, e.add(half, half))


def sigmoid(e: Memory, x: str) -> str:
    """1 / (1 + e^-x), accurate down to denormals.

    With w = e^-|x| and q = 1 / (1 + w) it is q for x >= 0. For x < 0 it is w q = w - w (w q): the
    second form, fused, takes the errors of the sum and of the division times w < 1 only.
    """
    w = exp_of_negative(e, e.neg(e.abs(x)))
    q = e.reciprocal(e.add(w, e.const(1)))
    return e.select(e.lt(x, e.const(0)), e.fma(e.neg(w), e.mul(w, q), w), q)


def tanh(e: Memory, x: str) -> str:
    """tanh(x) = y = h / (h + 1) with h = expm1(2 |x|) / 2.

    Below h = 1/2 the equal y = h - h y takes the errors of the sum and the division times h only.
    """
    bound = 10.0 if e.bits == 32 else 22.0  # tanh of it is 1 to the last bit
    h = _half_expm1_of_double(e, e.minimum(e.abs(x), e.const(bound)))
    y = e.div(h, e.add(h, e.const(1)))
    if e.bits == 32:
        y = e.select(e.lt(h, e.const(0.5)), e.fma(e.neg(h), y, h), y)
    return e.copysign(y, x)


def _half_expm1_of_double(e: Memory, a: str) -> str:
    """expm1(2 a) / 2 for 0 <= a <= 22, without a step for the doubling: 2 a = n ln 2 + 2 s.

    float32 leaves out what ln 2 has beyond its first part: n times it is 2e-9 of the result where
    n = 1, and tanh takes it times 1 / (h + 1), which halves with every n.
    """
    f = _format(e)
    t = e.fma(a, e.const(2 * _LOG2_E), e.const(f.magic))
    n = e.sub(t, e.const(f.magic))
    s = e.fma(n, e.const(-f.ln2[0] / 2), a)
    if e.bits == 64:
        s = e.fma(n, e.const(-f.ln2[1] / 2), s)
    scale = _power_of_two(e, e.integer.shl(e.to_bits(t), e.integer.const(f.mantissa)))
    p = e.polynomial(s, tuple(c * 2.0 ** (k + 1) for k, c in enumerate(f.poly)))
    half = e.fma(e.mul(s, s), p, s)  # expm1(2 s) / 2
    return e.fma(half, scale, e.fma(scale, e.const(0.5), e.const(-0.5)))


def _clamped_magnitude(e: Memory, x: str) -> str:
    """min(|x|, a bound beyond which sinh and cosh overflow)."""
    return e.minimum(e.abs(x), e.const(_format(e).largest + 0.5))


def sinh(e: Memory, x: str) -> str:
    """sinh(x) = 2 (q + q / (4 q + 1)) with q = expm1(|x|) / 4, which cannot overflow early.

    float32 through float64: three roundings after expm1 would be too many.
    """
    if e.bits == 32:
        return e.wide.cast(sinh(e.wide, e.cast(x, e.wide.dtype)), e.dtype)
    q = _expm1_scaled(e, _clamped_magnitude(e, x), 2)
    y = e.add(q, e.div(q, e.fma(q, e.const(4), e.const(1))))
    return _tiny_is_itself(e, x, e.copysign(e.add(y, y), x))


def cosh(e: Memory, x: str) -> str:
    """cosh(x) = 2 (q + 1 / (16 q)) with q = e^|x| / 4."""
    shifted, r = _reduce(e, _clamped_magnitude(e, x))
    q = e.mul(e.add(_expm1_of_r(e, r), e.const(1)), _power_of_two(e, shifted, -2))
    y = e.add(q, e.div(e.const(1 / 16), q))
    return e.add(y, y)
