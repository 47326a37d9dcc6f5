"""Runs a workload in one process a peer, in turn, and compares what they compute.

A row is made so: the parent writes parameters and inputs to one file; every peer builds its model
from it in its own process; all take 20 steps (or look at one result), and only who agrees with
Gossamer is timed. Then come the rounds: each peer in turn repeats the work for about `target`
seconds, so that whatever else the machine does hits all alike; the order turns with the round.
Medians over the rounds, spread as the median absolute deviation, of wall clock and of CPU time.

Peers build and compile side by side, one a core. Where each gets fewer threads than there are cores
they take their steps so, too; for the rounds all move to the same cores. Rows whose first call is
measured build one after the other. Losses of step 20 are compared with one thread; with more, those
of step 6, because nothing but the threads has changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks import apart, machine
from benchmarks.peers import Peer, cores
from benchmarks.process import NO_ANSWER, Failure, Plan, Process, summary
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.base import Workload

__all__ = ["NO_ANSWER", "Failure", "Plan", "Process", "difference", "run", "summary"]


def difference(mine: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Largest difference of two fingerprints, relative to my scale; inf if incomparable."""
    if len(mine) != len(other):
        return math.inf
    found = 0.0
    for (a, scale), (b, _) in zip(mine, other, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            return math.inf
        found = max(found, abs(a - b) / max(abs(scale), 1e-12))
    return found


def run(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan,
        say: Callable[[str], None] = lambda text: None,
        known: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Measure one row.

    `known` names peers that are known not to be worth waiting for, each with the reason.

    Returns:
        A record for the JSON: the workload, the threads, and per peer either times or the reason
        why there are none; and how busy the machine was.
    """
    start, load = time.perf_counter(), machine.load()
    source = WORKLOADS[workload.of] if workload.of else workload
    record: dict[str, Any] = {
        "workload": workload.name, "title": workload.title, "threads": threads,
        "dtype": source.dtype, "kind": workload.kind, "size": plan.size,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cold": workload.cold, **_amount(source, plan.size),
        "peers": {**{name: {"skipped": reason} for name, reason in known.items()},
                  **_absent(source, peers)}}
    peers = [p for p in peers if p.name not in record["peers"]]
    with tempfile.TemporaryDirectory(prefix="gossamer-bench-") as folder:
        data = Path(folder) / "arrays.npz"
        np.savez(data, **source.arrays(plan.size))
        measure = apart.KINDS.get(workload.kind)
        if measure is not None:
            watch = machine.Watch([])
            measure(workload, peers, threads, plan, data, record)
        else:
            with _started(workload, peers, threads, plan, data) as processes:
                watch = _together(workload, processes, plan, record, say)
        others = watch.others()
    record.update(load_before=load, others=others, busy=machine.busy(others, load),
                  took=time.perf_counter() - start)
    return record


def _amount(workload: Workload, size: str) -> dict[str, float]:
    """{"flops" or "nodes": how many a call has}, where the workload tells."""
    amount = workload.amount(workload.sizes[size])
    return {workload.grows or workload.counts: amount, **({"grows": 1} if workload.grows else {})} \
        if amount else {}


def _absent(workload: Workload, peers: Sequence[Peer]) -> dict[str, dict[str, str]]:
    """Who takes no part in a row, with the reason."""
    reasons = {}
    for p in peers:
        unknown = workload.models and p.family and p.family not in workload.models
        reason = p.missing or workload.skip.get(p.family, "") or (
            f"{workload.name} is not written for {p.name}" if unknown else "")
        if reason:
            reasons[p.name] = {"skipped": reason}
    return reasons


_STEPS = 6  # of training with more than one thread


def _lanes(workload: Workload, threads: int) -> int:
    """How many peers may work at the same time, each on cores of its own."""
    bound = hasattr(os, "sched_setaffinity") and Path("/proc/self/task").exists()
    return max(1, len(cores()) // threads) if bound and not workload.cold else 1


@contextlib.contextmanager
def _started(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan,
             data: Path) -> Iterator[list[Process]]:
    # A folder a number of threads: torch.compile writes the number into its code, not its key.
    caches = (data.parent if workload.cold or plan.caches is None
              else plan.caches.resolve() / str(threads))
    lanes = _lanes(workload, threads)
    processes = [Process(workload.name, peer, threads, plan.size, data, caches / "caches",
                         plan.patience, apart.binding(peer, threads, number % lanes))
                 for number, peer in enumerate(peers)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def _build(workload: Workload, processes: list[Process], plan: Plan,
           say: Callable[[str], None]) -> None:
    """All peers compile, then take their steps; those of one lane one after the other."""
    for action, threads in ((_compile, 1), (_take_steps, processes[0].threads if processes else 1)):
        def lane(mine: list[Process], action: Callable[..., None] = action) -> None:
            for process in mine:
                if not process.failed:
                    say(f"{workload.name}: {process.peer.name} builds")
                    _attempt(process, lambda p=process: action(p, workload, plan))

        lanes = _lanes(workload, threads)
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lane, [processes[number::lanes] for number in range(lanes)]))


def _together(workload: Workload, processes: list[Process], plan: Plan, record: dict[str, Any],
              say: Callable[[str], None]) -> machine.Watch:
    """Build, check, then time all peers of a row; fills the record."""
    record["peers"].update({p.peer.name: p.answers for p in processes})
    _build(workload, processes, plan, say)
    _check(workload, processes)
    working = [p for p in processes if not p.failed]
    for process in working:
        process.move(apart.binding(process.peer, process.threads))
        process.rest()
    watch = machine.Watch([p.process.pid for p in processes if not p.failed])
    times: dict[str, list[dict[str, float]]] = {p.peer.name: [] for p in working}
    for turn in range(plan.rounds):
        say(f"{workload.name}: round {turn + 1} of {plan.rounds}")
        shift = turn % max(len(working), 1)
        for process in working[shift:] + working[:shift]:
            if turn < process.answers["rounds"] and not process.failed:
                calls = process.answers["calls"]
                _attempt(process, lambda p=process, n=calls: times[p.peer.name].append(
                    p.ask("round", calls=n)))
                process.rest()
    _note_bandwidth(workload, working, record)
    for process in working:
        taken = times[process.peer.name]
        if taken:
            process.answers.update(
                wall=summary([t["wall"] / t["calls"] for t in taken]),
                cpu=summary([t["cpu"] / t["calls"] for t in taken]))
    return watch


def _note_bandwidth(workload: Workload, processes: list[Process], record: dict[str, Any]) -> None:
    """Beside work that is counted in bytes: what memory gave in the same minute, for it varies."""
    ours = next((p for p in processes if p.peer.name == "gossamer" and not p.failed), None)
    if workload.counts == "bytes" and ours is not None:
        _attempt(ours, lambda: record.update(peak_bandwidth=ours.ask("bandwidth")["memory"]))


def _attempt(process: Process, action: Callable[[], Any]) -> None:
    try:
        action()
    except Failure as failure:
        process.failed = str(failure)
        process.answers["failed"] = process.failed


def _compile(process: Process, workload: Workload, plan: Plan) -> None:
    """Build, and make the calls that compile."""
    answers = process.answers
    built = process.ask("build")
    answers.update(version=built["version"], import_s=built["import"], build_s=built["build"])
    first = process.ask("step", count=1)
    second = process.ask("step", count=2)  # tinygrad captures in its second call, replays after it
    answers["first_s"] = first["seconds"][0]
    process.begun = [first, second]


def _take_steps(process: Process, workload: Workload, plan: Plan) -> None:
    """Take the other steps before the timing; decide how many calls make a turn."""
    answers, (first, second) = process.answers, process.begun
    once = second["seconds"][-1]
    steps = workload.steps or (plan.steps if process.threads == 1 else min(plan.steps, _STEPS))
    more = max(0, min(steps - 3, int(plan.budget / max(once, 1e-6)) - 3))
    if workload.kind != "train":
        more = min(more, 1)
    rest = process.ask("step", count=more) if more else {"seconds": [], "values": []}
    answers["values"] = first["values"] + second["values"] + rest["values"]
    answers["peak_mb"] = max(x.get("peak", 0.0) for x in (first, second, rest))
    # The cheapest of the warm calls: the first ones may still compile.
    once = min(second["seconds"][1:] + rest["seconds"])
    answers["calls"] = workload.calls or max(1, round(plan.target / max(once, 1e-7)))
    turn = max(once, plan.target)
    answers["rounds"] = max(min(plan.rounds, 3 if turn < plan.turns else 1),
                            min(plan.rounds, int(plan.turns / turn)))


def _check(workload: Workload, processes: list[Process]) -> None:
    """Leave out the peers whose results differ from the first one's, and say at which step."""
    ready = [p for p in processes if not p.failed]
    for process in ready[1:]:
        mine, other = ready[0].answers["values"], process.answers["values"]
        last = min(len(mine), len(other)) if workload.kind == "train" else 1
        steps = {1: workload.tolerance, last: workload.tolerance * (10 if last > 1 else 1)}
        process.answers["checked"] = {}
        for step, tolerance in steps.items():
            off = difference(mine[step - 1], other[step - 1])
            process.answers["checked"][str(step)] = off
            if not off <= tolerance:
                process.failed = (
                    f"computes something else: step {step} gives {other[step - 1][0][0]:.6g}, "
                    f"{ready[0].peer.name} {mine[step - 1][0][0]:.6g}, {off:.1e} apart where "
                    f"{tolerance:.0e} is allowed")
                process.answers["failed"] = process.failed
                break
    for process in ready:
        process.answers["losses"] = [v[0][0] for v in process.answers.pop("values")]
