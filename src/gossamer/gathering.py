"""Reading and writing elements at computed places: gather, scatter, index_*, put. Layer 4.

All of it is `take`, `scatter` and `scatter_add` along axis 0 of a flattened tensor, with linear
indices computed from counters; so it fuses, differentiates and batches by the rules of those three.
"""

from __future__ import annotations

from typing import Any

from gossamer import prims
from gossamer.core.dtype import float64, int64
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.dispatch import (
    Numbers,
    axis_of,
    broadcast_shapes,
    index_node,
    node_of,
    number,
    public,
    with_out,
)
from gossamer.indexing import check_known, index_put_
from gossamer.ir.node import Node, Shape, type_text
from gossamer.ir.op import TABLE
from gossamer.tensor import Tensor, attach, twin, wrap

__all__ = ["gather_node", "linear_along", "scatter_node"]


# ------------------------------------------------------------------------- along one dimension

def linear_along(shape: Shape, axis: int, index: Node) -> Node:
    """Linear index into a tensor of `shape` of the element that `index` names along `axis`, the
    other coordinates being those of `index` itself. Out of range stays out of range."""
    strides = prims.row_major(shape)
    total = 1
    for n in shape:
        total *= n
    linear = index
    if shape[axis] != total:  # otherwise `take` itself counts from the end and checks
        extent, zero = prims.const(shape[axis], index), prims.const(0, index)
        lt, ge = TABLE["lt"], TABLE["ge"]
        linear = prims.where(lt(linear, zero), prims.add(linear, extent), linear)
        wrong = prims.logical_or(lt(linear, zero), ge(linear, extent))
        if strides[axis] != 1:
            linear = prims.mul(linear, prims.const(strides[axis], linear))
        for k, stride in enumerate(strides):
            if k != axis and index.shape[k] != 1:
                place = prims.iota(k, index.shape)
                linear = prims.add(linear, place if stride == 1 else
                                   prims.mul(place, prims.const(stride, place)))
        linear = prims.where(wrong, prims.const(total, linear), linear)
    return linear


def gather_node(x: Node, axis: int, index: Node) -> Node:
    """out[i][j] = x[index[i][j]][j] for axis 0, and so on."""
    if x.ndim == 0:
        x = prims.reshape(x, (1,))
        return prims.reshape(gather_node(x, 0, prims.reshape(index, (index.size,))), index.shape)
    return prims.take(prims.reshape(x, (x.size,)), linear_along(x.shape, axis, index))


def scatter_node(x: Node, axis: int, index: Node, source: Node, accumulate: bool) -> Node:
    """`x` with x[index[i][j]][j] = source[i][j] (or +=) for axis 0, and so on."""
    if x.ndim == 0:
        flat = (index.size,)
        made = scatter_node(prims.reshape(x, (1,)), 0, prims.reshape(index, flat),
                            prims.reshape(source, flat), accumulate)
        return prims.reshape(made, ())
    record = TABLE["scatter_add" if accumulate else "scatter"]
    made = record(prims.reshape(x, (x.size,)), linear_along(x.shape, axis, index), source)
    return prims.reshape(made, x.shape)


def _check_index(x: Node, axis: int, index: Node, name: str) -> None:
    if index.ndim != x.ndim and index.ndim and x.ndim:
        raise IndexingError(f"{name}: x has {x.ndim} dimensions and `index` {index.ndim}; they "
                            "must be equal.")
    for k, n in enumerate(index.shape):
        if x.ndim and k != axis and n > x.shape[k]:
            raise ShapeError(f"{name}: `index` has shape {index.shape} and x {x.shape}; `index` "
                             f"may not be larger than x except in dimension {axis}.")
    check_known(index, x.shape[axis] if x.ndim else 1, axis, name)


@public()
@with_out
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Elements named along `dim`: `out[i][j] = input[index[i][j]][j]` for dim 0, and so on.

    Args:
        input: the source.
        dim: the dimension along which `index` names.
        index: integers, as many dimensions as `input`, no larger except along `dim`.

    Returns:
        A tensor shaped as `index`.
    """
    x, i = node_of(input, "gs.gather"), index_node(index, "gs.gather")
    axis = axis_of(dim, x.ndim, "gs.gather")
    if not i.size:  # as PyTorch: an index that names nothing fits every tensor
        return wrap(prims.flat_slope(prims.full(0, i.shape, x.dtype), x))
    _check_index(x, axis, i, "gs.gather")
    return wrap(gather_node(x, axis, i))


@public()
@with_out
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` with `input` and `indices` broadcast except along `dim` (flattened without it)."""
    x, i = node_of(input, "gs.take_along_dim"), index_node(indices, "gs.take_along_dim", "indices")
    if dim is None:
        return wrap(prims.take(prims.reshape(x, (x.size,)), prims.reshape(i, (i.size,))))
    axis = axis_of(dim, x.ndim, "gs.take_along_dim")
    if x.ndim != i.ndim:
        raise ShapeError(f"gs.take_along_dim: x has {x.ndim} dimensions and indices {i.ndim}; they "
                         "must be equal.")
    ones = [s[:axis] + (1,) + s[axis + 1:] for s in (x.shape, i.shape)]
    common = broadcast_shapes("gs.take_along_dim", ones)
    x = prims.expand(x, common[:axis] + (x.shape[axis],) + common[axis + 1:])
    i = prims.expand(i, common[:axis] + (i.shape[axis],) + common[axis + 1:])
    return wrap(gather_node(x, axis, i))


def _source(x: Node, index: Node, src: Any, name: str) -> Node:
    """The values to scatter, cut to the shape of the index."""
    if isinstance(src, Numbers):
        return prims.full(src, index.shape, x.dtype)
    node = node_of(src, name, "src")
    if node.dtype is not x.dtype:
        raise DTypeError(f"{name}: x is {type_text(x)} and src {type_text(node)}; the dtypes must "
                         "be equal. Use src.to(x.dtype).")
    if node.shape == index.shape:
        return node
    if node.ndim != index.ndim or any(i > s for i, s in zip(index.shape, node.shape, strict=True)):
        if node.size == index.size == 1:
            return prims.reshape(node, index.shape)
        raise ShapeError(f"{name}: `index` has shape {index.shape} and src {node.shape}; `index` "
                         "may not be larger than src.")
    return prims.slice_(node, (0,) * index.ndim, index.shape)


def _scatter(input: Tensor, dim: int, index: Tensor, src: Any, name: str, how: str) -> Tensor:
    x, i = node_of(input, name), index_node(index, name)
    axis = axis_of(dim, x.ndim, name)
    if i.size == 0:
        return wrap(twin(x))
    _check_index(x, axis, i, name)
    source = _source(x, i, src, name)
    if how == "multiply":
        return wrap(_scatter_reduced(x, axis, i, source, "prod", True))
    return wrap(scatter_node(x, axis, i, source, how == "add"))


@public(inplace=True)
@with_out
def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, value: Any = None, *,
            reduce: str | None = None) -> Tensor:
    """`input` with `out[index[i][j]][j] = src[i][j]` for dim 0, and so on.

    Args:
        input: any shape.
        dim: the dimension along which `index` names.
        index: integers.
        src: a tensor at least as large as `index`, or a number.
        reduce: None, "add" or "multiply": how to combine with what is there.
    """
    if reduce not in (None, "add", "multiply"):
        raise DTypeError(f"gs.scatter(reduce={reduce!r}): it must be 'add' or 'multiply'.")
    chosen = value if src is None else src
    if isinstance(chosen, Tensor) and chosen._node.ndim == 0 and index.ndim:
        chosen = wrap(prims.expand(prims.cast(chosen._read(), input._node.dtype),
                                   index._node.shape))
    return _scatter(input, dim, index, chosen, "gs.scatter", reduce or "set")


@public(inplace=True)
@with_out
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`input` with `out[index[i][j]][j] += src[i][j]` for dim 0, and so on. Deterministic."""
    return _scatter(input, dim, index, src, "gs.scatter_add", "add")


def _ordered(index: Node, source: Node, descending: bool) -> tuple[Node, Node]:
    """(index, source) flattened and ordered so that the last write per place is the extreme."""
    flat = prims.reshape(source, (source.size,))
    order = prims.argsort(flat, 0, descending)
    return prims.take(prims.reshape(index, (index.size,)), order), prims.take(flat, order)


def _extreme(x: Node, flat_index: Node, source: Node, how: str, include: bool) -> Node:
    """Per place the largest (or smallest) source, ties sharing the derivative."""
    base = prims.reshape(x, (x.size,))
    plain = prims.detach(source)
    index, values = _ordered(flat_index, plain, how == "amin")
    best = TABLE["scatter"](prims.detach(base), index, values)
    if include:
        best = TABLE["maximum" if how == "amax" else "minimum"](prims.detach(base), best)
    if not (x.grad or source.grad):
        return best
    hit = prims.cast(prims.equal(plain, prims.take(best, flat_index)), x.dtype)
    own = prims.equal(prims.detach(base), best) if include else _untouched(base, flat_index)
    own_weight = prims.cast(own, x.dtype)
    count = TABLE["scatter_add"](own_weight, flat_index, hit)
    total = TABLE["scatter_add"](prims.mul(own_weight, base), flat_index, prims.mul(hit, source))
    shown = prims.div(total, count)  # its value is `best`, its derivative is shared evenly
    return prims.add(prims.detach(best), prims.sub(shown, prims.detach(shown)))


def _untouched(base: Node, flat_index: Node) -> Node:
    """Which elements no index names."""
    count = TABLE["scatter_add"](prims.full(0, base.shape, int64), flat_index,
                                 prims.full(1, flat_index.shape, int64))
    return prims.equal(count, prims.const(0, count))


def _zero_flags(x: Node) -> Node:
    return TABLE["eq"](x, prims.const(0, x))


def _tally(start: Node, flat_index: Node, source: Node) -> tuple[Node, Node]:
    """Per place the number of zeros that meet there, and the product of the other numbers: signs
    and logarithms are added up apart."""
    add = TABLE["scatter_add"]
    zeros = add(prims.cast(_zero_flags(start), int64), flat_index,
                prims.cast(_zero_flags(source), int64))
    negative = [prims.cast(TABLE["lt"](n, prims.const(0, n)), int64) for n in (start, source)]
    odd = TABLE["bitwise_and"](add(negative[0], flat_index, negative[1]),
                               prims.full(1, start.shape, int64))
    wide = [prims.cast(n, float64) for n in (start, source)]
    logs = [TABLE["log"](TABLE["abs"](prims.where(_zero_flags(w), prims.const(1, w), w)))
            for w in wide]
    size = TABLE["exp"](add(logs[0], flat_index, logs[1]))
    return zeros, prims.where(prims.equal(odd, prims.const(1, odd)), prims.neg(size), size)


def _product_value(start: Node, flat_index: Node, source: Node) -> Node:
    zeros, rest = _tally(start, flat_index, source)
    if start.dtype.kind != "f":
        rest = TABLE["round"](rest)
    none = prims.equal(zeros, prims.const(0, zeros))
    return prims.cast(prims.where(none, rest, prims.const(0, rest)), start.dtype)


def _others(value: Node, zeros: Node, rest: Node) -> Node:
    """The product of all numbers in one place but `value`."""
    wide = prims.cast(value, float64)
    zero = _zero_flags(wide)
    safe = prims.where(zero, prims.const(1, wide), wide)
    without = prims.sub(zeros, prims.cast(zero, int64))
    left = prims.equal(without, prims.const(0, without))
    made = prims.where(left, prims.div(rest, safe), prims.const(0, rest))
    return prims.cast(made, value.dtype)


def _product_rule(g: Node, y: Node, start: Node, source: Node, flat_index: Node,
                  ) -> tuple[Node, Node, None]:
    zeros, rest = _tally(start, flat_index, source)
    at = prims.take(g, flat_index)
    return (prims.mul(g, _others(start, zeros, rest)),
            prims.mul(at, _others(source, prims.take(zeros, flat_index),
                                  prims.take(rest, flat_index))), None)


def _product(x: Node, flat_index: Node, source: Node, include: bool) -> Node:
    """Per place the product of its sources (and of the element itself, if included)."""
    start = prims.reshape(x, (x.size,))
    if not include:
        start = prims.where(_untouched(start, flat_index), start, prims.const(1, start))
    value = prims.detach(_product_value(start, flat_index, source))
    if not (start.grad or source.grad):
        return value
    return TABLE["custom"](value, start, source, flat_index, rule=_product_rule)


def _scatter_flat(x: Node, flat_index: Node, source: Node, how: str, include: bool) -> Node:
    """`scatter_reduce` on linear indices; the result is flat."""
    base = prims.reshape(x, (x.size,))
    if how in ("amax", "amin"):
        return _extreme(x, flat_index, source, how, include)
    if how == "prod":
        return _product(x, flat_index, source, include)
    if not include:
        base = prims.where(_untouched(base, flat_index), base, prims.const(0, base))
    total = TABLE["scatter_add"](base, flat_index, source)
    if how == "sum":
        return total
    count = TABLE["scatter_add"](prims.full(1 if include else 0, base.shape, int64), flat_index,
                                 prims.full(1, flat_index.shape, int64))
    count = TABLE["maximum"](count, prims.const(1, count))
    if x.dtype.kind == "f":
        return prims.div(total, prims.cast(count, x.dtype))
    return TABLE["floor_divide"](total, prims.cast(count, x.dtype))


def _scatter_reduced(x: Node, axis: int, index: Node, source: Node, how: str,
                     include: bool) -> Node:
    shape = x.shape
    if not shape:
        x = prims.reshape(x, (1,))
        index, source = (prims.reshape(n, (n.size,)) for n in (index, source))
    flat = linear_along(x.shape, axis, index)
    size = (flat.size,)
    made = _scatter_flat(x, prims.reshape(flat, size), prims.reshape(source, size), how, include)
    return prims.reshape(made, shape)


_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


@public(inplace=True)
@with_out
def scatter_reduce(input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *,
                   include_self: bool = True) -> Tensor:
    """As `scatter`, combining all that meets in one place.

    Args:
        reduce: "sum", "prod", "mean", "amax" or "amin".
        include_self: whether the element of `input` takes part.
    """
    if reduce not in _REDUCTIONS:
        raise DTypeError(f"gs.scatter_reduce(reduce={reduce!r}): it must be one of {_REDUCTIONS}.")
    x, i = node_of(input, "gs.scatter_reduce"), index_node(index, "gs.scatter_reduce")
    axis = axis_of(dim, x.ndim, "gs.scatter_reduce")
    if i.size == 0:
        return wrap(twin(x))
    _check_index(x, axis, i, "gs.scatter_reduce")
    source = _source(x, i, src, "gs.scatter_reduce")
    return wrap(_scatter_reduced(x, axis, i, source, reduce, include_self))


# -------------------------------------------------------------------------- whole rows: index_*

def _vector(index: Any, name: str) -> Node:
    node = index_node(index, name)
    if node.ndim > 1:
        raise IndexingError(f"{name}: `index` is {type_text(node)}; it must have one dimension.")
    return prims.reshape(node, (node.size,))


@public()
@with_out
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The indices named by the vector `index` of dimension `dim`, in that order (a copy)."""
    x, i = node_of(input, "gs.index_select"), _vector(index, "gs.index_select")
    axis = axis_of(dim, x.ndim, "gs.index_select")
    check_known(i, x.shape[axis] if x.ndim else 1, axis, "gs.index_select")
    if x.ndim == 0:
        return wrap(prims.reshape(prims.take(prims.reshape(x, (1,)), i), ()))
    return wrap(prims.move_axis(prims.take(prims.move_axis(x, axis, 0), i), 0, axis))


def _rows(input: Tensor, dim: int, index: Tensor, name: str) -> tuple[Node, int, Node]:
    x, i = node_of(input, name), _vector(index, name)
    axis = axis_of(dim, x.ndim, name)
    check_known(i, x.shape[axis] if x.ndim else 1, axis, name)
    return (x, axis, i) if x.ndim else (prims.reshape(x, (1,)), 0, i)


def _write_rows(input: Tensor, x: Node, axis: int, index: Node, source: Node,
                accumulate: bool) -> Tensor:
    record = TABLE["scatter_add" if accumulate else "scatter"]
    made = record(prims.move_axis(x, axis, 0), index, prims.move_axis(source, axis, 0))
    return wrap(prims.reshape(prims.move_axis(made, 0, axis), input._node.shape))


def _row_source(x: Node, axis: int, index: Node, source: Any, name: str) -> Node:
    node = node_of(source, name, "source")
    if node.dtype is not x.dtype:
        raise DTypeError(f"{name}: x is {type_text(x)} and source {type_text(node)}; the dtypes "
                         "must be equal.")
    shape = (*x.shape[:axis], index.size, *x.shape[axis + 1:])
    if node.ndim == 0:
        node = prims.reshape(node, (1,))
    if node.shape != shape:
        raise ShapeError(f"{name}: source has shape {node.shape}; it must be {shape}: that of x "
                         "with one index for each element of `index`.")
    return node


@public(inplace=True)
@with_out
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """`input` with `alpha * source` added to the indices of `dim` that `index` names."""
    x, axis, i = _rows(input, dim, index, "gs.index_add")
    node = _row_source(x, axis, i, source, "gs.index_add")
    if alpha != 1:
        node = prims.mul(node, prims.const(alpha, node))
    return _write_rows(input, x, axis, i, node, True)


@public(inplace=True)
@with_out
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`input` with the indices of `dim` that `index` names replaced by `source`."""
    x, axis, i = _rows(input, dim, index, "gs.index_copy")
    return _write_rows(input, x, axis, i, _row_source(x, axis, i, source, "gs.index_copy"), False)


@public(inplace=True)
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`input` with the indices of `dim` that `index` names filled with `value`."""
    x, axis, i = _rows(input, dim, index, "gs.index_fill")
    shape = (*x.shape[:axis], i.size, *x.shape[axis + 1:])
    if isinstance(value, Tensor):
        if value.ndim:
            raise ShapeError(f"gs.index_fill: value has {value.ndim} dimensions; it must have "
                             "none.")
        node = prims.expand(prims.cast(value._read(), x.dtype), shape)
    else:
        node = prims.full(number(value, "gs.index_fill"), shape, x.dtype)
    return _write_rows(input, x, axis, i, node, False)


@public(inplace=True)
@with_out
def index_reduce(input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *,
                 include_self: bool = True) -> Tensor:
    """As `index_add`, combining by "prod", "mean", "amax" or "amin"."""
    if reduce not in _REDUCTIONS[1:]:
        raise DTypeError(f"gs.index_reduce(reduce={reduce!r}): it must be one of "
                         f"{_REDUCTIONS[1:]}.")
    x, axis, i = _rows(input, dim, index, "gs.index_reduce")
    node = _row_source(x, axis, i, source, "gs.index_reduce")
    line = prims.reshape(i, tuple(i.size if k == axis else 1 for k in range(x.ndim)))
    if node.size == 0:
        return wrap(twin(input._read()))
    made = _scatter_reduced(x, axis, prims.expand(line, node.shape), node, reduce, include_self)
    return wrap(prims.reshape(made, input._node.shape))


@public()
def index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """A copy of `input` with `copy[indices] = values` (or `+=`)."""
    return index_put_(wrap(twin(node_of(input, "gs.index_put"))), indices, values, accumulate)


# ------------------------------------------------------------------------------ as if flattened

@public()
@with_out
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of `input` as if it were one row: `input.reshape(-1)[index]`."""
    x, i = node_of(input, "gs.take"), index_node(index, "gs.take")
    check_known(i, x.size, 0, "gs.take")
    return wrap(prims.take(prims.reshape(x, (x.size,)), i))


@public(inplace=True)
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """`input` with elements, counted as one row, at `index` set to (or increased by) `source`."""
    x, i = node_of(input, "gs.put"), index_node(index, "gs.put")
    node = node_of(source, "gs.put", "source")
    if node.dtype is not x.dtype or node.size != i.size:
        raise ShapeError(f"gs.put: x is {type_text(x)}, index {type_text(i)}, source "
                         f"{type_text(node)}; source must have x's dtype and one element for each "
                         "of index.")
    check_known(i, x.size, 0, "gs.put")
    record = TABLE["scatter_add" if accumulate else "scatter"]
    made = record(prims.reshape(x, (x.size,)), i, prims.reshape(node, i.shape))
    return wrap(prims.reshape(made, x.shape))


# -------------------------------------------------------------------- views written functionally

def _into(name: str, view: str, doc: str) -> None:
    def fn(input: Tensor, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = wrap(twin(node_of(input, f"gs.{name}")))
        part = getattr(made, view)(*args, **kwargs)
        s = node_of(src, f"gs.{name}", "src")
        if s.shape != part._node.shape:
            raise ShapeError(f"gs.{name}: src has shape {s.shape}; the part it replaces has "
                             f"{part._node.shape}.")
        part._write(prims.cast(s, part._node.dtype))
        return made
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    public()(fn)


_into("select_scatter", "select", "A copy of `input`, one index of a dimension replaced by `src`.")
_into("diagonal_scatter", "diagonal", "A copy of `input` with a diagonal replaced by `src`.")
_into("slice_scatter", "_sliced", "A copy of `input`, a slice of a dimension replaced by `src`.")


def _sliced(self: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
            step: int = 1) -> Tensor:
    axis = axis_of(dim, self.ndim, "gs.slice_scatter")
    return self[(slice(None),) * axis + (slice(start, end, step),)]


attach("_sliced", _sliced)
