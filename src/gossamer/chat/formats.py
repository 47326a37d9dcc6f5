"""How each kind of file is cut into documents: one record a kind. Layer 7.

A record has two functions. `survey` reads a whole file, complains about everything that is wrong
with it, and returns its blocks; `read` returns the documents of one block. Text is cut at blank
lines, JSON lines and Parquet hold a document a row: a text, a question with its answer, or a
conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.chat.message import Message, words_of
from gossamer.core.errors import DataError

__all__ = ["FORMATS", "Block", "Document", "Format", "text_of"]

Document = str | tuple[Message, ...]

BLOCK = 1 << 18  # bytes of a block of text or JSON lines, a few hundred documents
LONGEST = 4096  # characters of a document cut out of plain text: several rows of a small model
_LONGEST_LINE = 1 << 24  # bytes; a longer "line" is a file that is no text
_SEPARATOR = "<|endoftext|>"  # between documents, as in TinyStories and GPT-2's sets
_TEXT_FIELDS = ("text", "content", "story")
_PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"),
          ("instruction", "output"), ("input", "output"))


@dataclass(frozen=True)
class Block:
    """A part of a file.

    Args:
        start, end: where it lies: bytes of a file of text; row group and first row of a table.
        documents: in it.
        size: bytes of text in it.
    """

    start: int
    end: int
    documents: int
    size: int


@dataclass(frozen=True)
class Format:
    """How one kind of file is read; see the head of this file."""

    survey: Callable[[Path], Iterator[Block]]
    read: Callable[[Path, Block], list[Document]]


def text_of(document: Document) -> str:
    """All words of a document."""
    if isinstance(document, str):
        return document
    return "\n".join(words_of(message["content"]) for message in document)


# Lines ------------------------------------------------------------------------------------------


def _line_blocks(path: Path, at_end: Callable[[bytes], bool]) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, bytes) of consecutive parts of a file; a part ends after a line for which
    `at_end` is true, once it has BLOCK bytes, and is never longer than twice that by much."""
    start, parts, size = 0, list[bytes](), 0
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                raise DataError(f"--data {path}: a line of more than {_LONGEST_LINE:,} bytes at "
                                f"byte {start + size:,}; text has line ends. Is it a text file?")
            parts.append(line)
            size += len(line)
            if size >= BLOCK and (at_end(line) or size >= 2 * BLOCK):
                yield start, start + size, b"".join(parts)
                start, parts, size = start + size, [], 0
    if size:
        yield start, start + size, b"".join(parts)


def _decoded(path: Path, start: int, data: bytes) -> str:
    """The text of a part of a file.

    Raises:
        DataError: zero bytes, or bytes that are no UTF-8.
    """
    if (zero := data.find(b"\0")) >= 0:
        raise DataError(f"--data {path}: a zero byte at byte {start + zero:,}; text has none. It "
                        "is a binary file, or UTF-16; convert it to UTF-8, or leave it out.")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"--data {path}: no UTF-8 at byte {start + error.start:,} "
                        f"({data[error.start:error.start + 4]!r}). Convert it, for example with "
                        f"`iconv -f latin1 -t utf-8`.") from None


def _read_bytes(path: Path, block: Block) -> str:
    try:
        with path.open("rb") as file:
            file.seek(block.start)
            data = file.read(block.end - block.start)
    except OSError as error:
        raise DataError(f"--data {path}: it can no longer be read ({error.strerror}). Put it back, "
                        "then resume.") from None
    if len(data) != block.end - block.start:
        raise DataError(f"--data {path}: it became shorter while it was in use. Put the file back "
                        "as it was, then resume.")
    return _decoded(path, block.start, data)


# Plain text -------------------------------------------------------------------------------------


def _survey_text(path: Path) -> Iterator[Block]:
    for start, end, data in _line_blocks(path, lambda line: not line.strip()):
        documents = _cut(_decoded(path, start, data))
        yield Block(start, end, len(documents), sum(len(d.encode()) for d in documents))


def _read_text(path: Path, block: Block) -> list[Document]:
    return list(_cut(_read_bytes(path, block)))


def _cut(text: str) -> list[str]:
    """Paragraphs joined up to LONGEST characters; a longer one is cut at line ends or spaces.

    >>> _cut("one\\n\\ntwo<|endoftext|>three")
    ['one\\n\\ntwo', 'three']
    """
    documents = []
    for part in text.replace("\r\n", "\n").split(_SEPARATOR):
        rest = part.strip()
        while len(rest) > LONGEST:
            places = (rest.rfind(mark, LONGEST // 2, LONGEST) for mark in ("\n\n", "\n", " "))
            at = next((place for place in places if place > 0), LONGEST)
            documents.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()
        if rest:
            documents.append(rest)
    return documents


# JSON lines -------------------------------------------------------------------------------------


def _survey_json(path: Path) -> Iterator[Block]:
    number = 0
    for start, end, data in _line_blocks(path, lambda line: True):
        count = size = 0
        for line in _decoded(path, start, data).split("\n"):
            number += 1
            if line.strip():
                document = _json_document(line, f"--data {path}: line {number:,}")
                count, size = count + 1, size + len(text_of(document).encode(errors="replace"))
        number -= data.endswith(b"\n")  # the piece after the last line end is no line
        yield Block(start, end, count, size)


def _read_json(path: Path, block: Block) -> list[Document]:
    lines = _read_bytes(path, block).split("\n")
    return [_json_document(line, f"--data {path}") for line in lines if line.strip()]


def _json_document(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: it is no JSON ({error}); every line of a .jsonl file must be "
                        "one object. Repair or remove it.") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: {line[:40]!r} is not an object; a line looks like "
                        '{"text": "..."}.')
    return _row_document(row, place)


def _row_document(row: Mapping[str, Any], place: str) -> Document:
    """The document of one row, whatever of the known shapes it has."""
    if isinstance(row.get("messages"), list):
        return _conversation(row["messages"], place)
    for name in _TEXT_FIELDS:
        if isinstance(row.get(name), str):
            return str(row[name])
    for asked, answered in _PAIRS:
        if isinstance(row.get(asked), str) and isinstance(row.get(answered), str):
            return ({"role": "user", "content": row[asked]},
                    {"role": "assistant", "content": row[answered]})
    raise DataError(f"{place}: its fields are {', '.join(map(repr, row)) or 'none'}; a row needs a "
                    "text in 'text', a list in 'messages', or a pair such as 'question' and "
                    "'answer'. Rename them.")


def _conversation(messages: list[Any], place: str) -> Document:
    """Turns that alternate and end with the assistant; a system's words join the user's."""
    turns, system = list[Message](), ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
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


# Parquet ----------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DataError(f"--data {path}: Parquet files need the package pyarrow; "
                        "`pip install pyarrow` installs it.") from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(f"--data {path}: it is no Parquet file, or is cut short ({error}). Fetch it "
                     "again, or leave it out.")


def _survey_parquet(path: Path) -> Iterator[Block]:
    file = _parquet(path)
    row = 0
    for group in range(file.metadata.num_row_groups):
        documents = _read_group(path, file, group, row)
        size = sum(len(text_of(d).encode(errors="replace")) for d in documents)
        yield Block(group, row, len(documents), size)
        row += file.metadata.row_group(group).num_rows


def _read_parquet(path: Path, block: Block) -> list[Document]:
    return _read_group(path, _parquet(path), block.start, block.end)


def _read_group(path: Path, file: Any, group: int, first: int) -> list[Document]:
    wanted = {"messages", *_TEXT_FIELDS, *(name for pair in _PAIRS for name in pair)}
    names = [name for name in file.schema_arrow.names if name in wanted]
    if not names:
        raise DataError(f"--data {path}: its columns are "
                        f"{', '.join(file.schema_arrow.names) or 'none'}; one must be 'text', "
                        "'messages', or a pair such as 'question' and 'answer'. Rename them.")
    try:
        rows = file.read_row_group(group, columns=names).to_pylist()
    except Exception as error:  # pyarrow raises OSError, ArrowException and bare ones for damage
        raise _broken(path, error) from None
    return [_row_document(row, f"--data {path}: row {first + i:,}") for i, row in enumerate(rows)]


FORMATS: Mapping[str, Format] = {
    ".txt": Format(_survey_text, _read_text),
    ".md": Format(_survey_text, _read_text),
    ".jsonl": Format(_survey_json, _read_json),
    ".parquet": Format(_survey_parquet, _read_parquet),
}
