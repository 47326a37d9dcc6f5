"""Work that several cores share, and that may begin before anybody waits for it. Layer 3.

The one idea: jobs lie in one queue; helper threads take the largest, and so does whoever waits for
results, until none is left. A kernel's text goes through LLVM so while Python still writes the next
ones. A fork waits for jobs that run, and the child works off alone what had not begun.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence

__all__ = ["begin", "finish"]


class _Job:
    """One piece of work.

    Attributes:
        size: what tells large jobs from small ones.
        result, error: one of them is set when `done`.
    """

    def __init__(self, size: int, work: Callable[[], bytes]) -> None:
        self.size, self.work = size, work
        self.done = False
        self.result = b""
        self.error: BaseException | None = None


_changed = threading.Condition()  # guards everything below
_jobs: dict[bytes, _Job] = {}  # begun, and not yet asked for
_waiting: list[_Job] = []
_helpers = _running = 0
_held = False  # no job may start: the process is forking


def begin(key: bytes, size: int, work: Callable[[], bytes], helpers: int) -> None:
    """Put a job into the queue, unless one of that key is known; up to `helpers` threads work."""
    global _helpers
    with _changed:
        if key in _jobs:
            return
        _jobs[key] = job = _Job(size, work)
        _waiting.append(job)
        if _helpers >= helpers:
            return
        _helpers += 1
    try:
        threading.Thread(target=_help, name="gossamer-compile", daemon=True).start()
    except RuntimeError:  # "can't start new thread": whoever waits does it all
        with _changed:
            _helpers -= 1


def finish(keys: Sequence[bytes]) -> list[bytes]:
    """The results of jobs that were begun, and forget them; this thread helps meanwhile.

    Raises:
        Whatever the first of the jobs that failed raised, when all of them have ended.
    """
    while (job := _take()) is not None:
        _do(job)
    with _changed:
        wanted = [_jobs[key] for key in keys]
        _changed.wait_for(lambda: all(job.done for job in wanted))
        for key in keys:
            _jobs.pop(key, None)
    for job in wanted:
        if job.error is not None:
            raise job.error
    return [job.result for job in wanted]


def _help() -> None:
    """The life of a helper: it ends when nothing waits."""
    global _helpers
    while True:
        with _changed:
            job = _take()
            if job is None:
                _helpers -= 1
                return
        _do(job)


def _take() -> _Job | None:
    """The largest job that waits, marked as running."""
    global _running
    with _changed:
        _changed.wait_for(lambda: not _held)
        if not _waiting:
            return None
        job = max(_waiting, key=lambda j: j.size)
        _waiting.remove(job)
        _running += 1
        return job


def _do(job: _Job) -> None:
    global _running
    try:
        job.result = job.work()
    except BaseException as error:  # raised again by `finish`, in the thread that asks
        job.error = error
    with _changed:
        job.done = True
        _running -= 1
        _changed.notify_all()


def _hold() -> None:
    """Before a fork: let jobs that run end, and none begin."""
    global _held
    with _changed:
        _held = True
        _changed.wait_for(lambda: _running == 0)


def _release() -> None:
    global _held
    with _changed:
        _held = False
        _changed.notify_all()


def _after_fork_in_child() -> None:
    global _changed, _helpers, _held
    _changed, _helpers, _held = threading.Condition(), 0, False


def _stop() -> None:
    """When Python ends: LLVM must not be at work while its library goes."""
    with _changed:
        _waiting.clear()
        _changed.wait_for(lambda: _running == 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release,
                        after_in_child=_after_fork_in_child)
atexit.register(_stop)
