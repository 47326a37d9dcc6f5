"""Laws that every operator of the table must satisfy. A new operator adds no line here.

Each law runs on the samples of the operator's own record: sizes 0, 1 and odd ones, domain edges. A
failure names the sample. `tests/ops/test_compiled.py` holds compiled code to the reference.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from gossamer.compile.batch import batch
from gossamer.compile.expand import expand
from gossamer.compile.vjp import vjp
from gossamer.core.dtype import DType, bfloat16, bool_, float16, float32, float64, int64
from gossamer.core.errors import GossamerError
from gossamer.ir.node import Node, toposort, type_text
from gossamer.ir.op import BUFFER, INPUT, TABLE, Op, Sample
from gossamer.ir.printer import format_graph
from gossamer.ir.verify import verify
from gossamer.runtime.reference import evaluate
from tests.ops.laws import (
    buffer,
    check_first,
    check_second,
    differentiable,
    each,
    in_dtype,
    results,
    samples,
    smooth_operators,
    value,
)

LEAVES = ("buffer", "input", "constant", "iota", "pick")


def rows(ops: list[Op]) -> list[object]:
    return [pytest.param(op, id=op.name) for op in ops]


OPERATORS = rows([op for op in TABLE.values() if op.name not in LEAVES])
SMOOTH = rows(smooth_operators())
TWO_WAYS = rows([op for op in smooth_operators()
                 if op.body is not None and op.vjp is not None and op.name != "dropout"])
PRIMITIVE = rows([op for op in TABLE.values() if op.reference is not None
                  and op.name not in LEAVES])
SEVERAL = rows([op for op in TABLE.values()
                if op.kind == "elementwise" and len(samples(op)[0].inputs) > 1])
FLOATS = rows([op for op in TABLE.values() if op.name not in (*LEAVES, "nextafter", "custom")
               and not op.name.startswith("random")])


def build(op: Op, sample: Sample) -> tuple[list[Node], list[Node]]:
    xs = [buffer(x) for x in sample.inputs]
    return xs, results(op(*xs, **sample.attrs))


@pytest.mark.parametrize("op", rows(list(TABLE.values())))
def test_the_record_is_complete(op: Op) -> None:
    assert op.doc and op.doc == op.doc.strip()
    assert op.onnx is None or re.fullmatch(r"[A-Z]\w*-\d+", op.onnx)
    assert op.reference is not None or op.body is not None or op.name in ("buffer", "input")
    assert op.name in LEAVES or samples(op), "an operator without samples is checked by no law"
    if op.kind in ("elementwise", "movement", "reduction"):
        assert op.lower is not None and op.batch is not None
    if op.kind == "elementwise":
        assert {0, 1, 7} <= {s.inputs[0].size for s in samples(op)}


@pytest.mark.parametrize("op", OPERATORS)
def test_inferred_type_is_the_type_of_the_value(op: Op) -> None:
    for _, sample in each(op):
        for y in build(op, sample)[1]:
            found = value(y)
            assert (found.shape, found.dtype) == (y.shape, y.dtype.numpy)


@pytest.mark.parametrize("op", PRIMITIVE)
def test_the_reference_alone_gives_the_inferred_shape_and_kind(op: Op) -> None:
    """Before `evaluate` converts the result to the inferred dtype."""
    assert op.reference is not None
    for _, sample in each(op):
        node = op(*(buffer(x) for x in sample.inputs), **sample.attrs)
        with np.errstate(all="ignore"):
            found = np.asarray(op.reference(*sample.inputs, **sample.attrs))
        assert found.shape == node.shape
        assert (found.dtype.kind in "iu") == node.dtype.is_integer
        assert (found.dtype.kind == "b") == (node.dtype is bool_)


@pytest.mark.parametrize("op", OPERATORS)
def test_graph_and_expansion_verify_and_agree(op: Op) -> None:
    for _, sample in each(op):
        _, ys = build(op, sample)
        verify(ys)
        primitive = expand(ys)
        verify(primitive, primitive=True)
        for slow, fast in zip(evaluate(ys), evaluate(primitive), strict=True):
            np.testing.assert_array_equal(slow, fast)


@pytest.mark.parametrize("op", SMOOTH)
def test_derivative_is_that_of_central_differences(op: Op) -> None:
    for _, sample in each(op, gradient=True):
        if differentiable(op, sample):
            check_first(op, sample)


@pytest.mark.parametrize("op", SMOOTH)
def test_second_derivative_is_that_of_central_differences(op: Op) -> None:
    for _, sample in each(op, gradient=True):
        if differentiable(op, sample):
            check_second(op, sample)


@pytest.mark.parametrize("op", SMOOTH)
def test_backward_graph_verifies(op: Op) -> None:
    for _, sample in each(op, gradient=True):
        xs, ys = build(op, sample)
        ys = [y for y in ys if y.grad]
        found = vjp(ys, [None] * len(ys), [x for x in xs if x.grad])
        verify([g for g in found if g is not None])


@pytest.mark.parametrize("op", TWO_WAYS)
def test_a_composite_rule_is_the_derivative_of_the_body(op: Op) -> None:
    rng = np.random.default_rng(4)
    for _, sample in each(op, gradient=True):
        xs, ys = build(op, sample)
        inner = expand(ys)
        gs = [buffer(rng.normal(size=y.shape), y.dtype, grad=False) for y in ys]
        wrt = [x for x in xs if x.grad]
        for own, body in zip(vjp(ys, gs, wrt), vjp(inner, gs, wrt), strict=True):
            if own is None or body is None:  # the other way gives zeros
                assert all(not value(g).any() for g in (own, body) if g is not None)
            else:
                np.testing.assert_allclose(value(own), value(body), rtol=1e-9, atol=1e-11)


def stacked(sample: Sample, chosen: set[int], size: int,
            rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Operands for each element of a batch; those that are not chosen are the same for all."""
    def shuffled(x: np.ndarray) -> np.ndarray:
        return rng.permutation(x.reshape(-1)).reshape(x.shape)

    return [[shuffled(x) if i in chosen and x.dtype != bool else x
             for i, x in enumerate(sample.inputs)] for _ in range(size)]


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_batching_is_a_loop(op: Op, which: str) -> None:
    rng = np.random.default_rng(5)
    for _, sample in each(op):
        count = len(sample.inputs)
        chosen = {"all": set(range(count)), "first": {0}, "last": {count - 1}}[which]
        elements = stacked(sample, chosen, 3, rng)
        xs = [buffer(x) for x in sample.inputs]
        with_axis = {xs[i]: buffer(np.stack([e[i] for e in elements])) for i in chosen}
        outs = batch(results(op(*xs, **sample.attrs)), with_axis, 3)
        loops = [evaluate(results(op(*map(buffer, e), **sample.attrs))) for e in elements]
        for i, found in enumerate(evaluate(outs)):
            expected = np.stack([loop[i] for loop in loops])
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


TOLERANCE: dict[DType, float] = {float32: 1e-4, float16: 2e-2, bfloat16: 1e-1}


@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: d.name)
def test_narrow_floats_agree_with_float64(op: Op, dtype: DType) -> None:
    """The same values up to rounding, and of the type that the rule says."""
    for _, sample in each(op, gradient=True):
        xs = in_dtype(op, sample, dtype)
        if xs is None or all(x.dtype is not dtype for x in xs):
            continue
        wide = [buffer(value(x).astype(np.float64) if x.dtype is dtype else value(x)) for x in xs]
        for y, w in zip(results(op(*xs, **sample.attrs)), results(op(*wide, **sample.attrs)),
                        strict=True):
            found = value(y)
            assert found.dtype == y.dtype.numpy
            if y.dtype.kind == "f":
                np.testing.assert_allclose(found, value(w), rtol=TOLERANCE[dtype],
                                           atol=5 * TOLERANCE[dtype])


@pytest.mark.parametrize("op", OPERATORS)
def test_cotangents_have_the_type_of_their_operands(op: Op) -> None:
    for _, sample in each(op, gradient=True):
        for dtype in (float32, bfloat16):
            xs = in_dtype(op, sample, dtype) or []
            for x in xs:
                x.grad = x.dtype is dtype
            ys = [y for y in results(op(*xs, **sample.attrs)) if y.grad] if xs else []
            wrt = [x for x in xs if x.grad]
            for x, g in zip(wrt, vjp(ys, [None] * len(ys), wrt), strict=True):
                assert g is None or (g.dtype is x.dtype and g.shape == x.shape)


@pytest.mark.parametrize("op", SEVERAL)
def test_shape_error_names_the_operator_and_all_types(op: Op) -> None:
    xs = [buffer(x) for x in samples(op)[3].inputs]  # (2, 3)
    xs[-1] = buffer(np.zeros((4,), samples(op)[3].inputs[-1].dtype))
    with pytest.raises(GossamerError) as info:
        op(*xs, **samples(op)[3].attrs)
    text = str(info.value)
    assert text.startswith(f"{op.name}: got ")
    assert all(type_text(x) in text for x in xs)
    assert "; " in text and text.endswith(".")


@pytest.mark.parametrize("op", OPERATORS)
def test_every_refusal_follows_the_template(op: Op) -> None:
    """Operands of wrong kinds are refused by name, with their types, or accepted: never a
    traceback from NumPy."""
    sample = next(s for s in samples(op) if s.inputs[0].size)
    for shape in ((), (3,), (2, 5), (2, 3, 4, 5)):
        for dtype in (bool_, int64, float32):
            xs = [BUFFER(shape=shape, dtype=dtype) for _ in sample.inputs]
            try:
                op(*xs, **sample.attrs)
            except GossamerError as error:
                assert str(error).startswith(op.name)
                assert type_text(xs[0]) in str(error)
                assert str(error).endswith(".")


@pytest.mark.parametrize("op", OPERATORS)
def test_printing_names_the_operator(op: Op) -> None:
    text = format_graph(build(op, samples(op)[0])[1])
    assert f"= {op.name}(" in text and text.splitlines()[-1].startswith("return %")


def test_expansion_leaves_inputs_alone_and_keeps_what_it_is_told_to() -> None:
    x = INPUT(index=0, shape=(2, 3), dtype=float64)
    y = TABLE["softmax"](x, axis=1)
    (expanded,) = expand([y])
    kinds = {n.op.kind for n in toposort([expanded])}
    assert kinds == {"leaf", "elementwise", "reduction", "movement"}
    assert [n for n in toposort([expanded]) if not n.inputs] == [x]
    assert expand([y], keep=lambda node: node.op.name == "softmax") == [y]
