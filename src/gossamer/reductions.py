"""Reductions: sums, means, extremes, variances, norms, and what counts or compares. Layer 4.

A function names its dimensions (`dim`, also `axis`), casts as PyTorch does and builds one reduction
node; `keepdim` is a reshape afterwards. Integers and bool are summed in int64.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gossamer import prims
from gossamer.casting import full_precision
from gossamer.core.dtype import as_dtype, bool_, float64, int64
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.decompositions import svdvals
from gossamer.dispatch import (
    accumulate_type,
    axes_of,
    axis_of,
    fit,
    floating,
    need_float,
    node_of,
    operands,
    public,
    write_out,
)
from gossamer.gathering import gather_node
from gossamer.ir.node import Node, Shape, type_text
from gossamer.ir.op import TABLE
from gossamer.tensor import Tensor, wrap

__all__ = ["MinMax", "Pair", "Spread", "keep", "norm_node", "reduction"]


class Pair(NamedTuple):
    """What was found, and where."""

    values: Tensor
    indices: Tensor


class MinMax(NamedTuple):
    """The smallest and the largest element."""

    min: Tensor
    max: Tensor


class Spread(NamedTuple):
    """A measure of spread and the mean."""

    spread: Tensor
    mean: Tensor


def keep(reduced: Node, shape: Shape, axes: Sequence[int], keepdim: bool) -> Node:
    """The result with extent 1 in place of the reduced axes of `shape`."""
    if not keepdim:
        return reduced
    return prims.reshape(reduced, tuple(1 if i in axes else n for i, n in enumerate(shape)))


def _words(kwargs: dict[str, Any]) -> dict[str, Any]:
    """NumPy's names of parameters, which PyTorch takes too."""
    for theirs, ours in (("axis", "dim"), ("keepdims", "keepdim")):
        if theirs in kwargs:
            kwargs[ours] = kwargs.pop(theirs)
    return kwargs


def reduction(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `public`, with NumPy's parameter names and `out=`."""
    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapped(*args: Any, out: Any = None, **kwargs: Any) -> Any:
            made = fn(*args, **_words(kwargs)) if kwargs else fn(*args)
            if out is None:
                return made
            if isinstance(made, tuple):
                for target, value in zip(out, made, strict=True):
                    write_out(target, value._read(), f"gs.{fn.__name__}")
                return type(made)(*out)
            return write_out(out, made._read(), f"gs.{fn.__name__}")
        return public(**options)(wrapped)
    return register


def _simple(input: Tensor, dim: Any, keepdim: bool, name: str,
            build: Callable[[Node, tuple[int, ...]], Node]) -> Tensor:
    x = node_of(input, name)
    axes = axes_of(dim, x.ndim, name)
    return wrap(keep(build(x, axes), x.shape, axes, keepdim))


# ------------------------------------------------------------------------------------- sums

@reduction()
def sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum over `dim` (all dimensions without it).

    Args:
        input: any shape; integers and bool are summed in int64.
        dim: one dimension or several.
        keepdim: keep the reduced dimensions with extent 1.
        dtype: cast to this first.

    Returns:
        The sums.

    Example:
        >>> gs.tensor([[1, 2], [3, 4]]).sum(dim=0)
        tensor([4, 6])
    """
    x = node_of(input, "gs.sum")
    x = prims.cast(x, as_dtype(dtype) if dtype is not None else accumulate_type(x.dtype))
    axes = axes_of(dim, x.ndim, "gs.sum")
    return wrap(keep(prims.reduce_sum(x, axes), x.shape, axes, keepdim))


@reduction()
def nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum over `dim` with NaN counted as 0."""
    return sum(_nan_to_zero(input), dim, keepdim, dtype=dtype)


def _nan_to_zero(input: Tensor) -> Tensor:
    x = node_of(input, "gs.nansum")
    if x.dtype.kind != "f":
        return input
    return wrap(prims.where(TABLE["isnan"](x), prims.const(0, x), x))


@reduction()
def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Average over `dim` (all dimensions without it).

    Raises:
        DTypeError: the tensor is not floating and no floating `dtype` is given.
    """
    x = node_of(input, "gs.mean")
    if dtype is not None:
        x = prims.cast(x, as_dtype(dtype))
    if x.dtype.kind != "f":
        raise DTypeError(f"gs.mean: x is {type_text(x)}; an average is a float. Use "
                         "x.float().mean() or pass dtype=.")
    axes = axes_of(dim, x.ndim, "gs.mean")
    made = TABLE["mean"](x, axes=axes) if axes else x
    return wrap(keep(made, x.shape, axes, keepdim))


@reduction()
def nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Average over `dim` of what is not NaN."""
    x = node_of(input, "gs.nanmean")
    need_float(x, "gs.nanmean")
    real = wrap(prims.logical_not(TABLE["isnan"](x)))
    total = nansum(input, dim, keepdim, dtype=dtype)
    return total / sum(real, dim, keepdim).to(total.dtype)


@reduction()
@full_precision
def prod(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Product over one dimension (all without `dim`)."""
    x = node_of(input, "gs.prod")
    x = prims.cast(x, as_dtype(dtype) if dtype is not None else accumulate_type(x.dtype))
    axes = (axis_of(dim, x.ndim, "gs.prod"),) if dim is not None else tuple(range(x.ndim))
    axes = axes if x.ndim else ()
    made = TABLE["reduce_prod"](x, axes=axes) if axes else x
    return wrap(keep(made, x.shape, axes, keepdim))


# ------------------------------------------------------------------------------------ extremes

def _not_empty(x: Node, axes: Sequence[int], name: str) -> None:
    if 0 in [x.shape[a] for a in axes]:
        raise IndexingError(f"{name}: x is {type_text(x)}; over no elements there is no result. "
                            "Name a dimension that has elements.")


def _extreme(name: str) -> Callable[..., Tensor]:
    record = TABLE[f"reduce_{name[1:]}"]

    def fn(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        x = node_of(input, f"gs.{name}")
        axes = axes_of(dim, x.ndim, f"gs.{name}")
        _not_empty(x, axes, f"gs.{name}")
        return wrap(keep(record(x, axes=axes) if axes else x, x.shape, axes, keepdim))
    fn.__name__ = fn.__qualname__ = name
    word = "largest" if name == "amax" else "smallest"
    fn.__doc__ = (f"The {word} element over `dim` (all dimensions without it); NaN wins.\n\n"
                  "The derivative is shared evenly among equals.\n")
    return fn


amax = reduction()(_extreme("amax"))
amin = reduction()(_extreme("amin"))


def _along(x: Node, axis: int, largest: bool) -> tuple[Node, Node]:
    """(values, indices) of the extreme along one axis, the axis kept with extent 1."""
    index = TABLE["argmax" if largest else "argmin"](x, axis=axis)
    kept = prims.reshape(index, (*x.shape[:axis], 1, *x.shape[axis + 1:]))
    if x.grad:
        return gather_node(x, axis, kept), kept
    values = (prims.reduce_max if largest else prims.reduce_min)(x, (axis,))
    return prims.reshape(values, kept.shape), kept


def _max_or_min(name: str) -> Callable[..., Any]:
    largest = name == "max"

    def fn(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        title = f"gs.{name}"
        if isinstance(dim, Tensor) or other is not None:
            record = TABLE["maximum" if largest else "minimum"]
            return wrap(record(*operands(title, (input, other if other is not None else dim))))
        x = node_of(input, title)
        if dim is None:
            if x.size == 0:
                raise ShapeError(f"{title}(): x is {type_text(x)}; over no elements there is no "
                                 "result. Name a dimension that has elements.")
            reduce = prims.reduce_max if largest else prims.reduce_min
            return wrap(reduce(x, range(x.ndim)))
        axis = axis_of(dim, x.ndim, title)
        if x.ndim == 0:
            return Pair(wrap(x), wrap(prims.full(0, (), int64)))
        _not_empty(x, (axis,), title)
        found = _along(prims.cast(x, TABLE_UINT8) if x.dtype is bool_ else x, axis, largest)
        shape = found[0].shape if keepdim else x.shape[:axis] + x.shape[axis + 1:]
        return Pair(wrap(prims.cast(prims.reshape(found[0], shape), x.dtype)),
                    wrap(prims.reshape(found[1], shape)))
    fn.__name__ = fn.__qualname__ = name
    word = "largest" if largest else "smallest"
    fn.__doc__ = (f"{name}(x): the {word} element; {name}(x, dim): values and indices along a "
                  f"dimension; {name}(x, y): element by element. NaN wins.\n")
    return fn


TABLE_UINT8 = as_dtype("uint8")
max = reduction()(_max_or_min("max"))
min = reduction()(_max_or_min("min"))


@public()
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False,
            out: Any = None) -> MinMax:
    """The smallest and the largest element along `dim` (of all without it)."""
    chosen = () if dim is None else dim
    found = MinMax(amin(input, chosen, keepdim), amax(input, chosen, keepdim))
    if out is not None:
        for target, value in zip(out, found, strict=True):
            write_out(target, value._read(), "gs.aminmax")
        return MinMax(*out)
    return found


def _position(name: str) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        x = node_of(input, f"gs.{name}")
        shape = x.shape
        if x.dtype is bool_:
            raise DTypeError(f"gs.{name}: x is bool; positions of extremes are not defined for it. "
                             "Use x.int().")
        if dim is None:
            if x.size == 0:
                raise IndexingError(f"gs.{name}: x is {type_text(x)}; over no elements there is no "
                                    "position. Name a dimension that has elements.")
            found = TABLE[name](prims.reshape(x, (x.size,)), axis=0)
            return wrap(keep(found, shape, range(len(shape)), keepdim))
        axis = axis_of(dim, x.ndim, f"gs.{name}")
        if not shape:
            return wrap(prims.full(0, (), int64))
        _not_empty(x, (axis,), f"gs.{name}")
        return wrap(keep(TABLE[name](x, axis=axis), shape, (axis,), keepdim))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (f"Position of the {'largest' if name == 'argmax' else 'smallest'} element along "
                  "`dim` (in the flattened tensor without it); the first of equals, NaN wins.\n")
    return fn


argmax = reduction()(_position("argmax"))
argmin = reduction()(_position("argmin"))


# ------------------------------------------------------------------------------ truth and counts

def _truth(x: Node) -> Node:
    return x if x.dtype is bool_ else TABLE["ne"](x, prims.const(0, x))


def _quantifier(name: str) -> Callable[..., Tensor]:
    reduce = prims.reduce_min if name == "all" else prims.reduce_max
    empty = name == "all"

    def fn(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = node_of(input, f"gs.{name}")
        axes = () if dim == () else axes_of(dim, x.ndim, f"gs.{name}")
        axes = tuple(range(x.ndim)) if dim == () else axes
        kept = tuple(n for i, n in enumerate(x.shape) if i not in axes)
        found = prims.full(empty, kept, bool_) if 0 in [x.shape[a] for a in axes] else reduce(
            _truth(x), axes)
        if x.dtype is TABLE_UINT8:
            found = prims.cast(found, TABLE_UINT8)
        return wrap(keep(found, x.shape, axes, keepdim))
    fn.__name__ = fn.__qualname__ = name
    word = "all elements are" if name == "all" else "any element is"
    fn.__doc__ = f"Whether {word} true (not 0)."
    return fn


all = reduction()(_quantifier("all"))
any = reduction()(_quantifier("any"))


@reduction()
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    """How many elements are not 0, over `dim`."""
    return _simple(input, dim, False, "gs.count_nonzero",
                   lambda x, axes: prims.reduce_sum(prims.cast(_truth(x), int64), axes))


# ------------------------------------------------------------------------------------- spread

def _spread_arguments(x: Node, dim: Any, unbiased: Any, correction: Any, name: str,
                      ) -> tuple[tuple[int, ...], float]:
    need_float(x, name)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return axes_of(dim, x.ndim, name), correction


def _spread(record: str) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
           correction: Any = None) -> Tensor:
        x = node_of(input, f"gs.{record}")
        axes, correction = _spread_arguments(x, dim, unbiased, correction, f"gs.{record}")
        return wrap(keep(_spread_node(x, axes, correction, record), x.shape, axes, keepdim))
    fn.__name__ = fn.__qualname__ = record
    fn.__doc__ = (f"{record}: {TABLE[record].doc}\n\nArgs:\n    input: floating.\n    dim: one "
                  "dimension, several, or all.\n    correction: 1 (Bessel's) for the unbiased "
                  "estimate.\n    keepdim: keep the reduced dimensions with extent 1.\n")
    return fn


def _spread_node(x: Node, axes: tuple[int, ...], correction: float, record: str) -> Node:
    if axes:
        return TABLE[record](x, axes=axes, correction=correction)
    one = prims.reshape(x, (*x.shape, 1))
    return TABLE[record](one, axes=(x.ndim,), correction=correction)


var = reduction()(_spread("var"))
std = reduction()(_spread("std"))


def _with_mean(record: str) -> Callable[..., Spread]:
    def fn(input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
           correction: Any = None) -> Spread:
        x = node_of(input, f"gs.{record}_mean")
        axes, correction = _spread_arguments(x, dim, unbiased, correction, f"gs.{record}_mean")
        average = TABLE["mean"](x, axes=axes) if axes else x
        return Spread(wrap(keep(_spread_node(x, axes, correction, record), x.shape, axes, keepdim)),
                      wrap(keep(average, x.shape, axes, keepdim)))
    fn.__name__ = fn.__qualname__ = f"{record}_mean"
    fn.__doc__ = f"`{record}` and `mean` over the same dimensions."
    return fn


var_mean = reduction(method=False)(_with_mean("var"))
std_mean = reduction(method=False)(_with_mean("std"))


# ------------------------------------------------------------------------------------- softmax

def _along_dim(name: str, record: str) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
        x = node_of(input, f"gs.{name}")
        if dtype is not None:
            x = prims.cast(x, as_dtype(dtype))
        need_float(x, f"gs.{name}")
        axis = axis_of(dim, x.ndim, f"gs.{name}")
        if x.ndim == 0:
            return wrap(prims.reshape(TABLE[record](prims.reshape(x, (1,)), axis=0), ()))
        return wrap(TABLE[record](x, axis=axis))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (f"{name}: {TABLE[record].doc}\n\nArgs:\n    input: floating.\n    dim: the "
                  "dimension.\n")
    return fn


softmax = reduction()(_along_dim("softmax", "softmax"))
log_softmax = reduction()(_along_dim("log_softmax", "log_softmax"))


@reduction()
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log of the sum of e^x over `dim`, without overflow."""
    x = node_of(input, "gs.logsumexp")
    x = prims.cast(x, floating(x.dtype))
    axes = axes_of(dim, x.ndim, "gs.logsumexp")
    made = TABLE["logsumexp"](x, axes=axes) if axes else x
    return wrap(keep(made, x.shape, axes, keepdim))


# --------------------------------------------------------------------------------------- norms

def norm_node(x: Node, p: float, axes: tuple[int, ...]) -> Node:
    """(sum of |x|^p)^(1/p) over `axes`, with the limits for p = inf, -inf and 0."""
    size = TABLE["abs"](x)
    if p == math.inf or p == -math.inf:
        if not axes:
            return size
        return (prims.reduce_max if p > 0 else prims.reduce_min)(size, axes)
    if p == 0:
        count = prims.reduce_sum(prims.cast(TABLE["ne"](x, prims.const(0, x)), x.dtype), axes)
        return prims.flat_slope(count, x)
    if p == 1:
        return prims.reduce_sum(size, axes)
    if p == 2:
        return _euclidean(x, axes)
    if not x.grad:
        total = prims.reduce_sum(TABLE["pow"](size, prims.const(p, size)), axes)
        return TABLE["pow"](total, prims.const(1 / p, total))
    return _power_norm(size, p, axes)


def _power_norm(size: Node, p: float, axes: tuple[int, ...]) -> Node:
    """`norm_node` for a gradient: where a power's slope is infinite the norm's is 0, as PyTorch."""
    zero = prims.equal(size, prims.const(0, size))
    at_zero = prims.const(0 if p > 0 else math.inf, size)
    safe = prims.where(zero, prims.const(1, size), size) if p < 1 else size
    power = TABLE["pow"](safe, prims.const(p, size))
    total = prims.reduce_sum(prims.where(zero, at_zero, power) if p < 1 else power, axes)
    flat = prims.equal(total, prims.const(0 if p > 0 else math.inf, total))  # the norm is 0
    root = TABLE["pow"](prims.where(flat, prims.const(1, total), total),
                        prims.const(1 / p, total))
    return prims.where(flat, prims.const(0, total), root)


def _euclidean(x: Node, axes: tuple[int, ...]) -> Node:
    total = prims.reduce_sum(prims.mul(x, x), axes)
    if not x.grad:
        return TABLE["sqrt"](total)
    zero = prims.equal(total, prims.const(0, total))  # slope 0 at the origin, as PyTorch
    root = TABLE["sqrt"](prims.where(zero, prims.const(1, total), total))
    return prims.where(zero, prims.const(0, total), root)


@reduction()
def norm(input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False,
         dtype: Any = None) -> Tensor:
    """The p-norm over `dim` (all elements without it).

    Args:
        input: floating.
        p: a number, inf, -inf, or "fro" (2).
        dim: one dimension or several.
        dtype: cast to this first.
    """
    x = node_of(input, "gs.norm")
    if dtype is not None:
        x = prims.cast(x, as_dtype(dtype))
    need_float(x, "gs.norm")
    if p == "nuc":
        pair = axes_of(dim, x.ndim, "gs.norm")
        if len(pair) != 2:
            raise ShapeError(f"gs.norm(p='nuc'): x is {type_text(x)}, dim={dim}; the nuclear norm "
                             "is that of matrices. Name two dimensions.")
        front = [i for i in range(x.ndim) if i not in pair]
        total = svdvals(wrap(prims.permute(x, (*front, *pair))))._read()
        return wrap(keep(prims.reduce_sum(total, (total.ndim - 1,)), x.shape, pair, keepdim))
    order = 2.0 if p in ("fro", None) else float(p)
    axes = axes_of(dim, x.ndim, "gs.norm")
    return wrap(keep(norm_node(x, order, axes), x.shape, axes, keepdim))


@public()
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The p-norm of `input - other`."""
    a, b = operands("gs.dist", (input, other), "float")
    return norm(wrap(prims.sub(a, b)), p)


@public(inplace=True)
def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Every index of `dim` scaled down, where needed, to a p-norm of at most `maxnorm`."""
    x = node_of(input, "gs.renorm")
    axis = axis_of(dim, x.ndim, "gs.renorm")
    axes = tuple(i for i in range(x.ndim) if i != axis)
    size = keep(norm_node(x, float(p), axes), x.shape, axes, True)
    limit = prims.const(maxnorm, size)
    tiny = prims.add(size, prims.const(1e-7, size))  # PyTorch's guard against division by 0
    factor = prims.where(TABLE["gt"](size, limit), prims.div(limit, tiny), prims.const(1, size))
    return wrap(prims.mul(x, prims.expand(factor, x.shape)))


# ---------------------------------------------------------------------------------- comparisons

@public()
def allclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8,
             equal_nan: bool = False) -> bool:
    """Whether all elements are close: |a - b| <= atol + rtol * |b|. Computes both."""
    return bool(all(isclose(input, other, rtol, atol, equal_nan)).item())


@public()
def isclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8,
            equal_nan: bool = False) -> Tensor:
    """Whether |a - b| <= atol + rtol * |b|, for each element; infinities must be equal."""
    for t in (input, other):
        node_of(t, "gs.isclose")
    if input.dtype is not other.dtype:
        raise DTypeError(f"gs.isclose: got {input.dtype.name} and {other.dtype.name}; the dtypes "
                         "must be equal.")
    a, b = fit("gs.isclose", input._read(), other._read())
    same = prims.equal(a, b)
    if a.dtype.kind == "f" and equal_nan:
        same = prims.logical_or(same, prims.logical_and(TABLE["isnan"](a), TABLE["isnan"](b)))
    if rtol == 0 and atol == 0 or a.dtype is bool_:
        return wrap(same)
    if a.dtype.kind != "f":
        a, b = prims.cast(a, float64), prims.cast(b, float64)
    bound = prims.add(prims.const(atol, b), prims.mul(prims.const(rtol, b), TABLE["abs"](b)))
    gap = TABLE["abs"](prims.sub(a, b))
    near = prims.logical_and(TABLE["le"](gap, bound), TABLE["isfinite"](gap))
    return wrap(prims.logical_or(same, near))


@public()
def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have the same shape and elements. Computes both."""
    a, b = node_of(input, "gs.equal"), node_of(other, "gs.equal", "other")
    if a.shape != b.shape:
        return False
    if a.size == 0:
        return True
    x, y = operands("gs.equal", (input, other))
    return bool(wrap(prims.reduce_min(prims.equal(x, y), range(x.ndim))).item())


@public(function=False)
def sum_to_size(self: Tensor, *size: Any) -> Tensor:
    """Sum to a shape that broadcasts to this one."""
    shape: Shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
    x = self._read()
    lead = x.ndim - len(shape)
    if lead < 0 or builtins.any(n not in (1, m) for n, m in zip(shape, x.shape[lead:],
                                                                strict=True)):
        raise ShapeError(f"x.sum_to_size{tuple(shape)}: x has shape {x.shape}, to which it does "
                         "not broadcast.")
    axes = [*range(lead), *(i + lead for i, n in enumerate(shape) if n == 1)]
    return wrap(prims.reshape(prims.reduce_sum(x, axes), shape))
