"""The words of the story world: who and what there is in it. Layer 7.

A word belongs to one class only, and no sentence of the world uses one of these words for anything
else; that is what makes a told sentence readable again without doubt (`parser.py`). The small
lexicon is the one of short runs: few enough words that each is one token of a small vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.chat.words import listed

__all__ = ["ANIMALS", "BOYS", "GENDER", "GIRLS", "LARGE", "NAMES", "PLACES", "PREPOSITION",
           "SHORT_PLACES", "SHORT_THINGS", "SMALL", "THINGS", "Lexicon", "with_article"]

GIRLS = listed("Anna Clara Ella Grace Ida Kim Mia Nora Rosa Uma Vera Zoe")
BOYS = listed("Ben Dan Finn Hugo Jack Leo Max Oscar Paul Quinn Sam Tom")
NAMES = tuple(sorted(GIRLS + BOYS))
GENDER = {**dict.fromkeys(GIRLS, "she"), **dict.fromkeys(BOYS, "he")}

SHORT_PLACES = listed(
    "kitchen garden park school library barn attic forest field market hall office shop cellar "
    "bedroom cave"
)
PLACES = SHORT_PLACES + listed(
    "beach meadow bridge harbor museum station playground bakery village valley orchard castle "
    "farm hill"
)
PREPOSITION = dict.fromkeys(PLACES, "in") | {
    "school": "at", "market": "at", "station": "at", "farm": "at",
    "beach": "on", "bridge": "on", "hill": "on",
}

SHORT_THINGS = listed(
    "ball cup book hat key lamp apple kite coin box drum shell pen map doll bell rope stone "
    "basket flower"
)
THINGS = SHORT_THINGS + listed(
    "spoon bowl plate mug blanket pillow scarf glove ring necklace button ribbon mirror comb brush "
    "umbrella lantern candle flute guitar trumpet puzzle robot truck wagon sled bucket shovel jar "
    "bottle wallet stamp feather pebble acorn marble balloon telescope compass clock ladder hammer "
    "scooter teapot pencil notebook crayon sweater cap coat cookie muffin pumpkin carrot lemon "
    "peach pear boat statue crown"
)
ANIMALS = listed(
    "dog cat puppy kitten rabbit duck horse pony goat sheep hen owl fox bird mouse hedgehog turtle "
    "squirrel frog lamb"
)
_LOOKS = listed("red blue green yellow white brown shiny little old big pretty tiny")
_ANIMAL_LOOKS = listed("white brown little old big tiny")
_WEATHER = listed("sunny windy cold warm bright fine cloudy hot cool quiet")
_GLAD = listed("happy glad proud excited thankful cheerful pleased merry")
_SAD = listed("sad upset worried lonely unhappy gloomy nervous afraid")
_SKILLS = listed("swim dance sing skate juggle knit paint ski whistle climb")


@dataclass(frozen=True)
class Lexicon:
    """What a story may be made of.

    Args:
        names, things, places, animals: nouns.
        looks, animal_looks: adjectives of things and of animals.
        weather: of a day, all of it dry: a plot may have rain come later.
        glad, sad: feelings.
        skills: verbs.
        tales: how many there are to read; with numbers from here on one measures.
    """

    names: tuple[str, ...] = NAMES
    things: tuple[str, ...] = THINGS
    places: tuple[str, ...] = PLACES
    animals: tuple[str, ...] = ANIMALS
    looks: tuple[str, ...] = _LOOKS
    animal_looks: tuple[str, ...] = _ANIMAL_LOOKS
    weather: tuple[str, ...] = _WEATHER
    glad: tuple[str, ...] = _GLAD
    sad: tuple[str, ...] = _SAD
    skills: tuple[str, ...] = _SKILLS
    tales: int = 1 << 15


LARGE = Lexicon()
SMALL = Lexicon(things=SHORT_THINGS, places=SHORT_PLACES, animals=ANIMALS[:6],
                looks=_LOOKS[:9], animal_looks=_ANIMAL_LOOKS[:4], weather=_WEATHER[:5],
                glad=_GLAD[:5], sad=_SAD[:5], skills=_SKILLS[:5], tales=1 << 13)


def with_article(words: str) -> str:
    """A noun, perhaps with its adjective, after "a" or "an".

    >>> with_article("old ball"), with_article("red umbrella")
    ('an old ball', 'a red umbrella')
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
