"""Sums of many terms: of parts that do not overlap, and of products of one shape. Layer 2.

The one idea: what is used in every time step gets a sum with a term for every step as its gradient,
and the sum says what the terms were one by one. Padded parts that do not overlap lie side by side:
they are a concatenation. Products A₁B₁ + A₂B₂ + … are one product of the operands put side by side,
[A₁ A₂ …][B₁; B₂; …], long enough to be fast; sums over rows likewise. Each tree of additions is
looked at once, so the pass is linear in terms (but for sorting them).

Equal but for rounding: a sum is made in another order, and a zero may lose its sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gossamer.ir.node import Node, toposort

if TYPE_CHECKING:
    from gossamer.compile.simplify import Rebuilder

__all__ = ["gather_terms"]

MIN_TERMS = 3  # products that are worth putting together: two keep their epilogues
MAX_LAYERS = 8  # concatenations that a part may be added to: keeps overlapping parts linear
MAX_ROWS = 1 << 18  # elements: longer sums gain nothing from being put together


def gather_terms(b: Rebuilder, roots: list[Node]) -> list[Node]:
    """The graph with long sums written as concatenations and single products; the same nodes where
    there is nothing to gather."""
    order = toposort(roots, stop=lambda n: n.value is not None)
    sums = _sums(order, roots)
    if not sums:
        return roots
    position = _positions(order, sums)
    new: dict[int, Node] = {}
    for node in order:
        inputs = tuple(new[id(x)] for x in node.inputs) if node.value is None else ()
        leaves = sums.get(id(node))
        made = None
        if leaves is not None:
            made = _gathered(b, node, [new[id(x)] for x in leaves],
                             [position.get(id(_bare(x)), -1) for x in leaves])
        new[id(node)] = made or (b.again(node, inputs) if inputs else node)
    return [new[id(r)] for r in roots]


def _sums(order: list[Node], roots: list[Node]) -> dict[int, list[Node]]:
    """The terms of every sum with something to gather, by the id of its last addition. An addition
    that only another one reads is a part of that one's sum."""
    users: dict[int, int] = {id(r): 2 for r in roots}
    for node in order:
        for x in node.inputs:
            users[id(x)] = users.get(id(x), 0) + 1
    terms: dict[int, list[Node]] = {}
    for node in order:
        if node.op.name == "add" and node.value is None:
            terms[id(node)] = mine = []
            for x in node.inputs:
                below = terms.pop(id(x), None) if users[id(x)] == 1 else None
                if below is None:
                    mine.append(x)
                elif len(below) > len(mine):  # the smaller list is copied: n log n in all
                    below.extend(mine)
                    terms[id(node)] = mine = below
                else:
                    mine.extend(below)
    return {key: found for key, found in terms.items()
            if sum(x.op.name in _GATHERED for x in found) > 1}


def _bare(term: Node) -> Node:
    """The tensor whose place among others orders a term: the padded one, or the left operand."""
    if term.op.name in _GATHERED:
        term = term.inputs[0]
    while term.op.name == "reshape":
        term = term.inputs[0]
    return term


def _positions(order: list[Node], sums: dict[int, list[Node]]) -> dict[int, int]:
    """Where tensors stand in concatenations, made or to be made: products of the same tensors are
    put in the same order, so that both read one concatenation."""
    found: dict[int, int] = {}
    for node in order:
        if node.op.name == "concat":
            for i, part in enumerate(node.inputs):
                found.setdefault(id(_bare(part)), i)
    for terms in sums.values():
        for x in terms:
            if x.op.name == "pad":
                axis = _padded_axis(x)
                if axis is not None:
                    found.setdefault(id(_bare(x)), x.attrs["low"][axis])
    return found


def _gathered(b: Rebuilder, node: Node, terms: list[Node], places: list[int]) -> Node | None:
    """The sum of `terms` with fewer of them, or None."""
    groups: dict[tuple[str, object], list[int]] = {}
    for i, x in enumerate(terms):
        if x.op.name in _GATHERED and x.value is None:
            key = _group(x)
            if key is not None:
                groups.setdefault((x.op.name, key), []).append(i)
    replaced: dict[int, list[Node]] = {}
    gone: set[int] = set()
    for (name, _), members in groups.items():
        members.sort(key=lambda i: places[i])
        made = _GATHERED[name](b, node, [terms[i] for i in members])
        if made is not None:
            first = min(members)
            replaced[first] = made
            gone.update(members)
    if not gone:
        return None
    left = [x for i, term in enumerate(terms)
            for x in (replaced.get(i, []) if i in gone else [term])]
    total = left[0]
    for x in left[1:]:
        total = b.make(node, "add", total, x)
    return total


# pads ---------------------------------------------------------------------------------------------
def _padded_axis(x: Node) -> int | None:
    """The one axis along which zeros are added before and behind."""
    at = x.attrs
    if at["value"] or any(at["interior"]):
        return None
    axes = [i for i in range(x.ndim) if at["low"][i] or at["high"][i]]
    return axes[0] if len(axes) == 1 else None


def _pads(b: Rebuilder, node: Node, terms: list[Node]) -> list[Node] | None:
    """Concatenations, as few as the overlaps allow; each takes the parts in order of their place,
    the next that begins behind the last."""
    axis = _padded_axis(terms[0])
    assert axis is not None
    layers: list[list[Node]] = []
    for x in sorted(terms, key=lambda t: t.attrs["low"][axis]):
        low = x.attrs["low"][axis]
        for layer in layers[:MAX_LAYERS]:
            if _end(layer[-1], axis) <= low:
                layer.append(x)
                break
        else:
            layers.append([x])
    if len(layers) == len(terms):
        return None
    return [_side_by_side(b, node, layer, axis) for layer in layers]


def _end(x: Node, axis: int) -> int:
    """Where the inside of a pad ends."""
    end: int = x.attrs["low"][axis] + x.inputs[0].shape[axis]
    return end


def _side_by_side(b: Rebuilder, node: Node, layer: list[Node], axis: int) -> Node:
    """The parts of one layer, zeros between them."""
    if len(layer) == 1:
        return layer[0]
    parts: list[Node] = []
    at = 0

    def zeros(until: int) -> None:
        if until > at:
            shape = (*node.shape[:axis], until - at, *node.shape[axis + 1:])
            parts.append(b.make(node, "constant", value=False if node.dtype.kind == "b" else 0,
                                shape=shape, dtype=node.dtype))

    for x in layer:
        zeros(x.attrs["low"][axis])
        parts.append(x.inputs[0])
        at = _end(x, axis)
    zeros(node.shape[axis])
    return b.make(node, "concat", *parts, axis=axis)


# products and sums --------------------------------------------------------------------------------
def _products(b: Rebuilder, node: Node, terms: list[Node]) -> list[Node] | None:
    """One product over all summed indices, if reading and writing the operands once more costs less
    than reading and writing the result for every term."""
    first, at = terms[0], terms[0].attrs
    moved = sum(x.size for t in terms for x in t.inputs)
    if len(terms) < MIN_TERMS or moved > first.size * len(terms):
        return None
    left = b.make(node, "concat", *(t.inputs[0] for t in terms), axis=at["a_contract"][0])
    right = b.make(node, "concat", *(t.inputs[1] for t in terms), axis=at["b_contract"][0])
    return [b.make(first, "dot_general", left, right, **at)]


def _row_sums(b: Rebuilder, node: Node, terms: list[Node]) -> list[Node] | None:
    """One sum over all rows."""
    first = terms[0]
    if len(terms) < MIN_TERMS or first.inputs[0].size > MAX_ROWS:
        return None
    whole = b.make(node, "concat", *(t.inputs[0] for t in terms), axis=first.attrs["axes"][0])
    return [b.make(first, "reduce_sum", whole, **first.attrs)]


_GATHERED = {"pad": _pads, "dot_general": _products, "reduce_sum": _row_sums}


def _group(x: Node) -> object | None:
    """Terms with the same answer can be gathered; None if this one cannot be."""
    if x.op.name == "pad":
        axis = _padded_axis(x)
        return None if axis is None or not x.inputs[0].size else axis
    if x.op.name == "dot_general":
        return _but(x.inputs[0].shape, x.attrs["a_contract"]), \
            _but(x.inputs[1].shape, x.attrs["b_contract"]), tuple(sorted(x.attrs.items()))
    return _but(x.inputs[0].shape, x.attrs["axes"]), x.attrs["axes"]


def _but(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...] | None:
    """A shape without the extent of the first of `axes`, along which terms are put together."""
    return tuple(n for i, n in enumerate(shape) if i != axes[0]) if axes else None
