"""What ran while somebody watched: programs with their graphs, times and counts. Surface.

The one idea: a watcher keeps, for each plan, one copy of its graph (over `input` leaves, so that no
tensor's memory is held) and the walker's last readings; views are made only when asked for.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossamer.compile.pipeline import Compiled
from gossamer.insight.view import Origin, ProgramView
from gossamer.ir.node import user_line
from gossamer.runtime.engine import Canonical
from gossamer.runtime.program import Program
from gossamer.runtime.watch import Watcher

__all__ = ["Recorder", "graph_name"]

_SAMPLES = 101  # runs of one program whose times are kept for the medians


@dataclass
class _Runs:
    """What is known of one program's runs; times in ns."""

    compiled: Compiled
    count: int = 0
    total: int = 0
    samples: deque[list[int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    def calls(self) -> list[float]:
        """Median seconds of each call over the last runs."""
        return [1e-9 * statistics.median(column) for column in zip(*self.samples, strict=True)]


def graph_name(graph: Canonical) -> str:
    """`softmax at train.py:12`: the first result and its line."""
    if not graph.roots:  # a function that hands its arguments through, or does nothing
        return "nothing computed"
    file, line = user_line(graph.roots[0])
    return f"{graph.roots[0].op.name} at {Path(file).name}:{line}"


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
        self.traces: dict[str, int] = {}  # of each function
        self.spans: dict[str, int] = {}  # ns of each kind of step
        self._unnamed: list[int] = []  # plans of the function that is being traced

    def planned(self, plan: Any, graph: Canonical, donate: Sequence[tuple[int, int]],
                literal: bool) -> None:
        if id(plan) in self.origins:
            return
        roots, inputs = graph.graph(literal=literal)
        self.origins[id(plan)] = Origin(roots, inputs, literal, donate)
        self.names[id(plan)] = graph_name(graph)
        self.plans.append(plan)
        if literal:
            self._unnamed.append(id(plan))

    def ran(self, program: Program, begin: int, end: int, marks: Sequence[int],
            chunks: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        if not self.timed:
            return
        runs = self.runs.setdefault(id(program.compiled), _Runs(program.compiled))
        runs.count += 1
        runs.total += end - begin
        runs.samples.append([marks[i + 1] - marks[i] for i in range(0, len(marks), 2)])

    def span(self, kind: str, name: str, begin: int, end: int) -> None:
        if kind == "numpy":
            self.note(kind, f"{name} runs in NumPy, in float64", 1e-9 * (end - begin))
        self.spans[kind] = self.spans.get(kind, 0) + end - begin
        if kind == "trace":
            name = name.replace(".<locals>", "")
            self.traces[name] = self.traces.get(name, 0) + 1
            for key in self._unnamed:
                self.names[key] = name
            self._unnamed.clear()

    def note(self, kind: str, text: str, seconds: float) -> None:
        times, spent = self.notes.get(text, (0, 0.0))
        self.notes[text] = (times + 1, spent + seconds)

    # asking -------------------------------------------------------------------------------------
    def origin(self, plan: Compiled) -> Origin:
        """The graph of a plan that was made while watching."""
        return self.origins[id(plan)]

    def views(self, most: int = 1 << 30) -> tuple[list[ProgramView], int]:
        """(the `most` programs with the most time, with the median time of each kernel; how many
        are left out). Programs that were compiled before anybody watched are left out too."""
        known = sorted((key for key in self.runs if key in self.origins),
                       key=lambda key: -self.runs[key].total)
        found = []
        for key in known[:most]:
            runs = self.runs[key]
            view = ProgramView(self.names[key], self.origins[key], runs.count, 1e-9 * runs.total)
            view.put_times(runs.calls(), len(runs.samples))
            for k in view.kernels:
                k.runs = runs.count
            found.append(view)
        return found, len(self.runs) - len(found)

    def problems(self) -> list[str]:
        """Slow paths that are no kernels."""
        found = [f"{text}: {times} time(s), {spent:.3f} s outside the compiler"
                 for text, (times, spent) in self.notes.items()]
        runs = max((r.count for r in self.runs.values()), default=0)
        found += [f"{name} was traced {n} times: its signature or what it finds in closures "
                  "changes at almost each call" for name, n in self.traces.items()
                  if n > 2 and n > runs / 2]
        return found
