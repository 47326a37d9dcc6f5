"""The rules that every graph obeys, checked. Layer 0.

Passes may assume them; with GOSSAMER_VERIFY the pipeline checks them between any two passes, and
the tests do so always. A broken rule is a defect of the pass before, and the message says where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer.core.dtype import DType
from gossamer.core.errors import CompileError, GossamerError
from gossamer.ir.node import Node, Shape, describe, toposort, user_line
from gossamer.ir.op import PICK, TABLE

__all__ = ["verify"]


def _fail(node: Node, what: str, stage: str) -> CompileError:
    name, line = user_line(node)
    return CompileError(f"verify{f' after {stage}' if stage else ''}: {node!r} from {name}:{line}, "
                        f"on {describe(node.inputs) or 'no operands'}: {what}. This is a defect of "
                        "Gossamer; please report it with the printed graph.")


def _is_type(shape: Shape, dtype: DType) -> bool:
    return type(shape) is tuple and type(dtype) is DType and all(
        type(n) is int and n >= 0 for n in shape)


def _check_inputs(node: Node, seen: set[int], stage: str) -> None:
    for x in node.inputs:
        if id(x) not in seen:
            raise _fail(node, "it reads a node that depends on it", stage)
        if x.outs is not None and node.op is not PICK:
            raise _fail(node, "it reads several results at once; pick one", stage)


def _check_attributes(node: Node, stage: str) -> None:
    for key, value in node.attrs.items():
        try:
            hash(value)
        except TypeError:
            raise _fail(node, f"attribute {key}={value!r} is not hashable", stage) from None


def _check_type(node: Node, stage: str) -> None:
    """The type is what the operator's rule infers from the inputs."""
    try:
        inferred: Any = node.op.infer(node.op, *node.inputs, **node.attrs)
    except GossamerError as error:
        raise _fail(node, f"its type rule refuses it: {error}", stage) from error
    expected = inferred if isinstance(inferred, list) else None
    if node.outs != expected:
        raise _fail(node, f"results {node.outs} differ from the inferred {expected}", stage)
    first = inferred[0] if expected is not None else inferred
    if (node.shape, node.dtype) != tuple(first):
        raise _fail(node, f"its type differs from the inferred {first}", stage)


def _known(node: Node) -> bool:
    return node.value is not None


def verify(roots: Sequence[Node], *, primitive: bool = False, stage: str = "") -> None:
    """Check every node that `roots` need.

    Operators are those of the table; inputs come before their reader; attributes are hashable;
    every type is the one that the operator infers; results of several are picked.

    Args:
        roots: results.
        primitive: also refuse composites and wrappers (the graph that is scheduled).
        stage: the pass that made the graph, for the message.

    Raises:
        CompileError: a rule is broken.

    Cost: one type inference for each node.
    """
    seen: set[int] = set()
    for node in toposort(roots, stop=_known):
        if TABLE.get(node.op.name) is not node.op:
            raise _fail(node, "its operator is not in the table", stage)
        if not _is_type(node.shape, node.dtype):
            raise _fail(node, f"shape {node.shape!r} or dtype {node.dtype!r} is malformed", stage)
        if node.value is None:  # of a computed node the inputs may be gone
            _check_inputs(node, seen, stage)
            if primitive and node.op.kind in ("composite", "wrapper") and node.op is not PICK:
                raise _fail(node, "it should have been expanded", stage)
            _check_attributes(node, stage)
            _check_type(node, stage)
        seen.add(id(node))
