"""Attention in the graph as calls of the tiled kernels. Layer 2.

The one idea: the kernels of `flash.py` read queries, keys and values through strides, so
projections that were split into heads and transposed are never copied. What the kernels do not
cover (masks, key caches with a position, 16-bit floats) stays the composite's body: products and a
row kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from gossamer.compile.calls import BufferRef, Call, FloatWord, KernelSource, Scratch, Word
from gossamer.compile.contraction import strides_of
from gossamer.compile.flash import (
    BACKWARD_WORDS,
    CHUNK,
    FORWARD_WORDS,
    backward_scratch,
    backward_source,
    forward_scratch,
    forward_source,
)
from gossamer.compile.gemm import Target
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import DType, float32, float64
from gossamer.ir.node import Node

__all__ = ["backward_calls", "forward_calls", "has_kernel", "rows_of"]

_LARGEST = 256  # head size up to which a chunk's transposed rows stay in the caches
_sources: dict[object, KernelSource] = {}


def has_kernel(node: Node) -> bool:
    """Whether a composite has a kernel of its own."""
    if node.op.name not in ("attention", "attention_grad"):
        return False
    q, _, v = node.inputs[:3]
    return (not node.attrs["mask"] and not node.attrs["start"] and q.dtype in (float32, float64)
            and bool(q.size and v.size) and max(q.shape[-1], v.shape[-1]) <= _LARGEST)


@dataclass(frozen=True)
class _Rows:
    """(..., heads, rows, size) in memory: strides in elements, the last one being 1."""

    base: Node
    offset: int
    batch: int
    head: int
    row: int


def rows_of(node: Node) -> _Rows | None:
    """How to read an operand, or None if it must be copied first."""
    found = strides_of(node)
    if found is None:
        return None
    base, offset, strides = found
    *lead, head, row, last = strides
    if node.shape[-1] > 1 and last != 1:
        return None
    extents = node.shape[:-3]
    batch = 0
    inner: tuple[int, int] | None = None  # (stride, extent) of the batch axis further in
    for stride, extent in zip(reversed(lead), reversed(extents), strict=True):
        if extent == 1:
            continue
        if inner is None:
            batch = stride
        elif stride != inner[0] * inner[1]:
            return None
        inner = (stride, extent)
    return _Rows(base, offset, batch, head, row)


def _operand_words(name: str, node: Node, buffers: dict[int, int]) -> dict[str, Word]:
    rows = rows_of(node)
    assert rows is not None, "the graph was prepared before scheduling"
    pointer = BufferRef(buffers[id(rows.base)], rows.offset * node.dtype.itemsize)
    return {name: pointer, f"{name}_b": rows.batch, f"{name}_h": rows.head, f"{name}_t": rows.row}


def _row_pointer(node: Node, buffers: dict[int, int]) -> BufferRef:
    base = node
    while base.op.name == "reshape":
        base = base.inputs[0]
    return BufferRef(buffers[id(base)])


def _common(node: Node, buffers: dict[int, int], scratch: int) -> dict[str, Word]:
    q, k, v = node.inputs[:3]
    words: dict[str, Word] = {
        "heads": q.shape[-3], "shared": q.shape[-3] // k.shape[-3], "t": q.shape[-2],
        "s": k.shape[-2], "size": q.shape[-1], "value_size": v.shape[-1],
        "scale": FloatWord(float(node.attrs["scale"])), "window": node.attrs["window"],
        "scratch": Scratch(scratch, per_thread=True), "area": scratch,
    }
    for name, x in (("q", q), ("k", k), ("v", v)):
        words |= _operand_words(name, x, buffers)
    return words


def _source(make: Callable[[DType, Target, bool, bool], KernelSource], node: Node,
            target: Target) -> KernelSource:
    key = (make, node.inputs[0].dtype.name, target, node.attrs["causal"],
           bool(node.attrs["window"]))
    if key not in _sources:
        _sources[key] = make(node.inputs[0].dtype, target, node.attrs["causal"],
                             bool(node.attrs["window"]))
    return _sources[key]


def _results(cluster: Cluster, buffers: dict[int, int]) -> dict[int, BufferRef]:
    """Buffer of each result that somebody reads."""
    return {p.attrs["index"]: BufferRef(buffers[id(p)]) for p in cluster.outputs}


def _call(source: KernelSource, names: tuple[str, ...], words: dict[str, Word], n: int,
          name: str, results: dict[int, BufferRef]) -> Call:
    written = tuple(r.index for r in results.values())
    read = {w.index for w in words.values() if isinstance(w, BufferRef)} - set(written)
    return Call(source, tuple(words[x] for x in names), n, 1, name, tuple(sorted(read)), written)


def forward_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                  specialize: bool) -> list[Call]:
    """The call that computes attention, and its log-sum-exps if a backward pass wants them."""
    node = cluster.members[0]
    q, v = node.inputs[0], node.inputs[2]
    scratch = forward_scratch(q.shape[-1], v.shape[-1], q.dtype.itemsize)
    words = _common(node, buffers, scratch)
    results = _results(cluster, buffers)
    out = prod(node.outs[0][0]) * q.dtype.itemsize if node.outs else 0
    words["out"] = results.get(0, Scratch(out))
    words["lse"] = results.get(1, 0)
    n = prod(q.shape[:-2]) * -(-q.shape[-2] // CHUNK)
    return [_call(_source(forward_source, node, target), FORWARD_WORDS, words, n, "attention",
                  results)]


def backward_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                   specialize: bool) -> list[Call]:
    """The call that computes the cotangents of queries, keys and values."""
    node = cluster.members[0]
    q, k, v, lse, g, delta = node.inputs
    scratch = backward_scratch(q.shape[-1], v.shape[-1], q.dtype.itemsize)
    words = _common(node, buffers, scratch) | _operand_words("g", g, buffers)
    words["lse"], words["delta"] = _row_pointer(lse, buffers), _row_pointer(delta, buffers)
    results = _results(cluster, buffers)
    for i, (name, x) in enumerate((("dq", q), ("dk", k), ("dv", v))):
        words[name] = results.get(i, Scratch(x.size * x.dtype.itemsize))
    return [_call(_source(backward_source, node, target), BACKWARD_WORDS, words,
                  prod(k.shape[:-2]), "attention backward", results)]
