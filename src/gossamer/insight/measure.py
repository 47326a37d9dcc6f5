"""How long each kernel of a program takes: runs of the whole program with the clock at each call.

Surface. The one idea: a kernel is timed where it stands, after the kernels before it, so that it
finds in the caches what it would find in a real run; the same memory is used in every round, state
that is updated in place is put back before each, and nothing of the user's is written.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.runtime.buffer import Buffer, allocate
from gossamer.runtime.data import Data
from gossamer.runtime.program import Program

__all__ = ["Timing", "time_program"]

ROUNDS = (5, 31)  # at least, at most
BUDGET = 0.6  # seconds of runs after which no further round starts


@dataclass(frozen=True)
class Timing:
    """Medians over the faster half of `rounds` runs, in seconds: of the whole call, and of each
    kernel call."""

    total: float
    calls: list[float]
    rounds: int


class _Memory:
    """Buffers for repeated runs of a program on given inputs."""

    def __init__(self, program: Program, inputs: Sequence[Data]) -> None:
        compiled = program.compiled
        self.kept: list[object] = []
        self.restore: list[tuple[Buffer, Buffer]] = []
        pointers = [d.buffer.address for d in inputs]
        places: dict[int, Buffer] = {}
        for root, number in compiled.shared:
            original = inputs[number].buffer
            twin = allocate(original.nbytes)
            self.restore.append((twin, original))
            places[compiled.outputs[root]] = twin
            pointers[number] = twin.address
        for b in program.made:
            held = places.get(b) or allocate(compiled.sizes[b])
            self.kept.append(held)
            pointers.append(held.address)
        arena = allocate(program.arena_bytes) if program.arena_bytes else None
        self.kept += [arena, list(inputs)]
        pointers.append(arena.address if arena is not None else 0)
        self.pointers = pointers

    def reset(self) -> None:
        for twin, original in self.restore:
            ctypes.memmove(twin.address, original.address, original.nbytes)


def time_program(program: Program, inputs: Sequence[Data], params: Sequence[int] = ()) -> Timing:
    """Run a program several times on `inputs` and tell what each call took.

    Args:
        program: which.
        inputs: what a run would read; it is not changed.
        params: runtime scalars, raw words.

    Cost: a warm-up and 5 to 31 runs, about `BUDGET` seconds or five runs.
    """
    memory = _Memory(program, inputs)
    executable = program.executable
    memory.reset()
    executable.run(memory.pointers, params)
    totals: list[float] = []
    rows: list[list[int]] = []
    begin = time.perf_counter()
    while len(rows) < ROUNDS[0] or (len(rows) < ROUNDS[1]
                                    and time.perf_counter() - begin < BUDGET):
        memory.reset()
        start = time.perf_counter_ns()
        rows.append(executable.marks(memory.pointers, params))
        totals.append(1e-9 * (time.perf_counter_ns() - start))
    # The faster half: whole runs that other work on the machine disturbed say nothing.
    order = sorted(range(len(rows)), key=totals.__getitem__)
    quiet = order[:(len(order) + 1) // 2]
    calls = [1e-9 * statistics.median(rows[r][2 * i + 1] - rows[r][2 * i] for r in quiet)
             for i in range(len(executable.calls))]
    return Timing(statistics.median(totals[r] for r in quiet), calls, len(rows))
