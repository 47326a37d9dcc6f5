"""Padding layers, in 1, 2 and 3 dimensions. Layer 5."""

from __future__ import annotations

from typing import Any

from gossamer.nn import functional as F
from gossamer.nn.functional.common import ntuple
from gossamer.nn.module import Module
from gossamer.tensor import Tensor

__all__ = [
    "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d", "ConstantPad2d",
    "ConstantPad3d", "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d",
    "ReplicationPad2d", "ReplicationPad3d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
]


class _Pad(Module):
    """`padding` is one number, or pairs (before, after) with the last dimension first."""

    _n = 1
    _mode = "constant"

    def __init__(self, padding: Any) -> None:
        super().__init__()
        self.padding = ntuple(padding, 2 * self._n, "padding", type(self).__name__)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self._mode)

    def extra_repr(self) -> str:
        return str(self.padding)


class _ConstantPad(_Pad):
    def __init__(self, padding: Any, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """Add `value` around the last dimension."""


class ConstantPad2d(_ConstantPad):
    """Add `value` around the last two dimensions."""

    _n = 2


class ConstantPad3d(_ConstantPad):
    """Add `value` around the last three dimensions."""

    _n = 3


class ZeroPad1d(_Pad):
    """Add zeros around the last dimension."""


class ZeroPad2d(_Pad):
    """Add zeros around the last two dimensions."""

    _n = 2


class ZeroPad3d(_Pad):
    """Add zeros around the last three dimensions."""

    _n = 3


class ReflectionPad1d(_Pad):
    """Mirror the last dimension at its first and last element."""

    _mode = "reflect"


class ReflectionPad2d(_Pad):
    """Mirror the last two dimensions."""

    _n, _mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """Mirror the last three dimensions."""

    _n, _mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """Repeat the first and last element of the last dimension."""

    _mode = "replicate"


class ReplicationPad2d(_Pad):
    """Repeat the border of the last two dimensions."""

    _n, _mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """Repeat the border of the last three dimensions."""

    _n, _mode = 3, "replicate"


class CircularPad1d(_Pad):
    """Wrap the last dimension around."""

    _mode = "circular"


class CircularPad2d(_Pad):
    """Wrap the last two dimensions around."""

    _n, _mode = 2, "circular"


class CircularPad3d(_Pad):
    """Wrap the last three dimensions around."""

    _n, _mode = 3, "circular"
