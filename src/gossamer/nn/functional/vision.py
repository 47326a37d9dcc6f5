"""Rearranging pixels: shuffles, unfold and fold, affine grids and sampling. Layer 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import ntuple, shape_of
from gossamer.nn.functional.padding import pad
from gossamer.tensor import Tensor

__all__ = ["affine_grid", "channel_shuffle", "fold", "grid_sample", "native_channel_shuffle",
           "pixel_shuffle", "pixel_unshuffle", "unfold"]


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(…, C·r², H, W) to (…, C, H·r, W·r) (Shi et al. 2016)."""
    r, shape = upscale_factor, shape_of(input)
    if len(shape) < 3 or r <= 0 or shape[-3] % (r * r):
        raise ShapeError(f"pixel_shuffle (upscale_factor={r}): the input has shape {shape}; it "
                         f"must be (…, C, H, W) with C divisible by the square of a positive "
                         "factor.")
    lead, (c, h, w) = shape[:-3], shape[-3:]
    n = len(lead)
    x = input.reshape(*lead, c // (r * r), r, r, h, w)
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*lead, c // (r * r), h * r, w * r).clone()  # of r = 1 a view


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(…, C, H·r, W·r) to (…, C·r², H, W): the inverse of `pixel_shuffle`."""
    r, shape = downscale_factor, shape_of(input)
    if len(shape) < 3 or r <= 0 or shape[-2] % r or shape[-1] % r:
        raise ShapeError(f"pixel_unshuffle (downscale_factor={r}): the input has shape {shape}; it "
                         "must be (…, C, H, W) with H and W divisible by a positive factor.")
    lead, (c, h, w) = shape[:-3], shape[-3:]
    n = len(lead)
    x = input.reshape(*lead, c, h // r, r, w // r, r)
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, c * r * r, h // r, w // r).clone()


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Interleave the channels (dimension 1) of `groups` groups (Zhang et al. 2018)."""
    shape = shape_of(input)
    if len(shape) < 3 or groups <= 0 or shape[1] % groups:
        raise ShapeError(f"channel_shuffle (groups={groups}): the input has shape {shape}; it must "
                         "be (N, C, …) with more than 2 dimensions and C divisible by groups.")
    x = input.reshape(shape[0], groups, shape[1] // groups, *shape[2:])
    return x.transpose(1, 2).reshape(shape).clone()


native_channel_shuffle = channel_shuffle


def _blocks(length: int, kernel: int, dilation: int, padding: int, stride: int) -> int:
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
           stride: Any = 1) -> Tensor:
    """Sliding blocks as columns: (N, C, H, W) to (N, C·kh·kw, blocks)."""
    kernel = ntuple(kernel_size, 2, "kernel_size", "unfold")
    spread, pads, steps = (ntuple(v, 2) for v in (dilation, padding, stride))
    shape = shape_of(input)
    if len(shape) == 3:
        return unfold(input.unsqueeze(0), kernel, spread, pads, steps).squeeze(0)
    counts = [_blocks(e, k, d, p, s) for e, k, d, p, s
              in zip(shape[-2:], kernel, spread, pads, steps, strict=True)]
    if len(shape) != 4 or min(counts) < 1:
        raise ShapeError(f"unfold (kernel_size={kernel}): the input has shape {shape}; it must be "
                         "(N, C, H, W) or (C, H, W), large enough for one block.")
    x = pad(input, (pads[1], pads[1], pads[0], pads[0])) if any(pads) else input
    for i in range(2):
        x = x.unfold(2 + i, (kernel[i] - 1) * spread[i] + 1, steps[i])
        x = x[..., ::spread[i]] if spread[i] > 1 else x
    x = x.permute(0, 1, 4, 5, 2, 3)
    x = x.reshape(shape[0], shape[1] * kernel[0] * kernel[1], counts[0] * counts[1])
    return x.clone()  # blocks of one element are a view


def fold(input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
         stride: Any = 1) -> Tensor:
    """The transpose of `unfold`: columns (N, C·kh·kw, L) summed into (N, C, H, W)."""
    size = ntuple(output_size, 2, "output_size", "fold")
    kernel = ntuple(kernel_size, 2, "kernel_size", "fold")
    spread, pads, steps = (ntuple(v, 2) for v in (dilation, padding, stride))
    shape = shape_of(input)
    if len(shape) == 2:
        return fold(input.unsqueeze(0), size, kernel, spread, pads, steps).squeeze(0)
    counts = [_blocks(e, k, d, p, s) for e, k, d, p, s
              in zip(size, kernel, spread, pads, steps, strict=True)]
    area = kernel[0] * kernel[1]
    if len(shape) != 3 or shape[1] % area or shape[2] != counts[0] * counts[1]:
        raise ShapeError(f"fold (output_size={size}, kernel_size={kernel}): the input has shape "
                         f"{shape}; it must be (N, C·{area}, {counts[0] * counts[1]}).")
    channels = shape[1] // area
    tall, wide = size[0] + 2 * pads[0], size[1] + 2 * pads[1]
    rows = (gf.arange(kernel[0]) * spread[0]).reshape(-1, 1, 1, 1) + (
        gf.arange(counts[0]) * steps[0]).reshape(1, 1, -1, 1)
    cols = (gf.arange(kernel[1]) * spread[1]).reshape(1, -1, 1, 1) + (
        gf.arange(counts[1]) * steps[1]).reshape(1, 1, 1, -1)
    position = (rows * wide + cols).reshape(-1)  # (kh·kw·oh·ow)
    plane = gf.zeros(shape[0], channels, tall * wide, dtype=input.dtype)
    plane = plane.index_add(2, position, input.reshape(shape[0], channels, -1))
    full = plane.reshape(shape[0], channels, tall, wide)
    return full[:, :, pads[0]:pads[0] + size[0], pads[1]:pads[1] + size[1]]


def _base_axis(count: int, align_corners: bool, like: Tensor) -> Tensor:
    """Centres of `count` pixels in [-1, 1]."""
    if count <= 1:
        return gf.zeros(count, dtype=like.dtype)
    axis = gf.linspace(-1, 1, count, dtype=like.dtype)
    return axis if align_corners else axis * ((count - 1) / count)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """Sampling positions of an affine map: theta (N, 2, 3) with size (N, C, H, W), or the 3-D form.

    Returns:
        (N, H, W, 2) in the order x, y; or (N, D, H, W, 3).
    """
    n = len(size) - 2
    if n not in (2, 3) or shape_of(theta) != (size[0], n, n + 1):
        raise ShapeError(f"affine_grid: theta {shape_of(theta)}, size {tuple(size)}; theta must be "
                         "(N, 2, 3) for size (N, C, H, W), or (N, 3, 4) for (N, C, D, H, W).")
    extents = tuple(size[2:])
    columns = []
    for i in reversed(range(n)):  # x is the last dimension
        axis = _base_axis(extents[i], bool(align_corners), theta)
        columns.append(axis.reshape([-1 if d == i else 1 for d in range(n)]).expand(extents))
    columns.append(gf.ones(extents, dtype=theta.dtype))
    base = gf.stack(columns, -1).reshape(1, -1, n + 1)
    return base.matmul(theta.transpose(1, 2)).reshape(size[0], *extents, n)


@full_precision
def grid_sample(input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros",
                align_corners: bool | None = None) -> Tensor:
    """Values of `input` at the positions of `grid`, interpolated.

    Args:
        input: (N, C, H, W) or (N, C, D, H, W).
        grid: (N, Ho, Wo, 2) or (N, Do, Ho, Wo, 3): positions x, y(, z) in [-1, 1].
        mode: "bilinear", "nearest", or "bicubic" (4-D only).
        padding_mode: "zeros", "border" or "reflection" for positions outside.
        align_corners: whether ±1 are the centres of the corner pixels instead of their edges.

    Returns:
        (N, C, Ho, Wo) or (N, C, Do, Ho, Wo).
    """
    n = input.dim() - 2
    if n not in (2, 3) or grid.dim() != input.dim() or grid.shape[-1] != n:
        raise ShapeError(f"grid_sample: input {shape_of(input)}, grid {shape_of(grid)}; they must "
                         "be (N, C, H, W) and (N, Ho, Wo, 2), or the same with one dimension more.")
    if mode not in ("bilinear", "nearest", "bicubic") or (mode == "bicubic" and n == 3):
        raise ValueError(f"grid_sample: mode={mode!r}; there are bilinear, nearest and, for 4-D "
                         "input, bicubic.")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"grid_sample: padding_mode={padding_mode!r}; there are zeros, border, "
                         "reflection.")
    extents = shape_of(input)[2:]
    align = bool(align_corners)
    spots = [_unnormalize(grid[..., n - 1 - i], extents[i], align) for i in range(n)]
    if mode != "bicubic":
        spots = [_inside(s, e, padding_mode, align) for s, e in zip(spots, extents, strict=True)]
    taps = [_taps(s, mode) for s in spots]
    total: Any = 0
    for choice in range(len(taps[0]) ** n):
        weight: Any = 1
        indices = []
        for i in range(n):
            choice, k = divmod(choice, len(taps[i]))
            at, w = taps[i][k]
            if mode == "bicubic":
                at = _inside(at, extents[i], padding_mode, align)
            indices.append(at)
            weight = weight * w
        total = total + _read(input, indices, extents) * (
            weight.unsqueeze(1) if isinstance(weight, Tensor) else weight)
    return total


def _unnormalize(x: Tensor, extent: int, align: bool) -> Tensor:
    return (x + 1) * ((extent - 1) / 2) if align else ((x + 1) * extent - 1) / 2


def _inside(x: Tensor, extent: int, padding_mode: str, align: bool) -> Tensor:
    """Positions outside the input, clamped or reflected; "zeros" leaves them to the reader."""
    if padding_mode == "zeros":
        return x
    if padding_mode == "reflection":
        low, span = (0.0, float(extent - 1)) if align else (-0.5, float(extent))
        if span == 0:
            return gf.zeros_like(x)
        away = (x - low).abs()
        turns = (away / span).floor()
        extra = away - turns * span
        x = gf.where(gf.remainder(turns, 2) == 0, extra + low, span - extra + low)
    return x.clamp(0, extent - 1)


def _taps(x: Tensor, mode: str) -> list[tuple[Tensor, Any]]:
    """Neighbouring whole positions of x and their weights."""
    if mode == "nearest":
        return [(x.round(), 1.0)]
    floor = x.floor().detach()
    t = x - floor
    if mode == "bilinear":
        return [(floor, 1 - t), (floor + 1, t)]
    return [(floor + (i - 1), w) for i, w in enumerate(cubic_weights(t))]


def cubic_weights(t: Tensor, a: float = -0.75) -> list[Tensor]:
    """Weights of the four neighbours at distance t from the second (Keys 1981; a as in PyTorch)."""
    def near(d: Tensor) -> Tensor:  # |d| <= 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:  # 1 < |d| < 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _read(input: Tensor, at: list[Tensor], extents: tuple[int, ...]) -> Tensor:
    """input[:, :, at…] with 0 outside; `at` (N, *O) in floats."""
    n, c = input.shape[:2]
    flat: Any = 0
    valid: Any = None
    for position, extent in zip(at, extents, strict=True):
        within = (position >= 0) & (position <= extent - 1)
        valid = within if valid is None else valid & within
        safe = gf.where(within, position.detach(), gf.zeros_like(position)).long()
        flat = flat * extent + safe
    out = shape_of(at[0])[1:]
    index = flat.reshape(n, 1, -1).expand(n, c, math.prod(out))
    values = input.flatten(2).gather(2, index).reshape(n, c, *out)
    return gf.where(valid.unsqueeze(1), values, gf.zeros((), dtype=input.dtype))
