"""Copying twins of views (`view_copy`, …), `as_strided`, and further rearrangements. Layer 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer import prims
from gossamer.core.errors import ShapeError
from gossamer.creation import clone, full_tensor
from gossamer.dispatch import PUBLIC, axis_of, node_of, number, public
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import TABLE
from gossamer.layout import is_contiguous, layout
from gossamer.masking import nonzero
from gossamer.tensor import DETACH_STEP, Step, Tensor, view as make_view, wrap
from gossamer.views import reshape_steps

__all__ = ["as_strided", "gradient"]


def _copy(name: str) -> None:
    view = getattr(Tensor, name)

    def fn(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = view(input, *args, **kwargs)
        return tuple(map(clone, made)) if isinstance(made, tuple) else clone(made)
    fn.__name__ = fn.__qualname__ = f"{name}_copy"
    fn.__doc__ = f"`{name}`, as a copy with its own memory."
    public(method=name == "narrow")(fn)


for _name in ("diagonal", "expand", "narrow", "permute", "split", "split_with_sizes", "squeeze",
              "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "detach", "select"):
    _copy(_name)
PUBLIC["alias_copy"] = clone


def _memory(x: Tensor) -> tuple[Tensor, tuple[Step, ...]]:
    """The tensor that owns the memory of `x`, or the leaf through which slopes reach it, and the
    steps from there to a row of its elements."""
    steps: tuple[Step, ...] = ()
    while isinstance(x._base, Tensor) and (steps or not x._leaf):
        if any(op is DETACH_STEP[0] for op, _ in x._path):
            steps = (DETACH_STEP,)
        x = x._base
    return x, (*steps, *reshape_steps(x._node.shape, (x._node.size,)))


def _check_extent(size: Shape, stride: Sequence[int], offset: int, room: int, name: str) -> None:
    if len(size) != len(stride) or any(n < 0 for n in size) or any(s < 0 for s in stride):
        raise ShapeError(f"{name}(size={size}, stride={tuple(stride)}): both need one entry for "
                         "each dimension, none negative.")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and not 0 <= last < room:
        raise ShapeError(f"{name}(size={size}, stride={tuple(stride)}, storage_offset={offset}): "
                         f"it reaches element {last}, and the memory has {room}.")


@public()
def as_strided(input: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    """A view of the tensor's memory: its element at index i is number offset + sum(i * stride).

    Args:
        size, stride: extents, and elements from one index to the next.
        storage_offset: the first element (default: that of `input`).

    Returns:
        A view of shape `size`; writes through it reach every tensor on the memory. Where elements
        overlap, the last one written stays.

    Raises:
        ShapeError: an element would lie outside the memory, or `input` shows a leaf that is itself
            a part of some memory, with gaps.

    Cost: index arithmetic to read, one scatter to write.
    """
    shape, steps = tuple(map(int, size)), tuple(map(int, stride))
    node_of(input, "gs.as_strided")
    offset = layout(input)[2] if storage_offset is None else int(storage_offset)
    owner, path = _memory(input)
    if not is_contiguous(owner):
        raise ShapeError("gs.as_strided: x shows a leaf that is itself a view with gaps; which of "
                         "its elements have a gradient is not known. Use x.clone() first.")
    _check_extent(shape, steps, offset, owner._node.size + layout(owner)[2], "gs.as_strided")
    offset -= layout(owner)[2]
    if offset < 0:
        raise ShapeError(f"gs.as_strided(storage_offset={storage_offset}): x shows a leaf that "
                         f"begins at element {layout(owner)[2]}. Use x.detach().as_strided(...).")
    strides = tuple(s if n > 1 else max(s, 1) for n, s in zip(shape, steps, strict=True))
    return make_view(owner, (*path, (TABLE["strided"], {
        "extents": shape, "strides": strides, "offset": offset})))


@public()
def as_strided_copy(input: Tensor, size: Any, stride: Any,
                    storage_offset: int | None = None) -> Tensor:
    """`as_strided`, as a copy with its own memory."""
    return clone(as_strided(input, size, stride, storage_offset))


@public()
def as_strided_scatter(input: Tensor, src: Tensor, size: Any, stride: Any,
                       storage_offset: int | None = None) -> Tensor:
    """A copy of `input` with the elements at given strides replaced by `src`."""
    x, s = node_of(input, "gs.as_strided_scatter"), node_of(src, "gs.as_strided_scatter", "src")
    shape, steps = tuple(map(int, size)), tuple(map(int, stride))
    offset = 0 if storage_offset is None else int(storage_offset)
    _check_extent(shape, steps, offset, x.size, "gs.as_strided_scatter")
    if s.shape != shape:
        raise ShapeError(f"gs.as_strided_scatter: src has shape {s.shape}; it must be {shape}.")
    flat = prims.reshape(x, (x.size,))
    put = TABLE["strided"].put
    assert put is not None
    made = put(flat, prims.cast(s, x.dtype), extents=shape, strides=steps, offset=offset)
    return wrap(prims.reshape(made, x.shape))


@public(method=False)
def empty_permuted(size: Any, physical_layout: Any, *, dtype: Any = None, device: Any = None,
                   requires_grad: bool = False, layout: Any = None) -> Tensor:
    """A tensor of that shape; its layout is the compiler's matter."""
    return PUBLIC["empty"](size, dtype=dtype, device=device,
                           requires_grad=requires_grad)


@public(function=False)
def new_empty_strided(self: Tensor, size: Any, stride: Any, *, dtype: Any = None,
                      device: Any = None, requires_grad: bool = False, layout: Any = None,
                      pin_memory: bool = False) -> Tensor:
    """A tensor of that shape with this dtype; strides are the compiler's matter."""
    return full_tensor(tuple(size), 0, dtype or self._node.dtype, device or self.device,
                       requires_grad)


@public(method=False)
def constant_pad_nd(input: Tensor, pad: Sequence[int], value: Any = 0) -> Tensor:
    """`input` with `pad[0]`, `pad[1]` values before and behind in the last dimension, `pad[2]`,
    `pad[3]` in the one before, and so on; negative ones cut."""
    x = node_of(input, "gs.constant_pad_nd")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ShapeError(f"gs.constant_pad_nd(pad={tuple(pad)}): it needs two numbers for each of "
                         f"at most {x.ndim} dimensions.")
    low, high = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):
        low[-1 - i], high[-1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    for axis, (a, b) in enumerate(zip(low, high, strict=True)):
        start, stop = max(-a, 0), x.shape[axis] - max(-b, 0)
        if start > stop:
            raise ShapeError(f"gs.constant_pad_nd(pad={tuple(pad)}): it cuts more than dimension "
                             f"{axis} has.")
        x = prims.narrow(x, axis, start, stop)
    return wrap(prims.pad(x, [max(a, 0) for a in low], [max(b, 0) for b in high], value))


@public()
def nonzero_static(input: Tensor, *, size: int, fill_value: int = -1,
                   out: Tensor | None = None) -> Tensor:
    """`nonzero` with exactly `size` rows: cut, or filled up with `fill_value`."""
    found = nonzero(input)._read()
    rows = found.shape[0]
    if rows >= size:
        made = prims.narrow(found, 0, 0, size) if found.ndim else found
    else:
        made = prims.pad(found, (0, 0), (size - rows, 0), fill_value)
    return wrap(made) if out is None else out.copy_(wrap(made))


# ------------------------------------------------------------------------------------- gradient

def _slopes(y: Node, axis: int, at: Node | None, step: float, edge_order: int) -> Node:
    """Second-order differences along one axis, at points `at` or `step` apart."""
    n = y.shape[axis]

    def part(x: Node, a: int, b: int) -> Node:
        return prims.narrow(x, axis, a, b)
    if at is None:
        at = prims.iota(axis, y.shape, y.dtype)
        at = prims.mul(at, prims.const(step, at))
    else:
        line = prims.reshape(at, tuple(n if i == axis else 1 for i in range(y.ndim)))
        at = prims.cast(prims.expand(line, y.shape), y.dtype)
    dx = prims.sub(part(at, 1, n), part(at, 0, n - 1))
    dy = prims.div(prims.sub(part(y, 1, n), part(y, 0, n - 1)), dx)
    left, right = part(dx, 0, n - 2), part(dx, 1, n - 1)
    total = prims.add(left, right)
    middle = prims.div(prims.add(prims.mul(part(dy, 0, n - 2), right),
                                 prims.mul(part(dy, 1, n - 1), left)), total)
    first, last = part(dy, 0, 1), part(dy, n - 2, n - 1)
    if edge_order == 2:
        def outer(near: Node, far: Node, h: Node, k: Node) -> Node:
            bend = prims.div(prims.sub(far, near), prims.add(h, k))
            return prims.sub(near, prims.mul(bend, h))
        first = outer(first, part(dy, 1, 2), part(dx, 0, 1), part(dx, 1, 2))
        last = outer(last, part(dy, n - 3, n - 2), part(dx, n - 2, n - 1), part(dx, n - 3, n - 2))
    return prims.concat([first, middle, last], axis)


@public(method=False)
def gradient(input: Tensor, *, spacing: Any = 1, dim: Any = None,
             edge_order: int = 1) -> tuple[Tensor, ...]:
    """Estimated derivatives along dimensions by second-order differences.

    Args:
        input: values on a grid.
        spacing: the step (one, or one per dimension), or the coordinates (a tensor per dimension).
        dim: the dimensions (all without it).
        edge_order: 1 or 2: the order at the edges.

    Returns:
        One tensor per dimension.
    """
    y = node_of(input, "gs.gradient")
    dims = list(range(y.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    axes = [axis_of(d, y.ndim, "gs.gradient") for d in dims]
    if isinstance(spacing, (list, tuple)):
        given = list(spacing)
    else:
        given = [1 if spacing is None else spacing] * len(axes)
    if len(given) != len(axes):
        raise ShapeError(f"gs.gradient: {len(given)} spacings for {len(axes)} dimensions.")
    if any(y.shape[a] < edge_order + 1 for a in axes):
        raise ShapeError(f"gs.gradient(edge_order={edge_order}): x has shape {y.shape}; each "
                         f"dimension needs at least {edge_order + 1} points.")
    if y.dtype.kind != "f":
        y = prims.cast(y, PUBLIC["get_default_dtype"]())
    out = []
    for axis, space in zip(axes, given, strict=True):
        points = space._read() if isinstance(space, Tensor) and space.ndim else None
        step = 1.0 if points is not None else float(number(space, "gs.gradient"))
        out.append(wrap(_slopes(y, axis, points, step, edge_order)))
    return tuple(out)
