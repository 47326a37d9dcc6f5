"""Wrappers: operators that mean something to autograd and nothing to a kernel. Layer 1.

All are the identity on input 0, so the compiler drops them. `detach` cuts differentiation, `leaf`
is where it stops (the surface sets the node's grad flag), `custom` replaces the derivative of a
value by a rule of the user (autograd.Function, checkpointing, straight-through estimators).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.core.errors import GradientError
from gossamer.ir.node import Node
from gossamer.ir.op import Op, Sample, define
from gossamer.ops.rules import Type, any_type, batch_elementwise

__all__ = ["custom", "detach", "leaf"]


def _identity_put(old: Node, new: Node, **_: Any) -> Node:
    return new


detach: Op = define(Op(
    "detach", "wrapper", "x, through which no derivative flows.", infer=any_type,
    reference=lambda x: x, batch=batch_elementwise, put=_identity_put, cost=0.0,
    samples=lambda rng: [Sample((rng.normal(size=(2, 3)),))]))

leaf: Op = define(Op(
    "leaf", "wrapper", "x, a leaf of autograd: differentiation stops here and reports.",
    infer=any_type, reference=lambda x: x, batch=batch_elementwise, put=_identity_put, cost=0.0,
    samples=lambda rng: [Sample((rng.normal(size=(2, 3)),), gradient=False)]))


def _custom_type(op: Op, value: Node, *inputs: Node, rule: Any) -> Type:
    return value.shape, value.dtype


def _custom_vjp(g: Node, y: Node, value: Node, *inputs: Node, rule: Any) -> tuple[Any, ...]:
    found = tuple(rule(g, y, *inputs))
    if len(found) != len(inputs):
        raise GradientError(f"custom: the rule returned {len(found)} cotangents for {len(inputs)} "
                            "inputs; there must be one (or None) for each. Complete the rule.")
    return (None, *found)


def _square_rule(g: Node, y: Node, x: Node) -> tuple[Node, ...]:
    return (g,)


def _custom_batch(op: Op, size: int, value: Node, *inputs: Node, rule: Any) -> Node:
    return op(value, *inputs, rule=rule)


custom: Op = define(Op(
    "custom", "wrapper",
    "value, whose cotangent becomes `rule(g, y, *inputs)`, one cotangent for each of the inputs.",
    infer=_custom_type, reference=lambda value, *inputs, rule: np.asarray(value),
    vjp=_custom_vjp, batch=_custom_batch, cost=0.0,
    samples=lambda rng: [Sample((x := rng.normal(size=(3,)), x), {"rule": _square_rule},
                                gradient=False)]))
