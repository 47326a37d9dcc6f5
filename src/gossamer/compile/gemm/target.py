"""What the contraction generator must know of a machine. Layer 2.

The one idea: the generated code depends on the width of a vector and the number of vector
registers, the blocking on the sizes of the caches, and nothing on the name of a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gossamer.core.dtype import DType, float32

__all__ = ["Target", "Tile", "low_products", "pair_tile", "tile_for"]


@dataclass(frozen=True)
class Target:
    """A CPU as the generator sees it; `runtime/device.py` fills one in for the host.

    Args:
        vector_bytes: width of a vector register: 64 (AVX-512), 32 (AVX2), 16 (NEON).
        features: LLVM feature names that the code may rely on, e.g. `{"avx512f", "fma"}`.
        l1, l2: data caches of one core, in bytes.
        threads: workers that will run the kernels; decides how finely work is cut, never results.
        products: what operands of float32 products may be rounded to, if that is faster.
    """

    vector_bytes: int
    features: frozenset[str] = frozenset()
    l1: int = 32 << 10
    l2: int = 1 << 20
    threads: int = 1
    products: DType | None = None

    @property
    def registers(self) -> int:
        """Number of vector registers: 32 for AVX-512 and NEON, 16 for AVX2."""
        return 32 if self.features & {"avx512f", "neon"} else 16

    @property
    def lane_multiply(self) -> bool:
        """Whether a multiply-add can take one lane of a vector as its factor (NEON)."""
        return "neon" in self.features


@dataclass(frozen=True)
class Tile:
    """Shape of the micro-kernel for one (dtype, target): `rows` x `vectors * lanes` of C."""

    element: str  # LLVM type of an element: "float" or "double"
    bits: int  # width of an element
    lanes: int  # elements in a vector
    rows: int  # the most rows of C held in registers
    vectors: int  # vectors in one row of C
    lane_multiply: bool
    pairs: bool = False  # an element of A and B is two bfloat16 that follow each other along k

    @property
    def columns(self) -> int:
        return self.lanes * self.vectors

    @property
    def a_pitch(self) -> int:
        """Elements from one k to the next in a packed panel of A: its rows in whole vectors."""
        return -(-self.rows // self.lanes) * self.lanes

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.element}>"

    @property
    def nbytes(self) -> int:
        """Bytes of an element."""
        return self.bits // 8


def tile_for(dtype: DType, target: Target) -> Tile:
    """The micro-tile: two vectors wide and as high as the registers allow.

    Of 32 registers, 28 hold C (14 x 2), two a row of B, the rest broadcasts of A; of 16, 12
    hold C (6 x 2). NEON holds A in vectors as well, so that 12 x 2 vectors are left for C.

    Source: BLIS has the same tiles (kernels skx, haswell, armv8a).
    """
    lanes = target.vector_bytes // dtype.itemsize
    rows = 12 if target.lane_multiply else 14 if target.registers == 32 else 6
    return Tile(dtype.llvm, 8 * dtype.itemsize, lanes, rows, 2, target.lane_multiply)


def pair_tile(target: Target) -> Tile | None:
    """The tile of bfloat16 products, with the same registers as float32's; None if the CPU has no
    instruction for them."""
    if target.vector_bytes < 64 or "avx512bf16" not in target.features:
        return None
    return replace(tile_for(float32, target), pairs=True)


def low_products(target: Target) -> DType | None:
    """The dtype of float32 products that may be less exact, if the CPU is faster at it."""
    return target.products if pair_tile(target) is not None else None
