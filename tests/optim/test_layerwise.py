"""LAMB and NovoGrad against their papers' formulas, stated here in float64 NumPy."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.optim import layerwise

SHAPES = [(4, 3), (5,), (), (2, 3, 2)]
Arrays = list[np.ndarray]


def lamb(ps: Arrays, grads: list[Arrays], lr: float, betas: tuple[float, float] = (0.9, 0.999),
         eps: float = 1e-6, weight_decay: float = 0.01, bias_correction: bool = True,
         adam_w_mode: bool = True, grad_averaging: bool = True, max_grad_norm: float = 1.0,
         use_nvlamb: bool = False) -> Arrays:
    """Algorithm 2 of arXiv 1904.00962, with Apex's clipping and switches."""
    ps, (b1, b2) = list(ps), betas
    ms, vs = [0.0 * p for p in ps], [0.0 * p for p in ps]
    for t, gs_ in enumerate(grads, 1):
        total = np.sqrt(sum((g * g).sum() for g in gs_))
        clip = max_grad_norm / total if 0 < max_grad_norm < total else 1.0
        c1, c2 = (1 - b1**t, 1 - b2**t) if bias_correction else (1.0, 1.0)
        for i, (p, g) in enumerate(zip(ps, gs_, strict=True)):
            g = g * clip if adam_w_mode else g * clip + weight_decay * p
            ms[i] = b1 * ms[i] + (1 - b1 if grad_averaging else 1.0) * g
            vs[i] = b2 * vs[i] + (1 - b2) * g * g
            r = ms[i] / c1 / (np.sqrt(vs[i] / c2) + eps)
            r = r + weight_decay * p if adam_w_mode else r
            size, length = np.linalg.norm(p), np.linalg.norm(r)
            used = (use_nvlamb or weight_decay != 0) and size > 0 and length > 0
            ps[i] = p - lr * (size / length if used else 1.0) * r
    return ps


def novograd(ps: Arrays, grads: list[Arrays], lr: float,
             betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
             weight_decay: float = 0.0, grad_averaging: bool = True, norm_type: float = 2,
             init_zero: bool = False, reg_inside_moment: bool = False,
             bias_correction: bool = True) -> Arrays:
    """Algorithm 1 of arXiv 1905.11286 (v = n²), with Apex's switches."""
    ps, (b1, b2) = list(ps), betas
    ms, ns = [0.0 * p for p in ps], [0.0 for _ in ps]
    for t, gs_ in enumerate(grads, 1):
        c1, c2 = (1 - b1**t, np.sqrt(1 - b2**t)) if bias_correction else (1.0, 1.0)
        for i, (p, g) in enumerate(zip(ps, gs_, strict=True)):
            norm = np.sqrt((g * g).sum()) if norm_type == 2 else np.abs(g).max()
            if t == 1 and not init_zero:
                ns[i] = norm
            elif norm_type == 2:
                ns[i] = np.sqrt(b2 * ns[i] ** 2 + (1 - b2) * norm**2)
            else:
                ns[i] = b2 * ns[i] + (1 - b2) * norm
            unit = ns[i] / c2 + eps
            new = g / unit + weight_decay * p if reg_inside_moment else g
            ms[i] = b1 * ms[i] + (1 - b1 if grad_averaging else 1.0) * new
            update = ms[i] / c1
            ps[i] = p - lr * (update if reg_inside_moment else update / unit + weight_decay * p)
    return ps


PAPER = {"betas": (0.95, 0.98), "weight_decay": 0.01, "reg_inside_moment": True,
         "grad_averaging": False, "bias_correction": False}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("LAMB", {"lr": 0.02}),
    ("LAMB", {"lr": 0.02, "weight_decay": 0.0}),
    ("LAMB", {"lr": 0.02, "weight_decay": 0.0, "use_nvlamb": True, "max_grad_norm": 0.0}),
    ("LAMB", {"lr": 0.02, "weight_decay": 0.3, "adam_w_mode": False, "max_grad_norm": 100.0}),
    ("LAMB", {"lr": 0.02, "bias_correction": False, "grad_averaging": False,
              "betas": (0.8, 0.95), "eps": 1e-3}),
    ("NovoGrad", {"lr": 0.05}),
    ("NovoGrad", {"lr": 0.05, **PAPER}),
    ("NovoGrad", {"lr": 0.05, "weight_decay": 0.1, "init_zero": True, "betas": (0.8, 0.9)}),
    ("NovoGrad", {"lr": 0.05, "norm_type": 0, "betas": (0.8, 0.9)}),
    ("NovoGrad", {"lr": 0.05, "reg_inside_moment": True, "weight_decay": 0.1, "eps": 0.1}),
]
FORMULAS = {"LAMB": lamb, "NovoGrad": novograd}


def _draw(rng: np.random.Generator, steps: int) -> tuple[Arrays, list[Arrays]]:
    def one() -> Arrays:
        return [np.asarray(rng.standard_normal(s)) for s in SHAPES]

    return one(), [one() for _ in range(steps)]


def _run(params: list[Any], optimizer: Any, grads: list[Arrays]) -> None:
    for given in grads:
        for p, g in zip(params, given, strict=True):
            p.grad = gs.tensor(g, dtype=p.dtype)
        optimizer.step()


def _close(params: list[Any], want: Arrays, tolerance: float) -> None:
    for p, w in zip(params, want, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [gs.float32, gs.float64], ids=str)
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_the_formulas(name: str, settings: dict[str, Any], dtype: Any,
                      rng: np.random.Generator) -> None:
    start, grads = _draw(rng, 6)
    params = [nn.Parameter(gs.tensor(v, dtype=dtype)) for v in start]
    _run(params, getattr(optim, name)(params, **settings), grads)
    _close(params, FORMULAS[name](start, grads, **settings), 5e-6 if dtype is gs.float32 else 1e-12)


def test_groups_have_their_own_settings_and_lamb_one_norm(rng: np.random.Generator) -> None:
    """A group without weight decay takes Adam's steps; the clipping sees all groups."""
    start, grads = _draw(rng, 5)
    params = [nn.Parameter(gs.tensor(v, dtype=gs.float64)) for v in start]
    _run(params, optim.LAMB([{"params": params[:2]},
                             {"params": params[2:], "weight_decay": 0.0, "lr": 0.1}], lr=0.02),
         grads)
    _close(params[:2], lamb(start, grads, 0.02)[:2], 1e-12)
    _close(params[2:], lamb(start, grads, 0.1, weight_decay=0.0)[2:], 1e-12)
    params = [nn.Parameter(gs.tensor(v, dtype=gs.float64)) for v in start]
    _run(params, optim.NovoGrad([{"params": params[:2]},
                                 {"params": params[2:], "weight_decay": 0.2}], lr=0.05), grads)
    _close(params[:2], novograd(start, grads, 0.05)[:2], 1e-12)
    _close(params[2:], novograd(start, grads, 0.05, weight_decay=0.2)[2:], 1e-12)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [gs.float32, gs.bfloat16], ids=str)
def test_resume_is_bit_for_bit(name: str, settings: dict[str, Any], dtype: Any,
                               rng: np.random.Generator) -> None:
    start, grads = _draw(rng, 6)
    whole = [nn.Parameter(gs.tensor(v, dtype=dtype)) for v in start]
    straight = getattr(optim, name)(whole, **settings)
    _run(whole, straight, grads[:3])
    half = [nn.Parameter(p.detach().clone()) for p in whole]
    resumed = getattr(optim, name)(half, **settings)
    resumed.load_state_dict(straight.state_dict())
    _run(whole, straight, grads[3:])
    _run(half, resumed, grads[3:])
    for p, q in zip(whole, half, strict=True):
        assert np.array_equal(p.detach().float().numpy(), q.detach().float().numpy())


def test_a_compiled_step_sees_settings_that_change_to_and_from_zero(
        rng: np.random.Generator) -> None:
    """Weight decay and the limit of the norm are read anew at each run."""
    start, grads = _draw(rng, 4)
    changes = [(0.0, 1.0), (0.1, 0.0), (0.0, 0.5), (0.2, 0.0)]

    def run(compiled: bool) -> list[Any]:
        params = [nn.Parameter(gs.tensor(v, dtype=gs.float64)) for v in start]
        optimizer = optim.LAMB(params, lr=0.05)
        step = gs.compile(optimizer.step) if compiled else optimizer.step
        for (decay, limit), given in zip(changes, grads, strict=True):
            optimizer.param_groups[0].update(weight_decay=decay, max_grad_norm=limit)
            for p, g in zip(params, given, strict=True):
                p.grad = gs.tensor(g)
            step()
        return params

    _close(run(True), [p.detach().numpy() for p in run(False)], 1e-12)


def test_zero_parameters_and_zero_gradients() -> None:
    """A norm of 0 leaves the ratio at 1, and nothing is divided by it."""
    p, q = nn.Parameter(gs.zeros(3)), nn.Parameter(gs.ones(3))
    p.grad, q.grad = gs.ones(3), gs.zeros(3)
    optim.LAMB([p, q], lr=0.5, weight_decay=0.0, use_nvlamb=True).step()
    np.testing.assert_allclose(p.tolist(), [-0.5] * 3, rtol=1e-5)
    assert q.tolist() == [1.0] * 3
    optim.NovoGrad([q], lr=0.5).step()
    assert q.tolist() == [1.0] * 3


def test_the_examples_run() -> None:
    done = doctest.testmod(layerwise)
    assert done.attempted and not done.failed


@pytest.mark.parametrize(("make", "text"), [
    (lambda p: optim.LAMB([p], max_grad_norm=-1.0), "max_grad_norm=-1.0"),
    (lambda p: optim.LAMB([p], betas=(0.9, 1.0)), "index 1"),
    (lambda p: optim.NovoGrad([p], norm_type=1), "norm_type=1"),
])
def test_mistakes(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(nn.Parameter(gs.tensor([1.0])))
