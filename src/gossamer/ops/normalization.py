"""Statistics, softmax and normalisation over axes, and cross-entropy. Layer 1.

Every body is reductions over some axes with elementwise work around them, which the scheduler turns
into one row kernel. Rules of derivatives recompute from the input what they need of the forward
pass (a row that is in cache anyway), and use the result where that is more stable.

Sources: Ba et al. 2016 (layer norm), Zhang and Sennrich 2019 (RMS norm), Szegedy et al. 2016 (label
smoothing).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.core.dtype import int64
from gossamer.core.shape import size_of, without_axes
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, IOTA, Op, Sample, constant
from gossamer.ops.composite import composite, in_float32, scaled, spread, total_mean
from gossamer.ops.elementwise import (
    add,
    div,
    eq,
    isinf,
    mul,
    reciprocal,
    rsqrt,
    sqrt,
    sub,
    where,
)
from gossamer.ops.functions import exp, log
from gossamer.ops.reduction import broadcast, reduce_max, reduce_sum, reduced_type
from gossamer.ops.rules import Type, axis_in_range, dtype_error, float_type, shape_error
from gossamer.ops.wrapper import detach

__all__ = ["cross_entropy", "layer_norm", "log_softmax", "logsumexp", "mean", "rms_norm", "softmax",
           "std", "var"]

INF = float("inf")

# statistics --------------------------------------------------------------------------------------


def _statistic_type(op: Op, x: Node, *, axes: Shape, **_: Any) -> Type:
    float_type(op, x)
    return reduced_type(op, x, axes=axes)


def _shift_axes(op: Op, size: int, x: Node, *, axes: Shape, **attrs: Any) -> Node:
    return op(x, axes=tuple(a + 1 for a in axes), **attrs)


def _statistic_samples(**attrs: Any) -> Any:
    def draw(rng: np.random.Generator) -> list[Sample]:
        return [Sample((rng.normal(size=shape),), {"axes": axes, **attrs})
                for shape, axes in (((5,), (0,)), ((2, 3), (1,)), ((3, 2, 3), (0, 2)),
                                    ((0, 3), (1,)))]
    return draw


mean: Op = composite(
    "mean", "Average of x over `axes`.", infer=_statistic_type,
    body=in_float32(lambda x, *, axes: total_mean(x, axes)),
    vjp=in_float32(lambda g, y, x, *, axes: (
        scaled(spread(g, x, axes), 1 / max(size_of(x.shape[a] for a in axes), 1)),)),
    batch=_shift_axes, onnx="ReduceMean-18", samples=_statistic_samples())


def _freedom(x: Node, axes: Shape, correction: float) -> float:
    return max(size_of(x.shape[a] for a in axes) - correction, 0.0)


def _centred(x: Node, axes: Shape) -> Node:
    return sub(x, spread(total_mean(x, axes), x, axes))


@in_float32
def _var(x: Node, *, axes: Shape, correction: float) -> Node:
    d = _centred(x, axes)
    total = reduce_sum(mul(d, d), axes=axes)
    return div(total, constant(_freedom(x, axes, correction), total))


@in_float32
def _var_vjp(g: Node, y: Node, x: Node, *, axes: Shape, correction: float) -> tuple[Node]:
    g = div(scaled(g, 2), constant(_freedom(x, axes, correction), g))
    return (mul(spread(g, x, axes), _centred(x, axes)),)


var: Op = composite(
    "var", "Sum of (x - mean)^2 over `axes`, divided by (number of elements - correction).",
    infer=_statistic_type, body=_var, vjp=_var_vjp, batch=_shift_axes,
    samples=lambda rng: (_statistic_samples(correction=1)(rng)
                         + _statistic_samples(correction=0)(rng)))


@in_float32
def _std_vjp(g: Node, y: Node, x: Node, *, axes: Shape, correction: float) -> tuple[Node]:
    zero = constant(0, y)
    flat = eq(y, zero)  # all elements are equal: PyTorch's choice is slope 0
    g = where(flat, zero, div(scaled(g, 0.5), where(flat, constant(1, y), y)))
    return tuple(_var_vjp(g, y, x, axes=axes, correction=correction))


std: Op = composite(
    "std", "Square root of var.", infer=_statistic_type, vjp=_std_vjp, batch=_shift_axes,
    body=in_float32(lambda x, *, axes, correction: sqrt(_var(x, axes=axes, correction=correction))),
    samples=_statistic_samples(correction=1))

# softmax -----------------------------------------------------------------------------------------


def _safe_max(x: Node, axes: Shape) -> Node:
    """Largest element, 0 where it is infinite; a constant to autograd, which it does not change."""
    top = detach(reduce_max(x, axes=axes))
    return where(isinf(top), constant(0, top), top)


@in_float32
def _logsumexp(x: Node, *, axes: Shape) -> Node:
    if any(x.shape[a] == 0 for a in axes):
        return CONSTANT(value=-INF, shape=without_axes(x.shape, axes), dtype=x.dtype)
    top = _safe_max(x, axes)
    return add(log(reduce_sum(exp(sub(x, spread(top, x, axes))), axes=axes)), top)


@in_float32
def _logsumexp_vjp(g: Node, y: Node, x: Node, *, axes: Shape) -> tuple[Node]:
    y = where(isinf(y), constant(0, y), y)  # a row of -inf: exp(-inf - 0) = 0, not NaN
    return (mul(spread(g, x, axes), exp(sub(x, spread(y, x, axes)))),)


logsumexp: Op = composite(
    "logsumexp", "log of the sum of e^x over `axes`.", infer=_statistic_type, body=_logsumexp,
    vjp=_logsumexp_vjp, batch=_shift_axes, onnx="ReduceLogSumExp-18",
    samples=lambda rng: [*_statistic_samples()(rng), Sample(
        (np.array([[-INF, -INF], [1.0, INF], [-INF, 2.0], [1e4, -1e4]]),), {"axes": (1,)}, False)])


def _axis_type(op: Op, x: Node, *, axis: int) -> Type:
    axis_in_range(op, x, axis)
    return float_type(op, x)


def _shift_axis(op: Op, size: int, x: Node, *, axis: int) -> Node:
    return op(x, axis=axis + 1)


def _axis_samples(rng: np.random.Generator) -> list[Sample]:
    return [*(Sample((rng.normal(size=shape),), {"axis": axis})
              for shape, axis in (((5,), 0), ((2, 3), 1), ((3, 2, 2), 1), ((1, 1), 0), ((0, 3), 1),
                                  ((3, 0), 1))),
            Sample((np.array([[-INF, 0.0], [1e4, -1e4], [INF, 1.0]]),), {"axis": 1}, False)]


@in_float32
def _softmax(x: Node, *, axis: int) -> Node:
    if x.shape[axis] == 0:
        return x
    axes = (axis,)
    e = exp(sub(x, spread(detach(reduce_max(x, axes=axes)), x, axes)))
    return mul(e, spread(reciprocal(reduce_sum(e, axes=axes)), x, axes))


@in_float32
def _softmax_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    gy = mul(g, y)
    return (sub(gy, mul(y, spread(reduce_sum(gy, axes=(axis,)), y, (axis,)))),)


softmax: Op = composite(
    "softmax", "e^x / sum of e^x along `axis`.", infer=_axis_type, body=_softmax, vjp=_softmax_vjp,
    batch=_shift_axis, onnx="Softmax-13", samples=_axis_samples)


@in_float32
def _log_softmax(x: Node, *, axis: int) -> Node:
    if x.shape[axis] == 0:
        return x
    axes = (axis,)
    d = sub(x, spread(detach(reduce_max(x, axes=axes)), x, axes))
    return sub(d, spread(log(reduce_sum(exp(d), axes=axes)), x, axes))


@in_float32
def _log_softmax_vjp(g: Node, y: Node, x: Node, *, axis: int) -> tuple[Node]:
    return (sub(g, mul(exp(y), spread(reduce_sum(g, axes=(axis,)), y, (axis,)))),)


log_softmax: Op = composite(
    "log_softmax", "log(softmax(x)) along `axis`.", infer=_axis_type, body=_log_softmax,
    vjp=_log_softmax_vjp, batch=_shift_axis, onnx="LogSoftmax-13", samples=_axis_samples)

# normalisation -----------------------------------------------------------------------------------


def _norm_type(op: Op, x: Node, *affine: Node, ndim: int, eps: float) -> Type:
    if not 1 <= ndim <= x.ndim:
        raise shape_error(op, (x, *affine), f"cannot normalise the last {ndim} axes of {x.ndim}",
                          "Normalise at least one axis that exists.")
    for parameter in affine:
        if parameter.shape != x.shape[-ndim:]:
            raise shape_error(op, (x, *affine), "weight and bias must have shape "
                              f"{x.shape[-ndim:]}", "Build the layer with these extents.")
        if parameter.dtype is not x.dtype:
            raise dtype_error(op, (x, *affine), "all operands must have one dtype",
                              "Convert with .to(dtype).")
    return float_type(op, x)


def _tail(x: Node, ndim: int) -> Shape:
    return tuple(range(x.ndim - ndim, x.ndim))


def _over_rows(parameter: Node, x: Node) -> Node:
    """A parameter of the last axes repeated over the leading ones."""
    axes = tuple(range(x.ndim - parameter.ndim))
    return broadcast(parameter, shape=x.shape, axes=axes) if axes else parameter


def _over_columns(x: Node, ndim: int) -> Node:
    """Sum over the leading axes: the cotangent of a parameter."""
    axes = tuple(range(x.ndim - ndim))
    return reduce_sum(x, axes=axes) if axes else x


def _affine(x: Node, affine: tuple[Node, ...]) -> Node:
    if affine:
        x = mul(x, _over_rows(affine[0], x))
    return add(x, _over_rows(affine[1], x)) if len(affine) > 1 else x


def _inverse_norm(x: Node, axes: Shape, eps: float) -> Node:
    """1 / sqrt(mean(x^2) + eps), repeated over the axes."""
    power = total_mean(mul(x, x), axes)
    return spread(rsqrt(add(power, constant(eps, power))), x, axes)


@in_float32
def _layer_norm(x: Node, *affine: Node, ndim: int, eps: float) -> Node:
    axes = _tail(x, ndim)
    d = _centred(x, axes)
    return _affine(mul(d, _inverse_norm(d, axes, eps)), affine)


def _parameters(g: Node, unit: Node, affine: tuple[Node, ...], ndim: int) -> list[Node | None]:
    """Cotangents of weight and bias."""
    found: list[Node | None] = []
    if affine:
        found.append(_over_columns(mul(g, unit), ndim) if affine[0].grad else None)
    if len(affine) > 1:
        found.append(_over_columns(g, ndim) if affine[1].grad else None)
    return found


def _norm_vjp(g: Node, x: Node, affine: tuple[Node, ...], ndim: int, eps: float,
              centred: bool) -> tuple[Node | None, ...]:
    """With h = weight * g and u the normalised x: (h - mean(h) - u * mean(h * u)) * scale; without
    centring mean(h) is left out."""
    axes = _tail(x, ndim)
    d = _centred(x, axes) if centred else x
    scale = _inverse_norm(d, axes, eps)
    unit = mul(d, scale)
    rest = _parameters(g, unit, affine, ndim)
    if not x.grad:
        return (None, *rest)
    h = mul(g, _over_rows(affine[0], g)) if affine else g
    along = mul(unit, spread(total_mean(mul(h, unit), axes), x, axes))
    if centred:
        h = sub(h, spread(total_mean(h, axes), x, axes))
    return (mul(sub(h, along), scale), *rest)


def _norm_samples(parameters: int) -> Any:
    def draw(rng: np.random.Generator) -> list[Sample]:
        found = []
        for shape, ndim in (((4,), 1), ((2, 3), 1), ((3, 2, 3), 2), ((0, 3), 1)):
            for count in range(parameters + 1):
                inputs = [rng.normal(size=shape)]
                inputs += [rng.normal(size=shape[-ndim:]) for _ in range(count)]
                found.append(Sample(tuple(inputs), {"ndim": ndim, "eps": 1e-3}))
        return found
    return draw


def _row_batch(op: Op, size: int, x: Node, *affine: Node, **attrs: Any) -> Node:
    """A parameter that is one for the whole batch stays one; else multiply outside."""
    if all(p.op is broadcast and p.attrs["axes"] == (0,) for p in affine):
        return op(x, *(p.inputs[0] for p in affine), **attrs)
    unit = op(x, **attrs)
    axes = tuple(range(1, x.ndim - attrs["ndim"]))
    each = [broadcast(p, shape=x.shape, axes=axes) if axes else p for p in affine]
    return _affine_full(unit, each)


def _affine_full(unit: Node, each: list[Node]) -> Node:
    unit = mul(unit, each[0])
    return add(unit, each[1]) if len(each) > 1 else unit


layer_norm: Op = composite(
    "layer_norm",
    "(x - mean) / sqrt(var + eps) over the last `ndim` axes, * weight + bias if given.",
    infer=_norm_type, body=_layer_norm, batch=_row_batch, onnx="LayerNormalization-17",
    vjp=in_float32(lambda g, y, x, *affine, ndim, eps: _norm_vjp(g, x, affine, ndim, eps, True)),
    samples=_norm_samples(2))


@in_float32
def _rms_norm(x: Node, *affine: Node, ndim: int, eps: float) -> Node:
    return _affine(mul(x, _inverse_norm(x, _tail(x, ndim), eps)), affine)


rms_norm: Op = composite(
    "rms_norm", "x / sqrt(mean(x^2) + eps) over the last `ndim` axes, * weight if given.",
    infer=_norm_type, body=_rms_norm, batch=_row_batch, onnx="RMSNormalization-23",
    vjp=in_float32(lambda g, y, x, *affine, ndim, eps: _norm_vjp(g, x, affine, ndim, eps, False)),
    samples=_norm_samples(1))

# cross-entropy -----------------------------------------------------------------------------------


def _entropy_type(op: Op, x: Node, target: Node, *, ignore_index: int, smoothing: float) -> Type:
    if target.dtype is not int64:
        raise dtype_error(op, (x, target), "the target must hold int64 class indices",
                          "Convert it with .long().")
    if x.ndim < 1 or x.shape[:-1] != target.shape:
        raise shape_error(op, (x, target), "the target must have the shape of the logits without "
                          "their last axis", "Move the class axis to the end.")
    float_type(op, x)
    return target.shape, x.dtype


def _chosen(x: Node, target: Node) -> Node:
    """bool, shaped as x: whether the class is the target. Comparing instead of gathering keeps the
    forward and backward pass in row kernels, without a scatter."""
    classes = IOTA(axis=x.ndim - 1, shape=x.shape, dtype=int64)
    return eq(classes, spread(target, x, (x.ndim - 1,)))


@in_float32
def _cross_entropy(x: Node, target: Node, *, ignore_index: int, smoothing: float) -> Node:
    last = (x.ndim - 1,)
    # Relative to the largest logit, so that nothing cancels when logits are large.
    d = sub(x, spread(_safe_max(x, last), x, last))
    picked = reduce_sum(where(_chosen(x, target), d, constant(0, x)), axes=last)
    if smoothing:
        picked = add(scaled(picked, 1 - smoothing), scaled(total_mean(d, last), smoothing))
    loss = sub(log(reduce_sum(exp(d), axes=last)), picked)
    return where(eq(target, constant(ignore_index, target)), constant(0, loss), loss)


@in_float32
def _cross_entropy_vjp(g: Node, y: Node, x: Node, target: Node, *, ignore_index: int,
                       smoothing: float) -> tuple[Node, None]:
    """g * (softmax(x) - what the target wants), 0 for ignored rows."""
    last = (x.ndim - 1,)
    g = where(eq(target, constant(ignore_index, target)), constant(0, g), g)
    wanted_here = constant(1 - smoothing + smoothing / x.shape[-1], x)
    wanted = where(_chosen(x, target), wanted_here, constant(smoothing / x.shape[-1], x))
    return mul(spread(g, x, last), sub(softmax(x, axis=x.ndim - 1), wanted)), None


def _entropy_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for shape in ((3,), (4, 5), (2, 3, 2), (0, 3)):
        for smoothing in (0.0, 0.2):
            target = rng.integers(0, shape[-1], shape[:-1])
            found.append(Sample((rng.normal(size=shape), target),
                                {"ignore_index": 1, "smoothing": smoothing}))
    return found


cross_entropy: Op = composite(
    "cross_entropy", "-log softmax(x)[target] over the last axis, mixed with the average over all "
    "classes by `smoothing`; 0 where target is ignore_index.",
    infer=_entropy_type, body=_cross_entropy, vjp=_cross_entropy_vjp,
    batch=lambda op, size, x, target, **attrs: op(x, target, **attrs), promote="none",
    onnx="SoftmaxCrossEntropyLoss-13", samples=_entropy_samples)
