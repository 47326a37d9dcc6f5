"""From a graph to values: what happens when someone looks at a tensor. Layer 4.

`realize` gives every node in a list a `value`; the surface calls it and nothing else of the engine.
A value has one method, `array()`, its NumPy array (float32 for bfloat16). `settle` is the weaker
request "compute now what eager code would have by now", which does nothing while a function is
traced or batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gossamer.core.dtype import DType
from gossamer.core.errors import TraceError
from gossamer.devices import META
from gossamer.ir.node import Node, toposort, user_line
from gossamer.ir.op import INPUT
from gossamer.modes import MODES
from gossamer.runtime.data import Data
from gossamer.runtime.engine import evaluate

__all__ = ["from_array", "realize", "settle"]


def from_array(array: np.ndarray, dtype: DType) -> Data:
    """The value that shares the memory of `array`, an array of dtype's NumPy type, where kernels
    can work on it."""
    return Data.from_array(array, dtype)


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
    wanted = [n for n in nodes if n.value is None]
    if not wanted:
        return
    order = toposort(wanted, stop=_has_value)
    shown = {id(n): n for n in wanted}
    unknown = False
    for n in order:
        if n.value is None:
            if n.op is INPUT:
                unknown = True
            elif n.inputs and n.owner is not None and n.owner() is not None:
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
    for n in outputs:
        if not n.grad or n.op.name == "leaf":  # nobody will differentiate what computed it
            n.inputs = ()
            n.expansion = None


def settle(nodes: Sequence[Node]) -> None:
    """`realize`, where values can be known now; otherwise nothing."""
    if MODES.tracing is not None:
        return
    order = toposort(nodes, stop=_has_value)
    if _unknown(order) is None and not any(n.value is META for n in order):
        realize(nodes)
