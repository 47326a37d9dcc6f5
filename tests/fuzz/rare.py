"""Steps of a random program that are rarer in real ones: random numbers, pools, choices, losses,
writes by index, strides, shapes changed in place.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tests.fuzz.machine import Item, Machine, Store, broadcast, step
from tests.fuzz.shapes import operand, write
from tests.fuzz.steps import affordable, m_unit, mask_for, product, some_axes


@step
def chance(m: Machine, x: Item, b: int, c: int) -> None:
    """Random numbers: no library has another's, so PyTorch takes no part in such a program."""
    x = m.real(x)
    unit = 8 * m_unit(x) + 1e-12
    what = b % 6
    if what == 0:
        m.add(m.lib.rand_like(x.t), 1, None, unit)
    elif what == 1:
        m.add(m.lib.randn_like(x.t).clamp(-3, 3), 3, None, 4 * unit)
    elif what == 2:
        m.add(m.lib.randint(-3, 1 + c % 5, x.shape), 5, 0)
    elif what == 3:
        m.add(m.functional.dropout(x.t, (0.25, 0.5, 0.0)[c % 3]), 2 * x.s.mag, None, 2 * x.s.err)
    elif what == 4:
        m.add(m.lib.bernoulli(m.lib.full(x.shape, 0.5)), 1, 0)
    elif not x.wide and x.s.state:
        x.t.uniform_(-1, 1)
        write(m, x, 1, None, unit)


@step
def pool(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim not in (3, 4) or min(x.shape) < 1 or min(x.shape[2:]) < 3:
        return
    f = m.functional
    size, stride, pad = 2 + c % 2, 1 + c // 2 % 3, c // 8 % 2
    if b % 3 == 0:
        y = m.sharp(x)
        t = (f.max_pool1d if x.ndim == 3 else f.max_pool2d)(y.t, size, stride, pad)
        m.like(y, t)
    elif b % 3 == 1:
        t = (f.avg_pool1d if x.ndim == 3 else f.avg_pool2d)(x.t, size, stride, pad)
        m.add(t, x.s.mag, None, x.s.err)
    elif x.ndim == 3:
        m.add(f.adaptive_avg_pool1d(x.t, 1 + c % 3), x.s.mag, None, x.s.err)


@step
def convolve_plane(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim != 4 or x.shape[1] > 17 or min(x.shape) < 1 or min(x.shape[2:]) < 2:
        return
    channels, width = x.shape[1], 1 + b % 2
    shape = (2, channels, width, 2) if b & 2 else (channels, 2, width, 2)
    weight = (m.lib.arange(prod(shape), dtype=x.t.dtype) % 5 - 2).reshape(shape)
    stride, padding = 1 + c % 2, c // 2 % 2
    if not b & 2 and (x.shape[2] - 1) * stride + width <= 2 * padding:
        return  # nothing would be left: PyTorch refuses some of these, we all
    f = m.functional.conv2d if b & 2 else m.functional.conv_transpose2d
    if affordable(x.shape, 4 * width):
        t = f(x.t, weight, None, stride, padding)
        product(m, x, Item(weight, Store(2, 0)), t, 2 * channels * width)


@step
def choose(m: Machine, x: Item, b: int, c: int) -> None:
    """The largest, with their places."""
    if not x.ndim or not x.exact:
        return
    x = m.number(x)
    axis = m.axis(x, c)
    n = x.shape[axis]
    if not n:
        return
    what = b % 6
    still = x.t.detach().clone()  # which of equal elements has the slope is nobody's promise
    if what == 0:
        m.like(x, m.lib.topk(still, 1 + b // 8 % n, axis, bool(b & 64))[0])
    elif what == 1:
        m.like(x, m.lib.kthvalue(still, 1 + b // 8 % n, axis)[0])
    elif what == 2 and x.floating:  # PyTorch's median of an expanded tensor reads beyond it
        m.like(x, m.lib.median(still, axis)[0])
    elif what == 3:
        m.like(x, (m.lib.max if b & 8 else m.lib.min)(x.t, axis)[0])
    elif what == 4:
        m.like(x, (m.lib.cummax if b & 8 else m.lib.cummin)(still, axis)[0])
    else:
        places = (m.lib.max if b & 8 else m.lib.min)(still, axis, keepdim=True)[1]
        m.add(places // n, 1, 0)  # among equals any place may be named


@step
def judge(m: Machine, x: Item, b: int, c: int) -> None:
    """Questions and counts."""
    if not x.exact:
        return
    axes = some_axes(x, c)
    t = x.t if x.dtype == "bool" else x.t > 0
    if b % 3 == 0:
        m.add(t.any(m.axis(x, c)) if x.ndim else t.any(), 1, 0)
    elif b % 3 == 1:
        m.add(t.all(m.axis(x, c), keepdim=True) if x.ndim else t.all(), 1, 0)
    else:
        m.add(t.sum(axes), prod(x.shape) + 1, 0)


@step
def loss(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim != 2 or not prod(x.shape) or x.dtype in ("float16", "bfloat16"):
        return
    rows, classes = x.shape
    target = m.lib.arange(rows) * (1 + c % 3) % classes
    if b & 1:
        target = m.lib.where(m.lib.arange(rows) % 3 == 1, -100, target)
    if b & 2 or rows < 2:
        t = m.functional.cross_entropy(x.t, target, reduction="none")
    else:
        t = m.functional.cross_entropy(x.t, target, label_smoothing=0.125 if b & 4 else 0.0)
    m.add(t, 2 * x.s.mag + 12, None, 2 * x.s.err + 8 * m_unit(x) * (1 + x.s.mag))


@step
def linear(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim < 1 or not prod(x.shape) or not affordable(x.shape, 17):
        return
    n, k = x.shape[-1], (1, 3, 16, 17)[b % 4]
    weight = (m.lib.arange(k * n, dtype=x.t.dtype) % 7 - 3).reshape(k, n) * 0.25
    bias = m.lib.arange(k, dtype=x.t.dtype) * 0.125 % 2 if c & 1 else None
    y = Item(weight, Store(1, 2))
    t = m.functional.linear(x.t, weight, bias)
    if c & 2:
        t = t.relu() if x.exact else t.tanh()
    frac = None if x.s.frac is None or c & 2 and not x.exact else x.s.frac + 3
    m.add(t, n * x.s.mag + 2, frac, n * x.s.err * y.s.mag)


@step
def embed(m: Machine, x: Item, b: int, c: int) -> None:
    """Rows by number, many of them the same: the gradient adds up."""
    if x.ndim != 2 or not prod(x.shape) or not x.floating:
        return
    index = m.lib.arange((3, 64, 257)[b % 3]) * (1 + c % 5) // (1 + c // 8 % 7) % x.shape[0]
    m.like(x, m.functional.embedding(index.reshape(1, -1) if b & 8 else index, x.t))


@step
def put_by_index(m: Machine, x: Item, b: int, c: int) -> None:
    """Writes to places that are computed."""
    if x.wide or x.dtype == "bool" or not x.ndim or not prod(x.shape) or x.s.mag > 30:
        return
    axis = m.axis(x, c)
    n = x.shape[axis]
    what = b % 5
    if what == 0:
        index = m.lib.arange(n - 1, -1, -1)[:1 + b // 8 % n]
        source = x.t.detach().narrow(axis, 0, len(index)).clone()
        x.t.index_copy_(axis, index, source)
    elif what == 1:
        index = m.lib.arange(2 * n) % (1 + b // 8 % n)
        x.t.index_add_(axis, index, m.lib.ones(
            [2 * n if i == axis else s for i, s in enumerate(x.shape)], dtype=x.t.dtype))
        write(m, x, x.s.mag + 2 * n, x.s.frac, x.s.err)
        return
    elif what == 2:
        rows = m.lib.arange(x.shape[0]) * 3 % x.shape[0]
        x.t.index_put_((rows,), m.lib.full((), 1, dtype=x.t.dtype))
    elif what == 3:
        index = m.lib.arange(n).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x.t.scatter_(axis, index.flip(axis).expand(x.shape), x.t.detach().clone())
    else:
        x.t.masked_fill_(mask_for(m, x, c) if c & 64 else ~mask_for(m, x, c), 1)
    write(m, x, 2, 1, 0)


@step
def combine(m: Machine, x: Item, b: int, c: int) -> None:
    """In-place operations of three operands."""
    y = m.partner(x, c)
    t = operand(m, x, y)
    if t is None or x.wide or not x.floating or y.dtype != x.dtype or x.s.mag + y.s.mag > 20:
        return
    mag, err = x.s.mag + y.s.mag**2, x.s.err + 2 * (1 + y.s.mag) * y.s.err
    if b % 3 == 0 and broadcast(x.shape, y.shape) == y.shape:
        x.t.lerp_(t, 0.25)
        write(m, x, x.s.mag + y.s.mag, None, x.s.err + y.s.err)
    elif b % 3 == 1:
        x.t.addcmul_(t, t, value=0.5)
        write(m, x, mag, None, err)
    else:
        x.t.addcdiv_(t, 1 + t * t, value=0.5)
        write(m, x, mag, None, err + m_unit(x))


@step
def strided(m: Machine, x: Item, b: int, c: int) -> None:
    """A window on the memory behind."""
    if not x.ndim or x.wide or 0 in x.shape or b & 1 and x.t.requires_grad:
        return
    offset, n = x.t.storage_offset(), x.shape[0]
    step_, room = x.t.stride()[0], 1 + c % n
    if b & 2 and n > 2:
        m.view(x, x.t.as_strided((n - 1, 2), (step_, step_), offset), wide=True)
    else:
        m.view(x, x.t.as_strided((room,), (step_,), offset))


@step
def turn(m: Machine, x: Item, b: int, c: int) -> None:
    """A tensor that changes its shape in place; views made before keep theirs."""
    t = x.t.clone()
    y = Item(t, Store(x.s.mag, x.s.frac, x.s.err))
    m.items.append(y)
    if x.ndim and prod(x.shape):
        m.view(y, t[0])
    if b % 3 == 0:
        t.unsqueeze_(c % (x.ndim + 1))
    elif b % 3 == 1 and x.ndim > 1:
        t.transpose_(0, c % x.ndim)
    elif x.ndim:
        t.squeeze_(m.axis(x, c))


def random_steps(program: Any) -> bool:
    """Whether a program may meet random numbers."""
    return any(name == "chance" for name, *_ in program.steps)
