"""Micro-kernels: a few rows by one or two vectors of C, held in registers. Layer 2.

The one idea: C[rows, columns] = sum over k of an outer product of `rows` scalars of A and one row
of B. All rows of C stay in vector registers, so that a step of k costs `rows * vectors`
multiply-adds and only `rows + vectors` loads.

Every row count from 1 to the tile's has its own kernel, so that no multiplication is wasted on
rows that do not exist. Each kernel adds its products in the order of k, in one accumulator per
element: which kernel computes an element never changes its bits.

Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm.target import Tile

__all__ = ["PANEL_ARGUMENTS", "cut_rows", "pair_products", "panel_source"]

# Arguments of a micro-kernel. Pitches are in elements. `in` is what is added to the products:
# C itself, or a row of zeros with pitch 0 for the first block of K.
_KERNEL = ("i64 %kc, ptr noalias %a, i64 %pitch, ptr noalias %b, i64 %ldb, "
           "ptr %c, i64 %ldc, ptr %in, i64 %ldi")

# Arguments of the exported function, which covers any number of rows. Row r of A starts `step`
# elements after row r - 1; step 0 means that A is packed, panel after panel.
PANEL_ARGUMENTS = ("i64 %vectors, i64 %rows, i64 %kc, ptr %a, i64 %step, i64 %pitch, ptr %b, "
                   "i64 %ldb, ptr %c, i64 %ldc, ptr %in, i64 %ldi")

_PAIRS = "llvm.x86.avx512bf16.dpbf16ps.512"
_LATER = 8  # k's; measured on Zen 4 (4, 8, 16): 3 to 5 % of a weight gradient with 192 columns
_GROUP = 7  # rows reached from one base register: 0 .. 6 pitches


class _Kernel:
    """Writes one micro-kernel; `by_rows` reads A[i * pitch + k], otherwise A[k * pitch + i]."""

    def __init__(self, tile: Tile, rows: int, vectors: int, by_rows: bool) -> None:
        self.tile, self.rows, self.vectors, self.by_rows = tile, rows, vectors, by_rows
        self.f = FunctionBuilder(f"internal void @{_name(rows, vectors)}({_KERNEL})")
        self.multiples: list[str] = []

    def write(self) -> str:
        self.prefetch()
        bases = self.bases()
        self.store(self.products(bases))
        return self.f.finish()

    def step(self, pointer: str, elements: str) -> str:
        return self.f.gep(pointer, elements, self.tile.element)

    def prefetch(self) -> None:
        """C is written after the loop: ask for its lines, to write (1), before it."""
        line = "%c"
        for i in range(self.rows):
            line = self.step(line, "%ldc") if i else line
            for j in range(self.vectors):
                self.f.intrinsic("llvm.prefetch.p0", "void", [
                    ("ptr", self.step(line, str(self.tile.lanes * j))),
                    ("i32", "1"), ("i32", "3"), ("i32", "1")])

    def bases(self) -> list[str]:
        """Pointers that the loop advances: one, or one for every seven rows of A."""
        if not self.by_rows:
            return ["%a"]
        f = self.f
        self.multiples = ["0", "%pitch", *(f.mul(str(i), "%pitch") for i in range(2, _GROUP))]
        return [self.step("%a", f.mul(str(i), "%pitch")) for i in range(0, self.rows, _GROUP)]

    def factors(self, pointers: list[str]) -> Iterator[str]:
        """For each row, a vector full of A's element at this k. Each is loaded right before it is
        used: LLVM would hoist them all and run out of registers."""
        tile, vector = self.tile, ""
        for i in range(self.rows):
            if self.by_rows:
                place = self.step(pointers[i // _GROUP], self.multiples[i % _GROUP])
                yield self.splat(tile.element, self.load(tile.element, place), 0)
                continue
            lane = i % tile.lanes
            if tile.lane_multiply and self.rows - (i - lane) >= tile.lanes:
                if lane == 0:
                    vector = self.load(tile.vector, self.step(pointers[0], str(i)))
                yield self.splat(tile.vector, vector, lane)
            else:
                scalar = self.load(tile.element, self.step(pointers[0], str(i)))
                yield self.splat(tile.element, scalar, 0)

    def load(self, type_: str, pointer: str) -> str:
        return self.f.load(type_, pointer, self.tile.nbytes)

    def splat(self, type_: str, x: str, lane: int) -> str:
        """A vector full of a scalar, or of one lane of a vector."""
        v, lanes = self.tile.vector, self.tile.lanes
        if type_ != v:
            x = self.f.value(f"insertelement {v} poison, {type_} {x}, i64 0")
        mask = ", ".join([f"i32 {lane}"] * lanes)
        return self.f.value(f"shufflevector {v} {x}, {v} poison, <{lanes} x i32> <{mask}>")

    def products(self, bases: list[str]) -> list[list[str]]:
        """The loop over k; returns the accumulators, [row][vector]."""
        f, v, before = self.f, self.tile.vector, self.f.block
        heads, following = [f.name("a") for _ in bases], [f.name("a") for _ in bases]
        old = [[f.name("c") for _ in range(self.vectors)] for _ in range(self.rows)]
        new = [[f.name("c") for _ in range(self.vectors)] for _ in range(self.rows)]
        f.branch("%body")
        f.label("%body")
        f.line(f"%k = phi i64 [ %kc, %{before} ], [ %k.next, %body ]")
        f.line(f"%row = phi ptr [ %b, %{before} ], [ %row.next, %body ]")
        for head, start, then in zip(heads, bases, following, strict=True):
            f.line(f"{head} = phi ptr [ {start}, %{before} ], [ {then}, %body ]")
        for i in range(self.rows):
            for j in range(self.vectors):
                f.line(f"{old[i][j]} = phi {v} [ zeroinitializer, %{before} ], "
                       f"[ {new[i][j]}, %body ]")
        self.multiply(heads, old, new)
        if self.by_rows:
            self.prefetch_rows()
        else:
            self.prefetch_column(heads[0])
        step = "1" if self.by_rows else "%pitch"
        for head, then in zip(heads, following, strict=True):
            f.line(f"{then} = getelementptr inbounds {self.tile.element}, ptr {head}, i64 {step}")
        f.line(f"%row.next = getelementptr inbounds {self.tile.element}, ptr %row, i64 %ldb")
        f.line("%k.next = add nsw i64 %k, -1")
        f.branch_if(f.compare("sgt", "%k.next", "0"), "%body", "%done")
        f.label("%done")
        return new

    def multiply(self, heads: list[str], old: list[list[str]], new: list[list[str]]) -> None:
        """One step of k."""
        tile, v = self.tile, self.tile.vector
        b = [self.load(v, self.step("%row", str(tile.lanes * j))) for j in range(self.vectors)]
        for i, a in enumerate(self.factors(heads)):
            for j in range(self.vectors):
                self.multiply_add(new[i][j], a, b[j], old[i][j])

    def multiply_add(self, name: str, a: str, b: str, c: str) -> None:
        """name = a b + c in each lane; a lane of pairs gives the sum of two products."""
        f, tile, v = self.f, self.tile, self.tile.vector
        if not tile.pairs:
            fma = f"llvm.fma.v{tile.lanes}f{tile.bits}"
            f.declare(fma, f"declare {v} @{fma}({v}, {v}, {v})")
            f.line(f"{name} = call {v} @{fma}({v} {a}, {v} {b}, {v} {c})")
            return
        pair_products(f, tile, a, b, c, name)

    def prefetch_rows(self) -> None:
        """Rows of A arrive as many short streams, too many for the hardware to follow: each step
        of k asks for one line of the panel below, which is read next."""
        f, line = self.f, 64 // self.tile.nbytes
        done = f.sub("%kc", "%k")
        row = f.add(f.value(f"and i64 {done}, {line - 1}"), str(self.rows))
        column = f.value(f"and i64 {done}, {-line}")
        self.ask(self.step(self.step("%a", f.mul(row, "%pitch")), column))

    def prefetch_column(self, head: str) -> None:
        """An A that is read in place across k comes in pieces of a line, far apart: each step of k
        asks for the end of a later one, whose beginning the panel above has read."""
        later = self.step(head, self.f.mul(str(_LATER), "%pitch"))
        self.ask(self.step(later, str(self.rows - 1)))

    def ask(self, place: str) -> None:
        self.f.intrinsic("llvm.prefetch.p0", "void", [
            ("ptr", place), ("i32", "0"), ("i32", "3"), ("i32", "1")])

    def store(self, sums: list[list[str]]) -> None:
        f, v, align = self.f, self.tile.vector, self.tile.nbytes
        to, source = "%c", "%in"
        for i in range(self.rows):
            to = self.step(to, "%ldc") if i else to
            source = self.step(source, "%ldi") if i else source
            for j in range(self.vectors):
                at = str(self.tile.lanes * j)
                before = f.load(v, self.step(source, at), align)
                f.store(v, f.value(f"fadd {v} {sums[i][j]}, {before}"), self.step(to, at), align)


def pair_products(f: FunctionBuilder, tile: Tile, a: str, b: str, c: str,
                  name: str | None = None) -> str:
    """name = c + both products of each lane's pair of bfloat16."""
    v, halves, name = tile.vector, f"<{2 * tile.lanes} x bfloat>", name or f.name()
    a, b = (f.value(f"bitcast {v} {x} to {halves}") for x in (a, b))
    f.declare(_PAIRS, f"declare {v} @{_PAIRS}({v}, {halves}, {halves})")
    f.line(f"{name} = call {v} @{_PAIRS}({v} {c}, {halves} {a}, {halves} {b})")
    return name


def _name(rows: int, vectors: int) -> str:
    return f"micro_{rows}x{vectors}"


def cut_rows(f: FunctionBuilder, rows: str, most: int) -> tuple[str, str, str]:
    """Cut `rows` into the fewest panels of at most `most` rows, as even as possible.

    Returns:
        (count, base, extra): the first `extra` panels have base + 1 rows, the others base.
    """
    count = f.udiv(f.add(rows, str(most - 1)), str(most))
    base = f.udiv(rows, count)
    return count, base, f.sub(rows, f.mul(base, count))


@cache
def panel_source(tile: Tile, by_rows: bool) -> KernelSource:
    """The function that runs micro-kernels down all rows of one column panel of B.

    Args:
        by_rows: A is read in place, row by row (`A[r * step + k]`); otherwise its panels have
            the elements of one k next to each other (packed, or A in place with column pitch).
    """
    kind = "pairs" if tile.pairs else tile.element
    symbol = f"gemm_{kind}{tile.lanes}_{'rows' if by_rows else 'panels'}"
    f = FunctionBuilder(f"void @{symbol}({PANEL_ARGUMENTS})")
    count, base, extra = cut_rows(f, "%rows", tile.rows)
    with f.loop("0", count) as p:
        first = f.add(f.mul(p, base), f.minimum(p, extra))
        rows = f.add(base, f.value(f"zext i1 {f.compare('slt', p, extra)} to i64"))
        index = f.add(f.mul(f.sub("%vectors", "1"), str(tile.rows)), f.sub(rows, "1"))
        kernel = f.load("ptr", f.gep("@kernels", index, "ptr"))
        packed = f.mul(p, f.mul("%kc", str(tile.a_pitch)))
        offset = f.select(f.compare("eq", "%step", "0"), packed, f.mul(first, "%step"))
        a = f.gep("%a", offset, tile.element)
        c = f.gep("%c", f.mul(first, "%ldc"), tile.element)
        source = f.gep("%in", f.mul(first, "%ldi"), tile.element)
        f.line(f"call void {kernel}(i64 %kc, ptr {a}, i64 %pitch, ptr %b, i64 %ldb, "
               f"ptr {c}, i64 %ldc, ptr {source}, i64 %ldi)")
    sizes = [(r, v) for v in range(1, tile.vectors + 1) for r in range(1, tile.rows + 1)]
    kernels = [_Kernel(tile, r, v, by_rows) for r, v in sizes]
    texts = [kernel.write() for kernel in kernels]
    declares = {k: line for kernel in kernels for k, line in kernel.f.declares.items()}
    table = ", ".join(f"ptr @{_name(r, v)}" for r, v in sizes)
    head = f"@kernels = internal constant [{len(sizes)} x ptr] [{table}]\n"
    return KernelSource(symbol, head + "".join(texts) + f.finish() + "\n".join(declares.values()))
