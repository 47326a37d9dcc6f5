"""Slices and concatenations that undo each other. Layer 2.

The one idea: a recurrent network cuts its input into time steps and stacks its states again, and so
does its gradient. A part that is cut out of a concatenation is the part; neighbouring slices put
side by side are one slice. So the steps read and write each other directly, and what is stacked is
stacked once. Each rule looks at one node and those below it; a part is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from gossamer.core.shape import split_groups
from gossamer.ir.node import Node, Shape

if TYPE_CHECKING:
    from gossamer.compile.simplify import Rebuilder

__all__ = ["concat_rule", "reshape_rule", "slice_rule"]


def slice_rule(b: Rebuilder, node: Node) -> Node | None:
    """A slice of a slice, of a padded tensor, of a concatenation, or of a reshaped tensor."""
    x = node.inputs[0]
    if node.shape == x.shape and not any(node.attrs["starts"]):
        return x
    if not node.size:
        return None
    rule = {"slice": _of_slice, "pad": _of_pad, "concat": _of_concat,
            "reshape": _of_reshape}.get(x.op.name)
    return None if rule is None else rule(b, node, x)


def _last(node: Node) -> Shape:
    """Of each axis the last index that a non-empty slice reads."""
    return tuple(a + (n - 1) * s for a, n, s in zip(node.attrs["starts"], node.shape,
                                                    node.attrs["steps"], strict=True))


def _moved(b: Rebuilder, node: Node, x: Node, shift: Shape) -> Node:
    """The slice `node` taken from `x`, whose origin lies at `shift` of what it was taken from."""
    starts = tuple(a - o for a, o in zip(node.attrs["starts"], shift, strict=True))
    stops = tuple(e + 1 - o for e, o in zip(_last(node), shift, strict=True))
    return b.make(node, "slice", x, starts=starts, stops=stops, steps=node.attrs["steps"])


def _of_slice(b: Rebuilder, node: Node, x: Node) -> Node:
    origin, scale = x.attrs["starts"], x.attrs["steps"]
    starts = tuple(o + a * k for o, a, k in zip(origin, node.attrs["starts"], scale, strict=True))
    stops = tuple(o + e * k + 1 for o, e, k in zip(origin, _last(node), scale, strict=True))
    steps = tuple(s * k for s, k in zip(node.attrs["steps"], scale, strict=True))
    return b.make(node, "slice", x.inputs[0], starts=starts, stops=stops, steps=steps)


def _of_pad(b: Rebuilder, node: Node, x: Node) -> Node | None:
    """What lies within the padding's inside, or beside it."""
    inside, low = x.inputs[0], x.attrs["low"]
    if any(x.attrs["interior"]):
        return None
    ranges = list(zip(node.attrs["starts"], _last(node), low, inside.shape, strict=True))
    if any(end < a or start >= a + n for start, end, a, n in ranges):
        return b.make(node, "constant", value=x.attrs["value"], shape=node.shape, dtype=node.dtype)
    if all(a <= start and end < a + n for start, end, a, n in ranges):
        return _moved(b, node, inside, low)
    return None


def _of_concat(b: Rebuilder, node: Node, x: Node) -> Node | None:
    """What lies within one part."""
    axis = x.attrs["axis"]
    bounds = b.offsets.get(id(x))
    if bounds is None:
        bounds = b.offsets[id(x)] = [0, *accumulate(part.shape[axis] for part in x.inputs)]
    start, end = node.attrs["starts"][axis], _last(node)[axis]
    number = bisect_right(bounds, start) - 1
    if end >= bounds[number + 1]:
        return None
    shift = tuple(bounds[number] if i == axis else 0 for i in range(x.ndim))
    return _moved(b, node, x.inputs[number], shift)


def _of_reshape(b: Rebuilder, node: Node, x: Node) -> Node | None:
    """Whole rows of the first axis that is longer than 1, if they are whole rows below too."""
    source, shape = x.inputs[0], x.shape
    first = next((i for i, n in enumerate(shape) if n > 1), 0)
    cut = [i for i, (n, whole) in enumerate(zip(node.shape, shape, strict=True)) if n != whole]
    if cut != [first] or node.attrs["steps"][first] != 1 or not source.ndim:
        return None
    row, own = x.size // shape[first], source.size // max(source.shape[0], 1)
    start, count = node.attrs["starts"][first] * row, node.size
    if start % own or count % own:
        return None
    begin, end = start // own, (start + count) // own
    part = b.make(node, "slice", source, starts=(begin, *(0 for _ in source.shape[1:])),
                  stops=(end, *source.shape[1:]), steps=(1,) * source.ndim)
    return b.make(node, "reshape", part, shape=node.shape)


def reshape_rule(b: Rebuilder, node: Node) -> Node | None:
    """A slice of rows of an inner axis that are laid end to end: the slice of all laid end to end,
    so that heads cut out of one tensor and merged meet again in a concatenation."""
    x = node.inputs[0]
    if x.op.name != "slice" or not node.size:
        return None
    source = x.inputs[0]
    cut = [i for i, (n, whole) in enumerate(zip(x.shape, source.shape, strict=True)) if n != whole]
    if len(cut) != 1 or x.attrs["steps"][cut[0]] != 1 or prod(x.shape[:cut[0]]) == 1:
        return None
    axis = cut[0]
    for ours, theirs in split_groups(x.shape, node.shape):
        inside = [i for i in ours if x.shape[i] != 1 or i == axis]
        if axis in ours and (inside[0] != axis or len(inside) < 2 or len(theirs) != 1):
            return None
        if axis in ours:
            target = theirs[0]
    row = prod(x.shape[axis + 1:]) // prod(node.shape[target + 1:])
    starts, stops = [0] * node.ndim, list(node.shape)
    starts[target] = x.attrs["starts"][axis] * row
    stops[target] = starts[target] + node.shape[target]
    shape = tuple(source.shape[axis] * row if i == target else n for i, n in enumerate(node.shape))
    whole = b.make(node, "reshape", source, shape=shape)
    return b.make(node, "slice", whole, starts=tuple(starts), stops=tuple(stops),
                  steps=(1,) * node.ndim)


# concat -------------------------------------------------------------------------------------------
def concat_rule(b: Rebuilder, node: Node) -> Node | None:
    """One part; neighbouring slices; reshaped parts that are as well put together before."""
    parts, axis = node.inputs, node.attrs["axis"]
    if len(parts) == 1:
        return parts[0]
    merged = _neighbours(b, node)
    if len(merged) < len(parts):
        return merged[0] if len(merged) == 1 else b.make(node, "concat", *merged, axis=axis)
    return _before_reshape(b, node)


def _neighbours(b: Rebuilder, node: Node) -> list[Node]:
    """The parts, slices that follow each other in one tensor merged; without empty ones."""
    axis = node.attrs["axis"]
    found: list[Node] = []
    run: Node | None = None  # the slices that `found[-1]` may be prolonged by
    begin = end = 0

    def close() -> None:
        if run is not None and end - begin > found[-1].shape[axis]:
            at = run.attrs
            starts = tuple(begin if i == axis else a for i, a in enumerate(at["starts"]))
            stops = tuple(end if i == axis else e for i, e in enumerate(at["stops"]))
            found[-1] = b.make(node, "slice", run.inputs[0], starts=starts, stops=stops,
                               steps=at["steps"])

    for part in node.inputs:
        if run is not None and _continues(run, part, axis, end):
            end += part.shape[axis]
            continue
        if part.shape[axis] == 0 and node.shape[axis]:
            continue
        close()
        found.append(part)
        run = part if part.op.name == "slice" and part.attrs["steps"][axis] == 1 else None
        if run is not None:
            begin = run.attrs["starts"][axis]
            end = begin + run.shape[axis]
    close()
    return found


def _continues(run: Node, part: Node, axis: int, end: int) -> bool:
    """Whether `part` is the slice of the same tensor that begins along `axis` at `end`."""
    if part.op.name != "slice" or part.inputs[0] is not run.inputs[0]:
        return False
    one, two = run.attrs, part.attrs
    return (two["starts"][axis] == end and one["steps"] == two["steps"]
            and all(i == axis or one["starts"][i] == two["starts"][i] and run.shape[i] == n
                    for i, n in enumerate(part.shape)))


def _before_reshape(b: Rebuilder, node: Node) -> Node | None:
    """Parts (1, N, H) that were (N, H): the rows below each other, then one reshape."""
    axis = node.attrs["axis"]
    if any(n != 1 for n in node.shape[:axis]) or not node.size:
        return None
    tail: Shape | None = None
    sources: list[Node] = []
    for part in node.inputs:
        if part.op.name != "reshape" or not part.inputs[0].ndim:
            return None
        source = part.inputs[0]
        if tail is not None and source.shape[1:] != tail:
            return None
        tail = source.shape[1:]
        sources.append(source)
    whole = b.make(node, "concat", *sources, axis=0)
    return b.make(node, "reshape", whole, shape=node.shape)
