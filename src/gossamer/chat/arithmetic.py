"""Tasks on whole numbers: add, subtract, multiply. Layer 7.

Sums and differences are worked out from the last digit on, as on paper, one column a step with its
carry written down; then every written token depends on one or two earlier ones. Digits are single
tokens (`tokenizer.py`), so that the columns can be seen at all (Lee et al. 2023, "Teaching
Arithmetic to Small Transformers": reversed digits and scratch work).
"""

from __future__ import annotations

from random import Random

from gossamer.chat.task import ARROW, Task, final_part

__all__ = ["ARITHMETIC", "add_answer", "states", "subtract_answer"]

Pair = tuple[int, int]


def _draw_number(rng: Random) -> int:
    """0 to 999: mostly three digits, the rest of all lengths, since people ask small sums too."""
    dice = rng.random()
    if dice < 0.80:
        return 100 + int(rng.random() * 900)
    return int(rng.random() * (100 if dice < 0.92 else 10))


def _draw_pair(rng: Random) -> Pair:
    return _draw_number(rng), _draw_number(rng)


def _draw_ordered(rng: Random) -> Pair:
    a, b = _draw_pair(rng)
    return (a, b) if a >= b else (b, a)


def _draw_product(rng: Random) -> Pair:
    return 10 + int(rng.random() * 90), 2 + int(rng.random() * 8)


def _pair_fields(facts: Pair, rng: Random) -> dict[str, str]:
    return {"a": str(facts[0]), "b": str(facts[1])}


def _product_fields(facts: Pair, rng: Random) -> dict[str, str]:
    a, b = facts if rng.random() < 0.7 else facts[::-1]
    return {"a": str(a), "b": str(b)}


def states(reply: str, result: int) -> bool:
    """Whether a reply ends with this number, its thousands perhaps set apart by commas."""
    return final_part(reply).replace(",", "") == str(result)


def add_answer(facts: Pair) -> str:
    """Columns from the right, then the sum: `8+4=12,9+7+1=17,0+1=1 => 172` for 98 + 74."""
    a, b = facts
    carry, columns, x, y = 0, [], a, b
    while True:
        terms = f"{x % 10}+{y % 10}" + ("+1" if carry else "")
        total = x % 10 + y % 10 + carry
        columns.append(f"{terms}={total}")
        carry, x, y = total // 10, x // 10, y // 10
        if not (x or y):
            break
    return ",".join(columns) + f"{ARROW}{a + b}"


def subtract_answer(facts: Pair) -> str:
    """Columns from the right; a column that borrows starts with its ten: `12-8=4,6-1-3=2`."""
    a, b = facts
    borrow, columns, x, y = 0, [], a, b
    while True:
        top, low = x % 10, y % 10
        lend = 10 if top - low - borrow < 0 else 0
        terms = f"{top + lend}-{low}" + ("-1" if borrow else "")
        columns.append(f"{terms}={top + lend - low - borrow}")
        borrow, x, y = int(lend > 0), x // 10, y // 10
        if not (x or y):
            break
    return ",".join(columns) + f"{ARROW}{a - b}"


def _multiply_answer(facts: Pair) -> str:
    """Tens and units apart: `240+42 => 282` for 47 x 6."""
    a, b = facts
    return f"{a // 10 * 10 * b}+{a % 10 * b}{ARROW}{a * b}"


ARITHMETIC = (
    Task(
        name="add",
        doc="the sum of two numbers of up to three digits",
        draw=_draw_pair,
        key=lambda facts: "add:{}+{}".format(*sorted(facts)),
        fields=_pair_fields,
        answer=add_answer,
        verify=lambda facts, reply: states(reply, sum(facts)),
    ),
    Task(
        name="subtract",
        doc="the difference of two numbers of up to three digits, not below zero",
        draw=_draw_ordered,
        key=lambda facts: "subtract:{}-{}".format(*facts),
        fields=_pair_fields,
        answer=subtract_answer,
        verify=lambda facts, reply: states(reply, facts[0] - facts[1]),
    ),
    Task(
        name="multiply",
        doc="a number of two digits times a number of one digit",
        draw=_draw_product,
        key=lambda facts: "multiply:{}x{}".format(*facts),
        fields=_product_fields,
        answer=_multiply_answer,
        verify=lambda facts, reply: states(reply, facts[0] * facts[1]),
    ),
)
