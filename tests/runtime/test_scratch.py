"""Scratch areas: alive at once means apart; otherwise they may share."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from gossamer.runtime import scratch
from gossamer.runtime.scratch import Area, borrow, give_back, plan_scratch

AREAS = st.lists(st.builds(
    lambda first, length, nbytes, each: Area(first, first + length, nbytes, each),
    st.integers(0, 12), st.integers(0, 5), st.integers(0, 1000), st.booleans()), max_size=25)


@given(AREAS, st.integers(1, 4))
def test_areas_alive_at_the_same_call_are_apart(areas: list[Area], threads: int) -> None:
    offsets, total = plan_scratch(areas, threads)
    assert len(offsets) == len(areas)
    for i, one in enumerate(areas):
        size = one.size(threads)
        assert size >= one.nbytes * (threads if one.per_thread else 1)
        assert offsets[i] % 64 == 0 and 0 <= offsets[i] and offsets[i] + size <= total
        for j, two in enumerate(areas[:i]):
            if one.first <= two.last and two.first <= one.last:
                assert offsets[i] + size <= offsets[j] or (
                    offsets[j] + two.size(threads) <= offsets[i])


def test_areas_of_different_calls_share() -> None:
    one_call_each = [Area(i, i, 1000, False) for i in range(10)]
    assert plan_scratch(one_call_each, 4) == ([0] * 10, 1024)
    packed = [Area(0, 1, 5000, False), Area(2, 3, 5000, False), Area(1, 1, 100, True)]
    offsets, total = plan_scratch(packed, 2)
    assert offsets[0] == offsets[1] == 0 and total == 5056 + 2 * 128


def test_no_areas_need_nothing() -> None:
    assert plan_scratch([], 8) == ([], 0)


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(scratch, "_idle", [])


def test_a_workspace_serves_one_run_after_the_other(empty) -> None:
    first = borrow(1000)
    second = borrow(1000)  # the first is in use
    assert first.address != second.address
    address = second.address
    give_back(first)
    give_back(second)
    assert borrow(900).address == address
    large = borrow(100_000)  # the idle one is too small, and goes
    assert large.nbytes >= 100_000 and scratch._idle == []


def test_a_huge_workspace_is_not_kept(empty) -> None:
    give_back(borrow((64 << 20) + 1))
    assert scratch._idle == []
