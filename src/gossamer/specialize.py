"""One trace of a compiled function: its program, its state, and what to do around a run. Layer 4.

The one idea: after a trace everything is known: which inputs come from arguments, which from
tensors found in closures, and where each result goes. A run reads the inputs, makes one native
call, and hands the results out; a state that nobody else looks at is written over its old value.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from gossamer.core.dtype import DType
from gossamer.core.errors import TraceError
from gossamer.guards import GradientGuard, ModuleGuard, NameGuard, root_of, settle_reachable
from gossamer.ir.node import STATE, Node, toposort, user_line
from gossamer.ir.op import BUFFER, INPUT
from gossamer.modes import MODES, no_grad
from gossamer.realize import realize
from gossamer.runtime.data import Data
from gossamer.runtime.engine import Canonical
from gossamer.runtime.plans import specialized_plan
from gossamer.runtime.program import Program
from gossamer.structure import flatten, unflatten
from gossamer.tensor import Shared, Tensor, leaf_node, view, wrap
from gossamer.tracing import RunPlainly, Trace
from gossamer.watched import ValueGuard, captured_by, functions_behind, read_by

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
    """A tensor found in a closure: where its value goes in and comes out."""

    def __init__(self, tensor: Tensor, node: Node) -> None:
        self.tensor = tensor
        self.shape, self.dtype, self.leaf = node.shape, node.dtype, tensor._leaf
        self.root = -1  # number of the root that replaces it, if written
        self.shareable = False  # whether the program may write the new value over the old one


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
        self.held = spec  # objects count by identity: they must not die and be replaced
        self.inline = False
        self.state: list[_State] = []
        functions = functions_behind(function)
        captured = [getattr(function, "__self__", None), function,
                    *(x for f in functions for x in captured_by(f))]
        names = NameGuard(functions)
        modules = settle_reachable(captured, tensors)
        values = ValueGuard(functions_behind(function, modules), captured, modules)
        traced = _Traced(function, spec, tensors)
        pending = traced.pending()
        if pending:  # state that the search did not find; now it has values
            realize(pending)
            traced = _Traced(function, spec, tensors)
        names.forget_changes()
        values.forget({x for get in traced.trace.scalars.values() for x in read_by(get)})
        self.born = traced.trace.born
        self.changed = {id(t) for t, _, _ in traced.written}
        self.inline = traced.eager
        used: set[int] = set()
        if not self.inline:
            self._plan(traced)
            used = {id(s.tensor) for s in self.state} | self.changed
        self.guards: list[NameGuard | ValueGuard | ModuleGuard | GradientGuard] = [
            names, values, ModuleGuard(list(traced.trace.modules.values()), modules, used),
            GradientGuard([(t, g) for t, g in traced.trace.old_grads.values()
                           if not traced.trace.made(t)], used)]

    def _plan(self, traced: _Traced) -> None:
        """Decide what is a result of the program, and compile it."""
        self.out_spec = traced.out_spec
        self.results: list[_Alias | int] = []
        roots: list[Node] = []
        for t, node in zip(traced.outs, traced.nodes, strict=True):
            alias = self._alias(traced, t)
            self.results.append(len(roots) if alias is None else alias)
            if alias is None:
                roots.append(node)
        first = len(roots)
        self.grads = [(t, g is not None) for t, g in traced.grads]
        self.first_grad = first
        first += len(traced.grad_nodes)
        self.writes = [(t, first + i) for i, (t, _, _) in enumerate(traced.written)]
        roots += [*traced.grad_nodes, *(new for _, _, new in traced.written)]
        graph = Canonical(roots)
        self.nodes = len(graph.order)
        self.sources = [self._source(node, traced.trace) for node in graph.leaves]
        self.state = [s for s in self.sources if isinstance(s, _State)]
        numbers = {id(root_of(s.tensor)): i for i, s in enumerate(self.sources)
                   if isinstance(s, _State)}
        donate = [(root, numbers[id(t)]) for t, root in self.writes if id(t) in numbers]
        compiled = specialized_plan(graph, donate)
        self.program = Program(compiled, [(r.shape, r.dtype) for r in roots])
        for root, number in donate:
            state = self.sources[number]
            state.root = root
            state.shareable = (root, number) in compiled.shared

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
        """The data that a run would read, for `explain`; nothing is changed."""
        found: list[Data] = []
        for source in self.sources:
            if isinstance(source, _State):
                source = source.tensor._value()
            elif isinstance(source, int):
                source = tensors[source]._value()
            elif isinstance(source, _Scalar):
                source = source.refresh()
            found.append(source)
        return found

    # calling ----------------------------------------------------------------------------------
    def holds(self) -> bool:
        """Whether what the trace took for granted is still so."""
        for guard in self.guards:
            if not guard.holds():
                return False
        for s in self.state:
            node = s.tensor._node
            if node.shape != s.shape or node.dtype is not s.dtype or s.tensor._leaf is not s.leaf:
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
        inputs: list[Data] = []
        reuse: dict[int, Any] = {}
        kept: set[int] = set()
        data = None
        for source in self.sources:
            if source.__class__ is _State:
                node = source.tensor._read()
                if node.value is None:
                    realize([node])
                data = node.value
                if source.shareable and source.tensor._base is None and _exclusive(node, data):
                    reuse[source.root] = data.buffer
                    kept.add(id(source.tensor))
            elif source.__class__ is int:
                data = tensors[source]._value()
            elif source.__class__ is _Scalar:
                data = source.refresh()
            else:
                data = source
            inputs.append(data)
        del data
        values = self.program.run(inputs, (), reuse)
        for t, root in self.writes:
            if id(t) in kept:
                t._version += 1
            else:
                _assign(t, values[root])
        number = self.first_grad
        for t, present in self.grads:
            t._grad = wrap(_node(values[number])) if present else None
            number += present
        return unflatten(self.out_spec, [
            wrap(_node(values[r])) if r.__class__ is int else r.get(tensors)  # type: ignore[union-attr]
            for r in self.results])


def _exclusive(node: Node, data: Data) -> bool:
    """Whether only the tensor itself holds its value, so that it may be overwritten."""
    return (sys.getrefcount(node) <= _NODE_REFERENCES
            and sys.getrefcount(data) <= _DATA_REFERENCES
            and sys.getrefcount(data.buffer) <= _BUFFER_REFERENCES)


# What getrefcount gives inside `_exclusive` when nobody else looks: the tensor's slot, the local in
# `run`, our parameter and getrefcount's own; for the buffer its Data and getrefcount's own.
_NODE_REFERENCES, _DATA_REFERENCES, _BUFFER_REFERENCES = 4, 4, 2


def _node(value: Data) -> Node:
    node = BUFFER(shape=value.shape, dtype=value.dtype)
    node.value = value
    return node


def _assign(t: Tensor, value: Data) -> None:
    """Give a root tensor a new value."""
    node = _node(value)
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


def left_behind(born: int) -> Node | None:
    """The node of a tensor that a trace made, that outlives it, and that is not a constant."""
    for _ in range(2):
        found = [o._node for o in gc.get_objects() if issubclass(type(o), Tensor)
                 and _is_made(o) and root_of(o)._version >= born and _depends(o._node)]
        if not found:
            return None
        gc.collect()  # it may be part of a cycle that is not reachable any more
    return found[0]


def _is_made(t: Tensor) -> bool:
    """Whether a tensor has all its fields; another thread may be in the middle of making it."""
    return hasattr(t, "_version") and hasattr(t, "_node") and hasattr(t, "_base")


def _depends(node: Node) -> bool:
    """Whether a node needs an argument or a tensor that may be written."""
    return any(n.op is INPUT or n.value is not None and n.owner is not None
               and n.owner() is not None and n is not node
               for n in toposort([node], stop=lambda n: n.value is not None))
