"""Tasks on the order of whole numbers: the largest, the smallest, all in order. Layer 7.

One task with four kinds of question. Facts are the kind and the numbers as they are asked; the
split looks at the numbers without their order, so no list is both trained on and tested.
"""

from __future__ import annotations

import re
from random import Random

from gossamer.chat.arithmetic import states
from gossamer.chat.task import Task, final_part

__all__ = ["ORDERING"]

OrderFacts = tuple[str, tuple[int, ...]]  # the kind of question, the numbers
_KINDS = (("sort", 0.5), ("largest", 0.25), ("smallest", 0.1), ("compare", 0.15))


def _draw_order(rng: Random) -> OrderFacts:
    kind = rng.choices([k for k, _ in _KINDS], [share for _, share in _KINDS])[0]
    count = 2 if kind == "compare" else 4
    while True:
        numbers = tuple(1 + int(rng.random() * (999 if rng.random() < 0.8 else 99))
                        for _ in range(count))
        if len(set(numbers)) == count:
            return kind, numbers


def _order_fields(facts: OrderFacts, rng: Random) -> dict[str, str]:
    said = [str(n) for n in facts[1]]
    joined = (", " if rng.random() < 0.7 else " ").join(said)
    if rng.random() < 0.2:
        joined = ", ".join(said[:-1]) + f" and {said[-1]}"
    return {"list": joined, "a": said[0], "b": said[1]}


def _order_answer(facts: OrderFacts) -> str:
    kind, numbers = facts
    if kind == "sort":
        return ", ".join(map(str, sorted(numbers)))
    return str(min(numbers) if kind == "smallest" else max(numbers))


def _order_is(facts: OrderFacts, reply: str) -> bool:
    kind, numbers = facts
    if kind != "sort":
        return states(reply, sorted(numbers)[0 if kind == "smallest" else -1])
    said = [int(n) for n in re.findall(r"-?\d+", final_part(reply))]
    ascending = all(x < y for x, y in zip(said, said[1:], strict=False))
    return ascending and len(said) == len(numbers) and set(said) == set(numbers)


ORDERING = (
    Task(
        name="order",
        doc="sort numbers, or find the largest or smallest of them",
        draw=_draw_order,
        key=lambda facts: "order:" + ",".join(map(str, sorted(facts[1]))),
        fields=_order_fields,
        answer=_order_answer,
        verify=_order_is,
        kind=lambda facts: facts[0],
    ),
)
