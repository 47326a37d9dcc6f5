"""Type rules and samples that many operators share. Layer 1.

One function per rule, first the quick test that passes, then the message. A rule is written once
here and named by records; nothing here knows an operator by name. Messages follow the template of
`core/errors`: what the user wrote: what was given; the rule; what to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import DType, bool_
from gossamer.core.errors import DTypeError, GossamerError, ShapeError
from gossamer.ir.node import Node, Shape, describe
from gossamer.ir.op import Op, Sample

__all__ = [
    "SHAPES", "Sampler", "Type", "any_type", "axis_in_range", "batch_elementwise", "bool_type",
    "compare_types", "dtype_error", "edges", "float_type", "integer_samples", "integer_types",
    "number_type", "same_floats", "same_numbers", "same_types", "samples_of", "shape_error", "wide",
]

Type = tuple[Shape, DType]
Sampler = Callable[[np.random.Generator], list[Sample]]

# Scalar, one element, odd length, two axes, empty: the shapes on which every law runs.
SHAPES: tuple[Shape, ...] = ((), (1,), (7,), (2, 3), (0, 4))


def _message(op: Op, inputs: Sequence[Node], rule: str, advice: str) -> str:
    given = describe(inputs) if inputs else "no operands"
    return f"{op.name}: got {given}; {rule}. {advice}"


def shape_error(op: Op, inputs: Sequence[Node], rule: str, advice: str) -> GossamerError:
    """A ShapeError by the template."""
    return ShapeError(_message(op, inputs, rule, advice))


def dtype_error(op: Op, inputs: Sequence[Node], rule: str, advice: str) -> GossamerError:
    """A DTypeError by the template."""
    return DTypeError(_message(op, inputs, rule, advice))


def _unequal(op: Op, inputs: Sequence[Node]) -> GossamerError:
    first = inputs[0]
    if any(x.shape != first.shape for x in inputs):
        return shape_error(op, inputs, "operands must have one shape",
                           "Broadcast the smaller one first.")
    return dtype_error(op, inputs, "operands must have one dtype",
                       "Convert them with .to(dtype) first.")


def any_type(op: Op, x: Node) -> Type:
    """One operand of any dtype; the result has its type."""
    return x.shape, x.dtype


def float_type(op: Op, x: Node, **_: Any) -> Type:
    """One floating-point operand; the result has its type."""
    if x.dtype.kind == "f":
        return x.shape, x.dtype
    raise dtype_error(op, (x,), "the operand must be floating-point", "Convert it with .float().")


def number_type(op: Op, x: Node) -> Type:
    """One operand that is not bool; the result has its type."""
    if x.dtype is not bool_:
        return x.shape, x.dtype
    raise dtype_error(op, (x,), "it is not defined for bool",
                      "Use logical_not, or convert with .to(dtype).")


def bool_type(op: Op, x: Node) -> Type:
    """One operand of any dtype; the result is bool."""
    return x.shape, bool_


def same_types(op: Op, a: Node, b: Node) -> Type:
    """Two operands of one type, which is the result's."""
    if a.dtype is b.dtype and a.shape == b.shape:
        return a.shape, a.dtype
    raise _unequal(op, (a, b))


def same_numbers(op: Op, a: Node, b: Node) -> Type:
    """Two operands of one type, not bool."""
    if a.dtype is b.dtype and a.shape == b.shape and a.dtype is not bool_:
        return a.shape, a.dtype
    if a.dtype is b.dtype is bool_ and a.shape == b.shape:
        raise dtype_error(op, (a, b), "it is not defined for bool",
                          "Use bitwise_xor, or convert with .to(dtype).")
    raise _unequal(op, (a, b))


def same_floats(op: Op, a: Node, b: Node) -> Type:
    """Two floating-point operands of one type."""
    if a.dtype is b.dtype and a.shape == b.shape and a.dtype.kind == "f":
        return a.shape, a.dtype
    if a.dtype is b.dtype and a.shape == b.shape:
        raise dtype_error(op, (a, b), "the operands must be floating-point",
                          "Convert them with .float().")
    raise _unequal(op, (a, b))


def integer_types(op: Op, *xs: Node) -> Type:
    """Operands of one integer type."""
    first = xs[0]
    if first.dtype.kind not in "iu":
        raise dtype_error(op, xs, "the operands must be integers", "Convert them with .to(dtype).")
    if any(x.dtype is not first.dtype or x.shape != first.shape for x in xs):
        raise _unequal(op, xs)
    return first.shape, first.dtype


def compare_types(op: Op, a: Node, b: Node) -> Type:
    """Two operands of one type; the result is bool."""
    if a.dtype is b.dtype and a.shape == b.shape:
        return a.shape, bool_
    raise _unequal(op, (a, b))


def axis_in_range(op: Op, x: Node, axis: int) -> None:
    """Refuse an axis that `x` does not have."""
    if not 0 <= axis < x.ndim:
        raise shape_error(op, (x,), f"axis {axis} is out of range for {x.ndim} axes",
                          f"Axes count from 0 to {x.ndim - 1}.")


def batch_elementwise(op: Op, size: int, *xs: Node, **attrs: Any) -> Node:
    """Batching of an operator that does not look at axes."""
    return op(*xs, **attrs)


def wide(x: np.ndarray) -> np.dtype:
    """The dtype in which the reference accumulates: float64 for floats, else the array's own."""
    return np.dtype(np.float64) if x.dtype.kind == "f" else x.dtype


def samples_of(arity: int, domain: tuple[float, float] = (-3.0, 3.0),
               special: Sequence[float] = (), **attrs: Any) -> Sampler:
    """Random float64 operands of all SHAPES within `domain`, and the `special` points."""
    def draw(rng: np.random.Generator) -> list[Sample]:
        found = [Sample(tuple(rng.uniform(*domain, shape) for _ in range(arity)), dict(attrs))
                 for shape in SHAPES]
        return found + (edges(arity, special, **attrs) if special else [])
    return draw


def edges(arity: int, special: Sequence[float], **attrs: Any) -> list[Sample]:
    """One sample of all combinations of the special points, without derivative laws."""
    points = np.array(list(itertools.product(special, repeat=arity)), np.float64)
    inputs = tuple(np.ascontiguousarray(points[:, i]) for i in range(arity))
    return [Sample(inputs, dict(attrs), gradient=False)]


def integer_samples(arity: int, low: int = -9, high: int = 9,
                    dtypes: Sequence[type] = (np.int64, np.int32)) -> Sampler:
    """Random integer operands of all SHAPES in [low, high]."""
    def draw(rng: np.random.Generator) -> list[Sample]:
        return [Sample(tuple(rng.integers(low, high + 1, shape).astype(dtype)
                             for _ in range(arity)), gradient=False)
                for dtype in dtypes for shape in SHAPES]
    return draw
