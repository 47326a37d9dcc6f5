"""`gossamer serve` as a process: its address is told when it answers, and a signal ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gossamer.chat.checkpoint import save
from gossamer.server.serve import ServeError, bind, serve
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
