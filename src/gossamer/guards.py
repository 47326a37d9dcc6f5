"""What a trace of a compiled function takes for granted, and how one call finds out. Layer 4.

The one idea: a trace reads Python objects once. Those that a program's meaning hangs on are kept
with what they were: the `training` flag of every module called, which tensors are its parameters,
the numbers and objects behind the function's global and closure names, which tensors have a
gradient. If one has changed, the function is traced anew; so a result never comes from another
model's program.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from types import CellType, FunctionType, ModuleType
from typing import Any
from weakref import ref

from gossamer.ir.node import Node
from gossamer.realize import realize
from gossamer.tensor import DETACH, Tensor, leaf_node

__all__ = ["GradientGuard", "ModuleGuard", "NameGuard", "root_of", "settle_reachable"]

_SEARCHED = 10_000  # entries of a container that is searched for tensors
_PLAIN = (bool, int, float, str, bytes, type(None))
_MISSING = object()


def root_of(t: Tensor) -> Tensor:
    """The tensor whose storage `t` shows."""
    while isinstance(t._base, Tensor):
        t = t._base
    return t


def _same(a: Any, b: Any) -> bool:
    """The same object, or equal plain values of one type."""
    return a is b or (isinstance(b, _PLAIN) and type(a) is type(b) and a == b)


def _functions(function: Any) -> list[FunctionType]:
    """The Python functions behind a callable: itself, and those that decorators hold."""
    found: list[FunctionType] = []
    stack = [function]
    while stack and len(found) < 16:
        x = stack.pop()
        x = getattr(x, "__func__", x)
        if isinstance(x, functools.partial):
            stack.append(x.func)
        elif isinstance(x, FunctionType) and x not in found:
            found.append(x)
            stack += [_content(c) for c in x.__closure__ or ()]
    return found


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING


class NameGuard:
    """The values of the global and closure names that a function reads.

    Names that the function itself rebinds while it is traced are left out: a counter kept so counts
    traces, not calls, and must not cause them.
    """

    def __init__(self, function: Any) -> None:
        self.cells: list[tuple[CellType, Any]] = []
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        for f in _functions(function):
            self.cells += [(c, _content(c)) for c in f.__closure__ or ()]
            self.names += [(f.__globals__, n, f.__globals__[n]) for n in f.__code__.co_names
                           if n in f.__globals__]

    def forget_changes(self) -> None:
        """Leave out what is not what it was."""
        self.cells = [(c, v) for c, v in self.cells if _same(_content(c), v)]
        self.names = [(d, n, v) for d, n, v in self.names if _same(d.get(n, _MISSING), v)]

    def holds(self) -> bool:
        for names, name, value in self.names:
            now = names.get(name, _MISSING)
            if now is not value and not _same(now, value):
                return False
        for cell, value in self.cells:
            now = _content(cell)
            if now is not value and not _same(now, value):
                return False
        return True


class ModuleGuard:
    """Modules that were called: their mode, and the tensors and modules that they hold.

    Args:
        called: (module, training) of each module called.
        reached: further modules, of which only what the program uses counts.
        used: ids of the tensors that the program reads or writes.
    """

    def __init__(self, called: Sequence[tuple[Any, bool]], reached: Iterable[Any],
                 used: set[int]) -> None:
        self.called = list(called)
        self.entries: list[tuple[dict[str, Any], str, Any]] = []
        self.sizes: list[tuple[dict[str, Any], int]] = []
        own = {id(m) for m, _ in called}
        for module in [*(m for m, _ in called), *(m for m in reached if id(m) not in own)]:
            tables = [module.__dict__.get(t) for t in ("_parameters", "_buffers", "_modules")]
            for table in (t for t in tables if t):
                if id(module) in own:
                    self.sizes.append((table, len(table)))
                self.entries += [(table, k, v) for k, v in table.items()
                                 if id(module) in own or id(v) in used]

    def holds(self) -> bool:
        for module, training in self.called:
            if module.training is not training:
                return False
        for table, size in self.sizes:
            if len(table) != size:
                return False
        for table, name, value in self.entries:  # noqa: SIM110  (a generator costs twice the time)
            if table.get(name) is not value:
                return False
        return True


class GradientGuard:
    """Gradients looked at: the very tensor if the program uses it, else whether there is one."""

    def __init__(self, looked: Iterable[tuple[Tensor, Tensor | None]], used: set[int]) -> None:
        self.entries = [(t, grad, id(grad) in used) for t, grad in looked]

    def holds(self) -> bool:
        for t, grad, exact in self.entries:
            if (t._grad is not grad) if exact else ((t._grad is None) is not (grad is None)):
                return False
        return True


def settle_reachable(function: Any, tensors: Sequence[Tensor]) -> list[Any]:
    """Compute the tensors that a function is likely to use, so that the trace meets values;
    views of them will read their roots, so that the program does too.

    Returns:
        The modules found.
    """
    found: list[Tensor] = list(tensors)
    modules: dict[int, Any] = {}
    seen: set[int] = set()
    stack: list[Any] = [getattr(function, "__self__", None), function, *_captured(function)]
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
            modules.update((id(m), m) for m in x.modules())
        elif not isinstance(x, (ModuleType, FunctionType)):  # a trainer that holds model and rest
            stack.extend(getattr(x, "__dict__", {}).values())
    for t in found:
        _adopt(t)
    roots = {id(root_of(t)): root_of(t) for t in found if not t.is_meta}
    for root in roots.values():
        root._version += 1
    realize([t._read() for t in roots.values()])
    return list(modules.values())


def _captured(function: Any) -> list[Any]:
    """What the global and closure names of a callable stand for."""
    found: list[Any] = []
    for f in _functions(function):
        found += [_content(c) for c in f.__closure__ or ()]
        found += [f.__globals__[n] for n in f.__code__.co_names if n in f.__globals__]
    return found


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
    node: Node = base._node
    t._base, t._version = None, base._version
    t._node = leaf_node(node, t) if t._leaf else node
    t._node.owner = ref(t)
