"""A peer at work in a process of its own, asked line by line. `Plan` says how much is asked."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.peers import Peer, environment

__all__ = ["NO_ANSWER", "Failure", "Plan", "Process", "summary"]


NO_ANSWER = "no answer"  # how the text of a failure begins when patience was at its end
_LOOK, _AT_REST = 0.02, 0.1  # seconds between looks at a process; share of a core that is rest


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
        budget: seconds a peer may take for its steps, and
        turns: for its rounds; slower ones make fewer, and the row says how many.
        size: of the workloads, "full" or "tiny".
        caches: folder for what the peers compile, shared by the rows whose first call does not
            count; a new one a row if None.
    """

    rounds: int = 5
    target: float = 0.1
    steps: int = 20
    patience: float = 120.0
    budget: float = 30.0
    turns: float = 4.0
    size: str = "full"
    caches: Path | None = None


@dataclass
class Process:
    """A peer at work: `ask` sends a request and waits for the answer.

    With fewer threads than cores it is bound to `cores`; `move` binds it anew.
    """

    workload: str
    peer: Peer
    threads: int
    size: str
    data: Path
    caches: Path
    patience: float
    cores: Sequence[int] = ()
    failed: str = ""
    begun: list[dict[str, Any]] = field(default_factory=list)  # answers of the steps that compile
    answers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "benchmarks.worker", "--workload", self.workload,
                   "--size", self.size, "--data", str(self.data), "--package", self.peer.package,
                   "--adapter", self.peer.adapter,
                   "--threads", str(self.threads if self.peer.tuned else 0),
                   *["--compiled"] * self.peer.compiled]
        self.patience = min(self.patience, self.peer.patience or self.patience)
        if self.cores:
            command += ["--cores", ",".join(map(str, self.cores))]
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
            raise Failure(f"{NO_ANSWER} to {do!r} within {self.patience:.0f} s")
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

    def rest(self, patience: float = 2.0) -> None:
        """Wait until its threads rest, so that none of its work falls into another's round.

        JAX frees memory for some 80 ms after its answer is there.
        """
        before, end = -1.0, time.monotonic() + patience
        now = machine.thread_seconds(self.process.pid)
        while now - before > _AT_REST * _LOOK and time.monotonic() < end:
            time.sleep(_LOOK)
            before, now = now, machine.thread_seconds(self.process.pid)

    def move(self, cores: Sequence[int]) -> None:
        """Bind all its threads to other cores, where they are not bound to these already."""
        if self.cores and list(cores) != list(self.cores):
            for thread in Path(f"/proc/{self.process.pid}/task").glob("*"):
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(thread.name), cores)
            self.cores = cores

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


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, median absolute deviation and all samples."""
    middle = statistics.median(samples)
    return {"median": middle, "mad": statistics.median(abs(x - middle) for x in samples),
            "samples": list(samples)}
