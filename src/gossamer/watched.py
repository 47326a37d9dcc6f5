"""Python values that a traced function reads from objects: a change means another trace. Layer 4.

The one idea: a program has the Python numbers, flags and objects of its trace inside. What the
function can reach (its `self`, what its names stand for, the modules it called, its optimizers) is
compared before every run, as far as its code mentions the attribute; what the function changes
itself is left out, and so are numbers that the program reads anew at each run (`runtime_scalar`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from gossamer.tensor import Tensor
from gossamer.unchanged import PLAIN, Entry, content, entries_of

__all__ = ["MODULE_TABLES", "captured_by", "functions_behind", "names_of", "read_by",
           "values_of"]

_DEEP = 3  # steps from a name: self.config.model.width
_WIDE = 64  # entries of a dict or a list that are compared
_FUNCTIONS = 256  # that are followed
MODULE_TABLES = ("_parameters", "_buffers", "_modules")  # guards.modules_seen knows them
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_RATES = ("lr", "initial_lr")  # a schedule changes them at every step, used or not


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions and comprehensions inside."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes_of(inner)


def names_of(function: FunctionType) -> set[str]:
    """Global names and attributes that a function mentions."""
    return {n for code in codes_of(function.__code__) for n in code.co_names}


def captured_by(function: FunctionType) -> list[Any]:
    """What the closure and global names of a function stand for."""
    scope = function.__globals__
    return [*(content(c) for c in function.__closure__ or ()),
            *(scope[n] for n in names_of(function) if n in scope)]


def functions_behind(function: Any, objects: Iterable[Any] = ()) -> list[FunctionType]:
    """The Python functions that a call may run: the function itself, those that decorators and
    names hold, and methods of what it can reach by name. The library's own are not followed.

    Args:
        function: any callable.
        objects: further objects whose methods count, modules for example.
    """
    found: dict[FunctionType, None] = {}
    names: set[str] = {"__call__"}
    kinds: set[type] = {type(x) for x in objects}
    stack = [function, *(getattr(k, "forward", None) for k in kinds)]
    while stack and len(found) < _FUNCTIONS:
        x = stack.pop()
        owner = getattr(x, "__self__", None)
        if owner is not None and not isinstance(owner, (type, ModuleType)):
            stack += _methods({type(owner)} - kinds, names)
            kinds.add(type(owner))
        x = getattr(x, "__func__", x)
        if isinstance(x, functools.partial):
            stack.append(x.func)
        elif not isinstance(x, FunctionType):
            if hasattr(x, "__dict__") and not isinstance(x, (type, ModuleType, Tensor)):
                if type(x) not in kinds:
                    stack += _methods([type(x)], names)
                    kinds.add(type(x))
                if isinstance(getattr(x, "__wrapped__", None), FunctionType):
                    stack.append(x.__wrapped__)
        elif x not in found and (x is function or not x.__module__.startswith("gossamer.")):
            found[x] = None
            stack += captured_by(x)
            new = names_of(x) - names
            names |= new
            stack += _methods(kinds, new)
    return list(found)


def _methods(kinds: Iterable[type], names: Collection[str]) -> list[Any]:
    """Methods and properties with one of those names."""
    found = [getattr(k, n, None) for k in kinds for n in names
             if not k.__module__.startswith("gossamer.")]
    return [f.fget if isinstance(f, property) else f for f in found
            if isinstance(f, (FunctionType, property))]


def read_by(get: Any) -> set[tuple[int, str]]:
    """(id of the table, key) of what a getter of a runtime scalar may read."""
    if not isinstance(get, FunctionType):
        return set()
    things = captured_by(get)
    keys = {x for x in (*things, *get.__code__.co_consts) if isinstance(x, str)} | names_of(get)
    tables = [x if isinstance(x, dict) else getattr(x, "__dict__", {}) for x in things]
    return {(id(t), k) for t in tables for k in keys}


@functools.cache
def _attributes(kind: Any) -> frozenset[str]:
    """Names that the methods of a module class mention, from `forward` on."""
    names: set[str] = set()
    stack = ["forward"]
    while stack:
        method = getattr(kind, stack.pop(), None)
        if isinstance(method, FunctionType):
            new = names_of(method) - names
            names |= new
            stack += new
    return frozenset(names)


def values_of(functions: Iterable[FunctionType], captured: Iterable[Any],
              modules: Iterable[Any]) -> list[Entry]:
    """What a function may read, as it is now.

    Args:
        functions: what a call may run.
        captured: what its names stand for, and its `self`.
        modules: modules in reach.
    """
    found = _Values({n for f in functions for n in names_of(f)})
    for module in modules:
        found.module(module)
    for x in captured:
        found.visit(x, _DEEP)
    return found.entries


class _Values:
    """Collects entries of the objects that it is led to, as far as `names` mention them."""

    def __init__(self, names: set[str]) -> None:
        self.entries: list[Entry] = []
        self._seen: set[int] = set()
        self.names = names

    def module(self, module: Any) -> None:
        kind: Any = type(module)
        own, names = module.__dict__, self.names | _attributes(kind)
        self._items(own, (k for k in own if k in names and k not in MODULE_TABLES), _DEEP)
        for table in _HOOKS:
            hooks = own.get(table)
            if hooks is not None:
                self.entries += entries_of(hooks)

    def _items(self, table: dict[str, Any], keys: Iterable[str], depth: int) -> None:
        if id(table) in self._seen:
            return
        self._seen.add(id(table))
        for key in list(keys):
            value = table[key]
            self.entries.append(Entry("item", table, key, value))
            if depth:
                self.visit(value, depth - 1)

    def visit(self, x: Any, depth: int) -> None:
        """Take down what `x` holds."""
        if isinstance(x, (*PLAIN, Tensor, type, FunctionType, ModuleType)):
            return
        if isinstance(x, dict):
            if len(x) <= _WIDE:
                self._items(x, x, depth)
        elif isinstance(x, (list, tuple)):
            if len(x) <= _WIDE:
                if isinstance(x, list) and id(x) not in self._seen:
                    self._seen.add(id(x))
                    self.entries += entries_of(x)
                for y in x if depth else ():
                    self.visit(y, depth - 1)
        elif hasattr(x, "param_groups"):
            self._optimizer(x)
        elif callable(getattr(x, "parameters", None)) and hasattr(x, "_modules"):
            return  # a module: among `modules` if it can be called
        elif hasattr(x, "__dict__"):
            own = x.__dict__
            self._items(own, (k for k in own if k in self.names), depth)

    def _optimizer(self, optimizer: Any) -> None:
        self.entries += entries_of(optimizer.param_groups)
        for group in optimizer.param_groups:
            self._items(group, (k for k in group if k not in _RATES and k[0] != "_"), 0)
            self.entries += entries_of(group["params"])
