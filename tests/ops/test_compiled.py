"""Compiled code does what the reference says: every operator, every dtype it accepts.

All samples of an operator in one dtype are one program, so that the law costs one compilation each.
Kernels for every shape (sizes are arguments), kernels for one (sizes are literals, as in compiled
functions) and, in a process of its own, kernels without AVX-512.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gossamer.compile.vjp import vjp
from gossamer.core.dtype import DTYPES, DType, bfloat16, float16, float32, float64
from gossamer.core.errors import GossamerError
from gossamer.ir.node import Node
from gossamer.ir.op import TABLE, Op
from gossamer.runtime.device import host
from gossamer.runtime.engine import Canonical
from gossamer.runtime.plans import specialized_plan
from gossamer.runtime.program import Program
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


def specialized(nodes: Sequence[Node]) -> list[np.ndarray]:
    """Values by the code that a compiled function would run: sizes and numbers are literals."""
    graph = Canonical(nodes)
    program = Program(specialized_plan(graph), [(n.shape, n.dtype) for n in nodes])
    return [data.array() for data in program.run([leaf.value for leaf in graph.leaves])]


def agree(ys: list[Node],
          run: Callable[[Sequence[Node]], list[np.ndarray]] = compiled) -> None:
    expected = evaluate(ys)
    for y, found, wanted in zip(ys, run(ys), expected, strict=True):
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


@pytest.mark.parametrize("op", OPERATORS)
def test_specialized_is_the_reference(op: Op) -> None:
    """Samples as they are, and in float32 and bfloat16: as compiled functions run them."""
    ys = [y for y in as_is(op) if y.value is None]
    for dtype in (float32, bfloat16):
        ys += cases(op, dtype)
    if ys:
        agree(ys, specialized)


# One of every way in which kernels are written: lanes, masks, gathers, folds, strides, products.
WITHOUT_AVX512 = ("exp", "tanh", "sin", "pow", "erf", "where", "cast", "remainder", "floor_divide",
                  "reduce_sum", "reduce_max", "argmin", "take", "scatter_add", "pad", "concat",
                  "dot_general", "softmax", "layer_norm", "scan", "argsort", "attention", "conv")


def test_code_for_avx2_is_the_reference() -> None:
    if "avx512f" not in host().features:
        pytest.skip("this machine's own code is not AVX-512 code")
    chosen = " or ".join(f"[{name}-float32" for name in WITHOUT_AVX512)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k",
         f"test_compiled_is_the_reference and not integers and ({chosen})"],
        env={**os.environ, "GOSSAMER_CPU_FEATURES": "-avx512f", "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{len(WITHOUT_AVX512)} passed" in done.stdout
