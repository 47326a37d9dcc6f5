"""Tokens in, text out, as a reader should see it. Layer 7.

The one idea: text is held back while it may still change its meaning: the first bytes of a longer
character, or the first letters of a string at which the reply is to stop.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gossamer.chat.tokenizer import Tokenizer

__all__ = ["ReplyStream", "TextStream"]

_Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Token ids in, text out, never half a character, never a stop string.

    Args:
        tokenizer: of the model.
        stop: strings at which the text ends; they are not part of it.

    Attributes:
        stopped: whether a stop string was met; what is pushed later is ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = _Decoder("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""  # perhaps the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token (possibly none)."""
        return "" if self.stopped else self._certain(self._decoder.decode(self._bytes[token]))

    def rest(self) -> str:
        """What is still held back at the end of a reply."""
        if self.stopped:
            return ""
        text = self._certain(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _certain(self, new: str) -> str:
        text = self._held + new
        places = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[:min(places)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep:]
        return text[:len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class ReplyStream:
    """The tokens of a reply as pieces: its words, and the calls of the calculator in it.

    Args:
        tokenizer: of the model.
        stop: strings at which the words end.

    Attributes:
        stopped: whether a stop string was met.

    A piece is (kind, text): "text" for words, "call" for an expression that the model wrote for
    the calculator, "output" for the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._words = TextStream(tokenizer, stop)
        self._opened = {tokenizer.python_start: "call", tokenizer.output_start: "output"}
        self._closed = {tokenizer.python_end, tokenizer.output_end}
        self._inside: tuple[str, TextStream, list[str]] | None = None

    @property
    def stopped(self) -> bool:
        return self._words.stopped

    def push(self, token: int) -> list[tuple[str, str]]:
        """The pieces that became certain with this token."""
        if token in self._opened:
            before = self._close()
            self._inside = (self._opened[token], TextStream(self._tokenizer), [])
            return before
        if token in self._closed:
            return self._close()
        if self._inside is not None:
            _, stream, parts = self._inside
            parts.append(stream.push(token))
            return []
        return _piece("text", self._words.push(token))

    def rest(self) -> list[tuple[str, str]]:
        """What is still held back at the end."""
        return [*self._close(), *_piece("text", self._words.rest())]

    def _close(self) -> list[tuple[str, str]]:
        if self._inside is None:
            return []
        kind, stream, parts = self._inside
        self._inside = None
        return _piece(kind, "".join([*parts, stream.rest()]))


def _piece(kind: str, text: str) -> list[tuple[str, str]]:
    return [(kind, text)] if text else []
