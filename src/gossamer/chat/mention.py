"""How a sentence of the story world names what it is about: slots, and words for them. Layer 7.

A wording such as `{a} gave {t} to {b.obj}.` has slots: a letter for the argument of the act and,
after a dot, a form. The same table of forms serves telling, where an alternative of a form is
chosen, and reading, where it is found by the classes of the words.

    {a}       Mia | she (whom the sentence before was about)         its subject, at most one
    {a.obj}   Mia | her                {a.name}  Mia                 {a.kind}  girl
    {a.he} {a.his} {a.him}             she, her, her: somebody whom this sentence has named
    {t}       the ball | the red ball | it      {t.new}  a ball | a red ball     {t.indef} a ball
    {x}       the dog                  {x.new}   a little dog        {t.noun} {x.noun}  ball, dog
    {p.to} {p.in}                      to the beach, on the beach
    {w} {f} {g} {k}                    a weather, a good and a bad feeling, a skill
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.chat.lexicon import GENDER, LARGE, PREPOSITION, with_article
from gossamer.chat.words import listed

__all__ = ["FORMS", "KIND_OF", "PRONOUNS", "Mention", "Slot", "classes", "opened", "split_slots",
           "surface"]

# Kind of what a letter stands for.
KIND_OF: Mapping[str, str] = (
    dict.fromkeys("abc", "person") | dict.fromkeys("pqr", "place")
    | {"t": "thing", "x": "animal", "w": "weather", "f": "glad", "g": "sad", "k": "skill"}
)

# (kind, form) -> its alternatives, each a row of word classes; capitals stand for a class.
FORMS: Mapping[tuple[str, str], tuple[tuple[str, ...], ...]] = {
    ("person", ""): (("NAME",), ("HE",)),
    ("person", "obj"): (("NAME",), ("HIM",)),
    ("person", "name"): (("NAME",),),
    ("person", "kind"): (("KIND",),),
    ("person", "he"): (("HE",),),
    ("person", "his"): (("HIM",),),
    ("person", "him"): (("HIM",),),
    ("thing", ""): (("the", "THING"), ("the", "LOOK", "THING"), ("it",)),
    ("thing", "new"): (("A", "THING"), ("A", "LOOK", "THING")),
    ("thing", "indef"): (("A", "THING"),),
    ("thing", "noun"): (("THING",),),
    ("animal", ""): (("the", "ANIMAL"),),
    ("animal", "new"): (("A", "LOOK", "ANIMAL"),),
    ("animal", "noun"): (("ANIMAL",),),
    ("place", "to"): (("to", "the", "PLACE"),),
    ("place", "in"): (("PREP", "the", "PLACE"),),
    ("weather", ""): (("WEATHER",),),
    ("glad", ""): (("GLAD",),),
    ("sad", ""): (("SAD",),),
    ("skill", ""): (("SKILL",),),
}

# form -> the word for each gender; {a.him} in the sentence and {a.obj} across sentences alike.
PRONOUNS: Mapping[str, Mapping[str, str]] = {
    "": {"he": "he", "she": "she"}, "he": {"he": "he", "she": "she"},
    "obj": {"he": "him", "she": "her"}, "him": {"he": "him", "she": "her"},
    "his": {"he": "his", "she": "her"}, "kind": {"he": "boy", "she": "girl"},
}

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "NAME": tuple(name.lower() for name in GENDER), "HE": ("he", "she"),
    "HIM": ("him", "his", "her"), "KIND": ("boy", "girl"), "A": ("a", "an"),
    "PREP": ("in", "on", "at"), "THING": LARGE.things, "ANIMAL": LARGE.animals,
    "PLACE": LARGE.places, "LOOK": tuple(sorted({*LARGE.looks, *LARGE.animal_looks})),
    "WEATHER": LARGE.weather, "GLAD": LARGE.glad, "SAD": LARGE.sad, "SKILL": LARGE.skills,
}
_CLASS_OF = {word: name for name, words in _CLASSES.items() for word in words}
_WORD = re.compile(r"[A-Za-z]+|'[a-z]+|[^\sA-Za-z]")
_SLOT = re.compile(r"\{(\w)(?:\.(\w+))?\}")
_LETTER = re.compile("[A-Za-z]")
_NOUNS = listed("NAME THING ANIMAL PLACE WEATHER GLAD SAD SKILL HE HIM KIND it")


@dataclass(frozen=True)
class Slot:
    """A place in a wording: the argument's letter and the form."""

    letter: str
    form: str

    @property
    def kind(self) -> str:
        """What the letter stands for."""
        return KIND_OF[self.letter]

    @property
    def alternatives(self) -> tuple[tuple[str, ...], ...]:
        """The ways to fill it, as classes of words."""
        return FORMS[self.kind, self.form]


@dataclass(frozen=True)
class Mention:
    """A slot as it was filled.

    Args:
        slot: which.
        way: which of its alternatives.
        word: the noun, name or pronoun in lower case, names as they are written.
        look: the adjective, if one is said.
    """

    slot: Slot
    way: int
    word: str
    look: str = ""

    @property
    def pronoun(self) -> bool:
        """Whether it points back instead of naming."""
        return self.slot.alternatives[self.way][-1] in ("HE", "HIM", "KIND", "it")


def split_slots(wording: str) -> list[str | Slot]:
    """The literal text and the slots of a wording, in turn.

    >>> split_slots("{a} went {q.to}.")
    [Slot(letter='a', form=''), ' went ', Slot(letter='q', form='to'), '.']
    """
    parts, end = list[str | Slot](), 0
    for found in _SLOT.finditer(wording):
        parts += [wording[end : found.start()], Slot(found[1], found[2] or "")]
        end = found.end()
    return [part for part in (*parts, wording[end:]) if part]


def surface(mention: Mention) -> str:
    """The words of a mention.

    >>> surface(Mention(Slot("t", "new"), 1, "apple", "red"))
    'a red apple'
    """
    kind, form, word = mention.slot.kind, mention.slot.form, mention.word
    noun = f"{mention.look} {word}" if mention.look else word
    if kind == "place":
        return f"to the {word}" if form == "to" else f"{PREPOSITION[word]} the {word}"
    if form in ("new", "indef"):
        return with_article(noun)
    if kind in ("thing", "animal") and form == "" and word != "it":
        return f"the {noun}"
    return noun


def opened(sentence: str) -> str:
    """A sentence with its first letter in upper case, whether or not a quote comes before it.

    >>> opened('"no," said Mia.')
    '"No," said Mia.'
    """
    found = _LETTER.search(sentence)
    at = found.start() if found else 0
    return sentence[:at] + sentence[at : at + 1].upper() + sentence[at + 1 :]


def classes(text: str) -> tuple[list[str], list[str]]:
    """The words of a text in lower case (names as written), and the class of each or itself."""
    words = _WORD.findall(text)
    found = [_CLASS_OF.get(word.lower(), word.lower()) for word in words]
    words = [word.capitalize() if name == "NAME" else word.lower()
             for word, name in zip(words, found, strict=True)]
    return words, found
