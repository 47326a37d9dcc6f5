"""Batching (vmap): a graph over elements becomes a graph over a new axis 0. Layer 2.

Only what depends on a batched input is rewritten. An operator's batching rule gets all its inputs
with the new axis; one that is the same for the whole batch is repeated by an explicit broadcast,
which rules look through where they can do better. A composite without a rule is batched by its
body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gossamer.compile.expand import expansion
from gossamer.core.errors import GossamerError, TraceError
from gossamer.ir.node import STATE, Node, user_line
from gossamer.ir.op import PICK, TABLE

__all__ = ["batch"]


def repeated(x: Node, size: int) -> Node:
    """`x`, the same for every element of a batch."""
    return TABLE["broadcast"](x, shape=(size, *x.shape), axes=(0,))


def _through(node: Node) -> tuple[Node, ...] | None:
    """The body that `node` is batched by, if it has no rule."""
    if node.op is PICK:
        source = node.inputs[0]
        if source.op.batch is None and source.op.body is not None:
            found = expansion(source)
            assert isinstance(found, tuple)
            return (found[node.attrs["index"]],)
        return None
    if node.op.batch is not None or node.op.body is None or node.outs is not None:
        return None
    found = expansion(node)
    assert isinstance(found, Node)
    return (found,)


def _apply(node: Node, operands: Sequence[Node | None], size: int) -> Node:
    """The batched node; at least one operand is batched, those that are not are None."""
    if node.op.batch is None:
        name, line = user_line(node)
        raise TraceError(f"vmap: {node.op.name} ({name}:{line}) has no batching rule. "
                         "Write the loop out, or use another operator.")
    inputs = [repeated(x, size) if new is None else new
              for x, new in zip(node.inputs, operands, strict=True)]
    STATE.where = node.where
    found = node.op.batch(node.op, size, *inputs, **node.attrs)
    if node.outs is None and found.shape != (size, *node.shape):
        raise GossamerError(f"vmap: the batching rule of {node.op.name} gives {found.shape}, not "
                            f"{(size, *node.shape)}. This is a defect of the operator's record.")
    return found


def batch(roots: Sequence[Node], inputs: Mapping[Node, Node], size: int) -> list[Node]:
    """The graph of `roots` over a batch of `size` elements.

    Args:
        roots: results for one element.
        inputs: nodes of that graph, and what stands for them: the same type with a new axis 0.
        size: extent of the new axis.

    Returns:
        One node for each root, with the new axis 0 (repeated if the root depends on no input).

    Raises:
        TraceError: an operator on the way has no batching rule.

    Cost: linear in nodes; no recursion.
    """
    new: dict[int, Node | None] = {id(x): y for x, y in inputs.items()}  # None: not batched
    stack = list(reversed(roots))
    where = STATE.where
    try:
        while stack:
            node = stack[-1]
            if id(node) in new:
                stack.pop()
                continue
            if node.value is not None:  # known already, so the same for the whole batch
                new[id(node)] = None
                continue
            body = _through(node)
            needs = node.inputs if body is None else body
            missing = [x for x in reversed(needs) if id(x) not in new]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            found = [new[id(x)] for x in needs]
            if all(x is None for x in found):
                new[id(node)] = None
            else:
                new[id(node)] = _apply(node, found, size) if body is None else found[0]
        results = [new[id(root)] for root in roots]
        return [repeated(root, size) if r is None else r
                for root, r in zip(roots, results, strict=True)]
    finally:
        STATE.where = where
