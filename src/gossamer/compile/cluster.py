"""Clusters: the nodes that one kernel computes, and which clusters must run before which. Layer 2.

The one idea: sets of clusters are bit sets in Python integers, one bit a cluster, so that "does
this close a cycle?" is one `and`. `Precedence` keeps the closure: an ancestor set gains bits when
an edge is added and passes them on to those successors that lack them, so that a graph built in
running order pays for its edges only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gossamer.compile.lower import Space
from gossamer.ir.node import Node, Shape

__all__ = ["MAX_OPERATIONS", "MAX_WEIGHT", "MIN_ROWS", "SPLIT_WORK", "STREAMED_BYTES", "Cluster",
           "Position", "Precedence", "canonical_space", "is_copied_concat", "listed", "weight"]

MIN_ROWS = 8  # fewer rows than this do not occupy the cores: elementwise work stays apart
SPLIT_WORK = 1 << 15  # elements of a reduction with few rows that are worth two stages
STREAMED_BYTES = 1 << 20  # of what is summed down its columns, read row by row from here on
MAX_OPERATIONS = 64  # nodes a cluster may hold: unbounded fusion explodes (Inductor's bound is 64)
# Work of a cluster, in additions. 16 tanh (the time of compiling 100 of them with their gradient
# fell by 3 against 64) keep the units busy far longer than a walk through cache, so a longer kernel
# saves nothing; and cut so early, the pieces of a long chain are equal kernels.
MAX_WEIGHT = 160.0


def canonical_space(shape: Shape, axes: tuple[int, ...]) -> Space:
    """The space of `shape` reduced over `axes`; axes of extent 1 vanish, neighbours merge."""
    parts: list[tuple[int, bool]] = []
    for axis, extent in enumerate(shape):
        reduced = axis in axes
        if extent == 1:
            continue
        if parts and parts[-1][1] == reduced:
            parts[-1] = parts[-1][0] * extent, reduced
        else:
            parts.append((extent, reduced))
    return tuple(parts)


def is_copied_concat(node: Node) -> bool:
    """Whether a node is the copy of a concatenation: a kernel for each part, without a choice
    between parts at every element."""
    return (node.op.name == "cast" and node.inputs[0].op.name == "concat"
            and node.inputs[0].dtype is node.dtype)


def weight(node: Node) -> float:
    """What a node takes of a cluster's `MAX_WEIGHT`: its work, and at least its share as a node."""
    return max(node.op.cost, MAX_WEIGHT / MAX_OPERATIONS)


@dataclass(eq=False)
class Cluster:
    """Nodes that one kernel computes."""

    number: int
    kind: str  # "loops", "dot", or the name of an operator with a kernel of its own
    space: Space
    members: list[Node] = field(default_factory=list)
    reductions: list[Node] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)  # ids of members with one element per row
    outputs: list[Node] = field(default_factory=list)
    reason: str = ""
    weight: float = 0.0  # of all members

    @property
    def full(self) -> bool:
        """Whether nothing more is to be computed in this kernel."""
        return self.weight >= MAX_WEIGHT

    @property
    def bit(self) -> int:
        return 1 << self.number


@dataclass(frozen=True)
class Position:
    """Where a node's elements are made: at each point of a cluster's loops, or once a row."""

    cluster: Cluster
    row: bool


class Precedence:
    """Which clusters run before which, as bit sets, closed under transitivity."""

    def __init__(self) -> None:
        self._before: list[int] = []  # of each cluster: those that must run before it
        self._own: list[int] = []  # its bit, and those of clusters merged into it
        self._next: list[set[int]] = []  # direct successors
        self._into: list[int] = []  # itself, or the cluster that it was merged into

    def new(self) -> int:
        """Number of a new cluster that waits for nothing."""
        number = len(self._before)
        self._before.append(0)
        self._own.append(1 << number)
        self._next.append(set())
        self._into.append(number)
        return number

    def find(self, number: int) -> int:
        """The cluster that holds what `number` held."""
        into = self._into
        while into[number] != number:
            into[number] = number = into[into[number]]
        return number

    def own(self, number: int) -> int:
        """The bits of a cluster and of all that was merged into it."""
        return self._own[number]

    def before(self, number: int) -> int:
        """The clusters that must run before `number`."""
        return self._before[number]

    def require(self, number: int, bits: int) -> None:
        """Cluster `number` runs after those in `bits` (and after all that they wait for).

        Cost: the clusters that wait for `number` and did not wait for `bits` yet.
        """
        gained = 0
        for other in map(self.find, listed(bits & ~self._own[number])):
            gained |= self._before[other] | self._own[other]
            self._next[other].add(number)
        self._gain(number, gained)

    def _gain(self, number: int, gained: int) -> None:
        before = self._before
        stack = [number]
        while stack:
            at = self.find(stack.pop())
            if gained & ~before[at]:
                before[at] |= gained
                stack.extend(self._next[at])

    def closes_cycle(self, number: int, bits: int) -> bool:
        """Whether one of `bits`, other than `number` itself, waits for `number`."""
        own, before = self._own[number], self._before
        return any(before[self.find(other)] & own for other in listed(bits & ~own))

    def merge(self, number: int, other: int) -> None:
        """Make `other` a part of `number`. The caller knows that no third cluster lies between."""
        before, own = self._before, self._own
        self._into[other] = number
        own[number] |= own[other]
        later = map(self.find, self._next[number] | self._next[other])
        self._next[number] = set(later) - {number}
        before[number] = (before[number] | before[other]) & ~own[number]
        for at in self._next[number]:
            self._gain(at, before[number] | own[number])


def listed(bits: int) -> Iterator[int]:
    """Numbers of the clusters in a bit set."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
