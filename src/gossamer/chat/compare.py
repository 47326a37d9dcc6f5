"""Which of two runs is better, and whether the difference means anything. Layer 7.

Two shares of right replies differ by more than chance if the difference is larger than what its
standard error explains. Twelve tasks are twelve chances to be fooled, so the verdicts on tasks are
Holm's: the smallest p-value must pass a twelfth of the level, the next an eleventh, and so on.

Source: the two-proportion z-test; Holm 1979, "A simple sequentially rejective multiple test
procedure".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from gossamer.chat.card import Table
from gossamer.chat.checkpoint import find_run
from gossamer.chat.evaluate import Score
from gossamer.core.errors import CheckpointError
from gossamer.data.safetensors import write_atomically

__all__ = ["Difference", "compare_scores", "comparison_table", "print_table", "read_results",
           "results_folder", "write_results"]

LEVEL = 0.05  # chance of calling any equal tasks different
_FILE = "results.json"


@dataclass(frozen=True)
class Difference:
    """One task in two runs.

    Args:
        task: its name.
        first, second: shares of right replies.
        error: standard error of second - first.
        p: chance of a difference as large between equals.
        significant: Holm's verdict among all tasks.
    """

    task: str
    first: float
    second: float
    error: float
    p: float
    significant: bool


def write_results(folder: Path, scores: Sequence[Score], facts: Mapping[str, Any]) -> None:
    """Keep a run's scores as `results.json`, from which others compare themselves with it.

    Each with its standard error and the failures that were kept: what was asked, what is right,
    what was given.
    """
    rows = {}
    for s in scores:
        row: dict[str, Any] = {"right": s.right, "asked": s.asked, "accuracy": s.accuracy,
                               "standard_error": s.standard_error}
        if s.baseline:
            row |= {"baseline": s.baseline, "centred": s.centred, "centred_error": s.centred_error}
        if s.figures:
            row["figures"] = [asdict(figure) for figure in s.figures]
        rows[s.task] = {**row, "failures": [asdict(failure) for failure in s.failures]}
    with write_atomically(folder / _FILE) as file:
        file.write(json.dumps({"scores": rows, **facts}, indent=2, ensure_ascii=False).encode(
            "utf-8", "backslashreplace"))


def results_folder(root: Path, name: str) -> Path:
    """Where the results of a run are, or those that `gossamer eval` wrote into a folder.

    Raises:
        CheckpointError: there is no such run.
    """
    for folder in (Path(name), root / name):
        if (folder / _FILE).is_file():
            return folder
    return find_run(root, name)


def read_results(folder: Path) -> list[Score]:
    """The scores of a run.

    Raises:
        CheckpointError: the run has none, or the file is damaged.
    """
    path = folder / _FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return [Score(task, int(row["right"]), int(row["asked"]),
                      baseline=float(row.get("baseline", 0.0))) for task, row in rows.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"compare: {path} is missing or damaged ({error}); a run that came to its end has "
            "one. Finish the run, or name another."
        ) from None


def compare_scores(first: Sequence[Score], second: Sequence[Score]) -> list[Difference]:
    """The tasks that both runs were asked, in the first one's order.

    >>> [d] = compare_scores([Score("add", 100, 250)], [Score("add", 150, 250)])
    >>> round(d.second - d.first, 2), d.significant
    (0.2, True)
    """
    others = {s.task: s for s in second}
    pairs = [(a, others[a.task]) for a in first if a.task in others and a.asked
             and others[a.task].asked]
    chances = [_p_value(a, b) for a, b in pairs]
    significant = _holm(chances)
    return [
        Difference(a.task, a.accuracy, b.accuracy,
                   math.hypot(a.standard_error, b.standard_error), p, verdict)
        for (a, b), p, verdict in zip(pairs, chances, significant, strict=True)
    ]


def _p_value(a: Score, b: Score) -> float:
    """Two-sided, of the z-test with pooled variance."""
    pooled = (a.right + b.right) / (a.asked + b.asked)
    variance = pooled * (1 - pooled) * (1 / a.asked + 1 / b.asked)
    if variance == 0:
        return 1.0  # both all right or all wrong
    return math.erfc(abs(a.accuracy - b.accuracy) / math.sqrt(2 * variance))


def _holm(chances: Sequence[float]) -> list[bool]:
    verdicts = [False] * len(chances)
    for rank, at in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[at] > LEVEL / (len(chances) - rank):
            break
        verdicts[at] = True
    return verdicts


def comparison_table(first: Sequence[Score], second: Sequence[Score], names: tuple[str, str]
                     ) -> Table:
    """Both runs side by side with a verdict a row, and on the mean of what both were asked."""
    found = compare_scores(first, second)
    rows = [_row(d.task, d.first, d.second, d.error, d.significant) for d in found]
    if found:
        a, b = fmean(d.first for d in found), fmean(d.second for d in found)
        error = math.hypot(*(d.error for d in found)) / len(found)
        differs = error > 0 and math.erfc(abs(a - b) / error / math.sqrt(2)) < LEVEL
        rows.append(_row("**mean**", a, b, error, differs))
    return Table(("task", *names, "difference", "verdict"), tuple(rows))


def print_table(console: Console, table: Table) -> None:
    """A table of a report on the terminal."""
    shown = RichTable(*table.head)
    for row in table.rows:
        shown.add_row(*(cell.replace("**", "") for cell in row))
    console.print(shown)


def _row(task: str, a: float, b: float, error: float, significant: bool) -> tuple[str, ...]:
    better = "better" if b > a else "worse"
    return (task, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f} ± {error:.3f}",
            f"**{better}**" if significant else "no difference that chance does not explain")
