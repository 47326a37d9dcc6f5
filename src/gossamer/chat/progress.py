"""A live line in the terminal while a model trains, or plain lines where there is none. Layer 7.

The one idea: the trainer hands over the figures of every step, and this room decides what is worth
showing: all of them on a terminal, with the curve of the losses where it is wide enough, one line
in a quarter of a minute in a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

__all__ = ["Display", "LossCurve", "StepInfo", "clock_text", "say"]

_LINE_SECONDS = 15.0  # between plain lines, when the output is a file or a pipe
_CURVE_WIDTH = 100  # columns from which on there is room for the curve of the losses ...
_CURVE_CELLS = 16  # ... of so many characters
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class StepInfo:
    """What one step reports.

    Args:
        step: steps done.
        loss: smoothed loss in nats.
        tokens_per_second: over the last steps.
        flops_per_second: over the last steps.
        seconds: elapsed of the budget.
        budget: seconds of training in all.
        stage: "read", "answer" or "practice".
    """

    step: int
    loss: float
    tokens_per_second: float
    flops_per_second: float
    seconds: float
    budget: float
    stage: str

    def text(self) -> str:
        """One line of figures.

        >>> StepInfo(12, 0.5, 9000.0, 6.4e10, 30.0, 60.0, "answer").text()
        'step 12  loss 0.500  9.0k tokens/s  64 GFLOP/s  0:30 left'
        """
        left = clock_text(max(0.0, self.budget - self.seconds))
        return (
            f"step {self.step}  loss {self.loss:.3f}  {self.tokens_per_second / 1e3:.1f}k tokens/s"
            f"  {self.flops_per_second / 1e9:.0f} GFLOP/s  {left} left"
        )


def say(console: Console, text: str) -> None:
    """Print a line as it is; on a terminal broken between words."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def clock_text(seconds: float) -> str:
    """Minutes and seconds, from an hour on also hours.

    >>> clock_text(605.4), clock_text(7322)
    ('10:05', '2:02:02')
    """
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class LossCurve:
    """The losses of a run so far as a line of blocks, the height that of their logarithm.

    Args:
        cells: characters; each stands for an equal share of the steps.
    """

    def __init__(self, cells: int = _CURVE_CELLS) -> None:
        self._cells, self._stride = cells, 1  # steps a cell
        self._sums: list[tuple[float, int]] = []  # of the logarithms in a cell, and how many

    def add(self, loss: float) -> None:
        """Take in one step's loss; when all cells are full, each two become one.

        Cost: constant; a curve of any length is `cells` numbers.
        """
        value = math.log(max(loss, 1e-6))
        if not self._sums or self._sums[-1][1] == self._stride:
            if len(self._sums) == self._cells:
                pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
                self._sums = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
                self._stride *= 2
            self._sums.append((0.0, 0))
        total, count = self._sums[-1]
        self._sums[-1] = total + value, count + 1

    def text(self) -> str:
        """The curve, as many characters as there are cells with a step.

        >>> curve = LossCurve(4)
        >>> for loss in (8.0, 4.0, 2.0, 1.0):
        ...     curve.add(loss)
        >>> curve.text()
        '█▆▃▁'
        """
        heights = [total / count for total, count in self._sums]
        low, high = min(heights, default=0.0), max(heights, default=0.0)
        scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BLOCKS[round((h - low) * scale)] for h in heights)


class Display:
    """Shows a run's progress; use as a context manager.

    Args:
        console: where to; a terminal gets a live bar, anything else a line now and then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.curve = LossCurve()
        self._bar: Progress | None = None
        self._last_line = -_LINE_SECONDS
        self._stopping = False
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description:6s}"), BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
                console=self.console, expand=True,
            )
            self._task = self._bar.add_task("start", total=1.0, figures="compiling the first step")

    def step(self, info: StepInfo) -> None:
        """Show one step's figures."""
        self.curve.add(info.loss)
        if self._stopping:
            return
        if self._bar is not None:
            share = min(1.0, info.seconds / info.budget) if info.budget else 1.0
            figures = info.text()
            if self.console.width >= _CURVE_WIDTH:
                figures = f"{self.curve.text():{_CURVE_CELLS}s}  {figures}"
            self._bar.update(
                self._task, completed=share, description=info.stage, figures=figures
            )
        elif info.seconds - self._last_line >= _LINE_SECONDS:
            self._last_line = info.seconds
            self.note(f"{info.stage:6s} {info.text()}")

    def stopping(self) -> None:
        """Say that the running step is the last; called by a signal, so nothing is printed here."""
        self._stopping = True
        if self._bar is not None:
            self._bar.update(
                self._task, description="stop",
                figures="saving after this step; Ctrl-C again stops without saving",
            )

    def note(self, text: str) -> None:
        """Print a line that stays, above the live bar."""
        say(self.console, text)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
