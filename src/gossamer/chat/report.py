"""The report card of a run: report.md, report.html, curves.png and results.json. Layer 7.

The one idea: the page is for someone who was not there. It says what was asked, how much of it was
right, on which machine and in which time, what the model replies, and where it went wrong.
What follows a ± is a standard error, of every share by the one rule of `spread.py`.
matplotlib is imported when a picture is drawn: it takes longer to import than all the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from gossamer.chat.card import (
    Block,
    Heading,
    Items,
    Paragraph,
    Picture,
    Quote,
    Table,
    to_html,
    to_markdown,
)
from gossamer.chat.compare import comparison_table, read_results, write_results
from gossamer.chat.evaluate import Failure, Score, mean_score
from gossamer.chat.exercises import Drawing
from gossamer.chat.progress import clock_text
from gossamer.chat.speed import Decoding
from gossamer.chat.spread import share_error
from gossamer.chat.storytelling import MIN_P, StoryRecord
from gossamer.chat.tasks import TASKS
from gossamer.chat.train import History
from gossamer.core.errors import CheckpointError
from gossamer.data.safetensors import write_atomically
from gossamer.models.gpt import GPT

__all__ = ["RunFacts", "check_drawing", "scores_table", "write_examination", "write_report"]

resource: ModuleType | None = None
with contextlib.suppress(ModuleNotFoundError):  # Windows has none
    resource = importlib.import_module("resource")

_POINTS = 400  # of the loss curve; more cannot be seen
_WATTS = 15.0  # of a busy core with its share of caches and memory: from 5 to 25
_ERRORS = ("What follows ± is one standard error; that of a share is computed with two right and "
           "two wrong replies added (Agresti and Coull), so all right of a few is no certainty.")
_SMOOTHING = 0.9  # of the bold loss curve: the mean of about ten steps


@dataclass(frozen=True)
class RunFacts:
    """What the report says about a run beside its curves and scores.

    Args:
        name: of the run.
        threads: cores used.
        phases: (name, seconds) of each phase, in order.
        samples: (question, reply) pairs as the finished model decodes them.
        settings: (name, value) lines.
        decoding: how fast the finished model decodes, if it was measured.
        stories: what was measured on stories that it told, if that was.
        attempted: questions of a step of practice.
    """

    name: str
    threads: int
    phases: Sequence[tuple[str, float]]
    samples: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    decoding: Decoding | None = None
    stories: StoryRecord | None = None
    attempted: int = 8


def check_drawing() -> None:
    """Fail before the training, not after it, where the picture cannot be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    importlib.import_module("matplotlib.figure")


def write_report(
    folder: Path, facts: RunFacts, model: GPT, history: History, scores: Sequence[Score]
) -> Path:
    """Write `report.md`, `report.html`, `curves.png` and `results.json` into the run's folder.

    Returns:
        The path of report.md.
    """
    _draw_curves(folder / "curves.png", history, scores)
    mean, error = mean_score(scores)
    blocks: list[Block] = [
        Heading(f"{facts.name}: {mean:.1%} exact", 1),
        Paragraph(
            f"Mean exact match over {len(scores)} tasks, {sum(s.asked for s in scores)} held-out "
            f"questions: **{mean:.3f} ± {error:.3f}**. No question of the test "
            f"was seen in training under any wording; the whole reply must be right. {_ERRORS}"),
        Picture(folder / "curves.png", "Loss and accuracy over time"),
        _score_table(scores, history),
        *_practice(history, facts.attempted),
        *_stories(facts.stories),
        *_against_the_last(folder, scores),
        *_stages(model, history),
        *_figures(facts, model, history),
        *_samples(facts),
        *_failures(scores),
    ]
    told = {"stories": asdict(facts.stories)} if facts.stories else {}
    write_results(folder, scores, {"seconds": sum(s for _, s in facts.phases),
                                   "tokens": history.tokens, "steps": len(history.steps), **told})
    return _write_page(folder, blocks)


def _write_page(folder: Path, blocks: Sequence[Block]) -> Path:
    """Write `report.html` and `report.md`, each whole or not at all; the path of the latter.

    What a model says may hold halves of characters, which no file takes: they are spelled out.
    """
    path = folder / "report.md"
    for file, text in ((path.with_suffix(".html"), to_html(blocks)), (path, to_markdown(blocks))):
        with write_atomically(file) as page:
            page.write(text.encode("utf-8", "backslashreplace"))
    return path


def _against_the_last(folder: Path, scores: Sequence[Score]) -> list[Block]:
    """The comparison with the newest other run beside this one that came to its end."""
    others = [p for p in folder.parent.glob("*/results.json") if p.parent != folder]
    if not others:
        return []
    last = max(others, key=lambda p: p.stat().st_mtime).parent
    try:
        before = read_results(last)
    except CheckpointError as error:
        return [Paragraph(str(error))]
    return [Heading(f"Against {last.name}"),
            comparison_table(before, scores, (last.name, folder.name))]


_STAGES = {"start": "at the start", "read": "after reading", "answer": "after answering"}


def _score_table(scores: Sequence[Score], history: History) -> Table:
    """A row a task: what each stage but the last had reached, and the end."""
    earlier = [(_STAGES.get(stage, stage), rows) for stage, _, _, rows in history.exams]
    rows = []
    for score in scores:
        doc = TASKS[score.task].doc if score.task in TASKS else ""
        before = (_stood(exam.get(score.task, [0, 0])) for _, exam in earlier)
        rows.append((score.task, doc, *before, f"{_share(score)} ({score.right}/{score.asked})"))
    mean, error = mean_score(scores)
    rows.append(("**mean**", "", *(_stood_mean(exam) for _, exam in earlier),
                 f"**{mean:.3f} ± {error:.3f}**"))
    return Table(("task", "what", *(name for name, _ in earlier), "exact match"), tuple(rows))


def _share(score: Score) -> str:
    return f"{score.accuracy:.3f} ± {score.standard_error:.3f}"


def _stood(exam: Sequence[int]) -> str:
    """What an earlier exam gave; it may not have asked this task."""
    right, asked = exam
    return _share(Score("", right, asked)) if asked else ""


def _stood_mean(exam: Mapping[str, Sequence[int]]) -> str:
    mean, error = mean_score([Score(task, right, asked) for task, (right, asked) in exam.items()])
    return f"{mean:.3f} ± {error:.3f}"


def _stories(told: StoryRecord | None) -> list[Block]:
    """What was computed of sampled stories, where their generator is known."""
    if told is None:
        return []
    rows = tuple((f.name, f"{f.value:.3f} ± {f.error:.3f}") for f in told.figures)
    drawn = f"of {told.stories} drawn at temperature 1, min-p {MIN_P}"
    blocks: list[Block] = [Heading("Stories that it tells"), Table(("", drawn), rows)]
    if told.flaws:
        lines = tuple(map(_failure, told.failures))
        blocks += [Paragraph("What is wrong with them, the commonest first, an example each:"),
                   Items(lines)]
    return blocks


def _stages(model: GPT, history: History) -> list[Block]:
    """Time and FLOPs of each stage of the training; of practice the learning, not the replies."""
    rows, before = list[tuple[str, ...]](), (0.0, 0.0, 0.0)
    for stage, end in _ends(history).items():
        steps, seconds, tokens = (b - a for a, b in zip(before, end, strict=True))
        flops = tokens * model.estimate_flops()
        if steps > 0:
            rows.append((stage, f"{steps:,.0f}", clock_text(seconds), f"{tokens:,.0f}",
                         f"{flops:.2e}", f"{flops / seconds / 1e9:.0f}" if seconds > 0 else ""))
        before = (end[0], end[1], end[2])
    if not rows:
        return []
    return [Heading("Stages"),
            Table(("stage", "steps", "time", "tokens", "FLOPs", "GFLOP/s"), tuple(rows))]


def _ends(history: History) -> Mapping[str, Sequence[float]]:
    """(steps, seconds, tokens) at the end of each stage.

    Of a run that kept none of it (begun by an older version) the exams tell the ends of the stages
    but the last, and all steps count as many tokens.
    """
    told = {stage for stage, step, *_ in history.exams if step}
    if history.stages and told <= history.stages.keys():
        return history.stages
    if not history.exams or not history.steps:
        return {}
    last_step, last_seconds, _ = history.steps[-1]
    ends = [(stage, step, seconds) for stage, step, seconds, _ in history.exams]
    ends.append(("practice" if history.practice else "answer", last_step, last_seconds))
    each = history.tokens / max(1.0, last_step)
    return {stage: (step, seconds, step * each) for stage, step, seconds in ends}


def _practice(history: History, attempted: int) -> list[Block]:
    """What practice did: to the replies drawn in it, and to replies to held-out questions."""
    if not history.practice:
        return []
    tenth = max(1, len(history.practice) // 10)
    one, many = ([_share_of([row[i] for row in part], attempted)
                  for part in (history.practice[:tenth], history.practice[-tenth:])]
                 for i in (2, 3))
    return [Heading("Practice"), Paragraph(
        f"Practice: {len(history.practice)} steps; replies drawn at temperature 1 were right "
        f"{one[0]} of the time at first and {one[1]} at last (any of a group: {many[0]} and "
        f"{many[1]})."), *_attempted(history)]


def _attempted(history: History) -> list[Block]:
    """pass@1 and pass@k on held-out questions, before practice and after it."""
    found = {stage == "practice": row for stage, _, row in history.attempts}  # the last of each
    before, after = found.get(False, {}), found.get(True, {})
    tasks = [task for task in before if task in after]
    if not tasks:
        return []
    pairs = [[pair for two in zip(before[task], after[task], strict=True) for pair in two]
             for task in tasks]
    rows = [(task, *(f"{value:.3f} ± {error:.3f}" for _, value, error in row))
            for task, row in zip(tasks, pairs, strict=True)]
    means = [(fmean(cell[1] for cell in column),
              math.hypot(*(cell[2] for cell in column)) / len(column))
             for column in zip(*pairs, strict=True)]
    rows.append(("**mean**", *(f"**{value:.3f} ± {error:.3f}**" for value, error in means)))
    names = (f"{cell[0]} {'after' if i % 2 else 'before'}" for i, cell in enumerate(pairs[0]))
    return [Paragraph("Held-out questions, replies drawn at temperature 1:"),
            Table(("task", *names), tuple(rows))]


def _share_of(shares: Sequence[float], attempted: int) -> str:
    """The mean of the steps' shares, each of so many questions."""
    asked = [float(attempted)] * len(shares)
    error = share_error([attempted * share for share in shares], asked, unit=1.0)
    return f"{sum(shares) / len(shares):.0%} ± {error:.0%}"


def _figures(facts: RunFacts, model: GPT, history: History) -> list[Block]:
    total = sum(seconds for _, seconds in facts.phases)
    training = dict(facts.phases).get("train", 0.0)
    flops = history.tokens * model.estimate_flops()
    rate = flops / training / 1e9 if training else 0.0
    positions = max(1, history.tokens)
    rows = [
        ("machine", f"{_processor()}, {platform.system()}, {facts.threads} threads"),
        ("time", f"{clock_text(total)} (" + ", ".join(
            f"{name} {clock_text(seconds)}" for name, seconds in facts.phases) + ")"),
        ("model", f"{model.count_parameters():,} parameters, "
                  f"{model.config.n_layer} layers x {model.config.n_embd}"),
        ("training", f"{len(history.steps):,} steps, {history.tokens:,} tokens, {flops:.2e} FLOPs "
                     f"({rate:.0f} GFLOP/s)"),
        ("packing", f"{history.padding / positions:.1%} padding, {history.split} examples split, "
                    "none dropped"),
        ("memory", f"{_peak_memory() / 1e6:,.0f} MB at most, Python and compiler included"),
        ("energy", f"about {total * facts.threads * _WATTS / 3600:.1f} Wh, if a busy core draws "
                   f"{_WATTS:g} W"),
        *_decoding(facts.decoding),
        *facts.settings,
    ]
    return [Heading("Figures"), Table(("", ""), tuple(rows))]


def _decoding(found: Decoding | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [("decoding", f"{found.tokens_per_second:,.0f} tokens/s with {found.rows} replies at "
                         f"once, {found.share:.0%} of the bandwidth of {found.level}")]


def _processor(listed: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it (Linux in a file), else its kind."""
    with contextlib.suppress(OSError):
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _peak_memory() -> int:
    """Bytes that this process held at most; 0 where the system does not tell."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _samples(facts: RunFacts) -> list[Block]:
    quotes = [Quote(_one_line(asked), _one_line(reply)) for asked, reply in facts.samples]
    return [Heading("Samples"), *quotes] if quotes else []


def _failures(scores: Sequence[Score]) -> list[Block]:
    lines = tuple(f"{score.task}: {_failure(failure)}"
                  for score in scores for failure in score.failures)
    return [Heading("Questions that went wrong"), Items(lines)] if lines else []


def _failure(failure: Failure) -> str:
    told = [f"{name}: `{_one_line(text)}`" for name, text in
            (("right", failure.expected), ("given", failure.given)) if text]
    return _one_line(failure.question) + (f" ({', '.join(told)})" if told else "")


def write_examination(folder: Path, model: Path, scores: Sequence[Score], drawing: Drawing
                      ) -> Path:
    """Write `report.md` and `report.html` of an evaluation; `results.json` is `write_results`'.

    Returns:
        The path of report.md.
    """
    drawn = (f"{drawing.samples} replies a question, drawn at temperature "
             f"{drawing.temperature:g}" if drawing.temperature else "the likeliest tokens")
    blocks: list[Block] = [
        Heading(f"What {model.name} can do", 1),
        Paragraph(f"The model in `{model}`, {sum(s.asked for s in scores)} questions; where "
                  f"replies are decoded, {drawn}. {_ERRORS}"),
        scores_table(scores), *_failures(scores),
    ]
    return _write_page(folder, blocks)


def scores_table(scores: Sequence[Score]) -> Table:
    """A row a task: its share, what that is above guessing, and what else was measured."""
    centred = any(s.baseline for s in scores)
    rows = list[tuple[str, ...]]()
    for s in scores:
        above = [f"{s.centred:.3f} ± {s.centred_error:.3f}"] if centred else []
        if s.asked:
            rows.append((s.task, f"{s.right}/{s.asked}", _share(s), *above))
        rows += [(f"{s.task}, {f.name}", "", f"{f.value:.3f} ± {f.error:.3f}", *([""] * centred))
                 for f in s.figures]
    asked = [s for s in scores if s.asked]
    if len(asked) > 1:
        mean, error = mean_score(asked)
        over = sum(s.centred for s in asked) / len(asked)
        spread = math.hypot(*(s.centred_error for s in asked)) / len(asked)
        above = [f"**{over:.3f} ± {spread:.3f}**"] if centred else []
        rows.append(("**mean**", "", f"**{mean:.3f} ± {error:.3f}**", *above))
    return Table(("task", "right", "result", *(["above guessing"] if centred else [])), tuple(rows))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _draw_curves(path: Path, history: History, scores: Sequence[Score]) -> None:
    from matplotlib.figure import Figure  # without pyplot no window system is looked for

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, history)
    _draw_quizzes(right, history, scores)
    with write_atomically(path) as file:
        figure.savefig(file, dpi=110, format="png")


def _draw_loss(axes: Any, history: History) -> None:
    """The loss of every step, and bold its running mean."""
    axes.set(xlabel="minutes", ylabel="loss (nats a token)", title="training loss")
    axes.grid(alpha=0.3)
    if not history.steps:
        return
    losses = [row[2] for row in history.steps]
    means = list(accumulate(losses, lambda mean, x: _SMOOTHING * mean + (1 - _SMOOTHING) * x))
    stride = max(1, len(losses) // _POINTS)
    minutes = [row[1] / 60 for row in history.steps[::stride]]
    axes.plot(minutes, losses[::stride], linewidth=0.7, alpha=0.35, color="tab:blue")
    axes.plot(minutes, means[::stride], linewidth=1.8, color="tab:blue")
    axes.set_xlim(left=0.0)
    if min(losses) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_round_figures)


def _round_figures(value: float, position: int) -> str:
    """Label only 2 and 5 of a decade; all nine run into each other."""
    text = f"{value:.6g}"
    return text if text.strip("0.")[:1] in ("2", "5") else ""


def _draw_quizzes(axes: Any, history: History, scores: Sequence[Score]) -> None:
    """A curve a task, named beside the picture from the best to the worst."""
    end = history.steps[-1][1] / 60 if history.steps else 0.0
    for number, score in enumerate(sorted(scores, key=lambda s: -s.accuracy)):
        curve = [(row[1] / 60, row[3].get(score.task, 0.0)) for row in history.quizzes]
        curve.append((end, score.accuracy))
        style = "-" if number < 10 else "--"  # ten colours, then dashes
        axes.plot(*zip(*curve, strict=True), style, marker=".",
                  label=f"{score.task} {score.accuracy:.2f}")
    axes.set(xlabel="minutes", ylabel="exact match", ylim=(-0.02, 1.02),
             title="quizzes in training; last point: held-out test")
    axes.set_xlim(left=0.0)
    axes.grid(alpha=0.3)
    if scores:
        axes.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
