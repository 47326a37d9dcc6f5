"""One program with everything that can be said of it: kernels, figures, stages, memory. Surface.

The one idea: the compiler's own results are the explanation. The graph is compiled once more with
someone looking on, which costs no machine code (kernels of equal text are one), and each cluster
becomes a `KernelRecord`: where it came from, why it is one kernel, what it does, how long it takes.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gossamer.compile.calls import Call, KernelSource
from gossamer.compile.gemm import Target
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.compile.schedule import Cluster
from gossamer.insight.cost import Work, work_of
from gossamer.insight.limits import Peaks
from gossamer.insight.measure import Timing, time_program
from gossamer.ir.loop import Kernel, show
from gossamer.ir.node import Node, type_text, user_line
from gossamer.ir.printer import format_graph
from gossamer.runtime import jit
from gossamer.runtime.data import Data
from gossamer.runtime.execute import sources_of
from gossamer.runtime.program import Program, host_target

__all__ = ["STAGES", "KernelRecord", "Line", "Origin", "ProgramView"]

STAGES = ("traced", "expanded", "simplified", "prepared", "scheduled", "loops", "memory", "llvm",
          "optimised", "assembly")


@dataclass(frozen=True)
class Line:
    """A line of the user's: file, number (from 1) and text."""

    file: str
    number: int

    @property
    def text(self) -> str:
        return linecache.getline(self.file, self.number).strip()

    @property
    def short(self) -> str:
        """`train.py:12`."""
        return f"{Path(self.file).name}:{self.number}"


@dataclass
class KernelRecord:
    """One kernel of a program: a cluster of nodes, and the calls that compute it.

    Attributes:
        number: its place in the program's order.
        name: its operators, or what its call is named.
        kind: `loops`, `dot`, or the operator with a kernel of its own.
        lines: the user's lines that it came from, the busiest first.
        reason: why these nodes share a kernel.
        members: one line of text for each node.
        loops: loop IR; of a product, that of its epilogue; empty where kernels are hand-scheduled.
        calls: (number in the program, name) of its native calls.
        sources: LLVM texts, callbacks included.
        work: FLOPs and bytes.
        seconds: measured, median of `samples` runs.
        runs: how many there were in all (scripts); 1 where a program was only timed.
        least, bound: seconds that the roofline allows at best, and what sets them.
        share: of the time of all kernels explained together.
        problems: what makes it slow and could be avoided, in words.
    """

    number: int
    name: str
    kind: str
    lines: list[Line]
    reason: str
    members: list[str]
    loops: str
    calls: list[tuple[int, str]]
    sources: list[KernelSource]
    work: Work
    seconds: float = 0.0
    runs: int = 1
    samples: int = 0
    least: float = 0.0
    bound: str = ""
    share: float = 0.0
    problems: list[str] = field(default_factory=list)
    cluster: Cluster | None = field(default=None, repr=False)
    kernel: Kernel | None = field(default=None, repr=False)

    @property
    def flops(self) -> float:
        return self.work.flops

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second."""
        return 1e-9 * self.work.flops / self.seconds if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        """Billions of bytes a second, read and written."""
        return 1e-9 * self.work.nbytes / self.seconds if self.seconds else 0.0

    @property
    def roofline(self) -> float:
        """Fraction of what this machine allows: max(FLOPs/peak, bytes/bandwidth) / time."""
        return self.least / self.seconds if self.seconds else 0.0

    def llvm(self) -> str:
        """LLVM IR as it was written."""
        return "\n".join(s.text for s in self.sources)

    def optimised(self) -> str:
        """LLVM IR after LLVM's passes."""
        return "\n".join(jit.machine_text(s) for s in self.sources)

    def assembly(self) -> str:
        """Machine code for this host, as text."""
        return "\n".join(jit.assembly(s) for s in self.sources)


@dataclass
class Origin:
    """Where a program came from: a copy of its graph over `input` leaves, and how to compile it.

    The target is that of the moment: threads and precision may be others when it is explained.
    """

    roots: list[Node]
    inputs: list[Node]
    literal: bool
    donate: Sequence[tuple[int, int]] = ()
    target: Target = field(default_factory=host_target)


class ProgramView:
    """A program explained.

    Args:
        name: what to call it.
        origin: its graph.
        runs: how often it ran (scripts and profiles), and
        seconds: how long that took in all, as seen from Python.
    """

    def __init__(self, name: str, origin: Origin, runs: int = 1, seconds: float = 0.0) -> None:
        self.name, self.origin, self.runs, self.seconds = name, origin, runs, seconds
        self.graphs: dict[str, str] = {}
        self.nodes: dict[str, int] = {}
        self.compiled: Compiled = compile_graph(
            origin.roots, origin.inputs, origin.target, origin.literal, origin.donate,
            self._see)
        self.sizes = {i: x.size * x.dtype.itemsize for i, x in enumerate(origin.inputs)}
        self.sizes |= self.compiled.sizes
        self.kernels = self._records()
        self.timing: Timing | None = None
        self.uncompiled = ""  # why the function runs without being compiled, if it does

    def _see(self, stage: str, roots: list[Node]) -> None:
        self.graphs[stage] = text = format_graph(roots, lines=True)
        self.nodes[stage] = text.count("\n")

    @cached_property
    def program(self) -> Program:
        """The program, ready to run."""
        types = [(r.shape, r.dtype) for r in self.origin.roots]
        return Program(self.compiled, types, self.params)

    params = 0  # number of runtime scalars

    # records ----------------------------------------------------------------------------------
    def _records(self) -> list[KernelRecord]:
        groups: dict[int, list[int]] = {}
        for i, owner in enumerate(self.compiled.owners):
            groups.setdefault(id(owner), []).append(i)
        return [self._record(k, numbers) for k, numbers in enumerate(groups.values())]

    def _record(self, number: int, numbers: list[int]) -> KernelRecord:
        made = self.compiled
        cluster, kernel = made.owners[numbers[0]], made.kernels[numbers[0]]
        calls = [made.calls[i] for i in numbers]
        return KernelRecord(
            number, _name(cluster, calls), cluster.kind, _lines(cluster), _reason(cluster),
            [_member(m, cluster) for m in cluster.members],
            show(kernel) if kernel is not None else "",
            [(i, made.calls[i].name) for i in numbers], sources_of(calls),
            work_of(cluster, kernel, calls, self.sizes), cluster=cluster, kernel=kernel)

    def measure(self, inputs: Sequence[Data], params: Sequence[int] = ()) -> None:
        """Time the program on `inputs` and note what each kernel took."""
        self.params = len(params)
        self.timing = time_program(self.program, inputs, params)
        self.seconds = self.seconds or self.timing.total
        self.put_times(self.timing.calls, self.timing.rounds)

    def put_times(self, calls: Sequence[float], samples: int) -> None:
        """Give each kernel its time, from seconds of each call (medians of `samples` runs)."""
        for k in self.kernels:
            k.samples = samples
            k.seconds = sum(calls[i] for i, _ in k.calls)

    def rate(self, limits: Peaks) -> None:
        """Compare each kernel with the roofline."""
        for k in self.kernels:
            k.least, k.bound = limits.bound(k.work.flops, k.work.dtype, k.work.nbytes)

    # stages -----------------------------------------------------------------------------------
    def stage(self, name: str) -> str:
        """The program as text between two passes; see STAGES."""
        if name in self.graphs:
            return self.graphs[name]
        parts: dict[str, Callable[[], str]] = {
            "scheduled": lambda: "\n\n".join(map(_scheduled, self.kernels)),
            "loops": lambda: "\n\n".join(k.loops or f"kernel {k.name}: hand-scheduled, see llvm"
                                         for k in self.kernels),
            "memory": self._memory,
            "llvm": lambda: _joined(self.kernels, lambda s: s.text),
            "optimised": lambda: _joined(self.kernels, jit.machine_text),
            "assembly": lambda: _joined(self.kernels, jit.assembly)}
        return parts[name]()

    def buffers(self) -> list[tuple[int, int, int, int, int]]:
        """(buffer, offset, bytes, first call, last call) of every temporary in the arena."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for t, call in enumerate(self.compiled.calls):
            for b in (*call.reads, *call.writes):
                first.setdefault(b, t)
                last[b] = t
        return [(b, offset, self.compiled.sizes[b], first[b], last[b])
                for b, offset in sorted(self.compiled.arena.offsets.items(), key=lambda x: x[1])]

    def _memory(self) -> str:
        rows = [f"{'buffer':>8} {'offset':>12} {'bytes':>12}  calls",
                *(f"{'b' + str(b):>8} {offset:12,} {n:12,}  {first}..{last}"
                  for b, offset, n, first, last in self.buffers())]
        total = sum(n for _, _, n, _, _ in self.buffers())
        size = self.compiled.arena.nbytes
        return "\n".join([*rows, f"arena {size:,} bytes for {total:,} bytes of temporaries; "
                          f"{len(self.compiled.shared)} states are updated in place"])


def _joined(kernels: Sequence[KernelRecord], text: Callable[[KernelSource], str]) -> str:
    sources = dict.fromkeys(s for k in kernels for s in k.sources)
    return "\n".join(text(s) for s in sources)


def _scheduled(k: KernelRecord) -> str:
    return "\n".join([f"kernel {k.number} {k.name}  # {k.reason}", *(f"  {m}" for m in k.members)])


def _name(cluster: Cluster, calls: Sequence[Call]) -> str:
    """`gemm 16x8x4 + add + gelu`: what a reader looks for first."""
    names = [m.op.name for m in cluster.members if m.op.kind != "movement"]
    if cluster.kind == "dot":
        product = next(c for c in calls if not c.name.startswith("pack"))  # B may be packed before
        names = [product.name, *names[1:]]
    elif cluster.kind != "loops":
        return calls[-1].name or cluster.kind
    words = list(dict.fromkeys(names))
    return " + ".join(words[:4]) + (f" + {len(words) - 4} more" if len(words) > 4 else "")


def _reason(cluster: Cluster) -> str:
    if cluster.kind == "dot":
        more = len(cluster.members) - 1
        before = "" if cluster.members[0].attrs.get("inline") is None else \
            "; one operand is made from fewer bytes while it is packed (prologue)"
        return ("a product has a kernel of its own" if not more else
                f"a product; {more} elementwise operations are done on each tile while it is in "
                "the caches (epilogue)") + before
    if cluster.kind != "loops":
        return f"{cluster.kind} has a kernel of its own"
    several = f"; {len(cluster.members)} operations, {len(cluster.outputs)} results" \
        if len(cluster.members) > 1 else ""
    if not cluster.reductions and len(cluster.members) > 1:
        return "elementwise: all live on the same points" + several
    return cluster.reason + several


def _lines(cluster: Cluster) -> list[Line]:
    """The user's lines: that of a product or another operator with a kernel of its own first, then
    those with the most elements computed."""
    found: dict[Line, int] = {}
    for m in cluster.members:
        line = Line(*user_line(m))
        found[line] = found.get(line, 0) + max(1, m.size)
    main = Line(*user_line(cluster.members[0])) if cluster.kind != "loops" else None
    return sorted(found, key=lambda line: (line != main, -found[line]))


def _member(node: Node, cluster: Cluster) -> str:
    stored = " -> memory" if any(node is o for o in cluster.outputs) else ""
    inputs = ", ".join(type_text(x) for x in node.inputs)
    return f"{node.op.name}({inputs}) : {type_text(node)}{stored}  # {Line(*user_line(node)).short}"
