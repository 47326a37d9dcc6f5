"""One training step of a small GPT in Gossamer and in PyTorch eager: time, memory, compile time.

    python benchmarks/gpt_step.py [--threads 1] [--rounds 20]

Two rows of the benchmarks (`gpt` and `first`) with two peers, printed as sentences: equal losses,
seconds of a step, what the first step costs cold and from the disk cache, peak memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/gpt_step.py`

from benchmarks.harness import Plan, run
from benchmarks.peers import find
from benchmarks.workloads import WORKLOADS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args()
    plan = Plan(rounds=options.rounds, target=0.0, size="tiny" if options.tiny else "full")
    record = run(WORKLOADS["gpt"], find(["gossamer", "torch"]), options.threads, plan)
    ours, theirs = record["peers"]["gossamer"], record["peers"]["torch"]
    for answers, name in ((ours, "gossamer"), (theirs, "torch")):
        if "wall" not in answers:
            print(f"{name}: {answers.get('failed') or answers.get('skipped')}")
            return 1
    for step in (1, min(len(ours["losses"]), len(theirs["losses"]))):
        print(f"loss at step {step:2d}: gossamer {ours['losses'][step - 1]:.5f}, "
              f"torch {theirs['losses'][step - 1]:.5f}")
    for clock, text in (("wall", "step"), ("cpu", "CPU time")):
        mine, peer = ours[clock]["median"], theirs[clock]["median"]
        print(f"{text}, {options.threads} thread(s): gossamer {mine * 1e3:.0f} ms, torch eager "
              f"{peer * 1e3:.0f} ms, torch / gossamer = {peer / mine:.2f}")
    first = run(WORKLOADS["first"], find(["gossamer"]), options.threads, Plan(3, size=plan.size))
    answers = first["peers"]["gossamer"]
    if "wall" not in answers:
        print(f"first step: {answers['failed']}")
        return 1
    print(f"first step: cold {answers['wall']['median']:.2f} s beyond a step, "
          f"from the disk cache {answers['cached']['median']:.2f} s")
    print(f"peak memory above the import: gossamer {ours['peak_mb']:.0f} MB, torch "
          f"{theirs['peak_mb']:.0f} MB, ratio {ours['peak_mb'] / theirs['peak_mb']:.2f}")
    if record["busy"]:
        print(f"The machine was busy ({record['others'] or record['load_before']:.1f} cores of "
              "other work): read the CPU time, and measure again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
