"""Products of 16-bit floats: pairs where the CPU has them, widened elsewhere, against float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm import Operand, Output, Target
from gossamer.compile.gemm.low import Stored, low_gemm
from gossamer.compile.gemm.target import pair_tile
from gossamer.core.dtype import DType, as_dtype, bfloat16, float16, float32, round_to_bfloat16
from gossamer.runtime import device
from tests.compile.gemm_runner import Runner

PAIRS = Target(64, frozenset({"avx512f", "avx512bf16"}))
WIDENED = Target(64, frozenset({"avx512f"}))
TARGETS = {"pairs": PAIRS, "widened": WIDENED, "avx2": Target(32),
           "small caches": Target(64, PAIRS.features, l1=4 << 10, l2=24 << 10)}
SHAPES = [(1, 1, 1, 1, 1), (1, 1, 5, 7, 3), (1, 1, 14, 32, 32), (2, 3, 15, 33, 17),
          (1, 1, 64, 64, 64), (1, 2, 61, 53, 41), (1, 1, 100, 70, 301), (1, 1, 300, 10, 40),
          (1, 1, 1, 50, 300), (1, 1, 50, 1, 33), (1, 1, 3, 20, 534), (2, 1, 19, 1, 64),
          (1, 1, 20, 30, 6001), (1, 1, 130, 40, 0)]


def _needs(target: Target) -> None:
    if pair_tile(target) is not None and not device.host().has("avx512bf16"):
        pytest.skip("this CPU has no bfloat16 products")


def _operand(rng: np.random.Generator, number: int, shape: tuple[int, int, int, int], order: str,
             dtype: DType) -> tuple[Stored, np.ndarray, np.ndarray]:
    """(operand, its memory, its values (b0, b1, r, k)); `order` names the axes in memory."""
    b0, b1, r, k = shape
    steps = {"s": (b0, b1, 2 * r, 3 * k), "k": shape, "r": (b0, b1, k, r)}[order]
    drawn = rng.standard_normal(steps).astype(np.float32)
    if dtype is bfloat16:
        drawn = round_to_bfloat16(drawn)
        memory = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    else:
        memory = drawn.astype(dtype.numpy)
        drawn = memory.astype(np.float32)
    offset = 0
    strides = [s // memory.itemsize for s in memory.strides]
    if order == "r":
        strides[2:] = strides[:1:-1]
        drawn = drawn.swapaxes(2, 3)
    elif order == "s":  # every second row from the back, every third k
        offset = (2 * r - 1) * strides[2] * memory.itemsize
        strides[2:] = [-2 * strides[2], 3]
        drawn = drawn[:, :, ::-2, ::3]
    b, c, d, e = strides
    return Stored(Operand(number, offset, (b, c, d, e)), dtype), memory, drawn


def _check(shape: tuple[int, int, int, int, int], orders: str, dtypes: tuple[str, str],
           target: Target, low: DType = bfloat16, chunk: int | None = None) -> np.ndarray:
    b0, b1, m, n, k = shape
    rng = np.random.default_rng(m * 10007 + n * 101 + k)
    a, left, x = _operand(rng, 0, (b0, b1, m, k), orders[0], as_dtype(dtypes[0]))
    b, right, y = _operand(rng, 1, (b0, b1, n, k), orders[1], as_dtype(dtypes[1]))
    c = np.full((b0, b1, m, n), -7.0, np.float32)
    out = Output(2, 0, (b1 * m * n, m * n, n, 1))
    calls = low_gemm((b0, b1), m, n, k, low, a, b, out, target)
    Runner(calls, [left, right, c]).run(chunk)
    rounded = [round_to_bfloat16(v) if low is bfloat16 else v.astype(np.float16) for v in (x, y)]
    wide = [v.astype(np.float64) for v in rounded]
    expected = wide[0] @ wide[1].swapaxes(2, 3)
    bound = (k + 1) * 2.0**-23 * (np.abs(wide[0]) @ np.abs(wide[1].swapaxes(2, 3)) + 1e-30)
    assert (np.abs(c - expected) <= bound).all()
    return c


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pair_of_orders_and_dtypes(shape: tuple[int, int, int, int, int],
                                         target: str) -> None:
    _needs(TARGETS[target])
    for a, b in itertools.product("kr", "krs"):
        for dtypes in (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")):
            _check(shape, a + b, dtypes, TARGETS[target])


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 70), st.integers(1, 90),
                 st.integers(0, 200)),
       st.sampled_from(["kk", "kr", "rk", "rr", "sk", "rs", "ss"]),
       st.sampled_from([("bfloat16", "bfloat16"), ("float32", "bfloat16")]),
       st.sampled_from(["pairs", "small caches", "avx2"]))
def test_any_shape(shape, orders, dtypes, target) -> None:
    _needs(TARGETS[target])
    _check(shape, orders, dtypes, TARGETS[target], chunk=1)


@pytest.mark.parametrize("orders", ["kk", "rr", "ks"])
def test_float16_is_widened(orders: str) -> None:
    _check((1, 2, 33, 45, 67), orders, ("float16", "float32"), WIDENED, low=float16)


def test_pairs_and_widened_agree() -> None:
    _needs(PAIRS)
    shape = (1, 1, 45, 77, 129)
    one, other = (_check(shape, "kr", ("bfloat16", "float32"), t) for t in (PAIRS, WIDENED))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_infinities_and_nan_go_through() -> None:
    for target in (PAIRS, WIDENED):
        _needs(target)
        a = np.array([[np.inf, 1.0, 0.0, 0.0], [np.nan, 1.0, 1.0, 1.0]], np.float32)
        b = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
        c = np.zeros((2, 1), np.float32)
        x, y = (Stored(Operand(i, 0, (0, 0, 4, 1)), float32) for i in (0, 1))
        Runner(low_gemm((1, 1), 2, 1, 4, bfloat16, x, y, Output(2, 0, (0, 0, 1, 1)), target),
               [a, b, c]).run()
        assert np.isposinf(c[0, 0]) and np.isnan(c[1, 0])


def test_results_are_rounded_as_by_integers_but_for_denormals() -> None:
    """What `flushes` allows: nearest even, infinities and NaN stay, numbers below 2^-126 are 0."""
    _needs(PAIRS)
    f = FunctionBuilder("void @round(ptr %args, i64 %lo, i64 %hi, i64 %tid)", flushes=True)
    x, y, z = (f.load("ptr", f.gep("%args", str(i), "i64"), 8) for i in range(3))
    stored, kept = Emitter(f, bfloat16, 16), Emitter(f, float32, 16)
    with f.loop("%lo", "%hi", 16) as i:
        value = kept.load(f.gep(x, i, "float"))
        stored.store(value, f.gep(y, i, "i16"))
        kept.store(kept.cast(value, bfloat16), f.gep(z, i, "float"))
    values = np.random.default_rng(0).integers(0, 2**32, 1 << 16, np.uint32).view(np.float32)
    values[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 3.4e38]
    low, wide = np.zeros(values.size, np.uint16), np.zeros_like(values)
    words = tuple(BufferRef(i, 0) for i in range(3))
    Runner([Call(KernelSource("round", f.finish()), words, values.size, 0, "round", (0,), (1, 2))],
           [values, low, wide]).run()
    zeros = np.copysign(np.float32(0), values)
    expected = round_to_bfloat16(np.where(np.abs(values) < 2.0**-126, zeros, values))
    np.testing.assert_array_equal(wide, expected)
    np.testing.assert_array_equal((low.astype(np.uint32) << 16).view(np.float32), expected)
