"""The tasks: right replies pass, wrong ones fail, and held-out questions stay out of training."""

from __future__ import annotations

import re
from datetime import date, timedelta
from random import Random
from string import Formatter

import pytest

from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.evaluate import question_set
from gossamer.chat.everyday import to_roman
from gossamer.chat.message import pieces_of, words_of
from gossamer.chat.stories import ShortStory
from gossamer.chat.task import (
    ARROW,
    HELD_OUT_PARTS,
    Question,
    final_part,
    is_held_out,
    make_question,
    sample,
)
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.words import common_words, draw_word, invent_word, listed

EACH = pytest.mark.parametrize("name", list(TASKS))

# Facts, a right reply in our format, a right reply in plain words, and wrong replies.
WORKED = {
    "spell": ("harbor", "h-a-r-b-o-r", "H, A, R, B, O, R", ["h-a-r-b-r-o", "harbo", ""]),
    "count_letters": (("strawberry", "r"), "count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3 => 3", "3",
                      ["s0 t0 r1 a1 w1 b1 e1 r2 r2 y2 => 2", "three", "33", ""]),
    "reverse_word": (("backwards", "stop"), "s-t-o-p => p-o-t-s", "pots",
                     ["s-t-o-p", "p-o-t", ""]),
    "add": ((98, 74), "8+4=12,9+7+1=17 => 172", "172", ["8+4=12,9+7=16 => 162", "17", "1720"]),
    "subtract": ((62, 38), "12-8=4,6-3-1=2 => 24", "24.", ["12-8=4,6-3=3 => 34", "-24", "2"]),
    "multiply": ((47, 6), "240+42 => 282", "282", ["240+42 => 292", "240+42", "28"]),
    "order": (("sort", (91, 482, 305, 77)), "77, 91, 305, 482", "77 91 305 482",
              ["77, 91, 482, 305", "77, 91, 305", "77, 77, 91, 305, 482"]),
    "weekday": (("day", "Monday", 16), "16=14+2 1 Tuesday 2 Wednesday => Wednesday", "wednesday",
                ["16=14+2 1 Tuesday 2 Wednesday => Tuesday", "16=14+2", "Monday"]),
    "date": (("after", 2024, 2, 27, 3), "24=4*6 27+3=30 of 29 => 2024-03-01", "2024-03-01",
             ["2024-02-30", "27+3=30 of 29", "27+3=30 of 29 => 2024-03-02"]),
    "everyday": (("clock", 645, 30), "45+30=75-60=15 => 11:15", "11:15", ["11:05", "10:75", "15"]),
    "story": (ShortStory((("go", "Mia", "garden"), ("take", "Tom", "cup"), ("go", "Tom", "barn"),
                          ("give", "Tom", "cup>Mia")), "thing", "cup"),
              "So Mia has the cup. Mia is in the garden. => garden", "the garden",
              ["Tom has the cup. Tom is in the barn. => barn", "Mia"]),
    "calculator": (("product", 4738, 291), " => 1378758", "1,378,758", ["1378757", "4738*291", ""]),
}

# One more for each other kind: task, facts, the reply's words.
KINDS = [
    ("reverse_word", ("first", "stop"), "s-t-o-p => s"),
    ("reverse_word", ("last", "stop"), "s-t-o-p => p"),
    ("order", ("largest", (91, 482, 305, 77)), "482"),
    ("order", ("smallest", (91, 482, 305, 77)), "77"),
    ("order", ("compare", (91, 482)), "482"),
    ("weekday", ("day", "Thursday", 1), "1=0+1 1 Friday => Friday"),
    ("weekday", ("month", "January", -1), "1 December => December"),
    ("weekday", ("month", "January", -2), "1 December 2 November => November"),
    ("date", ("between", 2024, 2, 27, 3), "24=4*6 29-27=2+1 => 3"),
    ("date", ("between", 2024, 2, 2, 3), "5-2 => 3"),
    ("everyday", ("change", 137, 200), "137+3=140+60=200 => 63"),
    ("everyday", ("change", 40, 50), "40+10=50 => 10"),
    ("everyday", ("units", 7, 0), "7*100 => 700"),
    ("everyday", ("to_roman", 249, 0), "200 CC 40 XL 9 IX => CCXLIX"),
    ("everyday", ("from_roman", 109, 0), "C 100 IX 9 => 109"),
    ("everyday", ("clock", 23 * 60 + 55, 90), "55+90=145-60=85-60=25 => 1:25"),
    ("calculator", ("count", "red apple", "p"), " => 2"),
    ("calculator", ("quotient", 91, 13), " => 7"),
]


def test_the_twelve_tasks_are_there() -> None:
    assert set(TASKS) == set(WORKED) and len(TASKS) == 12
    assert all(name == task.name for name, task in TASKS.items())


@EACH
def test_verifier_judges_worked_examples(name: str) -> None:
    facts, reply, plain, wrong = WORKED[name]
    verify = TASKS[name].verify
    assert verify(facts, reply)
    assert verify(facts, plain)
    assert [w for w in wrong if verify(facts, w)] == []
    if name not in ("add", "subtract"):  # there the worked replies show shorter columns
        assert words_of(TASKS[name].answer(facts)) == reply


@pytest.mark.parametrize(("name", "facts", "reply"), KINDS)
def test_every_kind_of_question(name: str, facts: tuple, reply: str) -> None:
    task = TASKS[name]
    assert words_of(task.answer(facts)) == reply
    assert task.verify(facts, reply) and not task.verify(facts, reply + "q")


@EACH
def test_each_section_of_the_wordings_is_asked(name: str) -> None:
    """No section is missing or forgotten, and with each wording comes the whole question."""
    rng, task = Random(9), TASKS[name]
    drawn = [task.draw(rng) for _ in range(600)]
    assert {task.kind(facts) for facts in drawn} == set(task.ask)
    assert sum(map(len, task.ask.values())) >= 50
    for lines in task.ask.values():
        assert len(set(lines)) == len(lines)
        for line in lines:
            facts = next(f for f in drawn if line in task.ask[task.kind(f)])
            names = {field for _, field, _, _ in Formatter().parse(line) if field}
            assert names and names <= set(task.fields(facts, rng)) and line == line.strip()


@EACH
def test_reference_replies_are_right_and_no_others(name: str) -> None:
    """Answer and verifier compute apart; another question's reply passes only if results agree."""
    rng, task = Random(1), TASKS[name]
    questions = [sample(task, rng) for _ in range(400)]
    for q, other in zip(questions, questions[1:], strict=False):
        said, others = words_of(q.answer), words_of(other.answer)
        assert task.verify(q.facts, said), q
        if final_part(others) != final_part(said):
            assert not task.verify(q.facts, others), (q, other)


@EACH
def test_a_changed_result_is_rejected(name: str) -> None:
    """Change any one letter or digit of the result: the verifier notices."""
    rng, task = Random(2), TASKS[name]
    for _ in range(100):
        q = sample(task, rng)
        said = words_of(q.answer)
        start = len(said) - len(said.rsplit(ARROW, 1)[-1])
        spot = rng.choice([i for i in range(start, len(said)) if said[i].isalnum()])
        changed = "7" if said[spot] == "3" else "3"
        if not said[spot].isdigit():
            changed = "q" if said[spot] == "z" else "z"
        assert not task.verify(q.facts, said[:spot] + changed + said[spot + 1 :]), q


@EACH
def test_question_states_its_facts(name: str) -> None:
    """Whatever the template and the noise, the numbers and words asked about are in the text."""
    rng, task = Random(3), TASKS[name]
    for _ in range(300):
        q = sample(task, rng)
        for needed in _needed(q):
            assert needed.lower() in q.text.lower(), q


def _needed(q: Question) -> list[str]:
    if q.task == "spell":
        return [q.facts]
    if q.task in ("count_letters", "add", "subtract", "multiply"):
        return [str(f) for f in q.facts]
    if q.task == "story":
        events, _, subject = q.facts
        return [subject, *(part for _, who, what in events for part in (who, *what.split(">")))]
    kind, *facts = q.facts
    if q.task == "order":
        return [str(f) for f in facts[0]]
    if q.task == "weekday":
        return [facts[0]]  # how far and which way: the test below
    if q.task == "date":
        start = date(*facts[:3])
        end = start + timedelta(facts[3])
        return [start.isoformat(), str(facts[3]) if kind == "after" else end.isoformat()]
    if q.task == "everyday":
        return {"clock": [f"{facts[0] // 60}:{facts[0] % 60:02}", str(facts[1])],
                "change": [str(f) for f in facts], "units": [str(facts[0])],
                "to_roman": [str(facts[0])], "from_roman": [to_roman(facts[0])]}[kind]
    return [str(f) for f in facts]  # reverse_word and calculator


def test_weekday_question_states_how_far_and_which_way() -> None:
    """In digits or in a word; the very next day also as `after`, `follows` or `tomorrow`."""
    number = dict(enumerate(listed(
        "one two three four five six seven eight nine ten eleven twelve"), start=1))
    ways = {True: {"after", "follows", "tomorrow"}, False: {"before", "precedes", "yesterday"}}
    rng, said = Random(6), set()
    for _ in range(3000):
        q = sample(TASKS["weekday"], rng)
        kind, _, away = q.facts
        spoken = re.findall(r"\w+", q.text.lower())
        assert any(w in ways[away > 0] for w in spoken), q
        assert not any(w in ways[away < 0] for w in spoken), q
        stated = {str(abs(away)), number.get(abs(away), "")} & set(spoken)
        assert stated or abs(away) == 1, q
        said |= {(kind, way) for way in ways[away > 0] & set(spoken)} | stated
    assert {("day", way) for both in ways.values() for way in both} <= said
    assert {"3", "three", "60"} <= said


@EACH
def test_split_sides_never_meet(name: str) -> None:
    rng, task = Random(4), TASKS[name]
    keys = {side: {task.key(sample(task, rng, held_out=side).facts) for _ in range(800)}
            for side in (False, True)}
    assert keys[False] and keys[True]
    assert not keys[False] & keys[True]
    assert all(is_held_out(k) for k in keys[True])


def test_held_out_words_are_unseen_in_every_spelling_task() -> None:
    rng = Random(5)
    held = {w for w in common_words() if is_held_out("word:" + w)}
    seen = set()
    for name in ("spell", "count_letters", "reverse_word"):
        for _ in range(3000):
            facts = sample(TASKS[name], rng).facts
            seen.add({"spell": facts, "count_letters": facts[0], "reverse_word": facts[1]}[name])
    for _ in range(3000):
        kind, text, _ = sample(TASKS["calculator"], rng).facts
        seen |= set(text.split()) if kind == "count" else set()
    assert len(held) > 400
    assert not held & seen


def test_commuted_and_permuted_questions_are_the_same_question() -> None:
    add, order = TASKS["add"], TASKS["order"]
    assert add.key((17, 25)) == add.key((25, 17))
    assert order.key(("sort", (3, 1, 4, 2))) == order.key(("largest", (4, 3, 2, 1)))
    assert TASKS["subtract"].key((25, 17)) != TASKS["subtract"].key((25, 18))


def test_the_call_has_the_operands_as_they_are_asked() -> None:
    """In another order the reply could not be foretold from the question."""
    rng, task = Random(10), TASKS["calculator"]
    for _ in range(300):
        q = sample(task, rng)
        call = dict(pieces_of(q.answer))["call"]
        if q.facts[0] in ("product", "sum"):
            a, b = (q.text.find(part) for part in re.split(r"[*+]", call))
            assert 0 <= a and 0 <= b and (a < b or q.facts[1] == q.facts[2]), q
    assert task.key(("product", 12, 345)) == task.key(("product", 345, 12))
    assert task.key(("difference", 12, 345)) != task.key(("difference", 345, 12))


def test_split_has_its_share() -> None:
    share = sum(is_held_out(f"add:{i}+{i + 1}") for i in range(4000)) / 4000
    assert abs(share - 1 / HELD_OUT_PARTS) < 0.02  # four standard errors


def test_training_stream_holds_no_held_out_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch every question that the curriculum and the tokenizer's corpus turn into text."""
    from gossamer.chat import curriculum as room

    drawn: list[Question] = []

    def spy(task, rng, **options):
        drawn.append(sample(task, rng, **options))
        return drawn[-1]

    monkeypatch.setattr(room, "sample", spy)
    tokenizer = Tokenizer.train(tokenizer_corpus(TASKS), 300)
    corpus = len(drawn)
    plan = Curriculum(TASKS, tokenizer, {})
    rng = Random(6)
    for stage in ("read", "answer"):
        make = plan.maker(stage)
        for _ in range(1500):
            make(rng)
    assert corpus > 5000 and len(drawn) > corpus + 1500
    assert not [q for q in drawn if is_held_out(TASKS[q.task].key(q.facts))]


def test_a_question_may_follow_others() -> None:
    """Else a model answers the first question of a chat only."""
    tokenizer = Tokenizer.train(tokenizer_corpus(TASKS), 1024)
    make, rng = Curriculum(TASKS, tokenizer, {}).maker("answer"), Random(8)
    replies, longest = [], 0
    for _ in range(2000):
        ids, _ = make(rng)
        replies.append(ids.count(tokenizer.assistant_start))
        longest = max(longest, len(ids))
    assert 0.2 < sum(n > 1 for n in replies) / len(replies) < 0.4 and 3 in replies
    assert longest <= 257  # a row: nothing is cut


def test_question_sets_repeat_and_differ_by_side() -> None:
    first = question_set(TASKS, 5, seed=1)
    assert first == question_set(TASKS, 5, seed=1)
    assert first != question_set(TASKS, 5, seed=2)
    assert all(is_held_out(TASKS[n].key(q.facts)) for n, qs in first.items() for q in qs)
    quiz = question_set(TASKS, 5, seed=1, held_out=False)
    assert not any(is_held_out(TASKS[n].key(q.facts)) for n, qs in quiz.items() for q in qs)


def test_words() -> None:
    words = common_words()
    assert len(words) > 4000 and len(set(words)) == len(words)
    assert all(w.isascii() and w.isalpha() and w.islower() and 3 <= len(w) <= 12 for w in words)
    rng = Random(7)
    invented = {invent_word(rng) for _ in range(2000)}
    assert len(invented) > 1500 and all(3 <= len(w) <= 10 for w in invented)
    drawn = [draw_word(rng) for _ in range(1000)]
    assert 0.5 < sum(w in set(words) for w in drawn) / 1000 < 0.9


def test_noise_changes_the_wordings() -> None:
    rng = Random(8)
    texts = {make_question(TASKS["add"], (17, 25), rng).text for _ in range(1000)}
    assert len(texts) > len(TASKS["add"].ask[""]) * 2
