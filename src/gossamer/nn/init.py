"""Filling parameters before training: the functions of torch.nn.init. Layer 5.

All write in place, outside autograd, and return their tensor. Sources: Glorot & Bengio 2010
(xavier), He et al. 2015 (kaiming), Saxe et al. 2013 (orthogonal), Martens 2010 (sparse).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32
from gossamer.core.errors import ShapeError
from gossamer.tensor import Tensor, no_grad

__all__ = [
    "calculate_gain", "constant_", "dirac_", "eye_", "kaiming_normal_", "kaiming_uniform_",
    "normal_", "ones_", "orthogonal_", "sparse_", "trunc_normal_", "uniform_", "xavier_normal_",
    "xavier_uniform_", "zeros_",
]

_GAINS = {"linear": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "conv_transpose1d": 1.0,
          "conv_transpose2d": 1.0, "conv_transpose3d": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0,
          "relu": math.sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before a nonlinearity are scaled to keep the variance.

    Args:
        nonlinearity: linear, conv1d…3d, sigmoid, tanh, relu, leaky_relu or selu.
        param: slope of leaky_relu (default 0.01).

    Raises:
        ValueError: an unknown nonlinearity or a slope that is not a number.
    """
    if nonlinearity == "leaky_relu":
        if param is None:
            slope = 0.01
        elif isinstance(param, (int, float)) and not isinstance(param, bool):
            slope = float(param)
        else:
            raise ValueError(f"calculate_gain: negative_slope {param} is not a number.")
        return math.sqrt(2.0 / (1 + slope ** 2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"calculate_gain: unsupported nonlinearity {nonlinearity!r}; there are "
                         f"leaky_relu, {', '.join(_GAINS)}.")
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with draws from U(a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with draws from N(mean, std²)."""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0,
                  b: float = 2.0, generator: Any = None) -> Tensor:
    """Fill with draws from N(mean, std²) restricted to [a, b], by inverting the distribution.

    x = mean + std·√2·erfinv(u) with u uniform between 2Φ((a-mean)/std)-1 and 2Φ((b-mean)/std)-1.
    """
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(f"trunc_normal_: mean {mean} is more than 2 std from [{a}, {b}]; the "
                      "distribution of the values may be incorrect.", stacklevel=2)
    low = math.erf((a - mean) / std / math.sqrt(2.0))
    high = math.erf((b - mean) / std / math.sqrt(2.0))
    with no_grad():
        tensor.uniform_(low, high, generator=generator)
        tensor.erfinv_().mul_(std * math.sqrt(2.0)).add_(mean)
        return tensor.clamp_(min=a, max=b)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one value."""
    with no_grad():
        return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    with no_grad():
        return tensor.zero_()


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with the identity.

    Raises:
        ShapeError: the tensor is not a matrix.
    """
    _need_dims("eye_", tensor, 2, 2)
    with no_grad():
        return tensor.copy_(gf.eye(tensor.shape[0], tensor.shape[1], dtype=tensor.dtype))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fill a convolution weight so that it passes as many channels through as it can.

    Raises:
        ShapeError: the tensor is not a weight of Conv1d, 2d or 3d, or the groups do not divide it.
    """
    _need_dims("dirac_", tensor, 3, 5)
    shape = tuple(tensor.shape)
    if shape[0] % groups:
        raise ShapeError(f"dirac_ (groups={groups}): the weight has shape {shape}; dimension 0 "
                         "must be divisible by groups.")
    per_group = shape[0] // groups
    with no_grad():
        tensor.zero_()
        middle = tuple(extent // 2 for extent in shape[2:])
        for g in range(groups):
            for d in range(min(per_group, shape[1])):
                tensor[(g * per_group + d, d, *middle)] = 1
    return tensor


def _need_dims(name: str, tensor: Tensor, low: int, high: int) -> None:
    if not low <= tensor.dim() <= high:
        dims = str(low) if low == high else f"{low} to {high}"
        raise ShapeError(f"{name}: the tensor has shape {tuple(tensor.shape)}; only tensors with "
                         f"{dims} dimensions are supported.")


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """Inputs and outputs that one element of a weight of shape (out, in, *kernel) serves."""
    if tensor.dim() < 2:
        raise ShapeError(f"fan in and fan out: the tensor has shape {tuple(tensor.shape)}; it "
                         "needs at least 2 dimensions (out, in).")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _fan(tensor: Tensor, mode: str) -> int:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode {mode!r} is not supported; use 'fan_in' or 'fan_out'.")
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    return fan_in if mode == "fan_in" else fan_out


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with U(-a, a), a = gain·√(6 / (fan_in + fan_out))."""
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    bound = gain * math.sqrt(6.0 / float(fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with N(0, s²), s = gain·√(2 / (fan_in + fan_out))."""
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / float(fan_in + fan_out)), generator)


def kaiming_uniform_(tensor: Tensor, a: float = 0, mode: str = "fan_in",
                     nonlinearity: str = "leaky_relu", generator: Any = None) -> Tensor:
    """Fill with U(-b, b), b = gain·√(3 / fan)."""
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    bound = math.sqrt(3.0) * std
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(tensor: Tensor, a: float = 0, mode: str = "fan_in",
                    nonlinearity: str = "leaky_relu", generator: Any = None) -> Tensor:
    """Fill with N(0, s²), s = gain / √fan."""
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return normal_(tensor, 0.0, std, generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Fill with a (semi-)orthogonal matrix over dimension 0 and all others flattened.

    Gram-Schmidt twice over a Gaussian matrix ("twice is enough", Kahan and Parlett), which gives
    the same distribution as QR with positive diagonal.

    Cost: O(n²m) for n rows and m columns, n the smaller; for set-up, not for a loop.
    """
    if tensor.dim() < 2:
        raise ShapeError(f"orthogonal_: the tensor has shape {tuple(tensor.shape)}; it needs at "
                         "least 2 dimensions.")
    if tensor.numel() == 0:
        return tensor
    rows, cols = tensor.shape[0], tensor.numel() // tensor.shape[0]
    with no_grad():
        draws = gf.empty(rows, cols, dtype=float32).normal_(0, 1, generator=generator)
        basis = _orthonormal_rows(draws.numpy() if rows <= cols else draws.numpy().T)
        if rows > cols:
            basis = basis.T
        tensor.copy_(gf.tensor(gain * basis).to(tensor.dtype).reshape(tensor.shape))
    return tensor


def _orthonormal_rows(a: Any) -> Any:
    """Rows of a NumPy matrix with at most as many rows as columns, orthonormalised in float64."""
    q = a.astype("float64")
    for i in range(q.shape[0]):
        for _ in range(2):
            q[i] -= q[:i].T @ (q[:i] @ q[i])
        q[i] /= math.sqrt(float(q[i] @ q[i]))
    return q


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    """Fill a matrix with N(0, std²) and set the fraction `sparsity` of each column to zero."""
    _need_dims("sparse_", tensor, 2, 2)
    rows, cols = tensor.shape
    zeros = math.ceil(sparsity * rows)
    with no_grad():
        tensor.normal_(0, std, generator=generator)
        for col in range(cols):
            order = gf.randperm(rows, generator=generator)
            tensor[order[:zeros], col] = 0
    return tensor
