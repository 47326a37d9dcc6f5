"""`x[...]` and `x[...] = v`. Layer 4.

An index is split in two. Its basic part (integers, slices, None, ...) is one slice and one reshape,
so it is a view. Its advanced part (integer tensors, masks, lists) gathers or scatters along the
leading axis of the rearranged view with linear indices. Assigning one value under a mask is a
`where`, so it needs no data-dependent shape and works while tracing.

Source of the rules: NumPy, "Indexing on ndarrays", as PyTorch follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import bool_, int64
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.creation import array_node
from gossamer.dispatch import broadcast_shapes, node_of
from gossamer.ir.node import Node, Shape, type_text
from gossamer.ir.op import BUFFER, TABLE
from gossamer.prims import SLICE
from gossamer.realize import realize
from gossamer.tensor import Step, Tensor, attach, view as make_view, wrap
from gossamer.views import reshape_steps

__all__ = ["gather_axes", "nonzero_nodes", "scatter_axes", "split_index"]

Advanced = list[tuple[int, Node]]  # (axis of the basic view, integer index or mask)


# ------------------------------------------------------------------------------ reading an index

def _index_tensor(item: Any) -> Node:
    """A list, array or tensor index as a node."""
    if isinstance(item, Tensor):
        node = item._read()
    elif isinstance(item, (list, tuple, np.ndarray)) or hasattr(item, "__array__"):
        array = np.array([i.tolist() if isinstance(i, Tensor) else i for i in item]
                         if isinstance(item, (list, tuple)) else item)
        if array.size == 0 and array.dtype.kind == "f":
            array = array.astype(np.int64)
        if array.dtype.kind not in "iub":
            raise IndexingError(f"x[...]: an index of {array.dtype} values; indices are integers "
                                "or bools.")
        node = array_node(array, bool_ if array.dtype.kind == "b" else int64)
    else:
        kind = IndexingError if isinstance(item, float) else DTypeError
        raise kind(f"x[...]: {type(item).__name__} cannot be an index; use integers, "
                            "slices, None, ..., bools, lists or tensors of integers or bools.")
    if node.dtype.kind == "f":
        raise IndexingError(f"x[...]: the index is {type_text(node)}; indices are integers or "
                            "bools. Use .long().")
    return node if node.dtype is bool_ else prims.cast(node, int64)


def _items(key: Any, ndim: int) -> list[Any]:
    """The key as a list without `...`, one item a dimension (None and bools extra)."""
    items = list(key) if isinstance(key, tuple) else [key]
    items = [i if i is None or i is Ellipsis or isinstance(i, (int, slice, bool))
             else _whole(i) for i in items]
    used = 0
    for i in items:
        if isinstance(i, Node):
            used += i.ndim if i.dtype is bool_ else 1
        elif i is not None and i is not Ellipsis and not isinstance(i, bool):
            used += 1
    if used > ndim:
        raise IndexingError(f"x[...]: {used} indices for a tensor with {ndim} dimensions.")
    dots = [n for n, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise IndexingError("x[...]: `...` may occur only once in an index.")
    fill = [slice(None)] * (ndim - used)
    at = dots[0] if dots else len(items)
    return items[:at] + fill + items[at + 1:]


def _whole(item: Any) -> Any:
    """NumPy integers become int; what is not basic becomes a node."""
    if isinstance(item, np.integer):
        return int(item)
    if isinstance(item, np.bool_):
        return bool(item)
    if not isinstance(item, (Tensor, list, tuple, np.ndarray)) and hasattr(item, "__index__"):
        return item.__index__()
    return _index_tensor(item)


def _bound(value: Any) -> int | None:
    return value if value is None else value.__index__()


def split_index(shape: Shape, key: Any) -> tuple[tuple[Step, ...], Shape, Advanced]:
    """The basic part of a key as view steps, the shape after it, and the advanced part."""
    cuts: list[tuple[int, int, int]] = []  # (start, stop, step), all axes of x
    sliced: list[int] = []  # extents after the slice step, all axes of x
    kept: list[int] = []  # extents after the reshape step
    advanced: Advanced = []
    axis = 0
    for item in _items(key, len(shape)):
        if item is None:
            kept.append(1)
            continue
        if isinstance(item, bool):  # adds an axis of extent 1 or 0
            advanced.append((len(kept), array_node(np.array([0] if item else []), int64)))
            kept.append(1)
            continue
        if isinstance(item, Node) and item.dtype is bool_:
            _check_mask(item, shape, axis)
            if item.ndim == 0:
                advanced.append((len(kept), item))
                kept.append(1)
                continue
            advanced.append((len(kept), item))
            for n in shape[axis:axis + item.ndim]:
                cuts.append((0, n, 1))
                sliced.append(n)
                kept.append(n)
            axis += item.ndim
            continue
        n = shape[axis]
        if isinstance(item, slice):
            a, b, s = _slice_of(item, n)
            kept.append(max(0, -(-(b - a) // s)))
        elif isinstance(item, Node):
            advanced.append((len(kept), item))
            a, b, s = 0, n, 1
            kept.append(n)
        else:
            a, b, s = _one(item, n, axis)
        cuts.append((a, b, s))
        sliced.append(max(0, -(-(b - a) // s)))
        axis += 1
    found: tuple[Step, ...] = ()
    if tuple(sliced) != shape or any(s != 1 for *_, s in cuts):
        starts, stops, steps = zip(*cuts, strict=True)
        found = ((SLICE, {"starts": starts, "stops": stops, "steps": steps}),)
    return found + reshape_steps(tuple(sliced), tuple(kept)), tuple(kept), advanced


def _slice_of(item: slice, n: int) -> tuple[int, int, int]:
    step = _bound(item.step)
    if step is not None and step <= 0:
        raise ShapeError(f"x[::{step}]: the step of a slice must be positive. Use x.flip(dim).")
    a, b, s = slice(_bound(item.start), _bound(item.stop), step).indices(n)
    return a, max(a, b), s


def _one(index: int, n: int, axis: int) -> tuple[int, int, int]:
    if not -n <= index < n:
        raise IndexingError(f"x[...]: index {index} is out of range for dimension {axis} with "
                            f"extent {n}.")
    index %= n
    return index, index + 1, 1


def _check_mask(mask: Node, shape: Shape, axis: int) -> None:
    covered = shape[axis:axis + mask.ndim]
    if covered != mask.shape:
        raise IndexingError(f"x[mask]: the mask has shape {mask.shape}, but the dimensions it "
                            f"covers have {covered}; they must be equal.")


# -------------------------------------------------------------------------- gather and scatter

def nonzero_nodes(mask: Node) -> list[Node]:
    """Per axis the indices of the true elements. Computes the mask: the count is data."""
    if mask.value is None:
        realize([mask])
    found = np.nonzero(np.atleast_1d(mask.value.array()))
    return [array_node(i, int64) for i in found]


def _unmask(advanced: Advanced) -> Advanced:
    """Masks replaced by the indices of their true elements."""
    out: Advanced = []
    for axis, index in advanced:
        if index.dtype is bool_:
            out.extend((axis + k, i) for k, i in enumerate(nonzero_nodes(index)))
        else:
            out.append((axis, index))
    return out


def check_known(index: Node, extent: int, axis: int, name: str = "x[...]") -> None:
    """Raise at once for an index whose values are already there and out of range."""
    if index.value is None or index.op is not BUFFER or index.size == 0 or index.size > 1 << 16:
        return
    values = index.value.array()
    low, high = int(values.min()), int(values.max())
    if low < -extent or high >= extent:
        bad = low if low < -extent else high
        raise IndexingError(f"{name}: index {bad} is out of range for dimension {axis} with extent "
                            f"{extent}.")


def linear_index(indices: Sequence[Node], extents: Sequence[int]) -> Node:
    """One index into the flattened axes; negative ones count from the end, and one that is out of
    range in its own axis stays out of range."""
    if len(indices) == 1:
        return indices[0]
    total = 1
    for n in extents:
        total *= n
    lt, ge = TABLE["lt"], TABLE["ge"]
    linear: Node | None = None
    wrong: Node | None = None
    for index, n in zip(indices, extents, strict=True):
        extent, zero = prims.const(n, index), prims.const(0, index)
        index = prims.where(lt(index, zero), prims.add(index, extent), index)
        outside = prims.logical_or(lt(index, zero), ge(index, extent))
        wrong = outside if wrong is None else prims.logical_or(wrong, outside)
        linear = index if linear is None else prims.add(prims.mul(linear, extent), index)
    assert linear is not None and wrong is not None
    return prims.where(wrong, prims.const(total, linear), linear)


def _arrange(shape: Shape, advanced: Advanced) -> tuple[tuple[int, ...], list[int], int, Shape]:
    """(axes order with the indexed ones first, rest axes, where the result goes, index shape)."""
    axes = [a for a, _ in advanced]
    rest = [i for i in range(len(shape)) if i not in axes]
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if together else 0
    index_shape = broadcast_shapes("x[...]", [i.shape for _, i in advanced])
    return (*axes, *rest), rest, place, index_shape


def _flat_index(shape: Shape, advanced: Advanced, index_shape: Shape) -> Node:
    for axis, index in advanced:
        check_known(index, shape[axis], axis)
    return linear_index([prims.expand(i, index_shape) for _, i in advanced],
                        [shape[a] for a, _ in advanced])


def gather_axes(x: Node, advanced: Advanced) -> Node:
    """`x` indexed along some axes by integer nodes that broadcast."""
    order, rest, place, index_shape = _arrange(x.shape, advanced)
    kept = tuple(x.shape[i] for i in rest)
    total = 1
    for a, _ in advanced:
        total *= x.shape[a]
    flat = prims.reshape(prims.permute(x, order), (total, *kept))
    found = prims.take(flat, _flat_index(x.shape, advanced, index_shape))
    k = len(index_shape)
    moved = [*range(k, k + place), *range(k), *range(k + place, k + len(kept))]
    return prims.permute(found, moved)


def result_shape(shape: Shape, advanced: Advanced) -> Shape:
    _, rest, place, index_shape = _arrange(shape, advanced)
    kept = [shape[i] for i in rest]
    return (*kept[:place], *index_shape, *kept[place:])


def scatter_axes(x: Node, advanced: Advanced, source: Node, accumulate: bool = False) -> Node:
    """`x` with the indexed elements replaced by (or increased by) `source`, shaped as the result
    of the gather."""
    order, rest, place, index_shape = _arrange(x.shape, advanced)
    kept = tuple(x.shape[i] for i in rest)
    total = 1
    for a, _ in advanced:
        total *= x.shape[a]
    k = len(index_shape)
    first = [*range(place, place + k), *range(place), *range(place + k, k + len(kept))]
    flat = prims.reshape(prims.permute(x, order), (total, *kept))
    record = TABLE["scatter_add" if accumulate else "scatter"]
    new = record(flat, _flat_index(x.shape, advanced, index_shape), prims.permute(source, first))
    back = [order.index(i) for i in range(len(order))]
    return prims.permute(prims.reshape(new, tuple(x.shape[i] for i in order)), back)


# --------------------------------------------------------------------------------- the methods

def getitem(self: Tensor, key: Any) -> Tensor:
    """`x[key]`: a view for integers, slices, None and ...; a copy for tensors and masks."""
    steps, _, advanced = split_index(self._node.shape, key)
    found = make_view(self, steps)
    if not advanced:
        return found
    return wrap(gather_axes(found._read(), _unmask(advanced)))


def assigned(value: Any, like: Node) -> Node:
    """The right side of an assignment as a node of the target's dtype."""
    if isinstance(value, Tensor):
        return prims.cast(value._read(), like.dtype)
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return prims.full(value, (), like.dtype)
    if isinstance(value, np.ndarray):
        return array_node(value, like.dtype)
    raise DTypeError(f"x[...] = v: v must be a tensor or a number, not {type(value).__name__}. "
                     "Make a tensor of it with gs.tensor(...).")


def fill_shape(value: Node, shape: Shape, name: str) -> Node:
    """`value` broadcast to the shape of the place it is written to; leading ones are dropped."""
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = prims.reshape(value, value.shape[1:])
    lead = len(shape) - value.ndim
    if lead < 0 or any(v not in (1, n) for v, n in zip(value.shape, shape[lead:], strict=True)):
        raise ShapeError(f"{name}: v has shape {value.shape}, the indexed part {shape}; v must "
                         "broadcast to it.")
    return prims.expand(value, shape)


def _under_mask(x: Node, advanced: Advanced, value: Node) -> Node | None:
    """`x` with `value` where the only mask holds, or None if the value depends on the count."""
    if len(advanced) != 1 or advanced[0][1].dtype is not bool_:
        return None
    axis, mask = advanced[0]
    after = x.ndim - axis - max(mask.ndim, 1)
    if value.ndim > after and any(n != 1 for n in value.shape[:value.ndim - after]):
        return None
    tail = value.shape[max(0, value.ndim - after):]
    value = fill_shape(prims.reshape(value, tail), x.shape, "x[mask] = v")
    covered = prims.reshape(mask, (*(mask.shape or (1,)), *(1,) * after))
    return prims.where(prims.expand(covered, x.shape), value, x)


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """`x[key] = value`, seen by every view of the same memory."""
    steps, shape, advanced = split_index(self._node.shape, key)
    target = make_view(self, steps) if steps or self._base is not None else self
    target._check_inplace("x[...] = v")
    node = assigned(value, self._node)
    if not advanced:
        target._write(fill_shape(node, shape, "x[...] = v"))
        return
    old = target._read()
    new = _under_mask(old, advanced, node)
    if new is None:
        found = _unmask(advanced)
        new = scatter_axes(old, found, fill_shape(node, result_shape(shape, found), "x[...] = v"))
    target._write(new)


def _index_put_key(x: Tensor, indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i for i in indices)


def index_put_(self: Tensor, indices: Sequence[Any], values: Any,
               accumulate: bool = False) -> Tensor:
    """Write (or add) `values` at the elements that the index tensors name, in place."""
    key = _index_put_key(self, indices)
    self._check_inplace("x.index_put_")
    node = node_of(values, "x.index_put_", "values")
    if node.dtype is not self._node.dtype:
        raise DTypeError(f"x.index_put_: x is {type_text(self._node)} and values "
                         f"{type_text(node)}; the dtypes must be equal.")
    if not accumulate:
        setitem(self, key, values)
        return self
    _, shape, advanced = split_index(self._node.shape, key)
    found = _unmask(advanced)
    source = fill_shape(node, result_shape(shape, found), "x.index_put_")
    return self._write(scatter_axes(self._read(), found, source, accumulate=True))


attach("__getitem__", getitem)
attach("__setitem__", setitem)
attach("index_put_", index_put_)
