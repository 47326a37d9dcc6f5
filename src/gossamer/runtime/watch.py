"""Who looks on while programs are traced, compiled and run: `explain` and `profile`. Layer 3.

The one idea: without a watcher nothing is recorded, and each place that could tell something asks
one list whether it is empty. With one, runs are timed kernel by kernel by the native walker itself
(two clock readings a kernel), and the slow steps around them are spans with a beginning and an end.

Times are nanoseconds of `time.perf_counter_ns`, which is the walker's clock where POSIX clocks
exist; elsewhere the walker counts cycles, and its marks are stretched over the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.runtime.engine import Canonical
    from gossamer.runtime.program import Program

__all__ = ["WATCHERS", "Watcher", "note", "planned", "span", "watching"]


class Watcher:
    """Told what happens while it is in WATCHERS; every method may be overridden."""

    # Whether runs are to be timed chunk by chunk on every thread (`chunks` below).
    per_thread = False

    def planned(self, plan: Any, graph: Canonical, donate: Sequence[tuple[int, int]],
                literal: bool) -> None:
        """A graph was given its plan (`Compiled`), new or from a cache."""

    def ran(self, program: Program, begin: int, end: int, marks: Sequence[int],
            chunks: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        """A program ran.

        Args:
            program: which.
            begin, end: of the call from Python, ns.
            marks: begin and end of each kernel call in turn, ns.
            chunks: (call, thread, lo, hi, begin, end) of the chunks, if `per_thread`.
        """

    def span(self, kind: str, name: str, begin: int, end: int) -> None:
        """A step on the Python side ended: `trace`, `compile`, `realise`, `llvm`."""

    def note(self, kind: str, text: str, seconds: float) -> None:
        """Something worth knowing happened, such as work done by NumPy."""


WATCHERS: list[Watcher] = []


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[Watcher]:
    """Tell `watcher` what happens inside the `with` block."""
    WATCHERS.append(watcher)
    try:
        yield watcher
    finally:
        WATCHERS.remove(watcher)


@contextlib.contextmanager
def span(kind: str, name: str) -> Iterator[None]:
    """A step on the Python side, told to the watchers when it ends."""
    begin = time.perf_counter_ns()
    try:
        yield
    finally:
        end = time.perf_counter_ns()
        for watcher in WATCHERS:
            watcher.span(kind, name, begin, end)


def planned(plan: Any, graph: Canonical, donate: Sequence[tuple[int, int]],
            literal: bool) -> None:
    """Tell the watchers which graph a plan belongs to."""
    for watcher in WATCHERS:
        watcher.planned(plan, graph, donate, literal)


def note(kind: str, text: str, seconds: float = 0.0) -> None:
    """Tell the watchers of something that has no place in the graph."""
    for watcher in WATCHERS:
        watcher.note(kind, text, seconds)
