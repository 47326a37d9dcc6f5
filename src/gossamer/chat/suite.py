"""What a person asked to be tested, found, run and written down: `gossamer eval`. Layer 7.

The one idea: everything that can be asked is an `Exam`, a name and a function that gives a score.
The twelve tasks need no data; the rest is recognised by what is in the files that a person names,
so there is nothing to declare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console

from gossamer.chat.checkpoint import Checkpoint
from gossamer.chat.choices import Reader
from gossamer.chat.code_tasks import is_code_task, programs
from gossamer.chat.compare import print_table, write_results
from gossamer.chat.core_tasks import CoreTask, core_list, evaluate_core, find_core_tasks
from gossamer.chat.engine import Engine
from gossamer.chat.evaluate import (
    Score,
    bits_figure,
    decoded_match,
    evaluate,
    question_set,
    replies_match,
    to_conversation,
    with_replies,
)
from gossamer.chat.exercises import Drawing, Exercise, Tell, exercise, solve
from gossamer.chat.gsm8k import is_problem, problems
from gossamer.chat.interrupt import Interrupted
from gossamer.chat.letters import answer_letters, choice_questions, is_choice
from gossamer.chat.progress import say
from gossamer.chat.report import scores_table, write_examination
from gossamer.chat.rows import Row, read_rows
from gossamer.chat.storytelling import story_record
from gossamer.chat.task import Question
from gossamer.chat.tasks import TASKS
from gossamer.chat.track import track_for
from gossamer.core.errors import DataError, GossamerError

__all__ = ["EvalOptions", "Exam", "find_exams", "run_eval"]

_ENGINE_ROWS = 16
_QUESTIONS = 250  # a task of the twelve, where no limit is given: as many as the speedrun asks
_TALES = 200  # told, where no limit is given: an error of 3 % at most
_NEED_DATA = ("core", "choice", "gsm8k", "code", "text")
_TEXTS = (".txt", ".md")


@dataclass(frozen=True)
class EvalOptions:
    """What a person chooses.

    Args:
        tasks: names of tasks or of groups of them; none = all that `data` holds, or without data
            the twelve.
        data: files and folders of benchmarks.
        limit: most questions a task; 0 = all, of the twelve 250.
        drawing: how replies are drawn where they are.
        seed: of the held-out questions.
        failures: most of them that are kept a task.
        twin: whether the twelve are also decoded, to see that both ways agree.
    """

    tasks: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    limit: int = 0
    drawing: Drawing = Drawing()
    seed: int = 0
    failures: int = 5
    twin: bool = False


class _Bench:
    """A checkpoint, and what is made of it when it is first needed."""

    def __init__(self, checkpoint: Checkpoint, options: EvalOptions) -> None:
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self.options, self.reader = options, Reader(checkpoint.model)
        self.track = track_for(checkpoint.model.config.n_layer)
        self.tell: Tell | None = None
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        self._engine = self._engine or Engine(self.model, _ENGINE_ROWS)
        return self._engine

    def solve(self, name: str, exercises: Sequence[Exercise]) -> Score:
        chosen = exercises[: self.options.limit or None]
        return solve(name, chosen, self.engine, self.tokenizer, self.options.drawing,
                     failures=self.options.failures, tell=self.tell)

    def held_out(self, names: Sequence[str]) -> dict[str, list[Question]]:
        """Questions of the twelve tasks, as the model's track asks them."""
        tasks = {name: self.track.tasks[name] for name in names}
        return question_set(tasks, self.options.limit or _QUESTIONS, seed=self.options.seed)


@dataclass(frozen=True)
class Exam:
    """One thing to be tested.

    Args:
        name: of its score.
        group: "first-grade", "stories" or one of _NEED_DATA.
        run: gives the score.
    """

    name: str
    group: str
    run: Callable[[_Bench], Score]


def find_exams(options: EvalOptions) -> list[Exam]:
    """The exams that the options ask for; their files are read and checked.

    Raises:
        DataError: a file or folder is missing, empty, damaged or of no known kind.
        ValueError: a name of a task that there is not.
    """
    offered = [*(_first_grade(name) for name in TASKS), _stories()]
    found = [exam for path in options.data for exam in _exams_in(path)]
    names = [exam.name for exam in (*offered, *found)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"--data: {doubled[0]!r} is there twice; scores are told apart by their "
                         "names. Leave one out, or rename its file.")
    if not options.tasks:
        return found or [exam for exam in offered if exam.group == "first-grade"]
    chosen = []
    for name in options.tasks:
        fitting = [e for e in (*offered, *found) if name in (e.name, e.group)]
        if not fitting:
            raise ValueError(_unknown(name, found))
        chosen += [exam for exam in fitting if exam not in chosen]
    return chosen


def _unknown(name: str, found: Sequence[Exam]) -> str:
    if name in _NEED_DATA:
        return (f"--tasks {name}: it needs questions, and no --data holds any. Name their file "
                "or folder with --data.")
    known = ", ".join(["first-grade", *TASKS, "stories", *(exam.name for exam in found)])
    return (f"--tasks {name}: no such task. There are: {known}; and core, choice, gsm8k, code and "
            "text with --data.")


def _exams_in(path: Path) -> list[Exam]:
    """What a file or folder holds."""
    if not path.exists():
        raise DataError(f"--data {path}: there is no such file or folder. Check the path.")
    if path.is_file():
        return [_text(path) if path.suffix in _TEXTS else _exam_of(path)]
    if core_list(path) is not None:
        return [_core(task) for task in find_core_tasks(path)]
    # A benchmark that has a test set beside what is to be learned from is asked that alone.
    files = sorted(path.rglob("test.jsonl")) or sorted(path.glob("*.jsonl"))
    if not files:
        raise DataError(f"--data {path}: neither a list of CORE's tasks nor a .jsonl file is in "
                        "there. Name the folder or the file that holds the questions.")
    return [_exam_of(file) for file in files]


def _exam_of(path: Path) -> Exam:
    """The exam of one file of JSON lines, by the fields of its first question."""
    rows = read_rows(path)
    name = path.parent.name if path.stem == "test" else path.stem
    if is_problem(rows[0]):
        exercises = problems(rows, path)
        return Exam("gsm8k", "gsm8k", lambda bench: bench.solve("gsm8k", exercises))
    if is_code_task(rows[0]):
        programs_ = programs(rows, path)
        return Exam(name, "code", lambda bench: bench.solve(name, programs_))
    if is_choice(rows[0]):
        return _choice(name, rows, path)
    raise DataError(
        f"--data {path}: the first question has {', '.join(sorted(rows[0])) or 'nothing'}, which "
        "is no kind of question that is known: multiple choice (question, choices, answer), GSM8K "
        "(question, answer with ####) or code (prompt, entry_point, test).")


def _text(path: Path) -> Exam:
    """Bits per byte of a person's own text; there is no right or wrong, so nothing is asked."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "it is no text in UTF-8" if isinstance(error, ValueError) else error.strerror
        raise DataError(f"--data {path}: {what}. Save it as UTF-8, or leave it out.") from None
    if not text.strip():
        raise DataError(f"--data {path}: the file is empty. Leave it out.")

    def run(bench: _Bench) -> Score:
        found = bits_figure(bench.model, bench.tokenizer, [text])
        return Score(path.stem, 0, 0, figures=(found,))

    return Exam(path.stem, "text", run)


def _core(task: CoreTask) -> Exam:
    return Exam(task.label, "core", lambda bench: evaluate_core(
        task, bench.reader, bench.tokenizer, bench.options.limit, failures=bench.options.failures))


def _choice(name: str, rows: Sequence[Row], path: Path) -> Exam:
    questions = choice_questions(rows, path)
    return Exam(name, "choice", lambda bench: answer_letters(
        name, questions[: bench.options.limit or None], bench.model, bench.tokenizer,
        failures=bench.options.failures))


def _first_grade(name: str) -> Exam:
    def run(bench: _Bench) -> Score:
        options = bench.options
        asked = bench.held_out([name])
        if options.drawing.temperature > 0:
            return bench.solve(name, [exercise(question) for question in asked[name]])
        scores = evaluate(bench.model, bench.tokenizer, asked, options.failures)
        return with_replies(bench.engine, bench.tokenizer, scores)[0]

    return Exam(name, "first-grade", run)


def _stories() -> Exam:
    """Told stories, read again: figures, and what is wrong with some of them."""
    def run(bench: _Bench) -> Score:
        options = bench.options
        record = story_record(bench.engine, bench.tokenizer, bench.track.lexicon,
                              options.limit or _TALES, seed=options.seed)
        return Score("stories", 0, 0, record.failures[:options.failures], figures=record.figures)

    return Exam("stories", "stories", run)


def run_eval(checkpoint: Checkpoint, options: EvalOptions, console: Console, out: Path | None = None
             ) -> list[Score]:
    """Run the exams, show the scores, and write them as `results.json` and as a card.

    Args:
        checkpoint: whose model is asked.
        options: what is asked.
        console: where to print.
        out: folder for the results; None = `eval` in the run's, numbered if taken.

    Raises:
        DataError, ValueError: as `find_exams`, before anything is asked.
        Interrupted: told to stop; the message says where what was done is.
        GossamerError: `options.twin`, and the two ways of scoring differ.
    """
    exams = find_exams(options)
    bench, scores = _Bench(checkpoint, options), list[Score]()
    began = time.monotonic()
    try:
        for exam in exams:
            scores.append(_sit(exam, bench, console))
    except KeyboardInterrupt:  # of a long evaluation what is done is not lost
        if not scores:
            raise Interrupted("stopped before the first task was done.") from None
        card = _write(checkpoint, options, scores, began, out)
        raise Interrupted(f"stopped; {len(scores)} of {len(exams)} tasks were done, and are in "
                          f"{card}.") from None
    print_table(console, scores_table(scores))
    if bench.reader.cropped:
        say(console, f"{bench.reader.cropped} texts were longer than the context and lost their "
                      "beginning")
    say(console, f"results: {_write(checkpoint, options, scores, began, out)}")
    if options.twin:
        say(console, _twin(bench, [exam.name for exam in exams if exam.group == "first-grade"]))
    return scores


def _sit(exam: Exam, bench: _Bench, console: Console) -> Score:
    """Run one exam and say so: on a terminal how far it is, else a line."""
    if not console.is_terminal:
        say(console, f"{exam.name} ...")
        return exam.run(bench)
    with console.status(f"{exam.name} ...") as status:
        bench.tell = lambda done, total: status.update(
            f"{exam.name}: {done:,} of {total:,} replies")
        return exam.run(bench)


def _write(checkpoint: Checkpoint, options: EvalOptions, scores: Sequence[Score], began: float,
           out: Path | None) -> Path:
    """Write the results; the path of report.md."""
    folder, drawing = _folder(checkpoint.folder, out), options.drawing
    write_results(folder, scores, {
        "model": str(checkpoint.folder), "seed": options.seed, "limit": options.limit,
        "samples": drawing.samples, "temperature": drawing.temperature,
        "seconds": round(time.monotonic() - began, 3)})
    return write_examination(folder, checkpoint.folder, scores, drawing)


def _twin(bench: _Bench, names: Sequence[str]) -> str:
    """Score the twelve by one forward pass and by decoding, and compare item by item."""
    asked = bench.held_out(names)
    examples = [bench.tokenizer.render(to_conversation(q)) for qs in asked.values() for q in qs]
    fast = replies_match(bench.model, examples)
    slow = decoded_match(bench.engine, bench.tokenizer, examples)
    differ = sum(a != b for a, b in zip(fast, slow, strict=True))
    if differ:
        raise GossamerError(f"eval --twin: one forward pass and decoding differ on {differ} of "
                            f"{len(fast)} questions; this is a defect of ours, please report it.")
    return f"one forward pass and decoding agree on all {len(fast)} questions"


def _folder(checkpoint: Path, out: Path | None) -> Path:
    """The folder of the results, made."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    for folder in _numbered(run / "eval"):
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise AssertionError("there is always another number")


def _numbered(folder: Path) -> Iterator[Path]:
    return (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
