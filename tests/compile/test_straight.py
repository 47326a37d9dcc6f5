"""Compiled kernels over few elements: no loops, and machine code that nobody optimises."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile.calls import PLAIN, Call, KernelSource
from gossamer.runtime import device, engine, jit
from gossamer.runtime.program import Program

LANES = device.host().vector_bytes // 4


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs keep their texts; those made before are forgotten, and none is stored."""
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    monkeypatch.setattr(Program, "forget_texts", lambda self: None)
    engine.clear()


def calls(run) -> list[Call]:
    return run.programs()[0].compiled.calls


@pytest.mark.parametrize("n", [1, 2, 3, LANES - 1, LANES, LANES + 1, 2 * LANES + 3, 5 * LANES])
def test_every_small_size(readable, rng, n: int) -> None:
    x = rng.standard_normal(n).astype(np.float32)
    run = gs.compile(lambda x: ((x * 2).tanh() + x, (x - 1).exp().sum()))
    one, two = run(gs.tensor(x))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(one.numpy(), np.tanh(2 * wide) + wide, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two.item(), np.exp(wide - 1).sum(), rtol=1e-6)
    for call in calls(run):
        assert call.source.text.startswith(PLAIN) == (" phi " not in call.source.text)
    if n <= LANES:
        assert all(call.source.text.startswith(PLAIN) for call in calls(run))


def test_one_vector_is_written_once(readable) -> None:
    """Without the loop over whole vectors, and what lies behind the last element stays."""
    texts = []
    for n in (4, LANES, 100 * LANES):
        run = gs.compile(lambda x: x.tanh())
        run(gs.zeros(n))
        (call,) = calls(run)
        texts.append(call.source.text)
    few, whole, many = texts
    assert len(few) < 0.7 * len(many) and len(whole) < 0.7 * len(many)
    assert "masked.store" in few and "masked" not in whole


def test_rows_of_one_vector_have_no_inner_loop(readable, rng) -> None:
    x = rng.standard_normal((7, LANES - 3)).astype(np.float32)
    run = gs.compile(lambda x: x.softmax(-1))
    got = run(gs.tensor(x)).numpy()
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-6)
    assert all(call.source.text.count(" phi ") <= 1 for call in calls(run))


def test_plain_texts_are_kernels_of_their_own(readable) -> None:
    """The same loops with optimised machine code: another key, and the same results."""
    run = gs.compile(lambda x: (x * 3).tanh())
    x = gs.tensor([0.1, -0.2, 0.3])
    plain = run(x).tolist()
    (call,) = calls(run)
    source = call.source
    other = KernelSource(source.symbol, source.text.removeprefix(PLAIN))
    one, two = jit.kernels([source, other])
    assert one.address != two.address
    program = run.programs()[0]
    record = next(i for i, w in enumerate(program.executable._words) if w == one.address)
    program.executable._words[record] = two.address
    assert run(x).tolist() == pytest.approx(plain, rel=1e-6)
