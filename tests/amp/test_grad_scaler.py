"""GradScaler: the same numbers as PyTorch's, also inside a compiled step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gossamer as gs
from gossamer import nn, optim

SETTINGS = {"init_scale": 4.0, "growth_factor": 2.0, "backoff_factor": 0.5,
            "growth_interval": 2}
# What the gradient is multiplied with, step by step: infinities and NaN are skipped.
FACTORS = [1.0, 2.0, np.inf, np.inf, 1.0, 0.5, 1.0, np.nan, 1.0, 1.0, 1.0, 1.0]


def _trajectory(lib, compiler, optimizer_name: str) -> list[tuple[float, ...]]:
    w = lib.nn.Parameter(lib.from_numpy(np.array([1.0, -2.0, 3.0], np.float32)))
    optimizer = getattr(lib.optim, optimizer_name)([w], lr=0.1)
    scaler = lib.amp.GradScaler("cpu", **SETTINGS)

    def step(factor):
        optimizer.zero_grad()
        loss = (w * w * factor).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = compiler(step)
    seen = []
    for factor in FACTORS:
        run(lib.from_numpy(np.array(factor, np.float32)))
        seen.append((scaler.get_scale(), *w.detach().tolist()))
    return seen


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("compiler", [lambda f: f, gs.compile], ids=["eager", "compiled"])
def test_scales_and_parameters_are_pytorchs(optimizer: str, compiler) -> None:
    ours = _trajectory(gs, compiler, optimizer)
    theirs = _trajectory(torch, lambda f: f, optimizer)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len({row[0] for row in ours}) > 2  # it grew and shrank
    assert ours[2][1:] == ours[1][1:]  # the step with an infinity was skipped


def test_a_first_step_that_overflows_leaves_the_state_fresh_when_compiled() -> None:
    w = nn.Parameter(gs.ones(3))
    optimizer = optim.Adam([w], lr=0.1)
    scaler = gs.amp.GradScaler(init_scale=8.0)

    @gs.compile
    def step(x):
        optimizer.zero_grad()
        scaler.scale((w * x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(gs.tensor([1.0, float("inf"), 1.0]))
    assert w.tolist() == [1.0, 1.0, 1.0] and scaler.get_scale() == 4.0
    state = optimizer.state[w]
    assert state["step"].item() == 0 and state["exp_avg"].tolist() == [0.0, 0.0, 0.0]
    step(gs.tensor([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(w.detach().numpy(), 0.9, rtol=1e-5)
    assert optimizer.state[w]["step"].item() == 1


def test_small_gradients_survive_float16_only_with_scaling() -> None:
    def gradient(scale: float) -> float:
        w = nn.Parameter(gs.ones(1, 1))
        scaler = gs.amp.GradScaler(init_scale=scale, dynamic=False)
        optimizer = optim.SGD([w], lr=1.0)
        with gs.autocast("cpu", dtype=gs.float16):
            loss = (gs.full((1, 1), 1e-5) @ w).float().sum() * 1e-4
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        return w.grad.item()

    assert gradient(1.0) == 0.0
    assert abs(gradient(2.0**16) - 1e-9) < 2e-11


def test_unscaling_before_clipping() -> None:
    w = nn.Parameter(gs.tensor([3.0, 4.0]))
    optimizer, scaler = optim.SGD([w], lr=1.0), gs.amp.GradScaler(init_scale=1024.0)
    scaler.scale((w * w).sum() / 2).backward()
    scaler.unscale_(optimizer)
    assert w.grad.tolist() == [3.0, 4.0]
    nn.utils.clip_grad_norm_([w], 1.0)
    scaler.step(optimizer)
    scaler.update()
    np.testing.assert_allclose(w.detach().numpy(), [2.4, 3.2], rtol=1e-4)


def test_static_scaling_skips_but_keeps_the_scale() -> None:
    w = nn.Parameter(gs.ones(1))
    optimizer = optim.SGD([w], lr=1.0)
    scaler = gs.amp.GradScaler(init_scale=128.0, growth_interval=1, dynamic=False)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((w * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 128.0
    assert w.item() == 0.0


def test_the_scale_never_grows_to_infinity() -> None:
    scaler = gs.amp.GradScaler(init_scale=3e38, growth_interval=1)
    w = nn.Parameter(gs.ones(1))
    optimizer = optim.SGD([w], lr=0.0)
    w.grad = gs.zeros(1)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == np.float32(3e38)


def test_state_goes_round_and_is_pytorchs() -> None:
    ours, theirs = gs.amp.GradScaler(**SETTINGS), torch.amp.GradScaler("cpu", **SETTINGS)
    assert ours.state_dict() == theirs.state_dict()
    ours.update(16.0)
    fresh = gs.amp.GradScaler()
    fresh.load_state_dict(ours.state_dict())
    assert fresh.state_dict() == ours.state_dict() and fresh.get_scale() == 16.0
    assert fresh.get_growth_interval() == 2 and fresh.get_backoff_factor() == 0.5


def test_a_disabled_scaler_passes_everything_through() -> None:
    scaler = gs.amp.GradScaler(enabled=False)
    w = nn.Parameter(gs.ones(1))
    optimizer = optim.SGD([w], lr=1.0)
    loss = w.sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert w.item() == 0.0 and scaler.get_scale() == 1.0 and scaler.state_dict() == {}


def test_misuse_is_told() -> None:
    w = nn.Parameter(gs.ones(1))
    optimizer, scaler = optim.SGD([w], lr=1.0), gs.amp.GradScaler()
    with pytest.raises(RuntimeError, match="No inf checks were recorded prior to update"):
        scaler.update()
    with pytest.raises(RuntimeError, match="none of its parameters has a gradient"):
        scaler.step(optimizer)
    scaler = gs.amp.GradScaler()
    w.grad = gs.ones(1)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="Closure"):
        gs.amp.GradScaler().step(optimizer, closure=lambda: None)
    half = nn.Parameter(gs.ones(1, dtype=gs.float16))
    half.grad = gs.ones(1, dtype=gs.float16)
    with pytest.raises(ValueError, match="FP16"):
        gs.amp.GradScaler().unscale_(optim.SGD([half], lr=1.0))
    with pytest.raises(ValueError, match="growth_factor"):
        gs.amp.GradScaler(growth_factor=1.0)
    with pytest.raises(ValueError, match="backoff_factor"):
        gs.amp.GradScaler(backoff_factor=1.0)
