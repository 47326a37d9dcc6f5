"""A compiled graph that can be run on data. Layer 3.

The one idea: the compiler numbers buffers; here numbers become memory. Inputs and outputs are
buffers of their own, all temporaries lie in one arena, and a run is one native call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gossamer.compile.calls import BufferRef, Call, KernelSource, Scratch, Word
from gossamer.compile.gemm import Target
from gossamer.compile.pipeline import Compiled
from gossamer.core.dtype import DType
from gossamer.core.errors import IndexingError
from gossamer.core.precision import product_dtype
from gossamer.core.settings import setting
from gossamer.ir.node import Shape
from gossamer.runtime import watch
from gossamer.runtime.amx import usable_features
from gossamer.runtime.buffer import Buffer, allocate, readable
from gossamer.runtime.chunks import recorded_chunks
from gossamer.runtime.data import Data
from gossamer.runtime.device import host
from gossamer.runtime.execute import Executable, flat
from gossamer.runtime.threads import get_num_threads

__all__ = ["Program", "host_target"]

_SHOWN = 4  # buffers that a message names
# Bytes of an arena that a program keeps between runs: 0.8 us less a run, and little even when a
# thousand programs are in memory. None where fresh memory is to hold NaN.
_KEPT_ARENA = 0 if setting("GOSSAMER_VERIFY") else 8192
_NOTHING = Buffer.from_numpy(np.empty(0, np.uint8))  # the arena of a program without temporaries


def host_target() -> Target:
    """This machine, as the compiler sees it."""
    h = host()
    return Target(h.vector_bytes, usable_features(h), h.l1_bytes, h.l2_bytes, get_num_threads(),
                  product_dtype())


class Program:
    """A compiled graph, laid out for running.

    Args:
        compiled: what the compiler made.
        types: shape and dtype of each root.
        params: number of runtime scalars.
    """

    def __init__(self, compiled: Compiled, types: Sequence[tuple[Shape, DType]],
                 params: int = 0) -> None:
        self.compiled = compiled
        self.types = list(types)
        self.inputs = compiled.inputs
        checked = [b for b, _ in compiled.checks]
        made = dict.fromkeys(b for b in [*compiled.outputs, *checked] if b >= compiled.inputs)
        self.made = list(made)  # computed buffers that a run hands out
        place = {b: compiled.inputs + i for i, b in enumerate(self.made)}
        self.arena_number = compiled.inputs + len(self.made)
        calls = [_renumbered(c, compiled.inputs, place, compiled.arena.offsets, self.arena_number)
                 for c in compiled.calls]
        self.place = place
        self.arena_bytes = compiled.arena.nbytes
        self.executable = Executable(calls, self.arena_number + 1, (), params)
        self._sizes = [compiled.sizes[b] for b in self.made]
        # What a run hands out, if that is fresh buffers and nothing else: (number in `made`, type).
        self._fresh = [(place[b] - compiled.inputs, shape, dtype)
                       for b, (shape, dtype) in zip(compiled.outputs, self.types, strict=True)
                       if b in place]
        self._plain = len(self._fresh) == len(self.types) and not checked
        self._arena = None if self.arena_bytes else _NOTHING  # kept if it is small
        self.used = False  # since the engine last looked whom to forget
        # Indices are checked before anything is overwritten: a failed step changes nothing.
        needed = _needed(compiled.calls, checked)
        self.guard = Executable([calls[i] for i in needed], self.arena_number + 1, (), params) \
            if needed else None

    def forget_texts(self) -> None:
        """Drop what only the compiler and `explain` read, most of what a program keeps in memory:
        clusters, loops, texts of kernels. It runs as before."""
        calls = [replace(c, source=KernelSource(c.source.symbol, ""), words=())
                 for c in self.compiled.calls]
        self.compiled = replace(self.compiled, calls=calls, owners=[], kernels=[])
        for executable in (self.executable, self.guard):
            if executable is not None:
                executable.forget_texts()

    def run(self, inputs: Sequence[Data], params: Sequence[int] = (),
            reuse: dict[int, Buffer] | None = None) -> list[Data]:
        """Compute the roots.

        Args:
            inputs: data of each input, of the shapes and dtypes that were compiled for.
            params: runtime scalars, 64 raw bits each.
            reuse: root number -> a buffer to write that root's value into (donation).

        Raises:
            IndexingError: an index was out of range.
            MemoryError: the system gives no more; nothing was changed.
        """
        try:
            if not self._plain or reuse or watch.WATCHERS:
                return self._run(inputs, params, reuse)
            pointers, made = [], []
            for d in inputs:  # no comprehensions: each would be a call, 0.2 us
                pointers.append(d.buffer.address)
            for size in self._sizes:
                buffer = allocate(size)
                made.append(buffer)
                pointers.append(buffer.address)
            arena = self._arena
            if arena is None:
                arena = self.workspace()
            pointers.append(arena.address)
            self.executable.run(pointers, params)
            values = []
            for i, shape, dtype in self._fresh:
                values.append(Data(made[i], shape, dtype))
            return values
        except MemoryError as error:
            raise self.explained(error) from None

    def workspace(self) -> Buffer:
        """Memory for the arena. A small one is kept: whoever runs holds the executable's lock."""
        if self._arena is not None:
            return self._arena
        arena = allocate(self.arena_bytes)
        if self.arena_bytes <= _KEPT_ARENA and self.guard is None:
            self._arena = arena
        return arena

    def _run(self, inputs: Sequence[Data], params: Sequence[int],
             reuse: dict[int, Buffer] | None) -> list[Data]:
        compiled = self.compiled
        buffers: dict[int, Buffer] = {}
        if reuse:
            for root, buffer in reuse.items():
                buffers[compiled.outputs[root]] = buffer
        pointers = [d.buffer.address for d in inputs]
        for b, size in zip(self.made, self._sizes, strict=True):
            held = buffers.get(b)
            if held is None:
                held = buffers[b] = allocate(size)
            pointers.append(held.address)
        arena = self.workspace()
        pointers.append(arena.address)
        if self.guard is not None:
            self.guard.run(pointers, params)
            for b, message in compiled.checks:
                if buffers[b].as_numpy(np.dtype(np.bool_), ())[()]:
                    raise IndexingError(message)
        if watch.WATCHERS:
            watched_run(self, pointers, params)
        else:
            self.executable.run(pointers, params)
        return [inputs[b] if b < self.inputs and inputs[b].shape == shape
                else Data(buffers[b] if b >= self.inputs else inputs[b].buffer, shape, dtype)
                for b, (shape, dtype) in zip(compiled.outputs, self.types, strict=True)]

    def explained(self, error: MemoryError) -> MemoryError:
        """What the program wanted memory for."""
        compiled, parts = self.compiled, []
        line = {b: (call.name, *where) for call, where in zip(compiled.calls, compiled.lines,
                                                               strict=True) for b in call.writes}
        for b in sorted(compiled.sizes, key=lambda b: -compiled.sizes[b])[:_SHOWN]:
            name, file, number = line.get(b, ("unused", "?", 0))
            parts.append(f"{readable(compiled.sizes[b])} ({name}, {file}:{number})")
        results = sum(compiled.sizes[b] for b in self.made)
        scratch = self.executable.scratch_bytes  # 0 before the first run is laid out
        return MemoryError(
            f"{error}\nIt was for a program of {len(compiled.calls)} kernels, which needs "
            f"{readable(self.arena_bytes)} for what lives between them (arena), "
            f"{f'{readable(scratch)} of scratch, ' if scratch else ''}"
            f"and {readable(results)} for its results. Its largest buffers: "
            f"{', '.join(parts) or 'none'}.")

    def profile(self, inputs: Sequence[Data],
                params: Sequence[int] = ()) -> list[tuple[str, float]]:
        """(name, seconds) of each kernel call of one run; the results are thrown away."""
        buffers = [allocate(self.compiled.sizes[b]) for b in self.made]
        arena = allocate(self.arena_bytes)
        pointers = [*(d.buffer.address for d in inputs), *(b.address for b in buffers),
                    arena.address]
        return self.executable.profile(pointers, params)


def watched_run(program: Program, pointers: Sequence[int], params: Sequence[int]) -> None:
    """Run with the clock at every kernel, and tell the watchers."""
    executable = program.executable
    chunks: list[tuple[int, int, int, int, int, int]] = []
    begin = time.perf_counter_ns()
    if any(w.per_thread for w in watch.WATCHERS):
        with recorded_chunks(executable, chunks):
            marks = executable.marks(pointers, params)
    else:
        marks = executable.marks(pointers, params)
    end = time.perf_counter_ns()
    for watcher in watch.WATCHERS:
        watcher.ran(program, begin, end, marks, chunks)


def _needed(calls: Sequence[Call], buffers: Sequence[int]) -> list[int]:
    """Numbers of the calls that the contents of `buffers` depend on, in order."""
    wanted: set[object] = set(buffers)
    found: list[int] = []
    for i in range(len(calls) - 1, -1, -1):
        shared = {w.key for w in flat(calls[i].words)  # scratch that an earlier call has filled
                  if isinstance(w, Scratch) and w.key is not None}
        if not wanted.isdisjoint((*calls[i].writes, *shared)):
            wanted.update(calls[i].reads, shared)
            found.append(i)
    return found[::-1]


def _renumbered(call: Call, inputs: int, place: dict[int, int], offsets: dict[int, int],
                arena: int) -> Call:
    def word(w: Any) -> Word | tuple[Word, ...]:
        if isinstance(w, tuple):
            return tuple(word(x) for x in w)  # type: ignore[misc]
        if not isinstance(w, BufferRef) or w.index < inputs:
            return w
        if w.index in place:
            return BufferRef(place[w.index], w.offset)
        return BufferRef(arena, offsets[w.index] + w.offset)

    return replace(call, words=tuple(word(w) for w in call.words))


