"""What a trace of a compiled function takes for granted, and how one call finds out. Layer 4.

The one idea: a trace reads Python objects once. Those that a program's meaning hangs on are kept
with what they were: the `training` flag of every module called, which tensors are its parameters,
the numbers and objects behind the function's global and closure names, which tensors have a
gradient. If one has changed, the function is traced anew; so a result never comes from another
model's program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from types import FunctionType, ModuleType
from typing import Any
from weakref import ref

from gossamer.core.references import getrefcount
from gossamer.ir.node import Node
from gossamer.realize import realize
from gossamer.tensor import DETACH, Tensor, leaf_node
from gossamer.unchanged import Entry, content, entries_of
from gossamer.watched import MODULE_TABLES, names_of

__all__ = ["GradientGuard", "LeafGuard", "adopt", "modules_seen", "names_read", "root_of",
           "settle_reachable", "still"]

_SEARCHED = 10_000  # entries of a container that is searched for tensors


def root_of(t: Tensor) -> Tensor:
    """The tensor whose storage `t` shows."""
    while isinstance(t._base, Tensor):
        t = t._base
    return t


def names_read(functions: Iterable[FunctionType]) -> list[Entry]:
    """The values of the global and closure names that a function reads, as they are now."""
    found: list[Entry] = []
    for f in functions:
        found += [Entry("cell", c, None, content(c)) for c in f.__closure__ or ()]
        scope = f.__globals__
        found += [Entry("item", scope, n, scope[n]) for n in names_of(f) if n in scope]
    return found


def still(entries: Sequence[Entry], live: Collection[tuple[int, Any]] = ()) -> list[Entry]:
    """Entries that are what they were before the trace, without those that the program reads anew.

    What the function changes while it is traced is left out: a counter kept so counts traces, not
    calls, and must not cause them. A container whose size is watched counts as a whole.

    Args:
        live: (id of the table, key) of numbers that the program reads at every run.
    """
    whole = {id(e.container) for e in entries if e.kind == "size"}
    changed = [e for e in entries if not e.held()]
    lost = {id(e.container) for e in changed} & whole
    gone = {(id(e.container), e.key) for e in changed} | set(live)
    return [e for e in entries
            if id(e.container) not in lost and (id(e.container), e.key) not in gone]


def modules_seen(called: Sequence[tuple[Any, bool]], reached: Iterable[Any],
                 used: set[int]) -> list[Entry]:
    """The mode of modules, and the tensors and modules that they hold.

    Args:
        called: (module, training) of each module called.
        reached: further modules, of which only what the program uses counts.
        used: ids of the tensors that the program reads or writes.
    """
    found: list[Entry] = []
    for module, training in called:
        own = module.__dict__
        found.append(Entry("item", own, "training", training) if "training" in own
                     else Entry("attribute", module, "training", training))
    own_ids = {id(m) for m, _ in called}
    for module in [*(m for m, _ in called), *(m for m in reached if id(m) not in own_ids)]:
        for table in (module.__dict__.get(t) for t in MODULE_TABLES):
            if table is None:
                continue
            if id(module) in own_ids:
                found += entries_of(table)
            else:
                found += [Entry("item", table, k, v) for k, v in table.items() if id(v) in used]
    return found


class LeafGuard:
    """Tensors that modules hold, and whether they learn.

    Args:
        entries: of modules.
        known: ids of tensors that are looked at anyway.
    """

    def __init__(self, entries: Iterable[Entry], known: set[int]) -> None:
        tensors = {id(e.value): e.value for e in entries
                   if isinstance(e.value, Tensor) and id(e.value) not in known}
        self.leaves = [(t, t._leaf) for t in tensors.values()]

    def holds(self) -> bool:
        for t, leaf in self.leaves:  # noqa: SIM110
            if t._leaf is not leaf:
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


def settle_reachable(captured: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Compute the tensors that a function is likely to use, so that the trace meets values;
    views of them will read their roots, so that the program does too.

    Args:
        captured: what its names stand for, and the object that it is a method of.
        tensors: its arguments.

    Returns:
        The modules found.
    """
    found: list[Tensor] = list(tensors)
    modules: dict[int, Any] = {}
    seen: set[int] = set()
    stack: list[Any] = list(captured)
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
        adopt(t)
    roots = {id(root_of(t)): root_of(t) for t in found if not t.is_meta}
    for root in roots.values():
        root._version += 1
    realize([t._read() for t in roots.values()])
    return list(modules.values())


def adopt(t: Tensor) -> None:
    """Make a detached view the root of its storage if nobody else holds the old root.

    `Parameter(x)` and `t.data = x` share the storage of x; when x is gone, reading and writing need
    no detour.
    """
    base = t._base
    if not isinstance(base, Tensor) or base._base is not None:
        return
    # The view's slot, the local and getrefcount's own argument.
    if getrefcount(base) > 3 or any(op is not DETACH for op, _ in t._path):
        return
    node: Node = base._node
    t._base, t._version = None, base._version
    t._node = leaf_node(node, t) if t._leaf else node
    t._node.owner = ref(t)
