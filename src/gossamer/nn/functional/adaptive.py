"""Pools whose windows follow from the output size: adaptive and fractional. Layer 5.

Adaptive window i of O over L elements is [⌊i·L/O⌋, ⌈(i+1)·L/O⌉): windows of unequal length. They
are read through an index table of the longest length with a mask; both are arithmetic on `arange`,
so no constant is stored. Where O divides L the windows are a plain reshape.
"""

from __future__ import annotations

from typing import Any

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import first_max, ntuple, shape_of
from gossamer.nn.functional.pooling import spatial
from gossamer.tensor import Tensor

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d", "adaptive_max_pool3d_with_indices", "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices", "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
]


_SLICES = 16  # windows of unequal length along a dimension that are pools of their own


def _sizes(name: str, input: Tensor, output_size: Any, n: int) -> tuple[int, ...]:
    extents = spatial(name, input, n)
    wanted = ntuple(output_size, n, "output_size", name)
    sizes = tuple(e if o is None else int(o) for o, e in zip(wanted, extents, strict=True))
    if min(sizes) < 0 or 0 in extents:
        raise ShapeError(f"{name} (output_size={output_size}): the input has shape "
                         f"{shape_of(input)}; output sizes must not be negative and input "
                         "extents not zero.")
    return sizes


def _table(length: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices (count, K) of the elements of each window and which of them are in it."""
    widest = max((-(-((i + 1) * length) // count) - i * length // count for i in range(count)),
                 default=1)
    number = gf.arange(count)
    start = number * length // count
    stop = ((number + 1) * length + count - 1) // count
    index = start.unsqueeze(1) + gf.arange(widest)
    return index.clamp(max=length - 1), index < stop.unsqueeze(1)


def _slices(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """The windows along a dimension as views, one after the other."""
    length = x.shape[dim]
    starts = [i * length // count for i in range(count)]
    stops = [-(-(i + 1) * length // count) for i in range(count)]
    return [x.narrow(dim, a, b - a) for a, b in zip(starts, stops, strict=True)]


def _adaptive_mean(x: Tensor, dim: int, count: int) -> Tensor:
    length = x.shape[dim]
    if count == length:
        return x
    if count and length % count == 0:
        return x.unflatten(dim, (count, length // count)).mean(dim + 1)
    if 0 < count <= _SLICES:
        return gf.cat([part.mean(dim, keepdim=True) for part in _slices(x, dim, count)], dim)
    index, inside = _table(length, count)
    parts = x.index_select(dim, index.reshape(-1)).unflatten(dim, shape_of(index))
    after = x.dim() - 1 - dim
    mask = inside.reshape(*shape_of(inside), *([1] * after))
    total = gf.where(mask, parts, gf.zeros((), dtype=x.dtype)).sum(dim + 1)
    return total / inside.sum(1).to(x.dtype).reshape([-1] + [1] * after)


def _adaptive_avg(name: str, input: Tensor, output_size: Any, n: int) -> Tensor:
    sizes = _sizes(name, input, output_size, n)
    first = input.dim() - n
    x = input
    for i in range(n):  # the mean over a box is the mean of means: its sides are independent
        x = _adaptive_mean(x, first + i, sizes[i])
    return input.clone() if x is input else x


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as many windows as asked for, of (N, C, L) or (C, L)."""
    return _adaptive_avg("adaptive_avg_pool1d", input, output_size, 1)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as many windows as asked for; an entry None keeps that extent."""
    return _adaptive_avg("adaptive_avg_pool2d", input, output_size, 2)


@full_precision
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Means over as many windows as asked for; an entry None keeps that extent."""
    return _adaptive_avg("adaptive_avg_pool3d", input, output_size, 3)


def _boxes(x: Tensor, tables: list[Tensor], lead: int) -> tuple[Tensor, Tensor]:
    """Windows by index tables (O_i, K_i) of each trailing dimension.

    Returns:
        elements (…, O_1, …, O_n, K_1·…·K_n) and their positions in the flattened plane, the latter
        without leading dimensions.
    """
    n = len(tables)
    extents = shape_of(x)[lead:]
    position: Any = 0
    for i, table in enumerate(tables):
        count, width = table.shape
        spot = lead + 2 * i
        x = x.index_select(spot, table.reshape(-1)).unflatten(spot, (count, width))
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = count, width
        position = position * extents[i] + table.reshape(shape)
    order = [*range(lead), *range(lead, lead + 2 * n, 2), *range(lead + 1, lead + 2 * n, 2)]
    return x.permute(order).flatten(-n), position.flatten(-n)


def _adaptive_max(name: str, input: Tensor, output_size: Any, n: int, indices: bool) -> Any:
    sizes = _sizes(name, input, output_size, n)
    lead = input.dim() - n
    even = 0 not in sizes and all(e % s == 0 for e, s in zip(shape_of(input)[lead:], sizes,
                                                             strict=True))
    if even and not indices:
        kernel = tuple(e // s for e, s in zip(shape_of(input)[lead:], sizes, strict=True))
        return gf.max_pool(input, kernel, kernel, (0,) * n, (0,) * n, (1,) * n)
    pairs = [_table(shape_of(input)[lead + i], sizes[i]) for i in range(n)]
    parts, position = _boxes(input, [index for index, _ in pairs], lead)
    inside: Any = None
    for i, (_, mask) in enumerate(pairs):
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = mask.shape
        inside = mask.reshape(shape) if inside is None else inside & mask.reshape(shape)
    low = gf.full((), float("-inf"), dtype=input.dtype)
    best, offset = first_max(gf.where(inside.flatten(-n), parts, low))
    if not indices:
        return best
    spots = position.expand(shape_of(parts)).gather(-1, offset.unsqueeze(-1)).squeeze(-1)
    return best, spots


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over as many windows as asked for, of (N, C, L) or (C, L)."""
    return _adaptive_max("adaptive_max_pool1d", input, output_size, 1, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over as many windows as asked for; an entry None keeps that extent."""
    return _adaptive_max("adaptive_max_pool2d", input, output_size, 2, return_indices)


@full_precision
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over as many windows as asked for; an entry None keeps that extent."""
    return _adaptive_max("adaptive_max_pool3d", input, output_size, 3, return_indices)


def adaptive_max_pool1d_with_indices(input: Tensor, output_size: Any,
                                     return_indices: bool = False) -> Any:
    """`adaptive_max_pool1d` with the positions of the maxima."""
    return _adaptive_max("adaptive_max_pool1d", input, output_size, 1, True)


def adaptive_max_pool2d_with_indices(input: Tensor, output_size: Any,
                                     return_indices: bool = False) -> Any:
    """`adaptive_max_pool2d` with the positions of the maxima in the flattened plane."""
    return _adaptive_max("adaptive_max_pool2d", input, output_size, 2, True)


def adaptive_max_pool3d_with_indices(input: Tensor, output_size: Any,
                                     return_indices: bool = False) -> Any:
    """`adaptive_max_pool3d` with the positions of the maxima in the flattened volume."""
    return _adaptive_max("adaptive_max_pool3d", input, output_size, 3, True)


def _fractional_starts(sample: Tensor, length: int, kernel: int, count: int) -> Tensor:
    """First index of each of `count` windows by Graham's pseudo-random sequence (2014, 2.1).

    Args:
        sample: (N, C), uniform in [0, 1).

    Returns:
        int64 (N, C, count); the last window ends at the last element.
    """
    last = gf.full((*shape_of(sample), 1), length - kernel).long()
    if count == 1:
        return last
    alpha = (length - kernel) / (count - 1)
    u = sample.unsqueeze(-1)
    number = gf.arange(count - 1)
    starts = ((number + u) * alpha).long() - (u * alpha).long()
    return gf.cat([starts, last], -1)


def _fractional(name: str, input: Tensor, kernel_size: Any, output_size: Any, output_ratio: Any,
                indices: bool, samples: Tensor | None, n: int) -> Any:
    extents = spatial(name, input, n)
    kernel = ntuple(kernel_size, n, "kernel_size", name)
    if output_size is None and output_ratio is None:
        raise ValueError(f"{name} requires specifying either an output_size or an output_ratio.")
    if output_size is None:
        ratio = ntuple(output_ratio, n, "output_ratio", name)
        output_size = [int(e * r) for e, r in zip(extents, ratio, strict=True)]
    sizes = ntuple(output_size, n, "output_size", name)
    if any(o + k - 1 > e for o, k, e in zip(sizes, kernel, extents, strict=True)):
        raise ShapeError(f"{name}: output {sizes} with kernel {kernel} does not fit the input "
                         f"{shape_of(input)}; output + kernel - 1 must not exceed an extent.")
    batched = input if input.dim() == n + 2 else input.unsqueeze(0)
    batch, channels = batched.shape[:2]
    if samples is None:
        samples = gf.rand(batch, channels, n, dtype=input.dtype)
    position: Any = 0
    for i in range(n):
        # PyTorch draws the sample of the last dimension first in 2-D and of the first in 3-D
        column = n - 1 - i if n == 2 else i
        starts = _fractional_starts(samples[..., column], extents[i], kernel[i], sizes[i])
        table = starts.unsqueeze(-1) + gf.arange(kernel[i])  # (N, C, O, K)
        shape = [batch, channels] + [1] * (2 * n)
        shape[2 + i], shape[2 + n + i] = sizes[i], kernel[i]
        position = position * extents[i] + table.reshape(shape)
    position = position.flatten(-n)  # (N, C, *O, K)
    parts = batched.flatten(2).gather(2, position.flatten(2)).reshape(position.shape)
    best, offset = first_max(parts)
    spots = position.gather(-1, offset.unsqueeze(-1)).squeeze(-1)
    if input.dim() == n + 1:
        best, spots = best.squeeze(0), spots.squeeze(0)
    return (best, spots) if indices else best


@full_precision
def fractional_max_pool2d(input: Tensor, kernel_size: Any, output_size: Any = None,
                          output_ratio: Any = None, return_indices: bool = False,
                          _random_samples: Tensor | None = None) -> Any:
    """Maxima over windows with pseudo-random steps (Graham 2014).

    Args:
        output_size, output_ratio: one of the two: extents, or their ratio to the input's.
        _random_samples: (N, C, 2) in [0, 1) instead of own draws.
    """
    return _fractional("fractional_max_pool2d", input, kernel_size, output_size, output_ratio,
                       return_indices, _random_samples, 2)


@full_precision
def fractional_max_pool3d(input: Tensor, kernel_size: Any, output_size: Any = None,
                          output_ratio: Any = None, return_indices: bool = False,
                          _random_samples: Tensor | None = None) -> Any:
    """Maxima over volumes with pseudo-random steps; arguments as `fractional_max_pool2d`."""
    return _fractional("fractional_max_pool3d", input, kernel_size, output_size, output_ratio,
                       return_indices, _random_samples, 3)


def fractional_max_pool2d_with_indices(input: Tensor, kernel_size: Any, output_size: Any = None,
                                       output_ratio: Any = None, return_indices: bool = False,
                                       _random_samples: Tensor | None = None) -> Any:
    """`fractional_max_pool2d` with the positions of the maxima."""
    return _fractional("fractional_max_pool2d", input, kernel_size, output_size, output_ratio,
                       True, _random_samples, 2)


def fractional_max_pool3d_with_indices(input: Tensor, kernel_size: Any, output_size: Any = None,
                                       output_ratio: Any = None, return_indices: bool = False,
                                       _random_samples: Tensor | None = None) -> Any:
    """`fractional_max_pool3d` with the positions of the maxima."""
    return _fractional("fractional_max_pool3d", input, kernel_size, output_size, output_ratio,
                       True, _random_samples, 3)
