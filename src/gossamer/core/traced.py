"""Integers that remember how they were computed and what was decided by them. Layer 0.

The one idea: run code that was written for integers once with `Traced` numbers in place of some of
them. Arithmetic writes lines of a program, comparisons become its guards. The program, called with
other integers, gives what the code would have given for them, or None where it would have decided
otherwise. What cannot be written down (an index, a text, a float made of it) raises Untraceable, so
that no decision goes unnoticed.

Source: concolic execution (Godefroid, Klarlund, Sen: "DART", PLDI 2005); JAX's and PyTorch's
symbolic sizes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Text", "Trace", "Traced", "Untraceable", "gcd", "is_traced", "largest_divisor",
           "pinned", "text_of", "traceable"]

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
    "%": operator.mod, "/": operator.truediv, "&": operator.and_}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_UNCHANGED_BY_ONE = frozenset({"*", "//"})
_REFLEXIVE = frozenset({"==", "<=", ">="})


class Untraceable(Exception):
    """A traced number was needed as what it is now."""


class Trace:
    """A program in the making.

    Numbers that a dictionary tells apart by their hashes are never compared: that they stay apart,
    among themselves and from `others`, is one guard at the end.

    Args:
        values: what the symbols are now.
        others: plain numbers that the code meets.

    Attributes:
        symbols: the numbers that everything traced is computed from.
        hashed: by name, the numbers that were keys.
    """

    def __init__(self, values: Sequence[int], others: Iterable[int] = ()) -> None:
        self.hashed: dict[str, Traced] = {}
        self._others = set(others)
        self._known: dict[tuple[object, ...], Traced] = {}
        self._functions: dict[str, Callable[..., int]] = {}
        self._decided: set[str] = set()
        # (name or "" of a guard, text, names that it reads), in order
        self._lines: list[tuple[str, str, tuple[str, ...]]] = []
        self.symbols = [Traced(self, value, f"s{i}") for i, value in enumerate(values)]

    def apply(self, sign: str, a: Any, b: Any) -> Any:
        """`a sign b`, written down once; a plain number where it does not depend on the traced."""
        if sign in "+*" and is_traced(b) and (not is_traced(a) or b.name < a.name):
            a, b = b, a
        if b.__class__ is int and _now(a).__class__ is int:
            if b == 0 and sign in "+-" or b == 1 and sign in _UNCHANGED_BY_ONE:
                return a
            if b == 0 and sign == "*":
                return 0
        if a is b and sign == "-" and a.value.__class__ is int:
            return 0
        key = sign, _key(a), _key(b)
        made = self._known.get(key)
        if made is None:
            made = Traced(self, _ARITHMETIC[sign](_now(a), _now(b)), f"t{len(self._known)}")
            self._known[key] = made
            self._lines.append((made.name, f"{_text(a)} {sign} {_text(b)}", _names(a, b)))
        return made

    def call(self, function: Callable[..., int], numbers: Sequence[Any]) -> Any:
        """A pure function of numbers, written down once."""
        key = (function.__name__, *map(_key, numbers))
        made = self._known.get(key)
        if made is None:
            made = Traced(self, function(*map(_now, numbers)), f"t{len(self._known)}")
            self._known[key] = made
            self._functions[function.__name__] = function
            text = f"{function.__name__}({', '.join(map(_text, numbers))})"
            self._lines.append((made.name, text, _names(*numbers)))
        return made

    def decide(self, sign: str, a: Any, b: Any) -> bool:
        """Whether `a sign b` now; a guard that it stays so."""
        if a is b:
            return sign in _REFLEXIVE
        holds = _COMPARISONS[sign](_now(a), _now(b))
        text = f"{_text(a)} {_OPPOSITE[sign] if holds else sign} {_text(b)}"
        if text not in self._decided:
            self._decided.add(text)
            self._lines.append(("", text, _names(a, b)))
        return holds

    def program(self, results: Sequence[Any]) -> Callable[..., tuple[Any, ...] | None]:
        """A function from the symbols to `results`, None where a decision would differ.

        Args:
            results: traced numbers, and numbers that stay what they are.
        """
        needed = {*_names(*results), *self.hashed}
        apart = len({*self._others, *(t.value for t in self.hashed.values())})
        keys = ", ".join([*self.hashed, *map(repr, self._others)])
        lines = [f"    if len({{{keys}}}) != {apart}: return None"] if self.hashed else []
        for name, text, reads in reversed(self._lines):
            if name and name not in needed:
                continue
            needed.update(reads)
            lines.append(f"    {name} = {text}" if name else f"    if {text}: return None")
        head = f"def program({', '.join(s.name for s in self.symbols)}):"
        tail = f"    return ({''.join(f'{_text(r)}, ' for r in results)})"
        scope: dict[str, Any] = dict(self._functions)
        exec("\n".join([head, *reversed(lines), tail]), scope)  # our own text, of numbers only
        made: Callable[..., tuple[Any, ...] | None] = scope["program"]
        return made


@dataclass(frozen=True)
class Text:
    """A text with numbers in it, to be written when they are known."""

    template: str
    numbers: tuple[Any, ...]


def text_of(template: str, *numbers: Any) -> Any:
    """`template.format(*numbers)`; a Text if one of them is traced."""
    if any(is_traced(x) for x in numbers):
        return Text(template, numbers)
    return template.format(*numbers)


def is_traced(x: Any) -> bool:
    """Whether a number is one of a trace."""
    return x.__class__ is Traced


def pinned(x: Any) -> Any:
    """What a number is now, as a plain one; a guard that it stays so, if it is traced."""
    if not is_traced(x):
        return x
    x.trace.decide("==", x, x.value)
    return x.value


def _now(x: Any) -> Any:
    return x.value if is_traced(x) else x


def _text(x: Any) -> str:
    return x.name if is_traced(x) else repr(x)


def _key(x: Any) -> object:
    return x.name if is_traced(x) else (x.__class__, x)


def _names(*numbers: Any) -> tuple[str, ...]:
    return tuple([x.name for x in numbers if is_traced(x)])


def _left(sign: str) -> Callable[[Traced, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if other.__class__ not in _NUMBERS:
            return NotImplemented
        return self.trace.apply(sign, self, other)
    return method


def _right(sign: str) -> Callable[[Traced, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if other.__class__ not in _NUMBERS:
            return NotImplemented
        return self.trace.apply(sign, other, self)
    return method


def _compared(sign: str) -> Callable[[Traced, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if other.__class__ not in _NUMBERS:
            return NotImplemented
        return self.trace.decide(sign, self, other)
    return method


class Traced:
    """A number of a trace; `value` is what it is now. Not an int: nothing takes it for one."""

    __slots__ = ("name", "trace", "value")

    def __init__(self, trace: Trace, value: Any, name: str) -> None:
        self.trace = trace
        self.value = value
        self.name = name

    __add__, __radd__ = _left("+"), _right("+")
    __sub__, __rsub__ = _left("-"), _right("-")
    __mul__, __rmul__ = _left("*"), _right("*")
    __floordiv__, __rfloordiv__ = _left("//"), _right("//")
    __mod__, __rmod__ = _left("%"), _right("%")
    __truediv__, __rtruediv__ = _left("/"), _right("/")
    __and__, __rand__ = _left("&"), _right("&")
    __lt__, __le__, __gt__, __ge__ = map(_compared, ("<", "<=", ">", ">="))
    __eq__ = _compared("==")
    __ne__ = _compared("!=")

    def __hash__(self) -> int:
        self.trace.hashed[self.name] = self  # equal ones are then compared, which is a guard
        return hash(self.value)

    def __neg__(self) -> Traced:
        return self.trace.apply("-", 0, self)

    def __abs__(self) -> Traced:
        return self if self >= 0 else -self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __bool__(self) -> bool:
        return self.trace.decide("!=", self, 0)

    def _untraceable(self, *_: Any) -> Any:
        raise Untraceable(f"a number that stands for many, {self.value} now, is needed as it is")

    __index__ = __int__ = __float__ = __str__ = __repr__ = __format__ = _untraceable
    __reduce_ex__ = _untraceable


_NUMBERS = frozenset({int, float, bool, Traced})


def traceable(function: Callable[..., int]) -> Callable[..., Any]:
    """A pure function of integers, also of traced ones, for which it is one step of the program."""
    @functools.wraps(function)
    def either(*numbers: Any) -> Any:
        for x in numbers:
            if is_traced(x):
                return x.trace.call(function, numbers)
        return function(*numbers)
    return either


gcd = traceable(math.gcd)


@traceable
def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n, at least 1, that is at most `most`."""
    return next((d for d in range(min(n, most), 1, -1) if n % d == 0), 1)
