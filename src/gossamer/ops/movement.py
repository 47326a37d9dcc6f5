"""Movement: operators that change where elements stand and compute nothing. Layer 1.

Each is an index map: `lower` says from which input, at which index, under which condition the
element of the result at `index` comes. So movement vanishes into the loops that read it. An
operator and its transpose stand side by side: slice and pad, windows and unwindows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import bool_
from gossamer.core.shape import inverse_permutation, size_of, split_groups
from gossamer.ir.index import Condition, Index, const, in_range
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, Op, Sample, define
from gossamer.ops.elementwise import where
from gossamer.ops.rules import Type, axis_in_range, dtype_error, shape_error

__all__ = ["after", "concat", "flip", "pad", "permute", "reshape", "shown", "slice_", "unwindows",
           "windows"]

Indices = tuple[Index, ...]
Source = tuple[int, Indices, Condition | None]  # input number, index into it, when

# reshape ------------------------------------------------------------------------------------------


def _reshape_type(op: Op, x: Node, *, shape: Shape) -> Type:
    if size_of(shape) == x.size:
        return shape, x.dtype
    raise shape_error(op, (x,), f"shape {shape} holds {size_of(shape)} elements, not {x.size}",
                      "Choose extents with the same product.")


def _reshape_map(index: Indices, shapes: Sequence[Shape], *, shape: Shape) -> list[Source]:
    source = shapes[0]
    if 0 in source:
        return [(0, (const(0),) * len(source), None)]
    found: list[Index] = []
    for ours, theirs in split_groups(source, shape):
        linear = const(0)
        for axis in theirs:
            linear = linear * shape[axis] + index[axis]
        parts: list[Index] = []
        for axis in reversed(ours):
            first = axis == ours[0]
            parts.append(linear if first else linear % source[axis])
            linear = linear // source[axis] if not first else linear
        found.extend(reversed(parts))
    return [(0, tuple(found), None)]


reshape: Op = define(Op(
    "reshape", "movement", "x with the same elements in row-major order, of shape `shape`.",
    infer=_reshape_type, reference=lambda x, *, shape: np.reshape(x, shape),
    vjp=lambda g, y, x, *, shape: (reshape(g, shape=x.shape),),
    batch=lambda op, size, x, *, shape: op(x, shape=(size, *shape)), lower=_reshape_map,
    put=lambda old, new, *, shape: reshape(new, shape=old.shape), cost=0.0, onnx="Reshape-14",
    samples=lambda rng: [
        Sample((rng.normal(size=source),), {"shape": target})
        for source, target in (((2, 3, 4), (6, 4)), ((6, 4), (3, 8)), ((), (1, 1)), ((1,), ()),
                               ((0, 3), (3, 0, 2)), ((3, 1, 4), (4, 1, 3)))]))

# permute ------------------------------------------------------------------------------------------


def _permute_type(op: Op, x: Node, *, axes: Shape) -> Type:
    if len(axes) != x.ndim or sorted(axes) != list(range(x.ndim)):
        raise shape_error(op, (x,), f"axes {axes} must list each of 0..{x.ndim - 1} once",
                          "Give a permutation of all axes.")
    shape = x.shape
    return tuple([shape[a] for a in axes]), x.dtype


def _permute_map(index: Indices, shapes: Sequence[Shape], *, axes: Shape) -> list[Source]:
    return [(0, tuple(index[k] for k in inverse_permutation(axes)), None)]


permute: Op = define(Op(
    "permute", "movement", "Axis i of the result is axis axes[i] of x.", infer=_permute_type,
    reference=lambda x, *, axes: np.transpose(x, axes),
    vjp=lambda g, y, x, *, axes: (permute(g, axes=inverse_permutation(axes)),),
    batch=lambda op, size, x, *, axes: op(x, axes=(0, *(a + 1 for a in axes))),
    lower=_permute_map,
    put=lambda old, new, *, axes: permute(new, axes=inverse_permutation(axes)), cost=0.0,
    onnx="Transpose-13",
    samples=lambda rng: [Sample((rng.normal(size=(2, 3, 4)),), {"axes": (2, 0, 1)}),
                         Sample((rng.normal(size=(2, 3)),), {"axes": (1, 0)}),
                         Sample((rng.normal(size=()),), {"axes": ()}),
                         Sample((rng.normal(size=(0, 2)),), {"axes": (1, 0)})]))

# flip ---------------------------------------------------------------------------------------------


def _flip_type(op: Op, x: Node, *, axes: Shape) -> Type:
    for axis in axes:
        axis_in_range(op, x, axis)
    return x.shape, x.dtype


def _flip_map(index: Indices, shapes: Sequence[Shape], *, axes: Shape) -> list[Source]:
    return [(0, tuple((shapes[0][k] - 1) - i if k in axes else i for k, i in enumerate(index)),
             None)]


flip: Op = define(Op(
    "flip", "movement", "x with the order along `axes` reversed.", infer=_flip_type,
    reference=lambda x, *, axes: np.flip(x, axes),
    vjp=lambda g, y, x, *, axes: (flip(g, axes=axes),),
    batch=lambda op, size, x, *, axes: op(x, axes=tuple(a + 1 for a in axes)), lower=_flip_map,
    put=lambda old, new, *, axes: flip(new, axes=axes), cost=0.0,
    samples=lambda rng: [Sample((rng.normal(size=(5,)),), {"axes": (0,)}),
                         Sample((rng.normal(size=(2, 3, 4)),), {"axes": (0, 2)}),
                         Sample((rng.normal(size=(0, 2)),), {"axes": (0,)})]))

# slice and pad ------------------------------------------------------------------------------------


def _slice_type(op: Op, x: Node, *, starts: Shape, stops: Shape, steps: Shape) -> Type:
    if not len(starts) == len(stops) == len(steps) == len(x.shape):
        raise shape_error(op, (x,), f"starts {starts}, stops {stops}, steps {steps} must have "
                          f"{x.ndim} entries each", "Give one entry for each axis.")
    extents = []
    for start, stop, step, n in zip(starts, stops, steps, x.shape, strict=True):
        if not (0 <= start <= stop <= n and step > 0):
            raise shape_error(op, (x,), f"{start}:{stop}:{step} does not fit an axis of {n}; "
                              "0 <= start <= stop <= extent and step > 0 must hold",
                              "Clamp the bounds first.")
        extents.append((stop - start + step - 1) // step)
    return tuple(extents), x.dtype


def _slice_map(index: Indices, shapes: Sequence[Shape], *, starts: Shape, stops: Shape,
               steps: Shape) -> list[Source]:
    return [(0, tuple(i * s + a for i, a, s in zip(index, starts, steps, strict=True)), None)]


def _opening(shape: Shape, full: Shape, starts: Shape, steps: Shape) -> dict[str, Shape]:
    """Attributes of the `pad` that puts a slice of shape `shape` back into `full`."""
    low, high = [], []
    for n, whole, start, step in zip(shape, full, starts, steps, strict=True):
        low.append(start if n else whole)
        high.append(whole - start - ((n - 1) * step + 1) if n else 0)
    return {"low": tuple(low), "high": tuple(high), "interior": tuple(s - 1 for s in steps)}


def _slice_put(old: Node, new: Node, *, starts: Shape, stops: Shape, steps: Shape) -> Node:
    if new.shape == old.shape and steps == (1,) * len(steps):
        return new
    opening = _opening(new.shape, old.shape, starts, steps)
    shown = CONSTANT(value=True, shape=new.shape, dtype=bool_)
    return where(pad(shown, value=False, **opening), pad(new, value=0, **opening), old)


def _slice_samples(rng: np.random.Generator) -> list[Sample]:
    cases = (((7,), (1,), (6,), (2,)), ((4, 5), (0, 2), (4, 5), (1, 1)),
             ((4, 5), (1, 3), (1, 5), (1, 2)), ((3, 4), (0, 1), (3, 4), (3, 3)))
    return [Sample((rng.normal(size=shape),), {"starts": a, "stops": b, "steps": s})
            for shape, a, b, s in cases]


slice_: Op = define(Op(
    "slice", "movement", "x[start:stop:step] along every axis.", infer=_slice_type,
    reference=lambda x, *, starts, stops, steps: x[tuple(map(slice, starts, stops, steps))],
    vjp=lambda g, y, x, *, starts, stops, steps: (
        pad(g, value=0, **_opening(g.shape, x.shape, starts, steps)),),
    batch=lambda op, size, x, *, starts, stops, steps: op(
        x, starts=(0, *starts), stops=(size, *stops), steps=(1, *steps)),
    lower=_slice_map, put=_slice_put, cost=0.0, onnx="Slice-13", samples=_slice_samples))


def _pad_type(op: Op, x: Node, *, low: Shape, high: Shape, interior: Shape, value: Any) -> Type:
    if not len(low) == len(high) == len(interior) == x.ndim:
        raise shape_error(op, (x,), f"low {low}, high {high}, interior {interior} must have "
                          f"{x.ndim} entries each", "Give one entry for each axis.")
    if x.ndim and min(*low, *high, *interior) < 0:
        raise shape_error(op, (x,), f"low {low}, high {high}, interior {interior} must not be "
                          "negative", "Cut with slice instead.")
    return tuple([a + max(n + (n - 1) * i, 0) + b
                  for n, a, b, i in zip(x.shape, low, high, interior, strict=True)]), x.dtype


def _pad_reference(x: np.ndarray, *, low: Shape, high: Shape, interior: Shape,
                   value: Any) -> np.ndarray:
    spread = [max(n + (n - 1) * i, 0) for n, i in zip(x.shape, interior, strict=True)]
    result = np.full([a + n + b for a, n, b in zip(low, spread, high, strict=True)], value, x.dtype)
    result[tuple(slice(a, a + n, i + 1) for a, n, i in zip(low, spread, interior, strict=True))] = x
    return result


def _pad_map(index: Indices, shapes: Sequence[Shape], *, low: Shape, high: Shape, interior: Shape,
             value: Any) -> list[Source]:
    if 0 in shapes[0]:
        return []
    when = Condition()
    found = []
    for i, n, a, k in zip(index, shapes[0], low, interior, strict=True):
        i = i - a
        when = when & in_range(i, 0, (n - 1) * (k + 1) + 1)
        rest = i % (k + 1)
        if rest != const(0):
            when = when & Condition(multiples=((i, k + 1),))
        found.append(i // (k + 1))
    return [(0, tuple(found), None if when.always else when)]


def _pad_vjp(g: Node, y: Node, x: Node, *, low: Shape, high: Shape, interior: Shape,
             value: Any) -> tuple[Node]:
    stops = tuple(a + max(n + (n - 1) * i, 0) for a, n, i in zip(low, x.shape, interior,
                                                                 strict=True))
    return (slice_(g, starts=low, stops=stops, steps=tuple(i + 1 for i in interior)),)


def _pad_samples(rng: np.random.Generator) -> list[Sample]:
    cases = (((3,), (1,), (2,), (0,)), ((2, 3), (0, 1), (2, 0), (1, 2)), ((), (), (), ()),
             ((0, 2), (2, 0), (1, 0), (1, 0)), ((1, 4), (0, 0), (0, 0), (3, 0)))
    return [Sample((rng.normal(size=shape),),
                   {"low": a, "high": b, "interior": i, "value": 1.5 if len(shape) == 1 else 0})
            for shape, a, b, i in cases]


pad: Op = define(Op(
    "pad", "movement", "x with `low` values before, `high` behind and `interior` between elements.",
    infer=_pad_type, reference=_pad_reference, vjp=_pad_vjp,
    batch=lambda op, size, x, *, low, high, interior, value: op(
        x, low=(0, *low), high=(0, *high), interior=(0, *interior), value=value),
    lower=_pad_map, cost=1.0, onnx="Pad-13", samples=_pad_samples))

# concat -------------------------------------------------------------------------------------------


def _concat_type(op: Op, *xs: Node, axis: int) -> Type:
    if not xs:
        raise shape_error(op, xs, "at least one tensor is needed", "Pass a non-empty list.")
    first = xs[0]
    axis_in_range(op, first, axis)
    head, tail = first.shape[:axis], first.shape[axis + 1:]
    total = 0
    for x in xs:
        if x.ndim != first.ndim or x.shape[:axis] != head or x.shape[axis + 1:] != tail:
            raise shape_error(op, xs, f"all extents except that of axis {axis} must be equal",
                              "Slice or pad the operands to fit.")
        if x.dtype is not first.dtype:
            raise dtype_error(op, xs, "operands must have one dtype",
                              "Convert them with .to(dtype).")
        total += x.shape[axis]
    return (*head, total, *tail), first.dtype


def _concat_map(index: Indices, shapes: Sequence[Shape], *, axis: int) -> list[Source]:
    found: list[Source] = []
    offset = 0
    for number, shape in enumerate(shapes):
        n = shape[axis]
        if n:
            own = index[axis] - offset
            found.append((number, (*index[:axis], own, *index[axis + 1:]), in_range(own, 0, n)))
        offset += n
    return found


def _concat_vjp(g: Node, y: Node, *xs: Node, axis: int) -> tuple[Node | None, ...]:
    found: list[Node | None] = []
    offset = 0
    ones = (1,) * g.ndim
    for x in xs:
        starts, stops = [0] * g.ndim, list(g.shape)
        starts[axis], stops[axis] = offset, offset + x.shape[axis]
        offset += x.shape[axis]
        found.append(slice_(g, starts=tuple(starts), stops=tuple(stops), steps=ones)
                     if x.grad else None)
    return tuple(found)


concat: Op = define(Op(
    "concat", "movement", "The operands one after the other along `axis`.", infer=_concat_type,
    reference=lambda *xs, axis: np.concatenate(xs, axis), vjp=_concat_vjp,
    batch=lambda op, size, *xs, axis: op(*xs, axis=axis + 1), lower=_concat_map, cost=1.0,
    onnx="Concat-13",
    samples=lambda rng: [
        Sample(tuple(rng.normal(size=s) for s in shapes), {"axis": axis})
        for shapes, axis in ((((2,), (3,)), 0), (((2, 3), (2, 1), (2, 0)), 1), (((2, 2),), 0))]))

# windows and unwindows ----------------------------------------------------------------------------


def _window_count(length: int, size: int, stride: int, dilation: int) -> int:
    return (length - dilation * (size - 1) - 1) // stride + 1


def _check_windows(op: Op, x: Node, axis: int, stride: int, dilation: int) -> None:
    if x.ndim < 2 or not 0 <= axis < x.ndim - 1 or x.shape[-1] < 1:
        raise shape_error(op, (x,), f"axis {axis} must be one of the first {x.ndim - 1} axes and "
                          "the last axis the window", "Add the window as a new last axis.")
    if stride < 1 or dilation < 1:
        raise shape_error(op, (x,), f"stride {stride} and dilation {dilation} must be positive",
                          "Use 1 for dense windows.")


def _windows_type(op: Op, x: Node, *, axis: int, stride: int, dilation: int) -> Type:
    _check_windows(op, x, axis, stride, dilation)
    count = _window_count(x.shape[axis], x.shape[-1], stride, dilation)
    if count < 1:
        raise shape_error(op, (x,), f"a window of {x.shape[-1]} with dilation {dilation} is longer "
                          f"than axis {axis}", "Pad the input, or use a smaller window.")
    return (*x.shape[:axis], count, *x.shape[axis + 1:]), x.dtype


def _at(ndim: int, axis: int, part: Any) -> tuple[Any, ...]:
    """The NumPy index that selects `part` of one axis (counted without the last)."""
    return tuple(part if i == axis else slice(None) for i in range(ndim))


def _windows_reference(x: np.ndarray, *, axis: int, stride: int, dilation: int) -> np.ndarray:
    width = x.shape[-1]
    span = (_window_count(x.shape[axis], width, stride, dilation) - 1) * stride + 1
    return np.stack([x[..., w][_at(x.ndim - 1, axis, slice(w * dilation, w * dilation + span,
                                                            stride))]
                     for w in range(width)], -1)


def _windows_map(index: Indices, shapes: Sequence[Shape], *, axis: int, stride: int,
                 dilation: int) -> list[Source]:
    place = index[axis] * stride + index[-1] * dilation
    return [(0, (*index[:axis], place, *index[axis + 1:]), None)]


windows: Op = define(Op(
    "windows", "movement",
    "out[.., o, .., w] = x[.., o*stride + w*dilation, .., w], w the last axis.",
    infer=_windows_type, reference=_windows_reference,
    vjp=lambda g, y, x, *, axis, stride, dilation: (
        unwindows(g, axis=axis, stride=stride, dilation=dilation, length=x.shape[axis]),),
    batch=lambda op, size, x, *, axis, stride, dilation: op(x, axis=axis + 1, stride=stride,
                                                            dilation=dilation),
    lower=_windows_map, cost=0.0,
    samples=lambda rng: [
        Sample((rng.normal(size=shape),), {"axis": axis, "stride": s, "dilation": d})
        for shape, axis, s, d in (((7, 3), 0, 1, 1), ((2, 9, 3), 1, 2, 3), ((6, 2, 2), 0, 3, 1),
                                  ((3, 1), 0, 2, 1))]))


def _unwindows_type(op: Op, g: Node, *, axis: int, stride: int, dilation: int,
                    length: int) -> Type:
    _check_windows(op, g, axis, stride, dilation)
    count = _window_count(length, g.shape[-1], stride, dilation)
    if count != g.shape[axis]:
        raise shape_error(op, (g,), f"length {length} has {count} windows, not {g.shape[axis]}",
                          "Give the length that the windows were taken from.")
    return (*g.shape[:axis], length, *g.shape[axis + 1:]), g.dtype


def _unwindows_reference(g: np.ndarray, *, axis: int, stride: int, dilation: int,
                         length: int) -> np.ndarray:
    result = np.zeros((*g.shape[:axis], length, *g.shape[axis + 1:]), g.dtype)
    span = (g.shape[axis] - 1) * stride + 1
    for w in range(g.shape[-1]):
        part = _at(g.ndim - 1, axis, slice(w * dilation, w * dilation + span, stride))
        result[..., w][part] = g[..., w]
    return result


def _unwindows_map(index: Indices, shapes: Sequence[Shape], *, axis: int, stride: int,
                   dilation: int, length: int) -> list[Source]:
    place = index[axis] - index[-1] * dilation
    when = in_range(place, 0, (shapes[0][axis] - 1) * stride + 1) or Condition()
    if place % stride != const(0):
        when = when & Condition(multiples=((place, stride),))
    return [(0, (*index[:axis], place // stride, *index[axis + 1:]),
             None if when.always else when)]


unwindows: Op = define(Op(
    "unwindows", "movement",
    "out[.., l, .., w] = g[.., (l - w*dilation)/stride, .., w] where that is whole and in range, "
    "else 0: the transpose of windows.",
    infer=_unwindows_type, reference=_unwindows_reference,
    vjp=lambda g, y, x, *, axis, stride, dilation, length: (
        windows(g, axis=axis, stride=stride, dilation=dilation),),
    batch=lambda op, size, x, *, axis, stride, dilation, length: op(
        x, axis=axis + 1, stride=stride, dilation=dilation, length=length),
    lower=_unwindows_map, cost=1.0,
    samples=lambda rng: [
        Sample((rng.normal(size=shape),), {"axis": axis, "stride": s, "dilation": d, "length": n})
        for shape, axis, s, d, n in (((5, 3), 0, 1, 1, 7), ((2, 2, 3), 1, 2, 3, 10),
                                     ((2, 2, 2), 0, 3, 1, 6), ((2, 1), 0, 2, 1, 3))]))

# after --------------------------------------------------------------------------------------------

after: Op = define(Op(
    "after", "movement",
    "x, asked for once y is there: what is made of it is made anew then, not kept until then.",
    infer=lambda op, x, y: (x.shape, x.dtype), reference=lambda x, y: x,
    vjp=lambda g, y, x, late: (g, None), batch=lambda op, size, x, y: op(x, y),
    lower=lambda index, shapes: [(0, index, None)], cost=0.0,
    samples=lambda rng: [Sample((rng.normal(size=(2, 3)), rng.normal(size=(4,)))),
                         Sample((rng.normal(size=()), rng.normal(size=(0, 2))))]))


def shown(node: Node) -> tuple[Node, ...]:
    """The inputs that a movement shows elements of; what it only waits for is not among them."""
    return node.inputs[:1] if node.op is after else node.inputs
