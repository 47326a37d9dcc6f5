"""Functions on shapes against NumPy, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gossamer.core import shape as sh
from gossamer.core.errors import IndexingError, ShapeError

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shapes)
def test_size_and_strides(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.int8)
    assert sh.size_of(shape) == x.size
    if x.size:
        assert all(s == t or n == 1 for s, t, n in zip(sh.row_strides(shape), x.strides, shape,
                                                       strict=True))


@given(st.lists(shapes, min_size=1, max_size=3))
def test_broadcasting_is_numpys(all_shapes: list[tuple[int, ...]]) -> None:
    try:
        expected = np.broadcast_shapes(*all_shapes)
    except ValueError:
        with pytest.raises(ShapeError, match="f: shapes .* do not broadcast"):
            sh.broadcast_shapes(all_shapes, "f")
        return
    assert sh.broadcast_shapes(all_shapes, "f") == expected
    for shape in all_shapes:
        kept, axes = sh.broadcast_axes(shape, expected)
        x = np.arange(sh.size_of(shape)).reshape(shape)
        ours = np.broadcast_to(np.expand_dims(x.reshape(kept), axes), expected)
        np.testing.assert_array_equal(ours, np.broadcast_to(x, expected))


@given(st.permutations(range(5)))
def test_inverse_permutation(axes: list[int]) -> None:
    inverse = sh.inverse_permutation(axes)
    assert [axes[i] for i in inverse] == list(range(5))


@given(st.lists(st.integers(1, 6), max_size=4).map(tuple), st.data())
def test_groups_hold_equal_products_and_cover_all_axes(source, data) -> None:
    factors = [f for n in source for f in data.draw(st.sampled_from([(n,), (1, n), (n, 1)]))]
    target = tuple(data.draw(st.permutations(factors)))
    groups = sh.split_groups(source, target)
    assert [i for a, _ in groups for i in a] == list(range(len(source)))
    assert [i for _, b in groups for i in b] == list(range(len(target)))
    for a, b in groups:
        assert sh.size_of(source[i] for i in a) == sh.size_of(target[i] for i in b)


def test_axes() -> None:
    assert sh.normalize_axis(-1, 3, "f") == 2
    assert sh.normalize_axis(0, 0, "f") == 0
    assert sh.normalize_axes(None, 2, "f") == (0, 1)
    assert sh.normalize_axes((-1, 0), 3, "f") == (0, 2)
    assert sh.normalize_axes(-1, 0, "f") == ()
    assert sh.without_axes((2, 3, 4), (1,)) == (2, 4)
    assert sh.keep_axes((2, 3, 4), (1,)) == (2, 1, 4)


@pytest.mark.parametrize("axes, ndim, message", [
    (2, 2, r"f: Dimension out of range \(expected to be in range of \[-2, 1\], but got 2\)"),
    ((0, -2), 2, "name one dimension twice"), (1, 0, r"range of \[-1, 0\], but got 1")])
def test_axes_that_do_not_exist(axes, ndim: int, message: str) -> None:
    with pytest.raises(IndexingError, match=message):
        sh.normalize_axes(axes, ndim, "f")


def test_resolve_shape() -> None:
    assert sh.resolve_shape((2, -1), 6, "f") == (2, 3)
    assert sh.resolve_shape((-1,), 0, "f") == (0,)
    for wrong, size in (((4, -1), 6), ((-1, -1), 4), ((0, -1), 0)):
        with pytest.raises(ShapeError, match="^f: shape"):
            sh.resolve_shape(wrong, size, "f")
