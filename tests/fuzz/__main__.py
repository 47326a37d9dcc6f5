"""`python -m tests.fuzz --count 10000 --seed 1`: many random programs; each failure is shrunk.

Unlike the test, it goes on after a failure and prints every distinct one as a program to paste into
`check`. Program number i of a seed is the same on every machine: `--only i` runs it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import importlib.util
import math
import os
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import gossamer as gs
from gossamer.ir.node import toposort
from tests.fuzz import chunks
from tests.fuzz.machine import STEPS, Leaf, Machine, Program
from tests.fuzz.ways import REFUSALS, check, leaves_of

SIZES = (0, 1, 2, 3, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 65)
BIG = ((130, 257), (3, 17, 500), (40_000,), (4, 64, 65), (17, 2049), (2, 33_000), (33_000, 2))
DTYPES = ("float32", "float32", "float32", "float64", "float64", "bfloat16", "float16", "int64",
          "int32", "int8", "uint8", "bool")
KINDS = ("closure", "closure", "argument", "state")


def random_shape(r: random.Random) -> tuple[int, ...]:
    kind = r.random()
    if kind < 0.08:
        return r.choice(BIG)
    sizes = SIZES if kind < 0.6 else (2, 3, 5, 8)
    while True:
        shape = tuple(r.choice(sizes) for _ in range(r.choice((0, 1, 1, 2, 2, 2, 3, 3, 4))))
        if math.prod(shape) <= 5_000:
            return shape


def random_program(seed: int, number: int) -> Program:
    """Program `number` of a seed."""
    r = random.Random(f"{seed}/{number}")
    names = sorted(STEPS)
    common = random_shape(r)
    leaves = tuple(Leaf(common if r.random() < 0.4 else random_shape(r), r.choice(DTYPES),
                        r.randrange(6), r.choice(KINDS), r.random() < 0.7)
                   for _ in range(r.choice((1, 2, 2, 3))))
    steps = tuple((r.choice(names), r.randrange(4 if r.random() < 0.7 else 64), r.randrange(1024),
                   r.randrange(1024)) for _ in range(r.randint(1, 14)))
    keep = tuple(r.randrange(6) for _ in range(r.choice((1, 1, 2, 3))))
    return Program(leaves, steps, (0, *keep), r.random() < 0.6)


def failure(program: Program, torch: Any) -> tuple[str, str] | None:
    """(a short name of what went wrong, the whole story), or None."""
    try:
        check(program, torch)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        lines = [line for line in str(error).splitlines() if line.strip()]
        short = f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}"
        if isinstance(error, AssertionError):
            short = f"AssertionError: {next((x for x in lines if ':' in x), '')[:40]}"
        return short, traceback.format_exc()
    return None


def shrink(program: Program, torch: Any, kind: str, seconds: float = 60) -> Program:
    """A smaller program that fails in the same way."""
    end = time.monotonic() + seconds

    def still(p: Program) -> bool:
        found = failure(p, torch)
        return found is not None and found[0].split(":")[0] == kind.split(":")[0]

    moved = True
    while moved and time.monotonic() < end:
        moved = False
        smaller = [replace(program, steps=program.steps[:i] + program.steps[i + 1:])
                   for i in reversed(range(len(program.steps)))]
        if program.backward:
            smaller.append(replace(program, backward=False))
        smaller += [replace(program, keep=program.keep[:i] + program.keep[i + 1:])
                    for i in range(len(program.keep)) if len(program.keep) > 1]
        smaller += [replace(program, leaves=program.leaves[:i] + program.leaves[i + 1:])
                    for i in range(len(program.leaves)) if len(program.leaves) > 1]
        for p in smaller:
            if time.monotonic() > end:
                break
            if still(p):
                program, moved = p, True
                break
    return program


def survey(seed: int, count: int) -> None:
    """Print how often `count` programs have each operator, dtype, size and step."""
    operators, dtypes, shapes, taken = (Counter[str]() for _ in range(4))
    for number in range(count):
        program = random_program(seed, number)
        m = Machine(gs, gs.nn.functional, REFUSALS, tracing=True)
        leaves = leaves_of(gs, program)
        m.run(program, leaves)
        taken.update(m.taken)
        found = [i.t for i in m.items]
        if program.backward and (total := m.loss(m.results(program))) is not None:
            wanted = [t for t in leaves if t.requires_grad]
            slopes = gs.autograd.grad(total, wanted, allow_unused=True)
            found += [g for g in slopes if g is not None]
        nodes = toposort([t._read() for t in found])
        operators.update({n.op.name for n in nodes})
        dtypes.update({n.dtype.name for n in nodes})
        shapes.update({str(s) for n in nodes for s in n.shape})
    for title, counter in (("steps", taken), ("operators", operators), ("dtypes", dtypes),
                           ("extents", shapes)):
        print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in counter.most_common()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--progress", action="store_true", help="print numbers, to see a crash's")
    parser.add_argument("--chunks", action="store_true", help="cut every kernel for two threads")
    parser.add_argument("--survey", action="store_true", help="count what the programs reach")
    options = parser.parse_args()
    if options.survey:
        survey(options.seed, options.count)
        return 0
    faulthandler.enable()
    with chunks.everywhere() if options.chunks else contextlib.nullcontext():
        return run(options)


def run(options: argparse.Namespace) -> int:
    """The programs asked for; 1 if one failed."""
    torch = None
    if not options.no_torch and importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
    if options.only is not None:
        program = random_program(options.seed, options.only)
        print(program)
        print(check(program, torch))
        return 0
    begin, known = time.monotonic(), Counter[str]()
    done = 0
    for number in range(options.start, options.start + options.count):
        if time.monotonic() - begin > options.seconds:
            break
        program = random_program(options.seed, number)
        if options.progress:
            print(f"#{number}", end=" ", flush=True)
        found = failure(program, torch)
        done += 1
        if found is None:
            continue
        known[found[0]] += 1
        print(f"\n#{number} of seed {options.seed}: {found[0]}", flush=True)
        if known[found[0]] <= 2:
            if not options.no_shrink:
                program = shrink(program, torch, found[0])
                found = failure(program, torch) or found
            print(program)
            print("\n".join(found[1].splitlines()[-22:]), flush=True)
    print(f"{done} programs in {time.monotonic() - begin:.0f} s, {sum(known.values())} failures")
    for name, count in known.most_common():
        print(f"{count:6} {name}")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
