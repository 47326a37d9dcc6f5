"""Random numbers: known answers of Threefry, distributions, independence, and no repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gossamer import ops
from gossamer.core.dtype import bfloat16, float16, float32, float64
from gossamer.ir.node import Node
from gossamer.ops.random import threefry
from gossamer.runtime.reference import evaluate
from tests.ops.laws import buffer, compiled, value

# Random123 1.09, tests/kat_vectors: "threefry2x32 13": counter, key, result.
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x9D1C5EC6, 0x8BD50731)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
]


def word(x: int) -> Node:
    return buffer(np.array([x], np.uint32).view(np.int32))


def state(seed: int = 1, counter: int = 0) -> tuple[Node, Node]:
    key = np.array([seed, seed >> 32], np.int64).astype(np.int32)
    return buffer(key), buffer(np.array(counter))


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_known_answers(counter: tuple[int, int], key: tuple[int, int],
                       expected: tuple[int, int]) -> None:
    found = threefry((word(key[0]), word(key[1])), (word(counter[0]), word(counter[1])))
    assert tuple(int(x.view(np.uint32)[0]) for x in evaluate(list(found))) == expected


def test_draws_that_follow_each_other_are_one_stream() -> None:
    """The second draw starts where the first ended, also across the carry into the high word."""
    start = 2**32 - 5
    whole = value(ops.random_bits(*state(7, start), shape=(12,)))
    parts = [value(ops.random_bits(*state(7, start), shape=(2, 2))).reshape(-1),
             value(ops.random_bits(*state(7, start + 4), shape=(8,)))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len(set(whole.tolist())) == 12


def test_bits_do_not_depend_on_the_evaluator() -> None:
    def draw() -> Node:
        return ops.random_bits(*state(3, 2**32 - 100), shape=(20_000,))
    (fast,) = compiled([draw()])
    np.testing.assert_array_equal(fast, value(draw()))


@pytest.mark.parametrize("dtype", [float64, float32, float16, bfloat16], ids=lambda d: d.name)
def test_uniform_numbers(dtype) -> None:
    x = value(ops.random_uniform(*state(), shape=(40_000,), dtype=dtype)).astype(np.float64)
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 5 * math.sqrt(1 / 12 / x.size) + 2**-8
    counts, _ = np.histogram(x, bins=16, range=(0, 1))
    chi2 = ((counts - x.size / 16) ** 2 / (x.size / 16)).sum()
    assert chi2 < 45  # 15 degrees of freedom: 1 in 10,000


def test_float64_uniform_numbers_have_53_digits() -> None:
    x = value(ops.random_uniform(*state(), shape=(1000,), dtype=float64))
    whole = x * 2.0**53
    np.testing.assert_array_equal(whole, np.floor(whole))
    assert (whole % 2 == 1).any()


@pytest.mark.parametrize("dtype", [float64, float32], ids=lambda d: d.name)
def test_normal_numbers(dtype) -> None:
    x = value(ops.random_normal(*state(5), shape=(50_000,), dtype=dtype)).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    beyond = (np.abs(x) > 3).mean()
    assert abs(beyond - 0.0027) < 5 * math.sqrt(0.0027 / n)


def test_neighbours_and_seeds_are_independent() -> None:
    x = value(ops.random_normal(*state(5), shape=(50_000,), dtype=float64))
    y = value(ops.random_normal(*state(6), shape=(50_000,), dtype=float64))
    bound = 5 / math.sqrt(x.size)
    assert abs((x[1:] * x[:-1]).mean()) < bound
    assert abs((x * y).mean()) < bound


@pytest.mark.parametrize("low, high", [(0, 2), (-3, 4), (0, 2**32), (-2**40, 2**50), (0, 2**63)])
def test_integers_fill_their_range(low: int, high: int) -> None:
    x = value(ops.random_integers(*state(), shape=(20_000,), low=low, high=high))
    assert x.min() >= low and x.max() < high
    centred = (x.astype(np.float64) - low) / (high - low)
    if high - low <= 8:
        assert set(x.tolist()) == set(range(low, high))
    else:
        assert abs(centred.mean() - 0.5) < 0.015


def test_dropout_keeps_a_share_and_its_mask_is_that_of_the_derivative() -> None:
    x = buffer(np.ones(20_000))
    y = ops.dropout(x, *state(9), p=0.3)
    kept = value(y)
    assert set(np.unique(kept).tolist()) == {0.0, 1 / 0.7}
    assert abs((kept > 0).mean() - 0.7) < 0.02
    assert y.op.vjp is not None
    (gx, *_) = y.op.vjp(buffer(np.ones(20_000)), y, *y.inputs, **y.attrs)
    np.testing.assert_array_equal(value(gx), kept)


@pytest.mark.parametrize("p, share", [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_of_nothing_and_everything(p: float, share: float) -> None:
    assert (value(ops.dropout(buffer(np.full(1000, 2.0)), *state(), p=p)) == 2 * share).all()


def test_float32_numbers_are_float32() -> None:
    y = ops.random_uniform(*state(), shape=(3,), dtype=float32)
    assert y.dtype is float32 and value(y).dtype == np.float32
