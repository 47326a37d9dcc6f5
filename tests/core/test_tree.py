"""Nested containers: taken apart, put together, described."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple

import pytest
from hypothesis import given, strategies as st

from gossamer.core.tree import flatten, leaf_paths, tree_map, unflatten

Point = namedtuple("Point", ["x", "y"])

trees = st.recursive(st.integers() | st.none() | st.text(max_size=2), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=2), inner, max_size=3), st.builds(Point, inner, inner),
    st.dictionaries(st.integers(), inner, max_size=3).map(OrderedDict),
    st.dictionaries(st.integers(), inner, max_size=2).map(lambda d: defaultdict(list, d))),
    max_leaves=8)


@given(trees)
def test_there_and_back(x: object) -> None:
    leaves, tree = flatten(x)
    again = unflatten(tree, leaves)
    assert again == x and type(again) is type(x)
    assert tree.count == len(leaves) == len(leaf_paths(tree))
    assert flatten(again)[1] == tree and hash(flatten(again)[1]) == hash(tree)


@given(trees)
def test_paths_lead_to_the_leaves(x: object) -> None:
    leaves, tree = flatten(x)
    for path, leaf in zip(leaf_paths(tree, "x"), leaves, strict=True):
        assert eval(path, {"x": x}) == leaf


def test_map_over_several() -> None:
    assert tree_map(lambda a, b: a + b, {"a": [1, 2], "b": (3,)}, {"a": [10, 20], "b": (30,)}) == {
        "a": [11, 22], "b": (33,)}
    with pytest.raises(ValueError, match=r"list\(\*, \*\) and list\(\*\)"):
        tree_map(max, [1, 2], [1])


def test_a_container_may_be_a_leaf() -> None:
    leaves, tree = flatten([(1, 2), 3], is_leaf=lambda x: isinstance(x, tuple))
    assert leaves == [(1, 2), 3] and unflatten(tree, leaves) == [(1, 2), 3]


def test_the_number_of_leaves_must_fit() -> None:
    _, tree = flatten([1, 2])
    with pytest.raises(ValueError, match=r"got 3 leaves for list\(\*, \*\), which has 2"):
        unflatten(tree, [1, 2, 3])
