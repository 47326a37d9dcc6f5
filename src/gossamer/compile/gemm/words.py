"""The argument block of a product: a problem and its blocking as words. Layer 2.

The one idea: `FIELDS` in `driver.py` names the words; here each gets its value, and nowhere else
is their order known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.compile.calls import Address, BufferRef, Scratch, Word
from gossamer.compile.gemm.driver import FIELDS
from gossamer.compile.gemm.operands import Epilogue, Operand, Packed
from gossamer.compile.gemm.problem import Problem
from gossamer.compile.gemm.target import Tile

__all__ = ["GROUP", "Blocks", "Values", "argument_block"]

GROUP = 8  # panels of B packed at once: 1 KiB of each row in float32

Values = dict[str, Word | tuple[Word, ...]]


@dataclass(frozen=True)
class Blocks:
    """How a product is cut; `core.py` shows the loops. Extents in elements."""

    item_m: int
    item_n: int
    part_k: int
    mc: int
    kc: int
    ko: int
    shared: bool = False  # all of B is packed before, once for all items


def _places(sizes: Mapping[str, int], tile: Tile) -> Values:
    """Areas of a thread's scratch memory one after the other; the last name is the whole size."""
    words: Values = {}
    place = 0
    for name, elements in sizes.items():
        place += -(-elements * tile.nbytes // 64) * 64
        words[name] = place
    words["scratch"] = Scratch(place, per_thread=True)
    return words


def _scratch(p: Problem, s: Blocks, tile: Tile) -> Values:
    """Packed A (or the vector), packed B, the epilogue's tile, edges, blocks of callbacks."""
    width, slack = tile.columns, tile.lanes  # a copied vector is stored in whole registers
    columns = -(-s.item_n // width) * width
    panels = -(-s.mc // tile.rows)
    tile_pitch = s.mc if p.swapped else columns
    has_tile = isinstance(p.out, Epilogue)
    fused = isinstance(p.a, Packed) or isinstance(p.b, Packed)
    sizes = {
        "at_b": (1 if p.is_thin else panels * tile.a_pitch) * s.kc + slack,
        "at_tile": 0 if p.is_thin or s.shared else columns * s.ko + slack,
        "at_edge": tile_pitch * (columns if p.swapped else s.mc) if has_tile else 0,
        "at_stage": columns if p.is_thin else s.mc * width,
        "scratch_bytes": max(width, tile.rows) * s.kc + slack if fused else 0,
    }
    return {"tile_pitch": tile_pitch, **_places(sizes, tile)}


def _operand(name: str, x: Operand | Packed) -> Values:
    if isinstance(x, Packed):
        values: tuple[Word | tuple[Word, ...], ...] = (
            0, 0, 0, 0, 0, Address(x.callback), x.context, int(x.along == "k"))
    else:
        values = (BufferRef(x.buffer, x.offset), *x.strides, 0, 0, 0)
    fields = ("", "_b0", "_b1", "_r", "_k", "_fn", "_ctx", "_order")
    return {name + f: v for f, v in zip(fields, values, strict=True)}


def _output(p: Problem) -> Values:
    if isinstance(p.out, Epilogue):
        values: tuple[Word | tuple[Word, ...], ...] = (
            0, 0, 0, 0, 0, 0, Address(p.out.callback), p.out.context, int(p.swapped))
    else:
        b0, b1, m, n = p.out.strides
        values = (BufferRef(p.out.buffer, p.out.offset), b0, b1, 0, m, n, 0, 0, 0)
    fields = ("", "_b0", "_b1", "_part", "_m", "_n", "_fn", "_ctx", "_swapped")
    return {"c" + f: v for f, v in zip(fields, values, strict=True)}


def argument_block(p: Problem, s: Blocks, tile: Tile, more: Values,
                   ) -> tuple[tuple[Word | tuple[Word, ...], ...], int]:
    """(words of the block, number of items).

    Args:
        more: words that this problem does not decide, or that replace those that it does.
    """
    items = [-(-total // size) for total, size in
             ((p.m, s.item_m), (p.n, s.item_n), (max(p.k, 1), s.part_k))]
    words: Values = {
        "batch1": p.batch[1], "m": p.m, "n": p.n, "k": p.k,
        "items_m": items[0], "items_n": items[1], "parts": items[2],
        "item_m": s.item_m, "item_n": s.item_n, "part_k": s.part_k,
        "mc": s.mc, "kc": s.kc, "ko": s.ko,
        "micro": 0, "a_pitch": 0, "a_pack": 1, "a_run": s.kc, "b_pack": 1,
        "b_shared": 0, "b_group": GROUP,
        **_operand("a", p.a), **_operand("b", p.b), **_output(p), **_scratch(p, s, tile), **more,
    }
    return tuple(words[name] for name in FIELDS), p.batches * items[0] * items[1] * items[2]
