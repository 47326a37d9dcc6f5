"""Told stories read again, sentence by sentence, and held against what they said before. Layer 7.

Every word of the lexicon has one class, so a sentence becomes a row of classes, and the wordings of
the world become rows of classes too, one for each combination of mentions: reading is one look into
a table. What is found is written out again and must be the very same text, so an article, a
preposition or a capital letter that is wrong is seen. No row belongs to two wordings (a test): the
grammar has no ambiguity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

from gossamer.chat.lexicon import LARGE
from gossamer.chat.mention import PRONOUNS, Mention, Slot, classes, opened, surface
from gossamer.chat.world import Act, Fault, State, Wording, acts

__all__ = ["Pattern", "Reading", "StoryCheck", "check_story", "patterns", "read_sentence",
           "split_sentences"]

_BORDER = re.compile(r'(?<=[.!?]) (?=[A-Z"])|(?<=[.!?]") (?=[A-Z"])')


@dataclass(frozen=True)
class Pattern:
    """A wording with each slot filled in one way.

    Args:
        act, wording: what it tells, and how.
        spots: (slot, way, number of the word at which it begins) for each slot.
    """

    act: Act
    wording: Wording
    spots: tuple[tuple[Slot, int, int], ...]


@dataclass(frozen=True)
class Reading:
    """A sentence understood."""

    act: Act
    wording: Wording
    said: tuple[Mention, ...]


@dataclass(frozen=True)
class StoryCheck:
    """What is to be said of one story.

    Args:
        sentences: how many it has.
        unread: those that are no sentence of the world.
        faults: (number of the sentence, what kind of contradiction, what it says).
        state: what holds at the end.
    """

    sentences: int
    unread: tuple[str, ...]
    faults: tuple[tuple[int, str, str], ...]
    state: State

    @property
    def grammatical(self) -> bool:
        """Every sentence was read, and there is one."""
        return self.sentences > 0 and not self.unread

    @property
    def consistent(self) -> bool:
        """Every sentence was read, and none contradicts what was told before."""
        return self.grammatical and not self.faults


@cache
def patterns() -> Mapping[tuple[str, ...], tuple[Pattern, ...]]:
    """All patterns by their rows of classes: some 2,000 of them.

    Cost: 20 ms, once.
    """
    found = dict[tuple[str, ...], tuple[Pattern, ...]]()
    for act in acts().values():
        for wording in act.wordings:
            ways = [range(len(slot.alternatives)) for slot in wording.slots]
            for chosen in product(*ways):
                row, spots = list[str](), list[tuple[Slot, int, int]]()
                numbers = iter(chosen)
                for part in wording.parts:
                    if isinstance(part, Slot):
                        spots.append((part, next(numbers), len(row)))
                        row += part.alternatives[spots[-1][1]]
                    else:
                        row += classes(part)[1]
                found[tuple(row)] = (*found.get(tuple(row), ()),
                                     Pattern(act, wording, tuple(spots)))
    return found


def split_sentences(text: str) -> list[str]:
    """A text cut where a sentence ends; words after a quote belong to it.

    >>> split_sentences('"No!" cried Mia. It rained.')
    ['"No!" cried Mia.', 'It rained.']
    """
    return [sentence for sentence in _BORDER.split(text.strip()) if sentence]


def read_sentence(sentence: str) -> list[Reading]:
    """All ways to understand a sentence: one, or none if it is not of the world."""
    words, row = classes(sentence)
    readings = (_reading(pattern, words) for pattern in patterns().get(tuple(row), ()))
    return [reading for reading in readings
            if reading is not None and _written(reading) == sentence]


def _reading(pattern: Pattern, words: list[str]) -> Reading | None:
    """The pattern with the words of a sentence put in; None if a word is not of the slot's kind."""
    said = list[Mention]()
    for slot, way, start in pattern.spots:
        row = slot.alternatives[way]
        word = words[start + len(row) - 1]
        look = words[start + row.index("LOOK")] if "LOOK" in row else ""
        mention = Mention(slot, way, word, look)
        if mention.pronoun and word != "it" and word not in PRONOUNS[slot.form].values():
            return None
        if look and look not in (LARGE.looks if slot.kind == "thing" else LARGE.animal_looks):
            return None
        said.append(mention)
    return Reading(pattern.act, pattern.wording, tuple(said))


def _written(reading: Reading) -> str:
    """The sentence of a reading."""
    said = iter(reading.said)
    parts = (surface(next(said)) if isinstance(part, Slot) else part
             for part in reading.wording.parts)
    return opened("".join(parts))


def check_story(text: str) -> StoryCheck:
    """Read a story and replay it.

    A sentence that cannot be read changes nothing, so what follows may seem to contradict; such
    a story is not grammatical, and therefore not consistent, anyway.

    Cost: about 0.1 ms a sentence.

    >>> check_story("One sunny day, Mia went to the park. He felt very sad.").faults
    ((1, 'pronoun', 'he for Mia'),)
    """
    state, unread, faults = State(), list[str](), list[tuple[int, str, str]]()
    sentences = split_sentences(text)
    for number, sentence in enumerate(sentences):
        readings = read_sentence(sentence)
        if not readings:
            unread.append(sentence)
            continue
        found: list[Fault] = state.tell(readings[0].act, readings[0].wording, readings[0].said)
        faults += [(number, kind, what) for kind, what in found]
    return StoryCheck(len(sentences), tuple(unread), tuple(faults), state)
