"""Matrices by pattern: triangles, diagonals, index grids, powers; and `linalg`'s norms. Layer 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.casting import full_precision, lower_precision
from gossamer.core.dtype import as_dtype, int64
from gossamer.core.errors import IndexingError, ShapeError
from gossamer.creation import array_node
from gossamer.decompositions import inv, svdvals
from gossamer.dispatch import axes_of, axis_of, in_place, need_float, node_of, public, with_out
from gossamer.ir.node import type_text
from gossamer.ir.op import TABLE
from gossamer.reductions import keep, norm_node
from gossamer.tensor import Tensor, attach, wrap
from gossamer.views import diagonal as _diagonal

__all__ = ["matrix_norm", "vector_norm"]


def _triangle(name: str, record: str) -> None:
    def fn(input: Tensor, diagonal: int = 0) -> Tensor:
        x = node_of(input, f"gs.{name}")
        if x.ndim < 2:
            raise ShapeError(f"gs.{name}: x is {type_text(x)}; it needs at least 2 dimensions.")
        row, column = (prims.iota(x.ndim - k, x.shape) for k in (2, 1))
        edge = prims.add(row, prims.const(diagonal, row)) if diagonal else row
        return wrap(prims.where(TABLE[record](column, edge), x, prims.const(0, x)))
    fn.__name__ = fn.__qualname__ = name
    side = "below" if name == "tril" else "above"
    fn.__doc__ = (f"The matrices with 0 everywhere but on and {side} a diagonal (0 the main one, "
                  "positive ones above it).")
    made = public()(with_out(fn))
    attach(f"{name}_", in_place(made, f"{name}_"))


_triangle("tril", "le")
_triangle("triu", "ge")


def _triangle_indices(name: str, pick: Callable[..., Any]) -> None:
    def fn(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None,
           layout: Any = None) -> Tensor:
        found = np.stack(pick(np.ones((row, col)), offset))
        return wrap(array_node(found, as_dtype(dtype) if dtype is not None else int64))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = "Rows and columns of the elements of that triangle, in row-major order: (2, n)."
    public(method=False)(fn)


_triangle_indices("tril_indices", lambda m, k: np.nonzero(np.tril(m, k)))
_triangle_indices("triu_indices", lambda m, k: np.nonzero(np.triu(m, k)))


@public()
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices with the last dimension of `input` on a diagonal, 0 elsewhere."""
    x = node_of(input, "gs.diag_embed")
    n = x.shape[-1] + abs(offset)
    ndim = x.ndim + 1
    a, b = (axis_of(d, ndim, "gs.diag_embed", w) for d, w in ((dim1, "dim1"), (dim2, "dim2")))
    if a == b:
        raise IndexingError(f"gs.diag_embed: dim1={dim1} and dim2={dim2} are the same dimension.")
    low = [0] * (x.ndim - 1) + [max(-offset, 0)]
    high = [0] * (x.ndim - 1) + [max(offset, 0)]
    rows = prims.pad(x, low, high)  # by row: the element that belongs in row i stands at i
    shape = (*x.shape[:-1], n, n)
    spread = prims.expand(prims.reshape(rows, (*rows.shape, 1)), shape)
    row, column = (prims.iota(ndim - k, shape) for k in (2, 1))
    on = prims.equal(column, prims.add(row, prims.const(offset, row)) if offset else row)
    made = prims.where(on, spread, prims.const(0, spread))
    order = [i for i in range(ndim) if i not in (a, b)]
    axes = [0] * ndim
    for source, target in enumerate([*order, a, b]):
        axes[target] = source
    return wrap(prims.permute(made, axes))


@public()
@with_out
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A vector's matrix with it on a diagonal; a matrix's diagonal."""
    x = node_of(input, "gs.diag")
    if x.ndim == 1:
        return diag_embed(input, diagonal)
    if x.ndim != 2:
        raise ShapeError(f"gs.diag: x is {type_text(x)}; it must be a vector or a matrix.")
    return wrap(_diagonal(input, diagonal)._read())


@public()
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """A matrix with all elements of `input` on a diagonal."""
    return diag_embed(input.reshape(-1), offset)


@public()
@full_precision
def trace(input: Tensor) -> Tensor:
    """The sum of the main diagonal of a matrix."""
    if node_of(input, "gs.trace").ndim != 2:
        raise ShapeError(f"gs.trace: x is {type_text(input._node)}; it must be a matrix.")
    return _diagonal(input).sum()


@public(method=False)
def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """The matrix of powers of a vector, highest first unless `increasing`."""
    if node_of(x, "gs.vander").ndim != 1:
        raise ShapeError(f"gs.vander: x is {type_text(x._node)}; it must be a vector.")
    made = linalg_vander(x, N=N)
    return made if increasing else made.flip(1)


def linalg_vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """The powers 0, 1, …, N - 1 of the elements along a new last dimension."""
    node = node_of(x, "linalg.vander")
    node = prims.reshape(node, node.shape or (1,))
    n = node.shape[-1] if N is None else N
    if node.dtype.kind != "f":
        node = prims.cast(node, int64)
    shape = (*node.shape, n)
    columns = [prims.full(1, node.shape, node.dtype)]
    for _ in range(n - 1):
        columns.append(prims.mul(columns[-1], node))
    parts = [prims.reshape(c, (*node.shape, 1)) for c in columns[:n]]
    return wrap(prims.concat(parts, node.ndim) if parts else prims.full(0, shape, node.dtype))


@public()
def matrix_power(input: Tensor, n: int) -> Tensor:
    """The n-th power of square matrices in about 2 log2(n) products; negative n inverts first."""
    x = node_of(input, "gs.matrix_power")
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"gs.matrix_power: x is {type_text(x)}; the matrices must be square.")
    if n < 0:
        return matrix_power(inv(input), -n)
    if n == 0:
        size = x.shape[-1]
        same = prims.equal(prims.iota(0, (size, size)), prims.iota(1, (size, size)))
        return wrap(prims.flat_slope(prims.expand(prims.cast(same, x.dtype), x.shape), x))
    made: Tensor | None = None
    square = input
    while n:
        if n & 1:
            made = square if made is None else made @ square
        n >>= 1
        square = square @ square if n else square
    assert made is not None
    return made.clone() if made is input else made


@public(method=False)
def unravel_index(indices: Tensor, shape: Any) -> tuple[Tensor, ...]:
    """Coordinates of the elements that linear indices name in a tensor of `shape`."""
    extents = (shape,) if isinstance(shape, int) else tuple(
        shape.tolist() if isinstance(shape, Tensor) else shape)
    index = node_of(indices, "gs.unravel_index", "indices")
    if index.dtype.kind not in "iu":
        raise IndexingError(f"gs.unravel_index: indices is {type_text(index)}; it must hold "
                            "integers.")
    out = []
    for extent, step in zip(extents, prims.row_major(extents), strict=True):
        place = TABLE["floor_divide"](index, prims.const(step, index))
        out.append(wrap(TABLE["remainder"](place, prims.const(extent, place))))
    return tuple(out)


# --------------------------------------------------------------------------------------- norms

def vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *,
                dtype: Any = None) -> Tensor:
    """linalg.vector_norm: the p-norm over `dim`, the tensor taken as vectors."""
    node = node_of(x, "linalg.vector_norm")
    if dtype is not None:
        node = prims.cast(node, as_dtype(dtype))
    need_float(node, "linalg.vector_norm")
    axes = axes_of(dim, node.ndim, "linalg.vector_norm")
    if 0 in [node.shape[a] for a in axes] and (float(ord) < 0 or float(ord) == math.inf):
        raise IndexingError(f"linalg.vector_norm(ord={ord}): x is {type_text(node)}; over no "
                            "elements this norm has no value.")
    return wrap(keep(norm_node(node, float(ord), axes), node.shape, axes, keepdim))


def matrix_norm(A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *,
                dtype: Any = None) -> Tensor:
    """linalg.matrix_norm: "fro", 1, -1, inf or -inf of matrices in two dimensions."""
    node = node_of(A, "linalg.matrix_norm")
    if dtype is not None:
        node = prims.cast(node, as_dtype(dtype))
    need_float(node, "linalg.matrix_norm")
    if node.ndim < 2:
        raise ShapeError(f"linalg.matrix_norm: x is {type_text(node)}; it needs at least 2 "
                         "dimensions.")
    rows, columns = (axis_of(d, node.ndim, "linalg.matrix_norm") for d in dim)
    axes = (rows, columns)
    if ord == "fro":
        made = norm_node(node, 2.0, tuple(sorted(axes)))
    elif ord in (1, -1, math.inf, -math.inf):
        first, second = (rows, columns) if abs(ord) == 1 else (columns, rows)
        size = prims.reduce_sum(TABLE["abs"](node), (first,))
        second -= second > first
        made = (prims.reduce_max if ord > 0 else prims.reduce_min)(size, (second,))
    elif ord in (2, -2, "nuc"):
        order = [i for i in range(node.ndim) if i not in axes]
        s = svdvals(wrap(prims.permute(node, (*order, rows, columns))))
        # Equal singular values share the slope, as in PyTorch: a maximum, not the first.
        found = s.sum(-1) if ord == "nuc" else s.amax(-1) if ord == 2 else s.amin(-1)
        made = found._read()
    else:
        raise ShapeError(f"linalg.matrix_norm(ord={ord!r}): it must be 'fro', 'nuc', 1, -1, 2, -2, "
                         "inf or -inf.")
    return wrap(keep(made, node.shape, axes, keepdim))


def linalg_norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *,
                dtype: Any = None) -> Tensor:
    """linalg.norm: a vector norm, or of two dimensions with `ord` a matrix norm."""
    node = node_of(A, "linalg.norm")
    several = isinstance(dim, (tuple, list)) and len(dim) == 2
    if ord is not None and (several or dim is None and node.ndim == 2):
        return matrix_norm(A, ord, dim if dim is not None else (-2, -1), keepdim, dtype=dtype)
    return vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)


@lower_precision
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """linalg.vecdot: inner products along `dim`."""
    return (x * y).sum(dim)


def linalg_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """linalg.cross: the cross product along `dim`."""
    a, b = input.broadcast_to((input * other).shape), other
    return a.cross(b, dim)


def linalg_diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """linalg.diagonal: a view of diagonals of matrices."""
    return _diagonal(A, offset, dim1, dim2)


def multi_dot(tensors: Any) -> Tensor:
    """linalg.multi_dot: a product of several matrices (the ends may be vectors), multiplied in the
    order that needs the fewest operations."""
    parts = list(tensors)
    if len(parts) < 2:
        raise ShapeError(f"linalg.multi_dot: {len(parts)} tensors; at least 2 are needed.")
    row, column = parts[0].ndim == 1, parts[-1].ndim == 1
    if row:
        parts[0] = parts[0].unsqueeze(0)
    if column:
        parts[-1] = parts[-1].unsqueeze(1)
    sizes = [p.shape[0] for p in parts] + [parts[-1].shape[1]]
    made = _in_order(parts, _best_split(sizes), 0, len(parts) - 1)
    if row:
        made = made.squeeze(0)
    return made.squeeze(-1) if column else made


def _best_split(sizes: list[int]) -> dict[tuple[int, int], int]:
    """Where to split each run of matrices. Source: Cormen et al., matrix-chain multiplication."""
    n = len(sizes) - 1
    cost = {(i, i): 0 for i in range(n)}
    split: dict[tuple[int, int], int] = {}
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            options = [(cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                       for k in range(i, j)]
            cost[i, j], split[i, j] = min(options)
    return split


def _in_order(parts: list[Tensor], split: dict[tuple[int, int], int], i: int, j: int) -> Tensor:
    if i == j:
        return parts[i]
    k = split[i, j]
    return _in_order(parts, split, i, k) @ _in_order(parts, split, k + 1, j)
