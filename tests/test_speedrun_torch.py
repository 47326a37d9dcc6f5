"""The PyTorch baseline of the speedrun is the same run: losses agree, weights come back."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from benchmarks import speedrun_torch as baseline
from gossamer.chat.checkpoint import latest, load_model


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"steps": 20, "depth": 1, "dtype": "float32", "borders": True,
                                 "seed": 0, **given})


@pytest.mark.parametrize(("dtype", "borders"), [("float32", True), ("bfloat16", False)])
def test_the_losses_agree_at_steps_1_and_20(dtype: str, borders: bool) -> None:
    found = baseline.compare(["gossamer", "eager"], options(dtype=dtype, borders=borders))
    assert baseline.disagreements(found, dtype) == []
    losses = found["eager"]["losses"]
    assert len(losses) == len(found["gossamer"]["cpu"]) == 20 and losses[-1] < 0.8 * losses[0]


def test_other_losses_are_told() -> None:
    found = {"gossamer": {"losses": [7.0] * 20}, "eager": {"losses": [7.0] * 19 + [7.1]}}
    (told,) = baseline.disagreements(found, "float32")
    assert told.startswith("eager: loss 7.10000 at step 20, ours 7.00000")
    found["eager"]["losses"][0] = float("nan")
    assert len(baseline.disagreements(found, "bfloat16")) == 1


def test_a_whole_run_quizzes_and_saves_its_own_weights(tmp_path: Path) -> None:
    run = baseline.trainer("eager", 10.0, options(depth=1), tmp_path)
    run.settings = replace(run.settings, steps=6, quizzes=1, batch_size=2)
    first = run.model.wte.weight.detach().numpy().copy()
    history = run.run()
    assert len(history.steps) == 6 and len(history.quizzes) == 1
    folder = latest(tmp_path)
    assert folder is not None
    saved = load_model(folder).model.wte.weight.detach().numpy()
    assert not np.array_equal(saved, first)
    np.testing.assert_array_equal(saved, run.twin.wte.weight.detach().numpy())
    np.testing.assert_array_equal(saved, run.model.wte.weight.detach().numpy())


@pytest.mark.parametrize("method", ["_quiz", "examine", "_save"])
def test_what_asks_the_model_asks_pytorchs_weights(tmp_path: Path, method: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    run = baseline.trainer("eager", 10.0, options(depth=1), tmp_path)
    with baseline.torch.no_grad():
        run.twin.wte.weight.add_(1.0)
    monkeypatch.setattr(baseline.Trainer, method, lambda *_: None)
    getattr(run, method)("read")
    np.testing.assert_array_equal(run.model.wte.weight.detach().numpy(),
                                  run.twin.wte.weight.detach().numpy())


def test_the_command_says_whether_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline.main(["--steps", "2", "--threads", "1", "--depth", "1", "--no-compile"]) == 0
    told = capsys.readouterr().out
    assert "times ours" in told and "steps/s" in told and "the losses agree" in told


def test_when_a_level_is_reached() -> None:
    points = [(60.0, 0.5), (120.0, 0.9), (180.0, 1.0)]
    assert baseline.reached(points, 0.95) == pytest.approx(150.0)
    assert baseline.reached(points, 0.25) == pytest.approx(30.0)  # from 0 at the beginning
    assert baseline.reached(points[:2], 0.95) == baseline.reached([], 0.95) == 0.0
