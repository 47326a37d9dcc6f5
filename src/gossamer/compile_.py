"""`gs.compile`: a whole function, with backward pass and optimizer, as one native call. Layer 4.

The one idea: trace once per signature (shapes, dtypes, Python constants), then call the program.
What the trace found in closures (parameters, optimizer state, generators, running statistics)
becomes inputs and outputs of the program; state that is replaced is updated in place where nobody
else looks at it. Learning rates are runtime scalars. A retrace is visible with `verbose=True`, and
bounded.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gossamer.core.collector import passes, paused
from gossamer.core.dtype import get_default_dtype
from gossamer.core.errors import TraceError
from gossamer.core.precision import get_float32_matmul_precision
from gossamer.ir.node import STATE, user_line
from gossamer.modes import MODES
from gossamer.runtime import watch
from gossamer.runtime.program import Program
from gossamer.runtime.threads import known_num_threads
from gossamer.specialize import Specialization, left_behind
from gossamer.structure import flatten, signature
from gossamer.tensor import Tensor

__all__ = ["CompiledFunction", "compile"]

_MAX_TRACES = 32  # of one function; beyond that something in its signature changes on every call


# One trace at a time: whether a function keeps a tensor of its trace is found by looking at all
# tensors, and those of another thread's trace look alike. Replaced in a forked child, where the
# thread that held it is gone.
_tracing = threading.RLock()


def _after_fork_in_child() -> None:
    global _tracing
    _tracing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class CompiledFunction:
    """A function that runs as one native program per signature. Made by `compile`."""

    def __init__(self, function: Callable[..., Any], verbose: bool = False) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.verbose = verbose
        self.name = getattr(function, "__qualname__", type(function).__name__)
        self._traces: dict[Any, list[Specialization]] = {}
        self.traced = 0  # how many traces were made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if MODES.tracing is not None:
            return self.function(*args, **kwargs)
        tensors: list[Tensor] = []
        key = (signature(args, kwargs, tensors), STATE.grad_enabled, MODES.inference,
               MODES.device, MODES.autocast, get_default_dtype(), known_num_threads(),
               get_float32_matmul_precision())
        known = self._traces.setdefault(key, [])
        for found in known:
            if found.holds():
                break
        else:
            found = self._traced(known, args, kwargs)
        if found.inline or found.touches(tensors):
            return self.function(*args, **kwargs)
        return found.run(tensors)

    def _traced(self, known: list[Specialization], args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> Specialization:
        """A new trace, or the one that another thread made while this one waited."""
        looked = len(known)
        with _tracing, paused():
            for found in known[looked:]:
                if found.holds():
                    return found
            tensors: list[Tensor] = []
            known.append(self._new(flatten((args, kwargs), tensors), tensors))
            return known[-1]

    def _new(self, spec: Any, tensors: list[Tensor]) -> Specialization:
        if self.traced >= _MAX_TRACES:
            raise TraceError(
                f"compile({self.name}): {self.traced} traces of one function; its signature "
                "changes on every call (a Python number that counts, a new shape each time). Pass "
                "numbers that change as tensors, pad to a few shapes, or call the function "
                "uncompiled.")
        self.traced += 1
        start, collected = time.perf_counter(), passes()
        with watch.span("trace", self.name):
            made = Specialization(self.function, spec, tensors)
        if made.inline:
            watch.note("uncompiled", f"{self.name} {_summary(made)}")
        left = left_behind(made.born, young=passes() == collected)
        if left is not None:
            name, line = user_line(left)
            raise TraceError(
                f"compile({self.name}): the result of {left.op.name} at {name}:{line} is kept, in "
                "an attribute or a list, when the function returns; that would happen once, not "
                "at each call. Return it, or write it into a tensor that is there: "
                "state.copy_(x).")
        if self.verbose:
            print(f"gossamer.compile: traced {self.name} in {time.perf_counter() - start:.2f} s: "
                  f"{_summary(made)}", file=sys.stderr)
        return made

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def programs(self) -> list[Program]:
        """The compiled programs, for `explain` and tests."""
        return [t.program for ts in self._traces.values() for t in ts if not t.inline]


def _summary(made: Specialization) -> str:
    if made.inline:
        return "runs uncompiled, because it changes an argument or is differentiated outside"
    return (f"{made.nodes} nodes, {len(made.program.compiled.calls)} kernel calls, "
            f"{made.program.arena_bytes / 1e6:.1f} MB of temporaries")


class _CompiledModule:
    """A module whose call is compiled; everything else is the module's own."""

    def __init__(self, module: Any, verbose: bool) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_call", CompiledFunction(module, verbose))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __repr__(self) -> str:
        return f"compiled {self._module!r}"


def compile(function: Any = None, *, verbose: bool = False, **_: Any) -> Any:
    """Compile a function or a module: traced once per signature, then one native call.

    Args:
        function: uses tensors as arguments or through closures; it may train: forward, backward,
            clipping, `optimizer.step()` and `zero_grad()` become one program. May be left out
            (`@compile(verbose=True)`).
        verbose: print each trace: its size, its time and its reason.
        **_: PyTorch's further options (`dynamic`, `fullgraph`, `mode`, `backend`) are accepted.

    Returns:
        A callable with the same arguments and results.

    Raises:
        TraceError: when called, if the function looks at a value (`if loss > 1:`, `.item()`).

    Cost: a trace and a compilation at the first call of each signature; about 20 us a call later.

    Example:
        >>> @gs.compile
        ... def step(x, y):
        ...     loss = F.mse_loss(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     return loss
    """
    if function is None:
        return functools.partial(compile, verbose=verbose)
    if callable(getattr(function, "parameters", None)) and hasattr(function, "training"):
        return _CompiledModule(function, verbose)
    return CompiledFunction(function, verbose)
