"""Being told to stop: Ctrl-C, a polite kill, a closed terminal; and one writer to a run. Layer 7.

The one idea: whichever signal comes, it is the same event. Training ends its step and saves (see
`train.py`); everywhere else KeyboardInterrupt unwinds, and the caller says what was kept and which
command goes on. A signal that was ignored when we started (`nohup`) stays ignored.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gossamer.core.errors import CheckpointError, GossamerError

try:
    import fcntl
except ImportError:  # Windows: a run there is not locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["Interrupted", "Terminated", "command", "only_writer", "run_name", "stop_signals",
           "unwind_when_told"]


class Interrupted(GossamerError):
    """The run was told to stop; the message says what was kept and how to go on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: unlike Ctrl-C it ends the whole chat, not one reply."""


Handler = Callable[[int, FrameType | None], None]


def _signals() -> list[signal.Signals]:
    """The signals that mean "stop", less those that are ignored."""
    names = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]  # Windows lacks HUP
    found = [signal.Signals[name] for name in names]
    return [s for s in found if signal.getsignal(s) not in (signal.SIG_IGN, None)]


@contextmanager
def stop_signals(handler: Handler) -> Iterator[None]:
    """Call `handler` when told to stop; in other threads than the main one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(s, signal.signal(s, handler)) for s in _signals()]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


@contextmanager
def unwind_when_told() -> Iterator[None]:
    """Let a polite kill and a closed terminal unwind as Ctrl-C does, so that nothing is left half.

    Raises:
        Terminated: inside the block, when SIGTERM or SIGHUP comes.
    """
    def unwind(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    with stop_signals(unwind):
        yield


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other process trains in it; the system frees it at our end.

    Raises:
        CheckpointError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    try:
        file = (run / ".lock").open("a")
    except OSError as error:
        raise CheckpointError(
            f"run {run_name(run)!r}: {error}; training writes its checkpoints there. Make the "
            "folder writable, or choose another with --root."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"run {run_name(run)!r}: another process is training in {run}; two would overwrite "
                "each other. Wait for it, stop it, or start a run of another name."
            ) from None
        except OSError:  # a file system without locks: as on Windows
            pass
        yield


def command(words: str) -> str:
    """A command for this user's shell: `gossamer` with the path it is found under.

    After `make speedrun` nothing is on the search path, and the command lies in `.venv/bin`.
    """
    script = Path(sys.executable).parent / "gossamer"
    found = shutil.which("gossamer")
    if found is not None and script.exists() and os.path.samefile(found, script):
        return f"`gossamer {words}`"
    if not script.exists():
        return f"`python -m gossamer {words}`"
    here = Path.cwd()
    shown = script.relative_to(here) if script.is_relative_to(here) else script
    return f"`{shown} {words}`"


def run_name(run: Path) -> str:
    """What a person types for a run: its name where it lies in `runs`, else its path."""
    return run.name if run.parent == Path("runs") else str(run)
