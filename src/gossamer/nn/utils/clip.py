"""Gradient clipping, by norm or by value. Layer 5.

Everything stays a tensor (no value is looked at), so clipping compiles into the training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import GradientError
from gossamer.tensor import Tensor, no_grad

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]

Tensors = Tensor | Iterable[Tensor]


def _list(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _grads(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def get_total_norm(tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False,
                   foreach: bool | None = None) -> Tensor:
    """The norm of all tensors taken as one vector.

    Raises:
        GradientError: the norm is not finite and `error_if_nonfinite` (this looks at the value).
    """
    listed = _list(tensors)
    norm_type = float(norm_type)
    if not listed:
        return gf.tensor(0.0)
    with no_grad():
        norms = gf.stack([_norm(t, norm_type) for t in listed])
        total = _norm(norms, norm_type)
    if error_if_nonfinite and not math.isfinite(float(total.item())):
        raise GradientError(
            f"get_total_norm (norm_type={norm_type}): the total norm of order {norm_type} for "
            f"gradients from `parameters` is non-finite ({float(total.item())}), so it cannot be "
            "clipped. Set error_if_nonfinite=False to scale by it anyway.")
    return total


def _norm(t: Tensor, norm_type: float) -> Tensor:
    if norm_type == 2.0:
        return t.square().sum().sqrt()
    return t.abs().max() if norm_type == math.inf else t.norm(norm_type)


def clip_grads_with_norm_(parameters: Tensors, max_norm: float, total_norm: Tensor,
                          foreach: bool | None = None) -> None:
    """Scale the gradients by min(1, max_norm / (total_norm + 1e-6))."""
    with no_grad():
        # 1e-6 as in PyTorch: a zero norm must not divide
        scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
        for grad in _grads(_list(parameters)):
            grad.mul_(scale.to(grad.dtype))


def clip_grad_norm_(parameters: Tensors, max_norm: float, norm_type: float = 2.0,
                    error_if_nonfinite: bool = False, foreach: bool | None = None) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm`.

    Args:
        parameters: tensors with `.grad`; those without are passed over.
        norm_type: order of the norm; float("inf") is the largest absolute value.

    Returns:
        the norm before clipping, a scalar tensor.
    """
    listed = _list(parameters)
    total = get_total_norm(_grads(listed), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(listed, float(max_norm), total)
    return total


def clip_grad_value_(parameters: Tensors, clip_value: Any, foreach: bool | None = None) -> None:
    """Limit each element of the gradients to [-clip_value, clip_value]."""
    limit = float(clip_value)
    with no_grad():
        for grad in _grads(_list(parameters)):
            grad.clamp_(min=-limit, max=limit)
