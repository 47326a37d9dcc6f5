"""Training: resume equals uninterrupted, checkpoints are whole, bad luck ends in one clear line."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import gossamer as gs
from gossamer.chat import checkpoint as room
from gossamer.chat.checkpoint import latest, load_model
from gossamer.chat.corpus import Corpus, find_shards
from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.engine import Engine, Request
from gossamer.chat.evaluate import (
    Score,
    bits_per_byte,
    evaluate,
    mean_score,
    question_set,
    replies_match,
)
from gossamer.chat.interrupt import Interrupted, only_writer
from gossamer.chat.packing import IGNORE, Batch
from gossamer.chat.progress import Display, StepInfo
from gossamer.chat.schedule import Schedule
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.train import (
    History,
    Trainer,
    TrainingDiverged,
    TrainSettings,
)
from gossamer.core.errors import CheckpointError
from gossamer.models.gpt import GPT, GPTConfig

SETTINGS = TrainSettings(
    seconds=30.0, batch_size=2, quizzes=2, checkpoint_seconds=1e9, schedule=Schedule(4, 0.5, 0.1)
)


class StepClock(Display):
    """A display that is also the clock: a second passes with each step, so runs repeat exactly."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.now = 0.0
        self.notes: list[str] = []

    def step(self, info: StepInfo) -> None:
        self.now += 1.0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def read(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(tokenizer_corpus(TASKS)[:4000], 320)


def make_trainer(
    tokenizer: Tokenizer, folder: Path, settings: TrainSettings = SETTINGS,
    data: Path | None = None,
) -> Trainer:
    gs.manual_seed(settings.seed)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16,
                       sequence_len=128)
    return trainer_of(GPT(config), tokenizer, folder, settings, data)


def trainer_of(
    model: GPT, tokenizer: Tokenizer, folder: Path, settings: TrainSettings,
    data: Path | None = None,
) -> Trainer:
    clock = StepClock()
    corpus = Corpus(find_shards([data])) if data else None
    plan = Curriculum(TASKS, tokenizer, {}, corpus, read_share=0.3)
    return Trainer(model, plan, settings, folder, clock, clock.read)


def stop_after(step: int, trainer: Trainer) -> None:
    """Run it as if somebody told it to stop while that step is computed."""
    shown = trainer.display.step

    def tell(info: StepInfo) -> None:
        shown(info)
        if info.step == step:
            trainer._told_to_stop(signal.SIGINT, None)

    trainer.display.step = tell  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"stopped at step {step};"):
        trainer.run()


def weights(model: GPT) -> dict[str, list[float]]:
    return {k: v.reshape(-1).tolist() for k, v in model.state_dict().items()}


def newest(folder: Path) -> Path:
    found = latest(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(("optimizer", "own_text", "dtype"), [
    ("muon", False, "float32"), ("muon", True, "bfloat16"), ("muon", False, "bfloat16"),
    ("adamw", True, "float32"), ("adamw", False, "bfloat16")])
def test_resumed_equals_uninterrupted_bit_for_bit(
    tokenizer: Tokenizer, tmp_path: Path, optimizer: str, own_text: bool, dtype: str
) -> None:
    """Across the switch of stages and two quizzes: stopped after 7 steps, or in one go."""
    data = tmp_path / "own.txt" if own_text else None
    if data is not None:
        data.write_text("<|endoftext|>".join(f"This is text {i}." for i in range(200)))
    base = replace(SETTINGS, optimizer=optimizer, seconds=27.0, dtype=dtype)
    straight = make_trainer(tokenizer, tmp_path / "a", base, data)
    straight.run()
    stop_after(7, make_trainer(tokenizer, tmp_path / "b", base, data))
    checkpoint = load_model(newest(tmp_path / "b"))
    second = trainer_of(checkpoint.model, checkpoint.tokenizer, tmp_path / "b", base, data)
    second.resume(checkpoint)
    second.run()
    assert [s[2] for s in second.history.steps] == [s[2] for s in straight.history.steps]
    assert weights(second.model) == weights(straight.model)
    assert second.curriculum.weights == straight.curriculum.weights
    assert len(straight.history.quizzes) == len(second.history.quizzes) == 2
    assert straight.history.tokens == second.history.tokens == 26 * 2 * 128


def test_products_in_bfloat16_keep_weights_and_states_in_float32(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The losses differ, by rounding: the products are of another dtype, and nothing else is."""
    runs = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(tokenizer, tmp_path / dtype, replace(SETTINGS, dtype=dtype,
                                                                     steps=6))
        runs[dtype] = [loss for *_, loss in trainer.run().steps]
        states = [x for o in trainer.optimizers for s in o.state.values() for x in s.values()]
        kept = [*trainer.model.parameters(), *(x for x in states if isinstance(x, gs.Tensor))]
        assert len(kept) > 20 and {x.dtype for x in kept if x.is_floating_point()} == {gs.float32}
    assert runs["float32"] != runs["bfloat16"]
    assert runs["bfloat16"] == pytest.approx(runs["float32"], rel=0.01)


def test_borders_can_be_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Then an example sees those before it in its row, and the losses are others."""
    losses = [[loss for *_, loss in make_trainer(
        tokenizer, tmp_path / str(borders), replace(SETTINGS, borders=borders, steps=4)
    ).run().steps] for borders in (True, False)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)  # blocks begin as the identity
    assert losses[0][3] != losses[1][3]


def test_accumulated_batches_have_the_gradient_of_one_big_batch(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Means over tokens, not over batches: the parts have 3, 40 and 0 supervised tokens."""
    trainer = make_trainer(tokenizer, tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, tokenizer.vocab_size, (3, 128))
    targets = np.full((3, 128), IGNORE)
    targets[0, 5:8], targets[1, 60:100] = ids[0, 6:9], ids[1, 61:101]
    begins = np.zeros_like(ids)
    begins[1, 80:] = 80
    whole = trainer.model.loss(*map(gs.from_numpy, (ids, targets, begins)))
    whole.backward()
    expected = [p.grad.numpy().copy() for p in trainer.model.parameters()]
    for p in trainer.model.parameters():
        p.grad = None
    trainer._compiled_update = lambda: None
    parts = [Batch(ids[i:i + 1], targets[i:i + 1], begins[i:i + 1], 0, 1) for i in range(3)]
    assert trainer._learn(parts) == pytest.approx(whole.item(), rel=1e-6)
    for p, grad in zip(trainer.model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), grad, rtol=1e-4, atol=1e-6)


def test_accumulating_trains_and_resumes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    base = replace(SETTINGS, accumulate=3, clip=1.0, steps=6)
    straight = make_trainer(tokenizer, tmp_path / "a", base)
    straight.run()
    assert straight.history.tokens == 6 * 3 * 2 * 128
    stop_after(2, make_trainer(tokenizer, tmp_path / "b", base))
    checkpoint = load_model(newest(tmp_path / "b"))
    second = trainer_of(checkpoint.model, checkpoint.tokenizer, tmp_path / "b", base)
    second.resume(checkpoint)
    second.run()
    assert weights(second.model) == weights(straight.model)


def test_loss_falls(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path)
    losses = [row[2] for row in trainer.run().steps]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
    assert latest(tmp_path) is not None


def test_run_ends_within_its_budget(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, seconds=12.0, quizzes=0))
    history = trainer.run()
    assert 10 <= len(history.steps) <= 12 and history.steps[-1][1] <= 12.0


def test_schedule_rises_holds_and_falls() -> None:
    schedule = Schedule(warmup_steps=10, warmdown=0.5, final=0.1)
    assert schedule.factor(0, 0.0) == pytest.approx(0.1)
    assert schedule.factor(9, 0.0) == schedule.factor(500, 0.5) == 1.0
    assert schedule.factor(500, 0.75) == pytest.approx(0.55)
    assert schedule.factor(500, 1.0) == schedule.factor(500, 1.2) == pytest.approx(0.1)


def test_learning_rate_reaches_the_optimizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = replace(SETTINGS, schedule=Schedule(1, 0.5, 0.0), lr_scale=0.5, quizzes=0)
    trainer = make_trainer(tokenizer, tmp_path, settings)
    trainer.run()
    last = trainer.optimizers[0].param_groups[0]["lr"]
    progress = (len(trainer.history.steps) - 1) / settings.seconds
    assert last == pytest.approx(0.02 * 0.5 * (1 - progress) / 0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_saves_and_says_how_to_go_on(
    tokenizer: Tokenizer, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.default_int_handler)  # ignored in the background
    trainer = make_trainer(tokenizer, tmp_path / "mine")
    seen = trainer.display.step

    def press(info: StepInfo) -> None:
        seen(info)
        if info.step == 3:
            os.kill(os.getpid(), number)

    trainer.display.step = press  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted, match="--resume .*mine"):
            trainer.run()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert load_model(newest(tmp_path / "mine")).state["step"] in (3, 4)


def test_told_twice_it_stops_at_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path)
    trainer._told_to_stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        trainer._told_to_stop(signal.SIGINT, None)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    other = only_writer(tmp_path)
    with only_writer(tmp_path), pytest.raises(CheckpointError, match="another process"):
        other.__enter__()
    with only_writer(tmp_path):  # free again
        pass


def test_a_nan_loss_stops_with_what_to_try(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, steps=3))
    trainer.run()
    good = newest(tmp_path)
    trainer.settings = replace(SETTINGS, steps=9)
    with gs.no_grad():
        trainer.model.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="step 4.*--lr-scale") as caught:
        trainer.run()
    assert str(good) in str(caught.value) and newest(tmp_path) == good


def test_weights_that_are_not_finite_are_never_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The loss of a step is that before its update; the weights are checked before a save."""
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, steps=1))

    def spoil(info: StepInfo) -> None:
        with gs.no_grad():
            trainer.model.blocks[0].mlp.fc.weight[3, 5] = float("inf")

    trainer.display.step = spoil  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged, match=r"blocks\.0\.mlp\.fc\.weight is not finite"):
        trainer.run()
    assert latest(tmp_path) is None


def test_adaptive_weights_follow_the_errors(tokenizer: Tokenizer) -> None:
    plan = Curriculum(TASKS, tokenizer, {})
    plan.learn_from([Score("spell", 10, 10), Score("add", 0, 10)])
    assert plan.weights["add"] / TASKS["add"].share == 1.0
    assert plan.weights["spell"] < plan.weights["add"] / 2
    other = Curriculum(TASKS, tokenizer, {})
    other.load_state(json.loads(json.dumps(plan.state())))
    assert other.weights == plan.weights


def test_one_forward_pass_scores_as_decoding_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An overfitted model gets some right and some wrong; both ways agree on each."""
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, steps=20))
    trainer.run()
    engine = Engine(trainer.model, rows=1)
    examples, decoded = [], []
    for asked in question_set(TASKS, 3).values():
        prompt = tokenizer.render_prompt([{"role": "user", "content": asked[0].text}])
        if len(prompt) > 60:
            continue
        request = Request(prompt, max_tokens=30, stop=(tokenizer.assistant_end,))
        reply = [token.id for token in engine.generate(request)]
        right = [*prompt, *reply, tokenizer.assistant_end]
        wrong = [*prompt, *reply[:-1], (reply[-1] + 1) % 320, tokenizer.assistant_end]
        mask = [0] * len(prompt) + [1] * (len(reply) + 1)
        if len(reply) < 30:  # it stopped by itself, so the end token is its own
            examples += [(right, mask), (wrong, mask)]
            decoded += [True, False]
        else:
            examples += [(right[:-1], mask[:-1]), (wrong[:-1], mask[:-1])]
            decoded += [True, False]
    assert len(examples) >= 8
    assert replies_match(trainer.model, examples) == decoded


def test_bits_per_byte_are_those_of_each_document_alone(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A short text, a long one in pieces, a conversation; each token once, marks not at all."""
    model = make_trainer(tokenizer, tmp_path).model
    long = " ".join(f"word {i}" for i in range(120))
    talk = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"})
    nats, size = 0.0, 0
    for ids, words in ((tokenizer.render_document("short")[0], "short"),
                       (tokenizer.render_document(long)[0], long),
                       (tokenizer.render(talk)[0], "hihello you")):
        for at in range(0, len(ids) - 1, model.config.sequence_len):
            piece = ids[at:at + model.config.sequence_len + 1]
            logits = model(gs.tensor([piece[:-1]])).log_softmax(-1)[0]
            nats -= sum(logits[i, token].item() for i, token in enumerate(piece[1:])
                        if token not in tokenizer.special.values())
        size += len(words.encode())
    found = bits_per_byte(model, tokenizer, ["short", long, talk])
    assert found == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert bits_per_byte(model, tokenizer, []) == 0.0


def test_evaluation_counts_and_lists_failures(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_trainer(tokenizer, tmp_path).model
    scores = evaluate(model, tokenizer, question_set(TASKS, 7))
    assert [s.task for s in scores] == list(TASKS)
    assert all(s.asked == 7 and s.right == 0 and len(s.failures) == 5 for s in scores)
    some, all_ = Score("a", 50, 100), Score("b", 100, 100)
    mean, error = mean_score([some, all_])
    spread = math.hypot(some.standard_error, all_.standard_error)
    assert mean == 0.75 and error == pytest.approx(spread / 2)


def test_training_goes_on_when_a_save_in_between_fails(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the second and third save; somebody makes room; nothing is lost."""
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, checkpoint_seconds=2, steps=9,
                                                        quizzes=0))
    good, calls = room.save_file, []

    def sometimes_full(tensors: object, path: str) -> None:
        calls.append(path)
        if 3 <= len(calls) <= 4:
            raise OSError(28, "No space left on device")
        good(tensors, path)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "save_file", sometimes_full)
    trainer.run()
    notes = [n for n in trainer.display.notes if "not saved" in n]  # type: ignore[attr-defined]
    assert len(notes) == 2 and "No space left" in notes[0]
    assert newest(tmp_path).name == "step-000009" and len(trainer.history.steps) == 9


def test_the_exam_is_asked_where_a_stage_ends(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Once, with the weights of that moment; and the run is the one without an exam."""
    plain = make_trainer(tokenizer, tmp_path / "a")
    plain.run()
    asked = make_trainer(tokenizer, tmp_path / "b")
    asked.exam = question_set(TASKS, 2)
    asked.run()
    assert plain.history.exams == []
    (stage, step, seconds, rows), = asked.history.exams
    assert (stage, step, seconds) == ("read", 9, 9.0) and set(rows) == set(TASKS)
    assert all(asked == 2 for _, asked in rows.values())
    assert weights(asked.model) == weights(plain.model)


@pytest.mark.parametrize("step", [8, 9, 10])
def test_a_stop_at_the_end_of_a_stage_loses_no_exam(
    tokenizer: Tokenizer, tmp_path: Path, step: int
) -> None:
    """After its last step the clock says that the next stage has begun; resumed, it is told."""
    questions = question_set(TASKS, 2)
    straight = make_trainer(tokenizer, tmp_path / "a", replace(SETTINGS, seconds=31.0))
    straight.exam = questions
    straight.run()
    first = make_trainer(tokenizer, tmp_path / "b", straight.settings)
    first.exam = questions
    stop_after(step, first)
    checkpoint = load_model(newest(tmp_path / "b"))
    second = trainer_of(checkpoint.model, checkpoint.tokenizer, tmp_path / "b", first.settings)
    second.exam = questions
    second.resume(checkpoint)
    second.run()
    assert second.history.exams == straight.history.exams != []
    assert weights(second.model) == weights(straight.model)
    assert second.history.stages == straight.history.stages


def test_the_history_keeps_where_each_stage_ended(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, tmp_path, replace(SETTINGS, accumulate=2))
    history = trainer.run()
    last = len(history.steps)
    assert list(history.stages.items()) == [
        ("read", [9, 8.0, 9 * 2 * 2 * 128]), ("answer", [last, last - 1.0, history.tokens])]
    before = load_model(newest(tmp_path)).state["history"]
    del before["stages"]  # of a version that kept none
    assert History(**before).stages == {}
