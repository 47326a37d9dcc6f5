"""What came out: one JSON that grows row by row, tables of it, and plots.

A ratio is the best peer's time over Gossamer's, so more than 1 means that Gossamer is faster; rows
are sorted by it, worst first. With one thread the ratio of CPU times stands beside it: it is what
to read when the machine was busy, which `*` marks. Peers with default settings are shown, but do
not count as the best peer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.peers import PEERS

__all__ = ["Results", "best", "duration", "line", "markdown", "median", "ratio", "table", "write"]

Record = dict[str, Any]


class Results:
    """The records of a folder's `results.json`, newest of each row."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.json"
        self.machine = describe()
        self.records: list[Record] = []
        if self.path.exists():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if known["machine"]["processor"] == self.machine["processor"]:
                self.records = known["records"]

    def add(self, record: Record) -> None:
        """Put a record in its row's place and write the file."""
        def key(r: Record) -> tuple[Any, ...]:
            return r["workload"], r["threads"], r["dtype"], r["size"]

        # Peers that were not asked this time keep the figures of an earlier run out: a row is
        # measured together or not at all.
        self.records = [r for r in self.records if key(r) != key(record)] + [record]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = {"machine": self.machine, "records": self.records}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def median(record: Record, peer: str, clock: str = "wall") -> float:
    """Seconds; NaN where there are none."""
    return float(record["peers"].get(peer, {}).get(clock, {}).get("median", math.nan))


def best(record: Record, clock: str = "wall") -> tuple[str, float]:
    """The fastest peer with its best settings, and its seconds; ("", NaN) for none."""
    found = [(median(record, name, clock), name) for name in record["peers"]
             if name in PEERS and name != "gossamer" and PEERS[name].tuned]
    times = [(t, name) for t, name in found if not math.isnan(t)]
    return (min(times)[1], min(times)[0]) if times else ("", math.nan)


def ratio(record: Record, clock: str = "wall") -> float:
    """Time of the best peer over Gossamer's; NaN if one is missing."""
    return best(record, clock)[1] / median(record, "gossamer", clock)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    if math.isnan(seconds):
        return "-"
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, scale = next((u for u in units if seconds >= u[1] * 0.9995), units[-1])
    value = seconds / scale
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _cell(record: Record, peer: str) -> str:
    answers = record["peers"].get(peer)
    if answers is None:
        return "-"
    if "wall" not in answers:
        return "left out" if "skipped" in answers else "failed"
    spread = answers["wall"]["mad"] / max(answers["wall"]["median"], 1e-12)
    return f"{duration(answers['wall']['median'])} ±{100 * spread:.0f}%"


def _order(record: Record) -> float:
    """The ratio rows are sorted by: of CPU time when one thread ran on a busy machine."""
    clock = "cpu" if record["threads"] == 1 and record["busy"] else "wall"
    value = ratio(record, clock)
    value = ratio(record) if math.isnan(value) else value
    return math.inf if math.isnan(value) else value


def markdown(head: list[str], body: list[list[str]]) -> list[str]:
    """A table whose columns also line up where it is read as it is."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rows = [head, ["-" * w for w in widths], *body]
    return [f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |"
            for row in rows]


def table(records: Iterable[Record]) -> list[str]:
    """Markdown lines that also read well as they are: one table a number of threads."""
    records = [r for r in records if r.get("kind") != "roofline"]
    lines: list[str] = []
    for threads in sorted({r["threads"] for r in records}):
        rows = sorted((r for r in records if r["threads"] == threads), key=_order)
        peers = [p for p in PEERS if any(p in r["peers"] for r in rows)]
        head = ["workload", "best peer", "ratio", "CPU ratio", *peers]
        body = [[r["workload"] + ("*" if r["busy"] else ""), best(r)[0] or "-", _number(ratio(r)),
                 _number(ratio(r, "cpu")), *(_cell(r, p) for p in peers)] for r in rows]
        lines += [f"{threads} thread{'s' * (threads > 1)}", "", *markdown(head, body), ""]
    return lines + _footnotes(records)


def line(record: Record) -> str:
    """A row in one line, for the terminal while the rest is measured."""
    cells = [f"{p} {_cell(record, p)}" for p in PEERS if p in record["peers"]]
    return (f"{', '.join(cells)}; ratio {_number(ratio(record))}, CPU "
            f"{_number(ratio(record, 'cpu'))}{' (busy)' * record['busy']}")


def _footnotes(records: list[Record]) -> list[str]:
    lines = []
    if any(r["busy"] for r in records):
        lines += ["`*` the machine was busy with other work: read the CPU ratio, measure again.",
                  ""]
    firsts = [(r["workload"], r["threads"], p, a) for r in records for p, a in r["peers"].items()]
    for text, key in (("failed", "failed"), ("left out", "skipped")):
        for reason in sorted({f"{w} with {p}: {a[key]}" if key == "failed" else a[key]
                              for w, _, p, a in firsts if key in a}):
            lines.append(f"- {text}: {reason}")
    for workload, threads, peer, a in firsts:
        if "cached" in a:
            lines.append(f"- {workload}, {peer}, {threads} thread(s): from the disk cache "
                         f"{duration(a['cached']['median'])}")
    return lines + [""]


def memory(records: Iterable[Record]) -> list[str]:
    """Peak memory above the import, and the first call, per row."""
    lines = ["| workload | threads | peer | first call | peak MB |",
             "| --- | --- | --- | --- | --- |"]
    for r in records:
        for peer, a in r["peers"].items():
            if "peak_mb" in a and "wall" in a:
                # Elsewhere kernels may come from caches that other rows have filled.
                first = duration(a["first_s"]) if r.get("cold") else "-"
                lines.append(f"| {r['workload']} | {r['threads']} | {peer} | {first} | "
                             f"{a['peak_mb']:.0f} |")
    return lines


def rooflines(records: Iterable[Record]) -> list[str]:
    """Where the time of the explained steps goes, and the limits they are held against."""
    lines = []
    for r in records:
        a = r["peers"].get("gossamer", {})
        if "roofline" not in a:
            continue
        peak = ", ".join(f"{d} {x / 1e9:.0f} GFLOP/s" for d, x in a["peak"].items())
        wall = a["wall"]["median"]
        lines += [f"{r['workload']}, {r['threads']} thread(s): {a['roofline']:.0%} of the "
                  f"roofline; step {duration(wall)}, kernels {duration(a['kernels'])} "
                  f"({a['count']}), least {duration(a['least'])}; "
                  f"{r['flops'] / wall / 1e9:.0f} GFLOP/s of the model's operations. "
                  f"Limits: {peak}, memory {a['memory']['memory'] / 1e9:.1f} GB/s.", "",
                  *(f"- {text}" for text in a["slow"]), ""]
    return lines


def write(results: Results, folder: Path) -> list[Path]:
    """results.md and the plots beside results.json; the paths written."""
    # matplotlib, which plots need, the worker must not; bars read this module.
    from benchmarks import bars, plot

    m = results.machine
    cache = ", ".join(f"{level} {size}" for level, size in m["caches"].items())
    versions = sorted({f"{PEERS[p].package} {a['version']}" for r in results.records
                       for p, a in r["peers"].items() if p in PEERS and "version" in a})
    lines = ["# Benchmarks", "", f"{m['processor']}, {m['cores']} cores "
             f"({', '.join(m['features'])}), {cache}, {m['memory_gb']} GB, {m['system']}, "
             f"Python {m['python']}; {', '.join(versions)}.", "",
             "Time a call: median of the rounds ± median deviation. Ratio: best peer / Gossamer.",
             "", "## Bars", "", *bars.table(results.records), "## All rows", "",
             *table(results.records), "## Roofline", "", *rooflines(results.records),
             "## First call and memory", "", *memory(results.records), ""]
    path = folder / "results.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return [path, *plot.draw(results.records, folder)]
