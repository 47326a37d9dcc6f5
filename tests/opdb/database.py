"""The database by name, and samples carried from PyTorch to Gossamer.

PyTorch is imported here and only here, inside functions, so that collecting tests stays cheap and
works without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

import gossamer as gs

# Beginnings of the names of dtypes that Gossamer deliberately has not.
ABSENT = ("complex", "uint16", "uint32", "uint64", "q", "float8", "bits")


@cache
def load() -> dict[str, list[Any]]:
    """Every operator of the database: name -> its variants (OpInfo records).

    Raises:
        ImportError: PyTorch or expecttest is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from torch.testing._internal.common_methods_invocations import op_db

    torch.set_num_threads(1)
    table: dict[str, list[Any]] = {}
    for info in op_db:
        table.setdefault(info.name, []).append(info)
    return table


def sample_dtype(info: Any) -> Any:
    """float32 where the operator has it, else the first of int64 and bool (`bitwise_and`); else
    None (complex operators, half-precision kernels of one vendor)."""
    import torch

    supported = info.supported_dtypes("cpu")
    return next((d for d in (torch.float32, torch.int64, torch.bool) if d in supported), None)


def samples(info: Any, most: int | None = None) -> Iterator[Any]:
    """The samples of one variant, or `most` of them spread evenly over all."""
    import torch

    dtype = sample_dtype(info)
    if dtype is None:
        return
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(info.sample_inputs(
            "cpu", dtype, requires_grad=info.supports_autograd and dtype.is_floating_point))
    if most is not None and len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    yield from found


class Unrepresentable(Exception):
    """The sample holds something that Gossamer deliberately has not (its text says what)."""


class Carrier:
    """Copies a sample's nested arguments, once as PyTorch leaves and once as Gossamer leaves.

    A tensor that stands in two places stays one tensor. `pairs` lists (PyTorch leaf, Gossamer
    leaf) of every float tensor that requires a gradient, in order of appearance.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self._seen: dict[int, tuple[Any, Any]] = {}
        self._keep: list[Any] = []

    def carry(self, value: Any) -> tuple[Any, Any]:
        """(for PyTorch, for Gossamer)."""
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.Size):
            return value, tuple(value)
        if isinstance(value, (list, tuple)):
            both = [self.carry(v) for v in value]
            kind = type(value) if type(value) in (list, tuple) else tuple
            return kind(a for a, _ in both), kind(b for _, b in both)
        if isinstance(value, dict):
            pairs = {k: self.carry(v) for k, v in value.items()}
            return {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}
        if isinstance(value, slice):
            parts = [self.carry(v) for v in (value.start, value.stop, value.step)]
            return slice(*(a for a, _ in parts)), slice(*(b for _, b in parts))
        return value, _constant(value)

    def _tensor(self, value: Any) -> tuple[Any, Any]:
        import torch

        if id(value) not in self._seen:
            self._keep.append(value)  # an id is only unique while its object lives
            theirs = value.detach().clone().requires_grad_(value.requires_grad)
            ours = to_gossamer(theirs)
            self._seen[id(value)] = theirs, ours
            if theirs.requires_grad and theirs.dtype.is_floating_point:
                self.pairs.append((theirs, ours))
        assert isinstance(self._seen[id(value)][0], torch.Tensor)
        return self._seen[id(value)]


def _constant(value: Any) -> Any:
    """dtypes by name, the CPU device and the dense layout as they are called here."""
    import torch

    if isinstance(value, torch.dtype):
        return _dtype(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.layout):
        if value is not torch.strided:
            raise Unrepresentable("a sparse layout")
        return gs.strided
    if isinstance(value, torch.memory_format):
        name = str(value).split(".")[-1]
        if not hasattr(gs, name):
            raise Unrepresentable(f"memory_format={name}")
        return getattr(gs, name)
    if isinstance(value, torch.nn.Module):  # a distance, for example, with its default arguments
        return getattr(gs.nn, type(value).__name__)()
    if isinstance(value, complex):
        raise Unrepresentable("a complex number")
    return value


def _dtype(theirs: Any) -> Any:
    name = str(theirs).split(".")[-1]
    if name.startswith(ABSENT):
        raise Unrepresentable(f"dtype {name}")
    return getattr(gs, name)


def to_gossamer(theirs: Any) -> Any:
    """A Gossamer leaf with the values, the dtype and the requires_grad of a PyTorch tensor."""
    import torch

    if theirs.layout is not torch.strided:
        raise Unrepresentable("a sparse layout")
    dtype = _dtype(theirs.dtype)
    plain = theirs.detach().resolve_conj().resolve_neg()
    if theirs.dtype is torch.bfloat16:
        ours = gs.tensor(plain.float().numpy().copy()).to(dtype)
    else:
        ours = gs.tensor(plain.numpy().copy())
    return ours.requires_grad_(True) if theirs.requires_grad else ours
