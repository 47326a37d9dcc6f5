"""What composites share: how a record is made from a body, and arithmetic in float32. Layer 1.

A composite is one node to the user, to autograd messages and to export; the compiler sees its body.
Bodies of functions that sum or exponentiate compute float16 and bfloat16 operands in float32 and
round once at the end, as PyTorch does; `in_float32` is that rule, written once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import DType, float32
from gossamer.core.shape import size_of
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import Op, Sample, constant, define
from gossamer.ops.elementwise import cast, div, mul
from gossamer.ops.reduction import broadcast, reduce_sum
from gossamer.ops.rules import (
    Sampler,
    Type,
    batch_elementwise,
    edges,
    float_type,
    number_type,
    samples_of,
)

__all__ = ["activation", "composite", "in_float32", "is_half", "scaled", "spread", "to_dtype",
           "total_mean"]

Body = Callable[..., Any]


def composite(name: str, doc: str, *, infer: Callable[..., Any], body: Body,
              vjp: Callable[..., Any] | None = None, batch: Callable[..., Node] | None = None,
              promote: str = "float", cost: float = 10.0, onnx: str | None = None,
              aliases: tuple[str, ...] = (), samples: Sampler) -> Op:
    """Add a composite record."""
    return define(Op(name, "composite", doc, infer=infer, body=body, vjp=vjp, batch=batch,
                     promote=promote, cost=cost, onnx=onnx, aliases=aliases, samples=samples))


def activation(name: str, doc: str, body: Body, *, vjp: Callable[..., Any] | None = None,
               infer: Callable[..., Type] = float_type, special: Sequence[float] = (),
               attrs: Sequence[dict[str, Any]] = ({},), onnx: str | None = None,
               cost: float = 10.0) -> Op:
    """An elementwise composite of one operand; `attrs` are the parameters the laws try."""
    def samples(rng: np.random.Generator) -> list[Sample]:
        found = []
        for chosen in attrs:
            found += samples_of(1, **chosen)(rng)
            found += edges(1, special or (-1e4, -1.0, -0.0, 0.0, 1.0, 1e4, float("nan")), **chosen)
        return found

    promote = "same" if infer is number_type else "float"
    return composite(name, doc, infer=lambda op, x, **_: infer(op, x), body=body, vjp=vjp,
                     batch=batch_elementwise, promote=promote, cost=cost, onnx=onnx,
                     samples=samples)


def is_half(dtype: DType) -> bool:
    """Whether it is a 16-bit float."""
    return dtype.kind == "f" and dtype.itemsize == 2


def to_dtype(x: Node, dtype: DType) -> Node:
    """x converted, or x itself if it has that dtype."""
    return x if x.dtype is dtype else cast(x, dtype=dtype)


def _widened(x: Node | None) -> Node | None:
    if x is None or not is_half(x.dtype):
        return x
    wide = cast(x, dtype=float32)
    wide.grad = x.grad  # rules ask operands for it, also where gradients are not recorded
    return wide


def in_float32(rule: Body) -> Body:
    """`rule` (a body or a vjp rule) with 16-bit operands widened and its results narrowed."""
    @functools.wraps(rule)
    def wide(*nodes: Any, **attrs: Any) -> Any:
        half = next((n.dtype for n in nodes if n is not None and is_half(n.dtype)), None)
        if half is None:
            return rule(*nodes, **attrs)
        found = rule(*map(_widened, nodes), **attrs)
        if isinstance(found, Node):
            return to_dtype(found, half)
        return tuple(r if r is None else to_dtype(r, half) for r in found)
    return wide


def spread(statistic: Node, like: Node, axes: Shape) -> Node:
    """A reduced value repeated over the axes that the reduction removed."""
    return broadcast(statistic, shape=like.shape, axes=axes)


def scaled(x: Node, factor: float) -> Node:
    """x * factor."""
    return mul(x, constant(factor, x))


def total_mean(x: Node, axes: Shape) -> Node:
    """Sum over `axes` divided by their number of elements."""
    total = reduce_sum(x, axes=axes)
    return div(total, constant(size_of(x.shape[a] for a in axes), total))
