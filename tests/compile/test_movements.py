"""Chains of movements: every element is where NumPy puts it, whatever is divided on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs

MOST = 4096  # elements
# (what, two numbers from which axis, extent, step follow)
STEPS = st.lists(st.tuples(
    st.sampled_from(["flip", "turn", "merge", "split", "slice", "stack", "repeat", "pad"]),
    st.integers(0, 11), st.integers(0, 11)), min_size=3, max_size=8)


def moved(step: tuple[str, int, int], x: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """One movement of a tensor and of its NumPy twin; nothing where it does not apply."""
    what, a, b = step
    axis = a % y.ndim
    n = y.shape[axis]
    if what == "flip":
        return x.flip(axis), np.flip(y, axis)
    if what == "turn":
        axes = tuple(np.roll(range(y.ndim), b))
        return x.permute(*axes), y.transpose(axes)
    if what == "merge" and y.ndim > 1:
        at = a % (y.ndim - 1)
        shape = (*y.shape[:at], y.shape[at] * y.shape[at + 1], *y.shape[at + 2:])
        return x.reshape(shape), y.reshape(shape)
    if what == "split" and y.ndim < 5:
        inner = next((d for d in (2 + b % 4, 2, 3) if n % d == 0), 1)
        shape = (*y.shape[:axis], n // inner, inner, *y.shape[axis + 1:])
        return x.reshape(shape), y.reshape(shape)
    if what == "slice" and n > 1:
        cut = (*[slice(None)] * axis, slice(b % 2, None, 1 + b // 2 % 3))
        return x[cut], y[cut]
    if what == "stack" and 2 * y.size <= MOST:
        other, twin = x.flip(a % y.ndim) + 1, np.flip(y, a % y.ndim) + 1
        at = b % y.ndim
        if a % 2 and y.ndim < 5:
            return gs.stack([x, other], at), np.stack([y, twin], at)
        return gs.cat([x, other], at), np.concatenate([y, twin], at)
    if what == "repeat" and y.size * (2 + b % 2) <= MOST:
        times = [1] * y.ndim
        times[axis] = 2 + b % 2
        return x.repeat(*times), np.tile(y, times)
    if what == "pad" and 2 * y.size <= MOST:
        width = [(0, 0)] * y.ndim
        width[-1] = (a % 3, b % 3)
        return gs.nn.functional.pad(x, width[-1], value=-1), np.pad(y, width, constant_values=-1)
    return x, y


@settings(max_examples=200)
@given(st.sampled_from([(24,), (4, 6), (2, 3, 8), (5, 7), (2, 2, 4, 4)]), STEPS, st.booleans())
def test_chains(shape: tuple[int, ...], steps: list[tuple[str, int, int]], whole: bool) -> None:
    start = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    def chain(x: Any) -> Any:
        y = start
        for step in steps:
            x, y = moved(step, x, y)
        expected.append(y)
        return x

    expected: list[np.ndarray] = []
    run = gs.compile(chain) if whole else chain
    np.testing.assert_array_equal(run(gs.tensor(start)).numpy(), expected[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flipped", [0, 1, 2])
def test_parts_that_alternate_and_are_turned_round(axis: int, flipped: int) -> None:
    """(3 - r) // 2 for a row r of a flip is 1 + (1 - r) // 2: of a negative number."""
    a = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    run = gs.compile(lambda a, b: gs.stack([a, b], axis + 1).flatten(axis, axis + 1).flip(flipped))
    both = np.stack([a, -a], axis + 1)
    shape = [n * (1 + (i == axis)) for i, n in enumerate(a.shape)]
    expected = np.flip(both.reshape(shape), flipped)
    np.testing.assert_array_equal(run(gs.tensor(a), gs.tensor(-a)).numpy(), expected)
