"""Products of numbers rounded to 16 bits, summed in float32. Layer 2.

The one idea: two bfloat16 that follow each other along k fill the 32 bits of a float32, so a
bfloat16 product is a float32 product of half the depth whose "elements" are pairs: packing,
blocking and edges are the same code, and only the multiply-add is another instruction
(`vdpbf16ps`). A CPU without it widens the operands to float32 while they are packed; products of
two bfloat16 are exact there.

Operands that are stored wider (a float32 weight) are rounded on the way into the packed block, so
a cast of a weight costs no pass over memory.

Source: Intel, "bfloat16 - Hardware Numerics Definition": pairs are summed without a rounding
between, denormal numbers count as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm.operands import Epilogue, Operand, Output, Packed
from gossamer.compile.gemm.plan import gemm
from gossamer.compile.gemm.target import Target, pair_tile
from gossamer.core.dtype import DType, bfloat16, float32, int16, int64

__all__ = ["Stored", "low_gemm"]

_CALLBACK = ("void @pack(ptr %ctx, ptr %dst, i64 %b0, i64 %b1, i64 %r0, i64 %rows, i64 %k0, "
             "i64 %kc, i64 %width)")
_ROUND = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"


@dataclass(frozen=True)
class Stored:
    """An operand in memory in any floating-point dtype; strides of (b0, b1, row or column, k)."""

    operand: Operand
    dtype: DType

    @property
    def order(self) -> str:
        """The direction in which its elements are neighbours: "k", "r", or "" for neither."""
        _, _, r, k = self.operand.strides
        return "k" if k == 1 else "r" if r == 1 else ""

    def in_pairs(self, k: int) -> Operand | None:
        """The operand seen as pairs along k, if it lies so in memory: nothing has to be packed."""
        b0, b1, r, step = self.operand.strides
        even = not any(x % 2 for x in (b0, b1, r, k)) and self.operand.offset % 4 == 0
        if self.dtype is not bfloat16 or step != 1 or not even:
            return None
        return replace(self.operand, strides=(b0 // 2, b1 // 2, r // 2, 1))


def low_gemm(batch: tuple[int, int], m: int, n: int, k: int, low: DType, a: Stored | Packed,
             b: Stored | Packed, out: Output | Epilogue, target: Target,
             paired: bool = False) -> list[Call]:
    """Calls of C[b0, b1, i, j] = sum over k of round(A[b0, b1, i, k]) round(B[b0, b1, j, k]).

    Args:
        low: the dtype that operands are rounded to: bfloat16 or float16.
        a, b: operands; strides are (b0, b1, row of A or column of B, k). A `Packed` one gives
            rounded numbers in float32, and then there are no pairs; or, if `paired`, pairs.
        out: C, float32, or the consumer of its blocks.

    Returns:
        Calls to run in order; see `gemm`.

    Cost: on a CPU with bfloat16 products half the multiply-adds of `gemm`, and half its reading.
    """
    plain = paired or isinstance(a, Stored) and isinstance(b, Stored)
    tile = pair_tile(target) if low is bfloat16 and plain else None
    depth = k if tile is None else -(-k // 2)
    left, right = (_packed(x, k, low, target, tile is not None) for x in (a, b))
    return gemm(batch, m, n, depth, float32, left, _columns(right), out, target, tile)


def _columns(b: Operand | Packed) -> Operand | Packed:
    """B with the strides that `gemm` expects: k before columns."""
    if isinstance(b, Packed):
        return b
    b0, b1, column, row = b.strides
    return replace(b, strides=(b0, b1, row, column))


def _packed(x: Stored | Packed, k: int, low: DType, target: Target,
            pairs: bool) -> Operand | Packed:
    if isinstance(x, Packed):
        return x
    if pairs:
        ready = x.in_pairs(k)
        if ready is not None:
            return ready
    b0, b1, r, step = x.operand.strides
    words = (BufferRef(x.operand.buffer, x.operand.offset), b0, b1, r, step, k)
    source = _pack_source(x.dtype, low, x.order, pairs, target.vector_bytes // 4)
    return Packed(source, words, "k" if x.order == "k" else "r")


class _Packer:
    """Writes the callback of one kind of operand; see `Packed` for the contract.

    An element of the destination holds one k, widened to float32, or a pair of them.
    """

    def __init__(self, dtype: DType, low: DType, pairs: bool, lanes: int) -> None:
        self.dtype, self.pairs, self.lanes = dtype, pairs, lanes
        self.f = FunctionBuilder(_CALLBACK)
        raw = int16 if pairs and dtype is bfloat16 else dtype
        self.e, self.one = Emitter(self.f, raw, lanes), Emitter(self.f, raw, 0)
        self.wide = Emitter(self.f, float32, lanes)
        self.rounding = Emitter(self.f, low, lanes) if dtype is not low else None
        self.rounding_one = Emitter(self.f, low, 0) if dtype is not low else None
        names = ("pointer", "b0", "b1", "r", "k", "depth")
        w = {name: self.f.load("i64" if i else "ptr", self.f.gep("%ctx", str(i), "i64"), 8)
             for i, name in enumerate(names)}
        f, self.w = self.f, w
        self.unit = 2 if pairs else 1  # k's in an element of the destination
        self.first = f.mul("%k0", str(self.unit))
        place = f.add(f.add(f.mul("%b0", w["b0"]), f.mul("%b1", w["b1"])),
                      f.add(f.mul("%r0", w["r"]), f.mul(self.first, w["k"])))
        self.base = self.at(w["pointer"], place)
        self.left = f.sub(w["depth"], self.first)  # k's from here on

    def at(self, pointer: str, index: str) -> str:
        return self.f.gep(pointer, index, self.dtype.llvm)

    def to(self, index: str) -> str:
        return self.f.gep("%dst", index, "float")

    def below(self, count: str, lanes: int) -> str:
        """Lanes whose number is below `count`."""
        e = Emitter(self.f, int64, lanes)
        return e.lt(e.lanes(), e.splat(count))

    def source(self, order: str) -> KernelSource:
        {"r": self.along_rows, "k": self.along_k, "": self.elements}[order]()
        text = self.f.finish() + "\n".join(self.f.declares.values())
        return KernelSource("pack", text)

    # neighbours along r -----------------------------------------------------------------------
    def along_rows(self) -> None:
        """A panel of two vectors at once, others vector by vector: what exists of a vector is the
        same for every k, so its mask is made before the loop."""
        f, lanes = self.f, self.lanes

        def vectors() -> None:
            whole = f.value(f"and i64 %rows, {-lanes}")
            with f.loop("0", whole, lanes) as r:
                self.down(r, lambda row, second: [self.row_vector(row, second, None)],
                          self.wide.store)
            with f.loop(whole, "%rows", lanes) as r:
                mask = self.below(f.sub("%rows", r), lanes)
                self.down(r, lambda row, second: [self.row_vector(row, second, mask)],
                          lambda value, place: self.wide.store_masked(value, place, mask))

        f.either(f.compare("eq", "%rows", str(2 * lanes)),
                 lambda: self.down("0", self.two_vectors, self.wide.store), vectors)

    def down(self, r: str, read: Callable[[str, str | None], list[str]],
             store: Callable[[str, str], None]) -> None:
        """For every k, the vectors that `read` makes of the row at r, and in pairs of the row below
        it; the last k of an odd depth has none below."""
        f, lanes = self.f, self.lanes
        base, dst = self.at(self.base, f.mul(r, self.w["r"])), self.to(r)
        pairs = f.minimum("%kc", f.value(f"ashr i64 {self.left}, 1")) if self.pairs else "%kc"
        for start, stop in (("0", pairs), (pairs, "%kc")) if self.pairs else (("0", "%kc"),):
            with f.loop(start, stop) as k:
                row = self.at(base, f.mul(f.mul(k, str(self.unit)), self.w["k"]))
                below = self.at(row, self.w["k"]) if self.pairs and stop == pairs else None
                place = f.gep(dst, f.mul(k, "%width"), "float")
                for i, value in enumerate(read(row, below)):
                    store(value, f.gep(place, str(i * lanes), "float"))

    def row_vector(self, row: str, second: str | None, mask: str | None) -> str:
        """Neighbours of one k, or of two in pairs: zeros where there is no second row."""
        low = self.part(row, mask)
        if not self.pairs:
            return self.narrowed(low)
        high = self.e.const(0) if second is None else self.part(second, mask)
        return self.joined(low, high, self.interleaved(self.lanes, 0))

    def two_vectors(self, row: str, second: str | None) -> list[str]:
        """Twice as many; bfloat16 rows of 64 bytes are read at once and sorted by two shuffles."""
        lanes = self.lanes
        if not (self.pairs and self.dtype is bfloat16):
            after = None if second is None else self.at(second, str(lanes))
            return [self.row_vector(row, second, None),
                    self.row_vector(self.at(row, str(lanes)), after, None)]
        double = self.e.of(int16, 2 * lanes)
        low = double.load(row)
        high = double.const(0) if second is None else double.load(second)
        return [self.shuffled("i16", low, high, 2 * lanes, self.interleaved(2 * lanes, half))
                for half in (0, lanes)]

    def interleaved(self, count: int, start: int) -> list[int]:
        """Lanes start .. start + `lanes` of two vectors of `count` lanes, in turn."""
        return [i for lane in range(start, start + self.lanes) for i in (lane, count + lane)]

    # neighbours along k -----------------------------------------------------------------------
    def along_k(self) -> None:
        f, lanes, unit = self.f, self.lanes, self.unit
        count = f.minimum(f.mul("%kc", str(unit)), self.left)  # k's that exist
        whole = f.mul(f.value(f"sdiv i64 {count}, {lanes * unit}"), str(lanes))
        with f.loop("0", "%rows") as r:
            row = self.at(self.base, f.mul(r, self.w["r"]))
            to = self.to(f.mul(r, "%width"))
            with f.loop("0", whole, lanes) as k:
                place = self.at(row, f.mul(k, str(unit)))
                self.wide.store(self.run(place, None), f.gep(to, k, "float"))
            with f.loop(whole, "%kc", lanes) as k:
                done = f.mul(k, str(unit))
                value = self.run(self.at(row, done), f.sub(count, done))
                self.wide.store_masked(value, f.gep(to, k, "float"),
                                       self.below(f.sub("%kc", k), lanes))

    def run(self, pointer: str, count: str | None) -> str:
        """`lanes` elements from neighbours along k; zeros from number `count` on."""
        if not self.pairs:
            mask = None if count is None else self.below(count, self.lanes)
            return self.narrowed(self.part(pointer, mask))
        halves = []
        for i in (0, self.lanes):
            mask = None
            if count is not None:
                mask = self.below(self.f.sub(count, str(i)) if i else count, self.lanes)
            halves.append(self.part(self.at(pointer, str(i)) if i else pointer, mask))
        return self.joined(halves[0], halves[1], list(range(2 * self.lanes)))

    def part(self, pointer: str, mask: str | None) -> str:
        return self.e.load(pointer) if mask is None else self.e.load_masked(pointer, mask)

    # conversions ------------------------------------------------------------------------------
    def narrowed(self, value: str) -> str:
        """A register of float32 rounded to the low dtype."""
        return value if self.rounding is None else self.rounding.round(value)

    def joined(self, low: str, high: str, order: list[int]) -> str:
        """Pairs out of two vectors: lanes `order` of (low, high), as a vector of 32-bit words."""
        f, lanes = self.f, self.lanes
        lane = "i16"
        if self.dtype is bfloat16:
            both = (low, high)
        else:
            lane = "bfloat"
            t, narrow = f"<{lanes} x float>", f"<{2 * lanes} x bfloat>"
            made = f.intrinsic(_ROUND, narrow, [(t, high), (t, low)])
            both = (made, "poison")
        return self.shuffled(lane, *both, lanes if self.dtype is bfloat16 else 2 * lanes, order)

    def shuffled(self, lane: str, x: str, y: str, count: int, order: list[int]) -> str:
        """Lanes `order` of two vectors of `count` 16-bit lanes, as `lanes` 32-bit words."""
        f, lanes = self.f, self.lanes
        t, mask = f"<{count} x {lane}>", ", ".join(f"i32 {i}" for i in order)
        value = f.value(f"shufflevector {t} {x}, {t} {y}, <{2 * lanes} x i32> <{mask}>")
        return f.value(f"bitcast <{2 * lanes} x {lane}> {value} to <{lanes} x float>")

    # no neighbours ----------------------------------------------------------------------------
    def elements(self) -> None:
        f = self.f
        with f.loop("0", "%kc") as k:
            first = f.mul(k, str(self.unit))
            column = self.at(self.base, f.mul(first, self.w["k"]))
            second = f.compare("slt", f.add(first, "1"), self.left)
            with f.loop("0", "%rows") as r:
                place = self.at(column, f.mul(r, self.w["r"]))
                to = self.to(f.add(f.mul(k, "%width"), r))
                if self.pairs:
                    self.pair(place, second, to)
                else:
                    value = self.one.load(place)
                    if self.rounding_one is not None:
                        value = self.rounding_one.round(value)
                    f.store("float", value, to, 4)

    def pair(self, place: str, second: str, to: str) -> None:
        f = self.f
        after = f.select(second, self.at(place, self.w["k"]), place, "ptr")
        high = f.select(second, self.bits(after), "0", "i32")
        word = f.value(f"or i32 {self.bits(place)}, {f.value(f'shl i32 {high}, 16')}")
        f.store("i32", word, to, 4)

    def bits(self, pointer: str) -> str:
        """One element as the 16 bits of a bfloat16, in an i32."""
        if self.dtype is bfloat16:
            return self.f.value(f"zext i16 {self.one.load(pointer)} to i32")
        assert self.rounding_one is not None
        value = self.rounding_one.round(self.one.load(pointer))
        word = self.f.value(f"bitcast float {value} to i32")
        return self.f.value(f"lshr i32 {word}, 16")


@cache
def _pack_source(dtype: DType, low: DType, order: str, pairs: bool, lanes: int) -> KernelSource:
    return _Packer(dtype, low, pairs, lanes).source(order)
