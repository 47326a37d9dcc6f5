"""SIGKILL at any moment: a run goes on from its last checkpoint to the same weights."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from gossamer.chat.checkpoint import latest

STEPS = 24
# Reading, answering and practice; a checkpoint a second; nothing of the clock decides anything.
RUN = ["speedrun", "--steps", str(STEPS), "--depth", "1", "--questions", "2", "--practice", "0.3",
       "--save-every", "1", "--no-chat"]


def start(root: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "gossamer", *more, "--root", str(root)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint.decode()


def weights(root: Path) -> str:
    newest = latest(root / "speedrun")
    assert newest is not None and newest.name.endswith(f"{STEPS:06d}")
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def killed_and_resumed(root: Path, seed: int, kills: int, whole: float) -> None:
    """Kill a run at random moments of what a whole one takes, resuming it each time."""
    rng, resumable = Random(seed), False
    for _ in range(kills):
        again = ["speedrun", "--resume", "speedrun", "--save-every", "1", "--no-chat"]
        process = start(root, *(again if resumable else RUN))
        time.sleep(rng.uniform(0.2, whole))
        process.kill()
        process.communicate()
        folder = root / "speedrun"
        resumable = latest(folder) is not None
        if not resumable and folder.exists():  # killed before there was anything to keep
            folder.rename(root / f"nothing-{time.monotonic_ns()}")
    finish(start(root, *(again if resumable else RUN)))


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole", *RUN))  # the second run finds its programs in the cache
    began = time.monotonic()
    finish(start(tmp_path / "again", *RUN))
    whole = time.monotonic() - began
    assert weights(tmp_path / "whole") == weights(tmp_path / "again")
    killed_and_resumed(tmp_path / "killed", seed=1, kills=20, whole=whole)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
