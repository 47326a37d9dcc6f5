"""A page as blocks, written as Markdown or as one HTML file that needs nothing else. Layer 7.

The one idea: what a page says is made once, as blocks of plain text; the two writers know nothing
about runs. In text, `**` marks bold and a backtick code, in both.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "Heading", "Items", "Paragraph", "Picture", "Quote", "Table", "to_html",
           "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """The title of the page (level 1) or of a part (2)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Quote:
    """What was asked, and what was replied."""

    asked: str
    replied: str


@dataclass(frozen=True)
class Items:
    """A list of points."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells; `head` may be empty strings."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the page, and what it shows."""

    path: Path
    alt: str


Block = Heading | Paragraph | Quote | Items | Table | Picture

_STYLE = """
:root { color-scheme: light dark; --bg: #fbfaf8; --card: #fff; --ink: #1c1d21; --soft: #666a73;
  --line: #e2e0da; --accent: #3257c8; --code: #f1efea; }
@media (prefers-color-scheme: dark) { :root { --bg: #14151a; --card: #1c1e25; --ink: #e8e8ea;
  --soft: #9a9ea9; --line: #30333d; --accent: #8fabff; --code: #262933; } }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 24px 18px 60px; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .93rem; }
th, td { text-align: left; padding: 6px 10px; border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
thead:empty { display: none; }
code { background: var(--code); padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
blockquote { margin: 1em 0; padding: 4px 14px; border-left: 3px solid var(--accent); }
blockquote p { margin: .3em 0; } blockquote p:first-child { color: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 8px; }
""".strip()


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are linked.

    >>> print(to_markdown([Heading("A", 1), Table(("x", "y"), (("1", "2"),))]), end="")
    # A
    <BLANKLINE>
    | x | y |
    | --- | --- |
    | 1 | 2 |
    """
    return "\n\n".join(_MARKDOWN[type(block)](block) for block in blocks) + "\n"


def _rows(cells: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


_MARKDOWN: dict[type, Callable[..., str]] = {
    Heading: lambda b: f"{'#' * b.level} {b.text}",
    Paragraph: lambda b: b.text,
    Quote: lambda b: f"> {b.asked}\n\n`{b.replied}`",
    Items: lambda b: "\n".join(f"- {line}" for line in b.lines),
    Table: lambda b: _rows([b.head, ["---"] * len(b.head), *b.rows]),
    Picture: lambda b: f"![{b.alt}]({b.path.name})",
}


def to_html(blocks: Sequence[Block]) -> str:
    """The page as one file: pictures and style are in it, and it asks no network for anything."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "report")
    body = "\n".join(_HTML[type(block)](block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _inline(text: str) -> str:
    """Escaped text with its marks.

    >>> _inline("**1 < 2** by `a|b`")
    '<b>1 &lt; 2</b> by <code>a|b</code>'
    """
    parts = []
    for number, part in enumerate(html.escape(text, quote=False).split("`")):
        bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", part)
        parts.append(f"<code>{part}</code>" if number % 2 else bold)
    return "".join(parts)


def _table(block: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in block.head)
    rows = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n"
                   for row in block.rows)
    lead = f"<thead><tr>{head}</tr></thead>" if any(block.head) else ""
    return f'<div class="wide"><table>{lead}<tbody>\n{rows}</tbody></table></div>'


def _picture(block: Picture) -> str:
    data = base64.b64encode(block.path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(block.alt)}">'


_HTML: dict[type, Callable[..., str]] = {
    Heading: lambda b: f"<h{b.level}>{_inline(b.text)}</h{b.level}>",
    Paragraph: lambda b: f"<p>{_inline(b.text)}</p>",
    Quote: lambda b: (f"<blockquote><p>{html.escape(b.asked)}</p>"
                      f"<p><code>{html.escape(b.replied)}</code></p></blockquote>"),
    Items: lambda b: "<ul>" + "".join(f"<li>{_inline(line)}</li>\n" for line in b.lines) + "</ul>",
    Table: _table,
    Picture: _picture,
}
