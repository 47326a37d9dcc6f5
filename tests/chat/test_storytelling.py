"""Figures on told stories: right ones pass, corrupted ones are caught, copies are no news."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest

import gossamer as gs
from gossamer.chat.curriculum import tokenizer_corpus
from gossamer.chat.engine import Engine
from gossamer.chat.evaluate import Failure
from gossamer.chat.lexicon import GENDER, SMALL
from gossamer.chat.narrative import numbered_tale
from gossamer.chat.storytelling import (
    RUN,
    Flaw,
    excess_bits,
    measure_stories,
    story_record,
    story_runs,
    tell_stories,
    training_runs,
)
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.track import SHORT
from gossamer.models.gpt import GPT, GPTConfig

TRAINED = training_runs(SMALL, 300)
FRESH = [numbered_tale(SMALL.tales + number, SMALL).text for number in range(200)]


def figures(texts: list[str]) -> dict[str, float]:
    return {figure.name: figure.value for figure in measure_stories(texts, TRAINED).figures}


def test_fresh_tales_are_all_that_is_asked_for() -> None:
    record = measure_stories(FRESH, TRAINED)
    assert record.stories == 200 and {flaw.kind[:6] for flaw in record.flaws} <= {"copied"}
    assert {f.name for f in record.figures} == {"grammatical", "consistent", "novel",
                                                "sentences read"}
    for figure in record.figures:
        assert figure.value >= (0.98 if figure.name == "novel" else 1.0)
        assert 0.004 < figure.error < 0.02  # 200 of 200 prove nothing: the chance of one more


def test_swapped_people_are_inconsistent_but_grammatical() -> None:
    """From the third sentence on another person acts."""
    rng, swapped = Random(1), []
    for text in FRESH:
        told = text.split(". ")
        for number in range(2, len(told)):
            for name in GENDER:
                told[number] = told[number].replace(name, rng.choice(sorted(GENDER)))
        swapped.append(". ".join(told))
    record = figures(swapped)
    assert record["grammatical"] == 1.0 and record["consistent"] < 0.1


def test_a_wrong_word_is_ungrammatical_and_the_share_of_sentences_says_how_much() -> None:
    half = [text.replace(" the ", " teh ", 1) if number % 2 else text
            for number, text in enumerate(FRESH) if " the " in text]
    record = measure_stories(half, TRAINED)
    values = {figure.name: figure for figure in record.figures}
    share = values["grammatical"].value
    assert share == pytest.approx(0.5, abs=0.05) and values["consistent"].value == share
    error = math.sqrt(share * (1 - share) / len(half))
    assert values["grammatical"].error == pytest.approx(error, rel=0.02)
    assert 0.9 < values["sentences read"].value < 1.0 and values["sentences read"].error > 0.0
    [flaw] = [flaw for flaw in record.flaws if flaw.kind == "unknown word"]
    assert flaw.stories == len(half) // 2 and "(teh)" in flaw.example


def test_copies_and_repetitions_are_not_novel() -> None:
    trained = [numbered_tale(number, SMALL).text for number in range(100)]
    assert figures(trained)["novel"] == 0.0
    assert figures([FRESH[0]] * 4)["novel"] == 0.25
    long = next(text for text in trained if len(text.split()) > 2 * RUN)
    spliced = FRESH[1] + " " + " ".join(long.split()[: RUN + 2])
    assert figures([spliced])["novel"] == 0.0
    assert figures([FRESH[1] + " " + " ".join(long.split()[:8])])["novel"] == 1.0


@pytest.mark.parametrize(("text", "kind", "example"), [
    ("One sunny day, Mia went to the park. He felt very sad.", "contradiction (pronoun)",
     "He felt very sad. (he for Mia)"),
    ("One sunny day, Mia went to the park. She felt very sa", "broken off", "She felt very sa"),
    ("One sunny day, Mia went to teh park.", "unknown word",
     "One sunny day, Mia went to teh park. (teh)"),
    ("One sunny day, mia went to the park.", "a known sentence, written in another way",
     "One sunny day, mia went to the park."),
    ("One sunny day, went Mia to the park.", "known words, but no known sentence",
     "One sunny day, went Mia to the park."),
    ("Mia held" + " on" * 200, "broken off", ("Mia held" + " on" * 60)[:160] + "…"),
    ("  ", "nothing told", ""),
])
def test_what_is_wrong_is_named_with_an_example(text: str, kind: str, example: str) -> None:
    assert measure_stories([text], TRAINED).flaws == (Flaw(kind, 1, example),)


def test_the_commonest_flaw_comes_first_and_a_story_counts_once() -> None:
    wrong = "Teh end. Teh very end."
    record = measure_stories([FRESH[0], wrong, FRESH[0], wrong + " Teh.", FRESH[0], FRESH[0]],
                             TRAINED)
    assert record.flaws == (Flaw("told twice", 3, FRESH[0].split(". ")[0] + "."),
                            Flaw("unknown word", 2, "Teh end. (teh)"))
    assert record.failures[1] == Failure("unknown word, in 2 of 6 stories", "", "Teh end. (teh)")
    long = numbered_tale(5, SMALL).text
    [copied] = measure_stories([long], TRAINED).flaws
    assert copied.kind == "copied (24 words in a row)"
    assert long.replace(",", "").replace(".", "").startswith(copied.example[:20])


def test_no_story_is_no_good_story() -> None:
    assert set(figures(["", "   ", "?"]).values()) <= {0.0, 1 / 3}  # "?" was not told before
    nothing = measure_stories(FRESH[:3], np.zeros(0, np.uint64))
    assert nothing.figures[2].value == 1.0
    assert figures(["", ""])["novel"] == 0.0 and figures([])["grammatical"] == 0.0


def test_runs_are_hashes_of_words_in_their_order() -> None:
    words = [f"w{number}" for number in range(RUN + 3)]
    runs = story_runs(" ".join(words))
    assert runs.dtype == np.uint64 and len(set(runs.tolist())) == 4
    assert story_runs(" ".join(words[1:]))[0] == runs[1]
    assert story_runs(" ".join([*words[:2][::-1], *words[2:]]))[0] != runs[0]
    assert len(story_runs("three short words")) == 1 and len(story_runs("")) == 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(tokenizer_corpus(SHORT.tasks)[-3000:], 400)


def test_an_untrained_model_is_far_above_the_source(tokenizer: Tokenizer) -> None:
    gs.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=16,
                          sequence_len=64))
    model.eval()
    bits, excess = excess_bits(model, tokenizer, SMALL, groups=2)
    source = bits.value - excess.value
    assert 0.15 < source < 0.3 and excess.value > 1.0  # uniform tokens: some 3 bits a byte
    tales = [numbered_tale(SMALL.tales + n, SMALL) for n in range(100)]
    assert source == pytest.approx(
        sum(t.bits for t in tales) / sum(len(t.text) for t in tales), rel=0.02)
    engine = Engine(model, rows=4)
    told = tell_stories(engine, tokenizer, 6, seed=3)
    assert len(set(told)) > 1 and told == tell_stories(engine, tokenizer, 6, seed=3)
    few = replace(SMALL, tales=200)
    record = story_record(engine, tokenizer, few, 4)
    values = {f.name: f.value for f in record.figures}
    assert record.stories == 4 and record.flaws
    assert values["grammatical"] == 0.0 and values["excess bits per byte"] > 1.0
