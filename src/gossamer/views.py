"""Views: tensors that show the memory of another one in another shape. Layer 4.

Each function turns its arguments into movement steps; `tensor.view` does the rest. Nothing is
copied and nothing is computed: steps are index arithmetic that vanishes into the kernels that read
the view. `reshape`, `flatten` and `contiguous` copy exactly when PyTorch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer import prims
from gossamer.core.dtype import DType
from gossamer.core.errors import DTypeError, IndexingError, ShapeError
from gossamer.dispatch import (
    axes_of,
    axis_of,
    broadcast_shapes as common_shape,
    node_of,
    public,
    shape_of,
)
from gossamer.ir.node import Shape, type_text
from gossamer.ir.op import TABLE
from gossamer.layout import is_contiguous as _is_contiguous, layout, strides_after_reshape
from gossamer.tensor import Size, Step, Tensor, attach, view as make_view, wrap

__all__ = ["expand_steps", "permute_steps", "reshape_steps", "select_steps", "slice_steps"]

RESHAPE, PERMUTE, BROADCAST, SLICE, WINDOWS = (
    TABLE[n] for n in ("reshape", "permute", "broadcast", "slice", "windows"))
Steps = tuple[Step, ...]


# ------------------------------------------------------------------------------------- steps

def reshape_steps(old: Shape, new: Shape) -> Steps:
    return () if old == new else ((RESHAPE, {"shape": new}),)


def permute_steps(axes: Sequence[int]) -> Steps:
    axes = tuple(axes)
    return () if axes == tuple(range(len(axes))) else ((PERMUTE, {"axes": axes}),)


def expand_steps(old: Shape, new: Shape) -> Steps:
    """Broadcast by NumPy's rules."""
    axes = prims.new_axes(old, new)
    if not axes:
        return ()
    kept = tuple(n for i, n in enumerate(new) if i not in axes)
    return (*reshape_steps(old, kept), (BROADCAST, {"shape": new, "axes": axes}))


def slice_steps(shape: Shape, axis: int, start: int, stop: int, step: int = 1) -> Steps:
    """`start:stop:step` of one axis."""
    if start == 0 and stop == shape[axis] and step == 1:
        return ()
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[axis], stops[axis], steps[axis] = start, stop, step
    return ((SLICE, {"starts": tuple(starts), "stops": tuple(stops), "steps": tuple(steps)}),)


def select_steps(shape: Shape, axis: int, index: int) -> Steps:
    """One index of an axis, which disappears."""
    one = (*shape[:axis], 1, *shape[axis + 1:])
    return (*slice_steps(shape, axis, index, index + 1),
            *reshape_steps(one, shape[:axis] + shape[axis + 1:]))


# ------------------------------------------------------------------------------------ reshaping

def infer_shape(shape: Shape, size: int, name: str) -> Shape:
    """Replace one -1 by the extent that makes the element counts equal.

    Raises:
        ShapeError: no extent does.
    """
    known, hole = 1, -1
    written = f"{name}({', '.join(map(str, shape))})"
    for i, n in enumerate(shape):
        if n == -1 and hole < 0:
            hole = i
        elif n < 0:
            raise ShapeError(f"{written}: at most one extent may be -1, and none below.")
        else:
            known *= n
    if hole >= 0:
        if known == 0 or size % known:
            raise ShapeError(f"{written}: x has {size} elements, which no extent in place of -1 "
                             "makes fit.")
        return (*shape[:hole], size // known, *shape[hole + 1:])
    if known != size:
        raise ShapeError(f"{written}: x has {size} elements and this shape {known}; the counts "
                         "must be equal. Use -1 for one extent to have it computed.")
    return shape


@public(function=False)
def view(self: Tensor, *args: Any, size: Any = None, dtype: DType | None = None) -> Tensor:
    """A view of another shape on the same memory; `view(dtype)` reads the bytes as another type.

    Args:
        args, size: extents; one may be -1.
        dtype: the other type.

    Raises:
        ShapeError: the element counts differ, or the memory layout needs a copy.
    """
    if dtype is None and len(args) == 1 and isinstance(args[0], DType):
        dtype = args[0]
    if dtype is not None:
        return view_dtype(self, dtype)
    old = self._node.shape
    sizes = shape_of(args if size is None else (size,), "x.view")
    new = infer_shape(sizes, self._node.size, "x.view")
    if self._base is not None and not _is_contiguous(self):
        _, strides, _ = layout(self)
        if strides_after_reshape(old, strides, new) is None:
            raise ShapeError(f"x.view({', '.join(map(str, new))}): x is a view of shape {old} with "
                             f"strides {strides}, which no strides of the new shape can show. Use "
                             "x.reshape(...).")
    return make_view(self, reshape_steps(old, new))


def view_dtype(x: Tensor, dtype: DType) -> Tensor:
    """The same bytes read as another dtype (a copy: storage here has one dtype)."""
    if dtype is x._node.dtype:
        return make_view(x, ())
    raise DTypeError(f"x.view({dtype!r}): reading the bytes of {type_text(x._node)} as another "
                     "dtype is not supported. Use x.to(dtype) to convert values.")


@public()
def reshape(input: Tensor, *args: Any, shape: Any = None) -> Tensor:
    """The same elements in another shape: a view where possible, else a copy.

    Args:
        input: any shape.
        shape: extents; one may be -1.

    Returns:
        A tensor of that shape.

    Raises:
        ShapeError: the element counts differ.
    """
    node = node_of(input, "gs.reshape")
    sizes = shape_of(args if shape is None else (shape,), "x.reshape")
    new = infer_shape(sizes, node.size, "x.reshape")
    if input._base is not None and not _is_contiguous(input):
        old, strides, _ = layout(input)
        if strides_after_reshape(old, strides, new) is None:
            return wrap(prims.RESHAPE(node, shape=new))
    return make_view(input, reshape_steps(node.shape, new))


@public(function=False)
def view_as(self: Tensor, other: Tensor) -> Tensor:
    """`view(other.shape)`."""
    return view(self, *other._node.shape)


@public(function=False)
def reshape_as(self: Tensor, other: Tensor) -> Tensor:
    """`reshape(other.shape)`."""
    return reshape(self, *other._node.shape)


@public()
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merge the dimensions from `start_dim` to `end_dim` into one."""
    shape = node_of(input, "gs.flatten").shape
    if not shape:
        return reshape(input, 1)
    first = axis_of(start_dim, len(shape), "gs.flatten", "start_dim")
    last = axis_of(end_dim, len(shape), "gs.flatten", "end_dim")
    if first > last:
        raise IndexingError(f"gs.flatten: start_dim={start_dim} comes after end_dim={end_dim}.")
    if first == last:
        return input
    merged = 1
    for n in shape[first:last + 1]:
        merged *= n
    return reshape(input, *shape[:first], merged, *shape[last + 1:])


@public()
def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """Split dimension `dim` into `sizes` (one may be -1)."""
    shape = node_of(input, "gs.unflatten").shape
    axis = axis_of(dim, len(shape), "gs.unflatten")
    parts = infer_shape(shape_of((sizes,), "gs.unflatten"), shape[axis], "gs.unflatten")
    return reshape(input, *shape[:axis], *parts, *shape[axis + 1:])


@public()
def ravel(input: Tensor) -> Tensor:
    """All elements in one dimension."""
    return reshape(input, -1)


@public()
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """Without the dimensions of extent 1 (all, or those named by `dim`)."""
    shape = node_of(input, "gs.squeeze").shape
    chosen = range(len(shape)) if dim is None else (
        axes_of(dim, len(shape), "gs.squeeze") if not isinstance(dim, (tuple, list)) or dim else ())
    gone = {a for a in chosen if a < len(shape) and shape[a] == 1}
    kept = tuple(n for i, n in enumerate(shape) if i not in gone)
    return make_view(input, reshape_steps(shape, kept))


@public()
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new dimension of extent 1 at `dim`."""
    shape = node_of(input, "gs.unsqueeze").shape
    axis = axis_of(dim, len(shape) + 1, "gs.unsqueeze")
    return make_view(input, reshape_steps(shape, (*shape[:axis], 1, *shape[axis:])))


# ------------------------------------------------------------------------------------ permuting

@public()
def permute(input: Tensor, *args: Any, dims: Any = None) -> Tensor:
    """Dimensions in another order: dimension `i` of the result is `dims[i]` of the input."""
    ndim = node_of(input, "gs.permute").ndim
    order = shape_of(args if dims is None else (dims,), "gs.permute")
    axes = tuple(axis_of(d, ndim, "gs.permute", "dims") for d in order)
    if sorted(axes) != list(range(ndim)):
        raise ShapeError(f"gs.permute: dims={order} for a tensor with {ndim} dimensions; each "
                         "dimension must be named once.")
    return make_view(input, permute_steps(axes))


@public(aliases=("swapaxes", "swapdims"))
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged."""
    ndim = node_of(input, "gs.transpose").ndim
    a = axis_of(dim0, ndim, "gs.transpose", "dim0")
    b = axis_of(dim1, ndim, "gs.transpose", "dim1")
    axes = list(range(ndim))
    if ndim:
        axes[a], axes[b] = b, a
    return make_view(input, permute_steps(axes))


@public()
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix (vectors and scalars as they are)."""
    ndim = node_of(input, "gs.t").ndim
    if ndim > 2:
        raise ShapeError(f"x.t(): x has {ndim} dimensions; it must have at most 2. Use x.mT or "
                         "x.transpose(i, j).")
    return make_view(input, permute_steps(range(ndim)[::-1]))


@public(aliases=("moveaxis",))
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Move dimensions to other places; the rest keeps its order."""
    ndim = node_of(input, "gs.movedim").ndim
    sources = [axis_of(d, ndim, "gs.movedim", "source") for d in _several(source)]
    targets = [axis_of(d, ndim, "gs.movedim", "destination") for d in _several(destination)]
    if len(sources) != len(targets) or len(set(sources)) < len(sources) or (
            len(set(targets)) < len(targets)):
        raise ShapeError(f"gs.movedim: source={source} and destination={destination} must name "
                         "the same number of different dimensions.")
    rest = iter(i for i in range(ndim) if i not in sources)
    placed = dict(zip(targets, sources, strict=True))
    return make_view(input, permute_steps([placed[i] if i in placed else next(rest)
                                           for i in range(ndim)]))


def _several(value: Any) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _last_two(self: Tensor) -> Tensor:
    """The last two dimensions exchanged: the transposes of a batch of matrices."""
    if self._node.ndim < 2:
        raise ShapeError(f"x.mT: x is {type_text(self._node)}; it needs at least 2 dimensions.")
    return transpose(self, -2, -1)


def _reversed(self: Tensor) -> Tensor:
    """All dimensions in reverse order."""
    return make_view(self, permute_steps(range(self._node.ndim)[::-1]))


attach("mT", property(_last_two))
attach("mH", property(_last_two))
attach("T", property(_reversed))
attach("H", property(_reversed))
attach("real", property(lambda self: self, doc="The real part: the tensor itself."))


@public()
def adjoint(input: Tensor) -> Tensor:
    """The (conjugate) transposes of a batch of matrices."""
    return _last_two(input)


# ------------------------------------------------------------------------------------ expanding

@public(function=False)
def expand(self: Tensor, *args: Any, size: Any = None, implicit: bool = False) -> Tensor:
    """Repeat dimensions of extent 1 (and new leading ones) without copying; -1 keeps an extent."""
    old = self._node.shape
    sizes = shape_of(args if size is None else (size,), "x.expand")
    lead = len(sizes) - len(old)
    if lead < 0:
        raise ShapeError(f"x.expand{sizes}: x has shape {old}; there must be at least as many "
                         "sizes as dimensions.")
    new = []
    for i, n in enumerate(sizes):
        had = old[i - lead] if i >= lead else None
        if n == -1 and had is not None:
            n = had
        if n < 0 or had is not None and had not in (1, n):
            raise ShapeError(f"x.expand{sizes}: x has shape {old}; dimension {i} must be "
                             f"{'given' if had is None else f'{had} or -1'}; only dimensions of "
                             "extent 1 can be expanded.")
        new.append(n)
    return make_view(self, expand_steps(old, tuple(new)))


@public(function=False)
def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """`expand(other.shape)`."""
    return expand(self, *other._node.shape)


@public()
def broadcast_to(input: Tensor, size: Any) -> Tensor:
    """`input.expand(size)`."""
    return expand(input, *size)


@public(method=False)
def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All tensors expanded to their common shape."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = tuple(tensors[0])
    shape = common_shape("gs.broadcast_tensors", [node_of(t, "gs.broadcast_tensors").shape
                                                 for t in tensors])
    return tuple(make_view(t, expand_steps(t._node.shape, shape)) for t in tensors)


@public(method=False)
def broadcast_shapes(*shapes: Any) -> Size:
    """The shape that tensors of these shapes broadcast to."""
    return Size(common_shape("gs.broadcast_shapes",
                             [(s,) if isinstance(s, int) else tuple(s) for s in shapes]))


# ----------------------------------------------------------------------------- parts of a tensor

@public()
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """Index `index` of dimension `dim`, which disappears."""
    shape = node_of(input, "gs.select").shape
    if not shape:
        raise IndexingError("gs.select: the tensor has no dimensions.")
    axis = axis_of(dim, len(shape), "gs.select")
    index = int(index)
    if not -shape[axis] <= index < shape[axis]:
        raise IndexingError(f"gs.select: index {index} is out of range for dimension {axis} with "
                            f"extent {shape[axis]}.")
    return make_view(input, select_steps(shape, axis, index % shape[axis]))


@public()
def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """`length` indices of dimension `dim`, from `start` on."""
    shape = node_of(input, "gs.narrow").shape
    if not shape:
        raise IndexingError("gs.narrow: the tensor has no dimensions.")
    axis = axis_of(dim, len(shape), "gs.narrow")
    start = int(start)
    first = start + shape[axis] if start < 0 else start
    if length < 0 or not 0 <= first <= first + length <= shape[axis]:
        raise IndexingError(f"gs.narrow: start={start}, length={length} do not lie in dimension "
                            f"{axis} of extent {shape[axis]}.")
    return make_view(input, slice_steps(shape, axis, first, first + length))


def _parts(input: Tensor, axis: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    shape = input._node.shape
    found, start = [], 0
    for n in sizes:
        found.append(make_view(input, slice_steps(shape, axis, start, start + n)))
        start += n
    return tuple(found)


@public(aliases=("split_with_sizes", "unsafe_split"))
def split(tensor: Tensor, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of consecutive parts: of `split_size` indices each (the last may be shorter), or of
    the sizes in a list."""
    shape = node_of(tensor, "gs.split").shape
    axis = axis_of(dim, len(shape), "gs.split")
    extent = shape[axis]
    if isinstance(split_size, int):
        if split_size < 0 or split_size == 0 and extent:
            raise ShapeError(f"gs.split: split_size={split_size}; it must be positive.")
        count = max(1, -(-extent // split_size)) if split_size else 1
        sizes = [min(split_size, extent - i * split_size) for i in range(count)]
    else:
        sizes = [int(n) for n in split_size]
        if sum(sizes) != extent or any(n < 0 for n in sizes):
            raise ShapeError(f"gs.split: the sizes {sizes} add up to {sum(sizes)}; they must add "
                             f"up to {extent}, the extent of dimension {axis}.")
    return _parts(tensor, axis, sizes)


@public(aliases=("unsafe_chunk",))
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal parts (the last may be shorter)."""
    shape = node_of(input, "gs.chunk").shape
    if chunks <= 0:
        raise ShapeError(f"gs.chunk: chunks={chunks}; it must be positive.")
    axis = axis_of(dim, len(shape), "gs.chunk")
    size = -(-shape[axis] // chunks)
    return split(input, size, axis) if size else _parts(input, axis, [0] * chunks)


@public()
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts: `n` parts as equal as possible, or parts that begin at given indices."""
    shape = node_of(input, "gs.tensor_split").shape
    axis = axis_of(dim, len(shape), "gs.tensor_split")
    extent = shape[axis]
    given = indices_or_sections
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, int):
        if given <= 0:
            raise ShapeError(f"gs.tensor_split: {given} sections; there must be at least one.")
        sizes = [extent // given + (1 if i < extent % given else 0) for i in range(given)]
        return _parts(input, axis, sizes)
    edges = [0, *(int(i) + extent if i < 0 else int(i) for i in given), extent]
    edges = [min(max(e, 0), extent) for e in edges]
    return tuple(make_view(input, slice_steps(shape, axis, a, max(a, b)))
                 for a, b in zip(edges, edges[1:], strict=False))


def _splitter(name: str, axis_for: Any, least: int) -> None:
    def fn(input: Tensor, *parts: Any) -> tuple[Tensor, ...]:
        ndim = node_of(input, f"gs.{name}").ndim
        if ndim < least:
            raise ShapeError(f"gs.{name}: x has {ndim} dimensions; it needs at least {least}.")
        given = parts[0] if len(parts) == 1 else parts
        axis = axis_for(ndim)
        if isinstance(given, int) and given > 0 and input._node.shape[axis] % given:
            raise ShapeError(f"gs.{name}: {given} sections do not divide dimension {axis} of "
                             f"extent {input._node.shape[axis]}.")
        return tensor_split(input, given, axis)
    fn.__name__ = name
    fn.__doc__ = f"{name}: `tensor_split` along one fixed dimension."
    public()(fn)


_splitter("hsplit", lambda ndim: 0 if ndim == 1 else 1, 1)
_splitter("vsplit", lambda ndim: 0, 2)
_splitter("dsplit", lambda ndim: 2, 3)


@public()
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of all indices of a dimension."""
    shape = node_of(input, "gs.unbind").shape
    if not shape:
        raise ShapeError("gs.unbind: the tensor has no dimensions.")
    axis = axis_of(dim, len(shape), "gs.unbind")
    return tuple(make_view(input, select_steps(shape, axis, i)) for i in range(shape[axis]))


@public()
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dimensions, which becomes the last dimension.

    Args:
        input: at least 2-dimensional.
        offset: 0 the main diagonal, positive above it, negative below.
        dim1, dim2: the two dimensions.
    """
    shape = node_of(input, "gs.diagonal").shape
    ndim = len(shape)
    a, b = (axis_of(d, ndim, "gs.diagonal", n) for d, n in ((dim1, "dim1"), (dim2, "dim2")))
    if a == b or ndim < 2:
        raise ShapeError(f"gs.diagonal: dim1={dim1} and dim2={dim2} of a tensor with {ndim} "
                            "dimensions; they must be two different ones.")
    rest = tuple(i for i in range(ndim) if i not in (a, b))
    lead = tuple(shape[i] for i in rest)
    rows, columns = shape[a], shape[b]
    length = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    steps = permute_steps((*rest, a, b))
    flat = (*lead, rows * columns)
    steps += reshape_steps((*lead, rows, columns), flat)
    start = (offset if offset >= 0 else -offset * columns) if length else 0
    stop = start + (length - 1) * (columns + 1) + 1 if length else 0
    return make_view(input, steps + slice_steps(flat, len(lead), start, stop, columns + 1))


@public(function=False)
def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of `size` indices of a dimension, `step` apart, as a new last dimension (a view)."""
    shape = self._node.shape
    axis = axis_of(dimension, len(shape), "x.unfold", "dimension")
    extent = shape[axis] if shape else 1
    if size > extent or size < 0 or step <= 0:
        raise ShapeError(f"x.unfold(size={size}, step={step}): dimension {axis} has extent "
                         f"{extent}; the size must be at most that and the step positive.")
    steps: Steps = ()
    if not shape:
        steps, shape = reshape_steps((), (1,)), (1,)
        if size == 1:
            return make_view(self, steps)
    new = (*shape, size)
    if size == 0:
        count = extent // step + 1
        return wrap(prims.full(0, (*shape[:axis], count, *shape[axis + 1:], 0), self._node.dtype))
    apart = _apart_steps(shape, axis, size, step)
    steps += apart or ((BROADCAST, {"shape": new, "axes": (len(shape),)}),
                       (WINDOWS, {"axis": axis, "stride": step, "dilation": 1}))
    return make_view(self, steps)


def _apart_steps(shape: Shape, axis: int, size: int, step: int) -> Steps:
    """Windows that share no element, which may be written; () if they do, or the last gap ends
    beyond the extent."""
    before, extent, after = shape[:axis], shape[axis], shape[axis + 1:]
    count = (extent - size) // step + 1
    if size == 1:
        return (*slice_steps(shape, axis, 0, (count - 1) * step + 1, step),
                (RESHAPE, {"shape": (*before, count, *after, 1)}))
    if size > step or count * step > extent:
        return ()
    cut = (*before, count, step, *after)
    order = [*range(axis + 1), *range(axis + 2, len(cut)), axis + 1]
    return (*slice_steps(shape, axis, 0, count * step), (RESHAPE, {"shape": cut}),
            *slice_steps(cut, axis + 1, 0, size), *permute_steps(order))
