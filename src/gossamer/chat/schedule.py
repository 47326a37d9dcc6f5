"""Learning-rate schedule by wall clock: the run always ends in time. Layer 7.

    factor = min(1, (step + 1) / warmup) * min(1, final + (1 - final) (1 - p) / warmdown)

with p the elapsed share of the budget: constant, then linear down. A slow machine takes fewer steps
of the same schedule; nothing depends on how many there will be.

Source: "trapezoidal" schedule, Hägele et al. 2024; shares measured on the speedrun.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Schedule", "Stopwatch"]


@dataclass(frozen=True)
class Schedule:
    """Shape of the learning rate over a run.

    Args:
        warmup_steps: steps of linear rise.
        warmdown: share of the budget, at its end, of linear fall.
        final: factor at the very end.
    """

    warmup_steps: int = 20
    warmdown: float = 0.5
    final: float = 0.02

    def factor(self, step: int, progress: float) -> float:
        """Factor on every learning rate at a step, `progress` (0 to 1) into the budget.

        >>> Schedule(warmup_steps=10, warmdown=0.5, final=0.0).factor(100, 0.75)
        0.5
        """
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = max(0.0, 1.0 - progress)
        fall = self.final + (1.0 - self.final) * left / self.warmdown if self.warmdown else 1.0
        return rise * min(1.0, fall)


class Stopwatch:
    """Seconds of a run, going on where an interrupted one stopped.

    Args:
        before: seconds already spent.
        clock: a monotonic clock; tests pass their own.
    """

    def __init__(self, before: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._before, self._start = clock, before, clock()

    def seconds(self) -> float:
        """Seconds spent so far."""
        return self._before + self._clock() - self._start
