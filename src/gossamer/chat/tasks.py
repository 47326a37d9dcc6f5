"""The table of tasks: one record each, in the order of the report. Layer 7.

Adding a task means adding its record to one family file; the trainer, the evaluation, the report
and the tests all walk this table.
"""

from __future__ import annotations

from gossamer.chat.arithmetic import ARITHMETIC
from gossamer.chat.calendars import CALENDAR
from gossamer.chat.spelling import SPELLING
from gossamer.chat.stories import STORIES
from gossamer.chat.task import Task

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {
    task.name: task for task in (*SPELLING, *ARITHMETIC, *CALENDAR, *STORIES)
}
