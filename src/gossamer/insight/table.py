"""Explanations as text: a table for terminals, in colour where rich is installed. Surface.

The one idea: rows are made once, as plain strings with a mark for what is wrong; rich or padding
turns them into a table. Units are fixed by column so that rows can be compared by eye.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

__all__ = ["Cell", "count", "duration", "nbytes", "render"]

Cell = str | tuple[str, str]  # text, or (text, style: "red", "dim", "bold", "yellow", "green")


def render(title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]],
           notes: Sequence[Cell] = (), wide: Sequence[int] = (0,)) -> str:
    """A table as text.

    Args:
        title: above it.
        heads: one head a column.
        rows: as many cells each.
        notes: lines below.
        wide: columns of text (left-aligned, shortened where room is short); others are numbers.

    Returns:
        With terminal colours if standard output is a terminal and rich is installed.
    """
    try:
        return _rich(title, heads, rows, notes, wide)
    except ModuleNotFoundError:
        return _plain(title, heads, rows, notes, wide)


def _rich(title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]],
          notes: Sequence[Cell], wide: Sequence[int]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 40)).columns if terminal else 140
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in wide else "right", no_wrap=True,
                         overflow="ellipsis", ratio=None)
    for row in rows:
        table.add_row(*[Text(*_split(cell)) for cell in row])
    console.print(table)
    for note in notes:
        console.print(Text(*_split(note)), soft_wrap=not terminal)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _plain(title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]],
           notes: Sequence[Cell], wide: Sequence[int]) -> str:
    texts = [[_split(cell)[0] for cell in row] for row in rows]
    widths = [min(44, max(len(r[i]) for r in [list(heads), *texts])) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(c[:w].ljust(w) if i in wide else c.rjust(w)
                         for i, (c, w) in enumerate(zip(cells, widths, strict=True))).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([title, line(heads), rule, *map(line, texts),
                      *(_split(note)[0] for note in notes)])


def _split(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell


def duration(seconds: float) -> str:
    """`1.23 ms`: three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def count(number: float) -> str:
    """`1.23 G`: three digits and a decimal prefix."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{_three(number / scale)} {unit}"
    return f"{number:.0f}"


def nbytes(number: float) -> str:
    """`1.23 MB`, decimal."""
    text = count(number)
    return text + "B" if text[-1] in "TGMk" else text + " B"


def _three(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"
