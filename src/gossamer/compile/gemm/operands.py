"""Operands of a product: places in memory, or functions that make or take its blocks. Layer 2.

The one idea: fusion is a function pointer. A `Packed` operand is written, block by block, straight
into the order that the micro-kernel reads; an `Epilogue` takes each finished block of C out of the
cache. So whatever surrounds a product costs no pass over memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.compile.calls import BufferRef, KernelSource, Word

__all__ = ["Epilogue", "Operand", "Output", "Packed"]

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Operand:
    """A matrix in memory.

    Args:
        buffer: number of the program's buffer.
        offset: bytes from its start to element [0, 0, 0, 0].
        strides: of (batch 0, batch 1, row, column), in elements; 0 and negative ones are fine.
    """

    buffer: int
    offset: int
    strides: Strides


@dataclass(frozen=True)
class Output(Operand):
    """C in memory; no two of its elements may share a place."""


@dataclass(frozen=True)
class Packed:
    """An operand that a callback computes while it is packed: a cast, dequantisation, im2col, ...

        void pack(ptr ctx, ptr dst, i64 b0, i64 b1, i64 r0, i64 rows, i64 k0, i64 kc, i64 width)

    r counts rows of A or columns of B. For r < rows and k < kc, the callback writes the operand's
    element [b0, b1, r0 + r, k0 + k], in the product's dtype, to

        dst[k * width + r]   if `along` is "r",
        dst[r * width + k]   if `along` is "k".

    It should write along whichever is contiguous in its own inputs: "k" blocks are transposed in
    registers afterwards. It writes nothing else: padding is not its duty. `dst` is aligned to an
    element only. Calls come from several threads, in any order, and may repeat a block. There are
    at most 32 rows (less for narrower vectors) and a few hundred k.

    Args:
        context: words of the block that `ctx` points to.
        step: k0 and kc of every call are multiples of it; it divides the product's K.
    """

    callback: KernelSource
    context: tuple[Word, ...]
    along: str = "r"
    step: int = 1

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(word.index for word in self.context if isinstance(word, BufferRef))


@dataclass(frozen=True)
class Epilogue:
    """A consumer of finished blocks of C, which computes and stores what follows the product.

        void epilogue(ptr ctx, ptr tile, i64 ld, i64 b0, i64 b1, i64 m0, i64 rows, i64 n0, i64 cols)

    tile[i * ld + j] is C[b0, b1, m0 + i, n0 + j] for i < rows, j < cols, in the product's dtype.
    The tile is scratch memory in the cache, aligned to an element: the callback may overwrite its
    rows x cols elements. Every element of C is in exactly one call; calls come from several threads
    in any order.

    Args:
        context: words of the block that `ctx` points to.
        reads, writes: buffers that the callback touches (those in `context` are read if neither
            is given).
    """

    callback: KernelSource
    context: tuple[Word, ...]
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
