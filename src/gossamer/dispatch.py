"""From what the user passed to nodes that fit an operator: numbers, promotion, broadcasting.
Layer 4.

Every public function turns its arguments into nodes here, and so every complaint about an argument
is made here, with the name of the function as the user wrote it. `public` puts a function into the
namespace of the package and, if asked, on Tensor, with its in-place and `out=` forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from gossamer import prims
from gossamer.core.dtype import (
    DType,
    bool_,
    common_dtype,
    get_default_dtype,
    int64,
    promote,
)
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.ir.node import Node, Shape, describe, type_text
from gossamer.tensor import Parameter, Tensor, attach, wrap

__all__ = ["PUBLIC", "axes_of", "axis_of", "broadcast_shapes", "fit", "floating", "give", "node_of",
           "operands", "public", "same_type", "shape_of", "tensors_of"]

PUBLIC: dict[str, Any] = {}  # what `import gossamer as gs` offers, filled by the surface modules
Numbers = (bool, int, float, np.generic)
F = TypeVar("F", bound=Callable[..., Any])
_TENSORS = (Tensor, Parameter)


# ------------------------------------------------------------------------------- registration

def public(*, name: str | None = None, method: bool | str = True, function: bool = True,
           inplace: bool = False, aliases: Sequence[str] = ()) -> Callable[[F], F]:
    """Decorator: publish a function.

    Args:
        name: its public name, if not its own.
        method: also a method of Tensor (True), of that other name (a string), or not (False).
        function: a function of the package.
        inplace: also give Tensor the method `name_`, which writes the result to its first argument.
        aliases: further names of all of these.
    """
    def register(fn: F) -> F:
        main = name or fn.__name__
        for known in (main, *aliases):
            if function:
                PUBLIC[known] = fn
            if method:
                attach(method if isinstance(method, str) else known, fn)
            if inplace:
                attach(known + "_", in_place(fn, known + "_"))
        return fn
    return register


def in_place(fn: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """The method `name`: `self` becomes `fn(self, ...)`."""
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_inplace(f"x.{name}")
        return give(self, fn(self, *args, **kwargs)._read(), f"x.{name}")
    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{fn.__name__}`, written into this tensor. Returns it."
    return method


def give(target: Tensor, value: Node, name: str) -> Tensor:
    """Write `value` to `target` as the result of an in-place operation.

    Raises:
        ShapeError, DTypeError: `target` cannot hold it.
    """
    held = target._node
    if value.shape != held.shape:
        raise ShapeError(f"{name}: the result has shape {value.shape}, but x has {held.shape}; an "
                         "in-place operation keeps the shape. Use the form that returns a new "
                         "tensor.")
    if value.dtype is not held.dtype:
        if value.dtype.category > held.dtype.category:
            raise DTypeError(f"{name}: the result is {value.dtype.name}, which {held.dtype.name} "
                             "cannot hold. Use the form that returns a new tensor, or cast x "
                             "first.")
        value = prims.cast(value, held.dtype)
    return target._write(value)


def write_out(out: Tensor, value: Node, name: str) -> Tensor:
    """Write `value` to the tensor given as `out=`, which takes its shape."""
    out._check_inplace(f"{name}(out=)")
    if value.dtype.category > out._node.dtype.category:
        raise DTypeError(f"{name}(out=): the result is {value.dtype.name}, which "
                         f"{out._node.dtype.name} cannot hold.")
    value = prims.cast(value, out._node.dtype)
    if value.shape != out._node.shape:
        if out._base is not None:
            raise ShapeError(f"{name}(out=): the result has shape {value.shape}, and `out` is a "
                             f"view of shape {out._node.shape}, which cannot be resized.")
        out._node = value
    return out._write(value)


def with_out(fn: F) -> F:
    """Give a function that returns one tensor the keyword `out`."""
    @functools.wraps(fn)
    def wrapped(*args: Any, out: Tensor | None = None, **kwargs: Any) -> Tensor:
        made = fn(*args, **kwargs)
        if out is None:
            return made
        return write_out(out, made._read(), f"gs.{fn.__name__}")
    return wrapped  # type: ignore[return-value]


# ------------------------------------------------------------------------------------ operands

def node_of(value: Any, name: str, what: str = "input") -> Node:
    """The node of a tensor argument.

    Raises:
        DTypeError: it is not a tensor.
    """
    if isinstance(value, Tensor):
        return value._node if value._base is None else value._read()
    raise DTypeError(f"{name}: `{what}` must be a tensor, not {type(value).__name__}. "
                     "Make one with gs.tensor(...).")


def tensors_of(values: Any, name: str) -> list[Node]:
    """The nodes of a sequence of tensors."""
    if isinstance(values, Tensor):
        values = values.unbind(0) if values.ndim else (values,)
    if not isinstance(values, (list, tuple)) and not hasattr(values, "__iter__"):
        raise DTypeError(f"{name}: expected a list or tuple of tensors, not "
                         f"{type(values).__name__}.")
    return [node_of(v, name, f"tensors[{i}]") for i, v in enumerate(values)]


def number(value: Any, name: str) -> Any:
    """A Python number from a number, a NumPy scalar or a tensor with one element."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.item()
    raise DTypeError(f"{name}: expected a number, not {type(value).__name__}.")


def _python_type(value: Any, name: str) -> type:
    if isinstance(value, (bool, np.bool_)):
        return bool
    if isinstance(value, (int, np.integer)):
        return int
    if isinstance(value, (float, np.floating)):
        return float
    raise DTypeError(f"{name}: expected a tensor or a number, not {type(value).__name__}. "
                     "Make a tensor of it with gs.tensor(...).")


def _join(a: DType | None, b: DType) -> DType:
    return b if a is None else promote(a, b)


def result_dtype(values: Sequence[Any], name: str) -> DType:
    """PyTorch's promotion over tensors, nodes and numbers."""
    dimensioned: DType | None = None
    zero: DType | None = None
    scalar: type | None = None
    rank = {bool: 0, int: 1, float: 2}
    for value in values:
        if isinstance(value, Tensor):
            value = value._node
        if isinstance(value, Node):
            if value.shape:
                dimensioned = _join(dimensioned, value.dtype)
            else:
                zero = _join(zero, value.dtype)
        else:
            kind = _python_type(value, name)
            if scalar is None or rank[kind] > rank[scalar]:
                scalar = kind
    return common_dtype(dimensioned, zero, scalar)


def broadcast_shapes(name: str, shapes: Sequence[Shape]) -> Shape:
    """The shape that all of `shapes` broadcast to.

    Raises:
        ShapeError: two extents differ and neither is 1.
    """
    ndim = max(map(len, shapes), default=0)
    out = [1] * ndim
    for shape in shapes:
        lead = ndim - len(shape)
        for i, n in enumerate(shape, lead):
            if n != 1 and n != out[i]:
                if out[i] != 1:
                    given = " and ".join(str(tuple(s)) for s in shapes)
                    raise ShapeError(
                        f"{name}: shapes {given} do not broadcast: counted from the right, "
                        f"dimension {i - ndim} is {out[i]} in one and {n} in another; they must be "
                        "equal or 1. Use reshape, unsqueeze or transpose to line them up.")
                out[i] = n
    return tuple(out)


def floating(dtype: DType) -> DType:
    """`dtype` if it is floating, else the default dtype."""
    return dtype if dtype.kind == "f" else get_default_dtype()


def same_type(name: str, values: Sequence[Any], rule: str = "same") -> list[Node]:
    """Nodes of one dtype (not yet one shape); numbers become constants without dimensions.

    Args:
        rule: "same" promotion; "float" the result is floating; "compare" as "same"; "integer"
            floating operands are refused.
    """
    dtype = result_dtype(values, name)
    if rule == "float":
        dtype = floating(dtype)
    elif rule == "integer" and dtype.kind == "f":
        given = describe([v._node for v in values if isinstance(v, Tensor)])
        raise DTypeError(f"{name}: got {given}; it is defined for integers and bool only. "
                         "Use x.long() if the values are whole.")
    nodes = []
    for value in values:
        if isinstance(value, Tensor):
            nodes.append(prims.cast(value._read(), dtype))
        elif isinstance(value, Node):
            nodes.append(prims.cast(value, dtype))
        else:
            nodes.append(prims.full(value, (), dtype))
    return nodes


def operands(name: str, values: Sequence[Any], rule: str = "same") -> list[Node]:
    """Nodes of one dtype and one shape from tensors and numbers (see `same_type`)."""
    nodes = same_type(name, values, rule)
    shape = nodes[0].shape
    if all(n.shape == shape for n in nodes):
        return nodes
    shape = broadcast_shapes(name, [n.shape for n in nodes])
    return [prims.expand(n, shape) for n in nodes]


def fit(name: str, *nodes: Node) -> list[Node]:
    """Broadcast nodes to one shape."""
    shape = broadcast_shapes(name, [n.shape for n in nodes])
    return [prims.expand(n, shape) for n in nodes]


def accumulate_type(dtype: DType) -> DType:
    """The dtype in which sums and products of `dtype` are kept: int64 for integers and bool."""
    return dtype if dtype.kind == "f" else int64


# ------------------------------------------------------------------------- dimensions and shapes

def axis_of(dim: Any, ndim: int, name: str, what: str = "dim") -> int:
    """A dimension as a number from the front. A tensor without dimensions counts as having one.

    Raises:
        IndexingError: there is no such dimension.
    """
    if not isinstance(dim, int) or isinstance(dim, bool):
        if not hasattr(dim, "__index__") or isinstance(dim, bool):
            raise DTypeError(f"{name}: `{what}` must be an integer, not {dim!r}.")
        dim = dim.__index__()
    extent = max(ndim, 1)
    if not -extent <= dim < extent:
        raise IndexingError(f"{name}: {what}={dim}, but the tensor has {ndim} "
                            f"dimension{'s' if ndim != 1 else ''}; it must lie between {-extent} "
                            f"and {extent - 1}.")
    return dim % extent


def axes_of(dim: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Dimensions (None or () means all) as sorted numbers from the front.

    Raises:
        IndexingError: a dimension does not exist or is named twice.
    """
    if dim is None:
        return tuple(range(ndim))
    if not isinstance(dim, (tuple, list)):
        dim = (dim,)
    found = [axis_of(d, ndim, name) for d in dim]
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: dim={tuple(dim)} names a dimension twice; each may be named "
                         "once.")
    if not dim:
        return tuple(range(ndim))
    return tuple(sorted(found)) if ndim else ()


def shape_of(size: tuple[Any, ...], name: str) -> Shape:
    """A shape from `f(2, 3)`, `f((2, 3))` or `f(tensor.shape)`.

    Raises:
        DTypeError: an extent is not an integer.
    """
    if len(size) == 1 and isinstance(size[0], (tuple, list)):
        size = tuple(size[0])
    out = []
    for n in size:
        if not isinstance(n, int):
            if not hasattr(n, "__index__"):
                raise DTypeError(f"{name}: a shape is made of integers, not {n!r}.")
            n = n.__index__()
        out.append(int(n))
    return tuple(out)


def checked_shape(size: tuple[Any, ...], name: str) -> Shape:
    """`shape_of`, all extents at least 0."""
    shape = shape_of(size, name)
    if any(n < 0 for n in shape):
        raise ShapeError(f"{name}: shape {shape} has a negative extent.")
    return shape


def need_float(node: Node, name: str) -> None:
    """Raise unless `node` is floating."""
    if node.dtype.kind != "f":
        raise DTypeError(f"{name}: x is {type_text(node)}; it must be floating-point. Use "
                         "x.float().")


def mask_of(value: Any, name: str) -> Node:
    """The node of a bool tensor argument."""
    node = node_of(value, name, "mask")
    if node.dtype is not bool_:
        raise DTypeError(f"{name}: the mask is {type_text(node)}; it must be bool. "
                         "Write a comparison such as mask != 0.")
    return node


def index_node(value: Any, name: str, what: str = "index") -> Node:
    """The node of an integer index argument, as int64."""
    node = node_of(value, name, what)
    if node.dtype.kind not in "iu":
        raise DTypeError(f"{name}: `{what}` is {type_text(node)}; it must hold integers. "
                         "Use .long().")
    return prims.cast(node, int64)


__all__ += ["accumulate_type", "checked_shape", "in_place", "index_node", "mask_of", "need_float",
            "number", "result_dtype", "wrap", "with_out", "write_out"]
