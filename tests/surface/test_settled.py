"""Compiled functions whose state rests between calls: the short way and every way out of it."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.core.errors import IndexingError
from gossamer.core.references import getrefcount

pytestmark = pytest.mark.skipif(getrefcount(None) > 1 << 60, reason="references are not counted")


class Counter:
    """Adds x to a sum, and reads a weight that it does not write."""

    def __init__(self) -> None:
        self.sum, self.weight = gs.zeros(4), gs.ones(4)
        self.step = gs.compile(self.compute)

    def compute(self, x: gs.Tensor) -> gs.Tensor:
        self.sum += x * self.weight
        return self.sum * 2

    def call(self, value: float = 1.0) -> float:
        return float(self.step(gs.full((4,), value))[0].item())

    def address(self) -> int:
        return int(self.sum._node.value.buffer.address)

    def settled(self) -> Any:
        traces = [t for known in self.step._traces.values() for t in known]
        assert len(traces) == 1
        return traces[0].settled


def test_a_sum_is_written_in_place_call_after_call() -> None:
    c = Counter()
    c.call()
    place = c.address()
    for n in range(2, 9):
        assert c.call() == 2.0 * n and c.address() == place
        assert c.settled() is not None and not c.settled().moving


def test_a_new_value_is_seen() -> None:
    c = Counter()
    for _ in range(3):
        c.call()
    c.weight.fill_(3.0)
    assert c.call() == 12.0
    c.sum = gs.full((4,), 10.0)  # another tensor: the trace is another one, too
    assert float(c.step(gs.ones(4))[0].item()) == 26.0


@pytest.mark.parametrize("write", ["fill", "data", "numpy", "index"])
def test_every_way_of_writing_is_noticed(write: str) -> None:
    c = Counter()
    for _ in range(5):
        c.call()
    if write == "fill":
        c.sum.fill_(0.0)
    elif write == "data":
        c.sum.data = gs.zeros(4)
    elif write == "numpy":
        c.sum.numpy()[:] = 0
    else:
        c.sum[0] = 0.0
    assert [c.call(), c.call(), c.call(), c.call()] == [2.0, 4.0, 6.0, 8.0]


def test_a_state_that_becomes_a_view_writes_to_what_it_shows() -> None:
    c, fresh = Counter(), gs.zeros(4)
    c.call()
    c.sum.data = fresh
    assert [c.call(), c.call(), c.call()] == [2.0, 4.0, 6.0]
    assert fresh.tolist() == c.sum.tolist() == [3.0] * 4


def test_a_value_that_somebody_holds_is_not_written_over() -> None:
    c = Counter()
    for _ in range(3):
        c.call()
    kept = c.sum.detach().clone(), c.sum + 0  # the second is lazy, and reads the node
    before = c.sum._node
    assert c.call() == 8.0
    assert kept[0].tolist() == kept[1].tolist() == [3.0] * 4
    assert np.array(before.value.array()).tolist() == [3.0] * 4
    del before
    assert [c.call() for _ in range(5)] == [10.0, 12.0, 14.0, 16.0, 18.0]


def test_a_view_shows_what_a_run_wrote() -> None:
    c = Counter()
    view = c.sum[:2]
    for n in range(1, 6):
        c.call()
        assert view.tolist() == [float(n)] * 2


def test_a_state_that_is_another_at_every_call_is_read_at_every_call() -> None:
    c = Counter()
    for n in range(12):
        c.sum.data = gs.full((4,), float(n))
        assert c.call() == 2.0 * (n + 1)
    assert [s.tensor is c.sum for s in c.settled().moving] == [True]
    c.weight.fill_(2.0)
    assert [c.call() for _ in range(6)] == [28.0, 32.0, 36.0, 40.0, 44.0, 48.0]


def test_two_functions_write_the_same_state() -> None:
    c = Counter()
    other = gs.compile(lambda x: c.sum.add_(x))
    for _ in range(6):
        c.call()
        other(gs.ones(4))
    place = c.address()
    for _ in range(3):
        c.call()
        other(gs.ones(4))
        assert c.address() == place
    assert c.sum.tolist() == [18.0] * 4


def test_nothing_is_kept_alive() -> None:
    c = Counter()
    for _ in range(4):
        c.call()
    old = c.sum._node.value.buffer
    c.sum.data = gs.zeros(4)
    gc.collect()
    assert getrefcount(old) <= 2  # ours


def test_a_wrong_index_changes_nothing() -> None:
    table, total = gs.arange(5, dtype=gs.float32), gs.zeros(1)

    @gs.compile
    def step(i: gs.Tensor) -> gs.Tensor:
        total.add_(table[i])
        return total + 0

    for _ in range(3):
        step(gs.tensor([2]))
    with pytest.raises(IndexingError):
        step(gs.tensor([7]))
    assert total.tolist() == [6.0] and step(gs.tensor([1])).tolist() == [7.0]


def test_training_is_the_same_as_uncompiled() -> None:
    def losses(compiled: bool) -> list[float]:
        gs.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5),
                              nn.Linear(16, 1))
        optimizer = gs.optim.AdamW(model.parameters(), lr=0.01)

        def step(x: gs.Tensor) -> gs.Tensor:
            loss = (model(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run = gs.compile(step) if compiled else step
        x, found = gs.randn(32, 8), []
        for n in range(12):
            found.append(float(run(x).item()))
            optimizer.param_groups[0]["lr"] *= 0.9
            if n == 6:
                model[0].weight.data.mul_(0.5)
        return found

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-4)


def test_threads_call_one_function() -> None:
    weight = gs.ones(64)
    step = gs.compile(lambda x: (x * weight).sum())
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(50):
            with gs.no_grad():
                got = float(step(gs.full((64,), value)).item())
            if got != 64 * value:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
