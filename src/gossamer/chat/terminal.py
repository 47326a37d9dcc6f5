"""Talk to a model in the terminal. Layer 7.

The reply streams as it is decoded; characters of several bytes appear when they are whole. The
conversation is kept while it fits the context; then its oldest turns are left out, and it says so.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from gossamer.chat.calculator import Calculator
from gossamer.chat.engine import Engine, Request, Sampling
from gossamer.chat.interrupt import Terminated
from gossamer.chat.message import Message, Piece, joined, pieces_of, shown, words_of
from gossamer.chat.room import newest_turns
from gossamer.chat.text import ReplyStream
from gossamer.chat.tokenizer import Tokenizer

__all__ = ["ChatSession", "run_chat", "visible", "wrap_words"]

_BOT = "bot > "
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
HELP = """/edit [TEXT]    ask TEXT instead of your last message; without it, edit the message
/regenerate     another answer to your last message
/temperature N  0 = always the likeliest word (default), up to 2 = wild
/history        the conversation so far
/clear          forget the conversation
/help           this list
/quit           leave (also Ctrl-D)"""


@dataclass
class ChatSession:
    """A conversation with one model.

    Args:
        engine: decodes a trained GPT.
        tokenizer: its tokenizer.
        temperature: of the sampling; 0 takes the likeliest token.
        seed: of the sampling; it grows by one a reply.
    """

    engine: Engine
    tokenizer: Tokenizer
    temperature: float = 0.0
    seed: int = 0
    messages: list[Message] = field(default_factory=list)
    dropped: int = field(default=0, init=False)  # turns left out of the last prompt

    def reply(self, text: str) -> Iterator[str]:
        """Stream the reply to one user turn and remember both.

        Raises:
            ValueError: the turn alone is longer than the context; nothing is remembered.
        """
        turn: Message = {"role": "user", "content": text}
        request = self._request(turn)
        stream, said = ReplyStream(self.tokenizer), list[Piece]()
        self.seed += 1
        try:
            tokens = self.engine.generate(request)
            for pieces in chain((stream.push(token.id) for token in tokens), [stream.rest()]):
                said += pieces
                yield "".join(map(shown, pieces))
        finally:  # also when the caller stops early: what was shown was said
            # Both in one step, so that no interruption leaves a turn without its reply.
            self.messages += [turn, {"role": "assistant", "content": joined(said)}]

    def _request(self, turn: Message) -> Request:
        """What the engine is asked: the newest turns that leave room for a reply, and this one."""
        context = self.engine.context
        ids, dropped = newest_turns(self.tokenizer, [*self.messages, turn], context)
        if len(ids) >= context:
            raise ValueError(f"the message has {len(ids)} tokens; this model reads at most "
                             f"{context - 1}. Ask something shorter.")
        self.dropped = dropped
        return Request(
            ids, sampling=Sampling(self.temperature, seed=self.seed),
            stop=(self.tokenizer.assistant_end, self.tokenizer.bos),
            follow=Calculator(self.tokenizer).follow)

    def clear(self) -> None:
        """Forget the conversation."""
        self.messages.clear()

    def last_asked(self) -> str:
        """The words of the last user turn; empty if nothing was said."""
        return words_of(self.messages[-2]["content"]) if self.messages else ""

    def take_back(self) -> None:
        """Forget the last user turn and its reply."""
        del self.messages[-2:]


def read_shown(prompt: str) -> str:
    """`input`, whose line is shown also where no terminal does so: what is piped in reads as typed.

    Raises:
        EOFError: no line is left.
    """
    line = input(prompt)
    if not sys.stdin.isatty():
        print(line)
    return line


def run_chat(
    session: ChatSession, console: Console, read_line: Callable[[str], str] = read_shown,
) -> None:
    """Read lines and answer them until /quit, Ctrl-D or Ctrl-C at the prompt.

    Args:
        read_line: shows a prompt and returns a line; raises EOFError at the end.
    """
    if sys.stdin.isatty():
        _edit_lines()
    _say(console, "Ask me something, for example: How many r are in strawberry?   (/help)")
    while True:
        _say(console, "")
        try:
            line = read_line("you > ").strip()
        except Terminated:
            raise
        except (EOFError, KeyboardInterrupt):
            _say(console, "")
            return
        except UnicodeDecodeError:
            _say(console, "That line is not text in UTF-8; please type it again.")
            continue
        if not line:
            continue
        if line.startswith("/"):
            if not _command(session, console, line, read_line):
                return
            continue
        _answer(session, console, line)


def _edit_lines() -> Any:
    """Arrow keys and the history of lines for `input`, which has them once `readline` is imported.

    Not at the head of the file: the import alone writes to the terminal.

    Returns:
        The module, or None where there is none: Windows' console edits lines itself.
    """
    with suppress(ImportError):
        return importlib.import_module("readline")
    return None


def _answer(session: ChatSession, console: Console, line: str) -> None:
    """Stream one reply; Ctrl-C ends the reply, not the chat."""
    try:
        _say(console, _BOT, end="")
        width = console.width if console.is_terminal else sys.maxsize  # a file has no columns
        for word in wrap_words(map(visible, session.reply(line)), width, len(_BOT)):
            _say(console, word, end="")
        if session.dropped:
            _say(console, f"\n(the {session.dropped} oldest turns no longer fit and were left out)",
                 end="")
    except Terminated:
        raise
    except KeyboardInterrupt:
        _say(console, " ...")
    except ValueError as error:
        _say(console, str(error))
    else:
        _say(console, "")


def wrap_words(pieces: Iterable[str], width: int, column: int) -> Iterator[str]:
    """The streamed pieces, word by word, with line breaks where the next word does not fit.

    Args:
        pieces: text as it comes; a word may come in several pieces.
        width: columns of a line.
        column: where the first piece begins.

    >>> "".join(wrap_words(["one t", "wo three"], 9, 0))
    'one two\\nthree'
    """
    word, gap = "", ""  # not shown yet: the word that may go on, and the space before it
    for piece in chain(pieces, "\n"):
        for letter in piece:
            if not letter.isspace():
                word += letter
                continue
            if word and gap and column + cell_len(gap + word) > width:
                gap, column = "\n", 0
            yield gap + word
            column += cell_len(gap.strip("\n") + word)
            word, gap = "", letter
            if letter == "\n":
                column = 0


def _command(
    session: ChatSession, console: Console, line: str, read_line: Callable[[str], str]
) -> bool:
    """Carry out a /command; False ends the chat."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name in ("/quit", "/exit", "/q"):
        return False
    if name == "/clear":
        session.clear()
        _say(console, "The conversation is forgotten.")
    elif name in ("/edit", "/regenerate", "/again"):
        _ask_anew(session, console, name, argument, read_line)
    elif name == "/temperature":
        _set_temperature(session, console, argument)
    elif name == "/history":
        for message in session.messages:
            who = "you > " if message["role"] == "user" else _BOT
            _say(console, who + visible("".join(map(shown, pieces_of(message["content"])))))
    elif name == "/help":
        _say(console, HELP)
    else:
        _say(console, f"{name}: no such command.\n{HELP}")
    return True


def _ask_anew(
    session: ChatSession, console: Console, name: str, text: str, read_line: Callable[[str], str]
) -> None:
    """Put another answer, or another question and its answer, in the place of the last."""
    said = session.last_asked()
    if not said:
        _say(console, f"{name}: nothing was asked yet. Ask something first.")
        return
    if name != "/edit":
        text = said
        if not session.temperature:
            _say(console, "(at temperature 0 the answer is always the same; /temperature 0.8 "
                          "makes it vary)")
    elif not text:
        try:
            text = _edited(said, read_line).strip()
        except Terminated:
            raise
        except (EOFError, KeyboardInterrupt, UnicodeDecodeError):
            text = ""
        if not text:
            _say(console, "Nothing was changed.")
            return
    before = [*session.messages]
    session.take_back()
    _answer(session, console, text)
    if len(session.messages) < len(before):  # refused, or interrupted before it was asked
        session.messages = before


def _edited(text: str, read_line: Callable[[str], str]) -> str:
    """A line that begins as `text`, where lines can be edited; else a new one."""
    readline = _edit_lines() if sys.stdin.isatty() else None
    if readline is None:
        return read_line("instead > ")
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return read_line("edit > ")
    finally:
        readline.set_startup_hook(None)


def _set_temperature(session: ChatSession, console: Console, argument: str) -> None:
    try:
        value = float(argument) if argument else session.temperature
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 2.0:
        _say(console, f"/temperature {argument}: it must be a number from 0 to 2.")
        return
    session.temperature = value
    _say(console, f"temperature {value:g}")


def visible(text: str) -> str:
    """The text with control characters spelled out: a model may say bytes that steer a terminal.

    >>> visible("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _say(console: Console, text: str, end: str = "\n") -> None:
    console.print(text, end=end, markup=False, highlight=False, soft_wrap=True)
