"""From nodes to values: find or make the program of a graph, and run it. Layer 3.

The one idea: a program depends on the structure of a graph, not on its data. The structure is
written as a key; leaves in memory become inputs, Python numbers become runtime scalars (so that a
learning rate that changes compiles nothing), and equal keys share one program. Outside `compile`,
sizes are words of the kernels' arguments: a new shape makes a new program out of the same machine
code.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from gossamer.compile.calls import Param
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.core.precision import get_float32_matmul_precision
from gossamer.core.settings import kept_setting
from gossamer.ir.node import STATE, Node, toposort
from gossamer.ir.op import CONSTANT, INPUT
from gossamer.runtime import reference, sizes, threads, watch
from gossamer.runtime.data import Data
from gossamer.runtime.execute import float_bits
from gossamer.runtime.program import Program, host_target
from gossamer.runtime.sizes import Sizes, family_of, filled, taken
from gossamer.runtime.threads import get_num_threads

__all__ = ["Canonical", "cached_programs", "canonical", "clear", "evaluate", "evaluate_one",
           "program_for"]

_WRAPPERS = frozenset({"detach", "leaf", "custom"})
# Numbers that rules of `simplify` know, or that kernels fold into their instructions: written into
# the kernel. All others are runtime scalars.
_LITERAL = frozenset({0, 1, -1, 2, 0.5})
# Programs in memory, the least recently used first: (program, about how many bytes it keeps).
_MAX_PROGRAMS, _MAX_WEIGHT = 1024, 32 << 20
_NODE_BYTES = 1000  # measured: key, plan and argument words, for a node or a call

_programs: OrderedDict[object, tuple[Program, int]] = OrderedDict()
_operators: dict[tuple[Any, ...], Program] = {}  # those of one operator, by what it is given
_weight = 0
_lock = threading.RLock()


def _literal(value: Any) -> bool:
    return isinstance(value, bool) or value in _LITERAL or value != value


def _told_apart(attrs: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Attributes as a part of a key. -0.0 equals 0.0 and NaN not itself, but their texts do not."""
    for value in attrs.values():
        if value.__class__ is float and (not value or value != value):
            return tuple([(k, repr(v)) for k, v in attrs.items()])
    return tuple(attrs.items())


def _in_memory(node: Node) -> bool:
    return node.value is not None


class Canonical:
    """A graph's structure: `key`, and what differs from one graph of that structure to the next.

    Attributes:
        key: equal for graphs that one program can compute.
        leaves: nodes in memory, in the order of the program's inputs.
        params: runtime scalars, as raw words.
        literals: the same numbers as text, for keys of programs that write them into kernels.
        order: the graph's nodes, inputs first.
        numbers: id of node -> its number in the key.
    """

    __slots__ = ("key", "leaves", "numbers", "order", "params", "roots")

    @property
    def literals(self) -> tuple[str, ...]:
        return tuple(repr(n.attrs["value"]) for n in self.order if n.op is CONSTANT)

    def __init__(self, roots: Sequence[Node], order: Sequence[Node] | None = None) -> None:
        self.roots = list(roots)
        self.order = toposort(roots, stop=_in_memory) if order is None else order
        self.leaves: list[Node] = []
        self.params: list[int] = []
        numbers: dict[int, int] = {}
        key: list[Any] = []
        for node in self.order:
            op = node.op
            if node.value is not None or op is INPUT:
                self.leaves.append(node)
                key.append((node.dtype.name, node.shape))
            elif op.name in _WRAPPERS:
                numbers[id(node)] = numbers[id(node.inputs[0])]
                continue
            elif op is CONSTANT:
                key.append(_number(node, self.params))
            elif node.attrs:
                key.append((op.name, *[numbers[id(x)] for x in node.inputs],
                            _told_apart(node.attrs)))
            else:
                key.append((op.name, *[numbers[id(x)] for x in node.inputs]))
            numbers[id(node)] = len(numbers)
        key.append(tuple([numbers[id(r)] for r in roots]))
        self.numbers = numbers
        self.key = tuple(key)

    def sizes(self) -> Sizes:
        """The structure without its integers (extents, and those in attributes), and these."""
        integers: list[int] = []
        parts: list[Any] = []
        entries = iter(self.key)
        for node in self.order:
            leaf = node.value is not None or node.op is INPUT
            if not leaf and node.op.name in _WRAPPERS:
                continue
            entry = next(entries)
            if leaf or node.op is CONSTANT:
                entry = (*entry[:-1], taken(node.shape, integers))
            elif node.attrs:
                entry = (*entry[:-1], taken(tuple(node.attrs.items()), integers))
            parts.append(entry)
        return Sizes((*parts, self.key[-1]), tuple(integers))

    def graph(self, literal: bool = False,
              integers: Iterator[Any] | None = None) -> tuple[list[Node], list[Node]]:
        """(roots, inputs): the same graph over `input` leaves and runtime scalars, sharing no
        node with the user's graph, so that a cached program keeps nothing alive.

        Args:
            literal: numbers stay numbers (compiled functions, whose signature holds them).
            integers: others in place of those of `sizes`.
        """
        def other(value: Any) -> Any:
            return value if integers is None else filled(value, integers)

        new: dict[int, Node] = {}
        inputs: list[Node] = []
        params = 0
        where, enabled = STATE.where, STATE.grad_enabled
        STATE.grad_enabled = False
        try:
            for node in self.order:
                STATE.where = node.where
                op = node.op
                if node.value is not None or op is INPUT:
                    made = INPUT(index=len(inputs), shape=other(node.shape), dtype=node.dtype)
                    inputs.append(made)
                elif op.name in _WRAPPERS:
                    made = new[id(node.inputs[0])]
                elif op is CONSTANT:
                    value = node.attrs["value"]
                    if not (literal or _literal(value)):
                        value = Param(params)
                        params += 1
                    made = CONSTANT(value=value, shape=other(node.shape), dtype=node.dtype)
                else:
                    attrs = dict(other(tuple(node.attrs.items()))) if integers else node.attrs
                    made = op(*[new[id(x)] for x in node.inputs], **attrs)
                new[id(node)] = made
        finally:
            STATE.where, STATE.grad_enabled = where, enabled
        return [new[id(r)] for r in self.roots], inputs


def canonical(roots: Sequence[Node]) -> Canonical:
    """The structure of the graph under `roots`."""
    return Canonical(roots)


def _number(node: Node, params: list[int]) -> tuple[Any, ...]:
    """A constant as a part of a key; its word is added to `params` unless it is in the key."""
    value = node.attrs["value"]
    if _literal(value):
        return "=", repr(value), node.dtype.name, node.shape
    params.append(_word(value, node))
    return "?", node.dtype.name, node.shape


def _word(value: Any, node: Node) -> int:
    return float_bits(float(value)) if node.dtype.kind == "f" else int(value)


_thread_count = (-1, 0)  # (generation of the pool's settings, threads)


def _threads() -> int:
    """`get_num_threads`, asked again only when something changed."""
    global _thread_count
    if _thread_count[0] != threads.generation:
        _thread_count = (threads.generation, get_num_threads())
    return _thread_count[1]


def program_for(graph: Canonical) -> Program:
    """The program of a structure, compiled at first use; shapes are not compiled in."""
    key = (graph.key, _threads(), get_float32_matmul_precision())
    with _lock:
        found = _programs.get(key)
        if found is not None:
            _programs.move_to_end(key)
            return found[0]
        with watch.span("compile", f"{len(graph.order)} nodes"):
            compiled = _plan(graph, key[1:])
        program = Program(compiled, [(r.shape, r.dtype) for r in graph.roots], len(graph.params))
        program.forget_texts()
        _remember(key, program, _NODE_BYTES * (len(graph.order) + len(compiled.calls)))
        return program


def _plan(graph: Canonical, settings: tuple[Any, ...]) -> Compiled:
    """The plan of a graph, from one for any size where there is one."""
    if watch.WATCHERS:  # `explain` shows loops and clusters, which only the compiler has
        return compile_graph(*graph.graph(), host_target(), specialize=False)
    own = graph.sizes()
    family = family_of((own.structure, settings))
    made = family.plan(own.values)
    if made is None:
        target = host_target()
        made = compile_graph(*graph.graph(), target, specialize=False)
        family.compiled(own.values, made, lambda others: graph.graph(integers=others), target)
    return made


def _remember(key: object, program: Program, weight: int) -> None:
    """Keep a program; those not used for longest go, and with them their kernels."""
    global _weight
    _programs[key] = program, weight
    _weight += weight
    while len(_programs) > _MAX_PROGRAMS or (_weight > _MAX_WEIGHT and len(_programs) > 1):
        oldest, (old, size) = next(iter(_programs.items()))
        if old.used or old is program:  # `evaluate_one` marks what it uses: it keeps no order
            old.used = False
            _programs.move_to_end(oldest)
            continue
        del _programs[oldest]
        _weight -= size
        _operators.clear()


def cached_programs() -> int:
    """Number of programs in memory."""
    return len(_programs)


def clear() -> None:
    """Forget every program and plan; what runs now ends well."""
    global _weight
    with _lock:
        sizes.forget()
        _programs.clear()
        _operators.clear()
        _weight = 0


def evaluate(roots: Sequence[Node], order: Sequence[Node] | None = None) -> None:
    """Compute `value` of each root.

    Args:
        roots: nodes without a value.
        order: the graph under them, inputs first, down to what is in memory (if it is at hand).

    Raises:
        IndexingError: an index read from data was out of range.
        CompileError: a defect of the compiler.
    """
    if kept_setting("GOSSAMER_REFERENCE"):
        watch.note("numpy", "graphs are evaluated by the NumPy reference (GOSSAMER_REFERENCE)")
        for node, array in zip(roots, reference.evaluate(list(roots)), strict=True):
            node.value = Data.from_array(array.astype(node.dtype.numpy), node.dtype)
        return
    graph = Canonical(roots, order)
    program = program_for(graph)
    inputs = [leaf.value for leaf in graph.leaves]
    if watch.WATCHERS:
        watch.planned(program.compiled, graph, (), literal=False)
        with watch.span("realise", f"{len(graph.order)} nodes"):
            values = program.run(inputs, graph.params)
    else:
        values = program.run(inputs, graph.params)
    for node, value in zip(roots, values, strict=True):
        node.value = value


def evaluate_one(node: Node) -> bool:
    """`evaluate` of one operator over values in memory and numbers, if its program is known: no
    walk over the graph. False: nothing was done.

    Cost: 7 us less than `evaluate`.
    """
    if watch.WATCHERS or kept_setting("GOSSAMER_REFERENCE"):
        return False
    key: list[Any] = [node.op, threads.generation, get_float32_matmul_precision()]
    data: list[Data] = []
    params: list[int] = []
    seen: list[Node] = []
    for x in node.inputs:
        if x in seen:
            key.append(seen.index(x))
            continue
        value = x.value
        if value.__class__ is Data:
            data.append(value)
            key += x.dtype, x.shape
        elif value is None and x.op is CONSTANT:
            key.append(_number(x, params))
        else:
            return False
        seen.append(x)
    if node.attrs:
        key.append(_told_apart(node.attrs))
    whole = tuple(key)
    program = _operators.get(whole)
    if program is None:
        program = _known_program(node, whole)
        if program is None:
            return False
    program.used = True
    (node.value,) = program.run(data, params)
    return True


def _known_program(node: Node, short: tuple[Any, ...]) -> Program | None:
    """The program of one operator if there is one; it can be found by its `short` key from now."""
    key = Canonical([node]).key, _threads(), get_float32_matmul_precision()
    with _lock:
        found = _programs.get(key)
        if found is None:
            return None
        if len(_operators) >= _MAX_PROGRAMS:  # settings change, or one operator has many forms
            _operators.clear()
        _operators[short] = found[0]
    return found[0]


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have been compiling


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
