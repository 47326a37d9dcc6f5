"""A compiled training step equals the uncompiled one, for every optimizer and a changing rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.nn import functional as F

MAKERS: dict[str, Any] = {
    "SGD": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dampened": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.2),
    "Adam": lambda ps: optim.Adam(ps, lr=0.01, amsgrad=True),
    "AdamW": lambda ps: optim.AdamW(ps, lr=0.01),
    "Adamax": lambda ps: optim.Adamax(ps, lr=0.01),
    "NAdam": lambda ps: optim.NAdam(ps, lr=0.01),
    "RAdam": lambda ps: optim.RAdam(ps, lr=0.01),
    "Adagrad": lambda ps: optim.Adagrad(ps, lr=0.1),
    "RMSprop": lambda ps: optim.RMSprop(ps, lr=0.01, centered=True, momentum=0.5),
    "Adadelta": lambda ps: optim.Adadelta(ps),
    "Adafactor": lambda ps: optim.Adafactor(ps),
    "Rprop": lambda ps: optim.Rprop(ps, lr=0.01),
    "ASGD": lambda ps: optim.ASGD(ps, lr=0.01),
    "Lion": lambda ps: optim.Lion(ps, lr=0.001, weight_decay=0.1),
    "LAMB": lambda ps: optim.LAMB([{"params": ps[:3]}, {"params": ps[3:], "weight_decay": 0.0}],
                                  lr=0.01, max_grad_norm=0.5),
    "LAMB of the gradient": lambda ps: optim.LAMB(
        ps, lr=0.01, adam_w_mode=False, grad_averaging=False, use_nvlamb=True, max_grad_norm=0.0),
    "NovoGrad": lambda ps: optim.NovoGrad(ps, lr=0.01, weight_decay=0.01),
    "NovoGrad of the paper": lambda ps: optim.NovoGrad(
        ps, lr=0.01, betas=(0.95, 0.98), weight_decay=0.01, reg_inside_moment=True,
        grad_averaging=False, bias_correction=False),
    "Muon": lambda ps: optim.MuonAdamW([
        {"kind": "muon", "params": [p for p in ps if p.dim() == 2], "weight_decay": 0.1},
        {"kind": "adamw", "params": [p for p in ps if p.dim() < 2]}]),
}


def _run(maker: Any, compiled: bool, steps: int = 5) -> tuple[list[float], list[Any], int]:
    gs.manual_seed(3)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(),
                          nn.Linear(8, 3))
    optimizer = maker(list(model.parameters()))

    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    run = gs.compile(step) if compiled else step
    losses = []
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.9
        x = gs.tensor(rng.standard_normal((10, 6)).astype(np.float32))
        y = gs.tensor(rng.integers(0, 3, 10))
        losses.append(float(run(x, y).item()))
        assert i or losses
    return losses, [p.tolist() for p in model.parameters()], getattr(run, "traced", 0)


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_equals_uncompiled(name: str) -> None:
    losses, values, _ = _run(MAKERS[name], compiled=False)
    compiled_losses, compiled_values, traced = _run(MAKERS[name], compiled=True)
    assert traced <= 2  # gradients are there before the second call
    np.testing.assert_allclose(compiled_losses, losses, rtol=2e-5)
    for a, b in zip(compiled_values, values, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_a_loaded_state_reaches_the_compiled_step() -> None:
    p = nn.Parameter(gs.zeros(3))
    optimizer = optim.AdamW([p], lr=0.1)

    @gs.compile
    def step() -> Any:
        optimizer.zero_grad()
        loss = ((p - 1) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()
    saved_p, saved = p.detach().clone(), optimizer.state_dict()
    saved = {"param_groups": [dict(g, lr=0.05) for g in saved["param_groups"]],
             "state": {k: {n: t.clone() for n, t in s.items()} for k, s in saved["state"].items()}}
    step()
    expected_p = nn.Parameter(saved_p.clone())
    reference = optim.AdamW([expected_p], lr=0.05)
    reference.load_state_dict(saved)
    expected_p.grad = 2 * (expected_p.detach() - 1)
    reference.step()

    p.data.copy_(saved_p)
    optimizer.load_state_dict(saved)
    step()
    np.testing.assert_allclose(p.tolist(), expected_p.tolist(), rtol=1e-6)
