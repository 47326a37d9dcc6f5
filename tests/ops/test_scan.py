"""Running products and sums over long axes, against PyTorch in float64, and as steps of a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gossamer as gs
from gossamer.ir.printer import format_graph
from gossamer.ops import recurrence
from tests.ops.laws import buffer, compiled

Function = Callable[[Any], Any]
RUNNING: dict[str, Function] = {
    "cumprod": lambda t: t.cumprod(0), "logcumsumexp": lambda t: t.logcumsumexp(0)}


def gradient(m: Any, fn: Function, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The result, and the gradient of its sum with weights that differ."""
    t = m.tensor(x).requires_grad_()
    y = fn(t)
    weight = m.tensor(np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype))
    return y.detach().numpy(), m.autograd.grad((y * weight).sum(), t)[0].numpy()


def long_values(rng: np.random.Generator, name: str, n: int) -> np.ndarray:
    """Of size 1 for products, so that they neither vanish nor overflow; with a zero in them."""
    x = rng.normal(size=n)
    if name == "cumprod":
        x = np.sign(x) * np.exp(x / np.sqrt(n))
        x[3 * n // 4] = 0
    return x


@pytest.mark.parametrize("n", [1000, 40_000])
@pytest.mark.parametrize("name", RUNNING)
def test_gradients_along_a_long_axis(name: str, n: int, rng: np.random.Generator) -> None:
    """A rule in log2(n) steps was written out as one kernel that grew as n."""
    x = long_values(rng, name, n)
    for wanted, rounding in ((np.float64, 1e-10), (np.float32, 3e-4)):
        ours = gradient(gs, RUNNING[name], x.astype(wanted))
        for found, right in zip(ours, gradient(torch, RUNNING[name], x), strict=True):
            assert found.dtype == wanted
            np.testing.assert_allclose(found, right, rtol=rounding,
                                       atol=rounding * np.abs(right).max())


@pytest.mark.parametrize("name", RUNNING)
def test_the_graph_of_a_gradient_does_not_grow_with_the_axis(name: str) -> None:
    lines = set()
    for n in (10, 10_000):
        x = gs.rand(n).requires_grad_()
        graph = format_graph([gs.autograd.grad(RUNNING[name](x).sum(), x)[0]._node])
        lines.add(graph.count("\n"))
    assert len(lines) == 1


@pytest.mark.parametrize("name", RUNNING)
def test_second_derivatives(name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 3))
    x[1, 0] = x[3, 0] = x[2, 1] = 0
    found = []
    for m in (gs, torch):
        t = m.tensor(x).requires_grad_()
        first, = m.autograd.grad((RUNNING[name](t) ** 2).sum(), t, create_graph=True)
        found.append(m.autograd.grad((first * first.sin()).sum(), t)[0].numpy())
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("values", [
    [-np.inf, -np.inf, 2, -1000, 3, np.inf, 4], [1, np.nan, 2], [-np.inf, -np.inf],
    [-1000, 1000, -1000], [1000, -np.inf, -1000], [-1000, np.inf, 3], [0.0, -0.0]])
def test_logcumsumexp_of_infinities(values: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        x = np.array(values, dtype)
        ours, theirs = (gradient(m, RUNNING["logcumsumexp"], x) for m in (gs, torch))
        for found, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_recurrence_is_its_loop(axis: int, rng: np.random.Generator) -> None:
    """Along every axis, with rows that are no multiple of a vector, for several threads."""
    a, b = (rng.normal(size=(9, 40, 67)) for _ in range(2))
    found, = compiled([recurrence(buffer(a), buffer(b), axis=axis)])
    last = np.zeros_like(np.take(a, 0, axis))
    for i in range(a.shape[axis]):
        last = np.take(a, i, axis) * last + np.take(b, i, axis)
        np.testing.assert_allclose(np.take(found, i, axis), last, rtol=1e-9, atol=1e-12)
