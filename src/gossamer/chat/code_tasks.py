"""Programs to be written, in HumanEval's format, judged by running their tests. Layer 7.

A prompt is the head of a function with its description; the reply is the whole function, in a fence
of Markdown or not, or only its body. What comes out is put before the item's own tests and run in
the sandbox; right is what ends without a complaint in time.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gossamer.chat.exercises import Exercise
from gossamer.chat.message import Content, words_of
from gossamer.chat.rows import Row, wrong_row
from gossamer.chat.sandbox import Limits, run_program

__all__ = ["assemble", "code_of", "is_code_task", "programs"]

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_IMPORT = re.compile(r"^(?:import|from) .*", re.MULTILINE)
_FIELDS = ("prompt", "entry_point", "test")


def is_code_task(row: Row) -> bool:
    """Whether a row of JSON lines has this format."""
    return all(isinstance(row.get(name), str) for name in _FIELDS)


def code_of(reply: str) -> str:
    """The program in a reply: its first fence, else all of it.

    >>> code_of("Sure:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    fenced = _FENCED.search(reply)
    return fenced[1] if fenced else reply


def assemble(row: Row, reply: str) -> str:
    """A whole program: the reply as the prompt's function, then the tests and their call."""
    code, prompt, name = code_of(reply), row["prompt"], row["entry_point"]
    whole = re.search(rf"^(?:async +)?def +{re.escape(name)}\b", code, re.MULTILINE)
    imports = "\n".join(_IMPORT.findall(prompt))
    body = f"{imports}\n{code}" if whole else prompt + code
    return f"{body}\n\n{row['test']}\n\ncheck({name})\n"


def programs(rows: Sequence[Row], path: Path, limits: Limits | None = None) -> list[Exercise]:
    """The exercises of a file.

    Args:
        limits: what each program may use; None = the sandbox's defaults.

    Raises:
        DataError: a row has another format.
    """
    for number, row in enumerate(rows, 1):
        if not is_code_task(row) or not row["entry_point"].isidentifier():
            raise wrong_row(path, number, map(repr, _FIELDS), row)
    return [_exercise(row, limits) for row in rows]


def _exercise(row: Row, limits: Limits | None) -> Exercise:
    def judge(reply: Content) -> bool:
        return run_program(assemble(row, words_of(reply)), limits).ok

    # Two programs agree only if they are the same: the vote is of little use, pass@k is not.
    return Exercise(row["prompt"], str(row.get("canonical_solution") or row["test"]), judge,
                    lambda reply: code_of(words_of(reply)).strip())
