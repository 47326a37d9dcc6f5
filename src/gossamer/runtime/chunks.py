"""When and where each chunk of each kernel ran: a shim between walker and kernel. Layer 3.

The one idea: a kernel is a function of (args, lo, hi, tid), so a function of the same signature can
stand in its place, look at the clock, call it, look again and write a line into the log of its
thread. Nothing in the kernels or the walker knows of it; records are exchanged for one run and put
back. Cost: two clock readings and six stores a chunk, 55 ns.
"""

from __future__ import annotations

import contextlib
import functools
import time
from array import array
from collections.abc import Iterator

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.runtime import jit
from gossamer.runtime.execute import Executable
from gossamer.runtime.native import HEADER_WORDS, RECORD_WORDS, clock
from gossamer.runtime.threads import get_num_threads

__all__ = ["Chunk", "recorded_chunks"]

Chunk = tuple[int, int, int, int, int, int]  # call, thread, lo, hi, begin, end (ns)

_LINE = 5  # words of a line: call, lo, hi, begin, end
_BLOCK = 6  # words of a shim's arguments: kernel, args, log, bytes a thread, lines a thread, call
_LINES = 1 << 14  # lines that a thread can write in one run; further chunks are not recorded


@functools.cache
def _shim() -> KernelSource:
    f = FunctionBuilder("void @timed(ptr %args, i64 %lo, i64 %hi, i64 %tid)")
    word = [f.load("i64" if i > 2 else "ptr", f.gep("%args", str(i), "i64"), 8)
            for i in range(_BLOCK)]
    kernel, inner, log, pitch, lines, call = word
    begin = f.value("call i64 @clock()")
    f.line(f"call void {kernel}(ptr {inner}, i64 %lo, i64 %hi, i64 %tid)")
    end = f.value("call i64 @clock()")
    mine = f.gep(log, f.mul("%tid", pitch))
    count = f.load("i64", mine, 8)
    with f.when(f.compare("slt", count, lines)):
        line = f.gep(mine, f.add(f.mul(count, str(_LINE)), "1"), "i64")
        for i, value in enumerate((call, "%lo", "%hi", begin, end)):
            f.store("i64", value, f.gep(line, str(i), "i64"), 8)
        f.store("i64", f.add(count, "1"), mine, 8)
    reader = FunctionBuilder("internal i64 @clock()")
    text = reader.finish(clock(reader)) + f.finish()
    return KernelSource("timed", text + "\n".join([*reader.declares.values()]) + "\n")


@contextlib.contextmanager
def recorded_chunks(executable: Executable, found: list[Chunk]) -> Iterator[None]:
    """Record the chunks of the runs in the block; they are in `found` when it ends.

    Where there are no POSIX clocks nothing is recorded.
    """
    if not hasattr(time, "CLOCK_MONOTONIC"):
        yield
        return
    shim = jit.addresses([_shim()])[0]
    calls, threads = len(executable.calls), get_num_threads()
    pitch = 1 + _LINE * _LINES  # words of one thread's log
    log = array("Q", bytes(8 * pitch * threads))
    blocks = array("Q", bytes(8 * _BLOCK * max(1, calls)))
    log_at, blocks_at = log.buffer_info()[0], blocks.buffer_info()[0]
    words = executable._words
    with executable.lock:
        for i in range(calls):
            record = HEADER_WORDS + RECORD_WORDS * i
            blocks[_BLOCK * i:_BLOCK * (i + 1)] = array("Q", [
                words[record], words[record + 1], log_at, 8 * pitch, _LINES, i])
            words[record], words[record + 1] = shim, blocks_at + 8 * _BLOCK * i
        try:
            yield
        finally:
            for i in range(calls):
                record = HEADER_WORDS + RECORD_WORDS * i
                words[record], words[record + 1] = blocks[_BLOCK * i:_BLOCK * i + 2]
    for thread in range(threads):
        lines = log[pitch * thread + 1:pitch * thread + 1 + _LINE * log[pitch * thread]]
        for at in range(0, len(lines), _LINE):
            call, lo, hi, begin, end = lines[at:at + _LINE]
            found.append((call, thread, lo, hi, begin, end))
