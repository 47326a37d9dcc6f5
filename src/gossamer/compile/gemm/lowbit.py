"""Kernels for weights of 4 and 8 bits in tiles of 16 rows (see ops/quantized). Layer 2.

The one idea: a vector of weights holds four k of each of 16 rows, so one word of four rounded
activations, in every lane, makes one instruction multiply and add 64 numbers, and no sum runs
across lanes. Weights are read once, in the order in which they lie; up to four rows of x share what
is unpacked, and further rows find the tile in the cache. A CPU with wider or narrower vectors runs
the same loops over 16, 8 or 4 lanes.

What multiplies bytes is chosen by feature: vpdpbusd (AVX-512 VNNI, AVX-VNNI), vpmaddubsw (AVX2),
sdot (NEON), or shifts and multiplications. The first takes its weights unsigned: an offset is added
to them, and its product with the activations starts the sum.

Source: ggml's Q4_0 repacked for vectors; Intel 64 Software Developer's Manual, VPDPBUSD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm.target import Target
from gossamer.core.dtype import DType, float32, int8, int32
from gossamer.ops.quantized import BLOCK, DEAD, LARGEST, TILE

__all__ = ["DOT_WORDS", "ROUND_WORDS", "Scheme", "dot_source", "instruction", "round_source",
           "row_bytes"]

ROUND_WORDS = ("x", "rounded", "k", "blocks", "pitch")
DOT_WORDS = ("x", "weight", "scale", "out", "rows", "groups", "per_group", "features", "pitch")
_STEPS = (4, 2, 1)  # rows of x at once: four sums and what unpacking needs fit 16 registers
_KIND = {"x": "ptr", "rounded": "ptr", "weight": "ptr", "scale": "ptr", "out": "ptr"}


@dataclass(frozen=True)
class Scheme:
    """What a kernel is written for.

    Args:
        bits: of a weight, 4 or 8.
        scale: dtype of the weights' scales.
        dynamic: activations are rounded to 8 bits in blocks of 32; else they are float32.
        single: a group is one block.
    """

    bits: int
    scale: DType
    dynamic: bool
    single: bool


def row_bytes(blocks: int) -> int:
    """Bytes of a row of rounded activations: codes, a scale and a start of the sum for each block,
    in whole cache lines."""
    return -(-blocks * (BLOCK + 8) // 64) * 64


def instruction(target: Target) -> str:
    """The feature by which bytes are multiplied."""
    f = target.features
    if {"avx512vnni", "avx512f"} <= f and target.vector_bytes >= 64:
        return "vnni"
    if {"avx512vnni", "avx512vl"} <= f or "avxvnni" in f:
        return "vnni"
    if "avx2" in f:
        return "avx2"
    return "sdot" if {"neon", "dotprod"} <= f else "plain"


def _lanes(target: Target) -> int:
    widest = {"avx2": 8, "sdot": 4}.get(instruction(target), TILE)
    return min(widest, target.vector_bytes // 4)


def _offset(bits: int, target: Target) -> int:
    """What is added to a weight before bytes are multiplied."""
    if bits == 4:
        return 8
    return 128 if instruction(target) == "vnni" else 0


class _Function:
    """A kernel and its words."""

    def __init__(self, words: tuple[str, ...], target: Target) -> None:
        self.b = b = FunctionBuilder(
            "void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)")
        self.w = {name: b.load(_KIND.get(name, "i64"), b.gep("%args", str(8 * i)), 8)
                  for i, name in enumerate(words)}
        self.target, self.lanes = target, _lanes(target)
        self.f, self.i = (Emitter(b, d, self.lanes) for d in (float32, int32))
        self.one = Emitter(b, int32, 0)

    def source(self, name: str) -> KernelSource:
        text = self.b.finish()
        text += "\n".join(self.b.declares[k] for k in sorted(self.b.declares)) + "\n"
        return KernelSource(name, text.replace("@kernel", "@" + name))


class _Round(_Function):
    """Rows of x to whole numbers -127 .. 127, a block of 32 at a time."""

    def write(self, bits: int, dynamic: bool) -> None:
        b, w = self.b, self.w
        self.bits = bits
        with b.loop("%lo", "%hi") as m:
            row = b.gep(w["x"], b.mul(m, w["k"]), "float")
            out = b.gep(w["rounded"], b.mul(m, w["pitch"]))
            if dynamic:
                self.row(row, out)
            else:
                self.pad(row, "0", out, w["k"], b.mul(w["blocks"], str(BLOCK)))

    def row(self, row: str, out: str) -> None:
        b, w = self.b, self.w
        steps = b.gep(out, b.mul(w["blocks"], str(BLOCK)))
        starts = b.gep(steps, w["blocks"], "float")
        whole = b.udiv(w["k"], str(BLOCK))
        with b.loop("0", whole) as n:
            self.block(b.gep(row, b.mul(n, str(BLOCK)), "float"), n, out, steps, starts)
        buffer = b.alloca("float", BLOCK)
        with b.loop(whole, w["blocks"]) as n:  # the last, shorter one, and padding
            first = b.minimum(b.mul(n, str(BLOCK)), w["k"])
            count = b.minimum(b.sub(w["k"], first), str(BLOCK))
            self.pad(row, first, buffer, count, str(BLOCK))
            self.block(buffer, n, out, steps, starts)

    def pad(self, row: str, first: str, to: str, count: str, size: str) -> None:
        """`count` floats of the row from `first`, then zeros."""
        b = self.b
        with b.loop("0", count) as i:
            value = b.load("float", b.gep(row, b.add(first, i), "float"), 4)
            b.store("float", value, b.gep(to, i, "float"), 4)
        with b.loop(count, size) as i:
            b.store("float", "0.0", b.gep(to, i, "float"), 4)

    def block(self, x: str, n: str, out: str, steps: str, starts: str) -> None:
        b, f, i, lanes = self.b, self.f.strict, self.i, self.lanes
        s = f.of(float32, 0)
        parts = [f.load(b.gep(x, str(p), "float")) for p in range(0, BLOCK, lanes)]
        top = f.abs(parts[0])
        for part in parts[1:]:
            top = f.maximum(top, f.abs(part))
        most = f.reduce("max", top)
        dead = s.lt(most, s.const(DEAD))
        zero, largest = s.const(0), s.const(LARGEST)
        factor = f.splat(s.select(dead, zero, s.div(largest, most)))
        to = b.gep(out, b.mul(n, str(BLOCK)))
        total = i.const(0)
        small = i.of(int8)
        for p, part in enumerate(parts):
            near = f.rint(f.mul(part, factor))
            code = b.intrinsic(f"llvm.fptosi.sat.{i.suffix}.{f.suffix}", i.t, [(f.t, near)])
            small.store(i.cast(code, int8), b.gep(to, str(p * lanes)))
            total = i.add(total, code)
        s.store(s.select(dead, zero, s.div(most, largest)), b.gep(steps, n, "float"))
        start = self.one.mul(i.reduce("add", total), str(-_offset(self.bits, self.target)))
        self.one.store(start, b.gep(starts, n, "i32"))


class _Dot(_Function):
    """Products of rows of x with tiles [lo, hi) of the weights."""

    def __init__(self, scheme: Scheme, target: Target) -> None:
        super().__init__(DOT_WORDS, target)
        self.s = scheme
        self.instruction = instruction(target)
        self.bytes = Emitter(self.b, int8, 4 * self.lanes)

    def write(self) -> None:
        b, w = self.b, self.w
        block_bytes = BLOCK * TILE * self.s.bits // 8
        self.blocks = b.mul(w["groups"], w["per_group"])
        tile_bytes = b.mul(self.blocks, str(block_bytes))
        with b.loop("%lo", "%hi") as tile:
            weight = b.gep(w["weight"], b.mul(tile, tile_bytes))
            scale = b.gep(w["scale"], b.mul(b.mul(tile, w["groups"]), str(TILE)),
                          self.s.scale.llvm)
            start = "0"
            for count in _STEPS:
                end = b.value(f"and i64 {w['rows']}, {-count}")
                with b.loop(start, end, count) as m:
                    if self.lanes == TILE:
                        self.rows(m, count, tile, "0", weight, scale)
                    else:
                        with b.loop("0", str(TILE), self.lanes) as lane:
                            self.rows(m, count, tile, lane, weight, scale)
                start = end

    def rows(self, m: str, count: int, tile: str, lane: str, weight: str, scale: str) -> None:
        """`count` rows of x from `m` times the tile's rows from `lane`."""
        b, w, f = self.b, self.w, self.f
        xs = [b.gep(w["x"], b.mul(b.add(m, str(r)), w["pitch"])) for r in range(count)]
        weight = b.gep(weight, lane, "i32")
        totals, parts = ([b.alloca(f.t) for _ in range(count)] for _ in range(2))
        self.clear(totals)
        with b.loop("0", w["groups"]) as g:
            place = b.gep(scale, b.add(b.mul(g, str(TILE)), lane), self.s.scale.llvm)
            step = f.of(self.s.scale).load(place)
            if self.s.single:
                sums = self.block(xs, g, weight, [None] * count)
            else:
                self.clear(parts)
                first = b.mul(g, w["per_group"])
                with b.loop(first, b.add(first, w["per_group"])) as n:
                    found = self.block(xs, n, weight, [b.load(f.t, p, 64) for p in parts])
                    for p, value in zip(parts, found, strict=True):
                        b.store(f.t, value, p, 64)
                sums = [b.load(f.t, p, 64) for p in parts]
            for total, value in zip(totals, sums, strict=True):
                b.store(f.t, f.fma(value, step, b.load(f.t, total, 64)), total, 64)
        for r, total in enumerate(totals):
            self.finish(b.add(m, str(r)), tile, lane, b.load(f.t, total, 64))

    def clear(self, cells: list[str]) -> None:
        for cell in cells:
            self.b.store(self.f.t, self.f.const(0), cell, 64)

    def finish(self, m: str, tile: str, lane: str, value: str) -> None:
        """Store a row's results; the last tile may have fewer columns than lanes."""
        b, w = self.b, self.w
        column = b.add(b.mul(tile, str(TILE)), lane)
        out = b.gep(w["out"], b.add(b.mul(m, w["features"]), column), "float")
        left = b.sub(w["features"], column)

        def some() -> None:
            cell = b.alloca(self.f.t)
            b.store(self.f.t, value, cell, 64)
            with b.loop("0", left) as i:
                b.store("float", b.load("float", b.gep(cell, i, "float"), 4),
                        b.gep(out, i, "float"), 4)

        b.either(b.compare("sge", left, str(self.lanes)), lambda: self.f.store(value, out), some)

    # a block of 32 k ---------------------------------------------------------------------------
    def block(self, xs: list[str], n: str, weight: str, before: list[str | None]) -> list[str]:
        """What block `n` adds to the sums of each row, before the weights' scale."""
        b = self.b
        here = b.gep(weight, b.mul(n, str(BLOCK * TILE * self.s.bits // 8)))
        return self.whole(xs, n, here, before) if self.s.dynamic \
            else self.exact(xs, n, here, before)

    def whole(self, xs: list[str], n: str, here: str, before: list[str | None]) -> list[str]:
        """Whole numbers, multiplied by the activations' scales."""
        b, i, f = self.b, self.i, self.f
        codes = [b.gep(x, b.mul(n, str(BLOCK))) for x in xs]
        steps = [b.gep(x, b.mul(self.blocks, str(BLOCK))) for x in xs]
        sums = []
        for at in steps:
            start = b.gep(b.gep(at, self.blocks, "i32"), n, "i32")
            sums.append(i.splat(b.load("i32", start, 4)) if _offset(self.s.bits, self.target)
                        else i.const(0))
        for quad, value in self.quads(here):
            for r, code in enumerate(codes):
                word = b.load("i32", b.gep(code, str(4 * quad)), 4)
                sums[r] = self.dot4(sums[r], value, word)
        found = []
        for at, total, old in zip(steps, sums, before, strict=True):
            step = f.splat(b.load("float", b.gep(at, n, "float"), 4))
            real = i.cast(total, float32)
            found.append(f.mul(real, step) if old is None else f.fma(real, step, old))
        return found

    def quads(self, here: str) -> list[tuple[int, str]]:
        """(number of four k, their weights as bytes with the offset added), in order of reading."""
        b, e = self.b, self.bytes
        found = []
        for q in range(8 * self.s.bits // 8):
            raw = e.load(b.gep(here, str(q * TILE * 4)))
            if self.s.bits == 8:
                signed = self.instruction != "vnni"
                found.append((q, raw if signed else e.xor(raw, e.const(-128))))
            else:
                found += [(q, e.and_(raw, e.const(15))), (q + 4, e.lshr(raw, e.const(4)))]
        return found

    def dot4(self, total: str, weights: str, word: str) -> str:
        """total + the sum over four bytes of each lane: weights times the bytes of `word`."""
        b, i, e = self.b, self.i, self.bytes
        words = b.value(f"bitcast {e.t} {weights} to {i.t}")
        if self.instruction == "vnni":
            return b.intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", i.t,
                               [(i.t, total), (i.t, words), (i.t, i.splat(word))])
        if self.instruction == "plain":
            for j in range(4):
                up, down = str(24 - 8 * j), "24"
                x = self.one.shr(self.one.shl(word, up), down)
                w = i.shr(i.shl(words, i.const(24 - 8 * j)), i.const(24))
                total = i.add(total, i.mul(w, i.splat(x)))
            return total
        x = b.value(f"bitcast {i.t} {i.splat(word)} to {e.t}")
        if self.instruction == "sdot":
            return b.intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", i.t,
                               [(i.t, total), (e.t, weights), (e.t, x)])
        if self.s.bits == 8:  # |w| times x with the sign of w: no pair of products saturates
            x = b.intrinsic("llvm.x86.avx2.psign.b", e.t, [(e.t, x), (e.t, weights)])
            weights = e.abs(weights)
        pairs = b.intrinsic("llvm.x86.avx2.pmadd.ub.sw", "<16 x i16>",
                            [(e.t, weights), (e.t, x)])
        fours = b.intrinsic("llvm.x86.avx2.pmadd.wd", i.t, [
            ("<16 x i16>", pairs), ("<16 x i16>", "splat (i16 1)")])
        return i.add(total, fours)

    def exact(self, xs: list[str], n: str, here: str, before: list[str | None]) -> list[str]:
        """float32 activations: each weight becomes a float, then multiplied and added."""
        b, i, f = self.b, self.i, self.f
        rows = [b.gep(x, b.mul(n, str(BLOCK)), "float") for x in xs]
        chains = max(1, 4 // len(xs))  # sums that run side by side hide a multiply-add's latency
        sums = [[f.const(0) if old is None else old] + [f.const(0)] * (chains - 1)
                for old in before]
        bits = self.s.bits
        for q in range(8 * bits // 8):
            raw = i.load(b.gep(here, str(q * TILE * 4)))
            if bits == 4:  # value + 8 to two's complement
                raw = i.xor(raw, i.const(-0x77777778))
            for j in range(4):
                for k, up in ([(4 * q + j, 24 - 8 * j)] if bits == 8 else
                              [(4 * q + j, 28 - 8 * j), (4 * q + 16 + j, 24 - 8 * j)]):
                    value = i.shr(i.shl(raw, i.const(up)), i.const(32 - bits))
                    real = i.cast(value, float32)
                    for r, row in enumerate(rows):
                        x = f.splat(b.load("float", b.gep(row, str(k), "float"), 4))
                        sums[r][j % chains] = f.fma(real, x, sums[r][j % chains])
        found = []
        for parts in sums:
            total = parts[0]
            for part in parts[1:]:
                total = f.add(total, part)
            found.append(total)
        return found


@cache
def round_source(bits: int, dynamic: bool, target: Target) -> KernelSource:
    """The kernel over rows of x that rounds them, or (not dynamic) pads them with zeros."""
    made = _Round(ROUND_WORDS, target)
    made.write(bits, dynamic)
    return made.source(f"round_{_offset(bits, target)}_{made.lanes}" if dynamic
                       else f"pad_{made.lanes}")


@cache
def dot_source(scheme: Scheme, target: Target) -> KernelSource:
    """The kernel over tiles of 16 rows of weights."""
    made = _Dot(scheme, target)
    made.write()
    kind = made.instruction if scheme.dynamic else "float"
    group = "block" if scheme.single else "group"
    return made.source(f"lowbit{scheme.bits}_{scheme.scale.name}_{group}_{kind}_{made.lanes}")
