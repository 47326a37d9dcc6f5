"""Packing: nothing is lost, rows are full, the stream resumes, the thread changes nothing."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gossamer.chat.packing import IGNORE, WAITING, Batch, Packer, Prefetcher, split_long
from gossamer.chat.tokenizer import Rendered

PAD = 0


class Counter:
    """Examples whose tokens are unique numbers, so that each can be found again."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.range, self.next_id = (shortest, longest), 1
        self.made: list[Rendered] = []

    def __call__(self, rng: Random) -> Rendered:
        length = rng.randint(*self.range)
        ids = list(range(self.next_id, self.next_id + length))
        self.next_id += length
        mask = [0] + [rng.randint(0, 1) for _ in range(length - 1)]
        self.made.append((ids, mask))
        return ids, mask


def rows_of(batch: Batch) -> list[list[int]]:
    """Tokens of each row; the last one shows only as a target, if it was supervised."""
    rows = []
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        row = [int(i) for i in ids]
        if targets[-1] != IGNORE:
            row.append(int(targets[-1]))
        rows.append([i for i in row if i != PAD])
    return rows


@given(st.integers(1, 6), st.integers(8, 40), st.integers(2, 12), st.integers(0, 5))
def test_nothing_is_lost(rows: int, length: int, batches: int, seed: int) -> None:
    """Every token made is in exactly one row or still waiting."""
    make = Counter(2, 50)  # some are longer than a row
    packer = Packer(make, pad=PAD, batch_size=rows, sequence_len=length, seed=seed)
    seen: list[int] = []
    unseen_ends = 0
    for _ in range(batches):
        batch = packer.next()
        for row, targets in zip(rows_of(batch), batch.targets, strict=True):
            seen += row
            unseen_ends += targets[-1] == IGNORE
    waiting = [i for ids, _ in packer.state()["waiting"] for i in ids]
    made = [i for ids, _ in make.made for i in ids]
    assert len(set(seen)) == len(seen) and not set(seen) & set(waiting)
    # The very last position of a full row is only a target; unsupervised ones cannot be seen.
    missing = set(made) - set(seen) - set(waiting)
    assert len(missing) <= unseen_ends
    assert packer.split == sum(len(ids) > length + 1 for ids, _ in make.made)


def test_targets_are_the_next_ids_where_supervised() -> None:
    make = Counter(5, 30)
    packer = Packer(make, pad=PAD, batch_size=4, sequence_len=64, seed=3)
    batch = packer.next()
    supervised = {i: m for ids, mask in make.made for i, m in zip(ids, mask, strict=True)}
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        for target, after in zip(targets[:-1], ids[1:], strict=True):
            assert target == (after if supervised.get(int(after), 0) else IGNORE)


def test_every_position_knows_where_its_example_begins() -> None:
    """Also in pieces of examples longer than a row; nobody foretells another example's token."""
    make = Counter(5, 90)
    packer = Packer(make, pad=PAD, batch_size=4, sequence_len=64, seed=3)
    batches = [packer.next() for _ in range(4)]
    piece_of = {i: (number, place // 65) for number, (ids, _) in enumerate(make.made)
                for place, i in enumerate(ids)}
    for batch in batches:
        for ids, targets, begins in zip(batch.ids, batch.targets, batch.begins, strict=True):
            owners = [piece_of.get(int(i), PAD) for i in ids]
            first = {owner: owners.index(owner) for owner in owners}
            assert begins.tolist() == [first[owner] for owner in owners]
            for owner, target in zip(owners, targets, strict=True):
                assert target == IGNORE or piece_of[int(target)] == owner
    assert packer.split > 0


def test_rows_are_well_filled() -> None:
    packer = Packer(Counter(18, 60), pad=PAD, batch_size=16, sequence_len=256, seed=0)
    batches = [packer.next() for _ in range(20)]
    assert sum(b.padding for b in batches) / sum(b.ids.size for b in batches) < 0.03
    assert all(b.ids.shape == b.targets.shape == (16, 256) for b in batches)
    assert all((b.targets != IGNORE).any() for b in batches)


def test_the_oldest_waits_no_longer_than_the_pool() -> None:
    make = Counter(3, 40)
    packer = Packer(make, pad=PAD, batch_size=1, sequence_len=63, seed=0)
    for _ in range(300):
        packer.next()
    oldest = packer.state()["waiting"][0][0][0]
    age = sum(ids[0] >= oldest for ids, _ in make.made)
    assert age <= 20 * WAITING


def test_split_long_keeps_order() -> None:
    ids, mask = list(range(10)), [0, 1] * 5
    pieces = split_long((ids, mask), 4)
    assert [len(p[0]) for p in pieces] == [4, 4, 2]
    assert sum((p[0] for p in pieces), []) == ids and sum((p[1] for p in pieces), []) == mask


def plain(rng: Random) -> Rendered:
    length = rng.randint(2, 30)
    return [rng.randint(1, 99) for _ in range(length)], [0] + [1] * (length - 1)


def packer_of(seed: int = 0) -> Packer:
    return Packer(plain, pad=PAD, batch_size=3, sequence_len=32, seed=seed)


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.ids, b.ids) and np.array_equal(a.targets, b.targets)


def test_stream_resumes_exactly() -> None:
    straight = packer_of()
    expected = [straight.next() for _ in range(8)]
    first = packer_of()
    for _ in range(3):
        first.next()
    second = packer_of()
    second.load_state(first.state())
    assert all(same(second.next(), e) for e in expected[3:])
    assert not same(packer_of(seed=1).next(), expected[0])


def test_prefetching_changes_nothing_and_knows_where_it_is() -> None:
    straight = packer_of()
    expected = [straight.next() for _ in range(8)]
    with Prefetcher(packer_of(), depth=3) as batches:
        assert all(same(batches.next(), e) for e in expected[:5])
        state = batches.state()
    again = packer_of()
    again.load_state(state)
    assert all(same(again.next(), e) for e in expected[5:])


def test_switching_takes_effect_at_the_next_batch() -> None:
    def sevens(rng: Random) -> Rendered:
        return [7] * 5, [0, 1, 1, 1, 1]

    reference = packer_of()
    for _ in range(2):
        reference.next()
    reference.make = sevens
    expected = [reference.next() for _ in range(3)]
    with Prefetcher(packer_of(), depth=4) as batches:
        batches.next(), batches.next()
        batches.switch(sevens)
        assert all(same(batches.next(), e) for e in expected)


def test_errors_of_the_thread_reach_the_consumer() -> None:
    def broken(rng: Random) -> Rendered:
        raise OSError("no more text")

    packer = Packer(broken, pad=0, batch_size=1, sequence_len=8)
    with Prefetcher(packer) as batches, pytest.raises(OSError, match="no more text"):
        batches.next()
