"""The product of any shape and strides against NumPy in float64, for every kind of CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gossamer.compile.calls import Call
from gossamer.compile.gemm import Operand, Output, Target, gemm
from gossamer.core.dtype import DType, as_dtype
from gossamer.runtime.execute import Executable
from tests.compile.gemm_runner import Runner

AVX512 = Target(64, frozenset({"avx512f"}))
AVX2 = Target(32)
NEON = Target(16, frozenset({"neon"}))
SMALL_CACHES = Target(64, frozenset({"avx512f"}), l1=4 << 10, l2=24 << 10)
TARGETS = {"avx512": AVX512, "avx2": AVX2, "neon": NEON, "small caches": SMALL_CACHES}
LAYOUTS = ("rows", "columns", "steps", "heads", "broadcast")

Shape = tuple[int, int, int, int]


def array(rng: np.random.Generator, shape: Shape, layout: str, dtype: DType) -> np.ndarray:
    """Random numbers of a shape (b0, b1, rows, columns) with the layout's strides."""
    b0, b1, r, c = shape

    def draw(*s: int) -> np.ndarray:
        return rng.standard_normal(s).astype(dtype.numpy)

    if layout == "columns":
        return draw(b0, b1, c, r).swapaxes(2, 3)
    if layout == "steps":
        return draw(b0, b1, 2 * r, 3 * c)[:, :, ::-2, ::3]
    if layout == "heads":
        return draw(b0, r, b1, c).swapaxes(1, 2)
    if layout == "broadcast":
        return np.broadcast_to(draw(1, 1, 1, c), shape)
    return draw(*shape)


def strides(x: np.ndarray) -> tuple[int, int, int, int]:
    b0, b1, r, c = (s // x.itemsize for s in x.strides)
    return b0, b1, r, c


def base(x: np.ndarray) -> tuple[np.ndarray, int]:
    """The array that owns the memory of `x`, and the byte offset of x's first element."""
    owner = x
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner, x.ctypes.data - owner.ctypes.data


def product_calls(a: np.ndarray, b: np.ndarray, c: np.ndarray,
                  target: Target) -> tuple[list[Call], list[np.ndarray]]:
    """Calls of c = a @ b, and the arrays that are their buffers."""
    places = [base(x) for x in (a, b, c)]
    operands = [Operand(i, offset, strides(x))
                for i, ((_, offset), x) in enumerate(zip(places, (a, b, c), strict=True))]
    out = Output(2, operands[2].offset, operands[2].strides)
    calls = gemm(c.shape[:2], c.shape[2], c.shape[3], a.shape[3],
                 as_dtype(c.dtype.name), operands[0], operands[1], out, target)
    return calls, [owner for owner, _ in places]


def product(a: np.ndarray, b: np.ndarray, c: np.ndarray, target: Target,
            chunk: int | None = None, note: str = "") -> None:
    """c = a @ b by our kernels."""
    Runner(*product_calls(a, b, c, target), note).run(chunk)


def check(shape: tuple[int, int, int, int, int], layouts: tuple[str, str, str], dtype: DType,
          target: Target, chunk: int | None = None, note: str = "") -> None:
    """One product against NumPy; what lies beside C in memory must stay as it was."""
    b0, b1, m, n, k = shape
    rng = np.random.default_rng(m * 10007 + n * 101 + k)
    a = array(rng, (b0, b1, m, k), layouts[0], dtype)
    b = array(rng, (b0, b1, k, n), layouts[1], dtype)
    c = array(rng, (b0, b1, m, n), layouts[2], dtype)
    memory, _ = base(c)
    memory[...] = -7.0
    product(a, b, c, target, chunk, note)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    # Sums of k products of standard normal numbers, each product rounded: k eps is far above it.
    bound = (k + 1) * np.finfo(dtype.numpy).eps * (np.abs(a) @ np.abs(b) + 1e-30)
    assert (np.abs(c - expected) <= bound).all()
    c[...] = -7.0
    assert (memory == -7.0).all()


EDGES = [(1, 1, 1, 1, 1), (1, 1, 14, 32, 16), (2, 3, 15, 33, 17), (1, 2, 64, 64, 64),
         (1, 1, 29, 100, 400), (1, 1, 61, 530, 40), (1, 1, 5, 1000, 3), (1, 1, 300, 10, 40),
         (3, 1, 6, 7, 8), (1, 1, 1, 50, 300), (1, 1, 50, 1, 300), (2, 1, 1, 33, 75),
         (2, 2, 4, 45, 290), (1, 1, 70, 3, 261), (1, 1, 1, 1, 67)]
LONG = [(1, 1, 20, 30, 3001), (2, 1, 5, 50, 2600), (1, 1, 1, 9, 9001), (1, 2, 7, 1, 10000)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_every_pair_of_layouts(shape: tuple[int, int, int, int, int], target: str,
                               dtype: str) -> None:
    for a in LAYOUTS:
        for b in LAYOUTS:
            check(shape, (a, b, "rows"), as_dtype(dtype), TARGETS[target])


@pytest.mark.parametrize("target", ["avx512", "avx2"])
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_a_long_sum_is_cut_into_parts(shape: tuple[int, int, int, int, int], target: str) -> None:
    for a, b, c in [("rows", "rows", "rows"), ("columns", "heads", "steps"),
                    ("rows", "columns", "columns"), ("steps", "rows", "heads")]:
        check(shape, (a, b, c), as_dtype("float32"), TARGETS[target], chunk=1)


@pytest.mark.parametrize("shape", [(1, 1, 200, 300, 70), (1, 1, 40, 40, 5000), (3, 2, 33, 65, 20),
                                   (1, 1, 1, 700, 500), (1, 1, 5, 300, 400), (1, 1, 700, 3, 9000)])
def test_results_do_not_depend_on_threads(shape: tuple[int, int, int, int, int]) -> None:
    """Bit for bit: one thread, many threads' smaller items, and chunks in any order."""
    b0, b1, m, n, k = shape
    rng = np.random.default_rng(1)
    for layouts in (("rows", "rows"), ("columns", "columns")):
        a, b = (array(rng, s, x, as_dtype("float32"))
                for s, x in zip(((b0, b1, m, k), (b0, b1, k, n)), layouts, strict=True))
        results = []
        for threads, chunk in ((1, None), (2, 1), (7, 1), (64, 3)):
            c = np.empty((b0, b1, m, n), np.float32)
            product(a, b, c, replace(AVX512, threads=threads), chunk)
            results.append(c)
        for c in results[1:]:
            assert (c.view(np.int32) == results[0].view(np.int32)).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [7, 16, 64])
def test_few_rows_times_a_weight_are_computed_transposed(target: str, m: int) -> None:
    """Then the weight (out, in) is read where it is, and only C is turned."""
    shape = (1, 1, m, 300, 130)
    check(shape, ("rows", "columns", "rows"), as_dtype("float32"), TARGETS[target], chunk=1)
    if m == 64 and target == "avx512":
        a, b, c = (np.zeros((1, 1, *s), np.float32) for s in ((m, 130), (300, 130), (m, 300)))
        call, = product_calls(a, b.swapaxes(2, 3), c, AVX512)[0]
        assert call.name == f"gemm 300x{m}x130"


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon"])
def test_many_items_share_one_packed_b(target: str) -> None:
    """Packed by a call before the product's, bit for bit as one item packs its own."""
    m, n, k = 300, 260, 1200
    rng = np.random.default_rng(3)
    for x, y, z in [("rows", "rows", "rows"), ("steps", "columns", "steps"),
                    ("columns", "heads", "columns")]:
        a = array(rng, (1, 1, m, k), x, as_dtype("float32"))
        b = array(rng, (1, 1, k, n), y, as_dtype("float32"))
        alone, together = (array(rng, (1, 1, m, n), z, as_dtype("float32")) for _ in range(2))
        calls, buffers = product_calls(a, b, together, replace(TARGETS[target], threads=3))
        product(a, b, alone, TARGETS[target])
        Runner(calls, buffers).run(1)
        assert (alone == together).all()
        assert ["pack" in call.name for call in calls] == [True, False]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["columns", "steps", "heads"])
def test_output_strides(layout: str, target: str) -> None:
    for shape in EDGES:
        check(shape, ("rows", "columns", layout), as_dtype("float32"), TARGETS[target])


@settings(max_examples=150)
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), *[st.integers(1, 70)] * 3),
       layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
                         st.sampled_from(LAYOUTS[:4])),
       dtype=st.sampled_from(["float32", "float64"]), target=st.sampled_from(list(TARGETS)),
       chunk=st.sampled_from([None, 1, 2]))
def test_any_product(sizes: tuple[int, int, int, int, int], layouts: tuple[str, str, str],
                     dtype: str, target: str, chunk: int | None) -> None:
    check(sizes, layouts, as_dtype(dtype), TARGETS[target], chunk)


@pytest.mark.parametrize("target", TARGETS)
def test_every_remainder_of_rows_and_columns(target: str) -> None:
    for m in range(1, 32):
        for n in range(1, 68, 3):
            check((1, 1, m, n, 9), ("rows", "rows", "rows"), as_dtype("float32"), TARGETS[target])


def test_threads_of_the_runtime_compute_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    for b0, b1, m, n, k in [(1, 1, 300, 260, 90), (2, 3, 70, 65, 40), (1, 1, 40, 30, 5000),
                            (1, 1, 1, 900, 600)]:
        a = array(rng, (b0, b1, m, k), "rows", as_dtype("float32"))
        b = array(rng, (b0, b1, k, n), "heads", as_dtype("float32"))
        alone, together = (np.full((b0, b1, m, n), np.nan, np.float32) for _ in range(2))
        product(a, b, alone, AVX512)
        calls, buffers = product_calls(a, b, together, replace(AVX512, threads=4))
        Executable(calls, len(buffers)).run([x.ctypes.data for x in buffers])
        assert (alone.view(np.int32) == together.view(np.int32)).all()


def test_code_for_avx2_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With LLVM forbidden to use what AVX-512 adds: 16 registers, no masks."""
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "-avx512f")
    for shape in (*EDGES, *LONG):
        for a, b in (("rows", "rows"), ("columns", "columns"), ("steps", "heads")):
            check(shape, (a, b, "rows"), as_dtype("float32"), AVX2, note="AVX2")


@pytest.mark.parametrize("layout", ["rows", "columns", "steps"])
def test_no_products_give_zeros(layout: str) -> None:
    for n in (1, 5, 40):
        check((2, 1, 7, n, 0), ("rows", "rows", layout), as_dtype("float32"), AVX512)


@pytest.mark.parametrize("shape", [(0, 1, 2, 3, 4), (1, 0, 2, 3, 4), (1, 1, 0, 3, 4),
                                   (1, 1, 2, 0, 4)])
def test_an_empty_result_needs_no_call(shape: tuple[int, int, int, int, int]) -> None:
    b0, b1, m, n, k = shape
    here = Operand(0, 0, (0, 0, 1, 1))
    assert gemm((b0, b1), m, n, k, as_dtype("float32"), here, here,
                Output(1, 0, (0, 0, 1, 1)), AVX512) == []
