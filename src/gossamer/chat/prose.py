"""People's prose that every Python brings along: its help texts and docstrings. Layer 7.

`pydoc_data/topics.py` holds the language reference's chapters as the help shows them; the modules
of the standard library hold docstrings. Both are read as text and parsed, never imported, in an
order that depends on the Python version alone. A file that a distribution leaves out is skipped,
and told.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

from gossamer.chat.document import LONGEST

__all__ = ["Prose", "read_prose"]

_TOPICS = "pydoc_data/topics.py"
_SHORTEST = 200  # characters of a docstring that is prose rather than a caption
_NAMED = 3  # files that could not be read and are named; of more the number is told
_LEFT_OUT = frozenset(("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages",
                       "__pycache__", "turtledemo"))


@dataclass(frozen=True)
class Prose:
    """What was found.

    Args:
        documents: texts, in order, no two the same.
        files: how many they come from.
        skipped: (file, why) of those that could not be read.
    """

    documents: tuple[str, ...]
    files: int
    skipped: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Characters of text."""
        return sum(map(len, self.documents))

    def text(self) -> str:
        """How much there is, and what could not be read.

        >>> Prose(("Beautiful is better than ugly.",), 1, (("b.py", "SyntaxError"),)).text()
        '1 document of 1 file, 0.00 MB of text; 1 file could not be read: b.py (SyntaxError)'
        """
        found = (f"{_counted(len(self.documents), 'document')} of {_counted(self.files, 'file')}, "
                 f"{self.size / 1e6:.2f} MB of text")
        if not self.skipped:
            return found
        named = [f"{path} ({why})" for path, why in self.skipped[:_NAMED]]
        more = [f"and {len(self.skipped) - _NAMED} more"] if len(self.skipped) > _NAMED else []
        return (f"{found}; {_counted(len(self.skipped), 'file')} could not be read: "
                f"{', '.join([*named, *more])}")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


@cache
def read_prose(folder: Path | None = None) -> Prose:
    """The prose of a standard library.

    Args:
        folder: where it lies; None = this Python's own.

    Cost: about 6 s for all of it, once: 600 modules are parsed. The topics alone take 0.1 s.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    documents, skipped, files = dict[str, None](), list[tuple[str, str]](), 0
    modules = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py")
                     if not _LEFT_OUT & set(p.relative_to(root).parts))
    for path in [_TOPICS, *(path for path in modules if path != _TOPICS)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old code: not ours to mend
                tree = ast.parse((root / path).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            skipped.append((path, getattr(error, "strerror", None) or type(error).__name__))
            continue
        files += 1
        texts = _topics(tree) if path == _TOPICS else _docstrings(tree)
        documents |= dict.fromkeys(part for text in texts for part in _pieces(text))
    return Prose(tuple(documents), files, tuple(skipped))


def _topics(tree: ast.Module) -> Iterator[str]:
    """The values of the table of topics, in the order of their names."""
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            rows = {ast.literal_eval(key): ast.literal_eval(text)
                    for key, text in zip(value.keys, value.values, strict=True) if key is not None}
            yield from (rows[name].strip() for name in sorted(rows))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in the order of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None and len(text) >= _SHORTEST:
                yield cleandoc(text).strip()


def _pieces(text: str) -> Iterator[str]:
    """A long text cut at blank lines into documents."""
    held = ""
    for paragraph in text.split("\n\n"):
        if held and len(held) + len(paragraph) > LONGEST:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if held.strip():
        yield held
