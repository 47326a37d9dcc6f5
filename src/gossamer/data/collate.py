"""From a list of items to one batch. Layer 5.

Tensors and arrays of equal shape are stacked, numbers become a tensor, tuples, lists and dicts are
batched entry by entry, strings stay as they are. Stacking is done by NumPy where it can, so that a
prefetching thread leaves the engine to the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gossamer.functional as gf
from gossamer.core.dtype import float64
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.tensor import Tensor

__all__ = ["default_collate", "default_convert"]


def default_collate(batch: Sequence[Any]) -> Any:
    """Items as one batch.

    Raises:
        ShapeError: tensors of different shapes, or tuples of different lengths.
        DTypeError: an item that is not a tensor, array, number, string, dict, tuple or list.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return _stack(batch)
    if isinstance(first, (np.ndarray, np.generic)):
        return gf.from_numpy(np.stack([np.asarray(x) for x in batch]))
    if isinstance(first, float):
        return gf.tensor(list(batch), dtype=float64)
    if isinstance(first, int):
        return gf.tensor(list(batch))
    if isinstance(first, (str, bytes)):
        return list(batch)
    if isinstance(first, Mapping):
        return {key: default_collate([item[key] for item in batch]) for key in first}
    if isinstance(first, (tuple, list)):
        return _collate_sequences(batch)
    raise DTypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts "
                     f"or lists; found {type(first).__name__}. Pass collate_fn to the DataLoader.")


def _collate_sequences(batch: Sequence[Any]) -> Any:
    first = batch[0]
    if any(len(item) != len(first) for item in batch):
        raise ShapeError("default_collate: each element in list of batch should be of equal size; "
                         f"the lengths are {sorted({len(item) for item in batch})}.")
    columns = [default_collate(column) for column in zip(*batch, strict=True)]
    if hasattr(first, "_fields"):
        return type(first)(*columns)
    return columns  # a list, also for tuples, as PyTorch's


def _stack(batch: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in batch}
    if len(shapes) > 1:
        raise ShapeError(f"default_collate: stack expects each tensor to be equal size, but the "
                         f"items have shapes {sorted(shapes)}. Pad them, or pass collate_fn to the "
                         "DataLoader.")
    if any(t.requires_grad or "bfloat16" in str(t.dtype) for t in batch):
        return gf.stack(list(batch))
    return gf.from_numpy(np.stack([t.numpy() for t in batch]))


def default_convert(item: Any) -> Any:
    """One item without batching: arrays become tensors."""
    if isinstance(item, (np.ndarray, np.generic)):
        return gf.from_numpy(np.asarray(item))
    if isinstance(item, Mapping):
        return {key: default_convert(value) for key, value in item.items()}
    if isinstance(item, (tuple, list)) and not hasattr(item, "_fields"):
        return type(item)(default_convert(value) for value in item)
    return item
