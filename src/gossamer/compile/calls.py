"""What the compiler hands to the runtime: calls of native kernels, as plain data. Layer 2.

The one idea: a program is a list of `Call`s. Each names a kernel (LLVM text), the words of its
argument block and its parallel extent. The compiler decides everything here; the runtime only
turns texts into addresses, buffers into pointers, and walks the list with one native call.

Every kernel has the C signature `void k(ptr args, i64 lo, i64 hi, i64 tid)`. `args` points to
8-byte words; [lo, hi) is a part of the kernel's index space of size `n`; `tid` is the number of
the worker that runs it (0 is the caller), for scratch memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Address", "BufferRef", "Call", "FloatWord", "KernelSource", "PLAIN", "Param", "Scratch",
           "Word"]

# The first line of a text whose machine code need not be optimised: it has no loops, or what they
# do takes longer than they. LLVM writes it in a third of the time, as fast (100 tanh of 4 numbers).
PLAIN = "; plain\n"


@dataclass(frozen=True)
class KernelSource:
    """LLVM text of a module that defines `symbol`. Equal texts are one kernel."""

    symbol: str
    text: str
    # What `explain` shows beside the kernel; not part of its identity.
    loops: str = field(default="", compare=False)


@dataclass(frozen=True)
class BufferRef:
    """Pointer to buffer number `index` of the program, plus a byte offset."""

    index: int
    offset: int = 0


@dataclass(frozen=True)
class Scratch:
    """Pointer to scratch memory of this call.

    `per_thread`: the word points to `threads` areas, one for each worker, each `nbytes` rounded
    up to a multiple of 64 (the kernel adds `tid` times that). Otherwise one shared area.
    Calls that name the same `key` in one program share the area (packed operands, for example,
    are written by one call and read by the next); other areas live for one call only. The word
    points `offset` bytes into the area.
    """

    nbytes: int
    per_thread: bool = False
    key: object = None
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """Address of a function of another kernel source (a callback such as a fused epilogue)."""

    source: KernelSource


@dataclass(frozen=True)
class FloatWord:
    """A floating-point scalar: the raw bits of a float64 in one word (kernels convert it)."""

    value: float


@dataclass(frozen=True)
class Param:
    """A runtime scalar: raw 64 bits given at each run (bits of a float64, or an int64)."""

    index: int


Word = int | BufferRef | Scratch | Address | FloatWord | Param


@dataclass(frozen=True)
class Call:
    """One kernel call.

    Args:
        source: the kernel.
        words: its argument block; a tuple of words may nest as a block of its own: the word is
            then the pointer to that block (contexts of callbacks).
        n: parallel extent; the kernel is run over [0, n). A `Param` is read at every run.
        grain: indices that one worker claims at a time; 0 runs [0, n) on the calling thread.
        name: short name for `explain` and profiles.
        reads, writes: program buffers touched (for the memory plan).
        copies: (source, destination) if it copies a buffer element by element.
    """

    source: KernelSource
    words: tuple[Word | tuple[Word, ...], ...]
    n: int | Param
    grain: int
    name: str = ""
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    copies: tuple[int, int] | None = None
