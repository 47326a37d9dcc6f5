"""The driver of the packed product: loops over blocks, packing, micro-kernels, epilogue. Layer 2.

The one idea: blocks of A and B are copied once into caches, in the order in which they are read,
and used many times. Packed B is made by its first reader and packed A by each round of columns:

    for po in steps of ko:                    # ko = all of K, or kc when packed B would be too big
        for ic in steps of mc:                # rows whose packed A fits half of L2
            for pc in po's steps of kc:
                pack A[ic, pc]
                for jr in column panels:
                    pack B[pc, jr]            # only for the first ic
                    micro-kernels down the rows
            epilogue(rows of ic)              # after the last pc

Where several items would pack the same B, `pack_source` packs all of it before, once for all.
"""

from __future__ import annotations

from functools import cache

from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm.driver import ZEROS, Driver
from gossamer.compile.gemm.micro import cut_rows
from gossamer.compile.gemm.pack import PACK, WIDE
from gossamer.compile.gemm.target import Tile

__all__ = ["core_source", "pack_source"]


class _Core(Driver):
    """The packed product of matrices."""

    def blocks(self) -> None:
        f, w = self.f, self.w
        self.packs_b = f.value(f"icmp eq ptr {w['b_shared']}, null")
        # All rows at once: packed B is read only now, and its few panels stay in the caches.
        self.once = self.both(self.packs_b, f.compare("sle", self.rows, w["mc"]))
        with f.loop(self.k0, self.k1, w["ko"]) as po:
            end = f.minimum(f.add(po, w["ko"]), self.k1)
            with f.loop("0", self.rows, w["mc"]) as ic:
                rows = f.minimum(w["mc"], f.sub(self.rows, ic))
                self.target(ic)
                with f.loop(po, end, w["kc"]) as pc:
                    kc = f.minimum(w["kc"], f.sub(end, pc))
                    self.block(po, ic, rows, pc, kc)
                with f.when(self.both(self.has_tile, f.compare("eq", end, self.k1))):
                    self.epilogue(ic, rows)

    def block(self, po: str, ic: str, rows: str, pc: str, kc: str) -> None:
        """C[ic, :] += A[ic, pc] B[pc, :], packing on the way."""
        f, w, width = self.f, self.w, self.tile.columns
        packs_a = f.compare("ne", w["a_pack"], "0")
        row = f.add(self.m0, ic)
        with f.when(packs_a):
            self.pack_a(row, rows, pc, kc)
        place = f.add(f.mul(row, w["a_r"]), f.mul(pc, w["a_k"]))
        a = f.select(packs_a, self.scratch, self.at(self.a, place), "ptr")
        step = f.select(packs_a, "0", w["a_r"])
        pitch = f.select(packs_a, str(self.tile.a_pitch), w["a_pitch"])
        before = f.select(self.once, "0", f.sub(pc, po))
        own = self.at(self.packed_b, f.mul(before, self.whole_panels(self.columns)))
        packed = f.select(self.packs_b, own, self.at(self.shared(pc), f.mul(self.n0, kc)), "ptr")
        first = f.compare("eq", pc, self.k0)
        with f.loop("0", self.columns, width) as jr:
            with f.when(self.both(self.packs_b, f.compare("eq", ic, "0"))):
                self.pack_b(jr, packed, pc, kc)
            b, ldb = self.panel(jr, packed, pc, kc)
            self.multiply(jr, first, rows,
                          f"i64 {kc}, ptr {a}, i64 {step}, i64 {pitch}, ptr {b}, i64 {ldb}")

    def whole_panels(self, columns: str) -> str:
        """`columns`, rounded up to whole panels."""
        f, width = self.f, str(self.tile.columns)
        return f.mul(f.udiv(f.add(columns, str(self.tile.columns - 1)), width), width)

    def shared(self, pc: str) -> str:
        """Where the panels of k's from `pc` on stand in the B that was packed before."""
        return self.at(self.w["b_shared"], self.f.mul(pc, self.whole_panels(self.w["n"])))

    def cut(self, jr: str) -> tuple[str, str, str]:
        """(columns of the panel at jr, its vectors, whether these are full)."""
        f, lanes = self.f, self.tile.lanes
        columns = f.minimum(f.sub(self.columns, jr), str(self.tile.columns))
        vectors = f.udiv(f.add(columns, str(lanes - 1)), str(lanes))
        return columns, vectors, f.compare("eq", columns, f.mul(vectors, str(lanes)))

    def multiply(self, jr: str, first: str, rows: str, operands: str) -> None:
        """One column panel: into its place, or through the edge buffer where C has no room."""
        f, width = self.f, self.tile.columns
        columns, vectors, full = self.cut(jr)
        call = f"call void {self.w['micro']}(i64 {vectors}, i64 {rows}, {operands}, "

        def direct() -> None:
            c = self.at(self.out, jr)
            source = f.select(first, ZEROS, c, "ptr")
            f.line(f"{call}ptr {c}, i64 {self.out_m}, ptr {source}, "
                   f"i64 {f.select(first, '0', self.out_m)})")

        def edge() -> None:
            f.line(f"{call}ptr {self.edge}, i64 {width}, ptr {ZEROS}, i64 0)")
            to = self.at(self.out, f.mul(jr, self.out_n))
            whole = f.compare("sge", rows, str(self.tile.lanes))
            turned = self.both(first, self.both(whole, f.compare("eq", self.out_m, "1")))
            f.either(turned, lambda: self.turn(to, rows, columns), lambda: self.scatter(
                to, self.edge, str(width), rows, columns, f.select(first, "0", "1")))

        room = f.value(f"or i1 {full}, {self.has_tile}")
        f.either(self.both(room, f.compare("eq", self.out_n, "1")), direct, edge)

    def turn(self, to: str, rows: str, columns: str) -> None:
        """The edge buffer transposed into a C whose rows are neighbours: what packing does."""
        self.f.line(f"call void @{PACK}(ptr {to}, ptr {self.edge}, i64 {rows}, i64 {columns}, "
                    f"i64 {self.tile.columns}, i64 1, i64 {self.out_n})")

    # packing ----------------------------------------------------------------------------------
    def pack_a(self, row: str, rows: str, pc: str, kc: str) -> None:
        f = self.f
        count, base, extra = cut_rows(f, rows, self.tile.rows)
        panel = f.mul(kc, str(self.tile.a_pitch))
        with f.loop("0", kc, self.w["a_run"]) as k, f.loop("0", count) as p:
            start = f.add(f.mul(p, base), f.minimum(p, extra))
            height = f.add(base, f.value(f"zext i1 {f.compare('slt', p, extra)} to i64"))
            to = self.at(self.scratch, f.add(f.mul(p, panel), f.mul(k, str(self.tile.a_pitch))))
            self.fill("a", self.a, to, f.add(row, start), height, f.add(pc, k),
                      f.minimum(self.w["a_run"], f.sub(kc, k)), str(self.tile.a_pitch))

    def place(self, jr: str, kc: str) -> str:
        """Where the panel at jr stands among the packed ones, in elements."""
        recent = self.f.urem(jr, self.group())
        return self.f.mul(self.f.select(self.once, recent, jr), kc)

    def group(self) -> str:
        """Columns of the panels that are packed at once."""
        return self.f.mul(self.w["b_group"], str(self.tile.columns))

    def pack_b(self, jr: str, packed: str, pc: str, kc: str) -> None:
        """Pack the panel at jr, or a group of them from there on; nothing if B is read in place."""
        f, w, width = self.f, self.w, self.tile.columns
        columns, _, full = self.cut(jr)
        whole = f.compare("eq", columns, str(width))
        packs = f.compare("ne", w["b_pack"], "0")
        to, column = self.at(packed, self.place(jr, kc)), f.add(self.n0, jr)
        direct = f.value(f"icmp eq ptr {w['b_fn']}, null")
        streams = self.both(direct, f.compare("eq", w["b_r"], "1"))
        grouped = self.both(self.both(packs, whole), streams)

        def group() -> None:
            starts = f.compare("eq", f.urem(jr, self.group()), "0")
            with f.when(starts):
                left = f.udiv(f.sub(self.columns, jr), str(width))
                place = f.add(column, f.mul(pc, w["b_k"]))
                f.line(f"call void @{WIDE}(ptr {to}, ptr {self.at(self.b, place)}, "
                       f"i64 {f.minimum(left, w['b_group'])}, i64 {kc}, i64 {w['b_k']})")

        def single() -> None:
            with f.when(f.value(f"or i1 {packs}, {f.value(f'xor i1 {full}, true')}")):
                with f.when(f.value(f"xor i1 {full}, true")):
                    self.clear(to, kc)
                self.fill("b", self.b, to, column, columns, pc, kc, str(width))

        f.either(grouped, group, single)

    def clear(self, panel: str, kc: str) -> None:
        """Columns that do not exist are multiplied and thrown away: zeros keep stale denormal
        numbers, which are slow, out of the multiplier."""
        nbytes = self.f.mul(kc, str(self.tile.columns * self.tile.nbytes))
        self.f.intrinsic("llvm.memset.p0.i64", "void", [
            ("ptr", panel), ("i8", "0"), ("i64", nbytes), ("i1", "false")])

    def panel(self, jr: str, packed: str, pc: str, kc: str) -> tuple[str, str]:
        """(pointer, pitch) of a column panel of B."""
        f, w = self.f, self.w
        in_place = self.both(f.compare("eq", w["b_pack"], "0"), self.cut(jr)[2])
        place = f.add(f.mul(f.add(self.n0, jr), w["b_r"]), f.mul(pc, w["b_k"]))
        pointer = f.select(in_place, self.at(self.b, place),
                           self.at(packed, self.place(jr, kc)), "ptr")
        return pointer, f.select(in_place, w["b_k"], str(self.tile.columns))


class _PackB(_Core):
    """All of B, packed once for many items: an item is a group of panels of one block of K."""

    def decode(self, item: str) -> None:
        f, w = self.f, self.w
        groups = f.udiv(f.add(w["n"], f.sub(self.group(), "1")), self.group())
        self.start = f.mul(f.urem(item, groups), self.group())
        self.k0 = f.mul(f.udiv(item, groups), w["kc"])
        self.b0 = self.b1 = self.n0 = "0"
        self.columns, self.b = w["n"], w["b"]

    def blocks(self) -> None:
        f, w = self.f, self.w
        self.once = "false"
        kc = f.minimum(w["kc"], f.sub(w["k"], self.k0))
        packed = self.shared(self.k0)
        end = f.minimum(self.columns, f.add(self.start, self.group()))
        with f.loop(self.start, end, self.tile.columns) as jr:
            self.pack_b(jr, packed, self.k0, kc)

    def zeros(self) -> None:
        """Nothing to pack."""


@cache
def core_source(tile: Tile) -> KernelSource:
    """The driver with its packers: `void gemm(ptr args, i64 lo, i64 hi, i64 tid)`."""
    return _Core(tile, f"gemm_{tile.element}{tile.lanes}").source()


@cache
def pack_source(tile: Tile) -> KernelSource:
    """The packer of a shared B, with the same argument block as `gemm`."""
    return _PackB(tile, f"gemm_pack_{tile.element}{tile.lanes}").source()
