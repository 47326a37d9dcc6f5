"""`gossamer cache`, as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.cli import cache as command
from gossamer.runtime import cache
from tests.runtime.kernels import ROOT


def gossamer(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run([sys.executable, "-W", "error", "-m", "gossamer", "cache", *arguments],
                          capture_output=True, text=True, env=settings, timeout=120, check=False)


@pytest.fixture
def disk(tmp_path, monkeypatch) -> cache.DiskCache:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    found = cache.current()
    assert found is not None
    for i in range(3):
        found.write(bytes([i]) * 32, b"code" * 50_000)
    found.write(b"p" * 32, b"plan", cache.PLAN)
    return found


def test_it_lists_verifies_and_clears(disk) -> None:
    listed = gossamer()
    assert listed.returncode == 0 and listed.stderr == ""
    lines = dict(line.split(None, 1) for line in listed.stdout.splitlines())
    assert lines == {"folder": str(disk.folder), "kernels": "3", "plans": "1",
                     "size": "0.6 MB of at most 1,073.7 MB",
                     "last": "use  within a day; the oldest entry within a day"}
    disk.path(b"\1" * 32).write_bytes(b"damaged")
    verified = gossamer("--verify")
    assert verified.returncode == 1 and "verified 4 entries: 1 damaged" in verified.stdout
    assert gossamer("list", "--verify").returncode == 0
    cleared = gossamer("clear")
    assert cleared.returncode == 0 and "removed 3 entries, 0.4 MB" in cleared.stdout
    assert "kernels   0" in gossamer("list").stdout


def test_help_and_wrong_words() -> None:
    shown = gossamer("--help")
    assert shown.returncode == 0 and "clear: remove every entry" in shown.stdout
    assert "GOSSAMER_CACHE" in shown.stdout
    wrong = gossamer("claer")
    assert wrong.returncode == 2 and "invalid choice: 'claer'" in wrong.stderr


def test_it_says_what_it_cannot_do(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    assert command.run(["cache"]) == 0
    assert "memory only" in capsys.readouterr().out
    monkeypatch.delenv("GOSSAMER_NO_CACHE")
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    disk = cache.current()
    assert disk is not None
    disk.write(b"k" * 32, b"code")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match="Permission denied"):
        assert command.run(["cache", "clear"]) == 1
    assert "problem   [Errno 13] Permission denied" in capsys.readouterr().out
