"""Putting tensors together and rearranging copies: cat, stack, flip, roll, repeat, … Layer 4.

Unlike views these make new tensors; but all are index arithmetic, so they too fuse into what reads
them and cost memory only when someone looks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from gossamer import prims
from gossamer.core.dtype import DType, promote
from gossamer.core.errors import IndexingError, ShapeError
from gossamer.dispatch import (
    axis_of,
    node_of,
    public,
    shape_of,
    tensors_of,
    with_out,
)
from gossamer.ir.node import Node, type_text
from gossamer.tensor import Tensor, view as make_view, wrap
from gossamer.views import expand_steps, reshape_steps

__all__ = ["cat", "repeat", "roll", "stack"]


def _common(nodes: Sequence[Node]) -> list[Node]:
    """All nodes cast to their promoted dtype."""
    dtype: DType = nodes[0].dtype
    for n in nodes[1:]:
        dtype = promote(dtype, n.dtype)
    return [prims.cast(n, dtype) for n in nodes]


@public(method=False, aliases=("concat", "concatenate"))
@with_out
def cat(tensors: Any, dim: int = 0) -> Tensor:
    """The tensors one after another along an existing dimension.

    Args:
        tensors: tensors whose extents agree except along `dim`; dtypes are promoted.
        dim: the dimension.

    Raises:
        ShapeError: the list is empty, or other extents differ.
    """
    nodes = tensors_of(tensors, "gs.cat")
    if not nodes:
        raise ShapeError("gs.cat: the list of tensors is empty; at least one is needed.")
    nodes = _common(nodes)
    used = [n for n in nodes if n.shape != (0,)] or nodes[:1]  # PyTorch skips legacy empties
    ndim = used[0].ndim
    if ndim == 0:
        raise ShapeError("gs.cat: a tensor without dimensions cannot be concatenated. Use "
                         "gs.stack.")
    axis = axis_of(dim, ndim, "gs.cat")
    for i, n in enumerate(used[1:], 1):
        if n.ndim != ndim or any(a != b for k, (a, b) in enumerate(zip(
                n.shape, used[0].shape, strict=True)) if k != axis):
            raise ShapeError(f"gs.cat(dim={dim}): tensors[0] is {type_text(used[0])} and "
                             f"tensors[{i}] {type_text(n)}; all extents except that of dimension "
                             f"{axis} must be equal.")
    return wrap(prims.concat(used, axis))


@public(method=False)
@with_out
def stack(tensors: Any, dim: int = 0) -> Tensor:
    """The tensors, all of one shape, along a new dimension.

    Raises:
        ShapeError: the list is empty, or the shapes differ.
    """
    nodes = tensors_of(tensors, "gs.stack")
    if not nodes:
        raise ShapeError("gs.stack: the list of tensors is empty; at least one is needed.")
    shape = nodes[0].shape
    for i, n in enumerate(nodes):
        if n.shape != shape:
            raise ShapeError(f"gs.stack: tensors[0] has shape {shape} and tensors[{i}] {n.shape}; "
                             "all must be equal. Use gs.cat to join along an existing dimension.")
    axis = axis_of(dim, len(shape) + 1, "gs.stack")
    one = (*shape[:axis], 1, *shape[axis:])
    return wrap(prims.concat([prims.reshape(n, one) for n in _common(nodes)], axis))


def _at_least(n: int) -> Callable[..., Any]:
    def fn(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
            return tuple(_raise(t, n) for t in tensors[0])
        found = tuple(_raise(t, n) for t in tensors)
        return found[0] if len(found) == 1 else found
    fn.__name__ = f"atleast_{n}d"
    fn.__doc__ = f"The tensors as views with at least {n} dimensions."
    return fn


def _raise(t: Tensor, n: int) -> Tensor:
    shape = node_of(t, "gs.atleast").shape
    if len(shape) >= n:
        return t
    new = {1: (1,), 2: (1, *shape) if shape else (1, 1),
           3: (1, *shape, 1) if len(shape) == 1 else (*shape, 1) if shape else (1, 1, 1)}[n]
    return make_view(t, reshape_steps(shape, new))


for _n in (1, 2, 3):
    public(method=False)(_at_least(_n))


@public(method=False, aliases=("row_stack",))
@with_out
def vstack(tensors: Any) -> Tensor:
    """Concatenate along the first dimension; vectors become rows."""
    return cat([_raise(t, 2) for t in tensors], 0)


@public(method=False)
@with_out
def hstack(tensors: Any) -> Tensor:
    """Concatenate along the second dimension (the first for vectors)."""
    parts = [_raise(t, 1) for t in tensors]
    return cat(parts, 0 if parts and parts[0].ndim == 1 else 1)


@public(method=False)
@with_out
def dstack(tensors: Any) -> Tensor:
    """Concatenate along the third dimension."""
    return cat([_raise(t, 3) for t in tensors], 2)


@public(method=False)
@with_out
def column_stack(tensors: Any) -> Tensor:
    """Concatenate along the second dimension; vectors become columns."""
    parts = [t.reshape(t.numel(), 1) if t.ndim <= 1 else t for t in tensors]
    return cat(parts, 1)


@public(method=False)
def block_diag(*tensors: Tensor) -> Tensor:
    """A matrix with the given matrices along its diagonal."""
    nodes = _common([_raise(t, 2)._read() for t in tensors]) if tensors else []
    if not nodes:
        raise ShapeError("gs.block_diag: at least one tensor is needed.")
    if any(n.ndim != 2 for n in nodes):
        raise ShapeError("gs.block_diag: all tensors must have at most 2 dimensions.")
    width = sum(n.shape[1] for n in nodes)
    rows, left = [], 0
    for n in nodes:
        rows.append(prims.pad(n, (0, left), (0, width - left - n.shape[1])))
        left += n.shape[1]
    return wrap(prims.concat(rows, 0))


# ------------------------------------------------------------------------------------ turning

@public()
def flip(input: Tensor, *args: Any, dims: Any = None) -> Tensor:
    """A copy with the order along `dims` reversed."""
    node = node_of(input, "gs.flip")
    dims = args if dims is None else (dims,)
    axes = [axis_of(d, node.ndim, "gs.flip", "dims") for d in shape_of(dims, "gs.flip")]
    if len(set(axes)) < len(axes):
        raise ShapeError(f"gs.flip: dims={axes} names a dimension twice; each may be named once.")
    return wrap(prims.flip(node, axes) if node.ndim else node)


@public()
def fliplr(input: Tensor) -> Tensor:
    """A copy with the columns in reverse order."""
    if node_of(input, "gs.fliplr").ndim < 2:
        raise ShapeError("gs.fliplr: x needs at least 2 dimensions.")
    return flip(input, 1)


@public()
def flipud(input: Tensor) -> Tensor:
    """A copy with the rows in reverse order."""
    if node_of(input, "gs.flipud").ndim < 1:
        raise ShapeError("gs.flipud: x needs at least 1 dimension.")
    return flip(input, 0)


@public()
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """A copy shifted by `shifts` along `dims`; what leaves one end enters at the other.

    Without `dims` the elements are rolled as one row.
    """
    node = node_of(input, "gs.roll")
    moves = (int(shifts),) if not isinstance(shifts, (tuple, list)) else tuple(shifts)
    if dims is None or dims == ():
        flat = _rolled(prims.reshape(node, (node.size,)), moves[0], 0)
        return wrap(prims.reshape(flat, node.shape))
    places = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(places) != len(moves):
        raise ShapeError(f"gs.roll: shifts={shifts} and dims={dims} must have the same length.")
    for move, dim in zip(moves, places, strict=True):
        node = _rolled(node, move, axis_of(dim, node.ndim, "gs.roll", "dims"))
    return wrap(node)


def _rolled(x: Node, shift: int, axis: int) -> Node:
    n = x.shape[axis]
    shift = shift % n if n else 0
    if not shift:
        return x
    return prims.concat([prims.narrow(x, axis, n - shift, n), prims.narrow(x, axis, 0, n - shift)],
                        axis)


@public()
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """A copy turned `k` times by 90 degrees in a plane of two dimensions, first towards second."""
    node = node_of(input, "gs.rot90")
    a, b = (axis_of(d, node.ndim, "gs.rot90", "dims") for d in dims)
    if a == b:
        raise IndexingError(f"gs.rot90: dims={tuple(dims)} must be two different dimensions.")
    axes = list(range(node.ndim))
    axes[a], axes[b] = b, a
    k %= 4
    if k == 1:
        node = prims.permute(prims.flip(node, [b]), axes)
    elif k == 2:
        node = prims.flip(node, [a, b])
    elif k == 3:
        node = prims.flip(prims.permute(node, axes), [b])
    return wrap(node)


# ----------------------------------------------------------------------------------- repeating

@public(function=False)
def repeat(self: Tensor, *args: Any, repeats: Any = None) -> Tensor:
    """The tensor copied `repeats[i]` times along dimension i; extra leading repeats add dimensions.

    Raises:
        ShapeError: there are fewer repeats than dimensions.
    """
    node = self._read()
    times = shape_of(args if repeats is None else (repeats,), "x.repeat")
    if len(times) < node.ndim or any(n < 0 for n in times):
        raise ShapeError(f"x.repeat{times}: x has {node.ndim} dimensions; there must be at least "
                         "as many repeats, none negative.")
    shape = (1,) * (len(times) - node.ndim) + node.shape
    paired = tuple(itertools.chain.from_iterable((1, n) for n in shape))
    full = tuple(itertools.chain.from_iterable(zip(times, shape, strict=True)))
    new = prims.expand(prims.reshape(node, paired), full)
    return wrap(prims.reshape(new, tuple(t * n for t, n in zip(times, shape, strict=True))))


@public()
def tile(input: Tensor, *args: Any, dims: Any = None) -> Tensor:
    """As `repeat`; missing leading repeats count as 1."""
    times = shape_of(args if dims is None else (dims,), "gs.tile")
    return repeat(input, (1,) * (node_of(input, "gs.tile").ndim - len(times)) + times)


@public()
def repeat_interleave(input: Tensor, repeats: Any = None, dim: int | None = None, *,
                      output_size: int | None = None) -> Tensor:
    """Every element (or index of `dim`) repeated `repeats` times in place.

    Args:
        input: any shape; without `dim` it is flattened.
        repeats: a number, or a tensor with one number per index (its values are read).
        dim: the dimension.
    """
    name = "gs.repeat_interleave"
    if repeats is None:
        return _counted(input._read(), input)
    node = node_of(input, name)
    if dim is None:
        node, axis = prims.reshape(node, (node.size,)), 0
    else:
        axis = axis_of(dim, node.ndim, name)
    if node.ndim == 0:
        node = prims.reshape(node, (1,))
    if isinstance(repeats, Tensor) and repeats.numel() == 1:
        repeats = repeats.item()
    if isinstance(repeats, int):
        shape = node.shape
        one = prims.reshape(node, (*shape[:axis + 1], 1, *shape[axis + 1:]))
        many = prims.expand(one, (*shape[:axis + 1], repeats, *shape[axis + 1:]))
        return wrap(prims.reshape(many, (*shape[:axis], shape[axis] * repeats, *shape[axis + 1:])))
    counts = repeats if isinstance(repeats, Tensor) else Tensor(repeats).long()
    if counts._node.shape != (node.shape[axis],):
        raise ShapeError(f"{name}: repeats has shape {counts._node.shape}; it must be a number or "
                         f"have shape ({node.shape[axis]},), one for each index.")
    index = _counted(counts._read(), counts)
    found = prims.take(prims.move_axis(node, axis, 0), index._read())
    return wrap(prims.move_axis(found, 0, axis))


def _counted(counts: Node, tensor: Tensor) -> Tensor:
    """0 repeated counts[0] times, 1 repeated counts[1] times, …"""
    values: list[int] = []
    for i, n in enumerate(tensor.tolist()):
        if n < 0:
            raise ShapeError(f"gs.repeat_interleave: repeats[{i}] = {n} is negative.")
        values.extend([i] * n)
    return tensor.new_tensor(values, dtype=counts.dtype) if values else tensor.new_zeros(
        0, dtype=counts.dtype)


# ------------------------------------------------------------------------------- combinations

@public(method=False)
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinate grids of vectors: result k varies along dimension k ("xy" swaps the first two)."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = tuple(tensors[0])
    if indexing not in ("ij", "xy"):
        raise IndexingError(f"gs.meshgrid(indexing={indexing!r}): it must be 'ij' or 'xy'.")
    nodes = tensors_of(list(tensors), "gs.meshgrid")
    if any(n.ndim > 1 for n in nodes):
        raise ShapeError("gs.meshgrid: all tensors must have at most one dimension.")
    sizes = [n.size for n in nodes]
    order = list(range(len(nodes)))
    if indexing == "xy" and len(nodes) > 1:
        order[0], order[1] = 1, 0
    shape = tuple(sizes[k] for k in order)
    out = []
    for k, t in enumerate(tensors):
        axis = order[k]
        one = (1,) * axis + (sizes[k],) + (1,) * (len(nodes) - axis - 1)
        steps = reshape_steps(t._node.shape, one)
        out.append(make_view(t, steps + expand_steps(one, shape)))
    return tuple(out)


@public(method=False)
def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of one element of each vector, as rows."""
    if len(tensors) == 1:
        return tensors[0]
    grids = meshgrid(*tensors)
    return stack([g.reshape(-1) for g in grids], 1)


@public()
def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """All combinations of `r` elements of a vector, as rows, in the order of their positions."""
    node = node_of(input, "gs.combinations")
    if node.ndim != 1:
        raise ShapeError(f"gs.combinations: x has {node.ndim} dimensions; it must have 1.")
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(node.shape[0]), r))
    if not rows or r == 0:
        return input.new_empty(0 if r == 0 else (0, r))
    return input[input.new_tensor(rows, dtype=int)]
