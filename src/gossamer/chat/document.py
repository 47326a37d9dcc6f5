"""What one document is, and how a row of a file becomes documents. Layer 7.

A document is a text or a conversation. The one idea: whatever is longer than a model reads at once
is cut here, where words, lines and turns are known, and counted; nothing is dropped but what has
no words at all.

Source: the shape of word problems is GSM8K's (Cobbe et al. 2021, "Training Verifiers to Solve Math
Word Problems"): where a calculator was asked, an answer has `<<48/2=24>>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gossamer.chat.message import Content, Message, Piece, joined, words_of
from gossamer.core.errors import DataError

__all__ = ["COLUMNS", "LONGEST", "Document", "cut", "is_problem", "mended", "pieces_of_answer",
           "row_documents", "text_of"]

Document = str | tuple[Message, ...]

LONGEST = 4096  # characters of a document: several rows of a small model
_TEXT_FIELDS = ("text", "content", "story")
_PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"),
          ("instruction", "output"), ("input", "output"))
COLUMNS = frozenset({"messages", *_TEXT_FIELDS, *(name for pair in _PAIRS for name in pair)})
_ROLES = ("system", "user", "assistant")
_CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def text_of(document: Document) -> str:
    """All words of a document."""
    if isinstance(document, str):
        return document
    return "\n".join(words_of(message["content"]) for message in document)


def mended(text: str) -> str:
    r"""The text as UTF-8 can hold it: half a surrogate pair, which JSON can spell, is U+FFFD.

    >>> mended("a\ud83d") == "a\ufffd", mended("\U0001f600") == "\U0001f600"
    (True, True)
    """
    return text if text.isascii() else _HALF_PAIR.sub("\ufffd", text)


def cut(text: str) -> list[str]:
    """Pieces of at most LONGEST characters, cut between paragraphs, lines or words; blank: none.

    >>> cut(" one\\n\\ntwo ")
    ['one\\n\\ntwo']
    """
    pieces, rest = [], text.strip()
    while len(rest) > LONGEST:
        places = (rest.rfind(mark, LONGEST // 2, LONGEST) for mark in ("\n\n", "\n", " "))
        at = next((place for place in places if place > 0), LONGEST)
        pieces.append(rest[:at].rstrip())
        rest = rest[at:].lstrip()
    return [*pieces, rest] if rest else pieces


def row_documents(row: Mapping[str, Any], place: str) -> list[Document]:
    """The documents of one row, whatever of the known shapes it has: one, or more if it is long.

    Args:
        row: fields by name.
        place: of the row, for complaints.

    Returns:
        None at all for a row whose text is empty or null.

    Raises:
        DataError: no field that is known, or a conversation that is none.
    """
    row = {name: mended(value) if isinstance(value, str) else value for name, value in row.items()}
    if isinstance(row.get("messages"), list):
        return _cut_turns(_conversation(row["messages"], place))
    for name in _TEXT_FIELDS:
        if isinstance(row.get(name), str):
            text: str = row[name]
            return [text] if len(text) <= LONGEST and text.strip() else list(cut(text))
    for pair in _PAIRS:
        asked, answered = (row.get(name) for name in pair)
        if isinstance(asked, str) and isinstance(answered, str):
            reply = pieces_of_answer(answered) if is_problem(row) else answered
            return [({"role": "user", "content": asked}, {"role": "assistant", "content": reply})]
    if any(name in row and row[name] is None for name in COLUMNS):
        return []
    raise DataError(f"{place}: its fields are {', '.join(map(repr, row)) or 'none'}; a row needs a "
                    "text in 'text', a list in 'messages', or a pair such as 'question' and "
                    "'answer'. Rename them.")


def is_problem(row: Mapping[str, Any]) -> bool:
    """Whether a row is a word problem, whose answer has its result after `####`."""
    return (isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
            and "####" in row["answer"])


def pieces_of_answer(answer: str) -> Content:
    """The working of a word problem with its calls as the pieces that our models write.

    >>> pieces_of_answer("It is 48/2 = <<48/2=24>>24.")
    (('text', 'It is 48/2 = '), ('call', '48/2'), ('output', '24'), ('text', '24.'))
    """
    pieces = list[Piece]()
    end = 0
    for call in _CALL.finditer(answer):
        pieces += [("text", answer[end : call.start()]), ("call", call[1]), ("output", call[2])]
        end = call.end()
    return joined(piece for piece in [*pieces, ("text", answer[end:])] if piece[1])


def _conversation(messages: list[Any], place: str) -> tuple[Message, ...]:
    """Turns that alternate and end with the assistant; a system's words join the user's."""
    turns, system = list[Message](), ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(content, str):
            raise DataError(f"{place}: a message is {str(message)[:60]!r}; it needs a 'role' of "
                            "system, user or assistant, and a 'content' that is text.")
        if role == "system":
            system += mended(content) + "\n\n"
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            raise DataError(f"{place}: turn {len(turns) + 1} is the {role}'s; turns alternate and "
                            f"begin with the user, so it must be the {expected}'s.")
        turns.append({"role": role, "content": system + mended(content)})
        system = ""
    if not turns or len(turns) % 2:
        raise DataError(f"{place}: a conversation of {len(turns)} turns; it must end with the "
                        "assistant, whose words are what is learned.")
    return tuple(turns)


def _cut_turns(turns: tuple[Message, ...]) -> list[Document]:
    """A long conversation as several: a question always keeps its answer."""
    pieces, size = [list[Message]()], 0
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        more = len(words_of(asked["content"])) + len(words_of(answered["content"]))
        if pieces[-1] and size + more > LONGEST:
            pieces.append([])
            size = 0
        pieces[-1] += [asked, answered]
        size += more
    return [tuple(piece) for piece in pieces]
