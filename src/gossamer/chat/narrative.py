"""Tales told by program, each with the bits that its choices were worth. Layer 7.

A plot is a list of beats, a beat an act of the world or one of several. Telling chooses a wording
of each act, a value for each argument when the words first show it, and between a name and a
pronoun where both would be understood. Every choice is even, so a tale's probability is the product
of 1 / (number of ways). It is exact: each choice can be read off the text (`parser.py` does, and a
test holds both together), so no two draws give one text and nothing has to be summed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

from gossamer.chat.lexicon import GENDER, LARGE, Lexicon
from gossamer.chat.mention import PRONOUNS, Mention, Slot, opened, surface
from gossamer.chat.task import pick
from gossamer.chat.world import Act, State, acts, sections

__all__ = ["Beat", "Moment", "Tale", "Teller", "draw_tale", "numbered_tale",
           "plots"]

Step = tuple[str, str]  # an act's name and the plot's letters for its arguments
Beat = tuple[tuple[Step, ...], ...]  # alternatives, each a row of acts
Item = TypeVar("Item")


@dataclass(frozen=True)
class Moment:
    """What holds after a sentence.

    Args:
        sentence: as told.
        act: what happened in it.
        place: where people and animals are, and things that nobody has.
        holder: who has each thing.
    """

    sentence: str
    act: str
    place: Mapping[str, str]
    holder: Mapping[str, str]


@dataclass(frozen=True)
class Tale:
    """A told story.

    Args:
        text: all of it.
        bits: -log2 of its probability.
        plot: its name.
        trace: the world after each sentence.
    """

    text: str
    bits: float
    plot: str
    trace: tuple[Moment, ...]

    @property
    def thing(self) -> str:
        """A thing that it is about; "" if there is none."""
        held = {thing for moment in self.trace for thing in moment.holder}
        return min(held, default="")


@cache
def plots() -> Mapping[str, tuple[Beat, ...]]:
    """The beats of each plot, by its name."""
    return {name: tuple(_beat(line) for line in lines) for name, lines in sections("plots")}


def _beat(line: str) -> Beat:
    return tuple(tuple(_step(step) for step in way.split(",")) for way in line.split("|"))


def _step(text: str) -> Step:
    name, *letters = text.split()
    return name, "".join(letters)


def draw_tale(rng: Random, lexicon: Lexicon = LARGE) -> Tale:
    """A tale of six to ten sentences.

    Args:
        rng: a tale is a function of its state.
        lexicon: the words that it may use.

    Cost: about 0.2 ms.

    >>> draw_tale(Random(1)).text.count(".") > 3
    True
    """
    return Teller(rng, lexicon).whole()


def numbered_tale(number: int, lexicon: Lexicon = LARGE) -> Tale:
    """The tale of this number: always the same, so what was read can be told again and compared."""
    return draw_tale(Random(f"tale:{number}"), lexicon)


class Teller:
    """Draws words, counts bits, keeps the state."""

    def __init__(self, rng: Random, lexicon: Lexicon) -> None:
        self.rng, self.lexicon = rng, lexicon
        self.bits = 0.0
        self.state = State()
        self.trace: list[Moment] = []
        self._values: dict[str, str] = {}  # of the plot's letters

    def pick(self, items: Sequence[Item]) -> Item:
        """An even choice, and what it is worth."""
        self.bits += math.log2(len(items))
        return pick(self.rng, items)

    def whole(self) -> Tale:
        """A plot from its beginning to its end."""
        name = self.pick(list(plots()))
        for beat in plots()[name]:
            for step in self.pick(beat):
                self.tell(*step)
        text = " ".join(moment.sentence for moment in self.trace)
        return Tale(text, self.bits, name, tuple(self.trace))

    def tell(self, name: str, letters: str) -> None:
        """One sentence."""
        act = acts()[name]
        wording = self.pick(act.wordings)
        plot_letter = dict(zip(act.letters, letters, strict=False))
        said = list[Mention]()
        sentence = ""
        for part in wording.parts:
            if isinstance(part, Slot):
                said.append(self._mention(act, part, plot_letter.get(part.letter, part.letter)))
                part = surface(said[-1])
            sentence += part
        self.state.tell(act, wording, said)
        self.trace.append(Moment(opened(sentence), name, dict(self.state.place),
                                 dict(self.state.holder)))

    def _mention(self, act: Act, slot: Slot, letter: str) -> Mention:
        """Words for one slot."""
        if letter not in self._values:
            self._values[letter] = self.pick(self._candidates(slot.kind))
        value = self._values[letter]
        if slot.kind == "person":
            if slot.form in ("he", "his", "him", "kind"):
                return Mention(slot, 0, PRONOUNS[slot.form][GENDER[value]])
            if slot.form != "name" and value == self.state.topic and self.pick((False, True)):
                return Mention(slot, 1, PRONOUNS[slot.form][GENDER[value]])
        elif slot.kind == "thing" and slot.form == "new":
            look = self.pick(self.lexicon.looks) if self.pick((False, True)) else ""
            return Mention(slot, int(bool(look)), value, look)
        elif slot.kind == "thing" and slot.form == "":
            look = self.state.look.get(value, "")
            way = self.pick([0, *[1] * bool(look), *[2] * (value == self.state.focus)])
            return Mention(slot, way, "it" if way == 2 else value, look if way == 1 else "")
        elif slot.kind == "animal" and slot.form == "new":
            return Mention(slot, 0, value, self.pick(self.lexicon.animal_looks))
        return Mention(slot, 0, value)

    def _candidates(self, kind: str) -> list[str]:
        """Words for someone or something new. The people of a tale are a girl and a boy, so that
        he and she say which of them is meant."""
        words = {"person": self.lexicon.names, "thing": self.lexicon.things,
                 "animal": self.lexicon.animals, "place": self.lexicon.places,
                 "weather": self.lexicon.weather, "glad": self.lexicon.glad,
                 "sad": self.lexicon.sad, "skill": self.lexicon.skills}[kind]
        there = {GENDER[value] for value in self._values.values() if value in GENDER}
        return [word for word in words
                if word not in self._values.values() and GENDER.get(word) not in there]
