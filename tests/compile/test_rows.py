"""Row kernels: results written past the caches, and what is kept between walks over a row."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import gossamer as gs
from gossamer.runtime import device, engine
from gossamer.runtime.buffer import Buffer, allocate
from gossamer.runtime.program import Program

llvm = importlib.import_module("gossamer.compile.llvm")


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs keep their texts; those made before are forgotten, and none is stored."""
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    monkeypatch.setattr(Program, "forget_texts", lambda self: None)
    engine.clear()


@pytest.fixture
def streamed(readable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row counts as large."""
    monkeypatch.setattr(llvm, "STREAM_BYTES", 1)


def normalised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("columns", [16, 64, 72, 100, 1024])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_rows_past_the_caches(streamed, rng, rows, columns):
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    run = gs.compile(lambda x: gs.nn.functional.layer_norm(x, (columns,)))
    np.testing.assert_allclose(run(gs.tensor(x)).numpy(), normalised(x), atol=2e-5)
    if columns in (64, 1024) and device.host().vector_bytes >= 32:
        assert any("nontemporal" in c.source.text for c in run.programs()[0].compiled.calls)


def test_results_that_are_not_aligned(streamed, rng):
    """The same kernel, its result one element behind a cache line: the other version runs."""
    x = rng.standard_normal((6, 64)).astype(np.float32)
    run = gs.compile(lambda x: gs.nn.functional.layer_norm(x, (64,)))
    run(gs.tensor(x))
    program = run.programs()[0]
    source = Buffer.from_numpy(x)
    for offset in (0, 1):
        made = allocate(x.nbytes + 4 * offset)
        program.executable.run([source.address, made.address + 4 * offset, 0], ())
        got = made.as_numpy(np.dtype(np.float32), (x.size + offset,))[offset:].reshape(x.shape)
        np.testing.assert_allclose(got, normalised(x), atol=2e-5)


def test_columns_of_a_scan_are_shared_out(rng):
    """Along axis 0 every column is a sum of its own: the threads take some columns each."""
    x = rng.standard_normal((300, 1000)).astype(np.float32)
    run = gs.compile(lambda x: x.cumsum(0))
    np.testing.assert_allclose(run(gs.tensor(x)).numpy(), x.cumsum(0), rtol=1e-5, atol=1e-4)
    (call,) = run.programs()[0].compiled.calls
    assert call.n == 1000 and 0 < call.grain < 1000


@pytest.mark.parametrize("kind", ["amax", "amin"])
@pytest.mark.parametrize("columns", [7, 16, 100])
def test_an_extreme_of_a_row_with_nan_is_nan(rng, kind, columns):
    x = rng.standard_normal((40, columns)).astype(np.float32)
    x[np.arange(0, 40, 2), rng.integers(0, columns, 20)] = np.nan
    got = getattr(gs.tensor(x), kind)(dim=1).numpy()
    np.testing.assert_array_equal(got, getattr(np, kind)(x, axis=1))


@pytest.mark.parametrize(("columns", "far"), [(100, False), (1024, True), (1030, True)])
def test_columns_far_apart_are_fetched_ahead(readable, rng, columns, far):
    x = rng.standard_normal((37, columns)).astype(np.float32)
    run = gs.compile(lambda x: (x * x).sum(0))
    np.testing.assert_allclose(run(gs.tensor(x)).numpy(), (x * x).sum(0), rtol=1e-5)
    (call,) = run.programs()[0].compiled.calls
    assert ("llvm.prefetch" in call.source.text) == far


@pytest.mark.parametrize(("function", "kept"), [
    (lambda x: x.softmax(1), 2), (lambda x: gs.nn.functional.layer_norm(x, (64,)), 1)])
def test_only_what_costs_more_than_a_load_is_kept(readable, rng, function, kept):
    """softmax leaves its exponentials in the result's row; x - mean is computed again."""
    run = gs.compile(function)
    run(gs.tensor(rng.standard_normal((40, 64)).astype(np.float32)))
    (call,) = run.programs()[0].compiled.calls
    writes = [line for line in call.source.loops.splitlines() if line.strip().startswith("b")]
    assert len(writes) == kept


def test_rows_of_heads_are_summed_in_the_order_of_memory(readable, rng):
    x, y = (rng.standard_normal((3, 40, 5, 32)).astype(np.float32) for _ in range(2))

    @gs.compile
    def f(x, y):
        return (x.permute(0, 2, 1, 3) * y.permute(0, 2, 1, 3)).sum(-1)

    np.testing.assert_allclose(f(gs.tensor(x), gs.tensor(y)).numpy(),
                               (x * y).sum(-1).transpose(0, 2, 1), rtol=1e-5, atol=1e-5)
    loops = [c.source.loops for p in f.programs() for c in p.compiled.calls]
    assert "in 32:" in loops[0] and "%" not in loops[0] and "//" not in loops[0], loops[0]
