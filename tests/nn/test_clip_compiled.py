"""A compiled step that clips: the same numbers as the uncompiled one, from one single trace."""

from __future__ import annotations

import numpy as np

import gossamer as gs
from gossamer import nn


def _losses(compiled: bool) -> tuple[list[float], int]:
    gs.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    optimizer = gs.optim.AdamW(model.parameters(), lr=0.1)

    def step(x: gs.Tensor) -> gs.Tensor:
        loss = model(x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    run = gs.compile(step) if compiled else step
    losses = []
    for i in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
        losses.append(run(gs.ones(4, 5) * (i + 1)).item())
    return losses, run.traced if compiled else 0


def test_clipping_and_a_changing_rate_cost_no_second_trace() -> None:
    plain, _ = _losses(compiled=False)
    found, traced = _losses(compiled=True)
    np.testing.assert_allclose(found, plain, rtol=1e-4)
    assert traced <= 2  # the first call finds no gradient there yet
