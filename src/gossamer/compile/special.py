"""Operators with a kernel of their own: scans, scatters, sorts, attention, concat. Layer 2.

The one idea: order matters in them, so the axis along which it matters stays a serial loop, and the
lanes and workers take what is independent: other rows of a scan, other columns of a scatter.
Results are therefore the same for any number of threads, and nothing needs atomic instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from gossamer.compile.attention import backward_calls, forward_calls
from gossamer.compile.calls import BufferRef, Call
from gossamer.compile.decoding import decoding_calls
from gossamer.compile.gemm import Target
from gossamer.compile.lower import Lowering, Nest, Place, lower_loops, ravel, unravel
from gossamer.compile.planes import plane_calls, plane_weight_calls, pool_grad_calls
from gossamer.compile.quantized import product_calls
from gossamer.compile.remembered import write_remembered
from gossamer.compile.schedule import Cluster
from gossamer.compile.sort import argsort_calls
from gossamer.compile.winograd import convolution_calls, has_kernel as has_tiles, weight_calls
from gossamer.ir.index import Index, Read, const, var
from gossamer.ir.loop import Axis, Kernel, Pass, Reduce, Store, Val
from gossamer.ir.node import Node

__all__ = ["SPECIAL", "kernel_call"]

_TOGETHER = 4  # parts of a concatenation made in one loop: the gates of an LSTM


def kernel_call(kernel: Kernel, target: Target, specialize: bool) -> Call:
    """Write a loop kernel and call it. Flat elementwise loops gain nothing from literal sizes, so
    one kernel serves all of them; but those of one vector have half the text."""
    flat = len(kernel.kept) == 1 and not kernel.reduced \
        and kernel.kept[0].extent > target.vector_bytes // 4
    written = write_remembered(kernel, target.vector_bytes, specialize and not flat)
    writes = tuple({s.buffer for s in kernel.stores()})
    reads = {w.index for w in written.words if isinstance(w, BufferRef)} - set(writes)
    return Call(written.source, written.words, written.n, written.grain, kernel.name,
                tuple(sorted(reads)), writes, kernel.copied())


def _scan(cluster: Cluster, buffers: dict[int, int], target: Target,
          specialize: bool) -> list[Call]:
    """Running sum, product, maximum or minimum along one axis, or a recurrence along it."""
    node = cluster.members[0]
    axis, shape = node.attrs["axis"], node.shape
    sizes = (prod(shape[:axis]), shape[axis], prod(shape[axis + 1:]))
    at = (var("i0", sizes[0]), var("r0", sizes[1]), var("i1", sizes[2]))
    linear = ravel(at, sizes)
    ask = Lowering(buffers)
    *factor, value = [ask.value(x, unravel(linear, shape)) for x in node.inputs]
    names = [v.name for v in linear.variables()]
    so_far = Val("acc", node.dtype, 0, (), names)
    running = Store(buffers[id(node)], linear, so_far, node.dtype)
    step = Reduce(0, node.attrs.get("combine", "add"), value, running, *factor)
    # Without outer rows the columns are the parallel loop.
    kept = [Axis("i0", sizes[0])] * (sizes[0] > 1 or sizes[2] == 1) + [Axis("i1", sizes[2])]
    kernel = Kernel(node.op.name, kept, [Axis("r0", sizes[1])], [Pass(reduces=[step])], serial=True)
    return [kernel_call(kernel, target, specialize)]


def _scatter(cluster: Cluster, buffers: dict[int, int], target: Target,
             specialize: bool) -> list[Call]:
    """The table copied, then the rows of `src` written or added one after the other."""
    node = cluster.members[0]
    table, index, src = node.inputs
    buffer = buffers[id(node)]
    flat = var("i0", node.size)
    first = Lowering(buffers).value(table, unravel(flat, node.shape))
    fill = Kernel("scatter start", [Axis("i0", node.size)], [],
                  [Pass(stores=[Store(buffer, flat, first, node.dtype)])])
    calls = [kernel_call(fill, target, specialize)]
    if not src.size:
        return calls
    columns = prod(node.shape[1:])
    j, c = var("r0", index.size), var("i0", columns)
    ask = Lowering(buffers)
    where = unravel(j, index.shape)
    row = Read(ask.value(index, where), where, table.shape[0])
    value = ask.value(src, (*where, *unravel(c, node.shape[1:])))
    target_index = Index(0, {row: 1}) * columns + c if columns else const(0)
    update = "add" if node.op.name == "scatter_add" else "set"
    put = Store(buffer, target_index, value, node.dtype, update)
    kernel = Kernel(node.op.name, [Axis("i0", columns)], [Axis("r0", index.size)],
                    [Pass(stores=[put])], serial=True)
    calls.append(kernel_call(kernel, target, specialize))
    return calls


def _argsort(cluster: Cluster, buffers: dict[int, int], target: Target,
             specialize: bool) -> list[Call]:
    """Positions in sorted order; `prepare` has put the operand in memory."""
    node = cluster.members[0]
    base = node.inputs[0]
    while base.op.name == "reshape":
        base = base.inputs[0]
    return argsort_calls(node, buffers[id(base)], buffers[id(node)])


def _concat(cluster: Cluster, buffers: dict[int, int], target: Target,
            specialize: bool) -> list[Call]:
    """Parts computed or copied to their places: no element asks which part it belongs to. A few
    parts of one shape share a kernel (the gates of a recurrent cell read the same memory). Sizes
    are words, so that equal groups of parts share its text."""
    node = cluster.members[0]
    whole = node.inputs[0]
    axis = whole.attrs["axis"]
    inner = prod(whole.shape[axis + 1:])
    groups: list[list[tuple[Node, Place]]] = []
    offset = 0
    for part in whole.inputs:
        run = part.shape[axis] * inner
        if part.size:
            place = Place(part.size if run == part.size else run, whole.shape[axis] * inner, offset)
            if not groups or not _fits(groups[-1], part, buffers):
                groups.append([])
            groups[-1].append((part, place))
        offset += run
    calls: list[Call] = []
    for group in groups:
        nest = Nest("concat", ((group[0][0].size, False),), [],
                    [(part, buffers[id(node)]) for part, _ in group],
                    places={id(part): place for part, place in group})
        calls.append(kernel_call(lower_loops(nest, buffers), target, False))
    return calls


def _fits(group: list[tuple[Node, Place]], part: Node, buffers: dict[int, int]) -> bool:
    """Whether a part may be made in the same loops as those of `group`."""
    first = group[0][0]
    return (len(group) < _TOGETHER and part.shape == first.shape
            and (id(part) in buffers) == (id(first) in buffers)
            and all(part is not other for other, _ in group))


def _attention(cluster: Cluster, buffers: dict[int, int], target: Target,
               specialize: bool) -> list[Call]:
    """Attention within a text, or to a cache."""
    cached = cluster.members[0].attrs["start"]
    return (decoding_calls if cached else forward_calls)(cluster, buffers, target, specialize)


def _convolution(cluster: Cluster, buffers: dict[int, int], target: Target,
                 specialize: bool) -> list[Call]:
    tiled = has_tiles(cluster.members[0])
    make = convolution_calls if tiled else plane_calls
    return make(cluster, buffers, target, specialize)


def _weight_gradient(cluster: Cluster, buffers: dict[int, int], target: Target,
                     specialize: bool) -> list[Call]:
    tiled = has_tiles(cluster.members[0])
    make = weight_calls if tiled else plane_weight_calls
    return make(cluster, buffers, target, specialize)


SPECIAL: dict[str, Callable[[Cluster, dict[int, int], Target, bool], list[Call]]] = {
    "scan": _scan, "recurrence": _scan, "scatter": _scatter, "scatter_add": _scatter,
    "argsort": _argsort, "concat": _concat,
    "attention": _attention, "attention_grad": backward_calls,
    "conv": _convolution, "conv_weight": _weight_gradient, "max_pool_grad": pool_grad_calls,
    "quantized_linear": product_calls,
}
