"""Reverse-mode differentiation: graph in, graph out. Layer 2. Knows no operator by name.

Walks the nodes between `roots` and `wrt` once, from results to inputs, and applies every operator's
rule to its finished cotangent. A composite without a rule is differentiated through its body, as if
it were its own expansion. The nodes of the backward pass carry the line of the forward node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gossamer.compile.expand import expansion
from gossamer.core.errors import GradientError
from gossamer.ir.node import STATE, Node, type_text, user_line
from gossamer.ir.op import TABLE, constant

__all__ = ["vjp"]

Hook = Callable[[Node, Node], Node]
Cotangent = Any  # a node, or a list with one node or None for each of several results


def _through(node: Node) -> tuple[Node, ...] | None:
    """The body that `node` is differentiated through, or None if it has a rule (or is a leaf)."""
    op = node.op
    if op.vjp is not None or op.body is None:
        return None
    found = expansion(node)
    return found if isinstance(found, tuple) else (found,)


def _order(roots: Sequence[Node], wrt: frozenset[int]) -> list[Node]:
    """Nodes with a derivative between `roots` and `wrt`, every node after what it reads."""
    order: list[Node] = []
    reaches: dict[int, bool] = {}
    stack: list[tuple[Node, tuple[Node, ...] | None]] = [(r, None) for r in reversed(roots)]
    while stack:
        node, below = stack.pop()
        if below is not None:
            reached = id(node) in wrt or any(reaches.get(id(x), False) for x in below)
            reaches[id(node)] = reached
            if reached:
                order.append(node)
            continue
        if id(node) in reaches or not node.grad and id(node) not in wrt:
            continue
        reaches[id(node)] = False  # on the way; a graph has no cycle
        below = ()
        if node.grad:
            body = _through(node)
            below = node.inputs if body is None else body
        stack.append((node, below))
        stack.extend((x, None) for x in reversed(below) if id(x) not in reaches)
    return order


def _accumulate(found: dict[int, Cotangent], node: Node, g: Cotangent) -> None:
    """Add `g` to what flows into `node`."""
    old = found.get(id(node))
    if node.outs is None:
        found[id(node)] = g if old is None else TABLE["add"](old, g)
        return
    slots: list[Any] = [None] * len(node.outs) if old is None else old
    for i, part in enumerate(g):
        if part is not None:
            slots[i] = part if slots[i] is None else TABLE["add"](slots[i], part)
    found[id(node)] = slots


def _check(node: Node, x: Node, g: Cotangent) -> None:
    if x.outs is None and (g.shape != x.shape or g.dtype is not x.dtype):
        name, line = user_line(node)
        raise GradientError(
            f"{node.op.name} ({name}:{line}): its derivative rule returned {type_text(g)} for an "
            f"operand {type_text(x)}; a cotangent has its operand's type. Correct the rule.")


def _pull_back(node: Node, g: Cotangent, follow: set[int], found: dict[int, Cotangent]) -> None:
    """Apply the rule of `node` (or pass on to its body) and add up the cotangents of its inputs."""
    body = _through(node)
    if body is not None:
        for part, cotangent in zip(body, g if node.outs is not None else (g,), strict=True):
            if cotangent is not None and id(part) in follow:
                _accumulate(found, part, cotangent)
        return
    if node.op.vjp is None:
        name, line = user_line(node)
        raise GradientError(f"{node.op.name} ({name}:{line}): got {type_text(node)} on the way to "
                            "a tensor that requires grad; this operator has no derivative. "
                            "Detach it, or use another operator.")
    if node.outs is not None:
        g = tuple(g)
    cotangents = node.op.vjp(g, node, *node.inputs, **node.attrs)
    for x, gx in zip(node.inputs, cotangents, strict=True):
        if gx is not None and id(x) in follow:
            _check(node, x, gx)
            _accumulate(found, x, gx)


def _seed(roots: Sequence[Node], cotangents: Sequence[Node | None],
          follow: set[int]) -> dict[int, Cotangent]:
    found: dict[int, Cotangent] = {}
    for root, g in zip(roots, cotangents, strict=True):
        if g is None:
            g = constant(1, root)
        if g.shape != root.shape or g.dtype is not root.dtype:
            raise GradientError(f"vjp: got a cotangent {type_text(g)} for a result "
                                f"{type_text(root)}; both must have one type. "
                                "Reshape or convert it.")
        if id(root) in follow:
            _accumulate(found, root, g)
    return found


def vjp(roots: Sequence[Node], cotangents: Sequence[Node | None], wrt: Sequence[Node], *,
        hook: Hook | None = None) -> list[Node | None]:
    """Cotangents of `wrt`: the transposed Jacobian of `roots` applied to `cotangents`.

    Only nodes whose `grad` flag is set are followed. Iterative, linear in nodes. The new nodes can
    be differentiated again unless `STATE.grad_enabled` is off.

    Args:
        roots: results.
        cotangents: one for each root, of its type; None stands for ones.
        wrt: nodes whose cotangents are wanted.
        hook: `(node, cotangent) -> cotangent`, called once with the finished cotangent of every
            node on the way (those of `wrt` too); what it returns is used instead.

    Returns:
        One node for each of `wrt`, or None if no root depends on it.

    Raises:
        GradientError: an operator on the way has no derivative, or types do not fit.

    Cost: as many nodes as the rules of the operators on the way build.
    """
    wanted = frozenset(map(id, wrt))
    order = _order(roots, wanted)
    follow = {id(n) for n in order}
    where = STATE.where
    try:
        found = _seed(roots, cotangents, follow)
        for node in reversed(order):
            g = found.get(id(node))
            if g is None:
                continue
            STATE.where = node.where
            if hook is not None and node.outs is None:
                g = found[id(node)] = hook(node, g)
            if node.grad and node.inputs and node.op.name != "leaf":
                _pull_back(node, g, follow, found)
            if id(node) not in wanted:
                del found[id(node)]
    finally:
        STATE.where = where
    return [found.get(id(w)) for w in wrt]
