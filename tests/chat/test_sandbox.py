"""Programs of a model: right ones give their output, wrong and wild ones do no harm."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from gossamer.chat import sandbox
from gossamer.chat.sandbox import Limits, run_program

QUICK = Limits(seconds=2.0)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="bounds of Linux")


def test_output_and_error() -> None:
    right = run_program("import math\nprint('héllo', math.factorial(5))")
    assert right.ok and right.output == "héllo 120\n" and right.error == ""
    wrong = run_program("print(1)\n1 / 0")
    assert not wrong.ok and wrong.output == "1\n" and "ZeroDivisionError" in wrong.error
    assert not run_program("def f(:").ok and not run_program("raise SystemExit(3)").ok
    assert run_program("").ok
    assert run_program("if __name__ == '__main__':\n    print('main')").output == "main\n"


def test_the_clock_is_the_parents() -> None:
    for source in ("while True: pass", "import time; time.sleep(60)",
                   "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile 1: pass"):
        began = time.monotonic()
        outcome = run_program(source, Limits(seconds=0.5))
        assert outcome.timed_out and not outcome.ok and time.monotonic() - began < 20


def test_a_flood_is_cut() -> None:
    outcome = run_program("while True: print('x' * 1000)", Limits(seconds=1.0, output=5000))
    assert len(outcome.output) == 5000 and not outcome.ok
    outcome = run_program("print('y' * 200000)", Limits(output=100))
    assert outcome.ok and outcome.output == "y" * 100


@LINUX
def test_memory_and_files_are_bounded() -> None:
    assert "MemoryError" in run_program("x = bytearray(10**10)", QUICK).error
    assert not run_program("open('big', 'wb').write(b'x' * 10**8)", QUICK).ok
    assert run_program("open('small', 'w').write('x'); print(open('small').read())").output == "x\n"


def test_it_sees_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    seen = run_program("import os, sys\nprint(os.listdir('.'), 'SECRET_TOKEN' in os.environ, "
                       "sys.stdin.read() == '', sys.argv)")
    assert seen.output == "[] False True ['program']\n"
    assert not run_program("import numpy").ok  # no packages, so nothing of them to reach


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for source in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            f"import socket; socket.socket().connect(('127.0.0.1', {port}))",
            f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)",
            f"import _socket; _socket.socket(2, 1).connect(('127.0.0.1', {port}))",
        ):
            outcome = run_program(source, QUICK)
            assert not outcome.ok and not outcome.timed_out, source
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_it_changes_nothing_outside_its_folder(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    place, file = repr(str(tmp_path)), repr(str(kept))
    for source in (f"open({file}, 'w')", f"open({file}, 'r+').write('x')",
                   f"import os; os.remove({file})", f"import os; os.rename({file}, 'here')",
                   f"import os; os.open({file}, os.O_WRONLY | os.O_TRUNC)",
                   f"import pathlib; pathlib.Path({file}).unlink()",
                   f"import pathlib; pathlib.Path({file}).write_text('x')",
                   f"import shutil; shutil.rmtree({place})", f"import os; os.mkdir({place} + '/a')",
                   f"import os; os.symlink({place}, 'here'); open('here/kept.txt', 'w')",
                   f"import os; os.chdir({place}); open('kept.txt', 'w')"):
        outcome = run_program(source, QUICK)
        assert not outcome.ok and "PermissionError" in outcome.error, source
    assert kept.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
    inside = run_program("import os, pathlib, tempfile\npathlib.Path('a').write_text('x')\n"
                         "os.mkdir('b'); os.rename('a', 'b/a'); os.remove('b/a'); os.rmdir('b')\n"
                         "with tempfile.TemporaryFile() as f: f.write(b'y')\nprint(os.listdir())")
    assert inside.output == "[]\n", inside.error


def test_it_starts_no_other_program() -> None:
    for source in ("import subprocess; subprocess.run(['true'])", "import os; os.system('true')",
                   "import os, sys; os.execv(sys.executable, ['x'])",
                   "import ctypes; ctypes.CDLL(None)"):
        outcome = run_program(source, QUICK)
        assert not outcome.ok and "not in here" in outcome.error, source


def test_without_posix_the_clock_and_the_hook_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: no `resource`, no namespaces, no process groups."""
    blind = "import sys; sys.modules['resource'] = sys.modules['ctypes'] = None\n"
    monkeypatch.setattr(sandbox, "_FENCE", blind + sandbox._FENCE)
    monkeypatch.delattr(os, "killpg", raising=False)
    assert run_program("print(1)", QUICK).output == "1\n"
    assert run_program("while True: pass", Limits(seconds=0.5)).timed_out
    for source in ("import socket; socket.socket()", "import os; os.system('true')",
                   "open('../outside', 'w')"):
        assert not run_program(source, QUICK).ok, source


@LINUX
def test_its_children_end_with_it(tmp_path: Path) -> None:
    outcome = run_program("import os, time\nif os.fork() == 0:\n    time.sleep(60)\n"
                          "print(os.getpgrp(), flush=True)", QUICK)
    group = int(outcome.output)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a child of the program still runs")


def test_text_that_is_no_text_does_not_raise() -> None:
    assert not run_program("print('\ud800')").ok
    assert not run_program("\0").ok
