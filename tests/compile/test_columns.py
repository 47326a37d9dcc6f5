"""Sums down the columns of large matrices: in parts, each row by row as it lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile.cluster import STREAMED_BYTES


def programs(compiled: Any) -> str:
    """The loops of everything that was compiled."""
    return "\n".join(call.source.loops for program in compiled.programs()
                     for call in program.compiled.calls)


@pytest.mark.parametrize("columns", [130, 192, 300, 768, 4000, 4200])
@pytest.mark.parametrize("name", ["sum", "amax", "mean"])
def test_against_numpy(rng: np.random.Generator, columns: int, name: str) -> None:
    rows = -(-STREAMED_BYTES // (4 * columns)) // 8 * 8 + 64
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    f = gs.compile(lambda t: getattr(t * 2 - 20, name)(0))
    expected = getattr(np, name)(x.astype(np.float64) * 2 - 20, axis=0)
    np.testing.assert_allclose(f(gs.tensor(x)).numpy(), expected, rtol=1e-5, atol=2e-4)


def test_of_several_axes_and_several_sums_at_once(rng: np.random.Generator) -> None:
    x, y = (rng.standard_normal((12, 128, 330)).astype(np.float32) for _ in range(2))

    @gs.compile
    def f(x: Any, y: Any) -> Any:
        return (x * y).sum((0, 1)), y.sum((0, 1)).tanh(), y.amin((0, 1))

    results = f(gs.tensor(x), gs.tensor(y))
    wide = y.astype(np.float64)
    for mine, expected in zip(results, ((x * wide).sum((0, 1)), np.tanh(wide.sum((0, 1))),
                                        wide.min((0, 1))), strict=True):
        np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mean_over_time_of_each_text(rng: np.random.Generator, axis: int) -> None:
    x = rng.standard_normal((6, 500, 192)).astype(np.float32)
    found = gs.compile(lambda t: t.mean(axis))(gs.tensor(x)).numpy()
    np.testing.assert_allclose(found, x.astype(np.float64).mean(axis), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_so(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2048, 200)).astype(np.float32)
    x[5, 3], x[9, 4], x[2000, 199] = np.nan, np.inf, -np.inf
    total = gs.compile(lambda t: t.sum(0))(gs.tensor(x)).numpy()
    most = gs.compile(lambda t: t.amax(0))(gs.tensor(x)).numpy()
    np.testing.assert_allclose(total, x.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(most, x.max(0))


def test_a_bias_that_an_optimizer_steps_is_summed_once_in_parts(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4096, 192)).astype(np.float32)
    m, p = np.zeros(192, np.float32), rng.standard_normal(192).astype(np.float32)
    rate = np.array(0.1)  # a float64 number makes no float64 vectors

    @gs.compile
    def step(x: Any, m: Any, p: Any, rate: Any) -> Any:
        g = x.sum(0)
        m = m * 0.9 + g * (1 - rate)
        return m, p - rate * m / ((g * g).sqrt() + 1e-8)

    new_m, new_p = step(*(gs.tensor(a) for a in (x, m, p, rate)))
    g = x.sum(0, dtype=np.float64)
    np.testing.assert_allclose(new_m.numpy(), g * 0.9, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(new_p.numpy(), p - 0.09 * np.sign(g), rtol=1e-4, atol=1e-5)
    text = programs(step)
    assert "in 8:" in text and "in 512:" in text, text


def vectors_of(function: Callable[..., Any], *arrays: np.ndarray) -> str:
    """The LLVM text of all kernels of a compiled function."""
    return str(gs.explain(gs.compile(function), *(gs.tensor(a) for a in arrays)).kernels[0].sources)


def test_numbers_in_float64_do_not_narrow_the_vectors(rng: np.random.Generator) -> None:
    x = rng.standard_normal(4096).astype(np.float32)

    def f(x: Any, rate: Any) -> Any:
        return x * rate + x.sqrt()

    lanes = {len_ for len_ in (4, 8, 16) if f"<{len_} x float>" in vectors_of(f, x, np.array(0.5))}
    alone = {len_ for len_ in (4, 8, 16) if f"<{len_} x float>" in vectors_of(
        lambda x: x * 2 + x.sqrt(), x)}
    assert lanes == alone
