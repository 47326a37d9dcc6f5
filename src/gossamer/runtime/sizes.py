"""Plans for any size: what the compiler decided once, for a graph with other extents. Layer 3.

The one idea: outside `compile` the kernels' texts do not depend on sizes, so a plan for another
shape is the same calls with other integers, unless a pass decided by a size. The third time a
structure comes with new sizes, the compiler runs once more with the sizes that changed as `Traced`
numbers. What it writes down is a small program: guards for every decision, then the integers of
the plan. A graph whose guards hold gets its plan from that; any other is compiled.

A plan is only kept if it gives, for the sizes at hand, what the compiler just gave for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gossamer.compile.calls import BufferRef, Call, Scratch
from gossamer.compile.gemm import Target
from gossamer.compile.memory import Arena, lives, plan_arena
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.core.errors import GossamerError
from gossamer.core.traced import Text, Trace, Untraceable, is_traced
from gossamer.ir.node import Node, toposort

__all__ = ["Family", "Sizes", "family_of", "filled", "forget", "refused"]

# What a graph may be made of: sorts and attention choose by sizes in ways of their own.
_KINDS = frozenset({"leaf", "elementwise", "reduction", "movement", "indexing", "scan",
                    "contraction"})
_CHANGING = ("words", "n", "grain", "name")  # fields of a call that may hold sizes
_MOST_FAMILIES = 512  # structures remembered, those asked for longest ago go first
_MOST_PLANS = 16  # of one structure: each is about 20 kB
_REFUSAL = 4  # plans that one which could not be made counts for
_SEEN_BEFORE = 2  # other sizes of a structure before a plan for any is made

refused: dict[str, int] = {}  # why no plan was made, and how often


class _Never(Untraceable):
    """Of this structure no plan for any size can be made."""


@dataclass(frozen=True)
class Sizes:
    """A graph's structure without its integers, and these in the order of the graph."""

    structure: object
    values: tuple[int, ...]


class _Hole:
    """Where an integer stands in a structure."""


def taken(value: Any, integers: list[int]) -> Any:
    """`value` with holes for its integers, which are added to the list."""
    if value.__class__ is int:
        integers.append(value)
        return _Hole
    if value.__class__ is float:
        return repr(value)  # 0.0 is not -0.0, and NaN equals itself
    if isinstance(value, tuple):
        return tuple([taken(x, integers) for x in value])
    return value


def filled(value: Any, integers: Iterator[Any]) -> Any:
    """The inverse of `taken`."""
    if value.__class__ is int:
        return next(integers)
    if isinstance(value, tuple):
        return tuple([filled(x, integers) for x in value])
    return value


@dataclass(frozen=True)
class _Plan:
    """A plan with numbered integers.

    Attributes:
        fixed: (position, value) of the integers that must be these.
        symbols: positions of the integers of each symbol, which must be equal.
        program: from the symbols to the integers, or None.
        compiled: a plan for some sizes.
        calls: of each call the fields that hold numbers of integers (`_Slot`).
        sizes: buffer -> number of its bytes.
        over: what the places of temporaries depend on, besides sizes.
    """

    fixed: tuple[tuple[int, int], ...]
    symbols: tuple[tuple[int, ...], ...]
    program: Callable[..., tuple[int, ...] | None]
    compiled: Compiled
    calls: list[dict[str, Any]]
    sizes: dict[int, int]
    over: dict[tuple[int, int], set[int]]

    def at(self, values: Sequence[int]) -> Compiled | None:
        """The plan for these sizes, if the compiler would decide as it did."""
        if any(values[place] != value for place, value in self.fixed):
            return None
        for places in self.symbols:
            first = values[places[0]]
            if any(values[p] != first for p in places):
                return None
        now = self.program(*[values[places[0]] for places in self.symbols])
        if now is None:
            return None
        calls = [replace(call, **_written(changing, now))
                 for call, changing in zip(self.compiled.calls, self.calls, strict=True)]
        sizes = {b: now[number] for b, number in self.sizes.items()}
        arena = plan_arena(calls, {b: sizes[b] for b in self.compiled.arena.offsets},
                           lambda t, buffer: self.over[t, buffer])
        return replace(self.compiled, calls=calls, sizes=sizes, arena=arena)


@dataclass
class Family:
    """The graphs of one structure.

    Attributes:
        seen: how many sizes were compiled.
        last: the last of them.
        left: how many more plans may be made.
        plans: for any size; the one that served last is first.
    """

    seen: int = 0
    left: int = _MOST_PLANS
    last: tuple[int, ...] = ()
    plans: list[_Plan] = field(default_factory=list)

    def plan(self, values: tuple[int, ...]) -> Compiled | None:
        """A plan for these sizes without the compiler, or None."""
        for i, plan in enumerate(self.plans):
            made = plan.at(values)
            if made is not None:
                if i:
                    self.plans.insert(0, self.plans.pop(i))
                return made
        return None

    def compiled(self, values: tuple[int, ...], made: Compiled,
                 graph: Callable[[Iterator[Any]], tuple[list[Node], list[Node]]],
                 target: Target) -> None:
        """Learn from what the compiler made for these sizes.

        Args:
            graph: (roots, inputs) of the graph with other integers.
        """
        self.seen += 1
        last, self.last = self.last, values
        if self.seen <= _SEEN_BEFORE or self.left <= 0:
            return
        self.left -= 1
        try:
            plan = _traced(last, values, graph, target)
            if _same(plan.at(values), made):
                self.plans.insert(0, plan)
                return
            reason = "another plan"
        except _Never as error:
            self.left, reason = 0, str(error)
        except Untraceable as error:
            reason = str(error)
        except (GossamerError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        refused[reason] = refused.get(reason, 0) + 1
        self.left -= _REFUSAL - 1


_families: OrderedDict[object, Family] = OrderedDict()


def family_of(structure: object) -> Family:
    """The family of a structure, a new one if it is not known."""
    found = _families.get(structure)
    if found is None:
        found = _families[structure] = Family()
        if len(_families) > _MOST_FAMILIES:
            _families.popitem(last=False)
    else:
        _families.move_to_end(structure)
    return found


def forget() -> None:
    """Forget every plan."""
    _families.clear()
    refused.clear()


def _traced(last: Sequence[int], values: Sequence[int],
            graph: Callable[[Iterator[Any]], tuple[list[Node], list[Node]]],
            target: Target) -> _Plan:
    """The plan for any size, from two sizes: integers that changed alike are one symbol."""
    places: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(zip(last, values, strict=True)):
        if pair[0] != pair[1]:
            places.setdefault(pair, []).append(i)
    trace = Trace([now for _, now in places],
                  [now for old, now in zip(last, values, strict=True) if old == now])
    mixed: list[Any] = list(values)
    for symbol, where in zip(trace.symbols, places.values(), strict=True):
        for i in where:
            mixed[i] = symbol
    roots, inputs = graph(iter(mixed))
    later = _Later()
    made = compile_graph(roots, inputs, target, specialize=False, see=_only_simple, place=later)
    numbers = _Numbers()
    calls = [{name: numbers.slots(getattr(call, name)) for name in _CHANGING}
             for call in made.calls]
    sizes = {b: numbers.of(n) for b, n in made.sizes.items()}
    changing = {i for where in places.values() for i in where}
    return _Plan(tuple([(i, v) for i, v in enumerate(values) if i not in changing]),
                 tuple([tuple(where) for where in places.values()]),
                 trace.program(numbers.found), replace(made, owners=[], kernels=[]), calls, sizes,
                 later.over)


class _Numbers:
    """Integers of a plan, each numbered once."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._known: dict[object, int] = {}

    def of(self, value: Any) -> int:
        key = value.name if is_traced(value) else value
        if key not in self._known:
            self._known[key] = len(self.found)
            self.found.append(value)
        return self._known[key]

    def slots(self, value: Any) -> Any:
        """`value` with slots for the traced numbers in it."""
        if is_traced(value):
            return _Slot(self.of(value))
        if isinstance(value, tuple):
            return tuple([self.slots(x) for x in value])
        if isinstance(value, Text):
            return _Made(_joined, {"template": value.template,
                                   "numbers": self.slots(value.numbers)})
        if isinstance(value, BufferRef | Scratch):
            parts = {f.name: getattr(value, f.name) for f in fields(value)}
            if any(is_traced(x) for x in parts.values()):
                return _Made(type(value), {k: self.slots(x) for k, x in parts.items()})
        return value


@dataclass(frozen=True)
class _Slot:
    """Where an integer of a plan goes."""

    number: int


@dataclass(frozen=True)
class _Made:
    """What is made of integers of a plan."""

    make: Callable[..., Any]
    parts: dict[str, Any]


def _joined(template: str, numbers: tuple[int, ...]) -> str:
    return template.format(*numbers)


def _written(value: Any, now: Sequence[int]) -> Any:
    """The inverse of `_Numbers.slots`."""
    kind = value.__class__
    if kind is _Slot:
        return now[value.number]
    if kind is tuple:
        return tuple([_written(x, now) for x in value])
    if kind is _Made:
        return value.make(**_written(value.parts, now))
    if kind is dict:
        return {name: _written(x, now) for name, x in value.items()}
    return value


def _only_simple(stage: str, roots: list[Node]) -> None:
    """Stop where a graph turns out to hold what cannot be planned for any size."""
    if stage == "simplified":
        for node in toposort(roots):
            if node.op.kind not in _KINDS:
                raise _Never(f"kind of operator: {node.op.kind}")


class _Later:
    """Temporaries get their places when sizes are known.

    Attributes:
        over: (number of a call, buffer that it begins) -> buffers that it may be written over.
    """

    def __init__(self) -> None:
        self.over: dict[tuple[int, int], set[int]] = {}

    def __call__(self, calls: list[Call], sizes: dict[int, int],
                 places: Callable[[int, int], set[int]]) -> Arena:
        begun, _ = lives(calls, sizes)
        self.over = {(t, buffer): places(t, buffer) for buffer, t in begun.items()}
        return Arena(dict.fromkeys(sizes, 0), 0)


def _same(one: Compiled | None, two: Compiled) -> bool:
    return one is not None and all(
        getattr(one, name) == getattr(two, name)
        for name in ("calls", "inputs", "sizes", "outputs", "arena", "checks"))
