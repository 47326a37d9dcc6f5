"""Indexing by data: take and its transpose scatter_add, scatter, and strided. Layer 1.

All work along axis 0 with int64 indices, negative ones counting from the end; advanced indexing,
gather and embedding are reshapes and linear indices around them. An index out of range is an error
found when the program runs.
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import bool_, int64
from gossamer.core.errors import IndexingError
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, IOTA, Op, Sample, constant, define
from gossamer.ops.elementwise import add, eq, lt, mul, where
from gossamer.ops.movement import reshape
from gossamer.ops.reduction import broadcast
from gossamer.ops.rules import Type, dtype_error, shape_error, wide

__all__ = ["scatter", "scatter_add", "strided", "take"]


def _check_index(op: Op, x: Node, index: Node, inputs: tuple[Node, ...]) -> None:
    if index.dtype is not int64:
        raise dtype_error(op, inputs, "the index must be int64", "Convert it with .long().")
    if x.ndim == 0:
        raise shape_error(op, inputs, "a tensor without axes cannot be indexed",
                          "Reshape it to (1,) first.")


def _take_type(op: Op, x: Node, index: Node) -> Type:
    _check_index(op, x, index, (x, index))
    if x.shape[0] == 0 and index.size:
        raise shape_error(op, (x, index), "there is no element to take",
                          "Take from a non-empty axis.")
    return (*index.shape, *x.shape[1:]), x.dtype


def _checked(index: np.ndarray, extent: int) -> np.ndarray:
    wrong = (index < -extent) | (index >= extent)
    if wrong.any():
        raise IndexingError(f"index {index[wrong][0]} is out of bounds for dimension 0 with size "
                            f"{extent}. Indices go from {-extent} to {extent - 1}.")
    return np.where(index < 0, index + extent, index)


def _flat_rows(op: Op, size: int, x: Node, index: Node) -> tuple[Node, Node]:
    """Batching: x's rows of all batches in one axis, and the index moved to the batch's rows."""
    rows = x.shape[1]
    flat = reshape(x, shape=(size * rows, *x.shape[2:]))
    wrapped = where(lt(index, constant(0, index)), add(index, constant(rows, index)), index)
    start = mul(IOTA(axis=0, shape=index.shape, dtype=int64), constant(rows, index))
    return flat, add(wrapped, start)


def _take_batch(op: Op, size: int, x: Node, index: Node) -> Node:
    if x.op is broadcast and x.attrs["axes"] == (0,):  # one table for the whole batch
        return op(x.inputs[0], index)
    return op(*_flat_rows(op, size, x, index))


def _take_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((rng.normal(size=shape), rng.integers(-shape[0], shape[0], index)))
            for shape, index in (((5,), ()), ((5,), (3,)), ((4, 3), (2, 3)), ((1, 2), (3,)),
                                 ((3, 2), (0,)), ((3, 0), (2,)), ((4, 2, 2), (5,)))]


take: Op = define(Op(
    "take", "indexing", "x[index] along axis 0: shape index.shape + x.shape[1:].",
    infer=_take_type, reference=lambda x, index: x[_checked(index, x.shape[0])],
    vjp=lambda g, y, x, index: (scatter_add(constant(0, x), index, g), None),
    batch=_take_batch, cost=2.0, onnx="Gather-13", samples=_take_samples))


def _scatter_type(op: Op, x: Node, index: Node, src: Node) -> Type:
    inputs = (x, index, src)
    _check_index(op, x, index, inputs)
    if src.dtype is not x.dtype:
        raise dtype_error(op, inputs, "source and target must have one dtype",
                          "Convert the source with .to(dtype).")
    if src.shape != (*index.shape, *x.shape[1:]):
        raise shape_error(op, inputs, f"the source must have shape {(*index.shape, *x.shape[1:])}: "
                          "the index's, then the target's without axis 0",
                          "Broadcast or reshape the source.")
    return x.shape, x.dtype


def _scatter_add_type(op: Op, x: Node, index: Node, src: Node) -> Type:
    if x.dtype is bool_:
        raise dtype_error(op, (x, index, src), "it is not defined for bool",
                          "Convert with .to(dtype).")
    return _scatter_type(op, x, index, src)


def _add_reference(x: np.ndarray, index: np.ndarray, src: np.ndarray) -> np.ndarray:
    total = x.astype(wide(x))
    np.add.at(total, _checked(index, x.shape[0]), src)
    return total


def _scatter_batch(op: Op, size: int, x: Node, index: Node, src: Node) -> Node:
    flat, rows = _flat_rows(op, size, x, index)
    return reshape(op(flat, rows, src), shape=x.shape)


def _scatter_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((rng.normal(size=shape), rng.integers(-shape[0], shape[0], index),
                    rng.normal(size=(*index, *shape[1:]))))
            for shape, index in (((5,), ()), ((3,), (7,)), ((4, 3), (2, 3)), ((1, 2), (3,)),
                                 ((3, 2), (0,)), ((2, 0), (3,)))]


scatter_add: Op = define(Op(
    "scatter_add", "indexing", "x with x[index] += src along axis 0; repeated indices add up.",
    infer=_scatter_add_type, reference=_add_reference,
    vjp=lambda g, y, x, index, src: (g, None, take(g, index) if src.grad else None),
    batch=_scatter_batch, cost=4.0, onnx="ScatterND-16", samples=_scatter_samples))


def _scatter_reference(x: np.ndarray, index: np.ndarray, src: np.ndarray) -> np.ndarray:
    result = x.copy()
    places = _checked(index, x.shape[0]).reshape(-1)
    for place, row in zip(places, src.reshape(places.size, *x.shape[1:]), strict=True):
        result[place] = row  # in order: the last write wins
    return result


def _last_writer(index: Node, extent: int) -> Node:
    """bool, shaped as the index: whether no later position writes to the same place."""
    number = reshape(IOTA(axis=0, shape=(index.size,), dtype=int64), shape=index.shape)
    writer = scatter(CONSTANT(value=-1, shape=(extent,), dtype=int64), index, number)
    return eq(take(writer, index), number)


def _scatter_vjp(g: Node, y: Node, x: Node, index: Node,
                 src: Node) -> tuple[Node | None, None, Node | None]:
    gx = scatter(g, index, constant(0, src)) if x.grad else None
    if not src.grad:
        return gx, None, None
    rows = take(g, index)
    if index.size > 1:
        won = _last_writer(index, x.shape[0])
        won = broadcast(won, shape=src.shape, axes=tuple(range(index.ndim, src.ndim)))
        rows = where(won, rows, constant(0, rows))
    return gx, None, rows


scatter: Op = define(Op(
    "scatter", "indexing", "x with x[index] = src along axis 0; the last write to a place wins.",
    infer=_scatter_type, reference=_scatter_reference, vjp=_scatter_vjp, batch=_scatter_batch,
    cost=4.0, onnx="ScatterND-16", samples=_scatter_samples))


# strided ------------------------------------------------------------------------------------------


def _strided_type(op: Op, x: Node, *, extents: Shape, strides: Shape, offset: int) -> Type:
    last = offset + sum((n - 1) * s for n, s in zip(extents, strides, strict=True))
    if x.ndim != 1 or offset < 0 or min(strides, default=0) < 0 \
            or 0 not in extents and last >= x.size:
        raise shape_error(op, (x,), f"extents {extents}, strides {strides} and offset {offset} "
                          f"reach element {last} of a row of {x.size}",
                          "Give strides that stay inside the row.")
    return extents, x.dtype


def _places(extents: Shape, strides: Shape, offset: int) -> Node:
    """The element of the row that each element of the result shows."""
    index = CONSTANT(value=offset, shape=extents, dtype=int64)
    for axis, step in enumerate(strides):
        if extents[axis] > 1:
            place = IOTA(axis=axis, shape=extents, dtype=int64)
            index = add(index, mul(place, constant(step, place)))
    return index


def _strided_reference(x: np.ndarray, *, extents: Shape, strides: Shape,
                       offset: int) -> np.ndarray:
    if 0 in extents:
        return np.empty(extents, x.dtype)
    row = np.ascontiguousarray(x)[offset:]
    return np.lib.stride_tricks.as_strided(row, extents, [s * x.itemsize for s in strides]).copy()


def _strided_batch(op: Op, size: int, x: Node, *, extents: Shape, strides: Shape,
                   offset: int) -> Node:
    return op(reshape(x, shape=(size * x.shape[1],)), extents=(size, *extents),
              strides=(x.shape[1], *strides), offset=offset)


strided: Op = define(Op(
    "strided", "composite", "The elements of a row at index i are x[offset + sum(i * strides)].",
    infer=_strided_type, reference=_strided_reference,
    body=lambda x, *, extents, strides, offset: take(x, _places(extents, strides, offset)),
    batch=_strided_batch,
    put=lambda old, new, *, extents, strides, offset: scatter(
        old, _places(extents, strides, offset), new),
    samples=lambda rng: [
        Sample((rng.normal(size=n),), {"extents": e, "strides": s, "offset": o})
        for n, e, s, o in ((7, (3, 3), (2, 1), 0), (6, (2,), (3,), 2), (4, (), (), 3),
                           (3, (2, 0), (1, 1), 1), (5, (4, 3), (0, 1), 1),
                           (1, (1, 1), (1, 1), 0))]))
