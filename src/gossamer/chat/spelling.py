"""Tasks on letters: spell a word, count a letter in it, say it backwards. Layer 7.

All three share one key per word, so that a held-out word is unseen in every one of them. The
letters are joined by hyphens: the split pattern makes `-a` one token, so a spelled word costs one
token a letter, and the letter tokens never merge.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.task import ARROW, Task, final_part
from gossamer.chat.words import draw_word, word_key

__all__ = ["SPELLING"]

_QUOTES = ("{}", "{}", "{}", '"{}"', "'{}'")


def quoted(word: str, rng: Random) -> str:
    """The word as people type it: bare, in double or in single quotes."""
    return _QUOTES[int(rng.random() * len(_QUOTES))].format(word)


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


def _reverse_answer(word: str) -> str:
    """Forwards first, then backwards: each letter is the one before the last written one."""
    return f"{_spell(word)}{ARROW}{_spell(word[::-1])}"


def _count_fields(facts: tuple[str, str], rng: Random) -> dict[str, str]:
    return {"word": quoted(facts[0], rng), "letter": quoted(facts[1], rng)}


SPELLING = (
    Task(
        name="spell",
        doc="spell a word letter by letter",
        draw=draw_word,
        key=word_key,
        ask=(
            "Spell {word}.",
            "How do you spell {word}?",
            "Can you spell {word}?",
            "Spell the word {word}.",
            "How is {word} spelled?",
            "What are the letters of {word}?",
            "Spell {word} letter by letter.",
            "Give me the letters in {word}.",
            "Which letters make the word {word}?",
            "How is the word {word} written?",
        ),
        fields=_word_fields,
        answer=_spell,
        verify=lambda word, reply: _letters(final_part(reply)) == word,
    ),
    Task(
        name="count_letters",
        doc="how often a letter occurs in a word",
        draw=_draw_count,
        key=lambda facts: word_key(facts[0]),
        ask=(
            "How many {letter} are in {word}?",
            "How many {letter} in {word}?",
            "How many times does {letter} appear in {word}?",
            "Count the letter {letter} in {word}.",
            "How often does the letter {letter} occur in {word}?",
            "How many letters {letter} does {word} have?",
            "How many {letter}'s are there in the word {word}?",
            "Count {letter} in {word}.",
            "In {word}, how many {letter} do you see?",
            "What is the number of {letter} in {word}?",
        ),
        fields=_count_fields,
        answer=_count_answer,
        verify=lambda facts, reply: final_part(reply) == str(facts[0].count(facts[1])),
    ),
    Task(
        name="reverse_word",
        doc="the letters of a word backwards",
        draw=draw_word,
        key=word_key,
        ask=(
            "Reverse the word {word}.",
            "Spell {word} backwards.",
            "What is {word} backwards?",
            "Write {word} in reverse.",
            "Reverse {word}.",
            "How do you spell {word} backwards?",
            "What is the reverse of {word}?",
            "Say {word} from the last letter to the first.",
            "Turn {word} around.",
            "Can you write {word} backwards?",
        ),
        fields=_word_fields,
        answer=_reverse_answer,
        verify=lambda word, reply: _letters(final_part(reply))[::-1] == word,
    ),
)
