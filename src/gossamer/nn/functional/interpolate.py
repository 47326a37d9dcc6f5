"""Resizing: `interpolate` and the `upsample` family. Layer 5.

Every mode is separable: along one dimension, output o is a sum of few input elements with weights.
The taps (index, weight) of each dimension are computed from `arange`; a resize is then one indexed
read per tap. Antialiasing widens the taps when shrinking (as PIL does).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32, float64
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)
from gossamer.nn.functional.common import ntuple, shape_of
from gossamer.nn.functional.vision import cubic_weights
from gossamer.tensor import Tensor

__all__ = ["interpolate", "upsample", "upsample_bilinear", "upsample_nearest"]

_DIMS = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3), "linear": (1,),
         "bilinear": (2,), "bicubic": (2,), "lanczos": (2,), "trilinear": (3,)}
Taps = list[tuple[Tensor, Any]]


def interpolate(input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                antialias: bool = False) -> Tensor:
    """Resize the dimensions after (N, C).

    Args:
        size, scale_factor: one of the two, one number or one per dimension.
        mode: nearest, nearest-exact, linear (3-D), bilinear, bicubic (4-D), trilinear (5-D), area.
        align_corners: whether the centres of the corner pixels stay; linear and cubic modes only.
        recompute_scale_factor: derive the scale from the rounded output size.
        antialias: average over the shrunk area (bilinear and bicubic).

    Raises:
        ValueError: neither or both of size and scale_factor; an argument the mode does not take.
        ShapeError: the mode does not fit the number of dimensions.
    """
    n = input.dim() - 2
    if mode not in _DIMS or n not in _DIMS[mode]:
        raise NotImplementedError(
            f"interpolate (mode={mode!r}): the input has shape {shape_of(input)}; nearest, "
            "nearest-exact and area take 3-D, 4-D and 5-D input, linear 3-D, bilinear and bicubic "
            "4-D, trilinear 5-D.")
    if mode in ("nearest", "nearest-exact", "area") and align_corners is not None:
        raise ValueError("interpolate: align_corners option can only be set with the interpolating "
                         "modes: linear | bilinear | bicubic | trilinear.")
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ValueError("interpolate: antialias is restricted to bilinear and bicubic modes.")
    sizes, scales = _target(shape_of(input)[2:], size, scale_factor, bool(recompute_scale_factor))
    if min(sizes) <= 0 or 0 in shape_of(input)[2:]:
        raise ShapeError(f"interpolate: input {shape_of(input)} to {sizes}; input and output sizes "
                         "should be greater than 0.")
    if mode == "area":
        pools: Any = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)
        return pools[n - 1](input, sizes)
    work = input if input.dtype in (float32, float64) or "nearest" in mode else input.to(float32)
    for i in range(n):
        work = _resize(work, 2 + i, sizes[i], scales[i], mode, bool(align_corners), antialias)
    return input.clone() if work is input else work.to(input.dtype)


def _target(extents: tuple[int, ...], size: Any, scale_factor: Any,
            recompute: bool) -> tuple[list[int], list[float | None]]:
    """Output sizes and, where given and not to be recomputed, the scales."""
    n = len(extents)
    if (size is None) == (scale_factor is None):
        how = "either" if size is None else "only one of"
        raise ValueError(f"interpolate: {how} size or scale_factor should be defined.")
    if size is not None:
        if recompute:
            raise ValueError("interpolate: recompute_scale_factor is not meaningful with an "
                             "explicit size.")
        return [int(s) for s in ntuple(size, n, "size", "interpolate")], [None] * n
    factors = ntuple(scale_factor, n, "scale_factor", "interpolate")
    sizes = [math.floor(float(e) * f) for e, f in zip(extents, factors, strict=True)]
    return sizes, [None] * n if recompute else [float(f) for f in factors]


def _resize(x: Tensor, dim: int, count: int, scale: float | None, mode: str, align: bool,
            antialias: bool) -> Tensor:
    """Resize one dimension."""
    length = x.shape[dim]
    after = x.dim() - 1 - dim
    if mode.startswith("nearest"):
        return x.index_select(dim, _nearest(length, count, scale, mode == "nearest-exact"))
    cubic = mode == "bicubic"
    if count == length and scale in (None, 1.0):
        return x  # every output is at an input's centre
    if antialias:
        taps = _wide_taps(length, count, scale, align, cubic, x.dtype)
    else:
        taps = _taps(length, count, scale, align, cubic, x.dtype)
    total: Any = None
    for index, weight in taps:
        part = x.index_select(dim, index) * weight.reshape([-1] + [1] * after)
        total = part if total is None else total + part
    return total


def _nearest(length: int, count: int, scale: float | None, exact: bool) -> Tensor:
    """Index of the nearest input element (⌊o·L/O⌋, or of o's centre for nearest-exact)."""
    step = 1.0 / scale if scale is not None and scale > 0 else length / count
    shift = 0.5 if exact else 0.0
    at = ((gf.arange(count).to(float32) + shift) * step).floor().long()
    return at.clamp(max=length - 1)


def _step(length: int, count: int, scale: float | None, align: bool) -> float:
    """Input elements per output element."""
    if align:
        return (length - 1) / (count - 1) if count > 1 else 0.0
    return 1.0 / scale if scale is not None and scale > 0 else length / count


def _taps(length: int, count: int, scale: float | None, align: bool, cubic: bool,
          dtype: Any) -> Taps:
    step = _step(length, count, scale, align)
    number = gf.arange(count).to(dtype)
    at = number * step if align else (number + 0.5) * step - 0.5
    if not cubic:
        at = at.clamp(min=0)
    floor = at.floor()
    t, first = at - floor, floor.long()
    if cubic:
        return [((first + (i - 1)).clamp(0, length - 1), w) for i, w in enumerate(cubic_weights(t))]
    first = first.clamp(max=length - 1)
    return [(first, 1 - t), ((first + 1).clamp(max=length - 1), t)]


def _wide_taps(length: int, count: int, scale: float | None, align: bool, cubic: bool,
               dtype: Any) -> Taps:
    """Taps of the triangle or cubic filter stretched by the shrink factor, weights summing to 1."""
    step = _step(length, count, scale, align)
    stretch = max(step, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    centre = (gf.arange(count).to(dtype) + 0.5) * step
    low = (centre - support + 0.5).floor().clamp(min=0)
    high = (centre + support + 0.5).floor().clamp(max=length)
    picks = []
    for k in range(math.ceil(support) * 2 + 1):
        index = low + k
        d = ((index + 0.5 - centre) / stretch).abs()
        weight = gf.where(index < high, _filter(d, cubic), gf.zeros_like(d))
        picks.append((index.clamp(max=length - 1).long(), weight))
    total = sum((w for _, w in picks[1:]), picks[0][1])
    return [(index, weight / total) for index, weight in picks]


def _filter(d: Tensor, cubic: bool) -> Tensor:
    """The filter at distance d ≥ 0; the antialiased cubic has a = -0.5 (Keys 1981), as in PIL."""
    if not cubic:
        return (1 - d).clamp(min=0)
    a = -0.5
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return gf.where(d < 1, near, gf.where(d < 2, far, gf.zeros_like(d)))


def upsample(input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
             align_corners: bool | None = None) -> Tensor:
    """Retired name of `interpolate`."""
    warnings.warn("`nn.functional.upsample` is deprecated. Use `nn.functional.interpolate` "
                  "instead.",
                  stacklevel=2)
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """Retired name of `interpolate(mode="nearest")`."""
    warnings.warn("`nn.functional.upsample_nearest` is deprecated. Use `nn.functional.interpolate` "
                  "instead.", stacklevel=2)
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """Retired name of `interpolate(mode="bilinear", align_corners=True)`."""
    warnings.warn("`nn.functional.upsample_bilinear` is deprecated. Use "
                  "`nn.functional.interpolate` instead.", stacklevel=2)
    return interpolate(input, size, scale_factor, "bilinear", align_corners=True)
