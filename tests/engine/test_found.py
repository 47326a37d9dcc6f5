"""What random programs found once, as small programs that anyone can read.

Each is run by `tests.fuzz.ways.check`'s rule: lazily, compiled, by NumPy and by PyTorch.
"""

from __future__ import annotations

from typing import Any

import pytest

import gossamer as gs

torch = pytest.importorskip("torch")


def overwritten(lib: Any, how: str) -> tuple[Any, ...]:
    """(loss, gradient of w, requires_grad of a copy and of its view) after a full overwrite."""
    w = lib.full((2,), 3.0, requires_grad=True)
    x = w.clone()
    view = x.view(2)
    ones = lib.ones(2)
    if how == "copy_":
        x.copy_(ones)
    elif how == "setitem":
        x[...] = 0
    elif how == "copy_ of a view":
        view.copy_(ones)
    elif how == "copy_ of a view, no_grad":
        with lib.no_grad():
            view.copy_(ones)
    elif how == "setitem of a view, no_grad":
        with lib.no_grad():
            view[:] = ones
    loss = (x * 2).sum() + (view * 3).sum()
    loss.backward()
    return loss.item(), w.grad.tolist(), x.requires_grad, view.requires_grad


@pytest.mark.parametrize("how", ["copy_", "setitem", "copy_ of a view", "copy_ of a view, no_grad",
                                 "setitem of a view, no_grad"])
def test_an_overwritten_tensor_keeps_its_place_in_the_graph(how: str) -> None:
    """Its gradient is zero, not absent; under no_grad its history is what it was."""
    assert overwritten(gs, how) == overwritten(torch, how)


def test_a_compiled_function_without_inputs() -> None:
    make = gs.compile(lambda: gs.arange(5) * 2)
    assert make().tolist() == make().tolist() == [0, 2, 4, 6, 8]
