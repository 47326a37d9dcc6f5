"""The cyclic garbage collector waits while a graph is compiled. Layer 0.

The one idea: a compilation makes many objects that all stay until it ends, and next to no cycles.
The collector walks them again and again: a quarter of the time for 20,000 nodes, and more than in
proportion to the nodes. It is paused for as long as somebody compiles, on any thread, and goes on
as it was before.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["passes", "paused"]


class _Pause(threading.local):
    """How many blocks of this thread are open."""

    depth = 0


_own = _Pause()
_lock = threading.RLock()
_open = 0  # blocks of all threads
_enabled = False  # whether the collector ran before the first of them


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector for a block; blocks may nest, and run on several threads.

    Example:
        >>> with paused():
        ...     gc.isenabled()
        False
    """
    global _enabled
    with _lock:
        if _open == 0:
            _enabled = gc.isenabled()
            gc.disable()
        _count(1)
    try:
        yield
    finally:
        with _lock:
            _count(-1)
            if _open == 0 and _enabled:
                gc.enable()


def passes() -> int:
    """How often the collector has run: until that changes, what is made is in its youngest part."""
    return sum(part["collections"] for part in gc.get_stats())


def _count(step: int) -> None:
    global _open
    _open += step
    _own.depth += step


def _after_fork_in_child() -> None:
    """Blocks of other threads do not end in the child."""
    global _lock, _open
    _lock = threading.RLock()
    if _open and not _own.depth and _enabled:
        gc.enable()
    _open = _own.depth


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
