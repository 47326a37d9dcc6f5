"""What each scheme costs: how far a small Llama's scores move, and that the table's order holds."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, quantization as q
from gossamer.models.llama import Decoder, Llama, LlamaConfig

# Mean divergence from the float32 model, in nats a token: about three times what was measured.
ALLOWED = [
    (q.Int8WeightOnlyConfig(), 1.2e-3), (q.Int8WeightOnlyConfig(group_size=32), 8e-4),
    (q.Int8DynamicActivationInt8WeightConfig(), 1.8e-3),
    (q.Int8DynamicActivationInt8WeightConfig(group_size=32), 1.1e-3),
    (q.Int4WeightOnlyConfig(), 0.2), (q.Int4WeightOnlyConfig(group_size=64), 0.23),
    (q.Int4WeightOnlyConfig(None), 0.27), (q.Int8DynamicActivationInt4WeightConfig(), 0.21)]
IDS = [f"{type(c).__name__}-{c.group_size}" for c, _ in ALLOWED]
TOKENS = gs.tensor([[i * i * 7 % 300 for i in range(48)]])


def model() -> Llama:
    gs.manual_seed(0)
    made = Llama(LlamaConfig(dim=128, hidden_dim=192, n_layers=2, n_heads=4, n_kv_heads=2,
                             vocab_size=300, seq_len=64)).requires_grad_(False)
    for weight in made.parameters():  # normal, as trained weights are more than uniform ones
        if weight.dim() == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return made


def log_probabilities(made: Llama) -> np.ndarray:
    logits = made(TOKENS)[0].numpy().astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.cache
def divergence(config: q.QuantizationConfig) -> float:
    """Kullback-Leibler, from the float32 model to the quantised one."""
    with gs.no_grad():
        exact = log_probabilities(model())
        found = log_probabilities(gs.quantize_(model(), config))
    return float((np.exp(exact) * (exact - found)).sum(-1).mean())


@pytest.mark.parametrize(("config", "allowed"), ALLOWED, ids=IDS)
def test_scores_stay_close(config: q.QuantizationConfig, allowed: float) -> None:
    assert allowed / 30 < divergence(config) < allowed


def test_more_bits_and_smaller_groups_are_closer() -> None:
    eight, four = q.Int8WeightOnlyConfig, q.Int4WeightOnlyConfig
    errors = [divergence(c) for c in (eight(32), eight(), four(32), four(64), four(None))]
    assert errors == sorted(errors) and errors[2] > 20 * errors[1]


@pytest.mark.parametrize("config", [c for c, _ in ALLOWED[::3]], ids=IDS[::3])
def test_decoding_is_the_forward(config: q.QuantizationConfig) -> None:
    """Few rows, which packed weights are read for, and many give the same tokens."""
    made = gs.quantize_(model(), config)
    tokens = TOKENS[0, :20].tolist()
    decoder = Decoder(made)
    for _ in range(12):
        with gs.no_grad():
            expected = made(gs.tensor([tokens]))[0, -1].numpy()
        found = decoder.read(tokens[decoder.position:])
        assert expected[found] >= expected.max() - 2e-3 * np.abs(expected).max()
        tokens.append(found)
