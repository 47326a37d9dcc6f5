"""Packing: a block of an operand copied into the order in which micro-kernels read it. Layer 2.

The one idea: the destination is `dst[k * width + r]`, so that the kernel reads one short row for
each k, whatever the strides of the source. Three ways in: neighbours along r are copied, neighbours
along k go through transposes of `lanes x lanes` blocks in registers, and any other strides
(0 among them) element by element.

The transpose is the classical one: interleave elements inside 128-bit parts, which every
instruction set does in one instruction, then exchange the parts.
"""

from __future__ import annotations

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.gemm.target import Tile

__all__ = ["PACK", "WIDE", "pack_function", "transpose", "wide_function"]

PACK, WIDE = "pack", "pack_wide"  # symbols of the two functions

# Bytes: four lines. Measured on Zen 4 (32 .. 256 elements): 2 to 3 % of a product that transposes.
_AHEAD = 256

_ARGUMENTS = ("ptr noalias %dst, ptr noalias %src, i64 %rows, i64 %kc, i64 %rs, i64 %ks, "
              "i64 %width")


def _shuffle(f: FunctionBuilder, tile: Tile, x: str, y: str, lanes: list[int]) -> str:
    mask = ", ".join(f"i32 {i}" for i in lanes)
    return f.value(f"shufflevector {tile.vector} {x}, {tile.vector} {y}, "
                   f"<{tile.lanes} x i32> <{mask}>")


def _interleave(f: FunctionBuilder, tile: Tile, x: str, y: str, run: int) -> tuple[str, str]:
    """Inside each 128-bit part: runs of `run` elements of x and y in turn; low half, high half."""
    part = 128 // tile.bits
    low: list[int] = []
    high: list[int] = []
    for start in range(0, tile.lanes, part):
        for half, out in ((0, low), (part // 2, high)):
            for at in range(start + half, start + half + part // 2, run):
                out += range(at, at + run)
                out += range(tile.lanes + at, tile.lanes + at + run)
    return _shuffle(f, tile, x, y, low), _shuffle(f, tile, x, y, high)


def _split_parts(f: FunctionBuilder, tile: Tile, x: str, y: str) -> tuple[str, str]:
    """The even 128-bit parts of x, then those of y; and the odd ones."""
    part = 128 // tile.bits
    both = range(0, 2 * tile.lanes, part)
    even = [i for start in both if not start // part % 2 for i in range(start, start + part)]
    odd = [i for start in both if start // part % 2 for i in range(start, start + part)]
    return _shuffle(f, tile, x, y, even), _shuffle(f, tile, x, y, odd)


def transpose(f: FunctionBuilder, tile: Tile, rows: list[str]) -> list[str]:
    """`lanes` vectors of `lanes` elements, transposed."""
    part = 128 // tile.bits  # 4 or 2: rows that the first stages interleave
    columns: list[list[str]] = [[] for _ in range(part)]  # [column in part][group of rows]
    for g in range(0, tile.lanes, part):
        group, run = rows[g:g + part], 1
        while run < part:  # pairs at distance part / 2 in the end stand side by side
            half = len(group) // 2
            pairs = ([(group[2 * i], group[2 * i + 1]) for i in range(half)] if run == 1
                     else [(group[i], group[i + half]) for i in range(half)])
            group = [v for x, y in pairs for v in _interleave(f, tile, x, y, run)]
            run *= 2
        for column, v in zip(columns, group, strict=True):
            column.append(v)
    out: list[str] = [""] * tile.lanes
    for c, column in enumerate(columns):
        for i, v in enumerate(_parts_transposed(f, tile, column)):
            out[part * i + c] = v
    return out


def _parts_transposed(f: FunctionBuilder, tile: Tile, column: list[str]) -> list[str]:
    """Vectors seen as rows of a square matrix of 128-bit parts, transposed."""
    if len(column) == 1:
        return column
    halves = [_split_parts(f, tile, column[i], column[i + 1]) for i in range(0, len(column), 2)]
    even = _parts_transposed(f, tile, [e for e, _ in halves])
    odd = _parts_transposed(f, tile, [o for _, o in halves])
    return [v for pair in zip(even, odd, strict=True) for v in pair]


class _Pack:
    """Writes the function; one method for each way of reading the source."""

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.f = FunctionBuilder(f"internal void @{PACK}({_ARGUMENTS})", "noinline #0")

    def write(self) -> str:
        f = self.f
        f.either(f.compare("eq", "%rs", "1"), self.along_rows, self.other)
        return f.finish()

    def at(self, pointer: str, index: str) -> str:
        return self.f.gep(pointer, index, self.tile.element)

    def move(self, count: int, source: str, to: str, align: int) -> None:
        """Copy `count` (a power of two) neighbours through one register."""
        type_ = f"<{count} x {self.tile.element}>" if count > 1 else self.tile.element
        self.f.store(type_, self.f.load(type_, source, align), to, align)

    def along_rows(self) -> None:
        """Neighbours along r: full panels by constant moves, others by the bits of `rows`."""
        f = self.f

        def rest() -> None:
            f.either(f.compare("eq", "%rows", str(self.tile.rows)),
                     lambda: self.copy(self.tile.rows), self.copy_bits)

        f.either(f.compare("eq", "%rows", str(self.tile.columns)),
                 lambda: self.copy(self.tile.columns), rest)

    def copy(self, rows: int) -> None:
        f, lanes = self.f, self.tile.lanes
        with f.loop("0", "%kc") as k:
            source, to = self.at("%src", f.mul(k, "%ks")), self.at("%dst", f.mul(k, "%width"))
            r = 0
            while r < rows:
                count = min(lanes, 1 << ((rows - r).bit_length() - 1))
                self.move(count, self.at(source, str(r)), self.at(to, str(r)), self.tile.nbytes)
                r += count

    def copy_bits(self) -> None:
        f, lanes = self.f, self.tile.lanes
        with f.loop("0", "%kc") as k:
            source, to = self.at("%src", f.mul(k, "%ks")), self.at("%dst", f.mul(k, "%width"))
            with f.loop("0", f.value(f"and i64 %rows, {-lanes}"), lanes) as r:
                self.move(lanes, self.at(source, r), self.at(to, r), self.tile.nbytes)
            count = lanes // 2
            while count:
                bit = f.value(f"and i64 %rows, {count}")
                with f.when(f.compare("ne", bit, "0")):
                    done = f.value(f"and i64 %rows, {-2 * count}")
                    self.move(count, self.at(source, done), self.at(to, done), self.tile.nbytes)
                count //= 2

    def other(self) -> None:
        f = self.f
        along_k = f.compare("eq", "%ks", "1")
        long_enough = f.compare("sge", "%kc", str(self.tile.lanes))
        f.either(f.value(f"and i1 {along_k}, {long_enough}"), self.along_k, self.elements)

    def along_k(self) -> None:
        """Neighbours along k. The last block of k overlaps the one before, and so do rows: that
        writes the same values twice. Whole vectors are stored also for fewer rows than lanes."""
        f, lanes = self.f, self.tile.lanes
        last_k, last_r = f.sub("%kc", str(lanes)), f.sub("%rows", str(lanes))
        last_r = f.select(f.compare("sgt", last_r, "0"), last_r, "0")
        with f.loop("0", "%rows", lanes) as group:
            r = f.minimum(group, last_r)
            dst, rows = self.at("%dst", r), self.rows(r)
            with f.loop("0", "%kc", lanes) as block:
                k = f.minimum(block, last_k)
                vectors = [self.vector(row, k) for row in rows]
                to = self.at(dst, f.mul(k, "%width"))
                for i, column in enumerate(transpose(f, self.tile, vectors)):
                    to = self.at(to, "%width") if i else to
                    f.store(self.tile.vector, column, to, self.tile.nbytes)

    def rows(self, r: str) -> list[str]:
        """Where the `lanes` rows from r on begin; where there is none, the last one again."""
        f, last = self.f, self.f.sub("%rows", "1")
        numbers = [f.minimum(f.add(r, str(i)), last) for i in range(self.tile.lanes)]
        return [self.at("%src", f.mul(number, "%rs")) for number in numbers]

    def vector(self, row: str, k: str) -> str:
        """Neighbours along k. Many rows at once are more streams than the hardware follows."""
        self.f.intrinsic("llvm.prefetch.p0", "void", [
            ("ptr", self.at(row, self.f.add(k, str(_AHEAD // self.tile.nbytes)))),
            ("i32", "0"), ("i32", "3"), ("i32", "1")])
        return self.f.load(self.tile.vector, self.at(row, k), self.tile.nbytes)

    def elements(self) -> None:
        f, tile = self.f, self.tile
        with f.loop("0", "%kc") as k:
            source, to = self.at("%src", f.mul(k, "%ks")), self.at("%dst", f.mul(k, "%width"))
            with f.loop("0", "%rows") as r:
                x = f.load(tile.element, self.at(source, f.mul(r, "%rs")), tile.nbytes)
                f.store(tile.element, x, self.at(to, r), tile.nbytes)


def pack_function(tile: Tile) -> str:
    """LLVM text of the internal function `pack(dst, src, rows, kc, rs, ks, width)`.

    It writes dst[k * width + r] = src[r * rs + k * ks] for r < rows, k < kc. It may write up to
    `lanes` elements for each k, even if there are fewer rows: then in ascending k.
    """
    return _Pack(tile).write()


def wide_function(tile: Tile) -> str:
    """LLVM text of `pack_wide(dst, src, panels, kc, ks)`: whole panels of B, neighbours along r.

    dst[(p * kc + k) * width + r] = src[p * width + r + k * ks], with a width of the tile's
    columns. The source is read in longer runs than panel by panel, as prefetchers like it:
    measured 13 % of a product with 28 rows, whose B comes from memory.
    """
    f = FunctionBuilder(f"internal void @{WIDE}(ptr noalias %dst, ptr noalias %src, "
                        "i64 %panels, i64 %kc, i64 %ks)", "noinline #0")
    width = tile.columns
    panel = f.mul("%kc", str(width))
    with f.loop("0", "%kc") as k:
        row = f.gep("%src", f.mul(k, "%ks"), tile.element)
        column = f.gep("%dst", f.mul(k, str(width)), tile.element)
        with f.loop("0", "%panels") as p:
            source = f.gep(row, f.mul(p, str(width)), tile.element)
            to = f.gep(column, f.mul(p, panel), tile.element)
            for at in range(0, width, tile.lanes):
                x = f.load(tile.vector, f.gep(source, str(at), tile.element), tile.nbytes)
                f.store(tile.vector, x, f.gep(to, str(at), tile.element), tile.nbytes)
    return f.finish()
