"""What a compiled function refuses, and that a failed call leaves everything as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim

F = nn.functional
Step = Callable[..., Any]


def test_an_exception_leaves_everything_as_it_was() -> None:
    p = gs.zeros(3, requires_grad=True)
    p.grad = gs.ones(3)
    shared, s = np.zeros(2, np.float32), gs.zeros(2)
    q = gs.from_numpy(shared)

    @gs.compile
    def f(x: Any, fail: bool) -> Any:
        s.add_(x.sum())
        q.add_(1)
        (p * 2).sum().backward()
        with gs.no_grad():
            p.sub_(1)
        if fail:
            raise KeyError("mine")
        return s.sum()

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            f(gs.ones(2), True)
        assert p.tolist() == [0] * 3 and p.grad.tolist() == [1] * 3
        assert s.tolist() == [0, 0] and shared.tolist() == [0, 0] and q.tolist() == [0, 0]
    assert f(gs.ones(2), False).item() == 4
    assert p.grad.tolist() == [3] * 3 and shared.tolist() == [1, 1]


def test_an_index_out_of_range_leaves_parameters_as_they_were() -> None:
    table = nn.Embedding(5, 4)
    optimizer = optim.SGD(table.parameters(), lr=1.0)

    @gs.compile
    def step(ids: Any) -> Any:
        optimizer.zero_grad()
        loss = table(ids).sum()
        loss.backward()
        optimizer.step()
        return loss

    step(gs.tensor([1, 2]))
    before = table.weight.detach().clone().tolist()
    for bad in ([1, 5], [-6, 0]):
        with pytest.raises(IndexError, match=r"test_compile_errors\.py:\d+"):
            step(gs.tensor(bad))
        assert table.weight.tolist() == before
    step(gs.tensor([0, 4]))


PEEKS: list[Callable[[Any], Any]] = [
    lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: float(x.sum()),
    lambda x: int(x.sum()), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: repr(x),
    lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: range(x.sum().long()),
    lambda x: gs.unique(x), lambda x: x.max() in [1], lambda x: gs.equal(x, x),
    lambda x: [1, 2][x.sum().long()], lambda x: np.asarray(x), lambda x: f"{x.sum():.2f}",
    lambda x: max(x), lambda x: x.sum() > 0 and 1]


@pytest.mark.parametrize("peek", PEEKS, ids=range(len(PEEKS)))
def test_looking_at_a_value_names_the_line(peek: Callable[[Any], Any]) -> None:
    with pytest.raises(gs.TraceError, match=r"test_compile_errors\.py:\d+") as info:
        gs.compile(peek)(gs.ones(3))
    assert "gs.where" in str(info.value)


def test_what_is_kept_aside_is_refused() -> None:
    class Holder:
        state = gs.zeros(2)

    kept, older = [], []

    def rebinds(x: Any) -> Any:
        Holder.state = Holder.state + x
        return Holder.state.sum()

    def appends(x: Any) -> Any:
        kept.append(x * 2)
        return x

    def ages(x: Any) -> Any:
        older.append(x * 3)
        gc.collect()  # what is kept is no longer in the collector's youngest part
        return x

    for f in (rebinds, appends, ages):
        with pytest.raises(gs.TraceError, match=r"kept.*copy_"):
            gs.compile(f)(gs.ones(2))


def test_a_cache_of_constants_may_be_kept() -> None:
    cache: dict[int, Any] = {}

    @gs.compile
    def f(x: Any) -> Any:
        n = x.shape[0]
        if n not in cache:
            cache[n] = gs.arange(n) * 2.0
        return x + cache[n]

    for _ in range(3):
        assert f(gs.ones(3)).tolist() == [1, 3, 5]
    assert cache[3].tolist() == [0, 2, 4]


def test_too_many_traces() -> None:
    f = gs.compile(lambda x, k: x * k)
    with pytest.raises(gs.TraceError, match=r"32 traces.*Pass numbers that change as tensors"):
        for k in range(40):
            f(gs.ones(1), k)


def test_verbose_says_what_was_traced(capsys: pytest.CaptureFixture[str]) -> None:
    @gs.compile(verbose=True)
    def plain(x: Any) -> Any:
        return x * 2

    plain(gs.ones(2))
    w = gs.ones(2, requires_grad=True)
    gs.compile(lambda: w * 2, verbose=True)()
    text = capsys.readouterr().err
    assert "plain" in text and "1 kernel calls" in text and "uncompiled, because" in text
