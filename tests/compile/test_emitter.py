"""The emitter against NumPy: every instruction and dtype, scalar, AVX-512 and AVX2 vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.emitter import Emitter
from gossamer.core.dtype import (
    DTYPES,
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    round_to_bfloat16,
    uint8,
)
from gossamer.core.errors import CompileError
from tests.compile.kernels import LEVELS, Loop, Rule

INTS = (int8, uint8, int16, int32, int64)
FLOATS = (float32, float64)
# Scalar code, the widest vectors of the host, and AVX2's.
SHAPES = [(0, "host"), (16, "host")] + [(8, level) for level in LEVELS[1:]]
INF, NAN = float("inf"), float("nan")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 7.0, -7.0, 1e-40, -1e-40, 3e38,
           -3e38, INF, -INF, NAN, 8388607.5, -8388607.5, 0.49999997, 1e10]

shapes = pytest.mark.parametrize(("width", "level"), SHAPES)


def values(dtype: DType, rng: np.random.Generator) -> np.ndarray:
    """Extremes, specials and random values of a dtype, as its storage."""
    if dtype.kind == "b":
        return np.array([0, 1], dtype.storage)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = np.concatenate([SPECIAL, rng.standard_normal(60) * 3]).astype(dtype.numpy)
        return to_storage(x, dtype)
    info = np.iinfo(dtype.numpy)
    fixed = [info.min, info.min + 1, info.max - 1, info.max, 0, 1, 2, 3, 7]
    if dtype.kind == "i":
        fixed += [-1, -2, -7]
    drawn = rng.integers(info.min, info.max, 60, dtype=dtype.numpy)
    return np.concatenate([np.array(fixed, dtype.numpy), drawn])


def to_storage(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is bfloat16:
        return (round_to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(dtype.storage)


def from_storage(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is bfloat16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x


def pairs(dtype: DType, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = values(dtype, rng)
    a, b = np.meshgrid(x, x)
    return a.ravel(), b.ravel()


def check(got: np.ndarray, want: np.ndarray, *operands: np.ndarray) -> None:
    """Equal bit for bit (any NaN equals any NaN), zeros with their sign."""
    want = np.asarray(want, got.dtype)
    same = got == want
    if got.dtype.kind == "f":
        same &= np.signbit(got) == np.signbit(want)
        same |= np.isnan(got) & np.isnan(want)
    if not same.all():
        i = int(np.argmin(same))
        raise AssertionError(f"{[x[i] for x in operands]}: got {got[i]!r}, want {want[i]!r} "
                             f"({(~same).sum()} of {same.size} differ)")


def run(rule: Rule, dtype: DType, width: int, level: str, *operands: np.ndarray,
        to: DType | None = None) -> np.ndarray:
    with np.errstate(all="ignore"):
        return Loop(rule, [dtype] * len(operands), to or dtype, width, level)(*operands)


@shapes
@pytest.mark.parametrize("dtype", INTS, ids=lambda d: d.name)
@pytest.mark.parametrize(("name", "reference"), [
    ("add", np.add), ("sub", np.subtract), ("mul", np.multiply),
    ("maximum", np.maximum), ("fmin", np.minimum), ("xor", np.bitwise_xor),
    ("floor_divide", np.floor_divide), ("remainder", np.remainder), ("fmod", np.fmod),
])
def test_integer_pairs(name, reference, dtype, width, level, rng):
    a, b = pairs(dtype, rng)
    got = run(lambda e, x, y: getattr(e, name)(x, y), dtype, width, level, a, b)
    with np.errstate(all="ignore"):
        check(got, reference(a, b), a, b)


@shapes
@pytest.mark.parametrize("dtype", INTS, ids=lambda d: d.name)
def test_trunc_divide(dtype, width, level, rng):
    a, b = pairs(dtype, rng)
    got = run(lambda e, x, y: e.trunc_divide(x, y), dtype, width, level, a, b)
    exact = [0 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
             for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    bits = 8 * dtype.itemsize
    want = np.array([v % (1 << bits) for v in exact], np.uint64).astype(f"u{dtype.itemsize}")
    check(got, want.view(dtype.numpy), a, b)


@pytest.mark.parametrize("dtype", INTS, ids=lambda d: d.name)
@pytest.mark.parametrize("divisor", [0, -1, 3, 7])
def test_division_by_a_literal(dtype, divisor, rng):
    if divisor < 0 and dtype is uint8:
        pytest.skip("uint8 has no negative values")
    a = values(dtype, rng)
    b = np.full_like(a, divisor)
    for name, reference in (("floor_divide", np.floor_divide), ("remainder", np.remainder)):
        got = run(lambda e, x, n=name: getattr(e, n)(x, e.const(divisor)), dtype, 16, "host", a)
        with np.errstate(all="ignore"):
            check(got, reference(a, b), a)


@shapes
@pytest.mark.parametrize("dtype", INTS, ids=lambda d: d.name)
def test_shifts(dtype, width, level, rng):
    """Counts outside of [0, bits) give 0, or the sign for an arithmetic shift right."""
    bits = 8 * dtype.itemsize
    a, b = pairs(dtype, rng)
    b = (b.astype(np.int64) % (2 * bits) - (bits // 2 if dtype.kind == "i" else 0)).astype(
        dtype.numpy)
    inside = (b >= 0) & (b.astype(np.int64) < bits)
    safe = np.where(inside, b, 0).astype(dtype.numpy)
    left = run(lambda e, x, y: e.shl(x, y), dtype, width, level, a, b)
    check(left, np.where(inside, np.left_shift(a, safe), 0), a, b)
    right = run(lambda e, x, y: e.shr(x, y), dtype, width, level, a, b)
    check(right, np.where(inside, np.right_shift(a, safe), np.where(a < 0, -1, 0)), a, b)


@shapes
def test_high_products(width, level, rng):
    for dtype, name, bits in ((int32, "mulhi_u32", 32), (int64, "mulhi_u64", 64)):
        a, b = pairs(dtype, rng)
        got = run(lambda e, x, y, n=name: getattr(e, n)(x, y), dtype, width, level, a, b)
        mask = (1 << bits) - 1
        want = [((int(x) & mask) * (int(y) & mask)) >> bits for x, y in zip(a, b, strict=True)]
        check(got, np.array(want, f"u{dtype.itemsize}").view(dtype.numpy), a, b)


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(("name", "reference"), [
    ("add", np.add), ("div", np.divide), ("fmod", np.fmod), ("copysign", np.copysign),
])
def test_float_pairs(name, reference, dtype, width, level, rng):
    a, b = pairs(dtype, rng)
    got = run(lambda e, x, y: getattr(e, name)(x, y), dtype, width, level, a, b)
    with np.errstate(all="ignore"):
        check(got, reference(a, b), a, b)


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_fmod_of_far_apart_magnitudes(dtype, width, level, rng):
    """Quotients around the bound between the fused remainder and the exact call."""
    b = rng.standard_normal(4000)
    a = (b * 2.0 ** rng.uniform(-2, 60, 4000)).astype(dtype.numpy)
    b = b.astype(dtype.numpy)
    check(run(lambda e, x, y: e.fmod(x, y), dtype, width, level, a, b), np.fmod(a, b), a, b)


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_float_division_as_python(dtype, width, level, rng):
    """remainder and floor_divide agree with Python's % and // on finite operands."""
    a, b = pairs(dtype, rng)
    fine = np.isfinite(a) & np.isfinite(b) & (b != 0)
    with np.errstate(all="ignore"):
        fine &= np.isfinite(a / b)
    a, b = a[fine], b[fine]
    remainder = run(lambda e, x, y: e.remainder(x, y), dtype, width, level, a, b)
    quotient = run(lambda e, x, y: e.floor_divide(x, y), dtype, width, level, a, b)
    with np.errstate(all="ignore"):
        want = np.remainder(a, b)
        np.testing.assert_array_equal(remainder, want)
        np.testing.assert_array_equal(quotient, np.floor_divide(a, b))


@shapes
def test_float_division_by_zero_and_infinity(width, level):
    """PyTorch's results, printed from torch.floor_divide and torch.remainder."""
    a = np.array([5, -5, 0, INF, 5, -0.0, 1], np.float32)
    b = np.array([0, INF, -3, 2, -INF, 2, NAN], np.float32)
    quotient = run(lambda e, x, y: e.floor_divide(x, y), float32, width, level, a, b)
    check(quotient, np.array([INF, -1, -0.0, NAN, -1, -0.0, NAN]), a, b)
    remainder = run(lambda e, x, y: e.remainder(x, y), float32, width, level, a, b)
    np.testing.assert_array_equal(remainder, [NAN, INF, 0, NAN, -INF, 0, NAN])


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_extremes_and_nan(dtype, width, level, rng):
    a, b = pairs(dtype, rng)
    for name, reference in (("maximum", np.maximum), ("minimum", np.minimum),
                            ("fmax", np.fmax), ("fmin", np.fmin)):
        got = run(lambda e, x, y, n=name: getattr(e, n)(x, y), dtype, width, level, a, b)
        np.testing.assert_array_equal(got, reference(a, b), err_msg=name)
        for swap in (False, True):  # a literal on either side takes a shorter path
            def rule(e: Emitter, x: str, n: str = name, s: bool = swap) -> str:
                two = e.const(2.0)
                return getattr(e, n)(two, x) if s else getattr(e, n)(x, two)

            np.testing.assert_array_equal(run(rule, dtype, width, level, a),
                                          reference(a, dtype.numpy.type(2)), err_msg=name)


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(("name", "reference"), [
    ("neg", np.negative), ("abs", np.abs), ("sqrt", np.sqrt), ("reciprocal", np.reciprocal),
    ("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("rint", np.rint),
    ("sign", lambda x: np.where(np.isnan(x), 0.0, np.sign(x))),
])
def test_float_unary(name, reference, dtype, width, level, rng):
    a = values(dtype, rng)
    got = run(lambda e, x: getattr(e, name)(x), dtype, width, level, a)
    with np.errstate(all="ignore"):
        want = reference(a)
    if name == "sign":
        np.testing.assert_array_equal(got, want)
    else:
        check(got, want, a)


@shapes
def test_fma_rounds_once(width, level, rng):
    a, b, c = (rng.standard_normal(999).astype(np.float32) for _ in range(3))
    c = -(a * b)  # what is left is the rounding error of the product
    got = run(lambda e, x, y, z: e.fma(x, y, z), float32, width, level, a, b, c)
    check(got, (a.astype(np.float64) * b + c).astype(np.float32), a, b, c)


@shapes
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=lambda d: d.name)
def test_comparisons(dtype, width, level, rng):
    a, b = pairs(dtype, rng)
    x, y = from_storage(a, dtype), from_storage(b, dtype)
    for name, reference in (("lt", np.less), ("le", np.less_equal), ("gt", np.greater),
                            ("ge", np.greater_equal), ("eq", np.equal), ("ne", np.not_equal)):
        got = run(lambda e, p, q, n=name: getattr(e, n)(p, q), dtype, width, level, a, b, to=bool_)
        check(got, reference(x, y), x, y)


@shapes
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_classification(dtype, width, level, rng):
    a = values(dtype, rng)
    for name in ("isnan", "isinf", "isfinite", "signbit"):
        got = run(lambda e, x, n=name: getattr(e, n)(x), dtype, width, level, a, to=bool_)
        check(got, getattr(np, name)(a), a)


@shapes
def test_bool_arithmetic(width, level):
    a, b = np.array([0, 0, 1, 1], np.bool_), np.array([0, 1, 0, 1], np.bool_)
    for name, want in (("add", a | b), ("mul", a & b), ("and_", a & b), ("or_", a | b),
                       ("xor", a ^ b), ("maximum", a | b), ("minimum", a & b), ("lt", ~a & b)):
        check(run(lambda e, x, y, n=name: getattr(e, n)(x, y), bool_, width, level, a, b), want)
    check(run(lambda e, x: e.not_(x), bool_, width, level, a), ~a)


@shapes
@pytest.mark.parametrize("source", list(DTYPES.values()), ids=lambda d: d.name)
def test_casts(source, width, level, rng):
    stored = values(source, rng)
    x = from_storage(stored, source)
    for to in DTYPES.values():
        keep = np.ones(x.shape, bool)
        if source.kind == "f" and to.is_integer:  # elsewhere the value is not specified
            exact = x.astype(np.float64)
            bound = 2.0 ** (8 * to.itemsize - (1 if to.kind == "i" else 0))
            keep = (exact > (-bound if to.kind == "i" else -1.0)) & (exact < bound)
        got = run(lambda e, v, t=to: e.cast(v, t), source, width, level, stored[keep], to=to)
        with np.errstate(all="ignore"):
            kept = x[keep]
            if to is bool_:
                want = kept != 0
            elif to is bfloat16:
                want = round_to_bfloat16(kept.astype(np.float32))
            elif to is float16:
                want = kept.astype(np.float32).astype(np.float16)
            else:
                want = kept.astype(to.numpy)
        check(from_storage(got, to), want, kept)


@shapes
def test_every_float32_pattern_rounds_to_bfloat16(width, level, rng):
    bits = np.concatenate([
        rng.integers(0, 2**32, 20000, dtype=np.uint32),
        np.uint32(0x7F7F8000) + np.arange(-2, 3).astype(np.uint32),  # the edge of infinity
        np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x00008000, 0x00018000], np.uint32)])
    x = bits.view(np.float32)
    got = from_storage(run(lambda e, v: e.cast(v, bfloat16), float32, width, level, x,
                           to=bfloat16), bfloat16)
    check(got, round_to_bfloat16(x), x)
    rounded = run(lambda e, v: e.of(bfloat16).round(v), float32, width, level, x)
    check(rounded, round_to_bfloat16(x), x)


@shapes
@pytest.mark.parametrize("dtype", [float16, bfloat16], ids=lambda d: d.name)
def test_half_types_keep_every_value(dtype, width, level):
    """Loading and storing gives back all 65,536 patterns (a NaN may become another NaN)."""
    stored = np.arange(65536).astype(np.uint16).view(dtype.storage)
    got = run(lambda e, v: e.mul(v, e.const(1)), dtype, width, level, stored)
    check(from_storage(got, dtype), from_storage(stored, dtype))


def test_bitcast_and_constants(rng):
    x = values(float32, rng)
    got = run(lambda e, v: e.bitcast(v, int32), float32, 16, "host", x, to=int32)
    check(got, x.view(np.int32))
    for dtype in (float32, float64):
        for c in (0.1, 1e-45, 1e300, INF, -0.0, NAN, 2**60 + 1):
            got = run(lambda e, v, c=c: e.const(c), dtype, 16, "host", np.zeros(16, dtype.numpy))
            with np.errstate(over="ignore"):
                check(got, np.full(16, c, dtype.numpy))
    for c in (255, -128, 128, 0):
        got = run(lambda e, v, c=c: e.const(c), int8, 16, "host", np.zeros(16, np.int8))
        check(got, np.full(16, np.array(c).astype(np.int8)))


@shapes
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=lambda d: d.name)
def test_masked_access_touches_only_its_elements(dtype, width, level, rng):
    """Elements 0, 2, 4, ... of each vector pass; the others keep what the output held."""
    n = 4 * max(width, 1)
    x = np.resize(values(dtype, rng), n)
    before = np.resize(values(dtype, rng)[::-1], n).copy()
    lane = np.arange(n, dtype=np.int64) % max(width, 1)

    def rule(e: Emitter, at: str, start: str, out: str) -> None:
        w = e.of(int64)
        mask = w.eq(w.and_(w.lanes(), w.const(1)), w.const(0))
        e.store_masked(e.load_masked(at, mask), out, mask)

    got = Loop.raw(rule, dtype, width, level)(x, before)
    check(from_storage(got, dtype),
          from_storage(np.where(lane % 2 == 0, x, before), dtype))


@shapes
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=lambda d: d.name)
def test_gather_leaves_masked_lanes_alone(dtype, width, level, rng):
    """Indices far outside of memory are fine where the mask is off, and read as 0."""
    n = 4 * max(width, 1)
    x = np.resize(values(dtype, rng), n)

    def rule(e: Emitter, base: str, start: str, out: str) -> None:
        w = e.of(int64)
        i = w.add(w.lanes(), w.splat(start))
        even = w.eq(w.and_(i, w.const(1)), w.const(0))
        wild = w.select(even, w.sub(w.const(n - 1), i), w.const(1 << 46))
        e.store(e.gather(base, wild, even), out)

    got = Loop.raw(rule, dtype, width, level, moving=False)(x, np.empty_like(x))
    i = np.arange(n)
    check(from_storage(got, dtype),
          from_storage(np.where(i % 2 == 0, x[n - 1 - i], 0).astype(x.dtype), dtype))


@pytest.mark.parametrize("width", [1, 2, 8, 16])
def test_reductions(width, rng):
    x = rng.standard_normal(8 * width).astype(np.float32)
    x[3 * width] = NAN
    rows = x.reshape(8, width)
    with np.errstate(invalid="ignore"):
        for kind, reference in (("add", np.sum), ("mul", np.prod), ("max", np.max),
                                ("min", np.min)):
            got = run(lambda e, v, k=kind: e.splat(e.reduce(k, v)), float32, width, "host", x)
            np.testing.assert_allclose(got.reshape(8, width), np.repeat(
                reference(rows, axis=1)[:, None], width, 1), rtol=1e-5, atol=1e-6)
    i = rng.integers(-99, 99, 8 * width)
    for kind, ufunc in (("and", np.bitwise_and), ("or", np.bitwise_or), ("max", np.maximum)):
        got = run(lambda e, v, k=kind: e.splat(e.reduce(k, v)), int64, width, "host", i)
        want = ufunc.reduce(i.reshape(8, width), axis=1)
        check(got, np.repeat(want, width))


def test_sum_over_lanes_folds_halves(rng):
    """The order is part of the contract: results are the same bits on every machine."""
    x = rng.standard_normal(16).astype(np.float32)
    got = run(lambda e, v: e.splat(e.reduce("add", v)), float32, 16, "host", x)
    folded = x
    while folded.size > 1:
        folded = folded[:folded.size // 2] + folded[folded.size // 2:]
    check(got, np.repeat(folded, 16))


@shapes
def test_any_and_all(width, level):
    w = max(width, 1)
    x = np.array([0] * w + [1] * w + ([0] * (w - 1) + [1]), np.bool_)
    rows = x.reshape(3, w)
    for name, want in (("any", rows.any(1)), ("all", rows.all(1))):
        got = run(lambda e, v, n=name: e.splat(getattr(e, n)(v)), bool_, width, level, x)
        check(got, np.repeat(want, w))


def test_unsupported_instructions_say_so():
    e = Emitter(FunctionBuilder("void @k()"), bool_, 0)
    with pytest.raises(CompileError, match=r"Emitter\.sub: operands are gossamer\.bool"):
        e.sub("true", "false")
    with pytest.raises(CompileError, match=r"Emitter\.div: operands are gossamer\.int32"):
        e.of(int32).div("1", "2")
    with pytest.raises(CompileError, match="the widths must agree"):
        e.of(float32).bitcast("%x", int64)
    with pytest.raises(CompileError, match="the width a power of two"):
        e.of(float32, 6).reduce("add", "%x")
