"""The registry of mathematical functions on vectors. Layer 2.

The one idea: a function is written once against the emitter and works for every width, float32
and float64 (float16 and bfloat16 compute in float32). Errors in units of the last place (ulp),
over denormals, zeros, infinities and NaN too, are asserted by tests/compile/test_vecmath.py: at
most 2 in float32, at most 4 in float64 (digamma: 1e-13, absolute near its zeros; gelu without
AVX-512: 8; gelu_slope: 4, and without 8, of the larger of its two terms).
"""

from __future__ import annotations

from collections.abc import Callable

from gossamer.compile import (
    vecmath_exp,
    vecmath_log,
    vecmath_normal,
    vecmath_pow,
    vecmath_special,
    vecmath_trig,
)

__all__ = ["FUNCTIONS"]

# name -> function(emitter without fast-math flags, operands...)
FUNCTIONS: dict[str, Callable[..., str]] = {
    name: getattr(module, name)
    for module, names in (
        (vecmath_exp, ("exp", "exp2", "expm1", "sigmoid", "tanh", "sinh", "cosh")),
        (vecmath_log, ("log", "log2", "log10", "log1p", "asinh", "acosh", "atanh")),
        (vecmath_trig, ("sin", "cos", "tan", "asin", "acos", "atan", "atan2")),
        (vecmath_special, ("erf", "erfc", "erfinv", "lgamma", "digamma", "hypot")),
        (vecmath_normal, ("gelu", "gelu_slope")),
    )
    for name in names
} | {"pow": vecmath_pow.power}
