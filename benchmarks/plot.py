"""The pictures: every peer's time relative to Gossamer's with the bars, and cost as work grows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.bars import BARS, clock_of, faster
from benchmarks.peers import PEERS

__all__ = ["draw"]

_COLOURS = dict(zip(PEERS, ("#111111", "#ee6633", "#aa3377", "#4477aa", "#228833", "#997700",
                            "#eebb99", "#ddaacc"), strict=True))
Record = dict[str, Any]


def draw(records: list[Record], folder: Path) -> list[Path]:
    """Write ratios-<threads>.png for each number of threads, and scaling.png if there is any."""
    written = []
    for threads in sorted({r["threads"] for r in records}):
        rows = [r for r in records if r["threads"] == threads and not r.get("grows")
                and r.get("kind") != "roofline"]
        if rows:
            written.append(_ratios(rows, threads, folder / f"ratios-{threads}.png"))
    grown = [r for r in records if r.get("grows")]
    if grown:
        written.append(_scaling(grown, folder / "scaling.png"))
    return written


def _median(record: Record, peer: str, clock: str) -> float:
    return float(record["peers"].get(peer, {}).get(clock, {}).get("median", math.nan))


def _ratios(rows: list[Record], threads: int, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    names = []
    for y, row in enumerate(reversed(rows)):
        clock = clock_of(row)
        mine = _median(row, "gossamer", clock)
        names.append(row["workload"] + ("*" if row["busy"] else ""))
        for peer in PEERS:
            if peer != "gossamer" and peer in row["peers"]:
                axes.plot(_median(row, peer, clock) / mine, y, "o", color=_COLOURS[peer],
                          markersize=6 if PEERS[peer].tuned else 4)
        bar = next((b for b in BARS if b.measure is faster and row["workload"] in b.rows), None)
        if bar is not None:
            axes.plot(bar.limit, y, "|", color=_COLOURS["gossamer"], markersize=12)
    axes.axvline(1, color=_COLOURS["gossamer"], linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f"time / Gossamer's time, {threads} thread{'s' * (threads > 1)} "
                    "(right of the line: Gossamer is faster; | what the best peer must reach)")
    shown = [p for p in PEERS if p != "gossamer" and any(p in r["peers"] for r in rows)]
    axes.legend([plt.Line2D([], [], marker="o", linestyle="", color=_COLOURS[p]) for p in shown],
                shown, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, path)


def _scaling(rows: list[Record], path: Path) -> Path:
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes, unit, value, label in (
            (panels[0], "flops", lambda a: a["wall"]["median"], "seconds a step"),
            (panels[1], "nodes", lambda a: a["first_s"], "seconds of the first call")):
        for threads in sorted({r["threads"] for r in rows}):
            for peer in PEERS:
                points = sorted((r[unit], value(r["peers"][peer])) for r in rows if unit in r
                                and r["threads"] == threads and "wall" in r["peers"].get(peer, {}))
                if points:
                    axes.plot(*zip(*points, strict=True), "o-" if threads == 1 else "s--",
                              color=_COLOURS[peer], label=f"{peer}, {threads}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel({"flops": "floating-point operations of a step",
                         "nodes": "operations in the graph, forward"}[unit])
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
