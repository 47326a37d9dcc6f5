"""A calculator that a model may call in the middle of a reply. Layer 7.

The model writes `<|python_start|>12*34<|python_end|>`; the answer is put after it as
`<|output_start|>408<|output_end|>`, and the model goes on. Nothing is ever given to `eval`: a
parser of numbers, `+ - * / ( )` and `"text".count("t")` reads the whole language there is.

Source: nanochat's tool protocol; the parser is recursive descent, Aho et al. 2006, section 4.4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from gossamer.chat.tokenizer import Tokenizer

__all__ = ["Calculator", "calculate"]

LONGEST = 256  # characters of an expression
DEEPEST = 32  # parentheses and signs inside one another
LARGEST = 10**60  # numbers beyond it are not worth their digits
_PIECE = re.compile(r"""
    \s*(?: ([0-9]+(?:\.[0-9]*)?|\.[0-9]+) | ("[^"]*"|'[^']*') | (\.count\b) | ([-+*/()]) )
    """, re.VERBOSE)


class _Unreadable(ValueError):
    """The text is no expression of the language."""


def calculate(text: str) -> str | None:
    """The value of an expression, as text; None if it is not one, or has no value.

    Whole numbers are exact; others are rounded to 12 digits.

    >>> calculate("12 * (3 + 4)"), calculate("1/8"), calculate("'banana'.count('a')")
    ('84', '0.125', '3')
    >>> calculate("1/0"), calculate("__import__('os')")
    (None, None)
    """
    if len(text) > LONGEST:
        return None
    try:
        parser = _Parser(text)
        value = parser.sum(0)
        parser.end()
    except (_Unreadable, ZeroDivisionError):
        return None
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.12g}"


class _Parser:
    """Recursive descent: a sum of products of signed numbers, parentheses or counts."""

    def __init__(self, text: str) -> None:
        self.pieces: list[str] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _PIECE.match(text, at)
            if found is None:
                raise _Unreadable
            self.pieces.append(found.group(found.lastindex or 0))
            at = found.end()
        self.at = 0

    def peek(self) -> str:
        return self.pieces[self.at] if self.at < len(self.pieces) else ""

    def take(self, wanted: str = "") -> str:
        piece = self.peek()
        if not piece or (wanted and piece != wanted):
            raise _Unreadable
        self.at += 1
        return piece

    def end(self) -> None:
        if self.peek():
            raise _Unreadable

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _bounded(value + sign * self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while self.peek() in ("*", "/"):
            value = _bounded(value * self.factor(depth) if self.take() == "*"
                             else value / self.factor(depth))
        return value

    def factor(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise _Unreadable
        piece = self.take()
        if piece in ("-", "+"):
            value = self.factor(depth + 1)
            return -value if piece == "-" else value
        if piece == "(":
            value = self.sum(depth + 1)
            self.take(")")
            return value
        if piece[0] in "\"'":
            return self._count(piece[1:-1])
        if piece[0] not in "0123456789." or piece == ".count":
            raise _Unreadable
        return _bounded(Fraction(piece))

    def _count(self, text: str) -> Fraction:
        self.take(".count")
        self.take("(")
        what = self.take()
        self.take(")")
        if what[0] not in "\"'":
            raise _Unreadable
        return Fraction(text.count(what[1:-1]))


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > LARGEST or value.denominator > LARGEST:
        raise _Unreadable
    return value


class Calculator:
    """Watches the tokens of one reply; `follow` answers a finished call with tokens to force.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._inside: list[int] | None = None  # the expression so far

    def follow(self, token: int) -> Sequence[int]:
        """Tokens to force after `token`: a whole output, or none."""
        t = self._tokenizer
        if token == t.python_start:
            self._inside = []
        elif token == t.python_end:
            answer = calculate(t.decode(self._inside or []))
            self._inside = None
            if answer is not None:
                return [t.output_start, *t.encode(answer), t.output_end]
        elif self._inside is not None:
            self._inside.append(token)
        return ()
