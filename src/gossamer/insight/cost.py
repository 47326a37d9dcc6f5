"""What a kernel has to do: floating-point operations, and bytes read and written. Surface.

The one idea: counts come from what the compiler made, not from the user's words. A loop kernel is
counted in its loop IR, so that work which fusion repeats is counted as often as it is done, and a
load counts the elements it can reach: a gather of 100 rows reads 100 rows of the table.

FLOPs: a product is 2 M N K; an elementwise operation counts `op.cost` (1 for an addition, about 10
for `exp`, a division 4: what it takes in vector instructions); a reduction one for each element.
Movements, comparisons of indices and integer work in addresses count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2, prod

from gossamer.compile import winograd
from gossamer.compile.calls import Call
from gossamer.compile.contraction import describe
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import DType
from gossamer.ir.loop import Kernel, Val
from gossamer.ir.node import Node

__all__ = ["Work", "work_of"]


@dataclass(frozen=True)
class Work:
    """FLOPs of a kernel, the dtype most of them are done in, and the bytes it touches."""

    flops: float
    dtype: str
    bytes_read: int
    bytes_written: int

    @property
    def nbytes(self) -> int:
        return self.bytes_read + self.bytes_written


def work_of(cluster: Cluster, kernel: Kernel | None, calls: Sequence[Call],
            sizes: dict[int, int]) -> Work:
    """Count one cluster.

    Args:
        cluster: its nodes.
        kernel: its loops (of a product: those of the epilogue), or None.
        calls: its calls.
        sizes: bytes of every buffer of the program.
    """
    loops = kernel_flops(kernel) if kernel is not None else 0.0
    main = cluster.members[0]
    flops, dtype = loops, _dtype(cluster.members)
    if cluster.kind == "dot":
        flops, dtype = loops + _product_flops(main), _factor_dtype(main)
    elif kernel is None:
        flops = _special_flops(main)
    read = {b for c in calls for b in c.reads}
    written = {b for c in calls for b in c.writes}
    reach = _reach(kernel) if kernel is not None and cluster.kind == "loops" else {}
    got = sum(min(sizes[b], reach.get(b, sizes[b])) for b in read)
    # A buffer that is written and also read (scatter-add, an update in place) moves twice.
    got += sum(min(sizes[b], reach[b]) for b in written - read if b in reach)
    return Work(flops, dtype, got, sum(sizes[b] for b in written))


def _dtype(members: Iterable[Node]) -> str:
    """The floating-point dtype of most elements; that of the first member if there is none."""
    elements: dict[DType, int] = {}
    nodes = list(members)
    for n in nodes:
        if n.dtype.kind == "f":
            elements[n.dtype] = elements.get(n.dtype, 0) + n.size
    return max(elements, key=lambda d: elements[d]).name if elements else nodes[0].dtype.name


# products and operators with a kernel of their own ----------------------------------------------
def _product_flops(dot: Node) -> float:
    product = describe(dot)
    return 2.0 * prod(g.extent for g in product.groups) if product is not None else 0.0


def _factor_dtype(dot: Node) -> str:
    """What is multiplied: 16-bit operands are summed in float32."""
    low = dot.attrs.get("low")
    return low.name if isinstance(low, DType) else dot.inputs[0].dtype.name


def _special_flops(node: Node) -> float:
    name = node.op.name
    if name == "attention":
        return _attention_flops(node, products=2)
    if name == "attention_grad":  # scores again, then the cotangents of V, of the weights, Q and K
        return _attention_flops(node, products=5)
    if name in ("conv", "conv_weight"):
        return _convolution_flops(node)
    if name == "quantized_linear":
        return 2.0 * node.size * node.inputs[0].shape[-1]
    if name == "argsort":
        axis = node.shape[node.attrs.get("axis", -1)] if node.shape else 1
        return node.size * max(1.0, log2(max(axis, 1)))
    if name in ("scatter", "scatter_add"):
        return float(node.inputs[2].size if name == "scatter_add" else 0)
    return float(node.size)


def _convolution_flops(node: Node) -> float:
    """Two for each result and place that it sees; by tiles 16 products for 2x2 results."""
    forward = node.op.name == "conv"
    y = node.shape if forward else node.inputs[0].shape
    w = node.inputs[1].shape if forward else node.shape
    if winograd.has_kernel(node):
        return 32.0 * y[0] * y[1] * w[1] * -(-y[2] // 2) * -(-y[3] // 2)
    return 2.0 * prod(y) * prod(w[1:]) / prod(i + 1 for i in node.attrs["interior"])


def _attention_flops(node: Node, products: int) -> float:
    """Products over the pairs that may see each other, 2 FLOPs a component, and an `exp` a pair.

    How much of a cache is filled is data: all of it, or of its window, counts. Where texts begin is
    data too: a row counts as one text.
    """
    q, k, v = node.inputs[:3]
    rows, keys = q.shape[-2], k.shape[-2]
    window, causal = node.attrs["window"], node.attrs["causal"]
    pairs = rows * min(keys, window or keys) if node.attrs["start"] else 0
    for i in range(0 if pairs else rows):
        first = max(0, i - window + 1) if window else 0
        last = min(keys, i + 1) if causal else keys
        pairs += max(0, last - first)
    size = (q.shape[-1] + v.shape[-1]) / 2
    return float(prod(q.shape[:-2])) * pairs * (2 * products * size + 12)


# loop kernels -----------------------------------------------------------------------------------
def kernel_flops(kernel: Kernel) -> float:
    """Arithmetic of a loop kernel: each operation as often as the loops it depends on turn."""
    extents = {a.name: a.extent for a in (*kernel.kept, *kernel.reduced)}
    total = 0.0
    for val in kernel.values():
        if val.kind == "op" and val.dtype.kind == "f":
            total += val.data[0].cost * _turns(val.vars, extents)
    points = prod(extents.values())
    return total + points * sum(len(r.operands()) for p in kernel.passes for r in p.reduces)


def _turns(names: Iterable[str], extents: dict[str, int]) -> int:
    return prod(extents.get(n, 1) for n in names)


def _reach(kernel: Kernel) -> dict[int, int]:
    """Bytes of each buffer that the loads of a kernel can touch, each distinct access once."""
    extents = {a.name: a.extent for a in (*kernel.kept, *kernel.reduced)}
    seen: dict[tuple[int, str], int] = {}
    for val in kernel.values():
        if val.kind == "load":
            buffer, index, _ = val.data
            names = {v.name for v in index.variables()}
            seen[buffer, repr(index)] = _turns(names, extents) * val.dtype.itemsize
    found: dict[int, int] = {}
    for (buffer, _), nbytes in seen.items():
        found[buffer] = found.get(buffer, 0) + nbytes
    return found


def gathers(kernel: Kernel) -> list[Val]:
    """Loads of a kernel whose place is read from data."""
    return [v for v in kernel.values() if v.kind == "load"
            and any(hasattr(atom, "source") for atom in v.data[1].terms)]
