"""From the sizes of a product to its calls. Layer 2.

The one idea: every decision about blocking is made here, in plain Python, and reaches the native
driver as words. Two rules keep results independent of threads: the blocks and parts of K follow
from the sizes alone, and everything else only decides who computes an element, never in which order
it is summed.
"""

from __future__ import annotations

from dataclasses import replace
from math import lcm

from gossamer.compile.calls import Address, BufferRef, Call, KernelSource, Scratch
from gossamer.compile.gemm.core import core_source, pack_source
from gossamer.compile.gemm.gemv import gemv_source
from gossamer.compile.gemm.micro import panel_source
from gossamer.compile.gemm.micro_amx import amx_source, has_amx
from gossamer.compile.gemm.operands import Epilogue, Operand, Output, Packed
from gossamer.compile.gemm.parts import parts_source
from gossamer.compile.gemm.problem import Problem, normal_form
from gossamer.compile.gemm.target import Target, Tile, tile_for
from gossamer.compile.gemm.words import GROUP, Blocks, Values, argument_block
from gossamer.core.dtype import DType
from gossamer.core.traced import text_of

__all__ = ["gemm"]

# Most products summed in registers before C is touched, by how A lies: along k, each pass over C
# costs 1 to 2 %, and fewer rows of A then fit into L2 at no cost; across k, short rows of A cost
# more than that. Measured on Zen 4 (256 .. 2048).
_KC, _KC_ALONG = 384, 1024
# Panels of the other operand up to which A, and up to which B is read in place.
_FEW_A, _FEW_B = 24, 16
_LINE, _PAGE = 64, 4096  # bytes
# Rows of an A across k that are packed for all panels before the next rows: each line is read from
# memory once. Rows of whole pages share a set of L1, which has 8 ways. Measured on Zen 4 (6 .. 64):
# 1 to 5 % less time than 16 for weight gradients with such rows, and never more.
_RUN = 8
_SHARED = 16  # times L2: the largest B that is packed as a whole. It is read in order, so slowly
# (128 bytes for each 14 x 32 multiply-adds of 56 rows) that even memory would keep up.
_AGAIN = 500_000  # elements of B not packed again (30 us) that pay for a call that packs it
_PARTS = 8  # items that a product with a long K should have, and the most parts of K
_PART_K = 1024  # products in a part: the sum of the parts costs 1 / 64 of them
_SERIAL = 400_000  # multiply-adds (4 us) below which waking a thread costs more than it saves
_CHUNK = 200_000  # multiply-adds that a worker claims at once, when items are small


def gemm(batch: tuple[int, int], m: int, n: int, k: int, dtype: DType, a: Operand | Packed,
         b: Operand | Packed, out: Output | Epilogue, target: Target,
         tile: Tile | None = None) -> list[Call]:
    """Calls that compute C[b0, b1, i, j] = sum over k of A[b0, b1, i, k] B[b0, b1, k, j].

    Args:
        batch: extents of the two batch dimensions.
        m, n, k: extents, 0 or more; k = 0 gives zeros.
        dtype: float32 or float64, of A, B, C and the sums.
        a, b: operands; strides of A are (b0, b1, m, k), of B (b0, b1, k, n).
        out: C in memory, or the consumer of its blocks.
        target: the CPU.
        tile: of the micro-kernel, if not that of the dtype.

    Returns:
        Calls to run in order; none if C is empty.

    Cost: 2 b0 b1 m n k FLOPs; each operand is packed about once per 256 rows or columns of C.
    """
    if 0 in (*batch, m, n):
        return []
    if isinstance(b, Operand):
        b0, b1, row, column = b.strides
        b = replace(b, strides=(b0, b1, column, row))
    tile = tile or tile_for(dtype, target)
    p = normal_form(Problem(batch, m, n, k, a, b, out, pairs=tile.pairs), tile)
    part_k = _part_of_k(p, tile)
    if part_k < p.k:
        return _product_in_parts(p, part_k, tile, target)
    if p.is_thin:
        return [_thin_product(p, part_k, tile, target, {})]
    return _whole_product(p, tile, target)


def _ceil(x: int, y: int) -> int:
    return -(-x // y)


def _even(total: int, most: int, step: int) -> int:
    """The size of even blocks of `total`, multiples of `step` and at most about `most`."""
    count = max(1, _ceil(total, max(most, step)))
    return _ceil(_ceil(total, count), step) * step


# the parts of K --------------------------------------------------------------------------------
def _grain_of_c(p: Problem, tile: Tile) -> tuple[int, int]:
    """(rows, columns) of C below which an item would pack more than it multiplies."""
    return (p.m, 8 * tile.columns) if p.is_thin else (8 * tile.rows, 4 * tile.columns)


def _part_of_k(p: Problem, tile: Tile) -> int:
    """How many k one part sums: all, unless C is too small to occupy several threads.

    Must depend on the sizes only: the number of threads must not change the result.
    """
    rows, columns = _grain_of_c(p, tile)
    items = p.batches * _ceil(p.m, rows) * _ceil(p.n, columns)
    least = _PART_K * (4 if p.is_thin else 1)
    parts = min(_PARTS // items, p.k // least)
    step = _step(p)
    return _ceil(_ceil(p.k, parts), step) * step if parts > 1 else max(p.k, 1)


def _step(p: Problem) -> int:
    """What K may be cut into multiples of."""
    return lcm(*(x.step for x in (p.a, p.b) if isinstance(x, Packed)))


def _product_in_parts(p: Problem, part_k: int, tile: Tile, target: Target) -> list[Call]:
    """Partial products P[part, b0, b1, m, n], and their sum."""
    size = p.batches * p.m * p.n
    nbytes = _ceil(p.k, part_k) * size * tile.nbytes
    partial = Scratch(nbytes, key=("gemm parts", nbytes))
    strides = (p.batch[1] * p.m * p.n, p.m * p.n, p.n, 1)
    product = _thin_product if p.is_thin else _product
    first = product(replace(p, out=Output(-1, 0, strides), swapped=False), part_k, tile, target,
                    {"c": partial, "c_part": size})
    parts = replace(p, k=_ceil(p.k, part_k), a=Operand(-1, 0, (*strides[:3], size)),
                    b=Operand(-1, 0, (0, 0, 0, 0)))
    item_m = max(1, 8192 // p.n)
    blocks = Blocks(item_m, p.n, parts.k, item_m, 1, 1)
    more: Values = {"a": partial, "b": 0}
    second = _call(parts, blocks, tile, target, parts_source(tile), more)
    return [replace(first, writes=()), second]


# the blocks of C -------------------------------------------------------------------------------
def _thin_product(p: Problem, part_k: int, tile: Tile, target: Target, more: Values) -> Call:
    most = 32 * tile.columns if p.m == 1 else target.l2 // 4 // (part_k * tile.nbytes)
    item_n = _even(p.n, most, tile.lanes)
    blocks = Blocks(p.m, item_n, part_k, p.m, part_k, part_k)
    return _call(p, _cut(p, blocks, tile, target), tile, target, gemv_source(tile), more)


def _product(p: Problem, part_k: int, tile: Tile, target: Target, more: Values) -> Call:
    blocks = _cut(p, _blocks(p, part_k, tile, target), tile, target)
    return _call(p, blocks, tile, target, core_source(tile),
                 {**_reading(p, tile), **_tiles(p, tile, target), **more})


def _whole_product(p: Problem, tile: Tile, target: Target) -> list[Call]:
    """The product; where its items would each pack the same B, all of B is packed before, once."""
    blocks = _blocks(p, max(p.k, 1), tile, target)
    more = {**_reading(p, tile), **_tiles(p, tile, target)}
    if not more["a_pack"] and _reads_all_of_a(p, tile, target):
        item_n = _even(p.n, _ceil(p.n, 4 * target.threads), tile.columns)
        blocks = replace(blocks, item_n=min(blocks.item_n, item_n))
        return [_call(p, blocks, tile, target, core_source(tile), more)]
    rows = _rows_for_shared(p, blocks, tile, target) if more["b_pack"] else p.m
    if rows >= p.m:
        return [_call(p, _cut(p, blocks, tile, target), tile, target, core_source(tile), more)]
    item_n = p.n if isinstance(p.out, Output) else blocks.item_n
    blocks = replace(blocks, item_m=rows, item_n=item_n, mc=min(blocks.mc, rows), ko=p.k,
                     shared=True)
    panels = _ceil(p.n, tile.columns)
    nbytes = panels * tile.columns * p.k * tile.nbytes
    group = max(1, min(GROUP, panels // (4 * target.threads)))
    more = {**more, "b_group": group,
            "b_shared": Scratch(nbytes, key=("gemm packed", nbytes, *_buffers(p)))}
    product = _call(p, blocks, tile, target, core_source(tile), more)
    items = _ceil(p.k, blocks.kc) * _ceil(panels, group)
    name = text_of("pack {}x{}", p.k, p.n)
    return [Call(pack_source(tile), product.words, items, 1, name, product.reads), product]


def _reads_all_of_a(p: Problem, tile: Tile, target: Target) -> bool:
    """Whether every item may be all rows of a few columns: A stays in each core's L2, and nothing
    is packed twice. Measured on Zen 4 (256^3 .. 384^3): no slower than one item."""
    panels = _ceil(p.n, tile.columns)
    return (target.threads > 1 and p.batches == 1 and panels >= 2 * target.threads
            and p.m * p.k * tile.nbytes <= target.l2 // 2)


def _rows_for_shared(p: Problem, s: Blocks, tile: Tile, target: Target) -> int:
    """Rows of an item if B is packed for all items at once; all rows if that does not pay."""
    if p.batches > 1 or p.n * p.k * tile.nbytes > _SHARED * target.l2:
        return p.m
    want = _ceil(4 * target.threads, 1 if isinstance(p.out, Output) else _ceil(p.n, s.item_n))
    items = min(want, p.m // (4 * tile.rows))
    if target.threads == 1 or items < 2 or (items - 1) * p.n * p.k < _AGAIN:
        return p.m
    return _ceil(p.m, items)


def _blocks(p: Problem, part_k: int, tile: Tile, target: Target) -> Blocks:
    """Blocking for the caches of one core.

    Packed A takes half of L2, and packed B up to twice L2 (it is read in order, and half as often
    as A). If all of K does not fit there for eight panels of columns, K becomes the outer loop.
    """
    size, width = tile.nbytes, tile.columns
    along = p.a.along == "k" if isinstance(p.a, Packed) else p.a.strides[3] == 1
    kc = _even(part_k, _KC_ALONG if along else _KC, _step(p))
    mc = _even(p.m, target.l2 // 2 // (kc * size), tile.rows)
    budget = (_SHARED if along else 2) * target.l2 // size
    ko, columns = part_k, budget // part_k
    if columns < min(p.n, 8 * width):
        ko, columns = kc, budget // kc
    if isinstance(p.out, Output):
        item_n = _even(p.n, columns // width * width, width)
        return Blocks(p.m, item_n, part_k, mc, kc, ko)
    # The tile takes a quarter of L2, and has three panels of rows to use each panel of B on.
    room, least = target.l2 // 4 // size, 3 * tile.rows
    rows = max(least, min(target.l2 // 2 // (kc * size), room // (8 * width)))
    if p.m <= rows or (isinstance(p.b, Packed) and ko < part_k):
        # As many rows as possible: then each panel of B, or each costly packing of it, is used up.
        mc = _even(p.m, rows, tile.rows)
        most = room // min(mc, p.m) if p.m <= rows else min(columns, room // mc)
        item_n = _even(p.n, max(most // width, 1) * width, width)
        return Blocks(mc if ko < part_k else p.m, item_n, part_k, mc, kc, ko)
    item_n = _even(p.n, min(columns, room // least) // width * width, width)
    mc = min(mc, _even(p.m, max(least, room // item_n), tile.rows))
    return Blocks(mc if ko < part_k else p.m, item_n, part_k, mc, kc, ko)


def _cut(p: Problem, s: Blocks, tile: Tile, target: Target) -> Blocks:
    """The same with smaller items, so that every thread gets about four."""
    if target.threads == 1:
        return s
    rows, columns = _grain_of_c(p, tile)
    parts = _ceil(max(p.k, 1), s.part_k)
    want = _ceil(4 * target.threads, p.batches * parts)
    most_m, most_n = max(1, p.m // rows), max(1, p.n // columns)
    cut_m = min(most_m, want) if most_m >= most_n else 1
    cut_n = min(most_n, _ceil(want, cut_m))
    cut_m = min(most_m, _ceil(want, cut_n))
    item_m = min(s.item_m, _ceil(p.m, cut_m))
    item_n = min(s.item_n, _even(p.n, _ceil(p.n, cut_n), tile.columns))
    return replace(s, item_m=item_m, item_n=item_n, mc=min(s.mc, item_m))


def _reading(p: Problem, tile: Tile) -> Values:
    """Which operands are read in place: packing pays only for what is read often enough.

    Measured on Zen 4 (M, N = 192 .. 2048, K = 64 .. 2048): with tiles of 14 rows, reading A in
    place is up to 40 % faster for few columns and never slower up to 768; tiles of 6 rows use too
    little of each line, and win up to 32 columns. For B, in place wins up to 16 panels of rows if
    it is less than a page from row to row.
    """
    by_rows, a_pitch, a_pack, b_pack = False, 0, 1, 1
    more: Values = {}
    few = _FEW_A if tile.rows >= 12 else 2
    if isinstance(p.a, Operand) and p.n <= few * tile.columns:
        _, _, r, k = p.a.strides
        if k == 1 and not _aliases(r, tile):
            by_rows, a_pitch, a_pack = True, r, 0
        elif r == 1 and not _aliases(k, tile):
            a_pitch, a_pack = k, 0
    if isinstance(p.b, Operand) and p.b.strides[2] == 1:
        pitch = abs(p.b.strides[3]) * tile.nbytes
        whole_lines = pitch % _LINE == 0 and pitch < _PAGE
        if p.m <= tile.rows * (_FEW_B if whole_lines else 1):
            b_pack = 0
    if isinstance(p.a, Operand) and p.a.strides[2] == 1:
        more = {"a_run": _RUN}
    return {"micro": Address(panel_source(tile, by_rows)), "a_pitch": a_pitch, "a_pack": a_pack,
            "b_pack": b_pack, **more}


def _tiles(p: Problem, tile: Tile, target: Target) -> Values:
    """AMX, for pairs of an A that lies along k; what `_reading` says then holds no more."""
    if not (tile.pairs and has_amx(target) and isinstance(p.a, Operand) and p.a.strides[3] == 1):
        return {}
    return {"micro": Address(amx_source(tile)), "a_pitch": p.a.strides[2], "a_pack": 0,
            "b_pack": 1}


def _aliases(pitch: int, tile: Tile) -> bool:
    """Whether rows at this pitch fall into the same set of an L1 cache (one way is a page)."""
    return pitch * tile.nbytes % _PAGE == 0


# calls -----------------------------------------------------------------------------------------
def _call(p: Problem, s: Blocks, tile: Tile, target: Target, source: KernelSource,
          more: Values) -> Call:
    words, items = argument_block(p, s, tile, more)
    each = max(1, p.multiply_adds // items)
    serial = target.threads == 1 or items == 1 or p.multiply_adds < _SERIAL
    grain = min(_ceil(_CHUNK, each), _ceil(items, 4 * target.threads))
    reads, writes = _buffers(p)
    name = text_of("gemm {}x{}x{}", p.m, p.n, p.k)
    return Call(source, words, items, 0 if serial else grain, name, reads, writes)


def _buffers(p: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(read, written) buffers of the program."""
    reads: list[int] = []
    for x in (p.a, p.b):
        reads += x.reads if isinstance(x, Packed) else (x.buffer,)
    if isinstance(p.out, Epilogue):
        touched = tuple(w.index for w in p.out.context if isinstance(w, BufferRef))
        reads += p.out.reads or (() if p.out.writes else touched)
        writes = p.out.writes
    else:
        writes = (p.out.buffer,)
    return tuple(x for x in reads if x >= 0), tuple(x for x in writes if x >= 0)
