"""The slow twin: evaluates a graph with the NumPy reference of every operator. Layer 3.

Nothing is fused, reused or reordered: one operator, one array. A composite without a reference of
its own is evaluated through its body. bfloat16 values are float32 arrays, rounded after every
operator. Buffers give their elements by `node.value.array()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gossamer.compile.expand import expansion
from gossamer.core.dtype import DType, bfloat16, round_to_bfloat16
from gossamer.core.errors import TraceError
from gossamer.ir.node import Node, user_line
from gossamer.ir.op import PICK

__all__ = ["evaluate"]


def _typed(value: Any, dtype: DType) -> np.ndarray:
    """`value` as an array of the dtype: rounded, as storing it would round."""
    array = np.asarray(value)
    if array.dtype != dtype.numpy:
        array = array.astype(dtype.numpy)
    return round_to_bfloat16(array) if dtype is bfloat16 else array


def _leaf(node: Node) -> np.ndarray:
    if node.value is not None:
        return np.asarray(node.value.array())
    if node.op.reference is None:
        name, line = user_line(node)
        raise TraceError(f"{node.op.name} made at {name}:{line}: got no value; only constants and "
                         "buffers with data can be evaluated. Set node.value first.")
    return _typed(node.op.reference(**node.attrs), node.dtype)


def _needs(node: Node) -> tuple[Node, ...]:
    """What must be evaluated before `node`."""
    if node.value is not None:
        return ()
    if node.op.reference is None and node.op.body is not None:
        found = expansion(node)
        return found if isinstance(found, tuple) else (found,)
    return node.inputs


def _apply(node: Node, operands: list[Any]) -> Any:
    if node.value is not None or not node.inputs and node.op.body is None:
        return _leaf(node)
    if node.op.reference is None:
        if node.op.body is None:
            raise TraceError(f"{node.op.name}: has no reference; it cannot be evaluated slowly. "
                             "Use the compiler.")
        return tuple(operands) if node.outs is not None else operands[0]
    result = node.op.reference(*operands, **node.attrs)
    if node.outs is not None:
        return tuple(_typed(r, dtype) for r, (_, dtype) in zip(result, node.outs, strict=True))
    return result if node.op is PICK else _typed(result, node.dtype)


def evaluate(roots: Sequence[Node]) -> list[np.ndarray]:
    """Values of `roots`, each node computed once, without recursion.

    Args:
        roots: nodes whose leaves are constants, iotas, or nodes with a `value`.

    Returns:
        One array for each root, of its dtype's NumPy type (float32 for bfloat16).

    Raises:
        TraceError: a leaf has no value.
        IndexingError: an index read from data is out of range.
    """
    values: dict[int, Any] = {}
    stack = list(roots)
    with np.errstate(all="ignore"):
        while stack:
            node = stack[-1]
            if id(node) in values:
                stack.pop()
                continue
            needs = _needs(node)
            missing = [x for x in needs if id(x) not in values]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            values[id(node)] = _apply(node, [values[id(x)] for x in needs])
    return [values[id(root)] for root in roots]
