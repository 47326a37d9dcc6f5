"""How well a model tells stories: grammar, consistency, novelty, excess bits. Layer 7.

The source of the stories is our own, so three things can be said that no judge has to guess. A told
story is read by the grammar that wrote the training tales and replayed; what it copied is looked up
among all tales there were to read; and what the model needs for a byte of a tale is held against
what the source needs, which no model can beat. What is wrong is named by its kind, the commonest
first, so that a hole in the data shows.

    excess = bits per byte of the model - bits per byte of the source
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from gossamer.chat.engine import Engine, Request
from gossamer.chat.evaluate import Failure, Figure, bits_per_byte
from gossamer.chat.lexicon import Lexicon
from gossamer.chat.mention import classes
from gossamer.chat.narrative import numbered_tale
from gossamer.chat.parser import StoryCheck, check_story, patterns, split_sentences
from gossamer.chat.sampling import Sampling
from gossamer.chat.spread import share_error
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT

__all__ = ["MIN_P", "RUN", "Flaw", "StoryRecord", "excess_bits", "measure_stories", "story_record",
           "story_runs", "tell_stories", "training_runs"]

# Words in a row that count as copied. Fresh draws of the source itself, held against 8,000 tales,
# all share a run of 8 words with one ("They were best friends from that day on." is one sentence),
# 55 % one of 12, 16 % one of 16, 3 % one of 20 and 0.3 % one of 24 (0.5 % against 32,768 tales).
RUN = 24
_GROUP = 50  # tales a group of the excess: as many as `bits_per_byte` takes in one pass
_REQUEST = "Tell me a story."
# Stories are drawn at temperature 1 from tokens at least a tenth as likely as the likeliest. Of a
# vocabulary's tail each token has one chance in 10,000, but one of a story's hundred tokens then
# often comes from there: 85 % of an hour's model's stories were grammatical, with the filter 97 %.
MIN_P = 0.1
_LONGEST = 160  # characters of an example; the longest of 4,000 tales has 79
_ENDS = '.!?"'  # with what a whole sentence ends
_WORD = re.compile(r"\w+")  # marks between them do not count
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, of no pattern: 2^64 over the golden ratio (Knuth)
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Flaw:
    """One kind of thing that is wrong with told stories.

    Args:
        kind: in words.
        stories: how many have it.
        example: the first sentence found, and what is wrong with it.
    """

    kind: str
    stories: int
    example: str


@dataclass(frozen=True)
class StoryRecord:
    """What is measured on told stories.

    Args:
        stories: how many.
        figures: share that is grammatical (each sentence can be read), consistent (and owner,
            place, pronouns, looks and skills never contradict what was told), novel (no RUN words
            in a row of a training tale, and not told before), and of sentences that can be read.
        flaws: why the others are not, the commonest first.
    """

    stories: int
    figures: tuple[Figure, ...]
    flaws: tuple[Flaw, ...]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The flaws as a score keeps what went wrong."""
        return tuple(Failure(f"{flaw.kind}, in {flaw.stories} of {self.stories} stories", "",
                             flaw.example) for flaw in self.flaws)


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
        training_hashes: of `training_runs`, sorted.

    Returns:
        Shares in 0 to 1; all 0 where there is no story.

    Cost: 0.5 ms a story.
    """
    checks, novel = [check_story(text) for text in texts], list[bool]()
    seen, told, examples = set[str](), Counter[str](), dict[str, str]()
    for text, check in zip(texts, checks, strict=True):
        old = list(_nothing_new(text, training_hashes, seen))
        novel.append(not old)
        seen.add(text)
        flaws = dict(reversed([*_misread(text, check), *old]))  # of each kind the first
        told.update(flaws.keys())
        examples = flaws | examples
    figures = (_share("grammatical", [check.grammatical for check in checks]),
               _share("consistent", [check.consistent for check in checks]),
               _share("novel", novel), _sentences(checks))
    return StoryRecord(len(texts), figures, tuple(
        Flaw(kind, count, examples[kind]) for kind, count in told.most_common()))


def _misread(text: str, check: StoryCheck) -> Iterator[tuple[str, str]]:
    """(kind, example) of what is no sentence of the world, or contradicts what was told.

    Contradictions are told of stories that could be read: in others they may only seem to be.
    """
    sentences = split_sentences(text)
    for sentence in check.unread:
        kind, what = _why_unread(sentence, sentence == sentences[-1])
        yield kind, _quoted(sentence, what)
    for number, kind, what in () if check.unread else check.faults:
        yield f"contradiction ({kind})", _quoted(sentences[number], what)


def _quoted(sentence: str, what: str = "") -> str:
    """A sentence, cut where one that has no end would fill a page, and what is wrong with it."""
    cut = f"{sentence[:_LONGEST]}…" if len(sentence) > _LONGEST else sentence
    return f"{cut} ({what})" if what else cut


def _why_unread(sentence: str, last: bool) -> tuple[str, str]:
    """What keeps a sentence from being one of the world, and the word if it is one."""
    if last and sentence[-1] not in _ENDS:
        return "broken off", ""
    words, row = classes(sentence)
    if unknown := [word for word, name in zip(words, row, strict=True) if name not in _known()]:
        return "unknown word", unknown[0]
    if tuple(row) in patterns():
        return "a known sentence, written in another way", ""
    return "known words, but no known sentence", ""


@cache
def _known() -> frozenset[str]:
    """Classes of words, and words of no class, that the world's sentences have."""
    return frozenset(name for row in patterns() for name in row)


def _nothing_new(text: str, known: np.ndarray, seen: set[str]) -> Iterator[tuple[str, str]]:
    """(kind, example) of what keeps a story from being novel."""
    if not text.strip():
        yield "nothing told", ""
    elif text in seen:
        yield "told twice", _quoted(split_sentences(text)[0])
    elif len(known) and len(runs := story_runs(text)):
        places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        if len(copied := np.flatnonzero(known[places] == runs)):
            words = _WORD.findall(text)[copied[0] : copied[0] + RUN]
            yield f"copied ({RUN} words in a row)", " ".join(words)


def _share(name: str, verdicts: Sequence[bool]) -> Figure:
    count = len(verdicts)
    return Figure(name, sum(verdicts) / count if count else 0.0, share_error(verdicts))


def _sentences(checks: Sequence[StoryCheck]) -> Figure:
    """Share of readable sentences; its error takes a story as one draw, not a sentence."""
    said = [check.sentences for check in checks]
    read = [check.sentences - len(check.unread) for check in checks]
    return Figure("sentences read", sum(read) / max(1, sum(said)), share_error(read, said))


def tell_stories(
    engine: Engine, tokenizer: Tokenizer, count: int, *, seed: int = 0, temperature: float = 1.0,
    min_p: float = MIN_P, request: str = _REQUEST,
) -> list[str]:
    """Stories that a model tells when it is asked to.

    Args:
        engine: as many at once as it has rows.
        count: how many.
        seed: of the first; each has its own.
        temperature: 1 = as the model has learned the source.
        min_p: tokens less probable than this share of the likeliest are not drawn.
    """
    prompt = tokenizer.render_prompt([{"role": "user", "content": request}])
    longest = engine.model.config.sequence_len - len(prompt) - 1
    replies = [engine.submit(Request(
        prompt, max_tokens=longest, sampling=Sampling(temperature, min_p=min_p, seed=seed + number),
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


def story_record(
    engine: Engine, tokenizer: Tokenizer, lexicon: Lexicon, count: int = 200, *, seed: int = 0
) -> StoryRecord:
    """All that is measured on a model's stories, its bits on unread ones among the figures.

    Cost: `count` replies of some 90 tokens, and 0.3 ms for each tale there was to read.
    """
    told = tell_stories(engine, tokenizer, count, seed=seed)
    record = measure_stories(told, training_runs(lexicon))
    groups = min(max(2, count // 25), 16)
    bits = excess_bits(engine.model, tokenizer, lexicon, groups)
    return replace(record, figures=(*record.figures, *bits))
