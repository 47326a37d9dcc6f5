"""Nested arguments and results of compiled functions, taken apart and put together. Layer 4.

The one idea: tuples, lists and dicts are walked, tensors are replaced by numbered placeholders, and
what is left is a structure that can be compared: numbers and texts by value, other objects by
identity (whoever keeps the key must keep the objects). A call needs only what is compared, so
`signature` collects that and the tensors in one walk; `flatten` is for traces.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from math import copysign
from typing import Any

import numpy as np

from gossamer.creation import tensor
from gossamer.tensor import Tensor

__all__ = ["builder", "flatten", "signature", "unflatten"]


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


def builder(spec: Any) -> Callable[[list[Tensor]], Any]:
    """`unflatten` of one structure, without a walk for those that most functions return."""
    if isinstance(spec, _Placeholder):
        return operator.itemgetter(spec.index)
    if type(spec) is tuple and all(isinstance(x, _Placeholder) for x in spec):
        return tuple  # placeholders are numbered in order
    return functools.partial(unflatten, spec)


def signature(args: Sequence[Any], kwargs: Mapping[str, Any],
              tensors: list[Tensor]) -> tuple[Any, ...]:
    """What two calls have in common that one trace can serve, hashable.

    Each argument adds a fixed number of items after the one that tells its kind (a shape for a
    tensor, else its type), so that equal keys mean equal structures.

    Args:
        args, kwargs: of the call.
        tensors: the tensors found are appended here, in the order of `flatten`.

    Cost: 0.3 us and 0.2 us an argument.
    """
    key: list[Any] = [len(args)]
    for x in args:
        _describe(x, tensors, key)
    if kwargs:
        _describe(kwargs, tensors, key)
    return tuple(key)


def _describe(x: Any, tensors: list[Tensor], key: list[Any]) -> None:
    """Add one argument to a key."""
    kind = x.__class__
    if kind is Tensor:
        tensors.append(x)
        key += x._node.shape, x._node.dtype, _learns(x)
    elif kind in _BY_VALUE:
        key += kind, x
    elif isinstance(x, Tensor):
        tensors.append(x)
        key += x._node.shape, x._node.dtype, _learns(x)
    elif isinstance(x, np.ndarray):
        _describe(tensor(x), tensors, key)
    elif isinstance(x, np.generic):
        _describe(x.item(), tensors, key)
    elif isinstance(x, float):  # -0.0 equals 0.0, and a NaN nothing
        key += kind, x if x == x else "nan", copysign(1, x)
    elif isinstance(x, (int, str, bytes)):
        key += kind, x
    elif isinstance(x, (tuple, list)):
        key += kind, len(x)
        for y in x:
            _describe(y, tensors, key)
    elif isinstance(x, dict):
        key += dict, len(x)
        for name, y in x.items():
            key.append(name)
            _describe(y, tensors, key)
    elif isinstance(x, slice):
        key.append(slice)
        for y in (x.start, x.stop, x.step):
            _describe(y, tensors, key)
    else:
        key += kind, id(x)


_BY_VALUE = frozenset({bool, int, str, bytes, type(None)})


def _learns(t: Tensor) -> int:
    """Whether derivatives reach an argument: 2 a leaf, 1 by its history, 0 not at all."""
    if t._leaf:
        return 2
    return int((t._read() if isinstance(t._base, Tensor) else t._node).grad)
