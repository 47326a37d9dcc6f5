"""Sorting against NumPy's stable sort: lengths, dtypes, directions, ties, axes and views.

NaN is larger than every number, -0.0 equals 0.0, equal elements keep their order in both
directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs

LENGTHS = (0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 4097)
FLOATS = (gs.float16, gs.bfloat16, gs.float32, gs.float64)
INTEGERS = (gs.int8, gs.int16, gs.int32, gs.int64, gs.uint8)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-8, -1e-8, -np.nan], np.float64)


def order(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Stable positions: of a row read backwards and sorted upwards, backwards."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    upwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(upwards, axis)


def floats(rng: np.random.Generator, shape: Any, dtype: Any) -> tuple[Any, np.ndarray]:
    """Numbers with ties, infinities, NaN and zeros of both signs; and as NumPy reads them."""
    values = rng.choice(np.concatenate([SPECIAL, rng.standard_normal(max(*shape, 4) // 2)]), shape)
    t = gs.from_numpy(values).to(dtype)
    return t, t.double().numpy()


def integers(rng: np.random.Generator, shape: Any, dtype: Any) -> tuple[Any, np.ndarray]:
    """Numbers with ties, and the ends of the range."""
    info = np.iinfo(dtype.numpy)
    some = rng.integers(info.min, info.max, max(*shape, 4) // 2, dtype.numpy, endpoint=True)
    values = rng.choice(np.append(some, np.array([info.min, info.max], dtype.numpy)), shape)
    return gs.from_numpy(values), values


def assert_sorted(t: Any, values: np.ndarray, axis: int, descending: bool) -> None:
    expected = order(values, axis, descending)
    got, positions = gs.sort(t, dim=axis, descending=descending, stable=True)
    np.testing.assert_array_equal(positions.numpy(), expected)
    assert got.dtype is t.dtype and positions.dtype is gs.int64
    wide = got if t.dtype.kind != "f" else got.double()
    np.testing.assert_array_equal(wide.numpy(), np.take_along_axis(values, expected, axis))
    again = gs.argsort(t, dim=axis, descending=descending, stable=True)
    np.testing.assert_array_equal(again.numpy(), expected)


# ------------------------------------------------------------------------------ lengths and dtypes
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(rng: np.random.Generator, n: int, descending: bool) -> None:
    assert_sorted(*floats(rng, (n,), gs.float32), 0, descending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda d: d.name)
def test_dtypes(rng: np.random.Generator, dtype: Any, descending: bool) -> None:
    make = floats if dtype.kind == "f" else integers
    for n in (3, 65, 1000):
        assert_sorted(*make(rng, (n,), dtype), 0, descending)


@pytest.mark.parametrize("descending", [False, True])
def test_bools(rng: np.random.Generator, descending: bool) -> None:
    values = rng.random(65) < 0.5
    assert_sorted(gs.from_numpy(values), values, 0, descending)


def test_neighbours_far_from_zero_differ() -> None:
    """A key that went through a narrower type would take them for equal."""
    large = np.array([2**62 + 1, 2**62, -(2**62), -(2**62) - 1, 2**53 + 1, 2**53])
    assert_sorted(gs.from_numpy(large), large, 0, False)
    close = np.nextafter(np.full(4, 1.0), 2.0) + np.array([3, 1, 2, 0]) * 2.0**-52
    assert_sorted(gs.from_numpy(close), close, 0, True)
    tiny = np.array([3, 1, -2, 0, -1, 2]) * 5e-324
    assert_sorted(gs.from_numpy(tiny), tiny, 0, False)


# ------------------------------------------------------------------------------------------ ties
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("n", [2, 9, 64, 4097])
def test_all_equal_keep_their_places(n: int, descending: bool) -> None:
    for value in (1.0, np.nan, np.inf):
        positions = gs.argsort(gs.full((n,), value), descending=descending, stable=True)
        np.testing.assert_array_equal(positions.numpy(), np.arange(n))


def test_zeros_of_both_signs_are_equal_and_keep_their_signs() -> None:
    x = gs.tensor([0.0, -0.0, 1.0, -0.0, 0.0, -1.0])
    for descending, places in ((False, [5, 0, 1, 3, 4, 2]), (True, [2, 0, 1, 3, 4, 5])):
        values, positions = gs.sort(x, descending=descending, stable=True)
        assert positions.tolist() == places
        assert np.signbit(values.numpy()).tolist() == np.signbit(x.numpy())[places].tolist()


def test_nan_is_largest_whatever_its_sign() -> None:
    x = gs.from_numpy(np.array([np.nan, np.inf, -np.nan, -np.inf, 0.0], np.float32))
    assert gs.argsort(x, stable=True).tolist() == [3, 4, 1, 0, 2]
    assert gs.argsort(x, descending=True, stable=True).tolist() == [0, 2, 1, 4, 3]


@pytest.mark.parametrize("pattern", ["sorted", "reversed", "sawtooth", "organ pipe"])
@pytest.mark.parametrize("n", [64, 1000])
def test_patterns(pattern: str, n: int) -> None:
    """Where merges take all of one run before the other, or alternate."""
    i = np.arange(n)
    values = {"sorted": i, "reversed": -i, "sawtooth": i % 7, "organ pipe": np.minimum(i, n - i)}
    for descending in (False, True):
        assert_sorted(gs.from_numpy(values[pattern]), values[pattern], 0, descending)


# ------------------------------------------------------------------------------------------ axes
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 65, 4), (1, 7, 1), (2, 0, 3), (0, 5, 2), (70, 9, 8)])
def test_axes(rng: np.random.Generator, shape: Any, axis: int, descending: bool) -> None:
    assert_sorted(*floats(rng, shape, gs.float32), axis, descending)


@pytest.mark.parametrize("axis", [0, 1])
def test_views(rng: np.random.Generator, axis: int) -> None:
    """Strided, transposed, reversed, repeated and computed operands."""
    t, values = floats(rng, (34, 66), gs.float32)
    for view, seen in ((t[::2, 1::3], values[::2, 1::3]), (t.t(), values.T),
                       (t.flip(0, 1), values[::-1, ::-1]), (t[5:6].expand(9, 66),
                                                            np.repeat(values[5:6], 9, 0)),
                       (t[3:, 7:].t()[::5], values[3:, 7:].T[::5]), (-t, -values)):
        assert_sorted(view, seen, axis, False)
        assert_sorted(view, seen, axis, True)


def test_rows_shared_by_threads_are_sorted_as_alone(rng: np.random.Generator) -> None:
    t, values = floats(rng, (9, 2000), gs.float32)
    got = gs.argsort(t, dim=1, stable=True).numpy()
    np.testing.assert_array_equal(got, order(values, 1, False))
    one = [gs.argsort(row, stable=True).numpy() for row in t]
    np.testing.assert_array_equal(got, np.stack(one))


def test_a_number_without_axes() -> None:
    values, positions = gs.sort(gs.tensor(3.0))
    assert (values.item(), positions.item()) == (3.0, 0)


# ------------------------------------------------------------------------------------------ top k
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 0), (7, 7), (65, 9), (1000, 3), (4097, 4096)])
def test_top_k(rng: np.random.Generator, n: int, k: int, largest: bool) -> None:
    t, values = floats(rng, (2, n), gs.float32)
    got, positions = gs.topk(t, k, dim=1, largest=largest)
    expected = np.take_along_axis(values, order(values, 1, largest), 1)[:, :k]
    np.testing.assert_array_equal(got.numpy(), expected)
    np.testing.assert_array_equal(np.take_along_axis(values, positions.numpy(), 1), expected)
    assert all(len(set(row)) == k for row in positions.tolist())


def test_top_k_along_an_outer_axis(rng: np.random.Generator) -> None:
    t, values = integers(rng, (33, 5), gs.int32)
    got, _ = gs.topk(t, 4, dim=0)
    np.testing.assert_array_equal(got.numpy(), -np.sort(-values.astype(np.int64), axis=0)[:4])


# --------------------------------------------------------------------------------------- compiled
@pytest.mark.parametrize("n", [1, 9, 1000])
def test_compiled_with_work_around_it(rng: np.random.Generator, n: int) -> None:
    t, values = floats(rng, (3, n), gs.float32)

    @gs.compile
    def program(x: Any) -> Any:
        found, positions = gs.sort(x * 2, dim=1, descending=True, stable=True)
        return found + 1, positions, gs.argsort(x.t(), dim=0, stable=True).t()

    found, positions, upwards = program(t)
    expected = order(values * 2, 1, True)
    np.testing.assert_array_equal(positions.numpy(), expected)
    np.testing.assert_array_equal(found.numpy(), np.take_along_axis(
        (values * 2).astype(np.float32) + np.float32(1), expected, 1))
    np.testing.assert_array_equal(upwards.numpy(), order(values, 1, False))


def test_gradients_go_where_the_elements_came_from(rng: np.random.Generator) -> None:
    x = gs.from_numpy(rng.permutation(65).astype(np.float32)).requires_grad_()
    weight = gs.arange(65).float()
    (g,) = gs.autograd.grad((gs.sort(x, stable=True)[0] * weight).sum(), [x])
    np.testing.assert_array_equal(g.numpy(), x.detach().numpy())
