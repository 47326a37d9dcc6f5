"""Compiled functions on disk: a whole program's plan, beside its kernels. Layer 3.

The one idea: what the compiler makes of a graph is plain data, so it can be kept like a kernel's
object code. The key is the graph's structure with the user's lines, the machine, and the compiler's
own source files; a second process that builds the same graph skips every pass.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gossamer.compile.gemm import Target
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.ir.node import user_line
from gossamer.runtime import cache, jit, watch
from gossamer.runtime.engine import Canonical
from gossamer.runtime.execute import sources_of
from gossamer.runtime.program import host_target

__all__ = ["specialized_plan"]

_COMPILER = ("core", "ir", "ops", "compile")


@functools.cache
def _compiler_stamp() -> str:
    """Changes whenever a source file of the compiler does."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(f for room in _COMPILER for f in (root / room).rglob("*.py"))
    return repr([(str(f.relative_to(root)), s.st_size, s.st_mtime_ns)
                 for f in files for s in [f.stat()]])


def _key(graph: Canonical, donate: Sequence[tuple[int, int]], target: Target) -> bytes:
    lines: dict[object, tuple[str, int]] = {}
    for node in graph.order:
        if node.where not in lines:
            lines[node.where] = user_line(node)
    machine = (target.vector_bytes, sorted(target.features), target.l1, target.l2, target.threads,
               target.products)
    parts = (graph.key, graph.literals, [lines[n.where] for n in graph.order], tuple(donate),
             machine, _compiler_stamp())
    return hashlib.sha256(repr(parts).encode()).digest()


def specialized_plan(graph: Canonical, donate: Sequence[tuple[int, int]] = ()) -> Compiled:
    """The plan of a compiled function: sizes and numbers are literals in its kernels.

    Args:
        graph: the function's graph.
        donate: (root, input) pairs; the plan's `shared` tells which may share memory.
    """
    if not watch.WATCHERS:
        return _plan(graph, donate)
    with watch.span("compile", f"{len(graph.order)} nodes"):
        made = _plan(graph, donate)
    watch.planned(made, graph, donate, literal=True)
    return made


def _plan(graph: Canonical, donate: Sequence[tuple[int, int]]) -> Compiled:
    """From disk, or made now and written there."""
    target = host_target()
    disk = cache.current()
    key = _key(graph, donate, target) if disk is not None else b""
    if disk is not None:
        stored = disk.read(key, cache.PLAN)
        if stored is not None:
            try:
                found = pickle.loads(stored)
            except Exception:  # an entry of another version of Python or of ours: made anew
                found = None
            if isinstance(found, Compiled):
                return found
    roots, inputs = graph.graph(literal=True)
    made = compile_graph(roots, inputs, target, specialize=True, donate=donate,
                         ready=lambda calls: jit.begin(sources_of(calls)))
    if disk is not None:
        disk.write(key, pickle.dumps(replace(made, owners=[], kernels=[])), cache.PLAN)
    return made
