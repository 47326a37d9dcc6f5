"""Products with packed weights as calls of the kernels in `gemm/lowbit`. Layer 2.

The one idea: rounding the activations is a call of its own, over rows, into memory that products
share; so each row is rounded once, however many workers multiply it by however many matrices. With
float activations the kernels serve a few rows, where reading the weights is all the work; for more
the operator's body is better: a float product that unpacks the weights while it packs them.
"""

from __future__ import annotations

from gossamer.compile.calls import BufferRef, Call, Scratch, Word
from gossamer.compile.gemm import Target
from gossamer.compile.gemm.lowbit import (
    DOT_WORDS,
    ROUND_WORDS,
    Scheme,
    dot_source,
    round_source,
    row_bytes,
)
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import float32, float64, int8
from gossamer.ir.node import Node
from gossamer.ops.quantized import BLOCK, packed_size

__all__ = ["has_kernel", "product_calls"]

FEW = 16  # rows of float activations up to which packed weights are read in place
_SERIAL = 100_000  # bytes of weights (4 us of memory) below which a second worker gains nothing
_CHUNK = 64_000  # bytes of weights that a worker claims at once
_ROUND_CHUNK = 1 << 14  # activations that a worker claims at once


def has_kernel(node: Node) -> bool:
    """Whether a composite is a product that the kernels compute."""
    if node.op.name != "quantized_linear":
        return False
    x, weight, scale = node.inputs
    if x.dtype is not float32 or scale.dtype is float64 or not (node.size and x.size):
        return False
    return bool(node.attrs["dynamic"]) or x.size // x.shape[-1] <= FEW


def _place(node: Node, buffers: dict[int, int]) -> BufferRef:
    while node.op.name == "reshape":
        node = node.inputs[0]
    return BufferRef(buffers[id(node)])


def product_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                  specialize: bool) -> list[Call]:
    """The activations' rounding (or padding), and the product."""
    node = cluster.members[0]
    x, weight, scale = node.inputs
    k, dynamic = x.shape[-1], bool(node.attrs["dynamic"])
    rows, width = x.size // k, packed_size(weight)[1]
    bits, blocks, groups = (8 if weight.dtype is int8 else 4), width // BLOCK, scale.shape[1]
    calls: list[Call] = []
    at: Word = _place(x, buffers)
    pitch = 4 * k
    if dynamic or width != k:
        pitch = row_bytes(blocks) if dynamic else 4 * width
        by = round_source(bits, dynamic, target)
        # Products of the same rows name the same memory, and the pipeline rounds them once.
        at = Scratch(rows * pitch, key=("rounded", _place(x, buffers), rows, pitch, by.symbol))
        words: dict[str, Word] = {"x": _place(x, buffers), "rounded": at, "k": k,
                                  "blocks": blocks, "pitch": pitch}
        grain = 0 if rows * k < 2 * _ROUND_CHUNK else max(1, _ROUND_CHUNK // k)
        calls.append(Call(by, tuple(words[w] for w in ROUND_WORDS), rows, grain,
                          "round activations", (_place(x, buffers).index,), ()))
    found: dict[str, Word] = {
        "x": at, "weight": _place(weight, buffers), "scale": _place(scale, buffers),
        "out": BufferRef(buffers[id(node)]), "rows": rows, "groups": groups,
        "per_group": blocks // groups, "features": node.shape[-1], "pitch": pitch}
    tiles = -(-node.shape[-1] // 16)
    each = 2 * width * bits * -(-rows // 4)  # bytes of a tile, for every four rows
    grain = min(-(-_CHUNK // each), -(-tiles // (4 * target.threads)))
    if target.threads == 1 or tiles * each < _SERIAL:
        grain = 0
    reads = {w.index for w in found.values() if isinstance(w, BufferRef)} - {buffers[id(node)]}
    source = dot_source(Scheme(bits, scale.dtype, dynamic, groups == blocks), target)
    calls.append(Call(source, tuple(found[w] for w in DOT_WORDS), tiles, grain,
                      f"int{bits} product {rows}x{node.shape[-1]}x{k}", tuple(sorted(reads)),
                      (buffers[id(node)],)))
    return calls
