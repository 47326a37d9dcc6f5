"""Tensors of more than 2^31 elements: every index is 64 bits wide, from the surface to the loops.

Bytes and bools, so that one takes 2 GiB; each test holds at most three of them. Values are set at
both ends and on both sides of 2^31, where a 32-bit index would land elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

import gossamer as gs
from gossamer.runtime.buffer import release_cached

N = 2 ** 31 + 72  # divisible by 8, not by 64
EDGE = 2 ** 31
MARKS = {0: 3, 1: -5, EDGE - 1: 7, EDGE: -11, EDGE + 1: 13, N - 1: -17}


def _memory() -> int:
    """Bytes that are free on this machine."""
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


pytestmark = [pytest.mark.slow, pytest.mark.skipif(_memory() < 12 << 30, reason="needs 12 GB")]


@pytest.fixture(scope="module")
def x() -> Iterator[gs.Tensor]:
    """(N,) int8: zero but for MARKS."""
    data = np.zeros(N, np.int8)
    for place, value in MARKS.items():
        data[place] = value
    yield gs.from_numpy(data)


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    yield
    release_cached()


def test_reductions_reach_the_end(x: gs.Tensor) -> None:
    assert x.numel() == N and x.sum().item() == sum(MARKS.values())
    assert x.amax().item() == 13 and x.amin().item() == -17
    assert x.argmax().item() == EDGE + 1 and x.argmin().item() == N - 1
    assert gs.count_nonzero(x).item() == len(MARKS) and (x != 0).any().item()


def test_slices_and_strides_beyond_the_edge(x: gs.Tensor) -> None:
    assert x[EDGE - 2:EDGE + 3].tolist() == [0, 7, -11, 13, 0]
    assert x[-1].item() == -17 and x[N - 3:].tolist() == [0, 0, -17]
    rows = x.view(-1, 8)
    assert rows.shape == (N // 8, 8) and rows[:, 7].sum().item() == 7 - 17
    assert rows.T[1].sum().item() == -5 + 13
    assert x[::EDGE].tolist() == [3, -11] and x[1::EDGE].tolist() == [-5, 13]
    assert x.as_strided((3, 2), (EDGE // 2, 1))[2].tolist() == [-11, 13]
    assert x.flip(0)[:1].item() == -17 and x.roll(1)[:2].tolist() == [-17, 3]


def test_elementwise_work_has_as_many_elements(x: gs.Tensor) -> None:
    y = x * 2 + 1
    for place, value in MARKS.items():
        assert y[place].item() == 2 * value + 1
    assert y[EDGE + 40].item() == 1
    less = x < 0
    assert less.dtype is gs.bool and less.sum().item() == 3


def test_indices_from_data_beyond_the_edge(x: gs.Tensor) -> None:
    places = gs.tensor(list(MARKS))
    assert x[places].tolist() == list(MARKS.values())
    assert x.index_select(0, places).tolist() == list(MARKS.values())
    assert x.take(places).tolist() == list(MARKS.values())
    assert x.gather(0, places).tolist() == list(MARKS.values())


def test_writes_beyond_the_edge() -> None:
    y = gs.zeros(N, dtype=gs.int8)
    y[EDGE + 5] = 9
    y[EDGE - 3:EDGE - 1] = 4
    y[-2:] += 6
    assert y[EDGE - 4:EDGE + 6].tolist() == [0, 4, 4, 0, 0, 0, 0, 0, 0, 9]
    assert y.sum().item() == 9 + 8 + 12
    y.index_fill_(0, gs.tensor([EDGE + 7]), 5)
    assert y[EDGE + 7].item() == 5 and y.sum().item() == 34


def test_copies_joins_and_transposes(x: gs.Tensor) -> None:
    both = gs.cat([x[:8], x[8:]])
    assert (both == x).all().item()
    del both
    columns = x.view(-1, 8).T.contiguous().view(-1)  # each eighth element, one after the other
    for place, value in MARKS.items():
        assert columns[place % 8 * (N // 8) + place // 8].item() == value


def test_a_compiled_function_and_running_sums(x: gs.Tensor) -> None:
    step = gs.compile(lambda x: (x.view(-1, 8).sum(-1, dtype=gs.int32) * 2).sum())
    assert step(x).item() == 2 * sum(MARKS.values())
    total = x.cumsum(0, dtype=gs.int8)
    assert total[[1, EDGE - 2, EDGE, N - 1]].tolist() == [-2, -2, -6, -10]


def test_views_larger_than_any_memory() -> None:
    wide = gs.tensor([[1.0, 2.0]]).expand(2 ** 40, 2)
    assert wide.numel() == 2 ** 41 and wide[2 ** 39 + 1].tolist() == [1.0, 2.0]
    assert wide[EDGE - 1:EDGE + 3].sum(0).tolist() == [4.0, 8.0]
    with pytest.raises(MemoryError, match="allocate"):
        (wide + 1).numpy()
