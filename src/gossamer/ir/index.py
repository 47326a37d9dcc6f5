"""Symbolic index arithmetic: where an element comes from. Layer 0.

An `Index` is an integer in normal form, `c + sum(k * atom)`, where an atom is a loop variable, a
quotient or remainder of another Index, or an index read from memory. Movement operators are
functions on tuples of these, so that views vanish into the loops that read them. Ranges of atoms
are known, which is what simplifies `(4*i + j) // 4` with 0 <= j < 4 to `i`.

Source of the div/mod rules: Euclidean division; all divisors are positive, all quotients floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gossamer.core.traced import gcd

__all__ = ["Atom", "Condition", "Index", "Quotient", "Read", "Remainder", "Var", "const",
           "in_range", "is_var", "var"]


@dataclass(frozen=True)
class Var:
    """A loop variable: 0 <= value < extent."""

    name: str
    extent: int

    @property
    def low(self) -> int:
        return 0

    @property
    def high(self) -> int:
        return max(self.extent - 1, 0)


@dataclass(frozen=True)
class Quotient:
    """value // divisor, which no rule could simplify; value is not negative."""

    value: Index
    divisor: int

    @property
    def low(self) -> int:
        return self.value.low // self.divisor

    @property
    def high(self) -> int:
        return self.value.high // self.divisor


@dataclass(frozen=True)
class Remainder:
    """value % divisor, which no rule could simplify; value is not negative."""

    value: Index
    divisor: int

    @property
    def low(self) -> int:
        return 0

    @property
    def high(self) -> int:
        return self.divisor - 1


@dataclass(frozen=True)
class Read:
    """An index computed from data (an integer node at an index), known to lie in [0, extent)."""

    source: Any  # a Val; the code generator evaluates it
    index: tuple[Index, ...]  # where the source is read
    extent: int
    condition: Condition | None = None  # under which the source is read at all

    @property
    def low(self) -> int:
        return 0

    @property
    def high(self) -> int:
        return max(self.extent - 1, 0)

    def __hash__(self) -> int:
        return hash((id(self.source), self.index))

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Read) and self.source is other.source
                and self.index == other.index)

    def variables(self) -> Iterable[Var]:
        for i in self.index:
            yield from i.variables()
        if self.condition is not None:
            yield from self.condition.variables()


Atom = Var | Quotient | Remainder | Read


class Index:
    """c + sum(coefficient * atom), immutable, hashable, in normal form."""

    __slots__ = ("_hash", "constant", "high", "low", "terms")

    def __init__(self, constant: int, terms: dict[Atom, int]) -> None:
        self.constant = constant
        self.terms = terms
        low = high = constant
        for atom, k in terms.items():
            if k > 0:
                low += k * atom.low
                high += k * atom.high
            else:
                low += k * atom.high
                high += k * atom.low
        self.low = low
        self.high = high
        self._hash = hash((constant, frozenset(terms.items())))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Index) and self.constant == other.constant
                and self.terms == other.terms)

    def __add__(self, other: Index | int) -> Index:
        if not isinstance(other, Index):
            return Index(self.constant + other, self.terms) if other else self
        terms = dict(self.terms)
        for atom, k in other.terms.items():
            total = terms.get(atom, 0) + k
            if total:
                terms[atom] = total
            else:
                terms.pop(atom, None)
        return _recombine(Index(self.constant + other.constant, terms))

    __radd__ = __add__

    def __mul__(self, factor: int) -> Index:
        if factor == 1:
            return self
        if factor == 0:
            return const(0)
        return Index(self.constant * factor, {a: k * factor for a, k in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: Index | int) -> Index:
        return self + (-other)

    def __rsub__(self, other: int) -> Index:
        return -self + other

    def _split(self, divisor: int) -> tuple[Index, Index]:
        """(whole, rest): self = divisor * whole + rest, moving all divisible terms into whole."""
        whole = {a: k // divisor for a, k in self.terms.items() if k % divisor == 0}
        rest = {a: k for a, k in self.terms.items() if k % divisor}
        quotient, remainder = divmod(self.constant, divisor)
        return Index(quotient, whole), Index(remainder, rest)

    def _coarse(self, divisor: int) -> tuple[Index, Index, int] | None:
        """(big, small, grain): self = grain * big + small with 0 <= small < grain and grain a
        divisor of `divisor`: then small does not reach the quotient, nor big what it leaves."""
        for grain in sorted({gcd(k, divisor) for k in self.terms.values()}, reverse=True):
            big, small = self._split(grain)
            if 1 < grain < divisor and big.terms and 0 <= small.low and small.high < grain:
                return big, small, grain
        return None

    def _raised(self, divisor: int) -> tuple[Index, int]:
        """(self + up * divisor, up), not negative: machines round quotients towards zero."""
        if self.low >= 0:
            return self, 0
        up = -(self.low // divisor)
        return Index(self.constant + up * divisor, self.terms), up

    def __floordiv__(self, divisor: int) -> Index:
        if divisor == 1:
            return self
        whole, rest = self._split(divisor)
        if 0 <= rest.low and rest.high < divisor:
            return whole
        if not rest.terms:
            return whole + rest.constant // divisor
        coarse = rest._coarse(divisor)
        if coarse is not None:
            big, _, grain = coarse
            return whole + big // (divisor // grain)
        if rest.constant == 0 and len(rest.terms) == 1:
            (atom, k), = rest.terms.items()
            if k == 1 and isinstance(atom, Quotient):  # (x // a) // b = x // (a * b)
                return whole + atom.value // (atom.divisor * divisor)
        raised, up = rest._raised(divisor)
        return whole + Index(-up, {Quotient(raised, divisor): 1})

    def __mod__(self, divisor: int) -> Index:
        if divisor == 1:
            return const(0)
        _, rest = self._split(divisor)
        if 0 <= rest.low and rest.high < divisor:
            return rest
        if not rest.terms:
            return const(rest.constant % divisor)
        coarse = rest._coarse(divisor)
        if coarse is not None:
            big, small, grain = coarse
            return big % (divisor // grain) * grain + small
        return Index(0, {Remainder(rest._raised(divisor)[0], divisor): 1})

    def substitute(self, values: dict[Atom, Index]) -> Index:
        """Replace atoms (also inside quotients and remainders), and simplify again."""
        result = const(self.constant)
        for atom, k in self.terms.items():
            if atom in values:
                term = values[atom]
            elif isinstance(atom, Quotient):
                term = atom.value.substitute(values) // atom.divisor
            elif isinstance(atom, Remainder):
                term = atom.value.substitute(values) % atom.divisor
            elif isinstance(atom, Read):
                term = Index(0, {Read(atom.source, tuple(i.substitute(values) for i in atom.index),
                                      atom.extent): 1})
            else:
                term = Index(0, {atom: 1})
            result = result + term * k
        return result

    def variables(self) -> Iterable[Var]:
        """All loop variables, also inside other atoms."""
        for atom in self.terms:
            if isinstance(atom, Var):
                yield atom
            elif isinstance(atom, Read):
                yield from atom.variables()
            else:
                yield from atom.value.variables()

    def __repr__(self) -> str:
        def show(a: Atom) -> str:
            if isinstance(a, Var):
                return a.name
            if isinstance(a, Read):
                return f"read({', '.join(map(repr, a.index))})"
            return f"({a.value!r} {'//' if isinstance(a, Quotient) else '%'} {a.divisor})"

        parts = [show(a) if k == 1 else f"{k}*{show(a)}" for a, k in self.terms.items()]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts)


def _recombine(index: Index) -> Index:
    """Undo a split: k*d*(x // d) + k*(x % d) is k*x."""
    for atom, k in index.terms.items():
        if isinstance(atom, Remainder):
            whole = atom.value // atom.divisor
            if whole.constant == 0 and len(whole.terms) == 1:
                (partner, one), = whole.terms.items()
                if one == 1 and index.terms.get(partner) == k * atom.divisor:
                    rest = {a: c for a, c in index.terms.items() if a not in (atom, partner)}
                    return Index(index.constant, rest) + atom.value * k
    return index


def const(value: int) -> Index:
    """The integer `value` as an Index."""
    return Index(value, {})


def var(name: str, extent: int) -> Index:
    """A loop variable as an Index; one of extent 1 is the constant 0."""
    return Index(0, {Var(name, extent): 1}) if extent != 1 else const(0)


def is_var(index: Index, name: str) -> bool:
    """Whether an index is just the loop variable `name`."""
    return (index.constant == 0 and len(index.terms) == 1 and
            all(isinstance(a, Var) and a.name == name and k == 1 for a, k in index.terms.items()))


@dataclass(frozen=True)
class Condition:
    """All of `low <= index < high` for each (index, low, high) in `bounds`, and each
    `index % divisor == 0` in `multiples`."""

    bounds: tuple[tuple[Index, int, int], ...] = ()
    multiples: tuple[tuple[Index, int], ...] = ()

    def __and__(self, other: Condition | None) -> Condition:
        if other is None:
            return self
        return Condition(tuple(dict.fromkeys(self.bounds + other.bounds)),
                         tuple(dict.fromkeys(self.multiples + other.multiples)))

    @property
    def always(self) -> bool:
        return not self.bounds and not self.multiples

    def variables(self) -> Iterable[Var]:
        """All loop variables of its indices."""
        for index in (*(b[0] for b in self.bounds), *(m[0] for m in self.multiples)):
            yield from index.variables()

    def substitute(self, values: dict[Atom, Index]) -> Condition:
        bounds = ((i.substitute(values), low, high) for i, low, high in self.bounds)
        return Condition(
            tuple(b for b in bounds if not (b[1] <= b[0].low and b[0].high < b[2])),
            tuple((i.substitute(values), d) for i, d in self.multiples))


def in_range(index: Index, low: int, high: int) -> Condition | None:
    """`low <= index < high`, or None if that always holds."""
    if low <= index.low and index.high < high:
        return None
    return Condition(bounds=((index, low, high),))
