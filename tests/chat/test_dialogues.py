"""Conversations made by program: they alternate, are true, fit the context, and look back."""

from __future__ import annotations

import re
from random import Random

import pytest

from gossamer.chat.curriculum import tokenizer_corpus
from gossamer.chat.dialogues import FACTS, draw_dialogue
from gossamer.chat.message import Message, words_of
from gossamer.chat.parser import check_story
from gossamer.chat.task import ARROW, final_part, is_held_out
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.track import HOUR, SHORT

OURS = {"name": "Spider", "training": "77 minutes", "parameters": "1,234,567", "layers": "13"}


def conversations(count: int = 1500) -> list[list[Message]]:
    rng = Random(4)
    return [draw_dialogue(rng, OURS) for _ in range(count)]


def test_turns_alternate_and_say_something() -> None:
    lengths = set()
    for talk in conversations():
        assert [turn["role"] for turn in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert all(words_of(turn["content"]).strip() for turn in talk)
        assert "{" not in str([turn["content"] for turn in talk])
        lengths.add(len(talk) // 2)
    assert {1, 2, 3, 4} <= lengths


def test_it_knows_itself_by_the_runs_own_figures() -> None:
    said = " ".join(words_of(turn["content"]) for talk in conversations() for turn in talk)
    assert all(value in said for value in OURS.values())
    assert not any(value in said for value in (FACTS["parameters"], FACTS["training"]))
    rng = Random(1)  # nothing known: still whole sentences
    assert all(draw_dialogue(rng, {}) for _ in range(200))


def test_follow_ups_are_true_and_not_held_out() -> None:
    """Numbers are followed from reply to reply, apart from the code that made them."""
    seen = dict.fromkeys(("twice", "more", "less", "guess", "doubt"), 0)
    for talk in conversations(6000):
        result = None
        for asked, said in zip(talk[::2], talk[1::2], strict=True):
            question, reply = words_of(asked["content"]), words_of(said["content"])
            kind, operands = ("", ()) if result is None else _follow(question, result)
            if kind:
                seen[kind] += 1
                name = "subtract" if kind == "less" else "add"
                truth = operands[0] + sum(operands[1:]) * (-1 if kind == "less" else 1)
                assert int(re.findall(r"\d+", reply)[-1]) == truth, (result, question, reply)
                assert len(operands) == 1 or not is_held_out(TASKS[name].key(operands))
                result = truth
            elif ARROW in reply and final_part(reply).isdigit() and "+" in reply:
                result = int(final_part(reply))
    assert all(count > 15 for count in seen.values()), seen


def _follow(question: str, result: int) -> tuple[str, tuple[int, ...]]:
    """The kind of a follow-up on a number ("" for none), and what is added or taken."""
    numbers = [int(found) for found in re.findall(r"\d+", question)]
    q = question.lower()
    if re.search("twice|double|two times", q) and not numbers:
        return "twice", (result, result)
    if re.match("are you sure|is that right|really|check it", q) and not numbers:
        return "doubt", (result,)
    if len(numbers) == 1:
        if re.match(r"add \d+ to it|(and )?plus|what if you add|and \d+ more", q):
            return "more", (result, *numbers)
        if re.match(r"(and )?(take away|minus)|and \d+ less", q):
            return "less", (result, *numbers)
        if re.match(r"is it \d|i think it is|it is \d", q):
            return "guess", (result,)
    return "", ()


def test_words_are_spelled_backwards_and_counted() -> None:
    turned = counted = 0
    for talk in conversations(4000):
        word = ""
        for asked, said in zip(talk[::2], talk[1::2], strict=True):
            question, reply = words_of(asked["content"]).lower(), words_of(said["content"])
            if re.fullmatch(r"\w(-\w)+", reply):
                word = reply.replace("-", "")
            elif word and question.rstrip(".?") in ("spell it backwards", "and backwards",
                                                    "now backwards", "and the other way round"):
                assert final_part(reply).replace("-", "") == word[::-1]
                turned += 1
            elif word and (asked_for := re.search(
                    r"how many (\w)( are in it| does it have)?\?$|count the (\w) in it", question)):
                facts = (word, asked_for[1] or asked_for[3])
                assert TASKS["count_letters"].verify(facts, reply), talk
                counted += 1
    assert turned > 100 and counted > 50


def test_names_are_remembered() -> None:
    remembered = 0
    for talk in conversations():
        for said in talk[1::2]:
            if found := re.fullmatch(r"Your name is (\w+)\.", words_of(said["content"])):
                assert any(f"Hello, {found[1]}!" in words_of(t["content"]) for t in talk)
                remembered += 1
    assert remembered > 50


def test_tales_are_told_and_asked_about() -> None:
    rng, asked = Random(2), 0
    for _ in range(600):
        talk = draw_dialogue(rng, {}, SHORT.lexicon, tale_share=1.0)
        at = next(i for i, turn in enumerate(talk) if "stor" in words_of(turn["content"]).lower())
        tale = words_of(talk[at + 1]["content"])
        check = check_story(tale)
        assert check.consistent
        about = re.search(r"about (?:a|the) (\w+)", words_of(talk[at]["content"]))
        assert about is None or about[1] in tale
        for reply in (words_of(turn["content"]) for turn in talk[at + 3 :: 2]):
            if has := re.match(r"So (\w+) has the (\w+)\.", reply):
                assert check.state.holder[has[2]] == has[1] == final_part(reply)
                asked += 1
            elif where := re.match(r"So (\w+) is (?:in|on|at) the (\w+)\.", reply):
                assert check.state.place_of(where[1]) == where[2] == final_part(reply)
                asked += 1
    assert asked > 150


def test_no_held_out_word_is_spelled_in_passing() -> None:
    words = set()
    for talk in conversations(4000):
        for said in talk[1::2]:
            if found := re.match(r"(\w(?:-\w)+)(?: =>|$)", words_of(said["content"])):
                words.add(found[1].replace("-", ""))
    assert len(words) > 300
    assert not [word for word in words if is_held_out("word:" + word)]


@pytest.mark.parametrize("track", [SHORT, HOUR], ids=lambda track: track.name)
def test_only_the_assistants_words_count_and_all_fits(track) -> None:
    tokenizer = Tokenizer.train(
        tokenizer_corpus(track.tasks, track=track), 1024 if track is SHORT else 2048)
    rng = Random(6)
    for _ in range(300):
        talk = draw_dialogue(rng, OURS, track.lexicon, track.tale_share)
        ids, mask = tokenizer.render(talk)
        assert len(ids) <= 256
        supervised = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        given = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if not m])
        for said in talk[1::2]:
            assert words_of(said["content"]) + "<|assistant_end|>" in supervised
        for asked in talk[::2]:
            text = words_of(asked["content"])
            assert f"<|user_start|>{text}<|user_end|>" in given
