"""Decompositions: what is unique about them, and derivatives of what no sign changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from tests.surface.twin import compare, scenarios

RNG = np.random.default_rng(0)
SQUARE = RNG.normal(size=(2, 4, 4))
TALL = RNG.normal(size=(5, 3))
WIDE = RNG.normal(size=(3, 5))
WEIGHT = RNG.normal(size=(5, 5))


def _leaf(m: Any, array: np.ndarray) -> Any:
    return m.tensor(array, requires_grad=True)


def _slope(m: Any, result: Any, x: Any) -> Any:
    """The gradient of the sum of the result's squares with fixed weights."""
    flat = result.reshape(-1)
    weight = m.linspace(1, 2, flat.numel(), dtype=m.float64)
    return m.autograd.grad((flat * flat * weight).sum(), x, retain_graph=True)[0]


def case_svd(m: Any) -> Any:
    out = []
    for array in (TALL, WIDE, SQUARE):
        x = _leaf(m, array)
        u, s, vh = m.linalg.svd(x, full_matrices=False)
        whole = (u * s.unsqueeze(-2)) @ vh
        out += [s, whole, _slope(m, (u @ u.mT) * 1.0 + 0 * s.sum(), x) if array is TALL else 0]
        out.append(_slope(m, m.linalg.svdvals(x), x))
    return out


def case_svd_subspace(m: Any) -> Any:
    """The projector on the first two singular vectors does not depend on signs."""
    x = _leaf(m, TALL)
    u, s, vh = m.linalg.svd(x, full_matrices=False)
    left = u[:, :2] @ u[:, :2].mT
    right = vh[:2].mT @ vh[:2]
    return left, right, _slope(m, left, x)


def case_svd_right_subspace(m: Any) -> Any:
    x = _leaf(m, WIDE)
    vh = m.linalg.svd(x, full_matrices=False)[2]
    right = vh[:2].mT @ vh[:2]
    return right, _slope(m, right, x)


def case_eigh(m: Any) -> Any:
    x = _leaf(m, SQUARE[0] + SQUARE[0].T)
    w, v = m.linalg.eigh(x)
    top = v[:, -1:] @ v[:, -1:].mT
    return w, top, _slope(m, w, x), _slope(m, (v * w) @ v.mT, x)


def case_qr(m: Any) -> Any:
    x = _leaf(m, TALL)
    q, r = m.linalg.qr(x)
    return q @ r, q @ q.mT, _slope(m, q @ q.mT, x), _slope(m, r.mT @ r, x)


def case_cholesky(m: Any) -> Any:
    x = _leaf(m, SQUARE[1] @ SQUARE[1].T + 4 * np.eye(4))
    factor = m.linalg.cholesky(x)
    return factor, m.linalg.cholesky(x, upper=True), _slope(m, factor, x)


def case_inverse_twice(m: Any) -> Any:
    x = _leaf(m, SQUARE)
    y = m.linalg.inv(x)
    (g,) = m.autograd.grad((y * y).sum(), x, create_graph=True)
    return y, g, m.autograd.grad((g * g).sum(), x)


def case_solve(m: Any) -> Any:
    a, b = _leaf(m, SQUARE), _leaf(m, RNG.normal(size=(2, 4, 2)) * 0 + 1.5)
    y = m.linalg.solve(a, b)
    return y, m.autograd.grad((y ** 3).sum(), [a, b])


def case_determinant(m: Any) -> Any:
    x = _leaf(m, SQUARE)
    singular = _leaf(m, np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 2.0]))
    return (m.linalg.det(x), _slope(m, m.linalg.det(x), x), m.linalg.slogdet(x)[1],
            _slope(m, m.linalg.slogdet(x)[1], x), m.linalg.det(singular).abs() < 1e-9)


def case_pseudo_inverse(m: Any) -> Any:
    out = []
    for array in (TALL, WIDE):
        x = _leaf(m, array)
        out += [m.linalg.pinv(x), _slope(m, m.linalg.pinv(x), x)]
    return out


def case_norms_and_rank(m: Any) -> Any:
    x = m.tensor(TALL)
    low = m.tensor(np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 2.0]))
    return ([m.linalg.matrix_norm(x, p) for p in ("fro", "nuc", 1, -1, 2, -2, float("inf"))],
            m.linalg.matrix_rank(low), m.linalg.cond(m.tensor(SQUARE)), x.norm("nuc"))


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)


def test_singular_matrix() -> None:
    with pytest.raises(gs.GossamerError, match=r"linalg\.inv: float64\[2,2\]: Singular"):
        gs.linalg.inv(gs.ones(2, 2))
    with pytest.raises(gs.ShapeError, match="square"):
        gs.linalg.inv(gs.ones(2, 3))


def test_not_under_a_trace() -> None:
    with pytest.raises(gs.TraceError):
        gs.vmap(gs.linalg.inv)(gs.ones(3, 2, 2))


@pytest.mark.parametrize("name", ["det", "svdvals", "eigvalsh", "qr"])
def test_second_derivatives_are_refused_where_a_constant_would_make_them_wrong(name: str) -> None:
    x = gs.tensor(SQUARE[0] @ SQUARE[0].T, requires_grad=True)
    made = getattr(gs.linalg, name)(x)
    total = ((made.R if name == "qr" else made) ** 3).sum()
    (slope,) = gs.autograd.grad(total, [x], create_graph=True)
    with pytest.raises(gs.GradientError, match="second derivative"):
        gs.autograd.grad((slope * slope).sum(), [x])
