"""Cross entropy of a linear layer, which never holds all logits. Layer 5.

The one idea: the gradient of a row's loss needs that row's logits and nothing else, so a few rows
go all the way (logits, loss, their gradient, its share of the gradients of input and weight) before
the next begin, in the memory of the ones before. What the backward pass gives is a factor.

Source: Hsu et al. 2024, "Liger kernel"; Wijmans et al. 2024, "Cut your losses in large-vocabulary
language models".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gossamer.functional as gf
from gossamer import autograd
from gossamer.core.dtype import float32, float64
from gossamer.function import Function
from gossamer.modes import MODES
from gossamer.nn.functional.classification import cross_entropy
from gossamer.nn.functional.common import checked_index, shape_of
from gossamer.nn.functional.linear import linear
from gossamer.tensor import Tensor
from gossamer.transforms import vjp, wait

__all__ = ["linear_cross_entropy"]

LARGE = 16 << 20  # bytes of logits from which on they are not all held
# Bytes of logits held instead. Of 4096 x 2048 with 192 features on one thread: 8 MiB at a time take
# 1.02 of the time of all at once, 4 MiB 1.01, 2 MiB 1.04 (each reads the weight and its gradient).
CHUNK = 4 << 20
LEAST = 256  # rows: fewer do not pay for reading a large weight
MOST = 64  # chunks: each is four more calls to plan


@dataclass(frozen=True)
class _How:
    """What the loss is, beside its tensors."""

    reduction: str
    ignored: int
    smoothing: float
    softcap: float | None


def linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor, *,
                         linear_bias: Tensor | None = None, weight: Tensor | None = None,
                         reduction: str = "mean", ignore_index: int | None = None,
                         label_smoothing: float = 0.0, options: Any = None,
                         softcap: float | None = None) -> Tensor:
    """`cross_entropy(linear(input, linear_weight, linear_bias), target)`.

    Large logits are made, used and forgotten a few rows at a time, in the forward and the backward
    pass. Not so for reduction="none", for targets that are probabilities, inside `vmap`, and for
    second derivatives: there all of them are held.

    Args:
        input: (in) or (N, in).
        linear_weight: (C, in), or (C, d1, …, in) for a loss of further dimensions.
        target: class numbers or probabilities, as for `cross_entropy`.
        linear_bias: (C) or None.
        weight, reduction, label_smoothing: as for `cross_entropy`.
        ignore_index: a target that counts for nothing; None is -100.
        options: anything with a `batch_chunk_size`: how many rows to go through at a time.
        softcap: logits z become softcap·tanh(z / softcap).

    Returns:
        as `cross_entropy`.

    Raises:
        ShapeError, DTypeError, IndexingError: as `linear` and `cross_entropy`.

    Cost: 2·N·C·in FLOPs, and 4·N·C·in for the gradients: as the two functions one after the other,
    with some megabytes of logits in place of N·C.
    """
    ignored = -100 if ignore_index is None else ignore_index
    how = _How(reduction, ignored, label_smoothing, softcap)
    plain = _plain(input, linear_weight, linear_bias, target, weight, how)  # and every check
    rows = _rows_at_a_time(input, linear_weight, target, weight, how, options)
    if rows >= input.shape[0]:
        return plain
    made: Tensor = _Chunked.apply(input, linear_weight, linear_bias, target, weight, how, rows)
    return made.to(plain.dtype)


def _plain(input: Tensor, linear_weight: Tensor, bias: Tensor | None, target: Tensor,
           weight: Tensor | None, how: _How) -> Tensor:
    """The two functions one after the other."""
    outer = shape_of(linear_weight)[:-1]
    if linear_weight.dim() > 2:
        flat = None if bias is None else bias.reshape(-1)
        logits = linear(input, linear_weight.reshape(-1, linear_weight.shape[-1]), flat)
        logits = logits.reshape(*shape_of(input)[:-1], *outer)
    else:
        logits = linear(input, linear_weight, bias)
    return cross_entropy(_capped(logits, how), target, weight=weight, ignore_index=how.ignored,
                         reduction=how.reduction, label_smoothing=how.smoothing)


def _capped(logits: Tensor, how: _How) -> Tensor:
    return logits if how.softcap is None else how.softcap * (logits / how.softcap).tanh()


def _rows_at_a_time(input: Tensor, linear_weight: Tensor, target: Tensor, weight: Tensor | None,
                    how: _How, options: Any) -> int:
    """How many rows go through together; all, if there is nothing to gain or no way to do it."""
    count = input.shape[0]
    if (MODES.mapped or input.dim() != 2 or linear_weight.dim() != 2 or how.reduction == "none"
            or target.dtype.is_floating_point or weight is not None and weight.requires_grad):
        return count
    asked = getattr(options, "batch_chunk_size", None)
    if asked is not None:
        return max(1, int(asked))
    row = linear_weight.shape[0] * 4
    if count * row < LARGE:
        return count
    return max(LEAST, CHUNK // row, -(-count // MOST))


def _loss_of_rows(logits: Tensor, number: Tensor, hard: Tensor, even: Tensor,
                  weight: Tensor | None, how: _How) -> Tensor:
    """These rows' part of the loss: Σ hard·logp[number] + even·Σ logp; number -1 is no class."""
    classes = logits.shape[1]
    logp = gf.log_softmax(_capped(logits.to(hard.dtype), how), 1)
    zero = gf.zeros((), dtype=logp.dtype)
    mask = gf.arange(classes) == number.unsqueeze(1)
    loss = (hard * gf.where(mask, logp, zero).sum(1)).sum()
    if how.smoothing == 0.0:
        return loss
    spread = (logp if weight is None else logp * weight).sum(1)
    return loss + gf.where(number >= 0, even * spread, zero).sum()


class _Chunked(Function):
    """Rows go through the layer, the loss and back, a few at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor,
                weight: Tensor | None, how: _How, rows: int) -> Tensor:
        kept = target != how.ignored
        safe = gf.where(kept, target, gf.zeros_like(target)).long()
        number = gf.arange(w.shape[0])[checked_index(safe, w.shape[0])]
        wide = float64 if x.dtype is float64 else float32
        share = kept.to(wide) if weight is None else weight.to(wide)[number] * kept
        number = gf.where(kept, number, gf.full_like(number, -1))
        scale = 1 / share.sum() if how.reduction == "mean" else gf.ones((), dtype=wide)
        hard, even = (how.smoothing - 1) * scale * share, -how.smoothing / w.shape[0] * scale
        layer = [w] if bias is None else [w, bias]
        total = gf.zeros((), dtype=wide)
        before: list[Tensor] = []
        towards_x: list[Tensor] = []
        towards_layer: list[Tensor] = []
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)

            def loss(x: Tensor, *layer: Tensor, part: slice = part) -> Tensor:
                return _loss_of_rows(linear(x, *layer), number[part], hard[part], even, weight, how)
            value, pull = vjp(loss, wait(x[part], *before), *layer)
            total, before = total + value, [value]
            if any(ctx.needs_input_grad[:3]):
                g_x, *g_layer = pull(gf.ones_like(value))
                towards_x.append(g_x)
                # Waiting for the loss changes nothing, but says that these sums are made one by
                # one: as one long product they would need the gradients of all logits.
                towards_layer = [g + wait(so_far, value) for g, so_far in
                                 zip(g_layer, towards_layer, strict=True)] \
                    if towards_layer else g_layer
                before = [*towards_layer, g_x]
        if towards_x:
            ctx.save_for_backward(x, w, bias, target, weight, gf.cat(towards_x), *towards_layer)
        ctx.how = how
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, w, bias, target, weight, *found = ctx.saved_tensors
        if not autograd.is_grad_enabled():
            return (*(f * g for f in found), *(None,) * (7 - len(found)))
        given = [t for t in (x, w, bias) if t is not None]
        needed = [t for t in given if t.requires_grad]
        plain = _plain(x, w, bias, target, weight, ctx.how)
        grads = iter(autograd.grad(plain, needed, g, create_graph=True))
        return (*(next(grads) if t is not None and t.requires_grad else None
                  for t in (x, w, bias)), None, None, None, None)

