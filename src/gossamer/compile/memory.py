"""Where intermediate results live: offsets in one arena. Layer 2.

The one idea: a buffer lives from the call that first writes it to the last that reads it; buffers
that never live at the same time share memory. First fit over the free gaps, biggest gap reuse
first, in the order of the calls: linear in calls, and within a few percent of the peak of live
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.compile.calls import Call

__all__ = ["Arena", "plan_arena"]

_ALIGN = 64  # a cache line, and the widest vector


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes of the temporaries, and the size of the whole."""

    offsets: dict[int, int]
    nbytes: int


def plan_arena(calls: list[Call], sizes: dict[int, int]) -> Arena:
    """Give every temporary a place.

    Args:
        calls: in running order.
        sizes: buffer number -> bytes, of the temporaries only.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for t, call in enumerate(calls):
        for buffer in (*call.reads, *call.writes):
            if buffer in sizes:
                first.setdefault(buffer, t)
                last[buffer] = t
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for buffer, t in first.items():
        starts.setdefault(t, []).append(buffer)
        ends.setdefault(last[buffer], []).append(buffer)
    offsets: dict[int, int] = {}
    gaps = _Gaps()
    for t in range(len(calls)):
        for buffer in sorted(starts.get(t, ()), key=lambda k: -sizes[k]):
            offsets[buffer] = gaps.take(_round(sizes[buffer]))
        for buffer in ends.get(t, ()):
            gaps.give(offsets[buffer], _round(sizes[buffer]))
    return Arena(offsets, gaps.top)


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
