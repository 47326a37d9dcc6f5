"""Bitwise operators and shifts on integers; on bool they are the logical ones. Layer 1.

Random numbers (ops/random) are written with these, so all wrap silently as machine integers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer.core.dtype import int32
from gossamer.ir.node import Node
from gossamer.ir.op import Op, Sample
from gossamer.ops.elementwise import elementwise
from gossamer.ops.rules import Type, dtype_error, integer_samples, integer_types, same_types

__all__ = ["bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "mulhi_u32", "shift_left",
           "shift_right", "shift_right_logical"]

_BOOLS = Sample((np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)), gradient=False)


def _whole(op: Op, *xs: Node) -> Type:
    """Operands of one integer type, or bool."""
    if xs[0].dtype.kind == "f":
        raise dtype_error(op, xs, "the operands must be integers or bool",
                          "Convert them with .to(dtype).")
    return same_types(op, xs[0], xs[-1])


def _bitwise(name: str, doc: str, reference: Callable[..., Any], lower: Callable[..., Any],
             onnx: str) -> Op:
    return elementwise(name, doc, infer=_whole, reference=reference, lower=lower,
                       promote="integer", onnx=onnx,
                       samples=lambda rng: [*integer_samples(2)(rng), _BOOLS])


bitwise_and: Op = _bitwise("bitwise_and", "a & b, bit by bit", np.bitwise_and,
                           lambda e, a, b: e.and_(a, b), "BitwiseAnd-18")
bitwise_or: Op = _bitwise("bitwise_or", "a | b, bit by bit", np.bitwise_or,
                          lambda e, a, b: e.or_(a, b), "BitwiseOr-18")
bitwise_xor: Op = _bitwise("bitwise_xor", "a ^ b, bit by bit", np.bitwise_xor,
                           lambda e, a, b: e.xor(a, b), "BitwiseXor-18")

bitwise_not: Op = elementwise(
    "bitwise_not", "~x, all bits inverted", infer=_whole, reference=np.invert,
    lower=lambda e, x: e.not_(x), promote="integer", onnx="BitwiseNot-18",
    samples=lambda rng: [*integer_samples(1)(rng), Sample(_BOOLS.inputs[:1], gradient=False)])


def _bits(x: np.ndarray) -> int:
    return 8 * x.dtype.itemsize


def _unsigned(x: np.ndarray) -> np.ndarray:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _shift_left(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    fits = (b >= 0) & (b < _bits(a))
    return np.where(fits, np.left_shift(a, np.where(fits, b, 0)), 0).astype(a.dtype)


def _shift_right(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "u":
        return _shift_right_logical(a, b)
    fits = (b >= 0) & (b < _bits(a))
    return np.asarray(np.right_shift(a, np.where(fits, b, _bits(a) - 1).astype(a.dtype)))


def _shift_right_logical(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (np.asarray(x, order="C") for x in (a, b))  # `view` needs a contiguous last axis
    fits = (b >= 0) & (b < _bits(a))
    amount = _unsigned(np.where(fits, b, 0).astype(a.dtype))
    return np.where(fits, np.right_shift(_unsigned(a), amount).view(a.dtype), 0).astype(a.dtype)


def _shift_samples(rng: np.random.Generator) -> list[Sample]:
    draw = integer_samples(1, -2**30, 2**30)
    return [Sample((s.inputs[0], rng.integers(0, 31, s.inputs[0].shape).astype(s.inputs[0].dtype)),
                   gradient=False) for s in draw(rng)]


def _shift(name: str, doc: str, reference: Callable[..., Any], lower: Callable[..., Any]) -> Op:
    return elementwise(name, doc, infer=integer_types, reference=reference, lower=lower,
                       promote="integer", onnx="BitShift-11", samples=_shift_samples)


shift_left: Op = _shift("shift_left", "a * 2^b, bits that leave are lost (0 when b >= width)",
                        _shift_left, lambda e, a, b: e.shl(a, b))
shift_right: Op = _shift("shift_right", "floor(a / 2^b): the sign moves in (zeros if unsigned)",
                         _shift_right, lambda e, a, b: e.shr(a, b))
shift_right_logical: Op = _shift("shift_right_logical", "a shifted right, zeros move in",
                                 _shift_right_logical, lambda e, a, b: e.lshr(a, b))


def _int32_pair(op: Op, a: Node, b: Node) -> Type:
    if a.dtype is not int32:
        raise dtype_error(op, (a, b), "the operands must be int32", "Convert them with .int().")
    return integer_types(op, a, b)


def _mulhi(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = a.astype(np.uint32).astype(np.uint64) * b.astype(np.uint32).astype(np.uint64)
    return (product >> np.uint64(32)).astype(np.uint32).astype(np.int32)


mulhi_u32: Op = elementwise(
    "mulhi_u32", "upper 32 bits of the product of a and b read as unsigned 32-bit integers",
    infer=_int32_pair, reference=_mulhi, lower=lambda e, a, b: e.mulhi_u32(a, b),
    promote="integer", samples=integer_samples(2, -2**31, 2**31 - 1, (np.int32,)))
