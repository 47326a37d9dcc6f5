"""Hooks on tensors: what to call when a gradient is known. Layer 4."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from gossamer.tensor import Tensor

__all__ = ["Hooks", "RemovableHandle", "hooks_of"]

_COUNT = itertools.count()


class Hooks:
    """The hooks of one tensor.

    Attributes:
        gradient: called with the gradient, may replace it.
        post: called with the tensor after its `.grad` was added to.
        retain: whether `.grad` is kept though the tensor is not a leaf.
    """

    __slots__ = ("gradient", "post", "retain")

    def __init__(self) -> None:
        self.gradient: dict[int, Callable[..., Any]] = {}
        self.post: dict[int, Callable[..., Any]] = {}
        self.retain = False


def hooks_of(tensor: Tensor) -> Hooks:
    """The hooks of `tensor`, made if there are none."""
    if tensor._hooks is None:
        tensor._hooks = Hooks()
    return tensor._hooks


class RemovableHandle:
    """Takes a hook away again: `handle.remove()`, or the end of a `with` block."""

    def __init__(self, table: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> None:
        self.id = next(_COUNT)
        self._table = table
        table[self.id] = hook

    def remove(self) -> None:
        """Take the hook away; nothing happens the second time."""
        self._table.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
