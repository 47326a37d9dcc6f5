"""Multiple choice in a chat: the choices get letters, and the model says one. Layer 7.

Each line is `- choice=A`: the letter stands behind its choice without a space, as a piece of its
own, so the token that the model must copy is the very token that it reads. Only the letters'
scores are compared, so a model that says something else is asked which letter it likes best.

Source: the layout is nanochat's; reading off the letters' scores, Hendrycks et al. 2021 (MMLU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import numpy as np

import gossamer as gs
from gossamer.chat.evaluate import FAILURES, Failure, Score, as_read
from gossamer.chat.message import Content, Piece
from gossamer.chat.rows import Row, wrong_row
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["ChoiceQuestion", "answer_letters", "as_prompt", "choice_questions", "is_choice"]

_ROWS = 32  # prompts a forward pass
_STEP = 32  # lengths are rounded up to it: few shapes, few programs
_CLOSING = "Answer with the letter alone."


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices, and which of them is right (from 0)."""

    question: str
    choices: tuple[str, ...]
    gold: int


def is_choice(row: Row) -> bool:
    """Whether a row of JSON lines has this format."""
    return "question" in row and "choices" in row and ("answer" in row or "answerKey" in row)


def choice_questions(rows: Sequence[Row], path: Path) -> list[ChoiceQuestion]:
    """The questions of a file.

    Args:
        rows: {"question", "choices": [text, ...], "answer"}, where the answer is a number from 0, a
            letter or the right text; or as ARC has them, {"question", "choices": {"text": [...],
            "label": [...]}, "answerKey"}.

    Raises:
        DataError: a row has another format, or no right choice among 2 to 26.
    """
    found = []
    for number, row in enumerate(rows, 1):
        question = _question(row)
        if question is None:
            raise wrong_row(path, number, ("'question'", "'choices' (2 to 26 texts)",
                                           "'answer' (its number from 0, letter or text)"), row)
        found.append(question)
    return found


def _question(row: Row) -> ChoiceQuestion | None:
    choices = row.get("choices")
    labels = list[str]()
    if isinstance(choices, dict):
        labels, choices = list(map(str, choices.get("label") or ())), choices.get("text")
    answer = row.get("answerKey", row.get("answer"))
    text = row.get("question")
    if (not isinstance(text, str) or not isinstance(choices, list)
            or not 2 <= len(choices) <= len(ascii_uppercase)
            or not all(isinstance(choice, str) for choice in choices)):
        return None
    names = labels if len(labels) == len(choices) else list(ascii_uppercase[:len(choices)])
    gold = -1
    if isinstance(answer, int) and not isinstance(answer, bool):
        gold = answer
    elif isinstance(answer, str):
        known = names if answer in names else choices
        gold = known.index(answer) if answer in known else -1
    return ChoiceQuestion(text, tuple(choices), gold) if 0 <= gold < len(choices) else None


def as_prompt(question: ChoiceQuestion) -> Content:
    """What the user asks, in pieces, so that each letter is a token of its own.

    >>> as_read(as_prompt(ChoiceQuestion("2 + 2?", ("3", "4"), 1)))
    '2 + 2?\\n- 3=A\\n- 4=B\\nAnswer with the letter alone.'
    """
    pieces: list[Piece] = [("text", question.question)]
    for choice, letter in zip(question.choices, ascii_uppercase, strict=False):
        pieces += [("text", f"\n- {choice}="), ("text", letter)]
    return (*pieces, ("text", f"\n{_CLOSING}"))


def answer_letters(
    task: str, questions: Sequence[ChoiceQuestion], model: GPT, tokenizer: Tokenizer, *,
    failures: int = FAILURES,
) -> Score:
    """The likeliest letter to each question.

    Returns:
        The score; guessing gets the mean of 1 / choices. A question that does not fit the context
        went wrong.

    Cost: one forward pass over the prompts.
    """
    letters = [tokenizer.encode(letter)[0] for letter in ascii_uppercase]  # a byte each
    prompts = [tokenizer.render_prompt([{"role": "user", "content": as_prompt(q)}])
               for q in questions]
    chosen = _choose(model, prompts, [letters[:len(q.choices)] for q in questions])
    wrong = list[Failure]()
    for question, choice in zip(questions, chosen, strict=True):
        if choice != question.gold:
            given = "(it does not fit the context)" if choice is None else _named(question, choice)
            wrong.append(Failure(as_read(as_prompt(question)),
                                 _named(question, question.gold), given))
    baseline = sum(1 / len(q.choices) for q in questions) / max(1, len(questions))
    return Score(task, len(questions) - len(wrong), len(questions), tuple(wrong[:failures]),
                 baseline)


def _named(question: ChoiceQuestion, choice: int) -> str:
    return f"{ascii_uppercase[choice]} ({question.choices[choice]})"


def _choose(model: GPT, prompts: Sequence[Sequence[int]], letters: Sequence[Sequence[int]]
            ) -> list[int | None]:
    """For each prompt which of its letters scores highest after it; None where it does not fit."""
    context = model.config.sequence_len
    order = sorted((i for i, ids in enumerate(prompts) if len(ids) <= context),
                   key=lambda i: len(prompts[i]))
    found: list[int | None] = [None] * len(prompts)
    for start in range(0, len(order), _ROWS):
        batch = order[start : start + _ROWS]
        longest = max(len(prompts[i]) for i in batch)
        ids = np.zeros((_ROWS, min(-(-longest // _STEP) * _STEP, context)), np.int64)
        last = np.zeros(_ROWS, np.int64)
        for row, i in enumerate(batch):
            ids[row, : len(prompts[i])] = prompts[i]
            last[row] = len(prompts[i]) - 1
        with gs.no_grad():
            logits = model(gs.from_numpy(ids))
            ends = logits[gs.arange(_ROWS), gs.from_numpy(last)].numpy()  # (B, V)
        for row, i in enumerate(batch):
            found[i] = int(ends[row, list(letters[i])].argmax())
    return found
