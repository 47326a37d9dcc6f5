"""Order: sort, topk, median, quantile, mode, unique, search and histograms. Layer 4.

All ordering is one operator, the stable `argsort`, followed by a gather; so values are
differentiable. What has a size that depends on data (`unique`, `bincount`) computes its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.casting import full_precision
from gossamer.core.dtype import float64, int32, int64
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.creation import array_node
from gossamer.dispatch import axis_of, need_float, node_of, number, operands, public
from gossamer.gathering import gather_node
from gossamer.ir.node import Node, type_text
from gossamer.ir.op import TABLE
from gossamer.reductions import Pair, reduction
from gossamer.tensor import Tensor, wrap

__all__ = ["sorted_node"]


def sorted_node(x: Node, axis: int, descending: bool = False) -> tuple[Node, Node]:
    """(values, indices) in order along one axis; NaN counts as the largest."""
    order = prims.argsort(x, axis, descending)
    return gather_node(x, axis, order), order


@reduction()
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Pair:
    """The elements in order along `dim`, and where they were; equals keep their order."""
    x = node_of(input, "gs.sort")
    axis = axis_of(dim, x.ndim, "gs.sort")
    if x.ndim == 0:
        return Pair(wrap(x), wrap(prims.full(0, (), int64)))
    values, order = sorted_node(x, axis, descending)
    return Pair(wrap(values), wrap(order))


@public()
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that put the elements in order along `dim`."""
    return sort(input, dim, descending)[1]


@reduction()
def msort(input: Tensor) -> Tensor:
    """The elements in order along the first dimension."""
    return sort(input, 0)[0]


@reduction()
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Pair:
    """The `k` largest (or smallest) elements along `dim` in order, and where they are.

    Raises:
        ShapeError: k is larger than the dimension.
    """
    x = node_of(input, "gs.topk")
    axis = axis_of(dim, x.ndim, "gs.topk")
    k = int(k)
    extent = x.shape[axis] if x.ndim else 1
    if not 0 <= k <= extent:
        raise ShapeError(f"gs.topk(k={k}): dimension {axis} has extent {extent}; k must lie "
                            "between 0 and that.")
    if x.ndim == 0:
        return Pair(wrap(x), wrap(prims.full(0, (), int64)))
    order = prims.narrow(prims.argsort(x, axis, largest), axis, 0, k)
    return Pair(wrap(gather_node(x, axis, order)), wrap(order))


@reduction()
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Pair:
    """The k-th smallest element along `dim` (k counts from 1), and where it is."""
    x = node_of(input, "gs.kthvalue")
    axis = axis_of(dim, x.ndim, "gs.kthvalue")
    extent = x.shape[axis] if x.ndim else 1
    if not 1 <= k <= extent:
        raise IndexingError(f"gs.kthvalue(k={k}): dimension {axis} has extent {extent}; k must lie "
                            "between 1 and that.")
    if x.ndim == 0:
        return Pair(wrap(x), wrap(prims.full(0, (), int64)))
    place = prims.narrow(prims.argsort(x, axis), axis, k - 1, k)
    return _pair(x, axis, place, keepdim)


def _pair(x: Node, axis: int, place: Node, keepdim: bool) -> Pair:
    """Values and indices of one place per row; `place` has extent 1 along the axis."""
    values = gather_node(x, axis, place)
    if not keepdim:
        shape = x.shape[:axis] + x.shape[axis + 1:]
        values, place = prims.reshape(values, shape), prims.reshape(place, shape)
    return Pair(wrap(values), wrap(place))


# -------------------------------------------------------------------------------------- median

def _median_place(x: Node, axis: int, skip_nan: bool) -> Node:
    """Where the lower median along `axis` is, with extent 1."""
    order = prims.argsort(x, axis)
    n = x.shape[axis]
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1:])
    if x.dtype.kind != "f":
        return prims.narrow(order, axis, (n - 1) // 2, (n - 1) // 2 + 1)
    nan = prims.cast(TABLE["isnan"](x), int64)
    count = prims.reshape(prims.reduce_sum(nan, (axis,)), shape)
    if skip_nan:
        real = prims.sub(prims.const(n - 1, count), count)
        middle = TABLE["maximum"](TABLE["floor_divide"](real, prims.const(2, real)),
                                  prims.const(0, real))
    else:  # NaN sorts last, so any NaN is found there; PyTorch names the first of them
        middle = prims.const((n - 1) // 2, count)
        first = prims.sub(prims.const(n, count), count)
        middle = prims.where(TABLE["gt"](count, prims.const(0, count)), first, middle)
    return gather_node(order, axis, middle)


def _median(name: str, skip_nan: bool) -> Callable[..., Any]:
    def fn(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        x = node_of(input, f"gs.{name}")
        if dim is None:
            if x.size == 0:
                return wrap(prims.full(math.nan, (), x.dtype))
            flat = prims.reshape(x, (x.size,))
            return wrap(prims.reshape(gather_node(flat, 0, _median_place(flat, 0, skip_nan)), ()))
        axis = axis_of(dim, x.ndim, f"gs.{name}")
        if x.ndim == 0:
            return Pair(wrap(x), wrap(prims.full(0, (), int64)))
        if x.shape[axis] == 0:
            raise IndexingError(f"gs.{name}: x is {type_text(x)}; over no elements there is no "
                                "median.")
        return _pair(x, axis, _median_place(x, axis, skip_nan), keepdim)
    fn.__name__ = fn.__qualname__ = name
    rest = "NaN is left out." if skip_nan else "NaN wins."
    fn.__doc__ = ("The lower median of all elements, or values and indices along `dim`. " + rest)
    return fn


median = reduction()(_median("median", False))
nanmedian = reduction()(_median("nanmedian", True))


@reduction()
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Pair:
    """The most frequent element along `dim` (the smallest of several), and where it is last.

    Cost: n comparisons per element, n the extent of the dimension.
    """
    x = node_of(input, "gs.mode")
    axis = axis_of(dim, x.ndim, "gs.mode")
    if x.ndim == 0:
        return Pair(wrap(x), wrap(prims.full(0, (), int64)))
    if x.shape[axis] == 0:
        raise IndexingError(f"gs.mode: x is {type_text(x)}; over no elements there is no mode.")
    row = prims.move_axis(prims.detach(x), axis, -1)
    n = row.shape[-1]
    wide = (*row.shape, n)
    a = prims.expand(prims.reshape(row, (*row.shape, 1)), wide)
    b = prims.expand(prims.reshape(row, (*row.shape[:-1], 1, n)), wide)
    count = prims.reduce_sum(prims.cast(prims.equal(a, b), int64), (row.ndim,))
    best = prims.expand(prims.reshape(prims.reduce_max(count, (row.ndim - 1,)),
                                      (*row.shape[:-1], 1)), row.shape)
    order = prims.argsort(row, row.ndim - 1)
    candidate = prims.equal(gather_node(count, row.ndim - 1, order), best)
    smallest = TABLE["argmax"](prims.cast(candidate, int32), axis=row.ndim - 1)
    kept = (*row.shape[:-1], 1)
    value = gather_node(row, row.ndim - 1,
                        gather_node(order, row.ndim - 1, prims.reshape(smallest, kept)))
    hit = prims.equal(row, prims.expand(value, row.shape))
    place = prims.where(hit, prims.iota(row.ndim - 1, row.shape),
                        prims.full(0, row.shape, int64))
    last = prims.reshape(prims.reduce_max(place, (row.ndim - 1,)), kept)
    return _pair(x, axis, prims.move_axis(last, -1, axis), keepdim)


# ------------------------------------------------------------------------------------ quantile

def _quantile(input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str,
              name: str, skip_nan: bool) -> Tensor:
    x = node_of(input, name)
    need_float(x, name)
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise DTypeError(f"{name}(interpolation={interpolation!r}): it must be linear, lower, "
                         "higher, midpoint or nearest.")
    qs = prims.cast(q._read(), x.dtype) if isinstance(q, Tensor) else prims.full(
        number(q, name), (), x.dtype)
    if qs.ndim > 1:
        raise ShapeError(f"{name}: q has {qs.ndim} dimensions; it must be a number or a vector.")
    kept = (1,) * x.ndim if dim is None or x.ndim == 0 else None
    axis = 0 if dim is None else axis_of(dim, x.ndim, name)
    if dim is None or x.ndim == 0:
        x = prims.reshape(x, (x.size,))
    if x.shape[axis] == 0:
        raise IndexingError(f"{name}: x is {type_text(x)}; over no elements there is no quantile.")
    row = sorted_node(prims.move_axis(x, axis, -1), x.ndim - 1)[0]
    made = _at_fractions(row, prims.reshape(qs, (qs.size,)), interpolation, skip_nan)
    lead = row.shape[:-1]
    shape = kept if kept is not None else (*lead[:axis], 1, *lead[axis:])
    shape = shape if keepdim else lead
    made = prims.move_axis(made, -1, 0)
    return wrap(prims.reshape(made, ((qs.size,) if qs.ndim else ()) + shape))


def _at_fractions(row: Node, q: Node, interpolation: str, skip_nan: bool) -> Node:
    """Interpolated values of sorted rows (..., n) at the fractions q (k): shape (..., k)."""
    n, k = row.shape[-1], q.size
    shape = (*row.shape[:-1], k)
    nan = prims.cast(TABLE["isnan"](row), row.dtype)
    missing = prims.reshape(prims.reduce_sum(nan, (row.ndim - 1,)), (*row.shape[:-1], 1))
    missing = prims.expand(missing, shape)
    last = prims.const(n - 1, missing)
    if skip_nan:
        last = TABLE["maximum"](prims.sub(last, missing), prims.const(0, last))
    rank = prims.mul(prims.expand(q, shape), last)
    if not skip_nan:  # a row with NaN gives NaN, which stands last
        rank = prims.where(TABLE["gt"](missing, prims.const(0, missing)), last, rank)
    low = TABLE["round" if interpolation == "nearest" else
                "ceil" if interpolation == "higher" else "floor"](rank)
    below = gather_node(row, row.ndim - 1, prims.cast(low, int64))
    if interpolation in ("lower", "higher", "nearest"):
        return below
    above = gather_node(row, row.ndim - 1, prims.cast(TABLE["ceil"](rank), int64))
    weight = prims.const(0.5, rank) if interpolation == "midpoint" else prims.sub(rank, low)
    return TABLE["lerp"](below, above, weight)


@reduction()
@full_precision
def quantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
             interpolation: str = "linear") -> Tensor:
    """The q-th quantiles along `dim` (of all elements without it); a row with NaN gives NaN.

    Args:
        input: floating.
        q: a number or a vector of numbers in [0, 1]; a vector makes a new first dimension.
        interpolation: "linear", "lower", "higher", "midpoint" or "nearest".
    """
    return _quantile(input, q, dim, keepdim, interpolation, "gs.quantile", False)


@reduction()
@full_precision
def nanquantile(input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, *,
                interpolation: str = "linear") -> Tensor:
    """As `quantile`, NaN left out."""
    return _quantile(input, q, dim, keepdim, interpolation, "gs.nanquantile", True)


# ----------------------------------------------------------------------------- search and count

def _search(edges: Node, values: Node, right: bool) -> Node:
    """For each value the first place in its sorted row where it keeps the order: bisection in
    log2(n) steps. `edges` (..., n) and `values` (..., m) have equal leading axes."""
    n = edges.shape[-1]
    low = prims.full(0, values.shape, int64)
    high = prims.full(n, values.shape, int64)
    if n == 0:
        return low
    one, two = prims.const(1, low), prims.const(2, low)
    for _ in range(n.bit_length()):
        middle = TABLE["floor_divide"](prims.add(low, high), two)
        probe = gather_node(edges, edges.ndim - 1,
                            TABLE["minimum"](middle, prims.const(n - 1, middle)))
        after = (TABLE["le"] if right else TABLE["lt"])(probe, values)
        if values.dtype.kind == "f":  # NaN belongs behind everything
            after = prims.logical_or(after, TABLE["isnan"](values))
        after = prims.logical_and(after, TABLE["lt"](low, high))
        low, high = (prims.where(after, prims.add(middle, one), low),
                     prims.where(after, high, TABLE["minimum"](middle, high)))
    return low


@public(method=False)
def searchsorted(sorted_sequence: Tensor, input: Any, *, out_int32: bool = False,
                 right: bool = False, side: str | None = None, sorter: Tensor | None = None,
                 out: Tensor | None = None) -> Tensor:
    """Where `input` would be inserted into the last dimension of a sorted sequence.

    Args:
        sorted_sequence: one row, or as many leading dimensions as `input`.
        input: values to look up.
        right: insert behind equals instead of before them (also side="right").
        sorter: indices that sort the sequence.
        out_int32: give int32 indices.
    """
    name = "gs.searchsorted"
    if side is not None:
        right = side == "right"
    given = input if isinstance(input, Tensor) else sorted_sequence.new_tensor(input)
    a, b = (wrap(prims.detach(t._read())) for t in (sorted_sequence, given))
    edges, values = a._node, b._node
    if edges.ndim != 1 and edges.shape[:-1] != values.shape[:-1]:
        raise ShapeError(f"{name}: the sequence has shape {edges.shape} and input {values.shape}; "
                         "they must agree except in the last dimension, or the sequence be a row.")
    if sorter is not None:
        edges = gather_node(edges, edges.ndim - 1, sorter._read())
    wide = operands(name, (wrap(prims.full(0, (1,), edges.dtype)),
                           wrap(prims.full(0, (1,), values.dtype))))[0].dtype
    edges, values = prims.cast(edges, wide), prims.cast(values, wide)
    shape = values.shape
    if edges.ndim == 1:
        values = prims.reshape(values, (values.size,))
    found = prims.reshape(_search(edges, values, right), shape)
    made = wrap(prims.cast(found, int32 if out_int32 else int64))
    return made if out is None else out.copy_(made)


@public(method=False)
def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False,
              out: Tensor | None = None) -> Tensor:
    """Number of the bucket, bounded by the sorted row `boundaries`, in which each value falls."""
    if boundaries.ndim != 1:
        raise ShapeError(f"gs.bucketize: boundaries has {boundaries.ndim} dimensions; it must have "
                         "1.")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right, out=out)


@public()
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False,
         invert: bool = False) -> Tensor:
    """Whether each element is among `test_elements`."""
    if not isinstance(elements, Tensor):
        elements = test_elements.new_tensor(elements)
    if not isinstance(test_elements, Tensor):
        test_elements = elements.new_tensor(test_elements)
    flat = test_elements.reshape(-1)
    found = (elements.reshape(*elements.shape, 1) == flat).any(-1) if flat.numel() else (
        elements.new_zeros(elements.shape, dtype=bool))
    return ~found if invert else found


@public()
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each number from 0 on occurs (or the sum of its weights). Computes `input`."""
    x = node_of(input, "gs.bincount")
    if x.ndim != 1 or x.dtype.kind not in "iu":
        raise ShapeError(f"gs.bincount: x is {type_text(x)}; it must be a row of integers.")
    values = input._value().array()
    if values.size and values.min() < 0:
        raise ShapeError(f"gs.bincount: x holds {values.min()}; the numbers must not be negative.")
    size = max(int(values.max()) + 1 if values.size else 0, minlength)
    if weights is None:
        ones = prims.full(1, x.shape, int64)
    else:
        w = node_of(weights, "gs.bincount", "weights")
        ones = prims.cast(w, w.dtype if w.dtype.kind == "f" and w.dtype.itemsize == 4 else float64)
        ones = prims.detach(ones)
    base = prims.full(0, (size,), ones.dtype)
    return wrap(prims.scatter_add(base, prims.cast(x, int64), ones) if x.size else base)


@public()
def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts in `bins` equal intervals from min to max (the data's own if both are 0)."""
    x = node_of(input, "gs.histc")
    flat = prims.detach(prims.reshape(x, (x.size,)))
    low, high = float(number(min, "gs.histc")), float(number(max, "gs.histc"))
    if low == high and x.size:
        values = input._value().array()
        low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 1, high + 1
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or bins <= 0:
        raise ShapeError(f"gs.histc(bins={bins}, min={low}, max={high}): bins must be positive and "
                         "min and max finite, min the smaller.")
    scale = prims.const(bins / (high - low), flat)
    place = prims.mul(prims.sub(flat, prims.const(low, flat)), scale)
    place = TABLE["minimum"](TABLE["floor"](place), prims.const(bins - 1, place))
    inside = prims.logical_and(TABLE["ge"](flat, prims.const(low, flat)),
                               TABLE["le"](flat, prims.const(high, flat)))
    index = prims.cast(prims.where(inside, place, prims.const(0, place)), int64)
    base = prims.full(0, (bins,), x.dtype)
    return wrap(prims.scatter_add(base, index, prims.cast(inside, x.dtype)))


# -------------------------------------------------------------------------------------- unique

@public()
def unique(input: Tensor, sorted: bool = True, return_inverse: bool = False,
           return_counts: bool = False, dim: int | None = None) -> Any:
    """The different elements in order (or the different indices of `dim`). Computes `input`.

    Returns:
        The elements; with the flags also where each came to, and how often it occurs.
    """
    values = input._value().array()
    axis = None if dim is None else axis_of(dim, input.ndim, "gs.unique")
    found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(values.shape if axis is None else (-1,))
    return _parts(found, inverse, counts, input, return_inverse, return_counts)


def _parts(found: np.ndarray, inverse: np.ndarray, counts: np.ndarray, input: Tensor,
           return_inverse: bool, return_counts: bool) -> Any:
    out = [wrap(array_node(found, input._node.dtype))]
    if return_inverse:
        out.append(wrap(array_node(inverse, int64)))
    if return_counts:
        out.append(wrap(array_node(counts, int64)))
    return out[0] if len(out) == 1 else tuple(out)


@public()
def unique_consecutive(input: Tensor, return_inverse: bool = False, return_counts: bool = False,
                       dim: int | None = None) -> Any:
    """The elements (or indices of `dim`) without immediate repetitions. Computes `input`."""
    values = input._value().array()
    rows = values.reshape(-1) if dim is None else np.moveaxis(values, dim, 0)
    n = rows.shape[0]
    if n == 0:
        starts = np.zeros(0, np.int64)
    else:
        change = (rows[1:] != rows[:-1]).reshape(n - 1, -1).any(1) if n > 1 else np.zeros(0, bool)
        starts = np.concatenate([[0], np.nonzero(change)[0] + 1]).astype(np.int64)
    counts = np.diff(np.append(starts, n))
    inverse = np.repeat(np.arange(len(starts)), counts)
    found = rows[starts]
    if dim is None:
        inverse = inverse.reshape(values.shape)
    else:
        found = np.moveaxis(found, 0, dim)
    return _parts(found, inverse, counts, input, return_inverse, return_counts)


