"""A look at one operator over values in memory takes a short way, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer.core.settings import refresh
from gossamer.runtime import engine
from gossamer.runtime.program import Program


@pytest.fixture
def short(monkeypatch) -> list[bool]:
    """Whether each look took the short way."""
    taken: list[bool] = []
    whole = engine.evaluate_one
    monkeypatch.setattr("gossamer.realize.evaluate_one",
                        lambda node: taken.append(whole(node)) or taken[-1])
    return taken


def values(*shape: int) -> gs.Tensor:
    x = gs.randn(*shape)
    x.tolist()
    return x


LOOKS = [
    lambda x, y: x + y, lambda x, y: y - x, lambda x, y: x * x, lambda x, y: x.tanh(),
    lambda x, y: x < y, lambda x, y: x.maximum(y), lambda x, y: -y,
    lambda x, y: x * 2.5, lambda x, y: 1 - y, lambda x, y: x / -0.0, lambda x, y: x.sum(),
    lambda x, y: y.softmax(-1), lambda x, y: gs.nn.functional.gelu(x, approximate="tanh"),
    lambda x, y: x.reshape(-1), lambda x, y: x.double(),
]


@pytest.mark.parametrize("number", range(len(LOOKS)))
def test_the_short_way_is_as_right(number: int, short: list[bool]) -> None:
    for shape in ((4,), (3, 5), (1,), (), (0, 2), (70_000,)):
        x, y = values(*shape), values(*shape)
        first = LOOKS[number](x, y).tolist()
        again = LOOKS[number](x, y)
        assert again.tolist() == first
        assert short[-1] or shape != (3, 5)  # elsewhere some give what they are given
        swapped = LOOKS[number](y, x).numpy()
        one = (LOOKS[number](y, x) * 1.5).numpy()  # another graph, the long way
        np.testing.assert_allclose(one, swapped * 1.5, rtol=1e-6)


def test_what_is_no_single_operator_goes_the_long_way(short: list[bool]) -> None:
    x, y, one = values(4), values(4), values(1)
    short.clear()
    for look in (lambda: x * 3 + y, lambda: x.sum() + 1, lambda: x + one,
                 lambda: gs.stack([x, y]).sum(0), lambda: (x + y) * (x + y)):
        for _ in range(2):
            look().tolist()
    assert not any(short)


def test_numbers_are_told_apart() -> None:
    x = values(4)
    for value in (0.0, -0.0, 1, 1.0, 2.5, 3.5, float("nan"), float("inf"), 2):
        for _ in range(2):
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal((x / value).numpy(), x.numpy() / np.float32(value))


def test_an_index_out_of_range_is_found_on_the_short_way() -> None:
    table, index = values(4, 2), gs.tensor([3, 0])
    for _ in range(3):
        assert table[index].shape == (2, 2) and table[index].tolist()[1] == table.tolist()[0]
        with pytest.raises(IndexError):
            table[gs.tensor([4, 0])].tolist()


def test_three_operands_of_which_two_are_one(short: list[bool]) -> None:
    m, k = gs.tensor([True, False, True, False]), gs.tensor([False, False, True, True])
    for _ in range(2):
        assert gs.where(m, k, m).tolist() == [False, False, True, False]
        assert gs.where(m, m, k).tolist() == [True, False, True, True]
        assert (m & m).tolist() == m.tolist()


def test_a_look_keeps_the_history_of_what_will_be_differentiated(short: list[bool]) -> None:
    x = gs.tensor([1.0, 2.0], requires_grad=True)
    y = values(2)
    for _ in range(2):
        z = x * y
        seen = z.tolist()
        again = short[-1]
        history = z._node.inputs
        (g,) = gs.autograd.grad(z.sum(), [x])
        assert g.tolist() == y.tolist()
        assert seen == pytest.approx([a * b for a, b in zip([1, 2], y.tolist(), strict=True)])
    plain = x.detach() * y
    plain.tolist()
    assert plain._node.inputs == () and history and again


def test_a_value_that_is_written_later_stays_as_it_was_seen(short: list[bool]) -> None:
    x, y = values(3), values(3)
    (x + y).tolist()
    before = (x + y).tolist()
    kept = x + y
    kept.tolist()
    x.add_(1)
    assert kept.tolist() == before and short[-1]
    assert (x + y).tolist() == pytest.approx([v + 1 for v in before])


def test_the_short_way_counts_as_use_of_a_program(monkeypatch, short: list[bool]) -> None:
    x = values(4)
    engine.clear()
    short.clear()
    monkeypatch.setattr(engine, "_MAX_PROGRAMS", 2)
    for name in ("sin", "cos", "sin", "tan", "sin"):
        getattr(x, name)().tolist()
    assert short == [False, False, True, False, True]


def test_the_reference_is_asked_where_the_environment_says_so(monkeypatch) -> None:
    x, y = values(4), values(4)
    expected = (x + y).tolist()
    runs: list[int] = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda *a, **k: runs.append(1) or run(*a, **k))
    monkeypatch.setenv("GOSSAMER_REFERENCE", "1")
    refresh()
    try:
        assert (x + y).tolist() == expected and not runs
    finally:
        monkeypatch.delenv("GOSSAMER_REFERENCE")
        refresh()
    assert (x + y).tolist() == expected and runs


def test_a_profile_sees_the_short_way_too() -> None:
    x, y = values(4), values(4)
    (x + y).tolist()
    with gs.profile() as seen:
        (x + y).tolist()
    assert "add" in str(seen)


def test_a_broadcast_on_the_way_is_read_through_not_stored() -> None:
    """A named view of 2^40 elements over two numbers: looking at a part of it stores no more."""
    row = gs.tensor([[1.0, 2.0]]) * 2
    wide = row.expand(2**40, 2)
    assert wide[2**39].tolist() == [2.0, 4.0]
    assert wide._node.value is None and row._node.value is not None
    assert (wide[5:8] + 1).sum(0).tolist() == [9.0, 15.0]
