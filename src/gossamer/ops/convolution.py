"""Convolution and max pooling over any number of axes. Layer 1.

A convolution is a contraction over windows of its input, and windows are index arithmetic: nothing
is unfolded in memory if the scheduler reads through them. One record serves conv, transposed conv
and the input's gradient: `interior` zeros between elements make the transpose a convolution.

Sources: Dumoulin and Visin 2016, "A guide to convolution arithmetic"; XLA's ConvGeneralDilated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gossamer.core.dtype import bfloat16, bool_, float16, float32, int32
from gossamer.core.shape import size_of
from gossamer.ir.node import Node
from gossamer.ir.op import CONSTANT, IOTA, Op, Sample, constant
from gossamer.ops.bitwise import bitwise_or
from gossamer.ops.composite import composite
from gossamer.ops.contraction import dot_general
from gossamer.ops.elementwise import add, cast, eq, isnan, maximum, mul, where
from gossamer.ops.movement import concat, flip, pad, permute, reshape, slice_, unwindows, windows
from gossamer.ops.reduction import argmax, broadcast, reduce_max, reduce_sum
from gossamer.ops.rules import Type, dtype_error, shape_error

__all__ = ["conv", "conv_transpose", "conv_weight", "fold_windows", "max_pool", "pad_or_cut",
           "spatial_windows", "sum_pool"]

Ints = tuple[int, ...]

# windows over trailing axes ----------------------------------------------------------------------


def pad_or_cut(x: Node, low: Sequence[int], high: Sequence[int], interior: Sequence[int],
               value: float = 0) -> Node:
    """Pad the trailing axes of x; negative amounts cut, after the interior padding."""
    lead = (0,) * (x.ndim - len(low))
    grow_low, grow_high = ((*lead, *(max(n, 0) for n in side)) for side in (low, high))
    if any(grow_low) or any(grow_high) or any(interior):
        x = pad(x, low=grow_low, high=grow_high, interior=(*lead, *interior), value=value)
    if min(*low, *high, 0) < 0:
        starts = (*lead, *(max(-n, 0) for n in low))
        cut = (*lead, *(max(-n, 0) for n in high))
        stops = tuple(n - c for n, c in zip(x.shape, cut, strict=True))
        x = slice_(x, starts=starts, stops=stops, steps=(1,) * x.ndim)
    return x


def spatial_windows(x: Node, kernel: Ints, stride: Ints, dilation: Ints) -> Node:
    """(..., S1, S2, ...) to (..., O1, O2, ..., K1, K2, ...): all windows of the trailing axes."""
    first = x.ndim - len(kernel)
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = broadcast(x, shape=(*x.shape, k), axes=(x.ndim,))
        x = windows(x, axis=first + i, stride=s, dilation=d)
    return x


def fold_windows(x: Node, lengths: Ints, stride: Ints, dilation: Ints) -> Node:
    """The transpose of `spatial_windows`: windows added up where they overlap."""
    first = x.ndim - 2 * len(lengths)
    for i in reversed(range(len(lengths))):
        x = unwindows(x, axis=first + i, stride=stride[i], dilation=dilation[i], length=lengths[i])
        x = reduce_sum(x, axes=(x.ndim - 1,))
    return x


def _extent(n: int, k: int, stride: int, low: int, high: int, interior: int, dilation: int) -> int:
    """Number of windows along one axis."""
    spread = max(n + (n - 1) * interior, 0)
    return (low + spread + high - dilation * (k - 1) - 1) // stride + 1


# convolution -------------------------------------------------------------------------------------


def _conv_type(op: Op, x: Node, w: Node, *, stride: Ints, low: Ints, high: Ints, interior: Ints,
               dilation: Ints, groups: int) -> Type:
    if x.dtype is not w.dtype or x.dtype is bool_:
        raise dtype_error(op, (x, w), "input and weight must have one dtype, not bool",
                          "Convert one with .to(dtype).")
    rank = len(stride)
    if x.ndim != rank + 2 or w.ndim != rank + 2:
        raise shape_error(op, (x, w), f"input must be (N, C, {rank} spatial axes) and weight "
                          f"(O, C/groups, {rank} spatial axes)", "Add the missing axes.")
    channels, outputs = x.shape[1], w.shape[0]
    if groups < 1 or channels % groups or outputs % groups or w.shape[1] * groups != channels:
        raise shape_error(op, (x, w), f"with groups={groups} the weight must have "
                          f"{channels}/{groups} input channels, and {outputs} outputs must be "
                          "divisible by groups", "Match channels and groups.")
    extents = tuple(map(_extent, x.shape[2:], w.shape[2:], stride, low, high, interior, dilation))
    if any(e < 1 for e in extents) or 0 in w.shape[2:]:
        raise shape_error(op, (x, w), f"the kernel {w.shape[2:]} (dilation {dilation}) is larger "
                          "than the padded input", "Pad more, or use a smaller kernel.")
    return (x.shape[0], outputs, *extents), x.dtype


def _grouped(x: Node, groups: int) -> Node:
    """(N, C, ...) to (N, G, C/G, ...)."""
    return reshape(x, shape=(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))


def _input_windows(x: Node, kernel: Ints, stride: Ints, low: Ints, high: Ints, interior: Ints,
                   dilation: Ints, groups: int) -> Node:
    """(N, G, C/G, O1.., K1..)."""
    padded = pad_or_cut(x, low, high, interior)
    return spatial_windows(_grouped(padded, groups), kernel, stride, dilation)


def _conv(x: Node, w: Node, *, stride: Ints, low: Ints, high: Ints, interior: Ints, dilation: Ints,
          groups: int) -> Node:
    """Batched over images as well as groups, with one weight for all images: so the product's
    order is that of the result, and what follows is its epilogue."""
    rank, kernel = len(stride), w.shape[2:]
    pairs = x.dtype is bfloat16 and groups == 1 and w.shape[1] % 2 == 0  # as its products want
    if x.dtype in (float16, bfloat16) and not pairs:  # float32 inside: convert once
        wide = conv(cast(x, dtype=float32), cast(w, dtype=float32), stride=stride, low=low,
                    high=high, interior=interior, dilation=dilation, groups=groups)
        return cast(wide, dtype=x.dtype)
    if any(interior) and set(stride) == set(dilation) == {1}:
        return _spread_conv(x, w, low, high, interior, groups)
    seen = _input_windows(x, kernel, stride, low, high, interior, dilation, groups)
    weight = reshape(w, shape=(groups, w.shape[0] // groups, *w.shape[1:]))
    weight = broadcast(weight, shape=(x.shape[0], *weight.shape), axes=(0,))
    inner = (2, *range(3 + rank, 3 + 2 * rank))
    y = dot_general(weight, seen, a_batch=(0, 1), a_contract=tuple(range(3, 4 + rank)),
                    b_batch=(0, 1), b_contract=inner)  # (N, G, O/G, O1..)
    return reshape(y, shape=(x.shape[0], w.shape[0], *y.shape[3:]))


def _spread_conv(x: Node, w: Node, low: Ints, high: Ints, interior: Ints, groups: int) -> Node:
    """A convolution of an input with zeros between its elements, which multiplies none of them.

    With s = interior + 1, output s*q + p sees x[q + t + j] through w[first + s*j] alone, where
    first = (low - p) mod s and t = (p + first - low) / s: each p is a convolution of its own.
    """
    rank, lead = len(low), (x.shape[0], w.shape[0])
    spread = tuple(i + 1 for i in interior)
    extents = [_extent(n, k, 1, a, b, i, 1) for n, k, a, b, i in zip(
        x.shape[2:], w.shape[2:], low, high, interior, strict=True)]
    counts = [-(-n // s) for n, s in zip(extents, spread, strict=True)]

    def phase(place: Ints) -> Node:
        first = [(a - p) % s for a, p, s in zip(low, place, spread, strict=True)]
        if any(f >= k for f, k in zip(first, w.shape[2:], strict=True)):
            return CONSTANT(value=0, shape=(*lead, *counts), dtype=x.dtype)
        taps = slice_(w, starts=(0, 0, *first), stops=w.shape, steps=(1, 1, *spread))
        before = tuple((a - p - f) // s
                       for a, p, f, s in zip(low, place, first, spread, strict=True))
        behind = tuple(q + j - 1 - n - a for q, j, n, a in zip(
            counts, taps.shape[2:], x.shape[2:], before, strict=True))
        ones = (1,) * rank
        return _conv(x, taps, stride=ones, low=before, high=behind, interior=(0,) * rank,
                     dilation=ones, groups=groups)

    def woven(axis: int, place: Ints) -> Node:
        """The phases of `place` along the axes before `axis`, put together along the others."""
        if axis == rank:
            return phase(place)
        parts = [woven(axis + 1, (*place, p)) for p in range(spread[axis])]
        shape = parts[0].shape
        if len(parts) == 1:
            return parts[0]
        at = 3 + axis
        apart = [reshape(v, shape=(*shape[:at], 1, *shape[at:])) for v in parts]
        both = concat(*apart, axis=at)
        return reshape(both, shape=(*shape[:at - 1], shape[at - 1] * len(parts), *shape[at:]))

    y = woven(0, ())
    cut = tuple(n - have for n, have in zip(extents, y.shape[2:], strict=True))
    return pad_or_cut(y, (0,) * rank, cut, (0,) * rank)


def _swapped(w: Node, groups: int) -> Node:
    """(O, C/G, K..) to (C, O/G, K..), mirrored: the weight of the transposed convolution."""
    outputs, channels, *kernel = w.shape
    rank = len(kernel)
    w = reshape(w, shape=(groups, outputs // groups, channels, *kernel))
    w = permute(w, axes=(0, 2, 1, *range(3, 3 + rank)))
    w = reshape(w, shape=(groups * channels, outputs // groups, *kernel))
    return flip(w, axes=tuple(range(2, 2 + rank)))


def _input_cotangent(g: Node, x: Node, w: Node, stride: Ints, low: Ints, interior: Ints,
                     dilation: Ints, groups: int) -> Node:
    """A convolution of g, spread by the stride, with the mirrored weight."""
    before, behind = [], []
    for i, k in enumerate(w.shape[2:]):
        spread = (g.shape[2 + i] - 1) * stride[i] + 1
        before.append(dilation[i] * (k - 1) - low[i])
        behind.append((x.shape[2 + i] - 1) * (interior[i] + 1) + 1 + low[i] - spread)
    return conv(g, _swapped(w, groups), stride=tuple(i + 1 for i in interior), low=tuple(before),
                high=tuple(behind), interior=tuple(s - 1 for s in stride), dilation=dilation,
                groups=groups)


def _conv_weight_type(op: Op, g: Node, x: Node, *, kernel: Ints, stride: Ints, low: Ints,
                      high: Ints, interior: Ints, dilation: Ints, groups: int) -> Type:
    if x.dtype is not g.dtype or x.dtype is bool_:
        raise dtype_error(op, (g, x), "cotangent and input must have one dtype, not bool",
                          "Convert one with .to(dtype).")
    rank = len(kernel)
    if g.ndim != rank + 2 or x.ndim != rank + 2 or x.shape[1] % groups or g.shape[1] % groups:
        raise shape_error(op, (g, x), f"both must be (N, C, {rank} spatial axes), the channels "
                          f"divisible by groups={groups}", "Add the missing axes.")
    extents = tuple(map(_extent, x.shape[2:], kernel, stride, low, high, interior, dilation))
    if (g.shape[0], *g.shape[2:]) != (x.shape[0], *extents):
        raise shape_error(op, (g, x), f"the cotangent of the result must be ({x.shape[0]}, O, "
                          f"{', '.join(map(str, extents))})", "Check padding and stride.")
    return (g.shape[1], x.shape[1] // groups, *kernel), x.dtype


def _conv_weight(g: Node, x: Node, *, kernel: Ints, stride: Ints, low: Ints, high: Ints,
                 interior: Ints, dilation: Ints, groups: int) -> Node:
    """g contracted with the windows of x over the batch and all output positions."""
    rank = len(stride)
    seen = _input_windows(x, kernel, stride, low, high, interior, dilation, groups)
    places = (0, *range(3, 3 + rank))  # N, O1.. in both
    found = dot_general(_grouped(g, groups), seen, a_batch=(1,), a_contract=places, b_batch=(1,),
                        b_contract=places)  # (G, O/G, C/G, K1..)
    return reshape(found, shape=(g.shape[1], x.shape[1] // groups, *kernel))


def _conv_vjp(g: Node, y: Node, x: Node, w: Node, *, stride: Ints, low: Ints, high: Ints,
              interior: Ints, dilation: Ints, groups: int) -> tuple[Node | None, Node | None]:
    if 0 in x.shape or 0 in g.shape:
        return constant(0, x), constant(0, w)
    return (
        _input_cotangent(g, x, w, stride, low, interior, dilation, groups) if x.grad else None,
        conv_weight(g, x, kernel=w.shape[2:], stride=stride, low=low, high=high,
                    interior=interior, dilation=dilation, groups=groups) if w.grad else None)


def _conv_batch(op: Op, size: int, x: Node, w: Node, **attrs: Any) -> Node:
    """A shared weight: the batch joins N. Else: it joins the groups."""
    if w.op is broadcast and w.attrs["axes"] == (0,):
        flat = reshape(x, shape=(size * x.shape[1], *x.shape[2:]))
        y = op(flat, w.inputs[0], **attrs)
        return reshape(y, shape=(size, x.shape[1], *y.shape[1:]))
    n, c = x.shape[1:3]
    moved = reshape(permute(x, axes=(1, 0, *range(2, x.ndim))), shape=(n, size * c, *x.shape[3:]))
    weight = reshape(w, shape=(size * w.shape[1], *w.shape[2:]))
    y = op(moved, weight, **{**attrs, "groups": attrs["groups"] * size})
    y = reshape(y, shape=(n, size, w.shape[1], *y.shape[2:]))
    return permute(y, axes=(1, 0, *range(2, y.ndim)))


def _conv_samples(rng: np.random.Generator) -> list[Sample]:
    cases: tuple[tuple[Any, ...], ...] = (  # x, w, stride, low, high, interior, dilation, groups
        ((1, 1, 5), (1, 1, 3), (1,), (0,), (0,), (0,), (1,), 1),
        ((2, 3, 7), (4, 3, 3), (2,), (1,), (2,), (0,), (2,), 1),
        ((2, 4, 5), (6, 2, 2), (1,), (1,), (0,), (1,), (1,), 2),
        ((1, 2, 5, 4), (3, 2, 3, 2), (2, 1), (1, 0), (1, 1), (0, 0), (1, 2), 1),
        ((2, 2, 4, 4), (2, 1, 3, 3), (1, 2), (1, 1), (1, 1), (0, 1), (1, 1), 2),
        ((1, 1, 6), (1, 1, 2), (3,), (-1,), (-1,), (0,), (1,), 1),
        ((1, 1, 3, 3, 3), (2, 1, 2, 2, 2), (1, 1, 1), (0, 1, 0), (0, 0, 1), (0,) * 3, (1,) * 3, 1),
        ((0, 2, 4), (3, 2, 2), (1,), (0,), (0,), (0,), (1,), 1))
    names = ("stride", "low", "high", "interior", "dilation", "groups")
    return [Sample((rng.normal(size=x), rng.normal(size=w)), dict(zip(names, rest, strict=True)))
            for x, w, *rest in cases]


conv: Op = composite(
    "conv",
    "y[n, o, p] = sum over c, k of x'[n, c, p*stride + k*dilation] * w[o, c, k], x' being x with "
    "`interior` zeros between elements and `low`, `high` around (negative ones cut).",
    infer=_conv_type, body=_conv, vjp=_conv_vjp, batch=_conv_batch, promote="same", cost=100.0,
    onnx="Conv-22", samples=_conv_samples)


def _conv_weight_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for sample in _conv_samples(rng):
        x, w = sample.inputs
        if not x.size:
            continue
        at = sample.attrs
        extents = map(_extent, x.shape[2:], w.shape[2:], at["stride"], at["low"], at["high"],
                      at["interior"], at["dilation"])
        g = rng.normal(size=(x.shape[0], w.shape[0], *extents))
        found.append(Sample((g, x), {"kernel": w.shape[2:], **at}))
    return found


conv_weight: Op = composite(
    "conv_weight", "The cotangent of conv's weight, from that of its result and its input.",
    infer=_conv_weight_type, body=_conv_weight, promote="same", cost=100.0,
    samples=_conv_weight_samples)


def conv_transpose(x: Node, w: Node, *, stride: Ints, low: Ints, high: Ints, dilation: Ints,
                   groups: int) -> Node:
    """The transpose of a convolution with these attributes, w being (C, O/groups, K..).

    `low` and `high` are the paddings of the convolution it undoes; PyTorch's output_padding is
    subtracted from `high`.
    """
    rank = len(stride)
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    return conv(x, _swapped(w, groups), stride=(1,) * rank,
                low=tuple(r - a for r, a in zip(reach, low, strict=True)),
                high=tuple(r - b for r, b in zip(reach, high, strict=True)),
                interior=tuple(s - 1 for s in stride), dilation=dilation, groups=groups)


# sums over windows -------------------------------------------------------------------------------


def _sum_pool(x: Node, *, kernel: Ints, stride: Ints, low: Ints, high: Ints,
              dilation: Ints) -> Node:
    """A convolution with ones, plane by plane."""
    rank = len(kernel)
    lead, planes = x.shape[:x.ndim - rank], x.shape[x.ndim - rank:]
    if x.dtype is not float32 or rank > 2:
        seen = spatial_windows(pad_or_cut(x, low, high, (0,) * rank), kernel, stride, dilation)
        return reduce_sum(seen, axes=tuple(range(seen.ndim - rank, seen.ndim)))
    ones = CONSTANT(value=1, shape=(1, 1, *kernel), dtype=x.dtype)
    y = conv(reshape(x, shape=(size_of(lead), 1, *planes)), ones, stride=stride, low=low,
             high=high, interior=(0,) * rank, dilation=dilation, groups=1)
    return reshape(y, shape=(*lead, *y.shape[2:]))


# max pooling -------------------------------------------------------------------------------------


def _pool_type(op: Op, x: Node, *, kernel: Ints, stride: Ints, low: Ints, high: Ints,
               dilation: Ints) -> Type:
    rank = len(kernel)
    if x.ndim < rank or x.dtype is bool_:
        raise shape_error(op, (x,), f"the input needs {rank} spatial axes of numbers",
                          "Add the missing axes.")
    lead = x.ndim - rank
    extents = tuple(map(_extent, x.shape[lead:], kernel, stride, low, high, (0,) * rank, dilation))
    if any(e < 1 for e in extents) or min(kernel) < 1:
        raise shape_error(op, (x,), f"the window {kernel} is larger than the padded input",
                          "Pad more, or use a smaller window.")
    return (*x.shape[:lead], *extents), x.dtype


_BY_PLANES = 9  # places of a window up to which gradients of windows side by side go by planes too
_WRITTEN_OUT = 16  # places of a window that are compared one after the other, without a loop


def _lowest(x: Node) -> float:
    return float("-inf") if x.dtype.kind == "f" else int(np.iinfo(x.dtype.numpy).min)


def _pool_windows(x: Node, kernel: Ints, stride: Ints, low: Ints, high: Ints,
                  dilation: Ints) -> Node:
    padded = pad_or_cut(x, low, high, (0,) * len(kernel), _lowest(x))
    return spatial_windows(padded, kernel, stride, dilation)


def _pool_parts(x: Node, kernel: Ints, stride: Ints, low: Ints, high: Ints,
                dilation: Ints) -> list[Node]:
    """The elements at each place of all windows, place after place: as many as a kernel has."""
    padded = pad_or_cut(x, low, high, (0,) * len(kernel), _lowest(x))
    lead = x.ndim - len(kernel)
    extents = padded.shape[lead:]
    counts = [_extent(n, k, s, 0, 0, 0, d)
              for n, k, s, d in zip(extents, kernel, stride, dilation, strict=True)]
    parts = []
    for place in np.ndindex(*kernel):
        starts = [p * d for p, d in zip(place, dilation, strict=True)]
        stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, counts, stride, strict=True)]
        parts.append(slice_(padded, starts=(*(0,) * lead, *starts),
                            stops=(*x.shape[:lead], *stops), steps=(*(1,) * lead, *stride)))
    return parts


def _max_pool(x: Node, *, kernel: Ints, stride: Ints, low: Ints, high: Ints,
              dilation: Ints) -> Node:
    if size_of(kernel) > _WRITTEN_OUT:
        seen = _pool_windows(x, kernel, stride, low, high, dilation)
        return reduce_max(seen, axes=tuple(range(seen.ndim - len(kernel), seen.ndim)))
    best, *others = _pool_parts(x, kernel, stride, low, high, dilation)
    for part in others:
        best = maximum(best, part)
    return best


def _winners(y: Node, x: Node, kernel: Ints, stride: Ints, low: Ints, high: Ints,
             dilation: Ints) -> Node:
    """The place in its window of the first element that is the largest, or NaN; int32."""
    if size_of(kernel) > _WRITTEN_OUT:
        seen = _pool_windows(x, kernel, stride, low, high, dilation)
        flat = reshape(seen, shape=(*y.shape, size_of(kernel)))
        return cast(argmax(flat, axis=y.ndim), dtype=int32)
    parts = _pool_parts(x, kernel, stride, low, high, dilation)

    def number(value: int) -> Node:
        return CONSTANT(value=value, shape=y.shape, dtype=int32)

    found = number(len(parts) - 1)
    for place in range(len(parts) - 2, -1, -1):
        part = parts[place]
        hit = eq(part, y)
        if x.dtype.kind == "f":
            hit = bitwise_or(hit, isnan(part))
        found = where(hit, number(place), found)
    return found


def _shares(g: Node, winners: Node, place: Node, axes: Ints) -> Node:
    """g where `place` is the winner's, else 0; `axes` of `place` count the places of a window."""
    shape = place.shape
    chosen = eq(place, broadcast(winners, shape=shape, axes=axes))
    return where(chosen, broadcast(g, shape=shape, axes=axes),
                 CONSTANT(value=0, shape=shape, dtype=g.dtype))


def _side_by_side(g: Node, winners: Node, kernel: Ints) -> tuple[Node, Ints]:
    """The shares of windows that do not overlap, put together, and their extents: one pass."""
    lead = g.ndim - len(kernel)
    shape, inner = list(g.shape[:lead]), []
    for n, k in zip(g.shape[lead:], kernel, strict=True):
        inner.append(len(shape) + 1)
        shape += [n, k]
    place = CONSTANT(value=0, shape=tuple(shape), dtype=int32)
    for axis, k in zip(inner, kernel, strict=True):
        place = add(mul(place, constant(k, place)),
                    IOTA(axis=axis, shape=tuple(shape), dtype=int32))
    lengths = tuple(n * k for n, k in zip(g.shape[lead:], kernel, strict=True))
    shares = _shares(g, winners, place, tuple(inner))
    return reshape(shares, shape=(*g.shape[:lead], *lengths)), lengths


def _max_pool_vjp(g: Node, y: Node, x: Node, *, kernel: Ints, stride: Ints, low: Ints, high: Ints,
                  dilation: Ints) -> tuple[Node]:
    """To the first largest element of each window, as in PyTorch."""
    winners = _winners(y, x, kernel, stride, low, high, dilation)
    rank, lead = len(kernel), x.ndim - len(kernel)
    apart = stride == kernel and set(dilation) == {1}
    if apart and not (kernel[-1] > 2 and size_of(kernel) <= _BY_PLANES and x.dtype is float32):
        folded, lengths = _side_by_side(g, winners, kernel)
        behind = tuple(n + a - m for n, a, m in zip(x.shape[lead:], low, lengths, strict=True))
        return (pad_or_cut(folded, tuple(-n for n in low), behind, (0,) * rank),)
    return (max_pool_grad(g, winners, kernel=kernel, stride=stride, low=low, dilation=dilation,
                          lengths=x.shape[lead:]),)


def _max_pool_grad_type(op: Op, g: Node, winners: Node, *, kernel: Ints, stride: Ints, low: Ints,
                        dilation: Ints, lengths: Ints) -> Type:
    if g.shape != winners.shape or winners.dtype is not int32 or g.ndim < len(kernel):
        raise shape_error(op, (g, winners), "cotangent and int32 places must have one shape, with "
                          f"{len(kernel)} axes of windows", "Use max_pool's derivative.")
    return (*g.shape[:g.ndim - len(kernel)], *lengths), g.dtype


def _max_pool_grad(g: Node, winners: Node, *, kernel: Ints, stride: Ints, low: Ints,
                   dilation: Ints, lengths: Ints) -> Node:
    rank = len(kernel)
    place = IOTA(axis=g.ndim, shape=(*g.shape, size_of(kernel)), dtype=int32)
    shares = _shares(g, winners, reshape(place, shape=(*g.shape, *kernel)),
                     tuple(range(g.ndim, g.ndim + rank)))
    reach = tuple((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in
                  zip(g.shape[g.ndim - rank:], stride, kernel, dilation, strict=True))
    folded = fold_windows(shares, reach, stride, dilation)
    behind = tuple(n + a - have for n, a, have in zip(lengths, low, reach, strict=True))
    return pad_or_cut(folded, tuple(-n for n in low), behind, (0,) * rank)


def _pool_samples(rng: np.random.Generator) -> list[Sample]:
    names = ("kernel", "stride", "low", "high", "dilation")
    cases: tuple[tuple[Any, ...], ...] = (
        ((1, 1, 6), (2,), (2,), (0,), (0,), (1,)), ((2, 7), (3,), (2,), (1,), (1,), (1,)),
        ((1, 2, 5, 4), (2, 3), (2, 1), (0, 1), (0, 1), (1, 1)),
        ((1, 8), (2,), (1,), (0,), (1,), (3,)))
    return [Sample((rng.permutation(size_of(shape)).reshape(shape) * 0.25,),
                   dict(zip(names, rest, strict=True))) for shape, *rest in cases]


def _max_pool_grad_samples(rng: np.random.Generator) -> list[Sample]:
    names = ("kernel", "stride", "low", "dilation", "lengths")
    cases: tuple[tuple[Any, ...], ...] = (
        ((2, 4), (3,), (2,), (1,), (1,), (8,)),
        ((1, 2, 3, 2), (2, 3), (1, 2), (0, 1), (1, 1), (5, 4)),
        ((1, 5), (2,), (1,), (0,), (3,), (8,)))
    return [Sample((rng.normal(size=shape),
                    rng.integers(0, size_of(rest[0]), size=shape).astype(np.int32)),
                   dict(zip(names, rest, strict=True))) for shape, *rest in cases]


max_pool_grad: Op = composite(
    "max_pool_grad", "The cotangent of max_pool's operand, from that of its result and the place "
    "of each window's winner.", infer=_max_pool_grad_type, body=_max_pool_grad,
    batch=lambda op, size, g, winners, **attrs: op(g, winners, **attrs), promote="none",
    cost=20.0, samples=_max_pool_grad_samples)

sum_pool: Op = composite(
    "sum_pool", "Sum of every window of the trailing axes, padded by zeros.", infer=_pool_type,
    body=_sum_pool, batch=lambda op, size, x, **attrs: op(x, **attrs), promote="same", cost=10.0,
    samples=_pool_samples)

max_pool: Op = composite(
    "max_pool", "Largest element of every window of the trailing axes.", infer=_pool_type,
    body=_max_pool, vjp=_max_pool_vjp, batch=lambda op, size, x, **attrs: op(x, **attrs),
    promote="same", cost=10.0, onnx="MaxPool-22", samples=_pool_samples)
