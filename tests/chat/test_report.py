"""The report says what each stage reached, and what practice did."""

from __future__ import annotations

import json
import math
import platform
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest

from gossamer.chat import report as page
from gossamer.chat.compare import compare_scores, read_results, write_results
from gossamer.chat.evaluate import Failure, Figure, Score
from gossamer.chat.report import RunFacts, write_report
from gossamer.chat.speed import Decoding
from gossamer.chat.storytelling import Flaw, StoryRecord
from gossamer.chat.train import History
from gossamer.core.errors import CheckpointError
from gossamer.models.gpt import GPT, GPTConfig

FACTS = RunFacts("mine", 2, [("train", 60.0)], [("Hi!", "Hello!")], [("settings", "seed 0")])
MODEL = GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16))
SCORES = [Score("spell", 9, 10), Score("add", 3, 10)]


def written(folder: Path, history: History) -> str:
    folder.mkdir(exist_ok=True)
    return write_report(folder, FACTS, MODEL, history, SCORES).read_text()


def test_a_column_for_each_stage(tmp_path: Path) -> None:
    history = History(steps=[[1, 1.0, 2.0], [2, 2.0, 1.5]], tokens=512)
    history.exams = [["read", 1, 1.0, {"spell": [1, 10], "add": [0, 10]}],
                     ["answer", 2, 2.0, {"spell": [8, 10], "add": [2, 10]}]]
    history.practice = [[i, 1.0, i / 20, min(1.0, i / 10)] for i in range(20)]
    report = written(tmp_path, history)
    assert "| task | what | after reading | after answering | exact match |" in report
    assert "| 0.100 ± 0.110 | 0.800 ± 0.121 | 0.900 ±" in report
    assert "| 0.000 ± 0.094 | 0.200 ± 0.121 | 0.300 ±" in report
    assert "| **mean** |  | 0.050 ± 0.072 | 0.500 ± 0.085 | **0.600 ±" in report
    assert re.search(r"right 2% ± \d+% of the time at first and 92% ± \d+% at last \(any of a "
                     r"group: 5% ± \d+% and 100% ± [1-9]\d*%\)", report)
    assert "What follows ± is one standard error" in report


def test_the_page_is_one_file_and_says_the_same(tmp_path: Path) -> None:
    written(tmp_path / "mine", History(steps=[[1, 1.0, 2.0]], tokens=256))
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "<h1>mine: 60.0% exact</h1>" in page and "Hello!" in page and "<script" not in page
    assert 'src="data:image/png;base64,' in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "url(" not in page
    tags = re.findall(r"<(/?)(h1|h2|p|table|tbody|tr|td|th|ul|li|code|b|blockquote|div)\b", page)
    opened: list[str] = []
    for slash, tag in tags:
        if slash:
            assert opened.pop() == tag
        else:
            opened.append(tag)
    assert opened == []


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    facts = replace(FACTS, samples=[("Hi!", "half of a \ud83d, and on")])
    (tmp_path / "mine").mkdir()
    report = write_report(tmp_path / "mine", facts, MODEL, History(), SCORES)
    assert r"half of a \ud83d, and on" in report.read_text()
    before = {path.name: path.read_bytes() for path in report.parent.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["curves.png"]) + 100, hard))
    try:
        with pytest.raises(CheckpointError, match=r"report\.html: File too large"):
            write_report(tmp_path / "mine", FACTS, MODEL, History(), SCORES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in report.parent.iterdir()}
    assert after.keys() == before.keys()
    assert after["report.html"] == before["report.html"]


def test_what_a_model_says_cannot_become_markup(tmp_path: Path) -> None:
    facts = replace(FACTS, samples=[("<b>hi", "<script>alert(1)</script> `x` & **y**")])
    (tmp_path / "mine").mkdir()
    write_report(tmp_path / "mine", facts, MODEL, History(), SCORES)
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;b&gt;hi" in page


def test_runs_are_compared_and_chance_is_told_from_difference(tmp_path: Path) -> None:
    first = [Score(name, 125, 250) for name in "abcdef"]
    second = [Score("a", 170, 250), Score("b", 140, 250), Score("c", 125, 250),
              Score("d", 80, 250), Score("e", 148, 250), Score("x", 1, 2)]
    found = {d.task: d for d in compare_scores(first, second)}
    assert list(found) == list("abcde")
    assert [d.significant for d in found.values()] == [True, False, False, True, False]
    assert found["e"].p < 0.05  # alone it would have passed; among five it does not
    z = (0.68 - 0.5) / math.sqrt(0.59 * 0.41 * 2 / 250)
    assert found["a"].p == pytest.approx(2 * (1 - NormalDist().cdf(z)), rel=1e-6)
    assert compare_scores([Score("a", 5, 5)], [Score("a", 9, 9)])[0].p == 1.0
    for name, scores in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, scores, {})
        assert [(s.task, s.right) for s in read_results(tmp_path / name)] == [
            (s.task, s.right) for s in scores]
    with pytest.raises(CheckpointError, match=r"results\.json is missing or damaged"):
        read_results(tmp_path)


def test_a_report_compares_with_the_run_before(tmp_path: Path) -> None:
    assert "Against" not in written(tmp_path / "a", History())
    better = [Score("spell", 10, 10), Score("add", 10, 10)]
    (tmp_path / "b").mkdir()
    report = write_report(tmp_path / "b", FACTS, MODEL, History(), better).read_text()
    assert "## Against a" in report
    assert "| add | 0.300 | 1.000 | +0.700 ± 0.159 | **better** |" in report


def test_each_stage_has_its_time_and_work(tmp_path: Path) -> None:
    history = History(steps=[[i, float(i), 2.0] for i in range(1, 101)], tokens=100 * 256)
    history.exams = [["start", 0, 0.0, {"spell": [0, 10]}], ["read", 60, 60.0, {"spell": [1, 10]}],
                     ["answer", 90, 80.0, {"spell": [8, 10]}]]
    history.practice = [[91, 81.0, 0.1, 0.2]]
    report = written(tmp_path, history)  # begun by a version that counted no tokens a stage
    work = 256 * MODEL.estimate_flops()
    assert f"| read | 60 | 1:00 | 15,360 | {60 * work:.2e} | {work / 1e9:.0f} |" in report
    assert f"| answer | 30 | 0:20 | 7,680 | {30 * work:.2e} |" in report
    assert f"| practice | 10 | 0:20 | 2,560 | {10 * work:.2e} |" in report
    assert "| start |" not in report
    history.stages = {"answer": [90, 80.0, 90 * 256], "practice": [100, 100.0, 100 * 256]}
    again = written(tmp_path, history)  # gone on with, by one that does
    stages = [page.split("## Stages")[1].split("##")[0] for page in (again, report)]
    assert stages[0] == stages[1]
    history.stages = {"read": [60, 60.0, 6000], "answer": [90, 80.0, 6300],
                      "practice": [100, 100.0, 25600]}
    report, token = written(tmp_path, history), MODEL.estimate_flops()
    assert f"| read | 60 | 1:00 | 6,000 | {6000 * token:.2e} |" in report
    assert f"| answer | 30 | 0:20 | 300 | {300 * token:.2e} |" in report
    assert f"| practice | 10 | 0:20 | 19,300 | {19300 * token:.2e} |" in report


def test_what_was_measured_is_told_and_what_was_not_is_left_out(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", History())
    assert "Stories that" not in plain and "decoding" not in plain and "## Stages" not in plain
    facts = replace(FACTS, decoding=Decoding(16, 6100.0, 16 / 6100, 1 << 20, 0.25, "L2"),
                    stories=StoryRecord(40, (Figure("grammatical", 0.97, 0.012),),
                                        (Flaw("contradiction (owner)", 7, "Tom ate. (Mia has)"),)))
    failed = [replace(SCORES[0], failures=(Failure("Spell a|b.", "a-b", "a-`c`"),)), SCORES[1]]
    report = write_report(tmp_path / "plain", facts, MODEL, History(), failed).read_text()
    assert "| decoding | 6,100 tokens/s with 16 replies at once, 25% of the bandwidth of L2 |" in (
        report)
    assert "## Stories that it tells" in report and "| grammatical | 0.970 ± 0.012 |" in report
    assert "- contradiction (owner), in 7 of 40 stories (given: `Tom ate. (Mia has)`)" in report
    assert "- spell: Spell a|b. (right: `a-b`, given: `a-`c``)" in report
    results = json.loads((tmp_path / "plain" / "results.json").read_text())
    assert results["stories"]["flaws"][0]["stories"] == 7
    kept = results["scores"]["spell"]
    assert kept["failures"] == [{"question": "Spell a|b.", "expected": "a-b", "given": "a-`c`"}]
    assert kept["standard_error"] == pytest.approx(math.sqrt(11 / 14 * 3 / 14 / 14))


def test_the_machine_has_a_name(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: Fast: One\n\nmodel name\t: Other\n")
    assert page._processor(listed) == "Fast: One"
    assert page._processor(tmp_path / "none") == (
        platform.processor() or platform.machine())
    listed.write_text("Features: fp\n")
    assert page._processor(listed)


def test_without_exams_and_practice_there_is_the_end_alone(tmp_path: Path) -> None:
    report = written(tmp_path, History(steps=[[1, 1.0, 2.0]], tokens=256))
    assert "| task | what | exact match |" in report and "Practice" not in report
