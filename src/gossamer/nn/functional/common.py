"""What the functions of this package share: sizes, reductions, checks. Layer 5."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.tensor import Tensor

__all__ = ["checked_index", "first_max", "ntuple", "over_batch", "reduce_loss", "reduction_name",
           "replace", "shape_of"]


def ntuple(value: Any, n: int, name: str = "size", what: str = "") -> tuple[Any, ...]:
    """`value` as a tuple of n entries; one number stands for all.

    Raises:
        ShapeError: a sequence of another length.
    """
    if isinstance(value, Sequence):
        if len(value) == 1 and n > 1:
            return tuple(value) * n
        if len(value) != n:
            raise ShapeError(f"{what or 'size'}: {name}={tuple(value)} has {len(value)} entries; "
                             f"it must be one number or {n} numbers.")
        return tuple(value)
    return (value,) * n


def shape_of(x: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, for messages and arithmetic."""
    return tuple(x.shape)


def reduction_name(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction meant by the two retired switches, or `reduction`."""
    if size_average is None and reduce is None:
        return reduction
    average = True if size_average is None else size_average
    chosen = "none" if reduce is False else ("mean" if average else "sum")
    warnings.warn(f"size_average and reduce are deprecated, please use reduction={chosen!r} "
                  "instead.",
                  stacklevel=4)
    return chosen


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Mean, sum or the losses themselves.

    Raises:
        ValueError: another name.
    """
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"{reduction} is not a valid value for reduction; use 'mean', 'sum' or "
                     "'none'.")


def replace(input: Tensor, result: Tensor, inplace: bool) -> Tensor:
    """`result`, written into `input` when `inplace`."""
    return input.copy_(result) if inplace else result


def first_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and its first position.

    The value is read by a mask instead of a gather, so that its derivative is elementwise (a gather
    would need a scatter) and goes to the first of equal elements alone.

    Returns:
        values and int64 positions, both without the last dimension.
    """
    where = x.argmax(-1)
    mask = gf.arange(x.shape[-1]) == where.unsqueeze(-1)
    return gf.where(mask, x, gf.zeros_like(x)).sum(-1), where


def over_batch(x: Tensor, with_batch: int, name: str,
               fn: Callable[[Tensor], Tensor]) -> Tensor:
    """`fn(x)` with a batch dimension of 1 added before and removed after, where x has none.

    Raises:
        ShapeError: x has neither `with_batch` nor `with_batch - 1` dimensions.
    """
    if x.dim() == with_batch:
        return fn(x)
    if x.dim() == with_batch - 1:
        return fn(x.unsqueeze(0)).squeeze(0)
    raise ShapeError(f"{name}: the input has shape {shape_of(x)}; it must have {with_batch} "
                     f"dimensions, or {with_batch - 1} without the batch.")


def checked_index(index: Tensor, extent: int) -> Tensor:
    """`index` with negative entries moved out of range, so that reading with it reports them.

    Indexing counts negative numbers from the end; labels and token numbers must not.
    """
    return gf.where(index < 0, gf.full((), extent, dtype=index.dtype), index)
