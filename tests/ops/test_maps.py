"""Index maps and `put` rules of movement: what `lower` says is what the reference does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gossamer import ops
from gossamer.core.errors import ShapeError
from gossamer.core.shape import size_of
from gossamer.ir.index import Condition, Index, Quotient, Remainder, const, var
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE, Op, Sample
from tests.ops.laws import buffer, each, value
from tests.ops.test_laws import rows

MOVEMENT = rows([op for op in TABLE.values() if op.kind == "movement"])
VIEWS = [op for op in TABLE.values() if op.kind == "movement" and op.put is not None]


def holds(condition: Condition | None, at: dict[Any, Index]) -> bool:
    if condition is None:
        return True
    known = condition.substitute(at)
    return (all(low <= i.substitute(at).constant < high for i, low, high in known.bounds)
            and all(i.substitute(at).constant % d == 0 for i, d in known.multiples))


def by_map(op: Op, sample: Sample, shape: tuple[int, ...]) -> np.ndarray:
    """The result, element by element, from the symbolic map."""
    loops = [var(f"i{k}", n) for k, n in enumerate(shape)]
    sources = op.lower(tuple(loops), [x.shape for x in sample.inputs], **sample.attrs)
    result = np.full(shape, sample.attrs.get("value", 0), sample.inputs[0].dtype)
    for place in itertools.product(*map(range, shape)):
        at = {next(iter(i.terms)): const(p) for i, p in zip(loops, place, strict=True) if i.terms}
        found = [(number, index) for number, index, when in sources if holds(when, at)]
        assert len(found) <= 1, "two sources for one element"
        for number, index in found:
            place_there = tuple(i.substitute(at).constant for i in index)
            assert all(0 <= p < n for p, n in zip(place_there, sample.inputs[number].shape,
                                                  strict=True))
            result[place] = sample.inputs[number][place_there]
    return result


@pytest.mark.parametrize("op", MOVEMENT)
def test_the_map_gives_what_the_reference_gives(op: Op) -> None:
    for _, sample in each(op):
        y = op(*(buffer(x) for x in sample.inputs), **sample.attrs)
        np.testing.assert_array_equal(by_map(op, sample, y.shape), value(y))


shapes = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


@given(shapes, st.data())
def test_reshape_between_any_two_shapes(source: tuple[int, ...], data: Any) -> None:
    n = size_of(source)
    target: list[int] = []
    while n > 1:
        k = data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
        target.append(k)
        n //= k
        if len(target) > 5:
            target.append(n)
            break
    x = np.arange(size_of(source)).reshape(source)
    sample = Sample((x,), {"shape": tuple(target)})
    np.testing.assert_array_equal(by_map(TABLE["reshape"], sample, tuple(target)),
                                  x.reshape(target))


def divisions(index: Index) -> int:
    return sum(isinstance(a, (Quotient, Remainder)) for a in index.terms)


@pytest.mark.parametrize("source, target, expected", [
    ((2, 3, 4), (6, 4), 2), ((6, 4), (2, 3, 4), 0), ((5, 6, 7), (5, 6, 7), 0),
    ((2, 3, 4, 5), (6, 20), 4), ((8, 1, 3), (8, 3), 0), ((8, 3), (1, 8, 1, 3, 1), 0),
    ((2, 12, 16, 64), (24, 16, 64), 2), ((7, 4, 6), (7, 24), 2)])
def test_reshape_divides_only_in_the_groups_that_mix(source: tuple[int, ...],
                                                     target: tuple[int, ...],
                                                     expected: int) -> None:
    loops = tuple(var(f"i{k}", n) for k, n in enumerate(target))
    ((_, index, when),) = TABLE["reshape"].lower(loops, [source], shape=target)
    assert when is None
    assert sum(map(divisions, index)) == expected


def test_split_and_merge_cancel() -> None:
    """(B, T, H*K) to heads and back is the identity on indices."""
    reshape = TABLE["reshape"].lower
    loops = tuple(var(n, e) for n, e in (("b", 2), ("t", 5), ("c", 12)))
    ((_, split, _),) = reshape(loops, [(2, 5, 3, 4)], shape=(2, 5, 12))
    ((_, back, _),) = reshape(split, [(2, 5, 12)], shape=(2, 5, 3, 4))
    assert back == loops


def test_conditions_that_always_hold_are_none() -> None:
    ((_, _, when),) = TABLE["pad"].lower((var("i", 4),), [(4,)], low=(0,), high=(0,),
                                         interior=(0,), value=0)
    assert when is None
    ((_, _, when),) = TABLE["concat"].lower((var("i", 4),), [(4,)], axis=0)
    assert when is None


@pytest.mark.parametrize("op", VIEWS, ids=lambda op: op.name)
def test_put_writes_what_the_view_shows(op: Op) -> None:
    """After put, the view shows the new elements and all others are the old ones."""
    assert op.put is not None
    rng = np.random.default_rng(7)
    for _, sample in each(op):
        old = buffer(sample.inputs[0])
        view = op(old, **sample.attrs)
        new = buffer(rng.normal(size=view.shape))
        try:
            changed = op.put(old, new, **sample.attrs)
        except ShapeError as error:
            assert op.name == "broadcast" and "several places" in str(error)
            continue
        assert (changed.shape, changed.dtype) == (old.shape, old.dtype)
        np.testing.assert_array_equal(value(op(changed, **sample.attrs)), value(new))
        numbers = np.arange(old.size).reshape(old.shape)
        shown = value(op(buffer(numbers), **sample.attrs)).reshape(-1)
        hidden = np.setdiff1d(np.arange(old.size), shown)
        np.testing.assert_array_equal(value(changed).reshape(-1)[hidden],
                                      value(old).reshape(-1)[hidden])


def test_put_through_a_repeating_view_is_refused() -> None:
    x: Node = buffer(np.zeros(3))
    view = ops.broadcast(x, shape=(2, 3), axes=(0,))
    assert view.op.put is not None
    with pytest.raises(ShapeError, match=r"broadcast: got float64\[3\]; .*clone|Clone"):
        view.op.put(x, view, **view.attrs)
    single = ops.broadcast(x, shape=(1, 3), axes=(0,))
    found = ops.broadcast.put(x, buffer(np.ones((1, 3))), **single.attrs)
    np.testing.assert_array_equal(value(found), np.ones(3))
