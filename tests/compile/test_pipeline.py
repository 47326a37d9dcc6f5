"""The pipeline as a whole: results in place, roots that are inputs, empty shapes, the arena."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs


def _tensor(rng: np.random.Generator, *shape: int) -> tuple[Any, np.ndarray]:
    values = (rng.standard_normal(shape) / shape[-1]).astype(np.float32)
    return gs.from_numpy(values).clone(), values.astype(np.float64)


# --------------------------------------------------------------------------------------- in place
@pytest.mark.parametrize("n", [3, 64, 700])
def test_a_product_is_not_written_over_its_own_operand(rng: np.random.Generator, n: int) -> None:
    (a, a0), (v, v0), (w, w0) = (_tensor(rng, n, n), _tensor(rng, n), _tensor(rng, n, n))

    @gs.compile
    def step() -> Any:
        v.add_(a @ v)
        w.add_(w @ w)
        return v.sum()

    for _ in range(3):
        step()
        v0, w0 = v0 + a0 @ v0, w0 + w0 @ w0
    np.testing.assert_allclose(v.numpy(), v0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w.numpy(), w0, rtol=1e-4, atol=1e-5)


def test_states_that_change_places_share_a_kernel_but_not_memory(rng: np.random.Generator) -> None:
    """Each new state needs the others' old values at the same element."""
    (x, x0), (y, y0), (z, z0) = (_tensor(rng, 1000) for _ in range(3))

    @gs.compile
    def rotate() -> Any:
        a, b, c = x * 1.0, y * 1.0, z * 1.0
        x.copy_(b + c)
        y.copy_(c - a)
        z.copy_(a * b)
        return x.sum()

    for _ in range(3):
        rotate()
        x0, y0, z0 = y0 + z0, z0 - x0, x0 * y0
    for t, expected in ((x, x0), (y, y0), (z, z0)):
        np.testing.assert_allclose(t.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_state_is_updated_in_place(rng: np.random.Generator) -> None:
    (x, x0), (m, m0) = _tensor(rng, 5000), _tensor(rng, 5000)

    @gs.compile
    def step() -> None:
        m.mul_(0.9).add_(x, alpha=0.1)
        x.sub_(m)

    step()
    before = (x.data_ptr(), m.data_ptr())
    step()
    assert (x.data_ptr(), m.data_ptr()) == before
    for _ in range(2):
        m0 = 0.9 * m0 + 0.1 * x0
        x0 = x0 - m0
    np.testing.assert_allclose(x.numpy(), x0, rtol=1e-5, atol=1e-7)
