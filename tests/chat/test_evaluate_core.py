"""CORE's tasks from files: prompts, judging, baselines, and what is wrong with a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

import gossamer as gs
from gossamer.chat.choices import Reader, Reading, Span
from gossamer.chat.core_tasks import CoreTask, evaluate_core, find_core_tasks, prompts_of
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import DataError
from gossamer.models.gpt import GPT, GPTConfig

CHOICES = [{"query": f"The sum of {i} and {i}", "choices": [str(2 * i), str(2 * i + 1), "a dog"],
            "gold": i % 3} for i in range(10)]
SCHEMA = [{"context_options": [f"Ann {i} saw Bob and Ann", f"Ann {i} saw Bob and Bob"],
           "continuation": "was glad of it.", "gold": i % 2} for i in range(6)]
LANGUAGE = [{"context": f"The letters are {i}, b, and ", "continuation": "c again"}
            for i in range(6)]
ITEMS = {"multiple_choice": CHOICES, "schema": SCHEMA, "language_modeling": LANGUAGE}


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    gs.manual_seed(7)
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16)).eval()


class Oracle(Reader):
    """Finds the given texts likeliest and everything else unlikely."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, right: Sequence[str]) -> None:
        super().__init__(model)
        self.tokenizer, self.right = tokenizer, right

    def read(self, groups: Sequence[Sequence[Span]]) -> list[list[Reading]]:
        def reading(span: Span) -> Reading:
            text = self.tokenizer.decode(span.ids)
            known = any(text.endswith(end) for end in self.right)
            return Reading(0.1 if known else 2.0, known, tuple(span.ids[span.start :]))

        return [[reading(span) for span in group] for group in groups]


def write(folder: Path, kinds: Mapping[str, Sequence[Any]] = ITEMS, **more: Any) -> Path:
    (folder / "eval_data/some").mkdir(parents=True)
    for kind, items in kinds.items():
        (folder / f"eval_data/some/{kind}.jsonl").write_text("\n".join(map(json.dumps, items)))
    tasks = [{"label": f"my {kind}", "dataset_uri": f"some/{kind}.jsonl", "num_fewshot": [2],
              "icl_task_type": kind, "continuation_delimiter": " is ", **more} for kind in kinds]
    (folder / "core.json").write_text(json.dumps({"icl_tasks": tasks}))
    return folder


def task_of(kind: str, **more: Any) -> CoreTask:
    return CoreTask("mine", kind, Path("x.jsonl"), **{"shots": 2, "delimiter": " is ", **more})


# Prompts --------------------------------------------------------------------------------------
TEMPLATES = {
    "multiple_choice": "{% for e in fewshot_examples %}{{ e.query }}{{ continuation_delimiter }}"
                       "{{ e.choices[e.gold] }}\n\n{% endfor %}"
                       "{{ item.query }}{{ continuation_delimiter }}{{ choice }}",
    "schema": "{% for e in fewshot_examples %}{{ e.context_options[e.gold] }}"
              "{{ continuation_delimiter }}{{ e.continuation }}\n\n{% endfor %}"
              "{{ context }}{{ continuation_delimiter }}{{ item.continuation }}",
    "language_modeling": "{% for e in fewshot_examples %}{{ e.context | trim }}"
                         "{{ continuation_delimiter }}{{ e.continuation }}\n\n{% endfor %}"
                         "{{ item.context | trim }}{{ continuation_delimiter }}"
                         "{% if include_continuation %}{{ item.continuation }}{% endif %}",
}


@pytest.mark.parametrize("kind", list(ITEMS))
def test_the_usual_prompt_is_that_template(kind: str) -> None:
    pytest.importorskip("jinja2")
    for at in range(4):
        usual = prompts_of(task_of(kind), ITEMS[kind], at)
        assert usual == prompts_of(task_of(kind, template=TEMPLATES[kind]), ITEMS[kind], at)


def test_solved_examples_come_from_the_others_by_a_seed_of_the_item() -> None:
    first = prompts_of(task_of("multiple_choice"), CHOICES, 3)
    drawn = Random(1234 + 3).sample([i for i in range(10) if i != 3], 2)
    shots = "".join(f"{CHOICES[i]['query']} is {CHOICES[i]['choices'][CHOICES[i]['gold']]}\n\n"
                    for i in drawn)
    assert first == [f"{shots}The sum of 3 and 3 is {c}" for c in ("6", "7", "a dog")]
    alone = prompts_of(task_of("multiple_choice", shots=0), CHOICES, 0)
    assert alone[0] == "The sum of 0 and 0 is 0"
    without, whole = prompts_of(task_of("language_modeling", shots=0), LANGUAGE, 1)
    assert without == "The letters are 1, b, and is" and whole == f"{without} c again"


def test_a_template_reaches_nothing_but_its_values() -> None:
    pytest.importorskip("jinja2")
    for template in ("{{ ''.__class__.__mro__ }}", "{{ nothing.here }}", "{% for %}"):
        with pytest.raises(DataError, match="the template of task 'mine' fails"):
            prompts_of(task_of("schema", template=template), SCHEMA, 0)


# Scores ---------------------------------------------------------------------------------------
def test_all_three_kinds_are_judged(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    by_label = {t.label: t for t in find_core_tasks(write(tmp_path))}
    right = [f"{r['query']} is {r['choices'][r['gold']]}" for r in CHOICES[:7]]
    right += [f"{r['context_options'][r['gold']]} is {r['continuation']}" for r in SCHEMA[:4]]
    right += [f"{r['context'].strip()} is {r['continuation']}" for r in LANGUAGE[:2]]
    reader = Oracle(model, tokenizer, right)
    scores = {label: evaluate_core(task, reader, tokenizer, failures=1)
              for label, task in by_label.items()}
    # of what is not known both options are as unlikely, and the first is taken
    assert [(s.right, s.asked) for s in scores.values()] == [
        (7 + sum(r["gold"] == 0 for r in CHOICES[7:]), 10),
        (4 + sum(r["gold"] == 0 for r in SCHEMA[4:]), 6), (2, 6)]
    assert [s.baseline for s in scores.values()] == pytest.approx([1 / 3, 1 / 2, 0])
    failure = scores["my language_modeling"].failures[0]
    assert failure.expected == "c again" and failure.given.strip() == "c again"  # by the oracle
    assert "is" in failure.question and all(len(s.failures) == 1 for s in scores.values())


def test_a_real_model_gives_the_same_scores_with_and_without_sharing(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for task in find_core_tasks(write(tmp_path)):
        scores = [evaluate_core(task, Reader(model, sharing=sharing), tokenizer)
                  for sharing in (True, False)]
        assert scores[0] == scores[1] and scores[0].asked == len(ITEMS[task.kind])
        limited = evaluate_core(task, Reader(model), tokenizer, limit=4)
        assert limited.asked == 4


def test_baselines_of_the_table_are_percent(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "eval_meta_data.csv").write_text(
        "Eval Task,Random baseline\nmy schema,50.0\nother,1\n")
    assert [t.baseline for t in find_core_tasks(tmp_path)] == [None, 0.5, None]


def test_a_list_in_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    write(tmp_path)
    listed = find_core_tasks(tmp_path)
    (tmp_path / "core.json").rename(tmp_path / "core.yaml")  # JSON is YAML
    assert find_core_tasks(tmp_path) == listed and [t.shots for t in listed] == [2, 2, 2]
    (tmp_path / "core.yaml").write_text("icl_tasks: [\n- a: {")
    with pytest.raises(DataError, match=r"core\.yaml: it cannot be read"):
        find_core_tasks(tmp_path)


# Bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("change", "message"), [
    ({"icl_task_type": "guessing"}, "has the type 'guessing'; known are multiple_choice"),
    ({"dataset_uri": "some/nowhere.jsonl"}, "the questions of task 'my schema' are neither in"),
    ({"num_fewshot": "many"}, "needs 'label', 'dataset_uri'"),
    ({"num_fewshot": []}, "needs 'label', 'dataset_uri'"),
])
def test_a_wrong_entry_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        find_core_tasks(write(tmp_path, {"schema": SCHEMA}, **change))


@pytest.mark.parametrize(("text", "message"), [
    ("icl_tasks", "it cannot be read"), ('{"icl_tasks": []}', "must be a list of tasks"),
    ('["icl_tasks"]', "must be a list of tasks"), ('{"icl_tasks": [3]}', "the task 3 needs")])
def test_a_wrong_list_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(DataError, match=message):
        find_core_tasks(tmp_path)


@pytest.mark.parametrize(("kind", "item"), [
    ("multiple_choice", {"query": "q", "choices": ["a", "b"], "gold": 2}),
    ("multiple_choice", {"query": "q", "choices": ["a"], "gold": 0}),
    ("schema", {"context_options": ["a", 2], "continuation": "c", "gold": 0}),
    ("language_modeling", {"context": "c", "continuation": " "}),
    ("language_modeling", {"context": "c"}),
])
def test_a_wrong_item_is_named(
    kind: str, item: dict[str, Any], model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    [task] = find_core_tasks(write(tmp_path, {kind: [*ITEMS[kind], item]}))
    with pytest.raises(DataError, match=rf"question {len(ITEMS[kind]) + 1} has .*; it must have"):
        evaluate_core(task, Reader(model), tokenizer)


def test_too_few_items_for_the_solved_examples(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = find_core_tasks(write(tmp_path))[0]
    with pytest.raises(DataError, match="2 questions are too few to stand beside 2 solved ones"):
        evaluate_core(task, Reader(model), tokenizer, limit=2)


def test_a_broken_table_of_baselines(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task\nmy schema\n")
    with pytest.raises(DataError, match="needs the columns 'Eval Task' and 'Random baseline'"):
        find_core_tasks(tmp_path)
