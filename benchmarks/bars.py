"""What the measurements are held against: one record a bar, and the table of bars beside figures.

A bar names its workloads, how a figure is taken from their records, and the limit; the table has
one line for each workload and number of threads: `python -m benchmarks --bars`. A row measured on a
busy machine with one thread is judged by CPU times. What is not measured is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report
from benchmarks.peers import PEERS
from benchmarks.workloads import GROUPS, WORKLOADS

__all__ = ["BARS", "EXPLAINED", "Bar", "Figure", "figures", "table"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """What was measured: the number that the limit is for, and in words what it was made of."""

    value: float
    against: str = ""


Measure = Callable[[Sequence[Record]], Figure]


@dataclass(frozen=True)
class Bar:
    """One demand.

    Attributes:
        text: what is demanded of which work.
        rows: workloads, each held against the limit by itself.
        measure: (records of a workload and number of threads) -> figure.
        limit: the least figure, or with `most` the largest.
        unit: "x" (a ratio), "s" (seconds) or "%" (a share).
        threads: 0: each number of threads that was measured; 1: only with one.
        together: the rows are points of one figure.
    """

    text: str
    rows: tuple[str, ...]
    measure: Measure
    limit: float
    most: bool = False
    unit: str = "x"
    threads: int = 0
    together: bool = False

    def met(self, figure: Figure) -> bool | None:
        """None: not measured."""
        if math.isnan(figure.value):
            return None
        return figure.value <= self.limit if self.most else figure.value >= self.limit

    def show(self, value: float) -> str:
        """A figure of this bar, or its limit, in its unit."""
        if math.isnan(value):
            return "-"
        return {"x": f"{value:.2f} x", "%": f"{100 * value:.1f} %",
                "s": report.duration(value)}[self.unit]


# figures ----------------------------------------------------------------------------------------
def clock_of(record: Record) -> str:
    """The clock to judge by: CPU time where one thread ran beside other work."""
    return "cpu" if record["busy"] and record["threads"] == 1 and not math.isnan(
        report.ratio(record, "cpu")) else "wall"


def faster(records: Sequence[Record]) -> Figure:
    """Time of the best peer over ours."""
    record, clock = records[0], clock_of(records[0])
    name, seconds = report.best(record, clock)
    mine = report.median(record, "gossamer", clock)
    said = f"{name} {report.duration(seconds)}, ours {report.duration(mine)}" if name else ""
    untimed = _untimed(record)
    return Figure(seconds / mine, said + (f"; not timed: {', '.join(untimed)}" if untimed else ""))


def _untimed(record: Record) -> list[str]:
    """Peers of training that have no time in a row in which they could take part."""
    only = WORKLOADS[record["workload"]].only
    return [name for name, peer in PEERS.items()
            if peer.tuned and name not in ("gossamer", "llamacpp") and (not only or name in only)
            and math.isnan(report.median(record, name))]


def seconds(records: Sequence[Record]) -> Figure:
    """Our time of a call."""
    name, other = report.best(records[0])
    return Figure(report.median(records[0], "gossamer"),
                  f"{name} {report.duration(other)}" if name else "")


def _answer(key: str) -> Measure:
    """What our process answered under a key, the best other answer beside it."""
    def measure(records: Sequence[Record]) -> Figure:
        found = {name: _number(a.get(key)) for name, a in records[0]["peers"].items()}
        mine = found.pop("gossamer", math.nan)
        others = sorted((v, n) for n, v in found.items() if not math.isnan(v))
        said = f"{others[0][1]} {others[0][0]:.3g}" if others else ""
        return Figure(mine, said)

    return measure


def _number(value: Any) -> float:
    """A number, or the median of a summary; NaN for nothing."""
    if isinstance(value, dict):
        value = value.get("median")
    return math.nan if value is None else float(value)


def memory(records: Sequence[Record]) -> Figure:
    """Our peak memory over eager PyTorch's."""
    mine, eager = (_number(records[0]["peers"].get(p, {}).get("peak_mb"))
                   for p in ("gossamer", "torch"))
    return Figure(mine / eager, "" if math.isnan(eager) else
                  f"torch {eager:.0f} MB, ours {mine:.0f} MB")


def _growth(unit: str, seconds_of: Callable[[Record], float]) -> Measure:
    """How much dearer a unit of work becomes from one size to the next, at most."""
    def measure(records: Sequence[Record]) -> Figure:
        points = sorted((float(r[unit]), seconds_of(r["peers"]["gossamer"])) for r in records
                        if "gossamer" in r["peers"] and "wall" in r["peers"]["gossamer"])
        steps = [(t1 / t0) / (n1 / n0)
                 for (n0, t0), (n1, t1) in zip(points, points[1:], strict=False)]
        said = ", ".join(f"{n:.0e}: {report.duration(t)}" for n, t in points)
        return Figure(max(steps, default=math.nan), said)

    return measure


def bandwidth(records: Sequence[Record]) -> Figure:
    """Bytes that a call must read, over its time and what memory gave in the same minute."""
    record = records[0]
    limit = _number(record.get("peak_bandwidth"))
    rate = _number(record.get("bytes")) / report.median(record, "gossamer")
    return Figure(rate / limit, f"{rate / 1e9:.1f} of {limit / 1e9:.1f} GB/s")


# bars -------------------------------------------------------------------------------------------
_DECODE = tuple(name for name in GROUPS["decode"] if "135m-int" in name)
_LARGE = ("gelu-4m", "chain-4m", "softmax-4096x1024", "layernorm-4096x1024")
# Cost a unit of work may rise by at most so much from one size to the next to count as linear:
# caches are left on the way from 10^6 to 10^12, and medians of short runs move by a tenth.
_LINEAR = 1.3

BARS: tuple[Bar, ...] = (
    Bar("mlp, best peer", ("mlp",), faster, 1.05),
    Bar("cnn, best peer", ("cnn",), faster, 1.5),
    Bar("gpt float32, best peer", ("gpt",), faster, 1.35),
    Bar("gpt bfloat16, best peer", ("gpt-bf16",), faster, 3.0),
    Bar("nanochat and Muon, bfloat16, best peer", ("nanochat-bf16",), faster, 4.0),
    Bar("networks, best peer", ("resnet18", "lstm", "embed"), faster, 1.2),
    Bar("attention, best peer", tuple(GROUPS["attention"]), faster, 1.2),
    Bar("softmax and norms, best peer", tuple(GROUPS["rows"]), faster, 1.2),
    Bar("matrix product alone, best peer", tuple(GROUPS["gemm"]), faster, 0.97),
    Bar("100 tanh with gradient, a call", ("tanh100",), seconds, 15e-6, True, "s"),
    Bar("100 tanh with gradient, first call", ("tanh100",), _answer("first_s"), 0.15, True, "s"),
    Bar("a lazy node", ("node",), seconds, 3e-6, True, "s"),
    Bar("a looked-at sum of 4 numbers", ("look",), seconds, 12e-6, True, "s"),
    Bar("a new shape each call", ("newshape",), seconds, 1e-3, True, "s"),
    Bar("large arrays on one core, best peer", _LARGE, faster, 1.15, threads=1),
    Bar("first step of gpt, cold", ("first",), seconds, 2.5, True, "s"),
    Bar("first step of gpt, cached", ("first",), _answer("cached"), 0.3, True, "s"),
    Bar("peak memory of a gpt step / eager", ("gpt",), memory, 0.6, True),
    Bar("share of the roofline, float32", ("roofline-gpt",), _answer("roofline"), 0.80, unit="%"),
    Bar("share of the roofline, bfloat16", ("roofline-gpt-bf16",), _answer("roofline"), 0.35,
        unit="%"),
    Bar("slower while one core is busy", tuple(n for n in GROUPS["derived"] if "busy" in n),
        _answer("slowdown"), 2.2, True),
    Bar("decode, 135 M parameters in 4 and 8 bits, best peer", _DECODE, faster, 1.0),
    Bar("decode, share of memory's bandwidth", _DECODE, bandwidth, 0.7, unit="%"),
    Bar("time linear in FLOPs, 1e6 to 1e12", tuple(n for n in GROUPS["scaling"] if "flops" in n),
        _growth("flops", lambda a: a["wall"]["median"]), _LINEAR, True, together=True),
    Bar("compile time linear in nodes to 20,000",
        tuple(n for n in GROUPS["scaling"] if "nodes" in n),
        _growth("nodes", lambda a: a["first_s"]), _LINEAR, True, together=True),
)

# (bar's text, workload or "") -> why it is not met: the kernel, its share of the roofline, what
# stands in the way. Shown below the table while the bar is not met.
EXPLAINED: dict[tuple[str, str], str] = {
    ("gpt bfloat16, best peer", ""):
        "the bar was set for AMX. This CPU multiplies bfloat16 at twice float32's rate: a step at "
        "its very roofline, of which ours reaches 73 and 68 %, would take 415 and 209 ms, 2.1 and "
        "3.1 times the peer's speed.",
    ("nanochat and Muon, bfloat16, best peer", ""):
        "as for gpt in bfloat16: at its very roofline, of which ours reaches 66 and 63 %, a "
        "step would take 466 and 233 ms, 2.1 and 2.4 times the peer's speed.",
    ("networks, best peer", "lstm"):
        "nearly all of it is products of 32 rows, and gradients of weights, at 85 % of the peak; "
        "1.00 to 1.25 in twelve runs: PyTorch's step took 126 to 151 ms, ours 115 to 136. Turning "
        "the weight once, reading it in place and other blocks for its gradient brought 8 % of "
        "the recurrent product. A PyTorch of 126 ms would ask for 91 % of the peak.",
    ("networks, best peer", "embed"):
        "1.13 to 1.33 in nine runs on one thread: the forward pass is at up to 92 % of what the "
        "machine multiplies (48 GFLOP in 478 ms at a peak of 110 GFLOP/s); with the machine's "
        "state ours took 478 to 561 ms, the best peer 554 to 736.",
    ("share of the roofline, float32", ""):
        "products run at .75 to .90 of the peak, attention, 15 % of the step, at .54 to .69 by the "
        "machine's state, and the whole step at .74 to .80 on two threads, .79 to .87 on one: "
        "attention's rows of 32 numbers leave products too short to hide a tile's ends, and an "
        "eighth of their work lies above the diagonal.",
    ("decode, share of memory's bandwidth", ""):
        "memory gave two threads 61 to 29 GB/s in nine runs, so the share moves with the run: "
        ".82 and .73 (8 bits, one and two threads) at 25 and 29, .62 and .56 (4 bits) at 27 and "
        "38 in the last; 4 bits reached .77 and .69 in others. Of a token .3 to .5 ms "
        "are Python, .17 rounding activations. Larger chunks changed nothing, nor did q, k and v, "
        "and gate and up, in one parallel region each.",
    ("gpt float32, best peer", ""):
        "1.27 to 1.50 in ten runs, ours .92 to 1.04 s, the best peer 1.24 to 1.67; below the bar "
        "where rounds began while JAX still freed memory. The step is at .81 of the roofline.",
    ("100 tanh with gradient, a call", ""):
        "10 us where the process is alone; between rounds of others the caches are theirs and the "
        "machine gives 10 to 17 us from run to run, on two threads more often the slow end.",
    ("100 tanh with gradient, first call", ""):
        "76 to 84 ms alone on a quiet machine, of which LLVM takes a sixth, loading it as much, "
        "and the passes in Python the rest; 86 to 184 in six runs, and 1.43 s once, as the first "
        "row of a run, its files not yet read from the disk.",
    ("a looked-at sum of 4 numbers", ""):
        "9.4 to 13.6 us in the last runs, 11 in a loop of its own: a plan looked up by its "
        "structure, one native call, one tensor made.",
    ("matrix product alone, best peer", ""):
        "products of half a millisecond vary by some per cent from run to run: 512 in bfloat16 on "
        "one thread .966 to .99, 1,024 in float32 on two .89 to 1.07.",
}


def figures(bar: Bar, records: Sequence[Record]) -> list[tuple[str, int, Figure]]:
    """(workload, threads, figure) of each line that a bar has; NaN where nothing was measured."""
    full = [r for r in records if r["size"] == "full" and bar.threads in (0, r["threads"])]
    groups = [bar.rows] if bar.together and bar.rows else [(name,) for name in bar.rows]
    lines = []
    for names in groups:
        mine = [r for r in full if r["workload"] in names]
        name = f"{names[0]} ..." if len(names) > 1 else names[0]
        for threads in sorted({r["threads"] for r in mine}):
            lines.append((name, threads, bar.measure([r for r in mine if r["threads"] == threads])))
        if not mine:
            lines.append((name, bar.threads, Figure(math.nan)))
    return lines or [("-", 0, Figure(math.nan))]


def table(records: Sequence[Record]) -> list[str]:
    """Markdown lines: bar, workload, threads, limit, figure, what it was made of, met or not."""
    body: list[list[str]] = []
    notes: list[str] = []
    counts = {True: 0, False: 0, None: 0}
    for bar in BARS:
        for name, threads, figure in figures(bar, records):
            met = bar.met(figure)
            counts[met] += 1
            sign = "<=" if bar.most else ">="
            body.append([bar.text, name, str(threads or "-"), f"{sign} {bar.show(bar.limit)}",
                         bar.show(figure.value), figure.against or "-",
                         {True: "yes", False: "NO", None: "not measured"}[met]])
            why = EXPLAINED.get((bar.text, name)) or EXPLAINED.get((bar.text, ""))
            if met is False and why:
                notes.append(f"- {bar.text}, {name}, {threads} thread(s): {why}")
    head = ["bar", "workload", "threads", "demanded", "measured", "against", "met"]
    summed = (f"{counts[True]} bars met, {counts[False]} not, {counts[None]} not measured; a line "
              "each workload and number of threads.")
    return [summed, "", *report.markdown(head, body), "", *notes, ""]
