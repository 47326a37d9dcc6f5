"""`Stateless`: layers that are a function with remembered arguments. Layer 5.

Activations, pools, losses and paddings differ only in the function they call and in the arguments
they remember. A subclass states both as data; signature, attributes, `forward` and `repr` follow.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from gossamer.nn import functional as F
from gossamer.nn.functional.common import reduction_name
from gossamer.nn.module import Module

__all__ = ["REQUIRED", "Stateless"]

REQUIRED = inspect.Parameter.empty
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Stateless(Module):
    """Base of layers without parameters.

    Class attributes:
        _function: name in `nn.functional`.
        _arguments: constructor arguments in order with their defaults (REQUIRED: none); each
            becomes an attribute and a keyword of the function.
        _tensors: those arguments that are tensors and become buffers.
        _shown: arguments that `repr` shows (default: all but `inplace`, which shows when True).
    """

    _function: ClassVar[str] = ""
    _arguments: ClassVar[dict[str, Any]] = {}
    _tensors: ClassVar[tuple[str, ...]] = ()
    _shown: ClassVar[tuple[str, ...] | None] = None
    _signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._signature = inspect.Signature([inspect.Parameter(name, _POSITIONAL, default=default)
                                            for name, default in cls._arguments.items()])
        if cls.__init__ is Stateless.__init__:
            cls.__signature__ = cls._signature  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}{self._signature}: {error}.") from None
        bound.apply_defaults()
        given = bound.arguments
        if "size_average" in given:  # retired switches of losses
            given["reduction"] = reduction_name(given.pop("size_average"), given.pop("reduce"),
                                                given["reduction"])
        for name, value in given.items():
            if name in self._tensors:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._names = tuple(given)

    def forward(self, *inputs: Any) -> Any:
        return getattr(F, self._function)(*inputs, **{n: getattr(self, n) for n in self._names})

    def extra_repr(self) -> str:
        if self._shown is not None:
            return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names
                         if name != "inplace" or self.inplace)
