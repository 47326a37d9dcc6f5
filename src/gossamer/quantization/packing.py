"""From floats to packed weights and back, in NumPy. Layer 5.

The one idea: scales are rounded to the dtype in which they are kept before the weights are divided
by them, so that rounding a scale costs no accuracy. In 4 bits the scale is that of the value of
largest magnitude over -8, whatever its sign, because -8 is the farthest code (ggml's Q4_0).
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import DType, bfloat16, float16, round_to_bfloat16
from gossamer.ops.quantized import BLOCK, TILE

__all__ = ["pack", "quantize"]


def quantize(weight: np.ndarray, bits: int, group: int | None,
             scale_dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and scales of a matrix.

    Args:
        weight: (N, K) float32.
        bits: 4 or 8.
        group: weights that share a scale, a multiple of 32; None = a row.
        scale_dtype: what scales are rounded to.

    Returns:
        int8 (N', K') and float32 (N', groups); N' and K' are N and K padded with zeros to multiples
        of 16 and of the group.

    Raises:
        ValueError: a weight is not finite, or too large for the scale's dtype.
    """
    n, k = weight.shape
    width = -(-k // BLOCK) * BLOCK
    group = min(group or width, width)
    padded = np.zeros((-(-n // TILE) * TILE, -(-k // group) * group), np.float32)
    padded[:n, :k] = weight
    parts = padded.reshape(len(padded), padded.shape[1] // group, group)
    if bits == 8:
        scale = np.abs(parts).max(-1) / np.float32(127)
        low, high = -127, 127
    else:
        far = np.abs(parts).argmax(-1)[..., None]
        scale = np.take_along_axis(parts, far, -1)[..., 0] / np.float32(-8)
        low, high = -8, 7
    scale = _rounded(scale, scale_dtype)
    if not np.isfinite(scale).all():
        raise ValueError("quantize: a weight is not finite, or its scale is too large for "
                         f"{scale_dtype.name}. Choose scale_dtype=gs.float32 or mend the weight.")
    safe = np.where(scale == 0, np.float32(1), scale)[..., None]
    codes = np.where(scale[..., None] == 0, 0, np.clip(np.rint(parts / safe), low, high))
    return codes.astype(np.int8).reshape(padded.shape), scale


def _rounded(scale: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is bfloat16:
        return round_to_bfloat16(scale)
    if dtype is float16:
        with np.errstate(over="ignore"):
            return scale.astype(np.float16).astype(np.float32)
    return scale


def pack(codes: np.ndarray, scale: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of 16 rows, as `ops/quantized` describes them.

    Args:
        codes: int8 (N, K); N a multiple of 16 and K of 32.
        scale: (N, groups).

    Returns:
        The packed weight, and scales (N/16, groups, 16).
    """
    n, k = codes.shape
    scales = np.ascontiguousarray(scale.reshape(n // TILE, TILE, -1).transpose(0, 2, 1))
    quads = codes.reshape(n // TILE, TILE, k // 4, 4).transpose(0, 2, 1, 3)
    if bits == 8:
        return np.ascontiguousarray(quads), scales
    halves = (quads + 8).astype(np.uint8).reshape(n // TILE, k // BLOCK, 2, 4, TILE, 4)
    packed = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed.reshape(n // TILE, k // 8, TILE, 4), scales
