"""From what the user hands in to programs that can be explained. Surface.

The one idea: `explain` changes nothing. A function is traced as `compile` would trace it, on
placeholders, and its program is timed on copies; only what cannot be compiled is run as it is,
twice, and the graphs that it realised are explained instead, with the reason in red.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from gossamer.compile_ import CompiledFunction
from gossamer.core.errors import GossamerError, TraceError
from gossamer.insight.explanation import Explanation
from gossamer.insight.recorder import Recorder, graph_name
from gossamer.insight.view import Origin, ProgramView
from gossamer.ir.node import user_line
from gossamer.realize import realize
from gossamer.runtime import watch
from gossamer.runtime.engine import Canonical
from gossamer.specialize import Specialization
from gossamer.structure import flatten, signature
from gossamer.tensor import Tensor

__all__ = ["explain"]


def explain(thing: Any, *args: Any, **kwargs: Any) -> Explanation:
    """Tell what a function becomes: its kernels, their source lines, code, time and roofline.

    Args:
        thing: a function, a compiled function or module, called with the other arguments; or a
            lazy tensor.
        *args, **kwargs: what the function is to be called with. Nothing is written: a training
            step is traced and timed on copies, and trains nothing. Only a function that cannot be
            compiled (it looks at a value) is run, twice, and does what it does.

    Returns:
        An `Explanation`: print it, read `.kernels`, `.graph()`, `.stage("loops")`, or write
        `.html("step.html")`.

    Raises:
        GossamerError: the tensor has its value already, so that there is nothing to compute.
        TraceError: a function made by `compile` looks at a value.

    Cost: a trace, a compilation and some runs of the program (about 0.6 s, at least ten); the
    limits of the machine are measured once, in 3 s.

    Example:
        >>> x = gs.randn(256, 256)
        >>> e = gs.explain(lambda x: gs.softmax(x @ x, dim=1), x)
        >>> e.kernels[0].flops >= 2 * 256**3
        True
    """
    if isinstance(thing, Tensor):
        return _explain_tensor(thing)
    function, compiled = _callable(thing)
    tensors: list[Tensor] = []
    spec = flatten((args, kwargs), tensors)
    name = getattr(function, "__qualname__", type(function).__name__).replace(".<locals>", "")
    realize([t._node for t in tensors])
    recorder = Recorder(timed=False)
    try:
        with watch.watching(recorder):
            trace = Specialization(function, spec, tensors)
        reason = "it changes an argument, or its result is differentiated outside" \
            if trace.inline else ""
    except TraceError as error:
        if compiled is not None:
            raise
        reason = str(error)
    if reason:
        told = f"{name} {'runs' if compiled is not None else 'would run'} uncompiled: {reason}"
        return _explain_run(name, function, args, kwargs, tensors, told)
    origin = recorder.origin(trace.program.compiled)
    view = ProgramView(name, origin)
    view.measure(trace.inputs(tensors))
    return Explanation(name, [view], _retraces(compiled, args, kwargs) if compiled else ())


def _callable(thing: Any) -> tuple[Callable[..., Any], CompiledFunction | None]:
    """(what to trace, the compiled function around it, if any)."""
    inner = getattr(thing, "_call", None)
    compiled = thing if isinstance(thing, CompiledFunction) else inner
    if isinstance(compiled, CompiledFunction):
        return compiled.function, compiled
    if not callable(thing):
        raise GossamerError(f"explain({type(thing).__name__}): it can be called or computed by "
                            "nobody; pass a function with its arguments, or a lazy tensor.")
    return thing, None


def _explain_tensor(t: Tensor) -> Explanation:
    node = t._read()
    file, line = user_line(node)
    if node.value is not None:
        raise GossamerError(
            f"explain(tensor): the value of this {node.op.name} is known already (made at "
            f"{file}:{line}); a tensor can be explained before someone looks at it. Pass the "
            "function that makes it instead: explain(f, x).")
    graph = Canonical([node])
    roots, inputs = graph.graph()
    view = ProgramView(graph_name(graph), Origin(roots, inputs, literal=False))
    view.measure([leaf.value for leaf in graph.leaves], graph.params)
    return Explanation(view.name, [view])


def _explain_run(name: str, function: Callable[..., Any], args: Sequence[Any],
                 kwargs: dict[str, Any], tensors: Sequence[Tensor], told: str) -> Explanation:
    """Run what cannot be compiled, cold and warm, and explain the graphs realised the second time.
    """
    recorder = Recorder()
    for watched in (False, True):  # the first run compiles
        with watch.watching(recorder) if watched else contextlib.nullcontext():
            outs: list[Tensor] = []
            flatten(function(*args, **kwargs), outs)
            realize([t._read() for t in (*outs, *tensors)])
    views, _ = recorder.views()
    return Explanation(name, views, [told, *recorder.problems()])


def _retraces(compiled: CompiledFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> list[str]:
    """Whether calls with one signature were traced again and again."""
    wanted = signature(args, kwargs, [])
    again = [len(ts) for key, ts in compiled._traces.items() if key[0] == wanted]
    if sum(again) > 2:
        return [f"{compiled.name} was traced {sum(again)} times for one signature: something that "
                "it finds in closures or modules changes at each call; each trace costs seconds. "
                "compile(..., verbose=True) shows them"]
    if compiled.traced > 8:
        return [f"{compiled.name} was traced {compiled.traced} times: its arguments change shape "
                "or number at almost each call; pad to a few shapes, pass numbers as tensors"]
    return []
