"""Tasks on letters: spell a word, count a letter in it, say it from its end. Layer 7.

All three share one key per word, so that a held-out word is unseen in every one of them. The
letters are joined by hyphens: the split pattern makes `-a` one token, so a spelled word costs one
token a letter, and the letter tokens never merge.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.task import ARROW, Task, final_part, pick
from gossamer.chat.words import draw_word, word_key

__all__ = ["SPELLING"]

_QUOTES = ("{}", "{}", "{}", '"{}"', "'{}'")

WordFacts = tuple[str, str]  # the kind of question, the word


def quoted(word: str, rng: Random) -> str:
    """The word as people type it: bare, in double or in single quotes."""
    return pick(rng, _QUOTES).format(word)


def _word_fields(facts: str, rng: Random) -> dict[str, str]:
    return {"word": quoted(facts, rng)}


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalpha())


def _spell(word: str) -> str:
    return "-".join(word)


def _draw_count(rng: Random) -> tuple[str, str]:
    word = draw_word(rng)
    if rng.random() < 0.8:  # mostly letters that occur: a count of zero is the easy case
        return word, word[int(rng.random() * len(word))]
    return word, "abcdefghijklmnopqrstuvwxyz"[int(rng.random() * 26)]


def _count_answer(facts: tuple[str, str]) -> str:
    """Every letter followed by the running count: `count r: s0 t0 r1 a1 ... => 3`.

    The letter sought is said first, after a space as all the others: then the same letter is the
    same token, however it was quoted in the question.
    """
    word, letter = facts
    running, parts = 0, []
    for c in word:
        running += c == letter
        parts.append(f"{c}{running}")
    return f"count {letter}: " + " ".join(parts) + f"{ARROW}{running}"


def _draw_backwards(rng: Random) -> WordFacts:
    dice = rng.random()
    kind = "backwards" if dice < 0.7 else "first" if dice < 0.85 else "last"
    return kind, draw_word(rng)


def _backwards_answer(facts: WordFacts) -> str:
    """Forwards first, then backwards: each letter is the one before the last written one."""
    kind, word = facts
    wanted = {"backwards": _spell(word[::-1]), "first": word[0], "last": word[-1]}[kind]
    return f"{_spell(word)}{ARROW}{wanted}"


def _is_backwards(facts: WordFacts, reply: str) -> bool:
    kind, word = facts
    said = _letters(final_part(reply))
    return said[::-1] == word if kind == "backwards" else said == word[0 if kind == "first" else -1]


def _count_fields(facts: tuple[str, str], rng: Random) -> dict[str, str]:
    return {"word": quoted(facts[0], rng), "letter": quoted(facts[1], rng)}


SPELLING = (
    Task(
        name="spell",
        doc="spell a word letter by letter",
        draw=draw_word,
        key=word_key,
        fields=_word_fields,
        answer=_spell,
        verify=lambda word, reply: _letters(final_part(reply)) == word,
    ),
    Task(
        name="count_letters",
        doc="how often a letter occurs in a word",
        draw=_draw_count,
        key=lambda facts: word_key(facts[0]),
        fields=_count_fields,
        answer=_count_answer,
        verify=lambda facts, reply: final_part(reply) == str(facts[0].count(facts[1])),
    ),
    Task(
        name="reverse_word",
        doc="a word backwards, its first or its last letter",
        draw=_draw_backwards,
        key=lambda facts: word_key(facts[1]),
        fields=lambda facts, rng: {"word": quoted(facts[1], rng)},
        answer=_backwards_answer,
        verify=_is_backwards,
        kind=lambda facts: facts[0],
    ),
)
