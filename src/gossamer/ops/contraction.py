"""Contraction: the one product of tensors. Layer 1.

`dot_general` names which axes of both operands are batch axes (paired, kept once) and which are
contracted (paired, summed); matmul, bmm, einsum and convolution are permutations of it. Products of
float16 and bfloat16 accumulate in float32 and round once: the compiler writes them with `low`, the
dtype that both operands are rounded to, and a float32 result. With `inline` it names the operand
(0 or 1) that is computed where the product reads it.

Source of the form: XLA's DotGeneral.
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import DType, bfloat16, bool_, float32, round_to_bfloat16
from gossamer.core.shape import inverse_permutation, size_of
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import Op, Sample, define
from gossamer.ops.movement import permute
from gossamer.ops.reduction import broadcast
from gossamer.ops.rules import Type, dtype_error, shape_error, wide

__all__ = ["dot_general", "free_axes", "matmul"]


def free_axes(ndim: int, batch: Shape, contract: Shape) -> Shape:
    """The axes that are neither batch nor contracted, in order."""
    return tuple([i for i in range(ndim) if i not in batch and i not in contract])


def _dot_type(op: Op, a: Node, b: Node, *, a_batch: Shape, a_contract: Shape, b_batch: Shape,
              b_contract: Shape, low: DType | None = None, inline: int | None = None) -> Type:
    if low is None and a.dtype is not b.dtype:
        raise dtype_error(op, (a, b), "operands must have one dtype", "Convert with .to(dtype).")
    if a.dtype is bool_:
        raise dtype_error(op, (a, b), "it is not defined for bool", "Convert with .to(dtype).")
    _check_axes(op, a, b, (*a_batch, *a_contract), (*b_batch, *b_contract), len(a_batch),
                len(b_batch))
    left, right = a.shape, b.shape
    shape = [left[i] for i in a_batch]
    shape += [n for i, n in enumerate(left) if i not in a_batch and i not in a_contract]
    shape += [n for i, n in enumerate(right) if i not in b_batch and i not in b_contract]
    return tuple(shape), a.dtype if low is None else float32


def _check_axes(op: Op, a: Node, b: Node, left: Shape, right: Shape, a_count: int,
                b_count: int) -> None:
    """Axes exist, none is named twice, pairs have equal extents; the first `count` are batch."""
    for x, axes in ((a, left), (b, right)):
        if len(axes) > 1 and len(set(axes)) != len(axes):
            raise shape_error(op, (a, b), f"axes {axes} name one axis twice", "List each once.")
        for axis in axes:
            if not 0 <= axis < len(x.shape):
                raise shape_error(op, (a, b), f"axis {axis} is out of range for {x.ndim} axes",
                                  "Name axes that the operand has.")
    paired = len(left) == len(right) and a_count == b_count
    if not paired or any(a.shape[i] != b.shape[j] for i, j in zip(left, right, strict=True)):
        raise shape_error(
            op, (a, b), f"batch axes {left[:a_count]} and {right[:b_count]}, and contracted axes "
            f"{left[a_count:]} and {right[b_count:]}, must have equal extents",
            "Transpose or reshape an operand.")


def _dot_reference(a: np.ndarray, b: np.ndarray, *, a_batch: Shape, a_contract: Shape,
                   b_batch: Shape, b_contract: Shape, low: DType | None = None,
                   inline: int | None = None) -> np.ndarray:
    if low is not None:
        a, b = (round_to_bfloat16(x) if low is bfloat16 else x.astype(low.numpy).astype(np.float32)
                for x in (a, b))
    a_free = free_axes(a.ndim, a_batch, a_contract)
    b_free = free_axes(b.ndim, b_batch, b_contract)
    batch = [a.shape[i] for i in a_batch]
    rows, columns = [a.shape[i] for i in a_free], [b.shape[i] for i in b_free]
    inner = size_of(a.shape[i] for i in a_contract)
    kind = wide(a)
    left = np.transpose(a, (*a_batch, *a_free, *a_contract)).astype(kind)
    right = np.transpose(b, (*b_batch, *b_contract, *b_free)).astype(kind)
    product = np.matmul(left.reshape(size_of(batch), size_of(rows), inner),
                        right.reshape(size_of(batch), inner, size_of(columns)))
    return np.reshape(product, (*batch, *rows, *columns))


def _cotangent(g: Node, other: Node, g_other: Shape, other_free: Shape, other_batch: Shape,
               other_contract: Shape, own_batch: Shape, own_free: Shape,
               own_contract: Shape) -> Node:
    """Contract g with the other operand over that operand's free axes; restore our axis order."""
    batch = tuple(range(len(other_batch)))
    product = dot_general(g, other, a_batch=batch, a_contract=g_other, b_batch=other_batch,
                          b_contract=other_free)
    # Axes of the product: batch, our free axes, then the contracted ones in the other's order.
    pairs = sorted(zip(other_contract, own_contract, strict=True))
    axes = inverse_permutation((*own_batch, *own_free, *(own for _, own in pairs)))
    return product if axes == tuple(range(len(axes))) else permute(product, axes=axes)


def _dot_vjp(g: Node, y: Node, a: Node, b: Node, *, a_batch: Shape, a_contract: Shape,
             b_batch: Shape, b_contract: Shape) -> tuple[Node | None, Node | None]:
    a_free = free_axes(a.ndim, a_batch, a_contract)
    b_free = free_axes(b.ndim, b_batch, b_contract)
    middle = len(a_batch) + len(a_free)
    g_rows, g_columns = tuple(range(len(a_batch), middle)), tuple(range(middle, g.ndim))
    return (
        _cotangent(g, b, g_columns, b_free, b_batch, b_contract, a_batch, a_free, a_contract)
        if a.grad else None,
        _cotangent(g, a, g_rows, a_free, a_batch, a_contract, b_batch, b_free, b_contract)
        if b.grad else None)


def _shifted(axes: Shape) -> Shape:
    return tuple(i + 1 for i in axes)


def _unbatched(x: Node) -> Node | None:
    """What was repeated along the new axis 0, if `x` is exactly such a repetition."""
    return x.inputs[0] if x.op is broadcast and x.attrs["axes"] == (0,) else None


def _dot_batch(op: Op, size: int, a: Node, b: Node, *, a_batch: Shape, a_contract: Shape,
               b_batch: Shape, b_contract: Shape) -> Node:
    """Both batched: one more batch axis. One of them shared: the new axis is a free axis."""
    one_a, one_b = _unbatched(a), _unbatched(b)
    if one_b is not None:
        y = op(a, one_b, a_batch=_shifted(a_batch), a_contract=_shifted(a_contract),
               b_batch=b_batch, b_contract=b_contract)
        place = len(a_batch)
    elif one_a is not None:
        y = op(one_a, b, a_batch=a_batch, a_contract=a_contract, b_batch=_shifted(b_batch),
               b_contract=_shifted(b_contract))
        place = one_a.ndim - len(a_contract)
    else:
        return op(a, b, a_batch=(0, *_shifted(a_batch)), a_contract=_shifted(a_contract),
                  b_batch=(0, *_shifted(b_batch)), b_contract=_shifted(b_contract))
    if place == 0:
        return y
    rest = (i for i in range(y.ndim) if i != place)
    return permute(y, axes=(place, *rest))


def _dot_samples(rng: np.random.Generator) -> list[Sample]:
    cases = (  # shapes, a_batch, a_contract, b_batch, b_contract
        ((2, 3), (3, 4), (), (1,), (), (0,)), ((5,), (5,), (), (0,), (), (0,)),
        ((2,), (3,), (), (), (), ()), ((2, 3, 4), (2, 4, 5), (0,), (2,), (0,), (1,)),
        ((3, 2, 4, 5), (5, 4, 6, 3), (0,), (2, 3), (3,), (1, 0)),
        ((0, 3), (3, 2), (), (1,), (), (0,)),
        ((2, 0), (0, 3), (), (1,), (), (0,)), ((1, 1), (1, 1), (0,), (1,), (0,), (1,)),
        ((3, 2), (3, 2), (1, 0), (), (1, 0), ()))
    return [Sample((rng.normal(size=s), rng.normal(size=t)),
                   {"a_batch": ab, "a_contract": ac, "b_batch": bb, "b_contract": bc})
            for s, t, ab, ac, bb, bc in cases]


dot_general: Op = define(Op(
    "dot_general", "contraction",
    "Sum over the paired axes `a_contract`, `b_contract` of a * b; axes: batch, a's, b's.",
    infer=_dot_type, reference=_dot_reference, vjp=_dot_vjp, batch=_dot_batch, cost=100.0,
    onnx="Einsum-12", samples=_dot_samples))


def matmul(a: Node, b: Node) -> Node:
    """a @ b over the last two axes; all axes before them are paired batch axes."""
    batch = tuple(range(a.ndim - 2))
    return dot_general(a, b, a_batch=batch, a_contract=(a.ndim - 1,), b_batch=batch,
                       b_contract=(b.ndim - 2,))
