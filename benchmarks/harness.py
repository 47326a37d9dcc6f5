"""Runs a workload in one process a peer, in turn, and compares what they compute.

A row is made so: the parent writes parameters and inputs to one file; every peer builds its model
from it in its own process; all take 20 steps (or look at one result), and only who agrees with
Gossamer is timed. Then come the rounds: each peer in turn repeats the work for about `target`
seconds, so that whatever else the machine does hits all alike; the order turns with the round.
Medians over the rounds, spread as the median absolute deviation, of wall clock and of CPU time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.peers import Peer, cores, environment
from benchmarks.workloads.base import Workload

__all__ = ["Failure", "Plan", "Process", "difference", "run", "summary"]


class Failure(Exception):
    """A peer could not do its part; the text says why."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often each peer has its turn.
        target: seconds a turn should last.
        steps: training steps before the timing; losses are compared at the first and the last.
        patience: seconds a peer may take for one answer before it is left out.
        budget: seconds a peer may take for its steps, and again for its rounds; slower ones make
            fewer, and the row says how many.
        size: of the workloads, "full" or "tiny".
        caches: folder for what the peers compile, to be kept; a new one a row if None.
    """

    rounds: int = 9
    target: float = 0.2
    steps: int = 20
    patience: float = 300.0
    budget: float = 60.0
    size: str = "full"
    caches: Path | None = None


@dataclass
class Process:
    """A peer at work: `ask` sends a request and waits for the answer."""

    workload: str
    peer: Peer
    threads: int
    size: str
    data: Path
    caches: Path
    patience: float
    failed: str = ""
    answers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "benchmarks.worker", "--workload", self.workload,
                   "--size", self.size, "--data", str(self.data), "--package", self.peer.package,
                   "--adapter", self.peer.adapter,
                   "--threads", str(self.threads if self.peer.tuned else 0),
                   *["--compiled"] * self.peer.compiled]
        usable = cores()
        if self.peer.tuned and self.threads < len(usable):
            # The last core: systems tend to serve interrupts on the first.
            command += ["--cores", ",".join(map(str, usable[-self.threads:]))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment(self.peer, self.threads, self.caches), start_new_session=True)
        assert self.process.stdout is not None
        self._ready = selectors.DefaultSelector()
        self._ready.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            Failure: the process died, took longer than its patience, or said that it failed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the empty answer below tells the same
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        if not self._ready.select(self.patience):
            self.kill()
            raise Failure(f"no answer to {do!r} within {self.patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            last = [x for x in self.log.read().splitlines() if x.strip()][-1:]
            raise Failure(f"ended with status {code}: {' '.join(last)[:300]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process and what it started (`torch.compile` keeps compilers waiting)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in its exit: killed below
            self.process.wait(10)
        self.kill()
        self.process.wait()
        self._ready.close()
        self.log.close()


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


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, median absolute deviation and all samples."""
    middle = statistics.median(samples)
    return {"median": middle, "mad": statistics.median(abs(x - middle) for x in samples),
            "samples": list(samples)}


def run(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan,
        say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure one row.

    Returns:
        A record for the JSON: the workload, the threads, and per peer either times or the reason
        why there are none; and how busy the machine was.
    """
    load = machine.load()
    record: dict[str, Any] = {
        "workload": workload.name, "title": workload.title, "threads": threads, "dtype": "float32",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "size": plan.size,
        **({workload.grows: workload.amount(workload.sizes[plan.size])} if workload.grows else {}),
        "peers": {p.name: {"skipped": p.missing} for p in peers if p.missing}}
    for p in peers:
        if workload.models and p.family and p.family not in workload.models:
            record["peers"][p.name] = {"skipped": f"{workload.name} is not written for {p.name}"}
    peers = [p for p in peers if p.name not in record["peers"]]
    from_new = {"import": _import, "first": _first}.get(workload.kind)
    with tempfile.TemporaryDirectory(prefix="gossamer-bench-") as folder:
        data = Path(folder) / "arrays.npz"
        np.savez(data, **workload.arrays(plan.size))
        if from_new is not None:
            watch = machine.Watch([])
            from_new(workload, peers, threads, plan, data, record)
        else:
            with _started(workload, peers, threads, plan, data) as processes:
                watch = _together(workload, processes, plan, record, say)
        others = watch.others()
    record.update(load_before=load, others=others, busy=machine.busy(others, load))
    return record


@contextlib.contextmanager
def _started(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan,
             data: Path) -> Iterator[list[Process]]:
    caches = data.parent if workload.cold or plan.caches is None else plan.caches.resolve()
    processes = [Process(workload.name, peer, threads, plan.size, data, caches / "caches",
                         plan.patience) for peer in peers]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def _together(workload: Workload, processes: list[Process], plan: Plan, record: dict[str, Any],
              say: Callable[[str], None]) -> machine.Watch:
    """Build, check, then time all peers of a row; fills the record."""
    for process in processes:
        record["peers"][process.peer.name] = process.answers
        say(f"{workload.name}: {process.peer.name} builds")
        _attempt(process, lambda p=process: _prepare(p, workload, plan))
    _check(workload, processes)
    working = [p for p in processes if not p.failed]
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
    for process in working:
        taken = times[process.peer.name]
        if taken:
            process.answers.update(
                wall=summary([t["wall"] / t["calls"] for t in taken]),
                cpu=summary([t["cpu"] / t["calls"] for t in taken]))
    return watch


def _attempt(process: Process, action: Callable[[], Any]) -> None:
    try:
        action()
    except Failure as failure:
        process.failed = str(failure)
        process.answers["failed"] = process.failed


def _prepare(process: Process, workload: Workload, plan: Plan) -> None:
    """Build and take the steps before the timing; decide how many calls make a turn."""
    answers = process.answers
    built = process.ask("build")
    answers.update(version=built["version"], import_s=built["import"], build_s=built["build"])
    first = process.ask("step", count=1)
    second = process.ask("step", count=2)  # tinygrad captures in its second call, replays after it
    once = second["seconds"][-1]
    more = max(0, min(plan.steps - 3, int(plan.budget / max(once, 1e-6))))
    if workload.kind != "train":
        more = min(more, 1)
    rest = process.ask("step", count=more) if more else {"seconds": [], "values": []}
    answers["values"] = first["values"] + second["values"] + rest["values"]
    answers["peak_mb"] = max(x.get("peak", 0.0) for x in (first, second, rest))
    # The cheapest of the warm calls: the first ones may still compile.
    once = min(second["seconds"][1:] + rest["seconds"])
    answers["first_s"] = first["seconds"][0]
    answers["calls"] = workload.calls or max(1, round(plan.target / max(once, 1e-7)))
    turn = max(once, plan.target)
    answers["rounds"] = max(min(plan.rounds, 2), min(plan.rounds, int(plan.budget / turn)))


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


def _import(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
            record: dict[str, Any]) -> None:
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


def _first(workload: Workload, peers: Sequence[Peer], threads: int, plan: Plan, data: Path,
           record: dict[str, Any]) -> None:
    """What the first call costs beyond a warm one, in a new process: with empty caches, then again.

    `wall` is the cold figure, `cached` the one of the second process.
    """
    for peer in peers:
        record["peers"][peer.name] = {}
    rounds = max(1, plan.rounds // 3)
    for turn in range(rounds):
        for peer in peers:
            answers = record["peers"][peer.name]
            for state in ("cold", "cached"):
                process = Process(workload.of, peer, threads, plan.size, data,
                                  data.parent / f"{peer.name}-{turn}", plan.patience)
                try:
                    answers["version"] = process.ask("build")["version"]
                    seconds = process.ask("step", count=4)["seconds"]
                    beyond = max(0.0, seconds[0] + seconds[1] - 2 * min(seconds[2:]))
                    answers.setdefault(f"_{state}", []).append(beyond)
                except Failure as failure:
                    answers["failed"] = str(failure)
                finally:
                    process.close()
    for answers in record["peers"].values():
        cold, cached = answers.pop("_cold", []), answers.pop("_cached", [])
        if cold and cached and "failed" not in answers:
            answers.update(wall=summary(cold), cached=summary(cached))
