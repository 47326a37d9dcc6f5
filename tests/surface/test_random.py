"""Generators: reproducible, functions of seed and position alone, with the right distributions."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

import gossamer as gs


def test_seed_decides() -> None:
    gs.manual_seed(3)
    a, b = gs.rand(5), gs.rand(5)
    gs.manual_seed(3)
    assert gs.rand(5).tolist() == a.tolist() and a.tolist() != b.tolist()
    gs.manual_seed(4)
    assert gs.rand(5).tolist() != a.tolist()


def test_draws_do_not_depend_on_when_they_are_computed() -> None:
    gs.manual_seed(0)
    a, b = gs.rand(3), gs.randn(3)
    late = b.tolist(), a.tolist()
    gs.manual_seed(0)
    assert (gs.rand(3).tolist(), gs.randn(3).tolist()) == (late[1], late[0])


def test_own_generator() -> None:
    before = gs.get_rng_state().tolist()
    one = gs.Generator().manual_seed(7)
    two = gs.Generator().manual_seed(7)
    assert gs.rand(4, generator=one).tolist() == gs.rand(4, generator=two).tolist()
    assert gs.get_rng_state().tolist() == before and one.initial_seed() == 7


def test_state() -> None:
    g = gs.Generator().manual_seed(1)
    gs.rand(10, generator=g)
    state = g.get_state()
    copied = pickle.loads(pickle.dumps(g))
    a = gs.rand(4, generator=g).tolist()
    assert gs.rand(4, generator=copied).tolist() == a
    g.set_state(state)
    assert gs.rand(4, generator=g).tolist() == a
    with pytest.raises(gs.ShapeError, match="24 bytes"):
        g.set_state(gs.zeros(3))


def _check(x: np.ndarray, mean: float, std: float) -> None:
    """Mean and spread within 5 standard errors."""
    n = x.size
    assert abs(x.mean() - mean) < 5 * std / math.sqrt(n)
    assert abs(x.std() - std) < 5 * std / math.sqrt(n) * 3


@pytest.mark.parametrize(("draw", "mean", "std"), [
    (lambda n: gs.rand(n), 0.5, math.sqrt(1 / 12)),
    (lambda n: gs.randn(n), 0.0, 1.0),
    (lambda n: gs.empty(n).uniform_(-1, 3), 1.0, 4 * math.sqrt(1 / 12)),
    (lambda n: gs.empty(n).normal_(2, 3), 2.0, 3.0),
    (lambda n: gs.normal(gs.full((n,), 2.0), 0.5), 2.0, 0.5),
    (lambda n: gs.empty(n).exponential_(2.0), 0.5, 0.5),
    (lambda n: gs.bernoulli(gs.full((n,), 0.3)), 0.3, math.sqrt(0.21)),
    (lambda n: gs.empty(n).bernoulli_(0.7), 0.7, math.sqrt(0.21)),
    (lambda n: gs.empty(n).geometric_(0.4), 2.5, math.sqrt(0.6) / 0.4),
    (lambda n: gs.randint(2, 8, (n,)).double(), 4.5, math.sqrt(35 / 12)),
    (lambda n: gs.randperm(n).double(), 9999.5, 20000 / math.sqrt(12)),
    (lambda n: gs.poisson(gs.full((n,), 3.0)), 3.0, math.sqrt(3)),
])
def test_distributions(draw, mean: float, std: float) -> None:  # type: ignore[no-untyped-def]
    gs.manual_seed(11)
    _check(draw(20000).numpy().astype(np.float64), mean, std)


def test_multinomial() -> None:
    gs.manual_seed(5)
    weights = gs.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
    many = gs.multinomial(weights.repeat(4000, 1), 1).view(4000, 2).numpy()
    share = (many[:, 0] == 2).mean()
    assert abs(share - 0.75) < 0.04 and (many[:, 1] == 1).all() and not (many[:, 0] == 1).any()
    rows = gs.multinomial(gs.ones(50, 6), 6).sort(-1).values
    assert rows.tolist() == [list(range(6))] * 50
    drawn = gs.multinomial(gs.tensor([1.0, 1.0]), 1000, replacement=True).double()
    assert abs(drawn.mean().item() - 0.5) < 0.1
    g = gs.Generator().manual_seed(1)
    h = gs.Generator().manual_seed(1)
    assert (gs.multinomial(gs.ones(9), 3, generator=g).tolist()
            == gs.multinomial(gs.ones(9), 3, generator=h).tolist())


def test_permutations_are_permutations() -> None:
    assert sorted(gs.randperm(100).tolist()) == list(range(100))
    assert gs.randperm(0).tolist() == []


def test_dropout_mask_is_the_same_backward() -> None:
    gs.manual_seed(0)
    x = gs.ones(1000, requires_grad=True)
    y = gs.dropout(x, 0.25)
    y.sum().backward()
    assert x.grad.tolist() == y.tolist()
    kept = (y != 0).double().mean().item()
    assert abs(kept - 0.75) < 0.07 and y.max().item() == pytest.approx(1 / 0.75)
    assert gs.dropout(x, 0.25, train=False) is x
