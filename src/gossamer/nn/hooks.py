"""Hooks of modules: removable registrations and the plumbing of full backward hooks. Layer 5.

A hook table is an ordered dict from a number to a callable; the handle given to the user removes
its own entry. A full backward hook needs all gradients of a module's inputs (or outputs) at once,
so the tensors pass through one identity `Function` whose backward sees them together.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from gossamer.core.errors import GradientError
from gossamer.function import Function
from gossamer.tensor import Tensor

__all__ = ["BackwardHook", "HookTable", "RemovableHandle", "add_hook"]

HookTable = OrderedDict[int, Any]
_numbers = itertools.count()


class RemovableHandle:
    """What registering a hook returns; `remove()` (or leaving `with`) takes the hook away."""

    def __init__(self, *tables: OrderedDict[int, Any]) -> None:
        self.id = next(_numbers)
        # Weak, so that a handle kept by the user does not keep the module alive.
        self._tables = [weakref.ref(table) for table in tables]

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        for reference in self._tables:
            table = reference()
            if table is not None:
                table.pop(self.id, None)

    def __getstate__(self) -> dict[str, Any]:
        return {"id": self.id, "_tables": []}

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def add_hook(table: HookTable, hook: Any, prepend: bool = False,
             flags: tuple[HookTable, ...] = ()) -> RemovableHandle:
    """Put `hook` into `table`, mark it in each of `flags`, and return its handle."""
    handle = RemovableHandle(table, *flags)
    table[handle.id] = hook
    for flag in flags:
        flag[handle.id] = True
    if prepend:
        table.move_to_end(handle.id, last=False)
    return handle


class _Gate(Function):
    """Identity on tensors whose backward hands the cotangents to a callable, all at once."""

    @staticmethod
    def forward(ctx: Any, on_backward: Callable[..., Any], *tensors: Tensor) -> Any:
        ctx.on_backward = on_backward
        # A Function must not return its own inputs; a view of each is free.
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, *ctx.on_backward(grads))


class BackwardHook:
    """The full backward (pre-)hooks of one call of one module.

    `enter` wraps the positional inputs, `leave` the outputs; cotangents of the outputs are
    remembered on their way in and shown to the hooks when those of the inputs are known.
    """

    def __init__(self, module: Any, hooks: list[Any], pre_hooks: list[Any]) -> None:
        self.module = module
        self.hooks = hooks
        self.pre_hooks = pre_hooks
        self.grad_output: tuple[Any, ...] | None = None
        self.has_inputs = False

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments, with those that need gradients behind a gate."""
        return self._wrap(args, self._on_input_grads, inputs=True)

    def leave(self, result: Any) -> Any:
        """The result, with its tensors behind a gate."""
        if isinstance(result, tuple):
            return self._wrap(result, self._on_output_grads)
        return self._wrap((result,), self._on_output_grads)[0]

    def _wrap(self, values: tuple[Any, ...], callback: Callable[..., Any],
              inputs: bool = False) -> tuple[Any, ...]:
        spots = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
        if not spots:
            return values
        if inputs:
            self.has_inputs = True
        total = len(values)
        gated = _Gate.apply(lambda grads: callback(grads, spots, total),
                            *(values[i] for i in spots))
        out = list(values)
        for i, t in zip(spots, gated, strict=True):
            out[i] = t
        return tuple(out)

    def _on_output_grads(self, grads: tuple[Any, ...], spots: list[int], total: int) -> Any:
        full = _spread(grads, spots, total)
        for hook in self.pre_hooks:
            full = _replaced(hook(self.module, full), full, "full backward pre-hook")
        self.grad_output = full
        if not self.has_inputs:  # no input needs a gradient: the hooks see None for each
            for hook in self.hooks:
                hook(self.module, (), full)
        return tuple(full[i] for i in spots)

    def _on_input_grads(self, grads: tuple[Any, ...], spots: list[int], total: int) -> Any:
        full = _spread(grads, spots, total)
        for hook in self.hooks:
            full = _replaced(hook(self.module, full, self.grad_output), full, "full backward hook")
        return tuple(full[i] for i in spots)


def _spread(grads: tuple[Any, ...], spots: list[int], total: int) -> tuple[Any, ...]:
    full: list[Any] = [None] * total
    for i, g in zip(spots, grads, strict=True):
        full[i] = g
    return tuple(full)


def _replaced(new: Any, old: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if new is None:
        return old
    new = new if isinstance(new, tuple) else (new,)
    if len(new) != len(old):
        raise GradientError(f"{what}: it returned {len(new)} gradients for {len(old)} tensors. "
                            "Return one per tensor, or None to leave them alone.")
    return new
