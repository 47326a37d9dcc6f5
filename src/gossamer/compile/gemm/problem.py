"""A product in normal form: which operand is A, which dimensions are rows. Layer 2.

The one idea: both operands are seen alike, as X[b0, b1, r, k] with r a row of A or a column of B.
So the transposed product C^T = B^T A^T is the same problem with A and B exchanged, and the driver
needs each path (vectors, edges, reading in place) only once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossamer.compile.gemm.operands import Epilogue, Operand, Output, Packed
from gossamer.compile.gemm.target import Tile

__all__ = ["Problem", "normal_form"]

# Measured on Zen 4 with float32: dot products of _THIN rows cost what packing B would, and those
# shorter than _LONG spend more time on adding up lanes than on multiplying. Pairs multiply twice
# as fast as they are packed: half as many rows.
_THIN, _LONG = 8, 256
# Lanes that a multiply-add could have used, for each element that is transposed in registers on
# its way into packed B or into C (which is done where one pass over K, of up to _ONCE, sums
# everything), and for each element of C that is stored alone.
_TURN, _ONCE, _LOOSE = 10, 384, 32


@dataclass(frozen=True)
class Problem:
    """C[b0, b1, m, n] = sum over k of A[b0, b1, m, k] B[b0, b1, n, k]; strides in this order."""

    batch: tuple[int, int]
    m: int
    n: int
    k: int
    a: Operand | Packed
    b: Operand | Packed
    out: Output | Epilogue
    swapped: bool = False  # A and B have changed places: the epilogue expects C transposed
    pairs: bool = False  # elements are pairs of bfloat16 (see `low`)

    @property
    def batches(self) -> int:
        return self.batch[0] * self.batch[1]

    @property
    def multiply_adds(self) -> int:
        return self.batches * self.m * self.n * self.k

    @property
    def is_thin(self) -> bool:
        """Whether it is one row times a matrix in memory, or a few long ones times its columns:
        what `gemv` computes."""
        if not isinstance(self.b, Operand):
            return False
        _, _, r, k = self.b.strides
        dots = k == 1 and r != 1
        return (self.m == 1 and (dots or not self.pairs)) or (
            self.m <= _THIN // (2 if self.pairs else 1) and self.k >= _LONG and dots)

    def swap(self) -> Problem:
        """The transposed problem."""
        out = self.out
        if isinstance(out, Output):
            b0, b1, m, n = out.strides
            out = replace(out, strides=(b0, b1, n, m))
        return replace(self, m=self.n, n=self.m, a=self.b, b=self.a, out=out,
                       swapped=not self.swapped)


def normal_form(p: Problem, tile: Tile) -> Problem:
    """The cheapest equivalent of `p`: fewer batches, full vectors, neighbours in C's rows."""
    p = _merged(p)
    if p.is_thin:
        return p
    if p.n < p.m and p.swap().is_thin:
        return p.swap()

    def lanes(x: int) -> int:
        return -(-x // tile.lanes) * tile.lanes

    def turned(x: Operand | Packed, columns: int) -> int:
        along_k = isinstance(x, Operand) and x.strides[3] == 1 and x.strides[2] != 1
        return _TURN * columns * p.k if along_k else 0

    def stored(rows: int, near: bool, turns: bool) -> int:
        cost = 0 if near else _TURN if turns and rows >= tile.lanes and p.k <= _ONCE else _LOOSE
        return cost * p.m * p.n

    # Multiply-adds in lanes, and what is moved: B packed across its direction, C stored across.
    straight = p.m * lanes(p.n) * p.k + turned(p.b, p.n)
    across = p.n * lanes(p.m) * p.k + turned(p.a, p.m)
    if isinstance(p.out, Output):
        _, _, row, column = p.out.strides
        straight += stored(p.m, column == 1, row == 1)
        across += stored(p.n, row == 1, column == 1)
    else:
        across += stored(p.n, False, True)
    return p.swap() if across < straight else p


def _merged(p: Problem) -> Problem:
    """Batches that share B and whose rows of A and C go on evenly are more rows of one product."""
    a, b, out = p.a, p.b, p.out
    if not (isinstance(a, Operand) and isinstance(b, Operand) and isinstance(out, Output)):
        return p
    for axis in (1, 0):
        count = p.batch[axis]
        if count == 1:
            continue
        even = all(x.strides[axis] == p.m * x.strides[2] for x in (a, out))
        if b.strides[axis] != 0 or not even or (axis == 0 and p.batch[1] > 1):
            return p
        batch = (p.batch[0], 1) if axis == 1 else (1, 1)
        p = replace(p, batch=batch, m=p.m * count)
    return p
