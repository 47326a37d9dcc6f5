"""From an empty folder to a chat model, everything inside the given minutes. Layer 7.

Data, tokenizer, compilation, training, evaluation and report share one budget: what the others need
is set aside first, training gets the rest. The run's settings lie in `run.json`, so that `--resume`
needs only the name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gossamer as gs
from gossamer.chat.checkpoint import find_checkpoint, find_run, latest, load_model
from gossamer.chat.corpus import Corpus, find_shards, pin
from gossamer.chat.curriculum import TALE, Curriculum, tokenizer_corpus
from gossamer.chat.dial import Dial, turn
from gossamer.chat.dialogues import FACTS
from gossamer.chat.engine import Engine
from gossamer.chat.evaluate import (
    Score,
    bits_figure,
    evaluate,
    mean_score,
    question_set,
    with_replies,
)
from gossamer.chat.interrupt import (
    Interrupted,
    command,
    only_writer,
    run_name,
    unwind_when_told,
)
from gossamer.chat.progress import Display, clock_text, say
from gossamer.chat.prose import read_prose
from gossamer.chat.report import RunFacts, check_drawing, write_report
from gossamer.chat.schedule import Schedule
from gossamer.chat.speed import decoding
from gossamer.chat.storytelling import StoryRecord, story_record
from gossamer.chat.tasks import TASKS
from gossamer.chat.terminal import ChatSession
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.track import track_for
from gossamer.chat.train import Trainer, TrainSettings, check_optimizer
from gossamer.core.errors import CheckpointError
from gossamer.data.safetensors import write_atomically
from gossamer.models.gpt import GPT

__all__ = ["SpeedrunOptions", "plan", "speedrun"]

# What may change where a run goes on.
_MAY_CHANGE = frozenset(("lr_scale", "clip", "save_every"))
_RESERVE_SHARE = 0.06  # of the minutes for evaluation and report ...
_RESERVE_SECONDS = (3.0, 30.0)  # ... within these bounds
# What a run had whose `run.json` does not say: such a run goes on as it began.
_BEFORE_THE_DIAL: dict[str, Any] = {"dtype": "float32", "borders": False}
_MEASURED_BYTES = 200_000  # of held-out text, a second of evaluation
_GOING_ON = Schedule(warmup_steps=5, warmdown=1.0, final=0.0)  # of what was trained before
_REPLIES = 16  # decoded at once: the failures' replies, and for the figure in the report
_SAMPLE_TOKENS = 160  # the longest of 400 tales has 139, the median 97
_FEWEST_STORIES = 50  # told and measured; with fewer an error is 7 % and more
_SAMPLES = (
    "Hi!",
    "How many r are in strawberry?",
    "Spell butterfly backwards.",
    "What is 257 + 468?",
    "What is 47 x 6?",
    "What is 4738 x 291?",
    "What day is 17 days after Monday?",
    "What date is 3 days after 2024-02-27?",
    "What time is it 45 minutes after 10:30?",
    "Mia went to the garden. Tom took the ball. Tom gave the ball to Mia. Where is the ball?",
    "Tell me a story about a lamp.",
)


@dataclass(frozen=True)
class SpeedrunOptions:
    """What a person chooses.

    Args:
        minutes: everything included.
        name: of the run; empty = `speedrun` or `practice`, numbered if taken.
        seed: of weights and data.
        questions: held-out questions a task.
        optimizer: "muon" or "adamw".
        lr_scale: factor on every learning rate.
        clip: largest gradient norm, 0 = none.
        depth: layers of the model, its width is 32 times that; 0 = by the minutes.
        tokens: that the run is foreseen to see; 0 = by the measured speed.
        dtype: of products: "float32", "bfloat16", or "auto", what the machine is faster at.
        borders: whether attention ends where one example ends and the next begins.
        without, having: features of the model switched off or on, of `models.gpt.SWITCHES`.
        data: a person's own files and folders, to be read besides.
        practice: share of the training for reinforcement, at its end; None = the track's, which
            practises telling tales.
        start: a run, or one of its checkpoints, to go on from instead of from nothing.
        tasks: names of the tasks to train on; none = all. The exam always asks all. "tale": to
            practise telling tales, that are read and checked sentence by sentence.
        attempts: questions of a step of reinforcement, and replies to each.
        prose: whether to read the help texts and docstrings of this Python besides.
        steps: length of the training instead of `minutes`; 0 = by the clock.
        save_every: seconds between checkpoints.
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
    tokens: int = 0
    dtype: str = "auto"
    borders: bool = True
    without: tuple[str, ...] = ()
    having: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    practice: float | None = None
    start: str = ""
    tasks: tuple[str, ...] = ()
    attempts: tuple[int, int] = (8, 8)
    prose: bool = False
    steps: int = 0
    save_every: float = 60.0
    root: Path = Path("runs")


def plan(options: SpeedrunOptions) -> tuple[SpeedrunOptions, Dial]:
    """The options with what was left to the machine decided, and what follows from them.

    A resumed run finds everything decided, so it goes on with the same settings on any machine.
    """
    dial = turn(options.minutes, options.depth, tokens=options.tokens, steps=options.steps,
                own_text=bool(options.data), dtype=options.dtype)
    dial.config(off=options.without, on=options.having)  # refuses what there is not
    return replace(options, depth=dial.depth, tokens=dial.tokens, dtype=dial.dtype), dial


def speedrun(
    options: SpeedrunOptions, *, resume: str | None = None, given: Collection[str] = (),
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train, test and report a chat model.

    Args:
        options: of a new run; a resumed run keeps its own, except `root` and what is `given`.
        resume: name of an interrupted run, "" = the most recent one; None = a new run.
        given: names of the options that a resumed run is to take over, whatever their values; of
            other options than `lr_scale`, `clip` and `save_every` it refuses them.
        console: where to print.
        clock: a monotonic clock; tests pass their own.

    Returns:
        The run's folder.

    Raises:
        CheckpointError: nothing to resume, a damaged checkpoint, a run that another process has
            in hand, or a folder that cannot be written.
        ValueError: options that cannot be, or that a resumed run cannot change.
        Interrupted: told to stop; the message says what was kept and how to go on.
        TrainingDiverged: the loss became NaN or infinite.
    """
    console = console or Console()
    phases = _Phases(clock)
    check_drawing()
    if resume is None:
        folder, options = _new_folder(options), options
    else:
        folder = find_run(options.root, resume or None)
        options = _saved_options(folder, options, given)
    try:
        with only_writer(folder), unwind_when_told():
            return _run(folder, options, resume is not None, console, phases)
    except KeyboardInterrupt:
        raise Interrupted(_where_it_stands(folder)) from None
    finally:
        _forget_if_empty(folder)


def _run(
    folder: Path, options: SpeedrunOptions, resumed: bool, console: Console, phases: _Phases,
) -> Path:
    """Every phase in its order."""
    begin = _continue if resumed else _begin
    trainer = begin(folder, options, console, phases.clock)
    phases.done("data")
    before = trainer.seconds_before
    left = clock_text(max(0.0, trainer.settings.seconds - before))
    if options.steps:
        left = f"{max(0, options.steps - trainer.step):,} steps"
    say(console, f"{folder}: {trainer.model.count_parameters():,} parameters, {left} of training "
                  f"on {gs.get_num_threads()} threads; Ctrl-C saves and stops")
    track = trainer.curriculum.track
    questions = question_set(track.tasks, options.questions, seed=options.seed)
    trainer.exam = questions
    if options.start and not trainer.step:
        trainer.examine("start")
        trainer.attempt_exam("start")
    history = trainer.run()
    phases.done("train", before)
    trainer.attempt_exam("practice")
    say(console, f"asking {options.questions} questions a task that it has never seen ...")
    scores = evaluate(trainer.model, trainer.tokenizer, questions)
    scores = with_replies(Engine(trainer.model, _REPLIES), trainer.tokenizer, scores)
    phases.done("evaluate")
    engine = Engine(trainer.model, rows=1)
    samples = [(text, _reply(engine, trainer.tokenizer, text)) for text in _SAMPLES]
    stories = _stories(trainer, options.questions)
    phases.done("samples")
    _print_scores(console, scores)
    report = write_report(
        folder, _facts(trainer, options, phases, samples, stories), trainer.model, history, scores
    )
    phases.done("report")
    mean, error = mean_score(scores)
    say(console, f"mean exact match {mean:.3f} ± {error:.3f} in {clock_text(phases.total())}; "
                  f"report: {report}")
    name = run_name(folder)
    say(console, f"talk to it: {command(f'chat {name}')}, or on a page: {command(f'serve {name}')}")
    return folder


def _where_it_stands(folder: Path) -> str:
    """What an interrupted run has kept, and the command that goes on from it."""
    newest, name = latest(folder), run_name(folder)
    if newest is None:
        return ("stopped before the first checkpoint, so there is nothing to keep; begin again "
                f"with {command('speedrun')}.")
    return (f"stopped; the last checkpoint is {newest}. Go on from it with "
            f"{command(f'speedrun --resume {name}')}, or talk to the model with "
            f"{command(f'chat {name}')}.")


def _forget_if_empty(folder: Path) -> None:
    """Remove the folder of a run that came to nothing, so that its name is free again."""
    if not (folder / "checkpoints").is_dir():
        shutil.rmtree(folder, ignore_errors=True)


class _Phases:
    """Seconds of each phase, under its name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._last = clock, clock()
        self.times: list[tuple[str, float]] = []

    def done(self, name: str, before: float = 0.0) -> None:
        """End a phase; `before` seconds of it were spent by an interrupted process."""
        now = self.clock()
        self.times.append((name, now - self._last + before))
        self._last = now

    def total(self) -> float:
        """Seconds of all phases."""
        return sum(seconds for _, seconds in self.times)


def _begin(
    folder: Path, options: SpeedrunOptions, console: Console, clock: Callable[[], float],
) -> Trainer:
    """A new run: its tokenizer and model; `run.json` keeps what a resume needs."""
    started = clock()
    length = _length(options)
    options = replace(options, data=pin(options.data, console))  # a resume reads the same bytes
    options, dial = plan(options)
    corpus = _corpus(options, console)
    if options.prose:
        say(console, f"prose: {read_prose().text()}")
    gs.manual_seed(options.seed)
    if options.start:
        begun = load_model(find_checkpoint(options.root, options.start))
        model, tokenizer = begun.model, begun.tokenizer
        say(console, f"{folder}: {length} more of {begun.folder} ...")
    else:
        say(console, f"{folder}: from nothing to a chat model in {length}; making the tasks and "
                      "the tokenizer ...")
        track = track_for(dial.depth)
        tokenizer = Tokenizer.train(
            tokenizer_corpus(track.tasks, options.seed, corpus, track, _prose(options)),
            dial.vocabulary)
        model = GPT(dial.config(tokenizer.vocab_size, off=options.without, on=options.having))
    total = options.minutes * 60
    low, high = _RESERVE_SECONDS
    reserve = min(max(_RESERVE_SHARE * total, low), high)
    seconds = max(1.0, total - reserve - (clock() - started))
    _record(folder, options, seconds)
    return _trainer(model, tokenizer, options, seconds, folder, console, clock, corpus)


def _length(options: SpeedrunOptions) -> str:
    """Of the run, as people say it; also what the model says of itself."""
    return f"{options.steps:,} steps" if options.steps else f"{options.minutes:g} minutes"


def _prose(options: SpeedrunOptions) -> tuple[str, ...]:
    return read_prose().documents if options.prose else ()


def _corpus(options: SpeedrunOptions, console: Console) -> Corpus | None:
    return Corpus(find_shards(options.data, console), options.seed) if options.data else None


def _continue(
    folder: Path, options: SpeedrunOptions, console: Console, clock: Callable[[], float],
) -> Trainer:
    """An interrupted run, as it was when its last checkpoint was written."""
    newest = latest(folder)
    assert newest is not None  # find_run returns only folders that have one
    checkpoint = load_model(newest)
    seconds = _saved(folder)[1]
    _record(folder, options, seconds)
    trainer = _trainer(
        checkpoint.model, checkpoint.tokenizer, options, seconds, folder, console, clock,
        _corpus(options, console),
    )
    try:
        trainer.resume(checkpoint)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:  # another version's tasks or curves
        raise CheckpointError(
            f"resume {run_name(folder)!r}: {newest / 'state.json'} is not what this version writes "
            f"({type(error).__name__}: {error}). Resume with the version that began the run, or "
            "start a new one."
        ) from error
    return trainer


def _saved(folder: Path) -> tuple[dict[str, Any], float]:
    """The options and the seconds of training that `run.json` keeps."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return dict(record["options"]), float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None


def _saved_options(folder: Path, now: SpeedrunOptions, given: Collection[str]) -> SpeedrunOptions:
    """The run's own options; of those given now, what may change between two processes."""
    if fixed := sorted(set(given) - _MAY_CHANGE - {"root"}):
        flag = {"having": "with"}.get(fixed[0], fixed[0].replace("_", "-"))
        raise ValueError(
            f"--resume with --{flag}: a resumed run keeps the settings that it began with; "
            "only --lr-scale, --clip and --save-every may change. Leave it out, or start a new run."
        )
    try:
        saved = {**_BEFORE_THE_DIAL, **_saved(folder)[0]}
        lists = [f.name for f in fields(now) if isinstance(f.default, tuple)]  # so in JSON
        saved |= {name: tuple(saved[name]) for name in lists if name in saved}
        changed = {name: getattr(now, name) for name in {*given, "root"}}
        options = SpeedrunOptions(**{**saved, **changed})
    except TypeError as error:  # an option that this version does not know
        raise _damaged(folder, error) from None
    for f in fields(options):
        value, kind = getattr(options, f.name), type(f.default)
        fits = isinstance(value, (float, int) if kind is float else kind)
        if f.default is not None and not fits:
            raise _damaged(folder, TypeError(f"{f.name} is {value!r}, no {kind.__name__}"))
    return options


def _record(folder: Path, options: SpeedrunOptions, seconds: float) -> None:
    """Write `run.json`, from which a resume takes the run's settings."""
    record = {"options": {**asdict(options), "root": str(options.root)}, "seconds": seconds}
    with write_atomically(folder / "run.json") as file:
        file.write(json.dumps(record, indent=2).encode())


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"resume {run_name(folder)!r}: {folder / 'run.json'} is missing or damaged ({error}); it "
        f"holds the run's settings. {command(f'chat {run_name(folder)}')} can still use the "
        "checkpoint; to train, start a new run."
    )


def _trainer(
    model: GPT, tokenizer: Tokenizer, options: SpeedrunOptions, seconds: float, folder: Path,
    console: Console, clock: Callable[[], float], corpus: Corpus | None,
) -> Trainer:
    about = {"training": _length(options), "parameters": f"{model.count_parameters():,}",
             "layers": str(model.config.n_layer), "name": options.name or FACTS["name"]}
    settings = TrainSettings(
        seconds=seconds, steps=options.steps, optimizer=options.optimizer, clip=options.clip,
        lr_scale=options.lr_scale, checkpoint_seconds=options.save_every, seed=options.seed,
        attempts=options.attempts, schedule=_GOING_ON if options.start else Schedule(),
        quizzes=0 if options.practice == 1.0 else TrainSettings.quizzes,
        borders=options.borders,
    )
    settings = plan(options)[1].settings(settings, model.config)
    track = track_for(model.config.n_layer)
    tasks = {name: track.tasks[name] for name in options.tasks if name != TALE} or track.tasks
    tales = 1 / len(options.tasks) if TALE in options.tasks else float(options.practice is None)
    practice = track.practice if options.practice is None else options.practice
    read_share = 0.0 if options.start and corpus is None else None
    curriculum = Curriculum(tasks, tokenizer, about, corpus, read_share, practice,
                            track, _prose(options), tales)
    return Trainer(model, curriculum, settings, folder, Display(console), clock)


def _new_folder(options: SpeedrunOptions) -> Path:
    """Make the run's folder; a taken name is an error if it was asked for, else numbered.

    Making it is also how two runs that start at once agree on who has which name.
    """
    check_optimizer(options.optimizer)
    if unknown := sorted(set(options.tasks) - {*TASKS, TALE}):
        raise ValueError(f"--task {unknown[0]}: there is no such task; choose of "
                         f"{', '.join(TASKS)}, {TALE}.")
    if options.start:
        find_checkpoint(options.root, options.start)  # before a folder is made
    if options.name and Path(options.name).name != options.name:
        raise ValueError(
            f"--name {options.name}: a run is one folder in {options.root}, so its name has no "
            f"slashes. Use --root {Path(options.name).parent} --name {Path(options.name).name}."
        )
    kind = "practice" if options.practice == 1.0 else "speedrun"
    numbered = (kind if n == 1 else f"{kind}-{n}" for n in count(1))
    for name in [options.name] if options.name else numbered:
        folder = options.root / name
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(folder, error) from None
    raise FileExistsError(
        f"--name {options.name}: {folder} exists already; a run never overwrites another. Choose "
        f"another name, or go on with {command(f'speedrun --resume {run_name(folder)}')}."
    )


def _cannot_write(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"speedrun: the run's folder {folder} cannot be written ({error.strerror}). Make room, or "
        "choose another place with --root."
    )


def _reply(engine: Engine, tokenizer: Tokenizer, text: str) -> str:
    """The finished model's greedy reply, decoded token by token, at most _SAMPLE_TOKENS of them."""
    reply = ChatSession(engine, tokenizer).reply(text)
    return "".join(islice(reply, _SAMPLE_TOKENS))


def _stories(trainer: Trainer, questions: int) -> StoryRecord | None:
    """What is measured on stories that the model tells; nothing where the exam is short, too."""
    if questions < _FEWEST_STORIES:
        return None
    track = trainer.curriculum.track
    return story_record(Engine(trainer.model, _REPLIES), trainer.tokenizer, track.lexicon,
                        min(questions, track.told))


def _facts(
    trainer: Trainer, options: SpeedrunOptions, phases: _Phases, samples: list[tuple[str, str]],
    stories: StoryRecord | None,
) -> RunFacts:
    settings, corpus = trainer.settings, trainer.curriculum.corpus
    row = (f"seed {options.seed}, {settings.optimizer}, batch {settings.batch_size} x "
           f"{trainer.model.config.sequence_len}, vocabulary {trainer.tokenizer.vocab_size}, "
           f"products in {settings.dtype}")
    rows = [("settings", row)]
    if corpus is not None:
        rows.append(("data", _data_line(trainer, corpus)))
    if options.prose:
        rows.append(("prose", read_prose().text()))
    speed = decoding(trainer.model, _REPLIES)
    return RunFacts(trainer.folder.name, gs.get_num_threads(), phases.times, samples, rows, speed,
                    stories, options.attempts[0])


def _data_line(trainer: Trainer, corpus: Corpus) -> str:
    """What was read of a person's own files, and how well what was not read is foretold."""
    measured = corpus.measured(_MEASURED_BYTES)
    bits = bits_figure(trainer.model, trainer.tokenizer, measured)
    cut = f" ({corpus.split:,} rows were cut)" if corpus.split else ""
    return (f"{len(corpus.shards)} files, {corpus.documents:,} documents{cut}, "
            f"{corpus.size / 1e6:.1f} MB, epoch {corpus.epoch + 1}; {bits.value:.3f} ± "
            f"{bits.error:.3f} bits per byte on {len(measured)} held-out documents")


def _print_scores(console: Console, scores: list[Score]) -> None:
    """The scores as a table; before the report is written, so that a full disk cannot hide them."""
    table = Table("task", "exact match", "", title="held-out questions")
    for score in scores:
        bar = "#" * round(20 * score.accuracy)
        table.add_row(score.task, f"{score.accuracy:.3f} ± {score.standard_error:.3f}", bar)
    console.print(table)
