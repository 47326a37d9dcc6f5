"""The report card of a run: report.md and curves.png. Layer 7."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; no window system is needed

from matplotlib import pyplot as plt
from matplotlib.ticker import StrMethodFormatter

from gossamer.chat.evaluate import Score, mean_score
from gossamer.chat.progress import clock_text
from gossamer.chat.tasks import TASKS
from gossamer.chat.train import History
from gossamer.models.gpt import GPT

__all__ = ["RunFacts", "write_report"]

_POINTS = 400  # of the loss curve; more cannot be seen


@dataclass(frozen=True)
class RunFacts:
    """What the report says about a run beside its curves and scores.

    Args:
        name: of the run.
        threads: cores used.
        phases: (name, seconds) of each phase, in order.
        samples: (question, reply) pairs as the finished model decodes them.
        settings: (name, value) lines.
    """

    name: str
    threads: int
    phases: Sequence[tuple[str, float]]
    samples: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]


def write_report(
    folder: Path, facts: RunFacts, model: GPT, history: History, scores: Sequence[Score]
) -> Path:
    """Write `report.md` and `curves.png` into the run's folder.

    Returns:
        The path of report.md.
    """
    _draw_curves(folder / "curves.png", history, scores)
    mean, error = mean_score(scores)
    lines = [
        f"# {facts.name}: {mean:.1%} exact",
        "",
        f"Mean exact match over {len(scores)} tasks, {sum(s.asked for s in scores)} held-out "
        f"questions: **{mean:.3f} ± {error:.3f}** (standard error). No question of the test was "
        "seen in training under any wording; the whole reply must be right.",
        "",
        "![Loss and accuracy over time](curves.png)",
        "",
        *_score_table(scores),
        *_figures(facts, model, history),
        *_sample_lines(facts),
        *_failure_lines(scores),
    ]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _score_table(scores: Sequence[Score]) -> list[str]:
    rows = ["| task | what | exact match |", "| --- | --- | --- |"]
    for score in scores:
        doc = TASKS[score.task].doc if score.task in TASKS else ""
        rows.append(f"| {score.task} | {doc} | {score.accuracy:.3f} ± "
                    f"{score.standard_error:.3f} ({score.right}/{score.asked}) |")
    return [*rows, ""]


def _figures(facts: RunFacts, model: GPT, history: History) -> list[str]:
    total = sum(seconds for _, seconds in facts.phases)
    training = dict(facts.phases).get("train", 0.0)
    flops = history.tokens * model.estimate_flops()
    rate = flops / training / 1e9 if training else 0.0
    positions = max(1, history.tokens)
    rows = [
        ("machine", f"{platform.machine()}, {platform.system()}, {facts.threads} threads"),
        ("time", f"{clock_text(total)} (" + ", ".join(
            f"{name} {clock_text(seconds)}" for name, seconds in facts.phases) + ")"),
        ("model", f"{model.count_parameters():,} parameters, "
                  f"{model.config.n_layer} layers x {model.config.n_embd}"),
        ("training", f"{len(history.steps):,} steps, {history.tokens:,} tokens, {flops:.2e} FLOPs "
                     f"({rate:.0f} GFLOP/s)"),
        ("packing", f"{history.padding / positions:.1%} padding, {history.split} examples split, "
                    "none dropped"),
        *facts.settings,
    ]
    return ["## Figures", "", "| | |", "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in rows), ""]


def _sample_lines(facts: RunFacts) -> list[str]:
    if not facts.samples:
        return []
    lines = ["## Samples", ""]
    for asked, reply in facts.samples:
        lines += [f"> {_one_line(asked)}", "", f"`{_one_line(reply)}`", ""]
    return lines


def _failure_lines(scores: Sequence[Score]) -> list[str]:
    lines = ["## Questions that went wrong", ""]
    for score in scores:
        for question in score.failures:
            lines.append(f"- {score.task}: {_one_line(question.text)} "
                         f"(right: `{_one_line(question.answer)}`)")
    return lines if len(lines) > 2 else []


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _draw_curves(path: Path, history: History, scores: Sequence[Score]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    stride = max(1, len(history.steps) // _POINTS)
    minutes = [row[1] / 60 for row in history.steps[::stride]]
    left.plot(minutes, [row[2] for row in history.steps[::stride]], linewidth=1)
    left.set(xlabel="minutes", ylabel="loss (nats a token)", title="training loss")
    if history.steps and min(row[2] for row in history.steps) > 0:
        left.set_yscale("log")
        left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        left.yaxis.set_minor_formatter(StrMethodFormatter("{x:.2g}"))
    left.grid(alpha=0.3)
    for number, score in enumerate(scores):
        curve = [(row[1] / 60, row[3].get(score.task, 0.0)) for row in history.quizzes]
        if minutes:
            curve.append((minutes[-1], score.accuracy))
        style = "-" if number < 10 else "--"  # ten colours, then dashes
        right.plot(*zip(*curve, strict=True), style, marker=".", label=score.task)
    right.set(xlabel="minutes", ylabel="exact match", ylim=(-0.02, 1.02),
              title="quizzes in training; last point: held-out test")
    if scores:
        right.legend(fontsize=7, ncols=2)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
