"""The dial: ten minutes are the reference exactly, more a larger model; the rules as written."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import gossamer as gs
from gossamer.chat import dial as room
from gossamer.chat.dial import Dial, chosen_dtype, switched, training_rate, turn
from gossamer.chat.speedrun import SpeedrunOptions, plan
from gossamer.chat.train import MATRIX_LR, TrainSettings, build_optimizers
from gossamer.models.gpt import GPT, SWITCHES, GPTConfig

RATE = 107e9  # of the reference machine


def of_hour(**more: object) -> Dial:
    return turn(60, dtype="float32", rate=RATE, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("minutes", [0.1, 1, 10])
def test_up_to_ten_minutes_nothing_is_scaled(minutes: float, optimizer: str) -> None:
    dial = turn(minutes, dtype="float32")
    config = dial.config()
    assert config == GPTConfig(vocab_size=1024, n_layer=4, n_head=4, n_embd=128, sequence_len=256)
    base = TrainSettings(optimizer=optimizer)
    found = dial.settings(base, config)
    weightless = replace(base, matrix_lr=MATRIX_LR[optimizer])
    assert found == weightless and (found.batch_size, found.embedding_lr) == (8, 0.7)


def test_an_hour_is_six_layers_with_longer_rows() -> None:
    dial = of_hour()
    config = dial.config()
    assert (config.n_layer, config.n_head, config.n_embd) == (6, 6, 192)
    assert (config.sequence_len, dial.vocabulary) == (512, 1024)
    settings = dial.settings(TrainSettings(), config)
    assert settings.batch_size * config.sequence_len == dial.batch_tokens == 2048
    assert settings.head_lr == pytest.approx(0.02 * (192 / 128) ** -0.5)
    assert settings.matrix_lr == 0.02  # Muon's steps do not depend on the width


def test_more_minutes_or_a_faster_machine_never_shrink_a_model() -> None:
    for rates in ((RATE,) * 7, tuple(RATE * 2.0**k for k in range(7))):
        depths = [turn(11 * 2.0**k, dtype="float32", rate=r).depth for k, r in enumerate(rates)]
        assert depths == sorted(depths) and depths[-1] > depths[0] == 4
    every = [turn(m, dtype="float32", rate=RATE) for m in (20, 60, 600)]
    assert all(d.tokens >= 4 * d.config().matrix_count for d in every)


def test_batch_and_rates_by_their_rules() -> None:
    """log2 of 4 times the batch: (D / D0)^0.383 = 4, so D / D0 = 37.3."""
    dial = Dial(4, int(37.3 * room.REFERENCE_TOKENS))
    config, base = dial.config(), TrainSettings(weight_decay=0.1)
    assert dial.batch_tokens == 4 * room.REFERENCE_BATCH
    found = dial.settings(base, config)
    assert found.batch_size == 32 and found.matrix_lr == pytest.approx(0.04)
    assert found.embedding_lr == pytest.approx(1.4) and found.head_lr == pytest.approx(0.04)
    assert found.weight_decay == pytest.approx(0.1 * math.sqrt(4) / 37.3)


def test_a_depth_of_ones_own() -> None:
    config = turn(10, 12).config()
    assert (config.n_layer, config.n_head, config.n_embd, config.sequence_len) == (12, 12, 384, 512)
    assert turn(10, 4, own_text=True).config().vocab_size == 2048
    assert turn(10, 1, steps=3).tokens == 3 * 2048


def test_the_sizes_of_a_config_are_those_of_its_model() -> None:
    for config in (Dial(4, 1).config(), switched(Dial(6, 1).config(), ["untied"], ["windows"]),
                   GPTConfig(n_kv_head=2)):
        model = GPT(config)
        matrices = [*model.matrix_parameters(), model.head_weight]
        assert config.matrix_count == sum(p.numel() for p in matrices)


def test_what_is_decided_once_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has the settings it began with, on a machine of any speed."""
    monkeypatch.setattr(room, "training_rate", lambda dtype: RATE)
    options, first = plan(SpeedrunOptions(minutes=60, dtype="bfloat16", having=("backout",)))
    monkeypatch.setattr(room, "training_rate", lambda dtype: 50 * RATE)
    assert plan(options) == (options, first)
    assert plan(SpeedrunOptions(minutes=60, dtype="bfloat16"))[1].depth > first.depth


def test_the_dtype_is_what_the_machine_is_faster_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peaks:
        def __init__(self, **flops: float) -> None:
            self.flops = flops

    for flops, expected, rate in (({"float32": 2e11}, "float32", 0.46 * 2e11),
                                  ({"float32": 2e11, "bfloat16": 2.1e11}, "float32", 0.46 * 2e11),
                                  ({"float32": 2e11, "bfloat16": 4e11}, "bfloat16", 0.69 * 2e11)):
        monkeypatch.setattr(gs.insight, "peaks", lambda flops=flops: Peaks(**flops))
        assert chosen_dtype() == expected
        assert training_rate(expected) == pytest.approx(rate)
    assert chosen_dtype("auto", minutes=0.1) == "float32" and chosen_dtype("float32") == "float32"
    with pytest.raises(ValueError, match="--dtype float16: products are in"):
        chosen_dtype("float16")


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_by_name(name: str) -> None:
    field, off, on = SWITCHES[name]
    config = GPTConfig()
    assert getattr(switched(config, [name], []), field) == off
    assert getattr(switched(config, [], [name]), field) == on


def test_switches_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="--without wings: there is no such feature"):
        plan(SpeedrunOptions(without=("wings",), dtype="float32"))
    with pytest.raises(ValueError, match="it is either off or on"):
        plan(SpeedrunOptions(without=("smear",), having=("smear",), dtype="float32"))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_parameter_has_an_optimizer(name: str) -> None:
    """And only one, whatever is switched."""
    field, off, on = SWITCHES[name]
    sizes = GPTConfig(vocab_size=70, n_layer=2, n_head=2, n_embd=16, sequence_len=16)
    for value in (off, on):
        model = GPT(replace(sizes, **{field: value}))
        groups = [g for o in build_optimizers(model, TrainSettings()) for g in o.param_groups]
        given = [id(p) for group in groups for p in group["params"]]
        assert sorted(given) == sorted(id(p) for p in model.parameters())
