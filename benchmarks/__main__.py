"""Measure Gossamer and its peers on the same work: `python -m benchmarks [WORKLOAD ...]`.

    make bench                                             everything, about an hour
    make bench ARGS="mlp gpt --threads 1 --peers gossamer,torch --rounds 7"
    make bench ARGS="--quick"                              three short rounds of everything
    make bench ARGS="--list"

A full run writes docs/benchmarks/results.json, results.md and plots; a quick one build/benchmarks/.
Rows measured before stay in the file until they are measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import harness, machine, report
from benchmarks.peers import PEERS, ROOT, cores, find
from benchmarks.workloads import GROUPS, WORKLOADS, chosen

__all__ = ["main"]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help="rows or groups of rows; all if none is named")
    parser.add_argument("--threads", default="", help="such as 1,2; default: 1 and all cores")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=0, help="default 9, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="short rounds, into build/benchmarks")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--patience", type=float, default=300.0,
                        help="seconds a peer may take for one answer (default %(default)s)")
    parser.add_argument("--keep-caches", type=Path, default=None, metavar="FOLDER",
                        help="keep what the peers compile there; first calls are then warm")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="what there is to measure")
    return parser.parse_args(arguments)


def _list() -> None:
    for group, names in GROUPS.items():
        for name in names:
            print(f"{name:18} {WORKLOADS[name].title}" + (f"  [{group}]" * (group != name)))
    for peer in PEERS.values():
        print(f"peer {peer.name:22} {peer.missing or 'ready'}")


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    short = options.quick or options.tiny
    rounds = options.rounds or (3 if short else 9)
    plan = harness.Plan(rounds=rounds, target=0.05 if short else 0.2, patience=options.patience,
                        budget=15.0 if short else 60.0, size="tiny" if options.tiny else "full",
                        caches=options.keep_caches)
    everything = len(cores())
    try:
        peers = find([p for p in options.peers.split(",") if p])
        rows = chosen(options.workloads)
        threads = [int(n) for n in options.threads.split(",") if n] or sorted({1, everything})
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    default = ROOT / ("build" if short else "docs") / "benchmarks"
    folder: Path = options.out or default
    if machine.load() > 0.5:
        print(f"The load average is {machine.load():.1f}: other work is running, so wall times "
              "will be wrong. Rows measured so are marked *.", file=sys.stderr)
    for peer in peers:
        if peer.missing:
            print(f"without {peer.name}: {peer.missing}", file=sys.stderr)
    results = report.Results(folder)
    fresh = []
    for workload in rows:
        for count in threads:
            if count > everything:
                print(f"{workload.name}: {count} threads on {everything} cores is no measurement",
                      file=sys.stderr)
                continue
            fresh.append(harness.run(workload, _taking_part(workload.only, peers, count), count,
                                     plan, _say))
            results.add(fresh[-1])
            _say("")
            print(f"{workload.name}, {count} thread(s): {report.line(fresh[-1])}", flush=True)
    print("\n".join(report.table(fresh)))
    print("\n".join(f"wrote {p}" for p in [results.path, *report.write(results, folder)]))
    return 0


def _taking_part(only: tuple[str, ...], peers: list, count: int) -> list:
    """Peers of a row. Those with default settings only where the defaults use all cores."""
    return [p for p in peers if (not only or p.name in only)
            and (p.tuned or count == len(cores()))]


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
