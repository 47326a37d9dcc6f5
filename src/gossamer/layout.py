"""Where a view's elements lie: strides and offset, computed from its path when someone asks.
Layer 4.

The engine itself has no strides; a view is index arithmetic. They are kept here because PyTorch
shows them (`stride`, `is_contiguous`, `storage_offset`) and because they decide whether `view`
succeeds and whether `reshape` copies. A tensor that an operation made is contiguous.
"""

from __future__ import annotations

from typing import Any

from gossamer import prims
from gossamer.ir.node import Shape
from gossamer.ir.op import TABLE
from gossamer.tensor import Shared, Tensor

__all__ = ["Layout", "is_contiguous", "layout", "strides_after_reshape"]

Layout = tuple[Shape, tuple[int, ...], int]  # shape, strides in elements, offset in elements


def layout(t: Tensor) -> Layout:
    """Shape, strides and offset of `t` in its storage."""
    base = t._base
    if base is None or base.__class__ is Shared:
        return t._node.shape, prims.row_major(t._node.shape), 0
    found = layout(base)
    for op, attrs in t._path:
        rule = _RULES.get(op.name)
        if rule is not None:
            found = rule(found, **attrs)
    return found


def is_contiguous(t: Tensor) -> bool:
    """Whether the elements lie one after another in the order of iteration."""
    base = t._base
    if base is None or base.__class__ is Shared:
        return True
    shape, strides, _ = layout(t)
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent == 0:
            return True
        if extent != 1:
            if stride != expected:
                return False
            expected *= extent
    return True


def strides_after_reshape(shape: Shape, strides: tuple[int, ...],
                          new: Shape) -> tuple[int, ...] | None:
    """Strides under which `new` shows the same memory, or None if it must be copied.

    Neighbouring axes that lie one inside the other form a block; each new axis must fall into one
    block. Linear in the number of axes.
    """
    if 0 in shape:
        return prims.row_major(new)
    blocks: list[tuple[int, int]] = []  # (extent, stride of the innermost), front to back
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if blocks and blocks[-1][1] == extent * stride:
            blocks[-1] = (blocks[-1][0] * extent, stride)
        else:
            blocks.append((extent, stride))
    out: list[int] = []
    left, step = blocks.pop() if blocks else (1, 1)
    for extent in reversed(new):
        if extent == 1:
            out.append(step)
            continue
        if left == 1 and blocks:
            left, step = blocks.pop()
        if left % extent:
            return None
        out.append(step)
        left //= extent
        step *= extent
    return tuple(reversed(out))


def _reshape(found: Layout, *, shape: Shape) -> Layout:
    old, strides, offset = found
    return shape, strides_after_reshape(old, strides, shape) or prims.row_major(shape), offset


def _permute(found: Layout, *, axes: tuple[int, ...]) -> Layout:
    shape, strides, offset = found
    return tuple(shape[a] for a in axes), tuple(strides[a] for a in axes), offset


def _broadcast(found: Layout, *, shape: Shape, axes: tuple[int, ...]) -> Layout:
    strides = iter(found[1])
    return shape, tuple(0 if i in axes else next(strides) for i in range(len(shape))), found[2]


def _slice(found: Layout, *, starts: tuple[int, ...], stops: tuple[int, ...],
           steps: tuple[int, ...]) -> Layout:
    _, strides, offset = found
    shape = tuple(max(0, -(-(b - a) // s)) for a, b, s in zip(starts, stops, steps, strict=True))
    offset += sum(a * k for a, k in zip(starts, strides, strict=True))
    return shape, tuple(k * s for k, s in zip(strides, steps, strict=True)), offset


def _windows(found: Layout, *, axis: int, stride: int, dilation: int) -> Layout:
    shape, strides, offset = found
    count = (shape[axis] - dilation * (shape[-1] - 1) - 1) // stride + 1
    new = (*shape[:axis], count, *shape[axis + 1:])
    step = strides[axis]
    return new, (*strides[:axis], step * stride, *strides[axis + 1:-1], step * dilation), offset


def _strided(found: Layout, *, extents: Shape, strides: tuple[int, ...], offset: int) -> Layout:
    return extents, strides, found[2] + offset  # of a row: its own stride is 1


_RULES: dict[str, Any] = {"reshape": _reshape, "permute": _permute, "broadcast": _broadcast,
                          "slice": _slice, "windows": _windows, "strided": _strided}
assert set(_RULES) <= set(TABLE)
