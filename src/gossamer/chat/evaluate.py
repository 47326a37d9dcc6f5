"""Exact match on held-out questions, by one forward pass and no decoding. Layer 7.

The reference reply is the only right one, so greedy decoding produces it exactly when, reading it,
the model's likeliest token is right at every position: no decoding is needed. A tool's output is
given there as it is in decoding. `decoded_match` is the slow twin, which decodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

import numpy as np

import gossamer as gs
import gossamer.nn.functional as F
from gossamer.chat.calculator import Calculator
from gossamer.chat.engine import Engine, Reply, Request
from gossamer.chat.formats import Document
from gossamer.chat.message import Content, Message, joined, pieces_of, shown
from gossamer.chat.spread import ratio_error, share_error
from gossamer.chat.task import Question, Task, sample
from gossamer.chat.text import ReplyStream
from gossamer.chat.tokenizer import Rendered, Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["FAILURES", "Failure", "Figure", "Score", "as_read", "bits_figure", "bits_per_byte",
           "content_of", "decoded_match", "evaluate", "mean_score", "question_set",
           "replies_match", "to_conversation", "with_replies"]

ROWS = 50  # questions a forward pass: 50 x 64 tokens, about one training step's worth
FAILURES = 5  # a task that are kept to be shown
_LONGEST_REPLY = 128  # tokens of a reply that is only to be shown
_LENGTH_STEP = 32  # lengths are rounded up: at most eight shapes for a context of 256


@dataclass(frozen=True)
class Failure:
    """A question that went wrong: what was asked, what is right, and what was given instead."""

    question: str
    expected: str
    given: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure beside the share of right replies, such as pass@8, with its standard error."""

    name: str
    value: float
    error: float


@dataclass(frozen=True)
class Score:
    """Right replies on one task.

    Args:
        task: its name.
        right: right replies.
        asked: questions.
        failures: the first few questions that went wrong.
        baseline: the share that guessing gets right.
        figures: what else was measured.
    """

    task: str
    right: int
    asked: int
    failures: tuple[Failure, ...] = ()
    baseline: float = 0.0
    figures: tuple[Figure, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of right replies."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def standard_error(self) -> float:
        """Of the accuracy: see `spread.py`."""
        return share_error(np.arange(self.asked) < self.right)

    @property
    def centred(self) -> float:
        """The accuracy on a scale where guessing is 0: (p - baseline) / (1 - baseline)."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def centred_error(self) -> float:
        """Standard error of `centred`."""
        return self.standard_error / (1 - self.baseline)


def as_read(content: Content) -> str:
    """A turn as a person reads it, calls and outputs included.

    >>> as_read((("call", "6*7"), ("output", "42"), ("text", " => 42")))
    '[6*7] = 42 => 42'
    """
    return "".join(map(shown, pieces_of(content)))


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

    A conversation longer than the model's context is not right: the engine cannot say it, since
    the last position of a row is where it lets idle rows write.

    Cost: one forward pass over all tokens, in groups of ROWS of similar length.
    """
    context = model.config.sequence_len
    fitting = (i for i, (ids, _) in enumerate(examples) if len(ids) <= context)
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


def decoded_match(
    engine: Engine, tokenizer: Tokenizer, examples: Sequence[Rendered]
) -> list[bool]:
    """What `replies_match` says, found by decoding every reply: its slow twin.

    Args:
        engine: greedy requests are added to what it does.
        tokenizer: of its model.
        examples: rendered conversations of one question and one reply.

    Cost: a prefill a question, and a round of the engine for every token of every reply.
    """
    replies = dict[int, tuple[Reply, list[int]]]()
    for index, (ids, mask) in enumerate(examples):
        start = mask.index(1)
        if len(ids) <= engine.context:
            replies[index] = engine.submit(Request(
                ids[:start], max_tokens=len(ids) - start, stop=(tokenizer.assistant_end,),
                follow=Calculator(tokenizer).follow)), ids[start:]
    while engine.busy:
        engine.step()
    right = [False] * len(examples)
    for index, (reply, expected) in replies.items():
        said = [token.id for token in reply.tokens]
        right[index] = reply.finish == "stop" and [*said, tokenizer.assistant_end] == expected
    return right


def evaluate(
    model: GPT, tokenizer: Tokenizer, questions: Mapping[str, Sequence[Question]],
    failures: int = FAILURES,
) -> list[Score]:
    """Exact match per task on the given questions, in their order.

    Args:
        failures: most of them that are kept a task.
    """
    flat = [q for asked in questions.values() for q in asked]
    right = replies_match(model, [tokenizer.render(to_conversation(q)) for q in flat])
    verdicts = dict(zip(map(id, flat), right, strict=True))
    scores = []
    for name, asked in questions.items():
        wrong = [q for q in asked if not verdicts[id(q)]]
        kept = tuple(Failure(q.text, as_read(q.answer)) for q in wrong[:failures])
        scores.append(Score(name, len(asked) - len(wrong), len(asked), kept))
    return scores


def with_replies(engine: Engine, tokenizer: Tokenizer, scores: Sequence[Score]) -> list[Score]:
    """The same scores, where each failure tells what the model replied, greedily decoded."""
    flat = [f for score in scores for f in score.failures]
    prompts = [tokenizer.render_prompt([{"role": "user", "content": f.question}]) for f in flat]
    replies = [engine.submit(Request(
        prompt, max_tokens=_LONGEST_REPLY, stop=(tokenizer.assistant_end, tokenizer.bos),
        follow=Calculator(tokenizer).follow)) if len(prompt) < engine.context else None
        for prompt in prompts]
    while engine.busy:
        engine.step()
    told = iter([replace(f, given="" if reply is None else as_read(content_of(tokenizer, reply)))
                 for f, reply in zip(flat, replies, strict=True)])
    return [replace(score, failures=tuple(next(told) for _ in score.failures))
            for score in scores]


def content_of(tokenizer: Tokenizer, reply: Reply) -> Content:
    """What a finished reply says, as pieces if it called the calculator."""
    stream = ReplyStream(tokenizer)
    pushed = (stream.push(token.id) for token in reply.tokens)
    return joined(chain(chain.from_iterable(pushed), stream.rest()))


def bits_per_byte(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document]) -> float:
    """Bits that the model needs for one byte of text: cross-entropy without the tokenizer's unit.

    Every token is predicted once. A document longer than the context is read in pieces, each of
    which begins with the last token of the one before.

    Args:
        documents: held-out ones; of conversations every word counts, marks of turns do not.

    Returns:
        The sum of the bits of all tokens that stand for text, over the bytes of that text.
    """
    return bits_figure(model, tokenizer, documents).value


def bits_figure(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document]) -> Figure:
    """`bits_per_byte` with its standard error, from how much the pieces that are read differ.

    Both are those of a ratio of sums over pieces: of their bits, and of their bytes.
    """
    T = model.config.sequence_len
    pieces = list[list[int]]()
    for document in documents:
        ids, _ = (tokenizer.render_document(document) if isinstance(document, str)
                  else tokenizer.render(document))
        pieces += [ids[at : at + T + 1] for at in range(0, len(ids) - 1, T)]
    sizes, bits, size = tokenizer.bytes_per_token, list[float](), list[int]()
    for start in range(0, len(pieces), ROWS):
        rows = np.full((ROWS, T + 1), tokenizer.bos, np.int64)  # one shape, so one program
        for row, piece in zip(rows, pieces[start : start + ROWS], strict=False):
            row[: len(piece)] = piece
        weights = sizes[rows[:, 1:]]  # marks and padding stand for no text
        with gs.no_grad():
            logits = model(gs.from_numpy(np.ascontiguousarray(rows[:, :-1])))
            targets = gs.from_numpy(np.ascontiguousarray(rows[:, 1:]))
            nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
                                   reduction="none").numpy().reshape(ROWS, T)
        counted = np.where(weights > 0, nats, 0.0).sum(axis=1, dtype=np.float64)
        bits += (counted / math.log(2)).tolist()
        size += weights.sum(axis=1).tolist()
    if not sum(size):
        return Figure("bits per byte", 0.0, 0.0)
    return Figure("bits per byte", math.fsum(bits) / sum(size), ratio_error(bits, size))


def mean_score(scores: Sequence[Score]) -> tuple[float, float]:
    """Mean of the tasks' accuracies and its standard error."""
    if not scores:
        return 0.0, 0.0
    mean = sum(s.accuracy for s in scores) / len(scores)
    return mean, math.sqrt(sum(s.standard_error**2 for s in scores)) / len(scores)
