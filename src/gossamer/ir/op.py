"""The operator record and the table of all operators. Layer 0.

An operator is defined once, by one `Op` record in `gossamer/ops/`. Type inference, the NumPy
reference, derivatives, batching, code generation, the public function of that name, export and the
reference page all read the record; none of them has a list of operators of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossamer.core.dtype import DType
from gossamer.ir.node import STATE, Node, Shape

__all__ = ["BUFFER", "CONSTANT", "INPUT", "IOTA", "PICK", "TABLE", "Op", "Sample", "constant",
           "define"]

TABLE: dict[str, Op] = {}
_NO_ATTRS: dict[str, Any] = {}

KINDS = ("leaf", "wrapper", "elementwise", "reduction", "movement", "contraction", "indexing",
         "scan", "sort", "composite", "special")


@dataclass(frozen=True)
class Sample:
    """Inputs on which the laws run an operator.

    `gradient`: whether the derivative laws may use it (False at kinks or poles).
    """

    inputs: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    gradient: bool = True


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Fields that a kind does not need keep their defaults.

    Attributes:
        name: public name: PyTorch's term where it has one.
        kind: one of KINDS.
        doc: one line: the mathematical definition.
        infer: `(op, *nodes, **attrs) -> (shape, dtype)`, raises ShapeError/DTypeError. An operator
            with several results returns a list of such pairs.
        reference: `(*arrays, **attrs) -> array`: what "correct" means (a tuple for several
            results).
        vjp: `(g, y, *inputs, **attrs) -> tuple` of one cotangent (or None) per input, written in
            operators; `g` is the cotangent of the result `y` (a tuple of nodes or None for several
            results). None: the result has no derivative, it cuts the graph (comparisons, argmax).
        batch: `(op, size, *inputs, **attrs) -> Node`: the operator over a new axis 0 of extent
            `size` that every input has.
        lower: elementwise: `(e, *values, **attrs) -> value` against an Emitter. Reduction and scan:
            the name of the combine step ("add", "mul", "max", "min"). Movement: the index map
            `(index, shapes, **attrs) -> list[(input number, index, condition or None)]`: where
            the result's element at `index` comes from; when no condition holds the result is the
            attribute `value` (or 0). See ir/index.py.
        put: movement that is a view: `(old, new, **attrs) -> Node`: `old` (the input) with the
            elements that the view shows replaced by `new` (shaped as the view).
        body: composite: `(*inputs, **attrs) -> Node` in other operators.
        promote: how the public function makes the operands one dtype: "same" (promotion), "float"
            (integers become the default float), "compare" (promotion; the result is bool),
            "integer" (no floats), "none" (left alone).
        cost: relative cost per element (add = 1): whether recomputing beats storing.
        onnx: "Tanh-13": ONNX operator and opset, or None.
        aliases: further public names.
        samples: `(rng) -> list[Sample]`; float inputs are float64; sizes 0, 1 and odd ones and
            edges of the domain are among them.
    """

    name: str
    kind: str
    doc: str
    infer: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    vjp: Callable[..., tuple[Any, ...]] | None = None
    batch: Callable[..., Node] | None = None
    lower: Any = None
    put: Callable[..., Node] | None = None
    body: Callable[..., Node] | None = None
    promote: str = "none"
    cost: float = 1.0
    onnx: str | None = None
    aliases: tuple[str, ...] = ()
    samples: Callable[[np.random.Generator], list[Sample]] = lambda rng: []

    def __call__(self, *inputs: Node, **attrs: Any) -> Node:
        """Build a node. All inputs are nodes; shapes and dtypes must fit (see `infer`).

        Raises:
            ShapeError, DTypeError: the operands do not fit the operator.
        """
        inferred = self.infer(self, *inputs, **attrs)
        several = type(inferred) is list
        shape, dtype = inferred[0] if several else inferred
        grad = False
        if STATE.grad_enabled and (self.vjp is not None or self.body is not None):
            for x in inputs:
                if x.grad:
                    grad = dtype.kind == "f" or several
                    break
        node = Node(self, inputs, attrs or _NO_ATTRS, shape, dtype, grad)
        if several:
            node.outs = inferred
        return node

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def define(op: Op) -> Op:
    """Add a record to the table.

    Raises:
        ValueError: the name is taken, or the kind unknown.
    """
    if op.name in TABLE:
        raise ValueError(f"operator {op.name!r} is defined twice")
    if op.kind not in KINDS:
        raise ValueError(f"operator {op.name!r}: kind {op.kind!r} is not one of {KINDS}")
    TABLE[op.name] = op
    return op


def _leaf_type(op: Op, *, shape: Shape, dtype: DType, **_: Any) -> tuple[Shape, DType]:
    return shape, dtype


BUFFER = define(Op("buffer", "leaf", "Data in memory; `node.value` holds it.", infer=_leaf_type))
INPUT = define(Op("input", "leaf", "Input number `index` of a traced function, known only when it "
                  "is called.", infer=_leaf_type))
CONSTANT = define(Op(
    "constant", "leaf", "One number, `value`, repeated over a shape.", infer=_leaf_type,
    reference=lambda *, value, shape, dtype: np.full(shape, value, dtype.numpy),
    batch=lambda op, size, *, value, shape, dtype: op(value=value, shape=(size, *shape),
                                                      dtype=dtype)))
IOTA = define(Op(
    "iota", "leaf", "The index along `axis`: 0, 1, 2, …", infer=_leaf_type,
    reference=lambda *, axis, shape, dtype: np.broadcast_to(
        np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]),
        shape).astype(dtype.numpy),
    batch=lambda op, size, *, axis, shape, dtype: op(axis=axis + 1, shape=(size, *shape),
                                                     dtype=dtype)))
PICK = define(Op(
    "pick", "wrapper", "Result number `index` of an operator with several results.",
    infer=lambda op, x, *, index: x.outs[index],
    reference=lambda x, *, index: x[index],
    vjp=lambda g, y, x, *, index: (tuple(g if i == index else None for i in range(len(x.outs))),),
    batch=lambda op, size, x, *, index: op(x, index=index)))


def constant(value: bool | int | float, like: Node) -> Node:
    """A constant with the shape and dtype of `like`."""
    return CONSTANT(value=value, shape=like.shape, dtype=like.dtype)
