"""Layers that rearrange or compare: flatten, shuffle, fold, resize, distances. Layer 5."""

from __future__ import annotations

from typing import Any

from gossamer.nn import functional as F
from gossamer.nn.module import Module
from gossamer.nn.stateless import REQUIRED, Stateless
from gossamer.tensor import Tensor

__all__ = [
    "ChannelShuffle", "CosineSimilarity", "Flatten", "Fold", "PairwiseDistance", "PixelShuffle",
    "PixelUnshuffle", "Unflatten", "Unfold", "Upsample", "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]


class Flatten(Module):
    """Join the dimensions from start_dim to end_dim."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Split dimension `dim` into `unflattened_size`."""

    def __init__(self, dim: int, unflattened_size: Any) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(f"Unflatten: dim={dim!r}; named dimensions are not supported. Pass the "
                            "number of the dimension.")
        self.dim, self.unflattened_size = dim, unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class PixelShuffle(Stateless):
    """(…, C·r², H, W) to (…, C, H·r, W·r)."""

    _function, _arguments = "pixel_shuffle", {"upscale_factor": REQUIRED}


class PixelUnshuffle(Stateless):
    """(…, C, H·r, W·r) to (…, C·r², H, W)."""

    _function, _arguments = "pixel_unshuffle", {"downscale_factor": REQUIRED}


class ChannelShuffle(Stateless):
    """Interleave the channels of `groups` groups."""

    _function, _arguments = "channel_shuffle", {"groups": REQUIRED}


class Unfold(Stateless):
    """Sliding blocks of (N, C, H, W) as columns."""

    _function = "unfold"
    _arguments = {"kernel_size": REQUIRED, "dilation": 1, "padding": 0, "stride": 1}


class Fold(Stateless):
    """Sum of columns put back as blocks."""

    _function = "fold"
    _arguments = {"output_size": REQUIRED, "kernel_size": REQUIRED, "dilation": 1, "padding": 0,
                  "stride": 1}


class Upsample(Module):
    """`functional.interpolate` with remembered arguments."""

    def __init__(self, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                 align_corners: bool | None = None,
                 recompute_scale_factor: bool | None = None) -> None:
        super().__init__()
        self.size = size
        if isinstance(scale_factor, tuple):
            scale_factor = tuple(float(f) for f in scale_factor)
        self.scale_factor = float(scale_factor) if isinstance(scale_factor, int) else scale_factor
        self.mode, self.align_corners = mode, align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners,
                             self.recompute_scale_factor)

    def extra_repr(self) -> str:
        first = (f"size={self.size!r}" if self.scale_factor is None
                 else f"scale_factor={self.scale_factor!r}")
        return f"{first}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """Nearest neighbours, 2-D."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, "nearest")


class UpsamplingBilinear2d(Upsample):
    """Bilinear with aligned corners, 2-D."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, "bilinear", True)


class CosineSimilarity(Stateless):
    """x1·x2 / (‖x1‖·‖x2‖) along `dim`."""

    _function, _arguments, _shown = "cosine_similarity", {"dim": 1, "eps": 1e-8}, ()


class PairwiseDistance(Stateless):
    """‖x1 - x2‖ₚ along the last dimension."""

    _function = "pairwise_distance"
    _arguments = {"p": 2.0, "eps": 1e-6, "keepdim": False}
    _shown = ()
