"""Compiled code does what the reference says: every operator, every dtype it accepts.

All samples of an operator in one dtype are one program, so that the law costs one compilation each.
"""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.compile.vjp import vjp
from gossamer.core.dtype import DTYPES, DType, bfloat16, float16, float32, float64
from gossamer.core.errors import GossamerError
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE, Op
from gossamer.runtime.reference import evaluate
from tests.ops.laws import about, buffer, compiled, each, results, smooth_operators
from tests.ops.test_laws import LEAVES, rows

OPERATORS = rows([op for op in TABLE.values() if op.name not in LEAVES])

# A result is right when it is within `rtol` of the reference, or within `atol` of its scale.
TOLERANCE: dict[DType, tuple[float, float]] = {
    float64: (1e-11, 1e-13), float32: (2e-5, 2e-6), float16: (4e-3, 1e-3), bfloat16: (3e-2, 8e-3)}


def cases(op: Op, dtype: DType) -> list[Node]:
    """The operator on all its samples, with operands of the dtype where it accepts them."""
    found = []
    for _, sample in each(op):
        arrays = sample.inputs
        own = arrays[0].dtype.kind == dtype.kind or (arrays[0].dtype.kind in "iu"
                                                     and dtype.kind in "iu")
        if not own:
            continue
        native = {x.dtype for x in arrays if x.dtype.kind == arrays[0].dtype.kind}
        if dtype.kind in "iu" and native != {np.dtype(np.int64)}:
            continue  # the sample is about one integer type; it runs as it is, under its own name
        xs = [buffer(x, dtype if x.dtype == arrays[0].dtype and x.dtype != bool else None,
                     grad=False) for x in arrays]
        try:
            found += results(op(*xs, **sample.attrs))
        except GossamerError:
            continue
    return found


def as_is(op: Op) -> list[Node]:
    """The operator on samples of integers or bools, as they are."""
    return [y for _, s in each(op) if s.inputs[0].dtype.kind != "f"
            for y in results(op(*(buffer(x, grad=False) for x in s.inputs), **s.attrs))]


def agree(ys: list[Node]) -> None:
    expected = evaluate(ys)
    for y, found, wanted in zip(ys, compiled(ys), expected, strict=True):
        with about(f"{y!r} of {[x.value.array() for x in y.inputs if x.value is not None]}"):
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            if y.dtype.kind != "f":
                np.testing.assert_array_equal(found, wanted)
                continue
            rtol, atol = TOLERANCE[y.dtype]
            finite = np.abs(wanted[np.isfinite(wanted)])
            np.testing.assert_allclose(found, wanted, rtol=rtol,
                                       atol=atol * max(1.0, finite.max(initial=0)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda d: d.name)
@pytest.mark.parametrize("op", OPERATORS)
def test_compiled_is_the_reference(op: Op, dtype: DType) -> None:
    ys = cases(op, dtype)
    if ys:
        agree(ys)


@pytest.mark.parametrize("op", OPERATORS)
def test_compiled_is_the_reference_on_samples_of_integers(op: Op) -> None:
    ys = as_is(op)
    if ys:
        agree(ys)


@pytest.mark.parametrize("op", rows(smooth_operators()))
def test_compiled_derivatives_are_the_references(op: Op) -> None:
    """The backward graphs, whose shapes and fusions differ from the forward ones, in float32."""
    rng = np.random.default_rng(6)
    backward = []
    for _, sample in each(op, gradient=True):
        xs = [buffer(x, float32 if x.dtype == np.float64 else None) for x in sample.inputs]
        ys = [y for y in results(op(*xs, **sample.attrs)) if y.grad]
        gs = [buffer(rng.normal(size=y.shape), y.dtype, grad=False) for y in ys]
        backward += [g for g in vjp(ys, gs, [x for x in xs if x.grad]) if g is not None]
    agree([g for g in backward if g.value is None])
