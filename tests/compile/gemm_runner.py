"""Runs the calls of `compile.gemm` on NumPy arrays, without the runtime's programs and threads.

`Runner` lays out argument blocks and scratch memory as the contract in `compile/calls.py` says,
and runs each call over its index space in chunks of the test's choosing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gossamer.compile.calls import Address, BufferRef, Call, FloatWord, KernelSource, Scratch, Word
from gossamer.runtime import jit

_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_THREADS = 2  # areas of per-thread scratch


def area(nbytes: int) -> np.ndarray:
    """Scratch memory aligned to 64 bytes; full of NaN, which no result may depend on."""
    raw = np.full(nbytes + 64, 0xFF, np.uint8)
    return raw[-raw.ctypes.data % 64:][:nbytes]


class Runner:
    """Calls made ready to run on fixed arrays.

    Args:
        calls: what `gemm` returned.
        buffers: arrays whose data the buffer numbers stand for.
        note: a comment in every kernel's text, so that the same kernels are compiled once more
            (for other CPU features, say).
    """

    def __init__(self, calls: Sequence[Call], buffers: Sequence[np.ndarray],
                 note: str = "") -> None:
        self.buffers, self.note = buffers, note
        self.keep: list[np.ndarray] = []
        self.shared: dict[object, np.ndarray] = {}
        self.calls = [(c, _Kernel(self.address(c.source)), self.block(c.words)) for c in calls]

    def address(self, source: KernelSource) -> int:
        text = f"; {self.note}\n{source.text}" if self.note else source.text
        return jit.addresses([replace(source, text=text)])[0]

    def block(self, words: Sequence[Word | tuple[Word, ...]]) -> int:
        """Address of an argument block."""
        values = np.array([self.word(w) for w in words] or [0], np.int64)
        self.keep.append(values)
        return values.ctypes.data

    def word(self, w: Word | tuple[Word, ...]) -> int:
        if isinstance(w, tuple):
            return self.block(w)
        if isinstance(w, BufferRef):
            return self.buffers[w.index].ctypes.data + w.offset
        if isinstance(w, Address):
            return self.address(w.source)
        if isinstance(w, FloatWord):
            return int(np.array(w.value).view(np.int64))
        if isinstance(w, Scratch):
            nbytes = -(-w.nbytes // 64) * 64 * (_THREADS if w.per_thread else 1)
            memory = area(nbytes)
            if w.key is not None:
                memory = self.shared.setdefault(w.key, memory)
            self.keep.append(memory)
            return memory.ctypes.data
        assert isinstance(w, int), "products have no runtime scalars"
        return w

    def run(self, chunk: int | None = None) -> None:
        """Run everything; `chunk` indices at a time, last chunk first, on alternating workers."""
        for call, kernel, words in self.calls:
            n = self.word(call.n)
            step = chunk or max(n, 1)
            starts = range(0, n, step)
            for number, lo in enumerate(reversed(starts) if chunk else starts):
                kernel(words, lo, min(lo + step, n), number % _THREADS)
