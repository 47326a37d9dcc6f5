"""Products with weights of 4 or 8 bits. Layer 1.

A weight matrix (N, K) is stored in tiles of 16 rows: a vector register holds a few k of each of 16
rows, and no sum runs across lanes. A row's weights share a scale in groups of G along k; N is
padded with zeros to a multiple of 16 and K to one of G.

    8 bits: int8  (N/16, K/4, 16, 4): [tile, k // 4, row, k % 4]
    4 bits: uint8 (N/16, K/8, 16, 4): byte [tile, 4 b + q, row, j] holds k = 32 b + 4 q + j in its
            low half and k + 16 in its high half, each as value + 8
    scales: float (N/16, K/G, 16)

Sources: Dettmers et al. 2022 (LLM.int8); ggml's Q8_0 and Q4_0 (blocks of 32).
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import DType, float32, float64, int8, uint8
from gossamer.core.shape import size_of
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import IOTA, Op, Sample, constant
from gossamer.ops.bitwise import bitwise_and, shift_right_logical
from gossamer.ops.composite import composite, to_dtype
from gossamer.ops.contraction import dot_general
from gossamer.ops.elementwise import abs_, div, lt, mul, round_, sub, where
from gossamer.ops.movement import pad, permute, reshape, slice_
from gossamer.ops.reduction import broadcast, reduce_max, reduce_sum
from gossamer.ops.rules import Type, dtype_error, shape_error
from gossamer.ops.wrapper import custom

__all__ = ["BLOCK", "DEAD", "LARGEST", "TILE", "dequantize", "packed_size", "quantized_linear"]

TILE = 16  # rows of a tile: the 32-bit lanes of the widest vectors
BLOCK = 32  # activations that share a scale, as in ggml
LARGEST = 127.0  # of a quantised activation
DEAD = 1e-36  # a block whose largest magnitude is below is zero: 127 / DEAD is still finite


def packed_size(weight: Node) -> tuple[int, int]:
    """(N, K) of a packed weight, padding included."""
    tiles, quads = weight.shape[:2]
    return tiles * TILE, quads * (4 if weight.dtype is int8 else 8)


def _check_packed(op: Op, inputs: tuple[Node, ...], weight: Node, scale: Node, n: int,
                  k: int) -> None:
    fits = (weight.dtype in (int8, uint8) and weight.ndim == 4
            and weight.shape[2:] == (TILE, 4) and scale.dtype.kind == "f" and scale.ndim == 3)
    if fits:
        rows, width = packed_size(weight)
        groups = scale.shape[1]
        fits = (scale.shape[::2] == (weight.shape[0], TILE) and width % BLOCK == 0
                and (width == 0 or groups > 0 and width % (groups * BLOCK) == 0)
                and n <= rows and k <= width)
    if not fits:
        raise shape_error(op, inputs, f"a packed weight of {n} x {k} is int8 (N/16, K/4, 16, 4) or "
                          "uint8 (N/16, K/8, 16, 4), with scales (N/16, groups, 16) whose groups "
                          "are multiples of 32", "Pack it with gossamer.quantization.")


def _dequantize_type(op: Op, weight: Node, scale: Node, *, shape: Shape) -> Type:
    _check_packed(op, (weight, scale), weight, scale, *shape)
    return shape, _wide(scale.dtype)


def _wide(dtype: DType) -> DType:
    """float64 for float64, else float32: what scales are multiplied in."""
    return dtype if dtype is float64 else float32


def _digits(weight: Node, dtype: DType) -> Node:
    """The whole numbers of a packed weight as floats: (N/16, 16, K/4, 4), or of 4 bits (N/16, 16,
    K/32, 2, 4, 4). As digits of N and K, because a product reads them so where they lie."""
    tiles, quads = weight.shape[:2]
    if weight.dtype is int8:
        return to_dtype(permute(weight, axes=(0, 2, 1, 3)), dtype)
    blocks = reshape(weight, shape=(tiles, quads // 4, 4, TILE, 4))
    whole = (tiles, quads // 4, 2, 4, TILE, 4)
    both = broadcast(blocks, shape=whole, axes=(2,))
    half = IOTA(axis=2, shape=whole, dtype=uint8)
    digits = bitwise_and(shift_right_logical(both, mul(half, constant(4, half))),
                         constant(15, half))
    values = sub(to_dtype(digits, dtype), constant(8, to_dtype(digits, dtype)))
    return permute(values, axes=(0, 4, 1, 2, 3, 5))


def _codes(weight: Node, dtype: DType) -> Node:
    """The whole numbers of a packed weight, (N, K), as floats."""
    return reshape(_digits(weight, dtype), shape=packed_size(weight))


def _pieces(weight: Node, scale: Node) -> Node:
    """What a packed weight stands for: (N/16, 16, groups, ...), the rest digits of K."""
    dtype, groups = _wide(scale.dtype), scale.shape[1]
    digits = _digits(weight, dtype)
    each = digits.shape[2] // max(groups, 1)
    shape = (*digits.shape[:2], groups, each, *digits.shape[3:])
    rows = permute(to_dtype(scale, dtype), axes=(0, 2, 1))
    spread = broadcast(rows, shape=shape, axes=tuple(range(3, len(shape))))
    return mul(reshape(digits, shape=shape), spread)


def _row_scales(scale: Node, count: int, dtype: DType) -> Node:
    """Scales (N, count) of `count` equal pieces of each row; groups are whole pieces."""
    tiles, groups, _ = scale.shape
    rows = reshape(permute(to_dtype(scale, dtype), axes=(0, 2, 1)), shape=(tiles * TILE, groups))
    if groups == count or not count:
        return rows
    spread = broadcast(rows, shape=(tiles * TILE, groups, count // groups), axes=(2,))
    return reshape(spread, shape=(tiles * TILE, count))


def _dequantize(weight: Node, scale: Node, *, shape: Shape) -> Node:
    whole = reshape(_pieces(weight, scale), shape=packed_size(weight))
    return slice_(whole, starts=(0, 0), stops=shape, steps=(1, 1))


def _linear_type(op: Op, x: Node, weight: Node, scale: Node, *, features: int,
                 dynamic: bool) -> Type:
    inputs = (x, weight, scale)
    if x.dtype.kind != "f":
        raise dtype_error(op, inputs, "x must be a floating-point tensor",
                          "Convert it with .float().")
    if not x.ndim:
        raise shape_error(op, inputs, "x must have at least one axis", "Reshape it to (1, K).")
    _check_packed(op, inputs, weight, scale, features, x.shape[-1])
    return (*x.shape[:-1], features), x.dtype


def _linear(x: Node, weight: Node, scale: Node, *, features: int, dynamic: bool) -> Node:
    k = x.shape[-1]
    flat = reshape(to_dtype(x, _wide(x.dtype)), shape=(size_of(x.shape[:-1]), k))
    if dynamic:
        y = custom(_blockwise(flat, weight, scale, features), flat, weight, scale,
                   rule=_straight_through)
    else:
        y = _unpacked(flat, to_dtype(_pieces(weight, scale), flat.dtype), packed_size(weight),
                      features)
    return reshape(to_dtype(y, x.dtype), shape=(*x.shape[:-1], features))


def _unpacked(x: Node, pieces: Node, packed: tuple[int, int], features: int) -> Node:
    """(M, K) times the weight whose digits are `pieces`, (M, N)."""
    (rows, width), m = packed, x.shape[0]
    if x.shape[1] < width:
        x = pad(x, low=(0, 0), high=(0, width - x.shape[1]), interior=(0, 0), value=0)
    digits = reshape(x, shape=(m, *pieces.shape[2:]))
    y = dot_general(digits, pieces, a_batch=(), a_contract=tuple(range(1, digits.ndim)),
                    b_batch=(), b_contract=tuple(range(2, pieces.ndim)))
    return slice_(reshape(y, shape=(m, rows)), starts=(0, 0), stops=(m, features), steps=(1, 1))


def _straight_through(g: Node, y: Node, x: Node, weight: Node,
                      scale: Node) -> tuple[Node | None, ...]:
    """The cotangent of x as if it had not been rounded."""
    matrix = dequantize(weight, scale, shape=(g.shape[-1], x.shape[-1]))
    return _times(g, to_dtype(matrix, g.dtype), 0), None, None


def _times(a: Node, b: Node, axis: int) -> Node:
    return dot_general(a, b, a_batch=(), a_contract=(a.ndim - 1,), b_batch=(),
                       b_contract=(axis,))


def _blockwise(x: Node, weight: Node, scale: Node, features: int) -> Node:
    """(M, K) to (M, N): whole numbers multiplied exactly in blocks, then scaled and added up."""
    rows, width = packed_size(weight)
    m, blocks = x.shape[0], width // BLOCK
    padded = pad(x, low=(0, 0), high=(0, width - x.shape[1]), interior=(0, 0), value=0)
    parts = reshape(padded, shape=(m, blocks, BLOCK))
    top = reduce_max(abs_(parts), axes=(2,))
    dead, zero = lt(top, constant(DEAD, top)), constant(0, top)
    factor = where(dead, zero, div(constant(LARGEST, top), top))
    codes = round_(mul(parts, broadcast(factor, shape=parts.shape, axes=(2,))))
    steps = where(dead, zero, div(top, constant(LARGEST, top)))  # (M, B)
    weights = reshape(_codes(weight, x.dtype), shape=(rows, blocks, BLOCK))
    sums = dot_general(codes, weights, a_batch=(1,), a_contract=(2,), b_batch=(1,),
                       b_contract=(2,))  # (B, M, N)
    left = broadcast(permute(steps, axes=(1, 0)), shape=sums.shape, axes=(2,))
    right = permute(_row_scales(scale, blocks, x.dtype), axes=(1, 0))
    scaled = mul(mul(sums, left), broadcast(right, shape=sums.shape, axes=(1,)))
    y = reduce_sum(scaled, axes=(0,))
    return slice_(y, starts=(0, 0), stops=(m, features), steps=(1, 1))


def _packed_samples(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of 16 x 32 in 8 bits, 32 x 64 in 4 bits (scales of 32), 16 x 64 in 8 bits (one)."""
    def scales(*shape: int) -> np.ndarray:
        return rng.uniform(0.01, 0.02, shape)
    return [(rng.integers(-127, 128, (1, 8, TILE, 4)).astype(np.int8), scales(1, 1, TILE)),
            (rng.integers(0, 256, (2, 8, TILE, 4)).astype(np.uint8), scales(2, 2, TILE)),
            (rng.integers(-127, 128, (1, 16, TILE, 4)).astype(np.int8), scales(1, 1, TILE))]


def _dequantize_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((w, s), {"shape": shape}) for (w, s), shape in
            zip(_packed_samples(rng), ((3, 5), (32, 64), (0, 7)), strict=True)]


def _linear_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for dynamic in (False, True):
        for (w, s), shape, features in zip(_packed_samples(rng), ((5,), (2, 3, 64), (0, 40)),
                                           (3, 32, 16), strict=True):
            # Rounded activations have no derivative: what is given is that of exact ones.
            found.append(Sample((rng.normal(size=shape), w, s),
                                {"features": features, "dynamic": dynamic}, not dynamic))
    return found


dequantize: Op = composite(
    "dequantize", "The matrix (N, K) that a packed weight stands for: scale * whole number.",
    infer=_dequantize_type, body=_dequantize, promote="none", cost=4.0, onnx="DequantizeLinear-21",
    samples=_dequantize_samples)

quantized_linear: Op = composite(
    "quantized_linear",
    "x.W^T for a packed weight W; dynamic: x is first rounded to scale * (-127 .. 127) in blocks "
    "of 32, and products of whole numbers are added exactly within a block.",
    infer=_linear_type, body=_linear, promote="none", cost=100.0,
    samples=_linear_samples)
