"""Word problems of grade school in GSM8K's format, as conversations with a calculator. Layer 7.

An answer there is a few lines of working, with `<<48/2=24>>` where a calculator was asked, and the
result after `####`. Each call becomes the pieces that our models write: the expression, the output
that they are handed. A reply is right if the number after its `####` is the number of the answer.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from gossamer.chat.exercises import Exercise
from gossamer.chat.message import Content, Message, Piece, joined, words_of
from gossamer.chat.rows import Row, wrong_row

__all__ = ["conversation", "final_number", "is_problem", "pieces_of_answer", "problems"]

_CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_FINAL = re.compile(r"####\s*\$?\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")


def is_problem(row: Row) -> bool:
    """Whether a row of JSON lines has this format."""
    return (isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
            and "####" in row["answer"])


def pieces_of_answer(answer: str) -> Content:
    """An answer's working with its calls as pieces.

    >>> pieces_of_answer("It is 48/2 = <<48/2=24>>24.")
    (('text', 'It is 48/2 = '), ('call', '48/2'), ('output', '24'), ('text', '24.'))
    """
    pieces = list[Piece]()
    end = 0
    for call in _CALL.finditer(answer):
        pieces += [("text", answer[end : call.start()]), ("call", call[1]), ("output", call[2])]
        end = call.end()
    return joined(piece for piece in [*pieces, ("text", answer[end:])] if piece[1])


def conversation(row: Row) -> list[Message]:
    """A problem and its answer as two turns, to learn from."""
    return [{"role": "user", "content": row["question"]},
            {"role": "assistant", "content": pieces_of_answer(row["answer"])}]


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
