"""Memory of tensors: aligned blocks, kept for reuse by size class. Layer 3.

The one idea: a Buffer is an address, a size and what keeps them valid. Blocks of the same size
class are interchangeable, so the next step of a loop gets the blocks that the last one gave back,
already mapped and warm; a new page costs a fault of about 0.25 us per KiB, more than most kernels
need for it. What lies idle is bounded and counted, and the classes unused for longest go first.

Classes: multiples of 64 bytes up to 1 KiB, then eight per power of two (at most 12.5 % lost).
Blocks from 4 KiB on are parts of regions of huge pages, from 4 MiB on mappings of their own; where
there are no huge pages, from 1 MiB on. The weights of a large model are read once a step, when no
small page's address is at hand any more: 13 GB/s from pages of 4 KiB, 30 from huge ones.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from gossamer.core.settings import setting

__all__ = ["Buffer", "allocate", "cached_bytes", "live_bytes", "peak_bytes", "readable",
           "release_cached", "reset_peak"]

_ALIGN = 64  # a cache line, and the widest vector
_FINE = 1024  # bytes up to which classes are multiples of _ALIGN
_MAPPED = 1 << 20  # bytes from which a block is a mapping of its own
_HUGE = 1 << 22  # bytes from which a mapping asks for transparent huge pages (as NumPy does)
_PART = 1 << 12  # bytes from which a block is part of a region
_REGION = 1 << 25  # bytes of a region: 16 huge pages; a page takes memory when it is first used
_APART = 192  # bytes between parts: equal blocks do not begin at equal places of the cache


@functools.cache
def _physical_bytes() -> int:
    """Memory of this machine; 8 GiB where the system does not tell."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_PHYS_PAGES")
        if pages > 0:
            return pages * mmap.PAGESIZE
    return 8 << 30


# (address, size of its class, what owns the memory); None in a Buffer of borrowed memory
_Block = tuple[int, int, object]


class _Pool:
    """Counters, and the idle blocks of every class."""

    __slots__ = ("bound", "idle", "idle_bytes", "live", "lock", "peak")

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: the collector may free a buffer at any line
        self.idle: OrderedDict[int, list[_Block]] = OrderedDict()
        self.idle_bytes = self.live = self.peak = 0
        self.bound = max(1 << 28, _physical_bytes() // 8)

    def shrink(self, bound: int) -> None:
        """Drop idle blocks until at most `bound` bytes are left, the stalest class first."""
        while self.idle_bytes > bound:
            size, blocks = next(iter(self.idle.items()))
            while blocks and self.idle_bytes > bound:
                blocks.pop()
                self.idle_bytes -= size
            if not blocks:
                del self.idle[size]


_pool = _Pool()


class Buffer:
    """A block of memory; it goes back to the pool when the last reference is gone.

    Made by `allocate` and `Buffer.from_numpy` only.

    Attributes:
        address: of the first byte; a multiple of 64 for allocated buffers.
        nbytes: as asked for.
    """

    __slots__ = ("__weakref__", "_array", "_block", "address", "nbytes")

    address: int
    nbytes: int
    _block: _Block | None
    _array: np.ndarray | None  # the array that owns borrowed memory

    def __del__(self, pool: _Pool = _pool) -> None:  # bound: globals go before the last buffers
        block = self._block
        if block is not None:
            size = block[1]
            with pool.lock:
                pool.live -= size
                pool.idle_bytes += size
                try:
                    pool.idle[size].append(block)
                except KeyError:
                    pool.idle[size] = [block]
                if pool.idle_bytes > pool.bound:
                    pool.idle.move_to_end(size)
                    pool.shrink(pool.bound)

    @property
    def borrowed(self) -> bool:
        """The memory belongs to a NumPy array, which is kept alive here."""
        return self._block is None

    def __repr__(self) -> str:
        kind = ", borrowed" if self._block is None else ""
        return f"Buffer(address={self.address:#x}, nbytes={self.nbytes}{kind})"

    @staticmethod
    def from_numpy(array: np.ndarray) -> Buffer:
        """The memory of `array` itself if kernels can work on it, else a copy.

        Shared when the array is C-contiguous, aligned to its item size, writeable and in native
        byte order; `borrowed` tells.
        """
        flags = array.flags
        address = array.__array_interface__["data"][0]
        shared = (flags.c_contiguous and flags.writeable and array.dtype.isnative
                  and address % max(1, array.itemsize) == 0)
        if shared:
            buffer = Buffer()
            buffer.address, buffer.nbytes = address, array.nbytes
            buffer._block, buffer._array = None, array
            return buffer
        copy = allocate(array.nbytes)
        copy.as_numpy(array.dtype.newbyteorder("="), array.shape)[...] = array
        return copy

    def as_numpy(self, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
        """The memory as an array, without a copy; the array keeps this buffer alive.

        Raises:
            ValueError: the array would be larger than the buffer.

        Cost: 0.4 us.
        """
        needed = dtype.itemsize
        for extent in shape:
            needed *= extent
        if needed > self.nbytes:
            raise ValueError(f"as_numpy({dtype}, {tuple(shape)}): {needed} bytes of a buffer of "
                             f"{self.nbytes}; a view cannot be larger. Allocate more.")
        memory = _memory_at(self.address)
        memory.owner = self
        return np.ndarray(shape, dtype, memory)


class _Memory(ctypes.c_char * sys.maxsize):  # type: ignore[misc]
    """All memory from an address on, as Python's buffer protocol shows it: the base of an array,
    so it holds the `Buffer`. A third of the time of NumPy's array interface."""

    __slots__ = ("owner",)

    owner: Buffer


_memory_at = _Memory.from_address


def allocate(nbytes: int) -> Buffer:
    """A buffer of `nbytes` bytes, aligned to 64, with arbitrary contents.

    Raises:
        MemoryError: the system gives no more.
        ValueError: `nbytes` is negative.

    Cost: 0.5 us when a block of the class is idle, else a system call and a fault per page.
    """
    size = _sizes.get(nbytes)
    if size is None:
        size = size_class(nbytes)
        if len(_sizes) < _REMEMBERED:
            _sizes[nbytes] = size
    pool = _pool
    with pool.lock:
        blocks = pool.idle.get(size)
        if blocks:
            block = blocks.pop()
            pool.idle_bytes -= size
        else:
            block = _obtain(size, nbytes)
        pool.live += size
        if pool.live > pool.peak:
            pool.peak = pool.live
    buffer = Buffer()
    buffer.address, buffer.nbytes, buffer._block = block[0], nbytes, block
    if _DIRTY:
        ctypes.memset(block[0], 0xFF, nbytes)
    return buffer


_DIRTY = setting("GOSSAMER_VERIFY")  # fresh memory holds NaN and -1: who reads it is found out
_REMEMBERED = 10_000
_sizes: dict[int, int] = {}  # size classes already worked out


def size_class(nbytes: int) -> int:
    """Bytes of the blocks that serve a request of `nbytes`."""
    if nbytes < 0:
        raise ValueError(f"allocate({nbytes}): a size cannot be negative. Check the shape.")
    if nbytes <= _FINE:
        return max(_ALIGN, (nbytes + _ALIGN - 1) & -_ALIGN)
    step = max(_ALIGN, 1 << ((nbytes - 1).bit_length() - 4))
    if nbytes >= _MAPPED:
        step = max(step, mmap.PAGESIZE)
    return (nbytes + step - 1) & -step


def _obtain(size: int, nbytes: int) -> _Block:
    """A new block of `size` bytes; idle blocks are dropped if need be."""
    try:
        return _from_system(size)
    except (MemoryError, OSError, OverflowError, ValueError):
        _pool.shrink(0)
    try:
        return _from_system(size)
    except (MemoryError, OSError, OverflowError, ValueError):
        raise MemoryError(
            f"allocate({nbytes}): {readable(nbytes)} asked for while {readable(_pool.live)} are "
            f"in use; this machine has {readable(_physical_bytes())}. Use smaller batches or "
            "free tensors first (del, or leave the function that holds them).") from None


class _Region:
    """A mapping of huge pages of which blocks are parts. It goes when its last block has gone."""

    def __init__(self) -> None:
        self.mapping = mmap.mmap(-1, _REGION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _advise_huge(self.mapping)
        self.first = ctypes.c_char.from_buffer(self.mapping)
        self.used = 0


class _Part:
    """What keeps a part of a region; its whole pages return to the system when it is dropped."""

    def __init__(self, region: _Region, begin: int, size: int) -> None:
        self.region = region
        self.begin, self.end = begin + -begin % mmap.PAGESIZE, (begin + size) & -mmap.PAGESIZE

    def __del__(self, advice: int = getattr(mmap, "MADV_DONTNEED", 0)) -> None:
        if self.end > self.begin:
            self.region.mapping.madvise(advice, self.begin, self.end - self.begin)


_region: _Region | None = None  # of which the next parts are taken


def _part_of_region(size: int) -> _Block | None:
    """A part of the newest region, or of a new one; None where the system gives none."""
    global _region
    region = _region
    if region is None or region.used + size > _REGION:
        try:
            region = _region = _Region()
        except (MemoryError, OSError):
            return None  # less may still be had
    begin, region.used = region.used, region.used + size + _APART
    return ctypes.addressof(region.first) + begin, size, _Part(region, begin, size)


def _from_system(size: int) -> _Block:
    if _PART <= size < _HUGE and _huge_pages:
        block = _part_of_region(size)
        if block is not None:
            return block
    if size < _MAPPED:
        array = np.empty(size + _ALIGN, np.uint8)
        address = array.__array_interface__["data"][0]
        return address + -address % _ALIGN, size, array
    if os.name == "nt":
        mapping = mmap.mmap(-1, size)
    else:  # private: a forked child must not share its parent's tensors
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= _HUGE and _huge_pages:
            _advise_huge(mapping)
    first = ctypes.c_char.from_buffer(mapping)
    return ctypes.addressof(first), size, first


def _advise_huge(mapping: mmap.mmap) -> None:
    global _huge_pages
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them; small pages serve
        _huge_pages = False


_huge_pages = hasattr(mmap, "MADV_HUGEPAGE")  # Linux


# counters ---------------------------------------------------------------------------------------
def live_bytes() -> int:
    """Bytes in allocated buffers, as their classes round them; borrowed memory is not counted."""
    return _pool.live


def peak_bytes() -> int:
    """The most that `live_bytes` has been since the start or the last `reset_peak`."""
    return _pool.peak


def reset_peak() -> None:
    _pool.peak = _pool.live


def cached_bytes() -> int:
    """Bytes in idle blocks, held for reuse."""
    return _pool.idle_bytes


def release_cached() -> None:
    """Give all idle blocks back to the system."""
    with _pool.lock:
        _pool.shrink(0)


def readable(nbytes: int) -> str:
    """`1.5 MiB`."""
    value = float(nbytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.4g} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _after_fork_in_child() -> None:
    _pool.lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
