"""The report says what each stage reached, and what practice did."""

from __future__ import annotations

from pathlib import Path

from gossamer.chat.evaluate import Score
from gossamer.chat.report import RunFacts, write_report
from gossamer.chat.train import History
from gossamer.models.gpt import GPT, GPTConfig

FACTS = RunFacts("mine", 2, [("train", 60.0)], [("Hi!", "Hello!")], [("settings", "seed 0")])
MODEL = GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16))
SCORES = [Score("spell", 9, 10), Score("add", 3, 10)]


def written(folder: Path, history: History) -> str:
    return write_report(folder, FACTS, MODEL, history, SCORES).read_text()


def test_a_column_for_each_stage(tmp_path: Path) -> None:
    history = History(steps=[[1, 1.0, 2.0], [2, 2.0, 1.5]], tokens=512)
    history.exams = [["read", 1, 1.0, {"spell": [1, 10], "add": [0, 10]}],
                     ["answer", 2, 2.0, {"spell": [8, 10], "add": [2, 10]}]]
    history.practice = [[i, 1.0, i / 20, min(1.0, i / 10)] for i in range(20)]
    report = written(tmp_path, history)
    assert "| task | what | after reading | after answering | exact match |" in report
    assert "| 0.100 | 0.800 | 0.900 ±" in report and "| 0.000 | 0.200 | 0.300 ±" in report
    assert "| **mean** | | 0.050 | 0.500 | **0.600 ±" in report
    assert "right 2% of the time at first and 92% at last (any of a group: 5% and 100%)" in report


def test_without_exams_and_practice_there_is_the_end_alone(tmp_path: Path) -> None:
    report = written(tmp_path, History(steps=[[1, 1.0, 2.0]], tokens=256))
    assert "| task | what | exact match |" in report and "Practice" not in report
