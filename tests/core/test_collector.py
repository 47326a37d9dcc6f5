"""The collector waits for compilations: nested, on several threads, as the user left it, forked."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

import gossamer as gs
from gossamer.core import collector
from gossamer.core.collector import paused


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the user has the collector on; as before afterwards."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_nested_blocks_and_errors(enabled: bool) -> None:
    with pytest.raises(ZeroDivisionError), paused():
        with paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        _ = 1 / 0
    assert gc.isenabled() is enabled


def test_the_last_thread_to_leave_turns_it_on(enabled: bool) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with paused():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with paused():
        thread.start()
        assert inside.wait(60)
    assert not gc.isenabled()
    leave.set()
    thread.join(60)
    assert gc.isenabled() is enabled and collector._open == 0


def test_compiling_pauses_and_ends_the_pause(enabled: bool) -> None:
    seen = []

    @gs.compile
    def f(x: gs.Tensor) -> gs.Tensor:
        seen.append(gc.isenabled())
        return x * 2

    f(gs.ones(3))
    assert seen == [False] and gc.isenabled() is enabled
    with pytest.raises(gs.core.errors.TraceError):
        gs.compile(lambda x: x.item())(gs.ones(1))
    assert gc.isenabled() is enabled


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("own", [True, False], ids=["forks inside", "another thread inside"])
def test_a_forked_child(own: bool) -> None:
    inside, leave = threading.Event(), threading.Event()

    def block() -> None:
        with paused():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=block)
    if own:
        with paused():
            code = forked(lambda: not gc.isenabled())
    else:
        thread.start()
        assert inside.wait(60)
        code = forked(gc.isenabled)
        leave.set()
        thread.join(60)
    assert code == 0


def forked(holds: object) -> int:
    """0 if `holds()` is true in a child."""
    child = os.fork()
    if child == 0:
        os._exit(0 if holds() else 1)  # type: ignore[operator]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
