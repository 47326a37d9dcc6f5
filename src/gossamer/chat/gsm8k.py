"""Word problems of grade school in GSM8K's format, as exercises with a calculator. Layer 7.

An answer there is a few lines of working and the result after `####`; how it becomes a conversation
to learn from is told in `document.py`. A reply is right if the number after its `####` is the
number of the answer.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from gossamer.chat.document import is_problem
from gossamer.chat.exercises import Exercise
from gossamer.chat.message import Content, words_of
from gossamer.chat.rows import Row, wrong_row

__all__ = ["final_number", "is_problem", "problems"]

_FINAL = re.compile(r"####\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")


def final_number(text: str) -> Fraction | None:
    """The number after the last `####`; None if there is none.

    >>> final_number("so #### 70,000"), final_number("70,000")
    (Fraction(70000, 1), None)
    """
    found = _FINAL.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def problems(rows: Sequence[Row], path: Path) -> list[Exercise]:
    """The exercises of a file.

    Raises:
        DataError: a row has another format, or no number after `####`.
    """
    exercises = []
    for number, row in enumerate(rows, 1):
        if not is_problem(row) or (expected := final_number(row["answer"])) is None:
            raise wrong_row(path, number, ("'question'", "'answer' with a number after '####'"),
                            row)
        exercises.append(_exercise(row["question"], expected))
    return exercises


def _exercise(question: str, expected: Fraction) -> Exercise:
    def answered(reply: Content) -> Fraction | None:
        return final_number(words_of(reply))

    def vote(reply: Content) -> str:
        found = answered(reply)
        return "" if found is None else str(found)

    return Exercise(question, f"#### {expected}", lambda reply: answered(reply) == expected, vote)
