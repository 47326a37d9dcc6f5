"""The figures of `gossamer infer-bench`: what is counted, and that a share is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import gossamer as gs
from gossamer.chat.engine import Engine
from gossamer.chat.lighter import Weights, lighten
from gossamer.chat.speed import bytes_read, decoding, first_token, print_speed
from gossamer.models.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def model() -> GPT:
    gs.manual_seed(0)
    return GPT(GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=16, sequence_len=64)).eval()


def test_bytes_of_a_round(model: GPT) -> None:
    """Weights but for the embeddings, once; keys and values of two layers for each row."""
    state = {name: value.nbytes for name, value in model.state_dict().items()}
    tables = model.wte.weight.nbytes + sum(t.nbytes for t in model.value_tables())
    weights = sum(state[name] for name, _ in model.named_parameters()) - tables
    assert bytes_read(model, 1, 0) == weights
    assert bytes_read(model, 3, 10) - weights == 3 * 10 * 2 * 2 * 16 * 4


def test_bytes_of_packed_weights() -> None:
    """A layer of 64 x 64 is 4 KiB in 8 bits, and a scale of 2 bytes for each row."""
    one = GPTConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=64, sequence_len=64)
    light = lighten(GPT(one), Weights.int8)
    layers = [(64, 64)] * 4 + [(256, 64), (64, 256), (64, 64)]  # q k v proj, fc proj, head
    packed = sum(rows * (columns + 2) for rows, columns in layers)
    assert bytes_read(light, 1, 0) == packed + 4 * (4 * 64 + 12)  # the smear, the gate


def test_measures_are_of_what_was_asked(model: GPT) -> None:
    found = first_token(Engine(model, rows=1), 20)
    assert found.prompt == 20 and 0 < found.seconds < 5
    made = decoding(model, rows=3, rounds=12)
    assert made.rows == 3 and made.level in ("L2", "L3", "memory")
    assert made.tokens_per_second == pytest.approx(3 / made.round_seconds)
    assert 0 < made.share < 1.5


def test_tables(model: GPT) -> None:
    out = io.StringIO()
    print_speed(Console(file=out, width=100), model, rows=(1, 2), prompts=(8, 500))
    assert "time to the first token" in out.getvalue() and "500" not in out.getvalue()
    assert out.getvalue().count("%") == 2
