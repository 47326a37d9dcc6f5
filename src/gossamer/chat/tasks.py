"""The table of tasks: one record each, in the order of the report. Layer 7.

Adding a task means adding its record to one family file and its wordings to `data/wordings/`; the
trainer, the evaluation, the report and the tests all walk this table.
"""

from __future__ import annotations

from gossamer.chat.arithmetic import ARITHMETIC
from gossamer.chat.calendars import CALENDAR
from gossamer.chat.everyday import EVERYDAY
from gossamer.chat.ordering import ORDERING
from gossamer.chat.spelling import SPELLING
from gossamer.chat.stories import STORIES
from gossamer.chat.task import Task
from gossamer.chat.tooluse import TOOL_USE

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (*SPELLING, *ARITHMETIC, *ORDERING, *CALENDAR, *EVERYDAY, *STORIES, *TOOL_USE)
}
