"""NumPy definitions of special functions that NumPy lacks, in float64. Layer 1.

They say what "correct" means for erf, erfinv, lgamma, digamma and polygamma; clarity and accuracy
(about 1e-14) count here, speed does not. The compiler has its own polynomials in compile/vecmath.

Sources: Abramowitz and Stegun 6.3.6, 6.3.7, 6.3.18 (digamma), 6.4.11 (polygamma as a Hurwitz zeta
function by Euler-Maclaurin), 7.1 (erf); W. J. Giles, "Approximating the erfinv function" (2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

__all__ = ["BERNOULLI", "SHIFTS", "cotangent_polynomial", "digamma", "erf", "erfc", "erfinv",
           "gelu", "gelu_slope", "lgamma", "polygamma", "vectorized"]

# B_2, B_4, ... B_16: even Bernoulli numbers.
BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)

# Recurrence steps before the asymptotic series: at x >= 10 eight Bernoulli terms leave < 1e-16.
SHIFTS = 10


def vectorized(scalar: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of arrays from one of Python floats, computed in float64."""
    lifted = np.frompyfunc(scalar, 1, 1)
    return lambda x: np.asarray(lifted(np.asarray(x, np.float64))).astype(x.dtype)


def _lgamma(x: float) -> float:
    if math.isinf(x):
        return math.inf
    if x <= 0 and x == math.floor(x):  # the poles
        return math.inf
    return math.lgamma(x)


def _gelu(x: float) -> float:
    return -0.0 if x == -math.inf else 0.5 * x * math.erfc(-x * math.sqrt(0.5))


def _gelu_slope(x: float) -> float:
    bell = 0.0 if math.isinf(x) else x * math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * math.erfc(-x * math.sqrt(0.5)) + bell


erf = vectorized(math.erf)
erfc = vectorized(math.erfc)
lgamma = vectorized(_lgamma)
gelu, gelu_slope = vectorized(_gelu), vectorized(_gelu_slope)

# Giles 2010, single-precision coefficients: a start for Newton's method.
_CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
           -0.00125372503, -0.00417768164, 0.246640727, 1.50140941)
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
         -0.0076224613, 0.00943887047, 1.00167406, 2.83297682)


def _erfinv(x: float) -> float:
    if not -1 < x < 1:
        return math.copysign(math.inf, x) if abs(x) == 1 else math.nan
    w = -math.log((1 - x) * (1 + x))
    w, coefficients = (w - 2.5, _CENTRE) if w < 5 else (math.sqrt(w) - 3, _TAIL)
    y = 0.0
    for c in coefficients:
        y = y * w + c
    y *= x
    for _ in range(3):
        # In the tail erfc keeps the digits that erf(y) - x would lose.
        outer = math.copysign(1, x) * ((1 - abs(x)) - math.erfc(abs(y)))
        error = math.erf(y) - x if abs(x) < 0.5 else outer
        y -= error / (2 / math.sqrt(math.pi) * math.exp(-y * y))
    return y


erfinv = vectorized(_erfinv)


def _digamma(x: float) -> float:
    if x == 0:
        return -math.copysign(math.inf, x)
    if x == -math.inf:
        return math.nan
    if x < 0 and x == math.floor(x):
        return math.nan
    if x < 0:  # reflection; the remainder keeps tan accurate for large |x|
        return _digamma(1 - x) - math.pi / math.tan(math.pi * math.fmod(x, 1))
    if math.isinf(x) or math.isnan(x):
        return x
    total = 0.0
    while x < SHIFTS:
        total -= 1 / x
        x += 1
    series = sum(b / (2 * k * x ** (2 * k)) for k, b in enumerate(BERNOULLI, 1))
    return total + math.log(x) - 0.5 / x - series


digamma = vectorized(_digamma)


@cache
def cotangent_polynomial(n: int) -> tuple[int, ...]:
    """Coefficients (constant first) of P with d^n/dt^n cot(t) = P(cot t)."""
    p = [0, 1]
    for _ in range(n):  # d/dt P(c) = -P'(c) (1 + c^2)
        slope = [-k * a for k, a in enumerate(p)][1:]
        p = [0] * (len(slope) + 2)
        for k, a in enumerate(slope):
            p[k] += a
            p[k + 2] += a
    return tuple(p)


def _hurwitz(s: int, x: float) -> float:
    """zeta(s, x) = sum over k >= 0 of (x + k)^-s, for s >= 2 and x > 0."""
    if math.isinf(x):
        return 0.0
    total = 0.0
    while x < SHIFTS:
        total += x ** -s
        x += 1
    total += x ** (1 - s) / (s - 1) + 0.5 * x ** -s
    rising = float(s)  # s (s+1) ... (s+2k-2) / (2k)!
    for k, b in enumerate(BERNOULLI, 1):
        total += b * rising / math.factorial(2 * k) * x ** (1 - s - 2 * k)
        rising *= (s + 2 * k - 1) * (s + 2 * k)
    return total


def _polygamma(n: int, x: float) -> float:
    if math.isnan(x) or x == -math.inf:
        return math.nan
    if x <= 0 and x == math.floor(x):
        return math.inf if n % 2 else -math.inf
    if x > 0:
        return (-1.0) ** (n + 1) * math.factorial(n) * _hurwitz(n + 1, x)
    # psi_n(x) = (-1)^n psi_n(1 - x) - pi^(n+1) P_n(cot(pi x)), the reflection differentiated
    c = 1 / math.tan(math.pi * math.fmod(x, 1))
    value = 0.0
    for a in reversed(cotangent_polynomial(n)):
        value = value * c + a
    return (-1.0) ** n * _polygamma(n, 1 - x) - math.pi ** (n + 1) * value


def polygamma(x: np.ndarray, *, n: int) -> np.ndarray:
    """The n-th derivative of digamma (n = 0: digamma itself)."""
    return digamma(x) if n == 0 else vectorized(lambda v: _polygamma(n, v))(x)
