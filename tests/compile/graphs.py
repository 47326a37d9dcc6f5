"""Graphs for the tests of the passes: programs over tensors, seen after simplification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gossamer as gs
from gossamer.compile import pipeline
from gossamer.compile.attention import has_kernel
from gossamer.compile.expand import expand
from gossamer.compile.prepare import prepare
from gossamer.compile.schedule import Plan, schedule
from gossamer.compile.simplify import simplify
from gossamer.ir.node import Node
from gossamer.runtime.engine import Canonical

Program = Callable[..., Any]


def graph(program: Program, *shapes: Sequence[int]) -> tuple[list[Node], list[Node]]:
    """(roots, inputs) of a program over float32 tensors of these shapes, in primitives."""
    inputs = [gs.zeros(*shape) for shape in shapes]
    for t in inputs:
        t.tolist()  # a value, so that the graph starts here
    results = program(*inputs)
    results = results if isinstance(results, (list, tuple)) else [results]
    roots, leaves = Canonical([r._read() for r in results]).graph(literal=True)
    return expand(roots, keep=has_kernel), leaves


def plan(program: Program, *shapes: Sequence[int]) -> Plan:
    """What the scheduler makes of a program."""
    roots, leaves = graph(program, *shapes)
    ready = [pipeline._in_memory(r) for r in prepare(simplify(roots))]
    inputs = {id(x) for x in leaves}
    return schedule([r for r in ready if id(r) not in inputs], inputs)


def kernels(program: Program, *shapes: Sequence[int]) -> list[list[str]]:
    """The operators of each kernel, in running order."""
    return [[m.op.name for m in c.members] for c in plan(program, *shapes).clusters]
