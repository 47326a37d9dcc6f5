"""Activations and clamps: elementwise composites of one operand. Layer 1.

Values and slopes at kinks are PyTorch's. A branch that would overflow is fed a harmless number
where it is not chosen, so that neither it nor its derivative makes a NaN.

Sources: Hendrycks and Gimpel 2016 (GELU), Elfwing et al. 2017 (SiLU), Clevert et al. 2015 (ELU),
Klambauer et al. 2017 (SELU), Barron 2017 (CELU), Misra 2019 (Mish), Howard et al. 2019 (hard
swish).
"""

from __future__ import annotations

import math

import numpy as np

from gossamer.ir.node import Node
from gossamer.ir.op import Op, Sample, constant
from gossamer.ops.composite import activation, composite, in_float32, scaled
from gossamer.ops.elementwise import (
    abs_,
    add,
    div,
    ge,
    gt,
    le,
    lt,
    maximum,
    minimum,
    mul,
    neg,
    sub,
    where,
)
from gossamer.ops.functions import exp, expm1, gelu_exact, gelu_slope, log1p, sigmoid, tanh
from gossamer.ops.rules import (
    SHAPES,
    Type,
    batch_elementwise,
    dtype_error,
    number_type,
    same_numbers,
    samples_of,
)

__all__ = ["addcdiv", "addcmul", "celu", "clamp", "elu", "gelu", "hardshrink", "hardsigmoid",
           "hardswish", "hardtanh", "leaky_relu", "lerp", "logsigmoid", "mish", "relu", "relu6",
           "selu", "silu", "softplus", "softshrink", "softsign", "square", "tanhshrink",
           "threshold"]


def _zero(x: Node) -> Node:
    return constant(0, x)


# piecewise linear --------------------------------------------------------------------------------

relu: Op = activation(
    "relu", "max(x, 0)", lambda x: maximum(x, _zero(x)), infer=number_type, cost=1.0,
    vjp=lambda g, y, x: (where(le(y, _zero(y)), _zero(g), g),), onnx="Relu-14")

leaky_relu: Op = activation(
    "leaky_relu", "x where x > 0, else slope * x",
    lambda x, *, slope: where(gt(x, _zero(x)), x, scaled(x, slope)), cost=2.0,
    attrs=({"slope": 0.01}, {"slope": 1.5}), onnx="LeakyRelu-16")


def _clamp(x: Node, *, low: float | None, high: float | None) -> Node:
    if low is not None:
        x = maximum(x, constant(low, x))
    return x if high is None else minimum(x, constant(high, x))


def _clamp_vjp(g: Node, y: Node, x: Node, *, low: float | None, high: float | None) -> tuple[Node]:
    """The bounds themselves belong to the inside."""
    if low is not None:
        g = where(ge(x, constant(low, x)), g, _zero(g))
    if high is not None:
        g = where(le(x, constant(high, x)), g, _zero(g))
    return (g,)


clamp: Op = activation(
    "clamp", "x limited to [low, high]; None is no limit", _clamp, vjp=_clamp_vjp,
    infer=number_type, cost=2.0, onnx="Clip-13",
    attrs=({"low": -1.0, "high": 1.0}, {"low": None, "high": 0.5}, {"low": 0.5, "high": None}))


def _outside(x: Node, low: float, high: float) -> Node:
    """At or beyond a bound (bool)."""
    return add(le(x, constant(low, x)), ge(x, constant(high, x)))


hardtanh: Op = activation(
    "hardtanh", "x limited to [low, high]; slope 0 at the bounds", _clamp, infer=number_type,
    vjp=lambda g, y, x, *, low, high: (where(_outside(x, low, high), _zero(g), g),), cost=2.0,
    attrs=({"low": -1.0, "high": 1.0}, {"low": 0.0, "high": 2.0}))

relu6: Op = activation(
    "relu6", "x limited to [0, 6]", lambda x: hardtanh(x, low=0, high=6), infer=number_type,
    cost=2.0, special=(-1.0, 0.0, 3.0, 6.0, 7.0, float("nan")))

_THREES = (-4.0, -3.0, -1.0, 0.0, 3.0, 4.0, float("nan"))

hardsigmoid: Op = activation(
    "hardsigmoid", "relu6(x + 3) / 6",
    lambda x: scaled(relu6(add(x, constant(3, x))), 1 / 6), special=_THREES, cost=4.0,
    onnx="HardSigmoid-6")

hardswish: Op = activation(
    "hardswish", "x * relu6(x + 3) / 6", lambda x: mul(x, hardsigmoid(x)), special=_THREES,
    vjp=lambda g, y, x: (where(
        le(x, constant(-3, x)), _zero(g),
        where(lt(x, constant(3, x)), mul(g, add(scaled(x, 1 / 3), constant(0.5, x))), g)),),
    cost=5.0, onnx="HardSwish-14")

hardshrink: Op = activation(
    "hardshrink", "x where |x| > width, else 0",
    lambda x, *, width: where(le(abs_(x), constant(width, x)), _zero(x), x), cost=3.0,
    attrs=({"width": 0.5},), special=(-0.6, -0.5, 0.0, 0.5, 0.6, float("nan")))


def _softshrink(x: Node, *, width: float) -> Node:
    w = constant(width, x)
    near = where(lt(x, neg(w)), add(x, w), scaled(x, 0))  # 0 * NaN stays NaN
    return where(gt(x, w), sub(x, w), near)


softshrink: Op = activation(
    "softshrink", "x - width above width, x + width below -width, else 0", _softshrink,
    vjp=lambda g, y, x, *, width: (where(le(abs_(x), constant(width, x)), _zero(g), g),), cost=4.0,
    attrs=({"width": 0.5},), special=(-0.6, -0.5, 0.0, 0.5, 0.6, float("nan")))

threshold: Op = activation(
    "threshold", "x where x > limit, else value",
    lambda x, *, limit, value: where(le(x, constant(limit, x)), constant(value, x), x),
    infer=number_type, cost=2.0, attrs=({"limit": 0.1, "value": 20.0},))

# exponential -------------------------------------------------------------------------------------


def _negative_part(x: Node) -> tuple[Node, Node]:
    """(x <= 0, x where x <= 0 else 0): what an exponential of the lower branch may see."""
    negative = le(x, _zero(x))
    return negative, where(negative, x, _zero(x))


@in_float32
def _elu(x: Node, *, alpha: float) -> Node:
    negative, low = _negative_part(x)
    return where(negative, scaled(expm1(low), alpha), x)


elu: Op = activation("elu", "x where x > 0, else alpha * (e^x - 1)", _elu,
                     attrs=({"alpha": 1.0}, {"alpha": 0.5}), onnx="Elu-6")

# Klambauer et al. 2017, equation 14: the fixed point with mean 0 and variance 1.
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


@in_float32
def _selu(x: Node) -> Node:
    return scaled(elu(x, alpha=SELU_ALPHA), SELU_SCALE)


selu: Op = activation("selu", "1.0507 * elu(x, 1.6733): keeps mean 0 and variance 1", _selu,
                      onnx="Selu-6")


@in_float32
def _celu(x: Node, *, alpha: float) -> Node:
    negative, low = _negative_part(x)
    return where(negative, scaled(expm1(scaled(low, 1 / alpha)), alpha), x)


celu: Op = activation("celu", "x where x > 0, else alpha * (e^(x/alpha) - 1)", _celu,
                      attrs=({"alpha": 1.0}, {"alpha": 0.5}), onnx="Celu-12")


@in_float32
def _gelu(x: Node, *, approximate: str) -> Node:
    if approximate == "none":
        return gelu_exact(x)
    cubic = add(x, scaled(mul(mul(x, x), x), 0.044715))
    inner = tanh(scaled(cubic, math.sqrt(2 / math.pi)))
    return mul(scaled(x, 0.5), add(inner, constant(1, inner)))


@in_float32
def _gelu_vjp(g: Node, y: Node, x: Node, *, approximate: str) -> tuple[Node]:
    """g * (Phi(x) + x Phi'(x)), Phi the (approximated) normal distribution function."""
    if approximate == "none":
        return (mul(g, gelu_slope(x)),)
    c = math.sqrt(2 / math.pi)
    square_ = mul(x, x)
    t = tanh(scaled(add(x, scaled(mul(square_, x), 0.044715)), c))
    slope = add(constant(c, x), scaled(square_, 3 * 0.044715 * c))
    bell = mul(scaled(slope, 0.5), sub(constant(1, t), mul(t, t)))
    return (mul(g, add(scaled(add(t, constant(1, t)), 0.5), mul(x, bell))),)


gelu: Op = activation(
    "gelu", "x * Phi(x), Phi the normal distribution function (by erf, or approximated by tanh)",
    _gelu, vjp=_gelu_vjp, attrs=({"approximate": "none"}, {"approximate": "tanh"}),
    special=(-10.0, -1.0, -0.0, 0.0, 1.0, 10.0, float("nan")), cost=25.0, onnx="Gelu-20")


@in_float32
def _silu_vjp(g: Node, y: Node, x: Node) -> tuple[Node]:
    s = sigmoid(x)
    return (mul(mul(g, s), add(constant(1, x), mul(x, sub(constant(1, s), s)))),)


silu: Op = activation("silu", "x * sigmoid(x)", in_float32(lambda x: mul(x, sigmoid(x))),
                      vjp=_silu_vjp, onnx="Swish-24")


@in_float32
def _softplus(x: Node, *, beta: float, limit: float) -> Node:
    z = scaled(x, beta)
    linear = gt(z, constant(limit, z))
    curved = scaled(log1p(exp(where(linear, _zero(z), z))), 1 / beta)
    return where(linear, x, curved)


softplus: Op = activation(
    "softplus", "log(1 + e^(beta x)) / beta; x where beta x > limit", _softplus, cost=20.0,
    attrs=({"beta": 1.0, "limit": 20.0}, {"beta": 2.0, "limit": 3.0}), onnx="Softplus-1")


@in_float32
def _logsigmoid(x: Node) -> Node:
    return sub(minimum(x, _zero(x)), log1p(exp(neg(abs_(x)))))


logsigmoid: Op = activation(
    "logsigmoid", "log(sigmoid(x))", _logsigmoid, cost=20.0,
    vjp=in_float32(lambda g, y, x: (mul(g, sigmoid(neg(x))),)))

mish: Op = activation(
    "mish", "x * tanh(softplus(x))",
    in_float32(lambda x: mul(x, tanh(softplus(x, beta=1.0, limit=20.0)))), cost=30.0,
    onnx="Mish-18")

softsign: Op = activation(
    "softsign", "x / (1 + |x|)", in_float32(lambda x: div(x, add(abs_(x), constant(1, x)))),
    cost=6.0, onnx="Softsign-1")

tanhshrink: Op = activation("tanhshrink", "x - tanh(x)", in_float32(lambda x: sub(x, tanh(x))))

square: Op = activation("square", "x * x", lambda x: mul(x, x), infer=number_type, cost=1.0)

# several operands --------------------------------------------------------------------------------


def _all_numbers(op: Op, *xs: Node) -> Type:
    for x in xs[1:]:
        same_numbers(op, xs[0], x)
    return xs[0].shape, xs[0].dtype


def _all_floats(op: Op, *xs: Node) -> Type:
    if xs[0].dtype.kind != "f":
        raise dtype_error(op, xs, "the operands must be floating-point",
                          "Convert them with .float().")
    return _all_numbers(op, *xs)


def _lerp(a: Node, b: Node, weight: Node) -> Node:
    """From the nearer end, so that weights 0 and 1 give a and b exactly (PyTorch)."""
    step = sub(b, a)
    near = lt(abs_(weight), constant(0.5, weight))
    return where(near, add(a, mul(weight, step)),
                 sub(b, mul(step, sub(constant(1, weight), weight))))


def _lerp_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((rng.normal(size=s), rng.normal(size=s), rng.uniform(0.1, 0.4, s)))
            for s in SHAPES] + [Sample((np.ones(5), np.zeros(5), np.linspace(0, 1, 5)),
                                       gradient=False)]


def _lerp_vjp(g: Node, y: Node, a: Node, b: Node, weight: Node) -> tuple[Node | None, ...]:
    return (mul(g, sub(constant(1, weight), weight)) if a.grad else None,
            mul(g, weight) if b.grad else None, mul(g, sub(b, a)) if weight.grad else None)


lerp: Op = composite("lerp", "a + weight * (b - a)", infer=_all_floats, body=in_float32(_lerp),
                     vjp=in_float32(_lerp_vjp), batch=batch_elementwise, promote="same", cost=5.0,
                     samples=_lerp_samples)


def _scaled_product(rng: np.random.Generator) -> list[Sample]:
    return samples_of(4, (0.5, 2.0))(rng)


# `value` is an operand, not an attribute: as a constant it becomes a runtime scalar, so that a
# learning rate that changes compiles nothing.
addcmul: Op = composite(
    "addcmul", "a + value * b * c", infer=_all_numbers, batch=batch_elementwise,
    body=in_float32(lambda a, b, c, value: add(a, mul(value, mul(b, c)))),
    promote="same", cost=3.0, samples=_scaled_product)

addcdiv: Op = composite(
    "addcdiv", "a + value * b / c", infer=_all_floats, batch=batch_elementwise,
    body=in_float32(lambda a, b, c, value: add(a, mul(value, div(b, c)))),
    promote="same", cost=6.0, samples=_scaled_product)
