"""Exact match on held-out questions, by one forward pass and no decoding. Layer 7.

The reference reply is the only right one, so greedy decoding produces it exactly when, reading it,
the model's likeliest token is right at every position: no decoding is needed. A tool's output is
given there as it is in decoding. A test holds this
against decoding token by token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

import gossamer as gs
import gossamer.nn.functional as F
from gossamer.chat.formats import Document
from gossamer.chat.message import Message
from gossamer.chat.task import Question, Task, sample
from gossamer.chat.tokenizer import Rendered, Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["Score", "bits_per_byte", "evaluate", "mean_score", "question_set", "replies_match",
           "to_conversation"]

ROWS = 50  # questions a forward pass: 50 x 64 tokens, about one training step's worth
_LENGTH_STEP = 32  # lengths are rounded up: at most eight shapes for a context of 256


@dataclass(frozen=True)
class Score:
    """Exact match on one task.

    Args:
        task: its name.
        right: exactly right replies.
        asked: questions.
        failures: up to five questions that went wrong.
    """

    task: str
    right: int
    asked: int
    failures: tuple[Question, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of exactly right replies."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def standard_error(self) -> float:
        """Of the accuracy, sqrt(p (1 - p) / n)."""
        p = self.accuracy
        return math.sqrt(p * (1 - p) / self.asked) if self.asked else 0.0


def to_conversation(question: Question) -> list[Message]:
    """The question and its reference reply as a conversation of two turns."""
    return [
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": question.answer},
    ]


def question_set(
    tasks: Mapping[str, Task], per_task: int, *, seed: int = 0, held_out: bool = True
) -> dict[str, list[Question]]:
    """The same questions for the same seed: `per_task` of each task from one side of the split."""
    questions = {}
    for name, task in tasks.items():
        rng = Random(f"questions:{name}:{seed}:{held_out}")
        questions[name] = [sample(task, rng, held_out=held_out) for _ in range(per_task)]
    return questions


def replies_match(model: GPT, examples: Sequence[Rendered]) -> list[bool]:
    """For each rendered conversation: whether the model's greedy reply is exactly the given one.

    A conversation longer than the model's context is not right: the model cannot say it.

    Cost: one forward pass over all tokens, in groups of ROWS of similar length.
    """
    context = model.config.sequence_len
    fitting = (i for i, (ids, _) in enumerate(examples) if len(ids) <= context + 1)
    order = sorted(fitting, key=lambda i: len(examples[i][0]))
    right = [False] * len(examples)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        longest = max(len(examples[i][0]) for i in rows)
        T = min(-(-(longest - 1) // _LENGTH_STEP) * _LENGTH_STEP, context)
        ids = np.zeros((ROWS, T + 1), np.int64)
        asked = np.zeros((ROWS, T + 1), np.bool_)
        for row, index in enumerate(rows):
            row_ids, row_mask = examples[index]
            ids[row, : len(row_ids)] = row_ids
            asked[row, : len(row_mask)] = row_mask
        with gs.no_grad():
            likeliest = model(gs.from_numpy(np.ascontiguousarray(ids[:, :-1]))).argmax(-1).numpy()
        exact = ((likeliest == ids[:, 1:]) | ~asked[:, 1:]).all(axis=1)
        for row, index in enumerate(rows):
            right[index] = bool(exact[row])
    return right


def evaluate(
    model: GPT, tokenizer: Tokenizer, questions: Mapping[str, Sequence[Question]]
) -> list[Score]:
    """Exact match per task on the given questions, in their order."""
    flat = [q for asked in questions.values() for q in asked]
    right = replies_match(model, [tokenizer.render(to_conversation(q)) for q in flat])
    verdicts = dict(zip(map(id, flat), right, strict=True))
    scores = []
    for name, asked in questions.items():
        failures = tuple(q for q in asked if not verdicts[id(q)])
        scores.append(Score(name, len(asked) - len(failures), len(asked), failures[:5]))
    return scores


def bits_per_byte(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document]) -> float:
    """Bits that the model needs for one byte of text: cross-entropy without the tokenizer's unit.

    Every token is predicted once. A document longer than the context is read in pieces, each of
    which begins with the last token of the one before.

    Args:
        documents: held-out ones; of conversations every word counts, marks of turns do not.

    Returns:
        The sum of the bits of all tokens that stand for text, over the bytes of that text.
    """
    T = model.config.sequence_len
    pieces = list[list[int]]()
    for document in documents:
        ids, _ = (tokenizer.render_document(document) if isinstance(document, str)
                  else tokenizer.render(document))
        pieces += [ids[at : at + T + 1] for at in range(0, len(ids) - 1, T)]
    sizes, bits, size = tokenizer.bytes_per_token, 0.0, 0
    for start in range(0, len(pieces), ROWS):
        rows = np.full((ROWS, T + 1), tokenizer.bos, np.int64)  # one shape, so one program
        for row, piece in zip(rows, pieces[start : start + ROWS], strict=False):
            row[: len(piece)] = piece
        counted = sizes[rows[:, 1:]] > 0  # marks and padding stand for no text
        with gs.no_grad():
            logits = model(gs.from_numpy(np.ascontiguousarray(rows[:, :-1])))
            targets = gs.from_numpy(np.ascontiguousarray(rows[:, 1:]))
            nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
                                   reduction="none").numpy().reshape(ROWS, T)
        bits += float(nats[counted].sum(dtype=np.float64)) / math.log(2)
        size += int(sizes[rows[:, 1:]][counted].sum())
    return bits / size if size else 0.0


def mean_score(scores: Sequence[Score]) -> tuple[float, float]:
    """Mean of the tasks' accuracies and its standard error."""
    if not scores:
        return 0.0, 0.0
    mean = sum(s.accuracy for s in scores) / len(scores)
    return mean, math.sqrt(sum(s.standard_error**2 for s in scores)) / len(scores)
