"""Losses over classes: cross entropy and its relatives, margins, CTC. Layer 5.

The logarithm of the target's probability is read with a mask (class number = target) instead of a
gather, so that forward and backward are row kernels without a scatter. A target outside the classes
is an error found when the value is computed.
"""

from __future__ import annotations

from typing import Any

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.dtype import float64, int64, uint8
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.nn.functional.common import (
    checked_index,
    reduce_loss,
    reduction_name,
    shape_of,
)
from gossamer.tensor import Tensor

__all__ = ["cross_entropy", "ctc_loss", "multi_margin_loss", "multilabel_margin_loss", "nll_loss"]


@full_precision
def cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None,
                  size_average: bool | None = None, ignore_index: int = -100,
                  reduce: bool | None = None, reduction: str = "mean",
                  label_smoothing: float = 0.0) -> Tensor:
    """-w[y]·log softmax(x)[y], or -Σ w·p·log softmax(x) for class probabilities p.

    Args:
        input: logits (C), (N, C) or (N, C, d1, …).
        target: integers (), (N) or (N, d1, …), or probabilities shaped as the input.
        weight: (C), one factor per class.
        ignore_index: a target that counts for nothing, also not in the mean.
        label_smoothing: share of the target that is spread evenly over the classes, in [0, 1].

    Returns:
        a scalar, or the losses shaped as an integer target for reduction="none". The mean over
        nothing (all targets ignored) is NaN.

    Raises:
        ShapeError, DTypeError: target and input do not fit.
        IndexingError: a target is not a class (found when the value is computed).
    """
    reduction = reduction_name(size_average, reduce, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing={label_smoothing} must be between 0.0 "
                         "and 1.0.")
    _check_classes("cross_entropy", input, weight)
    dim = 0 if input.dim() == 1 else 1
    logp = gf.log_softmax(input, dim)
    if shape_of(target) == shape_of(input) and target.dtype.is_floating_point:
        return _soft_cross_entropy(logp, target, weight, reduction, label_smoothing, dim)
    hard = _nll(logp, target, weight, ignore_index, reduction, dim, "cross_entropy")
    if label_smoothing == 0.0:
        return hard
    even = _even_loss(logp, target, weight, ignore_index, reduction, dim)
    share = label_smoothing / input.shape[dim]
    return (1 - label_smoothing) * hard + share * even


def _check_classes(name: str, input: Tensor, weight: Tensor | None) -> None:
    if input.dim() == 0:
        raise ShapeError(f"{name}: the input has no dimension; it must be (C), (N, C) or (N, C, "
                         "…).")
    classes = input.shape[0 if input.dim() == 1 else 1]
    if weight is not None and shape_of(weight) != (classes,):
        raise ShapeError(f"{name}: weight tensor should be defined either for all {classes} "
                         f"classes or no classes but got weight tensor of shape "
                         f"{shape_of(weight)}.")


def _soft_cross_entropy(logp: Tensor, target: Tensor, weight: Tensor | None, reduction: str,
                        label_smoothing: float, dim: int) -> Tensor:
    if label_smoothing > 0.0:
        target = target * (1 - label_smoothing) + label_smoothing / logp.shape[dim]
    if weight is not None:
        target = target * _along(weight, dim, logp.dim())
    loss = -(logp * target).sum(dim)
    if reduction == "mean":
        # 0 / 0 = NaN over an empty batch, as PyTorch's
        return loss.sum() / gf.full((), float(loss.numel()), dtype=loss.dtype)
    return reduce_loss(loss, reduction)


def _along(weight: Tensor, dim: int, dims: int) -> Tensor:
    """A weight per class, shaped to multiply a tensor whose classes are dimension `dim`."""
    return weight.reshape([-1 if d == dim else 1 for d in range(dims)])


@full_precision
def nll_loss(input: Tensor, target: Tensor, weight: Tensor | None = None,
             size_average: bool | None = None, ignore_index: int = -100,
             reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """-w[y]·x[y], x being log-probabilities.

    Args, Returns, Raises: as `cross_entropy` with integer targets.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    _check_classes("nll_loss", input, weight)
    dim = 0 if input.dim() == 1 else 1
    return _nll(input, target, weight, ignore_index, reduction, dim, "nll_loss")


def _check_target(name: str, input: Tensor, target: Tensor, dim: int) -> None:
    expected = shape_of(input)[:dim] + shape_of(input)[dim + 1:]
    if shape_of(target) != expected:
        raise ShapeError(f"{name}: the input has shape {shape_of(input)} and the target "
                         f"{shape_of(target)}; integer targets must have shape {expected} (the "
                         f"input without its {input.shape[dim]} classes).")
    if target.dtype is not int64 and target.dtype is not uint8:
        raise DTypeError(f"{name}: the target is {target.dtype}; class numbers must be int64. "
                         "Convert them with .long().")


def _picked(logp: Tensor, target: Tensor, dim: int) -> Tensor:
    """logp at the target's class, without dimension `dim`; targets outside raise at run time."""
    classes = logp.shape[dim]
    number = gf.arange(classes)[checked_index(target.long(), classes)]
    mask = _along(gf.arange(classes), dim, logp.dim()) == number.unsqueeze(dim)
    return gf.where(mask, logp, gf.zeros_like(logp)).sum(dim)


def _nll(logp: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str,
         dim: int, name: str) -> Tensor:
    _check_target(name, logp, target, dim)
    kept = target != ignore_index
    safe = gf.where(kept, target, gf.zeros_like(target))
    loss = -_picked(logp, safe, dim)
    share = kept.to(logp.dtype)
    if weight is not None:
        share = weight[safe.long()] * share
        loss = loss * weight[safe.long()]
    loss = gf.where(kept, loss, gf.zeros_like(loss))
    if reduction == "mean":
        return loss.sum() / share.sum()
    return reduce_loss(loss, reduction)


def _even_loss(logp: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int,
               reduction: str, dim: int) -> Tensor:
    """-Σ over classes of w·logp: what label smoothing mixes in (before division by C)."""
    kept = target != ignore_index
    terms = logp if weight is None else logp * _along(weight, dim, logp.dim())
    loss = gf.where(kept, -terms.sum(dim), gf.zeros((), dtype=logp.dtype))
    if reduction != "mean":
        return reduce_loss(loss, reduction)
    if weight is None:
        return loss.sum() / kept.to(logp.dtype).sum()
    safe = gf.where(kept, target, gf.zeros_like(target))
    return loss.sum() / (weight[safe.long()] * kept.to(logp.dtype)).sum()


@full_precision
def multi_margin_loss(input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0,
                      weight: Tensor | None = None, size_average: bool | None = None,
                      reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """Σ over i ≠ y of max(0, margin - x[y] + x[i])ᵖ / C, times w[y].

    Args:
        input: (N, C) or (C).
        target: int64 (N) or ().
        p: 1 or 2.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: only p == 1 and p == 2 supported, got p={p}.")
    if input.dim():
        _check_classes("multi_margin_loss", input, weight)
    single = input.dim() < 2
    x, y = (input.reshape(1, -1), target.reshape(1)) if single else (input, target)
    classes = x.shape[1]
    gap = (margin - _picked(x, y, 1).unsqueeze(1) + x).clamp(min=0)
    if p == 2:
        gap = gap.square()
    if weight is not None:
        gap = gap * weight[y].unsqueeze(1)
    other = gf.arange(classes) != y.unsqueeze(1)
    loss = gf.where(other, gap, gf.zeros_like(gap)).sum(1) / classes
    return reduce_loss(loss.reshape(target.shape) if single else loss, reduction)


@full_precision
def multilabel_margin_loss(input: Tensor, target: Tensor, size_average: bool | None = None,
                           reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """Σ over labels j and classes i that are no label of max(0, 1 - (x[j] - x[i])) / C.

    Args:
        input: (N, C) or (C).
        target: int64 of the same shape: the labels of a row, ended by -1.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    if shape_of(input) != shape_of(target) or input.dim() > 2:
        raise ShapeError(f"multilabel_margin_loss: input {shape_of(input)}, target "
                         f"{shape_of(target)}; both must be (N, C) or (C).")
    single = input.dim() < 2
    x, y = (input.reshape(1, -1), target.reshape(1, -1)) if single else (input, target)
    classes = x.shape[1]
    listed = (y < 0).to(int64).cumsum(1) == 0  # before the first -1
    label = gf.where(listed, y, gf.zeros_like(y))
    one_hot = (label.unsqueeze(-1) == gf.arange(classes)) & listed.unsqueeze(-1)  # (N, label, C)
    is_label = one_hot.any(1)  # (N, C)
    of_label = gf.where(one_hot, x.unsqueeze(1), gf.zeros_like(x).unsqueeze(1)).sum(-1)
    gap = (1 - (of_label.unsqueeze(-1) - x.unsqueeze(1))).clamp(min=0)  # (N, label, C)
    counted = listed.unsqueeze(-1) & ~is_label.unsqueeze(1)
    loss = gf.where(counted, gap, gf.zeros_like(gap)).sum((1, 2)) / max(classes, 1)
    return reduce_loss(loss[0] if single else loss, reduction)


@full_precision
def ctc_loss(log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any,
             blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> Tensor:
    """-log of the probability of all alignments of `targets` (Graves et al. 2006).

    Dynamic programming over the labels with blanks between them, in log space, one step per frame.

    Args:
        log_probs: (T, N, C), or (T, C) for one sequence.
        targets: (N, S), or all targets one after the other; class numbers without `blank`.
        input_lengths, target_lengths: (N) integers (tensors or sequences).
        zero_infinity: losses of impossible alignments (and their gradients) become 0.

    Returns:
        a scalar; reduction="mean" divides each loss by its target length first.
    """
    single = log_probs.dim() == 2
    if single:
        log_probs = log_probs.unsqueeze(1)
    frames = _lengths(input_lengths)
    dtype, log_probs = log_probs.dtype, log_probs.to(float64)  # hundreds of sums of exponentials
    lengths = _lengths(target_lengths)
    labels = _padded_targets(targets, lengths, len(frames))  # (N, S)
    losses = _ctc_forward(log_probs, labels, frames, lengths, blank)
    losses = (losses + _normalised_gradient(log_probs, frames)).to(dtype)
    if zero_infinity:
        losses = gf.where(losses == float("inf"), gf.zeros_like(losses), losses)
    if reduction == "mean":
        floor = gf.tensor([max(n, 1) for n in lengths]).to(losses.dtype)
        return (losses / floor).mean()
    return reduce_loss(losses[0] if single and reduction == "none" else losses, reduction)


def _normalised_gradient(log_probs: Tensor, frames: list[int]) -> Tensor:
    """Zeros (N) whose derivative is the probabilities.

    PyTorch gives the gradient as it arrives before a log_softmax, exp(log_probs) - posterior; the
    first term, which a log_softmax in front cancels, is added here.
    """
    inside = gf.arange(log_probs.shape[0]).unsqueeze(1) < gf.tensor(frames)  # (T, N)
    total = log_probs.exp().sum(2)
    return gf.where(inside, total - total.detach(), gf.zeros_like(total)).sum(0)


def _lengths(values: Any) -> list[int]:
    listed = values.tolist() if isinstance(values, Tensor) else list(values)
    return listed if isinstance(listed, list) else [int(listed)]


def _padded_targets(targets: Tensor, lengths: list[int], batch: int) -> Tensor:
    """Targets as (N, S); a flat list of targets is cut at the lengths."""
    if targets.dim() == 2:
        return targets.long()
    flat = [int(v) for v in targets.tolist()]
    if len(flat) != sum(lengths) and batch == 1:
        flat = flat[:lengths[0]]
    width, rows, at = max([*lengths, 1]), [], 0
    for n in lengths:
        rows.append(flat[at:at + n] + [0] * (width - n))
        at += n
    return gf.tensor(rows)


def _ctc_forward(log_probs: Tensor, labels: Tensor, frames: list[int], lengths: list[int],
                 blank: int) -> Tensor:
    """Losses (N) by the forward recursion over states blank, l0, blank, l1, …, blank."""
    steps, batch, _ = log_probs.shape
    size = labels.shape[1]
    states = 2 * size + 1
    blanks = gf.full((batch, size, 1), blank, dtype=int64)
    path = gf.cat([gf.cat([blanks, labels.unsqueeze(-1)], -1).reshape(batch, 2 * size),
                   gf.full((batch, 1), blank, dtype=int64)], 1)  # (N, states)
    emit = log_probs.gather(2, path.unsqueeze(0).expand(steps, batch, states))  # (T, N, states)
    low = gf.full((), -1e30, dtype=log_probs.dtype)  # log 0 whose derivative is 0, not NaN
    emit = gf.where(emit < low, low, emit)
    two_back = gf.cat([path[:, :2] * 0 + blank, path[:, :-2]], 1)[:, :states]
    jump = (path != blank) & (path != two_back) & (gf.arange(states) >= 2)
    alpha = gf.where(gf.arange(states) < 2, emit[0], low)
    frame_count = gf.tensor(frames).unsqueeze(-1)
    for t in range(1, steps):
        one = gf.cat([low.expand(batch, 1), alpha[:, :-1]], 1)
        two = gf.cat([low.expand(batch, 2), alpha[:, :-2]], 1)[:, :states]
        stacked = gf.stack([alpha, one, gf.where(jump, two, low)], 0)
        moved = gf.logsumexp(stacked, 0) + emit[t]
        moved = gf.where(moved < low, low, moved)
        alpha = gf.where(frame_count > t, moved, alpha)
    last = gf.tensor(lengths).unsqueeze(-1) * 2
    at_end = alpha.gather(1, last).squeeze(1)
    before = gf.where(last[:, 0] > 0, alpha.gather(1, (last - 1).clamp(min=0)).squeeze(1), low)
    total = gf.logsumexp(gf.stack([at_end, before], 0), 0)
    impossible = total < -1e29
    return gf.where(impossible, gf.full_like(total, float("inf")), -total)
