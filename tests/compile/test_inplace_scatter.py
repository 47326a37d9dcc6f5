"""A state written by index in a compiled step is written where it lies, when that is safe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gossamer as gs

ROWS = 9


def address(t: gs.Tensor) -> int:
    return int(t._read().value.buffer.address)  # type: ignore[union-attr]


def plain(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    s.index_copy_(0, i, x)
    return s.sum()


def added(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    s.index_add_(0, i, x)
    return s.sum()


def reads_its_old_rows(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    s.index_copy_(0, i, x + s.index_select(0, i.flip(0)))
    return s.sum()


def returns_the_old(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    old = s * 2
    s.index_copy_(0, i, x)
    return old + s


def scaled_first(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    s.mul_(0.5)
    s.index_copy_(0, i, x)
    return s.sum()


def through_a_view(s: gs.Tensor, i: gs.Tensor, x: gs.Tensor) -> gs.Tensor:
    s.view(3, 3, 4)[1].index_copy_(0, i % 3, x)
    return s.sum()


@pytest.mark.parametrize("step", [plain, added, reads_its_old_rows, returns_the_old, scaled_first,
                                  through_a_view])
def test_equals_uncompiled(step: Callable[..., gs.Tensor]) -> None:
    ours, other = gs.arange(36.0).view(ROWS, 4).clone(), gs.arange(36.0).view(ROWS, 4).clone()
    compiled = gs.compile(lambda i, x: step(ours, i, x))
    rng = np.random.default_rng(0)
    for _ in range(4):
        i = gs.tensor(rng.permutation(3) * 3)
        x = gs.tensor(rng.normal(size=(3, 4)).astype(np.float32))
        assert gs.allclose(compiled(i, x), step(other, i, x))
        assert ours.tolist() == other.tolist()


@pytest.mark.parametrize("step", [plain, added])
def test_the_state_stays_in_its_place(step: Callable[..., gs.Tensor]) -> None:
    state = gs.zeros(ROWS, 4)
    compiled = gs.compile(lambda i, x: step(state, i, x))
    i, x = gs.tensor([1, 5]), gs.ones(2, 4)
    compiled(i, x)
    place = address(state)
    assert compiled(i, x).item() == (16.0 if step is added else 8.0)
    assert address(state) == place
    held = state.detach()  # somebody looks at the old value: it must not change
    compiled(i, 3 * x)
    assert state[1].tolist() == ([5.0] * 4 if step is added else [3.0] * 4)
    assert held.tolist() == state.tolist()  # a view of the same tensor, so it follows


def test_a_kept_value_does_not_change() -> None:
    state = gs.zeros(ROWS, 4)
    compiled = gs.compile(lambda i, x: plain(state, i, x))
    compiled(gs.tensor([1]), gs.ones(1, 4))
    kept = state.clone()
    copied = kept.tolist()
    compiled(gs.tensor([2]), gs.ones(1, 4))
    assert kept.tolist() == copied != state.tolist()
    with pytest.raises(IndexError):
        compiled(gs.tensor([ROWS]), gs.ones(1, 4))
    assert state.sum().item() == 8.0  # a step that failed changed nothing
