"""What ran while somebody watched: programs with their graphs, times and counts. Surface.

The one idea: a watcher keeps, for each plan, one copy of its graph (over `input` leaves, so that no
tensor's memory is held) and the sum of the walker's readings; views are made only when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gossamer.compile.pipeline import Compiled
from gossamer.insight.view import Origin, ProgramView
from gossamer.ir.node import user_line
from gossamer.runtime.engine import Canonical
from gossamer.runtime.program import Program
from gossamer.runtime.watch import Watcher

__all__ = ["Recorder"]


@dataclass
class _Runs:
    """What is known of one program's runs; times in ns."""

    compiled: Compiled
    count: int = 0
    total: int = 0
    calls: list[int] = field(default_factory=list)


class Recorder(Watcher):
    """Collects programs.

    Args:
        timed: whether runs are counted and timed.
    """

    def __init__(self, timed: bool = True) -> None:
        self.timed = timed
        self.origins: dict[int, Origin] = {}
        self.names: dict[int, str] = {}
        self.runs: dict[int, _Runs] = {}
        self.plans: list[Compiled] = []  # alive, so that their ids stay theirs
        self.notes: dict[str, tuple[int, float]] = {}
        self.traces: dict[str, int] = {}

    def planned(self, plan: Any, graph: Canonical, donate: Sequence[tuple[int, int]],
                literal: bool) -> None:
        if id(plan) in self.origins:
            return
        roots, inputs = graph.graph(literal=literal)
        self.origins[id(plan)] = Origin(roots, inputs, literal, donate)
        file, line = user_line(graph.roots[0])
        self.names[id(plan)] = f"{graph.roots[0].op.name} at {file.rpartition('/')[2]}:{line}"
        self.plans.append(plan)

    def ran(self, program: Program, begin: int, end: int, marks: Sequence[int],
            chunks: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        if not self.timed:
            return
        runs = self.runs.setdefault(id(program.compiled), _Runs(program.compiled))
        times = [marks[i + 1] - marks[i] for i in range(0, len(marks), 2)]
        if not runs.calls:
            runs.calls = [0] * len(times)
        runs.count += 1
        runs.total += end - begin
        for i, t in enumerate(times):
            runs.calls[i] += t

    def span(self, kind: str, name: str, begin: int, end: int) -> None:
        if kind == "trace":
            self.traces[name] = self.traces.get(name, 0) + 1

    def note(self, kind: str, text: str, seconds: float) -> None:
        times, spent = self.notes.get(text, (0, 0.0))
        self.notes[text] = (times + 1, spent + seconds)

    # asking -------------------------------------------------------------------------------------
    def origin(self, plan: Compiled) -> Origin:
        """The graph of a plan that was made while watching."""
        return self.origins[id(plan)]

    def views(self) -> list[ProgramView]:
        """Every program that ran, with the mean time of each kernel."""
        found = []
        for key, runs in self.runs.items():
            if key not in self.origins:
                continue  # compiled before anybody watched
            view = ProgramView(self.names[key], self.origins[key], runs.count, 1e-9 * runs.total)
            view.put_times([1e-9 * t / runs.count for t in runs.calls])
            for k in view.kernels:
                k.runs = runs.count
            found.append(view)
        return found

    def problems(self) -> list[str]:
        """Slow paths that are no kernels."""
        found = [f"{text}: {times} time(s), {spent:.3f} s outside the compiler"
                 for text, (times, spent) in self.notes.items()]
        runs = max((r.count for r in self.runs.values()), default=0)
        found += [f"{name} was traced {n} times: its signature or what it finds in closures "
                  "changes at almost each call" for name, n in self.traces.items()
                  if n > 2 and n > runs / 2]
        return found
