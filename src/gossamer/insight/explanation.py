"""`gs.explain`: what a function becomes, kernel by kernel, and why it takes the time it takes.

Surface. The one idea: an explanation is made of programs (see `view`), each compiled with someone
looking on and timed on the real inputs; tables, pages and stages are ways to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gossamer.core.errors import GossamerError
from gossamer.insight import page, table
from gossamer.insight.limits import Peaks, is_busy, load_average, peaks
from gossamer.insight.problems import find_problems
from gossamer.insight.view import STAGES, KernelRecord, ProgramView

__all__ = ["Explanation"]

_ROWS = 40  # kernels that a printed table shows


class Explanation:
    """What a function, a tensor or a script becomes. Prints as a table; made by `gs.explain`.

    Attributes:
        name: what was explained.
        programs: one for each compiled program, the one with the most time first.
        peaks: measured limits of this machine.
        problems: what is slow about whole programs, in words; kernels have theirs.
        notes: remarks that are no problems.
    """

    def __init__(self, name: str, programs: Sequence[ProgramView], problems: Sequence[str] = (),
                 notes: Sequence[str] = ()) -> None:
        self.name = name
        self.programs = sorted(programs, key=lambda p: -p.seconds)
        self.peaks: Peaks = peaks()
        total = sum(k.seconds * k.runs for p in self.programs for k in p.kernels)
        for p in self.programs:
            p.rate(self.peaks)
            for k in p.kernels:
                k.share = k.seconds * k.runs / total if total else 0.0
        self.problems = [*problems, *find_problems(self.programs)]
        self.notes = [*notes, *_busy_notes(self.peaks)]

    @property
    def kernels(self) -> list[KernelRecord]:
        """Every kernel, the one with the most time first."""
        return sorted((k for p in self.programs for k in p.kernels),
                      key=lambda k: -k.seconds * k.runs)

    @property
    def seconds(self) -> float:
        """Time of everything explained, as seen from Python."""
        return sum(p.seconds for p in self.programs)

    @property
    def roofline(self) -> float:
        """Fraction of the roofline of the whole: least seconds of all kernels / their time."""
        spent = sum(k.seconds * k.runs for k in self.kernels)
        return sum(k.least * k.runs for k in self.kernels) / spent if spent else 0.0

    def graph(self) -> str:
        """The traced graph, one line a node with the user's line."""
        return self.stage("traced")

    def stage(self, name: str) -> str:
        """The program as text between two passes.

        Args:
            name: `traced`, `expanded`, `simplified`, `prepared`, `scheduled`, `loops`, `memory`,
                `llvm`, `optimised` or `assembly`.

        Example:
            >>> found = gs.explain(lambda x: (x * 2 + 1).sum(), gs.ones(3))
            >>> "reduce_sum" in found.stage("simplified")
            True
        """
        if name not in STAGES:
            raise GossamerError(f"stage({name!r}): there is no such stage; it must be one of "
                                f"{', '.join(STAGES)}.")
        texts = [p.stage(name) for p in self.programs]
        if len(texts) == 1:
            return texts[0]
        return "\n\n".join(f"# {p.name}\n{t}" for p, t in zip(self.programs, texts, strict=True))

    def html(self, path: str | Path) -> Path:
        """Write one self-contained page: a map of the time, and every kernel to read.

        Args:
            path: of the file; it needs nothing else, and no network.

        Returns:
            The path written.

        Cost: assembly of every kernel is made now, about 20 ms each.

        Example:
            >>> gs.explain(lambda x: x @ x, gs.randn(32, 32)).html("product.html").name
            'product.html'
        """
        path = Path(path)
        path.write_text(page.write(self), encoding="utf-8")
        return path

    def table(self, rows: int = _ROWS) -> str:
        """The table that printing shows, with at most `rows` kernels."""
        kernels = self.kernels
        lines: list[list[table.Cell]] = [_row(k) for k in kernels[:rows]]
        nodes = sum(p.nodes.get("traced", 0) for p in self.programs)
        arena = max((p.compiled.arena.nbytes for p in self.programs), default=0)
        title = (f"{self.name}: {table.duration(self.seconds)}, {len(kernels)} kernels from "
                 f"{nodes} nodes, {table.nbytes(arena)} of temporaries, "
                 f"{self.roofline:.0%} of the roofline on {self.peaks.threads} thread(s)")
        notes: list[table.Cell] = []
        if len(kernels) > rows:
            rest = sum(k.share for k in kernels[rows:])
            notes.append((f"and {len(kernels) - rows} kernels more with {rest:.1%} of the time",
                          "dim"))
        notes += [(f"! {p}", "red") for p in self.problems]
        notes += [(f"! {k.name} ({_where(k)}): {p}", "red") for k in kernels for p in k.problems]
        notes += [(n, "dim") for n in self.notes]
        heads = ("kernel", "line", "time", "share", "FLOPs", "bytes", "GFLOP/s", "GB/s", "roof",
                 "bound by")
        return table.render(title, heads, lines, notes, wide=(0, 1, 9))

    __str__ = table

    def __repr__(self) -> str:
        return self.table()


def _where(k: KernelRecord) -> str:
    return k.lines[0].short if k.lines else "?"


def _row(k: KernelRecord) -> list[table.Cell]:
    more = f" +{len(k.lines) - 1}" if len(k.lines) > 1 else ""
    style = "red" if k.problems else "green" if k.roofline > 0.6 else ""
    runs = f"{k.runs}x " if k.runs > 1 else ""
    return [(_shortened(k.name, 44), "red" if k.problems else ""),
            (_shortened(_where(k) + more, 28), "dim"),
            runs + table.duration(k.seconds), f"{k.share:.1%}", table.count(k.work.flops),
            table.nbytes(k.work.nbytes), f"{k.gflops:.1f}", f"{k.gbytes:.1f}",
            (f"{k.roofline:.0%}", style), (k.bound, "dim")]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width - 1] + "…"


def _busy_notes(limits: Peaks) -> list[str]:
    notes, load = [], load_average()
    if is_busy(load):
        notes.append(f"other work ran beside the timing (load {load:.1f}): times are too long")
    if is_busy(limits.load):
        notes.append("the limits of this machine were measured while it was busy (load "
                     f"{limits.load:.1f}); run `gossamer doctor --measure` when it is quiet")
    return notes
