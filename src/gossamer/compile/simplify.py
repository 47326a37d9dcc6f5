"""Graph to graph: fewer and simpler nodes with the same values. Layer 2.

The one idea: rebuild the graph bottom up; each node passes a short table of rules and then a table
of what has been built already, so that equal subgraphs become one node. One walk, linear in nodes;
a second one where `terms` found long sums to gather.
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign, prod
from typing import Any

import numpy as np

from gossamer.compile.attention import laid_out
from gossamer.compile.terms import gather_terms
from gossamer.compile.views import concat_rule, reshape_rule, slice_rule
from gossamer.core.dtype import DType, bfloat16, int64, round_to_bfloat16
from gossamer.ir.node import STATE, Node, toposort
from gossamer.ir.op import CONSTANT, PICK, TABLE

__all__ = ["Rebuilder", "is_number", "simplify"]

FOLDABLE = frozenset({"reshape", "permute", "broadcast", "slice", "flip"})


def is_number(node: Node, value: float | None = None) -> bool:
    """Whether a node is a constant known now (equal to `value`, if given)."""
    if node.op is not CONSTANT or not isinstance(node.attrs["value"], (bool, int, float)):
        return False
    return value is None or node.attrs["value"] == value


def _is_zero(node: Node, sign: float) -> bool:
    """Whether a node is the constant 0; of floats the one with this sign: x + 0.0 is not x where
    x is -0.0, but x + -0.0 and x - 0.0 are."""
    return is_number(node, 0) and (node.dtype.kind != "f"
                                   or copysign(1.0, node.attrs["value"]) == sign)


def _array(value: bool | int | float, dtype: DType) -> np.ndarray:
    """One element as the dtype holds it: integers wrap, floats are rounded."""
    if dtype.kind in "iu":
        return np.array([int(value) & (1 << 64) - 1], np.uint64).astype(dtype.numpy)
    array = np.array([value], np.float64 if dtype.kind == "f" else dtype.numpy)
    return round_to_bfloat16(array) if dtype is bfloat16 else array.astype(dtype.numpy)


class Rebuilder:
    """Builds nodes, each only once: equal operators over equal inputs are one node."""

    def __init__(self) -> None:
        self.known: dict[object, Node] = {}
        self.offsets: dict[int, list[int]] = {}  # id of a concatenation -> where its parts begin

    def make(self, like: Node, op_name: str, *inputs: Node, **attrs: Any) -> Node:
        """A node at the line of `like`, or the equal one made before."""
        op = TABLE[op_name]
        key = (op_name, tuple(id(x) for x in inputs), tuple(sorted(attrs.items(), key=_first)),
               _negative_zero(attrs.get("value")))
        found = self.known.get(key)
        if found is None:
            before, STATE.where = STATE.where, like.where
            try:
                found = op(*inputs, **attrs)
            finally:
                STATE.where = before
            self.known[key] = found
        return found

    def again(self, node: Node, inputs: tuple[Node, ...]) -> Node:
        """`node` over other inputs."""
        if node.op.kind == "leaf" and node.op.name not in ("constant", "iota"):
            return node
        return self.make(node, node.op.name, *inputs, **node.attrs)


def _first(item: tuple[str, Any]) -> str:
    return item[0]


def _negative_zero(value: Any) -> bool:
    """-0.0, which equals 0.0 but is another constant."""
    return value.__class__ is float and not value and copysign(1.0, value) < 0


def _constant(b: Rebuilder, node: Node, value: Any) -> Node:
    return b.make(node, "constant", value=value, shape=node.shape, dtype=node.dtype)


def _fold(b: Rebuilder, node: Node) -> Node | None:
    """Elementwise operators of constants, and movements of one constant."""
    if not node.inputs or not all(is_number(x) for x in node.inputs):
        return None
    if node.op.name in FOLDABLE:
        return _constant(b, node, node.inputs[0].attrs["value"])
    if node.op.kind != "elementwise" or node.op.reference is None:
        return None
    if node.dtype is bfloat16:
        return None
    with np.errstate(all="ignore"):
        arrays = [_array(x.attrs["value"], x.dtype) for x in node.inputs]
        value = np.asarray(node.op.reference(*arrays, **node.attrs)).astype(node.dtype.numpy)
    return _constant(b, node, value.reshape(-1)[0].item())


def _movement(b: Rebuilder, node: Node) -> Node | None:
    x, name, attrs = node.inputs[0], node.op.name, node.attrs
    if name == "reshape":
        if x.op.name == "reshape":
            x = x.inputs[0]
            return x if x.shape == node.shape else b.make(node, "reshape", x, shape=node.shape)
        return x if x.shape == node.shape else reshape_rule(b, node)
    if name == "permute":
        axes = attrs["axes"]
        if x.op.name == "permute":
            axes = tuple(x.attrs["axes"][a] for a in axes)
            x = x.inputs[0]
        if axes == tuple(range(len(axes))):
            return x
        moved = [a for a in axes if x.shape[a] != 1]
        if moved == sorted(moved):  # only axes of extent 1 move
            return b.make(node, "reshape", x, shape=node.shape)
        return b.make(node, "permute", x, axes=axes) if x is not node.inputs[0] else None
    if name == "broadcast":
        if not attrs["axes"]:
            return x
        if node.size == x.size:
            return b.make(node, "reshape", x, shape=node.shape)
    if name == "slice":
        return slice_rule(b, node)
    if name == "concat":
        return concat_rule(b, node)
    if name == "pad" and node.shape == x.shape:
        return x
    if name == "after" and (is_number(x) or is_number(node.inputs[1])):
        return x  # there is nothing to wait for
    if name == "flip" and all(x.shape[a] == 1 for a in attrs["axes"]):
        return x
    return None


def _elementwise(b: Rebuilder, node: Node) -> Node | None:
    name = node.op.name
    x = node.inputs[0]
    if name == "cast":
        return x if x.dtype is node.dtype else None
    if len(node.inputs) == 2:
        y = node.inputs[1]
        if name == "mul":
            return x if is_number(y, 1) else y if is_number(x, 1) else None
        if name == "add":
            return x if _is_zero(y, -1.0) else y if _is_zero(x, -1.0) else None
        if name in ("sub", "shift_left", "shift_right"):
            return x if _is_zero(y, 1.0) else None
        if name == "div" and is_number(y, 1):
            return x
        if name == "pow" and node.dtype.kind == "f":
            return _power(b, node, x, y)
    if name == "neg" and x.op.name == "neg":
        return x.inputs[0]
    if name == "where" and is_number(x):
        return node.inputs[1] if x.attrs["value"] else node.inputs[2]
    return None


def _power(b: Rebuilder, node: Node, x: Node, y: Node) -> Node | None:
    """Powers that are cheaper as products and roots."""
    if is_number(y, 1):
        return x
    if is_number(y, 2):
        return b.make(node, "mul", x, x)
    if is_number(y, 3):
        return b.make(node, "mul", b.make(node, "mul", x, x), x)
    if is_number(y, -1):
        return b.make(node, "reciprocal", x)
    return None


def _reduction(b: Rebuilder, node: Node) -> Node | None:
    x, name = node.inputs[0], node.op.name
    if name in ("argmax", "argmin"):
        return _arg_extreme(b, node)
    axes = node.attrs["axes"]
    if all(x.shape[a] == 1 for a in axes):
        return b.make(node, "reshape", x, shape=node.shape)
    if x.op.name == "reshape":
        return _reduced_before(b, node, x)
    if name == "reduce_sum" and is_number(x):
        return _constant(b, node, _times(x, prod(x.shape[a] for a in axes)))
    return None


def _times(x: Node, count: int) -> Any:
    """The sum of `count` elements of a constant. Nothing adds up to 0, also infinities; sums
    start at 0.0, so that none is -0.0."""
    if not count:
        return 0
    with np.errstate(all="ignore"):
        return _array(_array(x.attrs["value"], x.dtype)[0].item() * count + 0, x.dtype)[0].item()


def _reduced_before(b: Rebuilder, node: Node, x: Node) -> Node | None:
    """A reduction over the first axes, whatever way they are split: equal ones become one."""
    source, axes = x.inputs[0], node.attrs["axes"]
    kept = x.ndim - len(axes)
    count = source.ndim - kept
    if axes != tuple(range(len(axes))) or count < 1 or source.shape[count:] != x.shape[len(axes):]:
        return None
    return b.make(node, node.op.name, source, axes=tuple(range(count)))


def _arg_extreme(b: Rebuilder, node: Node) -> Node:
    """argmax = the first index whose element equals the maximum, or is NaN."""
    x, axis = node.inputs[0], node.attrs["axis"]
    best = b.make(node, "reduce_max" if node.op.name == "argmax" else "reduce_min", x, axes=(axis,))
    wide = b.make(node, "broadcast", best, shape=x.shape, axes=(axis,))
    hit = b.make(node, "eq", x, wide)
    if x.dtype.kind == "f":
        hit = b.make(node, "bitwise_or", hit, b.make(node, "isnan", x))
    where = b.make(node, "iota", axis=axis, shape=x.shape, dtype=int64)
    beyond = b.make(node, "constant", value=max(x.shape[axis] - 1, 0), shape=x.shape, dtype=int64)
    return b.make(node, "reduce_min", b.make(node, "where", hit, where, beyond), axes=(axis,))


def _contraction(b: Rebuilder, node: Node) -> Node | None:
    """Integer and boolean products as sums of products, which any loop kernel can do."""
    if node.dtype.kind == "f" and node.size:
        return None
    x, y = node.inputs
    at = node.attrs
    a_free = [i for i in range(x.ndim) if i not in at["a_batch"] and i not in at["a_contract"]]
    b_free = [i for i in range(y.ndim) if i not in at["b_batch"] and i not in at["b_contract"]]
    nb, na, nf, nc = len(at["a_batch"]), len(a_free), len(b_free), len(at["a_contract"])
    left = b.make(node, "permute", x, axes=(*at["a_batch"], *a_free, *at["a_contract"]))
    right = b.make(node, "permute", y, axes=(*at["b_batch"], *b_free, *at["b_contract"]))
    shape = (*left.shape[:nb + na], *right.shape[nb:])
    left = b.make(node, "broadcast", left, shape=shape, axes=tuple(range(nb + na, nb + na + nf)))
    right = b.make(node, "broadcast", right, shape=shape, axes=tuple(range(nb, nb + na)))
    product = b.make(node, "mul", left, right)
    return b.make(node, "reduce_sum", product, axes=tuple(range(nb + na + nf, nb + na + nf + nc)))


def _result(b: Rebuilder, node: Node) -> Node | None:
    """One of several results."""
    return laid_out(b, node) if node.op is PICK else None


_RULES: dict[str, Callable[[Rebuilder, Node], Node | None]] = {
    "movement": _movement, "elementwise": _elementwise, "reduction": _reduction,
    "contraction": _contraction, "wrapper": _result,
}


def simplify(roots: list[Node]) -> list[Node]:
    """Equal graphs with identities removed, constants folded and equal nodes merged.

    Nodes with a value (in memory) and inputs are left as they are.
    """
    b = Rebuilder()
    new = _walk(b, roots)
    gathered = gather_terms(b, new)
    return new if gathered is new else _walk(b, gathered)


def _wanted_results(roots: list[Node]) -> set[int]:
    """Ids of operators of which a result is wanted itself: laid out otherwise, it is copied."""
    found: set[int] = set()
    for root in roots:
        while root.op.name == "reshape" and root.value is None:
            root = root.inputs[0]
        if root.op is PICK:
            found.add(id(root.inputs[0]))
    return found


def _walk(b: Rebuilder, roots: list[Node]) -> list[Node]:
    """Every node rebuilt by its rules."""
    new: dict[int, Node] = {}
    as_they_are = _wanted_results(roots)
    for node in toposort(roots, stop=lambda n: n.value is not None):
        if node.value is not None:
            new[id(node)] = node
            continue
        current = b.again(node, tuple(new[id(x)] for x in node.inputs))
        if node.op is PICK and id(node.inputs[0]) in as_they_are:
            new[id(node)] = current
            continue
        for _ in range(8):  # a rule's result may fit another rule; each makes the graph smaller
            rule = _RULES.get(current.op.kind)
            better = _fold(b, current) or (rule(b, current) if rule is not None else None)
            if better is None or better is current:
                break
            current = better
        new[id(node)] = current
    return [new[id(r)] for r in roots]


