"""Whether Python objects still hold what they held: one native call for all of them. Layer 4.

The one idea: what guards watch are mostly entries of dicts and lists that nobody touches. A dict
nobody has changed has the version it had; what else there is lies in a table that native code
walks, comparing identities (10 ns each; Python takes 60). Only where one differs does Python look
whether old and new are equal plain values.

Source: CPython, "Dictionary Objects" (PyDict_GetItemWithError) and "Cell Objects".
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterable
from types import CellType
from typing import Any, NamedTuple

from gossamer.runtime.native import CHECK_WORDS, CHECKS
from gossamer.runtime.threads import native
from gossamer.runtime.words import Words, version_offset, word_at

__all__ = ["MISSING", "PLAIN", "Entry", "Unchanged", "content", "entries_of", "same"]

PLAIN = (bool, int, float, str, bytes, type(None))
MISSING = object()
_MANY = 64  # entries from which reading the versions of dicts is worth finding out how
_Row = tuple[int, int, int, int]


def same(a: Any, b: Any) -> bool:
    """The same object, or equal plain values of one type."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(b, PLAIN) and a == b


def content(cell: CellType) -> Any:
    """What a closure's cell holds."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return MISSING


class Entry(NamedTuple):
    """One thing that is watched.

    Attributes:
        kind: "item" of a dict, "element" of a list, content of a "cell", "size" of a container,
            "attribute" of an object.
        container: where it is.
        key: its key, index or name; None for cells and sizes.
        value: what it was; MISSING for nothing.
    """

    kind: str
    container: Any
    key: Any
    value: Any

    def now(self) -> Any:
        """What it is."""
        if self.kind == "item":
            return self.container.get(self.key, MISSING)
        if self.kind == "element":
            return self.container[self.key] if self.key < len(self.container) else MISSING
        if self.kind == "cell":
            return content(self.container)
        if self.kind == "size":
            return len(self.container)
        return getattr(self.container, self.key, MISSING)

    def held(self) -> bool:
        """Whether it is what it was."""
        return same(self.now(), self.value)

    def words(self) -> _Row | None:
        """The entry in a native table; None where reading it may run Python code."""
        kind, container, key, value = self
        fits = (kind == "item" and type(key) is str and isinstance(container, dict)
                or kind == "element" and isinstance(container, list)
                or kind == "cell" or kind == "size" and isinstance(container, (dict, list)))
        if not fits:
            return None
        place = id(key) if kind == "item" else key or 0
        held = value if kind == "size" else 0 if value is MISSING else id(value)
        return CHECKS[kind], id(container), place, held


def entries_of(container: Any) -> list[Entry]:
    """How many things a dict or a list holds, and which."""
    inside = ([Entry("item", container, k, v) for k, v in container.items()]
              if isinstance(container, dict) else
              [Entry("element", container, i, v) for i, v in enumerate(container)])
    return [Entry("size", container, None, len(container)), *inside]


_parting = threading.RLock()


def _after_fork_in_child() -> None:
    global _parting
    _parting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Unchanged:
    """Entries, and whether all of them hold what they held.

    Dicts whose version can be read are first watched as a whole; one that changes, though not in
    what counts, is watched entry by entry from then on (a script's globals change all the time).

    Args:
        entries: repetitions cost nothing.

    Cost: 0.1 us, 2 ns a dict and 10 ns an entry of what else is watched, while nothing changes.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._check = native().check
        found = {(e.kind, id(e.container), e.key): e for e in entries}.values()
        rows = [e.words() if self._check is not None else None for e in found]
        inside = [(e, row) for e, row in zip(found, rows, strict=True) if row is not None]
        self._slow = [e for e, row in zip(found, rows, strict=True) if row is None]
        versions = version_offset() if len(inside) > _MANY else None
        dicts: dict[int, list[tuple[Entry, _Row]]] = {}
        alone: list[tuple[Entry, _Row]] = []
        for e, row in inside:
            whole = versions is not None and isinstance(e.container, dict)
            (dicts.setdefault(id(e.container), []) if whole else alone).append((e, row))
        # The table has room for every entry; those of whole dicts come in when they change.
        self._fast: list[Entry] = []  # in the order of the table, whose objects it keeps
        self._table = array("Q", bytes(8 * (1 + CHECK_WORDS * len(inside))))
        self._address = self._table.buffer_info()[0]
        self._count = 0
        self._add(alone)
        self._whole = list(dicts.values())
        self._versions = None if versions is None else Words(
            [(address + versions, word_at(address + versions)) for address in dicts])

    def _add(self, entries: Iterable[tuple[Entry, _Row]]) -> None:
        for e, row in entries:
            place = 1 + CHECK_WORDS * self._count
            self._table[place:place + CHECK_WORDS] = array("Q", row)
            self._fast.append(e)
            self._count += 1
        self._table[0] = self._count

    def holds(self) -> bool:
        versions = self._versions
        if versions is not None and not versions.hold():
            self._part(versions)
        if self._check is not None and self._check(self._address) != self._count:
            return self._equal()
        return not self._slow or all(entry.held() for entry in self._slow)

    def _part(self, versions: Words) -> None:
        """Watch the entries of dicts that have changed one by one."""
        with _parting:  # another thread's guard does not hold before the entries are in the table
            while (number := versions.first_change()) < versions.count:
                self._add(self._whole[number])
                versions.forget(number)

    def _equal(self) -> bool:
        """Whether what is not the same is equal; it is watched from now on.

        The table stays where it is: another thread may be walking it.
        """
        for i, entry in enumerate(self._fast):
            now = entry.now()
            if now is not entry.value:
                if not same(now, entry.value):
                    return False
                self._fast[i] = entry._replace(value=now)
                if entry.kind != "size":
                    self._table[1 + CHECK_WORDS * i + 3] = id(now)
        return all(entry.held() for entry in self._slow)
