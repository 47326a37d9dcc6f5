"""The derivative laws notice wrong rules: each rule, replaced, must make its law fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from gossamer.ir.node import Node
from gossamer.ir.op import TABLE, Op, constant
from tests.ops.laws import check_first, check_second, differentiable, samples

RULES = ["add", "mul", "div", "exp", "tanh", "pow", "where", "maximum", "reduce_sum", "reduce_max",
         "reduce_prod", "broadcast", "reshape", "permute", "slice", "pad", "concat", "windows",
         "dot_general", "take", "scatter_add", "scan", "softmax", "logsumexp", "layer_norm",
         "cross_entropy", "gelu", "conv", "max_pool", "attention"]


def mutated(op: Op, change: Callable[[Node], Node | None]) -> Op:
    """The operator with every cotangent of its rule changed."""
    rule = op.vjp
    assert rule is not None

    def wrong(*args: Any, **attrs: Any) -> tuple[Any, ...]:
        return tuple(g if g is None else change(g) for g in rule(*args, **attrs))

    return dataclasses.replace(op, vjp=wrong)


def fails(check: Callable[..., None], op: Op) -> bool:
    """Whether the law fails on some sample of the operator."""
    for sample in samples(op):
        if differentiable(op, sample):
            try:
                check(op, sample)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize("name", RULES)
def test_zeros_are_noticed(name: str) -> None:
    op = TABLE[name]
    assert not fails(check_first, op)
    assert fails(check_first, mutated(op, lambda g: constant(0, g)))


@pytest.mark.parametrize("name", RULES)
def test_an_absent_cotangent_is_noticed(name: str) -> None:
    assert fails(check_first, mutated(TABLE[name], lambda g: None))


@pytest.mark.parametrize("name", RULES)
def test_a_sign_is_noticed(name: str) -> None:
    neg = TABLE["neg"]
    assert fails(check_first, mutated(TABLE[name], lambda g: neg(g)))


@pytest.mark.parametrize("name", ["mul", "exp", "tanh", "dot_general", "softmax", "layer_norm"])
def test_a_detached_rule_passes_first_order_and_fails_second(name: str) -> None:
    """A rule whose result is cut off from its operands is right once and wrong twice."""
    detach = TABLE["detach"]
    op = mutated(TABLE[name], lambda g: detach(g))
    assert not fails(check_first, op)
    assert fails(check_second, op)
