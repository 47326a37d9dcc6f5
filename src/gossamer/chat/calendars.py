"""Tasks on the calendar: a weekday or month some way off, dates some days apart. Layer 7.

The verifiers ask Python's `datetime`, the answers are worked out by counting, so that neither can
hide a mistake of the other.
"""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from gossamer.chat.task import ARROW, Task, final_part, pick
from gossamer.chat.words import listed

__all__ = ["CALENDAR"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")
_NAMES: dict[str, tuple[str, ...]] = {"day": DAYS, "month": MONTHS}
_MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIRST_YEAR, _YEARS = 1950, 100
_MOST_DAYS = 60  # of a weekday question; beyond it only the remainder's table grows
_MOST_MONTHS = 11
_NEXT_SHARE = 0.15  # of the questions: the very next day or month, which people ask most
_NUMBERS = listed("one two three four five six seven eight nine ten eleven twelve")
_MOST_STEPS = 9  # of a date question

DayFacts = tuple[str, str, int]  # "day" or "month", its name, how many from it (negative = before)
DateFacts = tuple[str, int, int, int, int]  # "after" or "between"; year, month, day, days added


def _draw_weekday(rng: Random) -> DayFacts:
    forward = rng.random() < 0.7
    kind = "day" if rng.random() < 0.8 else "month"
    away = 1 + int(rng.random() * (_MOST_DAYS if kind == "day" else _MOST_MONTHS))
    if rng.random() < _NEXT_SHARE:
        away = 1
    return kind, pick(rng, _NAMES[kind]), away if forward else -away


def _weekday_answer(facts: DayFacts) -> str:
    """Whole weeks drop out, the rest is counted: `16=14+2 1 Tuesday 2 Wednesday => Wednesday`."""
    kind, name, away = facts
    names = _NAMES[kind]
    rest, step = abs(away) % len(names), 1 if away > 0 else -1
    here = names.index(name)
    counted = [f"{i} {names[(here + i * step) % len(names)]}" for i in range(1, rest + 1)]
    weeks = [f"{abs(away)}={abs(away) - rest}+{rest}"] if kind == "day" else []
    return " ".join(weeks + counted) + f"{ARROW}{names[(here + rest * step) % len(names)]}"


def _weekday_is(facts: DayFacts, reply: str) -> bool:
    kind, name, away = facts
    if kind == "day":
        start = next(d for d in (date(2024, 1, 1) + timedelta(i) for i in range(7))
                     if d.strftime("%A") == name)
        right = (start + timedelta(away)).strftime("%A")
    else:
        start = next(d for d in (date(2024, m, 1) for m in range(1, 13))
                     if d.strftime("%B") == name)
        right = date(2024, (start.month + away - 1) % 12 + 1, 1).strftime("%B")
    return final_part(reply).lower() == right.lower()


def _weekday_fields(facts: DayFacts, rng: Random) -> dict[str, str]:
    kind, name, away = facts
    count, forward = abs(away), away > 0
    plural = kind if count == 1 else kind + "s"
    number = _NUMBERS[count - 1] if count <= len(_NUMBERS) and rng.random() < 0.3 else count
    return {kind: name if rng.random() < 0.85 else name.lower(), "n": f"{number} {plural}",
            "after": "after" if forward else "before",
            "follows": "follows" if forward else "precedes",
            "is_tomorrow": "is tomorrow" if forward else "was yesterday",
            "will": "will it be tomorrow" if forward else "was it yesterday"}


def _weekday_kind(facts: DayFacts) -> str:
    kind, _, away = facts
    return f"next {kind}" if abs(away) == 1 else kind


def _draw_date(rng: Random) -> DateFacts:
    kind = "after" if rng.random() < 0.8 else "between"
    year, month = _FIRST_YEAR + int(rng.random() * _YEARS), 1 + int(rng.random() * 12)
    day = 1 + int(rng.random() * _month_length(year, month))
    return kind, year, month, day, 1 + int(rng.random() * _MOST_STEPS)


def _month_length(year: int, month: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else _MONTH_LENGTHS[month - 1]


def _later(year: int, month: int, day: int, steps: int) -> tuple[int, int, int]:
    """The date some days later, at most into the next month."""
    day += steps
    if day > (length := _month_length(year, month)):
        day -= length
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return year, month, day


def _date_answer(facts: DateFacts) -> str:
    """The day summed, the month's length, then the date: `28+3=31 of 30 => 2024-05-01`.

    Between two dates: what is left of the first month, and the days of the next: `30-28=2+1 => 3`.
    Before February's length stands what decides it: `24=4*6 27+3=30 of 29 => 2024-03-01`.
    """
    kind, year, month, day, steps = facts
    length, end = _month_length(year, month), _later(year, month, day, steps)
    fours = f"{_by_four(year % 100)} " if month == 2 else ""
    if kind == "after":
        return f"{fours}{day}+{steps}={day + steps} of {length}{ARROW}" + _iso(*end)
    if end[1] == month:
        return f"{end[2]}-{day}{ARROW}{steps}"
    return f"{fours}{length}-{day}={length - day}+{end[2]}{ARROW}{steps}"


def _by_four(n: int) -> str:
    """`24=4*6`, `23=4*5+3`."""
    return f"{n}=4*{n // 4}" + (f"+{n % 4}" if n % 4 else "")


def _iso(year: int, month: int, day: int) -> str:
    return f"{year:04}-{month:02}-{day:02}"


def _date_is(facts: DateFacts, reply: str) -> bool:
    kind, year, month, day, steps = facts
    if kind == "between":
        return final_part(reply).removesuffix(" days").removesuffix(" day") == str(steps)
    return final_part(reply) == (date(year, month, day) + timedelta(steps)).isoformat()


def _date_fields(facts: DateFacts, rng: Random) -> dict[str, str]:
    _, year, month, day, steps = facts
    return {"date": _iso(year, month, day), "n": f"{steps} day{'s' * (steps > 1)}",
            "end": _iso(*_later(year, month, day, steps))}


CALENDAR = (
    Task(
        name="weekday",
        doc="the weekday or month some days or months after or before one",
        draw=_draw_weekday,
        key=lambda facts: "weekday:{1}{2:+d}".format(*facts),
        fields=_weekday_fields,
        answer=_weekday_answer,
        verify=_weekday_is,
        kind=_weekday_kind,
    ),
    Task(
        name="date",
        doc="the date some days after a date, or the days between two, with leap years",
        draw=_draw_date,
        key=lambda facts: "date:{1:04}-{2:02}-{3:02}+{4}".format(*facts),
        fields=_date_fields,
        answer=_date_answer,
        verify=_date_is,
        kind=lambda facts: facts[0],
    ),
)
