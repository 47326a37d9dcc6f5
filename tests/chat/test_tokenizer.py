"""The tokenizer: text round trips, special tokens are out of text's reach, masks are exact."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tokenizers import Regex, Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.trainers import BpeTrainer

from gossamer import cli
from gossamer.chat import compression
from gossamer.chat.compression import our_texts, read_rival
from gossamer.chat.curriculum import tokenizer_corpus
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import BYTE_NAMES, SPECIALS, TWO_DIGITS_FROM, Tokenizer
from gossamer.core.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(tokenizer_corpus(TASKS), 1024)


SHARED = Tokenizer.train(["the cat sat on the mat, 12 + 34 = 46. Spell harbor."] * 3, 300)

# Trained on text that is full of the special tokens' names, and on one that is full of rare bytes.
TEMPTED = Tokenizer.train([name * 3 + " " + name[2:-2] for name in SPECIALS] * 50, 500)
RARE = Tokenizer.train(["日本語のテキスト ναι да 🎉🎉 é̂ \x00\x7f\u2028" * 5] * 20, 400)


@given(st.text() | st.text(alphabet="<|>_ 09é日🎉\r\n\t'sS\u0301\u200d\ufeff"))
def test_any_text_round_trips(text: str) -> None:
    for tokenizer in (SHARED, TEMPTED, RARE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(int(tokenizer.bytes_per_token[i]) for i in ids) == len(text.encode())
        assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()


@given(st.text(alphabet=st.characters(codec=None)))
def test_half_a_pair_is_a_replacement_character(text: str) -> None:
    whole = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert SHARED.decode(SHARED.encode(text)) == whole


@pytest.mark.parametrize("tokenizer", [SHARED, TEMPTED, RARE], ids=["shared", "tempted", "rare"])
def test_the_table_of_bytes_is_right_for_every_token(tokenizer: Tokenizer) -> None:
    specials = set(tokenizer.special.values())
    assert len(specials) == len(SPECIALS)
    words = [tokenizer.token_bytes[i] for i in range(tokenizer.vocab_size) if i not in specials]
    assert {bytes([b]) for b in range(256)} <= set(words) and len(set(words)) == len(words)
    for index, data in enumerate(tokenizer.token_bytes):
        size = int(tokenizer.bytes_per_token[index])
        assert size == (0 if index in specials else len(data)), (index, data)
        assert index in specials or 1 <= size
        assert tokenizer.decode([index]) == data.decode("utf-8", "replace"), (index, data)


@pytest.mark.parametrize(("vocabulary", "digits", "pieces"), [
    (600, None, ["1", "2", "3", "4", "5"]), (600, 2, ["12", "34", "5"]),
    (600, 3, ["123", "45"]), (TWO_DIGITS_FROM, None, ["12", "34", "5"]),
])
def test_digits_stand_alone_in_small_vocabularies(
    vocabulary: int, digits: int | None, pieces: list[str],
) -> None:
    texts = [f"{i}" for i in range(1000)] * 3 + ["12345 67890"] * 20
    tokenizer = Tokenizer.train(texts, vocabulary, digits)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == pieces


@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "bos", " ", "é", "a", "<|bos|", "\n"])))
def test_text_never_becomes_a_special_token(parts: list[str]) -> None:
    text = "".join(parts)
    for tokenizer in (SHARED, TEMPTED):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(tokenizer.special.values()) & set(ids)
        assert all(tokenizer.bytes_per_token[i] > 0 for i in ids)


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567890")) == 10
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12+34")] == ["1", "2", "+", "3", "4"]


def test_spelled_letters_are_single_tokens(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("h-a-r-b-o-r => r-o")]
    assert pieces == ["h", "-a", "-r", "-b", "-o", "-r", " =>", " r", "-o"]


def test_an_apostrophe_is_a_contraction_only_at_a_word_s_end() -> None:
    tokenizer = Tokenizer.train(["don't it's 'scatter' scatter"] * 50, 290)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("'scatter")]
    assert "'s" not in pieces
    assert "'s" in [tokenizer.decode([i]) for i in tokenizer.encode("it's")]


def test_mask_covers_exactly_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    conversation = [
        {"role": "user", "content": "Spell cat."}, {"role": "assistant", "content": "c-a-t"},
        {"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "1+1=2 => 2"},
    ]
    ids, mask = tokenizer.render(conversation)
    assert len(ids) == len(mask)
    supervised = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert supervised == "c-a-t<|assistant_end|>1+1=2 => 2<|assistant_end|>"
    assert tokenizer.decode(ids) == (
        "<|bos|><|user_start|>Spell cat.<|user_end|><|assistant_start|>c-a-t<|assistant_end|>"
        "<|user_start|>1 + 1<|user_end|><|assistant_start|>1+1=2 => 2<|assistant_end|>")
    assert tokenizer.render_prompt(conversation[:1]) == ids[: mask.index(1)]


def test_an_output_is_never_the_models_to_produce(tokenizer: Tokenizer) -> None:
    reply = (("call", "6*7"), ("output", "42"), ("text", " => 42"))
    ids, mask = tokenizer.render([{"role": "user", "content": "6 x 7"},
                                  {"role": "assistant", "content": reply}])
    supervised = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert supervised == "<|python_start|>6*7<|python_end|> => 42<|assistant_end|>"
    assert tokenizer.decode(ids).endswith(
        "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|> => 42<|assistant_end|>")


def test_document_is_supervised_but_its_start(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.render_document("A tale.")
    assert ids[0] == tokenizer.bos and mask == [0] + [1] * (len(ids) - 1)


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "system"]])
def test_roles_alternate(tokenizer: Tokenizer, roles: list[str]) -> None:
    with pytest.raises(ValueError, match="turns alternate"):
        tokenizer.render([{"role": r, "content": "x"} for r in roles])


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "How many r are in <|bos|> strawberry? é"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.bos == tokenizer.bos and again.vocab_size == tokenizer.vocab_size == 1024


def test_training_repeats() -> None:
    corpus = tokenizer_corpus(TASKS)[:2000]
    assert Tokenizer.train(corpus, 400).to_json() == Tokenizer.train(corpus, 400).to_json()


def test_bad_files_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
    path.write_text('{"model": 3')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
    with pytest.raises(ValueError, match="265"):
        Tokenizer.train(["x"], 100)
    whole = json.loads(SHARED.to_json())
    lacking = json.loads(SHARED.to_json())
    lacking["model"]["vocab"] = {
        token: i for token, i in whole["model"]["vocab"].items() if BYTE_NAMES.get(token) != 7}
    path.write_text(json.dumps(lacking))
    with pytest.raises(CheckpointError, match="1 of the 256 bytes have no token"):
        Tokenizer.load(path)


# Beside others -----------------------------------------------------------------------------------


def published(folder: Path) -> tuple[Path, Path, Path, Backend]:
    """A small byte-level tokenizer as merges, as ranks and as one JSON; and itself."""
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)  # GPT-2's pattern
    alphabet = sorted(ByteLevel.alphabet())
    backend.train_from_iterator(our_texts().values(), BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    merges, ranks, whole = (folder / name for name in ("vocab.bpe", "x.tiktoken", "tokenizer.json"))
    merges.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes(BYTE_NAMES[c] for c in a + b) for a, b in model["merges"]]
    ranks.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    whole.write_text(backend.to_str())
    return merges, ranks, whole, backend


def test_others_are_counted_as_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    merges, ranks, whole, backend = published(tmp_path)
    monkeypatch.setitem(compression._PUBLISHED, 900, ("mine", compression._GPT2))
    rivals = [read_rival(path) for path in (merges, tmp_path / "encoder.json", ranks, whole)]
    assert [rival.size for rival in rivals] == [900] * 4 and rivals[0].name == "mine"
    texts = [*our_texts().values(), "", "   ", "x" * 500, "don't  stop\n\n\n 12345", "é\ud800"]
    for text in texts:
        clean = text.encode("utf-8", "replace").decode()
        assert {r.count(clean) for r in rivals} == {len(backend.encode(clean).ids)}


def test_a_piece_that_is_a_token_is_one_though_no_merges_lead_to_it() -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"xyz": 257}
    assert compression.merged(b"xyz", ranks) == [b"xyz"]
    assert compression.merged(b"xyzab", ranks) == [b"x", b"y", b"z", b"ab"]


def test_published_patterns_cut_as_published() -> None:
    text = "I've 12345 CamelCase'll\n\n  x"
    found = [[piece for piece, _ in Split(Regex(pattern), "isolated").pre_tokenize_str(text)]
             for _, pattern in compression._PUBLISHED.values()]
    assert found == [
        ["I", "'ve", " 12345", " CamelCase", "'ll", "\n\n ", " x"],
        ["I", "'ve", " ", "123", "45", " CamelCase", "'ll", "\n\n", " ", " x"],
        ["I've", " ", "123", "45", " Camel", "Case'll", "\n\n", " ", " x"]]


BAD_RIVALS = {
    "none.bpe": (None, "cannot be read"), "none.json": (None, "no such file"),
    "empty.bpe": (b"", "neither ranks"), "prose.txt": (b"Once upon a time.\n", "neither ranks"),
    "some.tiktoken": (b"IQ== 0\nIg== 1\n", "254 of the 256 bytes"),
    "cut.tiktoken": (b"IQ== 0\nIg=", "line 2 is"), "binary.bpe": (b"\xff\0\1", "neither ranks"),
    "broken.json": (b"{", "must be a tokenizer.json"), "vocab.json": (b"{}", "not beside it"),
}


@pytest.mark.parametrize("name", BAD_RIVALS)
def test_a_bad_file_of_another_tokenizer_is_one_line(tmp_path: Path, name: str) -> None:
    data, words = BAD_RIVALS[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        read_rival(tmp_path / name)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("--against ")
    with pytest.raises(DataError, match="no merges.txt"):
        (tmp_path / "folder").mkdir()
        read_rival(tmp_path / "folder")


def test_tok_trains_measures_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    published(tmp_path)
    sentences = (f"A cat, number {i}, sat." for i in range(900))
    (tmp_path / "mine.txt").write_text("<|endoftext|>".join(sentences))
    out = tmp_path / "new.json"

    def tok(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gossamer", "tok", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out + said.err

    train = ("train", str(tmp_path / "mine.txt"), "--vocab", "2000", "--out", str(out))
    code, said = tok(*train)
    tokenizer = Tokenizer.load(out)
    assert code == 0 and f"{tokenizer.vocab_size} tokens from 0.0 million" in said
    assert "no more pairs to merge" in said and "bytes per token on documents held out" in said
    code, said = tok(*train)
    assert code == 1 and "exists already" in said and said.count("\n") == 1
    code, said = tok("eval", str(tmp_path / "mine.txt"), "--tokenizer", str(out),
                     "--against", str(tmp_path))
    text = our_texts()["news"]
    share = len(text.encode()) / len(tokenizer.encode(text))
    assert code == 0 and f"{share:.2f}" in said and "mine.txt" in said and "Korean" in said
    (tmp_path / "code.py").write_text("é" * 600_000)  # cut in the middle of a character
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    code, said = tok("eval", str(tmp_path / "code.py"), "--tokenizer", str(out))
    assert code == 0 and "1,048,576" in said
    code, said = tok("eval", str(tmp_path / "picture.png"), "--tokenizer", str(out))
    assert code == 1 and "no UTF-8 at byte 0" in said and said.count("\n") == 1
    code, said = tok("show", "a cat <|bos|> é", "--tokenizer", str(out))
    assert code == 0 and "␣cat" in said and r"\xc3" in said and "bytes a token" in said
    code, said = tok("eval", "--tokenizer", str(tmp_path / "none.json"))
    assert code == 1 and "none.json" in said and said.count("\n") == 1
