"""Tensors that a compiled function found as its last run left them. Layer 4.

The one idea: a step of a large model reads hundreds of tensors that nobody touches between two
calls. That each still is what it was, and that nobody else looks at one that is written over its
old value, is a few words of memory each, which native code compares; then the addresses of the last
run are those of this one. Where a word differs, the tensors are read one by one, as the first time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

from gossamer.ir.node import Node
from gossamer.runtime.buffer import Buffer
from gossamer.runtime.data import Data
from gossamer.runtime.program import Program
from gossamer.runtime.repeated import Repeated
from gossamer.runtime.words import Words, slot_offset
from gossamer.tensor import Tensor

__all__ = ["Settled", "State", "settled"]

_MOVES = 2  # times that a tensor was found changed, after which it is read at every call
_NODE = attrgetter("_node")
_Pair = tuple[int, int]


class State(Protocol):
    """A tensor that a program reads.

    Attributes:
        place: number of the program's input.
        root: number of the root that is to be written over its old value, or -1.
        moves: how often it was not what the run before had left.
    """

    tensor: Tensor
    place: int
    root: int
    moves: int


S = TypeVar("S", bound=State)


class Settled(Generic[S]):
    """The tensors of a program that stay as they are, or are only written by it, in place.

    Args:
        program: compiled.
        state: the tensors that it reads.
        constants: input number -> further data that is always the same.
        arguments: numbers of the inputs that come with each call.

    Attributes:
        moving: tensors that are to be read at each call.
        numbers: of the inputs that a run is to be given: arguments, then `moving`.
        reused: numbers of the roots that are written over old values.

    Nothing is kept alive: what a tensor has let go may be freed, and written over by others who
    count its references.

    Cost: 2 ns a word of the 7 to 10 of each tensor, and 30 ns a tensor; making it 5 us a tensor.
    """

    def __init__(self, program: Program, state: Sequence[S],
                 constants: Mapping[int, Data], arguments: Sequence[int]) -> None:
        kept = [s for s in state if _rests(s)]
        self._references: list[Any] = []  # alive as long as the words that show them are read
        rows = [_pairs(s, self._references) for s in kept]
        words = Words([pair for row in rows for pair in row])
        wrong = _wrong(words, [len(row) for row in rows])
        if wrong:  # somebody looks at a value that the program would write over
            kept = [s for i, s in enumerate(kept) if i not in wrong]
            words = Words([p for i, row in enumerate(rows) if i not in wrong for p in row])
        self._words = words
        self._kept = [s.tensor for s in kept]
        places = {s.place for s in kept}
        self.moving = [s for s in state if s.place not in places]
        self.numbers = [*arguments, *(s.place for s in self.moving)]
        buffers = {s.place: s.tensor._node.value.buffer for s in kept}
        written = {s.root: buffers[s.place] for s in kept if s.root >= 0}
        self.reused = frozenset(written)
        self._repeated = Repeated(
            program, {**buffers, **{n: d.buffer for n, d in constants.items()}}, written)

    def holds(self) -> bool:
        """Whether all is as it was."""
        return self._words.hold()

    def run(self, inputs: Sequence[Data], reuse: Mapping[int, Buffer]) -> dict[int, Data]:
        """Run the program on the inputs of `numbers`; `holds` was asked. See `Repeated.run`."""
        alive = list(map(_NODE, self._kept))  # whatever other threads do meanwhile
        values = self._repeated.run(self.numbers, inputs, reuse)
        del alive
        return values


def settled(program: Program, state: Sequence[S], constants: Mapping[int, Data],
            arguments: Sequence[int]) -> Settled[S] | None:
    """`Settled`; None where there is no way to know, or nothing rests."""
    if _offsets() is None or not Repeated.fits(program) or not any(map(_rests, state)):
        return None
    return Settled(program, state, constants, arguments)


def _rests(s: State) -> bool:
    """Whether a tensor has memory of its own, and is not another at every call."""
    t = s.tensor
    return s.moves < _MOVES and t._base is None and t._node.value is not None


def _wrong(words: Words, lengths: Sequence[int]) -> set[int]:
    """Numbers of the rows, so many words each, that do not hold now."""
    ends, found = list(accumulate(lengths)), set()
    while (number := words.first_change()) < words.count:
        words.forget(number)
        found.add(bisect_right(ends, number))
    return found


def _offsets() -> tuple[int, ...] | None:
    """Where a tensor has its node, its base and whether it learns, a node its value, and data its
    buffer."""
    found = [slot_offset(kind, name) for kind, name in (
        (Tensor, "_node"), (Tensor, "_base"), (Tensor, "_leaf"), (Node, "value"),
        (Data, "buffer"))]
    return None if None in found else tuple(offset or 0 for offset in found)


def _pairs(s: State, references: list[Any]) -> list[_Pair]:
    """(address, value) of what must hold for a tensor.

    An address alone does not tell an object from a later one in its place. A weak reference does:
    the object's pointer to it is there as long as the object is.
    """
    offsets = _offsets()
    assert offsets is not None
    to_node, to_base, to_leaf, to_value, to_buffer = offsets
    t, node = s.tensor, s.tensor._node
    data: Data = node.value
    known = ref(node), ref(data.buffer)
    references += known
    pairs = [(id(t) + to_node, id(node)), (id(t) + to_base, id(None)),
             (id(t) + to_leaf, id(t._leaf)),
             (id(node) + Node.__weakrefoffset__, id(known[0])), (id(node) + to_value, id(data)),
             (id(data) + to_buffer, id(data.buffer)),
             (id(data.buffer) + Buffer.__weakrefoffset__, id(known[1]))]
    if s.root >= 0:  # each has one holder; the count of them is an object's first word
        pairs += [(id(node), 1), (id(data), 1), (id(data.buffer), 1)]
    return pairs
