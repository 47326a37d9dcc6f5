"""What the steps of a random program do: arithmetic, reductions, products, indexing.

Functions are chosen with a bounded slope, so that errors stay small and a wrong element stands out.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tests.fuzz.machine import Item, Machine, Store, broadcast, step

# name: (function of (machine, tensor), bound of the result from that of x, bound of the slope)
SMOOTH: list[tuple[Any, Any, float]] = [
    (lambda m, x: x.tanh(), lambda b: 1, 1), (lambda m, x: x.sigmoid(), lambda b: 1, 1),
    (lambda m, x: x.sin(), lambda b: 1, 1), (lambda m, x: x.cos(), lambda b: 1, 1),
    (lambda m, x: (x * 0.25).tanh().exp(), lambda b: 3, 3),
    (lambda m, x: (-x * x).exp(), lambda b: 1, 1), (lambda m, x: x.erf(), lambda b: 1, 1.2),
    (lambda m, x: (x * x + 0.5).log(), lambda b: 2 + b, 2),
    (lambda m, x: (x * x + 0.25).sqrt(), lambda b: 1 + b, 1),
    (lambda m, x: (x * x + 0.5).rsqrt(), lambda b: 1.5, 2), (lambda m, x: x.atan(), lambda b: 2, 1),
    (lambda m, x: m.functional.gelu(x), lambda b: b, 1.2),
    (lambda m, x: m.functional.silu(x), lambda b: b, 1.2),
    (lambda m, x: m.functional.softplus(x), lambda b: 1 + b, 1),
    (lambda m, x: 1 / (1 + x * x), lambda b: 1, 1), (lambda m, x: x.tanh().expm1(), lambda b: 2, 3),
    (lambda m, x: x.pow(3) * 0.125, lambda b: b**3 / 8, 400), (lambda m, x: x / 3, lambda b: b, 1),
]


@step
def smooth(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    function, bound, slope = SMOOTH[b % len(SMOOTH)]
    unit = 2.0**-7 if x.dtype == "bfloat16" else 2.0**-10 if x.dtype == "float16" else 2.0**-22
    inner = 0.0 if x.dtype == "float64" else unit * min(x.s.mag, 8) * slope
    m.add(function(m, x.t), bound(x.s.mag), None, slope * x.s.err + 3 * inner)


@step
def kinked(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.soft(x)
    t = [lambda: x.t.abs(), lambda: x.t.relu(), lambda: x.t.clamp(-1.0, 1.5),
         lambda: m.functional.leaky_relu(x.t, 0.25), lambda: x.t.clamp(min=0.5),
         lambda: m.functional.relu6(x.t)][b % 6]()
    frac = None if x.s.frac is None else x.s.frac + 2
    m.add(t, max(x.s.mag, 1.5), frac, x.s.err)


@step
def whole(m: Machine, x: Item, b: int, c: int) -> None:
    """Operators that jump."""
    if not x.exact or not x.floating:
        return
    t = [lambda: x.t.floor(), lambda: x.t.ceil(), lambda: x.t.round(), lambda: x.t.trunc(),
         lambda: x.t.sign(), lambda: x.t.frac()][b % 6]()
    m.add(t, x.s.mag + 1, x.s.frac)


@step
def negate(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.number(x)
    if b % 2:
        m.add(x.t * x.t, x.s.mag**2, None if x.s.frac is None else 2 * x.s.frac,
              2 * x.s.mag * x.s.err)
    else:
        m.add(-x.t, x.s.mag, x.s.frac, x.s.err)


@step
def arithmetic(m: Machine, x: Item, b: int, c: int) -> None:
    y = m.partner(x, c)
    x, y = m.number(x), m.number(y)
    frac = None if x.s.frac is None or y.s.frac is None else max(x.s.frac, y.s.frac)
    err = x.s.err + y.s.err
    if b % 3 == 0:
        m.add(x.t + y.t, x.s.mag + y.s.mag, frac, err)
    elif b % 3 == 1:
        m.add(x.t - y.t, x.s.mag + y.s.mag, frac, err)
    else:
        frac = None if frac is None else (x.s.frac or 0) + (y.s.frac or 0)
        m.add(x.t * y.t, x.s.mag * y.s.mag, frac, x.s.mag * y.s.err + y.s.mag * x.s.err)


@step
def quotient(m: Machine, x: Item, b: int, c: int) -> None:
    y = m.partner(x, c)
    x, y = m.real(x), m.real(y)
    m.add(x.t / (1 + y.t * y.t), x.s.mag, None, x.s.err + x.s.mag * y.s.err + 1e-15 * x.s.mag
          + 4 * m_unit(x, y) * x.s.mag)


def m_unit(*items: Item) -> float:
    """The coarsest rounding among some values."""
    units = {"float64": 0.0, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    return max(units.get(i.dtype, 0.0) for i in items)


@step
def extreme(m: Machine, x: Item, b: int, c: int) -> None:
    y = m.partner(x, c)
    x, y = m.number(m.sharp(x)), m.number(m.sharp(y))
    t = m.lib.maximum(x.t, y.t) if b % 2 else m.lib.minimum(x.t, y.t)
    frac = None if x.s.frac is None or y.s.frac is None else max(x.s.frac, y.s.frac)
    m.add(t, max(x.s.mag, y.s.mag), frac, max(x.s.err, y.s.err))


@step
def scalar(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.number(x)
    number = [2, -1.5, 0.5, 3, 0.25, 1, 0, -1][c % 8]
    if not x.floating:
        number = int(number)
    frac = None if x.s.frac is None else x.s.frac + 2
    t = [lambda: x.t + number, lambda: x.t * number, lambda: number - x.t][b % 3]()
    m.add(t, (x.s.mag + 3) * 3, frac, 3 * x.s.err)


@step
def compare(m: Machine, x: Item, b: int, c: int) -> None:
    if x.exact and b % 2:
        y = m.partner(x, c)
        if y.exact:
            m.add([m.lib.lt, m.lib.eq, m.lib.ge, m.lib.ne][b // 2 % 4](x.t, y.t), 1, 0)
    elif x.exact:
        m.add(x.t > 0.25 if x.floating else x.t > 0, 1, 0)
    elif x.s.err < 1e-5:  # few values lie so near to the bound
        m.add(x.t > 0.3711, 1, 0)


def mask_for(m: Machine, x: Item, k: int) -> Any:
    """A bool tensor that broadcasts to x."""
    masks = [y for y in m.items if y.dtype == "bool" and broadcast(x.shape, y.shape) == x.shape]
    if masks and k % 3:
        return masks[-1 - k // 3 % len(masks)].t
    n = x.shape[-1] if x.ndim else 1
    line = m.lib.arange(n) % (2 + k % 3) == 0
    return line if x.ndim else line.reshape(())


@step
def where(m: Machine, x: Item, b: int, c: int) -> None:
    y = m.partner(x, c)
    x, y = m.number(x), m.number(y)
    frac = None if x.s.frac is None or y.s.frac is None else max(x.s.frac, y.s.frac)
    m.add(m.lib.where(mask_for(m, x, b), x.t, y.t), max(x.s.mag, y.s.mag), frac,
          max(x.s.err, y.s.err))


@step
def cast(m: Machine, x: Item, b: int, c: int) -> None:
    name = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8",
            "bool")[b % 9]
    if name in ("int64", "int32", "int8", "uint8", "bool"):
        if not x.exact or x.s.mag > 100 or (name == "uint8" and x.floating):
            return
        mag = 255.0 if name == "uint8" else x.s.mag
        m.add(x.t.to(getattr(m.lib, name)), mag, 0)
    else:
        m.add(x.t.to(getattr(m.lib, name)), x.s.mag, x.s.frac, x.s.err)


@step
def integer(m: Machine, x: Item, b: int, c: int) -> None:
    if x.floating:
        return
    if x.dtype == "bool":
        y = m.partner(x, c)
        if y.dtype == "bool":
            m.add([x.t & y.t, x.t | y.t, x.t ^ y.t, ~x.t][b % 4], 1, 0)
        return
    if b % 9 == 8:  # by numbers of both signs, none 0
        y = m.partner(x, c)
        if y.dtype == x.dtype and y.s.mag < 50 and x.dtype != "uint8":
            by = y.t * 2 + 1
            m.add(x.t // by if b & 16 else x.t % by, x.s.mag + 2 * y.s.mag + 1, 0)
        return
    n = 1 + c % 5
    t = [lambda: x.t // n, lambda: x.t % n, lambda: x.t & 5, lambda: x.t | 3, lambda: x.t >> 1,
         lambda: x.t << 1, lambda: x.t ^ 6][b % 7]()
    m.add(t, 2 * x.s.mag + 8, 0)


# ------------------------------------------------------------------------------------ reductions

def some_axes(x: Item, k: int) -> tuple[int, ...]:
    axes = tuple(i for i in range(x.ndim) if k >> i & 1)
    return axes or tuple(range(x.ndim))


@step
def total(m: Machine, x: Item, b: int, c: int) -> None:
    axes = some_axes(x, c)
    n = max(1, prod(x.shape[a] for a in axes))
    mag, err = x.s.mag * n, x.s.err * n
    keep = bool(b & 8)
    what = b % 4
    if what == 0:
        m.add(x.t.sum(axes, keepdim=keep), mag, x.s.frac, err)
    elif what == 1:
        x = m.real(x)
        m.add(x.t.mean(axes, keepdim=keep), x.s.mag, None, x.s.err)
    elif what == 2 and prod(x.shape):
        y = m.sharp(x)
        f = m.lib.amax if b & 4 else m.lib.amin
        m.add(f(y.t, axes, keepdim=keep), x.s.mag, x.s.frac, x.s.err)
    elif what == 3:
        x = m.real(x)
        if n > 1:
            v = x.t.var(axes, correction=b // 16 % 2, keepdim=keep)
            m.add(v, 4 * x.s.mag**2, None,
                  8 * x.s.mag * x.s.err + 4 * m_unit(x) * x.s.mag**2)


@step
def along(m: Machine, x: Item, b: int, c: int) -> None:
    """Operators along one axis."""
    if not x.ndim:
        return
    axis = m.axis(x, c)
    n = x.shape[axis]
    what = b % 8
    x = m.number(x)
    if what == 0:
        m.add(x.t.cumsum(axis), x.s.mag * max(n, 1), x.s.frac, x.s.err * max(n, 1))
    elif what == 1:
        x = m.real(x)
        m.add(m.lib.softmax(x.t, axis), 1, None, 2 * x.s.err + 4 * m_unit(x) * max(1, x.s.mag))
    elif what == 2:
        x = m.real(x)
        m.add(m.lib.log_softmax(x.t, axis), 2 * x.s.mag + 12, None, 2 * x.s.err + m_unit(x) * 8)
    elif what == 3 and n:
        x = m.real(x)
        m.add(m.lib.logsumexp(x.t, axis), x.s.mag + 12, None, x.s.err)
    elif what == 4 and n and x.exact:
        f = m.lib.argmax if b & 8 else m.lib.argmin
        m.add(f(x.t, axis, keepdim=bool(b & 16)), n, 0)
    elif what == 5 and n:
        m.like(x, m.lib.sort(m.sharp(x).t, dim=axis, descending=bool(b & 8))[0])
    elif what == 6 and n and x.exact:
        m.add(m.lib.sort(x.t, dim=axis, descending=bool(b & 8), stable=True)[1], n, 0)
    elif what == 7 and n:
        y = m.real(x).t.tanh()
        m.add(y.cumprod(axis), 1, None, n * (x.s.err + 2 * m_unit(x)))


@step
def normal(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if not x.ndim or not prod(x.shape):
        return
    shape = x.shape[-1 - c % min(2, x.ndim):]
    weight = None
    if b & 2:
        weight = m.lib.arange(prod(shape), dtype=x.t.dtype).reshape(shape) * 0.125 % 2 - 1
    if b & 1:
        t = m.functional.layer_norm(x.t, shape, weight, weight, 0.25)
    else:
        t = m.functional.rms_norm(x.t, shape, weight, 0.25)
    m.add(t, 4 * x.s.mag + 2, None, 12 * (1 + x.s.mag) * (x.s.err + m_unit(x)))


# -------------------------------------------------------------------------------------- products

def affordable(batch: tuple[int, ...], *extents: int) -> bool:
    """Whether a product has at most some millions of multiplications, by PyTorch and by NumPy."""
    return prod(batch) * prod(extents) <= 3_000_000


def product(m: Machine, x: Item, y: Item, t: Any, n: int) -> None:
    frac = None if x.s.frac is None or y.s.frac is None else x.s.frac + y.s.frac
    n = max(n, 1)
    m.add(t, n * x.s.mag * y.s.mag, frac, n * (x.s.mag * y.s.err + y.s.mag * x.s.err))


@step
def matmul(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.number(x)
    if not x.ndim:
        return
    n = x.shape[-1]
    if not affordable(x.shape, max(x.shape[-2:])):
        return
    fits = []
    for y in m.items:
        batch = broadcast(x.shape[:-2], y.shape[:-2])
        if y.ndim and y.dtype == x.dtype and y.shape[-2 if y.ndim > 1 else -1] == n \
                and batch is not None and affordable(batch, *x.shape[-2:], y.shape[-1]):
            fits.append(y)
    if fits and c % 3:
        y = fits[-1 - c // 3 % len(fits)]
        product(m, x, y, x.t @ y.t, n)
    elif x.ndim == 1:
        product(m, x, x, x.t @ x.t, n)
    elif b % 2:
        product(m, x, x, x.t @ x.t.mT, n)
    else:
        product(m, x, x, x.t.mT @ x.t, x.shape[-2])


@step
def einsum(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if not affordable(x.shape, max(x.shape, default=1)):
        return
    if x.ndim == 2:
        formula = ("ij,kj->ik", "ij,ij->i", "ij,ij->j", "ij,ij->", "ij,kj->ki", "ij,ik->jk")[b % 6]
    elif x.ndim == 3:
        formula = ("bij,bkj->bik", "bij,bij->bi", "bij,bij->ji", "bij,bkj->ikb", "bij,cij->bc",
                   "bij,bik->bjk", "bij,bik->jk")[b % 7]
    else:
        return
    product(m, x, x, m.lib.einsum(formula, x.t, x.t), prod(x.shape))


@step
def attention(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim < 2 or x.ndim > 4 or not prod(x.shape) or x.dtype in ("float16", "bfloat16") \
            or not affordable(x.shape, x.shape[-2]):
        return
    causal = bool(b & 1)
    k = x.t.flip(-2) if b & 2 else x.t
    if b & 4:
        x = Item(x.t.tanh(), Store(1, None, x.s.err + m_unit(x)))
        k = k.tanh()
    t = m.functional.scaled_dot_product_attention(x.t, k, x.t, is_causal=causal)
    m.add(t, x.s.mag, None, (1 + x.s.mag**2) * x.shape[-1] * (4 * x.s.err + 8 * m_unit(x))
          + 1e-12 * x.s.mag**2)


@step
def convolve(m: Machine, x: Item, b: int, c: int) -> None:
    x = m.real(x)
    if x.ndim != 3 or x.shape[1] > 17 or x.shape[2] < 2 or not prod(x.shape):
        return
    channels = x.shape[1]
    width = 1 + b % 2
    weight = (m.lib.arange(2 * channels * width, dtype=x.t.dtype) % 5 - 2).reshape(
        2, channels, width)
    t = m.functional.conv1d(x.t, weight, stride=1 + c % 2, padding=c // 2 % 2)
    product(m, x, Item(weight, Store(2, 0)), t, channels * width)


# -------------------------------------------------------------------------------------- indexing

@step
def gather(m: Machine, x: Item, b: int, c: int) -> None:
    if not x.ndim:
        return
    axis = m.axis(x, c)
    n = x.shape[axis]
    if not n:
        return
    index = (m.lib.arange(1 + b % 5) * 7 + b) % n
    what = b % 5
    if what == 0:
        m.like(x, x.t.index_select(axis, index))
    elif what == 1 and axis == 0:
        m.like(x, x.t[index - n])
    elif what == 1 and x.shape[1]:
        m.like(x, x.t[:, index % x.shape[1]])
    elif what == 2:
        wide = index.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        shape = [len(index) if i == axis else s for i, s in enumerate(x.shape)]
        m.like(x, x.t.gather(axis, wide.expand(shape)))
    elif what == 3 and x.ndim > 1 and x.shape[0] and x.shape[1]:
        m.like(x, x.t[index % x.shape[0], index % x.shape[1]])
    elif what == 4 and x.ndim == 2 and x.floating:
        m.like(x, m.functional.embedding(index % x.shape[0], x.t))


@step
def by_data(m: Machine, x: Item, b: int, c: int) -> None:
    """Indices that are computed."""
    ints = [y for y in m.items if y.dtype == "int64" and y.ndim in (1, 2)]
    if not x.ndim or not x.shape[0] or not ints:
        return
    index = ints[-1 - b % len(ints)].t % x.shape[0]
    m.like(x, x.t[index])


@step
def scatter(m: Machine, x: Item, b: int, c: int) -> None:
    if x.ndim < 1 or not prod(x.shape):
        return
    x = m.number(x)
    axis = m.axis(x, c)
    n = x.shape[axis]
    index = (m.lib.arange(n) * (1 + b // 4 % 3)) % n
    times = 1 + n
    if b % 4 == 0:
        m.add(m.lib.zeros_like(x.t).index_add(axis, index, x.t), times * x.s.mag, x.s.frac,
              times * x.s.err)
    elif b % 4 == 1:
        wide = index.reshape([-1 if i == axis else 1 for i in range(x.ndim)]).expand(x.shape)
        m.add(x.t.scatter_add(axis, wide, x.t), times * x.s.mag, x.s.frac, times * x.s.err)
    elif b % 4 == 2:
        order = m.lib.arange(n - 1, -1, -1)
        m.like(x, x.t.index_copy(axis, order, x.t))
    else:
        m.like(x, x.t.index_fill(axis, index[:1], 0))


@step
def look(m: Machine, x: Item, b: int, c: int) -> None:
    """Someone reads a value in the middle."""
    m.done = True
    if not m.tracing:
        x.t.detach().tolist()
