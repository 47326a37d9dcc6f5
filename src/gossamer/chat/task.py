"""The record of one task, the hash split, and the noise of how people type. Layer 7.

A task is a family of questions made by program: `draw` invents the facts, `key` names their
content, `ask` and `fields` put them into words, `answer` is the reply to learn (scratch work first,
then ` => ` and the result) and `verify` judges any reply by the facts alone. The split looks only
at the key, so a held-out question is held out under every wording. The wordings are text files
beside the words: fifty and more a task, since a model knows only the questions it was asked.

Source: the "First Grade" proposal; scratch work in the answer makes a small model exact because
every next token then needs one look-up (Nye et al. 2021, "Show Your Work").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from random import Random
from typing import Any, TypeVar

from gossamer.chat.message import Content

__all__ = ["ARROW", "Question", "Task", "final_part", "is_held_out", "make_question", "pick",
           "sample", "wordings"]

ARROW = " => "  # between the scratch work and the result; one token after byte-pair training
HELD_OUT_PARTS = 8  # one key in eight is held out: at least 90 of the smallest space (720 products)

Item = TypeVar("Item")

_OPENERS = ("Please: ", "Hey, ", "Hi! ", "A question: ", "Quick question: ", "Tell me: ")
_CLOSERS = (" Thanks!", " Thank you.", " Please.", " Show your work.")


@dataclass(frozen=True)
class Question:
    """One question put into words, with its facts and its reference reply."""

    task: str
    facts: Any
    text: str
    answer: Content


@dataclass(frozen=True)
class Task:
    """One task: everything that training, evaluation and tests need to know about it.

    Args:
        name: identifier used in reports.
        doc: what is asked, in one line.
        draw: facts from a random generator.
        key: canonical content of the facts; equal keys mean equal underlying questions.
        fields: values of the template's names; it may draw wording (quotes, spacing).
        answer: the reference reply.
        verify: whether a reply states the right result; it recomputes the result its own way.
        kind: which section of the task's wordings fits the facts; "" where there is one only.
        share: weight in the training mixture.
    """

    name: str
    doc: str
    draw: Callable[[Random], Any]
    key: Callable[[Any], str]
    fields: Callable[[Any, Random], dict[str, str]]
    answer: Callable[[Any], Content]
    verify: Callable[[Any, str], bool]
    kind: Callable[[Any], str] = lambda facts: ""
    share: float = 1.0

    @property
    def ask(self) -> Mapping[str, tuple[str, ...]]:
        """Question templates for `str.format`, by kind."""
        return wordings(self.name)


@cache
def wordings(name: str) -> Mapping[str, tuple[str, ...]]:
    """The lines of `data/wordings/NAME.txt` under the names of its sections ("" before the first).

    >>> wordings("add")[""][0]
    'What is {a} + {b}?'
    """
    text = files("gossamer.chat").joinpath(f"data/wordings/{name}.txt").read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        else:
            sections.setdefault(section, []).append(line.replace("\\n", "\n"))
    return {section: tuple(lines) for section, lines in sections.items()}


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """One of the items; the same draw from the generator whatever their number."""
    return items[int(rng.random() * len(items))]


@lru_cache(maxsize=1 << 16)
def is_held_out(key: str) -> bool:
    """Whether the question with this content belongs to the test set, never to training.

    Cost: one md5 of the key, cached.

    >>> is_held_out("add:17+25") == is_held_out("add:17+25")
    True
    """
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_PARTS == 0


def sample(task: Task, rng: Random, *, held_out: bool = False) -> Question:
    """Draw a question of `task` from the training side or from the held-out side of the split."""
    while True:
        facts = task.draw(rng)
        if is_held_out(task.key(facts)) == held_out:
            return make_question(task, facts, rng)


def make_question(task: Task, facts: Any, rng: Random) -> Question:
    """Put given facts into words; `rng` chooses the template and the noise."""
    template = pick(rng, task.ask[task.kind(facts)])
    text = _noise(template, task.fields(facts, rng), rng)
    return Question(task.name, facts, text, task.answer(facts))


def final_part(reply: str) -> str:
    """What stands after the last arrow of a reply (all of it when there is none), stripped.

    >>> final_part("214 => 412.")
    '412'
    """
    return reply.rsplit(ARROW.strip(), 1)[-1].strip().rstrip(".!").strip()


def _noise(template: str, fields: dict[str, str], rng: Random) -> str:
    """Fill the template; then case, punctuation and politeness as people type them."""
    dice = rng.random()
    if dice < 0.60:
        return template.format_map(fields)
    if dice < 0.75:
        return template.lower().format_map(fields)
    if dice < 0.85:
        return template.rstrip("?.!").format_map(fields)
    if dice < 0.90:
        return template.lower().rstrip("?.!").format_map(fields)
    if dice < 0.95:
        return pick(rng, _OPENERS) + template.format_map(fields)
    return template.format_map(fields) + pick(rng, _CLOSERS)
