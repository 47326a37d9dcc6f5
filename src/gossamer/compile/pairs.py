"""Operands computed while packed, as pairs of bfloat16. Layer 2.

The one idea: the function that packs a view writes rounded numbers in float32; called for a few k
at a time into memory that stays in L1, its numbers become pairs by a shift and an `or`, so windows
of an image reach `vdpbf16ps` without a packing function of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import lcm

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm import Packed, Target
from gossamer.core.dtype import int32, int64

__all__ = ["in_pairs", "pair_step"]

_ROWS = 32  # the most that a packing function is called for
_AT_ONCE = 96  # pairs: 24 KiB of float32 for 32 rows

_SIGNATURE = ("void @pairs(ptr %ctx, ptr noalias %dst, i64 %b0, i64 %b1, i64 %r0, i64 %rows, "
              "i64 %k0, i64 %kc, i64 %width)")


def pair_step(packed: Packed) -> int:
    """What the pairs of k in a call must be a multiple of, and so those of the product."""
    return lcm(packed.step, 2) // 2


class _Pairs:
    """Writes the function; `%dst` holds a pair in the place of a float32."""

    def __init__(self, packed: Packed, target: Target) -> None:
        self.packed = packed
        self.lanes = target.vector_bytes // 4
        self.f = FunctionBuilder(_SIGNATURE)
        self.e = Emitter(self.f, int32, self.lanes)
        step = pair_step(packed)
        self.count = -(-_AT_ONCE // step) * step  # pairs in a round
        # Whole vectors are read from the stage, also behind the last row or k.
        self.stage = self.f.alloca("float", 2 * self.count * _ROWS + 2 * self.lanes)

    def at(self, pointer: str, index: str) -> str:
        return self.f.gep(pointer, index, "float")

    def write(self) -> Packed:
        f, inner = self.f, self.packed.callback
        along_k = self.packed.along == "k"
        with f.loop("0", "%kc", self.count) as start:
            count = f.minimum(str(self.count), f.sub("%kc", start))
            first, length = f.mul(f.add("%k0", start), "2"), f.mul(count, "2")
            pitch = str(2 * self.count if along_k else _ROWS)
            f.line(f"call void @{inner.symbol}(ptr %ctx, ptr {self.stage}, i64 %b0, i64 %b1, "
                   f"i64 %r0, i64 %rows, i64 {first}, i64 {length}, i64 {pitch})")
            (self.along_k if along_k else self.along_r)(start, count)
        text = inner.text.replace("define void", "define internal void", 1) + f.finish()
        known = {line for line in inner.text.splitlines() if line.startswith("declare")}
        text += "\n".join(x for x in self.f.declares.values() if x not in known) + "\n"
        symbol = "p" + hashlib.sha256(text.encode()).hexdigest()[:16]
        source = KernelSource(symbol, text.replace("@pairs(", f"@{symbol}("), inner.loops)
        return Packed(source, self.packed.context, self.packed.along, pair_step(self.packed))

    def joined(self, low: str, high: str) -> str:
        """Two vectors of rounded float32, as pairs (low, high)."""
        e = self.e
        return e.or_(e.lshr(low, e.const(16)), e.and_(high, e.const(-65536)))

    def along_r(self, start: str, count: str) -> None:
        f = self.f
        with f.loop("0", count) as k:
            low = self.at(self.stage, f.mul(k, str(2 * _ROWS)))
            high = self.at(low, str(_ROWS))
            to = self.at("%dst", f.mul(f.add(start, k), "%width"))
            self.vectors("%rows", lambda r: self.joined(self.e.load(self.at(low, r)),
                                                        self.e.load(self.at(high, r))), to)

    def along_k(self, start: str, count: str) -> None:
        f = self.f
        with f.loop("0", "%rows") as r:
            row = self.at(self.stage, f.mul(r, str(2 * self.count)))
            to = self.at(self.at("%dst", f.mul(r, "%width")), start)
            self.vectors(count, lambda k: self.sorted(self.at(row, f.mul(k, "2"))), to)

    def sorted(self, place: str) -> str:
        """Pairs of neighbours."""
        t = self.e.t
        x, y = self.e.load(place), self.e.load(self.at(place, str(self.lanes)))
        parts = []
        for odd in range(2):
            lanes = ", ".join(f"i32 {2 * i + odd}" for i in range(self.lanes))
            parts.append(self.f.value(f"shufflevector {t} {x}, {t} {y}, "
                                      f"<{self.lanes} x i32> <{lanes}>"))
        return self.joined(*parts)

    def vectors(self, count: str, value: Callable[[str], str], to: str) -> None:
        """to[i] = value(i) for i < count."""
        f, e, i64 = self.f, self.e, Emitter(self.f, int64, self.lanes)
        whole = f.value(f"and i64 {count}, {-self.lanes}")
        with f.loop("0", whole, self.lanes) as i:
            e.store(value(i), self.at(to, i))
        with f.when(f.compare("slt", whole, count)):
            mask = i64.lt(i64.lanes(), i64.splat(f.sub(count, whole)))
            e.store_masked(value(whole), self.at(to, whole), mask)


def in_pairs(packed: Packed, target: Target) -> Packed:
    """A packing function of float32 numbers that are rounded to bfloat16, as one of pairs along k.

    `packed`'s K must be a multiple of twice `pair_step`.
    """
    return _Pairs(packed, target).write()
