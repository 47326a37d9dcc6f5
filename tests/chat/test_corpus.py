"""A person's own files: each document once an epoch, resumed exactly, bad ones named."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from gossamer.chat import formats
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
        parquet.write_table(table, path, row_group_size=40)
    else:
        path.write_text("<|endoftext|>\n\n".join(LINES))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.parquet"])
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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
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


def test_long_text_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(20_000)]
    path = tmp_path / "book.txt"
    path.write_text(" ".join(words[:9000]) + "\n\n" + "\n".join(words[9000:]))
    shard, = find_shards([path])
    documents = [d for block in shard.blocks for d in shard.format.read(path, block)]
    assert all(len(text_of(d)) <= formats.LONGEST for d in documents) and len(documents) > 30
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
    "thing.bin": (b"abc", "of kind .bin"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_place(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        find_shards([tmp_path / name])
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_damaged_row_group_is_found_before_training(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet")
    data = bytearray(path.read_bytes())
    data[200:3000] = b"\xaa" * 2800
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="no Parquet file, or is cut short"):
        find_shards([path])


def test_a_table_without_a_text_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({"x": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="its columns are x"):
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
