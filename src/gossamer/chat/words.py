"""Words to spell: four thousand common English ones and pronounceable inventions. Layer 7.

`data/words.txt` lists words frequent in a hundred public-domain novels and in children's stories,
names and archaic forms removed, and everyday words that novels lack. Invented words come from a
syllable grammar (onset, vowel, coda); they teach the spelling of rare word pieces without end.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from random import Random

__all__ = ["common_words", "draw_word", "invent_word", "listed", "word_key"]

def listed(text: str) -> tuple[str, ...]:
    """The words of a text, as a table is written most readably."""
    return tuple(text.split())


_ONSETS = listed(
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sc sh sk sl sm sn sp "
    "st sw th tr tw wh qu str"
)
_VOWELS = listed("a e i o u a e i o u a e i o ai ea ee ie oa oo ou ow oi au y")
_CODAS = listed(
    "b d g k l m n p r s t x ck ct ft ld ll lt mp nd ng nk nt rd rk rm rn rt sh sk ss st th ch tch"
) + ("",) * 14
_ENDINGS = ("", "", "", "ing", "ed", "er", "ly", "ful", "ness", "tion", "able", "est", "ment", "y")
_INVENTED_SHARE = 0.35  # of all drawn words; more of them slows the common ones, fewer the rare


@cache
def common_words() -> tuple[str, ...]:
    """The committed list, lower case, three to twelve letters, sorted."""
    text = files("gossamer.chat").joinpath("data/words.txt").read_text(encoding="ascii")
    return tuple(text.split())


def invent_word(rng: Random) -> str:
    """A pronounceable word of one to three syllables and at most ten letters."""
    while True:
        syllables = 1 + int(rng.random() * 2.5)
        word = "".join(
            _ONSETS[int(rng.random() * len(_ONSETS))]
            + _VOWELS[int(rng.random() * len(_VOWELS))]
            + _CODAS[int(rng.random() * len(_CODAS))]
            for _ in range(syllables)
        )
        word += _ENDINGS[int(rng.random() * len(_ENDINGS))]
        if 3 <= len(word) <= 10:
            return word


def draw_word(rng: Random) -> str:
    """A common word, or with fixed probability an invented one."""
    if rng.random() < _INVENTED_SHARE:
        return invent_word(rng)
    words = common_words()
    return words[int(rng.random() * len(words))]


def word_key(word: str) -> str:
    """The key that the spelling tasks share: a held-out word is unseen in all of them."""
    return "word:" + word
