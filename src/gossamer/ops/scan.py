"""Running combinations along an axis: `scan`, `recurrence`, and `reduce_prod`. Layer 1.

Both derivative rules of products avoid division, so they are right where elements are zero, to any
order: a running product's is a recurrence, and a recurrence's is one that runs backwards. Running
extremes pass the cotangent to the element that holds the record, the last one among
equals (PyTorch's cummax).
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import bool_, int64
from gossamer.core.shape import inverse_permutation, size_of
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, IOTA, Op, Sample, constant, define
from gossamer.ops.elementwise import add, eq, isnan, mul, where
from gossamer.ops.indexing import scatter_add
from gossamer.ops.movement import flip, pad, permute, reshape, slice_
from gossamer.ops.reduction import broadcast, reduced_type, reduction_samples
from gossamer.ops.rules import (
    Type,
    axis_in_range,
    dtype_error,
    same_numbers,
    shape_error,
    wide,
)

__all__ = ["record_positions", "recurrence", "reduce_prod", "scan", "shift"]

_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scan_type(op: Op, x: Node, *, axis: int, combine: str) -> Type:
    axis_in_range(op, x, axis)
    if combine not in _COMBINE:
        raise shape_error(op, (x,), f"combine {combine!r} must be one of {', '.join(_COMBINE)}",
                          "Choose one of them.")
    if x.dtype is bool_:
        raise dtype_error(op, (x,), "it is not defined for bool", "Convert it with .long().")
    return x.shape, x.dtype


def _scan_reference(x: np.ndarray, *, axis: int, combine: str) -> np.ndarray:
    return _COMBINE[combine].accumulate(x, axis=axis, dtype=wide(x))


def shift(x: Node, axis: int, steps: int, fill: float) -> Node:
    """x moved by `steps` > 0 towards higher indices (< 0: lower), vacated places hold `fill`."""
    n = x.shape[axis]
    count = min(abs(steps), n)
    zeros, ones = (0,) * x.ndim, (1,) * x.ndim
    starts, stops = list(zeros), list(x.shape)
    low, high = list(zeros), list(zeros)
    if steps > 0:
        stops[axis], low[axis] = n - count, count
    else:
        starts[axis], high[axis] = count, count
    kept = slice_(x, starts=tuple(starts), stops=tuple(stops), steps=ones)
    return pad(kept, low=tuple(low), high=tuple(high), interior=zeros, value=fill)


def _suffix_sum(g: Node, axis: int) -> Node:
    reverse = flip(g, axes=(axis,))
    return flip(scan(reverse, axis=axis, combine="add"), axes=(axis,))


def _carried_back(g: Node, a: Node, axis: int) -> Node:
    """r_i = g_i + a_{i+1} r_{i+1}: what reaches element i of a recurrence from all behind it."""
    factors = flip(shift(a, axis, -1, 0), axes=(axis,))
    return flip(recurrence(factors, flip(g, axes=(axis,)), axis=axis), axes=(axis,))


def _product_rule(g: Node, y: Node, x: Node, axis: int) -> Node:
    """A running product is the recurrence y_i = x_i y_{i-1} from y_{-1} = 1."""
    return mul(shift(y, axis, 1, 1), _carried_back(g, x, axis))


def record_positions(x: Node, y: Node, axis: int) -> Node:
    """int64: position along `axis` of the element that running extreme `y` of `x` shows.

    The last one among equals; once a NaN was met, the last NaN.
    """
    place = IOTA(axis=axis, shape=x.shape, dtype=int64)
    holds = eq(x, y)
    if x.dtype.kind == "f":
        holds = add(holds, isnan(x))
    return scan(where(holds, place, constant(0, place)), axis=axis, combine="max")


def _extreme_rule(g: Node, y: Node, x: Node, axis: int) -> Node:
    position = record_positions(x, y, axis)
    stride = size_of(x.shape[axis + 1:])
    # Linear index of the element itself, moved along the axis to the record's position.
    linear = reshape(IOTA(axis=0, shape=(x.size,), dtype=int64), shape=x.shape)
    own = IOTA(axis=axis, shape=x.shape, dtype=int64)
    moved = mul(add(position, mul(own, constant(-1, own))), constant(stride, own))
    index = reshape(add(linear, moved), shape=(x.size,))
    flat = scatter_add(CONSTANT(value=0, shape=(x.size,), dtype=x.dtype), index,
                       reshape(g, shape=(x.size,)))
    return reshape(flat, shape=x.shape)


def _scan_vjp(g: Node, y: Node, x: Node, *, axis: int, combine: str) -> tuple[Node]:
    if x.size == 0:
        return (g,)
    if combine == "add":
        return (_suffix_sum(g, axis),)
    return (_product_rule(g, y, x, axis) if combine == "mul" else _extreme_rule(g, y, x, axis),)


def _scan_samples(rng: np.random.Generator) -> list[Sample]:
    found = [Sample((rng.normal(size=shape),), {"axis": axis, "combine": combine})
             for combine in _COMBINE
             for shape, axis in (((7,), 0), ((2, 3), 0), ((3, 5), 1), ((1,), 0), ((0, 2), 0),
                                 ((2, 0), 0))]
    zeros = Sample((np.array([1.5, 0.0, -2.0, 0.0, 3.0]),), {"axis": 0, "combine": "mul"})
    nans = [Sample((np.array([2.0, 1.0, np.nan, 5.0]),), {"axis": 0, "combine": c}, gradient=False)
            for c in ("max", "min")]
    return [*found, zeros, *nans,
            Sample((rng.integers(-3, 3, (2, 4)),), {"axis": 1, "combine": "add"}, gradient=False)]


scan: Op = define(Op(
    "scan", "scan", "y_i = x_0 o ... o x_i along `axis`, o being add, mul, max or min.",
    infer=_scan_type, reference=_scan_reference, vjp=_scan_vjp,
    batch=lambda op, size, x, *, axis, combine: op(x, axis=axis + 1, combine=combine), cost=4.0,
    onnx="CumSum-14", samples=_scan_samples))


def _recurrence_type(op: Op, a: Node, b: Node, *, axis: int) -> Type:
    axis_in_range(op, a, axis)
    return same_numbers(op, a, b)


def _recurrence_reference(a: np.ndarray, b: np.ndarray, *, axis: int) -> np.ndarray:
    result = np.empty(b.shape, wide(b))
    factors, terms, rows = (np.moveaxis(v, axis, 0) for v in (a, b, result))
    last = np.zeros(rows.shape[1:], rows.dtype)
    for i in range(len(rows)):
        rows[i] = last = factors[i] * last + terms[i]
    return result


def _recurrence_vjp(g: Node, y: Node, a: Node, b: Node, *, axis: int) -> tuple[Node, Node]:
    if b.size == 0:
        return g, g
    reached = _carried_back(g, a, axis)
    return mul(reached, shift(y, axis, 1, 0)), reached


def _recurrence_samples(rng: np.random.Generator) -> list[Sample]:
    found = [Sample((rng.normal(size=shape), rng.normal(size=shape)), {"axis": axis})
             for shape, axis in (((7,), 0), ((2, 3), 0), ((3, 5), 1), ((2, 4, 3), 1), ((1,), 0),
                                 ((0, 2), 0), ((2, 0), 0))]
    zeros = (np.array([1.5, 0.0, -2.0, 0.0, 3.0]), np.array([1.0, 0.0, 2.0, -1.0, 0.0]))
    whole = (rng.integers(-3, 3, (2, 4)), rng.integers(-3, 3, (2, 4)))
    return [*found, Sample(zeros, {"axis": 0}), Sample(whole, {"axis": 1}, gradient=False)]


recurrence: Op = define(Op(
    "recurrence", "scan", "y_i = a_i y_{i-1} + b_i along `axis`, from y_{-1} = 0.",
    infer=_recurrence_type, reference=_recurrence_reference, vjp=_recurrence_vjp,
    batch=lambda op, size, a, b, *, axis: op(a, b, axis=axis + 1), cost=4.0,
    samples=_recurrence_samples))


def _prod_type(op: Op, x: Node, *, axes: Shape) -> Type:
    if x.dtype is bool_:
        raise dtype_error(op, (x,), "the operand must be a number",
                          "Convert it with .long() first.")
    return reduced_type(op, x, axes=axes)


def _prod_vjp(g: Node, y: Node, x: Node, *, axes: Shape) -> tuple[Node]:
    """g times the product of all other elements: of those before and of those behind."""
    if not axes or x.size == 0:
        return (broadcast(g, shape=x.shape, axes=axes),)
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = (*kept, *axes)
    moved = permute(x, axes=order)
    line = reshape(moved, shape=(*g.shape, size_of(x.shape[a] for a in axes)))
    last = g.ndim
    before = shift(scan(line, axis=last, combine="mul"), last, 1, 1)
    behind = flip(scan(flip(line, axes=(last,)), axis=last, combine="mul"), axes=(last,))
    others = mul(before, shift(behind, last, -1, 1))
    found = mul(broadcast(g, shape=line.shape, axes=(last,)), others)
    return (permute(reshape(found, shape=moved.shape), axes=inverse_permutation(order)),)


reduce_prod: Op = define(Op(
    "reduce_prod", "reduction", "Product of x over `axes`, which disappear.", infer=_prod_type,
    reference=lambda x, *, axes: np.prod(x, axis=axes, dtype=wide(x)), vjp=_prod_vjp,
    batch=lambda op, size, x, *, axes: op(x, axes=tuple(a + 1 for a in axes)), lower="mul",
    onnx="ReduceProd-18",
    samples=lambda rng: [
        *reduction_samples(rng), Sample((np.array([1.5, 0.0, -2.0]),), {"axes": (0,)}),
        Sample((np.array([[0.0, 0.0], [2.0, 0.0]]),), {"axes": (1,)}),
        Sample((rng.integers(-3, 3, (2, 4)),), {"axes": (1,)}, gradient=False)]))
