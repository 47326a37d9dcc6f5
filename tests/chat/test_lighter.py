"""Packed weights: what is packed, and what the loss is measured on."""

from __future__ import annotations

import math

import pytest

import gossamer as gs
from gossamer.chat.evaluate import question_set, to_conversation
from gossamer.chat.lighter import Weights, lighten, reply_bits
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.models.gpt import GPT, GPTConfig
from gossamer.quantization import QuantizedLinear

TOKENIZER = Tokenizer.train(["How many r are in strawberry? c-a-t 12 + 30 = 42"] * 9, 290)


def made(context: int = 256) -> GPT:
    gs.manual_seed(0)
    return GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, n_layer=2, n_head=2, n_embd=32,
                         sequence_len=context))


def test_gates_and_tables_stay() -> None:
    model = lighten(made(), Weights.int4)
    packed = {name for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    assert len(packed) == 2 * 6 + 1 and "head" in packed
    assert not any("gate" in name or "table" in name for name in packed)
    assert not any(isinstance(part, QuantizedLinear)
                   for part in lighten(made(), Weights.float32).modules())


def test_bits_of_a_model_that_knows_nothing() -> None:
    """log2 V for each token that is to be said; their bytes are those of the reply."""
    model = made()
    with gs.no_grad():
        gs.nn.init.zeros_(model.head.weight)
    tokens, sizes = list[int](), list[int]()
    for questions in question_set(TASKS, 12).values():
        for question in questions:
            ids, mask = TOKENIZER.render(to_conversation(question))
            said = [i for i, counted in zip(ids[:257], mask, strict=False) if counted]
            tokens.append(len(said))
            sizes.append(sum(int(TOKENIZER.bytes_per_token[i]) for i in said))
    each = math.log2(TOKENIZER.vocab_size)
    found = reply_bits(model, TOKENIZER)
    assert found.value == pytest.approx(sum(tokens) * each / sum(sizes), rel=1e-5)
    off = [t * each - found.value * s for t, s in zip(tokens, sizes, strict=True)]
    assert found.error == pytest.approx(math.hypot(*off) / sum(sizes), rel=1e-4)


def test_fewer_bits_change_the_scores_a_little() -> None:
    ids = gs.tensor([[5, 6, 7, 8]])
    with gs.no_grad():
        exact = made()
        for parameter in exact.parameters():
            gs.nn.init.normal_(parameter, std=0.2)
        right = exact(ids)
        errors = []
        for weights in (Weights.int8, Weights.int4):
            light = made()
            light.load_state_dict(exact.state_dict())
            errors.append(((lighten(light, weights)(ids) - right).norm() / right.norm()).item())
    assert 0 < errors[0] < 0.02 < errors[1] < 0.4
