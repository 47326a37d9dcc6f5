"""Tables of documents: Parquet and Arrow files, a few rows at a time. Layer 7.

A table is a sequence of groups (Parquet's row groups, Arrow's record batches), each of which can be
reached by itself and is streamed in small batches; so a file of any size needs the memory of a few
rows. A block of documents never crosses a group.

Source: pyarrow's `ParquetFile.iter_batches` and `ipc`; the `.arrow` files of the `datasets` library
are Arrow streams, those of others mostly Arrow files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from gossamer.chat.document import COLUMNS, Document, row_documents
from gossamer.core.errors import DataError

__all__ = ["open_arrow", "open_parquet", "Table"]

_ROWS = 256  # of a batch
_BUFFER = 1 << 20  # bytes read ahead of a column


@dataclass(frozen=True)
class Table:
    """An open file.

    Args:
        path: of the file.
        groups: rows of each group.
        stream: batches of a group, by its number.
    """

    path: Path
    groups: list[int]
    stream: Callable[[int], Iterator[Any]]

    def documents(self, start: int, end: int) -> Iterator[list[Document]]:
        """The documents of each of the rows `start` to `end`, which are of one group.

        Raises:
            DataError: the file is damaged, or a row is none that is known.
        """
        ends = list(accumulate(self.groups))
        group = bisect_right(ends, start)
        first = ends[group] - self.groups[group]
        for batch in _guarded(self.path, self.stream(group)):
            low, high = max(start, first), min(end, first + batch.num_rows)
            if low < high:
                for number, row in enumerate(batch.slice(low - first, high - low).to_pylist(), low):
                    yield row_documents(row, f"--data {self.path}: row {number:,}")
            first += batch.num_rows
            if first >= end:
                return

    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row and last row + 1 of each group that has rows."""
        for end, rows in zip(accumulate(self.groups), self.groups, strict=True):
            if rows:
                yield end - rows, end


def open_parquet(path: Path) -> Table:
    """A Parquet file.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or none of its columns holds text.
    """
    _, parquet = _pyarrow(path)
    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True)
        groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        columns = file.schema_arrow.names
    except Exception as error:  # as in _guarded
        raise _broken(path, error) from None
    names = _columns(path, columns)
    return Table(path, groups,
                 lambda group: file.iter_batches(_ROWS, row_groups=[group], columns=names))


def open_arrow(path: Path) -> Table:
    """An Arrow file or stream; what is read of it is mapped into memory, not loaded.

    Raises:
        DataError: as `open_parquet`.
    """
    pyarrow, _ = _pyarrow(path)
    try:
        source = pyarrow.memory_map(str(path))
        magic = source.read(6)
        source.seek(0)
        if magic == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            groups = [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)]
            group = reader.get_batch
        else:
            reader = pyarrow.ipc.open_stream(source)
            batches = list(reader)
            groups, group = [batch.num_rows for batch in batches], batches.__getitem__
        columns = reader.schema.names
    except Exception as error:  # as in _guarded
        raise _broken(path, error) from None
    names = _columns(path, columns)

    def stream(number: int) -> Iterator[Any]:
        batch = group(number).select(names)
        return (batch.slice(at, _ROWS) for at in range(0, batch.num_rows, _ROWS))

    return Table(path, groups, stream)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DataError(f"--data {path}: {path.suffix} files need the package pyarrow; "
                        "`pip install pyarrow` installs it.") from None
    return pyarrow, parquet


def _columns(path: Path, names: list[str]) -> list[str]:
    """Those that may hold documents."""
    found = [name for name in names if name in COLUMNS]
    if not found:
        shown = ", ".join(map(repr, names)) or "none"
        raise DataError(f"--data {path}: its columns are {shown}; one must be 'text', 'messages', "
                        "or a pair such as 'question' and 'answer'. Rename them.")
    return found


def _guarded(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches whose offsets and UTF-8 have been checked: reading damaged ones ends the process."""
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except Exception as error:  # pyarrow raises OSError, ArrowException and bare ones for damage
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    kind = path.suffix.removeprefix(".").capitalize()
    return DataError(f"--data {path}: it is no {kind} file, or is cut short or damaged ({words}). "
                     "Fetch it again, or leave it out.")
