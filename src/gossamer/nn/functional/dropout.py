"""Dropout: zeroing at random while training. Layer 5.

The mask is drawn from the counter-based generator and written as elementwise operators, so it fuses
into what consumes it and a seed gives the same mask on any number of threads.
Sources: Srivastava et al. 2014; Klambauer et al. 2017 (alpha dropout).
"""

from __future__ import annotations

from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import replace, shape_of
from gossamer.tensor import Tensor

__all__ = ["alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d",
           "feature_alpha_dropout"]

# -scale·alpha of SELU: the value that a saturated unit has (Klambauer et al. 2017, section 3)
_SATURATED = -1.7580993408473766


def _check_p(name: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: dropout probability has to be between 0 and 1, but got {p}.")


def _kept(shape: tuple[int, ...], p: float) -> Tensor:
    """A mask that is true with probability 1 - p."""
    return gf.rand(shape) >= p


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1 - p)."""
    _check_p("dropout", p)
    return replace(input, _drop(input, shape_of(input), p), inplace) if training else input


def _drop(input: Tensor, mask_shape: tuple[int, ...], p: float) -> Tensor:
    if p == 0.0:
        return input * 1
    if p == 1.0:
        return input * 0
    return input * (_kept(mask_shape, p).to(input.dtype) * (1.0 / (1.0 - p)))


def _feature_drop(name: str, input: Tensor, p: float, training: bool, inplace: bool,
                  batched: tuple[int, ...]) -> Tensor:
    """Zero whole channels of (N, C, …), or of (C, …) when the number of dimensions says so."""
    _check_p(name, p)
    if not training:
        return input
    shape = shape_of(input)
    if len(shape) not in batched and len(shape) != batched[0] - 1:
        raise ShapeError(f"{name}: the input has shape {shape}; it must have {batched[0] - 1} or "
                         f"{batched[0]} dimensions.")
    lead = 2 if len(shape) in batched else 1
    mask_shape = shape[:lead] + (1,) * (len(shape) - lead)
    return replace(input, _drop(input, mask_shape, p), inplace)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True,
              inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, L) or (C, L)."""
    return _feature_drop("dropout1d", input, p, training, inplace, (3,))


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True,
              inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, H, W); a 3-D input is (N, C, L), as in PyTorch."""
    return _feature_drop("dropout2d", input, p, training, inplace, (3, 4, 5, 2))


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True,
              inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, D, H, W) or (C, D, H, W)."""
    return _feature_drop("dropout3d", input, p, training, inplace, (5,))


def _alpha_drop(input: Tensor, mask_shape: tuple[int, ...], p: float) -> Tensor:
    """Dropped elements take SELU's saturation value; an affine map keeps mean 0 and variance 1."""
    if p == 0.0:
        return input * 1
    if p == 1.0:
        return input * 0
    a = ((1 - p) * (1 + p * _SATURATED**2)) ** -0.5
    keep = _kept(mask_shape, p)
    shift: Any = gf.where(keep, gf.zeros((), dtype=input.dtype),
                          gf.full((), a * _SATURATED, dtype=input.dtype))
    return input * (keep.to(input.dtype) * a) + (shift - a * p * _SATURATED)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False,
                  inplace: bool = False) -> Tensor:
    """Dropout for SELU networks: mean 0 and variance 1 stay."""
    _check_p("alpha_dropout", p)
    return replace(input, _alpha_drop(input, shape_of(input), p), inplace) if training else input


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False,
                          inplace: bool = False) -> Tensor:
    """`alpha_dropout` of whole channels of (N, C, …)."""
    _check_p("feature_alpha_dropout", p)
    if not training:
        return input
    shape = shape_of(input)
    if len(shape) < 2:
        raise ShapeError(f"feature_alpha_dropout: the input has shape {shape}; feature dropout "
                         "requires at least 2 dimensions in the input.")
    mask_shape = shape[:2] + (1,) * (len(shape) - 2)
    return replace(input, _alpha_drop(input, mask_shape, p), inplace)
