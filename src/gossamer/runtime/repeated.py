"""A program run again and again on buffers that stay where they are. Layer 3.

The one idea: of the hundreds of addresses that a step of a large model takes, a handful differ from
one call to the next. The others are written down once, in the form in which a run wants them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from gossamer.core.errors import IndexingError
from gossamer.runtime import watch
from gossamer.runtime.buffer import Buffer, allocate
from gossamer.runtime.data import Data
from gossamer.runtime.program import Program, watched_run

__all__ = ["Repeated"]


class Repeated:
    """A program with the addresses of its last run.

    Args:
        program: compiled; none of its results is one of its inputs (`fits`).
        inputs: input number -> the buffer that it reads every time.
        reused: root number -> the buffer that this root is written into every time.

    The buffers must be alive, and not be looked at by others, whenever it runs.
    """

    def __init__(self, program: Program, inputs: Mapping[int, Buffer],
                 reused: Mapping[int, Buffer]) -> None:
        compiled = program.compiled
        self.program = program
        self._pointers = array("Q", bytes(8 * (program.arena_number + 1)))
        for number, buffer in inputs.items():
            self._pointers[number] = buffer.address
        kept = {compiled.outputs[root]: buffer for root, buffer in reused.items()}
        self._checks: list[tuple[np.ndarray, str]] = []
        self._flags: dict[int, Buffer] = {}  # nobody but us reads whether an index was wrong
        for b, message in compiled.checks:
            if b not in compiled.outputs:
                flag = self._flags.setdefault(b, allocate(compiled.sizes[b]))
                self._checks.append((flag.as_numpy(np.dtype(np.bool_), ()), message))
        self._late = [(b, message) for b, message in compiled.checks if b in compiled.outputs]
        for b, buffer in {**kept, **self._flags}.items():
            self._pointers[program.place[b]] = buffer.address
        self._fresh = [(program.place[b], b, compiled.sizes[b]) for b in program.made
                       if b not in kept and b not in self._flags]
        self._results = [(root, b, *program.types[root])
                         for root, b in enumerate(compiled.outputs) if b not in kept]

    @staticmethod
    def fits(program: Program) -> bool:
        """Whether every result is memory of its own."""
        return all(b >= program.inputs for b in program.compiled.outputs)

    def run(self, numbers: Sequence[int], inputs: Sequence[Data],
            reuse: Mapping[int, Buffer]) -> dict[int, Data]:
        """Run once.

        Args:
            numbers, inputs: the inputs that are not the same every time.
            reuse: root number -> a buffer for it, besides those of every time.

        Returns:
            Root number -> value, of the roots that are not written into the same buffer every time.

        Raises:
            IndexingError: an index was out of range.
            MemoryError: the system gives no more; nothing was changed.
        """
        program, pointers = self.program, self._pointers
        outputs = program.compiled.outputs
        given = {outputs[root]: buffer for root, buffer in reuse.items()} if reuse else {}
        try:
            made = {b: given[b] if b in given else allocate(size) for _, b, size in self._fresh}
            arena = program.workspace()
            with program.executable.lock:  # two threads may call one compiled function
                for number, data in zip(numbers, inputs, strict=True):
                    pointers[number] = data.buffer.address
                for number, b, _ in self._fresh:
                    pointers[number] = made[b].address
                pointers[program.arena_number] = arena.address
                self._guarded(made)
                if watch.WATCHERS:
                    watched_run(program, pointers, ())
                else:
                    program.executable.run(pointers)
        except MemoryError as error:
            raise program.explained(error) from None
        return {root: Data(made[b], shape, dtype) for root, b, shape, dtype in self._results}

    def _guarded(self, made: Mapping[int, Buffer]) -> None:
        """Look at indices before anything is overwritten."""
        guard = self.program.guard
        if guard is None:
            return
        guard.run(self._pointers)
        for flag, message in self._checks:
            if flag[()]:
                raise IndexingError(message)
        for b, message in self._late:
            if made[b].as_numpy(np.dtype(np.bool_), ())[()]:
                raise IndexingError(message)
