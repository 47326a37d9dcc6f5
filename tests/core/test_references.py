"""Where references cannot be counted, everything is copied, and every result is the same."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer import guards, interop, shared, specialize
from gossamer.core.references import _many


def _steps() -> list[list[float]]:
    """A state that is trained and looked at, arrays that outlive it, and a view of it."""
    gs.manual_seed(0)
    w = gs.randn(4, 3, requires_grad=True)
    optimizer = gs.optim.SGD([w], lr=0.1, momentum=0.9)

    @gs.compile
    def step(x: gs.Tensor) -> gs.Tensor:
        loss = (x @ w).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    kept = [w.detach()[1]]
    found = []
    for i in range(4):
        found.append([step(gs.ones(2, 4) * i).item()])
        array = (w.detach() + 1).numpy()
        array += 1
        found += [array.ravel().tolist(), kept[0].tolist(), w.tolist()[0]]
    shown = gs.ones(3)
    view, array = shown[:2], shown.numpy()
    array[0] = 7
    return [*found, view.tolist(), shown.tolist()]


def test_uncounted_references_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _steps()
    assert counted[-2:] == [[7.0, 1.0], [7.0, 1.0, 1.0]]
    for module in (guards, interop, shared, specialize):
        monkeypatch.setattr(module, "getrefcount", _many)
    for one, other in zip(_steps(), counted, strict=True):
        np.testing.assert_array_equal(one, other)
