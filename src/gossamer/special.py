"""`gossamer.special`: special functions by PyTorch's names. Layer 4.

Bessel functions are integrals of smooth periodic (or quickly falling) functions, for which the
trapezoidal rule converges exponentially; far out their asymptotic series take over. Orthogonal
polynomials follow their recurrences.

Sources: DLMF 10.9, 10.17, 10.40, 10.32 (Bessel), 18.9 (polynomials), 7.9 (erfcx); Trefethen and
Weideman 2014, "The exponentially convergent trapezoidal rule".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import float64
from gossamer.creation import array_node
from gossamer.dispatch import PUBLIC, number, operands, with_out
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE
from gossamer.tensor import Tensor, wrap

__all__ = ["bessel_j0", "bessel_j1", "entr", "erfcx", "i0", "i0e", "i1", "i1e", "log_ndtr", "ndtr",
           "ndtri", "spherical_bessel_j0", "xlog1py"]

digamma = psi = PUBLIC["digamma"]
erf, erfc, erfinv, exp2, expm1 = (PUBLIC[n] for n in ("erf", "erfc", "erfinv", "exp2", "expm1"))
expit, gammaln = PUBLIC["sigmoid"], PUBLIC["lgamma"]
log1p, logit, logsumexp, softmax = (PUBLIC[n] for n in ("log1p", "logit", "logsumexp", "softmax"))
log_softmax, multigammaln, polygamma = (PUBLIC[n] for n in ("log_softmax", "mvlgamma", "polygamma"))
round, sinc, xlogy = PUBLIC["round"], PUBLIC["sinc"], PUBLIC["xlogy"]


def _wide(name: str, rule: Callable[[Node], Node]) -> Callable[..., Tensor]:
    """A function computed in float64 and rounded once."""
    def fn(input: Tensor) -> Tensor:
        (x,) = operands(f"special.{name}", (input,), "float")
        return wrap(prims.cast(rule(prims.cast(x, float64)), x.dtype))
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"special.{name}, for each element."
    return with_out(fn)


def _c(value: float, x: Node) -> Node:
    return prims.const(value, x)


def _poly(x: Node, *coefficients: float) -> Node:
    """Horner's rule, highest coefficient first."""
    made = _c(coefficients[0], x)
    for a in coefficients[1:]:
        made = prims.add(prims.mul(made, x), _c(a, x))
    return made


# ---------------------------------------------------------------------------- normal distribution

def _erfcx(x: Node) -> Node:
    """e^(x^2) erfc(x): directly below 2, a continued fraction (DLMF 7.9.2) above."""
    big = TABLE["ge"](x, _c(2, x))
    near = prims.where(big, _c(0, x), x)
    direct = prims.mul(TABLE["exp"](prims.mul(near, near)), TABLE["erfc"](near))
    far = prims.where(big, x, _c(2, x))
    tail = far
    for k in range(40, 0, -1):
        tail = prims.add(far, prims.div(_c(k / 2, far), tail))
    return prims.where(big, prims.div(_c(1 / math.sqrt(math.pi), far), tail), direct)


def _ndtr(x: Node) -> Node:
    return prims.mul(TABLE["erfc"](prims.mul(x, _c(-math.sqrt(0.5), x))), _c(0.5, x))


def _log_ndtr(x: Node) -> Node:
    low = TABLE["lt"](x, _c(-1, x))
    left = prims.where(low, x, _c(-1, x))
    t = prims.mul(left, _c(-math.sqrt(0.5), x))
    below = prims.sub(TABLE["log"](prims.mul(_erfcx(t), _c(0.5, x))), prims.mul(t, t))
    right = prims.where(low, _c(0, x), x)
    above = TABLE["log1p"](prims.neg(_ndtr(prims.neg(right))))
    return prims.where(low, below, above)


def _ndtri(p: Node) -> Node:
    inner = prims.sub(prims.mul(p, _c(2, p)), _c(1, p))
    return prims.mul(TABLE["erfinv"](inner), _c(math.sqrt(2), p))


def _entr(x: Node) -> Node:
    zero = prims.equal(x, _c(0, x))
    safe = prims.where(zero, _c(1, x), x)
    made = prims.where(zero, _c(0, x), prims.neg(prims.mul(x, TABLE["log"](safe))))
    return prims.where(TABLE["lt"](x, _c(0, x)), _c(-math.inf, x), made)


erfcx, ndtr, log_ndtr = _wide("erfcx", _erfcx), _wide("ndtr", _ndtr), _wide("log_ndtr", _log_ndtr)
ndtri, entr = _wide("ndtri", _ndtri), _wide("entr", _entr)


@with_out
def xlog1py(input: Any, other: Any) -> Tensor:
    """`input * log(1 + other)`, 0 where input is 0; NaN where other is NaN."""
    x, y = operands("special.xlog1py", (input, other), "float")
    zero, bad = prims.equal(x, _c(0, x)), TABLE["isnan"](y)
    safe = prims.where(zero, _c(0, y), y)
    made = prims.where(zero, _c(0, x), prims.mul(x, TABLE["log1p"](safe)))
    return wrap(prims.where(bad, y, made))


# --------------------------------------------------------------------------------------- Bessel

def _average(x: Node, points: np.ndarray, term: Callable[[Node, Node], Node]) -> Node:
    """Average over `points` of term(x, point)."""
    n = len(points)
    wide = (*x.shape, n)
    xs = prims.expand(prims.reshape(x, (*x.shape, 1)), wide)
    ps = prims.expand(array_node(points, float64), wide)
    total = prims.reduce_sum(term(xs, ps), (x.ndim,))
    return prims.div(total, _c(n, total))


_HALF = (np.arange(64) + 0.5) * np.pi / 64  # midpoints of [0, pi]
_SPLIT = 30.0  # from here on the asymptotic series have 1e-13; below 64 points have as much


def _exponential_i(order: int) -> Callable[[Node], Node]:
    """e^-|x| I_order(x), order 0 or 1 (DLMF 10.32.3 and 10.40.1)."""
    mu = 4 * order * order
    series = [1.0]
    for k in range(1, 12):
        series.append(series[-1] * -(mu - (2 * k - 1) ** 2) / (8 * k))

    def rule(x: Node) -> Node:
        size = TABLE["abs"](x)
        big = TABLE["gt"](size, _c(_SPLIT, x))
        near = prims.where(big, _c(1, x), x)
        reach = TABLE["abs"](near)

        def term(xs: Node, ps: Node) -> Node:
            cosine = TABLE["cos"](ps)
            rs = prims.expand(prims.reshape(reach, (*reach.shape, 1)), xs.shape)
            e = TABLE["exp"](prims.sub(prims.mul(xs, cosine), rs))
            return prims.mul(e, cosine) if order else e
        small = _average(near, _HALF, term)
        far = prims.where(big, size, _c(_SPLIT, x))
        tail = prims.div(_poly(prims.div(_c(1, far), far), *reversed(series)),
                         TABLE["sqrt"](prims.mul(far, _c(2 * math.pi, far))))
        if order:
            tail = prims.mul(tail, TABLE["sign"](x))
        return prims.where(big, tail, small)
    return rule


def _times_exp(rule: Callable[[Node], Node]) -> Callable[[Node], Node]:
    return lambda x: prims.mul(rule(x), TABLE["exp"](TABLE["abs"](x)))


i0e, i1e = _wide("i0e", _exponential_i(0)), _wide("i1e", _exponential_i(1))
i0, i1 = _wide("i0", _times_exp(_exponential_i(0))), _wide("i1", _times_exp(_exponential_i(1)))
modified_bessel_i0 = _wide("modified_bessel_i0", _times_exp(_exponential_i(0)))
modified_bessel_i1 = _wide("modified_bessel_i1", _times_exp(_exponential_i(1)))


def _bessel_j(order: int) -> Callable[[Node], Node]:
    """J_order(x), order 0 or 1 (DLMF 10.9.2 and 10.17.3)."""
    mu = 4 * order * order
    a = [1.0]
    for k in range(1, 12):
        a.append(a[-1] * (mu - (2 * k - 1) ** 2) / (8 * k))

    def rule(x: Node) -> Node:
        size = TABLE["abs"](x)
        big = TABLE["gt"](size, _c(_SPLIT, x))
        near = prims.where(big, _c(1, x), x)

        def term(xs: Node, ps: Node) -> Node:
            swing = prims.mul(xs, TABLE["sin"](ps))
            return TABLE["cos"](prims.sub(ps, swing) if order else swing)
        small = _average(near, _HALF, term)
        far = prims.where(big, size, _c(_SPLIT, x))
        inverse = prims.div(_c(1, far), far)
        square = prims.mul(inverse, inverse)
        even = _poly(square, *[(-1) ** k * a[2 * k] for k in range(5, -1, -1)])
        odd = prims.mul(inverse, _poly(square, *[(-1) ** k * a[2 * k + 1]
                                                 for k in range(5, -1, -1)]))
        phase = prims.sub(far, _c(math.pi * (order / 2 + 0.25), far))
        wave = prims.sub(prims.mul(even, TABLE["cos"](phase)), prims.mul(odd, TABLE["sin"](phase)))
        tail = prims.mul(wave, TABLE["sqrt"](prims.mul(inverse, _c(2 / math.pi, far))))
        if order:
            tail = prims.mul(tail, TABLE["sign"](x))
        return prims.where(big, tail, small)
    return rule


bessel_j0, bessel_j1 = _wide("bessel_j0", _bessel_j(0)), _wide("bessel_j1", _bessel_j(1))
# e^(-x (cosh t - 1)) is below 1e-17 beyond t = 16 for x > 1e-5; steps of 1/16 give 1e-14.
_FALL = np.arange(0, 16, 1 / 16)


def _scaled_k(order: int, scaled: bool) -> Callable[[Node], Node]:
    """(e^x) K_order(x), order 0 or 1 (DLMF 10.32.9); inf at 0, NaN below."""
    def rule(x: Node) -> Node:
        positive = TABLE["gt"](x, _c(0, x))
        safe = prims.where(positive, x, _c(1, x))

        def term(xs: Node, ps: Node) -> Node:
            cosh = TABLE["cosh"](ps)
            e = TABLE["exp"](prims.neg(prims.mul(xs, prims.sub(cosh, _c(1, cosh)))))
            e = prims.mul(e, cosh) if order else e
            first = prims.equal(ps, _c(0, ps))  # the rule's end point counts half
            return prims.where(first, prims.mul(e, _c(0.5, e)), e)
        made = prims.mul(_average(safe, _FALL, term), _c(16.0, x))
        if not scaled:
            made = prims.mul(made, TABLE["exp"](prims.neg(safe)))
        edge = prims.where(prims.equal(x, _c(0, x)), _c(math.inf, x), _c(math.nan, x))
        return prims.where(positive, made, edge)
    return rule


modified_bessel_k0 = _wide("modified_bessel_k0", _scaled_k(0, False))
modified_bessel_k1 = _wide("modified_bessel_k1", _scaled_k(1, False))
scaled_modified_bessel_k0 = _wide("scaled_modified_bessel_k0", _scaled_k(0, True))
scaled_modified_bessel_k1 = _wide("scaled_modified_bessel_k1", _scaled_k(1, True))


def _sinc(x: Node) -> Node:
    small = TABLE["lt"](TABLE["abs"](x), _c(1e-4, x))
    safe = prims.where(small, _c(1, x), x)
    near = _poly(prims.mul(x, x), 1 / 120, -1 / 6, 1.0)
    far = prims.div(TABLE["sin"](safe), safe)
    made = prims.where(small, near, far)
    return prims.where(TABLE["isinf"](x), _c(0, x), made)


spherical_bessel_j0 = _wide("spherical_bessel_j0", _sinc)


# ------------------------------------------------------------------------ orthogonal polynomials

Step = Callable[[int, Node, Node, Node], Node]  # (k, x, p_k, p_(k-1)) -> p_(k+1)


def _two_x(k: int, x: Node, p: Node, q: Node) -> Node:
    return prims.sub(prims.mul(prims.mul(x, _c(2, x)), p), q)


def _scaled_step(a: float, b: float, x: Node, p: Node, q: Node) -> Node:
    return prims.sub(prims.mul(prims.mul(x, _c(a, x)), p), prims.mul(q, _c(b, q)))


def _legendre_step(k: int, x: Node, p: Node, q: Node) -> Node:
    return _scaled_step((2 * k + 1) / (k + 1), k / (k + 1), x, p, q)


def _laguerre_step(k: int, x: Node, p: Node, q: Node) -> Node:
    line = prims.sub(_c((2 * k + 1) / (k + 1), x), prims.mul(x, _c(1 / (k + 1), x)))
    return prims.sub(prims.mul(line, p), prims.mul(q, _c(k / (k + 1), q)))


# name -> (slope and constant of p_1, recurrence)
_POLYNOMIALS: dict[str, tuple[float, float, Step]] = {
    "chebyshev_polynomial_t": (1, 0, _two_x),
    "chebyshev_polynomial_u": (2, 0, _two_x),
    "chebyshev_polynomial_v": (2, -1, _two_x),
    "chebyshev_polynomial_w": (2, 1, _two_x),
    "hermite_polynomial_h": (2, 0, lambda k, x, p, q: _scaled_step(2, 2 * k, x, p, q)),
    "hermite_polynomial_he": (1, 0, lambda k, x, p, q: _scaled_step(1, k, x, p, q)),
    "laguerre_polynomial_l": (-1, 1, _laguerre_step),
    "legendre_polynomial_p": (1, 0, _legendre_step),
}


def _polynomial(name: str, shifted: bool) -> Callable[..., Tensor]:
    slope, offset, step = _POLYNOMIALS[name]

    def fn(input: Any, n: Any) -> Tensor:
        degree = int(n._value().array().max()) if isinstance(n, Tensor) and n.numel() else int(
            0 if isinstance(n, Tensor) else number(n, name))
        x, order = operands(f"special.{name}", (input, n), "float")
        order = TABLE["trunc"](order)
        if shifted:  # on [0, 1] instead of [-1, 1]
            x = prims.sub(prims.mul(x, _c(2, x)), _c(1, x))
        before, now = _c(1, x), prims.add(prims.mul(x, _c(slope, x)), _c(offset, x))
        made = prims.where(TABLE["lt"](order, _c(0, order)), _c(0, x), before)
        for k in range(1, degree + 1):
            made = prims.where(prims.equal(order, _c(k, order)), now, made)
            before, now = now, step(k, x, now, before)
        return wrap(made)
    fn.__name__ = fn.__qualname__ = ("shifted_" if shifted else "") + name
    fn.__doc__ = f"special.{fn.__name__}: of degree `n` at `input`. Computes n."
    return with_out(fn)


for _name in _POLYNOMIALS:
    globals()[_name] = _polynomial(_name, False)
    if _name.startswith("chebyshev"):
        globals()["shifted_" + _name] = _polynomial(_name, True)
PUBLIC["i0"] = i0
