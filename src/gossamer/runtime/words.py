"""Words of memory that show whether Python objects are what they were. Layer 3.

The one idea: asking a dict for an entry touches five lines of memory, and after a step has streamed
a model's weights through the caches each of them takes 100 ns. A dict's version, or the pointer in
an object's slot, is one word at an address that is known, so thousands are fetched side by side:
one native loop compares them. Where such a word lies is not assumed but found out: slots by
writing a mark into an instance, versions by watching what changes to a dict do to it.

Sources: PEP 509 (a version in dicts, for guards like these), PEP 699 (until CPython 3.13).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from gossamer.core.references import getrefcount
from gossamer.runtime.native import SAME_AHEAD
from gossamer.runtime.threads import native

__all__ = ["Words", "slot_offset", "version_offset", "word_at"]

_WORD = 8
_HEADER = 16  # bytes of an object's reference count and type
_TRIES = 64  # of each change: the interpreter has specialised it by then


class Words:
    """Words of memory and what they held.

    Args:
        pairs: (address, value). The addresses must stay readable; those of a pair are only read
            if all pairs before it hold, so a pointer may come before what it points to.

    Cost: 2 ns a word that is not in the cache, 1 ns one that is.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        same = native().same
        assert same is not None, "callers ask `slot_offset` or `version_offset` first"
        self._same = same
        self.count = len(pairs)
        end = pairs[-1] if pairs else (0, 0)
        self._table = array("Q", [self.count, *(w for pair in pairs for w in pair),
                                  *(end * SAME_AHEAD)])
        self._address = self._table.buffer_info()[0]

    def first_change(self) -> int:
        """Number of the first word that differs; how many there are if none does."""
        return self._same(self._address)

    def hold(self) -> bool:
        """Whether every word is what it was."""
        return self._same(self._address) == self.count

    def forget(self, number: int) -> None:
        """Ask about word `number` no more."""
        place = 1 + 2 * number
        self._table[place] = self._address
        self._table[place + 1] = self.count


def word_at(address: int) -> int:
    """The eight bytes at an address, which must be readable."""
    return ctypes.c_uint64.from_address(address).value


def _usable() -> bool:
    """Whether objects are laid out, and references counted, as this file looks for."""
    threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    return (getrefcount is getattr(sys, "getrefcount", None) and native().same is not None
            and ctypes.sizeof(ctypes.c_void_p) == _WORD and not threaded)


@functools.cache
def slot_offset(kind: type, name: str) -> int | None:
    """Bytes from an object of a class to the pointer in one of its slots; None if unknown.

    Args:
        kind: a class that `object.__new__` can make; subclasses have their slots there too.
        name: of the slot.
    """
    if not _usable():
        return None
    made: Any = object.__new__(kind)
    mark = object()
    kind.__dict__[name].__set__(made, mark)
    found = [offset for offset in range(_HEADER, kind.__basicsize__, _WORD)
             if word_at(id(made) + offset) == id(mark)]
    return found[0] if len(found) == 1 else None


class _Plain:
    """An object with attributes."""


@functools.cache
def version_offset() -> int | None:
    """Bytes from a dict to a word that every change of its entries changes; None if none does."""
    if not _usable():
        return None
    for offset in range(_HEADER, dict.__basicsize__, _WORD):
        if all(_told(change, offset) for change in _CHANGES):
            return offset
    return None


def _set_attribute(owner: Any, value: Any) -> None:
    owner.x = value


def _add_attribute(owner: Any, value: Any) -> None:
    setattr(owner, f"y{len(vars(owner))}", value)


def _drop_attribute(owner: Any, value: Any) -> None:
    owner.z = value
    del owner.z


# Everything that may happen to the entries of a dict, here the attributes of an object.
_CHANGES: tuple[Callable[[Any, Any], Any], ...] = (
    _set_attribute, _add_attribute, _drop_attribute,
    lambda o, v: vars(o).__setitem__("x", v), lambda o, v: vars(o).update(x=v),
    lambda o, v: vars(o).setdefault(id(v), v), lambda o, v: vars(o).pop("x"),
    lambda o, v: vars(o).popitem(), lambda o, v: vars(o).clear(),
    lambda o, v: vars(o).__ior__({"x": v}), lambda o, v: vars(o).__delitem__("x"))


def _told(change: Callable[[Any, Any], Any], offset: int) -> bool:
    """Whether the word changes with each change, and with nothing else."""
    for _ in range(_TRIES):
        owner, other = _Plain(), _Plain()
        vars(owner).update(x=0, z=0)
        first = word_at(id(vars(owner)) + offset)
        vars(other).update(x=1)
        _ = vars(owner).get("x"), "z" in vars(owner), len(vars(owner)), list(vars(owner))
        if word_at(id(vars(owner)) + offset) != first:
            return False
        seen = {first}
        for value in (object(), object()):
            change(owner, value)
            seen.add(word_at(id(vars(owner)) + offset))
            vars(owner).setdefault("x", 0)
        if len(seen) != 3:
            return False
    return True
