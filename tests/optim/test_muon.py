"""Muon: against the formulas written out again in PyTorch, and its promises one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.optim.muon import POLAR_EXPRESS, orthogonalize

torch = pytest.importorskip("torch", reason="the second form of the formulas is PyTorch's")

SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5), (2, 4, 3)]


class Reference:
    """One matrix at a time, each formula as in its paper."""

    def __init__(self, p: Any, lr: float, momentum: float, beta2: float, decay: float) -> None:
        self.p, self.lr, self.mu, self.beta2, self.decay = p, lr, momentum, beta2, decay
        self.m = torch.zeros_like(p)
        self.dim = -1 if p.shape[-2] >= p.shape[-1] else -2
        self.v = torch.zeros_like(p.mean(self.dim, keepdim=True))

    def step(self, g: Any) -> None:
        p = self.p
        rows, cols = p.shape[-2:]
        self.m = self.mu * self.m + (1 - self.mu) * g
        x = (1 - self.mu) * g + self.mu * self.m  # Nesterov
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean_norm = torch.linalg.matrix_norm(x, keepdim=True) / rows ** 0.5
        x = x / norms * mean_norm
        x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.01 + 1e-6)
        for a, b, c in POLAR_EXPRESS:
            gram = x @ x.mT
            x = a * x + b * gram @ x + c * gram @ gram @ x
        x = x / torch.linalg.matrix_norm(x, keepdim=True) * min(rows, cols) ** 0.5
        mean = x.square().mean(self.dim, keepdim=True)
        self.v = self.beta2 * self.v + (1 - self.beta2) * mean
        scaled = x / self.v.sqrt()
        x = scaled * (torch.linalg.matrix_norm(x, keepdim=True)
                      / torch.linalg.matrix_norm(scaled, keepdim=True))
        lr = self.lr * max(1.0, rows / cols) ** 0.5
        shrinks = (x * p >= 0).to(p.dtype)
        self.p = p - lr * x - lr * self.decay * p * shrinks


def test_same_as_the_formulas(rng: np.random.Generator) -> None:
    start = [rng.standard_normal(s) for s in SHAPES]
    params = [nn.Parameter(gs.tensor(v)) for v in start]
    optimizer = optim.Muon(params, lr=0.05, momentum=0.9, weight_decay=0.2, beta2=0.8)
    references = [Reference(torch.tensor(v), 0.05, 0.9, 0.8, 0.2) for v in start]
    for _ in range(6):
        for p, r in zip(params, references, strict=True):
            g = rng.standard_normal(tuple(p.shape))
            p.grad = gs.tensor(g)
            r.step(torch.tensor(g))
        optimizer.step()
    for p, r in zip(params, references, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), r.p.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16), (3, 8, 5)])
def test_singular_values_come_near_one(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = orthogonalize(gs.tensor(rng.standard_normal(shape)))
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    assert values.min() > 0.7 and values.max() < 1.3


def test_stacks_and_state_survive_a_checkpoint(rng: np.random.Generator) -> None:
    params = [nn.Parameter(gs.tensor(rng.standard_normal(s).astype(np.float32))) for s in SHAPES]
    gains = nn.Parameter(gs.ones(4))
    groups: list[dict[str, Any]] = [
        {"kind": "muon", "params": params, "lr": 0.02, "weight_decay": 0.1},
        {"kind": "adamw", "params": [gains], "lr": 0.01, "betas": (0.8, 0.9)}]
    optimizer = optim.MuonAdamW(groups)
    grads = [[rng.standard_normal(tuple(p.shape)).astype(np.float32) for p in [*params, gains]]
             for _ in range(4)]

    def step(o: Any, ps: list[Any], i: int) -> None:
        for p, g in zip(ps, grads[i], strict=True):
            p.grad = gs.tensor(g)
        o.step()

    for i in range(2):
        step(optimizer, [*params, gains], i)
    # (6, 4) twice is one stack of two
    assert sorted(tuple(s["momentum_buffer"].shape) for p, s in optimizer.state.items()
                  if "momentum_buffer" in s) == [(1, 2, 4, 3), (1, 4, 6), (1, 5, 5), (2, 6, 4)]
    copies = [nn.Parameter(p.detach().clone()) for p in [*params, gains]]
    resumed = optim.MuonAdamW([{"kind": "muon", "params": copies[:-1]},
                               {"kind": "adamw", "params": copies[-1:]}])
    resumed.load_state_dict(optimizer.state_dict())
    for i in range(2, 4):
        step(optimizer, [*params, gains], i)
        step(resumed, copies, i)
    for p, q in zip([*params, gains], copies, strict=True):
        assert np.array_equal(p.detach().numpy(), q.detach().numpy())


def test_half_precision_parameters() -> None:
    p = nn.Parameter(gs.ones(4, 4, dtype=gs.bfloat16))
    optimizer = optim.Muon([p], lr=0.5)
    p.grad = gs.eye(4).bfloat16()
    optimizer.step()
    assert p.dtype is gs.bfloat16
    assert optimizer.state[p]["momentum_buffer"].dtype is gs.float32
    off = [row[i] for i, row in enumerate(p.detach().float().tolist())]
    assert all(abs(v - 0.5) < 0.02 for v in off)


def test_a_matrix_that_lost_its_gradient_is_an_error() -> None:
    params = [nn.Parameter(gs.ones(3, 3)) for _ in range(2)]
    optimizer = optim.Muon(params)
    for p in params:
        p.grad = gs.eye(3)
    optimizer.step()
    params[1].grad = None
    with pytest.raises(ValueError, match="every step"):
        optimizer.step()
