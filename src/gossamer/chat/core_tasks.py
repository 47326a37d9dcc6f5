"""CORE's tasks for base models, from files in DCLM's layout, by likelihood alone. Layer 7.

    FOLDER/core.yaml             icl_tasks: label, dataset_uri, icl_task_type, num_fewshot, ...
    FOLDER/eval_meta_data.csv    label and what guessing gets right, in percent
    FOLDER/eval_data/...         a file of JSON lines a task

Three kinds. Multiple choice: one text a choice, the lowest mean loss of what differs wins. Schema:
one text a context, the lowest mean loss of the common end wins. Language modelling: right if every
token of the continuation is the likeliest. Solved examples stand before each item, drawn by a seed
of its own, so that an item's prompt does not depend on which others are asked.

Source: Li et al. 2024, "DataComp-LM", appendix G; tasks, prompts and seeds as nanochat has them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from gossamer.chat.choices import Reader, Reading, Span, common_start
from gossamer.chat.evaluate import FAILURES, Failure, Score
from gossamer.chat.rows import Row, read_rows, wrong_row
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import DataError

__all__ = ["CoreTask", "core_list", "evaluate_core", "find_core_tasks", "prompts_of"]

_ORDER_SEED, _SHOTS_SEED = 1337, 1234  # nanochat's, so that the same items are asked
_META = "eval_meta_data.csv"


@dataclass(frozen=True)
class CoreTask:
    """One task of the list.

    Args:
        label: its name.
        kind: "multiple_choice", "schema" or "language_modeling".
        path: of its JSON lines.
        shots: solved examples before each item.
        delimiter: between a context and its continuation.
        baseline: what guessing gets right; None = found from the number of choices.
        template: of the prompt, for jinja2; "" = the usual one.
    """

    label: str
    kind: str
    path: Path
    shots: int = 0
    delimiter: str = " "
    baseline: float | None = None
    template: str = ""


def core_list(folder: Path) -> Path | None:
    """The file in a folder that lists tasks, or None."""
    names = sorted(folder.glob("*.json")) + sorted(folder.glob("*.y*ml"))
    return next((p for p in names if "icl_tasks" in p.read_text("utf-8", "replace")), None)


def find_core_tasks(folder: Path) -> list[CoreTask]:
    """The tasks that a folder lists.

    Raises:
        DataError: the list cannot be read, or an entry lacks something or names a missing file.
    """
    listed = core_list(folder)
    if listed is None:
        raise DataError(f"--data {folder}: no list of tasks; a .yaml or .json file with "
                        "'icl_tasks' is expected there. Name the folder that holds it.")
    entries = _parse(listed)
    baselines = _baselines(folder / _META)
    return [_task(folder, listed, entry, baselines) for entry in entries]


def _parse(listed: Path) -> list[Any]:
    text = listed.read_text(encoding="utf-8", errors="replace")
    try:
        if listed.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except ModuleNotFoundError:
        raise DataError(f"--data {listed}: YAML needs the package pyyaml; `pip install pyyaml` "
                        "installs it, or write the list as JSON.") from None
    except Exception as error:  # of two parsers, each with errors of its own
        reason = " ".join(str(error).split())
        raise DataError(f"--data {listed}: it cannot be read ({reason}). Fetch it again.") from None
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"--data {listed}: 'icl_tasks' must be a list of tasks, and not empty.")
    return entries


def _baselines(path: Path) -> Mapping[str, float]:
    """Shares that guessing gets right, by label; none without the file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return {row["Eval Task"]: float(row["Random baseline"]) / 100
                    for row in csv.DictReader(file)}
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"--data {path}: it needs the columns 'Eval Task' and 'Random "
                            f"baseline', the latter in percent ({error}). Fetch it again, or "
                            "delete it.") from None


def _task(folder: Path, listed: Path, entry: Any, baselines: Mapping[str, float]) -> CoreTask:
    try:
        label, kind, uri = (str(entry[k]) for k in ("label", "icl_task_type", "dataset_uri"))
        shots = entry.get("num_fewshot", 0)
        count = int(shots[0] if isinstance(shots, list) else shots)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise DataError(f"--data {listed}: the task {entry!r:.200} needs 'label', 'dataset_uri', "
                        "'icl_task_type' and, if any, 'num_fewshot'.") from None
    if kind not in _KINDS:
        raise DataError(f"--data {listed}: task {label!r} has the type {kind!r}; known are "
                        f"{', '.join(_KINDS)}. Leave it out.")
    paths = (folder / "eval_data" / uri, folder / uri)
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise DataError(f"--data {listed}: the questions of task {label!r} are neither in "
                        f"{paths[0]} nor in {paths[1]}. Put them there, or leave the task out.")
    return CoreTask(label, kind, path, count, str(entry.get("continuation_delimiter", " ")),
                    baselines.get(label), str(entry.get("template", "")))


def evaluate_core(
    task: CoreTask, reader: Reader, tokenizer: Tokenizer, limit: int = 0, *,
    failures: int = FAILURES,
) -> Score:
    """Ask a task's items.

    Args:
        limit: most items, the first of a fixed shuffle; 0 = all.
        failures: most of them that are kept.

    Raises:
        DataError: an item lacks a field, or there are too few for the solved examples.
    """
    items = read_rows(task.path)
    kind = _KINDS[task.kind]
    for number, item in enumerate(items, 1):
        if not kind.fits(item):
            raise wrong_row(task.path, number, map(repr, kind.fields), item)
    Random(_ORDER_SEED).shuffle(items)
    items = items[: limit or None]
    if len(items) <= task.shots:
        raise DataError(f"--data {task.path}: {len(items)} questions are too few to stand beside "
                        f"{task.shots} solved ones; ask more of them with --limit.")
    texts = [prompts_of(task, items, at) for at in range(len(items))]
    spans = [kind.spans([[tokenizer.bos, *tokenizer.encode(t)] for t in group]) for group in texts]
    readings = reader.read(spans)
    wrong = list[Failure]()
    for item, group, found in zip(items, texts, readings, strict=True):
        right, expected, given = kind.judge(item, found, tokenizer)
        if not right:
            wrong.append(Failure(group[0][-_SHOWN:], expected, given))
    baseline = task.baseline
    if baseline is None:
        baseline = sum(kind.guessing(item) for item in items) / len(items)
    return Score(task.label, len(items) - len(wrong), len(items), tuple(wrong[:failures]), baseline)


_SHOWN = 400  # last characters of a prompt that are shown of a failure: the item, not its examples


def prompts_of(task: CoreTask, items: Sequence[Row], at: int) -> list[str]:
    """The texts of one item: a choice each, a context each, or without and with its continuation.

    Args:
        items: all that are asked; the solved examples are drawn from the others.
        at: which one.
    """
    others = [i for i in range(len(items)) if i != at]
    rng = Random(_SHOTS_SEED + at)
    shots = [items[i] for i in rng.sample(others, task.shots)] if task.shots else []
    kind = _KINDS[task.kind]
    return kind.prompts(_written(task) if task.template else _usual(task), items[at], shots)


# (item, solved examples, what differs between the texts of the item) to text
Write = Callable[[Row, Sequence[Row], Mapping[str, Any]], str]


def _usual(task: CoreTask) -> Write:
    """The prompt of all tasks: examples with their right ends, a blank line after each."""
    solved, asked = _PARTS[task.kind]

    def write(item: Row, shots: Sequence[Row], given: Mapping[str, Any]) -> str:
        before = (task.delimiter.join(solved(shot)) + "\n\n" for shot in shots)
        return "".join(before) + task.delimiter.join(asked(item, given))

    return write


def _written(task: CoreTask) -> Write:
    """A prompt of the task's own, rendered where templates reach nothing but their values."""
    try:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise DataError(f"--data {task.path}: the template of task {task.label!r} needs the "
                        "package jinja2; `pip install jinja2` installs it.") from None
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)

    def write(item: Row, shots: Sequence[Row], given: Mapping[str, Any]) -> str:
        try:
            return environment.from_string(task.template).render(
                item=item, fewshot_examples=shots, continuation_delimiter=task.delimiter, **given)
        except TemplateError as error:
            raise DataError(f"--data {task.path}: the template of task {task.label!r} fails "
                            f"({error}). Repair it in the list of tasks.") from None

    return write


_PARTS: Mapping[str, tuple[Callable[[Row], tuple[str, str]],
                           Callable[[Row, Mapping[str, Any]], tuple[str, str]]]] = {
    "multiple_choice": (lambda shot: (shot["query"], shot["choices"][shot["gold"]]),
                        lambda item, given: (item["query"], given["choice"])),
    "schema": (lambda shot: (shot["context_options"][shot["gold"]], shot["continuation"]),
               lambda item, given: (given["context"], item["continuation"])),
    "language_modeling": (
        lambda shot: (shot["context"].strip(), shot["continuation"]),
        lambda item, given: (item["context"].strip(),
                             item["continuation"] if given["include_continuation"] else "")),
}


@dataclass(frozen=True)
class _Kind:
    """What differs between the three kinds of task.

    Args:
        fields: of an item.
        fits: whether an item has them.
        prompts: the texts of an item.
        spans: what is read of their tokens.
        judge: from the readings: whether it is right, what was expected, what was given.
        guessing: the chance of guessing an item.
    """

    fields: tuple[str, ...]
    fits: Callable[[Row], bool]
    prompts: Callable[[Write, Row, Sequence[Row]], list[str]]
    spans: Callable[[list[list[int]]], list[Span]]
    judge: Callable[[Row, Sequence[Reading], Tokenizer], tuple[bool, str, str]]
    guessing: Callable[[Row], float]


def _differing_ends(texts: list[list[int]]) -> list[Span]:
    """From where the choices part; of a choice that others go on from, its last token at least."""
    start = common_start(texts)
    return [Span(text, max(1, min(start, len(text) - 1))) for text in texts]


def _common_end(texts: list[list[int]]) -> list[Span]:
    same = common_start([text[::-1] for text in texts])
    return [Span(text, max(1, len(text) - same)) for text in texts]


def _continuation(texts: list[list[int]]) -> list[Span]:
    """From where the text with the continuation leaves the one without it. A space that belongs to
    the continuation's first token may have been a token of its own before."""
    return [Span(texts[1], max(1, min(common_start(texts), len(texts[1]) - 1)))]


def _likeliest(options: str) -> Callable[[Row, Sequence[Reading], Tokenizer],
                                         tuple[bool, str, str]]:
    def judge(item: Row, found: Sequence[Reading], tokenizer: Tokenizer) -> tuple[bool, str, str]:
        chosen = min(range(len(found)), key=lambda i: found[i].nats)
        return chosen == item["gold"], item[options][item["gold"]], item[options][chosen]

    return judge


def _foretold(item: Row, found: Sequence[Reading], tokenizer: Tokenizer) -> tuple[bool, str, str]:
    return found[0].exact, item["continuation"], tokenizer.decode(found[0].likeliest)


def _has_options(item: Row, options: str, text: str) -> bool:
    """Whether there are two options or more, all texts, one of them right."""
    found, gold = item.get(options), item.get("gold")
    return (isinstance(item.get(text), str) and isinstance(found, list) and len(found) > 1
            and all(isinstance(option, str) for option in found)
            and isinstance(gold, int) and 0 <= gold < len(found))


_KINDS: Mapping[str, _Kind] = {
    "multiple_choice": _Kind(
        ("query", "choices", "gold"), lambda item: _has_options(item, "choices", "query"),
        lambda write, item, shots: [write(item, shots, {"choice": c}) for c in item["choices"]],
        _differing_ends, _likeliest("choices"), lambda item: 1 / len(item["choices"])),
    "schema": _Kind(
        ("context_options", "continuation", "gold"),
        lambda item: _has_options(item, "context_options", "continuation"),
        lambda write, item, shots: [write(item, shots, {"context": c})
                                    for c in item["context_options"]],
        _common_end, _likeliest("context_options"),
        lambda item: 1 / len(item["context_options"])),
    "language_modeling": _Kind(
        ("context", "continuation"),
        lambda item: all(isinstance(item.get(name), str) for name in ("context", "continuation"))
        and bool(item["continuation"].strip()),
        lambda write, item, shots: [
            write(item, shots, {"include_continuation": False}).strip(),
            write(item, shots, {"include_continuation": True})],
        _continuation, _foretold, lambda item: 0.0),
}
