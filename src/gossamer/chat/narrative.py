"""Short tales told by program: what the model reads first, and tells when asked. Layer 7.

A tale is a plot of a few beats (someone finds, loses, shares or mends a thing) told with one of
several wordings a beat. Names, places and things are those of the story questions, so that reading
prepares answering.
"""

from __future__ import annotations

from random import Random

from gossamer.chat.stories import NAMES, PLACES, THINGS

__all__ = ["draw_tale"]

_FEELINGS = ("happy", "glad", "proud", "excited", "thankful", "cheerful")
_COLOURS = ("red", "blue", "green", "yellow", "white", "brown", "shiny", "little", "old", "big")
_WEATHER = ("sunny", "rainy", "windy", "cold", "warm", "quiet", "bright")

_OPENINGS = (
    "One {weather} day, {a} went to the {p}.",
    "It was a {weather} morning. {a} walked to the {p}.",
    "Once upon a time, {a} lived near the {p}. One {weather} day, {a} went there.",
    "On a {weather} day, {a} was in the {p}.",
)
_ENDINGS = (
    "{a} and {b} were {feeling}.",
    "They were best friends from that day on.",
    "{a} was very {feeling}.",
    "\"Thank you,\" said {b}. {a} smiled.",
    "At the end of the day, they went home, {feeling} and tired.",
)
_PLOTS = (
    (  # lost and found
        ("{a} had lost the {colour} {t}.", "The {colour} {t} was gone, and {a} was sad."),
        ("{b} came and asked, \"What is wrong?\"", "{b} saw that {a} was sad."),
        ("\"I lost my {t},\" said {a}.", "{a} told {b} about the {t}."),
        ("They looked in the {p} and in the {q}.", "{b} looked in the {q} with {a}."),
        ("There it was! {b} picked up the {t} and gave it to {a}.",
         "In the {q}, {b} found the {t} and handed it to {a}."),
    ),
    (  # sharing
        ("{a} had a {colour} {t}.", "{a} took the {colour} {t} along."),
        ("{b} had no {t}.", "{b} wanted to play too."),
        ("\"You can have my {t},\" said {a}.", "{a} gave the {t} to {b}."),
        ("They played with the {t} in the {p}.", "They took turns with the {t}."),
    ),
    (  # broken and mended
        ("{a} saw a {colour} {t} and took it.", "{a} picked up the {colour} {t}."),
        ("The {t} fell and broke.", "But then the {t} broke."),
        ("\"I am sorry,\" said {a} to {b}.", "{a} told {b} the truth."),
        ("{b} was not angry. They went to the {q} and mended the {t}.",
         "\"We can mend it,\" said {b}, and they did."),
    ),
    (  # a new friend
        ("In the {p}, {a} met {b}.", "{b} was in the {p}, all alone."),
        ("\"Do you want to play?\" asked {a}.", "{a} asked {b} to come along."),
        ("{b} showed {a} a {colour} {t}.", "{b} had a {colour} {t}, and they played with it."),
        ("Then they walked to the {q}.", "Later they ran to the {q}."),
    ),
    (  # a surprise
        ("{b} hid a {colour} {t} in the {q}.", "In the {q} there was a {colour} {t}."),
        ("\"Come with me to the {q},\" said {b}.", "{b} took {a} to the {q}."),
        ("{a} opened the door and saw the {t}.", "\"A {t}! Is it for me?\" asked {a}."),
        ("\"It is for you,\" said {b}.", "{b} gave the {t} to {a}."),
    ),
)


def draw_tale(rng: Random, thing: str = "") -> str:
    """A tale of five to seven sentences; about `thing` if one is named.

    >>> len(draw_tale(Random(1), "lamp").split(". ")) > 3
    True
    """
    a, b = rng.sample(NAMES, 2)
    p, q = rng.sample(PLACES, 2)
    values = {
        "a": a, "b": b, "p": p, "q": q,
        "t": thing or rng.choice(THINGS),
        "colour": rng.choice(_COLOURS),
        "weather": rng.choice(_WEATHER),
        "feeling": rng.choice(_FEELINGS),
    }
    beats = (_OPENINGS, *rng.choice(_PLOTS), _ENDINGS)
    text = " ".join(rng.choice(wordings).format_map(values) for wordings in beats)
    return text.replace(" a old ", " an old ")
