"""Elementwise functions with more than the table's plain form: clamp, lerp, xlogy, … Layer 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gossamer import prims
from gossamer.core.dtype import bool_, float64, int32
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.dispatch import (
    PUBLIC,
    fit,
    floating,
    in_place,
    need_float,
    node_of,
    number,
    operands,
    public,
    same_type,
    with_out,
)
from gossamer.ir.node import Node, type_text
from gossamer.ir.op import TABLE
from gossamer.pointwise import Row
from gossamer.tensor import Tensor, attach, wrap

__all__ = ["composite"]


def composite(name: str, *params: str, **defaults: Any) -> Callable[..., Tensor]:
    """The function of a composite of one operand: attributes `params` may come by position."""
    op = TABLE[name]
    row = Row(op, f"gs.{name}")

    def plain(input: Tensor) -> Tensor:
        x = node_of(input, row.name)
        if x.dtype not in row.fast:
            (x,) = operands(row.name, (input,), row.rule)
        return wrap(op(x))

    def with_params(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attrs = dict(defaults)
        attrs.update(zip(params, args, strict=False))
        attrs.update(kwargs)
        (x,) = operands(row.name, (input,), row.rule)
        return wrap(op(x, **attrs))
    fn = with_params if params else plain
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name}: {op.doc}, for each element."
    return fn


for _name in ("relu", "square"):
    public(inplace=True)(composite(_name))


# ------------------------------------------------------------------------------------- limits

@public(inplace=True, aliases=("clip",))
@with_out
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Each element limited to [min, max].

    Args:
        input: any shape.
        min, max: numbers or tensors that broadcast; None is no limit. NaN stays NaN.
    """
    if min is None and max is None:
        raise DTypeError("gs.clamp: at least one of min and max must be given.")
    if not isinstance(min, Tensor) and not isinstance(max, Tensor):
        limits = [v for v in (min, max) if v is not None]
        x = same_type("gs.clamp", (input, *limits))[0]
        low, high = (None if v is None else prims.scalar_value(v, x.dtype) for v in (min, max))
        if x.dtype.kind == "f" and (low is not None and low != low or high is not None
                                    and high != high):
            return wrap(prims.const(math.nan, x))
        return wrap(TABLE["clamp"](x, low=low, high=high))
    values = [v for v in (input, min, max) if v is not None]
    nodes = operands("gs.clamp", values)
    x = nodes[0]
    if min is not None:
        x = _limited(x, nodes[1], "maximum")
    return wrap(_limited(x, nodes[-1], "minimum") if max is not None else x)


def _limited(x: Node, limit: Node, record: str) -> Node:
    """maximum or minimum whose ties give the whole derivative to x."""
    if not (x.grad or limit.grad):
        return TABLE[record](x, limit)
    inside = TABLE["ge" if record == "maximum" else "le"](x, limit)
    inside = prims.logical_or(inside, TABLE["isnan"](x))
    return prims.where(inside, x, limit)


@public(inplace=True)
@with_out
def clamp_min(input: Tensor, min: Any) -> Tensor:
    """Each element, but at least `min`."""
    return clamp(input, min=min)


@public(inplace=True)
@with_out
def clamp_max(input: Tensor, max: Any) -> Tensor:
    """Each element, but at most `max`."""
    return clamp(input, max=max)


@public(inplace=True)
@with_out
def nan_to_num(input: Tensor, nan: float | None = None, posinf: float | None = None,
               neginf: float | None = None) -> Tensor:
    """NaN replaced by `nan` (0), infinities by `posinf` and `neginf` (the dtype's extremes)."""
    x = node_of(input, "gs.nan_to_num")
    if x.dtype.kind != "f":
        return wrap(x)
    top = {"float64": 1.7976931348623157e308, "float32": 3.4028234663852886e38,
           "float16": 65504.0, "bfloat16": 3.3895313892515355e38}[x.dtype.name]
    inf = prims.const(math.inf, x)
    made = prims.where(TABLE["isnan"](x), prims.const(nan or 0.0, x), x)
    made = prims.where(prims.equal(x, inf), prims.const(top if posinf is None else posinf, x), made)
    low = prims.const(-top if neginf is None else neginf, x)
    return wrap(prims.where(prims.equal(x, prims.neg(inf)), low, made))


# ------------------------------------------------------------------------------ three operands

def _typed(name: str, *values: Any) -> list[Node]:
    return operands(name, values)


@public(inplace=True)
@with_out
def lerp(input: Tensor, end: Any, weight: Any) -> Tensor:
    """`input + weight * (end - input)`; weight a number or a tensor."""
    a, b, w = _typed("gs.lerp", input, end, weight)
    need_float(a, "gs.lerp")
    return wrap(TABLE["lerp"](a, b, w))


@public(inplace=True)
@with_out
def addcmul(input: Tensor, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    """`input + value * tensor1 * tensor2`."""
    a, b, c = _typed("gs.addcmul", input, tensor1, tensor2)
    return wrap(TABLE["addcmul"](a, b, c, prims.const(value, a)))


@public(inplace=True)
@with_out
def addcdiv(input: Tensor, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    """`input + value * tensor1 / tensor2`; not for integers."""
    a, b, c = _typed("gs.addcdiv", input, tensor1, tensor2)
    need_float(a, "gs.addcdiv")
    return wrap(TABLE["addcdiv"](a, b, c, prims.const(value, a)))


# ------------------------------------------------------------------------- logarithms and angles

@public(inplace=True, aliases=("special_xlogy",))
@with_out
def xlogy(input: Any, other: Any) -> Tensor:
    """`input * log(other)`, 0 where input is 0, also at other = 0; NaN where other is NaN."""
    x, y = operands("gs.xlogy", (input, other), "float")
    return wrap(_times_log(x, y, "log"))


def _times_log(x: Node, y: Node, log: str) -> Node:
    zero = prims.equal(x, prims.const(0, x))
    bad = TABLE["isnan"](y)
    safe = prims.where(zero, prims.const(1, y), y)
    made = prims.where(zero, prims.const(0, x), prims.mul(x, TABLE[log](safe)))
    return prims.where(bad, y, made)


@public(inplace=True)
@with_out
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """`log(e^input + e^other)` without overflow."""
    x, y = operands("gs.logaddexp", (input, other), "float")
    return wrap(_log_add(x, y, "exp", "log1p"))


@public(inplace=True)
@with_out
def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """`log2(2^input + 2^other)` without overflow."""
    a, b = operands("gs.logaddexp2", (input, other), "float")
    made = _log_add(prims.mul(a, prims.const(math.log(2), a)),
                    prims.mul(b, prims.const(math.log(2), b)), "exp", "log1p")
    return wrap(prims.mul(made, prims.const(1 / math.log(2), made)))


def _log_add(a: Node, b: Node, exp: str, log1p: str) -> Node:
    high = TABLE["maximum"](a, b)
    same = prims.logical_and(prims.equal(a, b), TABLE["isinf"](a))
    gap = TABLE["abs"](prims.where(same, prims.const(0, a), prims.sub(a, b)))
    return prims.add(high, TABLE[log1p](TABLE[exp](prims.neg(gap))))


@public(inplace=True)
@with_out
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """`log(x / (1 - x))`; with `eps` x is first limited to [eps, 1 - eps]."""
    (x,) = operands("gs.logit", (input,), "float")
    if eps is not None:
        x = TABLE["clamp"](x, low=float(eps), high=1.0 - eps)
    return wrap(TABLE["log"](prims.div(x, prims.sub(prims.const(1, x), x))))


@public(inplace=True)
@with_out
def sinc(input: Tensor) -> Tensor:
    """`sin(pi x) / (pi x)`, 1 at 0."""
    (x,) = operands("gs.sinc", (input,), "float")
    zero = prims.equal(x, prims.const(0, x))
    angle = prims.mul(prims.where(zero, prims.const(1, x), x), prims.const(math.pi, x))
    return wrap(prims.where(zero, prims.const(1, x), prims.div(TABLE["sin"](angle), angle)))


@public(inplace=True)
@with_out
def deg2rad(input: Tensor) -> Tensor:
    """Degrees to radians."""
    (x,) = operands("gs.deg2rad", (input,), "float")
    return wrap(prims.mul(x, prims.const(math.pi / 180, x)))


@public(inplace=True)
@with_out
def rad2deg(input: Tensor) -> Tensor:
    """Radians to degrees."""
    (x,) = operands("gs.rad2deg", (input,), "float")
    return wrap(prims.mul(x, prims.const(180 / math.pi, x)))


@public()
@with_out
def angle(input: Tensor) -> Tensor:
    """The angle of a real number: pi for negative ones, 0 for others, NaN for NaN."""
    (x,) = operands("gs.angle", (input,), "float")
    zero = prims.const(0, x)
    made = prims.where(TABLE["lt"](x, zero), prims.const(math.pi, x), zero)
    return wrap(prims.where(TABLE["isnan"](x), x, made))


@public(inplace=True)
@with_out
def polygamma(n: Any, input: Any) -> Tensor:
    """The n-th derivative of digamma; n = 0 is digamma itself. As a method: `x.polygamma(n)`."""
    if isinstance(n, Tensor):
        n, input = input, n
    if n < 0:
        raise DTypeError(f"gs.polygamma(n={n}): n must not be negative.")
    (x,) = operands("gs.polygamma", (input,), "float")
    return wrap(TABLE["digamma"](x) if n == 0 else TABLE["polygamma"](x, n=int(n)))


@public(inplace=True, aliases=("special_multigammaln",))
@with_out
def mvlgamma(input: Tensor, p: int) -> Tensor:
    """Logarithm of the p-dimensional gamma function."""
    (x,) = operands("gs.mvlgamma", (input,), "float")
    made = prims.const(math.log(math.pi) * p * (p - 1) / 4, x)
    for i in range(p):
        made = prims.add(made, TABLE["lgamma"](prims.sub(x, prims.const(i / 2, x))))
    return wrap(made)


# ----------------------------------------------------------------------------- parts and powers

@public(inplace=True)
@with_out
def frac(input: Tensor) -> Tensor:
    """What follows the decimal point: `x - trunc(x)`."""
    x = node_of(input, "gs.frac")
    need_float(x, "gs.frac")
    return wrap(prims.sub(x, TABLE["trunc"](x)))


@public(inplace=True)
@with_out
def ldexp(input: Tensor, other: Any) -> Tensor:
    """`input * 2^other`."""
    a, b = operands("gs.ldexp", (input, other), "float")
    return wrap(prims.mul(a, TABLE["exp2"](b)))


class Parts(NamedTuple):
    """A number taken apart."""

    mantissa: Tensor
    exponent: Tensor


@public()
def frexp(input: Tensor, *, out: Any = None) -> Parts:
    """Mantissa in [0.5, 1) and int32 exponent: `x = mantissa * 2^exponent`."""
    x = node_of(input, "gs.frexp")
    need_float(x, "gs.frexp")
    size = TABLE["abs"](prims.detach(x))
    plain = prims.logical_and(TABLE["isfinite"](size), TABLE["gt"](size, prims.const(0, size)))
    safe = prims.where(plain, size, prims.const(0.5, size))
    wide = prims.cast(safe, float64)
    power = prims.add(TABLE["floor"](TABLE["log2"](wide)), prims.const(1, wide))
    part = prims.div(wide, TABLE["exp2"](power))  # log2 may round up or down at powers of two
    power = prims.where(TABLE["ge"](part, prims.const(1, part)),
                        prims.add(power, prims.const(1, power)), power)
    power = prims.where(TABLE["lt"](part, prims.const(0.5, part)),
                        prims.sub(power, prims.const(1, power)), power)
    power = prims.where(plain, power, prims.const(0, power))
    mantissa = prims.cast(prims.div(prims.cast(x, float64), TABLE["exp2"](power)), x.dtype)
    made = Parts(wrap(mantissa), wrap(prims.cast(power, int32)))
    if out is not None:
        return Parts(*(o.copy_(m) for o, m in zip(out, made, strict=True)))
    return made


@public(inplace=True)
@with_out
def float_power(input: Any, exponent: Any) -> Tensor:
    """`input ** exponent`, computed in float64."""
    cast = [wrap(prims.cast(v._read(), float64)) if isinstance(v, Tensor)
            else float(number(v, "gs.float_power")) for v in (input, exponent)]
    return wrap(TABLE["pow"](*operands("gs.float_power", cast)))


@public(inplace=True)
@with_out
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 below zero, 1 above, `values` at zero."""
    x, v = node_of(input, "gs.heaviside"), node_of(values, "gs.heaviside", "values")
    if x.dtype is not v.dtype:
        raise DTypeError(f"gs.heaviside: x is {type_text(x)} and values {type_text(v)}; the dtypes "
                         "must be equal.")
    x, v = fit("gs.heaviside", x, v)
    zero = prims.const(0, x)
    step = prims.where(TABLE["gt"](x, zero), prims.const(1, x), zero)
    return wrap(prims.where(prims.equal(x, zero), v, step))


def _greatest(a: Node, b: Node) -> Node:
    """Greatest common divisor by Euclid's algorithm; as many steps as the dtype can need."""
    a, b = TABLE["abs"](a), TABLE["abs"](b)
    zero, one = prims.const(0, a), prims.const(1, a)
    # Fibonacci neighbours are the worst case: log(2^bits) / log(1.618) steps.
    for _ in range(math.ceil(8 * a.dtype.itemsize * 1.4405)):
        done = prims.equal(b, zero)
        a, b = (prims.where(done, a, b),
                prims.where(done, b, TABLE["remainder"](a, prims.where(done, one, b))))
    return a


@public(inplace=True)
@with_out
def gcd(input: Tensor, other: Tensor) -> Tensor:
    """The greatest common divisor of integers; gcd(0, 0) = 0."""
    return wrap(_greatest(*operands("gs.gcd", (input, other), "integer")))


@public(inplace=True)
@with_out
def lcm(input: Tensor, other: Tensor) -> Tensor:
    """The least common multiple of integers; 0 if one is 0."""
    a, b = operands("gs.lcm", (input, other), "integer")
    g = _greatest(a, b)
    zero = prims.equal(g, prims.const(0, g))
    part = TABLE["floor_divide"](a, prims.where(zero, prims.const(1, g), g))
    return wrap(TABLE["abs"](prims.mul(part, b)))


# ------------------------------------------------------------------------------ logic and tests

def _logical(name: str, record: str) -> None:
    def fn(input: Tensor, other: Any) -> Tensor:
        nodes = []
        for v in (input, other):
            x = v._read() if isinstance(v, Tensor) else prims.full(v, (), bool_)
            nodes.append(x if x.dtype is bool_ else TABLE["ne"](x, prims.const(0, x)))
        a, b = fit(f"gs.{name}", *nodes)
        return wrap(TABLE[record](a, b))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name}: of truth values (an element is true unless it is 0); the result is bool."
    made = public()(with_out(fn))
    attach(name + "_", in_place(made, name + "_"))


for _name in ("and", "or", "xor"):
    _logical(f"logical_{_name}", f"bitwise_{_name}")


def _infinite(name: str, sign: float) -> None:
    def fn(input: Tensor) -> Tensor:
        x = node_of(input, f"gs.{name}")
        if x.dtype.kind != "f":
            return wrap(prims.full(False, x.shape, bool_))
        return wrap(prims.equal(x, prims.const(sign, x)))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"Whether x is {'+' if sign > 0 else '-'}infinity."
    public()(with_out(fn))


_infinite("isposinf", math.inf)
_infinite("isneginf", -math.inf)


@public()
def isreal(input: Tensor) -> Tensor:
    """Whether x is real: True everywhere."""
    return wrap(prims.full(True, node_of(input, "gs.isreal").shape, bool_))


@public(inplace=True)
def xor(input: Tensor, other: Any) -> Tensor:
    """`input ^ other`."""
    return PUBLIC["bitwise_xor"](input, other)


@public()
def conj_physical(input: Tensor) -> Tensor:
    """The complex conjugate: the real tensor itself."""
    return input


PUBLIC["conj"] = PUBLIC["real"] = PUBLIC["resolve_conj"] = PUBLIC["resolve_neg"] = conj_physical


# ------------------------------------------------------------------- derived from other functions

@public(method=False)
def cov(input: Tensor, *, correction: int = 1, fweights: Tensor | None = None,
        aweights: Tensor | None = None) -> Tensor:
    """The covariance matrix of variables in rows.

    Args:
        input: (variables, observations), or one row.
        correction: subtracted from the number of observations.
        fweights: how often each observation counts (integers).
        aweights: the weight of each observation.
    """
    x = node_of(input, "gs.cov")
    if x.ndim > 2:
        raise ShapeError(f"gs.cov: x has {x.ndim} dimensions; it must have at most 2.")
    m = input.reshape(1, -1) if x.ndim < 2 else input
    w = None
    if fweights is not None:
        w = fweights
    if aweights is not None:
        w = aweights if w is None else w * aweights
    m = m.to(floating(x.dtype))
    total = w.sum() if w is not None else float(m.shape[1])
    average = ((m * w).sum(1) if w is not None else m.sum(1)) / total
    centred = m - average.unsqueeze(1)
    weighted = centred * w if w is not None else centred
    if w is not None and aweights is not None and correction != 0:
        scale = total - correction * (w * aweights).sum() / total
    else:
        scale = total - correction
    scale = scale.clamp(min=0) if isinstance(scale, Tensor) else max(scale, 0.0)
    made = (weighted @ centred.mT) / scale
    return made.squeeze()  # one variable: its variance, without dimensions, as PyTorch


attach("cov", cov)


@public()
def corrcoef(input: Tensor) -> Tensor:
    """The matrix of correlation coefficients of variables in rows."""
    c = cov(input)
    if c.ndim == 0:
        return c / c
    d = c.diagonal().sqrt()
    return clamp(c / d.unsqueeze(1) / d.unsqueeze(0), -1, 1)
