"""Nested arguments and results of compiled functions, taken apart and put together. Layer 4.

The one idea: tuples, lists and dicts are walked, tensors are replaced by numbered placeholders, and
what is left is a structure that can be compared: numbers and texts by value, other objects by
identity (whoever keeps the key must keep the objects).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign
from typing import Any

import numpy as np

from gossamer.creation import tensor
from gossamer.tensor import Tensor

__all__ = ["flatten", "key_of", "unflatten"]


class _Placeholder:
    """Stands for tensor number `index` in a flattened structure."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of nested tuples, lists and dicts with tensors replaced by placeholders.

    Args:
        value: what to take apart; NumPy arrays count as tensors, NumPy numbers as Python's.
        tensors: the tensors found are appended here.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Placeholder(len(tensors) - 1)
    if isinstance(value, np.ndarray):
        tensors.append(tensor(value))
        return _Placeholder(len(tensors) - 1)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[flatten(v, tensors) for v in value])
    if isinstance(value, (tuple, list)):
        return type(value)([flatten(v, tensors) for v in value])
    if isinstance(value, dict):
        return {k: flatten(v, tensors) for k, v in value.items()}
    return value


def unflatten(spec: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of `flatten`."""
    if isinstance(spec, _Placeholder):
        return tensors[spec.index]
    if isinstance(spec, tuple) and hasattr(spec, "_fields"):
        return type(spec)(*[unflatten(v, tensors) for v in spec])
    if isinstance(spec, (tuple, list)):
        return type(spec)([unflatten(v, tensors) for v in spec])
    if isinstance(spec, dict):
        return {k: unflatten(v, tensors) for k, v in spec.items()}
    return spec


def key_of(spec: Any) -> Any:
    """A hashable form of a structure; other objects count by identity."""
    if isinstance(spec, _Placeholder):
        return ("tensor", spec.index)
    if isinstance(spec, (tuple, list)):
        return (type(spec).__name__, *[key_of(v) for v in spec])
    if isinstance(spec, dict):
        return ("dict", *[(k, key_of(v)) for k, v in spec.items()])
    if isinstance(spec, float):  # -0.0 equals 0.0, and a NaN nothing
        return ("float", spec if spec == spec else "nan", copysign(1, spec))
    if spec is None or isinstance(spec, (bool, int, str, bytes)):
        return (type(spec).__name__, spec)
    if isinstance(spec, slice):
        return ("slice", key_of(spec.start), key_of(spec.stop), key_of(spec.step))
    return ("object", id(spec))
