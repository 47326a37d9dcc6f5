"""`gossamer serve` as a process: its address is told when it answers, and a signal ends it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gossamer.chat.checkpoint import save
from gossamer.server.serve import ServeError, bind, has_browser, serve
from tests.server.conftest import build

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one untrained model."""
    made, folder = build(rows=1), tmp_path_factory.mktemp("runs")
    save(folder / "tiny" / "checkpoints", made.host.engine.model, made.tokenizer, [], {"step": 0})
    return folder


@pytest.fixture
def process(root: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "gossamer", "serve", "tiny", "--root", str(root), "--port",
               "0", "--rows", "2", "--quantize", request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as made:
        yield made
        made.kill()


@pytest.mark.parametrize("process", ["float32", "int8"], indirect=True)
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_address_is_told_when_it_answers(process: subprocess.Popen[str],
                                             ending: signal.Signals) -> None:
    assert process.stdout is not None and process.stderr is not None
    found = re.match(r"tiny is at (http://127\.0\.0\.1:\d+) ", process.stdout.readline())
    assert found, process.stderr.read()
    assert httpx.get(found[1] + "/health", timeout=5).json()["status"] == "ok"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    assert httpx.post(found[1] + "/v1/chat/completions", json=body).status_code == 200
    process.send_signal(ending)
    # After a clean end SIGTERM is raised again, so that who sent it sees that it was the cause.
    assert process.wait(30) == (0 if ending is signal.SIGINT else -ending), process.stderr.read()
    assert not process.stderr.read()


def test_a_model_that_cannot_decode_is_not_announced(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    served = build(rows=1)

    def fail() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(served.host.engine, "warm_up", fail)
    with pytest.raises(ServeError, match="tiny cannot decode .no room"):
        serve(served, bind("127.0.0.1", 0), Console())
    assert "is at" not in capsys.readouterr().out


@pytest.mark.parametrize(("platform", "variables", "expected"), [
    ("linux", {}, False),
    ("linux", {"DISPLAY": ":0"}, True),
    ("linux", {"WAYLAND_DISPLAY": "wayland-0", "SSH_CONNECTION": "1"}, True),  # ssh -X
    ("linux", {"BROWSER": "true"}, True),
    ("darwin", {}, True),
    ("darwin", {"SSH_CONNECTION": "1"}, False),
])
def test_a_browser_needs_a_display(monkeypatch: pytest.MonkeyPatch, platform: str,
                                   variables: dict[str, str], expected: bool) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("webbrowser.get", lambda: None)
    assert has_browser() is expected


def test_where_no_browser_is_installed_none_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.get", fail)
    assert not has_browser()


class Seat:
    """A person at a terminal: a process on a pseudo-terminal of its own."""

    def __init__(self, arguments: list[str], **variables: str) -> None:
        self.terminal, inner = os.openpty()
        kept = {n: v for n, v in os.environ.items() if n not in ("DISPLAY", "WAYLAND_DISPLAY")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gossamer", *arguments], stdin=inner, stdout=inner, stderr=inner,
            env=kept | {"TERM": "xterm", "COLUMNS": "200"} | variables, start_new_session=True)
        os.close(inner)
        self.shown = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read on until the pattern was shown; two minutes of silence are a failure."""
        while not (found := re.search(pattern, self.shown)):
            assert select.select([self.terminal], [], [], 120)[0], self.shown
            try:
                got = os.read(self.terminal, 4096)
            except OSError:  # the process has ended
                got = b""
            assert got, self.shown
            self.shown += got.decode(errors="replace")
        return found

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def smallest(root: Path) -> list[str]:
    return ["speedrun", "--steps", "2", "--questions", "1", "--depth", "1", "--root", str(root)]


def test_a_speedrun_ends_on_its_page_in_the_browser(tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f"#!/bin/sh\necho \"$1\" > {seen}.part && mv {seen}.part {seen}\n")
    browser.chmod(0o755)
    with Seat(smallest(tmp_path / "runs"), BROWSER=str(browser)) as seat:
        address = seat.read_until(r"speedrun is at (http://127\.0\.0\.1:\d+) ")[1]
        end = time.monotonic() + 60
        while not seen.exists():
            assert seat.process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        assert seen.read_text() == address + "\n"
        assert "<title>Gossamer" in httpx.get(address, timeout=5).text
        seat.process.send_signal(signal.SIGINT)
        assert seat.process.wait(30) == 0


def test_a_speedrun_without_a_browser_ends_in_the_terminal_s_chat(tmp_path: Path) -> None:
    with Seat(smallest(tmp_path / "runs"), BROWSER="", SSH_CONNECTION="far") as seat:
        seat.read_until("you > ")
        os.write(seat.terminal, b"/quit\n")
        assert seat.process.wait(30) == 0
        assert " is at http" not in seat.shown
