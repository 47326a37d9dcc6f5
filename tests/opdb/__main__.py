"""`make opdb`: run the whole database, print the table, compare with the committed list.

Names run in worker processes, so that a crash or a hang costs one name and is reported as its
failure. Options: `--only SUBSTRING`, `--samples N`, `--accept` (rewrite passing.txt), `--jobs N`.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from tests.opdb import exceptions
from tests.opdb.check import Outcome, check_name
from tests.opdb.database import load

PASSING = Path(__file__).with_name("passing.txt")
LIMIT = 600.0  # seconds for one name, on a machine that does other things too


def passing_names() -> list[str]:
    """The committed list: one name a line, `#` for comments."""
    if not PASSING.exists():
        return []
    return [line for line in PASSING.read_text().split("\n") if line and line[0] != "#"]


def _worker(most: int | None) -> None:
    """Read names from standard input, write one JSON line per outcome."""
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing that an operator prints may mix with the answers
    load()
    for line in sys.stdin:
        outcome = check_name(line.strip(), most)
        print(json.dumps(asdict(outcome)), file=out, flush=True)


class _Process:
    """One worker and a thread that reads its answers."""

    def __init__(self, most: int | None) -> None:
        command = [sys.executable, "-m", "tests.opdb", "--worker"]
        command += ["--samples", str(most)] if most else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def ask(self, name: str) -> Outcome | str:
        """The outcome, or what became of the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=LIMIT)
        except queue.Empty:
            return f"no answer within {LIMIT:.0f} s"
        except BrokenPipeError:
            line = ""
        return Outcome(**json.loads(line)) if line else f"the process died ({self.end()})"

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


def run(names: list[str], most: int | None, jobs: int) -> list[Outcome]:
    """Outcomes in the order of `names`."""
    todo = list(enumerate(names))[::-1]
    outcomes: dict[int, Outcome] = {}
    lock = threading.Lock()

    def serve() -> None:
        process = _Process(most)
        while True:
            with lock:
                if not todo:
                    break
                index, name = todo.pop()
                if sys.stderr.isatty():
                    print(f"\r{len(names) - len(todo)}/{len(names)} {name:50.50}", end="",
                          file=sys.stderr)
            answer = process.ask(name)
            if isinstance(answer, str):
                process.end()
                process = _Process(most)
                answer = Outcome(name, "fail", message=answer)
            outcomes[index] = answer
        process.end()

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[i] for i in range(len(names))]


def report(outcomes: list[Outcome]) -> int:
    """Print the table; the number of names that pass."""
    by = {status: [o for o in outcomes if o.status == status]
          for status in ("pass", "fail", "none", "missing")}
    for outcome in by["pass"]:
        note = "" if outcome.dtype == "float32" else f", {outcome.dtype}"
        shape = ", shape and dtype only" if outcome.name in exceptions.SHAPE_ONLY else ""
        print(f"pass  {outcome.name:42} {outcome.compared:5} comparisons: "
              f"{', '.join(outcome.called)}{note}{shape}")
    for outcome in by["fail"]:
        print(f"FAIL  {outcome.name:42} {outcome.message}")
    for outcome in by["none"]:
        print(f"none  {outcome.name:42} nothing to compare: {', '.join(outcome.left_out)}")
    print("\nnot in Gossamer: " + " ".join(o.name for o in by["missing"]))
    _report_exceptions(outcomes)
    integer = sum(o.dtype != "float32" for o in by["pass"])
    count = len(by["pass"])
    print(f"\n{count} names pass ({count - integer} on float32 samples, {integer} that have none "
          f"on integers), {len(by['fail'])} fail, {len(by['none'])} cannot be compared, "
          f"{len(by['missing'])} are not in Gossamer")
    return count


def _report_exceptions(outcomes: list[Outcome]) -> None:
    passed = {o.name for o in outcomes if o.status != "missing"}
    print("\nexceptions:")
    for title, table in (
            ("shape and dtype only", exceptions.SHAPE_ONLY),
            ("no gradients", exceptions.NO_GRADIENT),
            ("not the same", exceptions.NOT_THE_SAME),
            ("samples changed", {k: v[1] for k, v in exceptions.EDIT_SAMPLE.items()}),
            ("samples left out", {k: v[1] for k, v in exceptions.SKIP_SAMPLE.items()}),
            ("tolerance", {k: f"{v[0]:g}, {v[1]:g}: {v[2]}"
                           for k, v in exceptions.TOLERANCE.items()})):
        for name, reason in table.items():
            if name in passed:
                print(f"  {title}: {name}: {reason}")
    for outcome in outcomes:
        for reason, count in outcome.left_out.items():
            if outcome.status == "pass" and "refuses" not in reason and "no method" not in reason:
                print(f"  samples left out: {outcome.name}: {count} with {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make opdb")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--samples", type=int, help="at most so many samples a variant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--accept", action="store_true", help="rewrite passing.txt")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(options.samples)
        return 0
    names = [n for n in sorted(load()) if options.only in n and n not in exceptions.NOT_THE_SAME]
    start = time.monotonic()
    outcomes = run(names, options.samples, options.jobs)
    count = report(outcomes)
    print(f"{time.monotonic() - start:.0f} s")
    passing = [o.name for o in outcomes if o.status == "pass"]
    if options.accept:
        PASSING.write_text("# Names of PyTorch's operator database that pass (`make opdb "
                           "ARGS=--accept`).\n" + "\n".join(passing) + "\n")
    lost = [n for n in passing_names() if options.only in n and n not in passing]
    if lost:
        print(f"no longer passing: {' '.join(lost)}")
    failed = any(o.status == "fail" for o in outcomes)
    few = not options.only and count < exceptions.MINIMUM
    if few:
        print(f"fewer than {exceptions.MINIMUM} names pass")
    return 1 if lost or few or failed else 0


if __name__ == "__main__":
    sys.exit(main())
