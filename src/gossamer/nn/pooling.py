"""Pooling layers. Layer 5."""

from __future__ import annotations

from typing import Any

from gossamer.nn import functional as F
from gossamer.nn.functional.common import ntuple
from gossamer.nn.module import Module
from gossamer.nn.stateless import REQUIRED, Stateless
from gossamer.tensor import Tensor

__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "FractionalMaxPool2d", "FractionalMaxPool3d", "LPPool1d", "LPPool2d", "LPPool3d", "MaxPool1d",
    "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
]


class _Windowed(Stateless):
    """Pools whose stride is the kernel size unless given."""

    kernel_size: Any
    stride: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.stride is None:
            self.stride = self.kernel_size


class _MaxPool(_Windowed):
    _arguments = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1,
                  "return_indices": False, "ceil_mode": False}
    _shown = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class MaxPool1d(_MaxPool):
    """Maximum over windows of (N, C, L) or (C, L)."""

    _function = "max_pool1d"


class MaxPool2d(_MaxPool):
    """Maximum over windows of (N, C, H, W) or (C, H, W)."""

    _function = "max_pool2d"


class MaxPool3d(_MaxPool):
    """Maximum over windows of (N, C, D, H, W) or (C, D, H, W)."""

    _function = "max_pool3d"


class AvgPool1d(_Windowed):
    """Mean over windows of (N, C, L) or (C, L)."""

    _function = "avg_pool1d"
    _arguments = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False,
                  "count_include_pad": True}
    _shown = ("kernel_size", "stride", "padding")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self._shown:
            setattr(self, name, ntuple(getattr(self, name), 1, name, "AvgPool1d"))


class AvgPool2d(_Windowed):
    """Mean over windows of (N, C, H, W) or (C, H, W)."""

    _function = "avg_pool2d"
    _arguments = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False,
                  "count_include_pad": True, "divisor_override": None}
    _shown = ("kernel_size", "stride", "padding")


class AvgPool3d(AvgPool2d):
    """Mean over windows of (N, C, D, H, W) or (C, D, H, W)."""

    _function = "avg_pool3d"


class _LPPool(Stateless):
    _arguments = {"norm_type": REQUIRED, "kernel_size": REQUIRED, "stride": None,
                  "ceil_mode": False}


class LPPool1d(_LPPool):
    """p-norm over windows of (N, C, L) or (C, L)."""

    _function = "lp_pool1d"


class LPPool2d(_LPPool):
    """p-norm over windows of (N, C, H, W) or (C, H, W)."""

    _function = "lp_pool2d"


class LPPool3d(_LPPool):
    """p-norm over windows of (N, C, D, H, W) or (C, D, H, W)."""

    _function = "lp_pool3d"


class AdaptiveAvgPool1d(Stateless):
    """Means over as many windows as asked for."""

    _function, _arguments = "adaptive_avg_pool1d", {"output_size": REQUIRED}


class AdaptiveAvgPool2d(Stateless):
    """Means over as many windows as asked for, one number or two; None keeps an extent."""

    _function, _arguments = "adaptive_avg_pool2d", {"output_size": REQUIRED}


class AdaptiveAvgPool3d(Stateless):
    """Means over as many windows as asked for, one number or three; None keeps an extent."""

    _function, _arguments = "adaptive_avg_pool3d", {"output_size": REQUIRED}


class _AdaptiveMaxPool(Stateless):
    _arguments = {"output_size": REQUIRED, "return_indices": False}
    _shown = ("output_size",)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Maxima over as many windows as asked for."""

    _function = "adaptive_max_pool1d"


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Maxima over as many windows as asked for, one number or two; None keeps an extent."""

    _function = "adaptive_max_pool2d"


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Maxima over as many windows as asked for, one number or three; None keeps an extent."""

    _function = "adaptive_max_pool3d"


class _FractionalMaxPool(Stateless):
    _arguments = {"kernel_size": REQUIRED, "output_size": None, "output_ratio": None,
                  "return_indices": False, "_random_samples": None}
    _shown = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (self.output_size is None) == (self.output_ratio is None):
            raise ValueError(f"{type(self).__name__} requires specifying either an output size, or "
                             "a pooling ratio, and not both.")


class FractionalMaxPool2d(_FractionalMaxPool):
    """Maxima over windows with pseudo-random steps (Graham 2014)."""

    _function = "fractional_max_pool2d"


class FractionalMaxPool3d(_FractionalMaxPool):
    """Maxima over volumes with pseudo-random steps (Graham 2014)."""

    _function = "fractional_max_pool3d"


class _MaxUnpool(Module):
    _function = ""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        return getattr(F, self._function)(
            input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    """Put maxima back where `MaxPool1d(return_indices=True)` found them."""

    _function = "max_unpool1d"


class MaxUnpool2d(_MaxUnpool):
    """Put maxima back where `MaxPool2d(return_indices=True)` found them."""

    _function = "max_unpool2d"


class MaxUnpool3d(_MaxUnpool):
    """Put maxima back where `MaxPool3d(return_indices=True)` found them."""

    _function = "max_unpool3d"
