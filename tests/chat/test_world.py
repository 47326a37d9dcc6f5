"""The story world: what is told can be read again, is true, and has the stated probability."""

from __future__ import annotations

import math
import re
from itertools import product
from random import Random

import pytest

from gossamer.chat.lexicon import GENDER, LARGE, SMALL, Lexicon
from gossamer.chat.mention import FORMS, classes
from gossamer.chat.message import words_of
from gossamer.chat.narrative import Tale, Teller, draw_tale, plots
from gossamer.chat.parser import check_story, patterns, read_sentence, split_sentences
from gossamer.chat.stories import WORLD_STORIES, WorldStory
from gossamer.chat.task import final_part, sample
from gossamer.chat.tasks import TASKS
from gossamer.chat.track import track_for
from gossamer.chat.world import acts

TALES = [draw_tale(Random(i), lexicon) for lexicon in (LARGE, SMALL) for i in range(600)]
TINY = Lexicon(names=("Mia", "Tom"), things=("ball",), places=("park", "barn", "beach"),
               animals=("owl",), looks=("red",), animal_looks=("old",), weather=("sunny",),
               glad=("happy",), sad=("sad",), skills=("swim",))


def test_the_world_is_as_large_as_promised() -> None:
    assert (len(LARGE.names), len(LARGE.places), len(LARGE.things)) == (24, 30, 80)
    assert len(LARGE.animals) == 20 and len(LARGE.glad) + len(LARGE.sad) == 16
    assert len(plots()) == 12
    for name, beats in plots().items():
        assert 5 <= len(beats) <= 10, name  # with an opening and an ending
    used = {step[0] for beats in plots().values() for beat in beats for way in beat
            for step in way}
    assert used == set(acts()), used ^ set(acts())
    for act in acts().values():
        texts = [wording.text for wording in act.wordings]
        assert 8 <= len(texts) <= 20 and len(set(texts)) == len(texts), act.name
        for wording in act.wordings:
            assert all((slot.kind, slot.form) in FORMS for slot in wording.slots), wording.text
            assert {slot.letter for slot in wording.slots} <= set(act.letters), wording.text
            assert len([s for s in wording.slots if s.kind == "person" and not s.form]) <= 1


def test_no_sentence_can_be_read_in_two_ways() -> None:
    """No row of classes belongs to two wordings, and no literal word is one of the lexicon's."""
    for row, found in patterns().items():
        assert len(found) == 1, (row, [pattern.wording.text for pattern in found])
    names = {"NAME", "THING", "ANIMAL", "PLACE", "LOOK", "WEATHER", "GLAD", "SAD", "SKILL"}
    for act in acts().values():
        for wording in act.wordings:
            for part in wording.parts:
                if isinstance(part, str):
                    assert not names & set(classes(part)[1]), (wording.text, part)


def test_no_two_ways_through_the_plots_have_the_same_acts() -> None:
    """So a text tells its plot and every choice between alternatives."""
    seen = dict[tuple[object, ...], str]()
    for name, beats in plots().items():
        for ways in product(*beats):
            letters = dict[str, int]()
            row = tuple((act, tuple(letters.setdefault(i, len(letters)) for i in arguments))
                        for way in ways for act, arguments in way)
            assert seen.setdefault(row, name) == name
    assert len(seen) == sum(math.prod(map(len, beats)) for beats in plots().values())


def test_told_stories_are_read_and_hold() -> None:
    for tale in TALES:
        check = check_story(tale.text)
        assert check.consistent, (tale.text, check.unread, check.faults)
        assert check.state.place == tale.trace[-1].place
        assert check.state.holder == tale.trace[-1].holder
        assert split_sentences(tale.text) == [moment.sentence for moment in tale.trace]
        for moment in tale.trace:
            assert [r.act.name for r in read_sentence(moment.sentence)] == [moment.act]
    assert {tale.plot for tale in TALES} == set(plots())


def test_the_people_of_a_tale_are_a_girl_and_a_boy() -> None:
    for tale in TALES:
        people = {who for moment in tale.trace for who in moment.place if who in GENDER}
        assert len({GENDER[who] for who in people}) == len(people) <= 2, tale.text


def test_texts_are_english() -> None:
    vowel = re.compile("[aeiou]|hour")
    for tale in TALES:
        for article, after in re.findall(r"\b([Aa]n?) (\w+)", tale.text):
            assert bool(vowel.match(after)) == (article.lower() == "an"), (after, tale.text)
        assert tale.text[0].isupper() and tale.text[-1] in '.!?"' and "{" not in tale.text


class _Ask(Exception):
    """The script has ended; a choice of so many ways is due."""


class _Scripted(Teller):
    def __init__(self, script: tuple[int, ...]) -> None:
        super().__init__(Random(0), TINY)
        self.script = list(script)

    def pick(self, items):  # type: ignore[no-untyped-def]
        self.bits += math.log2(len(items))
        if len(items) == 1:
            return items[0]
        if not self.script:
            raise _Ask(len(items))
        return items[self.script.pop(0)]


def _derivations(text: str) -> list[Tale]:
    """Every draw that tells this text, by trying all ways that begin like it."""
    found, open_ways = list[Tale](), [()]
    while open_ways:
        script = open_ways.pop()
        teller = _Scripted(script)
        try:
            tale = teller.whole()
            found += [tale] * (tale.text == text)
        except _Ask as ask:
            if text.startswith(" ".join(moment.sentence for moment in teller.trace)):
                open_ways += [(*script, i) for i in range(ask.args[0])]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_one_draw_for_a_text_so_its_bits_are_exact(seed: int) -> None:
    tale = draw_tale(Random(seed), TINY)
    draws = _derivations(tale.text)
    assert len(draws) == 1
    assert draws[0].bits == pytest.approx(tale.bits)


def test_a_corrupted_owner_is_caught() -> None:
    """Whoever gives what somebody else has is caught, by name and by pronoun."""
    tried = 0
    for tale in TALES:
        for number, moment in enumerate(tale.trace):
            people = [who for who in moment.place if who in GENDER]
            said = read_sentence(moment.sentence)[0].said
            names = [m.word for m in said if m.slot.kind == "person" and m.word in GENDER]
            if moment.act in ("give", "back", "carry", "mistake") and len(names) == 2:
                swapped = moment.sentence
                for a, b in ((people[0], "@"), (people[1], people[0]), ("@", people[1])):
                    swapped = swapped.replace(a, b)
                kinds = _faults(tale, number, swapped)
                assert kinds & {"owner", "pronoun"}, (tale.text, swapped)
                tried += 1
    assert tried > 200


def _faults(tale: Tale, number: int, sentence: str) -> set[str]:
    """Kinds of contradiction in a sentence put in the place of another."""
    told = [moment.sentence for moment in tale.trace]
    told[number] = sentence
    check = check_story(" ".join(told))
    assert check.grammatical
    return {kind for _, kind, _ in check.faults}


MET = "One sunny day, Mia went to the park. Then Mia met a boy named Tom."


@pytest.mark.parametrize(("story", "kind"), [
    ("One sunny day, Mia went to the park. He felt very sad.", "pronoun"),
    ("One sunny day, Mia went to the park. Mia took the ball.", "known"),
    ("One sunny day, Mia went to the park. Mia went to the park.", "place"),
    ("One sunny day, Mia went to the park. Mia saw a ball in the barn.", "place"),
    (f"{MET} Then Tom went to the barn. "
     "They sat down and rested.", "place"),
    ("One sunny day, Mia went to the park. Mia had a red ball. The blue ball fell down and broke.",
     "look"),
    (f"{MET} Mia had a ball. Tom lost the ball.",
     "owner"),
    (f"{MET} Tom taught Mia to swim.", "skill"),
    ("One sunny day, Mia went to the park. They sat down and rested.", "known"),
    (f"{MET} Then Tom met a girl named Mia.", "known"),
    ("One sunny day, Mia went to the park. A girl called Tom came along.", "pronoun"),
    ("One sunny day, Mia went to the park. Mia had a ball in his bag.", "pronoun"),
])
def test_contradictions_are_found_and_named(story: str, kind: str) -> None:
    check = check_story(story)
    assert check.grammatical, check.unread
    assert kind in {found for _, found, _ in check.faults}


@pytest.mark.parametrize("sentence", [
    "One sunny day, Mia went on the park.", "Mia had an red ball.", "mia lost it.",
    "Mia has lost it.", "Mia lost it", "Mia lost  it.", "Mia lost him.", "The ball lost Mia.",
    "Mia had a sunny ball.", "Suddenly Mia saw a shiny owl.", "", "42", "Mia lost \"it.",
])
def test_what_is_not_of_the_world_is_not_read(sentence: str) -> None:
    assert read_sentence(sentence) == []
    assert not check_story(sentence).grammatical


def test_a_mutated_word_is_ungrammatical() -> None:
    """A word of no lexicon always; a word left out or said twice nearly always ("the red ball"
    without "red" is a sentence too)."""
    rng, missed = Random(5), 0
    for tale in TALES:
        words = tale.text.split(" ")
        spot = rng.randrange(len(words))
        before, word, after = words[:spot], words[spot], words[spot + 1:]
        assert not check_story(" ".join([*before, "quux", *after])).grammatical
        assert not check_story(" ".join([*before, word, word, *after])).grammatical
        missed += check_story(" ".join([*before, *after])).consistent
    assert missed < 0.08 * len(TALES)


def test_tales_differ_and_cost_what_is_stated() -> None:
    texts = {tale.text for tale in TALES}
    assert len(texts) > len(TALES) - 5
    mean = sum(tale.bits for tale in TALES[:600]) / 600
    assert 55 < mean < 75  # 65 bits in 311 bytes


def test_questions_about_tales_have_the_answer_of_the_text() -> None:
    """The reply was made from the trace; it is judged, and its place looked up, by reading."""
    rng, kinds = Random(9), set[tuple[str, bool]]()
    questions = [sample(WORLD_STORIES, rng) for _ in range(1200)]
    for q, other in zip(questions, questions[1:], strict=False):
        assert WORLD_STORIES.verify(q.facts, words_of(q.answer)), q
        assert not WORLD_STORIES.verify(q.facts, "somewhere")
        if final_part(words_of(other.answer)) != final_part(words_of(q.answer)):
            assert not WORLD_STORIES.verify(q.facts, words_of(other.answer))
        if isinstance(q.facts, WorldStory):
            assert q.facts.text in q.text and check_story(q.facts.text).consistent
            kinds.add((q.facts.kind, bool(q.facts.holder)))
    assert kinds == {("person", False), ("holder", True), ("thing", True), ("thing", False)}
    sides = [{WORLD_STORIES.key(sample(WORLD_STORIES, rng, held_out=side).facts)
              for _ in range(300)} for side in (False, True)]
    assert not sides[0] & sides[1]


def test_the_track_follows_from_the_depth() -> None:
    assert track_for(4).tasks["story"] is TASKS["story"]
    assert track_for(6).tasks["story"] is WORLD_STORIES
    assert list(track_for(6).tasks) == list(TASKS)
