"""What a run is told and tells: options of a resume, what the model knows of itself, the report."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from gossamer.chat import speedrun as module
from gossamer.chat.dialogues import draw_dialogue
from gossamer.chat.message import words_of
from gossamer.chat.prose import Prose
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.cli import app


@pytest.mark.parametrize(("arguments", "given"), [
    ("--lr-scale 1.0 --save-every 60", {"lr_scale", "save_every"}), ("--clip 0", {"clip"}),
    ("--minutes 10", {"minutes"}), ("--with softcap", {"having"}), ("--root elsewhere", {"root"}),
    ("", set())])
def test_what_is_given_is_known_though_it_is_the_default(
    monkeypatch: pytest.MonkeyPatch, arguments: str, given: set[str],
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(app, "speedrun", lambda options, console, **rest: seen.append(rest))
    monkeypatch.setattr(sys, "argv", ["gossamer", "speedrun", "--resume", "mine", "--no-chat",
                                      *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        app.run()
    assert ended.value.code in (0, None)
    assert seen == [{"resume": "mine", "given": given}]


def test_a_resumed_run_takes_over_what_is_given(tmp_path: Path) -> None:
    begun = SpeedrunOptions(minutes=60.0, lr_scale=0.5, clip=1.0, save_every=5.0, root=tmp_path)
    module._record(tmp_path, begun, 9.0)
    now = SpeedrunOptions(root=tmp_path / "moved")
    kept = module._saved_options(tmp_path, now, set())
    assert (kept.minutes, kept.lr_scale, kept.clip, kept.save_every) == (60.0, 0.5, 1.0, 5.0)
    assert kept.root == tmp_path / "moved"
    changed = module._saved_options(tmp_path, now, {"lr_scale", "clip", "save_every", "root"})
    assert (changed.lr_scale, changed.clip, changed.save_every) == (1.0, 0.0, 60.0)
    for name, flag in (("minutes", "--minutes"), ("having", "--with"), ("name", "--name")):
        with pytest.raises(ValueError, match=f"--resume with {flag}: a resumed run keeps"):
            module._saved_options(tmp_path, now, {"clip", name})


@pytest.fixture(scope="module")
def practised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of a few steps with everything in it, and what it printed."""
    root = tmp_path_factory.mktemp("runs")
    letters = root.parent / "letters.txt"
    letters.write_text("".join(f"This is letter {i}, dear friend.\n\n" for i in range(300)))
    prose = Prose(("A text to be read. " * 20,), 3, (("a.py", "SyntaxError"),))
    options = SpeedrunOptions(name="mine", steps=4, questions=3, depth=1, data=(str(letters),),
                              practice=0.5, prose=True, attempts=(2, 4), root=root,
                              tasks=("spell", "weekday"))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_prose", lambda: prose)
        folder = speedrun(options, console=Console(file=out, width=200))
    return folder, out.getvalue()


def test_every_measured_figure_has_its_error(practised: tuple[Path, str]) -> None:
    report = (practised[0] / "report.md").read_text()
    assert "prose: 1 document of 3 files" in practised[1] and "a.py (SyntaxError)" in practised[1]
    assert "| prose | 1 document of 3 files" in report
    [data] = [line for line in report.splitlines() if line.startswith("| data |")]
    assert " ± 0." in data and "bits per byte on" in data
    assert "% ± " in practised[1].split("of the exam right")[0]


def test_what_fewer_bits_cost_is_told_with_its_error(
    practised: tuple[Path, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(app, "print_speed", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["gossamer", "infer-bench", str(practised[0]),
                                      "--quantize", "int8"])
    with pytest.raises(SystemExit) as ended:
        app.run()
    assert ended.value.code in (0, None)
    number = r"\d+\.\d{4} ± 0\.\d*[1-9]\d*"
    assert re.search(rf"int8 weights: {number} bits per byte of right replies, {number} before",
                     " ".join(capsys.readouterr().out.split()))


def test_replies_to_held_out_questions_are_drawn_before_and_after(
    practised: tuple[Path, str],
) -> None:
    report = (practised[0] / "report.md").read_text()
    assert "| task | pass@1 before | pass@1 after | pass@4 before | pass@4 after |" in report
    table = report.split("pass@4 after |")[1].split("\n\n")[0].strip().splitlines()[1:]
    assert [row.split(" | ")[0] for row in table] == ["| spell", "| weekday", "| **mean**"]
    assert all(row.count("±") == 4 and "± 0.000" not in row for row in table)
    state = json.loads(next(practised[0].glob("checkpoints/*/state.json")).read_text())
    [[stage, step, found]] = state["history"]["attempts"]  # what came after is not training's
    assert (stage, step) == ("read", 2)
    assert [name for name, *_ in found["spell"]] == ["pass@1", "pass@4"]


@pytest.mark.parametrize(("options", "length"), [
    (SpeedrunOptions(steps=4000), "4,000 steps"), (SpeedrunOptions(minutes=2.5), "2.5 minutes"),
    (SpeedrunOptions(), "10 minutes")])
def test_a_model_says_how_long_it_was_trained(options: SpeedrunOptions, length: str) -> None:
    facts, rng = {"training": module._length(options)}, Random(1)
    said = {words_of(turn["content"]) for _ in range(500) for turn in draw_dialogue(rng, facts)}
    assert f"I was trained for {length}." in said
    assert any(f"trained from nothing in {length} and" in words for words in said)


def test_the_run_s_length_is_what_the_model_learns_of_itself(practised: tuple[Path, str]) -> None:
    seen: list[Any] = []

    def stop(*arguments: Any) -> None:
        seen.append(arguments[2])
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Curriculum", stop)
        with pytest.raises(RuntimeError):
            speedrun(SpeedrunOptions(steps=7, depth=1, root=practised[0].parent / "other"),
                     console=Console(file=io.StringIO()))
    assert seen[0]["training"] == "7 steps"
