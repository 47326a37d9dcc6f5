"""Steps of a random program that move elements or write them: views, copies, in-place operations.

A view shares its Store with what it shows: what is written through one handle is known by all.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tests.fuzz.machine import MANTISSA, Item, Machine, broadcast, step
from tests.fuzz.steps import mask_for


@step
def slice_(m: Machine, x: Item, b: int, c: int) -> None:
    if not x.ndim:
        return
    axis = m.axis(x, c)
    n = x.shape[axis]
    start = b % (n + 1)
    stop = n - b // 7 % (n - start + 1)
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, 1 + b // 3 % 3)
    if b % 5 == 4:
        index = index[:axis + 1]
    m.view(x, x.t[tuple(index)])


@step
def select(m: Machine, x: Item, b: int, c: int) -> None:
    if x.ndim and x.shape[m.axis(x, c)]:
        axis = m.axis(x, c)
        m.view(x, x.t.select(axis, b % x.shape[axis] - (x.shape[axis] if b & 64 else 0)))


@step
def permute(m: Machine, x: Item, b: int, c: int) -> None:
    axes = list(range(x.ndim))
    if x.ndim > 1:
        i, j = b % x.ndim, c % x.ndim
        axes[i], axes[j] = axes[j], axes[i]
    m.view(x, x.t.permute(axes))


@step
def reshape(m: Machine, x: Item, b: int, c: int) -> None:
    """Merge two axes, or split one; a view where strides allow it, as in PyTorch."""
    shape = list(x.shape)
    if b % 3 == 0 and x.ndim > 1:
        axis = c % (x.ndim - 1)
        shape[axis:axis + 2] = [shape[axis] * shape[axis + 1]]
    elif b % 3 == 1 and x.ndim and x.ndim < 5:
        axis = m.axis(x, c)
        n = shape[axis]
        factor = next((f for f in (2, 3, 5, 7, 13) if n % f == 0), 1)
        shape[axis:axis + 1] = [n // factor, factor] if b & 4 else [factor, n // factor]
    else:
        shape = [prod(shape)]
    m.view(x, x.t.reshape(shape))


@step
def expand(m: Machine, x: Item, b: int, c: int) -> None:
    if x.ndim >= 5:
        return
    axis = c % (x.ndim + 1)
    n = (2, 3, 1, 5, 17)[b % 5]
    wide = x.t.unsqueeze(axis)
    if b % 3:
        wide = wide.expand([n if i == axis else s for i, s in enumerate(wide.shape)])
    m.view(x, wide, wide=True)


@step
def squeeze(m: Machine, x: Item, b: int, c: int) -> None:
    m.view(x, x.t.squeeze(c % x.ndim) if x.ndim and b % 2 else x.t.squeeze())


@step
def special(m: Machine, x: Item, b: int, c: int) -> None:
    """Rarer views."""
    if x.ndim < 2 or not prod(x.shape):
        return
    what = b % 4
    if what == 0:
        m.view(x, x.t.diagonal(b // 4 % 2, 0, 1))
    elif what == 1:
        axis = m.axis(x, c)
        size = 1 + b // 4 % x.shape[axis]
        m.view(x, x.t.unfold(axis, size, 1 + c // 8 % 3), wide=True)
    elif what == 2:
        axis = m.axis(x, c)
        parts = x.t.chunk(2, axis)
        m.view(x, parts[b // 4 % len(parts)])
    else:
        m.view(x, x.t.movedim(0, -1))


@step
def arrange(m: Machine, x: Item, b: int, c: int) -> None:
    """Copies in another order."""
    axis = m.axis(x, c)
    what = b % 7
    if what == 0 and x.ndim:
        m.like(x, x.t.flip(axis))
    elif what == 1 and x.ndim:
        m.like(x, x.t.roll(1 + b // 8 % 4, axis))
    elif what == 2 and x.ndim >= 2:
        m.like(x, x.t.tril(b // 8 % 3 - 1) if b & 64 else x.t.triu(b // 8 % 3 - 1))
    elif what == 3 and x.ndim:
        m.like(x, m.functional.pad(x.t, (b // 8 % 3, c // 8 % 3)))
    elif what == 4 and x.ndim:
        m.like(x, x.t.repeat([2 if i == axis else 1 for i in range(x.ndim)]))
    elif what == 5:
        m.like(x, x.t.contiguous() if b & 8 else x.t.clone())
    elif what == 6 and x.ndim:
        m.like(x, x.t.repeat_interleave(2, axis))


@step
def join(m: Machine, x: Item, b: int, c: int) -> None:
    if not x.ndim or x.ndim > 4:
        return
    axis = m.axis(x, c)
    others = [y for y in m.items if y.ndim == x.ndim and y.dtype == x.dtype and all(
        p == q or i == axis for i, (p, q) in enumerate(zip(x.shape, y.shape, strict=True)))]
    y = others[-1 - b // 4 % len(others)] if others else x
    frac = None if x.s.frac is None or y.s.frac is None else max(x.s.frac, y.s.frac)
    if b % 3 == 2 and x.shape == y.shape:
        t = m.lib.stack([x.t, y.t], axis)
    else:
        t = m.lib.cat([x.t, y.t] if b % 3 else [y.t, x.t, y.t], axis)
    m.add(t, max(x.s.mag, y.s.mag), frac, max(x.s.err, y.s.err))


@step
def make(m: Machine, x: Item, b: int, c: int) -> None:
    """Tensors that no leaf is behind."""
    what = b % 5
    if what == 0:
        m.add(m.lib.zeros_like(x.t), 0, 0)
    elif what == 1:
        m.add(m.lib.ones(x.shape, dtype=x.t.dtype), 1, 0)
    elif what == 2:
        n = (1, 15, 16, 17, 33)[c % 5]
        m.add(m.lib.arange(n), n, 0)
    elif what == 3:
        m.add(m.lib.full(x.shape, 0.75), 0.75, 2)
    else:
        n = x.shape[-1] if x.ndim else 1
        if n < 128:
            m.add(m.lib.eye(n), 1, 0)


# ---------------------------------------------------------------------------------------- writes

def write(m: Machine, x: Item, mag: float, frac: int | None, err: float) -> None:
    """Note what a write did to the memory of x."""
    s = x.s
    m.done = True
    s.frac = None if s.frac is None or frac is None else max(s.frac, frac)
    s.mag, s.err = max(s.mag, mag), max(s.err, err)
    if not x.floating:
        s.frac, s.err = 0, 0.0
        return
    unit = 2.0 ** -MANTISSA[x.dtype]
    if s.frac is not None and s.mag * 2.0**s.frac * unit > 1:
        s.frac = None
    if s.frac is None:
        s.err += unit * s.mag


def operand(m: Machine, x: Item, y: Item) -> Any:
    """What may be written into x: of its kind, broadcasting to it, and no history for state."""
    if broadcast(x.shape, y.shape) != x.shape:
        return None
    rank = {"bool": 0, "float64": 2, "float32": 2, "float16": 2, "bfloat16": 2}
    if rank.get(y.dtype, 1) > rank.get(x.dtype, 1):
        return None
    t = y.t.detach() if x.s.state else y.t
    # What overlaps with the memory written is undefined in PyTorch, unless it is the very same.
    return t.clone() if y.s is x.s and y.t is not x.t else t


@step
def update(m: Machine, x: Item, b: int, c: int) -> None:
    """x += y, x *= y, x.copy_(y)."""
    y = m.partner(x, c)
    t = operand(m, x, y)
    if t is None or x.wide or x.dtype == "bool":
        return
    frac = None if x.s.frac is None or y.s.frac is None else max(x.s.frac, y.s.frac)
    if b % 3 == 0 and x.s.mag + y.s.mag < 60:
        x.t.add_(t)
        write(m, x, x.s.mag + y.s.mag, frac, x.s.err + y.s.err)
    elif b % 3 == 1 and x.s.mag * y.s.mag < 60:
        x.t.mul_(t)
        frac = None if frac is None else (x.s.frac or 0) + (y.s.frac or 0)
        write(m, x, x.s.mag * y.s.mag, frac, x.s.mag * y.s.err + y.s.mag * x.s.err)
    elif b % 3 == 2 and y.s.mag < 60:
        x.t.copy_(t)
        write(m, x, y.s.mag, y.s.frac, y.s.err)


@step
def assign(m: Machine, x: Item, b: int, c: int) -> None:
    """x[part] = y."""
    if not x.ndim or x.wide:
        return
    axis = m.axis(x, c)
    n = x.shape[axis]
    index = (*[slice(None)] * axis, slice(b % (n + 1), n, 1 + b // 8 % 2))
    part = Item(x.t[index], x.s)
    for y in [m.partner(part, c // 4), part]:
        t = operand(m, part, y)
        if t is not None and y.s.mag < 60 and y.dtype == x.dtype:
            x.t[index] = t
            write(m, x, y.s.mag, y.s.frac, y.s.err)
            return


@step
def put(m: Machine, x: Item, b: int, c: int) -> None:
    """Writes of numbers."""
    if x.wide or x.dtype == "bool":
        return
    what = b % 6
    if what == 0:
        x.t.zero_()
    elif what == 1:
        x.t.fill_(1)
    elif what == 2:
        x.t.masked_fill_(mask_for(m, x, c), 2)
    elif what == 3 and x.ndim and x.shape[0]:
        x.t[m.lib.arange(1 + c % 3) % x.shape[0]] = 1
    elif what == 4:
        x.t[mask_for(m, x, 1 if x.ndim == 1 else 0) if x.ndim == 1 else ...] = 0
    elif what == 5 and x.floating and x.exact:
        x.t.clamp_(-1.5, 1.5)
    write(m, x, 2, 1, 0)


@step
def frozen(m: Machine, x: Item, b: int, c: int) -> None:
    """A write that autograd does not see."""
    with m.lib.no_grad():
        if b % 3 == 0:
            update(m, x, b // 3, c)
        elif b % 3 == 1:
            assign(m, x, b // 3, c)
        else:
            put(m, x, b // 3, c)


@step
def cut(m: Machine, x: Item, b: int, c: int) -> None:
    """A handle on the same memory without its history."""
    m.view(x, x.t.detach())
