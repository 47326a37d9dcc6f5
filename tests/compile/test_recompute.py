"""What is made anew in the backward pass: values stay, peaks fall, and only cheap work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import gossamer as gs
from gossamer.compile import pipeline, recompute as room
from gossamer.compile.pipeline import compile_graph
from gossamer.nn import functional as F
from gossamer.runtime.program import host_target

from . import programs
from .graphs import graph

ROWS, WIDTH = 1024, 64  # one activation of 4 x WIDTH is the least that is worth it


def _feed_forward(activation: Callable[[Any], Any],
                  norm: bool) -> Callable[..., list[Any]]:
    """Gradients of three residual blocks x + W2 f(W1 norm(x))."""
    def program(x: Any, scale: Any, *weights: Any) -> list[Any]:
        leaves = [w.detach().requires_grad_() for w in (scale, *weights)]
        h = x
        for up, down in zip(leaves[1::2], leaves[2::2], strict=True):
            inner = F.layer_norm(h, (WIDTH,), leaves[0]) if norm else h
            h = h + F.linear(activation(F.linear(inner, up)), down)
        return list(gs.autograd.grad((h * h).mean(), leaves if norm else leaves[1:],
                                     retain_graph=True))
    return program


def _shapes(rows: int) -> list[tuple[int, ...]]:
    return [(rows, WIDTH), (WIDTH,), *[(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * 3]


def _arena(program: Callable[..., list[Any]], rows: int = ROWS) -> int:
    roots, inputs = graph(program, *_shapes(rows))
    return compile_graph(roots, inputs, host_target(), specialize=True).arena.nbytes


@pytest.mark.parametrize("activation", [F.gelu, lambda x: F.relu(x).square(), F.silu],
                         ids=["gelu", "relu2", "silu"])
@pytest.mark.parametrize("norm", [False, True])
def test_activations_do_not_wait(activation: Callable[[Any], Any], norm: bool,
                                 rng: np.random.Generator,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    program = _feed_forward(activation, norm)
    arrays = [(rng.standard_normal(s) / np.sqrt(WIDTH)).astype(np.float32) for s in _shapes(ROWS)]
    values = [gs.from_numpy(a) for a in arrays]
    less, fast = _arena(program), [g.numpy() for g in gs.compile(program)(*values)]
    monkeypatch.setattr(pipeline, "recompute", lambda *given: None)
    all_kept, plain = _arena(program), [g.numpy() for g in gs.compile(program)(*values)]
    activation_bytes = 4 * ROWS * 4 * WIDTH
    assert less <= all_kept - 1.5 * activation_bytes  # of three; the last is there at the peak
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_dear_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products, sums and random numbers are kept; so is what small programs hold."""
    tried: list[bool] = []
    original = pipeline.recompute

    def noted(*given: Any) -> Any:
        made = original(*given)
        tried.append(made is not None)
        return made
    monkeypatch.setattr(pipeline, "recompute", noted)

    def dropout(x: Any, scale: Any, *weights: Any) -> list[Any]:
        w = weights[0].detach().requires_grad_()
        made = gs.dropout(x @ w.T, 0.5).square().mean()
        return list(gs.autograd.grad(made, [w], retain_graph=True))

    def products(x: Any, scale: Any, *weights: Any) -> list[Any]:
        w = weights[0].detach().requires_grad_()
        return list(gs.autograd.grad(((x @ w.T) @ w).square().mean(), [w], retain_graph=True))
    for program in (dropout, products):
        _arena(program)
    _arena(_feed_forward(F.gelu, True), ROWS // 8)
    assert tried and not any(tried)


@given(programs.steps(6, 16), st.integers(0, 30))
@settings(max_examples=20, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_program_stays_what_it_is(monkeypatch: pytest.MonkeyPatch,
                                      steps: list[programs.Step], wanted: int) -> None:
    """Whatever waits is made anew, also where it is small or never goes back."""
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    run = programs.program(steps, [wanted])

    def gradient(a: Any, b: Any) -> list[Any]:
        leaves = [a.detach().requires_grad_(), b.detach().requires_grad_()]
        first, second = run(*leaves)
        total = (first.sin() + second.cos()).sum()
        found = gs.autograd.grad(total, leaves, allow_unused=True)
        return [total.detach(), *(g for g in found if g is not None)]
    generator = np.random.default_rng(1)
    x, y = (gs.from_numpy((generator.standard_normal((8, 8)) / 8).astype(np.float32))
            for _ in range(2))
    plain = [g.numpy() for g in gs.compile(gradient)(x, y)]
    with monkeypatch.context() as patch:
        patch.setattr(room, "MIN_BYTES", 0)
        patch.setattr(room, "MIN_SHARE", 0.0)
        patch.setattr(room, "SMALL", 1 << 20)
        fast = [g.numpy() for g in gs.compile(lambda a, b: gradient(a, b))(x, y)]
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(b).max()))
