"""Where intermediate results live: offsets in one arena. Layer 2.

The one idea: a buffer lives from the call that first writes it to the last that reads it; buffers
that never live at the same time share memory. First fit over the free gaps, biggest gap reuse
first, in the order of the calls: linear in calls, and within a few percent of the peak of live
bytes. A kernel that reads a dying buffer only at the element it is about to write (the gradient of
the logits over the logits) writes in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gossamer.compile.calls import Call
from gossamer.ir.loop import Kernel, Store, Val, operands

__all__ = ["Arena", "lives", "overwritable", "plan_arena"]

_ALIGN = 64  # a cache line, and the widest vector
_WORTH = 1 << 16  # bytes from which a buffer is written over another: smaller ones change no peak


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes of the temporaries, and the size of the whole."""

    offsets: dict[int, int]
    nbytes: int


def plan_arena(calls: list[Call], sizes: dict[int, int],
               places: Callable[[int, int], set[int]] = lambda t, buffer: set()) -> Arena:
    """Give every temporary a place.

    Args:
        calls: in running order.
        sizes: buffer number -> bytes, of the temporaries only.
        places: (number of a call, buffer that it begins) -> buffers that it may be written over;
            asked for large ones only.
    """
    first, last = lives(calls, sizes)
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for buffer, t in first.items():
        starts.setdefault(t, []).append(buffer)
        ends.setdefault(last[buffer], []).append(buffer)
    offsets: dict[int, int] = {}
    room: dict[int, int] = {}  # bytes that a buffer gives back in the end
    gaps = _Gaps()
    for t in range(len(calls)):
        dying = {b for b in ends.get(t, ()) if b in offsets and sizes[b] >= _WORTH}
        for buffer in sorted(starts.get(t, ()), key=lambda k: -sizes[k]):
            over = places(t, buffer) & dying if dying and sizes[buffer] >= _WORTH else set()
            old = min((b for b in over if room[b] >= sizes[buffer]), key=lambda b: (room[b], b),
                      default=None)
            if old is None:
                room[buffer] = _round(sizes[buffer])
                offsets[buffer] = gaps.take(room[buffer])
            else:
                dying.remove(old)
                offsets[buffer], room[buffer] = offsets[old], room.pop(old)
        for buffer in ends.get(t, ()):
            if buffer in room:
                gaps.give(offsets[buffer], room[buffer])
    return Arena(offsets, gaps.top)


def lives(calls: list[Call], sizes: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
    """The first and the last call that touches each temporary."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for t, call in enumerate(calls):
        for buffer in (*call.reads, *call.writes):
            if buffer in sizes:
                first.setdefault(buffer, t)
                last[buffer] = t
    return first, last


def overwritable(kernel: Kernel, out: int) -> set[int]:
    """Buffers whose memory the kernel may write `out` to: it reads them at no other element than
    the one it writes, and never after it has written there. Elements are of one size: the fifth of
    four bytes lies elsewhere than the fifth of eight, where another worker may read.

    A row is one worker's, so an earlier walk over it may read what a later one overwrites.
    """
    puts = [s for s in kernel.stores() if s.buffer == out]
    if kernel.serial or not puts or any(s.update or s.index != puts[0].index for s in puts):
        return set()
    good: set[int] = set()
    bad = {out}
    written = False
    for values in _walks(kernel):
        done: set[int] = set()
        for value, put in values:
            for v in _loads(value, done):
                at_hand = (not written and v.data[1:] == (puts[0].index, None)
                           and v.dtype.itemsize == puts[0].dtype.itemsize)
                (good if at_hand else bad).add(v.data[0])
            written = written or put is not None and put.buffer == out
    return good - bad


def _walks(kernel: Kernel) -> Iterator[list[tuple[Val, Store | None]]]:
    """What is computed in each walk, in order, and where it is stored."""
    for p in kernel.passes:
        yield [*((r.value, r.running) for r in p.reduces), *((s.value, s) for s in p.stores)]
        yield [(s.value, s) for s in p.row_stores]


def _loads(root: Val, done: set[int]) -> Iterator[Val]:
    """The loads that a value needs beside those that are `done` in the same walk."""
    stack = [root]
    while stack:
        val = stack.pop()
        if id(val) not in done:
            done.add(id(val))
            stack.extend(operands(val))
            if val.kind == "load":
                yield val


def _round(nbytes: int) -> int:
    return max(_ALIGN, (nbytes + _ALIGN - 1) & -_ALIGN)


class _Gaps:
    """Free intervals below `top`, sorted by offset, never adjacent to each other."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []  # (offset, size)
        self.top = 0

    def take(self, size: int) -> int:
        best = -1
        for i, (_, room) in enumerate(self.free):
            if room >= size and (best < 0 or room < self.free[best][1]):
                best = i
        if best >= 0:
            offset, room = self.free[best]
            if room == size:
                del self.free[best]
            else:
                self.free[best] = (offset + size, room - size)
            return offset
        if self.free and sum(self.free[-1]) == self.top:  # grow the gap at the end
            offset, _ = self.free.pop()
        else:
            offset = self.top
        self.top = offset + size
        return offset

    def give(self, offset: int, size: int) -> None:
        i = 0
        while i < len(self.free) and self.free[i][0] < offset:
            i += 1
        self.free.insert(i, (offset, size))
        if i + 1 < len(self.free) and offset + size == self.free[i + 1][0]:
            self.free[i] = (offset, size + self.free[i + 1][1])
            del self.free[i + 1]
        if i and sum(self.free[i - 1]) == offset:
            self.free[i - 1] = (self.free[i - 1][0], self.free[i - 1][1] + self.free[i][1])
            del self.free[i]
