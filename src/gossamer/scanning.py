"""Running sums, products and extremes, and differences along a dimension. Layer 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gossamer import prims
from gossamer.core.dtype import as_dtype, bool_, int64
from gossamer.core.errors import ShapeError
from gossamer.dispatch import (
    accumulate_type,
    axis_of,
    floating,
    in_place,
    node_of,
    operands,
)
from gossamer.gathering import gather_node
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE
from gossamer.ops.scan import shift
from gossamer.reductions import Pair, reduction
from gossamer.tensor import Tensor, attach, wrap

__all__ = ["cumprod", "cumsum"]


def _line(x: Node) -> Node:
    """A tensor without dimensions counts as having one element in one dimension."""
    return x if x.ndim else prims.reshape(x, (1,))


def _running(name: str, combine: str) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
        x = node_of(input, f"gs.{name}")
        x = prims.cast(x, as_dtype(dtype) if dtype is not None else accumulate_type(x.dtype))
        axis = axis_of(dim, x.ndim, f"gs.{name}")
        if x.size == 0:
            return wrap(x)
        return wrap(prims.reshape(prims.scan(_line(x), axis, combine), x.shape))
    fn.__name__ = fn.__qualname__ = name
    what = "sum" if combine == "add" else "product"
    fn.__doc__ = (f"The running {what} along a dimension; integers and bool in int64.\n\nArgs:\n "
                  "   input: any shape.\n    dim: the dimension.\n    dtype: cast to this first.\n")
    return fn


def _named(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    made = reduction()(fn)
    attach(name + "_", in_place(made, name + "_"))
    return made


cumsum = _named(_running("cumsum", "add"), "cumsum")
cumprod = _named(_running("cumprod", "mul"), "cumprod")


def _extreme(name: str, combine: str) -> Callable[..., Pair]:
    def fn(input: Tensor, dim: int) -> Pair:
        x = node_of(input, f"gs.{name}")
        axis = axis_of(dim, x.ndim, f"gs.{name}")
        if x.size == 0:
            return Pair(wrap(x), wrap(prims.full(0, x.shape, int64)))
        line = _line(x)
        plain = prims.detach(line)
        if plain.dtype is bool_:
            plain = prims.cast(plain, as_dtype("uint8"))
        best = prims.scan(plain, axis, combine)
        hit = prims.equal(plain, best)
        if plain.dtype.kind == "f":
            hit = prims.logical_or(hit, TABLE["isnan"](plain))
        place = prims.iota(axis, line.shape)
        index = prims.scan(prims.where(hit, place, prims.const(0, place)), axis, "max")
        values = gather_node(line, axis, index) if x.grad else prims.cast(best, x.dtype)
        return Pair(wrap(prims.reshape(values, x.shape)), wrap(prims.reshape(index, x.shape)))
    fn.__name__ = fn.__qualname__ = name
    word = "largest" if combine == "max" else "smallest"
    fn.__doc__ = (f"The {word} element so far along `dim`, and where it stands (the last of "
                  "equals); NaN wins.")
    return fn


cummax = reduction()(_extreme("cummax", "max"))
cummin = reduction()(_extreme("cummin", "min"))


def _log_scan(x: Node, axis: int) -> Node:
    """Running logsumexp m + log(s): m is the largest element so far, and the sum of e^(x - m) is
    s_i = e^(m_{i-1} - m_i) s_{i-1} + e^(x_i - m_i)."""
    best = prims.scan(prims.detach(x), axis, "max")
    zero = prims.const(0, best)
    base = prims.where(TABLE["isfinite"](best), best, zero)
    before = shift(best, axis, 1, float("-inf"))
    # Below infinities nothing is carried: e^(-inf) times a sum of 0, or what stays infinite.
    known = prims.where(TABLE["isfinite"](before), before, base)
    decay = TABLE["exp"](prims.sub(known, base))
    total = TABLE["recurrence"](decay, TABLE["exp"](prims.sub(x, base)), axis=axis)
    return prims.add(base, TABLE["log"](total))


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """log of the running sum of e^x along `dim`, without overflow."""
    x = node_of(input, "gs.logcumsumexp")
    x = prims.cast(x, floating(x.dtype))
    axis = axis_of(dim, x.ndim, "gs.logcumsumexp")
    if x.size == 0:
        return wrap(x)
    return wrap(prims.reshape(_log_scan(_line(x), axis), x.shape))


_logcumsumexp.__name__ = "logcumsumexp"
logcumsumexp = reduction()(_logcumsumexp)


@reduction()
def diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None,
         append: Tensor | None = None) -> Tensor:
    """Differences of neighbours along `dim`, taken `n` times.

    Args:
        input: at least 1-dimensional.
        n: how often.
        prepend, append: what to put before and behind first.
    """
    x = node_of(input, "gs.diff")
    if x.ndim == 0:
        raise ShapeError("gs.diff: x has no dimensions; it needs at least 1.")
    axis = axis_of(dim, x.ndim, "gs.diff")
    if n == 0:  # as PyTorch: nothing is put before or behind either
        return wrap(x)
    parts = []
    for extra in (prepend, input, append):
        if extra is not None:
            e = node_of(extra, "gs.diff")
            if e.ndim == 0:
                e = prims.expand(e, (*x.shape[:axis], 1, *x.shape[axis + 1:]))
            parts.append(prims.cast(e, x.dtype))
    x = prims.concat(parts, axis)
    for _ in range(min(n, x.shape[axis])):
        extent = x.shape[axis]
        if extent == 0:
            break
        later, earlier = prims.narrow(x, axis, 1, extent), prims.narrow(x, axis, 0, extent - 1)
        x = TABLE["ne"](later, earlier) if x.dtype is bool_ else prims.sub(later, earlier)
    return wrap(x)


def _trapezoid(input: Tensor, x: Any, dx: Any, dim: int, name: str) -> tuple[Node, int]:
    """The areas between neighbours along `dim`."""
    y = node_of(input, name)
    y = prims.cast(y, floating(y.dtype))
    axis = axis_of(dim, y.ndim, name)
    n = y.shape[axis] if y.ndim else 0
    if n == 0:
        return y, axis
    pair = prims.add(prims.narrow(y, axis, 1, n), prims.narrow(y, axis, 0, n - 1))
    if x is None:
        return prims.mul(pair, prims.const(0.5 * float(dx), pair)), axis
    at = node_of(x, name, "x")
    if at.ndim == 1 and y.ndim > 1:
        if at.shape[0] != n:
            raise ShapeError(f"{name}: x has {at.shape[0]} points and y {n} along dim {dim}; they "
                             "must be equal.")
        at = prims.reshape(at, tuple(n if i == axis else 1 for i in range(y.ndim)))
    place = axis - y.ndim + at.ndim
    m = at.shape[place]
    step = prims.sub(prims.narrow(at, place, 1, m), prims.narrow(at, place, 0, m - 1))
    a, b = operands(name, (wrap(pair), wrap(step)))
    made = prims.mul(prims.mul(a, b), prims.const(0.5, a))
    return made, axis - y.ndim + made.ndim


@reduction(method=False, aliases=("trapz",))
def trapezoid(y: Tensor, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Tensor:
    """The integral of `y` along `dim` by the trapezoidal rule, at points `x` or `dx` apart."""
    areas, axis = _trapezoid(y, x, dx, dim, "gs.trapezoid")
    return wrap(prims.reduce_sum(areas, (axis,)) if areas.ndim else areas)


@reduction(method=False)
def cumulative_trapezoid(y: Tensor, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Tensor:
    """The running integral of `y` along `dim` by the trapezoidal rule."""
    areas, axis = _trapezoid(y, x, dx, dim, "gs.cumulative_trapezoid")
    return wrap(prims.scan(areas, axis, "add") if areas.size else areas)
