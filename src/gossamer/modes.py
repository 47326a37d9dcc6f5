"""Switches of the current thread: gradient mode, inference mode, default device, tracing. Layer 4.

The one bit that node construction reads (`STATE.grad_enabled`) lives with the nodes; everything
else that changes how the surface behaves is a field of MODES. Every switch is a context manager and
a decorator; a decorated generator function has the mode set again for each `next`, and the caller's
mode restored at each `yield`.

Source: PyTorch, "Locally disabling gradient computation".
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from gossamer.ir.node import STATE

__all__ = ["MODES", "Mode", "enable_grad", "inference_mode", "is_grad_enabled",
           "is_inference_mode_enabled", "no_grad", "set_grad_enabled"]

F = TypeVar("F", bound=Callable[..., Any])


class Modes(threading.local):
    """Per-thread state of the surface.

    Attributes:
        inference: inside `inference_mode`.
        device: the device of new tensors (a Device), or None for the CPU.
        tracing: the trace that is being recorded by `compile`, or None. It is told of every write:
            `tracing.wrote(tensor, old)` after a storage root's node `old` was replaced,
            `tracing.graded(tensor, grad)` before a tensor's `.grad` is set to `grad`, and
            `tracing.read_grad(tensor)` before it is read; modules report `entered(module)`.
        autocast: the dtype that `autocast` gives to products here, or None outside.
        cast_cache: casts of parameters made in this autocast region, or None to keep none.
        mapped: how many `vmap`s the running function is inside of.
    """

    def __init__(self) -> None:
        self.inference = False
        self.device: Any = None
        self.tracing: Any = None
        self.autocast: Any = None
        self.cast_cache: dict[Any, Any] | None = None
        self.mapped = 0


MODES = Modes()


def _drive(enter: Callable[[], Any], body: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a generator with a mode that is entered for each step and left at each yield."""
    sent: Any = None
    error: BaseException | None = None
    while True:
        try:
            with enter():
                item = body.throw(error) if error is not None else body.send(sent)
        except StopIteration as stop:
            return stop.value
        error = None
        try:
            sent = yield item
        except GeneratorExit:
            with enter():
                body.close()
            raise
        except BaseException as raised:  # goes on inside the generator, as `throw` does
            error = raised


class Mode:
    """Base of the switches: `with Mode(...)`, `@Mode(...)` and `@Mode`."""

    def _again(self) -> Mode:
        """A fresh switch with the same settings (decorated functions may recurse)."""
        raise NotImplementedError

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def __call__(self, fn: F) -> F:
        if inspect.isgeneratorfunction(fn):
            @functools.wraps(fn)
            def generator(*args: Any, **kwargs: Any) -> Any:
                return _drive(self._again, fn(*args, **kwargs))
            return generator  # type: ignore[return-value]

        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return fn(*args, **kwargs)
        return wrapped  # type: ignore[return-value]


class _GradMode(Mode):
    """Sets gradient mode between `__enter__` and `__exit__`."""

    _enabled = False

    def __new__(cls, fn: Any = None) -> Any:
        made = super().__new__(cls)
        if callable(fn):  # used as a bare decorator: @no_grad
            return made(fn)
        return made

    def __init__(self, fn: Any = None) -> None:
        self._before: list[bool] = []

    def _again(self) -> Mode:
        return type(self)()

    def __enter__(self) -> None:
        self._before.append(STATE.grad_enabled)
        STATE.grad_enabled = self._enabled

    def __exit__(self, *_: object) -> None:
        STATE.grad_enabled = self._before.pop()


class no_grad(_GradMode):
    """Operations inside record no derivative: their results do not require grad.

    Example:
        >>> w = gs.ones(2, requires_grad=True)
        >>> with gs.no_grad():
        ...     (w * 2).requires_grad
        False
    """

    _enabled = False


class enable_grad(_GradMode):
    """Operations inside record derivatives, also within `no_grad`."""

    _enabled = True


class set_grad_enabled(Mode):
    """Switch gradient mode to `mode`: at once, and until the end of the block if used with `with`.

    Args:
        mode: whether operations record derivatives.
    """

    def __init__(self, mode: bool) -> None:
        self._mode = bool(mode)
        self._before = STATE.grad_enabled
        STATE.grad_enabled = self._mode

    def __call__(self, fn: F) -> F:
        STATE.grad_enabled = self._before  # a decorator changes nothing until the call
        return super().__call__(fn)

    def _again(self) -> Mode:
        return set_grad_enabled(self._mode)

    def __enter__(self) -> None:
        STATE.grad_enabled = self._mode

    def __exit__(self, *_: object) -> None:
        STATE.grad_enabled = self._before


class inference_mode(Mode):
    """`no_grad` for code that will never be differentiated.

    Args:
        mode: False makes the block an ordinary one.
    """

    def __new__(cls, mode: Any = True) -> Any:
        made = super().__new__(cls)
        if callable(mode):
            made.__init__(True)  # type: ignore[misc]
            return made(mode)
        return made

    def __init__(self, mode: Any = True) -> None:
        self._mode = bool(mode)
        self._before: list[tuple[bool, bool]] = []

    def _again(self) -> Mode:
        return inference_mode(self._mode)

    def __enter__(self) -> None:
        self._before.append((STATE.grad_enabled, MODES.inference))
        if self._mode:
            STATE.grad_enabled = False
        MODES.inference = self._mode

    def __exit__(self, *_: object) -> None:
        STATE.grad_enabled, MODES.inference = self._before.pop()


def is_grad_enabled() -> bool:
    """Whether operations record derivatives now."""
    return STATE.grad_enabled


def is_inference_mode_enabled() -> bool:
    """Whether we are inside `inference_mode`."""
    return MODES.inference
