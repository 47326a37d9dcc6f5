"""Examples of any length into rows of one length, and the stream of batches. Layer 7.

A row begins with the oldest waiting example and is filled best-fit: always the longest that still
fits. What does not fit waits for the next row; what is longer than a row is split and counted;
nothing is dropped. A batch says where each position's example begins, so that attention can end
there, and no example is asked to foretell the next one. Batch k is a function of the seed, k, the
waiting examples and the place in the corpus alone, so saving `state()` and loading it resumes the
stream exactly.

Source: best-fit packing, Ding et al. 2024 ("Fewer Truncations Improve Language Modeling").
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue
from random import Random
from threading import Thread
from typing import Any

import numpy as np

from gossamer.chat.corpus import Corpus
from gossamer.chat.tokenizer import Rendered

__all__ = ["IGNORE", "Batch", "Packer", "Prefetcher", "split_long"]

WAITING = 96  # examples to choose from: 1.5 % padding at rows of 257 (64: 2.1 %, 256: 0.9 %)
IGNORE = -1  # target of a position that is not supervised

MakeExample = Callable[[Random], Rendered]


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Args:
        ids: (B, T) int64.
        targets: (B, T) int64, IGNORE where nothing is asked.
        begins: (B, T) int64, the position of its row at which each token's example begins.
        padding: positions that hold no example.
        examples: examples begun in it.
    """

    ids: np.ndarray
    targets: np.ndarray
    begins: np.ndarray
    padding: int
    examples: int


def split_long(example: Rendered, capacity: int) -> list[Rendered]:
    """Cut an example into pieces of at most `capacity` tokens, in order.

    >>> split_long(([1, 2, 3], [0, 1, 1]), 2)
    [([1, 2], [0, 1]), ([3], [1])]
    """
    ids, mask = example
    return [
        (ids[i : i + capacity], mask[i : i + capacity]) for i in range(0, len(ids), capacity)
    ]


class Packer:
    """An endless stream of packed batches.

    Args:
        make: draws one example from a random generator; may be replaced between batches.
        pad: id that fills padding.
        batch_size: rows (B).
        sequence_len: positions of a row (T).
        seed: of the stream.
        corpus: what `make` reads from besides, if anything: its place belongs to the state.
    """

    def __init__(
        self, make: MakeExample, *, pad: int, batch_size: int, sequence_len: int, seed: int = 0,
        corpus: Corpus | None = None,
    ) -> None:
        self.make, self.pad, self.seed, self.corpus = make, pad, seed, corpus
        self.shape = (batch_size, sequence_len)
        self.index = 0  # batches made
        self.split = 0  # examples longer than a row
        self._waiting: list[Rendered] = []  # oldest first

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on exactly here (plain JSON values)."""
        waiting = [[list(ids), list(mask)] for ids, mask in self._waiting]
        state = {"index": self.index, "split": self.split, "waiting": waiting}
        return state if self.corpus is None else {**state, "corpus": self.corpus.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.index, self.split = state["index"], state["split"]
        self._waiting = [(list(ids), list(mask)) for ids, mask in state["waiting"]]
        if self.corpus is not None:
            self.corpus.load_state(state["corpus"])

    def next(self) -> Batch:
        """The next batch.

        Cost: about 5 ms for 4,096 tokens of short examples, most of it in the tokenizer.
        """
        B, T = self.shape
        rng = Random(f"{self.seed}:{self.index}")
        self.index += 1
        ids = np.full((B, T + 1), self.pad, np.int64)
        mask = np.zeros((B, T + 1), np.bool_)
        begins = np.zeros((B, T + 1), np.int64)
        padding = examples = 0
        for row in range(B):
            self._refill(rng)
            filled = 0
            for piece_ids, piece_mask in self._take_row(T + 1):
                end = filled + len(piece_ids)
                ids[row, filled:end] = piece_ids
                mask[row, filled:end] = piece_mask
                mask[row, filled] = False  # the position before is another example's
                begins[row, filled:end] = filled
                filled, examples = end, examples + 1
            begins[row, filled:] = filled
            padding += T + 1 - filled
        targets = np.where(mask[:, 1:], ids[:, 1:], IGNORE)
        return Batch(np.ascontiguousarray(ids[:, :-1]), targets,
                     np.ascontiguousarray(begins[:, :-1]), padding, examples)

    def _refill(self, rng: Random) -> None:
        capacity = self.shape[1] + 1
        while len(self._waiting) < WAITING:
            pieces = split_long(self.make(rng), capacity)
            self.split += len(pieces) > 1
            self._waiting += pieces

    def _take_row(self, capacity: int) -> list[Rendered]:
        """Remove from the waiting examples what goes into one row."""
        row = [self._waiting.pop(0)]
        room = capacity - len(row[0][0])
        order = sorted(range(len(self._waiting)), key=lambda i: len(self._waiting[i][0]))
        lengths = [len(self._waiting[i][0]) for i in order]
        taken = set()
        while (best := bisect_right(lengths, room) - 1) >= 0:
            while best > 0 and lengths[best - 1] == lengths[best]:
                best -= 1  # of equally long ones the oldest
            room -= lengths.pop(best)
            chosen = order.pop(best)
            taken.add(chosen)
            row.append(self._waiting[chosen])
        self._waiting = [e for i, e in enumerate(self._waiting) if i not in taken]
        return row


class Prefetcher:
    """Make batches in a thread while the previous one is computed on.

    `state()` is the packer's state after the last batch handed out, however far the thread has run
    ahead. Use as a context manager; errors of the thread are raised by `next`.

    Args:
        packer: the stream; nothing else may use it meanwhile.
        depth: batches ahead.
    """

    def __init__(self, packer: Packer, depth: int = 2) -> None:
        self.packer, self.depth = packer, depth
        self._state = packer.state()
        self._start()

    def _start(self) -> None:
        self._queue: Queue[Any] = Queue(self.depth)
        self._stopping = False
        self._thread = Thread(target=self._work, name="gossamer-batches", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stopping:
                batch = self.packer.next()
                self._queue.put((batch, self.packer.state()))
        except BaseException as error:  # handed to the consumer, who raises it
            self._queue.put(error)

    def next(self) -> Batch:
        """The next batch; waits for the thread if it is behind."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        batch: Batch
        batch, self._state = item
        return batch

    def state(self) -> dict[str, Any]:
        """State of the stream after the last batch handed out."""
        return self._state

    def switch(self, make: MakeExample) -> None:
        """Draw from `make` from the next batch on; batches made ahead are made anew."""
        self.close()
        self.packer.load_state(self._state)
        self.packer.make = make
        self._start()

    def close(self) -> None:
        """Stop the thread."""
        self._stopping = True
        while self._thread.is_alive():
            while not self._queue.empty():  # it may wait for room to put a batch
                self._queue.get()
            self._thread.join(timeout=0.01)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
