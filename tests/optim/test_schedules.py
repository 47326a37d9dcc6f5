"""Schedules against PyTorch's: the same learning rates, step after step."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.optim import schedule as ours

torch = pytest.importorskip("torch", reason="the values come from PyTorch")
theirs = torch.optim.lr_scheduler

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LambdaLR", {"lr_lambda": lambda t: 1 / (t + 1)}),
    ("LambdaLR", {"lr_lambda": [lambda t: 0.9 ** t, lambda t: 0.5 ** t]}),
    ("MultiplicativeLR", {"lr_lambda": lambda t: 0.95}),
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 9], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.8, "total_iters": 6}),
    ("PolynomialLR", {"total_iters": 7, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 20}),
    ("OneCycleLR", {"max_lr": [1.0, 2.0], "epochs": 4, "steps_per_epoch": 6, "three_phase": True,
                    "anneal_strategy": "linear", "pct_start": 0.4}),
]
# Counted, not printed: a function prints with its address, another in each of pytest's workers.
NAMES = [f"{name}-{n}" for n, (name, _) in enumerate(CASES)]


def _optimizers(name: str = "SGD", **settings: Any) -> tuple[Any, Any]:
    made = []
    for module, library in ((nn, optim), (torch.nn, torch.optim)):
        tensor = gs.ones if library is optim else torch.ones
        groups = [{"params": [module.Parameter(tensor(1))]},
                  {"params": [module.Parameter(tensor(1))], "lr": 0.3}]
        made.append(getattr(library, name)(groups, lr=0.1, **settings))
    return made[0], made[1]


def _rates(optimizer: Any) -> list[float]:
    return [g["lr"] for g in optimizer.param_groups]


def _same(a: Any, b: Any, sa: Any, sb: Any, steps: int) -> None:
    assert _rates(a) == pytest.approx(_rates(b), rel=1e-9)
    for _ in range(steps):
        b.step()
        sa.step()
        sb.step()
        assert _rates(a) == pytest.approx(_rates(b), rel=1e-9, abs=1e-15)
        assert sa.get_last_lr() == pytest.approx(sb.get_last_lr(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=NAMES)
def test_same_rates(name: str, settings: dict[str, Any]) -> None:
    a, b = _optimizers(momentum=0.9)
    sa, sb = getattr(ours, name)(a, **settings), getattr(theirs, name)(b, **settings)
    _same(a, b, sa, sb, 19)
    if name == "OneCycleLR":
        assert [g["momentum"] for g in a.param_groups] == pytest.approx(
            [g["momentum"] for g in b.param_groups])


@pytest.mark.parametrize(("name", "settings"), CASES, ids=NAMES)
def test_resume(name: str, settings: dict[str, Any]) -> None:
    if name == "LambdaLR" or name == "MultiplicativeLR":
        settings = {"lr_lambda": lambda t: 0.9}
    a, _ = _optimizers(momentum=0.9)
    b, _ = _optimizers(momentum=0.9)
    whole, half = getattr(ours, name)(a, **settings), getattr(ours, name)(b, **settings)
    for _ in range(5):
        whole.step()
    b.load_state_dict(a.state_dict())
    half.load_state_dict(whole.state_dict())
    for _ in range(8):
        whole.step()
        half.step()
        assert _rates(a) == _rates(b)


def test_beta1_cycles_for_adam() -> None:
    a, b = _optimizers("Adam")
    sa = ours.OneCycleLR(a, 0.5, total_steps=9)
    sb = theirs.OneCycleLR(b, 0.5, total_steps=9)
    _same(a, b, sa, sb, 8)
    assert a.param_groups[0]["betas"] == pytest.approx(b.param_groups[0]["betas"])
    b.step()
    sa.step()
    with pytest.raises(ValueError, match="total steps is 9"):
        sa.step()


def test_sequential_and_chained() -> None:
    def build(m: Any, o: Any) -> Any:
        return m.SequentialLR(o, [m.LinearLR(o, 0.1, total_iters=4), m.CosineAnnealingLR(o, 6),
                                  m.ExponentialLR(o, 0.5)], [4, 9])

    a, b = _optimizers()
    _same(a, b, build(ours, a), build(theirs, b), 14)
    a, b = _optimizers()
    _same(a, b, ours.ChainedScheduler([ours.ConstantLR(a, 0.1), ours.ExponentialLR(a, 0.9)]),
          theirs.ChainedScheduler([theirs.ConstantLR(b, 0.1), theirs.ExponentialLR(b, 0.9)]), 8)


def test_sequential_resumes() -> None:
    made = []
    for _ in range(2):
        o, _unused = _optimizers()
        made.append((o, ours.SequentialLR(
            o, [ours.LinearLR(o, 0.1, total_iters=3), ours.StepLR(o, 2)], [3])))
    (a, whole), (b, half) = made
    for _ in range(4):
        whole.step()
    b.load_state_dict(a.state_dict())
    half.load_state_dict(whole.state_dict())
    for _ in range(5):
        whole.step()
        half.step()
        assert _rates(a) == _rates(b)


@pytest.mark.parametrize("settings", [
    {"patience": 1, "factor": 0.5}, {"mode": "max", "patience": 0, "cooldown": 2},
    {"threshold_mode": "abs", "threshold": 0.3, "patience": 1, "min_lr": [0.02, 0.05]},
])
def test_plateau(settings: dict[str, Any]) -> None:
    a, b = _optimizers()
    sa = ours.ReduceLROnPlateau(a, **settings)
    sb = theirs.ReduceLROnPlateau(b, **settings)
    for metric in [3, 2, 2.1, 2.2, 1.9, 1.9, 1.9, 1.9, 2.5, 0.5, 0.6, 0.7, 0.8, 0.9, math.nan]:
        sa.step(metric)
        sb.step(metric)
        assert _rates(a) == pytest.approx(_rates(b))
    assert sa.best == sb.best


def test_tensor_rates_are_written_in_place() -> None:
    p = nn.Parameter(gs.ones(1))
    rate = gs.tensor(0.5)
    optimizer = optim.SGD([p], lr=rate)
    ours.ExponentialLR(optimizer, 0.5).step()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


@pytest.mark.parametrize(("shape", "middle"), [
    ("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_warmup_stable_decay(shape: str, middle: float) -> None:
    a, _ = _optimizers()
    schedule = ours.WarmupStableDecay(a, total_steps=20, warmup_steps=4, decay_share=0.4,
                                      shape=shape)
    seen = []
    for _ in range(21):
        seen.append(_rates(a)[0] / 0.1)
        schedule.step()
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[4:13] == pytest.approx([1.0] * 9)
    assert seen[16] == pytest.approx(middle) and seen[20] == pytest.approx(0.0)
    assert json.dumps(schedule.state_dict())


@pytest.mark.parametrize(("make", "error"), [
    (lambda o: ours.StepLR(3, 1), TypeError),
    (lambda o: ours.LambdaLR(o, [lambda t: 1.0]), ValueError),
    (lambda o: ours.OneCycleLR(o, 1.0), ValueError),
    (lambda o: ours.CosineAnnealingWarmRestarts(o, 0), ValueError),
    (lambda o: ours.ReduceLROnPlateau(o, factor=2.0), ValueError),
    (lambda o: ours.StepLR(o, 1, last_epoch=3), KeyError),
    (lambda o: ours.SequentialLR(o, [ours.StepLR(o, 1)], [2]), ValueError),
])
def test_mistakes(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(_optimizers()[0])
