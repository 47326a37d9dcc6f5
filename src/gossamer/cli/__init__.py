"""The `gossamer` command. Layer 8: arguments to calls, no logic.

The commands live in `app.py`, which needs the packages of the `chat` extra; this front file runs
without them, so that their absence is one clear line.
"""

from __future__ import annotations

import signal
import sys

from gossamer.cli import cache, see

__all__ = ["main"]

_EXTRA = ("typer", "rich", "tokenizers", "matplotlib", "click", "starlette", "uvicorn")


def main() -> None:
    """Run the command line; exit status 1 with one line on stderr for what went wrong."""
    for commands in (see, cache):
        if sys.argv[1:2] and sys.argv[1] in commands.COMMANDS:
            sys.exit(commands.run(sys.argv[1:]))
    try:
        from gossamer.cli.app import run

        run()
    except KeyboardInterrupt:  # while the packages above are imported
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        sys.exit(
            f"gossamer: the command line needs the package {error.name!r}, which is not "
            "installed. Install it with: pip install 'gossamer[chat]'"
        )
