"""Packed weights, the modules that hold them, and `quantize_`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, quantization as q
from gossamer.data.safetensors import load_file, save_file

CONFIGS = [q.Int8WeightOnlyConfig(), q.Int8WeightOnlyConfig(group_size=64),
           q.Int4WeightOnlyConfig(), q.Int4WeightOnlyConfig(64, gs.bfloat16),
           q.Int8DynamicActivationInt8WeightConfig(scale_dtype=gs.float32),
           q.Int8DynamicActivationInt4WeightConfig()]
IDS = [f"{type(c).__name__}-{c.group_size}" for c in CONFIGS]


def drawn(*shape: int, seed: int = 0) -> gs.Tensor:
    return gs.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_no_weight_is_off_by_more_than_its_scale_allows(config: q.QuantizationConfig) -> None:
    """Half a step; in 4 bits a whole one at the end that has no code of its own (+8)."""
    w = drawn(21, 100)
    packed = q.PackedWeight.from_float(w, config)
    error = np.abs(packed.dequantize().numpy() - w.numpy())
    scale = np.abs(packed.scale.float().numpy())
    groups = scale.shape[1]
    width = -(-100 // (config.group_size or 32)) * (config.group_size or 32)
    step = np.repeat(scale.transpose(0, 2, 1).reshape(-1, groups), width // groups, 1)[:21, :100]
    allowed = 0.5 if config.bits == 8 else 1.0
    # A scale of 16 bits may be rounded down, and the largest weight with it.
    assert (error <= step * (allowed + 127 * 2.0**-9)).all()
    assert np.median(error / step) < 0.5


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_zeros_and_padding_stay_zero(config: q.QuantizationConfig) -> None:
    packed = q.PackedWeight.from_float(gs.zeros(5, 40), config)
    assert not packed.dequantize().numpy().any()
    assert not packed.product(drawn(3, 40)).numpy().any()
    assert not q.PackedWeight(5, 40, config).dequantize().numpy().any(), "a new one is zero too"


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_layer_is_the_layer_of_the_dequantised_weight(config: q.QuantizationConfig) -> None:
    layer = nn.Linear(70, 35)
    quantised = q.QuantizedLinear.from_float(layer, config)
    plain = nn.Linear(70, 35)
    plain.load_state_dict({"weight": quantised.weight.dequantize(), "bias": layer.bias})
    for shape in ((70,), (1, 70), (2, 3, 70), (40, 70), (0, 70)):
        x = drawn(*shape)
        want = plain(x).detach().numpy()
        found = quantised(x)
        assert found.dtype is gs.float32 and found.shape == want.shape
        # Rounding activations to 8 bits costs up to 1 / 254 of the largest in a block.
        np.testing.assert_allclose(found.numpy(), want, rtol=0,
                                   atol=0.03 if config.dynamic else 2e-6 * 10)
    half = quantised(drawn(2, 70).bfloat16())
    assert half.dtype is gs.bfloat16
    np.testing.assert_allclose(half.float().numpy(), quantised(drawn(2, 70)).numpy(), atol=0.05)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gradient_of_x_is_that_of_the_dequantised_weight(dynamic: bool) -> None:
    config = q.Int8DynamicActivationInt8WeightConfig() if dynamic else q.Int8WeightOnlyConfig()
    layer = q.QuantizedLinear.from_float(nn.Linear(40, 20), config)
    x = drawn(3, 40).requires_grad_()
    layer(x).sum().backward()
    want = layer.weight.dequantize().numpy().sum(0)
    np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(want, (3, 40)), atol=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.other = nn.Embedding(50, 64)
        self.middle = nn.Sequential(nn.Linear(64, 64), nn.GELU())
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        return self.head(self.middle(self.table(x) + self.other(x)))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_tied_embedding_shares_the_packed_weight(config: q.QuantizationConfig) -> None:
    model = Tied()
    ids = gs.tensor([[3, 49, 0, 17]])
    before = model(ids).detach().numpy()
    assert gs.quantize_(model, config) is model
    assert isinstance(model.table, q.QuantizedEmbedding) and type(model.other) is nn.Embedding
    assert model.table.weight is model.head.weight
    rows = model.table(ids).numpy()
    np.testing.assert_array_equal(rows[0], model.head.weight.dequantize().numpy()[[3, 49, 0, 17]])
    after = model(ids).detach().numpy()
    scale = np.abs(before).max()
    assert np.abs(after - before).max() < scale * (0.02 if config.bits == 8 else 0.3)
    with gs.no_grad():
        np.testing.assert_allclose(gs.compile(model)(ids).numpy(), after, atol=1e-5 * scale)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_state_goes_through_safetensors(config: q.QuantizationConfig, tmp_path: Path) -> None:
    gs.manual_seed(1)
    model, other = gs.quantize_(Tied(), config), gs.quantize_(Tied(), config)
    ids = gs.tensor([5, 6])
    want = model(ids).detach().numpy()
    state = model.state_dict()
    assert {"table.weight.packed", "head.weight.scale", "middle.0.bias"} <= set(state)
    save_file({k: v.detach().clone() for k, v in state.items()}, tmp_path / "m.safetensors")
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(other(ids).detach().numpy(), want)


def test_the_filter_chooses_by_module_and_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
    seen = []
    gs.quantize_(model, q.Int8WeightOnlyConfig(),
                 lambda m, name: seen.append(name) or name == "1.0")
    assert seen == ["0", "1.0"]
    assert type(model[0]) is nn.Linear and isinstance(model[1][0], q.QuantizedLinear)


def test_what_a_model_prints() -> None:
    model = gs.quantize_(nn.Sequential(nn.Linear(64, 3)), q.Int4WeightOnlyConfig())
    text = repr(model)
    assert "QuantizedLinear(" in text and "bits=4, group_size=32, scale_dtype=float16" in text
    assert model[0].weight.nbytes == 16 * 64 // 2 + 16 * 2 * 2


def test_wrong_arguments_say_what_is_right() -> None:
    with pytest.raises(ValueError, match=r"group_size=33\): it must be a multiple of 32"):
        q.Int4WeightOnlyConfig(group_size=33)
    with pytest.raises(ValueError, match="scale_dtype=.*must be float16"):
        q.Int4WeightOnlyConfig(scale_dtype=gs.int8)
    with pytest.raises(TypeError, match="Pass Int8WeightOnlyConfig"):
        gs.quantize_(nn.Sequential(nn.Linear(2, 2)), "int8")
    with pytest.raises(TypeError, match="itself a Linear"):
        gs.quantize_(nn.Linear(2, 2), q.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="not finite"):
        q.PackedWeight.from_float(gs.full((2, 2), float("inf")), q.Int8WeightOnlyConfig())
    packed = q.PackedWeight.from_float(drawn(5, 40), q.Int8WeightOnlyConfig())
    with pytest.raises(gs.ShapeError, match=r"linear \(in_features=40\): x has shape \(3, 41\)"):
        packed.product(drawn(3, 41))
    with pytest.raises(gs.IndexingError, match="out of range"):
        packed.look_up(gs.tensor([5])).numpy()


def test_rows_are_rounded_once_for_all_products_of_them() -> None:
    layers = nn.ModuleList(nn.Linear(64, n, bias=False) for n in (48, 16, 64))
    plain = nn.ModuleList(nn.Linear(64, n, bias=False) for n in (48, 16, 64))
    plain.load_state_dict(layers.state_dict())
    config = q.Int8DynamicActivationInt8WeightConfig(group_size=32)
    q.quantize_(layers, config)
    x = gs.randn(2, 64)
    step = gs.compile(lambda x: [layer(x) for layer in layers])
    with gs.no_grad():
        for found, layer in zip(step(x), plain, strict=True):
            single = q.QuantizedLinear.from_float(layer, config)(x)
            np.testing.assert_array_equal(found.numpy(), single.numpy())
    names = [call.name for call in step.programs()[0].compiled.calls]
    assert names.count("round activations") == 1 and len(names) == 4


def test_an_index_that_a_product_made_is_checked_with_this_call_s_rows() -> None:
    model = nn.Sequential(nn.Linear(64, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    q.quantize_(model, q.Int8DynamicActivationInt8WeightConfig(group_size=32))
    table = gs.arange(100.0)
    step = gs.compile(lambda x: table[(model(x) + 0.5).to(gs.int64)[0]])
    with gs.no_grad():
        for value in (1.0, 0.5, 1.0):
            assert step(gs.full((1, 64), value)).tolist() == [64 * value]
            with pytest.raises(gs.IndexingError):
                step(gs.full((1, 64), 2.0))
