"""What guards watch: every kind of entry, changed, equal, gone; native twin = Python twin; keys."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import gossamer as gs
from gossamer.guards import still
from gossamer.runtime.threads import native
from gossamer.structure import flatten, signature
from gossamer.tensor import Tensor
from gossamer.unchanged import Entry, Unchanged, entries_of


@pytest.fixture(params=["native", "python"])
def watch(request: pytest.FixtureRequest,
          monkeypatch: pytest.MonkeyPatch) -> Callable[..., Unchanged]:
    """`Unchanged`, as CPython runs it and as other Pythons do."""
    def made(*entries: Entry) -> Unchanged:
        found = Unchanged(entries)
        assert (found._count > 0) == (request.param == "native" and bool(entries))
        return found

    if request.param == "python":
        monkeypatch.setattr(native(), "check", None)
    return made


def cell_of(value: Any) -> tuple[Any, Callable[[Any], None]]:
    def write(new: Any) -> None:
        nonlocal value
        value = new
    return write.__closure__[0], write  # type: ignore[index]


def test_every_kind_of_entry(watch: Callable[..., Unchanged]) -> None:
    thing, other = object(), object()
    table, ordered, numbers = {"a": thing, "b": 1}, OrderedDict(c=thing), {3: thing}
    row, space = [thing, 2.5], SimpleNamespace(x=thing)
    cell, write = cell_of(thing)
    found = watch(Entry("item", table, "a", thing), Entry("item", numbers, 3, thing),
                  *entries_of(ordered), *entries_of(row), Entry("cell", cell, None, thing),
                  Entry("attribute", space, "x", thing), Entry("item", table, "b", 1))
    assert found.holds() and found.holds()
    changes = [(table.__setitem__, "a"), (numbers.__setitem__, 3), (ordered.__setitem__, "c"),
               (row.__setitem__, 0), (lambda _, x: write(x), ""),
               (lambda _, x: setattr(space, "x", x), "")]
    for change, key in changes:
        change(key, other)  # type: ignore[operator]
        assert not found.holds()
        change(key, thing)  # type: ignore[operator]
        assert found.holds()


def test_what_is_gone_or_new_is_a_change(watch: Callable[..., Unchanged]) -> None:
    table, row = {"a": 1, "b": 2}, [1, 2]
    items, sizes, elements = (watch(Entry("item", table, "b", 2)), watch(*entries_of(table)),
                              watch(Entry("element", row, 1, 2)))
    whole = watch(*entries_of(row))
    del table["b"], row[1]
    assert not any(x.holds() for x in (items, sizes, elements, whole))
    table["b"], row[1:] = 2, [2]
    assert all(x.holds() for x in (items, sizes, elements, whole))
    table["c"], row[2:] = 3, [3]
    assert items.holds() and elements.holds() and not sizes.holds() and not whole.holds()


@pytest.mark.parametrize(("was", "now", "held"), [
    (10 ** 20, 10 ** 20 + 0, True), (1, True, False), (1, 1.0, False), ("ab" * 50, "ab" * 50, True),
    (0.5, 0.25 + 0.25, True), ((1, (2, "x")), (1, (2, "x")), True), ((1, 2), (1, 2.0), False),
    ([1], [1], False), (None, 0, False), (float("nan"), float("nan"), False)])
def test_equal_plain_values_are_no_change(was: Any, now: Any, held: bool,
                                          watch: Callable[..., Unchanged]) -> None:
    table = {"a": was, "b": watch}
    found = watch(*entries_of(table))
    table["a"] = now
    assert found.holds() is held
    assert found.holds() is held
    table["a"] = was
    assert found.holds()


def test_a_failed_look_leaves_no_error_behind() -> None:
    row: list[Any] = [1, 2, 3]
    found = Unchanged([Entry("element", row, 2, row[2])])
    row.clear()
    assert not found.holds()
    assert [*map(int, "12")] == [1, 2]  # a pending IndexError would surface here
    with pytest.raises(TypeError):
        found._check("no address")  # type: ignore[misc,arg-type]


def test_what_changed_meanwhile_is_left_out() -> None:
    table, grown, kept = {"a": 1, "b": 2, "lr": 3}, [1, 2], [1]
    entries = [*(Entry("item", table, k, v) for k, v in table.items()), *entries_of(grown),
               *entries_of(kept)]
    table["a"] = 7
    grown.append(3)
    left = still(entries, {(id(table), "lr")})
    assert [(e.kind, e.key) for e in left] == [("item", "b"), ("size", None), ("element", 0)]


# ------------------------------------------------------------------------------------- signatures

LEAF = st.sampled_from([0, 1, True, False, 1.0, 0.0, -0.0, float("nan"), "1", b"1", None, 2, 3,
                        slice(0, 1), slice(0, True), np.float32(1), np.int64(1), ..., int])
TREE = st.recursive(LEAF, lambda t: st.one_of(
    st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["a", "b", 1]), t, max_size=2)), max_leaves=6)


def printed(x: Any) -> str:
    """A structure as text: types, values, nesting."""
    if isinstance(x, (list, tuple)):
        return f"{type(x).__name__}[{','.join(map(printed, x))}]"
    if isinstance(x, dict):
        return f"dict[{','.join(f'{k!r}:{printed(v)}' for k, v in x.items())}]"
    return f"{type(x).__name__} {x!r}"


@given(st.lists(TREE, max_size=3), st.lists(TREE, max_size=3), TREE, st.booleans())
def test_signatures_are_equal_where_structures_are(a: list[Any], b: list[Any], c: Any,
                                                   named: bool) -> None:
    calls = [(tuple(a), {}), (tuple(b), {"x": c}), ((*b, {"x": c}), {}), (tuple(a), {"x": c})]
    for (args, kwargs), (others, more) in itertools.product(calls, calls):
        equal = signature(args, kwargs, []) == signature(others, more, [])
        assert equal == (printed(flatten((args, kwargs), []))
                         == printed(flatten((others, more), [])))


def test_signatures_tell_tensors_apart() -> None:
    x, learns = gs.ones(2, 3), gs.ones(2, 3, requires_grad=True)
    calls = [x, gs.ones(3, 2), gs.ones(2, 3, dtype=gs.int64), learns, learns * 2, [x], (x,), {0: x},
             (x, x), (2, 3), [x, 1]]
    keys = [signature((c,), {}, []) for c in calls]
    assert len(set(keys)) == len(calls)
    found: list[Tensor] = []
    assert signature((gs.zeros(2, 3),), {}, found) == keys[0]
    assert signature((np.ones((2, 3), np.float32),), {}, found) == keys[0]
    assert [t.shape for t in found] == [(2, 3), (2, 3)]
