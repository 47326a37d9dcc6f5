"""Derives the polynomial coefficients of `gossamer.compile.vecmath` (Remez exchange, mpmath).

    python tools/minimax.py > src/gossamer/compile/vecmath_tables.py      # a few minutes
    python tools/minimax.py EXP32 SIN64                                   # only some, with errors

The one idea: f(x) - fixed(x) is approximated by sum c_k x^k over given powers k so that the
largest error relative to `weight` is minimal (Remez: the error alternates between points of
extreme error). Coefficients are then rounded to the target format one after the other, lowest
power first, and those after it are fitted again, so that rounding costs almost nothing.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 120
Real = Callable[[mp.mpf], mp.mpf]
GRID = 60  # points of the search grid for each coefficient


@dataclass(frozen=True)
class Fit:
    """f(x) = fixed(x) + sum over `powers` of c_k x^k on [lo, hi], relative to `weight`."""

    name: str
    formula: str
    f: Real
    fixed: Real
    powers: Sequence[int]
    lo: mp.mpf
    hi: mp.mpf
    weight: Real
    bits: int  # 24 or 53


def round_to(x: mp.mpf, bits: int) -> mp.mpf:
    if bits == 53:
        return mp.mpf(float(x))
    # Through double: double rounding moves a coefficient by 2^-53 of itself at most.
    return mp.mpf(struct.unpack("<f", struct.pack("<f", float(x)))[0])


def solve(points: list[int], basis: list[list[mp.mpf]], target: list[mp.mpf],
          weight: list[mp.mpf]) -> list[mp.mpf]:
    """Coefficients and levelled error: equal errors of alternating sign at `points`."""
    m = len(points)
    a, b = mp.matrix(m, m), mp.matrix(m, 1)
    for i, p in enumerate(points):
        for j in range(m - 1):
            a[i, j] = basis[p][j] / weight[p]
        a[i, m - 1] = (-1) ** i
        b[i] = target[p] / weight[p]
    return list(mp.lu_solve(a, b))


def extremes(error: list[mp.mpf], count: int) -> list[int]:
    """Positions of `count` alternating extremes of `error`: one for each run of equal sign."""
    picks: list[int] = []
    for i, e in enumerate(error):
        if picks and (error[picks[-1]] > 0) == (e > 0):
            if abs(e) > abs(error[picks[-1]]):
                picks[-1] = i
        else:
            picks.append(i)
    while len(picks) > count:  # drop the weaker end
        picks.pop(0 if abs(error[picks[0]]) < abs(error[picks[-1]]) else -1)
    return picks


def remez(basis: list[list[mp.mpf]], target: list[mp.mpf], weight: list[mp.mpf],
          start: list[mp.mpf]) -> list[mp.mpf]:
    """Minimax coefficients on the grid; `start` if nothing better is found.

    Once some coefficients are rounded the exchange need not converge (the error of those can stand
    out at a point where the others vanish), so the best of all steps is kept.
    """
    def worst(c: list[mp.mpf]) -> tuple[mp.mpf, list[mp.mpf]]:
        error = [(t - mp.fdot(c, row)) / w
                 for t, row, w in zip(target, basis, weight, strict=True)]
        return max(abs(e) for e in error), error

    n, m = len(target), len(basis[0])
    points = [int((n - 1) * (1 - mp.cos(mp.pi * i / m)) / 2) for i in range(m + 1)]
    best, least = start, worst(start)[0] if start else mp.inf
    for _ in range(12):
        *c, level = solve(points, basis, target, weight)
        largest, error = worst(c)
        if largest < least:
            best, least = c, largest
        points = extremes(error, m + 1)
        if len(points) < m + 1 or least < abs(level) * mp.mpf("1.01"):
            break
    return best


def fit(spec: Fit) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients of `spec`, rounded, in the order of `powers`; and their largest error."""
    n = GRID * (len(spec.powers) + 1)
    middle, radius = (spec.lo + spec.hi) / 2, (spec.hi - spec.lo) / 2
    # Chebyshev points: never an end of the interval, and never the middle (n is even).
    xs = [middle - radius * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    target = [spec.f(x) - spec.fixed(x) for x in xs]
    weight = [abs(spec.weight(x)) for x in xs]
    powers, result, c = list(spec.powers), [], []
    while powers:
        basis = [[x ** k for k in powers] for x in xs]
        c = remez(basis, target, weight, c[1:])
        first = round_to(c[0], spec.bits)
        result.append(first)
        target = [t - first * row[0] for t, row in zip(target, basis, strict=True)]
        powers.pop(0)
    return result, max(abs(t / w) for t, w in zip(target, weight, strict=True))


def _zero(x: mp.mpf) -> mp.mpf:
    return mp.mpf(0)


def _odd(name: str, formula: str, f: Real, terms: int, lo: float | mp.mpf, hi: mp.mpf,
         bits: int) -> Fit:
    """f(x) = x + x^3 P(x^2), relative to f."""
    return Fit(name, formula, f, lambda x: x, range(3, 3 + 2 * terms, 2), mp.mpf(lo), hi, f, bits)


def _erfcx(x: mp.mpf) -> mp.mpf:
    return mp.exp(x * x) * mp.erfc(x)


def _normal_tail(a: mp.mpf) -> mp.mpf:
    """Phi(-a) / e^(-a^2/2), Phi the normal distribution function."""
    return _erfcx(a / mp.sqrt(2)) / 2


# 2 ln(2) with 16 bits: its products with integers below 2^8 are exact in float32.
LN4 = mp.mpf(45426) / 32768


def _eta_factor(a: mp.mpf) -> mp.mpf:
    """What e^(-a^2/2) loses where LN4 stands for 2 ln(2)."""
    return mp.exp((2 * mp.log(2) / LN4 - 1) * a * a / 2)


def _from_u(u: mp.mpf) -> mp.mpf:
    """x of u = (x - 2) / (x + 2)."""
    return 2 * (1 + u) / (1 - u)


def _erfinv_of_w(w: mp.mpf) -> mp.mpf:
    """erfinv(x) / x where w = -log(1 - x^2)."""
    x = mp.sqrt(-mp.expm1(-w))
    if w < 30:
        return mp.erfinv(x) / x
    # 1 - x = (1 - x^2) / (1 + x), solved for erfc in logarithms by Newton's method.
    goal = -w - mp.log(1 + x)
    y = mp.sqrt(w)
    for _ in range(60):
        y += (mp.log(mp.erfc(y)) - goal) * mp.erfc(y) * mp.sqrt(mp.pi) / 2 * mp.exp(y * y)
    return y / x


def _erfinv(name: str, formula: str, w_of: Real, base: int, terms: int, lo: mp.mpf, hi: mp.mpf,
            bits: int) -> Fit:
    """erfinv(x) / x = base + P(v), w = w_of(v)."""
    def f(v: mp.mpf) -> mp.mpf:
        return _erfinv_of_w(w_of(v))

    return Fit(name, "erfinv(x) = " + formula, f, lambda v: mp.mpf(base), range(terms), lo, hi, f,
               bits)


def _normal_specs() -> list[Fit | Pieces]:
    """The tail of the normal distribution: gelu and its derivative."""
    return [
        Fit("GELU_EXP_32", "exp(-(1 + eta)/2 x) = 1 + x P(x), 1 + eta = 2 log(2) / GELU_LN4",
            lambda x: mp.exp(-mp.log(2) / LN4 * x), lambda x: mp.mpf(1), range(1, 7),
            -LN4 / 2 * mp.mpf("1.0001"), LN4 / 2 * mp.mpf("1.0001"),
            lambda x: mp.exp(-mp.log(2) / LN4 * x), 24),
        Pieces("GELU_PIECES", "exp((1 + eta)/2 a^2) a Phi(-a) = f(c) + t Q(t), t = a - c: rows c, "
               "f(c), Q;\n# pieces: quarters of octaves of 1.5 + 1.5 a, that from 2 on first",
               lambda a: a * _normal_tail(a) * _eta_factor(a), _quarter_octaves(), 6, True),
        Pieces("GELU_SLOPE_PIECES", "exp((1 + eta)/2 a^2) (Phi(-a) - a phi(a)), as GELU_PIECES",
               lambda a: (_normal_tail(a) - a / mp.sqrt(2 * mp.pi)) * _eta_factor(a),
               _quarter_octaves(), 5, False, lambda a: _normal_tail(a) + a / mp.sqrt(2 * mp.pi)),
        Fit("GELU_TAIL_32", "exp((1 + eta)/2 a^2) Phi(-a) = P(u), u = (a - 2)/(a + 2)",
            lambda u: _normal_tail(_from_u(u)) * _eta_factor(_from_u(u)), _zero, range(13),
            mp.mpf(-1), mp.mpf(13) / 17, lambda u: _normal_tail(_from_u(u)), 24),
    ]


def specs() -> list[Fit | Pieces]:
    """Every approximation of vecmath."""
    half_ln2 = mp.log(2) / 2 * mp.mpf("1.0001")
    low, high = mp.sqrt(0.5) - 1, mp.sqrt(2) - 1
    quarter = mp.pi / 4 * mp.mpf("1.005")  # the quadrant is found with a rounding error
    all_of: list[Fit | Pieces] = []
    for bits, top, sin_terms, cos_terms, asin_terms, atan_terms in (
            (24, 7, 3, 3, 5, 8), (53, 12, 6, 6, 13, 20)):
        n = 32 if bits == 24 else 64
        all_of += [
            Fit(f"EXPM1_{n}", "exp(r) - 1 = r + r^2 P(r)", mp.expm1, lambda r: r,
                range(2, top + 1), -half_ln2, half_ln2, mp.expm1, bits),
            _odd(f"SIN_{n}", "sin(r) = r + r^3 P(r^2)", mp.sin, sin_terms, 0, quarter, bits),
            Fit(f"COS_{n}", "cos(r) = 1 - r^2/2 + r^4 P(r^2)", mp.cos, lambda r: 1 - r * r / 2,
                range(4, 4 + 2 * cos_terms, 2), mp.mpf(0), quarter, mp.cos, bits),
            _odd(f"ASIN_{n}", "asin(x) = x + x^3 P(x^2)", mp.asin, asin_terms, 0, mp.mpf(0.5),
                 bits),
            _odd(f"ATAN_{n}", "atan(x) = x + x^3 P(x^2)", mp.atan, atan_terms, 0, mp.mpf(1), bits),
        ]
    all_of += [
        _odd("TAN_32", "tan(r) = r + r^3 P(r^2)", mp.tan, 7, 0, quarter, 24),
        Fit("LOG_32", "log(1 + f) = f - f^2/2 + f^3 P(f)", mp.log1p, lambda f: f - f * f / 2,
            range(3, 12), low, high, mp.log1p, 24),
        Fit("EXP_32", "exp(r) = 1 + r + r^2 P(r)", mp.exp, lambda r: 1 + r, range(2, 7),
            -half_ln2, half_ln2, mp.exp, 24),
        Fit("EXP2_32", "2^r = 1 + r P(r)", lambda r: mp.mpf(2) ** r, lambda r: mp.mpf(1),
            range(1, 7), mp.mpf(-0.5), mp.mpf(0.5), lambda r: mp.mpf(2) ** r, 24),
        Fit("LOG_64", "log((1 + s)/(1 - s)) = 2 s + s^3 P(s^2)",
            lambda s: 2 * mp.atanh(s), lambda s: 2 * s, range(3, 17, 2), mp.mpf(0),
            3 - 2 * mp.sqrt(2), mp.atanh, 53),
        Fit("POW_64", "log((1 + s)/(1 - s)) = 2 s + (2/3) s^3 + s^5 P(s^2)",
            lambda s: 2 * mp.atanh(s), lambda s: 2 * s + 2 * s ** 3 / 3, range(5, 19, 2),
            mp.mpf(0), 3 - 2 * mp.sqrt(2), mp.atanh, 53),
        Fit("POW_36", "log((1 + s)/(1 - s)) = 2 s + s^3 P(s^2)",
            lambda s: 2 * mp.atanh(s), lambda s: 2 * s, range(3, 11, 2), mp.mpf(0),
            3 - 2 * mp.sqrt(2), mp.atanh, 53),
        Fit("EXPM1_36", "exp(r) - 1 = r + r^2 P(r)", mp.expm1, lambda r: r, range(2, 8),
            -half_ln2, half_ln2, mp.exp, 53),
        Fit("ERF_32", "erf(x) = x + x P(x^2)", mp.erf, lambda x: x, range(1, 15, 2), mp.mpf(0),
            mp.mpf(1), mp.erf, 24),
        Fit("ERF_TAIL_32", "log(erfc(x)) = P(x), weighed by what it adds to erf",
            lambda x: mp.log(mp.erfc(x)), _zero, range(7), mp.mpf(1), mp.mpf("4"),
            lambda x: 1 / mp.erfc(x), 24),
        Fit("ERF_64", "erf(x) = x + x P(x^2)", mp.erf, lambda x: x, range(1, 27, 2), mp.mpf(0),
            mp.mpf(1), mp.erf, 53),
        Fit("ERFCX_64", "(1 + 2 x) exp(x^2) erfc(x) = P(u), u = (x - 2)/(x + 2)",
            lambda u: (1 + 2 * _from_u(u)) * _erfcx(_from_u(u)), _zero, range(26),
            mp.mpf(-1), mp.mpf(28 - 2) / mp.mpf(28 + 2),
            lambda u: (1 + 2 * _from_u(u)) * _erfcx(_from_u(u)), 53),
        _erfinv("ERFINV_32", "x + x P(w - 2.5), w = -log(1 - x^2) < 5", lambda v: v + 2.5,
                1, 10, mp.mpf("-2.4999999"), mp.mpf(2.5), 24),
        _erfinv("ERFINV_TAIL_32", "3 x + x P(sqrt(w) - 3), 5 <= w < 16", lambda v: (v + 3) ** 2,
                3, 10, mp.sqrt(5) - 3, mp.mpf(1), 24),
        _erfinv("ERFINV_TAIL_64", "3 x + x P(sqrt(w) - 3), 5 <= w < 37", lambda v: (v + 3) ** 2,
                3, 11, mp.sqrt(5) - 3, mp.mpf("3.1"), 53),
        Pieces("ERF_PIECES", "erf(x) / x = f(c) + t Q(t), t = x - c: rows c, f(c), then Q",
               lambda x: mp.erf(x) / x, _equal_pieces(mp.mpf(4), 16), 5),
        *_normal_specs(),
    ]
    return all_of


@dataclass(frozen=True)
class Pieces:
    """f(x) = f(c) + t Q(t), t = x - c, on pieces (low, middle, high), all of one degree.

    A piece has its c near its middle, where f(c) is almost a float32 (S. Gal, Computing elementary
    functions: a new approach for achieving high accuracy and good performance, 1985).
    """

    name: str
    formula: str
    f: Real
    pieces: list[tuple[mp.mpf, mp.mpf, mp.mpf]]
    degree: int
    from_zero: bool = False  # f(0) = 0, which is the centre of the piece that starts there
    weight: Real | None = None  # relative to it; by default to f

    def rows(self) -> tuple[list[list[mp.mpf]], mp.mpf]:
        """For each piece c, f(c), then Q's coefficients; and the largest relative error."""
        found, worst = [], mp.mpf(0)
        for low, middle, high in self.pieces:
            step = 2 * (high - middle)
            at_zero = self.from_zero and low == 0
            c, exact = (low, low) if at_zero else self._centre(middle, step)
            exactly, edge = exact if at_zero else self.f(c), mp.mpf(0) if at_zero else step / 16

            def slope(t: mp.mpf, c: mp.mpf = c, start: mp.mpf = exactly) -> mp.mpf:
                return (self.f(c + t) - start) / t

            def weight(t: mp.mpf, c: mp.mpf = c, edge: mp.mpf = edge) -> mp.mpf:
                return (self.weight or self.f)(c + t) / (abs(t) + edge)  # finite at t = 0

            coefficients, error = fit(Fit("", "", slope, _zero, range(self.degree), low - c,
                                          high - c, weight, 24))
            found.append([c, exact, *coefficients])
            worst = max(worst, error)
        return found, worst

    def _centre(self, middle: mp.mpf, step: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        """The float32 c next to `middle` with f(c) within 2^-31 of a float32; and that one."""
        for k in range(1, 1 << 12):
            c = round_to(middle + step * k * mp.mpf("1e-5"), 24)
            exact = round_to(self.f(c), 24)
            if abs(exact / self.f(c) - 1) < mp.mpf(2) ** -31:
                return c, exact
        raise ValueError(f"{self.name}: no centre near {middle}")


def _equal_pieces(hi: mp.mpf, count: int) -> list[tuple[mp.mpf, mp.mpf, mp.mpf]]:
    """[0, hi] in `count` pieces around multiples of a step, the first one half as long."""
    step, half = hi / (count - mp.mpf("0.5")), mp.mpf("0.5")
    return [(max(i - half, mp.mpf(0)) * step, i * step, (i + half) * step) for i in range(count)]


def _quarter_octaves() -> list[tuple[mp.mpf, mp.mpf, mp.mpf]]:
    """[0, 15] in the quarters of octaves of v = 1.5 + 1.5 x, 1.5 <= v < 24, ordered by the bits 24
    to 21 of v as a float32: from 2 on, those below 2 last."""
    ends = [mp.mpf(2) ** o * (4 + q) / 4 for o in range(1, 5) for q in range(4)][:15]
    ends = [v / mp.mpf("1.5") - 1 for v in (mp.mpf("1.5"), mp.mpf("1.75"), *ends)]
    pieces = [(lo, (lo + hi) / 2, hi) for lo, hi in zip(ends[:-1], ends[1:], strict=True)]
    return pieces[2:] + pieces[:2]


HEAD = '''"""Coefficients of the approximations in `vecmath_*`, by tools/minimax.py. Layer 2.

Minimax polynomials (Remez exchange, computed with 120 digits), lowest power first. The comment
of each gives its formula, its interval and its largest relative error as a power of two, with the
coefficients rounded as they stand here and the arithmetic exact.
"""

from __future__ import annotations
'''


def pieces_table(spec: Pieces) -> str:
    rows, worst = spec.rows()
    hi = max(high for _, _, high in spec.pieces)
    text = [f"# {spec.formula}; [0, {mp.nstr(hi, 5)}] in {len(spec.pieces)} pieces; "
            f"2^{mp.nstr(mp.log(worst, 2), 4)}", f"{spec.name} = ("]
    for column in zip(*rows, strict=True):
        numbers = [f"{float(x):.9g}" for x in column]
        lines = [", ".join(numbers[i:i + 4]) for i in range(0, len(numbers), 4)]
        text.append("    (" + ",\n     ".join(lines) + "),")
    return "\n".join([*text, ")"])


def table(spec: Fit | Pieces) -> str:
    if isinstance(spec, Pieces):
        return pieces_table(spec)
    coefficients, worst = fit(spec)
    log2 = mp.log(worst, 2)
    text = [f"# {spec.formula}; [{mp.nstr(spec.lo, 5)}, {mp.nstr(spec.hi, 5)}]; "
            f"2^{mp.nstr(log2, 4)}", f"{spec.name} = ("]
    digits = 9 if spec.bits == 24 else 17
    return "\n".join([*text, *(f"    {float(c):.{digits}g}," for c in coefficients), ")"])


def main(names: list[str]) -> None:
    chosen = [s for s in specs() if not names or s.name in names]
    tables = []
    for spec in chosen:
        print(spec.name, file=sys.stderr, flush=True)
        tables.append(table(spec))
    head = "" if names else HEAD + "\n"
    print(head + "\n\n".join(tables))


if __name__ == "__main__":
    main(sys.argv[1:])
