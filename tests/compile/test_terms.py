"""`compile/terms.py`, `views.py` and `rows.py`: what is gathered, and that values stay the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gossamer.compile.simplify import simplify
from gossamer.core.dtype import float32
from gossamer.ir.node import Node, toposort
from gossamer.ir.op import BUFFER, TABLE
from gossamer.runtime.data import Data
from gossamer.runtime.reference import evaluate

RNG = np.random.default_rng(0)
DOT = {"a_batch": (), "a_contract": (0,), "b_batch": (), "b_contract": (0,)}


def leaf(*shape: int) -> Node:
    array = RNG.normal(size=shape).astype(np.float32)
    node = BUFFER(shape=shape, dtype=float32)
    node.value = Data.from_array(array, float32)
    return node


def total(terms: list[Node]) -> Node:
    result = terms[0]
    for x in terms[1:]:
        result = TABLE["add"](result, x)
    return result


def padded(x: Node, low: int, high: int) -> Node:
    return TABLE["pad"](x, value=0, low=(low, 0), high=(high, 0), interior=(0, 0))


def left(node: Node) -> Counter[str]:
    """Operators after simplification, whose value must be that of before."""
    (new,) = simplify([node])
    np.testing.assert_allclose(evaluate([new])[0], evaluate([node])[0], rtol=1e-5, atol=1e-6)
    return Counter(n.op.name for n in toposort([new], stop=lambda n: n.value is not None)
                   if n.value is None)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_pads_that_tile_are_one_concatenation(count: int) -> None:
    parts = [padded(leaf(2, 3), 2 * i, 2 * (count - 1 - i)) for i in reversed(range(count))]
    assert left(total(parts)) == {"concat": 1}


def test_gaps_are_zeros_and_overlaps_stay_apart() -> None:
    assert left(total([padded(leaf(1, 3), 1, 4), padded(leaf(2, 3), 3, 1)])) == {
        "concat": 1, "constant": 1}  # three gaps of one shape
    assert left(total([padded(leaf(2, 3), 0, 1), padded(leaf(2, 3), 1, 0)])) == {
        "pad": 2, "add": 1}


def test_products_of_one_shape_are_one_product() -> None:
    terms = [TABLE["dot_general"](leaf(2, 8), leaf(2, 9), **DOT) for _ in range(5)]
    assert left(total(terms)) == {"concat": 2, "dot_general": 1}


def test_products_longer_than_their_result_stay_apart() -> None:
    terms = [TABLE["dot_general"](leaf(50, 3), leaf(50, 4), **DOT) for _ in range(5)]
    assert left(total(terms)) == {"dot_general": 5, "add": 4}


def test_a_step_of_a_stack_is_what_was_stacked() -> None:
    parts = [TABLE["reshape"](leaf(2, 3), shape=(1, 2, 3)) for _ in range(4)]
    stack = TABLE["concat"](*parts, axis=0)
    step = TABLE["slice"](stack, starts=(2, 0, 0), stops=(3, 2, 3), steps=(1, 1, 1))
    assert left(TABLE["neg"](TABLE["reshape"](step, shape=(2, 3)))) == {"neg": 1}


def test_neighbouring_slices_are_one() -> None:
    x = leaf(6, 2)
    cuts = [TABLE["slice"](x, starts=(i, 0), stops=(i + 1, 2), steps=(1, 1)) for i in range(1, 5)]
    assert left(TABLE["concat"](*cuts, axis=0)) == {"slice": 1}
