"""A person's own files: each document once an epoch, resumed exactly, bad ones named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from gossamer.chat import document, formats
from gossamer.chat.compression import train_tokenizer
from gossamer.chat.corpus import Corpus, find_shards, is_measured
from gossamer.chat.formats import Document, text_of
from gossamer.chat.look import show_data, show_mask, show_tasks
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import DataError

LINES = [f"This is document {i}, which says {i * 7919 % 1000}." for i in range(700)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK", 2000)


def write(folder: Path, name: str) -> Path:
    """LINES in a file of the given kind."""
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": line}) + "\n" for line in LINES))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet
        table = pyarrow.table({"id": list(range(len(LINES))), "text": LINES})
        parquet.write_table(table, path, row_group_size=40, compression="none",
                            use_dictionary=False, write_page_checksum=True)
    elif path.suffix == ".arrow":
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table({"id": list(range(len(LINES))), "text": LINES})
        new = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=40)
    else:
        path.write_text("<|endoftext|>\n\n".join(LINES))
    return path


@pytest.mark.parametrize(
    "name", ["a.txt", "a.md", "a.jsonl", "a.parquet", "a.arrow", "stream.arrow"])
def test_an_epoch_has_every_document_once(tmp_path: Path, name: str) -> None:
    corpus = Corpus(find_shards([write(tmp_path, name)]), seed=3)
    held_out = [line for line in LINES if is_measured(line)]
    assert corpus.documents == len(LINES) and corpus.size == len("".join(LINES))
    assert len(corpus.shards[0].blocks) > 10
    for epoch in range(2):
        read = [text_of(corpus.next()) for _ in range(len(LINES) - len(held_out))]
        assert corpus.epoch == epoch
        assert Counter(read) == Counter(set(LINES) - set(held_out))
        assert read != sorted(read, key=LINES.index)
    assert corpus.measured(1 << 20) == held_out and 5 < len(held_out) < 30
    assert set(corpus.sample(1 << 20)) == set(LINES) - set(held_out)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("before", [0, 1, 57, 699, 1500])
def test_it_goes_on_where_it_stood(tmp_path: Path, name: str, before: int) -> None:
    shards = find_shards([write(tmp_path, name)])
    corpus = Corpus(shards)
    for _ in range(before):
        corpus.next()
    state = json.loads(json.dumps(corpus.state()))
    after = [corpus.next() for _ in range(900)]
    again = Corpus(shards)
    again.load_state(state)
    assert [again.next() for _ in range(900)] == after
    other = Corpus(shards, seed=1)
    assert [other.next() for _ in range(900)] != after


def test_folders_are_searched_and_seeds_differ(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("b.md", "deep/a.txt", "deep/er/c.jsonl", "deep/picture.png", ".git/x.txt"):
        (tmp_path / name).write_text('{"text": "hello"}\n')
    shards = find_shards([tmp_path])
    assert [s.path.name for s in shards] == ["b.md", "a.txt", "c.jsonl"]


def test_rows_are_texts_pairs_or_conversations(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"content": "plain"}, {"question": "1+1?", "answer": "2"},
        {"instruction": "Say hi", "output": "hi", "extra": None},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b"}]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    shard, = find_shards([path])
    read: list[Document] = shard.format.read(path, shard.blocks[0])
    assert read == [
        "plain",
        ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}),
        ({"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}),
        ({"role": "user", "content": "Be kind.\n\na"}, {"role": "assistant", "content": "b"}),
    ]


def test_a_row_without_words_is_no_document(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": " \\n"}\n')
    parquet.write_table(pyarrow.table({"text": ["", None, "b", "  "]}), tmp_path / "a.parquet")
    lines, table = find_shards([tmp_path])
    assert (lines.documents, table.documents) == (0, 1)
    with pytest.raises(DataError, match="no document is in there"):
        find_shards([tmp_path / "a.jsonl"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_long_rows_are_cut_counted_and_not_lost(tmp_path: Path, kind: str) -> None:
    words = [f"word{i}" for i in range(5000)]
    rows = [" ".join(words[:100]), " ".join(words), "\n".join(words[:2000]), "x" * 10_000]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import feather, parquet
        table = pyarrow.table({"text": rows})
        (parquet.write_table if kind == "parquet" else feather.write_feather)(table, path)
    shard, = find_shards([path])
    assert shard.split == 3
    documents = [text_of(d) for block in shard.blocks for d in shard.format.read(path, block)]
    assert max(map(len, documents)) <= document.LONGEST and len(documents) == shard.documents
    kept = "".join("".join(documents).split())
    assert kept == "".join("".join(rows).split())
    out = io.StringIO()
    show_data(Console(file=out, width=120), [str(path)], 0)
    assert "3 rows are longer than 4,096 characters" in out.getvalue()


def test_word_problems_call_the_calculator(tmp_path: Path) -> None:
    """`<<48/2=24>>` is a call and what it is handed, not text to be written."""
    path = tmp_path / "train.jsonl"
    answer = "Half is 48/2 = <<48/2=24>>24.\n#### 24"
    path.write_text("".join(json.dumps({"question": "How many?", "answer": text}) + "\n"
                            for text in (answer, "<<1+1=2>> of another kind")))
    shard, = find_shards([path])
    problem, other = shard.format.read(path, shard.blocks[0])
    assert problem == ({"role": "user", "content": "How many?"}, {"role": "assistant", "content": (
        ("text", "Half is 48/2 = "), ("call", "48/2"), ("output", "24"), ("text", "24.\n#### 24"))})
    assert other[1]["content"] == "<<1+1=2>> of another kind"  # type: ignore[index]


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    """JSON can spell it and UTF-8 cannot: read, learned from and shown it is U+FFFD."""
    path, out = tmp_path / "a.jsonl", tmp_path / "tokenizer.json"
    turns = [{"role": role, "content": "b\ud83d"} for role in ("system", "user", "assistant")]
    rows = [{"text": "a\ud83d"}, {"question": "\udc00?", "answer": "c"}, {"messages": turns},
            {"text": "\U0001f600"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 9))
    shard, = find_shards([path])
    read = shard.format.read(path, shard.blocks[0])
    assert read[:4] == [
        "a\ufffd", ({"role": "user", "content": "\ufffd?"}, {"role": "assistant", "content": "c"}),
        ({"role": "user", "content": "b\ufffd\n\nb\ufffd"},
         {"role": "assistant", "content": "b\ufffd"}), "\U0001f600"]
    quiet = Console(file=io.StringIO(), width=120)
    train_tokenizer(quiet, [str(path)], out, 270, None, 1 << 20, seed=0)
    with (tmp_path / "shown.txt").open("w", encoding="utf-8") as shown:
        show_data(Console(file=shown, width=120), [str(path)], 9)
    assert "- a\ufffd" in (tmp_path / "shown.txt").read_text("utf-8")
    trained = Tokenizer.train(["a\ud83d"], 265)  # of whoever's text
    assert trained.decode(trained.encode("a\ud83d")) == "a\ufffd"


def test_a_sample_has_each_document_once_and_counts_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(f"ä{i:03}" for i in range(300)))
    corpus = Corpus(find_shards([tmp_path / "a.txt"]))
    for most in (1, 100, 1000):
        sizes = [len(text.encode()) for text in corpus.sample(most)]
        assert sum(sizes[:-1]) < most <= sum(sizes)
    whole = corpus.sample(1 << 20)
    assert len(whole) == len(set(whole)) > 280


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize("groups", [[], [0], [0, 2, 0, 0, 3, 0]])
def test_groups_without_rows_have_no_documents(
    tmp_path: Path, kind: str, groups: list[int]
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    schema = pyarrow.schema([("text", pyarrow.string())])
    names = iter("abcde")
    make = pyarrow.table if kind == "parquet" else pyarrow.record_batch
    parts = [make({"text": [next(names) for _ in range(n)]}, schema) for n in groups]
    if kind == "parquet":
        with parquet.ParquetWriter(path, schema) as writer:
            for part in parts:
                writer.write_table(part)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(str(path), schema) as writer:
            for part in parts:
                writer.write_batch(part)
    if sum(groups):
        shard, = find_shards([path])
        assert [d for block in shard.blocks for d in shard.format.read(path, block)] == list(
            "abcde")
    else:
        with pytest.raises(DataError, match="no document is in there"):
            find_shards([path])


def test_long_conversations_are_cut_between_turns(tmp_path: Path) -> None:
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} " + "word " * 150}
             for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    shard, = find_shards([path])
    parts = shard.format.read(path, shard.blocks[0])
    assert shard.split == 1 and len(parts) == 10
    assert [message for part in parts for message in part] == turns
    assert all(part[0]["role"] == "user" and part[-1]["role"] == "assistant" for part in parts)


def test_a_large_group_of_a_table_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    monkeypatch.setattr(formats, "TABLE_BLOCK", 3000)
    parquet.write_table(pyarrow.table({"text": LINES}), tmp_path / "a.parquet", row_group_size=300)
    shard, = find_shards([tmp_path / "a.parquet"])
    bounds = [(block.start, block.end) for block in shard.blocks]
    assert len(bounds) > 8 and {300, 600} <= {end for _, end in bounds}
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    read = [d for block in shard.blocks for d in shard.format.read(shard.path, block)]
    assert read == LINES


def test_long_text_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(20_000)]
    path = tmp_path / "book.txt"
    path.write_text(" ".join(words[:9000]) + "\n\n" + "\n".join(words[9000:]))
    shard, = find_shards([path])
    documents = [d for block in shard.blocks for d in shard.format.read(path, block)]
    assert all(len(text_of(d)) <= document.LONGEST for d in documents) and len(documents) > 30
    assert " ".join(map(text_of, documents)).split() == words


BAD = {
    "empty.txt": (b"", "no document is in there"),
    "blank.txt": (b"\n  \n\n", "no document is in there"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0", "zero byte at byte 8"),
    "latin.txt": ("naïve".encode("latin1"), "no UTF-8 at byte 2"),
    "late.txt": (b"fine\n" * 5000 + b"\xff", "no UTF-8 at byte 25,000"),
    "line.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: it is no JSON"),
    "late.jsonl": (b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * 300 + b"{", "line 301: it is no"),
    "list.jsonl": (b"[1]\n", "is not an object"),
    "field.jsonl": (b'{"body": "a", "n": 1}\n', "fields are 'body', 'n'"),
    "role.jsonl": (b'{"messages": [{"role": "bot", "content": "a"}]}', "needs a 'role'"),
    "turns.jsonl": (b'{"messages": [{"role": "user", "content": "a"}]}', "must end with"),
    "first.jsonl": (b'{"messages": [{"role": "assistant", "content": "a"}]}', "must be the user"),
    "cut.parquet": (b"PAR1 and then nothing", "no Parquet file, or is cut short"),
    "empty.parquet": (b"", "no Parquet file, or is cut short"),
    "text.parquet": (b"only text\n" * 100, "no Parquet file, or is cut short"),
    "empty.arrow": (b"", "no Arrow file, or is cut short"),
    "cut.arrow": (b"ARROW1\0\0 and then nothing", "no Arrow file, or is cut short"),
    "text.arrow": (b"only text\n" * 100, "no Arrow file, or is cut short"),
    "empty.jsonl": (b"", "no document is in there"),
    "wide.txt": ("text".encode("utf-16"), "zero byte at byte 3"),
    "deep.jsonl": (b"[" * 100_000, "line 1: it is no JSON"),
    "text.jsonl": (b'{"text": 5}\n', "fields are 'text'"),
    "null.jsonl": (b'{"messages": [{"role": "user", "content": null}]}', "needs a 'role'"),
    "thing.bin": (b"abc", "of kind .bin"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_place(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        find_shards([tmp_path / name])
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "damage"), [
    ("a.parquet", "one bit"),  # Arrow files have no checksums
    *((name, damage) for name in ("a.parquet", "a.arrow", "stream.arrow")
      for damage in ("overwritten", "half", "no end")),
])
def test_a_damaged_table_is_found_before_training(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path, name)
    data = bytearray(path.read_bytes())
    if damage == "overwritten":
        data[200:3000] = b"\xaa" * 2800
    elif damage == "one bit":
        data[data.index(b"document 7,")] ^= 1
    else:
        del data[len(data) // 2 if damage == "half" else -9:]
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="file, or is cut short or damaged") as raised:
        find_shards([path])
    assert "\n" not in str(raised.value)


MUTATIONS = """
import random, sys
from pathlib import Path
from gossamer.chat.corpus import find_shards
from gossamer.core.errors import DataError
found, good = [0, 0], [Path(name) for name in sys.argv[1:]]
rng = random.Random(7)
for path in good:
    whole = path.read_bytes()
    for _ in range(80):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8, 50])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        broken = path.with_stem("broken")
        broken.write_bytes(data)
        try:
            find_shards([broken])
            found[0] += 1
        except DataError as error:
            assert "\\n" not in str(error), str(error)
            found[1] += 1
assert min(found) > 20, found
"""


def test_no_damage_to_a_table_ends_the_process(tmp_path: Path) -> None:
    """Read without a check of its offsets, a damaged Arrow file is a segmentation fault."""
    names = [str(write(tmp_path, name)) for name in ("a.parquet", "a.arrow", "stream.arrow")]
    done = subprocess.run([sys.executable, "-c", MUTATIONS, *names], capture_output=True, text=True,
                          check=False, timeout=120, env={
                              **os.environ, "PYTHONPATH": str(Path(formats.__file__).parents[2])})
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


@given(st.binary(max_size=400) | st.text(max_size=100).map(str.encode) | st.text(
    alphabet='{}[]":,\\n textmsageroluinhd01', max_size=200).map(str.encode))
@settings(max_examples=300)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_any_bytes_are_documents_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: bytes,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(data)
    try:
        shard, = find_shards([path])
        assert sum(len(shard.format.read(path, b)) for b in shard.blocks) == shard.documents > 0
    except DataError as error:
        assert str(error).startswith(f"--data {path}") and "\n" not in str(error)


def test_a_table_without_a_text_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({"x": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="its columns are 'x'"):
        find_shards([tmp_path / "x.parquet"])


def test_missing_and_changed_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_shards([tmp_path / "none.txt"])
    with pytest.raises(DataError, match=r"no file of \.txt"):
        find_shards([tmp_path])
    path = write(tmp_path, "a.txt")
    corpus = Corpus(find_shards([path]))
    path.write_text("short")
    with pytest.raises(DataError, match="became shorter"):
        [corpus.next() for _ in range(700)]
    with pytest.raises(DataError, match="blocks and now have"):
        Corpus(find_shards([path])).load_state(corpus.state())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_that_was_edited_is_noticed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    corpus, before = Corpus(find_shards([path])), LINES[350]
    state = corpus.state()
    LINES[350] = before.replace("is", "IS")
    write(tmp_path, name)
    LINES[350] = before
    with pytest.raises(DataError, match="changed while it was in use"):
        [corpus.next() for _ in range(700)]
    with pytest.raises(DataError, match="not what it was when the run began"):
        Corpus(find_shards([path])).load_state(state)


def test_patterns(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "b.txt", "a[1].md"):
        (tmp_path / name).write_text("hello")
    assert [s.path.name for s in find_shards([tmp_path / "a?.txt"])] == ["a1.txt", "a2.txt"]
    assert [s.path.name for s in find_shards([tmp_path / "a[1].md"])] == ["a[1].md"]
    with pytest.raises(DataError, match="no file fits this pattern"):
        find_shards([tmp_path / "c*.txt"])


def test_a_corpus_of_held_out_documents_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(next(line for line in LINES if is_measured(line)))
    with pytest.raises(DataError, match="every document is held out"):
        Corpus(find_shards([path])).next()


def test_what_there_is_to_learn_is_shown(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    show_tasks(console, seed=1)
    assert all(name in out.getvalue() for name in TASKS) and "] = " in out.getvalue()
    show_data(console, [str(write(tmp_path, "a.txt"))], documents=3)
    held_out = sum(map(is_measured, LINES))
    assert f"700 documents, 0.03 MB of text; {held_out} of them" in " ".join(out.getvalue().split())
    assert out.getvalue().count("- This is document") == 3


def test_the_mask_lies_under_what_the_assistant_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "one\\ntwo", "answer": "three"}\n{"text": "four"}\n')
    out = io.StringIO()
    tokenizer = Tokenizer.train(["one two three four"] * 9, 275)
    show_mask(Console(file=out, width=200), tokenizer, str(path), documents=2)
    lines = out.getvalue().split("\n")
    for shown, under in (lines[0:2], lines[3:5]):
        under = under.ljust(len(shown))
        marked = "".join(c for c, mark in zip(shown, under, strict=True) if mark == "▔")
        assert marked in ("three<|assistant_end|>", "four")
        assert shown.replace("|", "").startswith("<bos>")
    assert "⏎" in lines[0] and lines[2].endswith("tokens count in the loss.")
