"""`checkpoint` saves memory inside a compiled step, and changes no value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.nn import functional as F
from gossamer.runtime import plans

BLOCKS, ROWS, WIDTH = 6, 512, 32


def _block(h: gs.Tensor, up: gs.Tensor, down: gs.Tensor) -> gs.Tensor:
    return h + F.linear(F.gelu(F.linear(h, up)), down)


def _train(checkpointed: bool, arenas: list[int]) -> tuple[list[float], int]:
    """Losses of four steps, and the bytes of the compiled step's arena."""
    rng = np.random.default_rng(0)
    weights = [tuple(gs.tensor(0.1 * rng.normal(size=s).astype(np.float32), requires_grad=True)
                     for s in ((4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))) for _ in range(BLOCKS)]
    optimizer = gs.optim.SGD([w for pair in weights for w in pair], lr=0.05)
    x = gs.tensor(rng.normal(size=(ROWS, WIDTH)).astype(np.float32))
    @gs.compile
    def step(x: gs.Tensor) -> gs.Tensor:
        h = x
        for up, down in weights:
            h = gs.checkpoint(_block, h, up, down) if checkpointed else _block(h, up, down)
        loss = (h * h).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return [step(x).item() for _ in range(4)], arenas[-1]


def test_a_compiled_step_holds_less(arenas: list[int]) -> None:
    plain, held = _train(False, arenas)
    saved, less = _train(True, arenas)
    assert len(set(plain)) == 4
    np.testing.assert_allclose(saved, plain, rtol=1e-5)
    # Of a block, six times its input live from pass to pass; of a checkpointed one, its input.
    assert less < 0.45 * held


def test_results_that_go_back_together_are_computed_again_once(
        monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compile_graph = plans.compile_graph

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = compile_graph(*args, **kwargs)
        calls.append(sum("gemm" in c.name for c in made.calls))
        return made
    monkeypatch.setattr(plans, "compile_graph", noted)
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    w = gs.rand(128, 128, requires_grad=True)
    x = gs.rand(128, 128)

    def two(w: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        h = (x @ w).tanh()
        return h.sin(), h.cos()

    def gradient(checkpointed: bool) -> Any:
        a, b = gs.checkpoint(two, w) if checkpointed else two(w)
        (g,) = gs.autograd.grad((a * a * b).sum(), w)
        return g
    plain, again = (gs.compile(lambda c=c: gradient(c))() for c in (False, True))
    np.testing.assert_allclose(again.numpy(), plain.numpy(), rtol=1e-5, atol=1e-6)
    assert calls == [2, 4]  # forward, forward again, and backward from each of the two
