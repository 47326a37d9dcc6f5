"""`gs.compile`: a whole function, with backward pass and optimizer, as one native call. Layer 4.

The one idea: trace once per signature (shapes, dtypes, Python constants), then call the program.
What the trace found in closures (parameters, optimizer state, generators, running statistics)
becomes inputs and outputs of the program; state that is replaced is updated in place where nobody
else looks at it. Learning rates are runtime scalars. A retrace is visible with `verbose=True`, and
bounded.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

import numpy as np

from gossamer.core.dtype import DType
from gossamer.core.errors import TraceError
from gossamer.creation import tensor
from gossamer.ir.node import STATE, Node
from gossamer.ir.op import BUFFER, INPUT
from gossamer.modes import MODES
from gossamer.realize import realize
from gossamer.runtime.data import Data
from gossamer.runtime.engine import Canonical
from gossamer.runtime.plans import specialized_plan
from gossamer.runtime.program import Program
from gossamer.runtime.threads import get_num_threads
from gossamer.tensor import DETACH, Tensor, leaf_node, wrap
from gossamer.tracing import Trace

__all__ = ["CompiledFunction", "compile"]

_SEARCHED = 10_000  # entries of a container that is searched for tensors
_MAX_TRACES = 32  # of one function; beyond that something in its signature changes on every call


class _Placeholder:
    """Stands for tensor number `index` in a flattened structure."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _flatten(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of nested tuples, lists and dicts with tensors replaced by placeholders."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Placeholder(len(tensors) - 1)
    if isinstance(value, np.ndarray):
        tensors.append(tensor(value))
        return _Placeholder(len(tensors) - 1)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_flatten(v, tensors) for v in value])
    if isinstance(value, (tuple, list)):
        return type(value)([_flatten(v, tensors) for v in value])
    if isinstance(value, dict):
        return {k: _flatten(v, tensors) for k, v in value.items()}
    return value


def _unflatten(spec: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(spec, _Placeholder):
        return tensors[spec.index]
    if isinstance(spec, tuple) and hasattr(spec, "_fields"):
        return type(spec)(*[_unflatten(v, tensors) for v in spec])
    if isinstance(spec, (tuple, list)):
        return type(spec)([_unflatten(v, tensors) for v in spec])
    if isinstance(spec, dict):
        return {k: _unflatten(v, tensors) for k, v in spec.items()}
    return spec


def _key(spec: Any) -> Any:
    """A hashable form of a structure; other objects count by identity."""
    if isinstance(spec, _Placeholder):
        return ("tensor", spec.index)
    if isinstance(spec, (tuple, list)):
        return (type(spec).__name__, *[_key(v) for v in spec])
    if isinstance(spec, dict):
        return ("dict", *[(k, _key(v)) for k, v in spec.items()])
    if spec is None or isinstance(spec, (bool, int, float, str, bytes)):
        return (type(spec).__name__, spec)
    return ("object", id(spec))


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
        self.shape, self.dtype = node.shape, node.dtype
        self.root = -1  # number of the root that replaces it, if written
        self.shareable = False  # whether the program may write the new value over the old one


class _Specialization:
    """One trace of a function: its guards, its program, and what to do around a run."""

    def __init__(self, owner: CompiledFunction, spec: Any, tensors: list[Tensor]) -> None:
        self.reusable = True
        self.inline = False
        start = time.perf_counter()
        trace = Trace()
        arguments = [self._argument(trace, t) for t in tensors]
        result = self._trace(owner.function, trace, _unflatten(spec, arguments))
        outs: list[Tensor] = []
        self.out_spec = _flatten(result, outs)
        out_nodes = [t._read() for t in outs]
        alive = [(t, old, t._read()) for t, old in
                 ((r(), old) for r, old in trace.written.values()) if t is not None]
        grads = [(t, t._grad) for t in trace.set_grads.values()]
        # Gradients that the trace made and then changed (clipping) leave as gradients.
        made = {id(g) for _, g in grads}
        alive = [(t, old, new) for t, old, new in alive
                 if t._base is None and not any(t is a for a in arguments)
                 and not (id(t) in made and old.value is None)]
        self.argument_writes = any(id(a) in trace.written for a in arguments)
        grad_nodes = [g._read() for _, g in grads if g is not None]
        _restore(trace)
        self.guards: list[tuple[Tensor, Tensor | None, bool]] = []
        self.modules = list(trace.modules.values())
        trained = bool(trace.set_grads or alive)
        if self.argument_writes or (not trained and any(n.grad for n in out_nodes)):
            self.inline = True  # its result is differentiated outside: stay lazy, one graph
            return
        roots = [*out_nodes, *grad_nodes, *(new for _, _, new in alive)]
        self.reusable = all(old.value is not None for _, old, _ in alive)
        self._build(trace, roots, len(arguments), alive)
        self.count = len(out_nodes)
        self.grads = grads
        self.writes = [(t, len(out_nodes) + len(grad_nodes) + i)
                       for i, (t, _, _) in enumerate(alive)]
        if owner.verbose:
            print(f"gossamer.compile: traced {owner.name} in {time.perf_counter() - start:.2f} s: "
                  f"{self.nodes} nodes, {len(self.program.compiled.calls)} kernel calls, "
                  f"{self.program.arena_bytes / 1e6:.1f} MB of temporaries", file=sys.stderr)

    def _argument(self, trace: Trace, t: Tensor) -> Tensor:
        node = trace.argument(t._node.shape, t._node.dtype)
        made = wrap(node)
        if t._leaf:
            made._leaf = True
            made._node = leaf_node(node, made)
        return made

    def _trace(self, function: Callable[..., Any], trace: Trace, call: Any) -> Any:
        args, kwargs = call
        MODES.tracing = trace
        try:
            return function(*args, **kwargs)
        except BaseException:
            MODES.tracing = None
            _restore(trace)
            raise
        finally:
            MODES.tracing = None

    def _build(self, trace: Trace, roots: list[Node], arguments: int,
               alive: list[tuple[Tensor, Node, Node]]) -> None:
        """Compile the graph, and note for each input where its data comes from."""
        graph = Canonical(roots)
        self.nodes = len(graph.order)
        order = {id(n): i for i, n in enumerate(trace.inputs)}
        self.sources: list[Any] = []
        for node in graph.leaves:
            owner = node.owner() if node.owner is not None else None
            if node.op is INPUT:
                number = order.get(id(node))
                if number is None:
                    raise TraceError("compile: the function uses a tensor that another traced "
                                     "call left behind. Return it from that call instead.")
                get = trace.scalars.get(id(node))
                self.sources.append(_Scalar(get, node.dtype) if get is not None else number)
            elif owner is not None and owner._read().value is node.value:
                self.sources.append(_State(owner, node))
            else:
                self.sources.append(node.value)
        numbers = {id(s.tensor): i for i, s in enumerate(self.sources) if isinstance(s, _State)}
        first = len(roots) - len(alive)
        donate = [(first + i, numbers[id(t)]) for i, (t, _, _) in enumerate(alive)
                  if id(t) in numbers]
        compiled = specialized_plan(graph, donate)
        self.program = Program(compiled, [(r.shape, r.dtype) for r in roots],)
        # A gradient that was only looked for may be another one next time.
        self.guards = [(t, grad, id(grad) in numbers or id(grad) in trace.written)
                       for t, grad in trace.old_grads.values()]
        for root, number in donate:
            state = self.sources[number]
            state.root = root
            state.shareable = (root, number) in compiled.shared

    # calling ----------------------------------------------------------------------------------
    def holds(self) -> bool:
        """Whether what the trace took for granted is still so."""
        for module, training in self.modules:
            if module.training is not training:
                return False
        for t, grad, exact in self.guards:
            if (t._grad is not grad) if exact else ((t._grad is None) is not (grad is None)):
                return False
        return all(not isinstance(s, _State) or (s.tensor._node.shape == s.shape
                                                 and s.tensor._node.dtype is s.dtype)
                   for s in getattr(self, "sources", ()))

    def run(self, tensors: list[Tensor]) -> Any:
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
                if source.shareable and _exclusive(node, data):
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
            if id(t) not in kept:
                _assign(t, values[root])
            t._version += 1
        number = self.count
        for t, grad in self.grads:
            if grad is None:
                t._grad = None
            else:
                t._grad = wrap(_node(values[number]))
                number += 1
        return _unflatten(self.out_spec, [wrap(_node(v)) for v in values[:self.count]])


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
    if t._leaf:
        node = leaf_node(node, t)
        node.inputs = ()
    else:
        node.owner = ref(t)
    t._node = node


def _restore(trace: Trace) -> None:
    """Undo what the trace did to tensors: it only watched."""
    for reference, old in trace.written.values():
        t = reference()
        if t is not None:
            t._node = old
            t._version += 1
    for t, grad in trace.first_grads.values():
        t._grad = grad


class CompiledFunction:
    """A function that runs as one native program per signature. Made by `compile`."""

    def __init__(self, function: Callable[..., Any], verbose: bool = False) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.verbose = verbose
        self.name = getattr(function, "__qualname__", type(function).__name__)
        self._traces: dict[Any, list[_Specialization]] = {}
        self.traced = 0  # how many traces were made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if MODES.tracing is not None:
            return self.function(*args, **kwargs)
        tensors: list[Tensor] = []
        spec = _flatten((args, kwargs), tensors)
        key = (_key(spec), tuple([(t._node.shape, t._node.dtype.name, t._leaf) for t in tensors]),
               STATE.grad_enabled, get_num_threads())
        known = self._traces.setdefault(key, [])
        for found in known:
            if found.holds():
                break
        else:
            found = self._new(spec, tensors)
            if found.reusable:
                known.append(found)
        if found.inline:
            return self.function(*args, **kwargs)
        return found.run(tensors)

    def _new(self, spec: Any, tensors: list[Tensor]) -> _Specialization:
        if self.traced >= _MAX_TRACES:
            raise TraceError(
                f"compile({self.name}): {self.traced} traces of one function; its signature "
                "changes on every call (a Python number that counts, a new shape each time). Pass "
                "numbers that change as tensors, pad to a few shapes, or call the function "
                "uncompiled.")
        _settle_reachable(self.function, tensors)
        self.traced += 1
        return _Specialization(self, spec, tensors)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def programs(self) -> list[Program]:
        """The compiled programs, for `explain` and tests."""
        return [t.program for ts in self._traces.values() for t in ts if not t.inline]


def _settle_reachable(function: Any, tensors: Sequence[Tensor]) -> None:
    """Compute the tensors that a function is likely to use, so that the trace meets values."""
    found: list[Tensor] = list(tensors)
    seen: set[int] = set()
    code = getattr(function, "__code__", None)
    names = getattr(function, "__globals__", {})
    stack = [getattr(function, "__self__", None), function]
    stack += [c.cell_contents for c in getattr(function, "__closure__", None) or ()
              if _filled(c)]
    stack += [names[n] for n in (code.co_names if code else ()) if n in names]
    for _ in range(100_000):
        if not stack:
            break
        x = stack.pop()
        if id(x) in seen or isinstance(x, type):
            continue
        seen.add(id(x))
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple, dict)):
            if len(x) <= _SEARCHED:  # parameters, states, modules; not somebody's data set
                stack.extend(x.values() if isinstance(x, dict) else x)
        elif hasattr(x, "param_groups"):
            stack.extend([x.param_groups, x.state])
        elif callable(getattr(x, "parameters", None)) and callable(getattr(x, "buffers", None)):
            stack.extend([list(x.parameters()), list(x.buffers())])
        elif not isinstance(x, (ModuleType, FunctionType)):  # a trainer that holds model and rest
            stack.extend(getattr(x, "__dict__", {}).values())
    for t in found:
        _adopt(t)
    realize([t._read() for t in found if not t.is_meta])


def _adopt(t: Tensor) -> None:
    """Make a detached view the root of its storage if nobody else holds the old root.

    `Parameter(x)` shares the storage of x; when x is gone, reading and writing need no detour.
    """
    base = t._base
    if not isinstance(base, Tensor) or base._base is not None:
        return
    # The view's slot, the local and getrefcount's own argument.
    if sys.getrefcount(base) > 3 or any(op is not DETACH for op, _ in t._path):
        return
    node = base._node
    t._base, t._version = None, base._version
    t._node = leaf_node(node, t) if t._leaf else node
    t._node.owner = ref(t)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell
        return False


class _CompiledModule:
    """A module whose call is compiled; everything else is the module's own."""

    def __init__(self, module: Any, verbose: bool) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_call", CompiledFunction(module, verbose))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __repr__(self) -> str:
        return f"compiled {self._module!r}"


def compile(function: Any = None, *, verbose: bool = False, **_: Any) -> Any:
    """Compile a function or a module: traced once per signature, then one native call.

    Args:
        function: uses tensors as arguments or through closures; it may train: forward, backward,
            clipping, `optimizer.step()` and `zero_grad()` become one program. May be left out
            (`@compile(verbose=True)`).
        verbose: print each trace: its size, its time and its reason.
        **_: PyTorch's further options (`dynamic`, `fullgraph`, `mode`, `backend`) are accepted.

    Returns:
        A callable with the same arguments and results.

    Raises:
        TraceError: when called, if the function looks at a value (`if loss > 1:`, `.item()`).

    Cost: a trace and a compilation at the first call of each signature; about 20 us a call later.

    Example:
        >>> @gs.compile
        ... def step(x, y):
        ...     loss = F.mse_loss(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     return loss
    """
    if function is None:
        return functools.partial(compile, verbose=verbose)
    if callable(getattr(function, "parameters", None)) and hasattr(function, "training"):
        return _CompiledModule(function, verbose)
    return CompiledFunction(function, verbose)
