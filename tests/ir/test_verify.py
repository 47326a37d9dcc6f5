"""The verifier: it passes what operators build and names what is broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gossamer import ops
from gossamer.core.dtype import float32
from gossamer.core.errors import CompileError
from gossamer.ir.node import Node
from gossamer.ir.op import INPUT, Op
from gossamer.ir.verify import verify
from tests.ops.laws import buffer

X = INPUT(index=0, shape=(2, 3), dtype=float32)


def good() -> Node:
    return ops.exp(X)


def wrong_shape() -> Node:
    return Node(ops.exp, (X,), {}, (3, 2), float32)


def wrong_dtype() -> Node:
    return Node(ops.eq, (X, X), {}, (2, 3), float32)


def refused() -> Node:
    return Node(ops.add, (X, INPUT(index=1, shape=(2,), dtype=float32)), {}, (2, 3), float32)


def list_shape() -> Node:
    return Node(ops.exp, (X,), {}, [2, 3], float32)  # type: ignore[arg-type]


def unhashable() -> Node:
    return Node(ops.reduce_sum, (X,), {"axes": [1]}, (2,), float32)


def not_in_table() -> Node:
    return Op("exp", "elementwise", "e^x", infer=lambda op, x: (x.shape, x.dtype))(X)


def not_picked() -> Node:
    q = INPUT(index=0, shape=(1, 2, 3), dtype=float32)
    both = ops.attention(q, q, q, mask=False, start=False, causal=True, window=0, scale=1.0)
    return Node(ops.exp, (both,), {}, both.shape, both.dtype)


BROKEN: list[tuple[Callable[[], Node], str]] = [
    (wrong_shape, "differs from the inferred"), (wrong_dtype, "differs from the inferred"),
    (refused, "its type rule refuses it: add: got"), (list_shape, "malformed"),
    (unhashable, r"axes=\[1\] is not hashable"), (not_in_table, "not in the table"),
    (not_picked, "pick one")]


@pytest.mark.parametrize("make, message", BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_graphs_are_named(make: Callable[[], Node], message: str) -> None:
    with pytest.raises(CompileError, match=message) as info:
        verify([ops.exp(good()), make()], stage="fusing")
    assert "after fusing" in str(info.value) and "test_verify.py:" in str(info.value)


def test_good_graphs_pass() -> None:
    verify([good(), ops.softmax(X, axis=1)])


def test_composites_must_be_gone_from_a_primitive_graph() -> None:
    with pytest.raises(CompileError, match="should have been expanded"):
        verify([ops.softmax(X, axis=1)], primitive=True)
    with pytest.raises(CompileError, match="should have been expanded"):
        verify([ops.detach(X)], primitive=True)


def test_computed_nodes_are_leaves() -> None:
    x = ops.exp(buffer(np.zeros(2)))
    x.value = x.inputs[0].value
    x.inputs = ()
    verify([ops.neg(x)])
