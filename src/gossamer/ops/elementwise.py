"""Elementwise arithmetic, rounding, comparison, logic, selection and conversion. Layer 1.

One record per operator. All operands have one shape and one dtype (`where`'s condition and `cast`
aside): the surface broadcasts and promotes, so no derivative rule un-broadcasts. A rule builds the
cotangent of an operand only if that operand takes part in differentiation.

Conventions at ties and poles are PyTorch's (tools/autograd/derivatives.yaml).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer.core.dtype import DType, bool_, float32, float64, int8, int32, int64
from gossamer.ir.node import Node
from gossamer.ir.op import Op, Sample, constant, define
from gossamer.ops.rules import (
    SHAPES,
    Sampler,
    Type,
    batch_elementwise,
    bool_type,
    compare_types,
    dtype_error,
    edges,
    integer_samples,
    number_type,
    same_floats,
    same_numbers,
    same_types,
    samples_of,
    shape_error,
)

__all__ = [
    "abs_", "add", "cast", "ceil", "copysign", "div", "elementwise", "eq", "floor", "floor_divide",
    "fmax", "fmin", "fmod", "ge", "gt", "isfinite", "isinf", "isnan", "le", "logical_not", "lt",
    "maximum", "minimum", "mul", "ne", "neg", "nextafter", "reciprocal", "remainder", "round_",
    "rsqrt", "sign", "signbit", "sqrt", "sub", "trunc", "trunc_divide", "where",
]

INF, NAN = float("inf"), float("nan")
_SIGNED = (-INF, -2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.5, INF, NAN)


def elementwise(name: str, doc: str, *, infer: Callable[..., Type], reference: Callable[..., Any],
                lower: Callable[..., Any], vjp: Callable[..., Any] | None = None,
                promote: str = "same", samples: Sampler, cost: float = 1.0,
                onnx: str | None = None, aliases: tuple[str, ...] = ()) -> Op:
    """Add an elementwise record: what its kind implies is filled in here."""
    return define(Op(name, "elementwise", doc, infer=infer, reference=reference, vjp=vjp,
                     batch=batch_elementwise, lower=lower, promote=promote, cost=cost, onnx=onnx,
                     aliases=aliases, samples=samples))


def _zero(g: Node, y: Node, x: Node) -> tuple[Node]:
    """Derivative of a step function: zero, not absent, as in PyTorch."""
    return (constant(0, g),)


def _zeros(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    return constant(0, g), constant(0, g)


# arithmetic -------------------------------------------------------------------------------------

add: Op = elementwise(
    "add", "a + b (on bool: a or b)", infer=same_types, reference=np.add,
    vjp=lambda g, y, a, b: (g, g),
    lower=lambda e, a, b: e.or_(a, b) if e.dtype is bool_ else e.add(a, b),
    samples=samples_of(2, special=_SIGNED), onnx="Add-14")

neg: Op = elementwise(
    "neg", "-x", infer=number_type, reference=np.negative,
    vjp=lambda g, y, x: (neg(g),), lower=lambda e, x: e.neg(x),
    samples=samples_of(1, special=_SIGNED), onnx="Neg-13", aliases=("negative",))

sub: Op = elementwise(
    "sub", "a - b", infer=same_numbers, reference=np.subtract,
    vjp=lambda g, y, a, b: (g, neg(g) if b.grad else None),
    lower=lambda e, a, b: e.sub(a, b),
    samples=samples_of(2, special=_SIGNED), onnx="Sub-14", aliases=("subtract",))

mul: Op = elementwise(
    "mul", "a * b (on bool: a and b)", infer=same_types, reference=np.multiply,
    vjp=lambda g, y, a, b: (mul(g, b) if a.grad else None, mul(g, a) if b.grad else None),
    lower=lambda e, a, b: e.and_(a, b) if e.dtype is bool_ else e.mul(a, b),
    samples=samples_of(2, special=_SIGNED), onnx="Mul-14", aliases=("multiply",))

div: Op = elementwise(
    "div", "a / b", infer=same_floats, reference=np.divide, promote="float",
    vjp=lambda g, y, a, b: (div(g, b) if a.grad else None,
                            neg(mul(g, div(y, b))) if b.grad else None),
    lower=lambda e, a, b: e.div(a, b), cost=4.0,
    samples=lambda rng: samples_of(2, (0.5, 3.0))(rng) + edges(2, _SIGNED), onnx="Div-14",
    aliases=("divide", "true_divide"))


def _trunc_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.asarray(np.trunc(np.divide(a, b)))
    quotient = np.floor_divide(a, b)  # rounds down: one too low where the signs differ
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype))


floor_divide: Op = elementwise(
    "floor_divide", "floor(a / b)", infer=same_numbers, reference=np.floor_divide, vjp=_zeros,
    lower=lambda e, a, b: e.floor_divide(a, b), cost=6.0,
    samples=lambda rng: (samples_of(2, (0.5, 3.0))(rng) + integer_samples(2)(rng)
                         + edges(2, (-7.0, -2.0, 0.0, 2.0, 7.0))))

trunc_divide: Op = elementwise(
    "trunc_divide", "a / b rounded towards zero", infer=same_numbers, reference=_trunc_divide,
    vjp=_zeros, lower=lambda e, a, b: e.trunc_divide(a, b), cost=6.0,
    samples=lambda rng: (samples_of(2, (0.5, 3.0))(rng) + integer_samples(2)(rng)
                         + edges(2, (-7.0, -2.0, 0.0, 2.0, 7.0))))

remainder: Op = elementwise(
    "remainder", "a - b * floor(a / b): the sign of b", infer=same_numbers, reference=np.remainder,
    vjp=lambda g, y, a, b: (g, neg(mul(g, floor_divide(a, b))) if b.grad else None),
    lower=lambda e, a, b: e.remainder(a, b), cost=8.0,
    samples=lambda rng: (samples_of(2, (0.6, 0.9))(rng) + integer_samples(2)(rng)
                         + edges(2, (-7.0, -2.0, 0.0, 2.0, 7.0))), onnx="Mod-13")

fmod: Op = elementwise(
    "fmod", "a - b * trunc(a / b): the sign of a", infer=same_numbers, reference=np.fmod,
    vjp=lambda g, y, a, b: (g, neg(mul(g, trunc_divide(a, b))) if b.grad else None),
    lower=lambda e, a, b: e.fmod(a, b), cost=8.0,
    samples=lambda rng: (samples_of(2, (0.6, 0.9))(rng) + integer_samples(2)(rng)
                         + edges(2, (-7.0, -2.0, 0.0, 2.0, 7.0))))

reciprocal: Op = elementwise(
    "reciprocal", "1 / x", infer=lambda op, x: same_floats(op, x, x),
    reference=lambda x: np.divide(np.ones_like(x), x), promote="float",
    vjp=lambda g, y, x: (neg(mul(g, mul(y, y))),), lower=lambda e, x: e.reciprocal(x), cost=4.0,
    samples=lambda rng: samples_of(1, (0.5, 3.0))(rng) + edges(1, _SIGNED), onnx="Reciprocal-13")

sqrt: Op = elementwise(
    "sqrt", "square root of x", infer=lambda op, x: same_floats(op, x, x), reference=np.sqrt,
    promote="float", vjp=lambda g, y, x: (div(g, mul(constant(2, y), y)),),
    lower=lambda e, x: e.sqrt(x), cost=4.0,
    samples=lambda rng: samples_of(1, (0.5, 3.0))(rng) + edges(1, _SIGNED), onnx="Sqrt-13")

rsqrt: Op = elementwise(
    "rsqrt", "1 / sqrt(x)", infer=lambda op, x: same_floats(op, x, x),
    reference=lambda x: np.divide(np.ones_like(x), np.sqrt(x)), promote="float",
    vjp=lambda g, y, x: (mul(mul(constant(-0.5, g), g), mul(y, mul(y, y))),),
    lower=lambda e, x: e.rsqrt(x), cost=6.0,
    samples=lambda rng: samples_of(1, (0.5, 3.0))(rng) + edges(1, _SIGNED))

# magnitude and rounding --------------------------------------------------------------------------


def _signed(x: np.ndarray) -> np.ndarray:
    """PyTorch's sign: (x > 0) - (x < 0), which is 0 for NaN."""
    return np.asarray((x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))


sign: Op = elementwise(
    "sign", "-1, 0 or 1 as x is below, at or above zero (0 for NaN)", infer=number_type,
    reference=_signed, vjp=_zero,
    lower=lambda e, x: e.sub(e.select(e.gt(x, e.const(0)), e.const(1), e.const(0)),
                             e.select(e.lt(x, e.const(0)), e.const(1), e.const(0))),
    samples=samples_of(1, special=_SIGNED), onnx="Sign-13", aliases=("sgn",))

abs_: Op = elementwise(
    "abs", "|x|", infer=number_type, reference=np.abs,
    vjp=lambda g, y, x: (mul(g, sign(x)),), lower=lambda e, x: e.abs(x),
    samples=samples_of(1, special=_SIGNED), onnx="Abs-13", aliases=("absolute",))

_HALVES = (-2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 1e30, INF, NAN)


def _rounding(name: str, doc: str, reference: Callable[..., Any], lower: Callable[..., Any],
              onnx: str | None, aliases: tuple[str, ...] = ()) -> Op:
    return elementwise(
        name, doc, infer=number_type, vjp=_zero, onnx=onnx, aliases=aliases,
        reference=lambda x: reference(x) if x.dtype.kind == "f" else x,
        lower=lambda e, x: lower(e, x) if e.dtype.kind == "f" else x,
        samples=samples_of(1, (0.1, 0.4), special=_HALVES))


floor: Op = _rounding("floor", "largest whole number <= x", np.floor, lambda e, x: e.floor(x),
                      "Floor-13")
ceil: Op = _rounding("ceil", "smallest whole number >= x", np.ceil, lambda e, x: e.ceil(x),
                     "Ceil-13")
trunc: Op = _rounding("trunc", "x rounded towards zero", np.trunc, lambda e, x: e.trunc(x), None,
                      ("fix",))
round_: Op = _rounding("round", "the whole number nearest to x, halves to even", np.rint,
                       lambda e, x: e.rint(x), "Round-11")

# extremes ----------------------------------------------------------------------------------------


def _shared(loses: Op) -> Callable[..., tuple[Node | None, ...]]:
    """Cotangents of maximum/minimum: the loser gets nothing, a tie gives half to each; beside a NaN
    nobody loses (PyTorch)."""
    def rule(g: Node, y: Node, a: Node, b: Node) -> tuple[Node | None, ...]:
        half, zero, tie = mul(g, constant(0.5, g)), constant(0, g), eq(a, b)
        def part(x: Node, other: Node) -> Node | None:
            if not x.grad:
                return None
            return where(tie, half, where(loses(x, other), zero, g))
        return part(a, b), part(b, a)
    return rule


def _first_wins(wins: Op) -> Callable[..., tuple[Node | None, ...]]:
    """Cotangents of fmax/fmin: a tie goes to `a`, a NaN loses (PyTorch)."""
    def rule(g: Node, y: Node, a: Node, b: Node) -> tuple[Node | None, ...]:
        first = bitwise_or_bool(wins(a, b), isnan(b))
        zero = constant(0, g)
        return (where(first, g, zero) if a.grad else None,
                where(first, zero, g) if b.grad else None)
    return rule


def bitwise_or_bool(a: Node, b: Node) -> Node:
    """a or b, for bool nodes (addition of bools)."""
    return add(a, b)


def _compare(name: str, symbol: str, reference: Callable[..., Any], lower: Callable[..., Any],
             on_bool: Callable[..., Any], onnx: str | None, aliases: tuple[str, ...]) -> Op:
    return elementwise(
        name, f"a {symbol} b, as bool", infer=compare_types, reference=reference,
        promote="compare", onnx=onnx, aliases=aliases,
        lower=lambda e, a, b: (on_bool if e.dtype is bool_ else lower)(e, a, b),
        samples=lambda rng: (samples_of(2, special=_SIGNED)(rng) + integer_samples(2, -2, 2)(rng)
                             + [Sample((np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)),
                                       gradient=False)]))


eq: Op = _compare("eq", "==", np.equal, lambda e, a, b: e.eq(a, b),
                  lambda e, a, b: e.not_(e.xor(a, b)), "Equal-13", ())
ne: Op = _compare("ne", "!=", np.not_equal, lambda e, a, b: e.ne(a, b),
                  lambda e, a, b: e.xor(a, b), None, ("not_equal",))
lt: Op = _compare("lt", "<", np.less, lambda e, a, b: e.lt(a, b),
                  lambda e, a, b: e.and_(e.not_(a), b), "Less-13", ("less",))
le: Op = _compare("le", "<=", np.less_equal, lambda e, a, b: e.le(a, b),
                  lambda e, a, b: e.or_(e.not_(a), b), "LessOrEqual-16", ("less_equal",))
gt: Op = _compare("gt", ">", np.greater, lambda e, a, b: e.gt(a, b),
                  lambda e, a, b: e.and_(a, e.not_(b)), "Greater-13", ("greater",))
ge: Op = _compare("ge", ">=", np.greater_equal, lambda e, a, b: e.ge(a, b),
                  lambda e, a, b: e.or_(a, e.not_(b)), "GreaterOrEqual-16", ("greater_equal",))

maximum: Op = elementwise(
    "maximum", "the larger of a and b; NaN if either is (on bool: a or b)", infer=same_types,
    reference=np.maximum, vjp=_shared(lt),
    lower=lambda e, a, b: e.or_(a, b) if e.dtype is bool_ else e.maximum(a, b),
    samples=samples_of(2, special=_SIGNED), onnx="Max-13")

minimum: Op = elementwise(
    "minimum", "the smaller of a and b; NaN if either is (on bool: a and b)", infer=same_types,
    reference=np.minimum, vjp=_shared(gt),
    lower=lambda e, a, b: e.and_(a, b) if e.dtype is bool_ else e.minimum(a, b),
    samples=samples_of(2, special=_SIGNED), onnx="Min-13")

fmax: Op = elementwise(
    "fmax", "the larger of a and b; a NaN loses", infer=same_numbers, reference=np.fmax,
    vjp=_first_wins(ge), lower=lambda e, a, b: e.fmax(a, b),
    samples=samples_of(2, special=_SIGNED))

fmin: Op = elementwise(
    "fmin", "the smaller of a and b; a NaN loses", infer=same_numbers, reference=np.fmin,
    vjp=_first_wins(le), lower=lambda e, a, b: e.fmin(a, b),
    samples=samples_of(2, special=_SIGNED))

# tests -------------------------------------------------------------------------------------------


def _test(name: str, doc: str, reference: Callable[..., Any], lower: Callable[..., Any],
          on_integers: Callable[..., Any], onnx: str | None = None) -> Op:
    return elementwise(
        name, doc, infer=bool_type, reference=reference, promote="compare", onnx=onnx,
        lower=lambda e, x: (lower if e.dtype.kind == "f" else on_integers)(e, x),
        samples=lambda rng: samples_of(1, special=_SIGNED)(rng) + integer_samples(1)(rng))


def _never(e: Any, x: Any) -> Any:
    return e.xor(x, x) if e.dtype is bool_ else e.ne(x, x)


isnan: Op = _test("isnan", "whether x is NaN", np.isnan, lambda e, x: e.isnan(x), _never,
                  "IsNaN-13")
isinf: Op = _test("isinf", "whether x is infinite", np.isinf, lambda e, x: e.isinf(x), _never,
                  "IsInf-10")
isfinite: Op = _test("isfinite", "whether x is neither infinite nor NaN", np.isfinite,
                     lambda e, x: e.isfinite(x),
                     lambda e, x: e.not_(_never(e, x)) if e.dtype is bool_ else e.eq(x, x))
signbit: Op = _test("signbit", "whether the sign bit of x is set (true for -0.0)",
                    lambda x: np.signbit(x) if x.dtype.kind == "f" else x < 0,
                    lambda e, x: e.signbit(x),
                    lambda e, x: _never(e, x) if e.dtype.kind in "bu" else e.lt(x, e.const(0)))

logical_not: Op = elementwise(
    "logical_not", "not x, as bool (x is false where it is 0)", infer=bool_type,
    reference=np.logical_not, promote="compare",
    lower=lambda e, x: e.not_(x) if e.dtype is bool_ else e.eq(x, e.const(0)),
    samples=lambda rng: (integer_samples(1, -1, 1)(rng) + samples_of(1, special=_SIGNED)(rng)
                         + [Sample((np.array([True, False]),), gradient=False)]), onnx="Not-1")

# neighbours --------------------------------------------------------------------------------------

copysign: Op = elementwise(
    "copysign", "|a| with the sign of b", infer=same_floats, reference=np.copysign, promote="float",
    vjp=lambda g, y, a, b: (
        where(eq(a, constant(0, a)), constant(0, g), mul(g, mul(sign(y), sign(a)))),
        constant(0, g)),
    lower=lambda e, a, b: e.copysign(a, b),
    samples=lambda rng: samples_of(2, (0.5, 3.0))(rng) + edges(2, _SIGNED))

def _nextafter_type(op: Op, a: Node, b: Node) -> Type:
    if a.dtype.kind == "f" and a.dtype.itemsize == 2:  # they have no registers of their own
        raise dtype_error(op, (a, b), "the operands must be float32 or float64",
                          "Convert them with .float().")
    return same_floats(op, a, b)


def _nextafter(e: Any, a: Any, b: Any) -> Any:
    """Sign-magnitude bits: one more is one step away from zero, for either sign."""
    zero, bits = e.const(0), e.integer
    up = e.gt(b, a)
    one, back = bits.const(1), bits.const(-1)
    step = bits.select(e.lt(a, zero), bits.select(up, back, one), bits.select(up, one, back))
    moved = e.from_bits(bits.add(e.to_bits(a), step))
    moved = e.select(e.eq(a, zero), e.copysign(e.from_bits(one), b), moved)
    moved = e.select(e.eq(a, b), b, moved)
    return e.select(e.isnan(e.add(a, b)), e.const(NAN), moved)


nextafter: Op = elementwise(
    "nextafter", "the next number after a on the way to b", infer=_nextafter_type,
    reference=np.nextafter, promote="float", lower=_nextafter, cost=8.0,
    samples=lambda rng: samples_of(2)(rng) + edges(2, (-1.0, -0.0, 0.0, 1.0, INF, NAN)))

# selection and conversion ------------------------------------------------------------------------


def _where_type(op: Op, condition: Node, a: Node, b: Node) -> Type:
    shape = a.shape
    if (condition.dtype is bool_ and a.dtype is b.dtype and b.shape == shape
            and condition.shape == shape):
        return shape, a.dtype
    inputs = (condition, a, b)
    if condition.dtype is not bool_:
        raise dtype_error(op, inputs, "the condition must be bool", "Compare it with something.")
    if a.dtype is not b.dtype:
        raise dtype_error(op, inputs, "both values must have one dtype",
                          "Convert them with .to(dtype) first.")
    raise shape_error(op, inputs, "operands must have one shape",
                      "Broadcast the smaller ones first.")


def _where_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((rng.random(shape) < 0.5, rng.normal(size=shape), rng.normal(size=shape)))
            for shape in SHAPES]


where: Op = elementwise(
    "where", "a where the condition holds, else b", infer=_where_type, reference=np.where,
    vjp=lambda g, y, c, a, b: (None, where(c, g, constant(0, g)) if a.grad else None,
                               where(c, constant(0, g), g) if b.grad else None),
    lower=lambda e, c, a, b: e.select(c, a, b), promote="none", samples=_where_samples,
    onnx="Where-16")


def _cast_reference(x: np.ndarray, *, dtype: DType) -> np.ndarray:
    if x.dtype.kind == "f" and dtype.kind in "iu":
        # Out of range is not defined; through int64 it wraps, as PyTorch on x86 does.
        whole: np.ndarray = np.nan_to_num(x, posinf=0, neginf=0).astype(np.int64)
        return whole.astype(dtype.numpy)
    return x.astype(dtype.numpy)


_CAST_TARGETS = (float64, float32, int32, int64, int8, bool_)


def _cast_samples(rng: np.random.Generator) -> list[Sample]:
    from_floats = [Sample((rng.uniform(-9, 9, shape),), {"dtype": dtype}, dtype is float64)
                   for shape in SHAPES for dtype in _CAST_TARGETS]
    from_integers = [Sample((rng.integers(-2, 3, (5,)),), {"dtype": d}, gradient=False)
                     for d in _CAST_TARGETS]
    return from_floats + from_integers


cast: Op = elementwise(
    "cast", "x converted to `dtype`", infer=lambda op, x, *, dtype: (x.shape, dtype),
    reference=_cast_reference, promote="none",
    vjp=lambda g, y, x, *, dtype: (cast(g, dtype=x.dtype),),
    lower=lambda e, x, *, dtype: e.cast(x, to=dtype), samples=_cast_samples, onnx="Cast-13")
