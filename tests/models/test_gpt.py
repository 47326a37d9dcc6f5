"""The GPT: causal, cached decoding equals naive, counts are right, sizes are checked."""

from __future__ import annotations

import math

import pytest

import gossamer as gs
from gossamer.models.gpt import GPT, SMEAR, GPTConfig

SMALL = GPTConfig(vocab_size=70, n_layer=2, n_head=4, n_embd=32, sequence_len=24)
GROUPED = GPTConfig(vocab_size=70, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, sequence_len=24)
BOTH = pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["full", "grouped"])


def trained_like(config: GPTConfig) -> GPT:
    """A model whose every part matters: the zero-initialised outputs get values too."""
    gs.manual_seed(3)
    model = GPT(config)
    with gs.no_grad():
        for parameter in model.parameters():
            gs.nn.init.normal_(parameter, std=0.3)
    return model


def random_ids(model: GPT, rows: int, length: int) -> gs.Tensor:
    return gs.randint(0, model.config.vocab_size, (rows, length))


def window(ids: gs.Tensor, start: int) -> gs.Tensor:
    """The SMEAR tokens before `start`, with a token that must not matter where there are none."""
    filler = gs.full((ids.shape[0], SMEAR), 5, dtype=gs.int64)
    return gs.cat([filler, ids], dim=1)[:, start : start + SMEAR]


def test_starts_as_a_uniform_guess() -> None:
    gs.manual_seed(0)
    model = GPT(SMALL)
    ids = random_ids(model, 4, 24)
    loss = model.loss(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - math.log(SMALL.vocab_size)) < 0.01


@BOTH
def test_the_future_changes_nothing(config: GPTConfig) -> None:
    model = trained_like(config)
    ids = random_ids(model, 2, 12)
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % config.vocab_size
    with gs.no_grad():
        a, b = model(ids), model(changed)
    assert gs.allclose(a[:, :8], b[:, :8], atol=1e-5)
    assert not gs.allclose(a[:, 8:], b[:, 8:], atol=1e-3)


@BOTH
@pytest.mark.parametrize("chunks", [(12,), (1,) * 12, (5, 7), (5, 1, 4, 2)])
def test_cached_forward_equals_the_whole(config: GPTConfig, chunks: tuple[int, ...]) -> None:
    model = trained_like(config)
    ids = random_ids(model, 3, 12)
    with gs.no_grad():
        whole = model(ids)
        cache, parts, start = model.cache(3), [], 0
        for length in chunks:
            place = cache.place(gs.full((3,), start), length)
            parts.append(model(ids[:, start : start + length], place, window(ids, start)))
            start += length
    assert gs.allclose(gs.cat(parts, dim=1), whole, atol=1e-4)


@BOTH
def test_rows_at_different_positions(config: GPTConfig) -> None:
    """Rows 2 and 0 of a cache of three go on where each stands; row 1 stays as it is."""
    model = trained_like(config)
    ids = random_ids(model, 2, 12)
    with gs.no_grad():
        whole = model(ids)
        cache = model.cache(3)
        for line, row, length in ((0, 2, 7), (1, 0, 3)):
            model(ids[line:line + 1, :length], cache.place(gs.tensor([0]), length,
                                                           gs.tensor([row])),
                  window(ids[:1], 0))
        untouched = cache.keys[0][24:48].clone()
        place = cache.place(gs.tensor([7, 3]), 5, gs.tensor([2, 0]))
        new = gs.stack([ids[0, 7:12], ids[1, 3:8]])
        logits = model(new, place, gs.cat([window(ids[:1], 7), window(ids[1:], 3)]))
    assert gs.allclose(logits[0], whole[0, 7:12], atol=1e-4)
    assert gs.allclose(logits[1], whole[1, 3:8], atol=1e-4)
    assert gs.equal(cache.keys[0][24:48], untouched) and not untouched.any()


def test_each_position_takes_in_the_four_before_it() -> None:
    """Through the smear alone (no attention): a change reaches four positions on, no further."""
    model = trained_like(SMALL)
    with gs.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
        ids = random_ids(model, 1, 12)
        other = ids.clone()
        other[0, 3] = (other[0, 3] + 1) % SMALL.vocab_size
        differs = (model(ids) - model(other)).abs().amax(dim=-1)[0] > 1e-3
    assert differs.tolist() == [3 <= t <= 3 + SMEAR for t in range(12)]


def test_counts() -> None:
    model = GPT(GPTConfig())
    D, V, L, T = 128, 1024, 4, 256
    matmul = L * 12 * D * D + V * D
    tables = V * D * (1 + L // 2)  # tokens, and values in every second layer
    assert 0 < model.count_parameters() - matmul - tables < 5 * D  # smear and gates
    assert model.estimate_flops() == 6 * matmul + 12 * L * D * T
    assert len(model.matrix_parameters()) == 6 * L
    kinds = [*model.matrix_parameters(), *model.value_tables(), *model.small_parameters(),
             model.wte.weight, model.head.weight]
    assert {id(p) for p in kinds} == {id(p) for p in model.parameters()}


def test_head_is_padded_and_logits_are_not() -> None:
    model = GPT(SMALL)
    assert model.head.weight.shape[0] == 128
    assert model(random_ids(model, 1, 4)).shape[-1] == 70


def test_ignored_targets_do_not_count() -> None:
    model = trained_like(SMALL)
    ids = random_ids(model, 2, 10)
    targets = random_ids(model, 2, 10)
    targets[0] = -1
    half = model.loss(ids, targets).item()
    alone = model.loss(ids[1:], targets[1:]).item()
    assert abs(half - alone) < 1e-5


def test_every_parameter_gets_a_gradient() -> None:
    model = trained_like(GROUPED)
    ids = random_ids(model, 2, 12)
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum().item() > 0, name


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"multiple of 2 \* n_head"):
        GPTConfig(n_embd=100, n_head=8)
    with pytest.raises(ValueError, match="must divide n_head"):
        GPTConfig(n_head=4, n_kv_head=3)
    model = GPT(SMALL)
    with pytest.raises(ValueError, match="exceed the context of 24"):
        model(random_ids(model, 1, 25))
