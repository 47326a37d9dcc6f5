"""The sum of partial products, when a long K was cut into parts. Layer 2.

The one idea: C = P[0] + P[1] + ..., added in this order. How many parts there are follows from the
sizes of the product alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache

from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm.driver import Driver
from gossamer.compile.gemm.target import Tile

__all__ = ["parts_source"]


class _Parts(Driver):
    """C[m, n] = sum over k of A[m, k, n]: `a_k` is the distance of parts, k their number.

    A's rows have `a_r` elements and lie next to each other; n has one item.
    """

    def blocks(self) -> None:
        f, w = self.f, self.w
        lanes = self.tile.lanes
        self.target("0")
        first = self.at(self.a, f.mul(self.m0, w["a_r"]))
        contiguous = f.compare("eq", self.out_n, "1")
        total = f.value(f"and i64 {self.columns}, {-lanes}")
        with f.loop("0", self.rows) as i:
            source = self.at(first, f.mul(i, w["a_r"]))
            row = self.at(self.out, f.mul(i, self.out_m))
            to = f.select(contiguous, row, self.edge, "ptr")
            for type_, start, stop, step in ((self.tile.vector, "0", total, lanes),
                                             (self.tile.element, total, self.columns, 1)):
                with f.loop(start, stop, step) as j:
                    self.add(type_, self.at(source, j), self.at(to, j))
            with f.when(f.value(f"xor i1 {contiguous}, true")):
                self.scatter(row, self.edge, self.columns, "1", self.columns, "0")
        with f.when(self.has_tile):
            self.epilogue("0", self.rows)

    def add(self, type_: str, source: str, to: str) -> None:
        f, align = self.f, self.tile.nbytes
        f.store(type_, f.load(type_, source, align), to, align)
        with f.loop("1", self.w["k"]) as p:
            x = f.load(type_, self.at(source, f.mul(p, self.w["a_k"])), align)
            f.store(type_, f.value(f"fadd {type_} {f.load(type_, to, align)}, {x}"), to, align)


@cache
def parts_source(tile: Tile) -> KernelSource:
    """The driver that adds parts, with the same argument block as `gemm`."""
    return _Parts(tile, f"gemm_parts_{tile.element}{tile.lanes}").source()
