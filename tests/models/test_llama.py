"""The reader of llama2.c's files: what it makes of good files and of damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from gossamer.core.errors import CheckpointError
from gossamer.models.llama import (
    Decoder,
    Llama,
    LlamaConfig,
    LlamaTokenizer,
    load_llama2c,
)

CONFIG = LlamaConfig(dim=8, hidden_dim=12, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=10,
                     seq_len=16)


def model_file(path: Path, tied: bool = True, rng: np.random.Generator | None = None) -> Path:
    c = CONFIG
    count = (c.vocab_size * c.dim * (1 if tied else 2) + c.dim + 2 * c.seq_len * c.head_dim // 2
             + c.n_layers * (2 * c.dim + 2 * c.dim * c.dim + 2 * c.dim * c.head_dim
                             + 3 * c.dim * c.hidden_dim))
    head = struct.pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                       c.vocab_size if tied else -c.vocab_size, c.seq_len)
    values = (rng or np.random.default_rng(0)).standard_normal(count).astype("<f4")
    path.write_bytes(head + values.tobytes())
    return path


def test_tied_and_untied_output(tmp_path: Path) -> None:
    tied = load_llama2c(model_file(tmp_path / "a.bin"))
    assert tied.output.weight is tied.tok_embeddings.weight
    apart = load_llama2c(model_file(tmp_path / "b.bin", tied=False))
    size = [sum(p.numel() for p in m.parameters()) for m in (tied, apart)]
    assert size[1] - size[0] == CONFIG.vocab_size * CONFIG.dim
    assert not np.array_equal(apart.output.weight.numpy(), apart.tok_embeddings.weight.numpy())


def test_a_later_token_does_not_change_earlier_scores(tmp_path: Path) -> None:
    model = load_llama2c(model_file(tmp_path / "a.bin"))
    first = model(gs.tensor([[1, 2, 3, 4]])).numpy()
    second = model(gs.tensor([[1, 2, 3, 9]])).numpy()
    assert first.shape == (1, 4, 10)
    np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-5)
    assert not np.allclose(first[:, 3], second[:, 3])


def test_greedy_is_the_argmax_of_the_forward(tmp_path: Path) -> None:
    lengths = []
    for seed in range(4):  # some of these random models end at once
        model = load_llama2c(model_file(tmp_path / "a.bin", rng=np.random.default_rng(seed)))
        tokens = [3, *model.greedy([3], 100)]
        scores = model(gs.tensor([tokens]))[0].numpy().argmax(-1).tolist()
        assert scores[:-1] == tokens[1:]
        assert len(tokens) == CONFIG.seq_len or scores[-1] in (1, 2)
        lengths.append(len(tokens))
    assert max(lengths) == CONFIG.seq_len and len(set(lengths)) > 1


@pytest.mark.parametrize(("change", "text"), [
    (lambda d: d[:20], "20 bytes"), (lambda d: d[:-4], "Copy the file again"),
    (lambda d: d + b"\0", "Copy the file again"), (lambda d: b"\0" * len(d), "no model"),
    (lambda d: b"GGUF" + d[4:], "no model"),
])
def test_damaged_models(tmp_path: Path, change, text: str) -> None:
    path = model_file(tmp_path / "a.bin")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=text):
        load_llama2c(path)


def tokenizer_file(path: Path, tokens: list[bytes]) -> Path:
    rows = (struct.pack("<fi", 0.0, len(t)) + t for t in tokens)
    path.write_bytes(struct.pack("<i", max(map(len, tokens))) + b"".join(rows))
    return path


def test_decoding(tmp_path: Path) -> None:
    tokens = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x0A>", b" once", "é".encode(), b"<0xC3>",
              b"<0xA9>"]
    tokenizer = LlamaTokenizer(tokenizer_file(tmp_path / "t.bin", tokens))
    assert tokenizer.decode([4, 3, 5, 6, 7, 4]) == "once\néé once"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("cut", [1, 9])
def test_a_tokenizer_cut_short(tmp_path: Path, cut: int) -> None:
    path = tokenizer_file(tmp_path / "t.bin", [b"ab", b"cde"])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="token 1"):
        LlamaTokenizer(path)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 70])
def test_a_text_read_in_pieces_is_the_text_read_at_once(length: int) -> None:
    """The cache gives what the whole forward gives, whatever lies behind the text."""
    gs.manual_seed(length)
    model = Llama(LlamaConfig(16, 24, 2, 4, 2, 40, 128)).requires_grad_(False)
    decoder = Decoder(model, context=90)
    tokens = [i * i % 40 for i in range(length)]
    for _ in range(90 - length):
        found = decoder.read(tokens[decoder.position:])
        assert found == int(model(gs.tensor([tokens]))[0, -1].argmax().item())
        tokens.append(found)
    assert decoder.position == 89
    decoder.read([1])
    with pytest.raises(ValueError, match="1 tokens at position 90 of 90"):
        decoder.read([1])


def test_one_program_decodes_every_position() -> None:
    model = Llama(CONFIG).requires_grad_(False)
    decoder = Decoder(model)
    for token in range(CONFIG.seq_len):
        decoder.read([token % 10])
    assert decoder._step.traced == 1
