"""The worker pool: every index once, no deadlock, whatever threads come and go."""

from __future__ import annotations

import threading
import time
from array import array

import pytest

from gossamer.runtime import jit, threads
from tests.runtime.kernels import SLOW, python

TURNS = 200  # delay per index, so that workers have time to join


@pytest.fixture(params=["futex", "portable"])
def portable(request) -> bool:
    return request.param == "portable"


def block(*words: int) -> array[int]:
    return array("q", [*words, 0, 0, 0, 0])


class Work:
    """One run of SLOW over [0, n): what was written, and how many indices each worker did."""

    def __init__(self, n: int, turns: int = TURNS) -> None:
        self.n = n
        self.out, self.counts = array("q", [0] * max(1, n)), array("q", [0] * 8 * 64)
        self.args = block(self.out.buffer_info()[0], self.counts.buffer_info()[0], turns)
        self.address = jit.addresses([SLOW])[0]

    def run(self, pool: threads.Pool, grain: int) -> None:
        pool.run(self.address, self.args.buffer_info()[0], self.n, grain)

    def check(self, times: int = 1) -> None:
        assert list(self.out[:self.n]) == [3 * i + 1 for i in range(self.n)]
        assert sum(self.counts) == times * self.n

    def workers(self) -> int:
        return sum(count > 0 for count in self.counts)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_index_runs_once(portable: bool, count: int) -> None:
    pool = threads.Pool(count, portable)
    for n in (1, 2, 3, 7, 64, 1000):
        for grain in (1, 3, 64, 5000):
            work = Work(n)
            work.run(pool, grain)
            work.check()
    pool.stop()
    assert not any(worker.is_alive() for worker in pool._workers)


def test_the_workers_do_their_part(portable: bool) -> None:
    pool = threads.Pool(2, portable)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # a busy machine may keep the worker away for a while
        work = Work(2000, turns=2000)
        work.run(pool, 10)
        work.check()
        if work.workers() == 2:
            break
    assert work.workers() == 2
    pool.stop()


def test_sleeping_workers_are_woken(portable: bool) -> None:
    pool = threads.Pool(3, portable)
    deadline = time.monotonic() + 30
    joined = False
    while not joined and time.monotonic() < deadline:  # a busy machine may keep them away a while
        time.sleep(0.005)  # a hundred times longer than workers spin
        work = Work(400, turns=20_000)
        work.run(pool, 5)
        work.check()
        joined = work.workers() > 1
    assert joined
    pool.stop()


def test_many_short_regions(portable: bool) -> None:
    pool = threads.Pool(4, portable)
    work = Work(8, turns=0)
    for _ in range(20_000):
        work.run(pool, 1)
    work.check(times=20_000)
    pool.stop()


def test_several_callers_share_a_pool(portable: bool) -> None:
    pool = threads.Pool(2, portable)
    works = [Work(300) for _ in range(4)]

    def call(work: Work) -> None:
        for _ in range(200):
            work.run(pool, 7)

    callers = [threading.Thread(target=call, args=(work,)) for work in works]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    for work in works:
        work.check(times=200)
    pool.stop()


def test_a_stopped_pool_still_runs(portable: bool) -> None:
    pool = threads.Pool(3, portable)
    pool.stop()
    work = Work(100)
    work.run(pool, 4)
    work.check()
    assert work.workers() == 1


def test_a_system_without_more_threads(monkeypatch) -> None:
    started = 0
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started > 1:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.warns(RuntimeWarning, match="can't start new thread; going on with 2"):
        pool = threads.Pool(4)
    assert pool.threads == 2
    work = Work(100)
    work.run(pool, 4)
    work.check()
    pool.stop()


@pytest.fixture
def restored():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def test_set_num_threads(restored) -> None:
    threads.set_num_threads(1)
    assert threads.get_num_threads() == 1 and threads.current_pool() is None
    generation = threads.generation
    threads.set_num_threads(3)
    pool = threads.current_pool()
    assert pool is not None and pool.threads == 3 and threads.generation > generation
    assert threads.current_pool() is pool
    threads.set_num_threads(3)
    assert threads.current_pool() is pool
    threads.set_num_threads(2)
    assert threads.current_pool() is not pool
    with pytest.raises(ValueError, match=r"set_num_threads\(0\).*at least 1"):
        threads.set_num_threads(0)


def test_no_worker_is_started_before_it_is_needed_and_all_end_with_python() -> None:
    done = python("""
import threading, time
from gossamer.runtime import threads, jit
print(threading.active_count())
threads.current_pool()
print(threading.active_count())
print(*(t.name for t in threading.enumerate() if t.daemon))
""", GOSSAMER_THREADS="4")
    assert done.stdout.split() == ["1", "4", *(f"gossamer-worker-{i}" for i in (1, 2, 3))]
    assert done.returncode == 0 and done.stderr == ""


FORK = """
import os
from gossamer.runtime import threads
from tests.runtime.test_threads import Work

def work():
    pool = threads.current_pool()
    deadline = 400
    for _ in range(deadline):
        w = Work(2000, turns=2000)
        w.run(pool, 10)
        w.check()
        if w.workers() == 2:
            return pool.address
    raise SystemExit("the worker never came")

before = work()
generation = threads.generation
child = os.fork()
if child == 0:
    assert threads.generation > generation
    assert work() != before
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert work() == before
print("done")
"""


def test_a_forked_child_starts_its_own_workers() -> None:
    done = python(FORK, GOSSAMER_THREADS="2")
    assert done.stdout.split() == ["done"], done.stderr
