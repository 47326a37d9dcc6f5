"""`gossamer cache`: compiled kernels and plans on disk. Layer 8: arguments to calls, no logic.

Needs no extra package: one looks here when a disk is full.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from gossamer import caching

__all__ = ["COMMANDS", "run"]

COMMANDS = ("cache",)
_ABOUT = """Compiled kernels and plans of compiled functions are kept on disk, so that a second
start compiles nothing. Without an action: where they are, how many, how large, and when they were
last used. The least recently used go by themselves when the folder reaches its bound; it is always
safe to clear. Settings: GOSSAMER_CACHE (the folder), GOSSAMER_NO_CACHE=1 (memory only)."""


def run(arguments: Sequence[str]) -> int:
    """Run the command; the exit status: 1 when damaged entries were found or the folder is broken.

    Args:
        arguments: those of the command line, the command first.
    """
    parser = argparse.ArgumentParser(prog="gossamer cache", description=_ABOUT)
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list",
                        help="list: what is there (the default); clear: remove every entry")
    parser.add_argument("--verify", action="store_true",
                        help="read every entry, check its sum, and remove what is damaged")
    parsed = parser.parse_args(arguments[1:])
    if caching.info().folder is None:
        print("memory only: GOSSAMER_NO_CACHE is set; nothing is kept on disk")
        return 0
    if parsed.action == "clear":
        before, removed = caching.info().nbytes, caching.clear()
        print(f"removed {removed:,} entries, {_size(before - caching.info().nbytes)}")
        return _trouble()
    damaged = 0
    if parsed.verify:
        looked, found = caching.verify()
        damaged = len(found)
        print(f"verified {looked:,} entries: {damaged:,} damaged"
              + (", removed (they are made again when needed)" if damaged else ""))
    _list()
    return 1 if damaged else _trouble()


def _list() -> None:
    state = caching.info()
    print(f"folder    {state.folder}")
    print(f"kernels   {state.entries - state.plans:,}")
    print(f"plans     {state.plans:,}")
    print(f"size      {_size(state.nbytes)} of at most {_size(state.bound)}")
    if state.entries:
        print(f"last use  {_ago(state.newest)}; the oldest entry {_ago(state.oldest)}")


def _trouble() -> int:
    """1, with a line that says so, if the folder cannot be changed."""
    broken = caching.info().broken
    if broken:
        print(f"problem   {broken}")
    return 1 if broken else 0


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _ago(moment: float) -> str:
    days = int(max(0.0, time.time() - moment) // 86_400)
    return "within a day" if days == 0 else f"{days} day{'s' if days > 1 else ''} ago"
