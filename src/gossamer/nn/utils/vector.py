"""All parameters as one vector, and back. Layer 5."""

from __future__ import annotations

from collections.abc import Iterable

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.tensor import Tensor

__all__ = ["parameters_to_vector", "vector_to_parameters"]


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters flattened and joined, in order."""
    return gf.cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Set the parameters to the parts of a vector made by `parameters_to_vector`.

    Raises:
        ShapeError: the vector has another length than all parameters together.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: expected a Tensor, but got a {type(vec).__name__}.")
    listed = list(parameters)
    total = sum(p.numel() for p in listed)
    if vec.dim() != 1 or vec.shape[0] != total:
        raise ShapeError(f"vector_to_parameters: the vector has shape {tuple(vec.shape)}; the "
                         f"parameters have {total} elements.")
    at = 0
    for p in listed:
        p.data = vec[at:at + p.numel()].view_as(p).data
        at += p.numel()
