"""The graph as text and as a drawing. Layer 0.

One line for a node, in an order in which every node follows what it reads. The text depends on the
graph alone (names are numbers in that order), so that tests can keep it as golden files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gossamer.core.dtype import DType
from gossamer.ir.node import Node, toposort, type_text, user_line

__all__ = ["attributes", "draw", "format_graph"]


def _value(x: Any) -> str:
    if isinstance(x, DType):
        return x.name
    if isinstance(x, tuple):
        return f"({','.join(map(_value, x))})"
    if callable(x):
        return getattr(x, "__name__", type(x).__name__)
    return repr(x)


def attributes(node: Node) -> str:
    """`axes=(1,), keep=True`: the attributes, without those that the type already tells."""
    told = ("shape", "dtype") if node.op.kind == "leaf" else ()
    return ", ".join(f"{k}={_value(v)}" for k, v in node.attrs.items() if k not in told)


def _types(node: Node) -> str:
    if node.outs is None:
        return type_text(node)
    return f"({', '.join(f'{d.name}[{chr(44).join(map(str, s))}]' for s, d in node.outs)})"


def _known(node: Node) -> bool:
    return node.value is not None


def format_graph(roots: Sequence[Node], *, lines: bool = False, into_values: bool = False) -> str:
    """One line for each node that `roots` need, then the results.

    Args:
        roots: results.
        lines: show the user's file and line behind every node.
        into_values: also show how nodes that already have a value were computed.

    Example:
        %0 = buffer() : float32[2,3]
        %1 = reduce_sum(%0, axes=(1,)) : float32[2]
        return %1
    """
    order = toposort(roots, stop=None if into_values else _known)
    names: dict[int, str] = {}
    text = []
    for node in order:
        names[id(node)] = f"%{len(names)}"
        known = not into_values and node.value is not None and node.op.kind != "leaf"
        inputs = [] if known else [names[id(x)] for x in node.inputs]
        attrs = attributes(node)
        arguments = ", ".join([*inputs, attrs] if attrs else inputs)
        name = f"value of {node.op.name}" if known else node.op.name
        line = f"{names[id(node)]} = {name}({arguments}) : {_types(node)}"
        if lines:
            file, number = user_line(node)
            line += f"  # {Path(file).name}:{number}"
        text.append(line)
    text.append(f"return {', '.join(names[id(r)] for r in roots)}")
    return "\n".join(text)


_COLOURS = {"leaf": "lightgrey", "movement": "white", "reduction": "lightblue",
            "contraction": "salmon", "composite": "lightyellow"}


def _label(parts: Iterable[str]) -> str:
    return "\\n".join(p.replace("\\", "\\\\").replace('"', '\\"') for p in parts if p)


def draw(roots: Sequence[Node]) -> str:
    """The graph in Graphviz's language: `dot -Tsvg` makes a picture of it."""
    order = toposort(roots, stop=_known)
    names = {id(node): f"n{i}" for i, node in enumerate(order)}
    results = {id(r) for r in roots}
    text = ["digraph {", '  node [shape=box, style="filled,rounded", fontname="monospace"];']
    for node in order:
        colour = _COLOURS.get(node.op.kind, "palegreen")
        border = ", penwidth=3" if id(node) in results else ""
        label = _label((node.op.name, attributes(node), _types(node)))
        text.append(f'  {names[id(node)]} [label="{label}", fillcolor={colour}{border}];')
        if node.value is None:
            text += [f"  {names[id(x)]} -> {names[id(node)]};" for x in node.inputs]
    return "\n".join([*text, "}"])
