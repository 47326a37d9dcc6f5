"""Similarities and distances between vectors. Layer 5."""

from __future__ import annotations

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import shape_of
from gossamer.tensor import Tensor

__all__ = ["cosine_similarity", "normalize", "pairwise_distance", "pdist"]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1·x2 / (max(‖x1‖, eps)·max(‖x2‖, eps)) along `dim`; the inputs broadcast."""
    x1, x2 = gf.broadcast_tensors(x1, x2)
    if not x1.dtype.is_floating_point:
        raise ShapeError(f"cosine_similarity: expected common dtype to be floating point, yet the "
                         f"inputs are {x1.dtype}.")
    return (_unit(x1, dim, eps) * _unit(x2, dim, eps)).sum(dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    # The floor of the norm is outside autograd, so a short vector still gets a derivative.
    norm = x.norm(2, dim, keepdim=True)
    return x / (norm + (norm.clamp(min=eps) - norm).detach())


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12,
              out: Tensor | None = None) -> Tensor:
    """x / max(‖x‖ₚ, eps) along `dim`."""
    result = input / input.norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)
    return result if out is None else out.copy_(result)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6,
                      keepdim: bool = False) -> Tensor:
    """‖x1 - x2 + eps‖ₚ along the last dimension."""
    x1, x2 = gf.broadcast_tensors(x1, x2)
    return (x1 - x2 + eps).norm(p, -1, keepdim=keepdim)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """p-norm distances between all pairs of rows i < j, in the order (0,1), (0,2), …, (1,2), ….

    Args:
        input: (N, D).

    Returns:
        (N·(N-1)/2).
    """
    if input.dim() != 2:
        raise ShapeError(f"pdist: the input has shape {shape_of(input)}; only 2-D is supported.")
    n = input.shape[0]
    if n < 2:
        return input.reshape(-1)[:0]  # no pair, but still a function of the input
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    first = gf.tensor([i for i, _ in pairs])
    second = gf.tensor([j for _, j in pairs])
    return (input[first] - input[second]).norm(p, -1)
