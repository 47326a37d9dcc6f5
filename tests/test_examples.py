"""Every example runs as a user would run it, on real input, and asserts its own result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
# Seconds on two cores, from the examples' own bars; the long ones are left to `make test-all`.
LIMIT = {"02_mnist_mlp": 180, "03_mnist_cnn": 180, "04_shakespeare_char": 300}
SLOW = {"03_mnist_cnn", "04_shakespeare_char"}


def test_there_are_examples() -> None:
    assert [p.name[:2] for p in EXAMPLES] == [f"{i:02}" for i in range(len(EXAMPLES))]
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("path", [
    pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else [])
    for p in EXAMPLES])
def test_example(path: Path, request: pytest.FixtureRequest) -> None:
    if "gossamer.data" in path.read_text():
        request.getfixturevalue("shared_data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "GOSSAMER_VERIFY": "0"}
    done = subprocess.run([sys.executable, "-W", "error", str(path)], env=environment, cwd=ROOT,
                          capture_output=True, text=True, timeout=LIMIT.get(path.stem, 60),
                          check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    assert f"python examples/{path.name}" in text


@pytest.mark.parametrize("path", [p for p in EXAMPLES if "gossamer.data" in p.read_text()],
                         ids=lambda p: p.stem)
def test_without_data_and_network_one_line_says_what_to_do(path: Path, tmp_path: Path) -> None:
    """Run from a copy, so that no folder beside the checkout is found; the proxy refuses."""
    copy = tmp_path / "a" / "b" / path.name
    copy.parent.mkdir(parents=True)
    copy.write_text(path.read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "no_proxy": "",
                   "https_proxy": "http://127.0.0.1:9", "GOSSAMER_DATA": str(tmp_path / "data")}
    done = subprocess.run([sys.executable, str(copy)], env=environment, cwd=tmp_path, check=False,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "GOSSAMER_DATA" in done.stderr and "by hand" in done.stderr
