"""Rows that are not rounds of one call: importing, first steps, rooflines, a busy machine.

Each function fills a row's record; `KINDS` names them as `Workload.kind` does. All start processes
of their own and leave none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer, cores, environment
from benchmarks.process import Failure, Plan, Process, summary
from benchmarks.workloads.base import Workload

__all__ = ["KINDS", "binding"]

Record = dict[str, Any]
_SETTLE = 0.1  # seconds until the scheduler has moved threads away from a core that became busy


def binding(peer: Peer, threads: int, lane: int = 0) -> list[int]:
    """The cores that a peer is bound to; none where it may use all, or has its own settings.

    The last ones come first: systems tend to serve interrupts on the first core.
    """
    usable = cores()
    if not peer.tuned or threads >= len(usable):
        return []
    end = len(usable) - lane * threads
    return usable[end - threads:end]


def _process(workload: str, peer: Peer, threads: int, plan: Plan, data: Path,
             caches: Path) -> Process:
    return Process(workload, peer, threads, plan.size, data, caches, plan.patience,
                   binding(peer, threads))


def imports(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
            record: Record) -> None:
    """Seconds that importing takes in a new process, NumPy alone beside them."""
    names = {"numpy": "numpy", **{p.name: p.package for p in peers}}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(plan.rounds):
        for name, package in names.items():
            code = ("import time; w, c = time.perf_counter(), time.process_time(); "
                    f"import {package}{', jax.numpy' if package == 'jax' else ''}; "
                    "print(time.perf_counter() - w, time.process_time() - c)")
            made = environment(peers[0], threads, data.parent)
            out = subprocess.run([sys.executable, "-c", code], env=made, capture_output=True,
                                 text=True, check=True).stdout.split()
            times[name].append((float(out[0]), float(out[1])))
    for name, taken in times.items():
        record["peers"][name] = {"wall": summary([w for w, _ in taken]),
                                 "cpu": summary([c for _, c in taken])}


def first(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
          record: Record) -> None:
    """What the first call costs beyond a warm one, in a new process: with empty caches, then again.

    `wall` is the cold figure, `cached` the one of the second process.
    """
    for peer in peers:
        answers = record["peers"][peer.name] = {}
        found: dict[str, list[float]] = {"cold": [], "cached": []}
        # Some take a minute; ours is the one whose spread matters.
        for turn in range(max(1, plan.rounds // 2) if peer is peers[0] else 1):
            for seconds in found.values():
                process = _process(workload.of, peer, threads, plan, data,
                                   data.parent / f"{peer.name}-{turn}")
                try:
                    answers["version"] = process.ask("build")["version"]
                    taken = process.ask("step", count=4)["seconds"]
                    seconds.append(max(0.0, taken[0] + taken[1] - 2 * min(taken[2:])))
                except Failure as failure:
                    answers["failed"] = str(failure)
                finally:
                    process.close()
        if all(found.values()) and "failed" not in answers:
            answers.update(wall=summary(found["cold"]), cached=summary(found["cached"]))


def roofline(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
             record: Record) -> None:
    """`roofline`: least time that the limits allow for all kernels over the time of the step."""
    for peer in peers:
        answers = record["peers"][peer.name] = {}
        process = _process(workload.of, peer, threads, plan, data, data.parent / "caches")
        try:
            answers["version"] = process.ask("build")["version"]
            process.ask("step", count=3)
            told = process.ask("roofline")
            seconds = [process.ask("round", calls=1) for _ in range(plan.rounds)]
            answers.update(wall=summary([t["wall"] for t in seconds]),
                           cpu=summary([t["cpu"] for t in seconds]))
            # One thread's processor time is its time on a quiet machine.
            clock = "cpu" if threads == 1 else "wall"
            answers.update(told, roofline=told["least"] / answers[clock]["median"])
        except Failure as failure:
            answers["failed"] = str(failure)
        finally:
            process.close()


def busy(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
         record: Record) -> None:
    """`wall`: a call while another process computes on one core; `quiet`: without it."""
    processes = [_process(workload.of, peer, threads, plan, data, data.parent / "caches")
                 for peer in peers]
    other = _Neighbour(cores()[-1])
    try:
        for process in processes:
            answers = record["peers"][process.peer.name] = {}
            try:
                _compare_busy(process, other, plan, answers)
            except Failure as failure:
                answers["failed"] = str(failure)
    finally:
        other.end()
        for process in processes:
            process.close()


def _compare_busy(process: Process, other: _Neighbour, plan: Plan, answers: Record) -> None:
    answers["version"] = process.ask("build")["version"]
    process.ask("step", count=3)
    once = min(process.ask("step", count=3)["seconds"])
    calls = max(1, round(2 * plan.target / once))
    times: dict[str, list[dict[str, float]]] = {"quiet": [], "wall": []}
    for _ in range(max(3, plan.rounds)):
        for state, taken in times.items():
            other.work(state == "wall")
            taken.append(process.ask("round", calls=calls))
    other.work(False)
    for state, taken in times.items():
        answers[state] = summary([t["wall"] / t["calls"] for t in taken])
    answers["slowdown"] = answers["wall"]["median"] / answers["quiet"]["median"]


class _Neighbour:
    """Another process that computes on one core, when it is let."""

    def __init__(self, core: int) -> None:
        code = (f"import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, [{core}])"
                "\nwhile True: pass")
        self.process = subprocess.Popen([sys.executable, "-c", code])
        self.work(False)

    def work(self, on: bool) -> None:
        os.kill(self.process.pid, signal.SIGCONT if on else signal.SIGSTOP)
        time.sleep(_SETTLE)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


Measure = Callable[[Workload, Sequence[Peer], int, Plan, Path, Record], None]
KINDS: dict[str, Measure] = {"import": imports, "first": first, "roofline": roofline, "busy": busy}
