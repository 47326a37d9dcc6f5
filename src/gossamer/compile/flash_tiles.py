"""Products of a few rows that lie where they are, for attention. Layer 2.

The one idea: both operands and the result are so small that they stay in the caches, so nothing is
packed: columns are lanes of vectors, and a row's element is broadcast. Register tiles as high and
wide as the registers allow do the bulk, narrower ones what is left.
"""

from __future__ import annotations

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.emitter import Emitter
from gossamer.core.dtype import DType, int64

__all__ = ["product_functions"]


def product_functions(dtype: DType, lanes: int,
                      tiles: tuple[tuple[int, int], ...]) -> list[FunctionBuilder]:
    """The function `product` and the register tiles it calls.

    `product(rows, columns, depth, a, a_r, a_p, b, b_p, c, c_r, acc)` makes, or where `acc` is 1
    adds to, C[r, n] = sum over p of A[r, p] B[p, n]; neighbours along n, other distances given.

    Args:
        dtype: float32 or float64. lanes: elements of a vector.
        tiles: (vectors, most rows) of the register tiles, widest first; the last is 1 wide.
    """
    t = dtype.llvm
    found: list[FunctionBuilder] = []
    driver = FunctionBuilder(
        "internal void @product(i64 %rows, i64 %columns, i64 %depth, ptr %a, i64 %a_r, i64 %a_p, "
        "ptr %b, i64 %b_p, ptr %c, i64 %c_r, i64 %acc)", "noinline #0")
    start = "0"
    for vectors, most in tiles:
        width = vectors * lanes
        last = vectors == 1
        if last:
            end = "%columns"
        else:
            left = driver.sub("%columns", start)
            end = driver.add(start, driver.sub(left, driver.urem(left, str(width))))
        sizes = sorted({most, *(r for r in (6, 4, 3, 2, 1) if r < most)}, reverse=True)
        with driver.loop(start, end, width) as n:
            bn, columns = driver.gep("%b", n, t), driver.sub("%columns", n)
            row = "0"
            for rows in sizes:
                left = driver.sub("%rows", row)
                stop = driver.add(row, driver.sub(left, driver.urem(left, str(rows))))
                with driver.loop(row, stop, rows) as r:
                    ar = driver.gep("%a", driver.mul(r, "%a_r"), t)
                    cr = driver.gep("%c", driver.add(driver.mul(r, "%c_r"), n), t)
                    driver.line(f"call void @tile_{rows}_{vectors}(i64 %depth, ptr {ar}, i64 %a_r, "
                                f"i64 %a_p, ptr {bn}, i64 %b_p, ptr {cr}, i64 %c_r, i64 %acc, "
                                f"i64 {columns})")
                row = stop
        found += [_tile(dtype, lanes, rows, vectors, last) for rows in sizes]
        start = end
    return [driver, *found]


def _tile(dtype: DType, lanes: int, rows: int, vectors: int, masked: bool) -> FunctionBuilder:
    """rows x vectors accumulators in registers over the whole depth."""
    b = FunctionBuilder(
        f"internal void @tile_{rows}_{vectors}(i64 %depth, ptr %a, i64 %a_r, i64 %a_p, ptr %b, "
        "i64 %b_p, ptr %c, i64 %c_r, i64 %acc, i64 %columns)", "noinline #0")
    e, one = Emitter(b, dtype, lanes), Emitter(b, dtype, 0)
    t = dtype.llvm
    mask = None
    if masked:
        i64 = Emitter(b, int64, lanes)
        mask = i64.lt(i64.lanes(), i64.splat("%columns"))
    slots = {(r, v): b.alloca(e.t) for r in range(rows) for v in range(vectors)}
    places: dict[tuple[int, int], str] = {}
    for r in range(rows):
        row = b.gep("%c", b.mul(str(r), "%c_r"), t)
        places |= {(r, v): b.gep(row, str(v * lanes), t) for v in range(vectors)}

    def begin() -> None:
        for slot in slots.values():
            b.store(e.t, e.const(0), slot)

    def go_on() -> None:
        for key, slot in slots.items():
            b.store(e.t, e.load(places[key]) if mask is None
                    else e.load_masked(places[key], mask), slot)

    b.either(b.compare("ne", "%acc", "0"), go_on, begin)
    a_rows = [b.mul(str(r), "%a_r") for r in range(rows)]
    with b.loop("0", "%depth") as p:
        ap, bp = b.gep("%a", b.mul(p, "%a_p"), t), b.gep("%b", b.mul(p, "%b_p"), t)
        right = [b.gep(bp, str(v * lanes), t) for v in range(vectors)]
        values = [e.load(x) if mask is None else e.load_masked(x, mask) for x in right]
        for r in range(rows):
            left = e.splat(one.load(b.gep(ap, a_rows[r], t)))
            for v in range(vectors):
                slot = slots[r, v]
                b.store(e.t, e.fma(left, values[v], b.load(e.t, slot)), slot)
    for key, slot in slots.items():
        if mask is None:
            e.store(b.load(e.t, slot), places[key])
        else:
            e.store_masked(b.load(e.t, slot), places[key], mask)
    return b
