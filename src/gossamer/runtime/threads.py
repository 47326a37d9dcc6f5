"""Worker threads: how many, who starts them, and what becomes of them after fork. Layer 3.

The one idea: a pool is a block of memory that native code works on (see `native`) plus threads
that sit in it; it is never changed, only replaced. Whoever keeps a pool's address compares
`generation` first: a new number of threads, or a fork, means a new pool. Old blocks are kept, so
that a program that still runs on one ends well, with fewer helpers.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import time
import warnings
from array import array
from collections.abc import Callable
from typing import Any

from gossamer.compile.calls import KernelSource
from gossamer.runtime import device, jit
from gossamer.runtime.native import AT, BLOCK_BYTES, ENTRIES, native_source

__all__ = ["Native", "Pool", "current_pool", "generation", "get_num_threads",
           "known_num_threads", "native", "native_kernel", "set_num_threads"]

# How long an idle worker looks for work before it sleeps. Waking one costs the caller 2 to 5 us
# and the worker 30 to 60, so the pauses between the regions of a step should stay under this;
# more would burn a core that other programs could use (OpenMP's 200 ms is what to avoid).
_SPIN_SECONDS = 50e-6


@functools.cache
def native_kernel(portable: bool = False) -> KernelSource:
    """Source of the native loops for this host; programs compile it along with their own."""
    return native_source(device.host().triple, portable)


class Native:
    """Addresses of the native loops, and the callables made of them.

    `run(program_address)` walks a program (layout: `native.HEADER`) with the GIL released.
    `check(table_address)` is `native._check` and `same(table_address)` `native._same`; None on
    Pythons other than CPython.
    """

    def __init__(self, portable: bool = False) -> None:
        table = (ctypes.c_uint64 * len(ENTRIES))()
        entry = jit.addresses([native_kernel(portable)])[0]
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)(ctypes.addressof(table))
        self.table = dict(zip(ENTRIES, table, strict=True))
        word, pointer = ctypes.c_int64, ctypes.c_void_p
        self.worker = ctypes.CFUNCTYPE(None, pointer, word)(self.table["worker"])
        self.stop = ctypes.CFUNCTYPE(None, pointer)(self.table["stop"])
        self.pauses = ctypes.CFUNCTYPE(None, pointer, word)(self.table["pauses"])
        self.parallel = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, word, word)(
            self.table["parallel"])
        self.run: Callable[[int], Any] = (
            _builtin(self.table["call"]) or ctypes.CFUNCTYPE(None, pointer)(self.table["run"]))
        self.check: Callable[[int], int] | None = _builtin(self.table["check"])
        self.same: Callable[[int], int] | None = _builtin(self.table["same"])


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p),
                ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


_METH_O = 0x0008
_definitions: list[_MethodDef] = []  # CPython keeps a pointer to the definition, not a copy


def _builtin(address: int) -> Callable[[int], Any] | None:
    """The function at `address` as a CPython built-in of one argument; None on other Pythons.

    A call costs 0.1 us, through ctypes 0.3.
    """
    make = getattr(ctypes.pythonapi, "PyCFunction_NewEx", None)
    if make is None:
        return None
    definition = _MethodDef(b"run", address, _METH_O, None)
    _definitions.append(definition)
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p,
                             ctypes.c_void_p)(("PyCFunction_NewEx", ctypes.pythonapi))
    return make(ctypes.addressof(definition), None, None)


@functools.cache
def native(portable: bool = False) -> Native:
    """The native loops of this process; compiled or loaded at the first call."""
    return Native(portable)


class Pool:
    """Worker threads around one region block.

    Args:
        threads: how many run a parallel region, the caller included; `threads - 1` are started.
        portable: the variant without futex, for systems that have none.

    `threads` may come out smaller than asked, with a warning, where the system refuses to start
    more.
    """

    def __init__(self, threads: int, portable: bool = False) -> None:
        self._native = native(portable)
        words = BLOCK_BYTES // 8
        self._block = array("Q", bytes(8 * (words + 16)))  # zeroed; 128 bytes to align in
        start = self._block.buffer_info()[0]
        self.address = start + -start % 128
        self._first = (self.address - start) // 8
        self._block[self._first + AT["spins"] // 8] = self._spins()
        self._workers: list[threading.Thread] = []
        self._start(threads)
        self.threads = 1 + len(self._workers)

    def _spins(self) -> int:
        """Turns of the workers' spin loop in `_SPIN_SECONDS`; `pause` takes 3 to 140 cycles."""
        turns, best = 500, float("inf")
        for _ in range(3):
            start = time.perf_counter()
            self._native.pauses(self.address, turns)
            best = min(best, time.perf_counter() - start)
        return max(1, int(turns * _SPIN_SECONDS / best))

    def _start(self, threads: int) -> None:
        for number in range(1, threads):
            worker = threading.Thread(target=self._native.worker, args=(self.address, number),
                                      name=f"gossamer-worker-{number}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:  # "can't start new thread"
                warnings.warn(f"set_num_threads({threads}): {error}; going on with {number}. "
                              "Set GOSSAMER_THREADS to what this system allows.",
                              RuntimeWarning, stacklevel=2)
                break
            self._workers.append(worker)

    def run(self, kernel: int, args: int, n: int, grain: int) -> None:
        """Run the kernel at address `kernel` over [0, n) in chunks of `grain`, in parallel."""
        self._native.parallel(self.address, kernel, args, n, grain)

    def stop(self, timeout: float = 1.0) -> None:
        """End the workers. The block stays usable: its regions then run on the caller alone."""
        self._native.stop(self.address)
        for worker in self._workers:
            worker.join(timeout)


# the pool of this process -----------------------------------------------------------------------
_lock = threading.RLock()
_pool: Pool | None = None
_retired: list[Pool] = []  # programs may still hold their addresses
_wanted: int = 0  # 0: as many as device.usable_cores() says

# Changes whenever a pool's address and the number of threads must be asked for again. A plain
# number, because every run of every program compares it.
generation = 0


def get_num_threads() -> int:
    """Threads that run a parallel kernel, the calling one included."""
    return _wanted if _wanted > 0 else device.usable_cores()


_known = (-1, 0)  # (generation, threads then)


def known_num_threads() -> int:
    """`get_num_threads` as it was when the generation changed last: without a look at the
    environment (3 us), for what asks at every call."""
    global _known
    if _known[0] != generation:
        _known = (generation, get_num_threads())
    return _known[1]


def set_num_threads(threads: int) -> None:
    """Use `threads` threads for parallel kernels from now on; results do not depend on it.

    Raises:
        ValueError: less than one.
    """
    global _wanted, generation
    if threads < 1:
        raise ValueError(f"set_num_threads({threads!r}): the number of threads must be at "
                         "least 1. Leave it alone for all usable cores.")
    with _lock:
        if threads != get_num_threads():
            _retire()
        _wanted = threads
        generation += 1


def current_pool() -> Pool | None:
    """The pool of this process, started at the first call; None when one thread is all."""
    global _pool
    with _lock:
        if _pool is None and get_num_threads() > 1:
            _pool = Pool(get_num_threads())
        return _pool


def _retire() -> None:
    global _pool
    if _pool is not None:
        _pool.stop()
        _retired.append(_pool)
        _pool = None


def _after_fork_in_child() -> None:
    """Threads do not survive fork: the child starts its own when it needs them."""
    global _pool, generation, _lock
    _lock = threading.RLock()
    if _pool is not None:
        _retired.append(_pool)
        _pool = None
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_retire)
