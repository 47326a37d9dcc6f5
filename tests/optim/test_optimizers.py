"""Optimizers against PyTorch's: the same gradients give the same parameters, step after step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim

torch = pytest.importorskip("torch", reason="the values come from PyTorch")

SHAPES = [(4, 3), (5,), (), (2, 3, 2)]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.01, "maximize": True, "eps": 1e-4}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "amsgrad": True}),
    ("Adamax", {"lr": 0.02, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.02, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.02, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1,
                 "initial_accumulator_value": 0.3}),
    ("RMSprop", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    ("Adadelta", {"lr": 1.0, "weight_decay": 0.1}),
    ("ASGD", {"lr": 0.05, "weight_decay": 0.1, "t0": 5.0}),
    ("Rprop", {"lr": 0.01}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
]


def _pair(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    values = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]
    return ([nn.Parameter(gs.tensor(v)) for v in values],
            [torch.nn.Parameter(torch.tensor(v)) for v in values])


def _give(rng: np.random.Generator, ours: list[Any], theirs: list[Any], skip: int = -1) -> None:
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        g = rng.standard_normal(tuple(p.shape)).astype(np.float32)
        p.grad, q.grad = (None, None) if i == skip else (gs.tensor(g), torch.tensor(g))


def _close(ours: list[Any], theirs: list[Any], tolerance: float = 1e-6) -> None:
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(p.detach().numpy()), q.detach().numpy(),
                                   rtol=2 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: str(v))
def test_same_parameters(name: str, settings: dict[str, Any], rng: np.random.Generator) -> None:
    ours, theirs = _pair(rng)
    a = getattr(optim, name)(ours, **settings)
    b = getattr(torch.optim, name)(theirs, **settings)
    for step in range(15):
        _give(rng, ours, theirs, skip=1 if step == 4 else -1)  # one without gradient, once
        a.step()
        b.step()
        _close(ours, theirs)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_learning_rate_changes_and_tensors(name: str, rng: np.random.Generator) -> None:
    ours, theirs = _pair(rng)
    a = getattr(optim, name)(ours, lr=gs.tensor(0.1))
    b = getattr(torch.optim, name)(theirs, lr=0.1)
    for step in range(6):
        rate = 0.1 / (step + 1)
        a.param_groups[0]["lr"].fill_(rate)
        b.param_groups[0]["lr"] = rate
        _give(rng, ours, theirs)
        a.step()
        b.step()
    _close(ours, theirs)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: str(v))
def test_resume_is_bit_for_bit(name: str, settings: dict[str, Any],
                               rng: np.random.Generator) -> None:
    grads = [[rng.standard_normal(s).astype(np.float32) for s in SHAPES] for _ in range(8)]
    start = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]

    def run(params: list[Any], optimizer: Any, steps: range) -> None:
        for step in steps:
            for p, g in zip(params, grads[step], strict=True):
                p.grad = gs.tensor(g)
            optimizer.step()

    whole = [nn.Parameter(gs.tensor(v)) for v in start]
    straight = getattr(optim, name)(whole, **settings)
    run(whole, straight, range(4))
    half = [nn.Parameter(p.detach().clone()) for p in whole]
    resumed = getattr(optim, name)(half, **settings)
    resumed.load_state_dict(straight.state_dict())
    run(whole, straight, range(4, 8))
    run(half, resumed, range(4, 8))
    for p, q in zip(whole, half, strict=True):
        assert np.array_equal(p.detach().numpy(), q.detach().numpy())


def test_state_dict_has_pytorchs_layout(rng: np.random.Generator) -> None:
    ours, theirs = _pair(rng)
    a = optim.AdamW([{"params": ours[:2]}, {"params": ours[2:], "lr": 0.5}], lr=0.1)
    b = torch.optim.AdamW([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.5}], lr=0.1)
    _give(rng, ours, theirs)
    a.step()
    b.step()
    mine, reference = a.state_dict(), b.state_dict()
    assert mine["state"].keys() == reference["state"].keys()
    for number, own in reference["state"].items():
        assert set(own) == set(mine["state"][number])
        for key, value in own.items():
            got = np.asarray(mine["state"][number][key].numpy())
            np.testing.assert_allclose(got, value.numpy(), rtol=1e-6)
    assert [g["params"] for g in mine["param_groups"]] == [[0, 1], [2, 3]]
    assert mine["param_groups"][1]["lr"] == 0.5


def test_half_precision_rounds_once() -> None:
    p = nn.Parameter(gs.ones(4, dtype=gs.bfloat16))
    optimizer = optim.AdamW([p], lr=0.25, weight_decay=0.0)
    p.grad = gs.ones(4, dtype=gs.bfloat16)
    optimizer.step()
    assert p.dtype is gs.bfloat16
    assert p.detach().float().tolist() == [0.75] * 4
    assert optimizer.state[p]["exp_avg"].dtype is gs.bfloat16


def test_one_step_count_for_a_group(rng: np.random.Generator) -> None:
    ours, theirs = _pair(rng)
    optimizer = optim.Adam(ours, lr=0.1)
    _give(rng, ours, theirs)
    optimizer.step()
    assert len({id(optimizer.state[p]["step"]) for p in ours}) == 1
    _give(rng, ours, theirs, skip=0)
    optimizer.step()
    counts = [int(optimizer.state[p]["step"].item()) for p in ours]
    assert counts == [1, 2, 2, 2]


def test_closure_hooks_and_zero_grad() -> None:
    p = nn.Parameter(gs.tensor([2.0]))
    optimizer = optim.SGD([p], lr=0.5)
    seen: list[str] = []
    before = optimizer.register_step_pre_hook(lambda *a: seen.append("before"))
    optimizer.register_step_post_hook(lambda *a: seen.append("after"))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).item()) == 4.0
    assert p.detach().tolist() == [0.0]
    before.remove()
    optimizer.step(closure)
    assert seen == ["before", "after", "after"]
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None and p.grad.tolist() == [0.0]
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda p: optim.SGD([], lr=0.1), ValueError, "empty parameter list"),
    (lambda p: optim.SGD(p, lr=0.1), TypeError, "iterable of Tensors"),
    (lambda p: optim.SGD([{"params": {p}}], lr=0.1), TypeError, "ordered collections"),
    (lambda p: optim.SGD([p * 2], lr=0.1), ValueError, "non-leaf"),
    (lambda p: optim.SGD([1.0], lr=0.1), TypeError, "only optimize Tensors"),
    (lambda p: optim.SGD([{"params": [p]}, {"params": [p]}], lr=0.1), ValueError, "more than one"),
    (lambda p: optim.SGD([p], lr=-1.0), ValueError, "lr=-1.0"),
    (lambda p: optim.SGD([p], lr=0.1, nesterov=True), ValueError, "Nesterov"),
    (lambda p: optim.Adam([p], betas=(1.0, 0.9)), ValueError, "index 0"),
    (lambda p: optim.Adam([p], fussed=True), TypeError, "fussed"),
    (lambda p: optim.MuonAdamW([{"params": [p]}]), ValueError, "kind"),
    (lambda p: optim.Muon([p]), ValueError, "matrices"),
])
def test_mistakes(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(nn.Parameter(gs.tensor([1.0])))


def test_loading_what_does_not_fit() -> None:
    p = nn.Parameter(gs.tensor([1.0]))
    optimizer = optim.Adam([p])
    other = optim.Adam([{"params": [nn.Parameter(gs.tensor([1.0]))]},
                        {"params": [nn.Parameter(gs.tensor([1.0]))]}])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        optimizer.load_state_dict({"state": {}})
