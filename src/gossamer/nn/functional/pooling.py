"""Pooling: maxima and means over windows. Layer 5.

Windows are views (`unfold`: index arithmetic, no copy), so a pool is one reduction over the window
dimensions and its derivative the folding of the same windows. Maxima go to the first of equals.
"""

from __future__ import annotations

import math
from typing import Any

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.errors import ShapeError
from gossamer.function import Function
from gossamer.nn.functional.common import first_max, ntuple, shape_of
from gossamer.nn.functional.padding import pad
from gossamer.tensor import Tensor

__all__ = [
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d", "max_pool1d",
    "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices", "max_unpool1d", "max_unpool2d", "max_unpool3d",
]

_LETTERS = {1: "L", 2: "H, W", 3: "D, H, W"}


def spatial(name: str, input: Tensor, n: int) -> tuple[int, ...]:
    """The last n extents of (N, C, …) or (C, …).

    Raises:
        ShapeError: another number of dimensions.
    """
    if input.dim() not in (n + 1, n + 2):
        letters = _LETTERS[n]
        raise ShapeError(f"{name}: the input has shape {shape_of(input)}; it must be (N, C, "
                         f"{letters}) or (C, {letters}).")
    return shape_of(input)[-n:]


def pooled_length(length: int, kernel: int, stride: int, padding: int, dilation: int,
                  ceil_mode: bool) -> int:
    """Number of windows along one dimension; with `ceil_mode` the last may leave the input."""
    span = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1  # a window that starts in the right padding does not count
    return count


def _paddings(name: str, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...],
              padding: tuple[int, ...], dilation: tuple[int, ...],
              ceil_mode: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(number of windows, padding before, padding behind) along each pooled dimension.

    Raises:
        ShapeError: padding above half the kernel, or no window fits.
    """
    extents = shape_of(x)[-len(kernel):]
    counts, behind = [], []
    for length, k, s, p, d in zip(extents, kernel, stride, padding, dilation, strict=True):
        if k <= 0 or s <= 0 or d <= 0 or p < 0 or p > ((k - 1) * d + 1) // 2:
            raise ShapeError(f"{name} (kernel_size={kernel}, stride={stride}, padding={padding}, "
                             f"dilation={dilation}): sizes must be positive, and pad should be at "
                             "most half of effective kernel size.")
        count = pooled_length(length, k, s, p, d, ceil_mode)
        if count <= 0:
            raise ShapeError(f"{name} (kernel_size={kernel}): the input has shape {shape_of(x)}; "
                             "the calculated output size is too small. Use a smaller kernel.")
        counts.append(count)
        behind.append(max(0, (count - 1) * s + d * (k - 1) + 1 - length - p))
    return tuple(counts), padding, tuple(behind)


def windows(name: str, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...],
            padding: tuple[int, ...], dilation: tuple[int, ...], ceil_mode: bool,
            value: float) -> Tensor:
    """x (…, *L) as (…, *O, *kernel), padded by `value`.

    Raises:
        ShapeError: padding above half the kernel, or no window fits.
    """
    counts, before, behind = _paddings(name, x, kernel, stride, padding, dilation, ceil_mode)
    if any(before) or any(behind):
        pads = [p for pair in zip(before[::-1], behind[::-1], strict=True) for p in pair]
        x = pad(x, pads, value=value)
    first = x.dim() - len(kernel)
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(first + i, d * (k - 1) + 1, s)
        if d > 1:
            x = x[..., ::d]
        x = x.narrow(first + i, 0, counts[i])
    return x


def _max_pool(name: str, n: int, input: Tensor, kernel_size: Any, stride: Any, padding: Any,
              dilation: Any, ceil_mode: bool, indices: bool) -> Any:
    extents = spatial(name, input, n)
    kernel = ntuple(kernel_size, n, "kernel_size", name)
    steps = kernel if stride is None or stride in ((), []) else ntuple(stride, n, "stride", name)
    pads = ntuple(padding, n, "padding", name)
    spread = ntuple(dilation, n, "dilation", name)
    low: Any = float("-inf")
    if not input.dtype.is_floating_point:
        low = gf.iinfo(input.dtype).min
    if not indices:
        _, before, behind = _paddings(name, input, kernel, steps, pads, spread, ceil_mode)
        return gf.max_pool(input, kernel, steps, before, behind, spread)
    w = windows(name, input, kernel, steps, pads, spread, ceil_mode, low)
    best, offset = first_max(w.flatten(-n))
    return best, _flat_positions(offset, extents, kernel, steps, pads, spread)


def _flat_positions(offset: Tensor, extents: tuple[int, ...], kernel: tuple[int, ...],
                    stride: tuple[int, ...], padding: tuple[int, ...],
                    dilation: tuple[int, ...]) -> Tensor:
    """Position in the flattened input plane of entry `offset` of each window."""
    n = len(kernel)
    position: Any = 0
    for i in range(n):
        inner = math.prod(kernel[i + 1:])
        within = (offset // inner) % kernel[i]
        count = offset.shape[offset.dim() - n + i]
        start = gf.arange(count) * stride[i] - padding[i]
        start = start.reshape([-1] + [1] * (n - 1 - i))
        position = position * extents[i] + start + within * dilation[i]
    return position


def _make_max_pool(n: int) -> tuple[Any, Any]:
    name = f"max_pool{n}d"

    def pool(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
             dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False) -> Any:
        return _max_pool(name, n, input, kernel_size, stride, padding, dilation, ceil_mode,
                         return_indices)

    def with_indices(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                     dilation: Any = 1, ceil_mode: bool = False,
                     return_indices: bool = False) -> Any:
        return _max_pool(name, n, input, kernel_size, stride, padding, dilation, ceil_mode, True)

    pool.__name__ = pool.__qualname__ = name
    with_indices.__name__ = with_indices.__qualname__ = name + "_with_indices"
    pool.__doc__ = f"""Maximum over windows of (N, C, {_LETTERS[n]}) or (C, {_LETTERS[n]}).

    Args:
        kernel_size, stride (default: kernel_size), padding (with -inf), dilation: one number
            or {n}.
        ceil_mode: keep a last window that leaves the input.
        return_indices: also return each maximum's position in the flattened input plane.
    """
    with_indices.__doc__ = f"`{name}` with the positions of the maxima."
    return pool, with_indices


max_pool1d, max_pool1d_with_indices = _make_max_pool(1)
max_pool2d, max_pool2d_with_indices = _make_max_pool(2)
max_pool3d, max_pool3d_with_indices = _make_max_pool(3)


def _divisors(length: int, kernel: int, stride: int, padding: int, count: int,
              include_pad: bool) -> list[int]:
    """How many elements of each window along one dimension count."""
    sizes = []
    for o in range(count):
        start = o * stride - padding
        stop = min(start + kernel, length + padding)
        if not include_pad:
            start, stop = max(start, 0), min(stop, length)
        sizes.append(stop - start)
    return sizes


def _avg_pool(name: str, n: int, input: Tensor, kernel_size: Any, stride: Any, padding: Any,
              ceil_mode: bool, count_include_pad: bool, divisor_override: int | None) -> Tensor:
    extents = spatial(name, input, n)
    kernel = ntuple(kernel_size, n, "kernel_size", name)
    steps = kernel if stride is None or stride in ((), []) else ntuple(stride, n, "stride", name)
    pads = ntuple(padding, n, "padding", name)
    if divisor_override is not None and divisor_override == 0:
        raise ValueError(f"{name}: divisor_override must be not zero.")
    _, before, behind = _paddings(name, input, kernel, steps, pads, (1,) * n, ceil_mode)
    total: Tensor = gf.sum_pool(input, kernel, steps, before, behind, (1,) * n)
    if divisor_override is not None:
        return total / divisor_override
    per_dim = [_divisors(extents[i], kernel[i], steps[i], pads[i], total.shape[i - n],
                         count_include_pad) for i in range(n)]
    if all(len(set(sizes)) == 1 for sizes in per_dim):
        return total / math.prod(sizes[0] for sizes in per_dim)
    divisor: Any = 1
    for i, sizes in enumerate(per_dim):
        along = gf.tensor(sizes).to(total.dtype).reshape([-1] + [1] * (n - 1 - i))
        divisor = along * divisor
    return total / divisor


def avg_pool1d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True) -> Tensor:
    """Mean over windows of (N, C, L) or (C, L)."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode,
                     count_include_pad, None)


def avg_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None) -> Tensor:
    """Mean over windows of (N, C, H, W) or (C, H, W).

    Args:
        kernel_size, stride (default: kernel_size), padding (with zeros): one number or two.
        count_include_pad: whether the padding counts in the mean.
        divisor_override: divide by this instead.
    """
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode,
                     count_include_pad, divisor_override)


@full_precision
def avg_pool3d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None) -> Tensor:
    """Mean over windows of (N, C, D, H, W) or (C, D, H, W); arguments as `avg_pool2d`."""
    return _avg_pool("avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode,
                     count_include_pad, divisor_override)


def _lp_pool(name: str, n: int, input: Tensor, norm_type: float, kernel_size: Any, stride: Any,
             ceil_mode: bool) -> Tensor:
    """(Σ xᵖ)^(1/p), as the mean over a window times its size."""
    kernel = ntuple(kernel_size, n, "kernel_size", name)
    mean = _avg_pool(name, n, input.pow(norm_type), kernel, stride, 0, ceil_mode, True, None)
    return (mean.sign() * gf.relu(mean.abs())).mul(math.prod(kernel)).pow(1.0 / norm_type)


def lp_pool1d(input: Tensor, norm_type: float, kernel_size: int, stride: int | None = None,
              ceil_mode: bool = False) -> Tensor:
    """p-norm over windows of (N, C, L) or (C, L)."""
    return _lp_pool("lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None,
              ceil_mode: bool = False) -> Tensor:
    """p-norm over windows of (N, C, H, W) or (C, H, W)."""
    return _lp_pool("lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None,
              ceil_mode: bool = False) -> Tensor:
    """p-norm over windows of (N, C, D, H, W) or (C, D, H, W)."""
    return _lp_pool("lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode)


def _max_unpool(name: str, n: int, input: Tensor, indices: Tensor, kernel_size: Any, stride: Any,
                padding: Any, output_size: Any) -> Tensor:
    extents = spatial(name, input, n)
    kernel = ntuple(kernel_size, n, "kernel_size", name)
    steps = kernel if stride is None or stride in ((), []) else ntuple(stride, n, "stride", name)
    pads = ntuple(padding, n, "padding", name)
    size = tuple((extents[i] - 1) * steps[i] + kernel[i] - 2 * pads[i] for i in range(n))
    if output_size is not None:
        asked = tuple(output_size)[-n:]
        if any(not d - s < a < d + s for a, d, s in zip(asked, size, steps, strict=True)):
            raise ValueError(f"{name}: invalid output_size {asked}; each extent must be within one "
                             f"stride {steps} of {size}.")
        size = asked
    if shape_of(indices) != shape_of(input):
        raise ShapeError(f"{name}: the input has shape {shape_of(input)}, the indices "
                         f"{shape_of(indices)}; they must be equal.")
    lead = shape_of(input)[:-n]
    plane = _Unpool.apply(input.flatten(-n), indices.flatten(-n), math.prod(size))
    return plane.reshape(*lead, *size)


class _Unpool(Function):
    """Scatter whose derivative reaches every input, also where a later one overwrote it (windows
    that overlap name the same place with the same value)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(indices)
        plane = gf.zeros(*shape_of(values)[:-1], size, dtype=values.dtype)
        return plane.scatter(-1, indices, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return grads[0].gather(-1, indices), None, None


def max_unpool1d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None,
                 padding: Any = 0, output_size: Any = None) -> Tensor:
    """Put maxima back where `max_pool1d(return_indices=True)` found them, zeros elsewhere."""
    return _max_unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


@full_precision
def max_unpool2d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None,
                 padding: Any = 0, output_size: Any = None) -> Tensor:
    """Put maxima back where `max_pool2d(return_indices=True)` found them, zeros elsewhere."""
    return _max_unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


@full_precision
def max_unpool3d(input: Tensor, indices: Tensor, kernel_size: Any, stride: Any = None,
                 padding: Any = 0, output_size: Any = None) -> Tensor:
    """Put maxima back where `max_pool3d(return_indices=True)` found them, zeros elsewhere."""
    return _max_unpool("max_unpool3d", 3, input, indices, kernel_size, stride, padding, output_size)
