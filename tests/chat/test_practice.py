"""Practice: its gradient is the policy gradient, its attempts repeat, and it lifts a weak task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from rich.console import Console

import gossamer as gs
from gossamer.chat.checkpoint import latest, load_model
from gossamer.chat.curriculum import Curriculum
from gossamer.chat.dialogues import TaleRequest
from gossamer.chat.engine import Token
from gossamer.chat.interrupt import Interrupted
from gossamer.chat.narrative import numbered_tale
from gossamer.chat.practice import Practice, practice_loss
from gossamer.chat.progress import Display
from gossamer.chat.schedule import Schedule
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.chat.task import Question, Task
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.train import Trainer, TrainSettings
from gossamer.core.errors import CheckpointError
from gossamer.models.gpt import GPT, GPTConfig

# Whatever the word, the reply is a d. Little is to be learned, so a test has time for it.
LETTERS = Task(
    name="spell", doc="always d",
    draw=lambda rng: "".join(rng.choice("abcdef") for _ in range(4)), key=lambda facts: facts,
    fields=lambda facts, rng: {"word": facts},
    answer=lambda facts: "d", verify=lambda facts, reply: reply == "d")


TAUGHT = 14  # steps before practice: it is right in one of three then


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b c d e f"], 270)


def make_model(tokenizer: Tokenizer, seed: int = 0, length: int = 64) -> GPT:
    gs.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16,
                         sequence_len=length))


def ask(rng: Random) -> Question:
    facts = LETTERS.draw(rng)
    return Question("spell", facts, facts, facts[1:3])


def test_attempts_repeat_and_only_choices_count(tokenizer: Tokenizer) -> None:
    model = make_model(tokenizer)
    first, again = (Practice(model, tokenizer, ask, questions=3, samples=4).attempt(7)
                    for _ in range(2))
    for a, b in zip(vars(first).values(), vars(again).values(), strict=True):
        assert np.array_equal(a, b)
    other = Practice(model, tokenizer, ask, questions=3, samples=4).attempt(8)
    assert not np.array_equal(first.ids, other.ids)
    rows, width = first.ids.shape
    assert first.targets.shape == first.advantages.shape == (rows, width)
    assert rows == 12 and width in (32, 64)
    for ids, targets in zip(first.ids, first.targets, strict=True):
        places = np.flatnonzero(targets >= 0)
        assert len(places) and (np.diff(places) == 1).all()
        start = int(np.flatnonzero(ids == tokenizer.assistant_start)[0])
        assert places[0] == start  # the first choice follows the mark
        assert np.array_equal(targets[places[:-1]], ids[places[1:]])


def answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a reply with its end."""
    return [*tokenizer.encode(text), tokenizer.assistant_end]


def tell(practice: Practice, plan: Sequence[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine give these replies."""
    replies = iter(plan)

    def settle() -> None:
        while practice._engine.waiting:
            reply, said = practice._engine.waiting.popleft(), next(replies)
            ended = said[-1] == practice.tokenizer.assistant_end
            reply.tokens = [Token(i, 0.0) for i in (said[:-1] if ended else said)]
            reply.finish = "stop" if ended else "length"

    monkeypatch.setattr(practice._engine, "step", settle)


def test_tales_are_judged_by_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tale earns its reward whole, free of contradictions, with what was asked for, and once."""
    tokenizer = Tokenizer.train([numbered_tale(n).text for n in range(200)], 700)
    wanted = next(t for n in range(99) if "lamp" in (t := numbered_tale(n)).text)
    other = next(t for n in range(99) if "lamp" not in (t := numbered_tale(n)).text)
    practice = Practice(make_model(tokenizer, length=512), tokenizer,
                        lambda rng: TaleRequest("A story about a lamp?", "lamp"),
                        questions=1, samples=5)
    whole = answer(tokenizer, wanted.text)
    odd = answer(tokenizer, wanted.text + " They were pleased. Nobody went to the lamp.")
    tell(practice, [whole, whole, whole[:-1], odd, answer(tokenizer, other.text)], monkeypatch)
    tried = practice.attempt(0)
    assert tried.right == pytest.approx(1 / 5) and tried.solved == 1.0
    gains = [row[targets >= 0].max()
             for row, targets in zip(tried.advantages, tried.targets, strict=True)]
    assert gains == pytest.approx([0.8, -0.2, -0.2, -0.2, -0.2])


def test_rewards_less_the_groups_mean(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told what to say: three right replies of four to the first question, none to the second."""
    practice = Practice(make_model(tokenizer), tokenizer, ask, questions=2, samples=4)
    right = answer(tokenizer, ask(Random("practice:0:3")).answer)
    tell(practice, [right] * 3 + [[5, 6]] + [[7]] * 4, monkeypatch)
    tried = practice.attempt(3)
    assert tried.right == 3 / 8 and tried.solved == 1 / 2
    gains = [set(row[targets >= 0].tolist())
             for row, targets in zip(tried.advantages, tried.targets, strict=True)]
    assert gains == [{0.25}] * 3 + [{-0.75}] + [{0.0}] * 4


def test_the_gradient_is_the_policy_gradient(tokenizer: Tokenizer) -> None:
    """Against sum(A grad log p) / tokens, reply by reply."""
    model = make_model(tokenizer)
    tried = Practice(model, tokenizer, ask, questions=2, samples=3).attempt(0)
    advantages = np.random.default_rng(0).normal(size=6).astype(np.float32)
    spread = np.broadcast_to(advantages[:, None], tried.ids.shape).copy()
    loss, surprise = practice_loss(model, *map(gs.from_numpy, (tried.ids, tried.targets, spread)))
    loss.backward()
    found = model.head.weight.grad.numpy().copy()
    model.zero_grad()
    count, total = int((tried.targets >= 0).sum()), 0.0
    for ids, targets, advantage in zip(tried.ids, tried.targets, advantages, strict=True):
        places = np.flatnonzero(targets >= 0)
        logp = model(gs.from_numpy(ids[None])).log_softmax(-1)[0]
        said = sum(logp[int(at), int(targets[at])] for at in places)
        (said * (-float(advantage) / count)).backward()
        total -= said.item() / count
    np.testing.assert_allclose(found, model.head.weight.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert surprise.item() == pytest.approx(total, rel=1e-5)


def make_trainer(tokenizer: Tokenizer, model: GPT, folder: Path, steps: int) -> Trainer:
    """Some steps of teaching, then practice; the clock stands still."""
    plan = Curriculum({"spell": LETTERS}, tokenizer, {}, practice_share=0.5)
    settings = TrainSettings(seconds=1e9, batch_size=2, quizzes=0, checkpoint_seconds=1e12,
                             steps=steps, schedule=Schedule(warmup_steps=1, warmdown=0.0),
                             practice_rate=1.0)
    trainer = Trainer(model, plan, settings, folder, clock=lambda: 0.0)
    trainer.display = Display(Console(quiet=True))
    plan.stage_at = (  # type: ignore[method-assign]
        lambda progress: "answer" if trainer.step < TAUGHT else "practice")
    return trainer


def test_practice_lifts_a_task_and_resumes_bit_for_bit(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    straight = make_trainer(tokenizer, make_model(tokenizer), tmp_path / "a", TAUGHT + 14)
    straight.run()
    right = [row[2] for row in straight.history.practice]
    assert len(right) == 14 and np.mean(right[-4:]) > np.mean(right[:2]) + 0.2, right
    first = make_trainer(tokenizer, make_model(tokenizer), tmp_path / "b", TAUGHT + 14)
    first.display.step = (  # type: ignore[method-assign]
        lambda info: first._told_to_stop(2, None) if info.step == TAUGHT + 5 else None)
    with pytest.raises(Interrupted):
        first.run()
    newest = latest(tmp_path / "b")
    assert newest is not None
    checkpoint = load_model(newest)
    second = make_trainer(tokenizer, checkpoint.model, tmp_path / "b", TAUGHT + 14)
    second.resume(checkpoint)
    second.run()
    assert second.history.practice == straight.history.practice
    for name, value in straight.model.state_dict().items():
        assert np.array_equal(value.numpy(), second.model.state_dict()[name].numpy()), name


def test_practice_at_the_end_of_a_run_rehearses(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What else was taught is read beside it, at rates of its own; alone it reads nothing."""
    taken: dict[float, list[int]] = {}
    for share in (0.5, 1.0):
        trainer = make_trainer(tokenizer, make_model(tokenizer), tmp_path / str(share), TAUGHT + 3)
        trainer.curriculum.practice_share = share
        learn = trainer._learn
        seen = taken[share] = []

        def counted(batches, trainer=trainer, learn=learn, seen=seen):
            seen.append(trainer.step)
            return learn(batches)

        trainer._learn = counted  # type: ignore[method-assign]
        trainer.run()
    assert taken == {0.5: [*range(TAUGHT + 3)], 1.0: [*range(TAUGHT)]}
    assert len(trainer.history.practice) == 3


def test_rates_fall_before_practice(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(tokenizer, make_model(tokenizer), tmp_path, 4)
    trainer.settings = replace(trainer.settings, practice_rate=0.25, schedule=Schedule(0, 0.5, 0.0))
    base = trainer._base_lrs[0][0]
    for progress, factor in ((0.0, 1.0), (0.25, 1.0), (0.375, 0.5), (0.4995, 0.002), (0.5, 0.25),
                             (0.9, 0.25)):
        trainer._set_rates(progress)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(base * factor)
    trainer.curriculum.practice_share = 1.0  # practice alone has the run's schedule
    trainer._set_rates(0.75)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(base * 0.5)


def test_a_trained_model_practises_on(tmp_path: Path) -> None:
    """`gossamer practice`: a new run from an old one's weights, which stay as they are."""
    quiet = Console(quiet=True)
    small = SpeedrunOptions(name="old", questions=2, depth=1, steps=3, root=tmp_path)
    newest = latest(speedrun(small, console=quiet))
    assert newest is not None
    before = (newest / "model.safetensors").read_bytes()
    more = replace(small, name="", practice=1.0, start="old", tasks=("weekday",), attempts=(2, 3),
                   steps=2)
    folder = speedrun(more, console=quiet)
    assert folder.name == "practice" and (newest / "model.safetensors").read_bytes() == before
    report = (folder / "report.md").read_text()
    assert "| task | what | at the start | exact match |" in report
    assert "Practice: 2 steps" in report
    assert speedrun(SpeedrunOptions(root=tmp_path), resume="practice",
                    console=quiet) == folder  # its settings, lists of JSON, are read again
    with pytest.raises(ValueError, match="--task juggle: there is no such task; choose of spell, "):
        speedrun(replace(more, tasks=("juggle",)), console=quiet)
    with pytest.raises(CheckpointError, match="nobody"):
        speedrun(replace(more, start="nobody"), console=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "practice"]
