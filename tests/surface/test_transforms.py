"""Function transforms, nested in each other, held to PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from tests.surface.twin import compare, scenarios

X = [0.3, -1.2, 2.0]
W = [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]


def case_grad(m: Any) -> Any:
    return m.func.grad(lambda x: (x.sin() * x).sum())(m.tensor(X))


def case_second_derivative(m: Any) -> Any:
    f = m.func.grad(lambda x: (x ** 3).sum())
    return m.func.grad(lambda x: f(x).sum())(m.tensor(X))


def case_argnums_and_aux(m: Any) -> Any:
    def f(a: Any, b: Any) -> Any:
        return (a * b * b).sum(), a + b
    return m.func.grad(f, argnums=(0, 1), has_aux=True)(m.tensor(X), m.tensor(X) + 1)


def case_grad_of_a_dictionary(m: Any) -> Any:
    params = {"w": m.tensor(W), "b": m.zeros(2)}
    return m.func.grad(lambda p, x: (p["w"] @ x + p["b"]).tanh().sum())(params, m.tensor(X))


def case_grad_and_value(m: Any) -> Any:
    return m.func.grad_and_value(lambda x: x.exp().sum())(m.tensor(X))


def case_vjp(m: Any) -> Any:
    value, pull = m.func.vjp(lambda x, y: (x * y, x.sum()), m.tensor(X), m.tensor(X) + 1)
    return value, pull((m.ones(3), m.tensor(2.0)))


def case_jvp(m: Any) -> Any:
    direction = m.tensor([1.0, 0.0, 2.0])
    return m.func.jvp(lambda x: (x.exp() * x, x.sum()), (m.tensor(X),), (direction,))


def case_jacobians(m: Any) -> Any:
    def f(x: Any) -> Any:
        return x.cumsum(0) * x
    return m.func.jacrev(f)(m.tensor(X)), m.func.jacfwd(f)(m.tensor(X))


def case_hessian(m: Any) -> Any:
    return m.func.hessian(lambda x: (x.tanh() * x.roll(1)).sum())(m.tensor(X))


def case_vmap(m: Any) -> Any:
    f = m.vmap(lambda w, x: (w @ x, w.sum(), w.softmax(-1)[0]), in_dims=(None, 0), out_dims=0)
    return f(m.tensor(W), m.tensor([X, X[::-1]]))


def case_vmap_out_dims(m: Any) -> Any:
    return m.vmap(lambda x: x * 2, in_dims=1, out_dims=1)(m.tensor(W))


def case_vmap_of_grad(m: Any) -> Any:
    f = m.func.grad(lambda w, x: (w @ x).tanh().sum())
    return m.vmap(f, in_dims=(None, 0))(m.tensor(W), m.tensor([X, X[::-1]]))


def case_vmap_of_vmap(m: Any) -> Any:
    pairs = m.vmap(m.vmap(lambda a, b: (a * b).sum(), in_dims=(None, 0)), in_dims=(0, None))
    return pairs(m.tensor(W), m.tensor(W))


def case_vmap_with_indexing(m: Any) -> Any:
    def f(x: Any) -> Any:
        y = x.clone()
        y[0] = 5
        return y.sort().values, x[[2, 0]], x.argmax()
    return m.vmap(f)(m.tensor([X, X[::-1]]))


def case_grad_through_vmap(m: Any) -> Any:
    w = m.tensor(W, requires_grad=True)
    m.vmap(lambda r: (r * r).sum())(w).sum().backward()
    return w.grad


def case_outer_leaf_inside_grad(m: Any) -> Any:
    p = m.tensor(X, requires_grad=True)
    g = m.func.grad(lambda y: (y ** 3 * p).sum())(m.ones(3))
    g.sum().backward()
    return p.grad, g.requires_grad


def case_closure_without_grad(m: Any) -> Any:
    c = m.tensor(X)
    return m.func.grad(lambda y: (y * c).sum())(m.ones(3)).requires_grad


def case_inplace_inside_grad(m: Any) -> Any:
    def f(x: Any) -> Any:
        y = x * 1
        y[0].mul_(3)
        y += 1
        return (y * y).sum()
    return m.func.grad(f)(m.tensor(X))


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)


def test_value_and_grad() -> None:
    value, g = gs.value_and_grad(lambda x: (x * x).sum())(gs.tensor(X))
    np.testing.assert_allclose(g.numpy(), 2 * np.array(X), rtol=1e-6)
    assert value.item() == pytest.approx(5.53)


def test_checkpoint() -> None:
    """The same value and gradients, also of parameters the function closes over and of draws."""
    w = gs.tensor(W, requires_grad=True)
    x = gs.tensor(X, requires_grad=True)

    def f(v: gs.Tensor) -> gs.Tensor:
        return gs.dropout((w @ v).tanh(), 0.5) * v.sum()
    found = []
    for run in (f, lambda v: gs.checkpoint(f, v)):
        w.grad = x.grad = None
        gs.manual_seed(0)
        run(x).sum().backward()
        found.append((w.grad.tolist(), x.grad.tolist()))
    assert found[0] == found[1]


def test_checkpoint_twice_differentiable() -> None:
    x = gs.tensor(X, requires_grad=True)
    y = gs.checkpoint(lambda v: v ** 3, x).sum()
    (g,) = gs.autograd.grad(y, x, create_graph=True)
    (h,) = gs.autograd.grad(g.sum(), x)
    np.testing.assert_allclose(h.numpy(), 6 * np.array(X), rtol=1e-5)


def test_mistakes() -> None:
    with pytest.raises(gs.ShapeError, match="without dimensions"):
        gs.func.grad(lambda x: x)(gs.ones(2))
    with pytest.raises(gs.DTypeError, match="floating"):
        gs.func.grad(lambda x: x.sum())(gs.arange(2))
    with pytest.raises(gs.ShapeError, match="extents"):
        gs.vmap(lambda a, b: a + b)(gs.ones(2), gs.ones(3))
    with pytest.raises(gs.ShapeError, match="at least one"):
        gs.vmap(lambda a: a, in_dims=None)(gs.ones(2))
