"""Scratch memory of programs: where each area lies, and one workspace for all. Layer 3.

The one idea: scratch lives for one run at most, so programs share it. A run borrows a workspace
that is large enough and returns it; only runs that truly overlap in time need two. Within a
program, areas share bytes unless they are alive at the same call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.runtime.buffer import Buffer, allocate

__all__ = ["Area", "borrow", "give_back", "plan_scratch"]

_ALIGN = 64
# Workspaces up to this size stay when nobody uses them: packed operands of a GEMM need a few MiB.
# Larger ones go back to the buffers' pool, which bounds what lies idle.
_KEEP = 64 << 20


@dataclass
class Area:
    """Scratch memory alive from call `first` to call `last`, both included."""

    first: int
    last: int
    nbytes: int
    per_thread: bool

    def size(self, threads: int) -> int:
        """Bytes of the whole area: one part for each thread, each a multiple of 64."""
        part = (self.nbytes + _ALIGN - 1) & -_ALIGN
        return part * threads if self.per_thread else part


def plan_scratch(areas: Sequence[Area], threads: int) -> tuple[list[int], int]:
    """(offset of each area, bytes in all); areas alive at the same call do not overlap.

    First fit, areas that span several calls first and the largest of them before the others.

    Cost: calls times spanning areas; spanning areas squared.
    """
    offsets = [0] * len(areas)
    sizes = [area.size(threads) for area in areas]
    spanning = [i for i, area in enumerate(areas) if area.first != area.last]
    placed: list[int] = []
    for i in sorted(spanning, key=lambda i: (-sizes[i], i)):
        alive = [j for j in placed if areas[j].first <= areas[i].last
                 and areas[i].first <= areas[j].last]
        offsets[i] = _first_fit(sizes[i], [(offsets[j], sizes[j]) for j in alive])
        placed.append(i)
    taken: dict[int, list[tuple[int, int]]] = {}
    for i, area in enumerate(areas):
        if area.first == area.last:
            if area.first not in taken:
                taken[area.first] = [(offsets[j], sizes[j]) for j in spanning
                                     if areas[j].first <= area.first <= areas[j].last]
            offsets[i] = _first_fit(sizes[i], taken[area.first])
            taken[area.first].append((offsets[i], sizes[i]))
    return offsets, max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)


def _first_fit(size: int, taken: list[tuple[int, int]]) -> int:
    """Lowest offset where `size` bytes overlap none of the (offset, size) in `taken`."""
    start = 0
    for offset, length in sorted(taken):
        if start + size <= offset:
            break
        start = max(start, offset + length)
    return start


_idle: list[Buffer] = []


def borrow(nbytes: int) -> Buffer:
    """A workspace of at least `nbytes`; arbitrary contents.

    Raises:
        MemoryError: the system gives no more.
    """
    workspace = _idle.pop() if _idle else None
    if workspace is None or workspace.nbytes < nbytes:
        workspace = None  # the smaller one goes first, so that both are never held at once
        workspace = allocate(nbytes)
    return workspace


def give_back(workspace: Buffer) -> None:
    if workspace.nbytes <= _KEEP:
        _idle.append(workspace)


if hasattr(os, "register_at_fork"):
    # A child's pages are copies: it should not keep a workspace that it may never use.
    os.register_at_fork(after_in_child=_idle.clear)
