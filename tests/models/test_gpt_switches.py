"""Every switch of GPTConfig changes what it should and nothing else; packed equals unpacked."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.models.gpt import GPT, ROTARY_BASE, SMEAR, SWITCHES, GPTConfig

PLAIN = GPTConfig(vocab_size=70, n_layer=3, n_head=4, n_embd=32, sequence_len=24)


def switched(name: str) -> GPTConfig:
    """The plain model with one switch the other way."""
    field, off, on = SWITCHES[name]
    return replace(PLAIN, **{field: off if getattr(PLAIN, field) == on else on})


EVERY: dict[str, GPTConfig] = {
    **{name: switched(name) for name in SWITCHES},
    "grouped": replace(PLAIN, n_kv_head=2),
    "nanochat": replace(PLAIN, layer_scalars=True, backout=True, softcap=15.0, windows="SSSL"),
    "bare": replace(PLAIN, **{SWITCHES[name][0]: SWITCHES[name][1] for name in SWITCHES}),
}
EACH = pytest.mark.parametrize("name", EVERY)


def trained_like(config: GPTConfig, dtype: Any = gs.float32) -> GPT:
    """A model whose every part matters: the zero-initialised outputs get values too."""
    gs.manual_seed(3)
    model = GPT(config)
    with gs.no_grad():
        for parameter in model.parameters():
            gs.nn.init.normal_(parameter, std=0.3)
    if dtype is gs.float64:  # angles rounded to float32 would show: q.k depends on differences
        half = config.head_dim // 2
        angles = np.arange(config.sequence_len)[:, None] * ROTARY_BASE ** (-np.arange(half) / half)
        model.cos, model.sin = (gs.from_numpy(f(angles)) for f in (np.cos, np.sin))
    return model.to(dtype)


def random_ids(rows: int, length: int) -> gs.Tensor:
    return gs.randint(0, PLAIN.vocab_size, (rows, length))


def before(ids: gs.Tensor, start: int) -> gs.Tensor:
    """The SMEAR tokens before `start`, with a token that must not matter where there are none."""
    filler = gs.full((ids.shape[0], SMEAR), 5, dtype=gs.int64)
    return gs.cat([filler, ids], dim=1)[:, start : start + SMEAR]


def test_the_table_of_switches_is_whole() -> None:
    """Every field that is no size has a switch, and its default is one of the two values."""
    sizes = {"vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "sequence_len"}
    assert {f.name for f in fields(GPTConfig)} - sizes == {f for f, *_ in SWITCHES.values()}
    for field, off, on in SWITCHES.values():
        assert getattr(PLAIN, field) in (off, on) and off != on


@EACH
def test_cached_forward_equals_the_whole(name: str) -> None:
    model = trained_like(EVERY[name])
    ids = random_ids(2, 20)
    with gs.no_grad():
        whole = model(ids)
        cache, parts, start = model.cache(2), [], 0
        for length in (16, 1, 1, 1, 1):
            place = cache.place(gs.full((2,), start), length)
            parts.append(model(ids[:, start : start + length], place, before(ids, start)))
            start += length
    assert gs.allclose(gs.cat(parts, dim=1), whole, atol=2e-4)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "padded_head"])
def test_a_switch_changes_the_scores(name: str) -> None:
    """With the parameters that both models have made equal."""
    plain, other = trained_like(PLAIN), trained_like(EVERY[name])
    mine = plain.state_dict()
    with gs.no_grad():
        for key, value in other.state_dict().items():
            if key in mine and mine[key].shape == value.shape:
                value.copy_(mine[key])
        ids = random_ids(2, 20)
        assert not gs.allclose(plain(ids), other(ids), atol=1e-3)


def test_padding_of_the_head_changes_nothing_but_its_rows() -> None:
    plain, other = trained_like(PLAIN), trained_like(EVERY["padded_head"])
    assert (plain.head_weight.shape[0], other.head_weight.shape[0]) == (128, 70)
    with gs.no_grad():
        for key, value in other.state_dict().items():
            value.copy_(plain.state_dict()[key][: value.shape[0]])
        ids = random_ids(2, 20)
        assert gs.equal(plain(ids), other(ids))


@EACH
def test_every_parameter_learns(name: str) -> None:
    """From the cross-entropy of the scores; and each is in one list of the optimizers'."""
    model = trained_like(EVERY[name])
    ids = random_ids(2, 21)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    logits = model(ids[:, :-1]).reshape(-1, 70)
    right = gs.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)).item()
    assert abs(loss.item() - right) < 1e-4 * right
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum().item() > 0, key
    lists = [*model.matrix_parameters(), *model.value_tables(), *model.small_parameters(),
             *model.stream_parameters(), model.wte.weight, model.head_weight]
    assert {id(p) for p in lists} == {id(p) for p in model.parameters()}


def test_scores_are_capped() -> None:
    with gs.no_grad():
        assert trained_like(EVERY["softcap"])(random_ids(2, 20)).abs().max().item() <= 15.0
        assert trained_like(PLAIN)(random_ids(2, 20)).abs().max().item() > 1.0


def test_windows_by_layer() -> None:
    """S is a quarter of the context, and the last layer is never one."""
    config = replace(PLAIN, windows="S", n_layer=3)
    assert [config.window(i) for i in range(3)] == [6, 6, 0]
    assert [replace(config, windows="SSSL", n_layer=6).window(i) for i in range(6)] == \
        [6, 6, 6, 0, 6, 0]
    assert GPT(config).estimate_flops() < GPT(PLAIN).estimate_flops()


def test_without_rotary_and_smear_the_past_has_no_order() -> None:
    bare = trained_like(replace(EVERY["bare"], n_layer=1))
    ids = random_ids(1, 12)
    mixed = gs.cat([ids[:, :11].flip(1), ids[:, 11:]], dim=1)
    with gs.no_grad():
        assert gs.allclose(bare(ids)[:, -1], bare(mixed)[:, -1], atol=1e-4)
        rotary = trained_like(replace(EVERY["bare"], n_layer=1, rotary=True))
        assert not gs.allclose(rotary(ids)[:, -1], rotary(mixed)[:, -1], atol=1e-2)


def test_bad_values() -> None:
    for windows in ("", "SX", "sl"):
        with pytest.raises(ValueError, match="S for a window or L"):
            GPTConfig(windows=windows)
    for cap in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="capped at"):
            GPTConfig(softcap=cap)


# ------------------------------------------------------------------------- several texts in a row
LENGTHS = ((10, 4, 10), (24,), (4, 20), (1,) * 24)


def packed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, targets and begins of four rows; nothing is asked of a text's last position."""
    ids = rng.integers(0, PLAIN.vocab_size, (len(LENGTHS), 24))
    targets, begins = np.full_like(ids, -1), np.zeros_like(ids)
    for row, lengths in enumerate(LENGTHS):
        end = 0
        for length in lengths:
            start, end = end, end + length
            begins[row, start:end] = start
            targets[row, start : end - 1] = ids[row, start + 1 : end]
    return ids, targets, begins


def gradients(model: GPT) -> dict[str, np.ndarray]:
    return {k: p.grad.double().numpy().copy() for k, p in model.named_parameters()
            if p.grad is not None}


@pytest.mark.parametrize(("name", "dtype"), [
    ("nanochat", gs.float32), ("nanochat", gs.float64), ("bare", gs.float64),
    ("grouped", gs.float64)])
def test_packed_equals_unpacked(name: str, dtype: Any) -> None:
    """Loss and gradients of packed rows are the sums over their texts, each in a row of its own."""
    ids, targets, begins = packed(np.random.default_rng(5))
    model = trained_like(EVERY[name], dtype)
    count = int((targets >= 0).sum())
    loss = model.loss(*map(gs.from_numpy, (ids, targets, begins)))
    loss.backward()
    together = gradients(model)
    for parameter in model.parameters():
        parameter.grad = None
    total = 0.0
    for row, lengths in enumerate(LENGTHS):
        end = 0
        for length in lengths:
            start, end = end, end + length
            if length == 1:
                continue
            alone = model.loss(gs.from_numpy(ids[row : row + 1, start:end].copy()),
                               gs.from_numpy(targets[row : row + 1, start:end].copy()))
            share = alone * ((length - 1) / count)
            share.backward()
            total += share.item()
    limit = 1e-12 if dtype is gs.float64 else 1e-6
    assert abs(total - loss.item()) <= limit * abs(total)
    for key, expected in gradients(model).items():
        error = np.linalg.norm(together[key] - expected)
        assert error <= 8 * limit * max(np.linalg.norm(expected), 1.0), key


def test_a_text_sees_no_other() -> None:
    """A change before a border changes no score behind it."""
    model = trained_like(EVERY["nanochat"])
    ids, _, begins = packed(np.random.default_rng(6))
    changed = ids.copy()
    changed[0, :10] = (changed[0, :10] + 1) % PLAIN.vocab_size
    with gs.no_grad():
        a, b = (model(gs.from_numpy(x), begins=gs.from_numpy(begins)) for x in (ids, changed))
        assert gs.equal(a[0, 10:], b[0, 10:]) and not gs.equal(a[0, :10], b[0, :10])
        whole = model(gs.from_numpy(ids)) - model(gs.from_numpy(changed))
        assert whole[0, 10:].abs().max().item() > 1e-3
