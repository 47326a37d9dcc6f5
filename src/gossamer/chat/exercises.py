"""Questions whose replies are decoded and then judged, once or several times each. Layer 7.

The one idea: an exercise knows its prompt, what is expected, how a reply is judged and what it
votes for; drawing, the calculator, pass@k and the majority's vote are the same for all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from random import Random

from gossamer.chat.calculator import Calculator
from gossamer.chat.engine import Engine, Reply, Request
from gossamer.chat.evaluate import FAILURES, Failure, Score, as_read, content_of
from gossamer.chat.message import Content
from gossamer.chat.sampling import Sampling
from gossamer.chat.task import Question, final_part
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.votes import figures, majority

__all__ = ["Drawing", "Exercise", "Tell", "exercise", "solve"]

Tell = Callable[[int, int], None]

_ROUNDS = 64  # of the engine between two words on how far it is
_JUDGES = 2  # programs of a model that run at once; other verdicts take no time


@dataclass(frozen=True)
class Exercise:
    """One question.

    Args:
        question: as it is asked.
        expected: a right answer, to be shown.
        judge: whether a reply is right.
        vote: what a reply answers, in a form where equal answers are equal; "" = nothing.
    """

    question: str
    expected: str
    judge: Callable[[Content], bool]
    vote: Callable[[Content], str]


def exercise(question: Question) -> Exercise:
    """A question of the made tasks, of which only the reference reply is right."""
    right = as_read(question.answer)
    return Exercise(question.text, right, lambda reply: as_read(reply) == right,
                    lambda reply: final_part(as_read(reply)))


@dataclass(frozen=True)
class Drawing:
    """How replies are drawn.

    Args:
        samples: replies a question.
        temperature: of the sampling; 0 takes the likeliest token.
        max_tokens: most tokens of a reply.
        seed: of the sampling.
    """

    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"--samples {self.samples} --temperature 0: at temperature 0 all "
                             "replies to a question are the same. Choose a higher one.")


def solve(
    task: str, exercises: Sequence[Exercise], engine: Engine, tokenizer: Tokenizer,
    drawing: Drawing | None = None, *, failures: int = FAILURES, tell: Tell | None = None,
) -> Score:
    """Decode replies and judge them.

    Args:
        task: name of the score.
        engine: idle; it decodes as many replies at once as it has rows.
        drawing: how; None = one greedy reply.
        failures: most of them that are kept.
        tell: called now and then with how many replies are done, and how many there will be.

    Returns:
        Right replies among the first ones drawn; with several samples also pass@k and the
        majority's vote. A prompt that fills the context is a question gone wrong.

    Cost: a prefill a question, whose replies share it, and a round of the engine for each token of
        the longest ones.
    """
    drawing = drawing or Drawing()
    drawn = _draw(exercises, engine, tokenizer, drawing, tell)
    verdicts, voted = list[list[bool]](), list[bool]()
    wrong = list[Failure]()
    with ThreadPoolExecutor(_JUDGES) as pool:
        for exercise, replies in zip(exercises, drawn, strict=True):
            judge = cache(exercise.judge)  # equal replies are judged once
            right = list(pool.map(judge, replies)) or [False] * drawing.samples
            verdicts.append(right)
            voted.append(_majority_is_right(exercise, replies, right))
            if not right[0] and len(wrong) < failures:
                given = as_read(replies[0]) if replies else "(the question fills the context)"
                wrong.append(Failure(exercise.question, exercise.expected, given))
    more = figures(verdicts, voted) if drawing.samples > 1 and verdicts else ()
    return Score(task, sum(row[0] for row in verdicts), len(exercises), tuple(wrong), 0.0, more)


def _draw(exercises: Sequence[Exercise], engine: Engine, tokenizer: Tokenizer, drawing: Drawing,
          tell: Tell | None) -> list[list[Content]]:
    """The replies to each exercise; none where the prompt does not fit."""
    rng = Random(f"exercises:{drawing.seed}")
    submitted = list[list[Reply]]()
    for exercise in exercises:
        seeds = [rng.getrandbits(32) for _ in range(drawing.samples)]
        prompt = tokenizer.render_prompt([{"role": "user", "content": exercise.question}])
        fits = len(prompt) < engine.context
        submitted.append([engine.submit(Request(
            prompt, drawing.max_tokens, Sampling(drawing.temperature, seed=seed),
            stop=(tokenizer.assistant_end, tokenizer.bos), follow=Calculator(tokenizer).follow,
        )) for seed in seeds if fits])
    total = sum(map(len, submitted))
    while engine.busy:
        engine.step()
        if tell is not None and engine.rounds % _ROUNDS == 0:
            tell(sum(reply.finish is not None for replies in submitted for reply in replies), total)
    return [[content_of(tokenizer, reply) for reply in replies] for replies in submitted]


def _majority_is_right(exercise: Exercise, replies: Sequence[Content], right: Sequence[bool]
                       ) -> bool:
    """The verdict on a reply that gives the majority's answer."""
    votes = [exercise.vote(reply) for reply in replies]
    chosen = majority(votes)
    return bool(chosen) and right[votes.index(chosen)]
