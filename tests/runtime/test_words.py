"""Words in memory: found where CPython keeps them, compared by native code."""

from __future__ import annotations

import sys
from array import array

import pytest

from gossamer.runtime import words
from gossamer.runtime.words import Words, slot_offset, version_offset, word_at

counted = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info >= (3, 14),
    reason="references are not counted")


class Slotted:
    __slots__ = ("__weakref__", "first", "second")


@counted
def test_a_slot_is_where_its_pointer_is() -> None:
    made, value = Slotted(), object()
    made.second = value
    offset = slot_offset(Slotted, "second")
    assert offset is not None and word_at(id(made) + offset) == id(value)
    assert offset != slot_offset(Slotted, "first")


@counted
def test_the_version_of_a_dict_tells_of_every_change() -> None:
    offset = version_offset()
    assert offset is not None
    table: dict[str, object] = {"a": 1}
    seen = {word_at(id(table) + offset)}
    for change in (lambda: table.update(a=2), lambda: table.setdefault("b", 3),
                   lambda: table.pop("b"), lambda: table.clear()):
        change()
        seen.add(word_at(id(table) + offset))
    assert len(seen) == 5
    assert table.get("a") is None and word_at(id(table) + offset) in seen


def test_no_word_is_trusted_that_misses_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_CHANGES", (*words._CHANGES, lambda owner, value: None))
    version_offset.cache_clear()
    try:
        assert version_offset() is None
    finally:
        version_offset.cache_clear()


@counted
@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_the_first_change_is_found(size: int) -> None:
    memory = array("Q", range(size))
    begin = memory.buffer_info()[0]
    table = Words([(begin + 8 * i, i) for i in range(size)])
    assert table.hold() and table.first_change() == size
    for i in reversed(range(size)):
        memory[i] += 1
        assert table.first_change() == i and not table.hold()
    for i in range(size):
        table.forget(i)
    assert table.hold()


@counted
def test_nothing_is_read_behind_a_word_that_changed() -> None:
    memory = array("Q", [1])
    table = Words([(memory.buffer_info()[0], 2), (8, 0)])  # address 8 is nobody's
    assert table.first_change() == 0
