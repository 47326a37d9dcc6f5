"""The micro-kernel on AMX tiles: 32 x 32 of C, 16 pairs of bfloat16 deep, a step. Layer 2.

The one idea: packed B of the pair products (`low`) already is what a B tile wants, rows of pairs;
and rows of A that lie along k are loaded into A tiles where they are. So AMX needs no packing of
its own: it is a third way to run down a column panel of B, with the arguments of the other two.
Rows or pairs that do not fill a tile are copied into a tile of zeros first.

Every use configures the tiles (all 16 rows of 64 bytes) and releases them, so that a thread that
stops in between keeps no tile state. The system must have granted the tiles (`runtime/amx.py`).

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm.micro import PANEL_ARGUMENTS
from gossamer.compile.gemm.target import Target, Tile

__all__ = ["amx_source", "has_amx"]

_SIDE = 16  # rows of a tile, and 32-bit words in a row
_BLOCK = 2 * _SIDE  # rows and columns of C at once: tiles 0 to 3
_ROW = 64  # bytes in a row of a tile
_V = "<16 x float>"
_CONFIG = "@tiles"


def has_amx(target: Target) -> bool:
    """Whether the CPU multiplies tiles of bfloat16, and the system lets us."""
    return {"amx-tile", "amx-bf16", "avx512bf16"} <= target.features


def _configuration() -> str:
    """Palette 1, eight tiles of 16 rows of 64 bytes."""
    row = bytearray(64)
    row[0] = 1
    for t in range(8):
        row[16 + 2 * t] = _ROW
        row[48 + t] = _SIDE
    text = "".join(f"\\{x:02x}" for x in row)
    return f'{_CONFIG} = internal constant [64 x i8] c"{text}", align 64\n'


class _Panel:
    """Writes `void symbol(PANEL_ARGUMENTS)`; steps and pitches are in 32-bit words."""

    def __init__(self, tile: Tile, symbol: str) -> None:
        self.tile = tile
        self.f = f = FunctionBuilder(f"void @{symbol}({PANEL_ARGUMENTS})")
        words = _BLOCK * _SIDE
        self.left, self.right = f.alloca("float", words), f.alloca("float", _SIDE * _BLOCK)
        self.sums = f.alloca("float", _BLOCK * _BLOCK)

    def write(self) -> str:
        f = self.f
        f.intrinsic("llvm.x86.ldtilecfg", "void", [("ptr", _CONFIG)])
        with f.loop("0", "%rows", _BLOCK) as r:
            rows = f.minimum(str(_BLOCK), f.sub("%rows", r))
            a = f.gep("%a", f.mul(r, "%step"), "float")
            for t in range(4):
                f.intrinsic("llvm.x86.tilezero", "void", [("i8", str(t))])
            full = f.compare("eq", rows, str(_BLOCK))
            whole = f.select(full, f.value(f"and i64 %kc, {-_SIDE}"), "0")
            with f.loop("0", whole, _SIDE) as k:
                self.step(f.gep(a, k, "float"), f.mul("%step", "4"), self.row_of_b(k),
                          f.mul("%ldb", "4"))
            with f.loop(whole, "%kc", _SIDE) as k:
                self.copied_step(a, rows, k)
            self.store(r, rows)
        f.intrinsic("llvm.x86.tilerelease", "void", [])
        return f.finish()

    def row_of_b(self, k: str) -> str:
        return self.f.gep("%b", self.f.mul(k, "%ldb"), "float")

    def step(self, a: str, a_pitch: str, b: str, b_pitch: str) -> None:
        """C += A B for 32 rows, 16 pairs and 32 columns; pitches are in bytes."""
        f = self.f
        below = f.gep(a, f.mul(a_pitch, str(_SIDE)))
        beside = f.gep(b, str(_ROW))
        self.load(4, a, a_pitch)
        self.load(6, b, b_pitch)
        self.multiply(0, 4, 6)
        self.load(7, beside, b_pitch)
        self.multiply(1, 4, 7)
        self.load(5, below, a_pitch)
        self.multiply(2, 5, 6)
        self.multiply(3, 5, 7)

    def load(self, tile: int, pointer: str, pitch: str) -> None:
        self.f.intrinsic("llvm.x86.tileloadd64", "void",
                         [("i8", str(tile)), ("ptr", pointer), ("i64", pitch)])

    def multiply(self, c: int, a: int, b: int) -> None:
        self.f.intrinsic("llvm.x86.tdpbf16ps", "void",
                         [("i8", str(c)), ("i8", str(a)), ("i8", str(b))])

    # edges ------------------------------------------------------------------------------------
    def copied_step(self, a: str, rows: str, k: str) -> None:
        """A step over fewer rows or pairs than tiles hold, through zeros."""
        f = self.f
        depth = f.minimum(str(_SIDE), f.sub("%kc", k))
        self.copy(self.left, _BLOCK, 1, rows, depth, f.gep(a, k, "float"), "%step")
        self.copy(self.right, _SIDE, 2, depth, str(_BLOCK), self.row_of_b(k), "%ldb")
        self.step(self.left, str(_ROW), self.right, str(2 * _ROW))

    def copy(self, to: str, height: int, vectors: int, rows: str, width: str, source: str,
             pitch: str) -> None:
        """The first `rows` rows of `width` words, and zeros behind them."""
        f = self.f
        symbol = "llvm.masked.load.v16f32.p0"
        f.declare(symbol, f"declare {_V} @{symbol}(ptr, i32, <16 x i1>, {_V})")
        masks = [self.below(f.sub(width, str(v * _SIDE)) if v else width) for v in range(vectors)]
        with f.loop("0", str(height)) as i:
            there = f.compare("slt", i, rows)
            row = f.gep(source, f.select(there, f.mul(i, pitch), "0"), "float")
            for v, mask in enumerate(masks):
                kept = f.value(f"select i1 {there}, <16 x i1> {mask}, "
                               "<16 x i1> zeroinitializer")
                place = f.gep(row, str(v * _SIDE), "float") if v else row
                value = f.value(f"call {_V} @{symbol}(ptr {place}, i32 4, <16 x i1> {kept}, "
                                f"{_V} zeroinitializer)")
                at = f.add(f.mul(i, str(vectors * _SIDE)), str(v * _SIDE))
                f.store(_V, value, f.gep(to, at, "float"), 4)

    def below(self, count: str) -> str:
        """Lanes whose number is below `count`."""
        f = self.f
        one = f.value(f"insertelement <16 x i64> poison, i64 {count}, i64 0")
        all_ = f.value(f"shufflevector <16 x i64> {one}, <16 x i64> poison, "
                       "<16 x i32> zeroinitializer")
        lanes = ", ".join(f"i64 {i}" for i in range(_SIDE))
        return f.value(f"icmp slt <16 x i64> <{lanes}>, {all_}")

    # C ----------------------------------------------------------------------------------------
    def store(self, r: str, rows: str) -> None:
        """c = in + the sums, for the rows and vectors that exist."""
        f = self.f
        pitch = _BLOCK * 4
        for t in range(4):
            at = (t // 2) * _SIDE * _BLOCK + (t % 2) * _SIDE
            f.intrinsic("llvm.x86.tilestored64", "void", [
                ("i8", str(t)), ("ptr", f.gep(self.sums, str(at), "float")),
                ("i64", str(pitch))])
        with f.loop("0", rows) as i, f.loop("0", "%vectors") as v:
            column, row = f.mul(v, str(_SIDE)), f.add(r, i)

            def place(base: str, index: str, step: str) -> str:
                return f.gep(base, f.add(f.mul(index, step), column), "float")

            value = f.load(_V, place(self.sums, i, str(_BLOCK)), 4)
            before = f.load(_V, place("%in", row, "%ldi"), 4)
            f.store(_V, f.value(f"fadd {_V} {value}, {before}"), place("%c", row, "%ldc"), 4)


@cache
def amx_source(tile: Tile) -> KernelSource:
    """The function that runs tiles down all rows of one column panel of packed B.

    `A[r * step + k]` is read in place, as by `panel_source(tile, by_rows=True)`.
    """
    panel = _Panel(tile, "gemm_amx")
    text = panel.write()
    return KernelSource("gemm_amx", _configuration() + text + "\n".join(panel.f.declares.values()))
