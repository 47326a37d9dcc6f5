"""Datasets: what has items by number, or comes as a stream. Layer 5.

Names and semantics are those of torch.utils.data. A dataset that can fetch many items at once says
so with `__getitems__`; `TensorDataset` gathers whole batches.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

import gossamer.functional as gf
from gossamer.core.errors import IndexingError, ShapeError
from gossamer.tensor import Tensor

__all__ = ["ChainDataset", "ConcatDataset", "Dataset", "IterableDataset", "StackDataset", "Subset",
           "TensorDataset", "random_split"]


class Dataset:
    """Items by number: subclasses define `__getitem__` and `__len__`."""

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.__getitem__ is not defined")

    def __add__(self, other: Dataset) -> ConcatDataset:
        return ConcatDataset([self, other])

    def __class_getitem__(cls, item: Any) -> type:  # Dataset[int] in annotations
        return cls


class IterableDataset(Dataset):
    """A stream: subclasses define `__iter__`.

    A stream with `state_dict()` and `load_state_dict()` resumes where it was; without, a resumed
    loader reads over what was consumed.
    """

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__}.__iter__ is not defined")

    def __add__(self, other: Dataset) -> Any:
        return ChainDataset([self, other])


class TensorDataset(Dataset):
    """Tuples of the rows of several tensors.

    Raises:
        ShapeError: the tensors differ in dimension 0.
    """

    def __init__(self, *tensors: Tensor) -> None:
        rows = {t.shape[0] for t in tensors}
        if len(rows) > 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ShapeError(f"TensorDataset: size mismatch between tensors {shapes}; dimension 0 "
                             "must be equal.")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0]) if self.tensors else 0

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The batch of rows `indices`: one gather per tensor."""
        rows = np.asarray(indices, np.int64)
        return tuple(_rows(t, rows) for t in self.tensors)


def _rows(t: Tensor, rows: np.ndarray) -> Tensor:
    """t[rows]; by NumPy where it can show the values, which leaves the engine to the training."""
    if t.requires_grad or "bfloat16" in str(t.dtype):
        return t[gf.tensor(rows)]
    return gf.from_numpy(np.take(t.numpy(), rows, 0))


class StackDataset(Dataset):
    """Items of several datasets together, as a tuple or (by keyword) a dict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if bool(args) == bool(kwargs):
            raise ValueError("StackDataset: give datasets either by position or by keyword.")
        self.datasets: Any = args or kwargs
        parts = args or tuple(kwargs.values())
        if len({len(d) for d in parts}) > 1:
            raise ValueError("StackDataset: size mismatch between datasets.")
        self._length = len(parts[0])

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.datasets, dict):
            return {k: d[index] for k, d in self.datasets.items()}
        return tuple(d[index] for d in self.datasets)

    def __len__(self) -> int:
        return self._length


class ConcatDataset(Dataset):
    """Datasets one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: datasets should not be an empty iterable.")
        if any(isinstance(d, IterableDataset) for d in self.datasets):
            raise ValueError("ConcatDataset does not support IterableDataset. Use ChainDataset.")
        self.cumulative_sizes = list(itertools.accumulate(len(d) for d in self.datasets))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexingError(f"ConcatDataset[{index}]: it has {len(self)} items.")
        index %= len(self)
        part = bisect.bisect_right(self.cumulative_sizes, index)
        before = self.cumulative_sizes[part - 1] if part else 0
        return self.datasets[part][index - before]


class ChainDataset(IterableDataset):
    """Streams one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = datasets

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self.datasets)


class Subset(Dataset):
    """Some items of a dataset, by their numbers."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (list, tuple)):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several items at once, if the dataset can."""
        chosen = [self.indices[i] for i in indices]
        many = getattr(self.dataset, "__getitems__", None)
        return many(chosen) if many is not None else [self.dataset[i] for i in chosen]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(dataset: Any, lengths: Sequence[float], generator: Any = None) -> list[Subset]:
    """Disjoint random subsets.

    Args:
        lengths: numbers of items, or fractions that sum to 1 (what rounding leaves goes round).
        generator: a Generator; default: the default one.

    Raises:
        ValueError: the lengths do not sum to the dataset's.
    """
    counts = list(lengths)
    total = len(dataset)
    if counts and math.isclose(sum(counts), 1) and sum(counts) <= 1:
        if any(not 0 <= part <= 1 for part in counts):
            raise ValueError(f"random_split: fractions {list(lengths)} must be between 0 and 1.")
        counts = [math.floor(total * part) for part in counts]
        for i in range(total - int(sum(counts))):
            counts[i % len(counts)] += 1
    if sum(counts) != total:
        raise ValueError(f"random_split: sum of input lengths {sum(counts)} does not equal the "
                         f"length of the input dataset {total}.")
    order = gf.randperm(total, generator=generator).tolist()
    ends = list(itertools.accumulate(int(n) for n in counts))
    return [Subset(dataset, order[end - int(n):end]) for end, n in zip(ends, counts, strict=True)]
