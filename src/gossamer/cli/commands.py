"""Commands that take no number which is none. Layer 8.

The one idea: `nan` is neither below nor above a bound, so a range lets it pass, and `inf` where
nothing bounds it. Both are refused here, once for every option of every command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

__all__ = ["Commands", "FiniteCommand"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class FiniteCommand(TyperCommand):
    """A command whose numbers are finite."""

    def invoke(self, ctx: Any) -> Any:
        """Run it.

        Raises:
            typer.BadParameter: an option is nan or infinite.
        """
        params: Any = self.params  # its type has another name in every second version of Typer
        for param in params:
            value = ctx.params.get(param.name)
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise typer.BadParameter(f"{number} is not a finite number.", ctx, param)
        return super().invoke(ctx)


class Commands(typer.Typer):
    """A group whose commands are FiniteCommands."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[_Function], _Function]:
        """Register a function as a command, as `typer.Typer.command` does."""
        return super().command(name, **{"cls": FiniteCommand, **options})
