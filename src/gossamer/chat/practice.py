"""Reinforcement: the model tries, is told what was right, and does more of that. Layer 7.

Several replies are drawn for each question. A reply's reward is 1 if it is the reference reply,
and a tale's if it can be read, contradicts itself nowhere and is about what was asked for. Its
advantage A is the reward less the mean of its group, and the loss

    sum over tokens of A * -log p(token)  /  number of tokens

so a group that is all right or all wrong teaches nothing. Replies come from the weights as they
are (on-policy), hence no ratio, no clipping and no second model to stay near to; what the
calculator put in is not the model's doing and does not count.

Source: REINFORCE (Williams 1992) with the group's mean as baseline (Shao et al. 2024, without its
standard deviation: Liu et al. 2025, "Dr. GRPO"), normalised over tokens (Yu et al. 2025, "DAPO").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np

import gossamer as gs
import gossamer.nn.functional as F
from gossamer.chat.calculator import Calculator
from gossamer.chat.dialogues import TaleRequest
from gossamer.chat.engine import Engine, Reply, Request, Sampling
from gossamer.chat.evaluate import Figure, to_conversation
from gossamer.chat.exercises import Drawing, exercise, solve
from gossamer.chat.parser import check_story
from gossamer.chat.task import Question
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["Attempts", "Practice", "practice_loss"]

ROW, TALE_ROW = 128, 256  # positions of one attempt, question included
_STEP = 32  # attempts are as wide as the longest, in such steps: few shapes to compile
_MEASURED = 192  # held-out questions of all tasks: an error of 3 % at most, in 2 s of two cores
_REDRAWS = 50  # questions in a row too long for ROW: then something else is wrong


@dataclass(frozen=True)
class Attempts:
    """One step's attempts, one a row, and what they earned.

    Args:
        ids: (B, T) int64.
        targets: (B, T) int64, -1 where the model chose nothing.
        advantages: (B, T) float32.
        right: share of right replies (pass@1).
        solved: share of questions with at least one (pass@k).
    """

    ids: np.ndarray
    targets: np.ndarray
    advantages: np.ndarray
    right: float
    solved: float


@dataclass(frozen=True)
class _Trial:
    """Something to try: ids of a prompt, positions with the reply, and whether a reply is right."""

    prompt: list[int]
    room: int
    is_right: Callable[[Reply], bool]


class Practice:
    """Draws attempts of a model that is being trained.

    Args:
        model: as it is at each call.
        tokenizer: its tokenizer.
        draw: a question of the training side, or what asks for a tale.
        questions: a step.
        samples: replies to each (k).
        temperature: of the sampling.
        seed: with the step's number it decides questions and samples.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, draw: Callable[[Random], Question | TaleRequest], *,
        questions: int = 8, samples: int = 8, temperature: float = 1.0, seed: int = 0,
    ) -> None:
        self.tokenizer, self.draw = tokenizer, draw
        self.questions, self.samples = questions, samples
        self.temperature, self.seed = temperature, seed
        self.length, self.longest = (min(n, model.config.sequence_len) for n in (ROW, TALE_ROW))
        self._told = set[str]()  # tales of a step: one told again earns nothing
        self._engine = Engine(model, rows=questions * samples)

    def attempt(self, step: int) -> Attempts:
        """Draw questions and replies for one step; the same for the same weights and number.

        Cost: as many decoding rounds as the longest reply has tokens, and a prefill a question,
            whose replies share it.
        """
        rng = Random(f"practice:{self.seed}:{step}")
        self._engine.reset()  # what it has cached was computed with other weights
        self._told.clear()
        trials = [self._trial(rng) for _ in range(self.questions)]
        replies = [self._submit(t, rng) for t in trials for _ in range(self.samples)]
        while self._engine.busy:
            self._engine.step()
        longest = max(len(reply.request.ids) + len(self._said(reply)) for reply in replies)
        room = max(trial.room for trial in trials)
        shape = (len(replies), min(-(-(longest - 1) // _STEP) * _STEP, room) + 1)
        ids = np.full(shape, self.tokenizer.bos, np.int64)
        chosen, advantages = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
        groups = [replies[i : i + self.samples] for i in range(0, len(replies), self.samples)]
        rewards = np.array([[trial.is_right(reply) for reply in group]
                            for group, trial in zip(groups, trials, strict=True)], np.float32)
        gains = (rewards - rewards.mean(axis=1, keepdims=True)).reshape(-1)
        for row, reply in enumerate(replies):
            start = len(reply.request.ids)
            said = self._said(reply)
            ids[row, :start], ids[row, start : start + len(said)] = reply.request.ids, said
            chosen[row, start : start + len(said)] = [
                *(not token.forced for token in reply.tokens), *[True] * (reply.finish == "stop")]
            advantages[row] = gains[row]
        targets = np.where(chosen, ids, -1)
        return Attempts(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(targets[:, 1:]),
                        np.ascontiguousarray(advantages[:, 1:]), float(rewards.mean()),
                        float(rewards.max(axis=1).mean()))

    def measure(self, questions: Mapping[str, Sequence[Question]]) -> dict[str, list[list[Any]]]:
        """pass@1 and pass@k on other questions, where replies are drawn as in practice.

        Args:
            questions: by task; the first of each are asked, _MEASURED of all tasks.

        Returns:
            By task [name, value, standard error] of both, for JSON.

        Cost: `samples` replies to each question.
        """
        self._engine.reset()  # as above
        drawing = Drawing(self.samples, self.temperature, self.length, self.seed)
        most, found = max(1, _MEASURED // max(1, len(questions))), dict[str, list[list[Any]]]()
        for name, asked in questions.items():
            score = solve(name, [exercise(question) for question in asked[:most]], self._engine,
                          self.tokenizer, drawing)
            alone = (Figure("pass@1", score.accuracy, score.standard_error),)
            found[name] = [[f.name, f.value, f.error] for f in score.figures or alone
                           if f.name in ("pass@1", f"pass@{self.samples}")]
        return found

    def _trial(self, rng: Random) -> _Trial:
        """What is tried next."""
        for _ in range(_REDRAWS):
            drawn = self.draw(rng)
            if isinstance(drawn, TaleRequest):
                prompt = self.tokenizer.render_prompt([{"role": "user", "content": drawn.text}])
                return _Trial(prompt, self.longest, partial(self._tells, drawn.thing))
            conversation = to_conversation(drawn)
            prompt = self.tokenizer.render_prompt(conversation[:1])
            ids, _ = self.tokenizer.render(conversation)
            if len(ids) <= self.length:
                return _Trial(prompt, self.length, partial(self._says, ids[len(prompt):]))
        raise ValueError(f"Practice: {_REDRAWS} questions in a row have more than {self.length} "
                         "tokens with their replies; draw shorter ones.")

    def _says(self, right: list[int], reply: Reply) -> bool:
        """Whether a reply is the right one."""
        return self._said(reply) == right

    def _tells(self, thing: str, reply: Reply) -> bool:
        """Whether a reply is a tale with this thing in it, told for the first time in this step."""
        text = self.tokenizer.decode([token.id for token in reply.tokens]).strip()
        if reply.finish != "stop" or text in self._told or thing not in text:
            return False
        self._told.add(text)
        return check_story(text).consistent

    def _submit(self, trial: _Trial, rng: Random) -> Reply:
        return self._engine.submit(Request(
            trial.prompt, max_tokens=trial.room - len(trial.prompt),
            sampling=Sampling(self.temperature, seed=rng.getrandbits(32)),
            stop=(self.tokenizer.assistant_end,), follow=Calculator(self.tokenizer).follow))

    def _said(self, reply: Reply) -> list[int]:
        """Ids of a reply, its end included if it came to one."""
        end = [self.tokenizer.assistant_end] if reply.finish == "stop" else []
        return [*(token.id for token in reply.tokens), *end]


def practice_loss(
    model: GPT, ids: gs.Tensor, targets: gs.Tensor, advantages: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor]:
    """The loss at the head of this file, whose gradient is the policy gradient.

    Args:
        ids, targets, advantages: (B, T) each, as in `Attempts`.

    Returns:
        The loss, and the mean of -log p(token) alone: how sure the model is of what it says.
    """
    logits = model(ids)
    nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
                           ignore_index=-1, reduction="none")
    count = (targets >= 0).sum()
    return (nats * advantages.reshape(-1)).sum() / count, nats.detach().sum() / count
