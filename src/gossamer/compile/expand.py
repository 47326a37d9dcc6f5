"""Graph → graph without composites and wrappers. Layer 2.

A composite is replaced by its body, a wrapper by what it wraps. The body of a node is built once
and remembered on the node, so that evaluation, differentiation and scheduling see the same nodes.
All is iterative and linear in nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gossamer.core.errors import CompileError
from gossamer.ir.node import STATE, Node, type_text, user_line
from gossamer.ir.op import PICK

__all__ = ["expand", "expansion"]

_WRAPPERS = frozenset({"detach", "leaf", "custom"})


def expansion(node: Node) -> Node | tuple[Node, ...]:
    """The body of a composite node, in other operators on the same inputs (a tuple for several
    results). Built once; its nodes carry the line of `node`.

    Raises:
        CompileError: the body's type is not the one that `infer` promised.
    """
    found: Node | tuple[Node, ...] | None = node.expansion
    if found is not None:
        return found
    assert node.op.body is not None, node.op
    where, enabled = STATE.where, STATE.grad_enabled
    STATE.where, STATE.grad_enabled = node.where, node.grad
    try:
        found = node.op.body(*node.inputs, **node.attrs)
    finally:
        STATE.where, STATE.grad_enabled = where, enabled
    _check(node, found)
    node.expansion = found
    return found


def _check(node: Node, found: Node | tuple[Node, ...]) -> None:
    promised = node.outs if node.outs is not None else [(node.shape, node.dtype)]
    results = found if isinstance(found, tuple) else (found,)
    if [(r.shape, r.dtype) for r in results] != promised:
        name, line = user_line(node)
        raise CompileError(
            f"{node.op.name} ({name}:{line}): the body gives "
            f"{' and '.join(map(type_text, results))}, but infer promised {promised}. This is a "
            "defect of the operator's record.")


def _stands_for(node: Node, keep: Callable[[Node], bool]) -> Node | None:
    """The node that replaces `node`, or None if it stays."""
    op = node.op
    if node.value is not None:
        return None
    if op.name in _WRAPPERS:
        return node.inputs[0]
    if op is PICK:
        source = node.inputs[0]
        if source.op.body is None or keep(source) or source.value is not None:
            return None
        parts = expansion(source)
        assert isinstance(parts, tuple)
        picked: Node = parts[node.attrs["index"]]
        return picked
    if op.body is None or keep(node) or node.outs is not None:
        return None
    found = expansion(node)
    assert isinstance(found, Node)
    return found


def _rebuilt(node: Node, inputs: tuple[Node, ...]) -> Node:
    """`node` on other inputs of the same types; itself if they are the same nodes."""
    if inputs == node.inputs:
        return node
    STATE.where = node.where
    new = Node(node.op, inputs, node.attrs, node.shape, node.dtype, node.grad)
    new.outs = node.outs
    return new


def _nothing(node: Node) -> bool:
    return False


def expand(roots: Sequence[Node], keep: Callable[[Node], bool] = _nothing) -> list[Node]:
    """The same values computed by primitives alone.

    Args:
        roots: results wanted. Nodes that have a `value` are leaves.
        keep: which composites stay one node (the compiler has kernels for them).
    """
    new: dict[int, Node] = {}
    stack = list(reversed(roots))
    where = STATE.where
    try:
        while stack:
            node = stack[-1]
            if id(node) in new:
                stack.pop()
                continue
            other = _stands_for(node, keep)
            needs = (other,) if other is not None else () if node.value is not None else node.inputs
            missing = [x for x in reversed(needs) if id(x) not in new]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if other is not None:
                new[id(node)] = new[id(other)]
            elif not needs:
                new[id(node)] = node
            else:
                new[id(node)] = _rebuilt(node, tuple([new[id(x)] for x in needs]))
    finally:
        STATE.where = where
    return [new[id(root)] for root in roots]
