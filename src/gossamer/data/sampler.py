"""Samplers: in which order a dataset is read. Layer 5.

A shuffled order is a function of (seed, epoch) alone, by NumPy's PCG64, so that any epoch can be
repeated and a run resumed in its middle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np

import gossamer.functional as gf
from gossamer.tensor import Tensor

__all__ = ["BatchSampler", "DistributedSampler", "RandomSampler", "Sampler", "SequentialSampler",
           "SubsetRandomSampler", "WeightedRandomSampler", "fresh_seed"]


def fresh_seed(generator: Any = None) -> int:
    """A seed drawn from a Generator (default: the default one)."""
    return int(gf.randint(0, 2**31 - 1, (1,), generator=generator).item())


class Sampler:
    """An iterable of item numbers; a subclass defines `__iter__` and, if it can, `__len__`."""

    def __init__(self, data_source: Any = None) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__}.__iter__ is not defined")


class SequentialSampler(Sampler):
    """0, 1, 2, …"""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class _Seeded(Sampler):
    """Samplers with a seed and an epoch, which each iteration advances."""

    def __init__(self, generator: Any = None, seed: int | None = None) -> None:
        self.generator = generator
        self.seed = seed
        self.epoch = 0

    def _random(self) -> np.random.Generator:
        """The numbers of this epoch; the next call belongs to the next one."""
        if self.seed is None:
            self.seed = fresh_seed(self.generator)
        rng = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        self.epoch += 1
        return rng

    def state_dict(self) -> dict[str, Any]:
        """Seed and number of the next epoch."""
        if self.seed is None:
            self.seed = fresh_seed(self.generator)
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.seed, self.epoch = state["seed"], state["epoch"]


class RandomSampler(_Seeded):
    """All items in a random order (or draws with replacement).

    Args:
        num_samples: how many; default: as many as items.
        generator: where the seed is drawn from; or give `seed` itself.
    """

    def __init__(self, data_source: Sized, replacement: bool = False,
                 num_samples: int | None = None, generator: Any = None, *,
                 seed: int | None = None) -> None:
        super().__init__(generator, seed)
        self.data_source, self.replacement = data_source, replacement
        self._num_samples = num_samples
        if num_samples is not None and num_samples <= 0:
            raise ValueError(f"RandomSampler: num_samples={num_samples} should be a positive "
                             "integer.")

    @property
    def num_samples(self) -> int:
        """Number of draws in an epoch."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        rng, n, wanted = self._random(), len(self.data_source), self.num_samples
        if self.replacement:
            return iter(rng.integers(0, n, wanted).tolist())
        rounds = (rng.permutation(n).tolist() for _ in range(-(-wanted // n) if n else 0))
        return itertools.islice(itertools.chain.from_iterable(rounds), wanted)

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(_Seeded):
    """Given items in a random order."""

    def __init__(self, indices: Sequence[int], generator: Any = None, *,
                 seed: int | None = None) -> None:
        super().__init__(generator, seed)
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        order = self._random().permutation(len(self.indices)).tolist()
        return iter([self.indices[i] for i in order])

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(_Seeded):
    """Items drawn with probabilities proportional to `weights`."""

    def __init__(self, weights: Any, num_samples: int, replacement: bool = True,
                 generator: Any = None, *, seed: int | None = None) -> None:
        super().__init__(generator, seed)
        values = weights.tolist() if isinstance(weights, Tensor) else list(weights)
        self.weights = np.asarray(values, np.float64)
        if self.weights.ndim != 1 or (self.weights < 0).any() or not self.weights.sum() > 0:
            raise ValueError("WeightedRandomSampler: weights should be a 1d sequence of numbers >= "
                             "0, not all 0.")
        if num_samples <= 0:
            raise ValueError(f"WeightedRandomSampler: num_samples={num_samples} should be a "
                             "positive integer.")
        self.num_samples, self.replacement = num_samples, replacement

    def __iter__(self) -> Iterator[int]:
        share = self.weights / self.weights.sum()
        return iter(self._random().choice(len(share), self.num_samples, self.replacement,
                                          share).tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler):
    """Lists of `batch_size` numbers of another sampler; the last may be shorter, or left out."""

    def __init__(self, sampler: Iterable[Any], batch_size: int, drop_last: bool) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
            raise ValueError(f"BatchSampler: batch_size={batch_size!r} should be a positive "
                             "integer.")
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[Any]]:
        source = iter(self.sampler)
        while batch := list(itertools.islice(source, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


class DistributedSampler(Sampler):
    """The part of process `rank` of `num_replicas`; `set_epoch` before each epoch reshuffles."""

    def __init__(self, dataset: Sized, num_replicas: int = 1, rank: int = 0, shuffle: bool = True,
                 seed: int = 0, drop_last: bool = False) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"DistributedSampler: invalid rank {rank}, rank should be in the "
                             f"interval [0, {num_replicas - 1}].")
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.shuffle, self.seed, self.drop_last, self.epoch = shuffle, seed, drop_last, 0
        exact = len(dataset) / num_replicas
        self.num_samples = math.floor(exact) if drop_last else math.ceil(exact)

    def set_epoch(self, epoch: int) -> None:
        """Another order, the same in all processes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        n, total = len(self.dataset), self.num_samples * self.num_replicas
        order = list(range(n))
        if self.shuffle:
            rng = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
            order = rng.permutation(n).tolist()
        if order:
            order = list(itertools.islice(itertools.cycle(order), total))
        return iter(order[self.rank:total:self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples
