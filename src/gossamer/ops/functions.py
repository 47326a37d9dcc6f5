"""Elementwise functions of analysis: exponentials, trigonometry, error and gamma. Layer 1.

Continues `elementwise`: same kind, same conventions. The compiler's polynomials for these stand in
compile/vecmath; a record only names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer.ir.node import Node
from gossamer.ir.op import CONSTANT, Op, Sample, constant
from gossamer.ops import special
from gossamer.ops.elementwise import (
    add,
    div,
    elementwise,
    eq,
    ge,
    mul,
    neg,
    rsqrt,
    sub,
    where,
)
from gossamer.ops.rules import (
    edges,
    float_type,
    same_floats,
    same_numbers,
    samples_of,
)

__all__ = [
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "digamma", "erf",
    "erfc", "erfinv", "exp", "exp2", "expm1", "gelu_exact", "gelu_slope", "hypot", "lgamma", "log",
    "log10", "log1p", "log2", "polygamma", "pow_", "sigmoid", "sin", "sinh", "tan", "tanh",
]

INF, NAN = float("inf"), float("nan")
_EDGES = (-INF, -0.0, 0.0, 0.5, -1.0, INF, NAN)


def _function(name: str, doc: str, reference: Callable[..., Any], vjp: Callable[..., Any], *,
              domain: tuple[float, float] = (-2.0, 2.0), special: Sequence[float] = _EDGES,
              cost: float = 10.0, onnx: str | None = None, aliases: tuple[str, ...] = ()) -> Op:
    """A function of one floating-point operand whose emitter method has its name."""
    return elementwise(
        name, doc, infer=float_type, reference=reference, vjp=vjp, promote="float", cost=cost,
        lower=lambda e, x: getattr(e, name)(x), onnx=onnx, aliases=aliases,
        samples=lambda rng: samples_of(1, domain)(rng) + edges(1, special))


def _scaled(g: Node, factor: float) -> Node:
    return mul(g, constant(factor, g))


def _one_minus(x: Node) -> Node:
    return sub(constant(1, x), x)


def _plus_one(x: Node) -> Node:
    return add(x, constant(1, x))


# exponentials and logarithms ----------------------------------------------------------------------

exp: Op = _function("exp", "e^x", np.exp, lambda g, y, x: (mul(g, y),), onnx="Exp-13")
exp2: Op = _function("exp2", "2^x", np.exp2,
                     lambda g, y, x: (mul(g, _scaled(y, math.log(2))),))
expm1: Op = _function("expm1", "e^x - 1, accurate near 0", np.expm1,
                      lambda g, y, x: (mul(g, _plus_one(y)),))
log: Op = _function("log", "natural logarithm of x", np.log, lambda g, y, x: (div(g, x),),
                    domain=(0.2, 4.0), onnx="Log-13")
log2: Op = _function("log2", "logarithm of x to base 2", np.log2,
                     lambda g, y, x: (div(g, _scaled(x, math.log(2))),), domain=(0.2, 4.0))
log10: Op = _function("log10", "logarithm of x to base 10", np.log10,
                      lambda g, y, x: (div(g, _scaled(x, math.log(10))),), domain=(0.2, 4.0))
log1p: Op = _function("log1p", "log(1 + x), accurate near 0", np.log1p,
                      lambda g, y, x: (div(g, _plus_one(x)),), domain=(-0.5, 4.0))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # never overflows
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)), x.dtype)


sigmoid: Op = _function("sigmoid", "1 / (1 + e^-x)", _sigmoid,
                        lambda g, y, x: (mul(g, mul(y, _one_minus(y))),), onnx="Sigmoid-13")

# trigonometry and its hyperbolic twin -------------------------------------------------------------

sin: Op = _function("sin", "sine of x (radians)", np.sin, lambda g, y, x: (mul(g, cos(x)),),
                    onnx="Sin-7")
cos: Op = _function("cos", "cosine of x (radians)", np.cos, lambda g, y, x: (neg(mul(g, sin(x))),),
                    onnx="Cos-7")
tan: Op = _function("tan", "tangent of x (radians)", np.tan,
                    lambda g, y, x: (mul(g, _plus_one(mul(y, y))),), domain=(-1.2, 1.2),
                    onnx="Tan-7")
asin: Op = _function("asin", "the angle in [-pi/2, pi/2] whose sine is x", np.arcsin,
                     lambda g, y, x: (mul(g, rsqrt(_one_minus(mul(x, x)))),), domain=(-0.9, 0.9),
                     special=(-1.5, -1.0, -0.0, 0.0, 1.0, NAN), onnx="Asin-7", aliases=("arcsin",))
acos: Op = _function("acos", "the angle in [0, pi] whose cosine is x", np.arccos,
                     lambda g, y, x: (neg(mul(g, rsqrt(_one_minus(mul(x, x))))),),
                     domain=(-0.9, 0.9), special=(-1.5, -1.0, -0.0, 0.0, 1.0, NAN),
                     onnx="Acos-7", aliases=("arccos",))
atan: Op = _function("atan", "the angle in (-pi/2, pi/2) whose tangent is x", np.arctan,
                     lambda g, y, x: (div(g, _plus_one(mul(x, x))),), onnx="Atan-7",
                     aliases=("arctan",))
sinh: Op = _function("sinh", "(e^x - e^-x) / 2", np.sinh, lambda g, y, x: (mul(g, cosh(x)),),
                     onnx="Sinh-9")
cosh: Op = _function("cosh", "(e^x + e^-x) / 2", np.cosh, lambda g, y, x: (mul(g, sinh(x)),),
                     onnx="Cosh-9")
tanh: Op = _function("tanh", "(e^x - e^-x) / (e^x + e^-x)", np.tanh,
                     lambda g, y, x: (mul(g, _one_minus(mul(y, y))),), onnx="Tanh-13")
asinh: Op = _function("asinh", "log(x + sqrt(x^2 + 1))", np.arcsinh,
                      lambda g, y, x: (mul(g, rsqrt(_plus_one(mul(x, x)))),), onnx="Asinh-9",
                      aliases=("arcsinh",))
acosh: Op = _function("acosh", "log(x + sqrt(x^2 - 1)), x >= 1", np.arccosh,
                      lambda g, y, x: (mul(g, rsqrt(sub(mul(x, x), constant(1, x)))),),
                      domain=(1.2, 4.0), special=(0.5, 1.0, INF, NAN), onnx="Acosh-9",
                      aliases=("arccosh",))
atanh: Op = _function("atanh", "log((1 + x) / (1 - x)) / 2, |x| <= 1", np.arctanh,
                      lambda g, y, x: (div(g, _one_minus(mul(x, x))),), domain=(-0.9, 0.9),
                      special=(-1.5, -1.0, -0.0, 0.0, 1.0, NAN), onnx="Atanh-9",
                      aliases=("arctanh",))

# error and gamma functions ------------------------------------------------------------------------


def _gaussian(x: Node, factor: float) -> Node:
    return _scaled(exp(neg(mul(x, x))), factor)


erf: Op = _function("erf", "2/sqrt(pi) * integral of e^(-t^2) from 0 to x", special.erf,
                    lambda g, y, x: (mul(g, _gaussian(x, 2 / math.sqrt(math.pi))),), cost=20.0,
                    onnx="Erf-13")
erfc: Op = _function("erfc", "1 - erf(x), accurate for large x", special.erfc,
                     lambda g, y, x: (mul(g, _gaussian(x, -2 / math.sqrt(math.pi))),), cost=20.0)
erfinv: Op = _function("erfinv", "the number whose erf is x, |x| <= 1", special.erfinv,
                       lambda g, y, x: (mul(g, _scaled(exp(mul(y, y)), math.sqrt(math.pi) / 2)),),
                       domain=(-0.9, 0.9), special=(-1.5, -1.0, 0.0, 0.999999, 1.0, NAN), cost=20.0)
# What the composite `gelu` and its derivative are made of.
gelu_exact: Op = elementwise(
    "gelu_exact", "x * Phi(x), Phi the normal distribution function", infer=float_type,
    reference=special.gelu, vjp=lambda g, y, x: (mul(g, gelu_slope(x)),), promote="none",
    lower=lambda e, x: e.gelu(x), cost=25.0,
    samples=lambda rng: samples_of(1, (-3.0, 3.0))(rng) + edges(1, _EDGES))
gelu_slope: Op = elementwise(
    "gelu_slope", "Phi(x) + x * Phi'(x), the derivative of gelu", infer=float_type,
    reference=special.gelu_slope, promote="none", lower=lambda e, x: e.gelu_slope(x), cost=25.0,
    vjp=lambda g, y, x: (mul(g, mul(
        _scaled(exp(_scaled(mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi)),
        sub(constant(2, x), mul(x, x)))),),
    samples=lambda rng: samples_of(1, (-3.0, 3.0))(rng) + edges(1, _EDGES))
lgamma: Op = _function("lgamma", "log |gamma(x)|", special.lgamma,
                       lambda g, y, x: (mul(g, digamma(x)),), domain=(0.3, 4.0),
                       special=(-2.5, -1.0, 0.0, 1.0, 2.0, INF, NAN), cost=40.0)
digamma: Op = _function("digamma", "derivative of lgamma", special.digamma,
                        lambda g, y, x: (mul(g, polygamma(x, n=1)),), domain=(0.3, 4.0),
                        special=(-2.5, -0.5, 0.25, 1.0, 50.0, INF, NAN), cost=40.0)


def _powers(e: Any, x: Any, n: int) -> Any:
    """x^n by repeated multiplication, n >= 1."""
    result = x
    for _ in range(n - 1):
        result = e.mul(result, x)
    return result


def _lower_positive(e: Any, x: Any, n: int) -> Any:
    """polygamma for x > 0: (-1)^(n+1) n! zeta(n+1, x) by Euler-Maclaurin, see special._hurwitz."""
    s = n + 1
    total = e.const(0)
    for _ in range(special.SHIFTS):  # always all steps: no branches on vectors
        total = e.add(total, _powers(e, e.reciprocal(x), s))
        x = e.add(x, e.const(1))
    inverse = e.reciprocal(x)
    square = e.mul(inverse, inverse)
    series = e.const(0)
    rising = [float(s)]
    for k in range(1, len(special.BERNOULLI)):
        rising.append(rising[-1] * (s + 2 * k - 1) * (s + 2 * k))
    terms = [b * r / math.factorial(2 * k)
             for k, (b, r) in enumerate(zip(special.BERNOULLI, rising, strict=True), 1)]
    for c in reversed(terms):
        series = e.add(e.mul(series, square), e.const(c))
    # x^(1-s) / (s-1) + x^-s / 2 + sum_k c_k x^(1-s-2k)
    tail = e.add(e.mul(e.const(0.5), inverse), e.mul(series, square))
    tail = e.mul(_powers(e, inverse, s - 1), e.add(e.const(1 / (s - 1)), tail))
    return e.mul(e.const((-1) ** s * math.factorial(n)), e.add(total, tail))


def _lower_polygamma(e: Any, x: Any, *, n: int) -> Any:
    if n == 0:
        return e.digamma(x)
    negative = e.lt(x, e.const(0))
    value = _lower_positive(e, e.select(negative, e.sub(e.const(1), x), x), n)
    fraction = e.sub(x, e.trunc(x))
    cot = e.reciprocal(e.tan(e.mul(e.const(math.pi), fraction)))
    polynomial = e.const(0)
    for a in reversed(special.cotangent_polynomial(n)):
        polynomial = e.add(e.mul(polynomial, cot), e.const(a))
    reflected = e.sub(e.mul(e.const((-1) ** n), value),
                      e.mul(e.const(math.pi ** (n + 1)), polynomial))
    finite = e.select(negative, reflected, value)
    pole = e.select(e.eq(x, e.const(-INF)), e.const(NAN), e.const(INF if n % 2 else -INF))
    whole = e.select(e.eq(fraction, e.const(0)), pole, finite)
    at_most_zero = e.select(e.le(x, e.const(0)), whole, finite)
    return e.select(e.eq(x, e.const(INF)), e.const(0), at_most_zero)


def _polygamma_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for n in (0, 1, 2, 3):
        found += samples_of(1, (0.4, 4.0), n=n)(rng)
        found += edges(1, (-2.5, -0.75, -0.25, 0.25, 1.0, 9.5, 50.0, NAN), n=n)
    return found


polygamma: Op = elementwise(
    "polygamma", "the n-th derivative of digamma", infer=lambda op, x, *, n: float_type(op, x),
    reference=special.polygamma, promote="float",
    vjp=lambda g, y, x, *, n: (mul(g, polygamma(x, n=n + 1)),),
    lower=_lower_polygamma, cost=60.0, samples=_polygamma_samples)

# two operands -------------------------------------------------------------------------------------


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.asarray(np.power(a, b))
    whole = np.power(a, np.maximum(b, 0))  # integers wrap
    sign = np.where(b % 2 == 0, 1, a)
    return np.where(b >= 0, whole, np.where(np.abs(a) == 1, sign, 0)).astype(a.dtype)


def _lower_pow(e: Any, a: Any, b: Any) -> Any:
    if e.dtype.kind == "f":
        return e.pow(a, b)
    one, zero = e.const(1), e.const(0)
    result, power = one, a
    for k in range(e.bits - (e.dtype.kind == "i")):  # square and multiply, all bits of the exponent
        taken = e.ne(e.and_(b, e.const(1 << k)), zero)
        result = e.select(taken, e.mul(result, power), result)
        power = e.mul(power, power)
    if e.dtype.kind == "u":
        return result
    # A negative exponent leaves a whole number only for 1 and -1.
    odd = e.ne(e.and_(b, one), zero)
    inverse = e.select(e.eq(a, e.const(-1)), e.select(odd, e.const(-1), one),
                       e.select(e.eq(a, one), one, zero))
    return e.select(e.lt(b, zero), inverse, result)


def _pow_base(g: Node, a: Node, b: Node) -> Node:
    """g * b * a^(b-1), and 0 where b is 0 (also at a = 0)."""
    if b.op is CONSTANT:
        n = b.attrs["value"]
        if n == 0:
            return constant(0, g)
        if n == 1:
            return g
        power = a if n == 2 else pow_(a, constant(n - 1, a))
        return mul(g, _scaled(power, n))
    zero = constant(0, b)
    slope = mul(g, mul(b, pow_(a, sub(b, constant(1, b)))))
    return where(eq(b, zero), zero, slope)


def _pow_exponent(g: Node, y: Node, a: Node, b: Node) -> Node:
    """g * y * log(a), and 0 where a is 0 and b >= 0."""
    zero = constant(0, a)
    flat = mul(eq(a, zero), ge(b, zero))
    # The inner where keeps log(0) out of the second derivative.
    slope = mul(g, mul(y, log(where(flat, constant(1, a), a))))
    return where(flat, zero, slope)


def _pow_samples(rng: np.random.Generator) -> list[Sample]:
    whole = Sample((np.array([-3, -1, 0, 1, 2, 3, 1, 2]), np.array([2, 3, 0, -2, -1, 5, 0, 10])),
                   gradient=False)
    return [*samples_of(2, (0.4, 2.5))(rng), *edges(2, (-INF, -2.0, -0.0, 0.0, 0.5, 1.0, 3.0, NAN)),
            Sample((np.array([-2.0, -0.5, 1.5]), np.array([2.0, 3.0, 0.0]))[:1] * 2,
                   gradient=False), whole]


pow_: Op = elementwise(
    "pow", "a^b", infer=same_numbers, reference=_pow, onnx="Pow-15", cost=30.0,
    vjp=lambda g, y, a, b: (_pow_base(g, a, b) if a.grad else None,
                            _pow_exponent(g, y, a, b) if b.grad else None),
    lower=_lower_pow, samples=_pow_samples)


def _atan2_vjp(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    square = add(mul(a, a), mul(b, b))
    zero = constant(0, square)
    scale = div(g, where(eq(square, zero), constant(1, square), square))  # slope 0 at the origin
    return mul(scale, b), neg(mul(scale, a))


atan2: Op = elementwise(
    "atan2", "the angle of the point (b, a) in [-pi, pi]", infer=same_floats, reference=np.arctan2,
    promote="float", vjp=_atan2_vjp, lower=lambda e, a, b: e.atan2(a, b), cost=20.0,
    samples=lambda rng: (samples_of(2, (0.5, 2.0))(rng)
                         + edges(2, (-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN))),
    aliases=("arctan2",))

hypot: Op = elementwise(
    "hypot", "sqrt(a^2 + b^2), without overflow on the way", infer=same_floats,
    reference=np.hypot, promote="float",
    vjp=lambda g, y, a, b: (mul(g, div(a, y)), mul(g, div(b, y))),
    lower=lambda e, a, b: e.hypot(a, b), cost=8.0,
    samples=lambda rng: (samples_of(2, (0.5, 2.0))(rng)
                         + edges(2, (-INF, -1.0, -0.0, 0.0, 3.0, 1e200, NAN))))
