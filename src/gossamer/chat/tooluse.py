"""The task of knowing what not to do in one's head: call the calculator. Layer 7.

The questions look like those of the other tasks, but their numbers are too long for columns
written out. The model writes the call, the calculator's output is put after it, and the reply
repeats it. The output is never supervised: at run time it is given.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.arithmetic import states
from gossamer.chat.calculator import calculate
from gossamer.chat.message import Content
from gossamer.chat.spelling import quoted
from gossamer.chat.task import ARROW, Task, is_held_out, pick
from gossamer.chat.words import draw_word, word_key

__all__ = ["TOOL_USE"]

# The kind of question and its operands: two numbers, or a text and a letter.
Facts = tuple[str, int, int] | tuple[str, str, str]

_SIGNS = {"product": "*", "sum": "+", "difference": "-", "quotient": "/"}
_KINDS = ("product", "product", "product", "sum", "difference", "quotient", "count", "count")


def _long_number(rng: Random, fewest: int, most: int) -> int:
    """A number of `fewest` to `most` digits."""
    digits = fewest + int(rng.random() * (most - fewest + 1))
    return int((1 + 9 * rng.random()) * 10 ** (digits - 1))


def _draw(rng: Random) -> Facts:
    kind = pick(rng, _KINDS)
    if kind == "count":
        words = [_known_word(rng) for _ in range(2 + int(rng.random() * 3))]
        return kind, " ".join(words), pick(rng, pick(rng, words))
    if kind == "product":
        return _either_way(rng, kind, _long_number(rng, 3, 5), _long_number(rng, 2, 4))
    if kind == "quotient":
        divisor = _long_number(rng, 2, 3)
        return kind, divisor * _long_number(rng, 2, 4), divisor
    a, b = _long_number(rng, 4, 6), _long_number(rng, 4, 6)
    if kind == "sum":
        return _either_way(rng, kind, a, b)
    return kind, max(a, b), min(a, b)


def _either_way(rng: Random, kind: str, a: int, b: int) -> Facts:
    """The call is to have the operands as they are asked, so their order belongs to the facts."""
    return (kind, a, b) if rng.random() < 0.7 else (kind, b, a)


def _key(facts: Facts) -> str:
    kind, a, b = facts
    if isinstance(a, int) and isinstance(b, int) and kind in ("product", "sum"):
        a, b = sorted((a, b))
    return f"calculator:{kind}:{a}:{b}"


def _known_word(rng: Random) -> str:
    """A word of the training side: the spelling tasks' held-out words are seen nowhere."""
    while True:
        if not is_held_out(word_key(word := draw_word(rng))):
            return word


def _call(facts: Facts) -> str:
    """What the calculator is asked."""
    kind, a, b = facts
    return f"'{a}'.count('{b}')" if kind == "count" else f"{a}{_SIGNS[kind]}{b}"


def _answer(facts: Facts) -> Content:
    call = _call(facts)
    output = calculate(call)
    assert output is not None  # every call of this task has a value
    return ("call", call), ("output", output), ("text", ARROW + output)


def _is_right(facts: Facts, reply: str) -> bool:
    kind, a, b = facts
    if isinstance(a, str) or isinstance(b, str):
        return states(reply, sum(letter == b for letter in str(a)))
    return states(reply, {"product": a * b, "sum": a + b, "difference": a - b,
                          "quotient": a // b}[kind])


def _fields(facts: Facts, rng: Random) -> dict[str, str]:
    kind, a, b = facts
    if kind == "count":
        return {"text": str(a), "letter": quoted(str(b), rng)}
    return {"a": str(a), "b": str(b)}


TOOL_USE = (
    Task(
        name="calculator",
        doc="long numbers and sentences, by calling the calculator",
        draw=_draw,
        key=_key,
        fields=_fields,
        answer=_answer,
        verify=_is_right,
        kind=lambda facts: facts[0],
    ),
)
