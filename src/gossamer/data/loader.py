"""`DataLoader`: batches of a dataset, shuffled by a seed, read ahead, resumable. Layer 5.

The position is two numbers, epoch and batch; with the sampler's seed they name every batch, so a
loader that was saved anywhere goes on with exactly the batches that were left. Reading ahead is
done by one thread; what it raises is raised again where the batch would have been delivered.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from gossamer.core.errors import CheckpointError
from gossamer.data.collate import default_collate, default_convert
from gossamer.data.dataset import IterableDataset, Subset, TensorDataset
from gossamer.data.sampler import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
)

__all__ = ["DataLoader"]

_END = object()


class DataLoader:
    """Batches of a dataset.

    Args:
        dataset: has `__getitem__` and `__len__`, or is an IterableDataset.
        batch_size: None gives items one by one.
        shuffle: a new random order each epoch, a function of `seed` and the epoch.
        sampler, batch_sampler: your own order instead.
        num_workers: above 0, one thread reads ahead (threads share memory: more do not help).
        collate_fn: a list of items to a batch.
        drop_last: leave out a last, shorter batch.
        generator: where the seed is drawn from if none is given.
        prefetch_factor: how many batches are read ahead (default 2).
        seed: of the order; default: drawn once.
        pin_memory, timeout, worker_init_fn, multiprocessing_context, persistent_workers,
            pin_memory_device, in_order: accepted for compatibility.

    Example:
        >>> loader = DataLoader(TensorDataset(gs.arange(10)), batch_size=4, shuffle=True, seed=1)
        >>> [len(batch[0]) for batch in loader]
        [4, 4, 2]
    """

    def __init__(self, dataset: Any, batch_size: int | None = 1, shuffle: bool | None = None,
                 sampler: Any = None, batch_sampler: Any = None, num_workers: int = 0,
                 collate_fn: Callable[[list[Any]], Any] | None = None, pin_memory: bool = False,
                 drop_last: bool = False, timeout: float = 0, worker_init_fn: Any = None,
                 multiprocessing_context: Any = None, generator: Any = None, *,
                 prefetch_factor: int | None = None, persistent_workers: bool = False,
                 pin_memory_device: str = "", in_order: bool = True,
                 seed: int | None = None) -> None:
        if num_workers < 0 or (prefetch_factor is not None and prefetch_factor < 1):
            raise ValueError(f"DataLoader: num_workers={num_workers} must be 0 or more, "
                             "prefetch_factor="
                             f"{prefetch_factor} 1 or more.")
        self.dataset, self.num_workers, self.drop_last = dataset, num_workers, drop_last
        self.prefetch_factor = prefetch_factor or 2
        self.generator = generator
        self._stream = isinstance(dataset, IterableDataset)
        if self._stream and (shuffle or sampler is not None or batch_sampler is not None):
            raise ValueError("DataLoader with IterableDataset: expected unspecified shuffle, "
                             "sampler and batch_sampler options; a stream has its own order.")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("DataLoader: batch_sampler option is mutually exclusive with "
                                 "batch_size, shuffle, sampler, and drop_last.")
            batch_size = getattr(batch_sampler, "batch_size", None)
        elif batch_size is None and drop_last:
            raise ValueError("DataLoader: batch_size=None option disables auto-batching and is "
                             "mutually exclusive with drop_last.")
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler option is mutually exclusive with shuffle.")
        self.batch_size = batch_size
        self.sampler = sampler
        if sampler is None and not self._stream:
            self.sampler = (RandomSampler(dataset, generator=generator, seed=seed) if shuffle
                            else SequentialSampler(dataset))
        self.batch_sampler = batch_sampler
        if batch_sampler is None and batch_size is not None and not self._stream:
            self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)
        self._batched = self._stream and batch_size is not None or self.batch_sampler is not None
        self._plain = collate_fn is None
        self.collate_fn: Callable[[Any], Any] = (
            collate_fn or (default_collate if self._batched else default_convert))
        self._epoch = 0
        self._batch = 0  # of this epoch, already delivered
        self._resuming = False
        self._order_state: Any = None  # the sampler's state when this epoch began
        self._stream_state: Any = None  # the stream's state after the last delivered batch

    # ---------------------------------------------------------------- iteration

    def __len__(self) -> int:
        """Number of batches in an epoch.

        Raises:
            TypeError: the dataset is a stream without a length.
        """
        if not self._stream:
            return len(self.batch_sampler if self.batch_sampler is not None else self.sampler)
        count = len(self.dataset)
        if self.batch_size is None:
            return count
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        start = self._begin()
        source = self._load(start)
        return self._deliver(self._ahead(source) if self.num_workers else source)

    def _begin(self) -> int:
        """Start an epoch, or go on in the loaded one; returns how many batches to leave out."""
        if self._resuming:
            self._resuming = False
            return self._batch
        if self._batch:  # the last epoch was left early
            self._epoch, self._batch = self._epoch + 1, 0
        self._order_state = _state_of(self._ordering())
        self._stream_state = None
        return 0

    def _ordering(self) -> Any:
        """What decides the order and may have a state."""
        if self._stream:
            return None
        for candidate in (self.batch_sampler, getattr(self.batch_sampler, "sampler", None),
                          self.sampler):
            if hasattr(candidate, "state_dict"):
                return candidate
        return None

    def _deliver(self, source: Iterator[tuple[Any, Any]]) -> Iterator[Any]:
        """Hand out batches; the position counts what was delivered, not what was read."""
        for batch, stream_state in source:
            self._batch += 1
            self._stream_state = stream_state
            yield batch
        self._epoch, self._batch, self._stream_state = self._epoch + 1, 0, None

    def _load(self, start: int) -> Iterator[tuple[Any, Any]]:
        """Batches from number `start`, each with the stream's state behind it."""
        if self._stream:
            yield from self._load_stream(start)
            return
        order = self.batch_sampler if self.batch_sampler is not None else self.sampler
        for number, indices in enumerate(order):
            if number >= start:
                yield self._fetch(indices, number), None

    def _fetch(self, indices: Any, number: int) -> Any:
        try:
            if not self._batched:
                return self.collate_fn(self.dataset[indices])
            if self._plain:
                gathered = _gathered(self.dataset, indices)
                if gathered is not None:
                    return gathered
            many = getattr(self.dataset, "__getitems__", None)
            items = many(indices) if many is not None else [self.dataset[i] for i in indices]
            return self.collate_fn(items)
        except Exception as error:
            shown = str(indices) if len(str(indices)) < 80 else str(indices)[:77] + "..."
            error.add_note(f"DataLoader: while loading batch {number} of epoch {self._epoch}, "
                           f"items {shown}")
            raise

    def _load_stream(self, start: int) -> Iterator[tuple[Any, Any]]:
        can_resume = hasattr(self.dataset, "state_dict")
        if start and can_resume and self._stream_state is not None:
            self.dataset.load_state_dict(self._stream_state)
            start = 0
        items = iter(self.dataset)
        if self.batch_size is None:
            next(islice(items, start, start), None)
            for item in items:
                yield self.collate_fn(item), _state_of(self.dataset)
            return
        next(islice(items, start * self.batch_size, start * self.batch_size), None)
        while batch := list(islice(items, self.batch_size)):
            if len(batch) < self.batch_size and self.drop_last:
                return
            yield self.collate_fn(batch), _state_of(self.dataset)

    def _ahead(self, source: Iterator[Any]) -> Iterator[Any]:
        """`source`, read by a thread up to `prefetch_factor` batches ahead."""
        ready: queue.Queue[Any] = queue.Queue(self.prefetch_factor)
        stop = threading.Event()

        def put(value: Any) -> bool:
            while not stop.is_set():
                try:
                    ready.put(value, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for value in source:
                    if not put((value, None)):
                        return
                put((_END, None))
            except BaseException as error:
                put((_END, error))

        thread = threading.Thread(target=read, name="gossamer-loader", daemon=True)
        thread.start()
        try:
            while True:
                value, error = ready.get()
                if error is not None:
                    raise error
                if value is _END:
                    return
                yield value
        finally:
            stop.set()
            thread.join()

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The position: after it, exactly the batches that are left follow.

        Random choices inside the dataset (augmentation) repeat only if they follow from the item's
        number.
        """
        order = self._order_state if self._batch else _state_of(self._ordering())
        return {"epoch": self._epoch, "batch": self._batch, "sampler": order,
                "stream": self._stream_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the next iteration begins in the middle.

        Raises:
            CheckpointError: not such a state, or one of a loader with another order.
        """
        if not isinstance(state, dict) or not {"epoch", "batch", "sampler"} <= set(state):
            raise CheckpointError("DataLoader.load_state_dict: the state needs 'epoch', 'batch' "
                                  "and 'sampler', as state_dict() returns.")
        ordering = self._ordering()
        if (state["sampler"] is None) != (ordering is None):
            raise CheckpointError("DataLoader.load_state_dict: the state is of a loader "
                                  f"{'without' if state['sampler'] is None else 'with'} shuffling, "
                                  "this one is not. Build the loader as it was saved.")
        if ordering is not None:
            ordering.load_state_dict(state["sampler"])
        self._order_state = state["sampler"]
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._stream_state = state.get("stream")
        self._resuming = self._batch > 0


def _state_of(thing: Any) -> Any:
    return thing.state_dict() if hasattr(thing, "state_dict") else None


def _gathered(dataset: Any, indices: Any) -> Any:
    """A batch of a TensorDataset, also behind Subsets, by one gather per tensor; else None."""
    while type(dataset) is Subset:
        indices = [dataset.indices[i] for i in indices]
        dataset = dataset.dataset
    if type(dataset) is not TensorDataset or not all(isinstance(i, int) for i in indices):
        return None
    return list(dataset.gather(indices))
