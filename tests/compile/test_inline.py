"""Operands that a product makes where it packs them: packed weights, narrower types."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer.nn import Linear
from gossamer.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

N, K = 176, 320


def temporaries(run) -> list[int]:
    """Bytes of what a compiled function computes, results included."""
    (program,) = run.programs()
    return list(program.compiled.sizes.values())


def packed(rng: np.random.Generator, n: int, k: int, config) -> tuple[Linear, np.ndarray]:
    """A layer of packed weights, and the matrix that they stand for."""
    model = gs.nn.Sequential(Linear(k, n, bias=False))
    with gs.no_grad():
        model[0].weight.copy_(gs.tensor(rng.standard_normal((n, k)).astype(np.float32)))
    quantize_(model, config)
    return model[0], model[0].weight.dequantize().numpy().astype(np.float64)


@pytest.mark.parametrize("rows", [17, 40, 150])
@pytest.mark.parametrize("config", [
    Int8WeightOnlyConfig(), Int8WeightOnlyConfig(group_size=64),
    Int4WeightOnlyConfig(group_size=32), Int4WeightOnlyConfig(group_size=160)], ids=str)
def test_packed_weights_are_never_floats_in_memory(rng, rows: int, config) -> None:
    layer, matrix = packed(rng, N, K, config)
    x = rng.standard_normal((rows, K)).astype(np.float32)
    run = gs.compile(lambda x: layer(x))
    np.testing.assert_allclose(run(gs.tensor(x)).numpy(), x @ matrix.T, rtol=2e-5, atol=2e-4)
    assert max(temporaries(run)) == 4 * rows * N < 4 * N * K
    np.testing.assert_array_equal(layer(gs.tensor(x)).numpy(), run(gs.tensor(x)).numpy())


@pytest.mark.parametrize("n, k", [(33, 65), (16, 33), (100, 40), (31, 700)])
def test_padded_weights(rng, n: int, k: int) -> None:
    for config in (Int8WeightOnlyConfig(), Int4WeightOnlyConfig(group_size=32)):
        layer, matrix = packed(rng, n, k, config)
        for rows in (20, 64):
            x = rng.standard_normal((2, rows, k)).astype(np.float32)
            np.testing.assert_allclose(layer(gs.tensor(x)).numpy(), x @ matrix.T, rtol=2e-5,
                                       atol=2e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_numbers_of_16_bits_are_widened_on_the_way(rng, turned: bool) -> None:
    w = gs.tensor(rng.standard_normal((N, K) if turned else (K, N)).astype(np.float32))
    low = w.to(gs.bfloat16)
    x = rng.standard_normal((50, K)).astype(np.float32)
    run = gs.compile(lambda x, w: x @ (w.float().t() if turned else w.float()))
    wide = low.float().numpy().astype(np.float64)
    np.testing.assert_allclose(run(gs.tensor(x), low).numpy(), x @ (wide.T if turned else wide),
                               rtol=2e-5, atol=2e-4)
    assert temporaries(run) == [4 * 50 * N]


def test_left_operands_too(rng) -> None:
    x = gs.tensor(rng.integers(-9, 9, (N, K)).astype(np.int8))
    w = gs.tensor(rng.standard_normal((K, 60)).astype(np.float32))
    run = gs.compile(lambda x, w: (x.float() * 0.5) @ w)
    wide = x.numpy().astype(np.float64) * 0.5
    np.testing.assert_allclose(run(x, w).numpy(), wide @ w.numpy(), rtol=2e-5, atol=2e-4)
    assert temporaries(run) == [4 * N * 60]


@pytest.mark.parametrize("make", [
    lambda x, w: (x @ w.float(), w.float().sum(0)),  # needed by another kernel
    lambda x, w: x @ (w.float() * 2).tanh(),  # dear, and once for each block of rows
    lambda x, w: x[:8] @ w.float()])  # read more often than it is multiplied
def test_what_is_needed_twice_or_dear_is_made_once(rng, make) -> None:
    w = gs.tensor(rng.standard_normal((K, N)).astype(np.float32)).to(gs.bfloat16)
    x = gs.tensor(rng.standard_normal((50, K)).astype(np.float32))
    run, wide = gs.compile(make), w.float().numpy()
    got = run(x, w)
    assert 4 * N * K in temporaries(run)
    expected = make(gs.tensor(x.numpy()), gs.tensor(wide))
    for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, expected)), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-4)


def test_gradients_flow_through_packed_weights(rng) -> None:
    for config in (Int8WeightOnlyConfig(group_size=32), Int4WeightOnlyConfig(group_size=64)):
        layer, matrix = packed(rng, N, K, config)
        x = gs.tensor(rng.standard_normal((40, K)).astype(np.float32), requires_grad=True)
        seed = rng.standard_normal((40, N)).astype(np.float32)
        (layer(x) * gs.tensor(seed)).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), seed @ matrix, rtol=2e-5, atol=2e-4)


def test_the_reason_is_told(rng) -> None:
    layer, _ = packed(rng, N, K, Int8WeightOnlyConfig())
    x = gs.tensor(rng.standard_normal((40, K)).astype(np.float32))
    found = gs.explain(lambda x: layer(x), x)
    assert any("(prologue)" in k.reason for k in found.kernels)
