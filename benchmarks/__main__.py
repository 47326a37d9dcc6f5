"""Measure Gossamer and its peers on the same work: `python -m benchmarks [WORKLOAD ...]`.

    make bench                                             everything, about half an hour
    make bench ARGS="mlp gpt --threads 1 --peers gossamer,torch --rounds 7"
    make bench ARGS="--quick"                              three short rounds of everything
    make bench ARGS="--list"
    make bench ARGS="--bars"                               what is demanded, and what was measured

A full run writes docs/benchmarks/results.json, results.md and plots; a quick one build/benchmarks/.
Rows measured before stay in the file until they are measured again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import bars, harness, machine, report
from benchmarks.peers import PEERS, ROOT, Peer, cores, find
from benchmarks.workloads import GROUPS, WORKLOADS, chosen
from benchmarks.workloads.base import Workload

__all__ = ["main"]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="rows or groups of rows; all if none is named")
    parser.add_argument("--threads", default="", help="such as 1,2; default: 1 and all cores")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=0, help="default 5, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="short rounds, into build/benchmarks")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--minutes", type=float, default=25.0,
                        help="after so long, rows get short rounds (default %(default)s)")
    parser.add_argument("--patience", type=float, default=120.0,
                        help="seconds a peer may take for one answer (default %(default)s)")
    parser.add_argument("--keep-caches", type=Path, default=None, metavar="FOLDER",
                        help="keep what the peers compile there, for the next run")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    parser.add_argument("--bars", action="store_true",
                        help="measure nothing: every bar beside the figure in the results")
    parser.add_argument("--list", action="store_true", help="what there is to measure")
    return parser.parse_args(arguments)


def _list() -> None:
    for group, names in GROUPS.items():
        for name in names:
            print(f"{name:18} {WORKLOADS[name].title}" + (f"  [{group}]" * (group != name)))
    for peer in PEERS.values():
        print(f"peer {peer.name:22} {peer.missing or 'ready'}")


def _plans(options: argparse.Namespace, caches: Path) -> Callable[[], harness.Plan]:
    """What says how much to measure now: when the minutes are over, short rounds."""
    short = options.quick or options.tiny
    full = harness.Plan(rounds=options.rounds or 5, patience=options.patience,
                        size="tiny" if options.tiny else "full", caches=caches)
    quick = replace(full, rounds=options.rounds or 3, target=0.05, budget=15.0, turns=3.0)
    end = time.monotonic() + 60 * options.minutes
    return lambda: quick if short or time.monotonic() > end else full


def _measure(options: argparse.Namespace, peers: list[Peer], rows: list[Workload],
             results: report.Results) -> list[report.Record]:
    """All rows at all numbers of threads, each written and shown when it is done."""
    everything, fresh = len(cores()), []
    asked = [int(n) for n in options.threads.split(",") if n]
    slow: dict[tuple[str, str], str] = {}
    folder = tempfile.TemporaryDirectory(prefix="gossamer-bench-")
    plan = _plans(options, options.keep_caches or Path(folder.name))
    for workload in rows:
        counts = {"one": [1], "all": [everything]}.get(workload.threads, sorted({1, everything}))
        for count in asked or counts:
            if count > everything:
                print(f"{workload.name}: {count} threads on {everything} cores is no measurement",
                      file=sys.stderr)
                continue
            known = {p.name: slow[workload.name, p.name] for p in peers
                     if (workload.name, p.name) in slow}
            fresh.append(harness.run(workload, _taking_part(workload, peers, count), count, plan(),
                                     _say, known))
            results.add(fresh[-1])
            for name, answers in fresh[-1]["peers"].items():
                if answers.get("failed", "").startswith(harness.NO_ANSWER):
                    slow[workload.name, name] = (f"{workload.name} with {name}: "
                                                 f"{answers['failed']}, with {count} thread(s)")
            _say("")
            print(f"{workload.name}, {count} thread(s), {fresh[-1]['took']:.0f} s: "
                  f"{report.line(fresh[-1])}", flush=True)
    folder.cleanup()
    return fresh


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    default = ROOT / ("build" if options.quick or options.tiny else "docs") / "benchmarks"
    folder: Path = options.out or default
    results = report.Results(folder)
    if options.bars:
        print("\n".join(bars.table(results.records)))
        return 0
    try:
        peers = find([p for p in options.peers.split(",") if p])
        rows = chosen(options.workloads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if machine.load() > 0.5:
        print(f"The load average is {machine.load():.1f}: other work is running, so wall times "
              "will be wrong. Rows measured so are marked *.", file=sys.stderr)
    for peer in peers:
        if peer.missing:
            print(f"without {peer.name}: {peer.missing}", file=sys.stderr)
    start = time.monotonic()
    fresh = _measure(options, peers, rows, results)
    print("\n".join([*report.table(fresh), *bars.table(results.records)]))
    print(f"{len(fresh)} rows in {(time.monotonic() - start) / 60:.1f} minutes")
    print("\n".join(f"wrote {p}" for p in [results.path, *report.write(results, folder)]))
    return 0


def _taking_part(workload: Workload, peers: list[Peer], count: int) -> list[Peer]:
    """Peers of a row. Those with default settings only where the defaults use all cores."""
    return [p for p in peers if (not workload.only or p.name in workload.only)
            and (p.family != "llamacpp" or p.family in workload.models)  # it only decodes
            and (p.tuned or (workload.defaults and count == len(cores())))]


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
