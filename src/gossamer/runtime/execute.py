"""A program in native memory: laid out once, run with one native call. Layer 3.

The one idea: everything that can differ between two runs (buffer pointers, runtime scalars, where
scratch memory lies) is one vector of values, and everything in memory that depends on them is a
table of patches (word, value, offset). Python writes the vector with one call; native code applies
the table (1 ns a patch: less than finding out what changed), then walks the records.

Layout of the words: header, records, argument blocks, patches, values (see `native.HEADER`).
"""

from __future__ import annotations

import os
import struct
import threading
import time
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gossamer.compile.calls import Address, Call, FloatWord, KernelSource, Param, Scratch, Word
from gossamer.core.errors import CompileError
from gossamer.runtime import jit, threads
from gossamer.runtime.buffer import Buffer
from gossamer.runtime.native import HEADER, HEADER_WORDS, PATCH_WORDS, RECORD_WORDS
from gossamer.runtime.scratch import Area, borrow, give_back, plan_scratch

__all__ = ["Executable", "flat", "float_bits", "marks_in_ns", "sources_of"]

_MASK = (1 << 64) - 1
_SCRATCH = 0  # number of the value that holds the workspace's address; buffers follow, then params
_Words = Sequence[Word | tuple[Word, ...]]


def float_bits(value: float) -> int:
    """The word of a floating-point runtime scalar: the bits of a float64."""
    return int.from_bytes(struct.pack("<d", value), "little")


def sources_of(calls: Sequence[Call]) -> list[KernelSource]:
    """Every kernel that `calls` need, callbacks included, each once."""
    found: dict[KernelSource, None] = {}
    for call in calls:
        found[call.source] = None
        for word in flat(call.words):
            if isinstance(word, Address):
                found[word.source] = None
    return list(found)


def flat(words: _Words) -> Iterator[Word]:
    """All words, those of nested blocks included."""
    for word in words:
        if isinstance(word, tuple):
            yield from flat(word)
        else:
            yield word


class _Layout:
    """Writes calls as words; collects the patches and the scratch areas on the way.

    Attributes:
        words: header, records and argument blocks.
        patches: (word, value, offset) for each word that depends on a buffer or a param.
        areas, area_words: scratch areas, and (word, area, offset) for each word into one.
        blocks: (word, word of the block) for each pointer from one block to another.
    """

    def __init__(self, calls: Sequence[Call], buffers: int, constants: Sequence[Buffer],
                 addresses: Mapping[KernelSource, int]) -> None:
        self.buffers, self.constants, self.addresses = buffers, constants, addresses
        self.words = [0] * (HEADER_WORDS + RECORD_WORDS * len(calls))
        self.patches: list[tuple[int, int, int]] = []
        self.areas: list[Area] = []
        self.area_words: list[tuple[int, int, int]] = []
        self.blocks: list[tuple[int, int]] = []
        self._keyed: dict[object, int] = {}
        for number, call in enumerate(calls):
            record = HEADER_WORDS + RECORD_WORDS * number
            self.words[record] = addresses[call.source]
            self.blocks.append((record + 1, self._block(call.words, number)))
            self._place(record + 2, call.n, number)
            self.words[record + 3] = call.grain

    def _block(self, words: _Words, call: int) -> int:
        """Write an argument block at the end; the word where it begins."""
        begin = len(self.words)
        self.words.extend([0] * len(words))
        for position, word in enumerate(words, begin):
            if isinstance(word, tuple):
                self.blocks.append((position, self._block(word, call)))
            else:
                self._place(position, word, call)
        return begin

    def _place(self, position: int, word: Word, call: int) -> None:
        if isinstance(word, int):
            self.words[position] = word & _MASK
        elif isinstance(word, FloatWord):
            self.words[position] = float_bits(word.value)
        elif isinstance(word, Address):
            self.words[position] = self.addresses[word.source]
        elif isinstance(word, Param):
            self.patches.append((position, 1 + self.buffers + word.index, 0))
        elif isinstance(word, Scratch):
            self.area_words.append((position, self._area(word, call), word.offset))
        elif word.index < self.buffers:
            self.patches.append((position, 1 + word.index, word.offset & _MASK))
        else:
            constant = self.constants[word.index - self.buffers]
            self.words[position] = constant.address + word.offset

    def _area(self, word: Scratch, call: int) -> int:
        """Number of the area that `word` means; one with a known key lives on until this call."""
        number = self._keyed.get(word.key) if word.key is not None else None
        if number is None:
            number = len(self.areas)
            self.areas.append(Area(call, call, word.nbytes, word.per_thread))
            if word.key is not None:
                self._keyed[word.key] = number
            return number
        area = self.areas[number]
        if area.per_thread != word.per_thread:
            raise CompileError(f"scratch {word.key!r}: asked for with and without per_thread; one "
                               "key must mean one area. This is a defect of Gossamer: report it.")
        area.last, area.nbytes = call, max(area.nbytes, word.nbytes)
        return number


class Executable:
    """A program, ready to run.

    Args:
        calls: in order; every kernel is compiled or loaded now, all cores at work.
        buffers: how many program buffers each run is given pointers for: BufferRef(0 .. n-1).
        constants: memory that the program owns (constants, an arena): BufferRef(n), n + 1, ...
        params: how many runtime scalars each run is given: Param(0 .. params-1).

    Raises:
        CompileError: a kernel does not compile.

    Cost: of a run, about 1 us and what the kernels take.
    """

    def __init__(self, calls: Sequence[Call], buffers: int, constants: Sequence[Buffer] = (),
                 params: int = 0) -> None:
        self.calls, self.buffers, self.params = tuple(calls), buffers, params
        self.constants = tuple(constants)  # keeps them alive
        self.sources = sources_of(self.calls)
        needed = [*self.sources, threads.native_kernel()]
        self.kernels = jit.kernels(needed)  # keeps their machine code in memory
        addresses = {source: kernel.address
                     for source, kernel in zip(needed, self.kernels, strict=True)}
        layout = _Layout(self.calls, buffers, self.constants, addresses)
        self._words = array("Q", layout.words)  # never resized: its address is in use
        self._address = self._words.buffer_info()[0]
        for position, block in layout.blocks:
            self._words[position] = self._address + 8 * block
        self._fixed_patches, self._areas = layout.patches, layout.areas
        self._area_words = layout.area_words
        self._values = array("Q", bytes(8 * (1 + buffers + params)))
        self._write_values = struct.Struct(f"{len(self._values)}Q").pack_into
        self._parallel = any(call.grain > 0 and (isinstance(call.n, Param) or call.n > call.grain)
                             for call in self.calls)
        self._native_run = threads.native().run
        self.lock = threading.RLock()  # `profile` runs inside it
        self._generation = -1  # of the thread pool that memory is laid out for
        self.scratch_bytes = 0
        _executables.add(self)

    def forget_texts(self) -> None:
        """Drop the texts of the kernels; `calls` keeps their names."""
        self.calls = tuple(replace(call, source=KernelSource(call.source.symbol, ""), words=())
                           for call in self.calls)
        self.sources = []

    def run(self, pointers: Sequence[int], params: Sequence[int] = ()) -> None:
        """Run the program once; a second thread waits until the first is done.

        Args:
            pointers: addresses of the program's buffers; an array of them ("Q") is fastest.
            params: its runtime scalars, raw 64 bits each (`float_bits` for floats).

        Raises:
            ValueError: not as many values as the program has.
            MemoryError: no memory for scratch.
        """
        if len(pointers) != self.buffers:
            raise self._miscounted(pointers, params)
        with self.lock:
            if self._generation != threads.generation:
                self._prepare()
            workspace = borrow(self.scratch_bytes) if self.scratch_bytes else None
            address = workspace.address if workspace is not None else 0
            try:
                if self.params or pointers.__class__ is not array:
                    self._write_values(self._values, 0, address, *pointers, *params)
                else:  # a tenth of the time
                    self._values[0] = address
                    self._values[1:] = pointers
            except struct.error:  # negative params, or not as many as there are
                if len(params) != self.params:
                    raise self._miscounted(pointers, params) from None
                self._write_values(self._values, 0, address, *pointers,
                                   *[value & _MASK for value in params])
            self._native_run(self._address)
            if workspace is not None:
                give_back(workspace)

    def profile(self, pointers: Sequence[int],
                params: Sequence[int] = ()) -> list[tuple[str, float]]:
        """Run once and tell (name, seconds) of each call, in order."""
        marks = self.marks(pointers, params)
        return [(call.name or call.source.symbol, 1e-9 * (marks[2 * i + 1] - marks[2 * i]))
                for i, call in enumerate(self.calls)]

    def marks(self, pointers: Sequence[int], params: Sequence[int] = ()) -> list[int]:
        """Run once; begin and end of each call in turn, in ns of `time.perf_counter_ns`."""
        times = array("Q", bytes(16 * len(self.calls)))
        with self.lock:
            self._words[HEADER["profile"]] = times.buffer_info()[0]
            start = time.perf_counter_ns()
            try:
                self.run(pointers, params)
            finally:
                self._words[HEADER["profile"]] = 0
            elapsed = time.perf_counter_ns() - start
        return marks_in_ns(times, start, elapsed)

    # inside -------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        """Lay out what depends on the threads: the pool's address, scratch, the patch table."""
        self._generation = threads.generation
        pool = threads.current_pool() if self._parallel else None
        offsets, self.scratch_bytes = plan_scratch(self._areas, pool.threads if pool else 1)
        patches = [*self._fixed_patches,
                   *((word, _SCRATCH, offsets[area] + offset)
                     for word, area, offset in self._area_words)]
        self._patches = array("Q", [number for patch in patches for number in patch])
        assert len(self._patches) == PATCH_WORDS * len(patches)
        for field, value in (("count", len(self.calls)), ("pool", pool.address if pool else 0),
                             ("patch_count", len(patches)),
                             ("patches", self._patches.buffer_info()[0]),
                             ("values", self._values.buffer_info()[0]),
                             ("words", self._address)):
            self._words[HEADER[field]] = value

    def _miscounted(self, pointers: Sequence[int], params: Sequence[int]) -> ValueError:
        return ValueError(
            f"Executable.run: {len(pointers)} pointers and {len(params)} params; "
            f"this program has {self.buffers} buffers and {self.params} params. Pass one "
            "value for each.")


def marks_in_ns(times: Sequence[int], start: int, elapsed: int) -> list[int]:
    """Native clock readings as ns: they are, where POSIX clocks exist; elsewhere they are cycles,
    which all together took `elapsed`."""
    if hasattr(time, "CLOCK_MONOTONIC") or not times:
        return list(times)
    unit = elapsed / max(1, times[-1] - times[0])
    return [start + int(unit * (t - times[0])) for t in times]


_executables: weakref.WeakSet[Executable] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Locks may have been held by threads that the child does not have."""
    for executable in _executables:
        executable.lock = threading.RLock()
        executable._generation = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
