"""New tensors: from Python data, filled, ranges, and shaped like another one. Layer 4.

Filled tensors and ranges are constants and counters of the graph: they take no memory until someone
looks, and fuse into what reads them. Data from Python or NumPy is copied once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import (
    DType,
    as_dtype,
    bfloat16,
    bool_,
    float64,
    get_default_dtype,
    int64,
    round_to_bfloat16,
)
from gossamer.core.errors import DeviceError, DTypeError, ShapeError
from gossamer.devices import CPU, META, Device, as_device
from gossamer.dispatch import checked_shape, node_of, number, public, write_out
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import BUFFER, TABLE
from gossamer.realize import from_copy
from gossamer.tensor import Tensor, alias, attach, buffer, twin, wrap

__all__ = ["array_node", "as_tensor", "full_tensor", "tensor"]


# ------------------------------------------------------------------------------------ from data

def python_array(data: Any, name: str) -> np.ndarray:
    """Numbers, nested lists, tensors and arrays as one NumPy array (floats as float64).

    Raises:
        ShapeError, DTypeError: rows of different length, or something that is not a number.
    """
    if isinstance(data, (list, tuple)) and _holds_tensors(data):
        data = _plain(data)
    try:
        array = np.array(data)
    except ValueError:
        raise ShapeError(f"{name}: the rows of the nested lists have different lengths; all rows "
                         "of a dimension must be equally long. Pad them first.") from None
    except OverflowError as error:
        raise DTypeError(f"{name}: {error}; integers must fit 64 bits.") from None
    if array.dtype.kind not in "fiub":
        what = "complex numbers" if array.dtype.kind == "c" else f"{type(data).__name__} data"
        raise DTypeError(f"{name}: cannot make a tensor of {what} ({array.dtype}); expected "
                         "numbers, bools, nested lists of them, or a NumPy array.")
    return array


def _holds_tensors(data: Any) -> bool:
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, Tensor)


def _plain(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data._value().array()
    return [_plain(d) for d in data] if isinstance(data, (list, tuple)) else data


def _inferred(data: Any, array: np.ndarray) -> DType:
    """Python floats take the default dtype; arrays keep theirs."""
    first = data
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, Tensor):
        return first._node.dtype
    if isinstance(first, (np.ndarray, np.generic)):
        return as_dtype(array.dtype)
    if array.dtype.kind == "f":
        return get_default_dtype()
    return bool_ if array.dtype.kind == "b" else int64


def array_node(array: np.ndarray, dtype: DType, copy: bool = True) -> Node:
    """A buffer node that holds the numbers of `array` as `dtype`."""
    if dtype is bfloat16:
        return buffer(round_to_bfloat16(array), dtype)
    if array.dtype.kind == "f" and dtype.kind in "iu":
        array = np.nan_to_num(array).astype(np.int64)  # C's conversion: towards zero, then wrap
    with np.errstate(over="ignore", invalid="ignore"):
        if not copy:
            return buffer(np.array(array, dtype.numpy, copy=None, order="C"), dtype)
        node = BUFFER(shape=array.shape, dtype=dtype)
        node.value = from_copy(array, dtype)
        return node


def finish(node: Node, device: Any, requires_grad: bool = False) -> Tensor:
    """A tensor on `device`."""
    if as_device(device) is not CPU:
        node = BUFFER(shape=node.shape, dtype=node.dtype)
        node.value = META
    made = wrap(node)
    return made.requires_grad_() if requires_grad else made


@public(method=False)
def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
           pin_memory: bool = False) -> Tensor:
    """A tensor with a copy of `data`.

    Args:
        data: a number, nested lists of numbers, a NumPy array or a tensor.
        dtype: default: bool, int64 or the default float dtype by the kind of numbers; the dtype of
            an array stays.
        device: "cpu" or "meta".
        requires_grad: whether backward() collects its gradient.

    Returns:
        A new leaf tensor.

    Raises:
        ShapeError: rows of different lengths.
        DTypeError: `data` is not made of numbers.

    Example:
        >>> gs.tensor([[1, 2], [3, 4]])
        tensor([[1, 2],
                [3, 4]])
    """
    if isinstance(data, Tensor):
        node = prims.cast(prims.detach(data._read()), as_dtype(dtype) if dtype else data.dtype)
        return finish(twin(node), device or data.device, requires_grad)
    array = python_array(data, "gs.tensor")
    chosen = as_dtype(dtype) if dtype is not None else _inferred(data, array)
    return finish(array_node(array, chosen), device, requires_grad)


@public(method=False, aliases=("asarray",))
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` as a tensor, without a copy where possible."""
    if isinstance(data, Tensor):
        same = dtype is None or as_dtype(dtype) is data.dtype
        return data if same and device is None else data.to(dtype=dtype, device=device)
    if isinstance(data, np.ndarray) and (dtype is None or as_dtype(dtype).numpy == data.dtype):
        return from_numpy_hook[0](data)
    return tensor(data, dtype=dtype, device=device)


from_numpy_hook: list[Callable[[np.ndarray], Tensor]] = []  # set by interop, which is above


@public(method=False)
def scalar_tensor(value: Any, *, dtype: Any = None, device: Any = None,
                  requires_grad: bool = False) -> Tensor:
    """A tensor without dimensions."""
    return tensor(value, dtype=dtype or get_default_dtype(), device=device,
                  requires_grad=requires_grad)


# --------------------------------------------------------------------------------------- filled

def full_tensor(shape: Shape, value: Any, dtype: DType, device: Any,
                requires_grad: bool = False) -> Tensor:
    return finish(prims.full(value, shape, dtype), device, requires_grad)


def _filler(name: str, value: int, doc: str) -> None:
    def fn(*size: Any, out: Tensor | None = None, dtype: Any = None, device: Any = None,
           requires_grad: bool = False, layout: Any = None, pin_memory: bool = False,
           memory_format: Any = None) -> Tensor:
        chosen = as_dtype(dtype) if dtype is not None else get_default_dtype()
        made = full_tensor(checked_shape(size, f"gs.{name}"), value, chosen, device, requires_grad)
        return made if out is None else write_out(out, made._node, f"gs.{name}")

    def like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
             layout: Any = None, memory_format: Any = None, pin_memory: bool = False) -> Tensor:
        node = node_of(input, f"gs.{name}_like")
        return full_tensor(node.shape, value, as_dtype(dtype) if dtype is not None else node.dtype,
                           device or input.device, requires_grad)

    def new(self: Tensor, *size: Any, dtype: Any = None, device: Any = None,
            requires_grad: bool = False, layout: Any = None, pin_memory: bool = False) -> Tensor:
        return full_tensor(checked_shape(size, f"x.new_{name}"), value,
                           as_dtype(dtype) if dtype is not None else self._node.dtype,
                           device or self.device, requires_grad)

    for function, label, text in (
            (fn, name, f"A tensor of shape `size` filled with {doc}."),
            (like, f"{name}_like", f"A tensor shaped and typed as `input`, filled with {doc}."),
            (new, f"new_{name}", f"A tensor with this dtype and device, filled with {doc}.")):
        function.__name__ = function.__qualname__ = label
        function.__doc__ = text + "\n\nLazy: takes no memory until someone looks.\n"
        public(method=function is new, function=function is not new)(function)


_filler("zeros", 0, "zeros")
_filler("ones", 1, "ones")
_filler("empty", 0, "zeros (memory is never left undefined)")


def _fill_dtype(value: Any, dtype: Any) -> DType:
    if dtype is not None:
        return as_dtype(dtype)
    if isinstance(value, Tensor):
        return value._node.dtype
    if isinstance(value, (bool, np.bool_)):
        return bool_
    return int64 if isinstance(value, (int, np.integer)) else get_default_dtype()


@public(method=False)
def full(size: Any, fill_value: Any, *, out: Tensor | None = None, dtype: Any = None,
         device: Any = None, requires_grad: bool = False, layout: Any = None) -> Tensor:
    """A tensor of shape `size` filled with `fill_value`, whose type gives the dtype."""
    shape = checked_shape((size,), "gs.full")
    chosen = _fill_dtype(fill_value, dtype)
    _check_fits(fill_value, chosen)
    made = full_tensor(shape, number(fill_value, "gs.full"), chosen, device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.full")


def _check_fits(value: Any, dtype: DType) -> None:
    if dtype.kind in "iu" and isinstance(value, int) and not isinstance(value, bool):
        bits = 8 * dtype.itemsize
        low = 0 if dtype.kind == "u" else -2 ** (bits - 1)
        high = 2 ** (bits if dtype.kind == "u" else bits - 1) - 1
        # PyTorch lets -255..-1 wrap in uint8; so do we.
        if not (low if low else -high) <= value <= high:
            raise DTypeError(f"gs.full: {value} does not fit {dtype.name}, which holds {low} to "
                             f"{high}.")


@public(method=False)
def full_like(input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None,
              requires_grad: bool = False, layout: Any = None, memory_format: Any = None) -> Tensor:
    """A tensor shaped and typed as `input`, filled with `fill_value`."""
    node = node_of(input, "gs.full_like")
    return full_tensor(node.shape, number(fill_value, "gs.full_like"),
                       as_dtype(dtype) if dtype is not None else node.dtype,
                       device or input.device, requires_grad)


@public(function=False)
def new_full(self: Tensor, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None,
             requires_grad: bool = False, layout: Any = None, pin_memory: bool = False) -> Tensor:
    """A tensor with this dtype and device, filled with `fill_value`."""
    return full_tensor(checked_shape((size,), "x.new_full"), number(fill_value, "x.new_full"),
                       as_dtype(dtype) if dtype is not None else self._node.dtype,
                       device or self.device, requires_grad)


@public(function=False)
def new_tensor(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None,
               requires_grad: bool = False) -> Tensor:
    """`data` as a tensor with this dtype and device."""
    return tensor(data, dtype=dtype or self._node.dtype, device=device or self.device,
                  requires_grad=requires_grad)


@public(method=False)
def empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None,
                  requires_grad: bool = False) -> Tensor:
    """A tensor of shape `size`; strides are a matter of the compiler here and ignored."""
    return full_tensor(checked_shape((size,), "gs.empty_strided"), 0,
                       as_dtype(dtype) if dtype is not None else get_default_dtype(), device,
                       requires_grad)


@public(method=False)
def eye(n: int, m: int | None = None, *, out: Tensor | None = None, dtype: Any = None,
        device: Any = None, requires_grad: bool = False, layout: Any = None) -> Tensor:
    """The n × m matrix with ones on the diagonal."""
    shape = checked_shape((n, n if m is None else m), "gs.eye")
    same = prims.equal(prims.iota(0, shape), prims.iota(1, shape))
    node = prims.cast(same, as_dtype(dtype) if dtype is not None else get_default_dtype())
    made = finish(node, device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.eye")


# --------------------------------------------------------------------------------------- ranges

@public(method=False)
def arange(*bounds: Any, start: Any = None, end: Any = None, step: Any = 1,
           out: Tensor | None = None, dtype: Any = None, device: Any = None,
           requires_grad: bool = False, layout: Any = None) -> Tensor:
    """arange(end), arange(start, end[, step]): `start + i * step` below `end`.

    Args:
        bounds: numbers; int64 if all are integers, else the default float dtype.

    Returns:
        A tensor with ceil((end - start) / step) elements.
    """
    given = list(bounds)
    if len(given) == 1 and end is None:
        given = [0 if start is None else start, *given]
    elif not given:
        given = [0 if start is None else start, end]
    elif len(given) == 1:
        given.append(end)
    a, b, s = (number(v, "gs.arange") for v in (*given, step)[:3])
    if s == 0 or (b - a) * s < 0:
        raise ShapeError(f"gs.arange({a}, {b}, {s}): the step must lead from start to end, and not "
                         "be 0.")
    whole = all(isinstance(v, int) for v in (a, b, s))
    chosen = as_dtype(dtype) if dtype is not None else (int64 if whole else get_default_dtype())
    count = -(-(b - a) // s) if whole else math.ceil((b - a) / s)
    if whole or chosen.kind in "iu":
        node = affine(count, int(s), int(a), int64)
    else:
        node = affine(count, float(s), float(a), float64)  # in float64, rounded once
    made = finish(prims.cast(node, chosen), device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.arange")


def affine(count: int, step: Any, start: Any, dtype: DType) -> Node:
    """start + step * (0, 1, …, count - 1)."""
    node = prims.arange(int(count), dtype)
    if step != 1:
        node = prims.mul(node, prims.const(step, node))
    return prims.add(node, prims.const(start, node)) if start else node


def _line(a: float, b: float, steps: int) -> Node:
    """`steps` points from a to b in float64, exact at both ends."""
    if steps == 1:
        return prims.full(a, (1,), float64)
    i = prims.arange(steps, float64)
    step = (b - a) / (steps - 1)
    up = prims.add(prims.mul(i, prims.const(step, i)), prims.const(a, i))
    back = prims.sub(prims.const(steps - 1, i), i)
    down = prims.sub(prims.const(b, i), prims.mul(back, prims.const(step, i)))
    return prims.where(TABLE["lt"](i, prims.const(steps // 2, i)), up, down)


@public(method=False)
def linspace(start: Any, end: Any, steps: int, *, out: Tensor | None = None, dtype: Any = None,
             device: Any = None, requires_grad: bool = False, layout: Any = None) -> Tensor:
    """`steps` points at equal distances from `start` to `end`, both included."""
    if steps < 0:
        raise ShapeError(f"gs.linspace(steps={steps}): the number of steps must not be negative.")
    a, b = float(number(start, "gs.linspace")), float(number(end, "gs.linspace"))
    node = _line(a, b, int(steps))
    chosen = as_dtype(dtype) if dtype is not None else get_default_dtype()
    made = finish(prims.cast(node, chosen), device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.linspace")


@public(method=False)
def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, out: Tensor | None = None,
             dtype: Any = None, device: Any = None, requires_grad: bool = False,
             layout: Any = None) -> Tensor:
    """`base` to the powers of `linspace(start, end, steps)`."""
    a, b = float(number(start, "gs.logspace")), float(number(end, "gs.logspace"))
    chosen = as_dtype(dtype) if dtype is not None else get_default_dtype()
    powers = _line(a, b, int(steps))
    if chosen.kind != "f":  # whole exponents, as PyTorch
        powers = TABLE["trunc"](powers)
    node = TABLE["pow"](prims.const(base, powers), powers)
    made = finish(prims.cast(node, chosen), device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.logspace")


# ----------------------------------------------------------------------------------- conversion

def _target(args: Sequence[Any], dtype: Any, device: Any) -> tuple[Any, Any]:
    for value in args:
        if isinstance(value, Tensor):
            dtype, device = value.dtype, value.device
        elif isinstance(value, DType):
            dtype = value
        elif isinstance(value, (str, Device, int)) and not isinstance(value, bool):
            device = value
    return dtype, device


@public(function=False)
def to(self: Tensor, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False,
       non_blocking: bool = False, memory_format: Any = None) -> Tensor:
    """The tensor with another dtype or device: `to(dtype)`, `to(device)`, `to(other)`.

    Returns:
        The tensor itself if nothing changes and `copy` is False.
    """
    dtype, device = _target([a for a in args if not isinstance(a, bool)], dtype, device)
    node = self._read()
    chosen = as_dtype(dtype) if dtype is not None else node.dtype
    if device is not None and as_device(device) != self.device:
        if self.device != CPU:
            raise DeviceError("x.to(device='cpu'): x is on the meta device and has no values. "
                              "Use to_empty(device='cpu') and load the weights.")
        return finish(prims.cast(node, chosen), device)
    if chosen is node.dtype:
        return clone(self) if copy else self
    return wrap(prims.cast(node, chosen))


@public()
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy with its own memory; the derivative flows through."""
    return wrap(twin(node_of(input, "gs.clone")))


@public(function=False)
def contiguous(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor with its elements one after another: itself, or a copy of a permuted view."""
    return self if self.is_contiguous() else clone(self)


@public(function=False)
def cpu(self: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return to(self, device="cpu")


def _caster(name: str, dtype: str) -> None:
    def method(self: Tensor, memory_format: Any = None) -> Tensor:
        return to(self, dtype=as_dtype(dtype))
    method.__name__ = name
    method.__doc__ = f"`to({dtype})`."
    attach(name, method)


for _name, _dtype in (("double", "float64"), ("float", "float32"), ("half", "float16"),
                      ("bfloat16", "bfloat16"), ("long", "int64"), ("int", "int32"),
                      ("short", "int16"), ("char", "int8"), ("byte", "uint8"), ("bool", "bool")):
    _caster(_name, _dtype)


@public(function=False, name="type")
def type_(self: Tensor, dtype: Any = None) -> Any:
    """The dtype's name, or the tensor as another dtype."""
    if dtype is None:
        return f"gossamer.{self._node.dtype.name}"
    return to(self, dtype=as_dtype(dtype))


@public(function=False)
def type_as(self: Tensor, other: Tensor) -> Tensor:
    """`to(other.dtype)`."""
    return to(self, dtype=other._node.dtype)


def _construct(cls: type[Tensor], *args: Any, **options: Any) -> Tensor:
    """`Tensor(data)` and `Tensor(*sizes)`: float tensors, as PyTorch's legacy constructor."""
    if args and all(isinstance(a, int) for a in args):
        return full_tensor(checked_shape(args, "gs.Tensor"), 0, get_default_dtype(), None)
    data = args[0] if args else []
    if isinstance(data, Tensor):
        return alias(cls, data, False)
    return tensor(data, dtype=get_default_dtype(), **options)


Tensor.__new__ = _construct  # type: ignore[method-assign,assignment]

attach("_make_subclass", staticmethod(alias))
