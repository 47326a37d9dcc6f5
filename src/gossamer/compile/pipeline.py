"""The order of the passes: graph in, calls and a memory plan out. Layer 2.

    expand -> simplify -> prepare -> schedule (-> recompute -> schedule) -> lower -> write -> memory

Read this file to see what happens to a graph; each pass is a function of its own module, and
between any two the graph can be printed and verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gossamer.compile import attention, decoding, planes, quantized, winograd
from gossamer.compile.calls import Call
from gossamer.compile.contraction import contraction_calls
from gossamer.compile.expand import expand
from gossamer.compile.gemm import Target, low_products
from gossamer.compile.lower import Nest, lower_loops
from gossamer.compile.memory import Arena, overwritable, plan_arena
from gossamer.compile.prepare import copy, index_checks, prepare
from gossamer.compile.recompute import recompute
from gossamer.compile.rows import keep_rows
from gossamer.compile.schedule import Cluster, Plan, schedule
from gossamer.compile.simplify import simplify
from gossamer.compile.special import SPECIAL, kernel_call
from gossamer.core.collector import paused
from gossamer.ir.loop import Kernel
from gossamer.ir.node import Node, toposort, type_text, user_line

__all__ = ["Compiled", "compile_graph"]


# (calls, bytes of the temporaries, what may be written over) -> their places; see `plan_arena`
Placer = Callable[[list[Call], dict[int, int], Callable[[int, int], set[int]]], Arena]


@dataclass
class Compiled:
    """A program as data.

    Buffers are numbered: inputs first (0 .. len(inputs) - 1), then everything that is computed.

    Attributes:
        calls: what to run, in order.
        sizes: bytes of every computed buffer.
        outputs: buffer number of each root; several roots may share one, or name an input.
        arena: places of the temporaries.
        checks: (buffer number, message): a boolean to look at after the run; true means that an
            index was out of range.
        shared: (root, input) pairs: the root may be written over the input that it replaces.
        lines: file and number of the user's line that most of each call came from.
        owners, kernels: for `explain`: the cluster and the loops behind each call; not kept on
            disk.
    """

    calls: list[Call]
    inputs: int
    sizes: dict[int, int]
    outputs: list[int]
    arena: Arena
    checks: list[tuple[int, str]]
    shared: frozenset[tuple[int, int]] = frozenset()
    lines: list[tuple[str, int]] = field(default_factory=list)
    owners: list[Cluster] = field(default_factory=list)
    kernels: list[Kernel | None] = field(default_factory=list)


def _unseen(stage: str, roots: list[Node]) -> None:
    """Nobody looks."""


def _unused(calls: list[Call]) -> None:
    """Nobody waits for kernels."""


def has_kernel(node: Node) -> bool:
    """Whether a composite stays one node: a kernel of its own computes it."""
    return any(x.has_kernel(node) for x in (attention, decoding, planes, quantized, winograd))


@paused()
def compile_graph(roots: Sequence[Node], inputs: Sequence[Node], target: Target,
                  specialize: bool, donate: Sequence[tuple[int, int]] = (),
                  see: Callable[[str, list[Node]], None] = _unseen,
                  place: Placer = plan_arena,
                  ready: Callable[[list[Call]], None] = _unused) -> Compiled:
    """Compile a graph.

    Args:
        roots: nodes wanted.
        inputs: `input` leaves, in the order of the program's first buffers.
        target: the machine.
        specialize: sizes as literals (compiled functions), else as words (one kernel, all shapes).
        donate: (root, input) pairs of which `shared` is to tell.
        see: called with the name of each stage and the graph's roots then, for `explain`.
        place: gives the temporaries their places.
        ready: called with the calls of each cluster once their kernels are written, so that these
            can be compiled while others are written.
    """
    see("traced", list(roots))
    expanded = expand(list(roots), keep=has_kernel)
    see("expanded", expanded)
    graph = simplify(expanded)
    see("simplified", graph)
    checks = index_checks(toposort(graph))
    simple = simplify([*graph, *(c.flag for c in checks)])
    wanted = [_in_memory(r) for r in prepare(simple, low_products(target))]
    see("prepared", wanted)
    leaf = {id(x) for x in inputs}
    buffers = {id(x): i for i, x in enumerate(inputs)}
    plan = _scheduled(wanted, len(graph), leaf)
    again = recompute(wanted, leaf, plan)
    if again is not None:
        wanted = again
        see("recomputed", wanted)
        plan = _scheduled(wanted, len(graph), leaf)
    sizes: dict[int, int] = {}
    for node in plan.stored.values():
        buffers[id(node)] = len(buffers)
        sizes[buffers[id(node)]] = node.size * node.dtype.itemsize
    calls: list[Call] = []
    owners: list[Cluster] = []
    kernels: list[Kernel | None] = []
    filled: set[Call] = set()  # what only fills memory that calls share, such as rounded rows
    for cluster in plan.clusters:
        new, loops = _cluster_calls(cluster, buffers, target, specialize)
        new = [c for c in new if c not in filled]
        filled.update(c for c in new if not c.writes)
        ready(new)
        calls += new
        owners += [cluster] * len(new)
        kernels += [loops] * len(new)
    numbers = [buffers[id(r)] for r in wanted]
    outputs = numbers[:len(graph)]
    kept = set(numbers)
    factors = {i: _factors(c.members[0], buffers) for i, c in enumerate(owners)
               if c.kind == "dot" and kernels[i] is not None}

    def places(t: int, buffer: int) -> set[int]:
        loops = kernels[t]
        return overwritable(loops, buffer) - factors.get(t, set()) if loops is not None else set()

    arena = place(calls, {b: n for b, n in sizes.items() if b not in kept}, places)
    made = Compiled(calls, len(inputs), sizes, outputs, arena,
                    [(b, _out_of_range(c.node))
                     for b, c in zip(numbers[len(graph):], checks, strict=True)],
                    lines=[_line(c) for c in owners], owners=owners, kernels=kernels)
    made.shared = frozenset(pair for pair in donate if _may_share(made, factors, *pair))
    return made


def _scheduled(wanted: list[Node], results: int, leaf: set[int]) -> Plan:
    """The schedule of the first `results` nodes wanted, and of the index checks behind them."""
    return schedule([r for r in wanted if id(r) not in leaf], leaf,
                    [r for r in wanted[results:] if id(r) not in leaf])


def _line(cluster: Cluster) -> tuple[str, int]:
    """The user's line of the product, or of the largest member."""
    if cluster.kind != "loops":
        return user_line(cluster.members[0])
    return user_line(max(cluster.members, key=lambda m: m.size))


def _out_of_range(node: Node) -> str:
    file, line = user_line(node)
    table = node.inputs[0]
    return (f"{node.op.name}: an index into {type_text(table)} is out of range; it must be in "
            f"[-{table.shape[0]}, {table.shape[0]}). Made at {file}:{line}. Check the indices "
            "(token ids, labels) against the size of the table.")


def _in_memory(root: Node) -> Node:
    """The node whose buffer holds a root's elements in order; a copy where only a view does."""
    base = root
    while base.op.name == "reshape":
        base = base.inputs[0]
    if base.op.kind == "movement" or base.op.name in ("constant", "iota"):
        return copy(root)
    return base


def _cluster_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                   specialize: bool) -> tuple[list[Call], Kernel | None]:
    if not any(o.size for o in cluster.outputs):
        return [], None
    if cluster.kind == "dot":
        return contraction_calls(cluster, buffers, target, specialize)
    if cluster.kind in SPECIAL:
        return SPECIAL[cluster.kind](cluster, buffers, target, specialize), None
    name = "+".join(dict.fromkeys(m.op.name for m in cluster.members))[:60]
    nest = Nest(name, cluster.space, cluster.reductions,
                [(o, buffers[id(o)]) for o in cluster.outputs], cluster.rows)
    kernel = keep_rows(lower_loops(nest, buffers))
    return [kernel_call(kernel, target, specialize)], kernel


def _may_share(compiled: Compiled, factors: dict[int, set[int]], root: int, number: int) -> bool:
    """Whether root number `root` may be written over input `number`, which it replaces.

    So if one kernel of loops (or a product's epilogue) writes it and may write it over the input,
    and no later call reads the input. Or if a scatter begins by copying the input.
    """
    buffer = compiled.outputs[root]
    if buffer < compiled.inputs or compiled.outputs.count(buffer) > 1:
        return False
    if compiled.sizes[buffer] == 0:
        return False
    writers = [i for i, c in enumerate(compiled.calls) if buffer in c.writes]
    readers = [i for i, c in enumerate(compiled.calls) if number in c.reads]
    if not writers or (readers and max(readers) > writers[0]) or number in compiled.outputs:
        return False
    if compiled.calls[writers[0]].copies == (number, buffer):
        return True
    kernel = compiled.kernels[writers[0]]
    if len(writers) != 1 or kernel is None:
        return False
    if writers[0] not in readers:
        return True
    return number in overwritable(kernel, buffer) - factors.get(writers[0], set())


def _factors(product: Node, buffers: dict[int, int]) -> set[int]:
    """The buffers that hold the operands of a product."""
    found: set[int] = set()
    for node in toposort(product.inputs, stop=lambda n: id(n) in buffers):
        if id(node) in buffers:
            found.add(buffers[id(node)])
    return found
