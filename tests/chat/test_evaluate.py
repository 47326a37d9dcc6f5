"""One forward pass says what decoding would; likelihoods, letters, samples and votes are right."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from random import Random

import numpy as np
import pytest

import gossamer as gs
import gossamer.nn.functional as F
from gossamer.chat.calculator import Calculator, calculate
from gossamer.chat.choices import Reader, Span
from gossamer.chat.code_tasks import assemble, code_of, programs
from gossamer.chat.document import pieces_of_answer, row_documents
from gossamer.chat.engine import Engine, Request
from gossamer.chat.evaluate import (
    Score,
    bits_figure,
    bits_per_byte,
    decoded_match,
    evaluate,
    question_set,
    replies_match,
    to_conversation,
    with_replies,
)
from gossamer.chat.exercises import Drawing, Exercise, solve
from gossamer.chat.gsm8k import final_number, problems
from gossamer.chat.letters import answer_letters, as_prompt, choice_questions
from gossamer.chat.message import pieces_of
from gossamer.chat.rows import read_rows
from gossamer.chat.sandbox import Limits
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Rendered, Tokenizer
from gossamer.chat.votes import majority, pass_at_k
from gossamer.core.errors import DataError
from gossamer.models.gpt import GPT, GPTConfig

CONTEXT = 160


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    """Random, but its replies end: the scores of the end mark vary more than others'."""
    gs.manual_seed(5)
    made = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=2, n_head=4, n_kv_head=2,
                         n_embd=32, sequence_len=CONTEXT))
    with gs.no_grad():
        for parameter in made.parameters():  # also those that start at zero
            gs.nn.init.normal_(parameter, std=0.3)
        made.head.weight[tokenizer.assistant_end] *= 3.0
    return made.eval()


@pytest.fixture(scope="module")
def engine(model: GPT) -> Engine:
    return Engine(model, rows=64)


# The twelve tasks -----------------------------------------------------------------------------
def _as_the_model_says(engine: Engine, tokenizer: Tokenizer, prompts: list[list[int]]
                       ) -> list[Rendered | None]:
    """Each prompt with the greedy reply; None where it does not come to its end in time."""
    replies = [engine.submit(Request(p, max_tokens=40, stop=(tokenizer.assistant_end,),
                                     follow=Calculator(tokenizer).follow)) for p in prompts]
    while engine.busy:
        engine.step()
    return [([*p, *(t.id for t in r.tokens), tokenizer.assistant_end],
             [0] * len(p) + [int(not t.forced) for t in r.tokens] + [1])
            if r.finish == "stop" else None for p, r in zip(prompts, replies, strict=True)]


def _items(engine: Engine, tokenizer: Tokenizer, count: int) -> list[Rendered]:
    """Questions of all tasks. The reference reply is what the model says, or that but for one
    token, or the task's own, by turns."""
    rng = Random(1)
    drawn = question_set(TASKS, -(-count // len(TASKS)))
    asked = [to_conversation(q) for questions in drawn.values() for q in questions][:count]
    prompts = [tokenizer.render_prompt(turns[:1]) for turns in asked]
    items = []
    for number, said in enumerate(_as_the_model_says(engine, tokenizer, prompts)):
        ids, mask = said if said is not None and number % 3 else tokenizer.render(asked[number])
        chosen = [i for i, mark in enumerate(mask[:-1]) if mark]
        if number % 3 == 1 and chosen:
            at = rng.choice(chosen)
            ids = [*ids[:at], 9 + (ids[at] + 1) % 256, *ids[at + 1 :]]  # no mark: those are 0 to 8
        items.append((ids, mask))
    return items


def test_one_forward_pass_is_decoding_on_a_thousand_items(
    model: GPT, engine: Engine, tokenizer: Tokenizer
) -> None:
    items = _items(engine, tokenizer, 1000)
    fast = replies_match(model, items)
    slow = decoded_match(engine, tokenizer, items)
    assert [i for i in range(1000) if fast[i] != slow[i]] == []
    assert 250 < sum(fast) < 400  # the third that is what the model says, where it comes to an end


def test_they_agree_where_the_context_ends(
    model: GPT, engine: Engine, tokenizer: Tokenizer
) -> None:
    """The longest reply that the engine can end fills the context; one token more is too long."""
    rng = Random(2)
    end = tokenizer.assistant_end
    for room in (1, 2, 5):
        found = 0
        while not found:
            prompt = [rng.randrange(9, 265) for _ in range(CONTEXT - room)]
            ids = list(prompt)
            with gs.no_grad():
                for _ in range(room + 1):
                    likeliest = model(gs.tensor([ids]))[0, -1].argmax().item()
                    ids.append(int(likeliest))
                    if likeliest == end or len(ids) > CONTEXT:
                        break
            if ids[-1] == end:
                found = len(ids)
                item = (ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt)))
                assert replies_match(model, [item]) == decoded_match(engine, tokenizer, [item])
                assert replies_match(model, [item]) == [len(ids) <= CONTEXT]


def test_a_failure_tells_what_was_given(
    model: GPT, engine: Engine, tokenizer: Tokenizer
) -> None:
    scores = evaluate(model, tokenizer, question_set(TASKS, 3), failures=2)
    assert all(len(s.failures) == 2 and s.right == 0 for s in scores)
    told = with_replies(engine, tokenizer, scores)
    assert all(f.question and f.expected for s in told for f in s.failures)
    given = [f.given for s in told for f in s.failures]
    assert sum(map(bool, given)) > len(given) // 2 and scores[0].failures[0].given == ""


def test_bits_per_byte_are_those_of_the_pieces(model: GPT, tokenizer: Tokenizer) -> None:
    text = " ".join(q.text for q in question_set(TASKS, 8)["story"])
    found = bits_figure(model, tokenizer, [text, "Hi!"])
    assert found.value == bits_per_byte(model, tokenizer, [text, "Hi!"])
    rows = []
    for document in (text, "Hi!"):
        ids = tokenizer.render_document(document)[0]
        for at in range(0, len(ids) - 1, CONTEXT):
            piece = ids[at : at + CONTEXT + 1]
            nats, _ = _mean_nats(model, piece, 1)
            rows.append((nats * (len(piece) - 1) / math.log(2), len(tokenizer.decode(piece[1:]))))
    bits, size = np.array(rows).T  # the texts are ASCII
    assert found.value == pytest.approx(bits.sum() / size.sum(), rel=1e-5) and len(rows) == 5
    off = bits - found.value * size
    assert found.error == pytest.approx(math.sqrt((off**2).sum()) / size.sum(), rel=1e-4)


# Likelihoods ----------------------------------------------------------------------------------
def _mean_nats(model: GPT, ids: list[int], start: int) -> tuple[float, bool]:
    """By the definition, a text at a time."""
    with gs.no_grad():
        logits = model(gs.tensor([ids[:-1]]))[0]
        nats = F.cross_entropy(logits, gs.tensor(ids[1:]), reduction="none").numpy()
        exact = (logits.argmax(-1).numpy() == np.array(ids[1:]))[start - 1 :].all()
    return float(nats[start - 1 :].mean()), bool(exact)


def _groups(seed: int) -> list[list[Span]]:
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(20):
        first = rng.integers(9, 300, int(rng.integers(1, CONTEXT - 20))).tolist()
        rests = [rng.integers(9, 300, int(rng.integers(1, 20))).tolist()
                 for _ in range(int(rng.integers(1, 6)))]
        groups.append([Span([*first, *rest], len(first)) for rest in rests])
        if number % 4 == 0:  # a choice that is the beginning of another
            groups[-1].append(Span([*groups[-1][0].ids, 11, 12], len(first)))
    return groups


def test_shared_beginnings_give_the_scores_of_whole_texts(model: GPT) -> None:
    groups = _groups(3)
    shared, whole = Reader(model), Reader(model, sharing=False)
    assert sum(shared._shared(shared._cut(0, group)) > 0 for group in groups) > 5
    found, expected = shared.read(groups), whole.read(groups)
    assert [len(g) for g in found] == [len(g) for g in groups]
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.nats == pytest.approx(b.nats, rel=1e-4)
            assert a.likeliest == b.likeliest and a.exact == b.exact
    for group, ours in list(zip(groups, found, strict=True))[:5]:
        nats, exact = _mean_nats(model, list(group[0].ids), group[0].start)
        assert (ours[0].nats, ours[0].exact) == (pytest.approx(nats, rel=1e-4), exact)
    assert shared.cropped == whole.cropped == 0


def test_a_text_longer_than_the_context_keeps_its_end(model: GPT) -> None:
    ids = np.random.default_rng(0).integers(9, 300, CONTEXT + 30).tolist()
    reader = Reader(model)
    group = [Span(ids, CONTEXT + 20), Span([*ids[: CONTEXT + 20], 9, 11], CONTEXT + 20)]
    assert reader._shared(reader._cut(0, group)) > 0  # they still begin alike
    [[a, b]] = reader.read([group])
    assert reader.cropped == 4
    for reading, span in zip((a, b), group, strict=True):
        cut = list(span.ids[30:])
        assert reading.nats == pytest.approx(_mean_nats(model, cut, CONTEXT - 10)[0], rel=1e-4)
    assert len(a.likeliest) == 10 and len(b.likeliest) == 2
    # a text whose counted part begins early keeps it whole
    [[c, d]] = reader.read([[Span(ids, CONTEXT), Span(ids[:20], 10)]])
    assert d.nats == pytest.approx(_mean_nats(model, ids[9:20], 1)[0], rel=1e-4)
    [[e]] = reader.read([[Span(ids, 3)]])  # more to foretell than the context holds
    assert len(e.likeliest) == CONTEXT - 1 and len(c.likeliest) == 30


# Multiple choice in a chat --------------------------------------------------------------------
def test_a_letter_in_the_prompt_is_the_token_of_the_answer(tokenizer: Tokenizer) -> None:
    [question] = choice_questions([{"question": "Which?", "choices": ["=", "A b", "C"],
                                    "answer": "B"}], Path("x"))
    assert question.gold == 1
    ids = tokenizer.render_prompt([{"role": "user", "content": as_prompt(question)}])
    for letter in "ABC":
        [token] = tokenizer.encode(letter)
        assert token in ids


def test_letters_are_chosen_among_letters_alone(model: GPT, tokenizer: Tokenizer) -> None:
    rows = [{"question": f"What is {i}?", "choices": ["a", "b", "c", "d"][: 2 + i % 3],
             "answer": i % 2} for i in range(40)]
    rows.append({"question": "x " * CONTEXT, "choices": ["a", "b"], "answer": 0})
    questions = choice_questions(rows, Path("x"))
    score = answer_letters("mine", questions, model, tokenizer, failures=99)
    right = 0
    for question in questions[:-1]:
        prompt = tokenizer.render_prompt([{"role": "user", "content": as_prompt(question)}])
        with gs.no_grad():
            logits = model(gs.tensor([prompt]))[0, -1].numpy()
        letters = [tokenizer.encode("ABCD"[i])[0] for i in range(len(question.choices))]
        right += int(logits[letters].argmax()) == question.gold
    assert score.right == right and score.asked == 41
    assert score.failures[-1].given == "(it does not fit the context)"
    assert score.baseline == pytest.approx(sum(1 / len(q.choices) for q in questions) / 41)


@pytest.mark.parametrize(("row", "gold"), [
    ({"question": "q", "choices": ["x", "y"], "answer": 1}, 1),
    ({"question": "q", "choices": ["x", "y"], "answer": "y"}, 1),
    ({"question": "q", "choices": ["B", "A"], "answer": "A"}, 0),  # a letter before a text
    ({"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
      "answerKey": "3"}, 2),
])
def test_the_forms_of_a_choice(row: dict[str, object], gold: int) -> None:
    assert choice_questions([row], Path("x"))[0].gold == gold


@pytest.mark.parametrize("row", [
    {"question": "q", "choices": ["x", "y"], "answer": 2}, {"question": "q", "choices": ["x"],
                                                            "answer": 0},
    {"question": 1, "choices": ["x", "y"], "answer": 0}, {"question": "q", "choices": "xy",
                                                          "answer": 0},
    {"question": "q", "choices": ["x", "y"], "answer": "z"}, {"question": "q", "choices": [1, 2],
                                                              "answer": 0},
])
def test_a_choice_without_a_right_answer_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"--data some\.jsonl: question 1 has .* it must have"):
        choice_questions([row], Path("some.jsonl"))


# Word problems --------------------------------------------------------------------------------
ROW = {"question": "Ann has 3 bags of 4 nuts and eats 5. How many are left?",
       "answer": "There are 3*4 = <<3*4=12>>12 nuts.\nThen 12-5 = <<12-5=7>>7.\n#### 7"}


def test_an_answer_becomes_words_calls_and_outputs(tokenizer: Tokenizer) -> None:
    pieces = pieces_of_answer(ROW["answer"])
    assert [p for p in pieces if p[0] != "text"] == [
        ("call", "3*4"), ("output", "12"), ("call", "12-5"), ("output", "7")]
    assert "<<" not in "".join(text for _, text in pieces)
    [document] = row_documents(ROW, "here")
    assert not isinstance(document, str) and document[1]["content"] == pieces
    ids, mask = tokenizer.render(document)
    outside = [i for i, t in enumerate(ids) if t == tokenizer.output_start]
    assert len(outside) == 2 and all(mask[i] == 0 for i in outside)
    assert pieces_of_answer("no calls") == "no calls"


@pytest.mark.parametrize(("text", "number"), [
    ("#### 7", 7), ("####  $70,000.", 70000), ("#### -3.50", -3.5), ("#### 1\n#### 2", 2),
    ("the answer is 7", None), ("#### none", None), ("#### .5", 0.5)])
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_problems_are_judged_by_the_number_alone(tokenizer: Tokenizer) -> None:
    [exercise] = problems([ROW], Path("x"))
    assert exercise.judge("so #### 7.0") and exercise.judge((("call", "1"), ("text", "#### 7")))
    assert not exercise.judge("7") and not exercise.judge("#### 8")
    assert not exercise.judge((("call", "#### 7"), ("text", "no")))  # a call says nothing
    assert exercise.vote("#### 7.0") == exercise.vote("#### 7") != exercise.vote("nothing") == ""
    with pytest.raises(DataError, match="question 1 has answer, question; it must have"):
        problems([{"question": "q", "answer": "7"}], Path("x"))


def test_all_of_gsm8k_is_understood(shared_data: Path) -> None:
    """Every answer has a number, and the calculator finds what its calls are said to give."""
    rows = read_rows(shared_data / "gsm8k/grade_school_math/data/test.jsonl")
    assert len(problems(rows, Path("test.jsonl"))) == len(rows) == 1319
    calls, differ = 0, list[str]()
    for row in rows:
        pieces = pieces_of(pieces_of_answer(row["answer"]))
        assert "<<" not in "".join(text for _, text in pieces)
        for (kind, call), (_, output) in itertools.pairwise(pieces):
            if kind == "call":
                calls += 1
                found, given = (float(calculate(text) or "nan") for text in (call, output))
                if not math.isclose(found, given, rel_tol=0.01):  # they are rounded by hand
                    differ.append(f"{call} = {output}")
    assert calls == 4282 and differ == []


def test_a_benchmark_s_texts_are_such_as_utf_8_can_hold(tmp_path: Path) -> None:
    """JSON can spell half a surrogate pair; printing it, or handing it to a program, would fail."""
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"question": "a\ud83d", "\udc00": [{"b": "\ud83d\ude00"}, 1, null]}' "\n")
    assert read_rows(path) == [{"question": "a\ufffd", "\ufffd": [{"b": "\U0001f600"}, 1, None]}]
    path.write_text('{"a": ' + "[" * 1500 + "]" * 1500 + "}\n")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        read_rows(path)


# Programs -------------------------------------------------------------------------------------
PROGRAM = {"task_id": "t/0", "prompt": "import math\n\ndef twice(x):\n    \"\"\"2 x\"\"\"\n",
           "entry_point": "twice", "canonical_solution": "    return 2 * x\n",
           "test": "def check(f):\n    assert f(3) == 6 and f(0) == 0\n"}


@pytest.mark.parametrize(("reply", "right"), [
    ("    return 2 * x\n", True), ("def twice(x):\n    return math.floor(2 * x)\n", True),
    ("Here:\n```python\ndef twice(x):\n    return x + x\n```\nDone.", True),
    ("```\n    return x * 2\n```", True), ("    return 3 * x\n", False), ("I cannot.", False),
    ("def other(x):\n    return 2 * x\n", False), ("", False)])
def test_programs_are_judged_by_their_tests(reply: str, right: bool) -> None:
    [exercise] = programs([PROGRAM], Path("x"), Limits(seconds=5.0))
    assert exercise.judge(reply) is right, assemble(PROGRAM, reply)


def test_the_code_of_a_reply() -> None:
    assert code_of("```py\na = 1") == "a = 1" and code_of("a = 1") == "a = 1"
    with pytest.raises(DataError, match="question 2"):
        programs([PROGRAM, {**PROGRAM, "entry_point": "no name"}], Path("x"))


# Several replies ------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (4, 4, 1), (7, 3, 5), (3, 1, 3)])
def test_pass_at_k_is_the_mean_over_all_draws(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_votes() -> None:
    assert majority(["a", "b", "b", "a"]) == "a" and majority(["", ""]) == "" == majority([])
    with pytest.raises(ValueError, match="k must be from 1 to n"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError, match="all replies to a question are the same"):
        Drawing(samples=2)


def test_samples_are_counted(model: GPT, engine: Engine, tokenizer: Tokenizer) -> None:
    """Exercises whose verdict is a property of the reply, so that the figures can be recounted."""
    seen: list[str] = []

    def judge(reply: object) -> bool:
        seen.append(str(reply))
        return len(str(reply)) % 2 == 0

    exercises = [Exercise(f"Spell {i}.", "even", judge, lambda r: str(len(str(r)) % 3 + 1))
                 for i in range(12)]
    drawing = Drawing(samples=4, temperature=1.0, max_tokens=12, seed=3)
    score = solve("even", exercises, engine, tokenizer, drawing, failures=2)
    again = solve("even", exercises, engine, tokenizer, drawing, failures=2)
    assert score == again and score.asked == 12 and len(score.failures) == 2
    assert len(set(seen)) > 12  # the samples of a question differ
    names = [f.name for f in score.figures]
    assert names == ["pass@1", "pass@2", "pass@4", "majority of 4"]
    one, two, four, _ = (f.value for f in score.figures)
    assert 0 < one <= two <= four <= 1 and score.figures[0].error > 0
    greedy = solve("even", exercises, engine, tokenizer, Drawing(max_tokens=12))
    assert greedy.figures == ()


def test_a_question_that_fills_the_context_went_wrong(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    exercise = Exercise("x " * CONTEXT, "all", lambda reply: True, lambda reply: "a")
    score = solve("long", [exercise], engine, tokenizer)
    assert (score.right, score.asked) == (0, 1)
    assert score.failures[0].given == "(the question fills the context)"


def test_above_guessing() -> None:
    score = Score("x", 70, 100, baseline=0.4)
    assert score.centred == pytest.approx(0.5)
    assert score.centred_error == pytest.approx(math.sqrt(72 / 104 * 32 / 104 / 104) / 0.6)
    assert Score("x", 0, 0).standard_error == 0.0
