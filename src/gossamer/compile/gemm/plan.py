"""From the sizes of a product to its calls. Layer 2.

The one idea: every decision about blocking is made here, in plain Python, and reaches the native
driver as words. Two rules keep results independent of threads: the blocks of K follow from K
alone, and everything else only decides who computes an element, never in which order it is summed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossamer.compile.calls import Address, BufferRef, Call, Scratch, Word
from gossamer.compile.gemm.core import FIELDS, core_source
from gossamer.compile.gemm.micro import panel_source
from gossamer.compile.gemm.operands import Epilogue, Operand, Output, Packed
from gossamer.compile.gemm.target import Target, Tile, tile_for
from gossamer.core.dtype import DType

__all__ = ["gemm"]

_KC = 384  # most products summed in registers before C is touched
_SERIAL = 200_000  # multiply-adds below which waking a second thread costs more than it saves


@dataclass(frozen=True)
class _Problem:
    """C[m, n] = A B, with both operands seen as (batch 0, batch 1, r, k); r is m or n."""

    batch: tuple[int, int]
    m: int
    n: int
    k: int
    a: Operand | Packed
    b: Operand | Packed
    out: Output | Epilogue
    swapped: bool = False  # A and B have changed places, and C is transposed

    def swap(self) -> _Problem:
        out = self.out
        if isinstance(out, Output):
            b0, b1, m, n = out.strides
            out = replace(out, strides=(b0, b1, n, m))
        return replace(self, m=self.n, n=self.m, a=self.b, b=self.a, out=out,
                       swapped=not self.swapped)


@dataclass(frozen=True)
class _Blocks:
    """Extents of the blocks; see `core.py` for the loops."""

    item_m: int
    item_n: int
    mc: int
    kc: int
    ko: int


def gemm(batch: tuple[int, int], m: int, n: int, k: int, dtype: DType, a: Operand | Packed,
         b: Operand | Packed, out: Output | Epilogue, target: Target) -> list[Call]:
    """Calls that compute C[b0, b1, i, j] = sum over k of A[b0, b1, i, k] B[b0, b1, k, j].

    Args:
        batch: extents of the two batch dimensions.
        m, n, k: extents, 0 or more; k = 0 gives zeros.
        dtype: float32 or float64, of A, B, C and the sums.
        a, b: operands; strides of A are (b0, b1, m, k), of B (b0, b1, k, n).
        out: C in memory, or the consumer of its blocks.
        target: the CPU.

    Returns:
        Calls to run in order; none if C is empty.

    Cost: 2 b0 b1 m n k FLOPs; each operand is packed about once per 256 rows or columns of C.
    """
    if 0 in (*batch, m, n):
        return []
    if isinstance(b, Operand):
        b0, b1, row, column = b.strides
        b = replace(b, strides=(b0, b1, column, row))
    tile = tile_for(dtype, target)
    problem = _oriented(_Problem(batch, m, n, k, a, b, out), tile)
    return [_packed_call(problem, tile, target)]


def _oriented(p: _Problem, tile: Tile) -> _Problem:
    """The problem or its transpose: C's columns should be neighbours, and fill whole vectors."""
    def lanes(x: int) -> int:
        return -(-x // tile.lanes) * tile.lanes

    # Multiply-adds (in lanes), and 32 for each element that is stored one by one.
    straight = p.m * lanes(p.n) * p.k
    across = p.n * lanes(p.m) * p.k
    loose = 32 * p.m * p.n
    if isinstance(p.out, Output):
        straight += loose * (p.out.strides[3] != 1)
        across += loose * (p.out.strides[2] != 1)
    else:
        across += loose
    return p.swap() if across < straight else p


def _round(x: int, step: int) -> int:
    return -(-x // step) * step


def _even(total: int, most: int, step: int) -> int:
    """The size of even blocks of `total`, each at most about `most` and a multiple of `step`."""
    count = max(1, -(-total // max(most, 1)))
    return _round(-(-total // count), step)


def _blocks(p: _Problem, tile: Tile, target: Target) -> _Blocks:
    size, width = tile.nbytes, tile.columns
    kc = _even(max(p.k, 1), _KC, 1)
    mc = _even(p.m, target.l2 // 2 // (kc * size), tile.rows)
    budget = 2 * target.l2 // size  # elements of packed B
    ko, columns = p.k, budget // max(p.k, 1)
    if columns < min(p.n, 8 * width):
        ko, columns = kc, budget // kc
    item_n = _even(p.n, columns // width * width, width)
    item_m = p.m
    if isinstance(p.out, Epilogue) and ko < p.k:
        item_m = mc
    return _Blocks(item_m, item_n, mc, kc, max(ko, 1))


def _packed_call(p: _Problem, tile: Tile, target: Target) -> Call:
    s = _blocks(p, tile, target)
    words: dict[str, Word | tuple[Word, ...]] = {
        "batch1": p.batch[1], "m": p.m, "n": p.n, "k": p.k, "parts": 1, "part_k": max(p.k, 1),
        "items_m": -(-p.m // s.item_m), "items_n": -(-p.n // s.item_n),
        "item_m": s.item_m, "item_n": s.item_n, "mc": s.mc, "kc": s.kc, "ko": s.ko,
        "micro": Address(panel_source(tile, False)), "a_pitch": 0, "a_pack": 1, "b_pack": 1,
        **_operand_words("a", p.a), **_operand_words("b", p.b), **_output_words(p),
        **_scratch_words(p, s, tile),
    }
    items = p.batch[0] * p.batch[1] * -(-p.m // s.item_m) * -(-p.n // s.item_n)
    small = p.batch[0] * p.batch[1] * p.m * p.n * p.k < _SERIAL
    return Call(core_source(tile), tuple(words[name] for name in FIELDS), items,
                0 if small or target.threads == 1 else 1, f"gemm {p.m}x{p.n}x{p.k}",
                *_buffers(p))


def _operand_words(name: str, x: Operand | Packed) -> dict[str, Word | tuple[Word, ...]]:
    if isinstance(x, Packed):
        values: tuple[Word | tuple[Word, ...], ...] = (
            0, 0, 0, 0, 0, Address(x.callback), x.context, int(x.along == "k"))
    else:
        values = (BufferRef(x.buffer, x.offset), *x.strides, 0, 0, 0)
    fields = ("", "_b0", "_b1", "_r", "_k", "_fn", "_ctx", "_order")
    return {name + f: v for f, v in zip(fields, values, strict=True)}


def _output_words(p: _Problem) -> dict[str, Word | tuple[Word, ...]]:
    if isinstance(p.out, Epilogue):
        values: tuple[Word | tuple[Word, ...], ...] = (
            0, 0, 0, 0, 0, 0, Address(p.out.callback), p.out.context, int(p.swapped))
    else:
        b0, b1, m, n = p.out.strides
        values = (BufferRef(p.out.buffer, p.out.offset), b0, b1, 0, m, n, 0, 0, 0)
    fields = ("", "_b0", "_b1", "_part", "_m", "_n", "_fn", "_ctx", "_swapped")
    return {"c" + f: v for f, v in zip(fields, values, strict=True)}


def _scratch_words(p: _Problem, s: _Blocks, tile: Tile) -> dict[str, Word]:
    """Layout of a thread's scratch memory: packed A, packed B, tile, edge, stage."""
    width = tile.columns
    slack = tile.lanes  # what packing may write beyond the end
    columns = _round(min(s.item_n, p.n), width)
    tile_pitch = _round(s.mc, width) if p.swapped else columns
    tile_rows = columns if p.swapped else s.mc
    sizes = {
        "at_b": s.mc * s.kc + slack,
        "at_tile": columns * s.ko + slack,
        "at_edge": tile_pitch * tile_rows if isinstance(p.out, Epilogue) else 0,
        "at_stage": s.mc * width,
        "scratch_bytes": max(width, tile.rows) * s.kc
        if any(isinstance(x, Packed) for x in (p.a, p.b)) else 0,
    }
    words: dict[str, Word] = {"tile_pitch": tile_pitch}
    place = 0
    for name, elements in sizes.items():
        place += _round(elements * tile.nbytes, 64)
        words[name] = place
    words["scratch"] = Scratch(place, per_thread=True)
    return words


def _buffers(p: _Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(read, written) buffers of the program."""
    reads: list[int] = []
    for x in (p.a, p.b):
        reads += x.reads if isinstance(x, Packed) else (x.buffer,)
    if isinstance(p.out, Epilogue):
        touched = tuple(w.index for w in p.out.context if isinstance(w, BufferRef))
        return ((*reads, *(p.out.reads or (() if p.out.writes else touched))), p.out.writes)
    return tuple(reads), (p.out.buffer,)
