"""Methods that only tensors have: sizes, strides, copies into, and questions. Layer 4."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import DType, as_dtype
from gossamer.core.errors import DTypeError, GossamerError, ShapeError
from gossamer.creation import array_node, full_tensor
from gossamer.devices import CPU
from gossamer.dispatch import PUBLIC, axis_of, checked_shape, node_of, number, public
from gossamer.indexing import fill_shape
from gossamer.ir.node import STATE, type_text
from gossamer.layout import is_contiguous, layout
from gossamer.modes import MODES, enable_grad
from gossamer.realize import realize
from gossamer.tensor import DETACH_STEP, Parameter, Size, Tensor, attach, wrap

__all__: list[str] = []


# ---------------------------------------------------------------------------------------- size

@public(function=False)
def size(self: Tensor, dim: int | None = None) -> Any:
    """The shape, or the extent of one dimension."""
    if dim is None:
        return Size(self._node.shape)
    return self._node.shape[axis_of(dim, self._node.ndim, "x.size")]


@public(aliases=("nelement",))
def numel(input: Tensor) -> int:
    """The number of elements."""
    return node_of(input, "gs.numel").size


@public(function=False, aliases=("ndimension",))
def dim(self: Tensor) -> int:
    """The number of dimensions."""
    return self._node.ndim


@public(function=False)
def stride(self: Tensor, dim: int | None = None) -> Any:
    """Elements from one index to the next, of all dimensions or of one."""
    strides = layout(self)[1]
    return strides if dim is None else strides[axis_of(dim, self._node.ndim, "x.stride")]


@public(function=False)
def storage_offset(self: Tensor) -> int:
    """Position of the first element in the memory that the view shows."""
    return layout(self)[2]


@public(function=False)
def element_size(self: Tensor) -> int:
    """Bytes of one element."""
    return self._node.dtype.itemsize


attach("is_contiguous", lambda self, memory_format=None: is_contiguous(self))
attach("itemsize", property(lambda self: self._node.dtype.itemsize, doc="Bytes of one element."))
attach("nbytes", property(lambda self: self._node.dtype.itemsize * self._node.size,
                          doc="Bytes of all elements."))


def _always(value: Any) -> property:
    return property(lambda self: value, doc=f"Always {value!r} here.")


for _name, _value in (("is_cuda", False), ("is_sparse", False), ("is_quantized", False),
                      ("is_nested", False), ("is_mps", False), ("layout", "strided"),
                      ("names", ()), ("output_nr", 0), ("is_cpu", True)):
    attach(_name, _always(_value))


def _base(self: Tensor) -> Tensor | None:
    """The tensor that this one is a view of, or None."""
    return self._base if isinstance(self._base, Tensor) else None


attach("_is_view", lambda self: _base(self) is not None)


def _root(t: Tensor) -> Tensor:
    while isinstance(t._base, Tensor):
        t = t._base
    return t


@public(function=False)
def data_ptr(self: Tensor) -> int:
    """A number that tells whether two tensors begin at the same element of the same memory.

    It is no machine address: a lazy tensor has none. Use `numpy()` for memory to share.
    """
    return id(_root(self)) * 16 + layout(self)[2] * self._node.dtype.itemsize


class Storage:
    """The memory behind a tensor and its views."""

    def __init__(self, root: Tensor) -> None:
        self._root = root

    def data_ptr(self) -> int:
        return id(self._root) * 16

    def nbytes(self) -> int:
        return self._root._node.size * self._root._node.dtype.itemsize

    size = nbytes

    def __len__(self) -> int:
        return self._root._node.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other._root is self._root

    def __hash__(self) -> int:
        return id(self._root)


attach("untyped_storage", lambda self: Storage(_root(self)))
attach("storage", lambda self: Storage(_root(self)))


@public(function=False)
def is_set_to(self: Tensor, tensor: Tensor) -> bool:
    """Whether both show the same memory in the same way."""
    return _root(self) is _root(tensor) and layout(self) == layout(tensor)


@public(function=False)
def is_same_size(self: Tensor, other: Tensor) -> bool:
    """Whether both have the same shape."""
    return self._node.shape == other._node.shape


@public()
def is_floating_point(input: Tensor) -> bool:
    """Whether the dtype is a float."""
    return node_of(input, "gs.is_floating_point").dtype.kind == "f"


@public()
def is_complex(input: Tensor) -> bool:
    """False: there are no complex tensors here."""
    return False


@public()
def is_signed(input: Tensor) -> bool:
    """Whether the dtype has negative numbers."""
    return node_of(input, "gs.is_signed").dtype.is_signed


@public()
def is_nonzero(input: Tensor) -> bool:
    """Whether the single element is not 0."""
    return bool(input)


@public()
def is_same_memory(input: Tensor, other: Tensor) -> bool:
    """Whether both are views of the same memory (overlapping or not)."""
    return _root(input) is _root(other)


@public(method=False)
def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a Tensor."""
    return isinstance(obj, Tensor)


attach("is_inference", lambda self: False)
attach("is_shared", lambda self: False)
attach("get_device", lambda self: -1)
attach("resolve_conj", lambda self: self)
attach("resolve_neg", lambda self: self)
attach("conj", lambda self: self)
attach("pin_memory", lambda self, device=None: self)
attach("share_memory_", lambda self: self)
attach("is_pinned", lambda self, device=None: False)


# ---------------------------------------------------------------------------- writing all of it

@public(function=False)
def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Write the elements of `src`, broadcast and cast to this tensor's shape and dtype."""
    self._check_inplace("x.copy_")
    if isinstance(src, np.ndarray):
        node = array_node(src, self._node.dtype)
    else:
        node = prims.cast(node_of(src, "x.copy_", "src"), self._node.dtype)
    return self._write(fill_shape(node, self._node.shape, "x.copy_"))


@public(function=False)
def fill_(self: Tensor, value: Any) -> Tensor:
    """Write one number to all elements."""
    self._check_inplace("x.fill_")
    node = self._node
    if isinstance(value, Tensor):
        if value._node.ndim:
            raise ShapeError(f"x.fill_: value has {value._node.ndim} dimensions; it must have "
                             "none.")
        return self._write(prims.expand(prims.cast(value._read(), node.dtype), node.shape))
    made = prims.full(number(value, "x.fill_"), node.shape, node.dtype)
    return self._write(prims.flat_slope(made, node) if node.grad and STATE.grad_enabled else made)


@public(method=False)
def fill(input: Tensor, value: Any) -> Tensor:
    """A tensor shaped and typed as `input` with one number in all elements."""
    node = node_of(input, "gs.fill")
    if isinstance(value, Tensor):
        return wrap(prims.expand(prims.cast(value._read(), node.dtype), node.shape))
    return wrap(prims.flat_slope(prims.const(number(value, "gs.fill"), node), node))


attach("fill", fill)


@public(function=False)
def zero_(self: Tensor) -> Tensor:
    """Write 0 to all elements."""
    return fill_(self, 0)


PUBLIC["zero_"] = zero_


@public(function=False)
def set_(self: Tensor, source: Tensor) -> Tensor:
    """Show the memory of another tensor from now on."""
    self.data = source
    return self


@public(function=False)
def resize_(self: Tensor, *sizes: Any, memory_format: Any = None) -> Tensor:
    """Change the shape in place; elements stay in row-major order, new ones are 0."""
    shape = checked_shape(sizes, "x.resize_")
    if self._base is not None:
        raise ShapeError("x.resize_: x is a view; only a tensor that owns its memory can be "
                         "resized.")
    if self.requires_grad:
        raise GossamerError("x.resize_: x requires grad and cannot be resized. Use reshape.")
    node = self._read()
    flat, count = prims.reshape(node, (node.size,)), 1
    for n in shape:
        count *= n
    flat = prims.narrow(flat, 0, 0, min(count, node.size))
    self._assign(prims.reshape(prims.pad(flat, (0,), (count - flat.size,)), shape))
    return self


@public(function=False)
def resize_as_(self: Tensor, other: Tensor, memory_format: Any = None) -> Tensor:
    """`resize_(other.shape)`."""
    return resize_(self, *other._node.shape)


def _under(self: Tensor) -> Tensor:
    """A hidden tensor that takes over the memory of a root or a leaf, and all its views."""
    node = self._node
    if self._leaf:
        node = node.inputs[0] if node.inputs else DETACH_STEP[0](node)
    node.owner = None
    under: Tensor = wrap(node)
    under._base, under._version = self._base, self._version
    if isinstance(self._base, Tensor):
        under._path = self._path
    for other in gc.get_referrers(self):  # a tensor does not know its views
        if isinstance(other, Tensor) and other._base is self:
            other._base = under
    return under


def _show(self: Tensor, made: Tensor) -> Tensor:
    """Let `self` be what its view `made` is: the same memory, in another shape."""
    base, path = made._base, made._path
    if base is self:
        base = _under(self)
        if self._leaf:
            path = (DETACH_STEP, *path)
    self._base, self._path = base, path
    self._version = -1  # of no write: the next reader follows the path
    self._read()
    return self


def _unary_view_inplace(name: str) -> None:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if STATE.grad_enabled and self._leaf:
            self._check_inplace(f"x.{name}_")
        if MODES.tracing is not None:
            MODES.tracing.turned(self)
        with enable_grad():
            return _show(self, getattr(self, name)(*args, **kwargs))
    method.__name__ = f"{name}_"
    method.__doc__ = (f"`{name}` in place: this tensor shows its memory in the new shape; views "
                      "made before keep theirs.\n\n    Cost: a walk over all Python objects, to "
                      "find the views.")
    attach(f"{name}_", method)


for _name in ("squeeze", "unsqueeze", "transpose", "t", "swapaxes", "swapdims"):
    _unary_view_inplace(_name)


@public(function=False)
def apply_(self: Tensor, callable: Any) -> Tensor:
    """Replace every element by `callable(element)`; slow, for small tensors."""
    array = self._value().array()
    new = np.array([callable(v) for v in array.reshape(-1).tolist()]).reshape(array.shape)
    return self._write(array_node(new, self._node.dtype))


@public(function=False)
def map_(self: Tensor, tensor: Tensor, callable: Any) -> Tensor:
    """Replace every element by `callable(element, element of tensor)`; slow."""
    a, b = self._value().array(), np.broadcast_to(tensor._value().array(), self._node.shape)
    new = [callable(x, y) for x, y in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(),
                                          strict=True)]
    return self._write(array_node(np.array(new).reshape(a.shape), self._node.dtype))


# ------------------------------------------------------------------------------------- the rest

@public(function=False)
def to_empty(self: Tensor, *, device: Any = None) -> Tensor:
    """A tensor of this shape and dtype on `device`, values not carried over (zeros)."""
    return full_tensor(self._node.shape, 0, self._node.dtype, device or CPU)


@public(function=False)
def realize_(self: Tensor) -> Tensor:
    """Compute the value now. Returns the tensor itself."""
    node = self._read()
    if node.value is None:
        realize([node])
    return self


@public(method=False)
def result_type(a: Any, b: Any) -> DType:
    """The dtype of `a + b`."""
    return PUBLIC["add"](a, b)._node.dtype


@public(method=False)
def promote_types(type1: Any, type2: Any) -> DType:
    """The smallest dtype that holds both."""
    one, two = (full_tensor((1,), 0, as_dtype(t), None) for t in (type1, type2))
    return PUBLIC["add"](one, two)._node.dtype


@public(method=False)
def can_cast(from_: Any, to: Any) -> bool:
    """Whether casting keeps the category (bool < integer < float)."""
    return as_dtype(from_).category <= as_dtype(to).category


def _wrong_construct(self: Tensor) -> Any:
    raise DTypeError(f"x.imag: x is {type_text(self._node)}; only complex tensors have one.")


attach("imag", property(_wrong_construct))
PUBLIC["Tensor"] = Tensor
PUBLIC["Parameter"] = Parameter
PUBLIC["Size"] = Size
