"""Attention in the graph as calls of the tiled kernels. Layer 2.

The one idea: the kernels of `flash.py` read queries, keys and values through strides, so
projections that were split into heads and transposed are never copied. What the kernels do not
cover (masks, heads of more than 256 numbers, many new positions to a cache; `decoding.py` has few)
stays the composite's body: products and a row kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from gossamer.compile.calls import BufferRef, Call, FloatWord, KernelSource, Scratch, Word
from gossamer.compile.contraction import strides_of
from gossamer.compile.flash import (
    BACKWARD_WORDS,
    CHUNK,
    FORWARD_WORDS,
    Seen,
    backward_scratch,
    backward_source,
    forward_scratch,
    forward_source,
)
from gossamer.compile.gemm import Target
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import DType, float32, float64
from gossamer.ir.node import Node

if TYPE_CHECKING:
    from gossamer.compile.simplify import Rebuilder

__all__ = ["backward_calls", "forward_calls", "has_kernel", "laid_out", "rows_of"]

_LARGEST = 256  # head size up to which a chunk's transposed rows stay in the caches
_sources: dict[object, KernelSource] = {}


def has_kernel(node: Node) -> bool:
    """Whether a composite has a kernel of its own."""
    if node.op.name not in ("attention", "attention_grad"):
        return False
    q, _, v = node.inputs[:3]
    return (not node.attrs["mask"] and not node.attrs["start"] and q.dtype in (float32, float64)
            and bool(q.size and v.size) and max(q.shape[-1], v.shape[-1]) <= _LARGEST)


def laid_out(b: Rebuilder, node: Node) -> Node | None:
    """The pick of an attention's result as a view of what the kernel writes: rows with all heads
    side by side, as projections read and make them; the three cotangents in one tensor, so that
    those of a common projection are put together where they are made."""
    whole = node.inputs[0]
    index, at = node.attrs["index"], whole.attrs
    if whole.op.name == "attention" and has_kernel(whole) and not at.get("rows_first"):
        made = b.make(node, "pick", b.make(whole, "attention", *whole.inputs, **at,
                                           rows_first=True), index=index)
        return made if index else _heads_first(b, node, made)
    if whole.op.name != "attention_grad" or at.get("packed") or not has_kernel(whole):
        return None
    q, k, v = whole.inputs[:3]
    if q.shape[-2:] != k.shape[-2:] or k.shape != v.shape:
        return None
    rows = b.make(node, "pick", b.make(whole, "attention_grad", *whole.inputs, **at, packed=True),
                  index=0)
    begin = (0, q.shape[-3], q.shape[-3] + k.shape[-3])[index]
    starts, stops = [0] * rows.ndim, list(rows.shape)
    starts[-2], stops[-2] = begin, begin + whole.inputs[index].shape[-3]
    part = b.make(node, "slice", rows, starts=tuple(starts), stops=tuple(stops),
                  steps=(1,) * rows.ndim)
    return _heads_first(b, node, part)


def _heads_first(b: Rebuilder, node: Node, x: Node) -> Node:
    """(..., H, T, K) of (..., T, H, K)."""
    lead = x.ndim - 3
    return b.make(node, "permute", x, axes=(*range(lead), lead + 1, lead, lead + 2))


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
        "begins": _row_pointer(node.inputs[-1], buffers) if node.attrs.get("begins") else 0,
        "scratch": Scratch(scratch, per_thread=True), "area": scratch,
    }
    for name, x in (("q", q), ("k", k), ("v", v)):
        words |= _operand_words(name, x, buffers)
    return words


def _source(make: Callable[[DType, Target, Seen], KernelSource], node: Node,
            target: Target) -> KernelSource:
    at, dtype = node.attrs, node.inputs[0].dtype
    seen = Seen(at["causal"], bool(at["window"]), bool(at.get("begins")))
    key = (make, dtype.name, target, seen)
    if key not in _sources:
        _sources[key] = make(dtype, target, seen)
    return _sources[key]


def _results(cluster: Cluster, buffers: dict[int, int]) -> dict[int, BufferRef]:
    """Buffer of each result that somebody reads."""
    return {p.attrs["index"]: BufferRef(buffers[id(p)]) for p in cluster.outputs}


def _rows_apart(name: str, heads: int, rows: int, size: int, rows_first: bool) -> dict[str, Word]:
    """Distances in a result between batches, heads and rows, in elements."""
    head, row = (size, heads * size) if rows_first else (rows * size, size)
    return {f"{name}_b": heads * rows * size, f"{name}_h": head, f"{name}_t": row}


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
    words |= _rows_apart("out", q.shape[-3], q.shape[-2], v.shape[-1],
                         bool(node.attrs.get("rows_first")))
    words["lse"] = results.get(1, 0)
    n = prod(q.shape[:-2]) * -(-q.shape[-2] // CHUNK)
    return [_call(_source(forward_source, node, target), FORWARD_WORDS, words, n, "attention",
                  results)]


def backward_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                   specialize: bool) -> list[Call]:
    """The call that computes the cotangents of queries, keys and values."""
    node = cluster.members[0]
    q, k, v, lse, g, delta = node.inputs[:6]
    scratch = backward_scratch(q.shape[-1], v.shape[-1], q.dtype.itemsize)
    words = _common(node, buffers, scratch) | _operand_words("g", g, buffers)
    words["lse"], words["delta"] = _row_pointer(lse, buffers), _row_pointer(delta, buffers)
    results = _results(cluster, buffers)
    before, heads = 0, q.shape[-3] + 2 * k.shape[-3]
    for i, (name, x) in enumerate((("dq", q), ("dk", k), ("dv", v))):
        if node.attrs.get("packed"):
            words[name] = replace(results[0], offset=before * x.shape[-1] * x.dtype.itemsize)
            words |= _rows_apart(name, heads, x.shape[-2], x.shape[-1], True)
            before += x.shape[-3]
        else:
            words[name] = results.get(i, Scratch(x.size * x.dtype.itemsize))
            words |= _rows_apart(name, x.shape[-3], x.shape[-2], x.shape[-1], False)
    return [_call(_source(backward_source, node, target), BACKWARD_WORDS, words,
                  prod(k.shape[:-2]), "attention backward", results)]
