"""Pure functions on shapes (tuples of extents) and axes. Layer 0.

A shape is a tuple of non-negative ints. Inside the package axes are non-negative and sorted; the
functions `normalize_*` turn what a user may write (negative, unsorted, None) into that form and
speak PyTorch's word, `dim`, when they refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index as as_int

from gossamer.core.errors import IndexingError, ShapeError

__all__ = [
    "broadcast_axes", "broadcast_shapes", "inverse_permutation", "keep_axes", "normalize_axes",
    "normalize_axis", "resolve_shape", "row_strides", "size_of", "split_groups", "without_axes",
]

Shape = tuple[int, ...]


def size_of(shape: Iterable[int]) -> int:
    """Number of elements: the product of the extents, 1 for an empty shape."""
    n = 1
    for extent in shape:
        n *= extent
    return n


def row_strides(shape: Shape) -> Shape:
    """Strides in elements of a row-major array of this shape."""
    strides = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def without_axes(shape: Shape, axes: Iterable[int]) -> Shape:
    """The shape with `axes` removed."""
    gone = tuple(axes)  # a handful: scanning it is faster than hashing
    return tuple([n for i, n in enumerate(shape) if i not in gone])


def keep_axes(shape: Shape, axes: Iterable[int]) -> Shape:
    """The shape with `axes` reduced to extent 1 (`keepdim=True`)."""
    ones = frozenset(axes)
    return tuple(1 if i in ones else n for i, n in enumerate(shape))


def inverse_permutation(axes: Sequence[int]) -> Shape:
    """The permutation that undoes `axes`."""
    inverse = [0] * len(axes)
    for position, axis in enumerate(axes):
        inverse[axis] = position
    return tuple(inverse)


def normalize_axis(axis: int, ndim: int, what: str) -> int:
    """`axis` as a number in [0, ndim). A zero-dimensional tensor accepts -1 and 0, as in PyTorch.

    Raises:
        IndexingError: it is out of range; `what` names the user's call.
    """
    axis = as_int(axis)
    extent = max(ndim, 1)
    if not -extent <= axis < extent:
        raise IndexingError(
            f"{what}: Dimension out of range (expected to be in range of [{-extent}, "
            f"{extent - 1}], but got {axis}). Use a dim that the tensor, which has {ndim}, has.")
    return axis + extent if axis < 0 else axis


def normalize_axes(axes: int | Sequence[int] | None, ndim: int, what: str) -> Shape:
    """Axes as a sorted tuple without repeats; None and () mean all of them.

    Raises:
        IndexingError: an axis is out of range, or named twice.
    """
    if axes is None:
        return tuple(range(ndim))
    if isinstance(axes, int):
        return (normalize_axis(axes, ndim, what),) if ndim else _checked_scalar(axes, what)
    if not axes:
        return tuple(range(ndim))
    found = sorted(normalize_axis(a, ndim, what) for a in axes)
    if len(set(found)) != len(found):
        raise IndexingError(f"{what}: dims {tuple(axes)} name one dimension twice. "
                            "List every dimension once.")
    return tuple(found) if ndim else ()


def _checked_scalar(axis: int, what: str) -> Shape:
    normalize_axis(axis, 0, what)
    return ()


def broadcast_shapes(shapes: Sequence[Shape], what: str) -> Shape:
    """The shape to which all `shapes` broadcast: aligned at the right, extents equal or 1.

    Raises:
        ShapeError: two extents differ and neither is 1; `what` names the user's call.
    """
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    ndim = max(map(len, shapes))
    result = [1] * ndim
    for shape in shapes:
        offset = ndim - len(shape)
        for i, extent in enumerate(shape, offset):
            if extent == 1 or extent == result[i]:
                continue
            if result[i] != 1:
                given = " and ".join(str(s) for s in shapes)
                raise ShapeError(
                    f"{what}: shapes {given} do not broadcast: dimension {i - ndim} is "
                    f"{result[i]} in one and {extent} in another; they must be equal or 1. "
                    "Insert dimensions with unsqueeze, or reshape an operand.")
            result[i] = extent
    return tuple(result)


def broadcast_axes(shape: Shape, target: Shape) -> tuple[Shape, Shape]:
    """How to repeat `shape` to `target`: (the shape without the repeated axes, the new axes).

    An axis of extent 1 that must grow is first dropped (a reshape) and then added as a new axis, so
    that one `broadcast` node, whose new axes are in no way part of its input, does everything.
    """
    offset = len(target) - len(shape)
    axes = tuple(i for i, n in enumerate(target)
                 if i < offset or (shape[i - offset] == 1 and n != 1))
    return without_axes(target, axes), axes


def resolve_shape(shape: Sequence[int], size: int, what: str) -> Shape:
    """A target shape with its one -1 replaced so that it holds `size` elements.

    Raises:
        ShapeError: more than one -1, or no whole extent fits.
    """
    sizes = tuple(as_int(n) for n in shape)
    if -1 not in sizes:
        return sizes
    known = size_of(n for n in sizes if n != -1)
    if sizes.count(-1) > 1:
        raise ShapeError(f"{what}: shape {sizes} has more than one -1; only one dimension can be "
                         "inferred. Give the others.")
    if known == 0 or size % known:
        raise ShapeError(f"{what}: shape '{list(sizes)}' is invalid for input of size {size}; "
                         f"the given extents hold {known} elements. Choose extents that divide it.")
    return tuple(size // known if n == -1 else n for n in sizes)


def split_groups(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """Smallest groups of axes of `source` and `target` that hold equally many elements each.

    `(2, 3, 4) → (6, 4)` gives `[({0,1}, {0}), ({2}, {1})]`: only axes of one group mix in a
    reshape. Both shapes hold the same, non-zero number of elements.
    """
    groups = []
    i = j = 0
    while i < len(source) or j < len(target):
        i0, j0 = i, j
        p = q = 1
        if i < len(source):
            p, i = source[i], i + 1
        if j < len(target):
            q, j = target[j], j + 1
        while p != q:
            if p < q:
                p, i = p * source[i], i + 1
            else:
                q, j = q * target[j], j + 1
        groups.append((range(i0, i), range(j0, j)))
    return groups
