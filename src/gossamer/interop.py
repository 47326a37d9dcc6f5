"""Exchange with NumPy, DLPack, pickle and copy. Layer 4.

Memory is shared as PyTorch shares it: a write on either side of `from_numpy` or `numpy()` is seen
on the other. Since nodes are immutable, a tensor on shared memory reads a fresh copy at every use,
for as long as someone else can reach that memory, and a write to it is carried out at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.core.dtype import as_dtype, bfloat16
from gossamer.core.errors import DeviceError, DTypeError, GradientError
from gossamer.core.references import getrefcount
from gossamer.creation import array_node, from_numpy_hook, tensor
from gossamer.devices import CPU
from gossamer.dispatch import PUBLIC
from gossamer.ir.node import Node, type_text
from gossamer.tensor import (
    DETACH_STEP,
    Shared,
    Tensor,
    _step,
    alias,
    attach,
    buffer,
    twin,
    wrap,
)

__all__ = ["from_dlpack", "from_numpy"]


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor on the memory of a NumPy array: writes on either side are seen on the other.

    Raises:
        DTypeError: not an array, or a dtype that Gossamer lacks.
    """
    if not isinstance(ndarray, np.ndarray):
        raise DTypeError(f"gs.from_numpy: expected a NumPy array, not {type(ndarray).__name__}. "
                         "gs.tensor copies anything made of numbers.")
    dtype = as_dtype(ndarray.dtype)
    if not ndarray.dtype.isnative or not ndarray.flags.writeable:
        return wrap(array_node(ndarray, dtype))
    made = wrap(buffer(ndarray.copy(), dtype))
    made._base = Shared(ndarray, always=ndarray.base is not None)
    return made


from_numpy_hook.append(from_numpy)


_DETACHED = (DETACH_STEP,)


class _Exported:
    """The base of an exported array: marks that its memory belongs to a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__


def _own_array(self: Tensor, seen: Node | None = None) -> np.ndarray:
    """The memory of a root tensor as an array that both sides may write.

    Args:
        seen: a view's node on its node; the view reads it anew once the memory is given away.
    """
    base = self._base
    if base.__class__ is Shared:
        array: np.ndarray = base.array
        return array
    value = self._value()
    node = self._node
    if node.grad and not self._leaf:  # its history must stay: `loss.detach().numpy()`
        return np.array(value.array())
    # Values are never written: only memory that nothing else will read may be given away. The slot
    # that holds each object, the local (not for the buffer) and getrefcount's own argument.
    if (getrefcount(node) == 3 + (seen is not None)
            and getrefcount(value) == 3 + (seen is not None and seen.value is value)
            and not value.buffer.borrowed and getrefcount(value.buffer) == 2):
        exported = value.array()
    else:
        exported = np.asarray(_Exported(np.array(value.array())))
    self._base = Shared(exported, always=False)
    return exported


def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
    """The values as a NumPy array that shares the tensor's memory. Computes it.

    A tensor that is a view gives a view of the array of its root where NumPy can show it, else a
    copy.

    Args:
        force: detach first, and widen bfloat16 to float32.

    Raises:
        GradientError: the tensor requires grad.
        DTypeError: the dtype is bfloat16, which NumPy lacks.
    """
    if not force and self.requires_grad:
        raise GradientError(f"x.numpy(): x is {type_text(self._node)} and requires grad; NumPy "
                            "does not record derivatives. Use x.detach().numpy().")
    if self._node.dtype is bfloat16:
        if not force:
            raise DTypeError("x.numpy(): NumPy has no bfloat16. Use x.float().numpy().")
        return np.array(self._value().array())
    if self.device is not CPU:
        raise DeviceError("x.numpy(): x is on the meta device and has no values.")
    root = self
    while isinstance(root._base, Tensor):
        root = root._base
    if root is self:
        return _own_array(self)
    return _of_view(self, root)


def _of_view(self: Tensor, root: Tensor) -> np.ndarray:
    """The view's part of the root's array."""
    if self._path == _DETACHED:
        shown = self._node
        only = (shown.inputs == (root._node,) and getrefcount(shown) == 3
                and getrefcount(shown.inputs) == 2)
        return _own_array(root, shown if only else None)
    whole = _own_array(root)
    shape, strides, offset = self._node.shape, self.stride(), self.storage_offset()
    item = whole.itemsize
    if not self._node.size:
        return np.empty(shape, whole.dtype)
    flat = whole.reshape(-1)[offset:]
    return np.lib.stride_tricks.as_strided(flat, shape, [s * item for s in strides])


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """NumPy's protocol: the values as an array (a copy, so that it stays what it was)."""
    if self.requires_grad:
        raise GradientError(f"np.asarray(x): x is {type_text(self._node)} and requires grad. Use "
                            "x.detach().")
    array = np.array(self._value().array())
    return array if dtype is None else array.astype(dtype)


def _array_wrap(self: Tensor, array: np.ndarray, context: Any = None,
                return_scalar: bool = False) -> Tensor:
    """NumPy's protocol: results of its functions on tensors are tensors."""
    return tensor(array)


# --------------------------------------------------------------------------------------- DLPack

def _dlpack(self: Tensor, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
            copy: bool | None = None) -> Any:
    """DLPack's protocol: a capsule on the tensor's memory."""
    return numpy(self.detach()).__dlpack__()


def _dlpack_device(self: Tensor) -> tuple[int, int]:
    """DLPack's protocol: (1, 0), the CPU."""
    return 1, 0


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor on the memory of any object that speaks DLPack (NumPy, PyTorch, JAX, ...)."""
    if isinstance(ext_tensor, Tensor):
        return ext_tensor.detach()
    if not hasattr(ext_tensor, "__dlpack__"):
        raise DTypeError(f"gs.from_dlpack: {type(ext_tensor).__name__} has no __dlpack__ method. "
                         "gs.tensor copies anything made of numbers.")
    array = np.from_dlpack(ext_tensor)
    if not array.flags.writeable:  # NumPy imports read-only; the memory itself is writable
        holder = _Writable(array)
        array = np.asarray(holder)
    return from_numpy(array)


class _Writable:
    """The same memory, offered as writable."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


# ------------------------------------------------------------------------------ pickle and copy

def _rebuild(cls: type[Tensor], array: np.ndarray, dtype: str, requires_grad: bool,
             extra: dict[str, Any]) -> Tensor:
    made = wrap(array_node(array, as_dtype(dtype)))
    if cls is not Tensor:
        made = alias(cls, made, requires_grad)
    elif requires_grad:
        made.requires_grad_()
    made.__dict__.update(extra)
    return made


def _reduce(self: Tensor, protocol: int) -> tuple[Any, ...]:
    if not self.is_leaf:
        raise GradientError(f"pickling x: x is {type_text(self._node)}, the result of an operation "
                            "that requires grad; its graph cannot be stored. Use x.detach().")
    array = np.array(self._value().array())
    return (_rebuild, (type(self), array, self._node.dtype.name, self._leaf, dict(self.__dict__)))


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    found = memo.get(id(self))
    if found is not None:
        return found
    if not self.is_leaf:
        raise GradientError(f"copy.deepcopy(x): x is {type_text(self._node)}, the result of an "
                            "operation that requires grad. Only leaves can be copied; use "
                            "x.detach().clone().")
    made: Tensor = wrap(twin(_step(self._read(), DETACH_STEP)))
    if type(self) is not Tensor:
        made = alias(type(self), made, self._leaf)
    elif self._leaf:
        made.requires_grad_()
    memo[id(self)] = made
    for key, value in self.__dict__.items():
        made.__dict__[key] = value
    if self._grad is not None:
        made._grad = _deepcopy(self._grad, memo)
    return made


attach("numpy", numpy)
attach("__array__", _array)
attach("__array_wrap__", _array_wrap)
attach("__dlpack__", _dlpack)
attach("__dlpack_device__", _dlpack_device)
attach("__reduce_ex__", _reduce)
attach("__deepcopy__", _deepcopy)
PUBLIC["from_numpy"] = from_numpy
PUBLIC["from_dlpack"] = from_dlpack
