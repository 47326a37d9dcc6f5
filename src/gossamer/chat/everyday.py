"""Numbers of every day: clock times, change, units of measure, Roman numerals. Layer 7.

Scratch work turns each into steps that look one thing up: minutes are summed and an hour is taken
out of them, change is counted up to the next ten and from there, a numeral is read digit by digit.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.arithmetic import states
from gossamer.chat.task import ARROW, Task, final_part, pick

__all__ = ["EVERYDAY"]

# The kind of question and its numbers: minutes of the day and minutes to add; price and coin;
# a count and a row of _UNITS; a number to or from Roman numerals.
Facts = tuple[str, int, int]

_KINDS = ("clock", "clock", "change", "change", "units", "to_roman", "from_roman")
_COINS = (50, 100, 200, 500)
_LARGEST_ROMAN = 399
_UNITS = (  # large, small, how many; powers of ten take any count, the others a single digit
    ("meters", "centimeters", 100), ("kilometers", "meters", 1000), ("kilograms", "grams", 1000),
    ("liters", "milliliters", 1000), ("centimeters", "millimeters", 10), ("euros", "cents", 100),
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7),
    ("years", "months", 12), ("dozens", "pieces", 12), ("days", "hours", 24),
)
_ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"),
          (1, "I"))


def _draw(rng: Random) -> Facts:
    kind = pick(rng, _KINDS)
    if kind == "clock":
        return kind, int(rng.random() * 24 * 60), 5 * (1 + int(rng.random() * 18))
    if kind == "change":
        coin = pick(rng, _COINS)
        return kind, 1 + int(rng.random() * (coin - 1)), coin
    if kind == "units":
        row = int(rng.random() * len(_UNITS))
        ten = _UNITS[row][2] % 10 == 0 and _UNITS[row][2] != 60
        return kind, 2 + int(rng.random() * (98 if ten else 8)), row
    return kind, 1 + int(rng.random() * _LARGEST_ROMAN), 0


def _time(minutes: int) -> str:
    return f"{minutes // 60 % 24}:{minutes % 60:02}"


def to_roman(number: int) -> str:
    """A number from 1 to 399 in Roman numerals.

    >>> to_roman(249)
    'CCXLIX'
    """
    said = ""
    for value, letters in _ROMAN:
        said += letters * (number // value)
        number %= value
    return said


def _digits_in_roman(number: int) -> list[tuple[int, str]]:
    """Hundreds, tens and units that are not zero, each with its letters."""
    parts = [number // 100 * 100, number // 10 % 10 * 10, number % 10]
    return [(part, to_roman(part)) for part in parts if part]


def _clock_answer(start: int, added: int) -> str:
    """Minutes first; a full hour moves on: `45+30=75-60=15 => 11:15` for 10:45."""
    total = start % 60 + added
    steps = f"{start % 60}+{added}={total}"
    while total >= 60:
        steps += f"-60={total - 60}"
        total -= 60
    return f"{steps}{ARROW}{_time(start + added)}"


def _change_answer(price: int, coin: int) -> str:
    """Up to the next ten, then on: `37+3=40+60=100 => 63`."""
    up = -price % 10
    ten = price + up
    first = f"{price}+{up}=" if up else ""
    rest = f"{ten}+{coin - ten}={coin}" if coin > ten else f"{ten}"
    return f"{first}{rest}{ARROW}{coin - price}"


def _answer(facts: Facts) -> str:
    kind, n, other = facts
    if kind == "clock":
        return _clock_answer(n, other)
    if kind == "change":
        return _change_answer(n, other)
    if kind == "units":
        factor = _UNITS[other][2]
        tens, ones = divmod(factor, 10)
        parts = f"={n * 10 * tens}+{n * ones}" if tens and ones else ""
        return f"{n}*{factor}{parts}{ARROW}{n * factor}"
    digits = _digits_in_roman(n)
    if kind == "to_roman":
        return " ".join(f"{part} {letters}" for part, letters in digits) + ARROW + to_roman(n)
    return " ".join(f"{letters} {part}" for part, letters in digits) + f"{ARROW}{n}"


def _is_right(facts: Facts, reply: str) -> bool:
    kind, n, other = facts
    if kind == "clock":
        hours, minutes = divmod(n, 60)
        minutes += other
        hours, minutes = (hours + minutes // 60) % 24, minutes % 60
        said = final_part(reply).removesuffix(" o'clock")
        return said in (f"{hours}:{minutes:02}", f"{hours:02}:{minutes:02}")
    if kind == "to_roman":
        return _from_roman(final_part(reply)) == n and final_part(reply).isupper()
    if kind == "units":
        return states(reply, sum([_UNITS[other][2]] * n))
    return states(reply, other - n if kind == "change" else n)


def _from_roman(text: str) -> int:
    """Read letter by letter, a smaller before a larger one taken away; 0 if it is no numeral."""
    values = [{"C": 100, "L": 50, "X": 10, "V": 5, "I": 1}.get(letter, 0) for letter in text]
    total = sum(-v if v < next_one else v
                for v, next_one in zip(values, [*values[1:], 0], strict=True))
    return total if 0 not in values and total > 0 and to_roman(total) == text else 0


def _fields(facts: Facts, rng: Random) -> dict[str, str]:
    kind, n, other = facts
    if kind == "clock":
        return {"time": _time(n), "n": str(other)}
    if kind == "change":
        return {"a": str(n), "b": str(other)}
    if kind == "units":
        large, small, _ = _UNITS[other]
        return {"n": str(n), "large": large, "small": small}
    return {"n": str(n), "roman": to_roman(n)}


EVERYDAY = (
    Task(
        name="everyday",
        doc="clock times, change, units of measure, Roman numerals",
        draw=_draw,
        key=lambda facts: "everyday:{}:{}:{}".format(*facts),
        fields=_fields,
        answer=_answer,
        verify=_is_right,
        kind=lambda facts: facts[0],
    ),
)
