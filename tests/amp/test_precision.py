"""set_float32_matmul_precision: what becomes faster, and only that, and nothing stale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gossamer as gs
import gossamer.nn.functional as F
from gossamer.runtime.device import host


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    gs.set_float32_matmul_precision("highest")


def _operands() -> tuple[gs.Tensor, gs.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((60, 70), (70, 50)))
    return gs.tensor(a), gs.tensor(b), a.astype(np.float64) @ b.astype(np.float64)


def _error(x: gs.Tensor, exact: np.ndarray) -> float:
    return float(np.abs(x.numpy() - exact).max() / np.abs(exact).max())


def test_medium_rounds_the_operands_and_nothing_else() -> None:
    a, b, exact = _operands()
    plain = a @ b
    assert gs.get_float32_matmul_precision() == "highest" and _error(plain, exact) < 1e-6
    gs.set_float32_matmul_precision("medium")
    made = a @ b
    assert made.dtype is gs.float32
    if not host().has("avx512bf16"):
        assert (made == plain).all()
        return
    assert 1e-4 < _error(made, exact) < 1e-2
    wide = a.bfloat16().double() @ b.bfloat16().double()
    np.testing.assert_allclose(made.numpy(), wide.numpy(), rtol=1e-4, atol=1e-4)


def test_high_is_float32() -> None:
    a, b, exact = _operands()
    gs.set_float32_matmul_precision("high")
    assert gs.get_float32_matmul_precision() == "high" and _error(a @ b, exact) < 1e-6


def test_each_precision_has_its_program_compiled_or_not() -> None:
    a, b, exact = _operands()
    product = gs.compile(lambda x, y: x @ y)
    for level in ("highest", "medium", "highest", "medium"):
        gs.set_float32_matmul_precision(level)
        exactly = level == "highest" or not host().has("avx512bf16")
        for made in (product(a, b), a @ b):
            assert (_error(made, exact) < 1e-6) == exactly


def test_gradients_follow() -> None:
    a, b, _ = _operands()
    a.requires_grad_(True)
    (a @ b).square().sum().backward()
    exact, a.grad = a.grad, None
    gs.set_float32_matmul_precision("medium")
    (a @ b).square().sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), exact.numpy(), rtol=0.1, atol=2.0)


def test_thin_products_float64_and_convolutions_stay_exact() -> None:
    rng = np.random.default_rng(0)
    x, w = (gs.tensor(rng.standard_normal(s).astype(np.float32)) for s in ((1, 70), (70, 50)))
    image = gs.tensor(rng.standard_normal((2, 16, 12, 12)).astype(np.float32))
    bank = gs.tensor(rng.standard_normal((32, 16, 3, 3)).astype(np.float32))

    def results() -> list[np.ndarray]:
        return [(x @ w).numpy(), (w.double().t() @ w.double()).numpy(),
                F.conv2d(image, bank, padding=1).numpy()]

    before = results()
    gs.set_float32_matmul_precision("medium")
    for old, new in zip(before, results(), strict=True):
        assert (old == new).all()


def test_an_unknown_level_is_told() -> None:
    with pytest.raises(ValueError, match="'highest', 'high', 'medium'"):
        gs.set_float32_matmul_precision("low")
