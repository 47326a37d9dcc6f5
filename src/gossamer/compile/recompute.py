"""What is made anew in the backward pass instead of being kept until then. Layer 2.

The one idea: look at a finished schedule where it holds the most memory. A buffer that waits
there for a late reader, but follows by cheap elementwise work from what waits there anyway (the
activation from its argument, a norm's result from the normalised rows), need not wait: its late
readers get the same work over the same values, behind an `after` that keeps the two apart. The
second schedule finds a place for that work, mostly in a kernel that reads those values already.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; only what is nearly free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossamer.compile.schedule import Plan
from gossamer.compile.simplify import Rebuilder
from gossamer.ir.node import Node

__all__ = ["recompute"]

MIN_BYTES = 1 << 20  # of a buffer that is worth it; and together
MIN_SHARE = 0.05  # of the peak that must be saved for another schedule
MAX_COST = 60.0  # additions an element: a gelu or a softplus is made again, random numbers are not
MAX_NODES = 40  # operators of one value that are made again
SMALL = 8  # times smaller than the result: statistics of rows may wait


@dataclass
class _Step:
    """A cluster in running order: what it computes (inputs first), and what it reads."""

    nodes: list[Node]
    reads: list[Node]


@dataclass
class _Lives:
    """When the values of a schedule are in memory.

    Attributes:
        steps: of each cluster.
        born, last: id of a stored node -> number of the cluster that makes it, that last reads it.
        peak: the cluster that runs when most bytes are held, and
        held: how many they are.
    """

    steps: list[_Step] = field(default_factory=list)
    born: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    peak: int = 0
    held: int = 0


@dataclass
class _Choice:
    """A value to be made anew.

    Attributes:
        chain: the operators that make it from `bases`, itself the last.
        bases: ids of what they read that is not small.
        token: a value that is made shortly before the first late reader runs.
    """

    node: Node
    chain: list[Node]
    bases: set[int]
    token: Node | None = None


def recompute(roots: list[Node], leaf: set[int], plan: Plan) -> list[Node] | None:
    """The graph in which cheap values do not wait for the backward pass; None if there are none
    that matter.

    Args:
        roots: nodes wanted, each stored or a leaf.
        leaf: ids of nodes that are in memory.
        plan: the schedule of the graph.

    Cost: linear in nodes and edges.
    """
    if sum(_bytes(n) for n in plan.stored.values()) < MIN_BYTES:
        return None
    lives = _lives(plan, leaf, {id(r) for r in roots})
    choices = _choose(lives, plan, leaf, {id(r) for r in roots})
    saved = sum(_bytes(c.node) for c in choices)
    if not choices or saved < max(MIN_BYTES, MIN_SHARE * lives.held):
        return None
    return _Rewriter(lives, plan, leaf, choices).run(roots)


def _bytes(node: Node) -> int:
    return node.size * node.dtype.itemsize


def _lives(plan: Plan, leaf: set[int], wanted: set[int]) -> _Lives:
    lives = _Lives()
    for t, cluster in enumerate(plan.clusters):
        step = _step(cluster.outputs, plan.stored, leaf)
        lives.steps.append(step)
        for node in cluster.outputs:
            lives.born[id(node)] = lives.last[id(node)] = t
        for node in step.reads:
            lives.last[id(node)] = t
    changes = [0] * (len(plan.clusters) + 1)
    for key, t in lives.born.items():
        if key not in wanted:
            changes[t] += _bytes(plan.stored[key])
            changes[lives.last[key] + 1] -= _bytes(plan.stored[key])
    held = 0
    for t, change in enumerate(changes):
        held += change
        if held > lives.held:
            lives.peak, lives.held = t, held
    return lives


def _step(outputs: list[Node], stored: dict[int, Node], leaf: set[int]) -> _Step:
    """What has to be computed to have `outputs` from what is in memory."""
    made = {id(o) for o in outputs}
    nodes: list[Node] = []
    reads: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(o, False) for o in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if ready:
            nodes.append(node)
            continue
        if id(node) in done:
            continue
        done.add(id(node))
        if id(node) in leaf or id(node) in stored and id(node) not in made:
            reads.append(node)
        elif node.inputs:
            stack.append((node, True))
            stack.extend((x, False) for x in reversed(node.inputs))
    return _Step(nodes, reads)


def _choose(lives: _Lives, plan: Plan, leaf: set[int], wanted: set[int]) -> list[_Choice]:
    """The values to be made anew, the largest first; what one is made of stays."""
    waiting = [n for key, n in plan.stored.items()
               if key not in wanted and lives.born[key] < lives.peak < lives.last[key]]
    found: dict[int, _Choice] = {}
    kept: set[int] = set()
    for node in sorted(waiting, key=_bytes, reverse=True):
        if _bytes(node) < MIN_BYTES or id(node) in kept or node.op.kind != "elementwise":
            continue
        choice = _chain(node, plan.stored, leaf)
        if choice is None or choice.bases & found.keys():
            continue
        if all(key in leaf or lives.last[key] > lives.peak for key in choice.bases):
            found[id(node)] = choice
            kept |= choice.bases
    _set_tokens(lives, found)
    return [c for c in found.values() if c.token is not None]


def _chain(node: Node, stored: dict[int, Node], leaf: set[int]) -> _Choice | None:
    """How to make `node` from what is in memory, if that is cheap."""
    made = _step([node], stored, leaf)
    work = [x for x in made.nodes if x.op.kind != "movement"]
    if len(made.nodes) > MAX_NODES or sum(x.op.cost * x.size for x in work) > MAX_COST * node.size:
        return None
    if any(x.op.kind != "elementwise" for x in work):
        return None
    bases = {id(x) for x in made.reads if x.size * SMALL > node.size}
    return _Choice(node, made.nodes, bases) if bases else None


def _set_tokens(lives: _Lives, found: dict[int, _Choice]) -> None:
    """For each choice, the youngest value that the first late user of its chain reads: that user
    is the first to wait for it, so waiting closes no cycle."""
    owner = {id(x): c for c in found.values() for x in c.chain}
    for t in range(lives.peak + 1, len(lives.steps)):
        step = lives.steps[t]
        users = [owner[id(x)] for x in (*step.nodes, *step.reads) if id(x) in owner]
        for choice in users:
            if choice.token is None:
                young = [x for x in step.reads if lives.born.get(id(x), -1) >= lives.peak
                         and id(x) not in choice.bases]
                if young:
                    choice.token = max(young, key=lambda x: lives.born[id(x)])


class _Rewriter:
    """Builds the graph again, cluster by cluster; those after the peak see what is made anew."""

    def __init__(self, lives: _Lives, plan: Plan, leaf: set[int], choices: list[_Choice]) -> None:
        self.lives, self.stored, self.leaf = lives, plan.stored, leaf
        self.b = Rebuilder()
        self.chosen = {id(c.node) for c in choices}
        self.owner: dict[int, _Choice] = {}
        for choice in choices:
            for node in choice.chain:
                self.owner.setdefault(id(node), choice)
        self.bases: dict[int, _Choice] = {}
        for choice in choices:
            for key in choice.bases:
                self.bases.setdefault(key, choice)
        self.done: dict[int, Node] = {}  # stored nodes, as they are made at first
        self.early: dict[int, Node] = {}
        self.late: dict[int, Node] = {}

    def run(self, roots: list[Node]) -> list[Node]:
        for t, step in enumerate(self.lives.steps):
            late = t > self.lives.peak
            known = self.late if late else self.early
            for node in step.nodes:
                if late and id(node) in self.owner:
                    known[id(node)] = self._anew(node)
                else:
                    known[id(node)] = self._built(node, late)
            for key, born in [(id(n), self.lives.born.get(id(n))) for n in step.nodes]:
                if born == t and key in self.stored:
                    self.done[key] = known[key]
        return [self.done.get(id(r), r) for r in roots]

    def _built(self, node: Node, late: bool) -> Node:
        inputs = tuple(self._input(x, node, late) for x in node.inputs)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        return node if same else self.b.again(node, inputs)

    def _input(self, x: Node, reader: Node, late: bool) -> Node:
        if late and id(x) in self.owner:
            return self._anew(x)
        if late and reader.op.kind == "elementwise" and id(x) in self.bases:
            return self._waiting(x, self.bases[id(x)])
        return self._at_first(x, self.late if late else self.early)

    def _at_first(self, x: Node, known: dict[int, Node]) -> Node:
        found = self.done.get(id(x))
        return found if found is not None else known.get(id(x), x)

    def _waiting(self, x: Node, choice: _Choice) -> Node:
        """`x`, not before the choice's token is there."""
        assert choice.token is not None
        token = self._at_first(choice.token, self.late)
        return self.b.make(x, "after", self._at_first(x, self.late), token)

    def _anew(self, node: Node) -> Node:
        """A node of a chain, made for the late readers."""
        if id(node) not in self.late:
            choice = self.owner[id(node)]
            chain = {id(x) for x in choice.chain}
            for x in choice.chain:
                if id(x) in self.late:
                    continue
                inputs = tuple(
                    self.late[id(y)] if id(y) in chain else
                    self._waiting(y, choice) if id(y) in choice.bases else
                    self._at_first(y, self.late) for y in x.inputs)
                self.late[id(x)] = self.b.again(x, inputs) if inputs else x
        return self.late[id(node)]

