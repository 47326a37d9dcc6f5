"""`gossamer eval`: what is asked is found, written down whole, and refused in one clear line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import gossamer as gs
from gossamer.chat import suite
from gossamer.chat.checkpoint import save
from gossamer.chat.evaluate import Figure, question_set
from gossamer.chat.storytelling import Flaw, StoryRecord
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.track import track_for
from gossamer.cli import app
from gossamer.models.gpt import GPT, GPTConfig

CHOICE = {"question": "Which is a fruit?", "choices": ["plum", "stone", "rain"], "answer": "A"}
PROBLEM = {"question": "What is 2 and 2?", "answer": "<<2+2=4>>4\n#### 4"}
PROGRAM = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    pass\n"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = question_set(TASKS, 50, held_out=False)
    tokenizer = Tokenizer.train([q.text for qs in drawn.values() for q in qs], 320)
    gs.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16,
                          sequence_len=128))
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return save(folder / "checkpoints", model, tokenizer, [], {"step": 7})


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "mine"
    shutil.copytree(made.parent.parent, run)
    return run / "checkpoints" / made.name


def lines(path: Path, *rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gossamer", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.run()
    code = ended.value.code
    return code if isinstance(code, int) else int(code is not None)


def test_everything_is_asked_and_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    core = tmp_path / "bundle"
    lines(core / "eval_data/a.jsonl",
          *({"query": f"{i} and", "choices": ["x", "y"], "gold": i % 2} for i in range(4)))
    (core / "list.json").write_text(json.dumps({"icl_tasks": [
        {"label": "pairs", "dataset_uri": "a.jsonl", "icl_task_type": "multiple_choice",
         "num_fewshot": [1]}]}))
    data = [str(core), lines(tmp_path / "fruit.jsonl", CHOICE, CHOICE | {"answer": 1}),
            lines(tmp_path / "school/test.jsonl", PROBLEM, PROBLEM, PROBLEM),
            lines(tmp_path / "coding.jsonl", PROGRAM), str(tmp_path / "own.txt")]
    (tmp_path / "own.txt").write_text("Mia went to the garden, and Tom to the hall. " * 40)
    lines(tmp_path / "school/train.jsonl", *[PROBLEM] * 50)  # to learn from, so it is not asked
    data[2] = str(tmp_path / "school")
    out = tmp_path / "out"
    assert run(monkeypatch, "eval", str(checkpoint), "--tasks", "add,core,choice,gsm8k,code,text",
               "--limit", "3", "--samples", "2", "--max-tokens", "8", "--out", str(out),
               *(part for path in data for part in ("--data", path))) == 0
    kept = json.loads((out / "results.json").read_text(encoding="utf-8"))["scores"]
    assert {name: row["asked"] for name, row in kept.items()} == {
        "add": 3, "pairs": 3, "fruit": 2, "gsm8k": 3, "coding": 1, "own": 0}
    [bits] = kept["own"]["figures"]
    assert bits["name"] == "bits per byte" and 1 < bits["value"] < 12 and bits["error"] > 0
    assert [f["name"] for f in kept["gsm8k"]["figures"]] == ["pass@1", "pass@2", "majority of 2"]
    failure = kept["gsm8k"]["failures"][0]
    assert failure["question"] == PROBLEM["question"] and failure["expected"] == "#### 4"
    assert set(failure) == {"question", "expected", "given"}
    assert kept["fruit"]["baseline"] == pytest.approx(1 / 3) and "centred_error" in kept["pairs"]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| own, bits per byte |" in report and "| own |" not in report
    assert "| gsm8k, pass@2 |" in report and "| fruit | " in report and "±" in report
    assert "- gsm8k: What is 2 and 2? (right: `#### 4`" in report
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "gsm8k, pass@2" in page and "What is 2 and 2?" in page and "<script" not in page
    assert str(out / "report.md") in "".join(capsys.readouterr().out.split())
    assert run(monkeypatch, "compare", str(out), str(out)) == 0
    assert "no difference" in " ".join(capsys.readouterr().out.split())


def test_by_itself_the_twelve_are_asked_and_nothing_is_overwritten(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(checkpoint.parent.parent.parent)
    for _ in range(2):
        assert run(monkeypatch, "eval", "mine", "--root", root, "--limit", "2", "--twin") == 0
        assert "agree on all 24 questions" in capsys.readouterr().out
    folders = sorted(p.name for p in checkpoint.parent.parent.glob("eval*"))
    assert folders == ["eval", "eval-2"]
    first, second = (json.loads((checkpoint.parent.parent / f / "results.json").read_text())
                     for f in folders)
    assert first["scores"] == second["scores"] and list(first["scores"]) == list(TASKS)
    assert first["limit"] == 2 and first["seconds"] > 0


def test_stories_are_figures_and_what_is_wrong_with_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def figures(engine: Any, tokenizer: Any, lexicon: Any, count: int, *, seed: int) -> Any:
        seen.append((engine.model.config.n_layer, lexicon, count, seed))
        return StoryRecord(count, (Figure("grammatical", 0.5, 0.1),), (
            Flaw("broken off", 2, "And"), Flaw("unknown word", 1, "The teh. (teh)")))

    monkeypatch.setattr(suite, "story_record", figures)
    out = tmp_path / "out"
    assert run(monkeypatch, "eval", str(checkpoint), "--tasks", "stories,add", "--limit", "3",
               "--seed", "4", "--failures", "1", "--out", str(out)) == 0
    assert seen == [(1, track_for(1).lexicon, 3, 4)]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| stories, grammatical |  | 0.500 ± 0.100 |" in report and "**mean**" not in report
    assert "- stories: broken off, in 2 of 3 stories (given: `And`)" in report
    kept = json.loads((out / "results.json").read_text(encoding="utf-8"))["scores"]["stories"]
    assert [row["given"] for row in kept["failures"]] == ["And"]


def test_what_was_done_before_a_stop_is_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = suite.evaluate

    def stopped(model: Any, tokenizer: Any, asked: dict[str, Any], *rest: Any) -> Any:
        if "add" in asked:
            raise KeyboardInterrupt
        return real(model, tokenizer, asked, *rest)

    monkeypatch.setattr(suite, "evaluate", stopped)
    out = tmp_path / "out"
    asked = ["eval", str(checkpoint), "--limit", "2", "--out", str(out)]
    assert run(monkeypatch, *asked, "--tasks", "spell,add,date") == 130
    assert "stopped; 1 of 3 tasks were done, and are in" in capsys.readouterr().err
    assert list(json.loads((out / "results.json").read_text())["scores"]) == ["spell"]
    assert run(monkeypatch, *asked, "--tasks", "add") == 130
    assert "stopped before the first task was done" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--tasks", "nope"], "--tasks nope: no such task. There are: first-grade, spell,"),
    (["--tasks", "gsm8k"], "--tasks gsm8k: it needs questions, and no --data holds any."),
    (["--data", "nowhere"], "--data nowhere: there is no such file or folder."),
    (["--data", "."], "neither a list of CORE's tasks nor a .jsonl file is in there."),
    (["--data", "empty.jsonl"], "--data empty.jsonl: the file is empty;"),
    (["--data", "broken.jsonl"], "--data broken.jsonl: line 2 is no JSON ("),
    (["--data", "list.jsonl"], "--data list.jsonl: line 1 is a list;"),
    (["--data", "binary.jsonl"], "--data binary.jsonl: it is no text in UTF-8;"),
    (["--data", "other.jsonl"], "--data other.jsonl: the first question has a, which is no kind"),
    (["--data", "twice.jsonl", "--data", "a/twice.jsonl"], "--data: 'twice' is there twice;"),
    (["--data", "half.jsonl"], "--data half.jsonl: question 2 has choices; it must have"),
    (["--data", "blank.txt"], "--data blank.txt: the file is empty."),
    (["--samples", "3", "--temperature", "0"], "--samples 3 --temperature 0: at temperature 0"),
])
def test_what_cannot_be_asked_is_told_in_one_line(
    arguments: list[str], message: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    if arguments != ["--data", "."]:
        Path("empty.jsonl").write_text("\n\n")
        Path("broken.jsonl").write_text(json.dumps(CHOICE) + '\n{"question": ')
        Path("blank.txt").write_text("\n")
        Path("binary.jsonl").write_bytes(b"\xff\xfe\x00")
        for name, *rows in (("list", [1]), ("other", {"a": 1}), ("twice", CHOICE),
                            ("a/twice", CHOICE), ("half", CHOICE, {"choices": []})):
            lines(Path(f"{name}.jsonl"), *rows)
    assert run(monkeypatch, "eval", str(checkpoint), *arguments) == 1
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1 and "Traceback" not in complaint
    assert not list(checkpoint.parent.parent.glob("eval*"))  # nothing is left behind


def test_a_model_without_its_tokenizer(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert run(monkeypatch, "eval", str(checkpoint)) == 1
    complaint = capsys.readouterr().err
    assert "tokenizer.json" in complaint and complaint.count("\n") == 1
    assert run(monkeypatch, "eval", "nothing", "--root", str(checkpoint)) == 1
    assert "run 'nothing': no checkpoint" in capsys.readouterr().err
