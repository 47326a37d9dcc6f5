"""DataLoader: batches, order by seed, resuming bit for bit, reading ahead, mistakes."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.core.errors import CheckpointError, ShapeError
from gossamer.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)


class Squares(Dataset):
    """Item i is i²; reading `poison` fails."""

    def __init__(self, n: int, poison: int = -1) -> None:
        self.n, self.poison = n, poison

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        if i == self.poison:
            raise KeyError(f"item {i} is broken")
        return i * i


class Count(IterableDataset):
    """A stream that can resume."""

    def __init__(self, n: int) -> None:
        self.n, self.at = n, 0

    def __iter__(self) -> Iterator[int]:
        while self.at < self.n:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def _numbers(loader: Any) -> list[list[Any]]:
    return [(b[0] if isinstance(b, (list, tuple)) else b).tolist() for b in loader]


def test_batches_and_last() -> None:
    assert _numbers(DataLoader(Squares(5), batch_size=2)) == [[0, 1], [4, 9], [16]]
    loader = DataLoader(Squares(5), batch_size=2, drop_last=True)
    assert _numbers(loader) == [[0, 1], [4, 9]] and len(loader) == 2
    assert list(DataLoader(Squares(3), batch_size=None)) == [0, 1, 4]
    assert _numbers(DataLoader(Count(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    own = DataLoader(Squares(6), batch_sampler=[[0, 5], [1]])
    assert _numbers(own) == [[0, 25], [1]]
    assert _numbers(DataLoader(Squares(0), batch_size=2)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_order_is_a_function_of_the_seed(workers: int) -> None:
    def make(seed: int) -> DataLoader:
        return DataLoader(Squares(20), batch_size=3, shuffle=True, seed=seed, num_workers=workers)

    a, b = make(5), make(5)
    first = _numbers(a)
    assert first == _numbers(b)
    assert _numbers(a) != first  # the next epoch is another
    assert sorted(sum(first, [])) == [i * i for i in range(20)]
    assert _numbers(make(6)) != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shuffled", "plain", "stream", "replacement", "subset"])
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 6])
def test_resume_continues_exactly(kind: str, workers: int, cut: int) -> None:
    def make(seed: int | None = None) -> DataLoader:
        data: Any = Count(11) if kind == "stream" else Squares(11)
        settings: dict[str, Any] = {}
        if kind == "shuffled":
            settings = {"shuffle": True, "seed": seed}
        elif kind == "replacement":
            settings = {"sampler": RandomSampler(data, True, 13, seed=seed)}
        elif kind == "subset":
            settings = {"sampler": SubsetRandomSampler([1, 3, 5, 7, 9, 10], seed=seed)}
        return DataLoader(data, batch_size=3, num_workers=workers, **settings)

    def forever(loader: DataLoader) -> Iterator[list[int]]:
        while True:
            yield from (b.tolist() for b in loader)

    loader = make(3)
    stream = forever(loader)
    for _ in range(cut):
        next(stream)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = [next(stream) for _ in range(9)]
    again = make()
    again.load_state_dict(state)
    resumed = forever(again)
    assert [next(resumed) for _ in range(9)] == rest


def test_leaving_an_epoch_early_starts_the_next() -> None:
    loader = DataLoader(Squares(9), batch_size=3, shuffle=True, seed=0)
    whole = DataLoader(Squares(9), batch_size=3, shuffle=True, seed=0)
    next(iter(loader))
    list(whole)
    assert _numbers(loader) == _numbers(whole)


def test_prefetch_reads_ahead_and_stops() -> None:
    read: list[int] = []

    class Slow(Squares):
        def __getitem__(self, i: int) -> int:
            read.append(i)
            return i

    iterator = iter(DataLoader(Slow(100), batch_size=1, num_workers=1, prefetch_factor=3))
    next(iterator)
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 <= len(read) <= 6
    iterator.close()  # type: ignore[attr-defined]
    count = len(read)
    time.sleep(0.05)
    assert len(read) == count


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_show_the_users_line(workers: int) -> None:
    loader = DataLoader(Squares(9, poison=4), batch_size=2, num_workers=workers)
    iterator = iter(loader)
    assert next(iterator).tolist() == [0, 1]
    assert next(iterator).tolist() == [4, 9]
    with pytest.raises(KeyError, match="item 4 is broken") as caught:
        next(iterator)
    assert any("batch 2" in note and "[4, 5]" in note for note in caught.value.__notes__)
    assert any(entry.name == "__getitem__" for entry in caught.traceback)


def test_tensor_dataset_gathers_batches(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((10, 3)).astype(np.float32), np.arange(10)
    data = TensorDataset(gs.tensor(x), gs.tensor(y))
    subset = Subset(data, [9, 3, 1, 0])
    for source, rows in ((data, list(range(10))), (subset, [9, 3, 1, 0])):
        fast = list(DataLoader(source, batch_size=3))
        slow = list(DataLoader(source, batch_size=3, collate_fn=default_collate))
        assert len(fast) == len(slow)
        for a, b in zip(fast, slow, strict=True):
            assert type(a) is type(b) is list
            assert [t.tolist() for t in a] == [t.tolist() for t in b]
        assert sum((b[1].tolist() for b in fast), []) == rows
    half = TensorDataset(gs.tensor(x).bfloat16())
    assert next(iter(DataLoader(half, batch_size=2)))[0].dtype is gs.bfloat16


def test_collate() -> None:
    Point = collections.namedtuple("Point", "x y")
    batch = default_collate([{"a": 1, "b": (2.5, "s"), "p": Point(np.float32(1), True)},
                             {"a": 3, "b": (4.5, "t"), "p": Point(np.float32(2), False)}])
    assert batch["a"].tolist() == [1, 3] and batch["a"].dtype is gs.int64
    assert batch["b"][0].tolist() == [2.5, 4.5] and batch["b"][0].dtype is gs.float64
    assert batch["b"][1] == ["s", "t"]
    assert batch["p"].x.dtype is gs.float32 and batch["p"].y.tolist() == [True, False]
    with pytest.raises(ShapeError, match="equal size"):
        default_collate([gs.ones(2), gs.ones(3)])
    with pytest.raises(TypeError, match="found object"):
        default_collate([object()])


def test_datasets() -> None:
    both = Squares(3) + Squares(2)
    assert isinstance(both, ConcatDataset)
    assert [both[i] for i in range(5)] == [0, 1, 4, 0, 1] and both[-1] == 1
    with pytest.raises(IndexError):
        both[5]
    assert list(ChainDataset([[1, 2], [3]])) == [1, 2, 3]
    assert StackDataset(a=Squares(3), b=Squares(3))[2] == {"a": 4, "b": 4}
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        TensorDataset(gs.ones(2), gs.ones(3))
    parts = random_split(Squares(10), [0.5, 0.25, 0.25], gs.Generator().manual_seed(1))
    assert [len(p) for p in parts] == [6, 2, 2]
    assert sorted(i for p in parts for i in p.indices) == list(range(10))
    with pytest.raises(ValueError, match="does not equal"):
        random_split(Squares(10), [3, 3])


def test_samplers() -> None:
    sampler = WeightedRandomSampler([0.0, 1.0, 3.0], 4000, seed=0)
    counts = np.bincount(list(sampler), minlength=3)
    assert counts[0] == 0 and abs(counts[2] / 4000 - 0.75) < 0.03
    assert list(BatchSampler(range(5), 2, True)) == [[0, 1], [2, 3]]
    parts = [list(DistributedSampler(range(7), 2, r, seed=1)) for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 4 and set(parts[0]) | set(parts[1]) == set(range(7))
    gs.manual_seed(7)
    a = list(RandomSampler(range(9)))
    gs.manual_seed(7)
    assert a == list(RandomSampler(range(9)))


@pytest.mark.parametrize(("make", "text"), [
    (lambda: DataLoader(Squares(3), batch_size=0), "batch_size=0"),
    (lambda: DataLoader(Squares(3), num_workers=-1), "num_workers=-1"),
    (lambda: DataLoader(Squares(3), shuffle=True, sampler=[0]), "mutually exclusive"),
    (lambda: DataLoader(Squares(3), batch_size=2, batch_sampler=[[0]]), "mutually exclusive"),
    (lambda: DataLoader(Count(3), shuffle=True), "own order"),
    (lambda: DataLoader(Squares(3), batch_size=None, drop_last=True), "mutually"),
])
def test_mistakes(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_loading_the_state_of_another_loader() -> None:
    state = DataLoader(Squares(4), shuffle=True, seed=1).state_dict()
    with pytest.raises(CheckpointError, match="as it was saved"):
        DataLoader(Squares(4)).load_state_dict(state)
    with pytest.raises(CheckpointError, match="needs"):
        DataLoader(Squares(4)).load_state_dict({})
