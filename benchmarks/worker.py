"""The process of one peer: builds a workload and does what the parent asks, one line of JSON each.

The parent writes {"do": ...} lines, the worker answers each with one line. What the frameworks
print goes to standard error. Times are taken here, around the calls alone; `cpu` is the time of all
threads of this process, which on a busy machine says more than the clock on the wall.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.adapters.base import Adapter, Task
from benchmarks.workloads import WORKLOADS

__all__ = ["fingerprint", "main"]


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's size before exec too
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    # Kibibytes everywhere but on macOS, where it is bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def fingerprint(array: np.ndarray) -> list[tuple[float, float]]:
    """(value, scale) pairs that two equal results share up to rounding relative to the scale.

    A single number is itself. An array gives its root mean square and its product with cos(i)
    over sqrt(size), which tells a permutation apart and is of the size of the former.
    """
    flat = np.asarray(array, np.float64).ravel()
    if flat.size == 1:
        return [(float(flat[0]), abs(float(flat[0])))]
    rms = float(np.sqrt(np.mean(flat * flat)))
    wave = float(flat @ np.cos(np.arange(flat.size)) / np.sqrt(flat.size))
    return [(rms, rms), (wave, rms)]


class Worker:
    """What a process has built, and its answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.task: Task | None = None
        self.base_mb = 0.0

    def build(self) -> dict[str, Any]:
        """Import the framework, make the model from the shared file."""
        o = self.options
        start = time.perf_counter()
        module = importlib.import_module(o.adapter)
        adapter: Adapter = module.adapter(o.package, o.compiled, o.threads)
        imported = time.perf_counter()
        reset = Path("/proc/self/clear_refs")
        if reset.exists():  # forget the peak of the import
            reset.write_text("5")
        self.base_mb = peak_mb()
        workload = WORKLOADS[o.workload]
        size = workload.sizes[o.size]
        with np.load(o.data) as file:
            arrays = {name: file[name] for name in file.files}
        self.task = workload.build(adapter, size, arrays)
        return {"import": imported - start, "build": time.perf_counter() - imported,
                "version": adapter.version}

    def step(self, count: int) -> dict[str, Any]:
        """`count` calls, each timed alone, and what the last of them gave."""
        assert self.task is not None
        seconds, values = [], []
        for _ in range(count):
            start = time.perf_counter()
            result = self.task.call()
            seconds.append(time.perf_counter() - start)
            values.append([p for a in self.task.look(result) for p in fingerprint(a)])
        return {"seconds": seconds, "values": values, "peak": peak_mb() - self.base_mb}

    def roofline(self) -> dict[str, Any]:
        """What the machine's limits allow for the kernels of the work; Gossamer tells."""
        assert self.task is not None and self.task.explain is not None
        found = self.task.explain()
        peaks = found.peaks
        return {"least": sum(k.least * k.runs for k in found.kernels),
                "kernels": sum(k.seconds * k.runs for k in found.kernels),
                "count": len(found.kernels), "peak": peaks.flops, "memory": peaks.bandwidth,
                "slow": [f"{k.name[:60]}: {k.share:.0%} of the time, {k.roofline:.0%} of its limit"
                         for k in found.kernels[:5]]}

    def bandwidth(self) -> dict[str, Any]:
        """Bytes a second that memory gives to this process now; Gossamer tells."""
        insight = importlib.import_module("gossamer.insight")
        return {"memory": insight.peaks(measure=True).bandwidth["memory"]}

    def round(self, calls: int) -> dict[str, Any]:
        """`calls` calls in one go."""
        assert self.task is not None
        call = self.task.call
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "calls": calls * self.task.units}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a line asks; a failure becomes an answer too."""
        do = request.pop("do")
        try:
            made: dict[str, Any] = getattr(self, do)(**request)
        except Exception as error:  # the parent shows it and goes on without this peer
            traceback.print_exc()
            text = " ".join(str(error).split()) or "no message"
            return {"error": f"{type(error).__name__}: {text[:300]}"}
        return made


def _requests(stream: TextIO) -> Iterator[dict[str, Any]]:
    for line in iter(stream.readline, ""):
        yield json.loads(line)


def main() -> None:
    """Serve requests until the parent closes its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--adapter", required=True, help="module with adapter()")
    parser.add_argument("--package", required=True)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--size", default="full")
    parser.add_argument("--threads", type=int, default=0, help="0: the framework's own choice")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cores", default="")
    options = parser.parse_args()
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in options.cores.split(",")])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(options)
    for request in _requests(sys.stdin):
        print(json.dumps(worker.answer(request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
