"""`gs.profile()`: what happened, when, on which thread; for trace viewers and as a table. Surface.

The one idea: a watcher writes down spans (tracing, compiling, realising) and, by a shim between
walker and kernels, every chunk of every kernel with its thread. The trace is Chrome's JSON, which
Perfetto (ui.perfetto.dev) and chrome://tracing open; the table sums by kernel, as PyTorch's
`key_averages` does. Source: "Trace Event Format", Google 2016 (complete events, `ph: X`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gossamer.core.errors import GossamerError
from gossamer.insight import table
from gossamer.insight.recorder import Recorder
from gossamer.insight.view import Line, ProgramView
from gossamer.runtime.program import Program
from gossamer.runtime.watch import WATCHERS

__all__ = ["Average", "profile"]

_PROCESS = 1  # all events belong to one process in the trace


@dataclass
class Average:
    """One row of the table: a kernel, or a kind of step on the Python side.

    Attributes:
        name: of the kernel, or `trace`, `compile`, `llvm`, `realise`, `program`.
        line: the user's line it came from; empty where that is not known.
        calls: how often it ran.
        seconds: wall time in all; `busy` is the time of all threads together.
    """

    name: str
    line: str
    calls: int = 0
    seconds: float = 0.0
    busy: float = 0.0


class profile(Recorder):
    """Record what happens inside a `with` block.

    Args:
        path: where to write the trace when the block ends; may be left out.
        threads: record every chunk of every kernel on every thread (55 ns a chunk); otherwise
            kernels as a whole.

    Raises:
        OSError: the path cannot be written.

    Cost: a `clock_gettime` at both ends of each kernel and chunk; memory grows with the calls,
    about 100 bytes each.

    Example:
        >>> with gs.profile("step.json") as p:
        ...     loss = (gs.randn(64, 64) @ gs.randn(64, 64)).sum().item()
        >>> "gemm 64x64x64" in p.table()
        True
    """

    def __init__(self, path: str | Path | None = None, threads: bool = True) -> None:
        super().__init__()
        self.path = Path(path) if path is not None else None
        self.per_thread = threads
        self.events: list[dict[str, Any]] = []
        self.begin = self.end = 0
        self._steps: dict[str, Average] = {}
        self._kernels: dict[tuple[int, int], Average] = {}
        self._named: dict[int, dict[int, tuple[str, str, str]]] = {}

    def __enter__(self) -> profile:
        self.begin = time.perf_counter_ns()
        WATCHERS.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        WATCHERS.remove(self)
        self.end = time.perf_counter_ns()
        if self.path is not None and kind is None:
            self.export_chrome_trace(self.path)

    # recording ----------------------------------------------------------------------------------
    def span(self, kind: str, name: str, begin: int, end: int) -> None:
        super().span(kind, name, begin, end)
        self._event(kind, kind if kind == name else f"{kind} {name}", 0, begin, end)
        _add(self._steps.setdefault(kind, Average(kind, "")), begin, end)

    def note(self, kind: str, text: str, seconds: float) -> None:
        super().note(kind, text, seconds)
        now = time.perf_counter_ns()
        self._event(kind, text, 0, now - int(1e9 * seconds), now)

    def ran(self, program: Program, begin: int, end: int, marks: Sequence[int],
            chunks: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        super().ran(program, begin, end, marks, chunks)
        key = id(program.compiled)
        _add(self._steps.setdefault("program", Average("program", "")), begin, end)
        self._event("program", f"program of {len(marks) // 2} calls", 0, begin, end)
        for i, call in enumerate(program.executable.calls):
            row = self._kernels.setdefault((key, i), Average(call.name or call.source.symbol, ""))
            _add(row, marks[2 * i], marks[2 * i + 1])
            self._event("kernel", row.name, 0, marks[2 * i], marks[2 * i + 1], key, i)
        for call_number, thread, lo, hi, first, last in chunks:
            row = self._kernels[key, call_number]
            row.busy += 1e-9 * (last - first)
            self._event("chunk", row.name, 1 + thread, first, last, key, call_number, (lo, hi))

    def _event(self, kind: str, name: str, thread: int, begin: int, end: int, key: int = 0,
               call: int = -1, part: tuple[int, int] | None = None) -> None:
        event: dict[str, Any] = {"name": name, "cat": kind, "ph": "X", "pid": _PROCESS,
                                 "tid": thread, "ts": begin, "dur": max(0, end - begin)}
        if call >= 0:
            event["args"] = {"call": call, "program": key}
        if part is not None:
            event["args"] |= {"from": part[0], "to": part[1]}
        self.events.append(event)

    # reading ------------------------------------------------------------------------------------
    def export_chrome_trace(self, path: str | Path) -> None:
        """Write the trace as JSON that ui.perfetto.dev and chrome://tracing open."""
        names = ["Python and calls", *(f"worker {i}" if i else "caller's chunks"
                                       for i in range(self._threads()))]
        meta = [{"name": "thread_name", "ph": "M", "pid": _PROCESS, "tid": i,
                 "args": {"name": name}} for i, name in enumerate(names)]
        meta.append({"name": "process_name", "ph": "M", "pid": _PROCESS, "tid": 0,
                     "args": {"name": "gossamer"}})
        events = [self._finished(e) for e in sorted(self.events,
                                                    key=lambda e: (e["ts"], -e["dur"]))]
        Path(path).write_text(json.dumps({"traceEvents": [*meta, *events],
                                          "displayTimeUnit": "ms"}), encoding="utf-8")

    def _threads(self) -> int:
        return max((e["tid"] for e in self.events), default=0)

    def _finished(self, event: dict[str, Any]) -> dict[str, Any]:
        """Times in us from the beginning of the block; kernels with their line and members."""
        made = event | {"ts": (event["ts"] - self.begin) / 1000, "dur": event["dur"] / 1000}
        if "args" in event:
            key, call = event["args"]["program"], event["args"]["call"]
            told = self._names(key).get(call)
            rest = {k: v for k, v in event["args"].items() if k != "program"}
            made["args"] = rest | ({"kernel": told[0], "line": told[1], "why": told[2]}
                                   if told else {})
        return made

    def _names(self, key: int) -> dict[int, tuple[str, str, str]]:
        """call number -> (kernel, line, reason) of a program; of one whose graph was made before
        the block only lines are known."""
        if key not in self._named:
            origin, plan = self.origins.get(key), self.runs[key].compiled
            if origin is None:
                self._named[key] = {i: (call.name, Line(*plan.lines[i]).short, "")
                                    for i, call in enumerate(plan.calls)}
            else:
                self._named[key] = {i: (k.name, k.lines[0].short if k.lines else "", k.reason)
                                    for k in ProgramView("", origin).kernels for i, _ in k.calls}
        return self._named[key]

    def averages(self) -> list[Average]:
        """A row for each kernel and each kind of step, the one with the most time first.

        Calls of one kernel at one line are one row, whatever program they are in.
        """
        rows: dict[tuple[str, str], Average] = {}
        for (key, call), found in self._kernels.items():
            told = self._names(key).get(call)
            name, line = (told[0], told[1]) if told else (found.name, "")
            row = rows.setdefault((name, line), Average(name, line))
            row.calls += found.calls
            row.seconds += found.seconds
            row.busy += found.busy
        return sorted(rows.values(), key=lambda r: -r.seconds)

    def steps(self) -> list[Average]:
        """Steps on the Python side: `trace`, `compile`, `llvm`, `realise`, `program` (calls)."""
        return list(self._steps.values())

    def table(self, rows: int = 30) -> str:
        """The rows of `averages` as text, the steps around the kernels below.

        Raises:
            GossamerError: the block has not ended.
        """
        if not self.end:
            raise GossamerError("profile.table(): the `with` block is still open; the figures are "
                                "complete when it ends. Call table() after it.")
        found = self.averages()
        total = sum(r.seconds for r in found) or 1.0
        wall = 1e-9 * (self.end - self.begin)
        threads = max(1, self._threads())
        lines: list[list[table.Cell]] = [
            [r.name[:48], (r.line, "dim"), str(r.calls), table.duration(r.seconds),
             f"{r.seconds / total:.1%}", table.duration(r.seconds / r.calls),
             f"{r.busy / r.seconds / threads:.0%}" if r.busy and r.seconds else ""]
            for r in found[:rows]]
        notes: list[table.Cell] = [
            (f"{s.name}: {s.calls} time(s), {table.duration(s.seconds)}", "dim")
            for s in self.steps()]
        notes += [(f"! {p}", "red") for p in self.problems()]
        return table.render(
            f"profile of {table.duration(wall)}: {table.duration(total)} in "
            f"{sum(r.calls for r in found)} kernel calls",
            ("kernel", "line", "calls", "total", "share", "each", "threads busy"), lines, notes,
            wide=(0, 1))

    def __str__(self) -> str:
        return self.table()


def _add(row: Average, begin: int, end: int) -> None:
    row.calls += 1
    row.seconds += 1e-9 * (end - begin)
