"""The queue of compilations: who works, in which order, what fails, and what a fork finds."""

from __future__ import annotations

import os
import threading
import time

import pytest

from gossamer.runtime import jobs
from tests.runtime.kernels import python


def key(number: int) -> bytes:
    return f"test {number}".encode()


def test_whoever_waits_works() -> None:
    """Without helpers nothing begins before it is asked for; the largest goes first."""
    order: list[int] = []

    def work(number: int) -> bytes:
        order.append(number)
        return bytes([number])

    for number in (1, 3, 2):
        jobs.begin(key(number), number, lambda n=number: work(n), 0)
        jobs.begin(key(number), 99, lambda: b"known already", 0)
    assert order == []
    assert jobs.finish([key(2), key(1)]) == [bytes([2]), bytes([1])]
    assert order == [3, 2, 1]
    assert jobs.finish([key(3)]) == [bytes([3])]
    assert not jobs._jobs and not jobs._waiting


def test_helpers_begin_at_once_and_end_when_nothing_waits() -> None:
    gates = [threading.Event() for _ in range(3)]
    running = threading.Semaphore(0)

    def work(number: int) -> bytes:
        running.release()
        assert gates[number].wait(60)
        return threading.current_thread().name.encode()

    for number in range(3):
        jobs.begin(key(number), 1, lambda n=number: work(n), 2)
    assert running.acquire(timeout=60) and running.acquire(timeout=60)
    assert jobs._helpers == 2 and len(jobs._waiting) == 1
    for gate in gates:
        gate.set()
    assert len(jobs.finish([key(n) for n in range(3)])) == 3
    for _ in range(1000):
        if not jobs._helpers:
            break
        time.sleep(0.01)
    assert not jobs._helpers and not jobs._running


def test_an_error_is_raised_by_who_asks() -> None:
    def fail() -> bytes:
        raise KeyError("broken")

    jobs.begin(key(1), 1, fail, 1)
    jobs.begin(key(2), 1, lambda: b"whole", 1)
    with pytest.raises(KeyError, match="broken"):
        jobs.finish([key(1), key(2)])
    jobs.begin(key(1), 1, lambda: b"again", 0)
    assert jobs.finish([key(1)]) == [b"again"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_what_runs() -> None:
    running, done = threading.Event(), []

    def work() -> bytes:
        running.set()
        time.sleep(0.2)
        done.append(1)
        return b"parent"

    jobs.begin(key(1), 2, work, 1)
    assert running.wait(60)
    jobs.begin(key(2), 1, lambda: b"waits", 1)
    child = os.fork()
    if child == 0:
        found = done == [1] and jobs.finish([key(1), key(2)]) == [b"parent", b"waits"]
        os._exit(0 if found else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert jobs.finish([key(2), key(1)]) == [b"waits", b"parent"]


def test_python_may_end_while_a_helper_compiles() -> None:
    ended = python("import time\n"
                   "from gossamer.runtime import jobs\n"
                   "jobs.begin(b'slow', 1, lambda: time.sleep(0.3) or print('ended') or b'', 1)\n"
                   "jobs.begin(b'never', 0, lambda: print('begun') or b'', 1)\n"
                   "time.sleep(0.1)\n")
    assert ended.stdout.split() == ["ended"], ended.stderr
