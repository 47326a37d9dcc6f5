"""`Size`: the shape of a tensor. Layer 4.

The one idea: a tuple, so that every function that takes a shape takes this too, with the one method
that PyTorch's users expect of it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Size"]


class Size(tuple[int, ...]):
    """The shape of a tensor: a tuple of extents with `numel()`."""

    __slots__ = ()

    def numel(self) -> int:
        """The product of the extents."""
        n = 1
        for extent in self:
            n *= extent
        return n

    def __getitem__(self, key: Any) -> Any:
        found = tuple.__getitem__(self, key)
        return Size(found) if isinstance(key, slice) else found

    def __add__(self, other: Any) -> Size:
        return Size(tuple.__add__(self, other))

    def __radd__(self, other: Any) -> Size:
        return Size(tuple(other) + tuple(self))

    def __repr__(self) -> str:
        return f"gossamer.Size([{', '.join(map(str, self))}])"
