"""sin, cos, tan and their inverses on vectors. Layer 2.

The one idea: |x| = j pi/2 + r with |r| <= pi/4 by three fused multiply-adds with pi/2 as a sum of
three floats (Cody and Waite 1980): exact as long as j has few bits. Larger arguments are rare and
take a branch: float32 multiplies by 2/pi held as a string of bits (M. Payne and R. Hanek, Radian
reduction for trigonometric functions, 1983), float64 calls C's library lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gossamer.compile.emitter_memory import Memory
from gossamer.compile.vecmath_tables import (
    ASIN_32,
    ASIN_64,
    ATAN_32,
    ATAN_64,
    COS_32,
    COS_64,
    SIN_32,
    SIN_64,
    TAN_32,
)
from gossamer.core.dtype import bool_, int32, int64

__all__ = ["acos", "asin", "atan", "atan2", "cos", "sin", "tan"]

_TWO_OVER_PI = 0.6366197723675814
# mpmath: pi/2 as a sum of three float32 (float64).
_HALF_PI = {32: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
            64: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)}
# Below it j < 2^17 (2^33), so that r has no more bits than a float and j's own rounding error
# moves r beyond pi/4 by less than 0.5 %, the margin of the polynomials.
_LIMIT = {32: 1.0e5, 64: 1.0e10}
_MAGIC = {32: 1.5 * 2.0 ** 23, 64: 1.5 * 2.0 ** 52}  # adding it rounds to an integer
# The binary digits of 2/pi after 32 zeros, in words of 32 (mpmath).
_DIGITS = (0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)


class _Angle(NamedTuple):
    """a = j pi/2 + r + low, |r| <= pi/4."""

    j: str  # integer lanes whose two lowest bits are valid
    r: str
    low: str


_Finish = Callable[[Memory, _Angle], str]


def _reduce(e: Memory, a: str, precise: bool) -> _Angle:
    """The angle of 0 <= a <= the limit; `low` is 0 unless `precise`."""
    magic = e.const(_MAGIC[e.bits])
    t = e.fma(a, e.const(_TWO_OVER_PI), magic)
    j, minus_j = e.to_bits(t), e.sub(magic, t)
    first, second, third = (e.const(part) for part in _HALF_PI[e.bits])
    r = e.fma(minus_j, first, a)  # exact
    if not precise:
        return _Angle(j, e.fma(minus_j, third, e.fma(minus_j, second, r)), e.const(0))
    product = e.mul(minus_j, second)
    product_low = e.fma(minus_j, second, e.neg(product))
    total = e.add(r, product)  # and what it rounds off, by D. Knuth's two-sum
    added = e.sub(total, r)
    low = e.add(e.sub(r, e.sub(total, added)), e.sub(product, added))
    return _Angle(j, total, e.fma(minus_j, third, e.add(low, product_low)))


def _words(e: Memory, start: str, count: int) -> list[str]:
    """`count` words of 32 digits of 2/pi, from digit `start` of the padded string on."""
    i = e.of(int32)
    e.builder.declare("gossamer.two_over_pi", "@gossamer.two_over_pi = private unnamed_addr "
                      f"constant [{len(_DIGITS)} x i32] "
                      f"[{', '.join(f'i32 {d}' for d in _DIGITS)}], align 4")
    first = i.cast(i.lshr(start, i.const(5)), int64)
    shift = i.and_(start, i.const(31))
    wide = e.of(int64)
    raw = [i.gather("@gossamer.two_over_pi", wide.add(first, wide.const(n)))
           for n in range(count + 1)]
    return [i.intrinsic("fshl", raw[n], raw[n + 1], shift) for n in range(count)]


def _reduce_huge(e: Memory, a: str) -> _Angle:
    """The angle for float32 of 2^16 and more: 96 digits of 2/pi times the 24 bits of a.

    a = m 2^(E - 23). Digits of 2/pi whose product with m is a multiple of 4 are skipped; the
    product with the next 96, modulo 2^96, is the quadrant (2 bits) and a fraction of 94 bits.
    """
    i, w = e.of(int32), e.of(int64)
    bits = e.to_bits(a)
    exponent = i.sub(i.lshr(bits, i.const(23)), i.const(127))
    mantissa = i.or_(i.and_(bits, i.const(0x7FFFFF)), i.const(0x800000))
    # For finite a: 16 <= E <= 127, and 32 digits of padding. Infinity and NaN read digit 135.
    first, second, third = _words(e, i.add(exponent, i.const(7)), 3)
    m, low = i.cast(mantissa, int64), w.const(0xFFFFFFFF)
    p2 = w.mul(m, w.and_(i.cast(third, int64), low))
    p1 = w.add(w.mul(m, w.and_(i.cast(second, int64), low)), w.lshr(p2, w.const(32)))
    p0 = w.shl(w.add(i.cast(i.mul(mantissa, first), int64), w.lshr(p1, w.const(32))), w.const(32))
    turns = w.or_(p0, w.and_(p1, low))  # in units of 2^-62 quarter turns
    j = w.lshr(w.add(turns, w.const(1 << 61)), w.const(62))
    rest = w.sub(turns, w.shl(j, w.const(62)))
    d = e.wide
    exact = d.mul(w.cast(rest, d.dtype), d.const(_HALF_PI[64][0] * 2.0 ** -62))
    r = d.cast(exact, e.dtype)
    return _Angle(w.cast(j, int32), r, d.cast(d.sub(exact, e.cast(r, d.dtype)), e.dtype))


def _periodic(e: Memory, x: str, finish: _Finish, name: str, precise: bool = False) -> str:
    """`finish` of |x|'s angle, with the slow path for huge, infinite and NaN lanes."""
    a = e.abs(x)
    y = finish(e, _reduce(e, a, precise))
    easy = e.le(a, e.const(_LIMIT[e.bits]))
    hard = e.of(bool_).not_(easy)

    def rare(f: Memory, a: str) -> str:
        if f.bits == 64:
            return f.libm(name, a)
        return f.select(f.isfinite(a), finish(f, _reduce_huge(f, a)), f.const(float("nan")))

    def slow() -> str:
        # Easy lanes would read outside of the digits of 2/pi.
        huge = e.select(hard, a, e.const(_LIMIT[e.bits]))
        return e.select(hard, e.outlined(name + "_of_huge", rare, huge), y)

    return e.if_any(hard, slow, y)


def _sine(e: Memory, r: str) -> str:
    z = e.mul(r, r)
    return e.fma(e.mul(r, z), e.polynomial(z, SIN_32 if e.bits == 32 else SIN_64), r)


def _cosine(e: Memory, r: str) -> str:
    z = e.mul(r, r)
    start = e.fma(z, e.const(-0.5), e.const(1))
    return e.fma(e.mul(z, z), e.polynomial(z, COS_32 if e.bits == 32 else COS_64), start)


def _is_odd(e: Memory, j: str) -> str:
    i = e.integer
    return i.ne(i.and_(j, i.const(1)), i.const(0))


def _flip(e: Memory, y: str, bit: str) -> str:
    """y with its sign flipped where bit 1 of `bit` is set."""
    i = e.integer
    sign = i.shl(i.and_(bit, i.const(2)), i.const(e.bits - 2))
    return e.from_bits(i.xor(e.to_bits(y), sign))


def _odd_function(e: Memory, y: str, x: str) -> str:
    """y with its sign flipped where x is negative (-0.0 too)."""
    i = e.integer
    sign = i.and_(e.to_bits(x), i.const(-1 << (e.bits - 1)))
    return e.from_bits(i.xor(e.to_bits(y), sign))


def sin(e: Memory, x: str) -> str:
    """Sine, for every argument."""
    def finish(e: Memory, angle: _Angle) -> str:
        j, r, _ = angle
        return _flip(e, e.select(_is_odd(e, j), _cosine(e, r), _sine(e, r)), j)

    return _odd_function(e, _periodic(e, x, finish, "sin"), x)


def cos(e: Memory, x: str) -> str:
    """Cosine, for every argument."""
    def finish(e: Memory, angle: _Angle) -> str:
        j, r, _ = angle
        y = e.select(_is_odd(e, j), _sine(e, r), _cosine(e, r))
        return _flip(e, y, e.integer.add(j, e.integer.const(1)))

    return _periodic(e, x, finish, "cos")


def _tangent(e: Memory, angle: _Angle) -> str:
    j, r, low = angle
    odd = _is_odd(e, j)
    if e.bits == 32:
        z = e.mul(r, r)
        # tan(r + low) = tan(r) + low (1 + r^2) + ...: at pi/4 the error of r counts 1.6 times.
        rest = e.fma(e.mul(r, z), e.polynomial(z, TAN_32), e.fma(low, z, low))
        top, below = e.add(r, rest), e.const(1)
    else:
        top, below = _sine(e, r), _cosine(e, r)
    return e.div(e.select(odd, e.neg(below), top), e.select(odd, top, below))


def tan(e: Memory, x: str) -> str:
    """Tangent, for every argument."""
    return _odd_function(e, _periodic(e, x, _tangent, "tan", e.bits == 32), x)


# inverses -----------------------------------------------------------------------------------------
def _asin_parts(e: Memory, a: str) -> tuple[str, str, str]:
    """(is a > 1/2, t, asin(t) - t); t = a, or t = sqrt((1 - a)/2): asin(a) = pi/2 - 2 asin(t)."""
    large = e.gt(a, e.const(0.5))
    z = e.select(large, e.fma(a, e.const(-0.5), e.const(0.5)), e.mul(a, a))
    t = e.select(large, e.sqrt(z), a)
    tail = e.mul(e.mul(t, z), e.polynomial(z, ASIN_32 if e.bits == 32 else ASIN_64))
    return large, t, tail


def asin(e: Memory, x: str) -> str:
    """Inverse sine in [-pi/2, pi/2]; NaN outside [-1, 1]."""
    high, low, _ = _HALF_PI[e.bits]
    large, t, tail = _asin_parts(e, e.abs(x))
    rough = e.fma(e.const(-2), t, e.const(high))
    lost = e.fma(e.const(-2), t, e.sub(e.const(high), rough))  # what it rounds off
    far = e.add(rough, e.fma(e.const(-2), tail, e.add(lost, e.const(low))))
    return e.copysign(e.select(large, far, e.add(t, tail)), x)


def acos(e: Memory, x: str) -> str:
    """Inverse cosine in [0, pi]; NaN outside [-1, 1]."""
    high, low, _ = _HALF_PI[e.bits]
    large, t, tail = _asin_parts(e, e.abs(x))
    near = e.fma(e.const(2), tail, e.add(t, t))  # acos(|x|) if |x| > 1/2
    away = e.add(e.sub(e.const(2 * high), e.add(t, t)), e.fma(e.const(-2), tail, e.const(2 * low)))
    far = e.select(e.lt(x, e.const(0)), away, near)
    small = e.copysign(t, x)
    small_tail = e.copysign(tail, x)
    middle = e.sub(e.const(high), e.sub(small, e.sub(e.const(low), small_tail)))
    return e.select(large, far, middle)


def _atan_of_unit(e: Memory, q: str) -> str:
    """atan(q) for |q| <= 1."""
    z = e.mul(q, q)
    return e.fma(e.mul(q, z), e.polynomial(z, ATAN_32 if e.bits == 32 else ATAN_64), q)


def atan(e: Memory, x: str) -> str:
    """Inverse tangent in [-pi/2, pi/2]: atan(a) = pi/2 + atan(-1/a) for a > 1."""
    high, low, _ = _HALF_PI[e.bits]
    a = e.abs(x)
    large = e.gt(a, e.const(1))
    q = e.div(e.select(large, e.const(-1), a), e.select(large, a, e.const(1)))
    p = _atan_of_unit(e, q)
    far = e.add(e.const(high), e.add(p, e.const(low)))
    return e.copysign(e.select(large, far, p), x)


def atan2(e: Memory, y: str, x: str) -> str:
    """The angle of the point (x, y) in [-pi, pi]; zeros and infinities as in C."""
    b = e.of(bool_)
    high, low, _ = _HALF_PI[e.bits]
    ay, ax = e.abs(y), e.abs(x)
    steep = e.gt(ay, ax)
    q = e.div(e.select(steep, ax, ay), e.select(steep, ay, ax))
    # Equal magnitudes have the ratio 1, infinities too; but 0/0 counts as 0.
    same = e.select(e.eq(ax, e.const(0)), e.const(0), e.const(1))
    p = _atan_of_unit(e, e.select(e.eq(ay, ax), same, q))
    left = e.signbit(x)
    p = e.select(b.xor(steep, left), e.neg(p), p)
    units = e.select(steep, e.const(1), e.select(left, e.const(2), e.const(0)))
    angle = e.fma(units, e.const(high), e.fma(units, e.const(low), p))
    angle = e.copysign(angle, y)
    return e.select(b.or_(e.isnan(x), e.isnan(y)), e.add(x, y), angle)
