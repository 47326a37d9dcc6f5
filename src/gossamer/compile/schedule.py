"""Who shares a kernel: from a graph of primitives to clusters, each with its reason. Layer 2.

The one idea: one walk in topological order. An elementwise node joins the cluster of an input
when it lives on the same points (the same linear index, seen through reshapes and through
broadcasts of per-row values) and when joining makes no cycle between clusters; a reduction joins
the cluster that computes its operand if the rows agree; a contraction opens a cluster of its own
and later elementwise nodes become its epilogue. Movement operators belong to nobody: they are index
arithmetic. Then `join` looks sideways, at what several clusters read. What is used elsewhere is
stored, unless computing it again is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gossamer.compile.cluster import (
    MAX_WEIGHT,
    MIN_ROWS,
    SPLIT_WORK,
    Cluster,
    Position,
    Precedence,
    canonical_space,
    is_copied_concat,
    listed,
    weight,
)
from gossamer.compile.join import Joiner, Limits
from gossamer.compile.lower import Space
from gossamer.ir.node import Node, toposort
from gossamer.ir.op import PICK
from gossamer.ops.movement import shown

__all__ = ["MIN_ROWS", "SPLIT_WORK", "Cluster", "Plan", "canonical_space", "schedule"]

CHEAP_COST, CHEAP_LOADS = 3.0, 1.5  # below both, computing again beats a round trip through memory


@dataclass
class Plan:
    """The result of scheduling."""

    clusters: list[Cluster]  # in an order in which they can run
    stored: dict[int, Node]  # id -> node, of everything that gets a buffer


class _Scheduler:
    def __init__(self, roots: list[Node], leaf: set[int], checks: Sequence[Node]) -> None:
        self.roots = roots
        self.wanted = {id(r) for r in roots}
        self.checks = checks
        self.leaf = leaf  # ids of nodes that are in memory already
        self.order = toposort(roots, stop=lambda n: id(n) in leaf)
        self.clusters: list[Cluster] = []
        self.precedence = Precedence()
        self.home: dict[int, Position] = {}  # members
        self.place: dict[int, Position | None] = {}  # all nodes: where their elements are made
        self.deps: dict[int, int] = {}  # id -> bit set of clusters it reads (not through members)
        self.stored: dict[int, Node] = {}
        self.users: dict[int, list[Node]] = {}

    # clustering ---------------------------------------------------------------------------------
    def run(self) -> Plan:
        for node in self.order:
            for x in node.inputs:
                if id(node) not in self.leaf:
                    self.users.setdefault(id(x), []).append(node)
        for node in self.order:
            self._place(node)
        apart = 0
        for flag in self.checks:
            for number in listed(self.deps[id(flag)]):
                apart |= self.precedence.before(number) | 1 << number
        once = {key for key, users in self.users.items() if len(users) == 1}
        self.clusters = Joiner(self.clusters, self.precedence, self.home, self.place, self.deps,
                               Limits(apart, once, self._takes_more)).run()
        self._in_order()
        self._store()
        for cluster in self.clusters:
            cluster.outputs = [m for m in cluster.members if id(m) in self.stored]
        used = [c for c in self.clusters if c.outputs]
        return Plan(self._sorted(used), self.stored)

    def _place(self, node: Node) -> None:
        key = id(node)
        if key in self.leaf or node.op.kind == "leaf":
            self.place[key], self.deps[key] = None, 0
        elif node.op.kind == "movement":
            self.place[key] = self._through(node)
            self.deps[key] = self._reads(node)
        elif is_copied_concat(node):
            cluster = self._new("concat", ((node.size, False),), "concat: each part to its place")
            self._join(cluster, node, False)
        elif node.op.kind == "elementwise":
            self._elementwise(node)
        elif node.op.kind == "reduction":
            self._reduction(node)
        elif node.op is PICK:
            self._join(self.home[id(node.inputs[0])].cluster, node, False)
        else:
            kind = "dot" if node.op.kind == "contraction" else node.op.name
            kind = "loops" if kind == "take" else kind
            cluster = self._new(kind, ((node.size, False),), node.op.name)
            self._join(cluster, node, False)

    def _through(self, node: Node) -> Position | None:
        """Where a movement's elements are made, if at the same point of the same cluster."""
        source = self.place[id(node.inputs[0])]
        if source is None:
            return None
        if node.op.name == "reshape":
            return source
        if node.op.name == "broadcast" and source.row and source.cluster.kind == "loops":
            space = canonical_space(node.shape, node.attrs["axes"])
            if space == source.cluster.space:
                return Position(source.cluster, False)
        return None

    def _reads(self, node: Node) -> int:
        """Clusters whose results a node needs; members of a cluster stand for it."""
        bits = 0
        for x in node.inputs:
            at = self.home.get(id(x))
            bits |= at.cluster.bit if at is not None else self.deps[id(x)]
        return bits

    def _foreign(self, node: Node, cluster: Cluster, row: bool) -> int | None:
        """Clusters to wait for if `node` joins `cluster`; None if that would be a cycle or needs
        another point of the cluster than the one at hand."""
        bits = 0
        for x in node.inputs:
            at = self.place[id(x)]
            if at is not None and at.cluster is cluster and at.row == row:
                continue
            own = self.home.get(id(x))
            bits |= own.cluster.bit if own is not None else self.deps[id(x)]
        if bits & cluster.bit or self.precedence.closes_cycle(cluster.number, bits):
            return None
        return bits

    def _new(self, kind: str, space: Space, reason: str) -> Cluster:
        cluster = Cluster(self.precedence.new(), kind, space, reason=reason)
        self.clusters.append(cluster)
        return cluster

    def _join(self, cluster: Cluster, node: Node, row: bool, bits: int | None = None) -> None:
        position = Position(cluster, row)
        self.home[id(node)] = self.place[id(node)] = position
        cluster.members.append(node)
        cluster.weight += weight(node)
        if row:
            cluster.rows.add(id(node))
        bits = self._reads(node) & ~cluster.bit if bits is None else bits
        self.deps[id(node)] = cluster.bit
        self.precedence.require(cluster.number, bits)

    def _elementwise(self, node: Node) -> None:
        tried: set[tuple[int, bool]] = set()
        candidates: list[Position] = []
        for x in node.inputs:
            at = self.place[id(x)]
            if at is not None and (at.cluster.number, at.row) not in tried:
                tried.add((at.cluster.number, at.row))
                candidates.append(at)
        # The youngest cluster first: joining it can least often close a cycle.
        for at in sorted(candidates, key=lambda p: (p.row, -p.cluster.number)):
            cluster = at.cluster
            if not self._takes_more(cluster) or cluster.full:
                continue
            bits = self._foreign(node, cluster, at.row)
            if bits is not None:
                self._join(cluster, node, at.row, bits)
                return
        cluster = self._new("loops", ((node.size, False),), "no input's loops fit")
        self._join(cluster, node, False)

    def _takes_more(self, cluster: Cluster) -> bool:
        """An epilogue spares the product's way through memory; where the product itself is wanted
        (a gradient that an optimizer also reads) it spares nothing, and walks in small blocks."""
        return cluster.kind == "loops" or (cluster.kind == "dot"
                                           and id(cluster.members[0]) not in self.wanted)

    def _reduction(self, node: Node) -> None:
        source = node.inputs[0]
        space = canonical_space(source.shape, node.attrs["axes"])
        at = self.place[id(source)]
        rows = prod(n for n, r in space if not r)
        if at is not None and not at.row and at.cluster.kind == "loops":
            cluster = at.cluster
            trailing = len(space) <= 2 and (not space or space[-1][1])
            plain = not cluster.reductions and len(cluster.space) <= 1
            size = prod(n for n, _ in space)
            converts = plain and trailing and (rows >= MIN_ROWS or size < SPLIT_WORK)
            if (cluster.space == space or converts) and not cluster.full:
                cluster.space = space
                cluster.reason = "row kernel: a reduction with the elementwise work on its rows"
                self._add_reduction(cluster, node, 0)
                return
        bits = self._reads(node)
        cluster = self._new("loops", space, "reduction: its operand's loops do not fit")
        self._add_reduction(cluster, node, bits)

    def _add_reduction(self, cluster: Cluster, node: Node, bits: int) -> None:
        cluster.reductions.append(node)
        self._join(cluster, node, True, bits)

    # storing ------------------------------------------------------------------------------------
    def _in_order(self) -> None:
        """Members and reductions of joined clusters, each after what it reads; a product first."""
        number = {id(n): i for i, n in enumerate(self.order)}
        for cluster in self.clusters:
            cluster.members.sort(key=lambda n: (n.op.kind != "contraction", number[id(n)]))
            cluster.reductions.sort(key=lambda n: number[id(n)])

    def _store(self) -> None:
        """Decide what gets a buffer. The cost of computing a node again depends on what is stored
        below it, which depends on the decision: two rounds settle it well enough."""
        for _ in range(2):
            self.stored = self._decide(*self._costs(self.stored))
        for cluster in self._sorted(self.clusters):
            self._bound(cluster)

    def _bound(self, cluster: Cluster) -> None:
        """Store what would make a kernel longer than a cluster may be: a node with one reader is
        computed there, with all below it that is not stored, so a long chain of clusters over
        different points would become one kernel."""
        inside = {id(m) for m in cluster.members}
        total = cluster.weight
        stack = [x for m in reversed(cluster.members) for x in reversed(m.inputs)]
        while stack:
            x = stack.pop()
            if x.op.kind == "movement" and id(x) not in self.leaf:
                stack.extend(reversed(shown(x)))
                continue
            below, more = self._below(x, inside)
            if total + more <= MAX_WEIGHT:
                inside |= below
                total += more
            elif below:
                self.stored[id(x)] = x

    def _below(self, node: Node, inside: set[int]) -> tuple[set[int], float]:
        """Ids and weight of the operators that are computed again to have `node`; more than a
        cluster's worth are not counted."""
        found: set[int] = set()
        total = 0.0
        stack = [node]
        while stack and total <= MAX_WEIGHT:
            x = stack.pop()
            key = id(x)
            if key in self.leaf or key in self.stored or key in inside or key in found:
                continue
            if x.op.kind not in ("movement", "leaf"):
                found.add(key)
                total += weight(x)
            stack.extend(shown(x))
        return found, total

    def _costs(self, stored: dict[int, Node]) -> tuple[dict[int, float], dict[int, float]]:
        """Operations and loads per element to compute each node from what is in memory."""
        cost: dict[int, float] = {}
        loads: dict[int, float] = {}
        for node in self.order:
            key = id(node)
            own_cost = 0.0 if node.op.kind in ("movement", "leaf") else node.op.cost
            if key in self.leaf:
                cost[key], loads[key] = 0.0, 1.0
                continue
            below_cost = below_loads = 0.0
            for x in shown(node):
                at_hand = id(x) in stored or self._always_stored(x)
                below_cost += 0.0 if at_hand else cost[id(x)]
                below_loads += 1.0 if at_hand else loads[id(x)]
            if node.op.name == "broadcast" and node.size:
                below_loads *= node.inputs[0].size / node.size
            cost[key], loads[key] = own_cost + below_cost, below_loads
        return cost, loads

    def _always_stored(self, node: Node) -> bool:
        if node.op.kind == "elementwise":
            return is_copied_concat(node)
        return node.op.kind not in ("movement", "leaf") and node.op.name != "take"

    def _decide(self, cost: dict[int, float], loads: dict[int, float]) -> dict[int, Node]:
        """Walk from the consumers: a reader is the number of a cluster that computes the node or
        what is made of it; -1 stands for one that needs a buffer, -2 for one that reads every
        element many times. A node that is not stored is computed by its readers, and at home only
        if something stored there needs it; that second computation is preferred to keeping it (the
        inside of an activation function between the forward and the backward pass)."""
        readers: dict[int, set[int]] = {}
        at_home: set[int] = set()  # nodes that their own cluster computes in any case
        stored: dict[int, Node] = {}
        for node in reversed(self.order):
            key = id(node)
            if key in self.leaf:
                continue
            mine = readers.get(key, set())
            at = self.home.get(key)
            if key in self.wanted or (
                    mine and self._worth_storing(node, mine, cost[key], loads[key])):
                stored[key] = node
                mine = set()
            if key in stored and at is not None:
                at_home.add(key)
            for x in shown(node):
                theirs = readers.setdefault(id(x), set())
                if at is None:
                    theirs |= mine
                    if mine and node.op.name == "broadcast":
                        theirs.add(-2)
                    if mine and node.op.name == "after":
                        theirs.add(-1)  # what is asked for later is kept until then
                    if key in at_home:
                        at_home.add(id(x))
                    continue
                others = mine - {at.cluster.number}
                theirs |= others
                if key in at_home:
                    if self._inside(node, x, at):
                        at_home.add(id(x))
                    else:
                        theirs.add(at.cluster.number)
                if self._needs_memory(node, x):
                    theirs.add(-1)
        return stored

    def _inside(self, node: Node, operand: Node, at: Position) -> bool:
        """Whether `node` finds `operand` at hand in its own cluster's loops."""
        there = self.place[id(operand)]
        return (there is not None and there.cluster is at.cluster
                and at.cluster.kind in ("loops", "dot")
                and (there.row == at.row or node.op.kind == "reduction"))

    def _needs_memory(self, node: Node, operand: Node) -> bool:
        """Operators with a kernel of their own read buffers."""
        if node.op.name == "take":
            return operand is node.inputs[0]
        if node.op.kind == "contraction":
            inline = node.attrs.get("inline")
            return inline is None or operand is not node.inputs[inline]
        return node.op.kind in ("scan", "sort", "special", "indexing", "composite")

    def _worth_storing(self, node: Node, readers: set[int], cost: float, loads: float) -> bool:
        if node.op.kind in ("movement", "leaf") or node.outs is not None:
            return False  # of an operator with several results the picks are stored
        if self._always_stored(node) or -1 in readers:
            return True
        if cost <= CHEAP_COST and loads <= CHEAP_LOADS:
            return False
        return -2 in readers or sum(r >= 0 for r in readers) > 1

    def _sorted(self, clusters: list[Cluster]) -> list[Cluster]:
        waits = {c.number: self.precedence.before(c.number).bit_count() for c in clusters}
        return sorted(clusters, key=lambda c: (waits[c.number], c.number))


def schedule(roots: list[Node], leaf: set[int], checks: Sequence[Node] = ()) -> Plan:
    """Partition the graph under `roots` into kernels.

    Args:
        roots: nodes whose values are wanted, in primitives only.
        leaf: ids of nodes that are in memory.
        checks: those of `roots` that are looked at before anything else runs (index checks); what
            they need shares no kernel with what they do not need.

    Cost: linear in nodes and edges, times the number of clusters in bit-set operations.
    """
    return _Scheduler(roots, leaf, checks).run()
