"""What happens while a function is traced for `compile`. Layer 4.

The one idea: a trace watches instead of running. Arguments are nodes without a value; every write
to a tensor and every gradient that is set is reported here, so that afterwards the function is
known completely: what it reads, what it returns, and which tensors it leaves changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from gossamer.core.dtype import DType, get_default_dtype
from gossamer.ir.node import STATE, Node
from gossamer.ir.op import INPUT
from gossamer.modes import MODES
from gossamer.tensor import Tensor, wrap

__all__ = ["RunPlainly", "Trace", "outside", "runtime_scalar"]


class RunPlainly(BaseException):
    """Ends a trace: the function does what no program can, so it runs uncompiled.

    Not an Exception, so that the function's own handlers let it pass.
    """


class Trace:
    """The record of one run of a function under `compile`.

    Attributes:
        scalars: getters of runtime scalars, by their `input` node's id.
        written: weak references to the tensors written, with the node each had before.
        old_grads: tensor -> the gradient it had when the trace first looked at it.
        modules: modules called, with their `training` flag then.
        shared: tensors on foreign memory, which own a copy of it while the trace lasts.
        born: the version with which tensors made by the trace begin.
    """

    _traces = 0

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.scalars: dict[int, Callable[[], float]] = {}
        self.written: dict[int, tuple[Any, Node]] = {}
        self.old_grads: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.set_grads: dict[int, Tensor] = {}  # tensors whose .grad this trace has set
        self.first_grads: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.modules: dict[int, tuple[Any, bool]] = {}
        self.shared: dict[int, tuple[Tensor, Any]] = {}
        Trace._traces += 1
        self.born = Trace._traces << 40  # no tensor is written so often

    def made(self, tensor: Tensor) -> bool:
        """Whether a tensor (or the root of a view) was made while this trace was recorded."""
        while isinstance(tensor._base, Tensor):
            tensor = tensor._base
        return tensor._version >= self.born

    # reports from the surface -----------------------------------------------------------------
    def wrote(self, tensor: Tensor, old: Node) -> None:
        if id(tensor) not in self.written:
            self.written[id(tensor)] = (ref(tensor), old)

    def graded(self, tensor: Tensor, grad: Tensor | None) -> None:
        self.first_grads.setdefault(id(tensor), (tensor, tensor._grad))
        self.set_grads[id(tensor)] = tensor

    def read_grad(self, tensor: Tensor) -> None:
        if id(tensor) not in self.set_grads:
            self.old_grads.setdefault(id(tensor), (tensor, tensor._grad))

    def turned(self, tensor: Tensor) -> None:
        """A tensor is about to change its shape in place.

        Raises:
            RunPlainly: the trace did not make it.
        """
        node = tensor._node.inputs[0] if tensor._leaf and tensor._node.inputs else tensor._node
        if not self.made(tensor) or any(x is node for x in self.inputs):
            raise RunPlainly

    def borrowed(self, tensor: Tensor, shared: Any) -> None:
        self.shared[id(tensor)] = (tensor, shared)

    def entered(self, module: Any) -> None:
        self.modules.setdefault(id(module), (module, module.training))

    # inputs -----------------------------------------------------------------------------------
    def argument(self, shape: tuple[int, ...], dtype: DType) -> Node:
        """A new input of the program."""
        node = INPUT(index=len(self.inputs), shape=tuple(shape), dtype=dtype)
        self.inputs.append(node)
        return node


def runtime_scalar(get: Callable[[], float], dtype: DType | None = None) -> Any:
    """A Python number that may change between calls of a compiled function.

    While a function is traced this is a 0-d tensor that `get` fills before each run; otherwise
    simply the number.

    Args:
        get: returns the number, e.g. `lambda: group["lr"]`.
        dtype: of the tensor; default: the default dtype.

    Example:
        >>> group = {"lr": 0.1}
        >>> runtime_scalar(lambda: group["lr"])
        0.1
    """
    trace = MODES.tracing
    if trace is None:
        return get()
    node = trace.argument((), dtype or get_default_dtype())
    trace.scalars[id(node)] = get
    return wrap(node)


class outside:
    """Leave the current trace for a block: what is made inside exists before the traced function.

    Optimizers make their state so; tensors made here must be computed inside the block too.
    """

    def __enter__(self) -> None:
        self._trace, MODES.tracing = MODES.tracing, None
        self._birth, STATE.birth = STATE.birth, 0

    def __exit__(self, *_: object) -> None:
        MODES.tracing, STATE.birth = self._trace, self._birth
