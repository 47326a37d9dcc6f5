"""Normalisation over batch, layer, group, instance and neighbouring channels. Layer 5.

All are (x - mean)·(variance + eps)^-½ over different dimensions; statistics of half-precision
inputs are taken in float32. Sources: Ioffe & Szegedy 2015, Ba et al. 2016, Wu & He 2018, Ulyanov et
al. 2016, Zhang & Sennrich 2019, Krizhevsky et al. 2012.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import shape_of
from gossamer.nn.functional.padding import pad
from gossamer.nn.functional.pooling import avg_pool2d, avg_pool3d
from gossamer.tensor import Tensor, no_grad

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm",
           "rms_norm"]


def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
               bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean)/√(var + eps)·weight + bias over the last dimensions.

    Raises:
        ShapeError: the input does not end in `normalized_shape`, or weight and bias differ from it.
    """
    shape = _normalized("layer_norm", input, normalized_shape, weight, bias)
    return gf.layer_norm(input, shape, weight, bias, eps)


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
             eps: float | None = None) -> Tensor:
    """x/√(mean x² + eps)·weight over the last dimensions; eps defaults to the dtype's epsilon."""
    shape = _normalized("rms_norm", input, normalized_shape, weight, None)
    return gf.rms_norm(input, shape, weight, eps)


def _normalized(name: str, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None,
                bias: Tensor | None) -> tuple[int, ...]:
    shape = tuple(normalized_shape)
    if not shape or shape_of(input)[-len(shape):] != shape:
        raise ShapeError(f"{name} (normalized_shape={shape}): the input has shape "
                         f"{shape_of(input)}; its last dimensions must be {shape}.")
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and shape_of(tensor) != shape:
            raise ShapeError(f"{name} (normalized_shape={shape}): the {what} has shape "
                             f"{shape_of(tensor)}; it must be {shape}.")
    return shape


def _wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 in float32, anything else as it is."""
    return x.to(float32) if x.dtype.itemsize < 4 else x


def _per_channel(v: Tensor, dims: int) -> Tensor:
    """(C) shaped to broadcast over (N, C, …)."""
    return v.reshape([1, -1] + [1] * (dims - 2))


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
               weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """Normalise each channel (dimension 1) by the batch's or the running statistics.

    Args:
        running_mean, running_var: (C), updated in place while training:
            r ← (1 - momentum)·r + momentum·(statistic of the batch, the unbiased variance).
        training: use the batch's statistics.

    Raises:
        ShapeError: a statistic or weight is not (C); one value per channel while training.
    """
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # PyTorch lets an empty vector through
    if input.dim() < 2:
        raise ShapeError(f"batch_norm: the input has shape {shape_of(input)}; it must be (N, C, "
                         "…).")
    channels = input.shape[1]
    for what, tensor in (("running_mean", running_mean), ("running_var", running_var),
                         ("weight", weight), ("bias", bias)):
        if tensor is not None and shape_of(tensor) != (channels,):
            raise ShapeError(f"batch_norm: {what} has shape {shape_of(tensor)}, the input "
                             f"{shape_of(input)}; {what} must have {channels} elements, one per "
                             "channel (dimension 1).")
    x = _wide(input)
    count = input.numel() // channels if channels else 0
    if training:
        if count <= 1 and input.numel():
            raise ShapeError("batch_norm: expected more than 1 value per channel when training, "
                             f"got input {shape_of(input)}. Use a larger batch or eval mode.")
        dims = [0, *range(2, input.dim())]
        mean = x.mean(dims)
        centred = x - _per_channel(mean, x.dim())
        var = centred.square().mean(dims)
        _update(running_mean, mean, momentum)
        _update(running_var, var * (count / max(count - 1, 1)), momentum)
    else:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var to be defined when "
                             "training=False.")
        mean, var = _wide(running_mean), _wide(running_var)
        centred = x - _per_channel(mean, x.dim())
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * _wide(weight)
    y = centred * _per_channel(scale, x.dim())
    if bias is not None:
        y = y + _per_channel(_wide(bias), x.dim())
    return y.to(input.dtype)


def _update(running: Tensor | None, new: Tensor, momentum: Any) -> None:
    if running is not None:
        with no_grad():
            running.copy_((1 - momentum) * running + momentum * new.detach().to(running.dtype))


def instance_norm(input: Tensor, running_mean: Tensor | None = None,
                  running_var: Tensor | None = None, weight: Tensor | None = None,
                  bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
                  eps: float = 1e-5) -> Tensor:
    """Normalise each channel of each sample over its positions (a batch norm of N·C channels).

    Args:
        input: (N, C, …).
        running_mean, running_var: (C); updated with the mean over the samples.
        use_input_stats: False normalises by the running statistics.
    """
    shape = shape_of(input)
    if len(shape) < 3:
        raise ShapeError(f"instance_norm: the input has shape {shape}; it must be (N, C, …).")
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if math.prod(shape[2:]) == 1:
        raise ShapeError("instance_norm: expected more than 1 spatial element when training, got "
                         f"input {shape}.")
    n, c = shape[:2]
    means = None if running_mean is None else running_mean.repeat(n)
    variances = None if running_var is None else running_var.repeat(n)
    flat = input.reshape(1, n * c, *shape[2:])
    y = batch_norm(flat, means, variances, None if weight is None else weight.repeat(n),
                   None if bias is None else bias.repeat(n), True, momentum, eps)
    with no_grad():
        if running_mean is not None and means is not None:
            running_mean.copy_(means.reshape(n, c).mean(0))
        if running_var is not None and variances is not None:
            running_var.copy_(variances.reshape(n, c).mean(0))
    return y.reshape(shape)


def group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None,
               bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise each of `num_groups` groups of channels of each sample.

    Args:
        input: (N, C, …), C divisible by num_groups.
        weight, bias: (C).
    """
    shape = shape_of(input)
    if len(shape) < 2:
        raise ShapeError(f"group_norm: the input has shape {shape}; it must be (N, C, …).")
    if num_groups <= 0 or shape[1] % num_groups:
        raise ShapeError(f"group_norm (num_groups={num_groups}): the input has shape {shape}; its "
                         f"{shape[1]} channels must be divisible by num_groups.")
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and shape_of(tensor) != (shape[1],):
            raise ShapeError(f"group_norm: the {what} has shape {shape_of(tensor)}; it must have "
                             f"one element for each of the {shape[1]} channels.")
    size = shape[1] // num_groups * math.prod(shape[2:])
    x = _wide(input).reshape(shape[0], num_groups, size)
    centred = x - x.mean(-1, keepdim=True)
    y = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y.reshape(shape)
    if weight is not None:
        y = y * _per_channel(_wide(weight), len(shape))
    if bias is not None:
        y = y + _per_channel(_wide(bias), len(shape))
    return y.to(input.dtype)


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75,
                        k: float = 1.0) -> Tensor:
    """x / (k + alpha·mean of x² over `size` neighbouring channels)^beta (Krizhevsky 2012)."""
    shape = shape_of(input)
    if len(shape) < 3:
        raise ShapeError(f"local_response_norm: the input has shape {shape}; it must have at least "
                         "3 dimensions (N, C, …).")
    if input.numel() == 0:
        return input
    squares = input.square().unsqueeze(1)
    if len(shape) == 3:
        squares = pad(squares, (0, 0, size // 2, (size - 1) // 2))
        mean = avg_pool2d(squares, (size, 1), stride=1).squeeze(1)
    else:
        flat = squares.reshape(shape[0], 1, shape[1], shape[2], -1)
        flat = pad(flat, (0, 0, 0, 0, size // 2, (size - 1) // 2))
        mean = avg_pool3d(flat, (size, 1, 1), stride=1).squeeze(1).reshape(shape)
    return input / (mean * alpha + k).pow(beta)
