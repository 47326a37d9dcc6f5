"""Convolution layers and their transposes, in 1, 2 and 3 dimensions. Layer 5.

One base class holds the arguments, the weight and PyTorch's initialisation; a class per number of
dimensions names the function. Weights are (out, in/groups, *kernel), transposed ones
(in, out/groups, *kernel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.nn import functional as F, init
from gossamer.nn.functional.common import ntuple
from gossamer.nn.module import Module
from gossamer.tensor import Parameter, Tensor

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """What all six layers share."""

    _n: int  # number of spatial dimensions
    _transposed = False
    weight: Parameter
    bias: Parameter | None

    def _build(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any,
               padding: Any, dilation: Any, output_padding: Any, groups: int, bias: bool,
               padding_mode: str, device: Any, dtype: Any) -> None:
        name, n = type(self).__name__, self._n
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        if groups <= 0 or in_channels % groups or out_channels % groups:
            raise ValueError(f"{name} (groups={groups}): in_channels={in_channels} and "
                             "out_channels="
                             f"{out_channels} must be divisible by a positive number of groups.")
        if padding_mode not in _MODES or (self._transposed and padding_mode != "zeros"):
            raise ValueError(f"{name}: padding_mode={padding_mode!r} must be one of "
                             f"{_MODES[:1] if self._transposed else _MODES}.")
        self.kernel_size = ntuple(kernel_size, n, "kernel_size", name)
        self.stride = ntuple(stride, n, "stride", name)
        self.dilation = ntuple(dilation, n, "dilation", name)
        self.output_padding = ntuple(output_padding, n, "output_padding", name)
        self.padding_mode = padding_mode
        self.padding: Any = padding
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"{name}: invalid padding string {padding!r}, should be one of "
                                 "'valid', 'same'.")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"{name}: padding='same' is not supported for strided "
                                 f"convolutions (stride={self.stride}).")
        else:
            self.padding = ntuple(padding, n, "padding", name)
        self._around = self._pads()
        pair = (in_channels, out_channels) if self._transposed else (out_channels, in_channels)
        shape = (pair[0], pair[1] // groups, *self.kernel_size)
        self.weight = Parameter(gf.empty(*shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(gf.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _pads(self) -> list[int]:
        """Pairs (before, after) for `functional.pad`, the last dimension first."""
        pads: list[int] = []
        for i in reversed(range(self._n)):
            if self.padding == "valid":
                pads += [0, 0]
            elif self.padding == "same":
                total = self.dilation[i] * (self.kernel_size[i] - 1)
                pads += [total // 2, total - total // 2]
            else:
                pads += [self.padding[i]] * 2
        return pads

    def reset_parameters(self) -> None:
        """Draw weight and bias anew from U(-1/√k, 1/√k), k = in/groups · kernel elements."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            if fan_in:
                bound = 1 / math.sqrt(fan_in)
                init.uniform_(self.bias, -bound, bound)

    def _convolve(self, function: Any, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._around, self.padding_mode), 0
        return function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}")
        if isinstance(self.padding, str) or any(self.padding):
            text += f", padding={self.padding}"
        if any(d != 1 for d in self.dilation):
            text += f", dilation={self.dilation}"
        if any(self.output_padding):
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        mode = self.padding_mode
        return text + ("" if mode == "zeros" else f", padding_mode={mode}")


class _Conv(_ConvNd):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
                 padding: Any = 0, dilation: Any = 1, groups: int = 1, bias: bool = True,
                 padding_mode: str = "zeros", device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self._build(in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups,
                    bias, padding_mode, device, dtype)


class Conv1d(_Conv):
    """Convolution of (N, C, L) or (C, L).

    Args:
        in_channels, out_channels: C before and after.
        kernel_size, stride, dilation: one number or one per dimension.
        padding: the same, or "valid" or "same" (stride 1).
        groups: independent groups of channels.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
    """

    _n = 1

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(F.conv1d, input)


class Conv2d(_Conv):
    """Convolution of (N, C, H, W) or (C, H, W); arguments as `Conv1d`.

    Example:
        >>> Conv2d(1, 4, 3, padding=1)(gs.ones(2, 1, 8, 8)).shape
        gossamer.Size([2, 4, 8, 8])
    """

    _n = 2

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(F.conv2d, input)


class Conv3d(_Conv):
    """Convolution of (N, C, D, H, W) or (C, D, H, W); arguments as `Conv1d`."""

    _n = 3

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve(F.conv3d, input)


class _ConvTranspose(_ConvNd):
    _transposed = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
                 padding: Any = 0, output_padding: Any = 0, groups: int = 1, bias: bool = True,
                 dilation: Any = 1, padding_mode: str = "zeros", device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self._build(in_channels, out_channels, kernel_size, stride, padding, dilation,
                    output_padding, groups, bias, padding_mode, device, dtype)

    def _output_padding(self, input: Tensor, output_size: Sequence[int] | None) -> tuple[int, ...]:
        """What must be added at the end so that the output has the size asked for."""
        if output_size is None:
            return self.output_padding
        n = self._n
        wanted = tuple(output_size)[-n:]
        extra = []
        for i in range(n):
            least = ((input.shape[i - n] - 1) * self.stride[i] - 2 * self.padding[i]
                     + self.dilation[i] * (self.kernel_size[i] - 1) + 1)
            extra.append(wanted[i] - least)
            if not 0 <= extra[i] < max(self.stride[i], self.dilation[i]):
                raise ShapeError(
                    f"{type(self).__name__}: requested an output size of {wanted}; dimension {i} "
                    f"can be {least} to {least + self.stride[i] - 1} for an input of "
                    f"{tuple(input.shape)[-n:]}.")
        return tuple(extra)

    def _transpose(self, function: Any, input: Tensor,
                   output_size: Sequence[int] | None) -> Tensor:
        return function(
            input, self.weight, self.bias, self.stride, self.padding,
            self._output_padding(input, output_size), self.groups, self.dilation)


class ConvTranspose1d(_ConvTranspose):
    """Transpose of `Conv1d` (its derivative with respect to the input)."""

    _n = 1

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._transpose(F.conv_transpose1d, input, output_size)


class ConvTranspose2d(_ConvTranspose):
    """Transpose of `Conv2d` (its derivative with respect to the input)."""

    _n = 2

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._transpose(F.conv_transpose2d, input, output_size)


class ConvTranspose3d(_ConvTranspose):
    """Transpose of `Conv3d` (its derivative with respect to the input)."""

    _n = 3

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._transpose(F.conv_transpose3d, input, output_size)
