"""The tasks: right replies pass, wrong ones fail, and held-out questions stay out of training."""

from __future__ import annotations

from random import Random

import pytest

from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.evaluate import question_set
from gossamer.chat.task import ARROW, HELD_OUT_PARTS, Question, final_part, is_held_out, sample
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.words import common_words, draw_word, invent_word

EACH = pytest.mark.parametrize("name", list(TASKS))

# Facts, a right reply in our format, a right reply in plain words, and wrong replies.
WORKED = {
    "spell": ("harbor", "h-a-r-b-o-r", "H, A, R, B, O, R", ["h-a-r-b-r-o", "harbo", ""]),
    "count_letters": (("strawberry", "r"), "count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3 => 3", "3",
                      ["s0 t0 r1 a1 w1 b1 e1 r2 r2 y2 => 2", "three", "33", ""]),
    "reverse_word": ("stop", "s-t-o-p => p-o-t-s", "pots", ["s-t-o-p", "p-o-t", ""]),
    "add": ((98, 74), "8+4=12,9+7+1=17 => 172", "172", ["8+4=12,9+7=16 => 162", "17", "1720"]),
    "subtract": ((62, 38), "12-8=4,6-3-1=2 => 24", "24.", ["12-8=4,6-3=3 => 34", "-24", "2"]),
    "multiply": ((47, 6), "240+42 => 282", "282", ["240+42 => 292", "240+42", "28"]),
    "largest": ((91, 482, 305, 77), "482", "482", ["305", "91", "48"]),
    "sort": ((91, 482, 305, 77), "77, 91, 305, 482", "77 91 305 482",
             ["77, 91, 482, 305", "77, 91, 305", "77, 77, 91, 305, 482"]),
    "weekday": (("Monday", 16), "16=14+2 1 Tuesday 2 Wednesday => Wednesday", "wednesday",
                ["16=14+2 1 Tuesday 2 Wednesday => Tuesday", "16=14+2", "Monday"]),
    "date": ((2024, 2, 27, 3), "27+3=30 of 29 => 2024-03-01", "2024-03-01",
             ["2024-02-30", "27+3=30 of 29", "27+3=30 of 29 => 2024-03-02"]),
    "story": (((("go", "Mia", "garden"), ("take", "Tom", "cup"), ("go", "Tom", "barn"),
                ("give", "Tom", "cup>Mia")), "thing", "cup"),
              "So Mia has the cup. Mia is in the garden. => garden", "the garden",
              ["Tom has the cup. Tom is in the barn. => barn", "Mia"]),
}


def test_the_eleven_tasks_are_there() -> None:
    assert set(TASKS) == set(WORKED)
    assert all(name == task.name for name, task in TASKS.items())


@EACH
def test_verifier_judges_worked_examples(name: str) -> None:
    facts, reply, plain, wrong = WORKED[name]
    verify = TASKS[name].verify
    assert verify(facts, reply)
    assert verify(facts, plain)
    assert [w for w in wrong if verify(facts, w)] == []


@EACH
def test_reference_replies_are_right_and_no_others(name: str) -> None:
    """Answer and verifier compute apart; another question's reply passes only if results agree."""
    rng, task = Random(1), TASKS[name]
    questions = [sample(task, rng) for _ in range(400)]
    for q, other in zip(questions, questions[1:], strict=False):
        assert task.verify(q.facts, q.answer), q
        if final_part(other.answer) != final_part(q.answer):
            assert not task.verify(q.facts, other.answer), (q, other)


@EACH
def test_a_changed_result_is_rejected(name: str) -> None:
    """Change any one letter or digit of the result: the verifier notices."""
    rng, task = Random(2), TASKS[name]
    for _ in range(100):
        q = sample(task, rng)
        start = len(q.answer) - len(q.answer.rsplit(ARROW, 1)[-1])
        spots = [i for i in range(start, len(q.answer)) if q.answer[i].isalnum()]
        spot = rng.choice(spots)
        changed = "7" if q.answer[spot] == "3" else "3"
        if not q.answer[spot].isdigit():
            changed = "q" if q.answer[spot] == "z" else "z"
        assert not task.verify(q.facts, q.answer[:spot] + changed + q.answer[spot + 1 :]), q


@EACH
def test_question_states_its_facts(name: str) -> None:
    """Whatever the template and the noise, the numbers and words asked about are in the text."""
    rng, task = Random(3), TASKS[name]
    for _ in range(300):
        q = sample(task, rng)
        for needed in _needed(q):
            assert needed.lower() in q.text.lower(), q


def _needed(q: Question) -> list[str]:
    if q.task in ("spell", "reverse_word"):
        return [q.facts]
    if q.task in ("count_letters", "add", "subtract", "multiply", "largest", "sort"):
        return [str(f) for f in q.facts]
    if q.task == "weekday":
        return [q.facts[0], str(abs(q.facts[1]))]
    if q.task == "date":
        return ["{:04}-{:02}-{:02}".format(*q.facts[:3]), str(q.facts[3])]
    events, _, subject = q.facts
    return [subject, *(part for _, who, what in events for part in (who, *what.split(">")))]


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
            seen.add(facts if isinstance(facts, str) else facts[0])
    assert len(held) > 400
    assert not held & seen


def test_commuted_and_permuted_questions_are_the_same_question() -> None:
    add, largest = TASKS["add"], TASKS["largest"]
    assert add.key((17, 25)) == add.key((25, 17))
    assert largest.key((3, 1, 4, 2)) == largest.key((4, 3, 2, 1))
    assert TASKS["subtract"].key((25, 17)) != TASKS["subtract"].key((25, 18))


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


def test_templates_are_many_and_noise_changes_them() -> None:
    rng = Random(8)
    for task in TASKS.values():
        if task.name != "story":
            assert len(set(task.ask)) == len(task.ask) >= 8
    facts = (17, 25)
    from gossamer.chat.task import make_question
    texts = {make_question(TASKS["add"], facts, rng).text for _ in range(400)}
    assert len(texts) > 40
