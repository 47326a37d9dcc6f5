"""Initialisation, clipping, vectors of parameters, sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.nn import init, utils

torch = pytest.importorskip("torch", reason="the values come from PyTorch")


@pytest.mark.parametrize(("name", "args", "low", "high", "std"), [
    ("uniform_", (-2.0, 3.0), -2, 3, 5 / math.sqrt(12)),
    ("normal_", (1.0, 0.5), -3, 5, 0.5),
    ("trunc_normal_", (0.0, 1.0, -1.0, 1.5), -1, 1.5, 0.64),
    ("xavier_uniform_", (2.0,), -0.7, 0.7, 2 * math.sqrt(2 / 100)),
    ("xavier_normal_", (), -1, 1, math.sqrt(2 / 100)),
    ("kaiming_uniform_", (math.sqrt(5),), -0.13, 0.13, math.sqrt(1 / 180)),
    ("kaiming_normal_", (0, "fan_out", "relu"), -2, 2, math.sqrt(2 / 40)),
])
def test_distributions(name: str, args: Any, low: float, high: float, std: float) -> None:
    ours = getattr(init, name)(gs.empty(400, 60)[:40], *args) if name == "x" else None
    t = gs.empty(40, 60)
    assert getattr(init, name)(t, *args) is t
    reference = getattr(torch.nn.init, name)(torch.empty(40, 60), *args).numpy()
    values = t.numpy()
    assert ours is None and low <= values.min() and values.max() <= high
    assert values.std() == pytest.approx(reference.std(), rel=0.1)
    assert values.std() == pytest.approx(std, rel=0.12)
    assert values.mean() == pytest.approx(reference.mean(), abs=0.1)


def test_fixed_values() -> None:
    assert init.constant_(gs.empty(2), 3).tolist() == [3, 3]
    assert init.ones_(gs.empty(2)).tolist() == [1, 1]
    assert init.zeros_(gs.empty(2)).tolist() == [0, 0]
    assert init.eye_(gs.empty(2, 3)).tolist() == [[1, 0, 0], [0, 1, 0]]
    for shape, groups in (((4, 2, 3), 2), ((3, 3, 3, 3), 1), ((2, 3, 2, 2, 2), 1)):
        ours = init.dirac_(gs.empty(*shape), groups).numpy()
        assert np.array_equal(ours, torch.nn.init.dirac_(torch.empty(*shape), groups).numpy())
    for shape in ((5, 5), (3, 7), (7, 3), (4, 2, 3)):
        q = init.orthogonal_(gs.empty(*shape), 2.0).numpy().reshape(shape[0], -1).astype("float64")
        q = q if q.shape[0] <= q.shape[1] else q.T
        np.testing.assert_allclose(q @ q.T, 4 * np.eye(len(q)), atol=1e-5)
    assert (init.sparse_(gs.empty(10, 6), 0.3).numpy() == 0).sum(0).tolist() == [3] * 6
    gs.manual_seed(3)
    a = init.normal_(gs.empty(5)).tolist()
    gs.manual_seed(3)
    assert init.normal_(gs.empty(5)).tolist() == a


def test_parameters_are_filled_outside_autograd() -> None:
    p = nn.Parameter(gs.empty(3, 3))
    for fill in (init.uniform_, init.normal_, init.trunc_normal_, init.xavier_normal_, init.eye_,
                 init.zeros_, init.orthogonal_, init.kaiming_uniform_):
        fill(p)
        assert p.is_leaf and p.requires_grad and p.grad_fn is None


@pytest.mark.parametrize("name", ["linear", "conv2d", "sigmoid", "tanh", "relu", "selu"])
def test_gains(name: str) -> None:
    assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.3))


def test_mistakes() -> None:
    for make, text in ((lambda: init.calculate_gain("gelu"), "gelu"),
                       (lambda: init.eye_(gs.empty(2)), r"\(2,\)"),
                       (lambda: init.dirac_(gs.empty(3, 2, 2), 2), "groups=2"),
                       (lambda: init.xavier_uniform_(gs.empty(3)), r"\(3,\)"),
                       (lambda: init.kaiming_uniform_(gs.empty(3, 3), mode="in"), "in"),
                       (lambda: init.orthogonal_(gs.empty(3)), r"\(3,\)")):
        with pytest.raises(ValueError, match=text):
            make()
    with pytest.warns(UserWarning, match="no-op"):
        init.kaiming_uniform_(gs.empty(0, 3))


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_by_norm(order: float, limit: float, rng: np.random.Generator) -> None:
    grads = [rng.standard_normal(s).astype(np.float32) for s in ((3, 2), (4,), ())]
    ours = [nn.Parameter(gs.zeros(*g.shape)) for g in grads] + [nn.Parameter(gs.ones(2))]
    theirs = [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads]
    for p, q, g in zip(ours, theirs, grads, strict=False):
        p.grad, q.grad = gs.tensor(g), torch.tensor(g)
    a = utils.clip_grad_norm_(ours, limit, order)
    b = torch.nn.utils.clip_grad_norm_(theirs, limit, order)
    assert a.item() == pytest.approx(b.item(), rel=1e-6)
    for p, q in zip(ours, theirs, strict=False):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)
    assert ours[-1].grad is None


def test_clip_by_value_and_corner_cases() -> None:
    p = nn.Parameter(gs.zeros(3))
    p.grad = gs.tensor([-3.0, 0.5, 2.0])
    utils.clip_grad_value_([p], 1)
    assert p.grad.tolist() == [-1.0, 0.5, 1.0]
    assert utils.clip_grad_norm_([], 1.0).item() == 0.0
    p.grad = gs.tensor([math.nan, 0.0, 0.0])
    with pytest.raises(RuntimeError, match="non-finite"):
        utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)


def test_clipping_compiles() -> None:
    p = nn.Parameter(gs.ones(4))

    @gs.compile
    def step(scale: Any) -> Any:
        p.grad = None
        (p * scale).sum().backward()
        return utils.clip_grad_norm_([p], 1.0)

    for scale in (0.1, 3.0, 7.0):
        assert step(gs.tensor(scale)).item() == pytest.approx(2 * scale)
        assert p.grad.square().sum().item() == pytest.approx(min(1, 4 * scale**2), rel=1e-4)


def test_vectors() -> None:
    model = nn.Linear(2, 3)
    vector = utils.parameters_to_vector(model.parameters())
    assert tuple(vector.shape) == (9,)
    utils.vector_to_parameters(gs.arange(9).float(), model.parameters())
    assert model.weight.tolist() == [[0, 1], [2, 3], [4, 5]] and model.bias.tolist() == [6, 7, 8]
    assert model.weight.requires_grad and model.weight.is_leaf
    with pytest.raises(ValueError, match="9 elements"):
        utils.vector_to_parameters(gs.ones(8), model.parameters())


def test_sequences() -> None:
    parts = [gs.ones(3, 2), 2 * gs.ones(1, 2)]
    padded = utils.pad_sequence(parts, batch_first=True, padding_value=-1.0)
    assert padded[1].tolist() == [[2, 2], [-1, -1], [-1, -1]]
    assert tuple(utils.pad_sequence(parts).shape) == (3, 2, 2)
    left = utils.pad_sequence(parts, batch_first=True, padding_side="left")
    assert left[1].tolist() == [[0, 0], [0, 0], [2, 2]]
    back = utils.unpad_sequence(padded, gs.tensor([3, 1]), batch_first=True)
    assert [b.tolist() for b in back] == [p.tolist() for p in parts]
