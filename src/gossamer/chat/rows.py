"""JSON lines of a benchmark, read whole, with an error that names the line. Layer 7.

Benchmarks are small files that somebody made with care, so unlike a person's own texts
(`formats.py`) nothing in them is passed over: a line that is no question is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gossamer.chat.document import mended
from gossamer.core.errors import DataError

__all__ = ["Row", "read_rows", "wrong_row"]

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The objects of a file of JSON lines; blank lines are left out.

    Raises:
        DataError: it is missing, empty, not UTF-8, or a line is not a JSON object.
    """
    rows: list[Row] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                rows.append(_row(path, number, line))
    except (OSError, UnicodeDecodeError) as error:
        what = "it is no text in UTF-8" if isinstance(error, ValueError) else error.strerror
        raise DataError(f"--data {path}: {what}; a file of JSON lines is expected. Check the "
                        "path, or fetch the file again.") from None
    if not rows:
        raise DataError(f"--data {path}: the file is empty; it must hold one question a line, as "
                        "JSON. Fetch it again, or leave it out.")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    try:
        value = _mended(json.loads(line))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deep")
        raise DataError(f"--data {path}: line {number} is no JSON ({reason}); each line must be "
                        "one JSON object. Repair or delete it.") from None
    if not isinstance(value, dict):
        raise DataError(f"--data {path}: line {number} is a {type(value).__name__}; each line must "
                        "be one JSON object. Repair or delete it.")
    return value


def _mended(value: Any) -> Any:
    """A value of JSON whose texts are all such as UTF-8 can hold."""
    if isinstance(value, str):
        return mended(value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {mended(name): _mended(item) for name, item in value.items()}
    return value


def wrong_row(path: Path, number: int, wanted: Iterable[str], row: Row) -> DataError:
    """The error for row `number` (from 1) that lacks what a kind of question needs."""
    names = ", ".join(sorted(map(str, row))) or "nothing"
    return DataError(f"--data {path}: question {number} has {names}; it must have "
                     f"{', '.join(wanted)}. Repair or delete it.")
