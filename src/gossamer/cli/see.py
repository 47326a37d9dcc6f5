"""`gossamer explain` and `gossamer doctor`. Layer 8: arguments to calls, no logic.

These two need no extra package, since they are what one runs when something is wrong; so they read
their arguments with argparse, and `app.py` only lists them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gossamer.core.errors import GossamerError
from gossamer.insight import doctor, explain_script

__all__ = ["COMMANDS", "run"]

COMMANDS = ("explain", "doctor")


def run(arguments: Sequence[str]) -> int:
    """Run one of COMMANDS; the exit status.

    Args:
        arguments: those of the command line, the command first.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return _explain(parsed) if parsed.command == "explain" else _doctor(parsed)
    except (GossamerError, OSError) as error:
        print(f"gossamer: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gossamer")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("explain", help="Run a script and tell where its time goes.")
    one.add_argument("--html", metavar="FILE", help="also write a page to read in a browser")
    one.add_argument("--rows", type=int, default=40, help="kernels in the table [40]")
    one.add_argument("script", help="a Python script")
    one.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    two = commands.add_parser("doctor", help="Look at this machine and at what is wrong here.")
    two.add_argument("--measure", action="store_true", help="measure the machine's limits again")
    return parser


def _explain(parsed: argparse.Namespace) -> int:
    found = explain_script(parsed.script, parsed.arguments)
    print(found.table(parsed.rows))
    if parsed.html:
        print(f"wrote {found.html(parsed.html)}")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    found = doctor(parsed.measure)
    print(found)
    return 1 if found.problems else 0
