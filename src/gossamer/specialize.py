"""One trace of a compiled function: its program, its state, and what to do around a run. Layer 4.

The one idea: after a trace everything is known: which inputs come from arguments, which from
tensors found in closures, and where each result goes. A run reads the inputs, makes one native
call, and hands the results out; a state that nobody else looks at is written over its old value.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from weakref import ref

from gossamer.core.dtype import DType
from gossamer.core.errors import TraceError
from gossamer.core.references import getrefcount
from gossamer.guards import (
    GradientGuard,
    LeafGuard,
    adopt,
    modules_seen,
    names_read,
    root_of,
    settle_reachable,
    still,
)
from gossamer.ir.node import STATE, Node, Where, toposort, user_line
from gossamer.ir.op import BUFFER, INPUT
from gossamer.modes import MODES, no_grad
from gossamer.realize import realize
from gossamer.runtime.buffer import Buffer
from gossamer.runtime.data import Data
from gossamer.runtime.engine import Canonical
from gossamer.runtime.plans import specialized_plan
from gossamer.runtime.program import Program
from gossamer.settled import Settled, settled
from gossamer.structure import builder, flatten, unflatten
from gossamer.tensor import LEAF, Shared, Tensor, leaf_node, view, wrap
from gossamer.tracing import RunPlainly, Trace
from gossamer.unchanged import Unchanged
from gossamer.watched import captured_by, functions_behind, read_by, values_of

__all__ = ["Specialization"]


class _Scalar:
    """A runtime scalar of a program: 0-d data that is filled before each run."""

    def __init__(self, get: Callable[[], float], dtype: DType) -> None:
        self.get = get
        self.data = Data.empty((), dtype)
        self.view = self.data.raw

    def refresh(self) -> Data:
        self.view[()] = self.get()
        return self.data


class _State:
    """A tensor found in a closure: where its value goes in and comes out.

    Attributes:
        place: number of the program's input.
        root: number of the root that may be written over it, -1 if there is none.
        moves: how often it was not as the run before had left it.
        seen: what it was then.
    """

    __slots__ = ("dtype", "leaf", "moves", "place", "root", "seen", "shape", "tensor")

    def __init__(self, tensor: Tensor, node: Node) -> None:
        self.tensor = tensor
        self.shape, self.dtype, self.leaf = node.shape, node.dtype, tensor._leaf
        self.place = self.root = -1
        self.moves, self.seen = 0, (0, 0)


class _Alias:
    """A result that is a tensor from outside, or a view of one: handed out as such.

    Args:
        source: the tensor, or the number of an argument.
        path: steps from there to the view; None for the very tensor.
    """

    def __init__(self, source: Tensor | int, path: tuple[Any, ...] | None) -> None:
        self.source = source
        self.path = path

    def get(self, tensors: Sequence[Tensor]) -> Tensor:
        source = tensors[self.source] if isinstance(self.source, int) else self.source
        return source if self.path is None else view(source, self.path)


class _Traced:
    """What one run of the function with placeholders did; everything is as before when it is made.

    Attributes:
        outs: the tensors returned.
        written: (tensor from outside, its node before, its node after) of each that was written.
        grads: (tensor, its gradient after) of each whose `.grad` was set.
    """

    def __init__(self, function: Callable[..., Any], spec: Any, tensors: Sequence[Tensor]) -> None:
        self.trace = trace = Trace()
        self.arguments: list[Tensor] = []
        self.outs: list[Tensor] = []
        self.nodes: list[Node] = []
        self.written: list[tuple[Tensor, Node, Node]] = []
        self.grads: list[tuple[Tensor, Tensor | None]] = []
        self.grad_nodes: list[Node] = []
        self.plain = False
        self.through = False  # an argument has a history: derivatives leave the function by it
        try:
            MODES.tracing, STATE.birth = trace, trace.born
            self.arguments = [self._placeholder(t) for t in tensors]
            args, kwargs = unflatten(spec, self.arguments)
            self.out_spec = flatten(function(*args, **kwargs), self.outs)
            self.nodes = [t._read() for t in self.outs]
            alive = [(t, old) for t, old in ((r(), old) for r, old in trace.written.values())
                     if t is not None and not trace.made(t)]
            self.written = [(t, old, t._read()) for t, old in alive]
            self.grads = [(t, t._grad) for t in trace.set_grads.values()]
            self.grad_nodes = [g._read() for _, g in self.grads if g is not None]
        except RunPlainly:
            self.plain = True
        finally:
            MODES.tracing, STATE.birth = None, 0
            self._restore()

    def _placeholder(self, t: Tensor) -> Tensor:
        node = self.trace.argument(t._node.shape, t._node.dtype)
        made = wrap(node)
        node.grad = STATE.grad_enabled and t.requires_grad and not t._leaf
        self.through = self.through or node.grad
        if t._leaf:
            made._leaf = True
            made._node = leaf_node(node, made)
        return made

    def _restore(self) -> None:
        """Undo what the trace did to tensors: it only watched."""
        trace = self.trace
        for reference, old in trace.written.values():
            t = reference()
            if t is not None:
                t._node = old
                t._version += 1
        for t, shared in trace.shared.values():
            t._base = shared
            t._version += 1
        for t, grad in trace.first_grads.values():
            t._grad = grad

    def argument(self, t: Tensor) -> int | None:
        return next((i for i, a in enumerate(self.arguments) if t is a), None)

    @property
    def eager(self) -> bool:
        """Whether the function must run as it is: it changes an argument or a tensor's shape, or
        its result is differentiated outside."""
        if self.plain:
            return True
        changed = {*self.trace.written, *(id(t) for t, _ in self.grads)}
        if any(id(a) in changed for a in self.arguments):
            return True
        trained = self.grads or any(t._leaf for t, _, _ in self.written)
        return any(n.grad for n in self.nodes) and not trained or self.through and bool(trained)

    def pending(self) -> list[Node]:
        """Nodes of tensors from outside whose value the trace would have needed."""
        found = []
        for n in toposort([*self.nodes, *self.grad_nodes, *(new for _, _, new in self.written)],
                          stop=lambda n: n.value is not None):
            t = n.owner() if n.owner is not None and n.value is None and n.inputs else None
            if t is not None and not self.trace.made(t) and t._node is n \
                    and t._version == root_of(t)._version:
                found.append(root_of(t)._read())
        found += [old for t, old, _ in self.written if old.value is None and t._node is old]
        return [n for n in found if n.value is None]


class Specialization:
    """One trace of a function: its guards, its program, and what to do around a run.

    Args:
        function: what is compiled.
        spec: structure of the arguments.
        tensors: the arguments that are tensors.
    """

    def __init__(self, function: Callable[..., Any], spec: Any, tensors: Sequence[Tensor]) -> None:
        self.state: list[_State] = []
        self.held = spec  # objects count by identity: they must not die and be replaced
        self.inline = False
        self.settled: Settled[_State] | None = None  # what the last run left
        self._runs = 0
        functions = functions_behind(function)
        captured = [getattr(function, "__self__", None), function,
                    *(x for f in functions for x in captured_by(f))]
        names = names_read(functions)
        modules = settle_reachable(captured, tensors)
        values = values_of(functions_behind(function, modules), captured, modules)
        traced = _Traced(function, spec, tensors)
        pending = traced.pending()
        if pending:  # state that the search did not find; now it has values
            realize(pending)
            traced = _Traced(function, spec, tensors)
        live = {x for get in traced.trace.scalars.values() for x in read_by(get)}
        watched = [*still(names), *still(values, live)]
        self.born = traced.trace.born
        self.changed = {id(t) for t, _, _ in traced.written}
        self.inline = traced.eager
        known: set[int] = set()
        if not self.inline:
            self._plan(traced)
            known = {id(s.tensor) for s in self.state}
        used = known | self.changed
        seen = modules_seen(list(traced.trace.modules.values()), modules, used)
        self.unchanged = Unchanged([*watched, *seen])
        self.guards: list[LeafGuard | GradientGuard] = [
            LeafGuard(seen, known),
            GradientGuard([(t, g) for t, g in traced.trace.old_grads.values()
                           if not traced.trace.made(t)], used)]

    def _plan(self, traced: _Traced) -> None:
        """Decide what is a result of the program, and compile it."""
        self.build = builder(traced.out_spec)
        self.results: list[_Alias | int] = []
        roots: list[Node] = []
        for t, node in zip(traced.outs, traced.nodes, strict=True):
            alias = self._alias(traced, t)
            self.results.append(len(roots) if alias is None else alias)
            if alias is None:
                roots.append(node)
        first = len(roots)
        self.grads: list[tuple[Tensor, int]] = []  # with its root; -1 for no gradient
        for t, g in traced.grads:
            self.grads.append((t, -1 if g is None else first))
            first += g is not None
        self.writes = [(t, first + i) for i, (t, _, _) in enumerate(traced.written)]
        roots += [*traced.grad_nodes, *(new for _, _, new in traced.written)]
        self.wheres = [r.where for r in roots]
        graph = Canonical(roots)
        self.nodes = len(graph.order)
        self._sort_sources([self._source(node, traced.trace) for node in graph.leaves])
        numbers = {id(root_of(s.tensor)): s.place for s in self.state}
        donate = [(root, numbers[id(t)]) for t, root in self.writes if id(t) in numbers]
        compiled = specialized_plan(graph, donate)
        self.program = Program(compiled, [(r.shape, r.dtype) for r in roots])
        places = {s.place: s for s in self.state}
        self.shareable: list[_State] = []  # whose new value may be written over the old one
        for root, number in donate:
            if (root, number) in compiled.shared:
                places[number].root = root
                self.shareable.append(places[number])

    def _sort_sources(self, sources: list[Any]) -> None:
        """Where each input comes from, by kind; `constants` holds what is the same at each run."""
        self.constants: list[Any] = []
        self.arguments: list[tuple[int, int]] = []  # (input, number of the argument)
        self.scalars: list[_Scalar] = []
        for place, source in enumerate(sources):
            data = source
            if isinstance(source, _State):
                source.place, data = place, None
                self.state.append(source)
            elif isinstance(source, int):
                self.arguments.append((place, source))
                data = None
            elif isinstance(source, _Scalar):
                self.scalars.append(source)
                data = source.data
            self.constants.append(data)

    def _alias(self, traced: _Traced, t: Tensor) -> _Alias | None:
        number = traced.argument(t)
        if number is not None:
            return _Alias(number, None)
        base = t._base if isinstance(t._base, Tensor) and not t._leaf else None
        if base is not None:
            number = traced.argument(base)
            if number is not None:
                return _Alias(number, t._path)
        if traced.trace.made(t):
            return None
        return _Alias(t, None) if base is None else _Alias(base, t._path)

    def _source(self, node: Node, trace: Trace) -> Any:
        """Where the data of a program's input comes from."""
        owner = node.owner() if node.owner is not None else None
        if node.op is INPUT:
            get = trace.scalars.get(id(node))
            if get is not None:
                return _Scalar(get, node.dtype)
            for number, x in enumerate(trace.inputs):
                if x is node:
                    return number
            name, line = user_line(node)
            raise TraceError(f"compile: the function uses a tensor that another traced call left "
                             f"behind ({name}:{line}). Return it from that call instead.")
        if owner is not None and not trace.made(owner) and (
                id(owner) in trace.shared or owner._read().value is node.value):
            return _State(owner, node)
        return node.value

    def inputs(self, tensors: Sequence[Tensor]) -> list[Data]:
        """The data that a run would read; only runtime scalars are written."""
        found = self.constants.copy()
        for place, number in self.arguments:
            found[place] = tensors[number]._value()
        for scalar in self.scalars:
            scalar.refresh()
        for state in self.state:
            found[state.place] = state.tensor._value()
        return found

    # calling ----------------------------------------------------------------------------------
    def holds(self) -> bool:
        """Whether what the trace took for granted is still so."""
        if not self.unchanged.holds():
            return False
        for guard in self.guards:
            if not guard.holds():
                return False
        settled = self.settled
        if settled is not None and not settled.holds():
            settled = None
        for s in self.state if settled is None else settled.moving:
            t = s.tensor
            if isinstance(t._base, Tensor) and id(t) in self.changed:  # it was a root
                adopt(t)
                if t._base is not None:
                    return False
            node = t._node
            if node.dtype is not s.dtype or t._leaf is not s.leaf or node.shape != s.shape:
                return False
        return True

    def touches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether an argument shows a tensor that the program writes."""
        if self.changed:
            for t in tensors:
                if id(t) in self.changed or id(root_of(t)) in self.changed:
                    return True
        return False

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Read the inputs, call the program, hand out what it made."""
        settled = self.settled
        if settled is not None and settled.holds():
            return self._run_again(settled, tensors)
        self.settled = settled = None  # it would count among those who look at a value
        result = self._run(tensors)
        self._settle()
        return result

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        inputs = self.inputs(tensors)
        reuse: dict[int, Buffer] = {}
        for state in self.shareable:
            if state.tensor._base is None and _exclusive(state.tensor._node, inputs, state.place):
                reuse[state.root] = inputs[state.place].buffer
        return self._hand_out(self.program.run(inputs, (), reuse), reuse, tensors)

    def _run_again(self, settled: Settled[_State], tensors: Sequence[Tensor]) -> Any:
        """`_run` where most of the state is known to be as it was."""
        for scalar in self.scalars:
            scalar.refresh()
        inputs = [tensors[number]._value() for _, number in self.arguments]
        reuse: dict[int, Buffer] = {}
        for place, state in enumerate(settled.moving, len(inputs)):
            inputs.append(state.tensor._value())
            if state.root >= 0 and state.tensor._base is None and _exclusive(
                    state.tensor._node, inputs, place):
                reuse[state.root] = inputs[place].buffer
        values = settled.run(inputs, reuse)
        return self._hand_out(values, {*settled.reused, *reuse} if reuse else settled.reused,
                              tensors)

    def _hand_out(self, values: Sequence[Data] | Mapping[int, Data], reused: Collection[int],
                  tensors: Sequence[Tensor]) -> Any:
        """Give tensors their new values, and the caller the results."""
        wheres = self.wheres
        for t, root in self.writes:
            if root in reused:
                t._version += 1
            else:
                _assign(t, values[root], wheres[root])
        for t, root in self.grads:
            t._grad = wrap(_node(values[root], wheres[root])) if root >= 0 else None
        return self.build([
            wrap(_node(values[r], wheres[r])) if r.__class__ is int
            else r.get(tensors) for r in self.results])  # type: ignore[union-attr]

    def _settle(self) -> None:
        """After runs 1, 2, 4, 8, …: take down what rests, so that later runs need not look."""
        self._runs += 1
        if self._runs & (self._runs - 1):
            return
        for s in self.state:
            seen = id(s.tensor._node), id(s.tensor._node.value)
            s.moves += self._runs > 1 and seen != s.seen
            s.seen = seen
        constants = {i: c for i, c in enumerate(self.constants) if c is not None}
        self.settled = settled(self.program, self.state, constants,
                               [place for place, _ in self.arguments])


def _exclusive(node: Node, inputs: list[Data], place: int) -> bool:
    """Whether only the tensor itself holds its value, so that it may be overwritten."""
    data = inputs[place]
    return (getrefcount(node) <= _NODE_REFERENCES and node.value is data
            and getrefcount(data) <= _DATA_REFERENCES
            and getrefcount(data.buffer) <= _BUFFER_REFERENCES)


# What getrefcount gives inside `_exclusive` when nobody else looks: the tensor's slot, our
# parameter and getrefcount's own; the node's, the list's, the local and getrefcount's own; for the
# buffer its Data and getrefcount's own.
_NODE_REFERENCES, _DATA_REFERENCES, _BUFFER_REFERENCES = 3, 4, 2


def _node(value: Data, where: Where) -> Node:
    """A node that holds a value; with a line at hand nobody looks for the user's."""
    shape, dtype = value.shape, value.dtype
    node = Node(BUFFER, (), {"shape": shape, "dtype": dtype}, shape, dtype, False, where)
    node.value = value
    return node


def _assign(t: Tensor, value: Data, where: Where) -> None:
    """Give a root tensor a new value."""
    node = t._node
    if t._base is None and getrefcount(node) <= _NODE_REFERENCES and not node.inputs \
            and (node.op is BUFFER or node.op is LEAF) and node.dtype is value.dtype \
            and node.shape == value.shape and node.value is not None:
        node.value = value  # nobody else sees this node: the same as a new one
        t._version += 1
        return
    node = _node(value, where)
    if t._base.__class__ is Shared:
        with no_grad():
            t._write(node)
        return
    if t._leaf:
        node = leaf_node(node, t)
        node.inputs = ()
    else:
        node.owner = ref(t)
    t._node = node
    t._version += 1


def left_behind(born: int, young: bool = False) -> Node | None:
    """The node of a tensor that a trace made, that outlives it, and that is not a constant.

    Args:
        born: the version of the first tensor of the trace.
        young: the collector did not run since then, so that its youngest part holds them all.
    """
    kinds = _kinds(Tensor)
    for part in (0 if young else None, None):
        found = [o._node for o in gc.get_objects(part) if type(o) in kinds
                 and _is_made(o) and root_of(o)._version >= born and _depends(o._node)]
        if not found:
            return None
        gc.collect()  # it may be part of a cycle that is not reachable any more
    return found[0]


def _kinds(kind: type) -> set[type]:
    """A class and all that inherit from it."""
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


def _is_made(t: Tensor) -> bool:
    """Whether a tensor has all its fields; another thread may be in the middle of making it."""
    return hasattr(t, "_version") and hasattr(t, "_node") and hasattr(t, "_base")


def _depends(node: Node) -> bool:
    """Whether a node needs an argument or a tensor that may be written."""
    return any(n.op is INPUT or n.value is not None and n.owner is not None
               and n.owner() is not None and n is not node
               for n in toposort([node], stop=lambda n: n.value is not None))
