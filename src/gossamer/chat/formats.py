"""How each kind of file is cut into documents: one record a kind. Layer 7.

A record has two functions. `survey` reads a whole file, complains about everything that is wrong
with it, and returns its blocks; `read` returns the documents of one block, and complains if they
are no longer those that were surveyed. Text is cut at blank lines; a line of JSON and a row of a
table hold a text, a question with its answer, or a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from gossamer.chat.document import Document, cut, row_documents, text_of
from gossamer.chat.tables import Table, open_arrow, open_parquet
from gossamer.core.errors import DataError

__all__ = ["FORMATS", "Block", "Document", "Format", "text_of"]

BLOCK = 1 << 18  # bytes of a block of text or JSON lines, a few hundred documents
TABLE_BLOCK = 1 << 22  # bytes of text of a block of a table, whose group is decoded for each
_LONGEST_LINE = 1 << 24  # bytes; a longer "line" is a file that is no text
_SEPARATOR = "<|endoftext|>"  # between documents, as in TinyStories and GPT-2's sets


@dataclass(frozen=True)
class Block:
    """A part of a file.

    Args:
        start, end: where it lies: bytes of a file of text, rows of a table.
        documents: in it.
        size: bytes of text in it.
        split: rows in it that are longer than a document may be and were cut.
        sum: CRC-32 of its text.
    """

    start: int
    end: int
    documents: int
    size: int
    split: int
    sum: int


@dataclass(frozen=True)
class Format:
    """How one kind of file is read.

    Args:
        parts: (start, end, documents, rows that were cut) of a file's parts, in order.
        part: the same documents of the one part at (start, end).
    """

    parts: Callable[[Path], Iterator[tuple[int, int, list[Document], int]]]
    part: Callable[[Path, int, int], list[Document]]

    def survey(self, path: Path) -> Iterator[Block]:
        """The blocks of a file, all of which has been read and found good.

        Raises:
            DataError: something is wrong; the text names the place.
        """
        for start, end, documents, split in self.parts(path):
            size, checked = _size_and_sum(documents)
            yield Block(start, end, len(documents), size, split, checked)

    def read(self, path: Path, block: Block) -> list[Document]:
        """The documents of a block.

        Raises:
            DataError: the file cannot be read any more, or has changed.
        """
        documents = self.part(path, block.start, block.end)
        if _size_and_sum(documents) != (block.size, block.sum):
            raise DataError(f"--data {path}: it changed while it was in use. Put the file back as "
                            "it was and resume, or start a new run.")
        return documents


def _size_and_sum(documents: Sequence[Document]) -> tuple[int, int]:
    """Bytes of text, and their CRC-32; half a surrogate pair is taken as it is."""
    size = checked = 0
    for document in documents:
        data = text_of(document).encode("utf-8", "surrogatepass")
        size, checked = size + len(data), crc32(data, checked)
    return size, checked


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


def _read_bytes(path: Path, start: int, end: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
    except OSError as error:
        raise DataError(f"--data {path}: it can no longer be read ({error.strerror}). Put it back, "
                        "then resume.") from None
    if len(data) != end - start:
        raise DataError(f"--data {path}: it became shorter while it was in use. Put the file back "
                        "as it was, then resume.")
    return _decoded(path, start, data)


# Plain text -------------------------------------------------------------------------------------


def _text_parts(path: Path) -> Iterator[tuple[int, int, list[Document], int]]:
    for start, end, data in _line_blocks(path, lambda line: not line.strip()):
        yield start, end, _text_documents(_decoded(path, start, data)), 0


def _text_part(path: Path, start: int, end: int) -> list[Document]:
    return _text_documents(_read_bytes(path, start, end))


def _text_documents(text: str) -> list[Document]:
    """Paragraphs joined up to the longest document; a longer one is cut at line ends or spaces.

    >>> _text_documents("one\\n\\ntwo<|endoftext|>three")
    ['one\\n\\ntwo', 'three']
    """
    return [piece for part in text.replace("\r\n", "\n").split(_SEPARATOR) for piece in cut(part)]


# JSON lines -------------------------------------------------------------------------------------


def _json_parts(path: Path) -> Iterator[tuple[int, int, list[Document], int]]:
    number = 0
    for start, end, data in _line_blocks(path, lambda line: True):
        documents, split = list[Document](), 0
        for line in _decoded(path, start, data).split("\n"):
            number += 1
            found = _json_documents(line, f"--data {path}: line {number:,}")
            documents += found
            split += len(found) > 1
        number -= data.endswith(b"\n")  # the piece after the last line end is no line
        yield start, end, documents, split


def _json_part(path: Path, start: int, end: int) -> list[Document]:
    return [document for line in _read_bytes(path, start, end).split("\n")
            for document in _json_documents(line, f"--data {path}")]


def _json_documents(line: str, place: str) -> list[Document]:
    if not line.strip():
        return []
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: it is no JSON ({error}); every line of a .jsonl file must be "
                        "one object. Repair or remove it.") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: {line[:40]!r} is not an object; a line looks like "
                        '{"text": "..."}.')
    return row_documents(row, place)


# Tables -----------------------------------------------------------------------------------------


def _table_format(open_table: Callable[[Path], Table]) -> Format:
    def parts(path: Path) -> Iterator[tuple[int, int, list[Document], int]]:
        table = open_table(path)
        for start, end in table.bounds():
            documents, split, size = list[Document](), 0, 0
            for row, found in enumerate(table.documents(start, end), start):
                documents += found
                split += len(found) > 1
                size += sum(len(text_of(document)) for document in found)
                if size >= TABLE_BLOCK:
                    yield start, row + 1, documents, split
                    start, documents, split, size = row + 1, [], 0, 0
            if start < end:
                yield start, end, documents, split

    def part(path: Path, start: int, end: int) -> list[Document]:
        return [d for found in open_table(path).documents(start, end) for d in found]

    return Format(parts, part)


_TEXT = Format(_text_parts, _text_part)
FORMATS: Mapping[str, Format] = {
    ".txt": _TEXT,
    ".md": _TEXT,
    ".jsonl": Format(_json_parts, _json_part),
    ".parquet": _table_format(open_parquet),
    ".arrow": _table_format(open_arrow),
}
