"""Kernels around the products of a Winograd convolution: tiles in and out of 16 planes. Layer 2.

The one idea: channels are vector lanes. A band of an image is transposed into memory of the worker,
(pixel, channel); there a tile is 16 (or 4) loads, its transform a few additions of whole vectors,
and each of its 16 results goes to a plane of its own, (place in the tile; tile, channel), ready to
be a factor of a product. No shape of image wastes a lane.

F(2x2, 3x3): y = A'[(G w G') * (B' x B)]A with the matrices of `_FORMS`; 16 multiplications give
four results, where the definition takes 36.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm import Target
from gossamer.compile.gemm.pack import PACK, pack_function
from gossamer.compile.gemm.target import tile_for
from gossamer.compile.llvm import named
from gossamer.core.dtype import float32

__all__ = ["FILTER_WORDS", "GATHER_WORDS", "SCATTER_WORDS", "SUM_WORDS", "filter_source",
           "gather_source", "scatter_source", "sum_source"]

# Words of the four kernels, in order; pitches and strides are in elements.
GATHER_WORDS = ("x", "planes", "scratch", "area", "channels", "height", "width", "above", "left",
                "start", "count", "tiles_h", "tiles_w", "pitch", "plane", "image", "bands", "band")
SCATTER_WORDS = ("planes", "y", "scratch", "area", "channels", "height", "width", "tiles_h",
                 "tiles_w", "pitch", "plane", "image", "bands", "band")
FILTER_WORDS = ("w", "planes", "rows", "lanes", "row_step", "lane_step", "step_h", "step_w",
                "plane")
SUM_WORDS = ("planes", "w", "scratch", "area", "lanes", "parts", "part", "plane")
_POINTERS = frozenset({"x", "y", "w", "planes", "scratch"})

Vector = list[tuple[int, int]]  # a sum of (factor, number of an operand); factors are 1, -1
_FORMS: dict[str, list[Vector]] = {
    "input": [[(1, 0), (-1, 2)], [(1, 1), (1, 2)], [(1, 2), (-1, 1)], [(1, 1), (-1, 3)]],  # B'
    "output": [[(1, 0), (1, 1), (1, 2)], [(1, 1), (-1, 2), (-1, 3)]],  # A'
    "cotangent": [[(1, 0)], [(1, 0), (1, 1)], [(1, 0), (-1, 1)], [(-1, 1)]],  # A
}
_HALVES = {"filter": 3, "filter_sum": 4}  # G and G': operands along one axis


class _Writer:
    """Shared tools of the four kernels."""

    def __init__(self, words: tuple[str, ...], target: Target) -> None:
        self.b = FunctionBuilder("void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)")
        self.tile = tile_for(float32, target)
        self.v, self.lanes = self.tile.vector, self.tile.lanes
        self.w: dict[str, str] = {}
        for i, name in enumerate(words):
            kind = "ptr" if name in _POINTERS else "i64"
            self.w[name] = self.b.load(kind, self.b.gep("%args", str(8 * i)), 8)
        if "scratch" in words:
            self.area = self.b.gep(self.w["scratch"], self.b.mul("%tid", self.w["area"]))

    def source(self) -> KernelSource:
        body = self.b.finish()
        pack = pack_function(self.tile) if f"@{PACK}(" in body else ""
        lines = "\n".join(self.b.declares[k] for k in sorted(self.b.declares))
        return named(pack + body + lines + "\n!0 = !{}\n", "@kernel")

    # memory -----------------------------------------------------------------------------------
    def at(self, pointer: str, *indices: str) -> str:
        for index in indices:
            pointer = self.b.gep(pointer, index, "float")
        return pointer

    def load(self, pointer: str) -> str:
        return self.b.load(self.v, pointer, 4)

    def store(self, value: str, pointer: str) -> None:
        self.b.store(self.v, value, pointer, 4)

    def zero(self, pointer: str, count: str) -> None:
        self.b.intrinsic("llvm.memset.p0.i64", "void", [
            ("ptr", pointer), ("i8", "0"), ("i64", self.b.mul(count, "4")), ("i1", "false")])

    def transpose(self, to: str, source: str, rows: str, columns: str, pitch: str,
                  width: str) -> None:
        """to[k * width + r] = source[r * pitch + k] for r < rows, k < columns."""
        self.b.line(f"call void @{PACK}(ptr {to}, ptr {source}, i64 {rows}, i64 {columns}, "
                    f"i64 {pitch}, i64 1, i64 {width})")

    def blocks(self, count: str) -> tuple[str, str]:
        """(count, last start) of loops over lanes: the last vector overlaps the one before."""
        return count, self.b.sub(count, str(self.lanes))

    def band_of(self, item: str) -> tuple[str, str, str]:
        """(image in the chunk, first row of tiles, rows of tiles) of an item."""
        b, w = self.b, self.w
        first = b.mul(b.urem(item, w["bands"]), w["band"])
        rows = b.minimum(w["band"], b.sub(w["tiles_h"], first))
        return b.udiv(item, w["bands"]), first, rows

    # arithmetic -------------------------------------------------------------------------------
    def plus(self, x: str, y: str) -> str:
        return self.b.value(f"fadd {self.v} {x}, {y}")

    def minus(self, x: str, y: str) -> str:
        return self.b.value(f"fsub {self.v} {x}, {y}")

    def sum_of(self, form: Vector, values: list[str]) -> str:
        """The sum that a form describes."""
        total = ""
        for sign, i in form:
            if not total:
                total = values[i] if sign > 0 else self.b.value(f"fneg {self.v} {values[i]}")
            else:
                total = (self.plus if sign > 0 else self.minus)(total, values[i])
        return total

    def line(self, kind: str, values: list[str]) -> list[str]:
        """The transform along one axis."""
        if kind not in _HALVES:
            return [self.sum_of(form, values) for form in _FORMS[kind]]
        half = f"splat (float {0.5!r})"

        def halved(x: str) -> str:
            return self.b.value(f"fmul {self.v} {x}, {half}")

        if kind == "filter":  # G: w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2
            w0, w1, w2 = values
            ends, middle = halved(self.plus(w0, w2)), halved(w1)
            return [w0, self.plus(ends, middle), self.minus(ends, middle), w2]
        u0, u1, u2, u3 = values  # G'
        both = halved(self.plus(u1, u2))
        return [self.plus(u0, both), halved(self.minus(u1, u2)), self.plus(u3, both)]

    def square(self, kind: str, values: list[list[str]]) -> list[list[str]]:
        """The transform along both axes: of each column, then of each row."""
        columns = [self.line(kind, list(column)) for column in zip(*values, strict=True)]
        return [self.line(kind, list(row)) for row in zip(*columns, strict=True)]

    def to_planes(self, values: list[list[str]], place: str, plane: str) -> None:
        for i, value in enumerate(v for row in values for v in row):
            self.store(value, self.at(place, self.b.mul(plane, str(i))))

    def from_planes(self, place: str, plane: str) -> list[list[str]]:
        return [[self.load(self.at(place, self.b.mul(plane, str(4 * i + j)))) for j in range(4)]
                for i in range(4)]


# images to planes --------------------------------------------------------------------------------
@cache
def gather_source(target: Target, kind: str) -> KernelSource:
    """Tiles of images (N, C, H, W) as planes.

    Args:
        target: the CPU.
        kind: "input": tiles of 4x4 that overlap by 2, transformed by B; "cotangent": tiles of 2x2,
            transformed by A. Beyond the image (`above`, `left`) are zeros.
    """
    f = _Writer(GATHER_WORDS, target)
    b, w, size = f.b, f.w, len(_FORMS[kind][0]) * 2 if kind == "cotangent" else 4
    reach = size - 2
    pixels = b.add(b.mul(w["tiles_w"], "2"), str(reach))
    pitch = b.mul(pixels, w["channels"])
    extent = b.mul(w["height"], w["width"])
    rest = b.sub(b.sub(pixels, w["left"]), w["count"])
    with b.loop("%lo", "%hi") as item:
        image, first, rows = f.band_of(item)
        source = f.at(w["x"], b.mul(b.mul(b.add(w["image"], image), w["channels"]), extent))
        with b.loop("0", b.add(b.mul(rows, "2"), str(reach))) as r:
            row = b.sub(b.add(b.mul(first, "2"), r), w["above"])
            to = f.at(f.area, b.mul(r, pitch))

            def copied(row: str = row, to: str = to, source: str = source) -> None:
                f.zero(to, b.mul(w["left"], w["channels"]))
                inside = f.at(to, b.mul(w["left"], w["channels"]))
                f.transpose(inside, f.at(source, b.mul(row, w["width"]), w["start"]),
                            w["channels"], w["count"], extent, w["channels"])
                f.zero(f.at(inside, b.mul(w["count"], w["channels"])),
                       b.mul(rest, w["channels"]))

            seen = b.value(f"icmp ult i64 {row}, {w['height']}")
            b.either(seen, copied, lambda to=to: f.zero(to, pitch))  # type: ignore[misc]
        with b.loop("0", rows) as i, b.loop("0", w["tiles_w"]) as j:
            tile = b.add(b.mul(b.add(b.mul(image, w["tiles_h"]), b.add(first, i)), w["tiles_w"]),
                         j)
            corner = f.at(f.area, b.mul(b.mul(i, "2"), pitch), b.mul(b.mul(j, "2"),
                                                                     w["channels"]))
            to = f.at(w["planes"], b.mul(tile, w["pitch"]))
            count, last = f.blocks(w["channels"])
            with b.loop("0", count, f.lanes) as block:
                c = b.minimum(block, last)
                values = [[f.load(f.at(corner, b.mul(str(y), pitch),
                                       b.mul(str(x), w["channels"]), c)) for x in range(size)]
                          for y in range(size)]
                f.to_planes(f.square(kind, values), f.at(to, c), w["plane"])
    return f.source()


# planes to images --------------------------------------------------------------------------------
@cache
def scatter_source(target: Target) -> KernelSource:
    """Planes (16; tile, channel) to images (N, O, H, W): A' m A, four pixels a tile."""
    f = _Writer(SCATTER_WORDS, target)
    b, w = f.b, f.w
    extent, row = b.mul(w["height"], w["width"]), b.mul(w["width"], w["channels"])
    with b.loop("%lo", "%hi") as item:
        image, first, rows = f.band_of(item)
        with b.loop("0", rows) as i, b.loop("0", w["tiles_w"]) as j:
            tile = b.add(b.mul(b.add(b.mul(image, w["tiles_h"]), b.add(first, i)), w["tiles_w"]),
                         j)
            source = f.at(w["planes"], b.mul(tile, w["pitch"]))
            left = b.mul(j, "2")
            corner = f.at(f.area, b.mul(b.mul(i, "2"), row), b.mul(left, w["channels"]))
            both = b.compare("slt", b.add(left, "1"), w["width"])
            count, last = f.blocks(w["channels"])
            with b.loop("0", count, f.lanes) as block:
                o = b.minimum(block, last)
                found = f.square("output", f.from_planes(f.at(source, o), w["plane"]))
                above = f.at(corner, o)
                below = f.at(above, row)
                f.store(found[0][0], above)
                f.store(found[1][0], below)
                with b.when(both):
                    f.store(found[0][1], f.at(above, w["channels"]))
                    f.store(found[1][1], f.at(below, w["channels"]))
        start = b.mul(first, "2")
        height = b.minimum(b.mul(rows, "2"), b.sub(w["height"], start))
        number = b.mul(b.add(w["image"], image), w["channels"])
        to = f.at(w["y"], b.mul(number, extent), b.mul(start, w["width"]))
        f.transpose(to, f.area, b.mul(height, w["width"]), w["channels"], w["channels"], extent)
    return f.source()


# weights -----------------------------------------------------------------------------------------
@cache
def filter_source(target: Target) -> KernelSource:
    """Weights by strides to planes (16; row, lane): G w G'."""
    f = _Writer(FILTER_WORDS, target)
    b, w = f.b, f.w
    count, last = f.blocks(w["lanes"])

    def tap(place: str, y: int, x: int) -> str:
        value = "poison"
        at = f.at(place, b.mul(str(y), w["step_h"]), b.mul(str(x), w["step_w"]))
        for lane in range(f.lanes):
            one = b.load("float", f.at(at, b.mul(str(lane), w["lane_step"])), 4)
            value = b.value(f"insertelement {f.v} {value}, float {one}, i64 {lane}")
        return value

    with b.loop("%lo", "%hi") as row, b.loop("0", count, f.lanes) as block:
        lane = b.minimum(block, last)
        place = f.at(w["w"], b.mul(row, w["row_step"]), b.mul(lane, w["lane_step"]))
        values = [[tap(place, y, x) for x in range(3)] for y in range(3)]
        to = f.at(w["planes"], b.mul(row, w["lanes"]), lane)
        f.to_planes(f.square("filter", values), to, w["plane"])
    return f.source()


@cache
def sum_source(target: Target) -> KernelSource:
    """Parts of planes (part, 16; O, C) added up, to weights (O, C, 3, 3): G' u G."""
    f = _Writer(SUM_WORDS, target)
    b, w = f.b, f.w
    count, last = f.blocks(w["lanes"])
    slots = [b.alloca(f.v) for _ in range(16)]
    mixed = f.at(f.area, b.mul(w["lanes"], "9"))  # behind (9, C): (C, 9)
    with b.loop("%lo", "%hi") as row:
        with b.loop("0", count, f.lanes) as block:
            c = b.minimum(block, last)
            place = f.at(w["planes"], b.mul(row, w["lanes"]), c)
            for slot, value in zip(slots, sum(f.from_planes(place, w["plane"]), []), strict=True):
                f.store(value, slot)
            with b.loop("1", w["parts"]) as part:
                more = f.from_planes(f.at(place, b.mul(part, w["part"])), w["plane"])
                for slot, value in zip(slots, sum(more, []), strict=True):
                    f.store(f.plus(f.load(slot), value), slot)
            total = [f.load(slot) for slot in slots]
            found = f.square("filter_sum", [total[i:i + 4] for i in range(0, 16, 4)])
            for i, value in enumerate(sum(found, [])):
                f.store(value, f.at(f.area, b.mul(w["lanes"], str(i)), c))
        f.transpose(mixed, f.area, "9", w["lanes"], w["lanes"], "9")
        size = b.mul(w["lanes"], "9")
        b.intrinsic("llvm.memcpy.p0.p0.i64", "void", [
            ("ptr", f.at(w["w"], b.mul(row, size))), ("ptr", mixed),
            ("i64", b.mul(size, "4")), ("i1", "false")])
    return f.source()
