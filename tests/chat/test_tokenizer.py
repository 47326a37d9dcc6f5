"""The tokenizer: text round trips, special tokens are out of text's reach, masks are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from gossamer.chat.curriculum import tokenizer_corpus
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import SPECIALS, Tokenizer
from gossamer.core.errors import CheckpointError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(tokenizer_corpus(TASKS), 1024)


SHARED = Tokenizer.train(["the cat sat on the mat, 12 + 34 = 46. Spell harbor."] * 3, 300)


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = SHARED.encode(text)
    assert SHARED.decode(ids) == text
    assert sum(int(SHARED.bytes_per_token[i]) for i in ids) == len(text.encode())


@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "bos", " ", "é", "a", "<|bos|", "\n"])))
def test_text_never_becomes_a_special_token(parts: list[str]) -> None:
    text = "".join(parts)
    special = {SHARED.bos, SHARED.user_start, SHARED.user_end, SHARED.assistant_start,
               SHARED.assistant_end}
    ids = SHARED.encode(text)
    assert SHARED.decode(ids) == text
    assert not special & set(ids)
    assert all(SHARED.bytes_per_token[i] > 0 for i in ids)


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
