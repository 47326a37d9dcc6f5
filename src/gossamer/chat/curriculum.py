"""What the model reads: stories first, then questions, most of what it gets wrong. Layer 7.

Two stages share one stream format. "read" is pretraining, with every token supervised: tales,
people's prose where it is asked for, solved questions and dialogues. "answer" has the questions,
several in a chat, and the dialogues, and supervises the replies only. A person's own documents, if
there are any, are read besides in both. In a third, "practice", the model's own replies are judged
(`practice.py`); at the end of a run, examples of "answer" are rehearsed beside it, for what is
practised alone displaces the rest. Between them and later a short quiz on training questions sets
the tasks' weights: a task that is answered well is asked less often.

Sources: weights by loss are the idea of Graves et al. 2017 ("Automated Curriculum Learning"),
rehearsal that of Robins 1995 ("Catastrophic forgetting, rehearsal and pseudorehearsal").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from gossamer.chat.corpus import Corpus
from gossamer.chat.dialogues import TaleRequest, draw_dialogue, tale_request
from gossamer.chat.evaluate import Score, to_conversation
from gossamer.chat.message import pieces_of, words_of
from gossamer.chat.narrative import numbered_tale
from gossamer.chat.packing import MakeExample
from gossamer.chat.task import Question, Task, pick, sample
from gossamer.chat.tokenizer import Rendered, Tokenizer
from gossamer.chat.track import SHORT, Track

__all__ = ["TALE", "Curriculum", "tokenizer_corpus"]

TALE = "tale"  # what is practised besides the tasks: tales on request

CORPUS_READ_SHARE = 0.4  # of the budget spent reading where a person's own text is to be read
_TALE_SHARE = 0.5  # of the examples read
_CORPUS_SHARE = {"read": 0.7, "answer": 0.15}  # of the examples of a stage; later, to remember it
_PROSE_SHARE = 0.3  # of the examples read, where people's prose is read too
# A question may follow others that have nothing to do with it: a model that meets each one alone
# answers only the first of a chat. Three stories still fit into a row of 257.
_MORE_SHARE, _MORE_QUESTIONS = 0.25, 2
_FLOOR = 0.15  # weight of a task that is always right, against 1 for one that never is
_CORPUS_PER_TASK = 1000  # questions a task for the tokenizer: 1 MB of text in all
_CORPUS_BYTES = 1 << 20


class Curriculum:
    """Examples for each stage of a run.

    Args:
        tasks: the tasks to teach.
        tokenizer: turns them into ids.
        facts: values for the model's answers about itself (keys of `dialogues.FACTS`).
        corpus: a person's own documents, read besides.
        read_share: share of the budget for the first stage; None = the track's, or more where there
            is a corpus.
        practice_share: share of the budget for the last stage.
        tales: share of what is practised there that is tales on request.
        track: how much is talked and told, and with which words.
        prose: texts to read besides the tales.
    """

    def __init__(
        self, tasks: Mapping[str, Task], tokenizer: Tokenizer, facts: Mapping[str, str],
        corpus: Corpus | None = None, read_share: float | None = None, practice_share: float = 0.0,
        track: Track = SHORT, prose: Sequence[str] = (), tales: float = 0.0,
    ) -> None:
        self.tales = tales
        self.tasks, self.tokenizer, self.facts = dict(tasks), tokenizer, dict(facts)
        self.corpus, self.track, self.prose = corpus, track, tuple(prose)
        if read_share is None:
            read_share = track.read_share if corpus is None else CORPUS_READ_SHARE
        self.read_share, self.practice_share = read_share, practice_share
        self.weights = {name: task.share for name, task in tasks.items()}

    @property
    def rehearses(self) -> bool:
        """Whether practice is the end of a run that taught more than is practised."""
        return 0.0 < self.practice_share < 1.0

    def stage_at(self, progress: float) -> str:
        """ "read", "answer" or "practice", by the elapsed share of the budget."""
        if progress < self.read_share:
            return "read"
        return "answer" if progress < 1.0 - self.practice_share else "practice"

    def question(self, rng: Random) -> Question:
        """A training question, of a task drawn with the present weights."""
        names, weights = list(self.weights), list(self.weights.values())
        return sample(self.tasks[rng.choices(names, weights)[0]], rng)

    def challenge(self, rng: Random) -> Question | TaleRequest:
        """What to practise: a question, or a tale that is asked for."""
        if self.tales and rng.random() < self.tales:
            return tale_request(rng, self.track.lexicon)
        return self.question(rng)

    def maker(self, stage: str) -> MakeExample:
        """A function that draws one example of "read" or "answer" with the present weights."""
        def answer(rng: Random) -> Rendered:
            if rng.random() < self.track.talk_share:
                return self.tokenizer.render(draw_dialogue(
                    rng, self.facts, self.track.lexicon, self.track.tale_share))
            turns = to_conversation(self.question(rng))
            for _ in range(_MORE_QUESTIONS):
                if rng.random() >= _MORE_SHARE:
                    break
                turns += to_conversation(self.question(rng))
            return self.tokenizer.render(turns)

        def read(rng: Random) -> Rendered:
            if self.prose and rng.random() < _PROSE_SHARE:
                return self.tokenizer.render_document(pick(rng, self.prose))
            if rng.random() < _TALE_SHARE:
                return self.tokenizer.render_document(self._tale(rng))
            ids, mask = answer(rng)
            return ids, [0] + [1] * (len(mask) - 1)

        make, corpus = (read if stage == "read" else answer), self.corpus
        if corpus is None:
            return make

        def besides(rng: Random) -> Rendered:
            if rng.random() >= _CORPUS_SHARE[stage]:
                return make(rng)
            document = corpus.next()
            if isinstance(document, str):
                return self.tokenizer.render_document(document)
            return self.tokenizer.render(document)

        return besides

    def _tale(self, rng: Random) -> str:
        """A tale of those that are not kept for measuring."""
        lexicon = self.track.lexicon
        return numbered_tale(int(rng.random() * lexicon.tales), lexicon).text

    def learn_from(self, scores: Sequence[Score]) -> None:
        """Set the tasks' weights by a quiz: share * (floor + (1 - floor) * share of errors)."""
        for score in scores:
            errors = 1.0 - score.accuracy
            share = self.tasks[score.task].share
            self.weights[score.task] = share * (_FLOOR + (1.0 - _FLOOR) * errors)

    def state(self) -> dict[str, Any]:
        """The weights, for a checkpoint."""
        return {"weights": dict(self.weights)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint."""
        self.weights = {name: float(state["weights"][name]) for name in self.tasks}


def tokenizer_corpus(
    tasks: Mapping[str, Task], seed: int = 0, corpus: Corpus | None = None,
    track: Track = SHORT, prose: Sequence[str] = (),
) -> list[str]:
    """Text to train the tokenizer on: training questions with replies, dialogues and tales, and as
    much again of a person's own documents and of prose."""
    rng, lexicon = Random(f"tokenizer:{seed}"), track.lexicon
    texts = []
    for task in tasks.values():
        for _ in range(_CORPUS_PER_TASK):
            question = sample(task, rng)
            texts += [question.text, *(text for _, text in pieces_of(question.answer))]
    for number in range(_CORPUS_PER_TASK):
        texts.append(numbered_tale(number, lexicon).text)
        texts += [words_of(turn["content"]) for turn in draw_dialogue(rng, {}, lexicon)]
    size = 0
    for text in prose:
        size += len(text)
        if size > _CORPUS_BYTES:
            break
        texts.append(text)
    return texts if corpus is None else texts + corpus.sample(_CORPUS_BYTES)
