"""Horizontal fusion: clusters that touch the same memory at the same points become one. Layer 2.

The one idea: the walk of `schedule` follows values downwards, so chains that meet only in what they
read stay apart: of an optimizer's step the two moments and the parameter, of a layer norm's
gradient the sums over one matrix. Here the finished clusters are looked at sideways. Two are joined
if that saves a walk through memory, if the loops of one are the loops of the other (or its rows),
if every value that passes between them is at hand where it is needed, and if no third cluster must
run between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from gossamer.compile.cluster import (
    MAX_WEIGHT,
    MIN_ROWS,
    SPLIT_WORK,
    Cluster,
    Position,
    Precedence,
    canonical_space,
)
from gossamer.ir.node import Node

__all__ = ["Joiner", "Limits"]

MAX_PARTNERS = 8  # clusters tried for each, and remembered for each buffer: keeps the pass linear
MIN_RUN = 32  # elements: a broadcast that cuts a flat loop into shorter runs wastes vector lanes


@dataclass
class _Reach:
    """What a cluster touches in memory.

    Attributes:
        bytes: id of a node read in order or computed here -> its bytes.
        odd: operands that are read in another order, or repeated: they cut the loops.
        needs: bit set of the clusters whose results it reads.
    """

    bytes: dict[int, int] = field(default_factory=dict)
    odd: dict[object, bool] = field(default_factory=dict)  # what -> whether it does no harm
    needs: int = 0


@dataclass(frozen=True)
class Limits:
    """What the joiner is told about clusters and nodes.

    Args:
        apart: bit set of clusters that must not be joined with others (those that index checks
            need: they run first, alone, and must not write anything).
        once: ids of the nodes with one user.
        takes_more: whether elementwise work may join a cluster.
    """

    apart: int
    once: set[int]
    takes_more: Callable[[Cluster], bool]


def _is_run(x: Node) -> bool:
    """Whether a view is one run of neighbours in memory: it is read in order from there on."""
    if x.op.name != "slice" or any(step != 1 for step in x.attrs["steps"]):
        return False
    whole = x.inputs[0].shape
    first = next((i for i, n in enumerate(x.shape) if n != 1), 0)
    return x.shape[first + 1:] == whole[first + 1:]


class Joiner:
    """Joins clusters.

    Args:
        clusters: all of them, by number.
        precedence: which must run before which.
        home: id of a node -> where it is computed.
        place: id of a node -> where its elements are at hand, seen through views.
        deps: id of a node -> bit set of the clusters that it needs.
        limits: what must stay apart.
    """

    def __init__(self, clusters: list[Cluster], precedence: Precedence, home: dict[int, Position],
                 place: dict[int, Position | None], deps: dict[int, int],
                 limits: Limits) -> None:
        self.clusters = clusters
        self.precedence = precedence
        self.home, self.place, self.deps = home, place, deps
        self.limits = limits
        self.placed: dict[int, list[int]] = {}
        for key, at in place.items():
            if at is not None:
                self.placed.setdefault(at.cluster.number, []).append(key)
        self.reach: dict[int, _Reach] = {}
        self.touching: dict[int, list[int]] = {}  # id of a node -> clusters that touch it

    def run(self) -> list[Cluster]:
        """The clusters that are left."""
        for cluster in self.clusters:
            if self.limits.takes_more(cluster):
                self.reach[cluster.number] = self._reach(cluster)
                self._join_all(cluster)
        find = self.precedence.find
        return [c for c in self.clusters if find(c.number) == c.number]

    # what a cluster touches ---------------------------------------------------------------------
    def _reach(self, cluster: Cluster) -> _Reach:
        reach = _Reach()
        for node in cluster.members:
            for x in node.inputs:
                reach.needs |= self.deps[id(x)]
                if node.op.kind != "contraction":
                    self._operand(cluster, x, reach)
            if node.op.kind == "indexing":
                reach.odd[node.op.name, node.shape] = False
            if node.size > 1 or cluster.space == ((1, False),):
                reach.bytes[id(node)] = node.size * node.dtype.itemsize
        reach.needs &= ~cluster.bit
        return reach

    def _operand(self, cluster: Cluster, x: Node, reach: _Reach, back: int = 4) -> None:
        while x.op.name in ("reshape", "after"):
            x = x.inputs[0]
        at = self.home.get(id(x))
        if at is not None and at.cluster is cluster or x.op.kind == "leaf" and x.op.name != "input":
            return
        if x.op.kind != "movement":
            if x.size > 1 or cluster.space == ((1, False),):
                reach.bytes[id(x)] = x.size * x.dtype.itemsize
            if x.op.kind == "elementwise" and id(x) in self.limits.once and back:
                # Nobody else wants it: it is computed here, from what it reads.
                for y in x.inputs:
                    self._operand(cluster, y, reach, back - 1)
        elif _is_run(x):
            reach.bytes[id(x)] = x.size * x.dtype.itemsize
        elif x.op.name != "broadcast":
            reach.odd[id(x)] = False
        elif x.inputs[0].size > 1:
            space = canonical_space(x.shape, x.attrs["axes"])
            reach.odd[space] = len(space) <= 2 and space[-1][0] >= MIN_RUN

    # joining ------------------------------------------------------------------------------------
    def _join_all(self, cluster: Cluster) -> None:
        """Join `cluster` with whom it can be, most shared bytes first."""
        number = cluster.number
        tried: set[int] = set()
        while True:
            partners = [p for p in self._partners(number) if p not in tried][:MAX_PARTNERS]
            for partner in partners:
                tried.add(partner)
                joined = self._try(self.clusters[partner], self.clusters[number])
                if joined is not None:
                    number = joined
                    break
            else:
                break
        for key in self.reach[number].bytes:
            known = self.touching.setdefault(key, [])
            if number not in known:
                known.append(number)
                del known[:-MAX_PARTNERS]

    def _partners(self, number: int) -> list[int]:
        shared: dict[int, int] = {}
        find, touching = self.precedence.find, self.touching
        for key, nbytes in self.reach[number].bytes.items():
            known = touching.get(key, ())
            # Most values are touched by one cluster: no set for them, this is asked n² times.
            for other in {find(o) for o in known} if len(known) > 1 else map(find, known):
                shared[other] = shared.get(other, 0) + nbytes
        shared.pop(number, None)
        return sorted(shared, key=lambda o: (-shared[o], -o))

    def _try(self, one: Cluster, two: Cluster) -> int | None:
        """Join two clusters if they may be; the number of the cluster that is left."""
        apart, own = self.limits.apart, self.precedence.own
        if one.weight + two.weight > MAX_WEIGHT or self._between(one, two) \
                or bool(own(one.number) & apart) != bool(own(two.number) & apart):
            return None
        for host, guest in ((one, two), (two, one)):
            level = self._level(host, guest)
            if level is not None and self._same_cuts(host, guest, level) \
                    and self._at_hand(host, guest, level):
                self._merge(host, guest, level)
                return host.number
        return None

    def _between(self, one: Cluster, two: Cluster) -> bool:
        """Whether another cluster must run after one of the two and before the other."""
        order = self.precedence
        for a, b in ((one, two), (two, one)):
            direct = self.reach[b.number].needs & ~order.own(a.number) & ~order.own(b.number)
            if order.closes_cycle(a.number, direct):
                return True
        return False

    def _same_cuts(self, host: Cluster, guest: Cluster, level: bool) -> bool:
        """Whether neither cluster's operands cut the loops in a way that slows the other."""
        one, two = self.reach[host.number].odd, self.reach[guest.number].odd
        if level and not two:
            return True  # what is done once a row does not care about the loops inside
        more, less = (one, two) if len(one) > len(two) else (two, one)
        return less.keys() <= more.keys() and all(more[k] for k in more.keys() - less.keys())

    def _level(self, host: Cluster, guest: Cluster) -> bool | None:
        """Where in the host's loops the guest's points are: False: point for point, True: once a
        row; None if nowhere."""
        if guest.kind == "dot" or guest.reductions and guest.space != host.space:
            return None
        if guest.space == host.space:
            return False
        (size, _), = guest.space
        space = host.space
        rows = prod(n for n, reduced in space if not reduced)
        if not host.reductions:
            return None
        if rows == size:
            return True
        points = prod(n for n, _ in space)
        row_kernel = len(space) <= 2 and space[-1][1] and (rows >= MIN_ROWS or points < SPLIT_WORK)
        return False if row_kernel and points == size else None

    def _at_hand(self, host: Cluster, guest: Cluster, level: bool) -> bool:
        """Whether every value that passes between the two is there where it is asked for."""
        theirs = self.precedence.own(host.number)
        for node in guest.members:
            row = level or id(node) in guest.rows
            if not self._operands_at_hand(node, row, theirs, host, False):
                return False
        mine = self.precedence.own(guest.number)
        return all(self._operands_at_hand(node, id(node) in host.rows, mine, guest, level)
                   for node in host.members)

    def _operands_at_hand(self, node: Node, row: bool, bits: int, other: Cluster,
                          level: bool) -> bool:
        if node.op.kind == "reduction":
            row = False  # it is asked for once a row, and asks at every point
        for x in node.inputs:
            if self.deps[id(x)] & bits:
                at = self.place[id(x)]
                if node.op.kind not in ("elementwise", "reduction") or at is None \
                        or at.cluster is not other or (level or at.row) != row:
                    return False
        return True

    def _merge(self, host: Cluster, guest: Cluster, level: bool) -> None:
        self.precedence.merge(host.number, guest.number)
        host.members += guest.members
        host.weight += guest.weight
        host.reductions += guest.reductions
        host.rows |= {id(m) for m in guest.members} if level else guest.rows
        if guest.reductions or host.reductions:
            host.reason = "row kernel, joined with what reads the same memory"
        else:
            host.reason = "joined: reads the same memory"
        keys = self.placed.pop(guest.number, [])
        for key in keys:
            at = self.place[key]
            assert at is not None
            moved = Position(host, level or at.row)
            self.place[key] = moved
            if key in self.home:
                self.home[key] = moved
        self.placed.setdefault(host.number, []).extend(keys)
        reach, more = self.reach[host.number], self.reach.pop(guest.number)
        reach.bytes |= more.bytes
        reach.odd |= more.odd
        reach.needs = (reach.needs | more.needs) & ~self.precedence.own(host.number)
