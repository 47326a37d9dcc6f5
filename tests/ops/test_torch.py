"""Values and slopes of the table are PyTorch's, at kinks, poles, infinities and NaN too.

Elementwise operators are compared on a grid of special and ordinary points; the rest of PyTorch's
surface is held to its operator database in `tests/opdb`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossamer.compile.vjp import vjp
from gossamer.ir.op import TABLE, Op
from tests.ops.laws import buffer, value

torch = pytest.importorskip("torch")
F = torch.nn.functional

INF, NAN = float("inf"), float("nan")
POINTS = np.array([-INF, -30.5, -6.0, -3.0, -2.5, -1.0, -0.5, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0, 2.5,
                   3.0, 6.0, 30.5, INF, NAN])

# Operators that PyTorch knows under another name or with other parameters.
OTHERS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "leaky_relu": ({"slope": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "clamp": ({"low": -1.0, "high": 2.5}, lambda x: torch.clamp(x, -1.0, 2.5)),
    "hardtanh": ({"low": -1.0, "high": 1.0}, F.hardtanh),
    "hardshrink": ({"width": 0.5}, F.hardshrink), "softshrink": ({"width": 0.5}, F.softshrink),
    "threshold": ({"limit": 0.25, "value": 7.0}, lambda x: F.threshold(x, 0.25, 7.0)),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "celu": ({"alpha": 0.7}, lambda x: F.celu(x, 0.7)),
    "gelu": ({"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    "softplus": ({"beta": 2.0, "limit": 20.0}, lambda x: F.softplus(x, 2.0, 20.0)),
    "polygamma": ({"n": 2}, lambda x: torch.polygamma(2, x)),
    "relu6": ({}, F.relu6), "hardsigmoid": ({}, F.hardsigmoid), "hardswish": ({}, F.hardswish),
    "silu": ({}, F.silu), "mish": ({}, F.mish), "selu": ({}, F.selu), "softsign": ({}, F.softsign),
    "logsigmoid": ({}, F.logsigmoid), "tanhshrink": ({}, F.tanhshrink), "trunc_divide": (
        {}, lambda a, b: torch.div(a, b, rounding_mode="trunc")),
    "floor_divide": ({}, lambda a, b: torch.div(a, b, rounding_mode="floor")),
}
ELEMENTWISE = [op for op in TABLE.values() if op.name in OTHERS
               or op.kind == "elementwise" and hasattr(torch, op.name)
               and op.infer.__name__ not in ("integer_types", "_whole", "_int32_pair")
               and op.name not in ("where", "cast", "bitwise_not")]

# Where we deliberately differ, and why.
VALUES_DIFFER = {
    # Recurrence and reflection by us, an expansion that loses digits below -20 by PyTorch.
    "polygamma": lambda x: np.isinf(x) | (x < -20),
}
SLOPES_DIFFER: dict[str, Callable[..., Any]] = {
    "copysign": lambda a, b: ~np.isfinite(a),  # PyTorch divides the result by a
    "hardsigmoid": np.isnan,  # 0 in PyTorch, but relu6 has slope 1 there
    "digamma": lambda x: (x < 0) & (x == np.floor(x)),  # poles; PyTorch rounds pi
    "polygamma": lambda x: np.isinf(x) | (x < -20),  # 0 at inf, PyTorch multiplies it by inf
}
# PyTorch rounds these constants to float32 even for float64 operands.
ROUNDED_CONSTANTS = ("hardsigmoid", "celu")


def operands(op: Op) -> list[np.ndarray]:
    count = len(op.samples(np.random.default_rng(0))[0].inputs)
    grid = np.array(list(itertools.product(POINTS, repeat=min(count, 2))))
    columns = [np.ascontiguousarray(grid[:, i]) for i in range(grid.shape[1])]
    return columns + columns[:1] * (count - 2)


def both(op: Op) -> tuple[Any, Any, list[Any], list[Any]]:
    attrs, theirs = OTHERS.get(op.name, ({}, getattr(torch, op.name, None)))
    arrays = operands(op)
    xs = [buffer(x) for x in arrays]
    ts = [torch.tensor(x, requires_grad=True) for x in arrays]
    return op(*xs, **attrs), theirs(*ts), xs, ts


def compare(found: np.ndarray, expected: np.ndarray, arrays: list[np.ndarray],
            differ: Callable[..., Any] | None, rtol: float = 1e-9) -> None:
    keep = np.ones(found.shape, bool) if differ is None else ~differ(*arrays)
    wrong = ~np.isclose(found, expected, rtol=rtol, atol=1e-12, equal_nan=True) & keep
    text = [f"f({', '.join(str(a[i]) for a in arrays)}) = {found[i]}, PyTorch {expected[i]}"
            for i in np.flatnonzero(wrong)]
    assert not text, "\n".join(text[:20])


@pytest.mark.parametrize("op", ELEMENTWISE, ids=lambda op: op.name)
def test_values(op: Op) -> None:
    y, theirs, xs, _ = both(op)
    found = value(y)
    assert str(y.dtype.name) == str(theirs.dtype).removeprefix("torch.")
    arrays = [value(x) for x in xs]
    if found.dtype == bool:
        np.testing.assert_array_equal(found, theirs.detach().numpy())
    else:
        compare(found, theirs.detach().numpy(), arrays, VALUES_DIFFER.get(op.name))


@pytest.mark.parametrize("op", [op for op in ELEMENTWISE if op.vjp or op.body],
                         ids=lambda op: op.name)
def test_slopes(op: Op) -> None:
    y, theirs, xs, ts = both(op)
    if not y.grad or not theirs.requires_grad:
        assert y.grad == theirs.requires_grad
        return
    found = vjp([y], [None], xs)
    try:
        expected = torch.autograd.grad(theirs, ts, torch.ones_like(theirs), allow_unused=True)
    except RuntimeError as error:
        pytest.skip(f"PyTorch: {error}")
    arrays = [value(x) for x in xs]
    for g, t in zip(found, expected, strict=True):
        ours = value(g) if g is not None else np.zeros_like(arrays[0])
        compare(ours, np.zeros_like(arrays[0]) if t is None else t.numpy(), arrays,
                SLOPES_DIFFER.get(op.name), 1e-6 if op.name in ROUNDED_CONSTANTS else 1e-9)
