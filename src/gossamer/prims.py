"""The operators as plain functions on nodes, with no-ops removed. Layer 4.

The hand-written functions of the surface are written with these. They check nothing (the surface
checked already) and follow NumPy's words: axes, shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gossamer.ops  # noqa: F401  (fills TABLE)
from gossamer.core.dtype import DType, bool_, int64
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, IOTA, TABLE, Op

__all__ = ["add", "arange", "argsort", "broadcast", "cast", "concat", "const", "detach", "div",
           "equal", "expand", "flat_slope", "flip", "full", "iota", "logical_and", "logical_not",
           "logical_or", "matmul_nodes", "move_axis", "mul", "narrow", "neg", "op", "pad",
           "permute", "reduce_max", "reduce_min", "reduce_sum", "reshape", "row_major",
           "scalar_value", "scan", "scatter_add", "select", "slice_", "sub", "take", "where"]


def op(name: str) -> Op:
    """The record of that name."""
    return TABLE[name]


RESHAPE, PERMUTE, BROADCAST = TABLE["reshape"], TABLE["permute"], TABLE["broadcast"]
SLICE, FLIP, PAD, CONCAT = TABLE["slice"], TABLE["flip"], TABLE["pad"], TABLE["concat"]
CAST, DETACH, WHERE = TABLE["cast"], TABLE["detach"], TABLE["where"]
ADD, SUB, MUL, DIV, NEG = (TABLE[n] for n in ("add", "sub", "mul", "div", "neg"))


def scalar_value(value: Any, dtype: DType) -> bool | int | float:
    """`value` as a Python number that the dtype can hold; integers wrap as in C."""
    if dtype.kind == "f":
        return float(value)
    if dtype is bool_:
        return bool(value)
    whole = int(value)
    bits = 8 * dtype.itemsize
    whole &= (1 << bits) - 1
    if dtype.kind == "i" and whole >> (bits - 1):
        whole -= 1 << bits
    return whole


def full(value: Any, shape: Shape, dtype: DType) -> Node:
    """A constant of that shape and dtype."""
    return CONSTANT(value=scalar_value(value, dtype), shape=shape, dtype=dtype)


def const(value: Any, like: Node) -> Node:
    """A constant shaped and typed as `like`."""
    return CONSTANT(value=scalar_value(value, like.dtype), shape=like.shape, dtype=like.dtype)


def _is_literal(x: Node) -> bool:
    """A constant that no tensor shows: a tensor may be written later, a compiled function must
    then read its value instead of the constant that it began as."""
    return x.op is CONSTANT and x.owner is None


def iota(axis: int, shape: Shape, dtype: DType = int64) -> Node:
    """The index along `axis` at every element."""
    return IOTA(axis=axis, shape=shape, dtype=dtype)


def arange(n: int, dtype: DType = int64) -> Node:
    return IOTA(axis=0, shape=(n,), dtype=dtype)


def reshape(x: Node, shape: Sequence[int]) -> Node:
    shape = tuple(shape)
    if x.shape == shape:
        return x
    if _is_literal(x):
        return CONSTANT(value=x.attrs["value"], shape=shape, dtype=x.dtype)
    return RESHAPE(x, shape=shape)


def permute(x: Node, axes: Sequence[int]) -> Node:
    axes = tuple(axes)
    return x if axes == tuple(range(len(axes))) else PERMUTE(x, axes=axes)


def move_axis(x: Node, source: int, target: int) -> Node:
    """`x` with one axis moved; both positions count from the front or the back."""
    axes = list(range(x.ndim))
    axes.insert(target % x.ndim, axes.pop(source % x.ndim))
    return permute(x, axes)


def broadcast(x: Node, shape: Shape, axes: Sequence[int]) -> Node:
    """`x` repeated along new axes `axes` of the result shape."""
    return BROADCAST(x, shape=tuple(shape), axes=tuple(axes)) if axes else x


def new_axes(shape: Shape, to: Shape) -> tuple[int, ...]:
    """The axes of `to` that a broadcast from `shape` has to make."""
    lead = len(to) - len(shape)
    return tuple(i for i, n in enumerate(to) if i < lead or (shape[i - lead] == 1 and n != 1))


def expand(x: Node, shape: Shape) -> Node:
    """`x` broadcast by NumPy's rules."""
    if x.shape == shape:
        return x
    if _is_literal(x):
        return CONSTANT(value=x.attrs["value"], shape=shape, dtype=x.dtype)
    axes = new_axes(x.shape, shape)
    gone = set(axes)
    kept = tuple(n for i, n in enumerate(shape) if i not in gone)
    return broadcast(reshape(x, kept), shape, axes)


def cast(x: Node, dtype: DType) -> Node:
    if x.dtype is dtype:
        return x
    if _is_literal(x):
        value = x.attrs["value"]
        if not (isinstance(value, float) and not math.isfinite(value)) or dtype.kind == "f":
            return CONSTANT(value=scalar_value(value, dtype), shape=x.shape, dtype=dtype)
    return CAST(x, dtype=dtype)


def detach(x: Node) -> Node:
    return DETACH(x) if x.grad else x


def slice_(x: Node, starts: Sequence[int], stops: Sequence[int],
           steps: Sequence[int] | None = None) -> Node:
    starts, stops = tuple(starts), tuple(stops)
    steps = (1,) * x.ndim if steps is None else tuple(steps)
    if stops == x.shape and not any(starts) and all(s == 1 for s in steps):
        return x
    return SLICE(x, starts=starts, stops=stops, steps=steps)


def narrow(x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
    """`x[..., start:stop:step, ...]` along one axis; 0 <= start <= stop <= extent."""
    axis %= x.ndim
    starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    starts[axis], stops[axis], steps[axis] = start, stop, step
    return slice_(x, starts, stops, steps)


def select(x: Node, axis: int, index: int) -> Node:
    """`x[..., index, ...]`: the axis disappears."""
    axis %= x.ndim
    return reshape(narrow(x, axis, index, index + 1), x.shape[:axis] + x.shape[axis + 1:])


def flip(x: Node, axes: Sequence[int]) -> Node:
    axes = tuple(sorted(axes))
    return FLIP(x, axes=axes) if axes else x


def pad(x: Node, low: Sequence[int], high: Sequence[int], value: Any = 0) -> Node:
    if not any(low) and not any(high):
        return x
    return PAD(x, low=tuple(low), high=tuple(high), interior=(0,) * x.ndim,
               value=scalar_value(value, x.dtype))


def concat(xs: Sequence[Node], axis: int) -> Node:
    return xs[0] if len(xs) == 1 else CONCAT(*xs, axis=axis)


def add(a: Node, b: Node) -> Node:
    return ADD(a, b)


def sub(a: Node, b: Node) -> Node:
    return SUB(a, b)


def mul(a: Node, b: Node) -> Node:
    return MUL(a, b)


def div(a: Node, b: Node) -> Node:
    return DIV(a, b)


def neg(a: Node) -> Node:
    return NEG(a)


def equal(a: Node, b: Node) -> Node:
    return TABLE["eq"](a, b)


def where(condition: Node, a: Node, b: Node) -> Node:
    return WHERE(condition, a, b)


def logical_and(a: Node, b: Node) -> Node:
    return TABLE["bitwise_and"](a, b)


def logical_or(a: Node, b: Node) -> Node:
    return TABLE["bitwise_or"](a, b)


def logical_not(a: Node) -> Node:
    return TABLE["logical_not"](a)


def _zeros_rule(g: Node, y: Node, *inputs: Node) -> tuple[Node, ...]:
    return tuple(full(0, x.shape, x.dtype) for x in inputs)


def flat_slope(value: Node, *inputs: Node) -> Node:
    """`value` as a function of `inputs` whose derivative is zero, not absent, as in PyTorch."""
    return TABLE["custom"](value, *inputs, rule=_zeros_rule) if any(
        x.grad for x in inputs) else value


def _reduce(name: str, x: Node, axes: Sequence[int]) -> Node:
    axes = tuple(sorted(axes))
    return TABLE[name](x, axes=axes) if axes else x


def reduce_sum(x: Node, axes: Sequence[int]) -> Node:
    return _reduce("reduce_sum", x, axes)


def reduce_max(x: Node, axes: Sequence[int]) -> Node:
    return _reduce("reduce_max", x, axes)


def reduce_min(x: Node, axes: Sequence[int]) -> Node:
    return _reduce("reduce_min", x, axes)


def scan(x: Node, axis: int, combine: str) -> Node:
    return TABLE["scan"](x, axis=axis % x.ndim, combine=combine)


def argsort(x: Node, axis: int, descending: bool = False) -> Node:
    return TABLE["argsort"](x, axis=axis % x.ndim, descending=descending)


def take(x: Node, index: Node) -> Node:
    """`x[index]` along axis 0: shape index.shape + x.shape[1:]."""
    return TABLE["take"](x, index)


def scatter_add(x: Node, index: Node, src: Node) -> Node:
    """`x` with `x[index] += src`."""
    return TABLE["scatter_add"](x, index, src)


def row_major(shape: Shape) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def matmul_nodes(a: Node, b: Node, a_batch: Sequence[int], a_contract: Sequence[int],
                 b_batch: Sequence[int], b_contract: Sequence[int]) -> Node:
    """dot_general: (batch..., a free..., b free...)."""
    return TABLE["dot_general"](a, b, a_batch=tuple(a_batch), a_contract=tuple(a_contract),
                                b_batch=tuple(b_batch), b_contract=tuple(b_contract))
