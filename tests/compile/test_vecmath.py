"""Mathematical functions against references of higher precision, in units of the last place.

float32 is compared with NumPy's float64 (and Python's math) over random bit patterns of the whole
range and every special value; float64 with NumPy's long double or mpmath; the special cases
with C's rules. `slow` walks through all 2^32 float32 values.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gossamer.core.dtype import DType, bfloat16, float32, float64
from tests.compile import exhaustive
from tests.compile.kernels import LEVELS, WIDEST, Loop

INF, NAN = float("inf"), float("nan")
Reference = Callable[..., np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    w = np.exp(-np.abs(x))
    return np.where(x < 0, w, np.ones_like(w)) / (1 + w)


def by_math(function: Callable[[float], float]) -> Reference:
    return np.vectorize(function, otypes=[np.float64])


def gelu(x: float) -> float:
    return -0.0 if x == -INF else 0.5 * x * math.erfc(-x * math.sqrt(0.5))


def rsqrt(x: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(x)


# Functions that NumPy has, of any precision.
NUMPY: dict[str, Reference] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2,
    "log10": np.log10, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "sigmoid": sigmoid, "rsqrt": rsqrt,
}
MATH: dict[str, Reference] = {
    "erf": by_math(math.erf), "erfc": by_math(math.erfc), "gelu": by_math(gelu),
    "lgamma": by_math(lambda x: abs(x) if math.isinf(x) else INF if x <= 0 and x == math.floor(x)
                      else math.lgamma(x)),  # which raises at its poles
}
PAIRS: dict[str, Reference] = {"atan2": np.arctan2, "hypot": np.hypot, "pow": np.power}
BOUND = {float32: 2.0, float64: 4.0}
NARROW = {"gelu": 8.0}  # of float32 where registers have no 512 bits
# Scalar code, the host's vectors and AVX2's.
SHAPES = [(WIDEST, "host"), (0, "host")] + [(8, level) for level in LEVELS[1:]]


def compiled(name: str, dtype: DType, width: int, level: str) -> Loop:
    operands = 2 if name in PAIRS else 1
    return Loop(lambda e, *x: getattr(e, name)(*x), [dtype] * operands, dtype, width, level)


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error in units of the last place of got's type; infinite where only one of both is NaN.

    Beyond the largest finite number the next power of two stands for infinity.
    """
    info = np.finfo(got.dtype)
    top = np.ldexp(want.dtype.type(1), info.maxexp)
    exponent = np.frexp(np.where(np.isfinite(want), want, 1))[1]
    unit = np.ldexp(want.dtype.type(1), np.maximum(exponent - info.nmant - 1,
                                                   info.minexp - info.nmant))
    with np.errstate(all="ignore"):
        error = np.abs(np.clip(got.astype(want.dtype), -top, top) - np.clip(want, -top, top)) / unit
    nans = np.isnan(got), np.isnan(want)
    return np.where(nans[0] != nans[1], INF, np.where(nans[1], 0, error)).astype(np.float64)


def check(name: str, got: np.ndarray, want: np.ndarray, bound: float,
          *operands: np.ndarray) -> None:
    error = ulp_error(got, want)
    i = int(np.argmax(error))
    at = [float(x[i]) for x in operands]
    assert error[i] <= bound, f"{name}{at}: got {got[i]!r}, want {want[i]!r}: {error[i]:.3f} ulp"
    zeros = (got == 0) & (want == 0) & (np.signbit(got) != np.signbit(want))
    assert not zeros.any(), f"{name}({[x[zeros][0] for x in operands]}): zero of the wrong sign"


def float32_inputs(n: int, rng: np.random.Generator) -> np.ndarray:
    """Specials, all exponents with random mantissas, and the regions where functions bend."""
    special = [0.0, -0.0, INF, -INF, NAN, 1, -1, 0.5, -0.5, 2, -2, 1e-45, -1e-45, 1.1754944e-38,
               -1.1754944e-38, 3.4028235e38, -3.4028235e38, 88.722839, 88.72284, -87.33655,
               -103.97208, -103.97209, 89.415985, 89.41599, 1e5, 100000.01, 0.9999999, 1.0000001,
               127.99999, 128, -149, -149.5, -150, 9.0, 4.0, 3.9999998, 1.5707964, 3.1415927]
    bits = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    return np.concatenate([np.array(special, np.float32), bits, *(
        (rng.random(n // 4) * 2 - 1).astype(np.float32) * np.float32(s) for s in (1, 10, 120))])


@pytest.mark.parametrize(("width", "level"), SHAPES)
@pytest.mark.parametrize("name", [*NUMPY, *MATH])
def test_float32(name, width, level, rng):
    n = {16: 1 << 18, 8: 1 << 16, 0: 1 << 14}[width] // (8 if name in MATH else 1)
    x = float32_inputs(n, rng)
    with np.errstate(all="ignore"):
        want = (NUMPY | MATH)[name](x.astype(np.float64))
    bound = BOUND[float32] if width == 16 else NARROW.get(name, BOUND[float32])
    check(name, compiled(name, float32, width, level)(x), want, bound, x)


@pytest.mark.parametrize(("width", "level"), SHAPES)
@pytest.mark.parametrize("name", list(PAIRS))
def test_float32_pairs(name, width, level, rng):
    n = 1 << (16 if width else 13)
    x, y = float32_inputs(n, rng), float32_inputs(n, rng)
    rng.shuffle(y)
    base = np.abs(rng.standard_normal(n)).astype(np.float32)
    x = np.concatenate([x, base, base])  # powers that stay within the range of float32
    y = np.concatenate([y, (rng.standard_normal(n) * 40).astype(np.float32),
                        np.rint(rng.standard_normal(n) * 20).astype(np.float32)])
    with np.errstate(all="ignore"):
        want = PAIRS[name](x.astype(np.float64), y.astype(np.float64))
    check(name, compiled(name, float32, width, level)(x, y), want, BOUND[float32], x, y)


def float64_inputs(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Inputs within the domain and the range of exponents where the function is not constant."""
    unit = rng.random(n) * 2 - 1
    small = unit * 10.0 ** rng.uniform(-12, 0, n)
    edge = np.sign(unit) * (1 - 10.0 ** rng.uniform(-12, 0, n))
    positive = np.concatenate([10.0 ** rng.uniform(-307, 307, n), 1 + small,
                               rng.random(99) * 1e-310])
    wide = np.concatenate([unit, small, unit * 30, np.sign(unit) * 10.0 ** rng.uniform(0, 2.8, n)])
    if name in ("asin", "acos", "atanh", "erfinv"):
        return np.concatenate([unit, small, edge])
    if name in ("log", "log2", "log10", "lgamma", "digamma", "rsqrt"):
        return np.concatenate([positive, np.abs(wide)])
    if name == "acosh":
        return 1 + np.abs(wide)
    if name == "log1p":
        return np.concatenate([edge, small, positive])
    if name in ("sin", "cos", "tan"):
        return np.concatenate([wide, unit * 1e5, np.sign(unit) * 10.0 ** rng.uniform(5, 15, n)])
    return wide


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no long double beyond float64")
@pytest.mark.parametrize(("width", "level"), [(8, level) for level in LEVELS])
@pytest.mark.parametrize("name", list(NUMPY))
def test_float64(name, width, level, rng):
    x = float64_inputs(name, 1 << 13, rng)
    with np.errstate(all="ignore"):
        want = NUMPY[name](x.astype(np.longdouble))
    check(name, compiled(name, float64, width, level)(x), want, BOUND[float64], x)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no long double beyond float64")
@pytest.mark.parametrize("name", list(PAIRS))
def test_float64_pairs(name, rng):
    n = 1 << 14
    if name == "pow":
        x = np.concatenate([10.0 ** rng.uniform(-300, 300, n), 1 + rng.standard_normal(n) * 1e-5])
        y = np.concatenate([rng.uniform(-1, 1, n) * 300 / np.log10(x[:n]),
                            rng.uniform(-1e7, 1e7, n)])
    else:
        x = rng.standard_normal(n) * 10.0 ** rng.uniform(-300, 300, n)
        y = x * rng.standard_normal(n) * 10.0 ** rng.uniform(-8, 8, n)
    with np.errstate(all="ignore"):
        want = PAIRS[name](x.astype(np.longdouble), y.astype(np.longdouble))
    check(name, compiled(name, float64, 8, "host")(x, y), want, BOUND[float64], x, y)


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.name)
@pytest.mark.parametrize(("name", "tolerance"), [
    ("erf", 0), ("erfc", 0), ("erfinv", 0), ("lgamma", 0), ("digamma", 1e-13),
    ("gelu", 0),
])
def test_special_functions(name, tolerance, dtype, rng):
    """Against mpmath; digamma's error is absolute near its zeros, like PyTorch's."""
    mp = pytest.importorskip("mpmath")
    x = float64_inputs(name, 150, rng)
    # mpmath's digamma takes minutes for huge arguments; rounding to float32 can reach 1.
    x = x[np.abs(x) < {"erfinv": 1 - 1e-7, "digamma": 1e30}.get(name, 1e38)]
    x = np.unique(x[np.abs(x) > 1e-38].astype(dtype.numpy))
    with mp.workdps(30):
        own = {"lgamma": lambda v: mp.log(abs(mp.gamma(v))),
               "gelu": lambda v: v * mp.erfc(-v / mp.sqrt(2)) / 2}
        function = own.get(name) or getattr(mp, name)
        exact = [function(mp.mpf(float(v))) for v in x]
        got = compiled(name, dtype, WIDEST if dtype is float32 else 8, "host")(x)
        info = np.finfo(dtype.numpy)
        for v, g, w in zip(x, got, exact, strict=True):
            power = mp.frexp(w)[1] - info.nmant - 1 if w else -1074
            unit = mp.mpf(2) ** max(power, int(info.minexp) - info.nmant)
            bound = max(BOUND[dtype] * unit, mp.mpf(tolerance) * max(1, abs(w)))
            assert abs(mp.mpf(float(g)) - w) <= bound or abs(w) > info.max, (name, v, g, w)


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.name)
def test_special_values(dtype):
    tiny, big = np.finfo(dtype.numpy).smallest_subnormal, np.finfo(dtype.numpy).max
    cases = {
        "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (NAN, NAN), (-big, 0.0), (big, INF)],
        "exp2": [(INF, INF), (-INF, 0.0), (10.0, 1024.0), (-3.0, 0.125), (NAN, NAN)],
        "expm1": [(INF, INF), (-INF, -1.0), (-0.0, -0.0), (tiny, tiny), (NAN, NAN)],
        "log": [(0.0, -INF), (-0.0, -INF), (-1.0, NAN), (-INF, NAN), (INF, INF), (1.0, 0.0)],
        "log2": [(8.0, 3.0), (0.25, -2.0), (0.0, -INF), (-tiny, NAN), (INF, INF)],
        "log10": [(0.0, -INF), (INF, INF), (-1.0, NAN), (1.0, 0.0)],
        "log1p": [(-1.0, -INF), (-2.0, NAN), (INF, INF), (-0.0, -0.0), (tiny, tiny), (NAN, NAN)],
        "sin": [(INF, NAN), (-INF, NAN), (-0.0, -0.0), (NAN, NAN), (-tiny, -tiny)],
        "cos": [(INF, NAN), (0.0, 1.0), (NAN, NAN)],
        "tan": [(INF, NAN), (-0.0, -0.0)],
        "asin": [(2.0, NAN), (-0.0, -0.0), (NAN, NAN)],
        "acos": [(-2.0, NAN), (1.0, 0.0), (NAN, NAN)],
        "atan": [(INF, math.pi / 2), (-INF, -math.pi / 2), (-0.0, -0.0), (NAN, NAN)],
        "sinh": [(INF, INF), (-INF, -INF), (-0.0, -0.0), (tiny, tiny), (NAN, NAN)],
        "cosh": [(INF, INF), (-INF, INF), (0.0, 1.0), (NAN, NAN)],
        "tanh": [(INF, 1.0), (-INF, -1.0), (-0.0, -0.0), (tiny, tiny), (NAN, NAN)],
        "asinh": [(INF, INF), (-INF, -INF), (-0.0, -0.0), (NAN, NAN)],
        "acosh": [(1.0, 0.0), (0.5, NAN), (-big, NAN), (INF, INF), (NAN, NAN)],
        "atanh": [(1.0, INF), (-1.0, -INF), (2.0, NAN), (-0.0, -0.0), (NAN, NAN)],
        "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (NAN, NAN), (-big, 0.0)],
        "erf": [(INF, 1.0), (-INF, -1.0), (-0.0, -0.0), (NAN, NAN)],
        "erfc": [(INF, 0.0), (-INF, 2.0), (0.0, 1.0), (NAN, NAN)],
        "erfinv": [(1.0, INF), (-1.0, -INF), (-0.0, -0.0), (1.5, NAN), (NAN, NAN)],
        "digamma": [(0.0, -INF), (-0.0, INF), (-1.0, NAN), (INF, INF), (NAN, NAN)],
        "gelu": [(INF, INF), (-INF, -0.0), (0.0, 0.0), (-0.0, -0.0), (-100.0, -0.0), (big, big),
                 (-big, -0.0), (NAN, NAN)],
        "gelu_slope": [(INF, 1.0), (0.0, 0.5), (-0.0, 0.5), (100.0, 1.0), (NAN, NAN)],
        "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (4.0, 0.5), (-1.0, NAN), (NAN, NAN)],
        "lgamma": [(1.0, 0.0), (2.0, 0.0), (0.0, INF), (-3.0, INF), (INF, INF), (NAN, NAN)],
    }
    for name, pairs in cases.items():
        x, want = (np.array(v, dtype.numpy) for v in zip(*pairs, strict=True))
        got = compiled(name, dtype, 8, "host")(x)
        np.testing.assert_array_equal(got, want, err_msg=name)
        fine = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[fine]), np.signbit(want[fine]), err_msg=name)


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", list(PAIRS))
def test_special_pairs(name, dtype):
    """All pairs of 26 special operands give what C's library gives (through Python's math)."""
    special = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 1e9, 2.0**30 + 1, 1e30, INF]
    special = np.array([*special, *(-v for v in special), NAN], dtype.numpy)
    x, y = (v.ravel() for v in np.meshgrid(special, special))
    got = compiled(name, dtype, 8, "host")(x, y)
    with np.errstate(all="ignore"):
        want = PAIRS[name](x.astype(np.float64), y.astype(np.float64)).astype(dtype.numpy)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    fine = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[fine]), np.signbit(want[fine]))


@pytest.mark.parametrize(("width", "level"), SHAPES)
def test_gelu_in_the_negative_tail(width, level):
    """Down to the last denormal: x (1 + erf(x / sqrt(2))) / 2 has no digit left from -5.6 on."""
    x = -np.linspace(2, 15, 4001, dtype=np.float32)
    want = MATH["gelu"](x.astype(np.float64))
    got = compiled("gelu", float32, width, level)(x)
    check("gelu", got, want, BOUND[float32] if width == 16 else NARROW["gelu"], x)
    denormal = (want != 0) & (np.abs(want) < np.finfo(np.float32).tiny)
    assert np.count_nonzero(got[denormal]) > 300


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.name)
@pytest.mark.parametrize(("width", "level"), SHAPES)
def test_gelu_slope(width, level, dtype, rng):
    """Phi(x) + x phi(x) to a few units of the larger term, also where both are tiny."""
    mp = pytest.importorskip("mpmath")
    x = np.concatenate([rng.standard_normal(200) * 2, -rng.uniform(2, 13, 100)]).astype(dtype.numpy)
    width = min(width, 8) if dtype is float64 else width
    got = compiled("gelu_slope", dtype, width, level)(x)
    bound = 4 if dtype is float64 or width == 16 else 8
    with mp.workdps(30):
        for v, g in zip(map(float, x), map(float, got), strict=True):
            terms = mp.ncdf(v), v * mp.npdf(v)
            unit = float(np.finfo(dtype.numpy).eps) * max(map(abs, terms))
            assert abs(g - mp.fsum(terms)) <= bound * unit, (v, g)


def test_bfloat16_computes_in_float32(rng):
    x = (rng.standard_normal(1000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    got = compiled("exp", bfloat16, WIDEST, "host")(x)
    exact = np.exp((x.astype(np.uint32) << 16).view(np.float32).astype(np.float64))
    relative = (got.astype(np.uint32) << 16).view(np.float32) / exact - 1
    assert np.abs(relative).max() <= 2.0**-8


@pytest.mark.parametrize("name", exhaustive.FUNCTIONS)
def test_the_walk_over_all_inputs_on_a_few(name):
    """Two short stretches; and the walk sees an error that NumPy sees."""
    for start in (0x3F000000, 0xC0400000):
        found = exhaustive.worst(name, start, start + (1 << 20))
        assert found.ulp <= BOUND[float32], found
    x = np.arange(start, start + (1 << 12), dtype=np.uint32).view(np.float32)
    if name in NUMPY:
        out = np.empty(x.size, np.float32)
        exhaustive.walker(name)(np.array([start], np.uint32), out)
        with np.errstate(all="ignore"):
            want = NUMPY[name](x.astype(np.float64))
        error = ulp_error(compiled(name, float32, WIDEST, "host")(x), want)
        np.testing.assert_allclose(out, error, atol=1e-6)


@pytest.mark.parametrize(("name", "low", "high"), [
    ("sigmoid", 0xBE000000, 0xBF000000), ("tan", 0x477D0000, 0x477E0000),
    ("acosh", 0x3F800000, 0x3F900000), ("gelu", 0xBFE00000, 0xBFF80000)])
def test_where_the_error_is_largest(name, low, high):
    """Every input of the stretch in which the walk over all of them came near two units."""
    found = exhaustive.worst(name, low, high)
    assert found.ulp <= BOUND[float32], found


@pytest.mark.slow
@pytest.mark.parametrize("name", exhaustive.FUNCTIONS)
def test_every_float32(name):
    """All 2^32 bit patterns: 10 to 150 s a function (docs/log.md has the table)."""
    found = exhaustive.worst(name)
    assert found.ulp <= BOUND[float32], found


@pytest.mark.slow
def test_tables_are_what_the_tool_writes():
    """tools/minimax.py derives every coefficient again (two minutes)."""
    pytest.importorskip("mpmath")
    root = Path(__file__).resolve().parents[2]
    made = subprocess.run([sys.executable, str(root / "tools" / "minimax.py")], check=True,
                          capture_output=True, text=True)
    assert made.stdout == (root / "src/gossamer/compile/vecmath_tables.py").read_text()
