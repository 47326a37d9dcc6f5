"""Tasks on the calendar: a weekday some days away, a date some days later. Layer 7.

The verifiers ask Python's `datetime`, the answers are worked out by counting, so that neither can
hide a mistake of the other.
"""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from gossamer.chat.task import ARROW, Task, final_part

__all__ = ["CALENDAR"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIRST_YEAR, _YEARS = 1950, 100
_MOST_DAYS = 60  # of a weekday question; beyond it only the remainder's table grows
_MOST_STEPS = 9  # of a date question

DayFacts = tuple[str, int]  # weekday, days from it (negative = before)
DateFacts = tuple[int, int, int, int]  # year, month, day, days to add


def _draw_weekday(rng: Random) -> DayFacts:
    away = 1 + int(rng.random() * _MOST_DAYS)
    return DAYS[int(rng.random() * 7)], away if rng.random() < 0.7 else -away


def _weekday_answer(facts: DayFacts) -> str:
    """Whole weeks drop out, the rest is counted: `16=14+2 1 Tuesday 2 Wednesday => Wednesday`."""
    day, away = facts
    rest, step = abs(away) % 7, 1 if away > 0 else -1
    here = DAYS.index(day)
    counted = [f" {i} {DAYS[(here + i * step) % 7]}" for i in range(1, rest + 1)]
    weeks = f"{abs(away)}={abs(away) - rest}+{rest}"
    return weeks + "".join(counted) + f"{ARROW}{DAYS[(here + rest * step) % 7]}"


def _weekday_is(facts: DayFacts, reply: str) -> bool:
    start = next(d for d in (date(2024, 1, 1) + timedelta(i) for i in range(7))
                 if d.strftime("%A") == facts[0])
    return final_part(reply).lower() == (start + timedelta(facts[1])).strftime("%A").lower()


def _weekday_fields(facts: DayFacts, rng: Random) -> dict[str, str]:
    day, away = facts
    plural = "day" if abs(away) == 1 else "days"
    return {"day": day if rng.random() < 0.85 else day.lower(), "n": f"{abs(away)} {plural}",
            "after": "after" if away > 0 else "before"}


def _draw_date(rng: Random) -> DateFacts:
    year, month = _FIRST_YEAR + int(rng.random() * _YEARS), 1 + int(rng.random() * 12)
    day = 1 + int(rng.random() * _month_length(year, month))
    return year, month, day, 1 + int(rng.random() * _MOST_STEPS)


def _month_length(year: int, month: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else _MONTH_LENGTHS[month - 1]


def _date_answer(facts: DateFacts) -> str:
    """The day summed, the month's length, then the date: `27+3=30 of 29 => 2024-03-01`."""
    year, month, day, steps = facts
    length = _month_length(year, month)
    scratch = f"{day}+{steps}={day + steps} of {length}{ARROW}"
    day += steps
    if day > length:
        day -= length
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return f"{scratch}{year:04}-{month:02}-{day:02}"


def _date_is(facts: DateFacts, reply: str) -> bool:
    year, month, day, steps = facts
    return final_part(reply) == (date(year, month, day) + timedelta(steps)).isoformat()


def _date_fields(facts: DateFacts, rng: Random) -> dict[str, str]:
    year, month, day, steps = facts
    return {"date": f"{year:04}-{month:02}-{day:02}", "n": f"{steps} day{'s' * (steps > 1)}"}


CALENDAR = (
    Task(
        name="weekday",
        doc="the weekday some days after or before a weekday",
        draw=_draw_weekday,
        key=lambda facts: "weekday:{}{:+d}".format(*facts),
        ask=(
            "What day is {n} {after} {day}?",
            "Which day comes {n} {after} {day}?",
            "Which weekday is {n} {after} {day}?",
            "What day of the week is {n} {after} {day}?",
            "Name the day {n} {after} {day}.",
            "What is the day {n} {after} {day}?",
            "Start at {day}. What day is {n} {after} it?",
            "{n} {after} {day} is which day?",
        ),
        fields=_weekday_fields,
        answer=_weekday_answer,
        verify=_weekday_is,
    ),
    Task(
        name="date",
        doc="the date some days after a date, with leap years",
        draw=_draw_date,
        key=lambda facts: "date:{:04}-{:02}-{:02}+{}".format(*facts),
        ask=(
            "What date is {n} after {date}?",
            "Which date is {n} after {date}?",
            "What is {date} plus {n}?",
            "{date} + {n}",
            "Add {n} to {date}.",
            "What is the date {n} later than {date}?",
            "Today is {date}. What is the date in {n}?",
            "If it is {date}, which date is {n} later?",
        ),
        fields=_date_fields,
        answer=_date_answer,
        verify=_date_is,
    ),
)
