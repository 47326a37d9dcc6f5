"""All 2^32 float32 inputs of a function of one operand, in one native loop.

The float32 kernel is compared with the float64 kernel of the same function (itself held to NumPy's
long double and mpmath by test_vecmath.py), value by value in registers; what reaches memory is one
error for each input. `python -m tests.compile.exhaustive [NAME ...]` prints a table: the largest
error in units of the last place, where it is, and the seconds of CPU time that the walk took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gossamer.compile.emitter import Emitter
from gossamer.core.dtype import bool_, float32, float64, int32, int64
from tests.compile.kernels import WIDEST, Loop

FUNCTIONS = ("exp", "exp2", "expm1", "sigmoid", "tanh", "sinh", "cosh", "log", "log2", "log10",
             "log1p", "asinh", "acosh", "atanh", "sin", "cos", "tan", "asin", "acos", "atan", "erf",
             "erfc", "erfinv", "lgamma", "digamma", "gelu", "rsqrt")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Worst:
    """The largest error of a function over a range of bit patterns."""

    name: str
    ulp: float
    at: float
    seconds: float


def _error(e: Emitter, name: str, x: str) -> str:
    """|f32(x) - f64(x)| in float32 units of the last place of f64(x), as float32.

    Infinite where only one is NaN, or both are zeros of different signs. 2^128 stands for
    infinity, as the next number after the largest.
    """
    e = e.strict
    d, i = e.of(float64).strict, e.of(int64)
    y = getattr(e, name)(x)
    got, want = e.cast(y, float64), getattr(d, name)(e.cast(x, float64))
    nan, other = d.isnan(got), d.isnan(want)
    differ = e.of(bool_).xor(nan, other)
    zeros = e.of(bool_).and_(d.eq(got, d.const(0)), d.eq(want, d.const(0)))
    signs = i.lt(i.xor(d.to_bits(got), d.to_bits(want)), i.const(0))
    wrong = e.of(bool_).or_(differ, e.of(bool_).and_(zeros, signs))
    low, high = d.const(-2.0**128), d.const(2.0**128)
    got, want = (d.fmin(d.fmax(v, low), high) for v in (got, want))
    exponent = i.lshr(d.to_bits(d.abs(want)), i.const(52))
    # Denormal numbers have the unit of 2^-126; infinity that of the numbers before it.
    exponent = i.minimum(i.maximum(exponent, i.const(1023 - 126)), i.const(1023 + 127))
    scale = d.from_bits(i.shl(i.sub(i.const(2 * 1023 + 23), exponent), i.const(52)))
    error = d.mul(d.abs(d.sub(got, want)), scale)
    error = d.select(nan, d.const(0), error)
    return d.cast(d.select(wrong, d.const(float("inf")), error), float32)


def walker(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function (start, out): errors of the inputs whose bits are start[0], start[0] + 1, ..."""
    def rule(e: Emitter, start: str, index: str, out: str) -> None:
        i = e.of(int32)
        first = e.builder.load("i32", start, 4)
        here = e.builder.value(f"trunc i64 {index} to i32")
        bits = i.add(i.splat(e.builder.value(f"add i32 {first}, {here}")), i.lanes())
        e.store(_error(e, name, e.from_bits(bits)), out)

    return Loop.raw(rule, float32, WIDEST, "host", moving=False)


def worst(name: str, start: int = 0, stop: int = 1 << 32) -> Worst:
    """The largest error of a function over the inputs with bits in [start, stop)."""
    walk, out, begin = walker(name), np.empty(_CHUNK, np.float32), time.thread_time()
    most, at = -1.0, 0
    for first in range(start, stop, _CHUNK):
        walk(np.array([first], np.uint32), out)
        i = int(out.argmax())
        if not out[i] <= most:
            most, at = float(out[i]), first + i
    x = float(np.array([at], np.uint32).view(np.float32)[0])
    return Worst(name, most, x, time.thread_time() - begin)


def main(names: list[str]) -> None:
    for name in names or FUNCTIONS:
        found = worst(name)
        print(f"| {name} | {found.ulp:.3f} | {found.at!r} | {found.seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
