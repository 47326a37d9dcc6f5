"""Elementwise functions and methods, made from the table of operators. Layer 4.

Every elementwise record becomes a function, a method, an in-place method and a form with `out=`;
Python's operators go the same way. `unary` and `binary` are the fast path of all arithmetic: when
dtypes and shapes already fit, they build the node directly. What PyTorch gives extra parameters
(`alpha`, `rounding_mode`, `decimals`) is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import DTYPES, DType, bool_
from gossamer.core.errors import DTypeError
from gossamer.dispatch import (
    PUBLIC,
    Numbers,
    give,
    in_place,
    node_of,
    operands,
    public,
    write_out,
)
from gossamer.ir.node import STATE, Node, type_text
from gossamer.ir.op import CONSTANT, TABLE, Op
from gossamer.tensor import Tensor, attach, buffer, wrap

__all__ = ["Row", "binary", "make_function", "unary"]

_NO_ATTRS: dict[str, Any] = {}


class Row:
    """What the fast path needs to know of an operator.

    Attributes:
        name: as the user wrote it, for messages.
        fast: dtypes for which no promotion and no check is needed.
        to_bool: the result is bool.
        differentiable: the result takes part in differentiation.
    """

    __slots__ = ("differentiable", "fast", "name", "op", "rule", "to_bool")

    def __init__(self, op: Op, name: str) -> None:
        self.op = op
        self.name = name
        self.rule = op.promote if op.promote in ("float", "compare", "integer") else "same"
        self.to_bool = self.rule == "compare"
        self.differentiable = op.vjp is not None or op.body is not None
        allowed = {"float": "f", "integer": "iu"}.get(self.rule, "fiu")
        self.fast: frozenset[DType] = frozenset(
            d for d in DTYPES.values() if d.kind in allowed)


def unary(row: Row, value: Any) -> Tensor:
    """Apply a one-operand elementwise operator."""
    x = node_of(value, row.name)
    if x.dtype in row.fast:
        grad = x.grad and row.differentiable and STATE.grad_enabled
        return wrap(Node(row.op, (x,), _NO_ATTRS, x.shape, bool_ if row.to_bool else x.dtype, grad))
    (x,) = operands(row.name, (value,), row.rule)
    return wrap(row.op(x))


def binary(row: Row, a: Any, b: Any) -> Tensor:
    """Apply a two-operand elementwise operator to tensors and numbers."""
    try:
        x: Node = a._node if a._base is None else a._read()
    except AttributeError:
        return _binary_slowly(row, a, b)
    dtype = x.dtype
    kind = b.__class__
    if kind is float or kind is int:
        if dtype not in row.fast or (kind is float and dtype.kind != "f"):
            return _binary_slowly(row, a, b)
        if dtype.kind == "f":
            b = float(b)
        elif not -128 <= b <= 127 or b < 0 and dtype.kind == "u":
            return _binary_slowly(row, a, b)
        attrs = {"value": b, "shape": x.shape, "dtype": dtype}
        y = Node(CONSTANT, (), attrs, x.shape, dtype)
    else:
        try:
            y = b._node if b._base is None else b._read()
        except AttributeError:
            return _binary_slowly(row, a, b)
        if y.dtype is not dtype or y.shape != x.shape or dtype not in row.fast:
            return _binary_slowly(row, a, b)
    grad = row.differentiable and (x.grad or y.grad) and STATE.grad_enabled
    node = Node(row.op, (x, y), _NO_ATTRS, x.shape, bool_ if row.to_bool else dtype, grad)
    return wrap(node)


def _binary_slowly(row: Row, a: Any, b: Any) -> Tensor:
    """With promotion and broadcasting."""
    values = [wrap(buffer(np.array(v), _numpy_dtype(v))) if isinstance(v, np.ndarray) and v.ndim
              else v for v in (a, b)]
    if not isinstance(values[0], Tensor) and not isinstance(values[1], Tensor):
        raise DTypeError(f"{row.name}: got {type(a).__name__} and {type(b).__name__}; at least one "
                         "must be a tensor. Make one with gs.tensor(...).")
    if row.to_bool and row.rule == "compare":
        values = _comparable(values)
    x, y = operands(row.name, values, row.rule)
    if x.dtype is bool_ and row.op.name == "sub":
        raise DTypeError(f"{row.name}: got two bool tensors; subtraction is not defined for bool. "
                         "Use ^ (exclusive or) or .logical_not().")
    return wrap(row.op(x, y))


def _numpy_dtype(array: np.ndarray) -> DType:
    return DTYPES["bool"] if array.dtype == bool else DTYPES[array.dtype.name]


_LIMITS = {d: (0, 2 ** (8 * d.itemsize) - 1) if d.kind == "u" else
           (-2 ** (8 * d.itemsize - 1), 2 ** (8 * d.itemsize - 1) - 1)
           for d in DTYPES.values() if d.kind in "iu"}


def _comparable(values: list[Any]) -> list[Any]:
    """Comparing a small integer with a number beyond its range must not wrap the number."""
    a, b = values
    for tensor, other in ((a, b), (b, a)):
        if isinstance(tensor, Tensor) and isinstance(other, int) and not isinstance(other, bool):
            limits = _LIMITS.get(tensor._node.dtype)
            if limits is not None and not limits[0] <= other <= limits[1]:
                wide = prims.cast(tensor._read(), DTYPES["int64"])
                return [wrap(wide) if v is tensor else v for v in values]
    return values


# --------------------------------------------------------------------- functions from the table

def arity(op: Op) -> int:
    """How many operands an elementwise record takes."""
    return int(op.lower.__code__.co_argcount) - 1


def _doc(op: Op, name: str, operands_: int) -> str:
    args = "input: any shape" if operands_ == 1 else "input, other: shapes that broadcast"
    rule = {"float": "Integers become the default float dtype. ", "compare": "The result is bool. ",
            "integer": "Operands are integers or bool. "}.get(op.promote, "")
    return (f"{name}: {op.doc}, for each element.\n\n{rule}Lazy; one pass over memory, fused with "
            f"its neighbours.\n\nArgs:\n    {args}.\n    out: tensor that receives the result.\n\n"
            "Returns:\n    A tensor of the broadcast shape.\n")


def make_function(op: Op, name: str) -> Callable[..., Tensor]:
    """The public function of an elementwise record with one or two operands."""
    row = Row(op, f"gs.{name}")
    count = arity(op) if op.kind == "elementwise" else 1
    if count == 1:
        def one(input: Any, *, out: Tensor | None = None) -> Tensor:
            made = unary(row, input)
            return made if out is None else write_out(out, made._node, row.name)
        fn: Callable[..., Tensor] = one
    else:
        def two(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
            made = binary(row, input, other)
            return made if out is None else write_out(out, made._node, row.name)
        fn = two
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = _doc(op, name, count)
    return fn


# These have parameters of their own, or are not PyTorch names.
_BY_HAND = {"add", "sub", "div", "round", "pow", "trunc_divide", "shift_left", "shift_right",
            "shift_right_logical", "mulhi_u32", "polygamma", "cast", "where", "bitwise_not",
            "nextafter"}
# Composite records that are pointwise functions of one tensor without parameters.
_COMPOSITES: tuple[str, ...] = ()
_FUNCTION_ONLY = {"isnan", "isinf", "isfinite"}


def _publish_table() -> None:
    for op in list(TABLE.values()):
        pointwise = op.kind == "elementwise" and op.promote != "none"
        if not pointwise and op.name not in _COMPOSITES or op.name in _BY_HAND:
            continue
        if op.kind == "elementwise" and arity(op) > 2:
            continue
        for name in (op.name, *op.aliases):
            fn = make_function(op, name)
            PUBLIC[name] = fn
            attach(name, fn)
            attach(name + "_", in_place(fn, name + "_"))


_publish_table()


# ---------------------------------------------------------------------------------- by hand

ADD, SUB, MUL, DIV = (Row(TABLE[n], f"gs.{n}") for n in ("add", "sub", "mul", "div"))
FLOOR_DIVIDE, TRUNC_DIVIDE = (Row(TABLE[n], "gs.div") for n in ("floor_divide", "trunc_divide"))
ROUND = Row(TABLE["round"], "gs.round")


def _scaled(value: Any, alpha: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        if value._node.dtype.kind != "f" and isinstance(alpha, float):
            raise DTypeError(f"{name}(alpha={alpha}): the tensors are "
                             f"{value._node.dtype.name}; alpha must be an integer for integers.")
        return binary(MUL, value, alpha)
    return value * alpha


@public(inplace=True)
def add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """add: `input + alpha * other`.

    Args:
        input, other: tensors that broadcast, or numbers.
        alpha: factor of `other`.
        out: tensor that receives the result.

    Returns:
        A tensor of the broadcast shape.
    """
    made = binary(ADD, input, other if _is_one(alpha) else _scaled(other, alpha, "gs.add"))
    return made if out is None else write_out(out, made._node, "gs.add")


def _is_one(alpha: Any) -> bool:
    return alpha.__class__ is int and alpha == 1


@public(inplace=True, aliases=("subtract",))
def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """sub: `input - alpha * other`. See `add`."""
    made = binary(SUB, input, other if _is_one(alpha) else _scaled(other, alpha, "gs.sub"))
    return made if out is None else write_out(out, made._node, "gs.sub")


@public()
def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """rsub: `other - alpha * input`."""
    return binary(SUB, other, input if _is_one(alpha) else _scaled(input, alpha, "gs.rsub"))


@public(inplace=True, aliases=("divide",))
def div(input: Any, other: Any, *, rounding_mode: str | None = None,
        out: Tensor | None = None) -> Tensor:
    """div: `input / other`.

    Args:
        input, other: tensors that broadcast, or numbers.
        rounding_mode: None (true division; integers become floats), "trunc" (towards zero) or
            "floor" (down); the last two keep integers.
        out: tensor that receives the result.

    Returns:
        A tensor of the broadcast shape.
    """
    rows = {None: DIV, "trunc": TRUNC_DIVIDE, "floor": FLOOR_DIVIDE}
    if rounding_mode not in rows:
        raise DTypeError(f"gs.div(rounding_mode={rounding_mode!r}): it must be None, 'trunc' or "
                         "'floor'.")
    made = binary(rows[rounding_mode], input, other)
    return made if out is None else write_out(out, made._node, "gs.div")


@public(inplace=True)
def true_divide(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """true_divide: `input / other`; integers become floats."""
    made = binary(DIV, input, other)
    return made if out is None else write_out(out, made._node, "gs.true_divide")


@public(inplace=True)
def round(input: Any, *, decimals: int = 0, out: Tensor | None = None) -> Tensor:
    """round: the nearest number with `decimals` decimal places; halves go to the even neighbour."""
    if decimals == 0:
        made = unary(ROUND, input)
    elif decimals > 0:
        made = binary(DIV, unary(ROUND, binary(MUL, input, float(10 ** decimals))),
                      float(10 ** decimals))
    else:
        made = binary(MUL, unary(ROUND, binary(DIV, input, float(10 ** -decimals))),
                      float(10 ** -decimals))
    return made if out is None else write_out(out, made._node, "gs.round")


POW, SQRT, RSQRT = (Row(TABLE[n], "gs.pow") for n in ("pow", "sqrt", "rsqrt"))
RECIPROCAL = Row(TABLE["reciprocal"], "gs.pow")


def power(input: Any, exponent: Any, name: str) -> Tensor:
    """`input ** exponent`, by cheaper means where the exponent is a simple number."""
    if isinstance(input, Tensor) and not isinstance(exponent, Tensor):
        kind = input._node.dtype.kind
        if kind in "iu" and isinstance(exponent, int) and exponent < 0:
            raise DTypeError(f"{name}: {type_text(input._node)} to the power {exponent}; integers "
                             "to negative integer powers are not allowed. Use x.float().")
        if exponent == 2 and (kind == "f" or isinstance(exponent, int) and kind != "b"):
            return binary(MUL, input, input)
        if kind == "f":
            simple = {0.5: SQRT, -0.5: RSQRT, -1: RECIPROCAL}.get(exponent)
            if simple is not None:
                return unary(simple, input)
    return binary(POW, input, exponent)


@public(inplace=True)
def pow(input: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    """pow: `input ** exponent`, for each element.

    Args:
        input, exponent: tensors that broadcast, or numbers (one of them a tensor).
        out: tensor that receives the result.

    Returns:
        A tensor of the broadcast shape.

    Raises:
        DTypeError: an integer base with a negative integer exponent.
    """
    made = power(input, exponent, "gs.pow")
    return made if out is None else write_out(out, made._node, "gs.pow")


@public()
def positive(input: Any) -> Tensor:
    """positive: `input` itself; not defined for bool."""
    if node_of(input, "gs.positive").dtype is bool_:
        raise DTypeError("gs.positive: got a bool tensor; it is not defined for bool.")
    return input


# ---------------------------------------------------------------------------- Python's operators

_REFLECTED = {"add", "sub", "mul", "div", "floor_divide", "remainder", "pow", "bitwise_and",
              "bitwise_or", "bitwise_xor", "shift_left", "shift_right"}


def _foreign(other: Any) -> bool:
    """Whether Python should try the other operand's reflected method instead."""
    return not isinstance(other, (Tensor, np.ndarray, *Numbers))


def _operator(row: Row, swapped: bool, quiet: bool) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        try:
            return binary(row, other, self) if swapped else binary(row, self, other)
        except DTypeError:
            if _foreign(other) and (quiet or hasattr(type(other), "__array_ufunc__")):
                return NotImplemented
            raise
    return method


def _inplace_operator(row: Row) -> Callable[[Tensor, Any], Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        self._check_inplace(row.name)
        return give(self, binary(row, self, other)._node, row.name)
    return method


_OPERATORS = [("add", "add", "+"), ("sub", "sub", "-"), ("mul", "mul", "*"),
              ("truediv", "div", "/"), ("floordiv", "floor_divide", "//"),
              ("mod", "remainder", "%"), ("and", "bitwise_and", "&"), ("or", "bitwise_or", "|"),
              ("xor", "bitwise_xor", "^"), ("lshift", "shift_left", "<<"),
              ("rshift", "shift_right", ">>")]
_COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _attach_operators() -> None:
    for python, name, symbol in _OPERATORS:
        row = Row(TABLE[name], f"x {symbol} y")
        attach(f"__{python}__", _operator(row, False, False))
        attach(f"__r{python}__", _operator(row, True, False))
        attach(f"__i{python}__", _inplace_operator(Row(TABLE[name], f"x {symbol}= y")))
    for name in _COMPARISONS:
        row = Row(TABLE[name], f"x {_SYMBOLS[name]} y")
        attach(f"__{name}__", _operator(row, False, name in ("eq", "ne")))


_attach_operators()


def _pow_operator(self: Tensor, other: Any) -> Tensor:
    return power(self, other, "x ** y")


def _rpow_operator(self: Tensor, other: Any) -> Tensor:
    return binary(Row(TABLE["pow"], "x ** y"), other, self)


def _ipow_operator(self: Tensor, other: Any) -> Tensor:
    self._check_inplace("x **= y")
    return give(self, power(self, other, "x **= y")._read(), "x **= y")


attach("__pow__", _pow_operator)
attach("__rpow__", _rpow_operator)
attach("__ipow__", _ipow_operator)
attach("__rdiv__", Tensor.__rtruediv__)
attach("__neg__", PUBLIC["neg"])
attach("__pos__", positive)
attach("__abs__", PUBLIC["abs"])


@public(inplace=True)
def bitwise_not(input: Any, *, out: Tensor | None = None) -> Tensor:
    """bitwise_not: every bit of an integer, or the truth of a bool, turned round."""
    (x,) = operands("gs.bitwise_not", (input,), "integer")
    node = TABLE["logical_not" if x.dtype is bool_ else "bitwise_not"](x)
    return wrap(node) if out is None else write_out(out, node, "gs.bitwise_not")


attach("__invert__", bitwise_not)


@public(inplace=True)
def nextafter(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """nextafter: the next number after `input` on the way to `other`; its slope is 1."""
    a, b = operands("gs.nextafter", (input, other), "float")
    node = TABLE["nextafter"](a, b)
    if a.grad and STATE.grad_enabled:
        node = TABLE["custom"](node, a, rule=lambda g, y, x: (g,))
    return wrap(node) if out is None else write_out(out, node, "gs.nextafter")


def _shift(name: str, record: str) -> None:
    fn = make_function(TABLE[record], name)
    PUBLIC[name] = fn
    attach(name, fn)
    attach(name + "_", in_place(fn, name + "_"))


_shift("bitwise_left_shift", "shift_left")
_shift("bitwise_right_shift", "shift_right")

