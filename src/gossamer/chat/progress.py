"""A live line in the terminal while a model trains, or plain lines where there is none. Layer 7."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Display", "StepInfo", "clock_text"]

_LINE_SECONDS = 15.0  # between plain lines, when the output is a file or a pipe


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
        stage: "read" or "answer".
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


def clock_text(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock_text(605.4)
    '10:05'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display:
    """Shows a run's progress; use as a context manager.

    Args:
        console: where to; a terminal gets a live bar, anything else a line now and then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Progress | None = None
        self._last_line = -_LINE_SECONDS
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description:7s}"), BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"), console=self.console,
            )
            self._task = self._bar.add_task("start", total=1.0, figures="compiling the first step")

    def step(self, info: StepInfo) -> None:
        """Show one step's figures."""
        if self._bar is not None:
            share = min(1.0, info.seconds / info.budget) if info.budget else 1.0
            self._bar.update(
                self._task, completed=share, description=info.stage, figures=info.text()
            )
        elif info.seconds - self._last_line >= _LINE_SECONDS:
            self._last_line = info.seconds
            self.note(f"{info.stage:7s} {info.text()}")

    def note(self, text: str) -> None:
        """Print a line that stays, above the live bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

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
