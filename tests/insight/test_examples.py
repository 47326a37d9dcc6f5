"""The examples in the docstrings of this room run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import gossamer as gs
from tests.insight.test_explain import PEAKS

MODULES = ("explaining", "explanation", "limits", "profiling", "script", "diagnosis")
TRAIN = """
import gossamer as gs
step = gs.compile(lambda x: (x @ x).sum())
x = gs.randn(64, 64).exp()
for _ in range(20):
    step(x).item()
"""


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gossamer.insight.limits._measure", lambda *_: PEAKS)
    module = importlib.import_module(f"gossamer.insight.{name}")
    done = doctest.testmod(module, extraglobs={"gs": gs})
    assert done.attempted > 0 and done.failed == 0
