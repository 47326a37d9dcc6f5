"""Tensor IR: an immutable directed acyclic graph of operator applications. Layer 0.

A `Node` is one application. It knows its operator record, its inputs, static attributes, its shape
and dtype, and the user's line that made it. Nodes are never changed, with two exceptions that do
not change what they mean: `value` (the buffer that holds the computed result, set by the runtime)
and `expansion` (a composite operator's body, memoised).
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from gossamer.core.dtype import DType

if TYPE_CHECKING:
    from gossamer.ir.op import Op

__all__ = ["STATE", "Node", "Shape", "Where", "describe", "toposort", "type_text", "user_line"]

Shape = tuple[int, ...]
Where = tuple[CodeType, int]  # code object and offset of the last instruction: cheap to keep

_PACKAGE = str(Path(__file__).resolve().parent.parent)


class _Ours(dict[str, bool]):
    """Whether a file is one of this package's, remembered: a node asks three times."""

    def __missing__(self, file: str) -> bool:
        ours = self[file] = file.startswith(_PACKAGE)
        return ours


_OURS = _Ours()

_serial = itertools.count(1 << 40).__next__
_NEVER = 1 << 62  # later than any node
# Joins (cat, stack) inside each other that may wait: their parts are told apart element by element,
# and 32 of them take up to a second to compile, 400 pass Python's recursion limit.
_MOST_JOINS = 16
_URGENT = 1 << 30  # an age at which a node is computed at once
_INDEXED = frozenset({"elementwise", "movement", "wrapper"})  # read through, element by element


class State(threading.local):
    """Per-thread switches that node construction reads."""

    def __init__(self) -> None:
        self.grad_enabled = True
        self.where: Where | None = None  # when set, new nodes get this line (derivative rules)
        self.birth = 0  # version of new tensors: high while a function is traced (see tracing)


STATE = State()


class Node:
    """One operator application.

    Attributes:
        op: the operator record.
        inputs: nodes it reads.
        attrs: static attributes; all values are hashable.
        shape, dtype: of the result. For an operator with several results `outs` holds the list of
            (shape, dtype) and shape/dtype are those of result 0; a `pick` node selects one.
        grad: whether the result takes part in differentiation.
        value: the runtime's buffer once computed, else None.
        where: the user's line.
        owner: weak reference to a Tensor that shows this node (set by the surface), or None.
        expansion: the node this one stands for (composite operators), memoised.
        born, oldest: serial numbers of this node and of the oldest uncomputed one behind it, so
            that their difference bounds how much waits to be computed. Equal where that can never
            happen: the inputs of a traced function, and all that depends on them.
        joins: how many uncomputed joins lie inside each other here.
    """

    __slots__ = ("__weakref__", "attrs", "born", "dtype", "expansion", "grad", "inputs", "joins",
                 "oldest", "op", "outs", "owner", "shape", "value", "where")

    born: int
    oldest: int
    joins: int
    where: Where

    def __init__(self, op: Op, inputs: tuple[Node, ...], attrs: dict[str, Any], shape: Shape,
                 dtype: DType, grad: bool = False, where: Where | None = None) -> None:
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.shape = shape
        self.dtype = dtype
        self.grad = grad
        self.outs: list[tuple[Shape, DType]] | None = None
        self.value: Any = None
        self.owner: Any = None
        self.expansion: Node | None = None
        if inputs:
            born = oldest = _serial()
            joins = 0
            for x in inputs:
                if x.value is None:
                    if x.oldest < oldest:
                        oldest = x.oldest
                    if x.joins > joins:
                        joins = x.joins
            if oldest < 0:
                born = oldest = -1
            elif op.kind not in _INDEXED:
                joins = 0
            elif len(inputs) > 1 and op.kind == "movement":
                joins += 1
                if joins >= _MOST_JOINS:
                    oldest = born - _URGENT
            self.born, self.oldest, self.joins = born, oldest, joins
        else:
            self.born = self.oldest = -1 if op.name == "input" else _NEVER
            self.joins = 0
        if where is None:
            where = STATE.where
        if where is None:
            frame = sys._getframe(1)
            while _OURS[frame.f_code.co_filename] and frame.f_back is not None:
                frame = frame.f_back
            where = (frame.f_code, frame.f_lasti)
        self.where = where

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    def __repr__(self) -> str:
        return f"<{self.op.name}: {type_text(self)}>"


def type_text(node: Node) -> str:
    """`float32[2,3]`: the type of a node as every message and the printer show it."""
    return f"{node.dtype.name}[{','.join(map(str, node.shape))}]"


def describe(nodes: Iterable[Node]) -> str:
    """`float32[2,3] and int64[4]`: the types of operands, for messages."""
    return " and ".join(type_text(n) for n in nodes)


def user_line(node: Node) -> tuple[str, int]:
    """File and line number of the user's code that made `node`."""
    code, offset = node.where
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
            break
    return code.co_filename, line


def toposort(roots: Iterable[Node], *, stop: Any = None) -> list[Node]:
    """Nodes reachable from `roots`, every node after its inputs, in a fixed order.

    Iterative (no recursion limit), linear in nodes and edges.

    Args:
        roots: where to start; equal graphs give equal orders.
        stop: a predicate; inputs of nodes for which it holds are not followed.
    """
    order: list[Node] = []
    done: set[Node] = set()
    entered: list[Node] = []  # whose inputs come first
    for root in roots:
        stack: list[Node | None] = [root]
        while stack:
            node = stack.pop()
            if node is None:  # the inputs of the node entered last are done
                order.append(entered.pop())
            elif node not in done:
                done.add(node)
                if stop is not None and stop(node) or not node.inputs:
                    order.append(node)
                else:
                    entered.append(node)
                    stack.append(None)
                    stack += node.inputs[::-1]
    return order
