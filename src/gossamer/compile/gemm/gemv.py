"""Products with one row, or a few: y[n] = sum over k of x[k] B[k, n]. Layer 2.

The one idea: every element of B is used once, so only its way through memory counts: B is read in
place, in the direction in which it lies. If columns are neighbours, rows of B times a scalar are
added to y, several rows at once; if the elements of a column are, each is multiplied with x in
turn. Further rows of A find the item's part of B in the cache. A product with one column
is this one, transposed.
"""

from __future__ import annotations

from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm.driver import Driver
from gossamer.compile.gemm.micro import pair_products
from gossamer.compile.gemm.target import Tile
from gossamer.core.dtype import float32, int64

__all__ = ["gemv_source"]

_ROWS = 4  # rows of B added at once: as many streams as every prefetcher follows

_ARGUMENTS = ("ptr noalias %y, ptr noalias %x, ptr noalias %b, i64 %kc, i64 %columns, "
              "i64 %bk, i64 %br")


class _Gemv(Driver):
    """The product of a few rows and a matrix; see `FIELDS`: the rows are A's."""

    def blocks(self) -> None:
        f, w = self.f, self.w
        self.target("0")
        kc = f.sub(self.k1, self.k0)
        place = f.add(f.mul(self.n0, w["b_r"]), f.mul(self.k0, w["b_k"]))
        b = self.at(self.b, place)
        with f.loop("0", self.rows) as i:
            self.row(i, b, kc)
        with f.when(self.has_tile):
            self.epilogue("0", self.rows)

    def row(self, i: str, b: str, kc: str) -> None:
        f, w = self.f, self.w
        contiguous = f.compare("eq", self.out_n, "1")
        out = self.at(self.out, f.mul(i, self.out_m))
        y = f.select(contiguous, out, self.edge, "ptr")
        x = self.vector(i, kc)

        def call(name: str) -> None:
            f.line(f"call void @{name}(ptr {y}, ptr {x}, ptr {b}, i64 {kc}, "
                   f"i64 {self.columns}, i64 {w['b_k']}, i64 {w['b_r']})")

        def rest() -> None:
            f.either(f.compare("eq", w["b_k"], "1"), lambda: call("down"),
                     lambda: call("elements"))

        if self.tile.pairs:
            call("down")
        else:
            f.either(f.compare("eq", w["b_r"], "1"), lambda: call("across"), rest)
        with f.when(f.value(f"xor i1 {contiguous}, true")):
            self.scatter(out, self.edge, self.columns, "1", self.columns, "0")

    def vector(self, i: str, kc: str) -> str:
        """Row i of A in this item, contiguous: in place, or copied into scratch memory."""
        f, w = self.f, self.w
        row = f.add(self.m0, i)
        fused = f.value(f"icmp ne ptr {w['a_fn']}, null")
        copied = f.value(f"or i1 {fused}, {f.compare('ne', w['a_k'], '1')}")
        with f.when(copied):
            self.fill("a", self.a, self.scratch, row, "1", self.k0, kc, "1")
        place = self.at(self.at(self.a, f.mul(row, w["a_r"])), f.mul(self.k0, w["a_k"]))
        return f.select(copied, self.scratch, place, "ptr")


class _Function:
    """One way of reading B: y = x B for `kc` rows and `columns` columns of B."""

    def __init__(self, tile: Tile, name: str) -> None:
        self.tile = tile
        self.f = FunctionBuilder(f"internal void @{name}({_ARGUMENTS})", "noinline #0")

    def at(self, pointer: str, index: str) -> str:
        return self.f.gep(pointer, index, self.tile.element)

    def type(self, lanes: int) -> str:
        return f"<{lanes} x {self.tile.element}>" if lanes > 1 else self.tile.element

    def load(self, pointer: str, lanes: int) -> str:
        return self.f.load(self.type(lanes), pointer, self.tile.nbytes)

    def fma(self, a: str, b: str, c: str, lanes: int) -> str:
        t = self.type(lanes)
        if self.tile.pairs:
            return pair_products(self.f, self.tile, a, b, c)
        suffix = f"v{lanes}f{self.tile.bits}" if lanes > 1 else f"f{self.tile.bits}"
        return self.f.intrinsic(f"llvm.fma.{suffix}", t, [(t, a), (t, b), (t, c)])

    def splat(self, scalar: str, lanes: int) -> str:
        if lanes == 1:
            return scalar
        t = self.type(lanes)
        x = self.f.value(f"insertelement {t} poison, {self.tile.element} {scalar}, i64 0")
        return self.f.value(f"shufflevector {t} {x}, {t} poison, <{lanes} x i32> zeroinitializer")

    def rounded(self, value: str, step: int) -> str:
        """`value` down to a multiple of `step`, a power of two."""
        return self.f.value(f"and i64 {value}, {-step}")


class _Across(_Function):
    """Columns of B are neighbours. y stays in the L1 cache; its sums run through k in order."""

    def write(self) -> FunctionBuilder:
        f = self.f
        nbytes = f.mul("%columns", str(self.tile.nbytes))
        f.intrinsic("llvm.memset.p0.i64", "void", [
            ("ptr", "%y"), ("i8", "0"), ("i64", nbytes), ("i1", "false")])
        end = self.rounded("%kc", _ROWS)
        with f.loop("0", end, _ROWS) as k:
            self.add_rows(k, _ROWS)
        with f.loop(end, "%kc") as k:
            self.add_rows(k, 1)
        return f

    def add_rows(self, k: str, count: int) -> None:
        f, lanes = self.f, self.tile.lanes
        scalars = [self.load(self.at("%x", f.add(k, str(i))), 1) for i in range(count)]
        rows = [self.at("%b", f.mul(f.add(k, str(i)), "%bk")) for i in range(count)]
        end = self.rounded("%columns", lanes)
        for width, start, stop in ((lanes, "0", end), (1, end, "%columns")):
            splats = [self.splat(s, width) for s in scalars]
            with f.loop(start, stop, width) as j:
                place = self.at("%y", j)
                y = self.load(place, width)
                for row, s in zip(rows, splats, strict=True):
                    y = self.fma(s, self.load(self.at(row, j), width), y, width)
                f.store(self.type(width), y, place, self.tile.nbytes)


class _Down(_Function):
    """Elements of a column of B are neighbours: dot products, one after the other. So B is read as
    it lies, which is what a CPU fetches ahead; four columns at once are 1.08 times as fast from L1
    and half as fast from memory (11 against 25 GB/s for columns of 288)."""

    def write(self) -> FunctionBuilder:
        with self.f.loop("0", "%columns") as j:
            self.dot(j)
        return self.f

    def dot(self, j: str) -> None:
        """y[j], from two vectors of sums."""
        f, lanes = self.f, self.tile.lanes
        v = self.tile.vector
        column = self.at("%b", f.mul(j, "%br"))
        pair = [f.alloca(v), f.alloca(v)]
        for s in pair:
            f.store(v, "zeroinitializer", s, 64)
        pairs = self.rounded("%kc", 2 * lanes)
        vectors = self.rounded("%kc", lanes)
        for start, stop, halves in (("0", pairs, 2), (pairs, vectors, 1)):
            with f.loop(start, stop, halves * lanes) as k:
                for half in range(halves):
                    at = f.add(k, str(half * lanes))
                    x, b = self.load(self.at("%x", at), lanes), self.load(self.at(column, at),
                                                                          lanes)
                    f.store(v, self.fma(x, b, f.load(v, pair[half], 64), lanes), pair[half], 64)
        if self.tile.pairs:
            self.rest(column, vectors, pair)
        total = f.value(f"fadd {v} {f.load(v, pair[0], 64)}, {f.load(v, pair[1], 64)}")
        self.finish(j, column, vectors, self.reduce(total))

    def reduce(self, x: str) -> str:
        """The sum of the lanes, halves first: an order of our own, equal in every kernel."""
        lanes = self.tile.lanes
        while lanes > 1:
            t, lanes = self.type(lanes), lanes // 2
            half = f"<{lanes} x i32>"
            low = self.f.value(f"shufflevector {t} {x}, {t} poison, {half} "
                               f"<{', '.join(f'i32 {i}' for i in range(lanes))}>")
            high = self.f.value(f"shufflevector {t} {x}, {t} poison, {half} "
                                f"<{', '.join(f'i32 {i + lanes}' for i in range(lanes))}>")
            x = self.f.value(f"fadd <{lanes} x {self.tile.element}> {low}, {high}")
        return self.f.value(f"extractelement <1 x {self.tile.element}> {x}, i64 0")

    def rest(self, column: str, start: str, pair: list[str]) -> None:
        """Pairs beyond the last whole vector: a vector of which the first lanes exist."""
        f, v, lanes = self.f, self.tile.vector, self.tile.lanes
        left = f.sub("%kc", start)
        with f.when(f.compare("sgt", left, "0")):
            e = Emitter(f, float32, lanes)
            count = e.of(int64)
            mask = count.lt(count.lanes(), count.splat(left))
            x, b = (e.load_masked(self.at(p, start), mask) for p in ("%x", column))
            f.store(v, self.fma(x, b, f.load(v, pair[0], 64), lanes), pair[0], 64)

    def finish(self, j: str, column: str, start: str, total: str) -> None:
        """Add the products beyond the last whole vector and store y[j]."""
        f, element = self.f, self.tile.element
        cell = f.alloca(element)
        f.store(element, total, cell, self.tile.nbytes)
        if not self.tile.pairs:  # which are all added: see `rest`
            with f.loop(start, "%kc") as k:
                x, b = self.load(self.at("%x", k), 1), self.load(self.at(column, k), 1)
                old = f.load(element, cell, self.tile.nbytes)
                f.store(element, self.fma(x, b, old, 1), cell, self.tile.nbytes)
        f.store(element, f.load(element, cell, self.tile.nbytes), self.at("%y", j),
                self.tile.nbytes)


class _Elements(_Function):
    """Neither: one multiply-add after the other."""

    def write(self) -> FunctionBuilder:
        f, element, align = self.f, self.tile.element, self.tile.nbytes
        cell = f.alloca(element)
        with f.loop("0", "%columns") as j:
            f.store(element, "0.0", cell, align)
            with f.loop("0", "%kc") as k:
                place = f.add(f.mul(k, "%bk"), f.mul(j, "%br"))
                x, b = self.load(self.at("%x", k), 1), self.load(self.at("%b", place), 1)
                f.store(element, self.fma(x, b, f.load(element, cell, align), 1), cell, align)
            f.store(element, f.load(element, cell, align), self.at("%y", j), align)
        return f


@cache
def gemv_source(tile: Tile) -> KernelSource:
    """The driver for few rows and a matrix in memory, with the same argument block as `gemm`."""
    functions = [_Down(tile, "down").write()]
    if not tile.pairs:  # whose columns always lie along k: see `Problem.is_thin`
        functions += [_Across(tile, "across").write(), _Elements(tile, "elements").write()]
    kind = "pairs" if tile.pairs else tile.element
    return _Gemv(tile, f"gemv_{kind}{tile.lanes}").source(*functions)
