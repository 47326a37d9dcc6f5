"""Two runs side by side: what only one of them was asked weighs nothing."""

from __future__ import annotations

import math

import pytest

from gossamer.chat.compare import comparison_table
from gossamer.chat.evaluate import Score

TASKS = [Score(name, 125, 250) for name in "abcdefghijkl"]


@pytest.mark.parametrize("more", [
    Score("stories", 0, 0),  # figures alone, no question
    Score("of one run alone", 0, 250),
    Score("of one run alone", 250, 250),
])
def test_the_mean_is_over_what_both_were_asked(more: Score) -> None:
    for first, second in ((TASKS, [*TASKS, more]), ([*TASKS, more], TASKS),
                          ([*TASKS, more], [*TASKS, Score(more.task, 0, 0)])):
        table = comparison_table(first, second, ("one", "two"))
        assert [row[0] for row in table.rows] == [*"abcdefghijkl", "**mean**"]
        assert table.rows[-1][1:4] == ("0.500", "0.500", "+0.000 ± 0.013")
        assert table.rows[-1][4] == "no difference that chance does not explain"


def test_the_mean_tells_a_difference_that_no_task_shows() -> None:
    """Twelve times three points: below chance in each task, above it in all."""
    better = [Score(task.task, 133, 250) for task in TASKS]
    *rows, mean = comparison_table(TASKS, better, ("one", "two")).rows
    assert not any("**" in row[4] for row in rows) and mean[4] == "**better**"
    error = math.sqrt((0.5 * 0.5 + 0.532 * 0.468) / 250 / 12)
    assert mean[3] == f"+0.032 ± {error:.3f}"


def test_runs_that_share_nothing_have_no_mean() -> None:
    assert comparison_table(TASKS, [Score("x", 1, 2)], ("one", "two")).rows == ()
