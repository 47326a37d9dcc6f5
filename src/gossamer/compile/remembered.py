"""Kernels written once: text and argument recipe, found by structure. Layer 2.

The one idea: the text of a kernel does not depend on the buffers that it is given, so that the
layers of a model share theirs; and outside `compile`, where sizes are words of the argument block,
not on sizes unless the writer decided by one. `_Shape` walks the loops and gives every buffer and
every integer a number by first appearance, except integers that the writer looks at, which stay
themselves. Loops with equal walks differ by nothing but a one-to-one renaming, so that they have
one text, and each argument word is the buffer or the size with the same number.

What the writer looks at: -1 to 8 (left out, literal, strides that are shuffled, vectors too short
to pay), divisors up to 64 (lanes that repeat). The grain, which depends on all sizes, is computed
anew.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gossamer.compile.calls import BufferRef, KernelSource, Word
from gossamer.compile.llvm import Split, Written, write_split
from gossamer.core.traced import Untraceable, is_traced, pinned
from gossamer.ir.index import Condition, Index, Quotient, Read, Remainder, Var
from gossamer.ir.loop import Axis, Kernel, Store, Val, show

__all__ = ["forget", "write_remembered"]

_LOW, _HIGH = -1, 8  # integers that stay themselves
_MOST_DIVISOR = 64  # lanes of the widest vector of bytes
_MOST_TEXT = 2 << 20  # characters of remembered kernels, those asked for longest ago go first


class _Unknown(Exception):
    """Loops that have no walk: nothing is remembered."""


class _Shape:
    """The walk over a kernel's loops.

    Args:
        literal: all integers stay themselves.

    Attributes:
        key: equal for kernels of one text.
        sizes: the integers, by number.
        traced: whether some stand for many (`core/traced`).
        buffers: the program's buffers, by number.
    """

    def __init__(self, kernel: Kernel, literal: bool) -> None:
        self.literal = literal
        self._buffers: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._vals: dict[int, int] = {}
        parts: list[Any] = [self._axes(kernel.kept), self._axes(kernel.reduced), kernel.serial]
        for val in kernel.values():
            parts.append(self._val(val))
            self._vals[id(val)] = len(self._vals)
        for p in kernel.passes:
            parts.append((
                tuple([(r.number, r.combine, tuple([self._vals[id(v)] for v in r.operands()]),
                        None if r.running is None else self._store(r.running))
                       for r in p.reduces]),
                tuple([self._store(s) for s in p.stores]),
                tuple([self._store(s) for s in p.row_stores])))
        self.key = tuple(parts)
        self.sizes = list(self._numbers)
        self.traced = any(is_traced(size) for size in self.sizes)
        self.buffers = list(self._buffers)

    def _size(self, value: int) -> int:
        """The integer itself, or -2 - its number."""
        if self.literal:
            return value
        if _LOW <= value <= _HIGH:
            return pinned(value)
        return -2 - self._numbers.setdefault(value, len(self._numbers))

    def _buffer(self, buffer: int) -> int:
        return self._buffers.setdefault(buffer, len(self._buffers))

    def _axes(self, axes: Iterable[Axis]) -> tuple[Any, ...]:
        return tuple([(a.name, self._size(a.extent)) for a in axes])

    def _store(self, store: Store) -> tuple[Any, ...]:
        return (self._buffer(store.buffer), self._index(store.index), self._vals[id(store.value)],
                store.dtype.name, store.update)

    def _val(self, val: Val) -> tuple[Any, ...]:
        data = val.data
        if val.kind == "op":
            own: Any = (data[0].name, tuple([(k, _told_apart(v)) for k, v in data[1].items()]))
        elif val.kind == "load":
            own = (self._buffer(data[0]), self._index(data[1]), self._condition(data[2]))
        elif val.kind == "const":
            own = _told_apart(data)
        elif val.kind in ("param", "acc"):
            own = data
        elif val.kind == "index":
            own = self._index(data)
        elif val.kind == "select":
            own = self._condition(data)
        else:
            raise _Unknown
        return (val.kind, val.dtype.name, val.vars, own,
                tuple([self._vals[id(x)] for x in val.inputs]))

    def _index(self, index: Index) -> tuple[Any, ...]:
        return (self._size(index.constant),
                *[(self._atom(atom), self._size(k)) for atom, k in index.terms.items()])

    def _atom(self, atom: Any) -> tuple[Any, ...]:
        if isinstance(atom, Var):
            return atom.name, self._size(atom.extent)
        if isinstance(atom, Quotient | Remainder):
            divisor = atom.divisor
            return (type(atom).__name__, self._index(atom.value),
                    self._size(divisor), pinned(divisor) if divisor <= _MOST_DIVISOR else 0)
        if isinstance(atom, Read):
            return ("read", self._vals[id(atom.source)],
                    tuple([self._index(i) for i in atom.index]), self._size(atom.extent),
                    self._condition(atom.condition))
        raise _Unknown

    def _condition(self, condition: Condition | None) -> tuple[Any, ...] | None:
        if condition is None:
            return None
        return (tuple([(self._index(i), self._size(low), self._size(high), self._size(high - low))
                       for i, low, high in condition.bounds]),
                tuple([(self._index(i), self._size(d), pinned(d) if d <= _MOST_DIVISOR else 0)
                       for i, d in condition.multiples]))


def _told_apart(value: Any) -> Any:
    """A number as a part of a key: 0.0 is not -0.0, 1 is not True, and NaN equals itself."""
    return repr(value) if isinstance(value, int | float) else value


@dataclass(frozen=True)
class _Remembered:
    """A kernel's text, and how its words are made.

    Attributes:
        sizes: (word, number of a size) of the words that are sizes.
        buffers: (word, number of a buffer) of those that point to one.
    """

    symbol: str
    text: str
    split: Split
    words: tuple[Word, ...]
    sizes: tuple[tuple[int, int], ...]
    buffers: tuple[tuple[int, int], ...]

    def at(self, kernel: Kernel, shape: _Shape) -> Written:
        words = list(self.words)
        for place, number in self.sizes:
            words[place] = shape.sizes[number]
        for place, number in self.buffers:
            words[place] = BufferRef(shape.buffers[number])
        n, grain = self.split.of(kernel)
        loops = "" if shape.traced else show(kernel)
        return Written(KernelSource(self.symbol, self.text, loops), tuple(words), n, grain)


_known: OrderedDict[object, _Remembered] = OrderedDict()
_text = 0
_lock = threading.Lock()


def write_remembered(kernel: Kernel, vector_bytes: int, specialize: bool) -> Written:
    """`write_kernel`, once for loops of one structure.

    Args:
        kernel: the loops.
        vector_bytes: width of the machine's vector registers.
        specialize: sizes are literals in the text; otherwise words of the argument block, and
            loops that differ in sizes are written once.

    Cost: 0.05 to 0.2 ms for known loops, 0.5 to 2 ms for others.
    """
    try:
        shape = _Shape(kernel, specialize)
        key = (shape.key, vector_bytes, specialize)
        hash(key)
    except (_Unknown, KeyError, TypeError):  # a Val of another kind, or attributes without a hash
        return write_split(kernel, vector_bytes, specialize)[0]
    with _lock:
        found = _known.get(key)
        if found is not None:
            _known.move_to_end(key)
    if found is not None:
        return found.at(kernel, shape)
    if shape.traced:
        raise Untraceable(f"kernel {kernel.name} is not written yet")
    written, split = write_split(kernel, vector_bytes, specialize)
    made = _recipe(written, split, shape)
    if made is not None:
        _remember(key, made)
    return written


def _recipe(written: Written, split: Split, shape: _Shape) -> _Remembered | None:
    """How the words follow from the walk; None if one is not among the loops' integers."""
    sizes: list[tuple[int, int]] = []
    buffers: list[tuple[int, int]] = []
    for place, word in enumerate(written.words):
        if isinstance(word, BufferRef):
            buffers.append((place, shape._buffers[word.index]))
        elif isinstance(word, int) and not (shape.literal or _LOW <= word <= _HIGH):
            number = shape._numbers.get(word)
            if number is None:
                return None
            sizes.append((place, number))
    return _Remembered(written.source.symbol, written.source.text, split, written.words,
                       tuple(sizes), tuple(buffers))


def _remember(key: object, made: _Remembered) -> None:
    global _text
    with _lock:
        if key not in _known:
            _text += len(made.text)
        _known[key] = made
        while _text > _MOST_TEXT and len(_known) > 1:
            _text -= len(_known.popitem(last=False)[1].text)


def forget() -> None:
    """Write every kernel anew from now on."""
    global _text
    with _lock:
        _known.clear()
        _text = 0


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
