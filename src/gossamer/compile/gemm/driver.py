"""What every driver of a product does: items, places, packing, epilogues. Layer 2.

The one idea: everything about shape and place is a word of the argument block (`FIELDS`), so that
one function per (dtype, target) serves every product. It computes items: an item is a rectangle of
C of one batch and one part of K, complete in itself, so items run in any order on any thread.
"""

from __future__ import annotations

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm.pack import PACK, WIDE, pack_function, wide_function
from gossamer.compile.gemm.target import Tile

__all__ = ["FIELDS", "ZEROS", "Driver"]

# Words of the argument block, in order. Strides are in elements, places (`at_`) in bytes.
FIELDS: tuple[str, ...] = (
    "batch1", "m", "n", "k",
    "items_m", "items_n", "parts",  # items of one batch: their number in each direction
    "item_m", "item_n", "part_k",  # and their extent
    "mc", "kc", "ko",  # blocking inside an item
    "micro", "a_pitch",  # micro-kernels, and their `pitch` when A is read in place
    "a", "a_b0", "a_b1", "a_r", "a_k", "a_fn", "a_ctx", "a_order", "a_pack",
    "a_run",  # k's of A that are packed for all panels before the next ones
    "b", "b_b0", "b_b1", "b_r", "b_k", "b_fn", "b_ctx", "b_order", "b_pack",
    "b_shared", "b_group",  # all of B, packed by the call before; panels packed at once
    "c", "c_b0", "c_b1", "c_part", "c_m", "c_n", "c_fn", "c_ctx", "c_swapped",
    "scratch", "scratch_bytes", "at_b", "at_tile", "at_edge", "at_stage", "tile_pitch",
)
_POINTERS = {"micro", "scratch", "b_shared",
             *(f"{x}{y}" for x in "abc" for y in ("", "_fn", "_ctx"))}
ZEROS = "@zeros"  # one row of the tile
_SCATTER = "scatter"


class Driver:
    """Writes `void symbol(ptr args, i64 lo, i64 hi, i64 tid)`; subclasses say how an item is made.

    Attributes hold names of LLVM values: of the words (`w`), and of the item at hand.
    """

    def __init__(self, tile: Tile, symbol: str) -> None:
        self.tile = tile
        self.f = FunctionBuilder(f"void @{symbol}(ptr %args, i64 %lo, i64 %hi, i64 %tid)")
        self.symbol = symbol
        self.w: dict[str, str] = {}

    def write(self) -> str:
        f = self.f
        for i, name in enumerate(FIELDS):
            type_ = "ptr" if name in _POINTERS else "i64"
            self.w[name] = f.load(type_, f.gep("%args", str(i), "i64"), 8)
        self.scratch = f.gep(self.w["scratch"], f.mul("%tid", self.w["scratch_bytes"]))
        self.packed_b, self.tile_at, self.edge, self.stage = (
            f.gep(self.scratch, self.w[at]) for at in ("at_b", "at_tile", "at_edge", "at_stage"))
        self.has_tile = f.value(f"icmp ne ptr {self.w['c_fn']}, null")
        self.is_swapped = f.compare("ne", self.w["c_swapped"], "0")
        with f.loop("%lo", "%hi") as item:
            self.decode(item)
            f.either(f.compare("sgt", self.w["k"], "0"), self.blocks, self.zeros)
        return f.finish()

    def source(self, *functions: FunctionBuilder) -> KernelSource:
        """The driver with its packers and the other functions that it calls."""
        tile, body = self.tile, self.write()
        zeros = f"{ZEROS} = internal constant [{tile.columns} x {tile.element}] zeroinitializer\n"
        writers = {PACK: pack_function, WIDE: wide_function, _SCATTER: _scatter_function}
        used = [write(tile) for name, write in writers.items() if f"@{name}(" in body]
        texts = [zeros, *used, body, *(f.finish() for f in functions)]
        declares = {k: v for f in (self.f, *functions) for k, v in f.declares.items()}
        return KernelSource(self.symbol, "".join(texts) + "\n".join(declares.values()))

    def blocks(self) -> None:
        """Compute the item, for k > 0."""
        raise NotImplementedError

    # helpers ----------------------------------------------------------------------------------
    def at(self, pointer: str, index: str) -> str:
        return self.f.gep(pointer, index, self.tile.element)

    def both(self, a: str, b: str) -> str:
        return self.f.value(f"and i1 {a}, {b}")

    def part_of(self, index: str, size: str, total: str) -> tuple[str, str]:
        """(start, length) of block `index` of blocks of `size` in `total`."""
        start = self.f.mul(index, size)
        return start, self.f.minimum(size, self.f.sub(total, start))

    def decode(self, item: str) -> None:
        """From the item's number to its rectangle, its part of K and its batch."""
        f, w = self.f, self.w
        rest = item
        index = {}
        for name in ("items_m", "items_n", "parts"):
            index[name] = f.urem(rest, w[name])
            rest = f.udiv(rest, w[name])
        self.b0, self.b1 = f.udiv(rest, w["batch1"]), f.urem(rest, w["batch1"])
        self.m0, self.rows = self.part_of(index["items_m"], w["item_m"], w["m"])
        self.n0, self.columns = self.part_of(index["items_n"], w["item_n"], w["n"])
        self.k0, length = self.part_of(index["parts"], w["part_k"], w["k"])
        self.k1 = f.add(self.k0, length)
        self.a, self.b, c = (self.batch(x) for x in "abc")
        c = self.at(c, f.mul(index["parts"], w["c_part"]))
        c = self.at(c, f.mul(self.m0, w["c_m"]))
        self.c = self.at(c, f.mul(self.n0, w["c_n"]))

    def batch(self, operand: str) -> str:
        """The operand's first element in this batch."""
        f, w = self.f, self.w
        offset = f.add(f.mul(self.b0, w[f"{operand}_b0"]), f.mul(self.b1, w[f"{operand}_b1"]))
        return self.at(w[operand], offset)

    def target(self, ic: str) -> None:
        """Where rows from `ic` on are summed: in C itself, or in the tile of the epilogue."""
        f, w = self.f, self.w
        pitch = w["tile_pitch"]
        tile_m = f.select(self.is_swapped, "1", pitch)
        tile_n = f.select(self.is_swapped, pitch, "1")
        c = self.at(self.c, f.mul(ic, w["c_m"]))
        self.out = f.select(self.has_tile, self.tile_at, c, "ptr")
        self.out_m = f.select(self.has_tile, tile_m, w["c_m"])
        self.out_n = f.select(self.has_tile, tile_n, w["c_n"])

    def zeros(self) -> None:
        """K = 0: the sum of nothing."""
        f, w = self.f, self.w
        with f.loop("0", self.rows, w["mc"]) as ic:
            rows = f.minimum(w["mc"], f.sub(self.rows, ic))
            self.target(ic)
            with f.loop("0", self.columns, self.tile.columns) as jr:
                columns = f.minimum(f.sub(self.columns, jr), str(self.tile.columns))
                to = self.at(self.out, f.mul(jr, self.out_n))
                self.scatter(to, ZEROS, "0", rows, columns, "0")
            with f.when(self.has_tile):
                self.epilogue(ic, rows)

    def epilogue(self, ic: str, rows: str) -> None:
        f, w = self.f, self.w
        m0 = f.add(self.m0, ic)
        first = f.select(self.is_swapped, self.n0, m0)
        height = f.select(self.is_swapped, self.columns, rows)
        second = f.select(self.is_swapped, m0, self.n0)
        width = f.select(self.is_swapped, rows, self.columns)
        f.line(f"call void {w['c_fn']}(ptr {w['c_ctx']}, ptr {self.tile_at}, "
               f"i64 {w['tile_pitch']}, i64 {self.b0}, i64 {self.b1}, i64 {first}, "
               f"i64 {height}, i64 {second}, i64 {width})")

    def scatter(self, to: str, source: str, pitch: str, rows: str, columns: str,
                add: str) -> None:
        """Copy (add 0) or add (1) rows of a pitch to a place with the strides of the output."""
        self.f.line(f"call void @{_SCATTER}(ptr {to}, i64 {self.out_m}, i64 {self.out_n}, "
                    f"ptr {source}, i64 {pitch}, i64 {rows}, i64 {columns}, i64 {add})")

    def fill(self, operand: str, base: str, to: str, r0: str, rows: str, k0: str, kc: str,
             width: str) -> None:
        """dst[k * width + r] from memory, or from the callback of a fused operand."""
        f, w = self.f, self.w
        fn, rs, ks = w[f"{operand}_fn"], w[f"{operand}_r"], w[f"{operand}_k"]

        def direct() -> None:
            source = self.at(base, f.add(f.mul(r0, rs), f.mul(k0, ks)))
            pack(to, source, rs, ks)

        def pack(dst: str, source: str, r_step: str, k_step: str) -> None:
            f.line(f"call void @{PACK}(ptr {dst}, ptr {source}, i64 {rows}, i64 {kc}, "
                   f"i64 {r_step}, i64 {k_step}, i64 {width})")

        def call(dst: str, pitch: str) -> None:
            f.line(f"call void {fn}(ptr {w[f'{operand}_ctx']}, ptr {dst}, i64 {self.b0}, "
                   f"i64 {self.b1}, i64 {r0}, i64 {rows}, i64 {k0}, i64 {kc}, i64 {pitch})")

        def staged() -> None:
            call(self.stage, kc)
            pack(to, self.stage, kc, "1")

        def fused() -> None:
            along_k = f.compare("ne", w[f"{operand}_order"], "0")
            f.either(along_k, staged, lambda: call(to, width))

        f.either(f.value(f"icmp eq ptr {fn}, null"), direct, fused)


def _scatter_function(tile: Tile) -> str:
    """dst[r * dm + c * dn] = (add ? itself : 0) + src[r * pitch + c], for edges and odd strides."""
    f = FunctionBuilder(f"internal void @{_SCATTER}(ptr %dst, i64 %dm, i64 %dn, ptr %src, "
                        "i64 %pitch, i64 %rows, i64 %columns, i64 %add)", "noinline #0")

    def move(count: int, source: str, to: str, adds: bool) -> None:
        type_ = f"<{count} x {tile.element}>" if count > 1 else tile.element
        x = f.load(type_, source, tile.nbytes)
        if adds:
            x = f.value(f"fadd {type_} {x}, {f.load(type_, to, tile.nbytes)}")
        f.store(type_, x, to, tile.nbytes)

    def near(source: str, to: str, adds: bool) -> None:
        """Neighbours: vectors, then halves of vectors by the bits of `columns`."""
        count = tile.lanes
        with f.loop("0", f.value(f"and i64 %columns, {-count}"), count) as c:
            move(count, f.gep(source, c, tile.element), f.gep(to, c, tile.element), adds)
        while count > 1:
            done = f.value(f"and i64 %columns, {-count}")
            count //= 2
            bit = f.value(f"and i64 %columns, {count}")
            with f.when(f.compare("ne", bit, "0")):
                move(count, f.gep(source, done, tile.element), f.gep(to, done, tile.element), adds)

    def far(source: str, to: str, adds: bool) -> None:
        with f.loop("0", "%columns") as c:
            move(1, f.gep(source, c, tile.element), f.gep(to, f.mul(c, "%dn"), tile.element), adds)

    def copy(adds: bool) -> None:
        with f.loop("0", "%rows") as r:
            to = f.gep("%dst", f.mul(r, "%dm"), tile.element)
            source = f.gep("%src", f.mul(r, "%pitch"), tile.element)
            f.either(f.compare("eq", "%dn", "1"), lambda: near(source, to, adds),
                     lambda: far(source, to, adds))

    f.either(f.compare("eq", "%add", "0"), lambda: copy(False), lambda: copy(True))
    return f.finish()
