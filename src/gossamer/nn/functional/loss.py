"""Losses between predictions and targets of the same shape, and between pairs. Layer 5.

Each is its formula in tensors followed by one `reduction`. Names, arguments and corner cases are
those of torch.nn.functional.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import reduce_loss, reduction_name, shape_of
from gossamer.nn.functional.distance import pairwise_distance
from gossamer.tensor import Tensor

__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_embedding_loss",
    "gaussian_nll_loss", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss",
    "margin_ranking_loss", "mse_loss", "multilabel_soft_margin_loss", "poisson_nll_loss",
    "smooth_l1_loss", "soft_margin_loss", "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]


def _warn_if_broadcast(name: str, input: Tensor, target: Tensor) -> None:
    if shape_of(input) != shape_of(target):
        warnings.warn(f"{name}: the target has shape {shape_of(target)}, the input "
                      f"{shape_of(input)}; they are broadcast, which is likely not what is meant. "
                      "Give both the same shape.", stacklevel=3)


def _weighted(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Reduction of mse, l1 and huber under `weight`: the mean divides by the sum of weights."""
    if weight is None:
        return reduce_loss(loss, reduction)
    weighted = loss * weight
    if reduction == "mean":
        return weighted.sum() / weight.expand_as(loss).sum()
    return reduce_loss(weighted, reduction)


@full_precision
def mse_loss(input: Tensor, target: Tensor, size_average: bool | None = None,
             reduce: bool | None = None, reduction: str = "mean",
             weight: Tensor | None = None) -> Tensor:
    """(x - y)²."""
    _warn_if_broadcast("mse_loss", input, target)
    reduction = reduction_name(size_average, reduce, reduction)
    return _weighted((input - target).square(), weight, reduction)


@full_precision
def l1_loss(input: Tensor, target: Tensor, size_average: bool | None = None,
            reduce: bool | None = None, reduction: str = "mean",
            weight: Tensor | None = None) -> Tensor:
    """|x - y|."""
    _warn_if_broadcast("l1_loss", input, target)
    reduction = reduction_name(size_average, reduce, reduction)
    return _weighted((input - target).abs(), weight, reduction)


@full_precision
def smooth_l1_loss(input: Tensor, target: Tensor, size_average: bool | None = None,
                   reduce: bool | None = None, reduction: str = "mean",
                   beta: float = 1.0) -> Tensor:
    """d²/(2·beta) where d = |x - y| < beta, else d - beta/2; beta = 0 gives |x - y|."""
    _warn_if_broadcast("smooth_l1_loss", input, target)
    reduction = reduction_name(size_average, reduce, reduction)
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta={beta} must not be negative.")
    d = (input - target).abs()
    loss = d if beta == 0 else gf.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta)
    return reduce_loss(loss, reduction)


@full_precision
def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0,
               weight: Tensor | None = None) -> Tensor:
    """d²/2 where d = |x - y| ≤ delta, else delta·(d - delta/2)."""
    _warn_if_broadcast("huber_loss", input, target)
    if delta <= 0:
        raise ValueError(f"huber_loss: delta={delta} must be greater than 0.")
    d = (input - target).abs()
    loss = gf.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta))
    return _weighted(loss, weight, reduction)


@full_precision
def binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None,
                         size_average: bool | None = None, reduce: bool | None = None,
                         reduction: str = "mean") -> Tensor:
    """-w·(y·log p + (1 - y)·log(1 - p)), both logarithms at least -100.

    Args:
        input: probabilities in [0, 1].
        target: same shape.
        weight: broadcasts to the input.

    Raises:
        ValueError: the shapes differ.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    if shape_of(input) != shape_of(target):
        raise ShapeError(f"binary_cross_entropy: the target has shape {shape_of(target)}, the "
                         f"input {shape_of(input)}; they must be equal. Reshape the target.")
    log_p = input.log().clamp(min=-100)
    log_q = (1 - input).log().clamp(min=-100)
    loss = (target - 1) * log_q - target * log_p
    return reduce_loss(loss if weight is None else loss * weight, reduction)


@full_precision
def binary_cross_entropy_with_logits(input: Tensor, target: Tensor, weight: Tensor | None = None,
                                     size_average: bool | None = None, reduce: bool | None = None,
                                     reduction: str = "mean",
                                     pos_weight: Tensor | None = None) -> Tensor:
    """-w·(pos_weight·y·log σ(x) + (1 - y)·log(1 - σ(x))), without overflow."""
    reduction = reduction_name(size_average, reduce, reduction)
    if shape_of(input) != shape_of(target):
        raise ShapeError(f"binary_cross_entropy_with_logits: the target has shape "
                         f"{shape_of(target)}, the input {shape_of(input)}; they must be equal. "
                         "Reshape the target.")
    if pos_weight is None:
        loss = (1 - target) * input - gf.logsigmoid(input)
    else:
        loss = (1 - target) * input - ((pos_weight - 1) * target + 1) * gf.logsigmoid(input)
    return reduce_loss(loss if weight is None else loss * weight, reduction)


def _xlogx(x: Tensor) -> Tensor:
    """x·log x with 0 at 0; log sees 1 there, so that the derivative has no NaN."""
    zero = x == 0
    one = gf.ones_like(x)
    return gf.where(zero, gf.zeros_like(x), x * gf.where(zero, one, x).log())


@full_precision
def kl_div(input: Tensor, target: Tensor, size_average: bool | None = None,
           reduce: bool | None = None, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """y·(log y - x), x being log-probabilities; `batchmean` divides the sum by dimension 0."""
    if reduction == "mean" and size_average is None and reduce is None:
        warnings.warn("reduction: 'mean' divides the total loss by both the batch size and the "
                      "support size. 'batchmean' divides only by the batch size, and aligns with "
                      "the KL math definition.", stacklevel=2)
    batchmean = reduction == "batchmean"
    reduction = "sum" if batchmean else reduction_name(size_average, reduce, reduction)
    if log_target:
        loss = target.exp() * (target - input)
    else:
        loss = _xlogx(target) - target * input
    total = reduce_loss(loss, reduction)
    return total / input.shape[0] if batchmean and input.dim() else total


@full_precision
def cosine_embedding_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0,
                          size_average: bool | None = None, reduce: bool | None = None,
                          reduction: str = "mean") -> Tensor:
    """1 - cos(x1, x2) where y = 1, max(0, cos - margin) where y = -1.

    Args:
        input1, input2: (N, D) with target (N), or (D) with target ().
    """
    reduction = reduction_name(size_average, reduce, reduction)
    dims = target.dim() + 1
    if target.dim() > 1 or input1.dim() != dims or input2.dim() != dims:
        raise ShapeError(f"cosine_embedding_loss: inputs {shape_of(input1)} and "
                         f"{shape_of(input2)}, target {shape_of(target)}; the target must be (N) "
                         "for inputs (N, D), or () for inputs (D).")
    # 1e-12 (float32 machine epsilon is 1.2e-7; its square would underflow in float16): PyTorch's
    eps = 1e-12
    dot = (input1 * input2).sum(-1)
    norms = ((input1.square().sum(-1) + eps) * (input2.square().sum(-1) + eps)).sqrt()
    cos = dot / norms
    zero = gf.zeros_like(cos)
    near = gf.where(target == 1, 1 - cos, zero)
    far = gf.where(target == -1, (cos - margin).clamp(min=0), zero)
    return reduce_loss(near + far, reduction)


@full_precision
def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0,
                         size_average: bool | None = None, reduce: bool | None = None,
                         reduction: str = "mean") -> Tensor:
    """x where y = 1, max(0, margin - x) where y = -1; other targets add both."""
    reduction = reduction_name(size_average, reduce, reduction)
    zero = gf.zeros_like(input)
    far = gf.where(target != 1, (margin - input).clamp(min=0), zero)
    near = gf.where(target != -1, input, zero)
    return reduce_loss(far + near, reduction)


@full_precision
def margin_ranking_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0,
                        size_average: bool | None = None, reduce: bool | None = None,
                        reduction: str = "mean") -> Tensor:
    """max(0, -y·(x1 - x2) + margin)."""
    reduction = reduction_name(size_average, reduce, reduction)
    if not input1.dim() == input2.dim() == target.dim():
        raise ShapeError(f"margin_ranking_loss: inputs {shape_of(input1)} and {shape_of(input2)}, "
                         f"target {shape_of(target)}; all must have the same number of dimensions.")
    return reduce_loss((-target * (input1 - input2) + margin).clamp(min=0), reduction)


@full_precision
def soft_margin_loss(input: Tensor, target: Tensor, size_average: bool | None = None,
                     reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """log(1 + e^(-y·x))."""
    reduction = reduction_name(size_average, reduce, reduction)
    return reduce_loss((-target * input).exp().log1p(), reduction)


def multilabel_soft_margin_loss(input: Tensor, target: Tensor, weight: Tensor | None = None,
                                size_average: bool | None = None, reduce: bool | None = None,
                                reduction: str = "mean") -> Tensor:
    """Mean over the classes (last dimension) of -(y·log σ(x) + (1 - y)·log σ(-x))."""
    reduction = reduction_name(size_average, reduce, reduction)
    loss = -(target * gf.logsigmoid(input) + (1 - target) * gf.logsigmoid(-input))
    if weight is not None:
        loss = loss * weight
    return reduce_loss(loss.sum(-1) / input.shape[-1], reduction)


@full_precision
def poisson_nll_loss(input: Tensor, target: Tensor, log_input: bool = True, full: bool = False,
                     size_average: bool | None = None, eps: float = 1e-8,
                     reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """eˣ - y·x for a log rate x, or x - y·log(x + eps); `full` adds Stirling's term for y > 1."""
    reduction = reduction_name(size_average, reduce, reduction)
    if log_input:
        loss = input.exp() - target * input
    else:
        loss = input - target * (input + eps).log()
    if full:
        big = target > 1
        y = gf.where(big, target, gf.ones_like(target))
        stirling = y * y.log() - y + 0.5 * (2 * math.pi * y).log()
        loss = loss + gf.where(big, stirling, gf.zeros_like(stirling))
    return reduce_loss(loss, reduction)


def gaussian_nll_loss(input: Tensor, target: Tensor, var: Any, full: bool = False,
                      eps: float = 1e-6, reduction: str = "mean") -> Tensor:
    """½·(log v + (x - y)²/v), v at least eps; `full` adds ½·log 2π.

    Args:
        var: shaped as the input, one dimension short of it, with one extent 1, or a number ≥ 0.

    Raises:
        ValueError: a negative number as variance, or a shape that does not fit.
    """
    if not isinstance(var, Tensor):
        if var < 0:
            raise ValueError(f"gaussian_nll_loss: var={var} has negative entry/entries.")
        var = gf.full_like(input, var)
    if shape_of(var) != shape_of(input):
        unequal = [v for x, v in zip(shape_of(input), shape_of(var), strict=False) if x != v]
        if shape_of(input)[:-1] == shape_of(var):
            var = var.unsqueeze(-1)
        elif input.dim() != var.dim() or sum(unequal) != 1:
            raise ShapeError(f"gaussian_nll_loss: var has shape {shape_of(var)}, the input "
                             f"{shape_of(input)}; var is of incorrect size.")
    # The floor eps does not cut the derivative (PyTorch clamps outside autograd).
    floor = var + (var.clamp(min=eps) - var).detach()
    loss = 0.5 * (floor.log() + (input - target).square() / floor)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss(loss, reduction)


@full_precision
def triplet_margin_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0,
                        p: float = 2, eps: float = 1e-6, swap: bool = False,
                        size_average: bool | None = None, reduce: bool | None = None,
                        reduction: str = "mean") -> Tensor:
    """max(0, ‖a - pos‖ₚ - ‖a - neg‖ₚ + margin); `swap` takes the nearer of a and pos to neg."""
    reduction = reduction_name(size_average, reduce, reduction)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return pairwise_distance(x, y, p, eps)

    return _triplet("triplet_margin_loss", anchor, positive, negative, distance, margin, swap,
                    reduction)


def triplet_margin_with_distance_loss(anchor: Tensor, positive: Tensor, negative: Tensor, *,
                                      distance_function: Any = None, margin: float = 1.0,
                                      swap: bool = False, reduction: str = "mean") -> Tensor:
    """`triplet_margin_loss` with a distance of your own (default `pairwise_distance`)."""
    return _triplet("triplet_margin_with_distance_loss", anchor, positive, negative,
                    distance_function or pairwise_distance, margin, swap, reduction)


def _triplet(name: str, anchor: Tensor, positive: Tensor, negative: Tensor, distance: Any,
             margin: float, swap: bool, reduction: str) -> Tensor:
    if not anchor.dim() == positive.dim() == negative.dim():
        raise ShapeError(f"{name}: anchor {shape_of(anchor)}, positive {shape_of(positive)}, "
                         f"negative {shape_of(negative)}; all must have the same number of "
                         "dimensions.")
    if margin <= 0:
        raise ValueError(f"{name}: margin={margin} must be greater than 0.")
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = gf.minimum(far, distance(positive, negative))
    return reduce_loss((near - far + margin).clamp(min=0), reduction)
