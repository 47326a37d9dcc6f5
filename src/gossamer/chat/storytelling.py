"""How well a model tells stories: grammar, consistency, novelty, excess bits. Layer 7.

The source of the stories is our own, so three things can be said that no judge has to guess. A told
story is read by the grammar that wrote the training tales and replayed; what it copied is looked up
among all tales there were to read; and what the model needs for a byte of a tale is held against
what the source needs, which no model can beat.

    excess = bits per byte of the model - bits per byte of the source
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gossamer.chat.engine import Engine, Request
from gossamer.chat.evaluate import Figure, bits_per_byte
from gossamer.chat.lexicon import Lexicon
from gossamer.chat.narrative import numbered_tale
from gossamer.chat.parser import StoryCheck, check_story
from gossamer.chat.sampling import Sampling
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["RUN", "StoryRecord", "excess_bits", "measure_stories", "story_figures", "story_runs",
           "tell_stories", "training_runs"]

# Words in a row that count as copied. Fresh draws of the source itself, held against 8,000 tales,
# all share a run of 8 words with one ("They were best friends from that day on." is one sentence),
# 55 % one of 12, 16 % one of 16, 3 % one of 20 and 0.3 % one of 24 (0.5 % against 32,768 tales).
RUN = 24
_GROUP = 50  # tales a group of the excess: as many as `bits_per_byte` takes in one pass
_EXAMPLES = 5  # unread sentences that are kept
_REQUEST = "Tell me a story."
_WORD = re.compile(r"\w+")  # marks between them do not count
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, of no pattern: 2^64 over the golden ratio (Knuth)
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class StoryRecord:
    """What is measured on told stories.

    Args:
        stories: how many.
        figures: share that is grammatical (each sentence can be read), consistent (and owner,
            place, pronouns, looks and skills never contradict what was told), novel (no RUN words
            in a row of a training tale, and not told before), and of sentences that can be read.
        faults: contradictions by kind.
        unread: the first sentences that could not be read.
    """

    stories: int
    figures: tuple[Figure, ...]
    faults: Mapping[str, int]
    unread: tuple[str, ...]


def story_runs(text: str) -> np.ndarray:
    """(runs,) uint64: a hash of each RUN words in a row; of all words where there are fewer.

    A run's hash is the sum of its words' hashes, each times its place's power of one multiplier.
    """
    words = np.array([_word_hash(word) for word in _WORD.findall(text)], np.uint64)
    width = min(RUN, len(words))
    if not width:
        return words
    runs = np.zeros(len(words) - width + 1, np.uint64)
    for place in range(width):
        power = np.uint64(pow(_MULTIPLIER, place, 1 << 64))
        runs += words[place : place + len(runs)] * power  # modulo 2^64
    return runs


@lru_cache(maxsize=1 << 14)
def _word_hash(word: str) -> int:
    """64 bits of a word (FNV-1a over its bytes), the same in every process."""
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 & _MASK
    return value


def training_runs(lexicon: Lexicon, tales: int = 0) -> np.ndarray:
    """The hashes of all runs of the tales there are to read, sorted.

    Args:
        tales: of the first so many; 0 = all of the lexicon's.

    Cost: 0.3 ms a tale.
    """
    texts = (numbered_tale(number, lexicon).text for number in range(tales or lexicon.tales))
    return np.unique(np.concatenate([story_runs(text) for text in texts]))


def measure_stories(texts: Sequence[str], training_hashes: np.ndarray) -> StoryRecord:
    """Grammar, consistency and novelty of told stories, with standard errors.

    Args:
        texts: the stories.
        training_hashes: of `training_runs`.

    Returns:
        Shares in 0 to 1; all 0 where there is no story.

    Cost: 0.5 ms a story.
    """
    checks, known = [check_story(text) for text in texts], np.unique(training_hashes)
    seen, novel = set[str](), list[bool]()
    for text in texts:
        copied = _has_any(known, story_runs(text))
        novel.append(bool(text.strip()) and not copied and text not in seen)
        seen.add(text)
    faults = Counter(kind for check in checks for _, kind, _ in check.faults)
    unread = [sentence for check in checks for sentence in check.unread]
    figures = (_share("grammatical", [check.grammatical for check in checks]),
               _share("consistent", [check.consistent for check in checks]),
               _share("novel", novel), _sentences(checks))
    return StoryRecord(len(texts), figures, dict(faults), tuple(unread[:_EXAMPLES]))


def _has_any(known: np.ndarray, runs: np.ndarray) -> bool:
    """Whether one of the runs is among the known ones, which are sorted."""
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return bool(len(known)) and bool((known[places] == runs).any())


def _share(name: str, verdicts: Sequence[bool]) -> Figure:
    count = len(verdicts)
    p = sum(verdicts) / count if count else 0.0
    return Figure(name, p, math.sqrt(p * (1 - p) / count) if count else 0.0)


def _sentences(checks: Iterable[StoryCheck]) -> Figure:
    """Share of readable sentences; its error takes a story as one draw, not a sentence."""
    rows = np.array([(c.sentences, c.sentences - len(c.unread)) for c in checks], np.float64)
    if not rows.sum():
        return Figure("sentences read", 0.0, 0.0)
    share = rows[:, 1].sum() / rows[:, 0].sum()
    off = rows[:, 1] - share * rows[:, 0]
    error = math.sqrt(float((off**2).sum())) / rows[:, 0].sum()
    return Figure("sentences read", float(share), float(error))


def tell_stories(
    engine: Engine, tokenizer: Tokenizer, count: int, *, seed: int = 0, temperature: float = 1.0,
    request: str = _REQUEST,
) -> list[str]:
    """Stories that a model tells when it is asked to.

    Args:
        engine: as many at once as it has rows.
        count: how many.
        seed: of the first; each has its own.
        temperature: 1 = as the model has learned the source.
    """
    prompt = tokenizer.render_prompt([{"role": "user", "content": request}])
    longest = engine.model.config.sequence_len - len(prompt) - 1
    replies = [engine.submit(Request(
        prompt, max_tokens=longest, sampling=Sampling(temperature, seed=seed + number),
        stop=(tokenizer.assistant_end,))) for number in range(count)]
    while engine.busy:
        engine.step()
    return [tokenizer.decode([token.id for token in reply.tokens]).strip() for reply in replies]


def excess_bits(
    model: GPT, tokenizer: Tokenizer, lexicon: Lexicon, groups: int = 8
) -> tuple[Figure, Figure]:
    """What a model needs for a byte of tales it has not read, and how much more than the source.

    The source's bits are exact: see `narrative.py`. The model's are those of one way to cut the
    text into tokens, the tokenizer's, hence at most a little too many.

    Args:
        groups: of _GROUP tales; the standard error is that of their mean.

    Returns:
        Bits per byte of the model, and the excess over the source.
    """
    rows = []
    for group in range(groups):
        first = lexicon.tales + group * _GROUP
        tales = [numbered_tale(number, lexicon) for number in range(first, first + _GROUP)]
        source = sum(t.bits for t in tales) / sum(len(t.text.encode()) for t in tales)
        bits = bits_per_byte(model, tokenizer, [tale.text for tale in tales])
        rows.append((bits, bits - source))
    means = np.mean(rows, axis=0)
    errors = np.std(rows, axis=0, ddof=1) / math.sqrt(groups) if groups > 1 else np.zeros(2)
    return (Figure("bits per byte", float(means[0]), float(errors[0])),
            Figure("excess bits per byte", float(means[1]), float(errors[1])))


def story_figures(
    engine: Engine, tokenizer: Tokenizer, lexicon: Lexicon, count: int = 200, *, seed: int = 0
) -> tuple[Figure, ...]:
    """All figures of a model's stories, for a report: sampled ones, then its bits on unread ones.

    Cost: `count` replies of some 90 tokens, and 0.3 ms for each tale there was to read.
    """
    told = tell_stories(engine, tokenizer, count, seed=seed)
    record = measure_stories(told, training_runs(lexicon))
    groups = min(max(2, count // 25), 16)
    return (*record.figures, *excess_bits(engine.model, tokenizer, lexicon, groups))
