"""Which dtype an operation computes in: what `autocast` casts, function by function. Layer 4.

A function of the surface says with a decorator how it behaves under `amp.autocast`: products
(`lower_precision`) run in the low dtype, losses and decompositions (`full_precision`) in float32;
all others take what they get, and promote as ever. The lists are PyTorch's for the CPU. Nodes are
built after the casts, so gradients, transforms and the compiler need to know nothing of autocast,
and a parameter's gradient comes back through its cast in the parameter's own dtype.

Source: PyTorch, "Automatic Mixed Precision package", section CPU Op-Specific Behavior.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gossamer import prims
from gossamer.core.dtype import DType, bfloat16, float16, float32
from gossamer.ir.node import STATE
from gossamer.modes import MODES
from gossamer.tensor import Tensor, wrap

__all__ = ["LISTS", "cast_of", "full_precision", "lower_precision"]

F = TypeVar("F", bound=Callable[..., Any])
LISTS: dict[str, list[str]] = {"lower": [], "full": []}  # names, for the reference and the tests

_LOW = frozenset({bfloat16, float16})
_CAST = frozenset({bfloat16, float16, float32})  # float64 and integers are left as they are


def lower_precision(fn: F) -> F:
    """Decorator: under autocast, floating-point arguments (float64 apart) become the low dtype."""
    LISTS["lower"].append(fn.__name__)

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if MODES.autocast is None or kwargs.get("out") is not None:
            return fn(*args, **kwargs)
        return _with_arguments_in(fn, MODES.autocast, _CAST, args, kwargs)
    return wrapped  # type: ignore[return-value]


def full_precision(fn: F) -> F:
    """Decorator: under autocast, float16 and bfloat16 arguments become float32."""
    LISTS["full"].append(fn.__name__)

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if MODES.autocast is None or kwargs.get("out") is not None:
            return fn(*args, **kwargs)
        return _with_arguments_in(fn, float32, _LOW, args, kwargs)
    return wrapped  # type: ignore[return-value]


def _with_arguments_in(fn: Callable[..., Any], dtype: DType, which: frozenset[DType],
                       args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`fn` on arguments cast to `dtype`; what it calls in turn is not cast again."""
    args = tuple([_cast(x, dtype, which) for x in args])
    kwargs = {k: _cast(x, dtype, which) for k, x in kwargs.items()}
    before, MODES.autocast = MODES.autocast, None
    try:
        return fn(*args, **kwargs)
    finally:
        MODES.autocast = before


def _cast(x: Any, dtype: DType, which: frozenset[DType]) -> Any:
    """Tensors, also in lists and tuples, cast if their dtype is one of `which`."""
    if isinstance(x, Tensor):
        if x._node.dtype is dtype or x._node.dtype not in which:
            return x
        return cast_of(x, dtype)
    if x.__class__ is list or x.__class__ is tuple:
        return x.__class__([_cast(y, dtype, which) for y in x])
    return x


def cast_of(x: Tensor, dtype: DType) -> Tensor:
    """`x` in `dtype`; a parameter's is made once in a region with `cache_enabled`.

    It is kept by the node that it was made from: a parameter that is written has another node, so
    a stale cast is never found. While a function is traced nothing is kept: equal casts become one
    node when the graph is simplified.
    """
    node = x._read()
    cache = MODES.cast_cache
    if cache is None or MODES.tracing is not None or not x._leaf:
        return wrap(prims.cast(node, dtype))
    key = (id(node), dtype, STATE.grad_enabled)
    found = cache.get(key)
    if found is None:
        # The node is kept too: its id, the key, must not become another's.
        found = cache[key] = (node, wrap(prims.cast(node, dtype)))
    made: Tensor = found[1]
    return made
