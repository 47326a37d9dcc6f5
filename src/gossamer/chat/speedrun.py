"""From an empty folder to a chat model, everything inside the given minutes. Layer 7.

Data, tokenizer, compilation, training, evaluation and report share one budget: what the others need
is set aside first, training gets the rest. The run's settings lie in `run.json`, so that `--resume`
needs only the name.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gossamer as gs
from gossamer.chat.checkpoint import find_run, latest, load_model
from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.engine import Engine
from gossamer.chat.evaluate import Score, evaluate, mean_score, question_set
from gossamer.chat.progress import Display, clock_text
from gossamer.chat.report import RunFacts, write_report
from gossamer.chat.tasks import TASKS
from gossamer.chat.terminal import ChatSession, run_chat
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.train import Trainer, TrainSettings, check_optimizer
from gossamer.core.errors import CheckpointError
from gossamer.models.gpt import GPT, GPTConfig

__all__ = ["SpeedrunOptions", "plan", "speedrun"]

_RESERVE_SHARE = 0.06  # of the minutes for evaluation and report ...
_RESERVE_SECONDS = (3.0, 30.0)  # ... within these bounds
_VOCABULARY = 1024
_SAMPLE_TOKENS = 120  # a tale has about 90
_SAMPLES = (
    "Hi!",
    "How many r are in strawberry?",
    "Spell butterfly backwards.",
    "What is 257 + 468?",
    "What is 47 x 6?",
    "What day is 17 days after Monday?",
    "What date is 3 days after 2024-02-27?",
    "Mia went to the garden. Tom took the ball. Tom gave the ball to Mia. Where is the ball?",
    "Tell me a story about a lamp.",
)


@dataclass(frozen=True)
class SpeedrunOptions:
    """What a person chooses.

    Args:
        minutes: everything included.
        name: of the run; empty = `speedrun`, numbered if taken.
        seed: of weights and data.
        questions: held-out questions a task.
        optimizer: "muon" or "adamw".
        lr_scale: factor on every learning rate.
        clip: largest gradient norm, 0 = none.
        depth: layers of the model, its width is 32 times that; 0 = by the minutes.
        root: folder of runs.
    """

    minutes: float = 10.0
    name: str = ""
    seed: int = 0
    questions: int = 250
    optimizer: str = "muon"
    lr_scale: float = 1.0
    clip: float = 0.0
    depth: int = 0
    root: Path = Path("runs")


def plan(options: SpeedrunOptions, vocab_size: int) -> GPTConfig:
    """The largest model that sees enough tokens in the time on two cores.

    Ten minutes at 60 to 120 GFLOP/s are 3e13 to 6e13 FLOPs: four layers of 128 see 4 to 8 million
    tokens. From half an hour on, six layers of 192 (three times the cost a token) learn more.
    """
    depth = options.depth or (4 if options.minutes < 25 else 6)
    return GPTConfig(vocab_size=vocab_size, n_layer=depth, n_head=depth, n_embd=32 * depth)


def speedrun(
    options: SpeedrunOptions, *, resume: str | None = None, chat: bool = True,
    console: Console | None = None, clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train, test and report a chat model; then talk to it, if a person sits at a terminal.

    Args:
        options: of a new run; a resumed run keeps its own, except `root`.
        resume: name of an interrupted run.
        chat: whether to drop into the chat at the end.
        console: where to print.
        clock: a monotonic clock; tests pass their own.

    Returns:
        The run's folder.

    Raises:
        CheckpointError: nothing to resume, or a damaged checkpoint.
        Interrupted: Ctrl-C; the message says how to go on.
        TrainingDiverged: the loss became NaN or infinite.
    """
    console = console or Console()
    phases = _Phases(clock)
    if resume is None:
        trainer, options = _begin(options, console, clock), options
    else:
        trainer, options = _continue(options, resume, console, clock)
    phases.done("data")
    before = trainer.seconds_before
    left = clock_text(trainer.settings.seconds - before)
    _say(console, f"{trainer.folder}: {trainer.model.count_parameters():,} parameters, {left} of "
                  f"training on {gs.get_num_threads()} threads; Ctrl-C saves and stops")
    history = trainer.run()
    phases.done("train", before)
    questions = question_set(TASKS, options.questions, seed=options.seed)
    scores = evaluate(trainer.model, trainer.tokenizer, questions)
    phases.done("evaluate")
    engine = Engine(trainer.model, rows=1)
    samples = [(text, _reply(engine, trainer.tokenizer, text)) for text in _SAMPLES]
    phases.done("samples")
    report = write_report(
        trainer.folder, _facts(trainer, options, phases, samples), trainer.model, history, scores
    )
    phases.done("report")
    _summary(console, scores, report, phases)
    if chat and sys.stdin.isatty():
        run_chat(ChatSession(Engine(trainer.model, 1), trainer.tokenizer), console)
    return trainer.folder


class _Phases:
    """Seconds of each phase, under its name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last = clock, clock()
        self.times: list[tuple[str, float]] = []

    def done(self, name: str, before: float = 0.0) -> None:
        """End a phase; `before` seconds of it were spent by an interrupted process."""
        now = self._clock()
        self.times.append((name, now - self._last + before))
        self._last = now

    def total(self) -> float:
        """Seconds of all phases."""
        return sum(seconds for _, seconds in self.times)


def _begin(
    options: SpeedrunOptions, console: Console, clock: Callable[[], float],
) -> Trainer:
    """A new run: its folder, tokenizer and model; `run.json` keeps what a resume needs."""
    started = clock()
    check_optimizer(options.optimizer)
    folder = _new_folder(options)
    tokenizer = Tokenizer.train(tokenizer_corpus(TASKS, options.seed), _VOCABULARY)
    gs.manual_seed(options.seed)
    model = GPT(plan(options, tokenizer.vocab_size))
    total = options.minutes * 60
    low, high = _RESERVE_SECONDS
    reserve = min(max(_RESERVE_SHARE * total, low), high)
    seconds = max(1.0, total - reserve - (clock() - started))
    record = {"options": {**asdict(options), "root": str(options.root)}, "seconds": seconds}
    (folder / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return _trainer(model, tokenizer, options, seconds, folder, console, clock)


def _continue(
    options: SpeedrunOptions, name: str, console: Console, clock: Callable[[], float],
) -> tuple[Trainer, SpeedrunOptions]:
    """An interrupted run, as it was when its last checkpoint was written."""
    folder = find_run(options.root, name)
    newest = latest(folder)
    assert newest is not None  # find_run returns only folders that have one
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        saved = SpeedrunOptions(**{**record["options"], "root": options.root})
        seconds = float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"resume {name!r}: {folder / 'run.json'} is missing or damaged ({error}); it holds "
            "the run's settings. `gossamer chat` can still use the checkpoint; to train, start a "
            "new run."
        ) from None
    checkpoint = load_model(newest)
    trainer = _trainer(
        checkpoint.model, checkpoint.tokenizer, saved, seconds, folder, console, clock
    )
    trainer.resume(checkpoint)
    return trainer, saved


def _trainer(
    model: GPT, tokenizer: Tokenizer, options: SpeedrunOptions, seconds: float, folder: Path,
    console: Console, clock: Callable[[], float],
) -> Trainer:
    about = {"minutes": f"{options.minutes:g}", "parameters": f"{model.count_parameters():,}"}
    settings = TrainSettings(
        seconds=seconds, optimizer=options.optimizer, clip=options.clip,
        lr_scale=options.lr_scale, seed=options.seed,
    )
    curriculum = Curriculum(TASKS, tokenizer, about)
    return Trainer(model, curriculum, settings, folder, Display(console), clock)


def _new_folder(options: SpeedrunOptions) -> Path:
    """Make the run's folder; a taken name is an error if it was asked for, else numbered."""
    if options.name:
        folder = options.root / options.name
        if folder.exists():
            raise FileExistsError(
                f"--name {options.name}: {folder} exists already; a run never overwrites another. "
                f"Choose another name, or go on with --resume {options.name}."
            )
    else:
        taken = {p.name for p in options.root.iterdir()} if options.root.is_dir() else set()
        names = ("speedrun" if n == 1 else f"speedrun-{n}" for n in count(1))
        folder = options.root / next(n for n in names if n not in taken)
    folder.mkdir(parents=True)
    return folder


def _reply(engine: Engine, tokenizer: Tokenizer, text: str) -> str:
    """The finished model's greedy reply, decoded token by token, at most _SAMPLE_TOKENS of them."""
    reply = ChatSession(engine, tokenizer).reply(text)
    return "".join(islice(reply, _SAMPLE_TOKENS))


def _facts(
    trainer: Trainer, options: SpeedrunOptions, phases: _Phases, samples: list[tuple[str, str]]
) -> RunFacts:
    settings = trainer.settings
    row = (f"seed {options.seed}, {settings.optimizer}, batch {settings.batch_size} x "
           f"{trainer.model.config.sequence_len}, vocabulary {trainer.tokenizer.vocab_size}")
    return RunFacts(trainer.folder.name, gs.get_num_threads(), phases.times, samples,
                    [("settings", row)])


def _summary(console: Console, scores: list[Score], report: Path, phases: _Phases) -> None:
    """The scores as a table, and where the report is."""
    table = Table("task", "exact match", "", title="held-out questions")
    for score in scores:
        bar = "#" * round(20 * score.accuracy)
        table.add_row(score.task, f"{score.accuracy:.3f} ± {score.standard_error:.3f}", bar)
    console.print(table)
    mean, error = mean_score(scores)
    _say(console, f"mean exact match {mean:.3f} ± {error:.3f} in {clock_text(phases.total())}; "
                  f"report: {report}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
