"""One turn of a conversation, and the pieces it may be made of. Layer 7.

Most turns are plain text. A reply that calls the calculator has pieces: "text" for words, "call"
for the expression the model writes, "output" for the answer it is handed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypedDict

__all__ = ["Content", "Message", "Piece", "joined", "pieces_of", "shown", "words_of"]

Piece = tuple[str, str]  # (kind, text)
Content = str | tuple[Piece, ...]


class Message(TypedDict):
    """One turn: `role` is "user" or "assistant"."""

    role: str
    content: Content


def pieces_of(content: Content) -> Sequence[Piece]:
    """The pieces of a turn; plain text is one.

    >>> pieces_of("hi")
    (('text', 'hi'),)
    """
    return (("text", content),) if isinstance(content, str) else content


def joined(pieces: Iterable[Piece]) -> Content:
    """A turn of pieces that came bit by bit: neighbours of one kind are one, only text is a str.

    >>> joined([("text", "It "), ("text", "is 42.")])
    'It is 42.'
    """
    whole = tuple((kind, "".join(text for _, text in run))
                  for kind, run in groupby(pieces, key=lambda piece: piece[0]))
    return words_of(whole) if all(kind == "text" for kind, _ in whole) else whole


def shown(piece: Piece) -> str:
    """A piece as a person reads it.

    >>> "".join(map(shown, (("call", "6*7"), ("output", "42"), ("text", " => 42"))))
    '[6*7] = 42 => 42'
    """
    kind, text = piece
    return {"call": f"[{text}]", "output": f" = {text}"}.get(kind, text)


def words_of(content: Content) -> str:
    """What a reader is told: the words without calls and outputs.

    >>> words_of((("call", "6*7"), ("output", "42"), ("text", "It is 42.")))
    'It is 42.'
    """
    return "".join(text for kind, text in pieces_of(content) if kind == "text")
