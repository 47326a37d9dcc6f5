"""From a graph to values: what happens when someone looks at a tensor. Layer 4.

`realize` gives every node in a list a `value`; the surface calls it and nothing else of the engine.
A value has one method, `array()`, its NumPy array (float32 for bfloat16). `settle` is the weaker
request "compute now what eager code would have by now", which does nothing while a function is
traced or batched.

A value that nobody looks at is computed too once much waits behind it (`overdue`; the policy is
docs/design/0005-what-is-never-looked-at.md).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import ref

import numpy as np

from gossamer.core.dtype import DType
from gossamer.core.errors import TraceError
from gossamer.devices import META
from gossamer.ir.node import Node, toposort, user_line
from gossamer.ir.op import INPUT
from gossamer.modes import MODES
from gossamer.runtime.data import Data
from gossamer.runtime.engine import evaluate, evaluate_one

__all__ = ["PATIENCE", "from_array", "from_copy", "overdue", "realize", "settle"]

# How many nodes may be made from the oldest uncomputed one behind a tensor on, before the tensor
# counts as overdue: about 1 MB, and a program that compiles in a second. A training step of a
# GPT with 6 layers makes 1,500.
PATIENCE = 2048
# Overdue tensors that are computed together: the gradients of one backward pass share their work.
_TOGETHER = 256
_AT_ONCE = 1 << 20  # the age at which nothing is waited for; see `joins` of a node


class _Overdue(threading.local):
    def __init__(self) -> None:
        self.nodes: list[ref[Node]] = []

    def take(self) -> list[Node]:
        """Those that still wait and that a live Tensor shows."""
        alive = [n for n in (r() for r in self.nodes) if n is not None and n.value is None
                 and n.owner is not None and n.owner() is not None]
        self.nodes.clear()
        return alive


_OVERDUE = _Overdue()


def overdue(node: Node) -> None:
    """Note that much waits behind `node`, which a new tensor shows: it is computed at the next
    look at anything, or along with the next few such.

    Cost: 0.2 us.
    """
    _OVERDUE.nodes.append(ref(node))
    if len(_OVERDUE.nodes) >= _TOGETHER or node.born - node.oldest > _AT_ONCE:
        alive = _OVERDUE.take()
        if alive:
            settle(alive)


def from_array(array: np.ndarray, dtype: DType) -> Data:
    """The value that shares the memory of `array`, an array of dtype's NumPy type, where kernels
    can work on it."""
    return Data.from_array(array, dtype)


_ALIGNED = 1024  # bytes from which a copy is worth memory of our own, 1 us


def from_copy(array: np.ndarray, dtype: DType) -> Data:
    """The value with the elements of `array` as `dtype` (not bfloat16), in memory of its own."""
    if array.size * dtype.itemsize < _ALIGNED:
        return Data.from_array(np.array(array, dtype.numpy, order="C"), dtype)
    return Data.copy_of(array, dtype)


def _has_value(node: Node) -> bool:
    return node.value is not None


def _unknown(order: Sequence[Node]) -> Node | None:
    """A node without a value that nothing can compute: an input of a traced function."""
    return next((n for n in order if n.value is None and n.op is INPUT), None)


def realize(nodes: Sequence[Node]) -> None:
    """Compute `node.value` for each node, and for every node on the way that a live Tensor shows.

    Raises:
        TraceError: a value depends on an argument of a function under compile or vmap.
    """
    if len(nodes) == 1 and nodes[0].value is None and _alone(nodes[0]) and evaluate_one(nodes[0]):
        _cut(nodes)
        return
    wanted = [n for n in nodes if n.value is None]
    if not wanted:
        return
    if _OVERDUE.nodes and MODES.tracing is None:
        asked = {id(n) for n in wanted}
        wanted += [n for n in _OVERDUE.take() if id(n) not in asked]
    order = toposort(wanted, stop=_has_value)
    shown = {id(n): n for n in wanted}
    unknown = False
    for n in order:
        if n.value is None:
            if n.op is INPUT:
                unknown = True
            elif n.inputs and n.owner is not None and n.owner() is not None:
                n = _stored(n)
                if n.value is None:
                    shown[id(n)] = n
        elif n.value is META:
            META.array()
        elif MODES.tracing is not None:
            unknown = True
    if unknown:
        name, line = user_line(wanted[0])
        raise TraceError(f"reading a value while tracing ({name}:{line}): inside gs.compile or "
                         "gs.vmap the values of the arguments are not known. Use gs.where instead "
                         "of `if`, or move the reading out of the traced function.")
    outputs = list(shown.values())
    evaluate(outputs, order)
    _cut(outputs)


def _stored(node: Node) -> Node:
    """What is kept of a node on the way: of a broadcast what it repeats, since every kernel reads
    through one; stored, it would take its own size, be it larger than any memory."""
    while node.value is None and node.op.name == "broadcast":
        repeated = node.inputs[0]
        if repeated.value is None and not repeated.inputs:
            break  # a constant: it is part of kernels
        node = repeated
    return node


# Nodes that are no operator, or stand for a part of one.
_NO_OPERATOR = frozenset({"leaf", "wrapper"})


def _alone(node: Node) -> bool:
    """Whether a node is one operator and nothing else waits: `evaluate_one` may know it."""
    return (not _OVERDUE.nodes and MODES.tracing is None and node.op.kind not in _NO_OPERATOR
            and node.outs is None)


def _cut(computed: Sequence[Node]) -> None:
    """Let go of the graphs behind values, where nobody will differentiate what computed them."""
    for n in computed:
        if not n.grad or n.op.name == "leaf":
            n.inputs = ()
            n.expansion = None


def settle(nodes: Sequence[Node]) -> None:
    """`realize`, where values can be known now; otherwise nothing."""
    if MODES.tracing is not None:
        return
    order = toposort(nodes, stop=_has_value)
    if _unknown(order) is None and not any(n.value is META for n in order):
        realize(nodes)
