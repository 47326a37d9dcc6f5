"""Scattered writes by strides, whose gradient in PyTorch 2.13 is that of the other elements."""

from __future__ import annotations

import gossamer as gs


def test_as_strided_scatter_gives_the_slope_to_what_is_kept() -> None:
    x = gs.arange(4.0).requires_grad_()
    src = gs.tensor([10.0, 20.0], requires_grad=True)
    made = gs.as_strided_scatter(x, src, (2,), (2,), 1)
    assert made.tolist() == [0.0, 10.0, 2.0, 20.0]
    (made * gs.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 3.0, 0.0]
    assert src.grad is not None and src.grad.tolist() == [2.0, 4.0]
