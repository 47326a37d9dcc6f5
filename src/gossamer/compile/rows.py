"""Loops to loops: what a row kernel computes twice is kept in its result's row. Layer 2.

The one idea: softmax sums exp(x - max) in one walk over a row and divides it in the next. The row
of the result is in cache and not written yet, so the first walk leaves the exponentials there and
the second reads them, instead of computing them again.
"""

from __future__ import annotations

from math import prod

from gossamer.core.dtype import float32, float64
from gossamer.ir.loop import Kernel, Store, Val

__all__ = ["keep_rows"]

MIN_COST = 8.0  # additions that are worth a store and a load in cache
MAX_ROW = 1 << 13  # elements: two such rows stay in a second-level cache


def keep_rows(kernel: Kernel) -> Kernel:
    """The kernel with expensive values of its first walks left in the row that a later walk writes.
    Changes the passes of `kernel`, if at all."""
    if kernel.serial or len(kernel.passes) < 2 or prod(a.extent for a in kernel.reduced) > MAX_ROW:
        return kernel
    written = [s.buffer for s in kernel.stores()]
    free = {s.buffer for s in kernel.stores() if s.update is None and written.count(s.buffer) == 1}
    free -= {v.data[0] for v in kernel.values() if v.kind == "load"}
    for number, late in enumerate(kernel.passes):
        for store in late.stores:
            if store.buffer in free:
                _keep(kernel, number, store)
    return kernel


def _keep(kernel: Kernel, number: int, store: Store) -> None:
    """Keep the largest part of what `store` (of pass `number`) needs and an earlier pass has."""
    if store.dtype not in (float32, float64):
        return  # fewer bits would be rounded on the way
    inner = {a.name for a in kernel.reduced}
    for early in kernel.passes[:number]:
        known = {id(v) for r in early.reduces for v in _below(r.value)}
        value = next((v for v in _below(store.value) if id(v) in known and v.dtype is store.dtype
                      and v is not store.value and v.vars & inner and _cost(v, inner) >= MIN_COST),
                     None)
        if value is not None:
            early.stores.append(Store(store.buffer, store.index, value, store.dtype))
            names = [v.name for v in store.index.variables()]
            kept = Val("load", value.dtype, (store.buffer, store.index, None), (), names)
            store.value = _replaced(store.value, value, kept)
            return


def _below(root: Val) -> list[Val]:
    """The operators that a value is made of, the value first, each once."""
    found: dict[int, Val] = {}
    stack = [root]
    while stack:
        val = stack.pop()
        if id(val) not in found and val.kind in ("op", "select"):
            found[id(val)] = val
            stack.extend(reversed(val.inputs))
    return list(found.values())


def _cost(root: Val, inner: set[str]) -> float:
    """Work to compute a value in a walk over the axes `inner`, in additions: what does not vary in
    the walk is computed before it."""
    return sum(v.data[0].cost if v.kind == "op" else 1.0 for v in _below(root) if v.vars & inner)


def _replaced(root: Val, old: Val, new: Val) -> Val:
    """`root` with `new` for `old`."""
    made: dict[int, Val] = {id(old): new}
    stack = [root]
    while stack:
        val = stack[-1]
        missing = [x for x in val.inputs if id(x) not in made]
        if id(val) in made or not missing:
            stack.pop()
            if id(val) not in made:
                inputs = tuple(made[id(x)] for x in val.inputs)
                own = val.vars.difference(*(x.vars for x in val.inputs))
                same = all(a is b for a, b in zip(inputs, val.inputs, strict=True))
                made[id(val)] = val if same else Val(val.kind, val.dtype, val.data, inputs, own)
            continue
        stack.extend(missing)
    return made[id(root)]
