"""What one document is, and how a row of a file becomes documents. Layer 7.

A document is a text or a conversation. The one idea: whatever is longer than a model reads at once
is cut here, where words, lines and turns are known, and counted; nothing is dropped but what has
no words at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.chat.message import Message, words_of
from gossamer.core.errors import DataError

__all__ = ["COLUMNS", "LONGEST", "Document", "cut", "row_documents", "text_of"]

Document = str | tuple[Message, ...]

LONGEST = 4096  # characters of a document: several rows of a small model
_TEXT_FIELDS = ("text", "content", "story")
_PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"),
          ("instruction", "output"), ("input", "output"))
COLUMNS = frozenset({"messages", *_TEXT_FIELDS, *(name for pair in _PAIRS for name in pair)})
_ROLES = ("system", "user", "assistant")


def text_of(document: Document) -> str:
    """All words of a document."""
    if isinstance(document, str):
        return document
    return "\n".join(words_of(message["content"]) for message in document)


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
    if isinstance(row.get("messages"), list):
        return _cut_turns(_conversation(row["messages"], place))
    for name in _TEXT_FIELDS:
        if isinstance(row.get(name), str):
            text: str = row[name]
            return [text] if len(text) <= LONGEST and text.strip() else list(cut(text))
    for pair in _PAIRS:
        asked, answered = (row.get(name) for name in pair)
        if isinstance(asked, str) and isinstance(answered, str):
            return [({"role": "user", "content": asked},
                     {"role": "assistant", "content": answered})]
    if any(name in row and row[name] is None for name in COLUMNS):
        return []
    raise DataError(f"{place}: its fields are {', '.join(map(repr, row)) or 'none'}; a row needs a "
                    "text in 'text', a list in 'messages', or a pair such as 'question' and "
                    "'answer'. Rename them.")


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
            system += content + "\n\n"
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            raise DataError(f"{place}: turn {len(turns) + 1} is the {role}'s; turns alternate and "
                            f"begin with the user, so it must be the {expected}'s.")
        turns.append({"role": role, "content": system + content})
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
