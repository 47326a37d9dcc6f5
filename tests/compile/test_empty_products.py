"""A product over nothing is zero, whatever was in memory before."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

import gossamer as gs
from gossamer.nn import functional as F

PRODUCTS: dict[str, tuple[Callable[..., gs.Tensor], Callable[[int, int, int], list[gs.Tensor]]]] = {
    "batched": (lambda a, c: (a @ c) * 2,
                lambda b, m, n: [gs.zeros(b, m, 0), gs.zeros(b, 0, n)]),
    "shared left": (lambda a, c: a @ c, lambda b, m, n: [gs.zeros(m, 0), gs.zeros(b, 0, n)]),
    "shared right": (lambda a, c: a @ c, lambda b, m, n: [gs.zeros(b, m, 0), gs.zeros(0, n)]),
    "slices": (lambda a, c: a[..., :0] @ c[:, :0],
               lambda b, m, n: [gs.ones(b, m, 4), gs.ones(b, 4, n)]),
    "padded rows": (lambda a, c: F.pad(a, (0, 0, 1, 1)) @ c,
                    lambda b, m, n: [gs.zeros(b, m, 0), gs.zeros(b, 0, n)]),
    "convolution": (F.conv2d, lambda b, m, n: [gs.zeros(b, 0, 5, 5), gs.zeros(n, 0, 2, 2)]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_sum_of_nothing_is_zero(name: str) -> None:
    function, make = PRODUCTS[name]
    for b, m, n in itertools.product((1, 2, 3), (1, 3, 33), (1, 2, 5, 40)):
        for call in (function, gs.compile(function)):
            dirty = gs.full((b * (m + 2) * n,), float("nan")) + 1
            dirty.tolist()
            del dirty  # its memory is the next to be handed out
            assert not (call(*make(b, m, n)) != 0).any(), (b, m, n)
