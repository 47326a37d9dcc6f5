"""Padding: constant, reflect, replicate, circular. Layer 5.

The constant kind is one concatenation per dimension; the others read the input at computed
positions (an index table per dimension), so that derivatives are those of indexing.
"""

from __future__ import annotations

from collections.abc import Sequence

import gossamer.functional as gf
from gossamer.casting import full_precision
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import shape_of
from gossamer.tensor import Tensor

__all__ = ["pad"]


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant",
        value: float | None = None) -> Tensor:
    """`input` with elements added around (or, for negative numbers, cut off).

    Args:
        pad: pairs (before, after), the last dimension first.
        mode: "constant" (any dimensions), or "reflect", "replicate", "circular" (the last 1, 2 or 3
            dimensions of an input with one or two dimensions more).
        value: what "constant" fills in (default 0).

    Raises:
        ShapeError: an odd number of entries, more pairs than dimensions, or a pad larger than the
            mode allows (reflect: below the extent; circular: at most the extent).
    """
    pad = tuple(int(p) for p in pad)
    if len(pad) % 2 or len(pad) > 2 * input.dim():
        raise ShapeError(f"pad (pad={pad}): the input has shape {shape_of(input)}; pad needs a "
                         "pair (before, after) for each of at most as many dimensions.")
    if mode == "constant":
        return _constant(input, pad, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"pad: unrecognised padding mode {mode!r}; there are constant, "
                                  "reflect, replicate, circular.")
    if value is not None and value != 0:
        raise ValueError(f"pad: padding mode {mode!r} doesn't take in value argument.")
    pairs = len(pad) // 2
    if input.dim() not in (pairs + 1, pairs + 2):
        raise ShapeError(f"pad (mode={mode!r}, pad={pad}): the input has shape {shape_of(input)}; "
                         f"{pairs} pairs need {pairs + 1} or {pairs + 2} dimensions.")
    if mode == "replicate" or mode == "reflect" and pairs < 3:
        input = _as_autocast_has_it(input)
    for i in range(pairs):
        input = _by_index(input, input.dim() - 1 - i, pad[2 * i], pad[2 * i + 1], mode)
    return input if any(pad) else input.clone()


@full_precision
def _as_autocast_has_it(x: Tensor) -> Tensor:
    """These kinds of padding are on PyTorch's list of what runs in float32."""
    return x


def _constant(x: Tensor, pad: tuple[int, ...], value: float) -> Tensor:
    fill: Tensor | None = None
    for i in range(len(pad) // 2):
        dim = x.dim() - 1 - i
        before, after = pad[2 * i], pad[2 * i + 1]
        length = x.shape[dim]
        if length + before + after < 0:
            raise ShapeError(f"pad (pad={pad}): the input has extent {length} in dimension {dim}; "
                             "the negative padding leaves less than nothing.")
        start, stop = max(0, -before), length - max(0, -after)
        if start or stop != length:
            x = x.narrow(dim, min(start, stop), max(stop - start, 0))
        if before <= 0 and after <= 0:
            continue
        if fill is None:
            fill = gf.full((), value, dtype=x.dtype)
        parts = [x]
        for amount, at in ((before, 0), (after, 2)):
            if amount > 0:
                shape = list(shape_of(x))
                shape[dim] = amount
                parts.insert(at, fill.expand(shape))
        x = gf.cat(parts, dim)
    return x.clone() if fill is None else x  # the rest may still be a view of the input


def _by_index(x: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    length = x.shape[dim]
    limit = {"reflect": length - 1, "circular": length}.get(mode)
    if limit is not None and max(before, after) > limit or (length == 0 and max(before, after) > 0):
        raise ShapeError(f"pad (mode={mode!r}): padding ({before}, {after}) at dimension {dim} of "
                         f"the input {shape_of(x)}; at most {limit or 0} fits this mode.")
    if length + before + after < 0:
        raise ShapeError(f"pad (mode={mode!r}): padding ({before}, {after}) leaves less than "
                         f"nothing of dimension {dim} of the input {shape_of(x)}.")
    if not before and not after:
        return x
    at = gf.arange(-before, length + after)
    if mode == "replicate":
        at = at.clamp(0, length - 1)
    elif mode == "circular":  # the period is what negative padding leaves
        first = max(-before, 0)
        at = (at - first) % (length - first - max(-after, 0)) + first
    else:
        at = at.abs()
        at = (length - 1) - ((length - 1) - at).abs()
    return x.index_select(dim, at)
