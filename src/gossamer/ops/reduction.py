"""Reductions, and `broadcast`, the transpose of `reduce_sum`. Layer 1.

A reduction removes its axes (sorted tuple). `lower` is the name of the combine step; its identity
element follows from it and the dtype. The reference accumulates floats in float64, so that it says
what the sum is, not what one order of additions gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import bool_, int64
from gossamer.core.shape import size_of, without_axes
from gossamer.ir.index import Index
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import Op, Sample, constant, define
from gossamer.ops.elementwise import cast, div, eq, where
from gossamer.ops.movement import Source, reshape
from gossamer.ops.rules import Type, axis_in_range, dtype_error, shape_error, wide

__all__ = ["argmax", "argmin", "broadcast", "reduce_max", "reduce_min",
           "reduce_sum", "reduced_type", "reduction_samples"]


def reduced_type(op: Op, x: Node, *, axes: Shape) -> Type:
    """The type without `axes`, which must be sorted, distinct and in range."""
    shape = x.shape
    last = -1
    for axis in axes:
        if not last < axis < len(shape):
            axis_in_range(op, x, axis)
            raise shape_error(op, (x,), f"axes {axes} must be sorted and distinct", "Sort them.")
        last = axis
    return tuple([n for i, n in enumerate(shape) if i not in axes]), x.dtype


def _number_type(op: Op, x: Node, *, axes: Shape) -> Type:
    if x.dtype is bool_:
        raise dtype_error(op, (x,), "the operand must be a number",
                          "Convert it with .long() first.")
    return reduced_type(op, x, axes=axes)


def _extreme_type(op: Op, x: Node, *, axes: Shape) -> Type:
    found = reduced_type(op, x, axes=axes)
    if 0 in x.shape and any(x.shape[a] == 0 for a in axes):
        raise shape_error(op, (x,), f"no element along axes {axes}: the result has no value",
                          "Reduce a non-empty dimension.")
    return found


def reduction_samples(rng: np.random.Generator) -> list[Sample]:
    """All, some and no axes; extents 0 (outside the reduction), 1 and odd ones."""
    cases = (((), ()), ((5,), (0,)), ((2, 3), (1,)), ((2, 3), (0,)), ((2, 3), ()),
             ((3, 1, 4), (0, 2)), ((0, 3), (1,)), ((2, 3, 2), (0, 1, 2)))
    return [Sample((rng.normal(size=shape),), {"axes": axes}) for shape, axes in cases]


def _with_empty(rng: np.random.Generator) -> list[Sample]:
    """Also an empty reduced axis, and integers."""
    return [*reduction_samples(rng), Sample((np.zeros((0, 3)),), {"axes": (0,)}),
            Sample((rng.integers(-5, 5, (3, 4)),), {"axes": (0,)}, gradient=False)]


# sum and its transpose ----------------------------------------------------------------------------


reduce_sum: Op = define(Op(
    "reduce_sum", "reduction", "Sum of x over `axes`, which disappear.", infer=_number_type,
    reference=lambda x, *, axes: np.sum(x, axis=axes, dtype=wide(x)),
    vjp=lambda g, y, x, *, axes: (broadcast(g, shape=x.shape, axes=axes),),
    batch=lambda op, size, x, *, axes: op(x, axes=tuple(a + 1 for a in axes)), lower="add",
    onnx="ReduceSum-13", samples=_with_empty))


def _broadcast_type(op: Op, x: Node, *, shape: Shape, axes: Shape) -> Type:
    if without_axes(shape, axes) == x.shape and (not axes or 0 <= axes[0] <= axes[-1] < len(shape)):
        return shape, x.dtype
    raise shape_error(op, (x,), f"shape {shape} without its new axes {axes} is "
                      f"{without_axes(shape, axes)}, not {x.shape}",
                      "Name exactly the axes that x lacks.")


def _broadcast_map(index: tuple[Index, ...], shapes: Sequence[Shape], *, shape: Shape,
                   axes: Shape) -> list[Source]:
    return [(0, tuple(i for k, i in enumerate(index) if k not in axes), None)]


def _broadcast_put(old: Node, new: Node, *, shape: Shape, axes: Shape) -> Node:
    if size_of(shape[a] for a in axes) != 1:
        raise shape_error(
            broadcast, (old,), f"one element stands at several places of the shape {shape}",
            "Clone the tensor before writing into it.")
    return reshape(new, shape=old.shape)


broadcast: Op = define(Op(
    "broadcast", "movement", "x repeated along the new axes `axes` of `shape`.",
    infer=_broadcast_type,
    reference=lambda x, *, shape, axes: np.broadcast_to(np.expand_dims(x, axes), shape),
    vjp=lambda g, y, x, *, shape, axes: (reduce_sum(g, axes=axes),),
    batch=lambda op, size, x, *, shape, axes: op(x, shape=(size, *shape),
                                                 axes=tuple(a + 1 for a in axes)),
    lower=_broadcast_map, put=_broadcast_put, cost=0.0, onnx="Expand-13",
    samples=lambda rng: [
        Sample((rng.normal(size=source),), {"shape": shape, "axes": axes})
        for source, shape, axes in (((3,), (2, 3), (0,)), ((), (2, 2), (0, 1)),
                                    ((2,), (2, 1), (1,)),
                                    ((2, 3), (2, 0, 3), (1,)), ((2, 3), (4, 2, 5, 3), (0, 2)))]))

# extremes -----------------------------------------------------------------------------------------


def _extreme_vjp(g: Node, y: Node, x: Node, *, axes: Shape) -> tuple[Node]:
    """The cotangent goes to the elements that equal the extreme, evenly (PyTorch's amax)."""
    chosen = eq(x, broadcast(y, shape=x.shape, axes=axes))
    count = reduce_sum(cast(chosen, dtype=g.dtype), axes=axes)
    share = broadcast(div(g, count), shape=x.shape, axes=axes)
    return (where(chosen, share, constant(0, x)),)


def _extreme(name: str, doc: str, reference: Callable[..., Any], lower: str, onnx: str) -> Op:
    return define(Op(
        name, "reduction", doc, infer=_extreme_type,
        reference=lambda x, *, axes: reference(x, axis=axes), vjp=_extreme_vjp,
        batch=lambda op, size, x, *, axes: op(x, axes=tuple(a + 1 for a in axes)), lower=lower,
        onnx=onnx, samples=lambda rng: [
            *reduction_samples(rng),
            Sample((np.array([[1.0, np.nan, 3.0], [2.0, np.inf, -np.inf]]),), {"axes": (1,)},
                   gradient=False),
            Sample((np.array([[True, False], [False, False]]),), {"axes": (1,)}, gradient=False)]))


reduce_max: Op = _extreme("reduce_max", "Largest element of x over `axes`; NaN if any is.", np.max,
                          "max", "ReduceMax-18")
reduce_min: Op = _extreme("reduce_min", "Smallest element of x over `axes`; NaN if any is.", np.min,
                          "min", "ReduceMin-18")

# positions ----------------------------------------------------------------------------------------


def _position_type(op: Op, x: Node, *, axis: int) -> Type:
    axis_in_range(op, x, axis)
    if x.shape[axis] == 0:
        raise shape_error(op, (x,), f"no element along axis {axis}: there is no position",
                          "Search a non-empty dimension.")
    return without_axes(x.shape, (axis,)), int64


def _position_samples(rng: np.random.Generator) -> list[Sample]:
    return [*(Sample((rng.normal(size=s),), {"axis": a})
              for s, a in (((5,), 0), ((2, 3), 1), ((2, 3), 0), ((3, 1), 1), ((0, 3), 1))),
            Sample((np.array([[1.0, 3.0, 3.0], [np.nan, 1.0, np.nan]]),), {"axis": 1}, False),
            Sample((np.array([[2, 7, 7], [-3, -3, -4]]),), {"axis": 1}, False)]


def _position(name: str, doc: str, reference: Callable[..., Any], onnx: str) -> Op:
    return define(Op(
        name, "reduction", doc, infer=_position_type,
        reference=lambda x, *, axis: reference(x, axis=axis),
        batch=lambda op, size, x, *, axis: op(x, axis=axis + 1), lower=name, cost=2.0, onnx=onnx,
        samples=_position_samples))


argmax: Op = _position(
    "argmax", "Position of the largest element along `axis`, the first; NaN wins.", np.argmax,
    "ArgMax-13")
argmin: Op = _position(
    "argmin", "Position of the smallest element along `axis`, the first; NaN wins.", np.argmin,
    "ArgMin-13")
