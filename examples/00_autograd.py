"""The derivative you can see: scalars, one graph, and the chain rule checked by hand.

Run: .venv/bin/python examples/00_autograd.py
"""

from __future__ import annotations

import math

import gossamer as gs


def scalars() -> None:
    """One expression of three numbers; each derivative beside the rule that gives it."""
    a = gs.tensor(2.0, dtype=gs.float64, requires_grad=True)
    b = gs.tensor(-3.0, dtype=gs.float64, requires_grad=True)
    c = gs.tensor(10.0, dtype=gs.float64, requires_grad=True)

    product = a * b            # -6
    total = product + c        # 4
    y = gs.tanh(total / 4)     # tanh(1)
    y.backward()

    outer = (1 - math.tanh(1.0) ** 2) / 4  # dy/dtotal: tanh' = 1 - tanh^2, and the factor 1/4
    print(f"y = tanh((a * b + c) / 4) = {y.item():.6f}")
    for name, leaf, rule, expected in (
        ("a", a, "dy/dtotal * b", outer * -3.0),
        ("b", b, "dy/dtotal * a", outer * 2.0),
        ("c", c, "dy/dtotal * 1", outer * 1.0),
    ):
        print(f"  dy/d{name} = {rule:13} = {leaf.grad.item():+.6f}   by hand {expected:+.6f}")
        assert abs(leaf.grad.item() - expected) < 1e-12


def reuse() -> None:
    """A value used twice collects both contributions: d(x * x + x)/dx = 2x + 1."""
    x = gs.tensor(3.0, requires_grad=True)
    (x * x + x).backward()
    print(f"d(x*x + x)/dx at 3 = {x.grad.item():g}")
    assert x.grad.item() == 7.0


def derivatives_of_derivatives() -> None:
    """sin, differentiated again and again: sin, cos, -sin, -cos, sin."""
    x = gs.tensor(0.5, dtype=gs.float64, requires_grad=True)
    y = gs.sin(x)
    print("sin and its derivatives at 0.5:")
    expected = [math.sin(0.5), math.cos(0.5), -math.sin(0.5), -math.cos(0.5), math.sin(0.5)]
    for order, value in enumerate(expected):
        print(f"  order {order}: {y.item():+.6f}")
        assert abs(y.item() - value) < 1e-12
        (y,) = gs.autograd.grad(y, x, create_graph=True)


def against_differences() -> None:
    """The same derivative from two function values, and how far the two agree."""
    def f(x: gs.Tensor) -> gs.Tensor:
        return (gs.exp(-x * x) * gs.log(2 + gs.cos(3 * x))).sum()

    x = gs.linspace(-2.0, 2.0, 9, dtype=gs.float64).requires_grad_()
    f(x).backward()
    h = 1e-5
    print("      x    backward  difference")
    for i in range(9):
        step = gs.zeros(9, dtype=gs.float64)
        step[i] = h
        with gs.no_grad():
            slope = (f(x + step) - f(x - step)).item() / (2 * h)
        print(f"  {x[i].item():+5.2f}  {x.grad[i].item():+.7f}  {slope:+.7f}")
        assert abs(slope - x.grad[i].item()) < 1e-8


if __name__ == "__main__":
    scalars()
    reuse()
    derivatives_of_derivatives()
    against_differences()
