"""`Tensor`: a lazy array that aliases and mutates as PyTorch's does. Layer 4.

A tensor shows a node of the graph. A view is a root tensor plus a path of movement operators; it
replays the path when the root has been written since. A write replaces the root's node by a
functional update (`put` of each step, last to first), so every handle on that root sees it while
nodes stay immutable. Arithmetic, shapes, indexing and the rest are attached by the sibling modules.

Source of the semantics: PyTorch, "Tensor Views" and "Autograd mechanics".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

import numpy as np

from gossamer.core.dtype import DType, float32
from gossamer.core.errors import DTypeError, GradientError, ShapeError
from gossamer.devices import CPU, META, META_DEVICE, Device, MetaValue
from gossamer.ir.node import STATE, Node, type_text
from gossamer.ir.op import BUFFER, TABLE, Op
from gossamer.modes import MODES, enable_grad, inference_mode, no_grad
from gossamer.prims import flat_slope
from gossamer.realize import PATIENCE, from_array, overdue, realize, settle
from gossamer.shared import Shared
from gossamer.size import Size

__all__ = ["Parameter", "Shared", "Size", "Step", "Tensor", "alias", "attach", "buffer",
           "enable_grad", "inference_mode", "leaf_node", "no_grad", "twin", "view", "wrap"]

LEAF, DETACH, CUSTOM, BROADCAST = (TABLE[n] for n in ("leaf", "detach", "custom", "broadcast"))
RESHAPE = TABLE["reshape"]
Step = tuple[Op, dict[str, Any]]
DETACH_STEP: Step = (DETACH, {})
_DETACHED = (DETACH_STEP,)
_new = object.__new__
# A chain of unread in-place updates is computed every so many writes: bounds memory and latency.
_SETTLE_EVERY = 64


def buffer(array: np.ndarray, dtype: DType) -> Node:
    """A node that shows the memory of `array` (of dtype's NumPy type)."""
    node = BUFFER(shape=array.shape, dtype=dtype)
    node.value = from_array(array, dtype)
    return node


def leaf_node(node: Node, owner: Tensor) -> Node:
    """A place where derivatives stop and are collected for `owner`."""
    made = LEAF(node)
    made.grad = True
    made.value = node.value
    made.owner = ref(owner)
    return made


def _pass_through(g: Node, *_: Any) -> tuple[Node]:
    return (g,)


def _with_history(value: Node, history: Node) -> Node:
    """`value` in place of `history`: new data, the derivative of the old."""
    made = CUSTOM(value, history, rule=_pass_through)
    made.grad = True
    made.value = value.value if MODES.tracing is None else None
    return made


def _mark_meta(node: Node) -> None:
    """Give `node` the mark META if it was computed from a tensor of the meta device."""
    stack = [node]
    seen = set()
    while stack:
        n = stack.pop()
        if n.value is META:
            if node.value is None:
                node.value, node.inputs = META, ()
            return
        if n.value is None and (n is node or n.owner is None) and id(n) not in seen:
            seen.add(id(n))
            stack.extend(n.inputs)


def twin(node: Node) -> Node:
    """Another node with the same value and derivative, for a second tensor to show.

    A trace must still see whose value it is: there the node has none of its own.
    """
    made = Node(RESHAPE, (node,), {"shape": node.shape}, node.shape, node.dtype,
                node.grad and STATE.grad_enabled, node.where)
    made.value = node.value if MODES.tracing is None else None
    return made


def wrap(node: Node) -> Tensor:
    """A new tensor that shows `node`."""
    if node.owner is not None:
        node = twin(node)
    t = _new(Tensor)
    t._node = node
    t._base = None
    t._leaf = False
    t._version = STATE.birth
    t._grad = None
    t._hooks = None
    node.owner = ref(t)
    if MetaValue.used:
        _mark_meta(node)
    if node.born - node.oldest > PATIENCE:
        overdue(node)
    return t


def _step(node: Node, step: Step) -> Node:
    op, attrs = step
    if op is RESHAPE or op is BROADCAST:  # checked by who made the step
        return Node(op, (node,), attrs, attrs["shape"], node.dtype,
                    node.grad and STATE.grad_enabled)
    if op is DETACH and not node.grad:
        return node
    return op(node, **attrs)


def view(t: Tensor, steps: tuple[Step, ...]) -> Tensor:
    """A tensor that shows the root of `t` through the path of `t` and then `steps`."""
    made = _new(Tensor)
    base = t._base
    node = t._node if base is None else t._read()
    source = node
    for step in steps:
        node = _step(node, step)
    if node is source:
        node = twin(node)
    if source.grad and not STATE.grad_enabled:
        steps = (DETACH_STEP, *steps)
    # Through a leaf, or a handle without history: what is written here is history of that one.
    if base is None or base.__class__ is Shared or t._leaf or t._path[-1:] == _DETACHED:
        made._base, made._path, made._version = t, steps, t._version
    else:
        made._base, made._path, made._version = base, t._path + steps, base._version
    made._node = node
    made._leaf = False
    made._grad = None
    made._hooks = None
    node.owner = ref(made)
    if MetaValue.used:
        _mark_meta(node)
    return made


T = TypeVar("T", bound="Tensor")


def alias(cls: type[T], data: Tensor, requires_grad: bool) -> T:
    """A tensor of class `cls` on the storage of `data`, without its history."""
    made = _new(cls)
    base = data._base
    if base is None or base.__class__ is Shared:
        made._base, made._path, made._version = data, (DETACH_STEP,), data._version
    else:
        made._base, made._path = base, (*data._path, DETACH_STEP)
        made._version = base._version
    node = _step(data._read(), DETACH_STEP)
    if node.owner is not None:
        node = twin(node)
    node.owner = ref(made)
    made._leaf = False
    made._grad = None
    made._hooks = None
    made._node = node
    if requires_grad:
        made.requires_grad_(True)
    return made


class Tensor:
    """A lazy n-dimensional array with PyTorch's names and semantics.

    Make one with `tensor`, `zeros`, `arange`, `randn`, `from_numpy`, … Operations build a graph;
    a value is computed when someone looks (`item`, `tolist`, `numpy`, `print`, `bool`).

    Example:
        >>> x = gs.tensor([1., 2.], requires_grad=True)
        >>> (x * x).sum().backward()
        >>> x.grad
        tensor([2., 4.])
    """

    __slots__ = ("__dict__", "__weakref__", "_base", "_grad", "_hooks", "_leaf", "_node", "_path",
                 "_version")

    _node: Node  # what the tensor shows (of a view: at base version _version)
    _base: Any  # None: a root; a Shared: a root on foreign memory; else the root of a view
    _path: tuple[Step, ...]  # from the root to the view; only set for views
    _leaf: bool  # requires_grad was asked for, here
    _version: int  # number of writes; of a view: of its base when _node was computed
    _grad: Tensor | None
    _hooks: Any  # autograd's record of hooks, or None

    __array_priority__ = 1000  # NumPy scalars and arrays defer to our reflected operators

    if TYPE_CHECKING:  # attached by the sibling modules, from their tables
        def __init__(self, *data: Any, **options: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, key: Any, /) -> Tensor: ...
        def __setitem__(self, key: Any, value: Any, /) -> None: ...
        def __eq__(self, other: Any, /) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any, /) -> Tensor: ...  # type: ignore[override]
        def _binary(self, other: Any, /) -> Tensor: ...
        def _unary(self, /) -> Tensor: ...
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _binary
        __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _binary
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __lt__ = __le__ = __gt__ = __ge__ = _binary
        __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _binary
        __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _binary
        __neg__ = __pos__ = __abs__ = __invert__ = _unary

    # -- reading and writing -------------------------------------------------------------------

    def _read(self) -> Node:
        """The node of the current value."""
        base = self._base
        if base is None:
            return self._node
        if base.__class__ is Shared:
            return self._snapshot(base)
        if base._version == self._version and (base._base is None or base._settled()):
            return self._node
        node = base._read()
        before = STATE.grad_enabled
        STATE.grad_enabled = True
        try:
            for step in self._path:
                node = _step(node, step)
            if self._leaf:
                node = leaf_node(node, self)
            elif node.owner is not None:
                node = twin(node)
        finally:
            STATE.grad_enabled = before
        self._node = node
        self._version = base._version
        node.owner = ref(self)
        return node

    def _settled(self) -> bool:
        """Whether no handle between this one and its root has missed a write."""
        t = self
        while isinstance(t._base, Tensor):
            if t._version != t._base._version:
                return False
            t = t._base
        return t._base is None

    def _snapshot(self, shared: Shared) -> Node:
        """A copy of foreign memory as it is now. To a trace it is the tensor's own for a while."""
        alone = shared.alone()
        if MODES.tracing is not None and not alone:
            MODES.tracing.borrowed(self, shared)
        history = self._node
        node = buffer(shared.array if alone else shared.array.copy(), history.dtype)
        if self._leaf:
            node = leaf_node(node, self)
        elif history.grad:
            node = _with_history(node, history)
        if alone or MODES.tracing is not None:
            self._base = None
            self._node = node
            self._version += 1  # views made before the memory was given away
            node.owner = ref(self)
        return node

    def _assign(self, new: Node) -> None:
        """Make `new` the value of this root; without grad mode its history stays what it was."""
        old = self._node
        if new.owner is not None:
            new = twin(new)
        if STATE.grad_enabled and not self._leaf:
            node = flat_slope(new, old) if old.grad and not new.grad else new
        else:
            node = DETACH(new) if new.grad else new
            if self._leaf:
                node = leaf_node(node, self)
            elif old.grad:
                node = _with_history(node, old)
        node.owner = ref(self)
        self._node = node
        self._version += 1
        if MetaValue.used:
            if old.value is META:  # a tensor without values stays one, whatever is written
                node.value, node.inputs = META, ()
            else:
                _mark_meta(node)
        if MODES.tracing is not None:
            MODES.tracing.wrote(self, old)
        elif self._version % _SETTLE_EVERY == 0 and node.value is None:
            settle([node])

    def _write(self, new: Node) -> Tensor:
        """Replace the value by `new`, a node of the same shape and dtype, in every alias."""
        base = self._base
        if base is None:
            self._assign(new)
            return self
        if base.__class__ is Shared:
            self._write_shared(base, new)
            return self
        before = STATE.grad_enabled
        path = self._path
        history = self._read()
        for op, _ in path:
            if op is DETACH:
                STATE.grad_enabled = False
        try:
            olds = [base._read()]
            for step in path:
                olds.append(_step(olds[-1], step))
            value = DETACH(new) if new.grad and not STATE.grad_enabled else new
            for (op, attrs), old in zip(reversed(path), reversed(olds[:-1]), strict=True):
                if op is not DETACH:
                    assert op.put is not None, op
                    value = op.put(old, value, **attrs)
            base._write(value)
        finally:
            STATE.grad_enabled = before
        if self._leaf:
            new = leaf_node(DETACH(new) if new.grad else new, self)
        elif history.grad and not before:  # its history stays: read it through the root again
            self._version = -1
            return self
        elif history.grad and not new.grad:
            new = flat_slope(new, history)
        elif new.owner is not None:
            new = twin(new)
        self._node = new
        self._version = base._version
        new.owner = ref(self)
        return self

    def _write_shared(self, shared: Shared, new: Node) -> None:
        """Write into foreign memory now."""
        if shared.alone() or MODES.tracing is not None:
            self._snapshot(shared)
            self._assign(new)
            return
        realize([new])
        shared.array[...] = new.value.array()
        if new.grad and STATE.grad_enabled:  # a snapshot has no history: leave the memory behind
            self._base = None
            self._assign(new)
        else:
            self._version += 1

    def _check_inplace(self, name: str) -> None:
        """Raise if an in-place operation called `name` may not write to this tensor."""
        base = self._base
        is_view = base is not None and base.__class__ is not Shared
        if is_view:
            for op, attrs in self._path:
                if op is BROADCAST and any(attrs["shape"][i] > 1 for i in attrs["axes"]) \
                        or 0 in attrs.get("strides", ()):
                    raise ShapeError(
                        f"{name}: the tensor is expanded: several of its elements are one place in "
                        "memory, so it cannot be written. Write to x.clone() instead.")
        if not STATE.grad_enabled:
            return
        if self._leaf:
            raise GradientError(
                f"{name}: {type_text(self._node)} is a leaf that requires grad; changing it in "
                "place would lose its gradient. Do it under gs.no_grad(), or on x.clone().")
        while is_view:
            if any(op is DETACH for op, _ in self._path):
                return
            if base._leaf:
                raise GradientError(
                    f"{name}: {type_text(self._node)} is a view of a leaf that requires grad; "
                    "changing it in place would lose the leaf's gradient. Do it under "
                    "gs.no_grad(), or on a clone().")
            self, base = base, base._base
            is_view = base is not None and base.__class__ is not Shared

    def _value(self) -> Any:
        """The computed value."""
        node = self._read()
        if node.value is None:
            realize([node])
        return node.value

    # -- what it is ----------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        """Extents of all dimensions."""
        return Size(self._node.shape)

    @property
    def dtype(self) -> DType:
        """Data type of the elements."""
        return self._node.dtype

    @property
    def device(self) -> Device:
        """`cpu`, or `meta` for a tensor without values."""
        return META_DEVICE if MetaValue.used and self._node.value is META else CPU

    @property
    def is_meta(self) -> bool:
        return self.device is META_DEVICE

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._node.shape)

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded for backward()."""
        return self._leaf or self._read().grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Start (or stop) recording operations on this leaf, in place.

        Raises:
            DTypeError: the dtype is not floating.
            GradientError: the tensor is not a leaf and recording shall stop.
        """
        node = self._read()
        if not requires_grad:
            if node.grad and not self._leaf:
                raise GradientError(
                    "x.requires_grad = False: x is the result of an operation, not a leaf. "
                    "Use x.detach().")
            if self._leaf:
                self._leaf = False
                self._node = node.inputs[0] if node.inputs else _step(node, DETACH_STEP)
                self._node.owner = ref(self)
            return self
        if node.dtype.kind != "f":
            raise DTypeError(f"x.requires_grad = True: x is {type_text(node)}; only floating-point "
                             "tensors have gradients. Use x.float().")
        if not node.grad:
            self._leaf = True
            self._node = leaf_node(node, self)
        return self

    @property
    def is_leaf(self) -> bool:
        """True unless an operation that requires grad made it."""
        return self._leaf or not self._read().grad

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward() accumulated here, or None."""
        if MODES.tracing is not None:
            MODES.tracing.read_grad(self)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise DTypeError(f"x.grad = {value!r}: expected a tensor or None.")
            if value._node.shape != self._node.shape:
                raise ShapeError(f"x.grad: x is {type_text(self._node)} and the gradient "
                                 f"{type_text(value._node)}; the shapes must be equal.")
        if MODES.tracing is not None:
            MODES.tracing.graded(self, value)
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    def detach(self) -> Tensor:
        """A view of the same memory without history."""
        return alias(Tensor, self, False)

    def detach_(self) -> Tensor:
        """Forget the history, in place."""
        if self._base is None or self._base.__class__ is Shared:
            self._leaf = False
            self._node = _step(self._node, DETACH_STEP)
            self._node.owner = ref(self)
            return self
        raise GradientError("x.detach_(): x is a view. Use x.detach().")

    @property
    def data(self) -> Tensor:
        """The same memory without history; writes to it are not recorded."""
        return alias(Tensor, self, False)

    @data.setter
    def data(self, value: Tensor) -> None:
        leaf = self._leaf
        other = alias(Tensor, value, False)
        if other._base is self or MODES.tracing is not None:
            old = self._node
            with no_grad():
                self._node = leaf_node(other._node, self) if leaf else other._node
                self._version += 1
            if MODES.tracing is not None:
                MODES.tracing.wrote(self, old)
            return
        version = self._version
        self._node, self._base, self._path = other._node, other._base, other._path
        self._version = other._version
        if self._base is None:
            self._version = version + 1
        if leaf:
            self._node = leaf_node(self._node, self)

    # -- looking -------------------------------------------------------------------------------

    def item(self) -> bool | int | float:
        """The one element as a Python number. Computes it.

        Raises:
            ShapeError: the tensor has more or less than one element.
        """
        if self._node.size != 1:
            raise ShapeError(f"x.item(): x is {type_text(self._node)} with {self._node.size} "
                             "elements; it must have one. Use x.tolist(), or reduce it first.")
        return self._value().array().item()

    def tolist(self) -> Any:
        """The values as nested lists (a number for a tensor without dimensions)."""
        return self._value().array().tolist()

    def __bool__(self) -> bool:
        if self._node.size != 1:
            raise ShapeError(f"bool(x): x is {type_text(self._node)}; the truth of several values "
                             "is not defined. Use x.any() or x.all().")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._node.dtype.kind == "f":
            raise DTypeError(f"index(x): x is {type_text(self._node)}; only integer tensors with "
                             "one element can be used as an index. Use int(x) or x.long().")
        return int(self.item())

    def __len__(self) -> int:
        if not self._node.shape:
            raise DTypeError("len(x): x has no dimensions. Use x.numel() for its element count.")
        return self._node.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self._node.shape:
            raise DTypeError("iterating over a tensor without dimensions: use x.item().")
        return iter(self.unbind(0))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any().item())

    def __hash__(self) -> int:
        return id(self)

    def __format__(self, spec: str) -> str:
        if not self._node.shape and spec:
            return format(self.item(), spec)
        return object.__format__(self, spec) if spec else str(self)


class Parameter(Tensor):
    """A tensor that a Module registers and an optimizer updates; requires grad by default.

    Args:
        data: initial values; the memory is shared.
        requires_grad: whether backward() collects its gradient.
    """

    __slots__ = ()

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Parameter:
        if data is None:
            data = wrap(buffer(np.zeros(0, np.float32), float32))
        return alias(cls, data, requires_grad)



def attach(name: str, member: Any) -> None:
    """Make `member` the method or property `name` of every tensor."""
    setattr(Tensor, name, member)
