"""`gossamer.masked`: reductions and normalisations of the elements that a mask keeps. Layer 4.

A masked-out element is replaced by the neutral element of the reduction; where a whole row is
masked out the result is that neutral element (NaN for averages).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

from gossamer import prims
from gossamer.core.dtype import as_dtype, bool_
from gossamer.dispatch import PUBLIC, node_of
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE
from gossamer.reductions import norm as _norm
from gossamer.tensor import Tensor, wrap

__all__ = ["amax", "amin", "argmax", "argmin", "cumprod", "cumsum", "log_softmax", "logaddexp",
           "logsumexp", "mean", "median", "norm", "normalize", "prod", "softmax", "softmin", "std",
           "sum", "var"]


def _limit(x: Node, largest: bool) -> float:
    if x.dtype.kind == "f":
        return math.inf if largest else -math.inf
    bits = 8 * x.dtype.itemsize - (x.dtype.kind == "i")
    return 2 ** bits - 1 if largest else (0 if x.dtype.kind == "u" else -(2 ** bits))


def _filled(input: Tensor, mask: Tensor | None, value: Any, dtype: Any = None) -> Tensor:
    x = node_of(input, "masked")
    if dtype is not None:
        x = prims.cast(x, as_dtype(dtype))
    if mask is None:
        return wrap(x)
    m = prims.expand(_truth(mask), x.shape)
    fill = value(x) if callable(value) else value
    return wrap(prims.where(m, x, prims.const(fill, x)))


def _truth(mask: Tensor) -> Node:
    m = node_of(mask, "masked", "mask")
    return m if m.dtype is bool_ else TABLE["ne"](m, prims.const(0, m))


def _reduce(name: str, neutral: Any) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None,
           mask: Tensor | None = None) -> Tensor:
        x = _filled(input, mask, neutral, dtype)
        dims = dim if dim is not None else builtins.tuple(range(x.ndim))
        if name == "prod" and isinstance(dims, tuple):
            for d in sorted((d % max(x.ndim, 1) for d in dims), reverse=True):
                x = x.prod(d, keepdim) if x.ndim else x
            return x
        return PUBLIC[name](x, dims, keepdim)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"`{name}` over `dim` of the elements where the mask is true."
    return fn


sum = _reduce("sum", 0)
prod = _reduce("prod", 1)
amax = _reduce("amax", lambda x: _limit(x, False))
amin = _reduce("amin", lambda x: _limit(x, True))
logsumexp = _reduce("logsumexp", -math.inf)


def _position(name: str, largest: bool) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: int | None = None, *, keepdim: bool = False, dtype: Any = None,
           mask: Tensor | None = None) -> Tensor:
        x = _filled(input, mask, lambda n: _limit(n, not largest))
        return PUBLIC[name](x, dim, keepdim).to(input.dtype if dtype is None else dtype)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (f"`{name}` along `dim` among the elements where the mask is true; as in PyTorch "
                  "the positions have the dtype of `input` unless `dtype` is given.")
    return fn


argmax = _position("argmax", True)
argmin = _position("argmin", False)


def _along(name: str, neutral: Any) -> Callable[..., Tensor]:
    def fn(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
        return PUBLIC[name](_filled(input, mask, neutral, dtype), dim)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"`{name}` along `dim` of the elements where the mask is true."
    return fn


cumsum = _along("cumsum", 0)
cumprod = _along("cumprod", 1)
softmax = _along("softmax", -math.inf)
log_softmax = _along("log_softmax", -math.inf)


def softmin(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """`softmax(-x)` along `dim` of the elements where the mask is true."""
    return softmax(-_filled(input, mask, math.inf, dtype), dim)


def _count(x: Tensor, mask: Tensor | None, dims: Any, keepdim: bool) -> Tensor:
    ones = wrap(prims.const(1, x._node))
    return PUBLIC["sum"](_filled(ones, mask, 0), dims, keepdim)


def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None,
         mask: Tensor | None = None) -> Tensor:
    """Average over `dim` of the elements where the mask is true."""
    x = _filled(input, None, 0, dtype)
    dims = dim if dim is not None else builtins.tuple(range(x.ndim))
    total = PUBLIC["sum"](_filled(x, mask, 0), dims, keepdim)
    return total / _count(x, mask, dims, keepdim)


def median(input: Tensor, dim: int = -1, *, keepdim: bool = False, dtype: Any = None,
           mask: Tensor | None = None) -> Tensor:
    """Lower median along `dim` of the elements where the mask is true."""
    x = _filled(input, None, 0, dtype)
    found: Tensor = PUBLIC["nanmedian" if mask is not None else "median"](
        _filled(x, mask, math.nan), dim, keepdim)[0]
    return found


def var(input: Tensor, dim: Any = None, unbiased: bool | None = None, *, correction: Any = None,
        keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Variance over `dim` of the elements where the mask is true."""
    x = _filled(input, None, 0, dtype)
    dims = dim if dim is not None else builtins.tuple(range(x.ndim))
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    count = _count(x, mask, dims, True)
    gap = _filled(x - PUBLIC["sum"](_filled(x, mask, 0), dims, True) / count, mask, 0)
    total = PUBLIC["sum"](gap * gap, dims, keepdim)
    freedom = (_count(x, mask, dims, keepdim) - correction).clamp(min=0)
    return total / freedom


def std(input: Tensor, dim: Any = None, unbiased: bool | None = None, *, correction: Any = None,
        keepdim: bool = False, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Standard deviation over `dim` of the elements where the mask is true."""
    return var(input, dim, unbiased, correction=correction,
               keepdim=keepdim, dtype=dtype, mask=mask).sqrt()


def norm(input: Tensor, ord: float | None = 2.0, dim: Any = None, keepdim: bool = False, *,
         dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """p-norm over `dim` of the elements where the mask is true."""
    order = 2.0 if ord is None else float(ord)
    fill = math.inf if order < 0 else 0
    return _norm(_filled(input, mask, fill, dtype), order, dim, keepdim)


def normalize(input: Tensor, ord: float, dim: int, *, eps: float = 1e-12, dtype: Any = None,
              mask: Tensor | None = None) -> Tensor:
    """Elements where the mask is true divided by their p-norm along `dim` (at least eps)."""
    size = norm(input, ord, dim, True, dtype=dtype, mask=mask).clamp(min=eps)
    return _filled(input, mask, 0, dtype) / size


def logaddexp(input: Tensor, other: Tensor, *, dtype: Any = None, input_mask: Tensor | None = None,
              other_mask: Tensor | None = None) -> Tensor:
    """log(e^a + e^b), masked-out elements counting as -inf."""
    return PUBLIC["logaddexp"](_filled(input, input_mask, -math.inf, dtype),
                               _filled(other, other_mask, -math.inf, dtype))
