"""The training loop: one compiled step, a budget of seconds, exact resume. Layer 7.

A step is forward, backward, clipping and the optimizers, traced once into one native program; the
learning rates are runtime scalars. Batches are made in a thread meanwhile. One measure of progress
drives stages and learning rates: the clock, so a run ends in time on any machine, or the steps, so
it is the same run bit for bit, whether interrupted or not.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import gossamer as gs
from gossamer.chat.checkpoint import Checkpoint, latest, save
from gossamer.chat.curriculum import Curriculum
from gossamer.chat.evaluate import Score, evaluate, mean_score, question_set
from gossamer.chat.interrupt import Interrupted, command, run_name, stop_signals
from gossamer.chat.packing import IGNORE, Batch, Packer, Prefetcher
from gossamer.chat.practice import Practice, practice_loss
from gossamer.chat.progress import Display, StepInfo
from gossamer.chat.schedule import Schedule, Stopwatch
from gossamer.chat.task import Question
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import CheckpointError, GossamerError
from gossamer.models.gpt import GPT

__all__ = ["MATRIX_LR", "History", "Trainer", "TrainingDiverged", "TrainSettings",
           "build_optimizers", "check_optimizer"]

# The kind of examples that a stage reads; practice rehearses, if anything.
_EXAMPLES_OF = {"read": "read", "answer": "answer", "practice": "answer"}
_SMOOTHING = 0.9  # of the loss shown
_RATE_STEPS = 20  # steps over which tokens/s are measured
_QUIZ_SHARE = 0.02  # most of the budget that quizzes may take
_QUIZ_QUESTIONS = 24  # a task; standard error 10 %, enough to weigh the tasks


class TrainingDiverged(GossamerError, RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Args:
        seconds: budget of training, compile time of the step included.
        steps: length of the run; 0 = by the clock. A run of so many steps is the same on every
            machine of one kind, however fast it is and however often it was interrupted.
        batch_size: rows of `sequence_len` tokens computed at once.
        accumulate: batches a step, whose gradients are summed before the weights change.
        optimizer: "muon" for the blocks' matrices (AdamW for the rest), or "adamw" for all.
        matrix_lr: of the blocks' matrices; None = the optimizer's own default below.
        embedding_lr: of the token embedding.
        head_lr: of the output head.
        weight_decay: of the blocks' matrices.
        clip: largest norm of all gradients; 0 = none.
        schedule: shape of the learning rates.
        attempts: questions of a step of practice, and replies to each.
        practice_rate: factor on all learning rates in practice at the end of a run. While 0.18 fell
            to 0.02, the share of right tales rose most below 0.1.
        checkpoint_seconds: between checkpoints.
        borders: whether attention and smear end where an example begins; else an example sees
            those before it in its row.
        dtype: of products and activations, "float32" or "bfloat16"; weights, gradients and the
            optimizers' states are float32 either way.
        quizzes: how often in the run the tasks' weights are set anew.
        lr_scale: factor on every learning rate.
        seed: of weights and data.
    """

    seconds: float = 510.0
    steps: int = 0
    batch_size: int = 8
    accumulate: int = 1
    optimizer: str = "muon"
    matrix_lr: float | None = None
    embedding_lr: float = 0.7
    head_lr: float = 0.02
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)
    attempts: tuple[int, int] = (8, 8)
    practice_rate: float = 0.05
    checkpoint_seconds: float = 60.0
    borders: bool = True
    dtype: str = "float32"
    quizzes: int = 10
    lr_scale: float = 1.0
    seed: int = 0


# Learning rate of the blocks' matrices and, for AdamW, the factor on the other two.
MATRIX_LR = {"muon": 0.02, "adamw": 0.003}
_VALUE_LR = 0.5  # of the value embeddings, as a factor on the token embedding's
_SMALL_LR = 0.05  # of smear and gates: from 0 to about 1 within the first hundred steps
_STREAM_LR = 0.005  # of the factors on the stream: 100 times slower than others (nanochat)
_ADAMW_BETAS = (0.8, 0.97)  # of embedding and head: short memories for about a thousand steps


@dataclass
class History:
    """Curves of a run, as plain lists for JSON.

    Args:
        steps: [step, seconds, loss] per step.
        quizzes: [step, seconds, mean accuracy, {task: accuracy}, its duration] per quiz.
        tokens: tokens trained on.
        practice: [step, seconds, pass@1, pass@k] per step of practice.
        exams: [stage, step, seconds, {task: [right, asked]}] at the end of each stage but the last.
        attempts: [stage, step, {task: [[name, value, error], ...]}]: pass@1 and pass@k on some of
            the exam's questions, before practice and after it.
        stages: {stage: [step, seconds, tokens]} as they were after the last step in each stage, in
            the order of the stages; nothing of what was read by a version that kept no stages.
        split: examples longer than a row, cut in pieces.
        padding: positions that held no example.
    """

    steps: list[list[float]] = field(default_factory=list)
    quizzes: list[list[Any]] = field(default_factory=list)
    practice: list[list[float]] = field(default_factory=list)
    exams: list[list[Any]] = field(default_factory=list)
    attempts: list[list[Any]] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0
    split: int = 0
    padding: int = 0


class Trainer:
    """Trains a model until its budget is spent.

    Args:
        model: trained in place.
        curriculum: what it reads; it holds the tokenizer.
        settings: how.
        folder: of the run; checkpoints go into its `checkpoints`.
        display: shows progress.
        clock: a monotonic clock in seconds; tests pass their own.

    Attributes:
        exam: held-out questions by task, asked where a stage ends; none = no exam.

    Raises:
        ValueError: an unknown optimizer.
    """

    def __init__(
        self, model: GPT, curriculum: Curriculum, settings: TrainSettings, folder: Path,
        display: Display | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.curriculum = model, curriculum
        self.settings, self.folder = settings, folder
        self.display = display or Display()
        self.history = History()
        self.exam: Mapping[str, Sequence[Question]] = {}
        self.step = 0
        self.optimizers = build_optimizers(model, settings)
        self._base_lrs = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self._clock = clock
        self.seconds_before = 0.0  # of training before this process
        self._packer_state: dict[str, Any] | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS)
        self._interrupted = threading.Event()
        self._compiled: Callable[..., gs.Tensor] = gs.compile(self._train_step)
        self._compiled_part: Callable[..., gs.Tensor] = gs.compile(self._part)
        self._compiled_update: Callable[[], None] = gs.compile(self._update)
        self._compiled_practice: Callable[..., gs.Tensor] = gs.compile(self._practice)

    @cached_property
    def _practised(self) -> Practice:
        """Made when practice begins: it has a cache of keys and values."""
        questions, samples = self.settings.attempts
        return Practice(self.model, self.tokenizer, self.curriculum.challenge,
                        questions=questions, samples=samples, seed=self.settings.seed)

    @property
    def tokenizer(self) -> Tokenizer:
        """The curriculum's tokenizer."""
        return self.curriculum.tokenizer

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run; `checkpoint.model` must be this trainer's model."""
        checkpoint.restore_optimizers(self.optimizers)
        state = checkpoint.state
        self.step, self.seconds_before = state["step"], state["seconds"]
        self._packer_state = state["data"]
        self.curriculum.load_state(state["curriculum"])
        self.history = History(**state["history"])

    def run(self) -> History:
        """Train until the budget is spent, then save a last checkpoint.

        Raises:
            Interrupted: told to stop (Ctrl-C, SIGTERM, SIGHUP); a checkpoint was saved.
            KeyboardInterrupt: told so twice; nothing more was saved.
            TrainingDiverged: the loss became infinite or not a number.
            CheckpointError: the last checkpoint could not be written; the one before stands.
        """
        watch = Stopwatch(self.seconds_before, self._clock)
        packer = self._make_packer()
        # The stage of the last step, so that one which a stop cut off still ends with its exam.
        stage = next(reversed(self.history.stages), None) or self.curriculum.stage_at(
            self._progress(watch))
        packer.make = self.curriculum.maker(_EXAMPLES_OF[stage])
        last_save = watch.seconds()
        for *_, loss in self.history.steps:
            self.display.curve.add(loss)
        self.model.train()
        with Prefetcher(packer) as batches, self.display, stop_signals(self._told_to_stop):
            while self._time_left(watch):
                progress = self._progress(watch)
                if reweighed := self._quiz_due(progress):
                    self._quiz(watch)
                before, stage = stage, self.curriculum.stage_at(progress)
                if before != stage:
                    self.examine(before, watch.seconds())
                    if stage == "practice":
                        self.attempt_exam(before)
                if (reweighed or before != stage) and self._reads(stage):
                    batches.switch(self.curriculum.maker(_EXAMPLES_OF[stage]))
                self._set_rates(progress)
                taken = [batches.next() for _ in range(self.settings.accumulate)] \
                    if self._reads(stage) else []
                if stage == "practice":
                    self._practice_step(taken, watch)
                else:
                    self._one_step(taken, watch, stage)
                if self._interrupted.is_set():
                    self._stop(batches, watch)
                if watch.seconds() - last_save >= self.settings.checkpoint_seconds:
                    self._save_or_warn(batches, watch)
                    last_save = watch.seconds()
            self._save(batches, watch)
        self.model.eval()
        return self.history

    # One step -----------------------------------------------------------------------------------

    def _train_step(self, ids: gs.Tensor, targets: gs.Tensor,
                    begins: gs.Tensor | None) -> gs.Tensor:
        """Forward, backward, clip, update: the function that is compiled as a whole."""
        with self._products():
            loss = self.model.loss(ids, targets, begins)
        loss.backward()
        self._update()
        return loss.detach()

    def _practice(self, ids: gs.Tensor, targets: gs.Tensor, advantages: gs.Tensor) -> gs.Tensor:
        """The same on the model's own attempts, and compiled as a whole too."""
        with self._products():
            loss, surprise = practice_loss(self.model, ids, targets, advantages)
        loss.backward()
        self._update()
        return surprise

    def _part(self, ids: gs.Tensor, targets: gs.Tensor, begins: gs.Tensor | None,
              share: gs.Tensor) -> gs.Tensor:
        """The gradient of one of several batches, added to what is there.

        `share` is its part of all supervised tokens, so the sum is the gradient of one big batch.
        """
        with self._products():
            loss = self.model.loss(ids, targets, begins) * share
        loss.backward()
        return loss.detach()

    def _products(self) -> gs.autocast:
        """The region in which products are of the settings' dtype."""
        return gs.autocast("cpu", gs.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _update(self) -> None:
        """Clip, and step the optimizers."""
        if self.settings.clip:
            gs.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()  # at the end: no gradient outlives the program

    def _reads(self, stage: str) -> bool:
        """Whether examples are read in a stage."""
        return stage != "practice" or self.curriculum.rehearses

    def _set_rates(self, progress: float) -> None:
        if self.curriculum.rehearses:  # the schedule ends where practice begins
            progress /= 1.0 - self.curriculum.practice_share
        factor = self.settings.lr_scale * (
            self.settings.practice_rate if self.curriculum.rehearses and progress >= 1.0
            else self.settings.schedule.factor(self.step, progress))
        for optimizer, base in zip(self.optimizers, self._base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor

    def _one_step(self, batches: Sequence[Batch], watch: Stopwatch, stage: str) -> None:
        self._count(self._learn(batches), sum(b.ids.size for b in batches), watch, stage)

    def _learn(self, batches: Sequence[Batch]) -> float:
        """One update by the mean over the supervised tokens of all batches; the loss."""
        self.history.padding += sum(batch.padding for batch in batches)
        if len(batches) == 1:
            return self._compiled(*self._tensors(batches[0])).item()
        counts = [int((batch.targets != IGNORE).sum()) for batch in batches]
        loss = 0.0
        for batch, count in zip(batches, counts, strict=True):
            if count:  # else it has no gradient, and its mean is no number
                share = gs.tensor(count / sum(counts))
                loss += self._compiled_part(*self._tensors(batch), share).item()
        self._compiled_update()
        return loss

    def _tensors(self, batch: Batch) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor | None]:
        """ids, targets, and where examples begin if anything ends there."""
        begins = gs.from_numpy(batch.begins) if self.settings.borders else None
        return gs.from_numpy(batch.ids), gs.from_numpy(batch.targets), begins

    def _practice_step(self, rehearsed: Sequence[Batch], watch: Stopwatch) -> None:
        """Try, be judged, learn; then from examples too, if there are any."""
        self.model.eval()
        tried = self._practised.attempt(self.step)
        self.model.train()
        loss = self._compiled_practice(*map(gs.from_numpy, (tried.ids, tried.targets,
                                                            tried.advantages))).item()
        self.history.practice.append([self.step + 1, round(watch.seconds(), 3), tried.right,
                                      tried.solved])
        tokens = tried.ids.size + sum(batch.ids.size for batch in rehearsed)
        if rehearsed and not math.isfinite(learned := self._learn(rehearsed)):
            self._fail(learned)
        self._count(loss, tokens, watch, "practice")

    def _count(self, loss: float, tokens: int, watch: Stopwatch, stage: str) -> None:
        """One step more."""
        if not math.isfinite(loss):
            self._fail(loss)
        self.step += 1
        seconds = watch.seconds()
        self.history.steps.append([self.step, round(seconds, 3), loss])
        self.history.tokens += tokens
        self.history.stages[stage] = [self.step, round(seconds, 3), self.history.tokens]
        self._recent.append((seconds, tokens))
        self.display.step(self._info(seconds, stage))

    def _info(self, seconds: float, stage: str) -> StepInfo:
        smooth, weight = 0.0, 0.0
        for *_, loss in self.history.steps[-30:]:  # 0.9^30 = 4 %: older ones do not show
            smooth, weight = _SMOOTHING * smooth + loss, _SMOOTHING * weight + 1.0
        first, tokens = self._recent[0][0], sum(n for _, n in list(self._recent)[1:])
        rate = tokens / (seconds - first) if seconds > first else 0.0
        budget = self.settings.seconds
        if self.settings.steps:
            budget = seconds + (self.settings.steps - self.step) * self._pace()
        return StepInfo(self.step, smooth / weight, rate, rate * self.model.estimate_flops(),
                        seconds, budget, stage)

    def _progress(self, watch: Stopwatch) -> float:
        """Share of the run that is done."""
        if self.settings.steps:
            return self.step / self.settings.steps
        return watch.seconds() / self.settings.seconds

    def _pace(self) -> float:
        """Seconds a step, over the last ones."""
        if len(self._recent) < 2:
            return 0.0
        return (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)

    def _time_left(self, watch: Stopwatch) -> bool:
        """Whether one more step, at the pace of the last ones, ends within the budget."""
        if self.settings.steps:
            return self.step < self.settings.steps
        return watch.seconds() + self._pace() < self.settings.seconds

    # Now and then -------------------------------------------------------------------------------

    def _make_packer(self) -> Packer:
        packer = Packer(
            self.curriculum.maker("answer"), pad=self.tokenizer.bos,
            batch_size=self.settings.batch_size,
            sequence_len=self.model.config.sequence_len, seed=self.settings.seed,
            corpus=self.curriculum.corpus,
        )
        if self._packer_state is not None:
            packer.load_state(self._packer_state)
        return packer

    def _quiz_due(self, progress: float) -> bool:
        """Quizzes stand at equal distances, further apart where they would cost over 2 %."""
        count, last, took = self.settings.quizzes, 0.0, 0.0  # in shares of the budget
        if self.history.quizzes:
            step, seconds, _, _, duration = self.history.quizzes[-1]
            if self.settings.steps:  # what a quiz costs is no matter where the clock is none
                last = step / self.settings.steps
            else:
                last, took = seconds / self.settings.seconds, duration / self.settings.seconds
        due = int(progress * (count + 1)) > int(last * (count + 1))
        return bool(count) and due and progress - last >= took / _QUIZ_SHARE

    def _quiz(self, watch: Stopwatch) -> None:
        """Ask questions of the training side; weigh the tasks by the errors."""
        number, began = len(self.history.quizzes), watch.seconds()
        questions = question_set(
            self.curriculum.tasks, _QUIZ_QUESTIONS, seed=1000 + number, held_out=False
        )
        self.model.eval()
        scores = evaluate(self.model, self.tokenizer, questions)
        self.model.train()
        self.curriculum.learn_from(scores)
        by_task = {s.task: round(s.accuracy, 3) for s in scores}
        mean, error = mean_score(scores)
        now = watch.seconds()
        self.history.quizzes.append([self.step, now, mean, by_task, now - began])
        self.display.note(f"quiz at step {self.step}: {mean:.1%} ± {error:.1%} right, "
                          f"{_weakest(scores)}")

    def examine(self, stage: str, seconds: float = 0.0) -> None:
        """Ask the exam's questions at the end of a stage; nothing is learned from them."""
        if not self.exam:
            return
        self.model.eval()
        scores = evaluate(self.model, self.tokenizer, self.exam)
        self.model.train()
        rows = {s.task: [s.right, s.asked] for s in scores}
        self.history.exams.append([stage, self.step, round(seconds, 3), rows])
        mean, error = mean_score(scores)
        self.display.note(f"after {self.step} steps, the end of \"{stage}\": {mean:.1%} ± "
                          f"{error:.1%} of the exam right")

    def attempt_exam(self, stage: str) -> None:
        """Draw replies to some of the exam's questions, as practice does: pass@1 and pass@k.

        Nothing where there is no practice. Nothing is learned from them.
        """
        asked = {name: self.exam[name] for name in self.curriculum.tasks if name in self.exam}
        if not asked or not self.curriculum.practice_share or self.curriculum.tales == 1.0:
            return
        training = self.model.training
        self.model.eval()
        found = self._practised.measure(asked)
        self.model.train(training)
        self.history.attempts.append([stage, self.step, found])

    def _save(self, batches: Prefetcher, watch: Stopwatch) -> Path:
        for name, parameter in self.model.named_parameters():
            if not bool(gs.isfinite(parameter).all()):
                self._fail(float("nan"), name)
        data = batches.state()
        self.history.split = data["split"]
        state = {
            "step": self.step, "seconds": watch.seconds(), "data": data,
            "curriculum": self.curriculum.state(), "history": vars(self.history),
        }
        return save(self.folder / "checkpoints", self.model, self.tokenizer, self.optimizers, state)

    def _save_or_warn(self, batches: Prefetcher, watch: Stopwatch) -> None:
        """A full disk in mid-run is no reason to throw the run away: the next save may succeed."""
        try:
            self._save(batches, watch)
        except CheckpointError as error:
            self.display.note(f"not saved, training goes on: {error}")

    def _stop(self, batches: Prefetcher, watch: Stopwatch) -> None:
        folder, name = self._save(batches, watch), run_name(self.folder)
        raise Interrupted(
            f"stopped at step {self.step}; everything is saved in {folder}. Go on with "
            f"{command(f'speedrun --resume {name}')}, or talk to the model as it is with "
            f"{command(f'chat {name}')}."
        )

    def _fail(self, loss: float, parameter: str = "") -> None:
        good = latest(self.folder)
        what = f"parameter {parameter} is not finite" if parameter else f"the loss is {loss}"
        again = ("Try a lower learning rate (--lr-scale 0.5), clipping (--clip 1.0), or another "
                 "--seed.")
        if good is not None:
            resume = command(f"speedrun --resume {run_name(self.folder)} --lr-scale 0.5")
            again = (f"The last good checkpoint is {good}; go on from it with a lower learning "
                     f"rate, {resume}, or with clipping (--clip 1.0).")
        raise TrainingDiverged(f"training stopped at step {self.step + 1}: {what}. {again}")

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Let the running step end first; told a second time, stop at once."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self._interrupted.set()
        self.display.stopping()


def _weakest(scores: Sequence[Score]) -> str:
    """The three tasks with the most errors, in words."""
    worst = sorted(scores, key=lambda s: s.accuracy)[:3]
    return "least in " + ", ".join(f"{s.task} ({s.accuracy:.0%})" for s in worst)


def check_optimizer(name: str) -> None:
    """Raise ValueError if there is no recipe for this optimizer."""
    if name not in MATRIX_LR:
        raise ValueError(
            f"optimizer={name!r}: there is no recipe for it; choose one of {', '.join(MATRIX_LR)}."
        )


def build_optimizers(model: GPT, settings: TrainSettings) -> list[gs.optim.Optimizer]:
    """Muon on the blocks' matrices and AdamW on embedding and head, or AdamW on everything."""
    check_optimizer(settings.optimizer)
    matrices = model.matrix_parameters()
    matrix_lr = settings.matrix_lr or MATRIX_LR[settings.optimizer]
    head = [] if model.head is None else [model.head.weight]
    embedding_lr = settings.embedding_lr if head else settings.head_lr  # tied: one table is both
    groups: list[tuple[list[gs.nn.Parameter], float]] = [
        ([model.wte.weight], embedding_lr), (head, settings.head_lr),
        (model.value_tables(), settings.embedding_lr * _VALUE_LR),
        (model.small_parameters(), _SMALL_LR), (model.stream_parameters(), _STREAM_LR),
    ]
    tables = [{"params": params, "lr": lr} for params, lr in groups if params]
    adamw = gs.optim.AdamW(tables, betas=_ADAMW_BETAS, eps=1e-10, weight_decay=0.0)
    if settings.optimizer == "muon":
        low = None if settings.dtype == "float32" else settings.dtype  # a name, for JSON
        return [gs.optim.Muon(matrices, lr=matrix_lr, weight_decay=settings.weight_decay,
                              ns_dtype=low), adamw]
    return [gs.optim.AdamW(matrices, lr=matrix_lr, betas=(0.9, 0.98), eps=1e-10,
                           weight_decay=settings.weight_decay), adamw]
