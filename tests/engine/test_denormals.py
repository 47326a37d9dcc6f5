"""Storms of denormal numbers: IEEE's values, and no more than IEEE's price.

Processors take up to 150 cycles for an operation on numbers below 2^-126; that much a storm may
cost. Not allowed are zeros instead of them, and detours of our own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

import gossamer as gs

F = gs.nn.functional
TINY = np.float32(2.0 ** -126)  # the smallest normal number
SIZE = 1 << 16


def storm(seed: int, shape: tuple[int, ...] = (SIZE,), dtype: str = "float32") -> np.ndarray:
    """Denormal numbers of both signs, uniform in their range."""
    limits = np.finfo(dtype)
    x = np.random.default_rng(seed).uniform(-1, 1, shape)
    return (x * float(limits.tiny)).astype(dtype)


BINARY: dict[str, Callable[..., object]] = {
    "add": lambda x, y: x + y, "subtract": lambda x, y: x - y,
    "halve": lambda x, y: x * 0.5, "grow": lambda x, y: x * 2.0 ** 100,
    "divide": lambda x, y: x / 3.0, "ratio": lambda x, y: x / y,
    "negate": lambda x, y: -x, "larger": lambda x, y: x > y,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_is_exact(name: str, dtype: str) -> None:
    a, b = storm(1, dtype=dtype), storm(2, dtype=dtype)
    function = BINARY[name]
    expected = function(a, b)
    for run in (function, gs.compile(function)):
        np.testing.assert_array_equal(run(gs.tensor(a), gs.tensor(b)).numpy(), expected)


def test_reductions_and_products_keep_them() -> None:
    a = storm(3, (96, 256))
    exact = a.astype(np.float64)
    ulp = 64 * 2.0 ** -149  # partial sums are normal numbers, with rounding of their own
    np.testing.assert_allclose(gs.tensor(a).sum(-1).numpy(), exact.sum(-1), rtol=1e-6, atol=ulp)
    np.testing.assert_array_equal(gs.tensor(a).amax(0).numpy(), a.max(0))
    ones = np.ones((256, 8), np.float32)
    np.testing.assert_allclose((gs.tensor(a) @ gs.tensor(ones)).numpy(), exact @ ones, rtol=1e-6,
                               atol=ulp)
    big = np.full((256, 8), 2.0 ** 60, np.float32)
    np.testing.assert_allclose((gs.tensor(a) @ gs.tensor(big)).numpy(), exact @ big, rtol=0,
                               atol=1e-6 * (np.abs(exact) @ big).max())


def test_functions_meet_and_make_them() -> None:
    x = gs.tensor(storm(4))
    a = x.numpy()
    for name in ("sin", "tanh", "expm1", "log1p", "asin", "atan", "sinh"):
        np.testing.assert_array_equal(getattr(x, name)().numpy(), a, err_msg=name)  # f(x) = x here
    np.testing.assert_array_equal(x.exp().numpy(), np.ones_like(a))
    np.testing.assert_allclose(x.abs().log().numpy(), np.log(np.abs(a).astype(np.float64)),
                               rtol=1e-6)
    np.testing.assert_allclose(x.abs().sqrt().numpy(), np.sqrt(np.abs(a).astype(np.float64)),
                               rtol=1e-6)
    low = np.linspace(-103.0, -87.5, 1000).astype(np.float32)  # exp is denormal here
    np.testing.assert_allclose(gs.tensor(low).exp().numpy(), np.exp(low.astype(np.float64)),
                               rtol=0, atol=2.0 ** -149)
    row = gs.tensor(np.array([0.0, -95.0, -100.0], np.float32)).softmax(-1).numpy()
    np.testing.assert_allclose(row[1:], np.exp([-95.0, -100.0]), rtol=0, atol=2.0 ** -149)


def test_16_bit_floats_keep_them() -> None:
    half = storm(5, dtype="float16")
    np.testing.assert_array_equal((gs.tensor(half) * 0.5).numpy(), half * np.float16(0.5))
    x = gs.tensor(storm(6))
    back = x.to(gs.bfloat16).to(gs.float32).numpy()
    assert (back != 0).mean() > 0.98
    np.testing.assert_allclose(back, x.numpy(), rtol=0, atol=2.0 ** -134)  # half of its last place


def test_moments_of_an_optimizer_fade_through_them() -> None:
    """A gradient that stops: Adam's moments decay through the denormals to zero."""
    def faded(steps: int) -> np.ndarray:
        w = gs.ones(64, requires_grad=True)
        optimizer = gs.optim.Adam([w], lr=0.1, betas=(0.5, 0.5))
        w.grad = gs.full((64,), 1e-3)
        optimizer.step()
        w.grad = gs.zeros(64)

        def step() -> None:
            optimizer.step()

        run = gs.compile(step)
        for _ in range(steps):
            run()
        return optimizer.state[w]["exp_avg"].numpy()

    small = faded(118)
    assert (np.abs(small) < TINY).all() and (small != 0).all()
    np.testing.assert_array_equal(faded(160), 0)


def _cost(function: Callable[..., object], *arrays: np.ndarray) -> float:
    """Least CPU seconds of a call."""
    times = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(4):
            function(*arrays)
        times.append(time.process_time() - start)
    return min(times)


def test_a_storm_costs_what_the_processor_takes_for_it() -> None:
    """Ours slows down at most three times as much as NumPy's loops for the same operations."""
    def chain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x * 0.75 + y) * 0.5 - y * 0.25

    run = gs.compile(lambda x, y: (x * 0.75 + y) * 0.5 - y * 0.25)

    def ours(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return run(gs.from_numpy(x), gs.from_numpy(y)).numpy()

    calm = [np.random.default_rng(i).normal(size=1 << 18).astype(np.float32) for i in range(2)]
    wild = [storm(i, (1 << 18,)) for i in range(2)]
    # A product and a sum may be one rounding here: one last place.
    np.testing.assert_allclose(ours(*wild), chain(*wild), rtol=0, atol=2.0 ** -149)
    ratios = [_cost(ours, *wild) / _cost(ours, *calm) / _cost(chain, *wild) * _cost(chain, *calm)
              for _ in range(3)]
    assert statistics.median(ratios) < 3, ratios
