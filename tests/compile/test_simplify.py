"""Every rule of `compile/simplify.py`: it fires, and the value keeps its bits.

A rule fires if the expected operators are left (the count falls); values are compared with the
reference before and after: NaN, infinities, the sign of zero and integer overflow included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs
from gossamer.compile.simplify import simplify
from gossamer.core.dtype import (
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint8,
)
from gossamer.ir.node import Node, toposort
from gossamer.ir.op import BUFFER, CONSTANT, TABLE
from gossamer.runtime.data import Data
from gossamer.runtime.reference import evaluate

INF, NAN = float("inf"), float("nan")
FLOATS = [-INF, -2.5, -1.0, -1e-42, -0.0, 0.0, 1e-42, 0.5, 1.0, 3.0, 3e38, INF, NAN]
SHAPE = (len(FLOATS),)


def leaf(values: Any, dtype: DType = float32) -> Node:
    array = np.array(values, dtype.numpy)
    node = BUFFER(shape=array.shape, dtype=dtype)
    node.value = Data.from_array(array, dtype)
    return node


def number(value: Any, like: Node) -> Node:
    return CONSTANT(value=value, shape=like.shape, dtype=like.dtype)


def op(name: str, *inputs: Node, **attrs: Any) -> Node:
    return TABLE[name](*inputs, **attrs)


def names(*roots: Node) -> list[str]:
    """Operators that are left, in order; leaves in memory and constants are none."""
    return [n.op.name for n in toposort(roots, stop=lambda n: n.value is not None)
            if n.value is None and n.op is not CONSTANT]


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, but for which NaN."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(got, expected)
    if got.dtype.kind == "f":
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got)[known], np.signbit(expected)[known])


def simplified(node: Node) -> Node:
    """The simplified node, after checking type and value."""
    (new,) = simplify([node])
    assert (new.shape, new.dtype) == (node.shape, node.dtype)
    assert_same(*evaluate([new]), *evaluate([node]))
    return new


# ------------------------------------------------------------------------------------- identities
@pytest.mark.parametrize(("name", "constant", "left"), [
    ("mul", 1, True), ("mul", 1, False), ("add", -0.0, True), ("add", -0.0, False),
    ("sub", 0, True), ("sub", 0.0, True), ("div", 1, True), ("pow", 1, True)])
def test_neutral_numbers_of_floats_vanish(name: str, constant: float, left: bool) -> None:
    x = leaf(FLOATS)
    pair = (x, number(constant, x)) if left else (number(constant, x), x)
    assert simplified(op(name, *pair)) is x


@pytest.mark.parametrize(("name", "constant"), [("add", 0), ("add", 0.0), ("sub", -0.0)])
def test_a_zero_that_changes_the_sign_of_zero_stays(name: str, constant: float) -> None:
    """-0.0 + 0.0 is 0.0."""
    x = leaf(FLOATS)
    assert names(simplified(op(name, x, number(constant, x)))) == [name]


@pytest.mark.parametrize(("name", "constant"), [
    ("sub", 1), ("div", 0), ("mul", 0), ("mul", -1), ("pow", 0.5), ("maximum", 0)])
def test_other_numbers_stay(name: str, constant: float) -> None:
    x = leaf(FLOATS)
    assert len(names(simplified(op(name, x, number(constant, x))))) == 1


@pytest.mark.parametrize(("name", "constant"), [("div", 1), ("sub", 0.0)])
def test_a_neutral_number_on_the_wrong_side_stays(name: str, constant: float) -> None:
    x = leaf(FLOATS)
    assert names(simplified(op(name, number(constant, x), x))) == [name]


@pytest.mark.parametrize("dtype", [int8, uint8, int64])
@pytest.mark.parametrize(("name", "constant"), [
    ("add", 0), ("sub", 0), ("mul", 1), ("shift_left", 0), ("shift_right", 0)])
def test_neutral_numbers_of_integers_vanish(name: str, constant: int, dtype: DType) -> None:
    info = np.iinfo(dtype.numpy)
    x = leaf([info.min, info.max, 0, 1], dtype)
    assert simplified(op(name, x, number(constant, x))) is x


@pytest.mark.parametrize(("name", "constant"), [("add", False), ("mul", True)])
def test_neutral_numbers_of_bools_vanish(name: str, constant: bool) -> None:
    x = leaf([True, False], bool_)
    assert simplified(op(name, x, number(constant, x))) is x
    assert names(simplified(op(name, x, number(not constant, x)))) == [name]


def test_two_negations_and_a_cast_to_the_same_type_vanish() -> None:
    x = leaf(FLOATS)
    assert simplified(op("neg", op("neg", x))) is x
    assert simplified(op("cast", x, dtype=float32)) is x
    assert names(simplified(op("cast", x, dtype=float64))) == ["cast"]
    lowest = leaf([-128, 127], int8)
    assert simplified(op("neg", op("neg", lowest))) is lowest
    assert names(simplified(op("neg", op("neg", op("neg", lowest))))) == ["neg"]


def test_a_known_condition_chooses() -> None:
    x, y = leaf(FLOATS), leaf(FLOATS[::-1])
    for value, chosen in ((True, x), (False, y)):
        condition = CONSTANT(value=value, shape=SHAPE, dtype=bool_)
        assert simplified(op("where", condition, x, y)) is chosen


@pytest.mark.parametrize(("exponent", "left"), [(2, ["mul"]), (3, ["mul", "mul"]),
                                                (-1, ["reciprocal"])])
@pytest.mark.parametrize("dtype", [float16, float32, float64])
def test_small_powers_are_products(exponent: int, left: list[str], dtype: DType) -> None:
    x = leaf([v for v in FLOATS if dtype is not float16 or not 1e4 < abs(v) < INF], dtype)
    node = op("pow", x, number(exponent, x))
    (new,) = simplify([node])
    assert names(new) == left
    (got,), (expected,) = evaluate([new]), evaluate([node])
    np.testing.assert_allclose(got, expected, rtol=4 * float(np.finfo(dtype.numpy).eps))
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[known], np.signbit(expected)[known])


# -------------------------------------------------------------------------------------- movements
MOVED = [
    (lambda x: op("reshape", op("reshape", x, shape=(4, 6)), shape=(3, 8)), ["reshape"]),
    (lambda x: op("reshape", op("reshape", x, shape=(4, 6)), shape=(2, 1, 3, 4)), []),
    (lambda x: op("reshape", x, shape=(2, 1, 3, 4)), []),
    (lambda x: op("permute", op("permute", x, axes=(3, 0, 1, 2)), axes=(1, 2, 3, 0)), []),
    (lambda x: op("permute", op("permute", x, axes=(3, 0, 1, 2)), axes=(0, 3, 2, 1)), ["permute"]),
    (lambda x: op("permute", x, axes=(1, 0, 2, 3)), ["reshape"]),
    (lambda x: op("permute", x, axes=(0, 2, 1, 3)), ["reshape"]),
    (lambda x: op("permute", x, axes=(2, 1, 0, 3)), ["permute"]),
    (lambda x: op("broadcast", x, shape=x.shape, axes=()), []),
    (lambda x: op("broadcast", x, shape=(2, 1, 1, 3, 4), axes=(1,)), ["reshape"]),
    (lambda x: op("broadcast", x, shape=(2, 1, 5, 3, 4), axes=(2,)), ["broadcast"]),
    (lambda x: op("slice", x, starts=(0,) * 4, stops=x.shape, steps=(1,) * 4), []),
    (lambda x: op("slice", x, starts=(0, 0, 1, 0), stops=x.shape, steps=(1,) * 4), ["slice"]),
    (lambda x: op("slice", x, starts=(0,) * 4, stops=x.shape, steps=(1, 7, 1, 1)), []),
    (lambda x: op("slice", x, starts=(0,) * 4, stops=x.shape, steps=(1, 1, 2, 1)), ["slice"]),
    (lambda x: op("pad", x, low=(0,) * 4, high=(0,) * 4, interior=(0, 3, 0, 0), value=7), []),
    (lambda x: op("pad", x, low=(0,) * 4, high=(0,) * 4, interior=(0, 0, 1, 0), value=7), ["pad"]),
    (lambda x: op("flip", x, axes=(1,)), []),
    (lambda x: op("flip", x, axes=(1, 2)), ["flip"]),
    (lambda x: op("concat", x, axis=2), []),
    (lambda x: op("concat", x, x, axis=2), ["concat"]),
]


@pytest.mark.parametrize(("make", "left"), MOVED)
def test_movements_that_move_nothing_vanish(make: Any, left: list[str]) -> None:
    x = leaf(np.arange(24.0).reshape(2, 1, 3, 4))
    assert names(simplified(make(x))) == left


@pytest.mark.parametrize("make", [
    lambda x: op("reshape", x, shape=(5, 0)), lambda x: op("permute", x, axes=(2, 1, 0)),
    lambda x: op("broadcast", x, shape=(0, 1, 7, 3), axes=(2,)),
    lambda x: op("slice", x, starts=(0, 0, 1), stops=(0, 1, 3), steps=(1, 1, 1)),
    lambda x: op("flip", x, axes=(0, 2)), lambda x: op("concat", x, x, axis=0)])
def test_movements_of_nothing_keep_their_shape(make: Any) -> None:
    simplified(make(leaf(np.zeros((0, 1, 3)))))


# -------------------------------------------------------------------------------------- constants
def folded(node: Node) -> Any:
    new = simplified(node)
    assert new.op is CONSTANT
    return new.attrs["value"]


@pytest.mark.parametrize(("name", "attrs", "shape"), [
    ("reshape", {"shape": (3, 2)}, (2, 3)), ("permute", {"axes": (1, 0)}, (2, 3)),
    ("broadcast", {"shape": (2, 4, 3), "axes": (1,)}, (2, 3)),
    ("slice", {"starts": (0, 1), "stops": (2, 3), "steps": (1, 1)}, (2, 3)),
    ("flip", {"axes": (0,)}, (2, 3))])
@pytest.mark.parametrize("value", [2.5, -0.0, NAN])
def test_moved_constants_are_constants(name: str, attrs: Any, shape: Any, value: float) -> None:
    folded(op(name, CONSTANT(value=value, shape=shape, dtype=float32), **attrs))


@pytest.mark.parametrize(("dtype", "name", "values"), [
    (float32, "add", (0.1, 0.2)), (float32, "add", (0.0, -0.0)), (float32, "sub", (INF, INF)),
    (float32, "mul", (1e30, 1e30)), (float32, "div", (1, -0.0)), (float16, "mul", (300, 300)),
    (float32, "maximum", (NAN, 1)), (float64, "exp", (0.1,)), (float32, "sqrt", (-0.0,)),
    (int8, "add", (100, 100)), (int8, "mul", (-128, -1)), (uint8, "sub", (0, 1)),
    (int64, "mul", (2**62, 4)), (int64, "neg", (-(2**63),)), (bool_, "add", (True, True)),
    (float32, "lt", (NAN, 1)), (int32, "floor_divide", (-7, 2))])
def test_operators_of_constants_are_folded(dtype: DType, name: str, values: tuple[Any, ...]
                                           ) -> None:
    folded(op(name, *(CONSTANT(value=v, shape=(2, 3), dtype=dtype) for v in values)))


@pytest.mark.parametrize(("source", "value", "target"), [
    (bfloat16, 0.1, float32), (float16, 0.1, float32), (float16, 70000.0, float32),
    (float32, 0.1, float64), (float32, 1e39, float64), (float32, -2.7, int32),
    (int64, 300, uint8), (int64, -1, uint8), (float32, NAN, bool_), (bool_, True, float32)])
def test_a_converted_constant_is_first_rounded_to_its_own_type(source: DType, value: Any,
                                                               target: DType) -> None:
    folded(op("cast", CONSTANT(value=value, shape=(2,), dtype=source), dtype=target))


def test_bfloat16_numbers_are_compared_as_they_are_stored() -> None:
    one, two = (CONSTANT(value=v, shape=(2,), dtype=bfloat16) for v in (0.1, 0.1001))
    assert folded(op("eq", one, two)) is True


# ------------------------------------------------------------------------------------- reductions
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_prod", "reduce_max", "reduce_min"])
def test_a_reduction_of_single_elements_is_a_reshape(name: str) -> None:
    """The sum of one -0.0 is that -0.0: a view, and not 0.0 + -0.0."""
    x = leaf([[[v]] for v in FLOATS if v or name != "reduce_sum"])
    assert names(simplified(op(name, x, axes=(1, 2)))) == ["reshape"]
    assert simplified(op(name, x, axes=())) is x
    assert names(simplified(op(name, leaf([[1.0, -0.0]]), axes=(1,)))) == [name]


@pytest.mark.parametrize(("dtype", "value", "shape"), [
    (float32, 0.1, (10,)), (float32, 16777217.0, (1000,)), (float32, INF, (3,)),
    (float32, INF, (0,)), (float32, NAN, (0,)), (float32, 3e38, (2,)), (float32, NAN, (2,)),
    (float32, -0.0, (2,)), (float16, 60000.0, (4,)), (float16, 0.1, (7,)), (float64, 0.1, (3,)),
    (int8, 100, (4,)), (uint8, 255, (3,)), (int64, 2**62, (4,)), (int64, 2**62, (2,)),
    (int64, -3, (0,))])
def test_a_sum_of_a_constant_is_a_product(dtype: DType, value: Any, shape: Any) -> None:
    made = folded(op("reduce_sum", CONSTANT(value=value, shape=(2, *shape), dtype=dtype),
                     axes=(1,)))
    assert dtype.kind == "f" or np.iinfo(dtype.numpy).min <= made <= np.iinfo(dtype.numpy).max


@pytest.mark.parametrize("dtype", [float32, float64, int8, bool_])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_of_extremes_are_reductions(name: str, axis: int, dtype: DType) -> None:
    rows = [[1, 3, 3, 0], [0, 0, 1, 1], [5, 5, 5, 5], [-1, -2, -2, 7]]
    if dtype.kind == "f":
        rows += [[NAN, 1, NAN, 2], [1, NAN, INF, NAN], [-INF, INF, INF, -INF], [0.0, -0.0] * 2]
    new = simplified(op(name, leaf(np.array(rows).astype(dtype.numpy), dtype), axis=axis))
    assert name not in names(new) and "reduce_min" in names(new)


# ----------------------------------------------------------------------------------- contractions
@pytest.mark.parametrize(("dtype", "shapes", "contract"), [
    (int64, ((3, 4), (4, 2)), 1), (int8, ((3, 4), (4, 2)), 1), (float32, ((0, 4), (4, 2)), 1),
    (int32, ((3, 0), (0, 2)), 1)])
def test_products_without_kernels_are_sums(rng: np.random.Generator, dtype: DType, shapes: Any,
                                           contract: int) -> None:
    a, b = (leaf(rng.integers(-100, 100, s), dtype) for s in shapes)
    new = simplified(op("dot_general", a, b, a_batch=(), a_contract=(1,), b_batch=(),
                        b_contract=(0,)))
    assert "dot_general" not in names(new) and "reduce_sum" in names(new)


def test_a_batched_integer_product_with_odd_axes(rng: np.random.Generator) -> None:
    a, b = leaf(rng.integers(-9, 9, (4, 2, 3, 5)), int64), leaf(rng.integers(-9, 9, (5, 2, 4)),
                                                                int64)
    new = simplified(op("dot_general", a, b, a_batch=(1,), a_contract=(3, 0), b_batch=(1,),
                        b_contract=(0, 2)))
    assert "reduce_sum" in names(new)


def test_float_products_stay() -> None:
    a, b = leaf(np.ones((2, 3))), leaf(np.ones((3, 2)))
    node = op("dot_general", a, b, a_batch=(), a_contract=(1,), b_batch=(), b_contract=(0,))
    assert names(simplified(node)) == ["dot_general"]


# ---------------------------------------------------------------------------- common subgraphs
def test_equal_subgraphs_become_one() -> None:
    x = leaf(FLOATS)
    one, two = (op("exp", op("mul", x, number(3.0, x))) for _ in range(2))
    both = simplify([op("sub", one, two), one, two])
    assert names(*both) == ["mul", "exp", "sub"]
    assert both[1] is both[2]


def test_different_subgraphs_stay_two() -> None:
    x = leaf(FLOATS)
    square = leaf(np.ones((2, 2)))
    pairs = [(op("reduce_sum", square, axes=(a,)) for a in (0, 1)),
             (op("mul", x, number(v, x)) for v in (3.0, 4.0)),
             (op("cast", x, dtype=d) for d in (float64, float16))]
    for pair in pairs:
        one, two = simplify(list(pair))
        assert one is not two


def test_zeros_of_both_signs_are_two_constants() -> None:
    x = leaf([1.0, -1.0])
    roots = [op("mul", x, number(v, x)) for v in (0.0, -0.0, 0, -0.0)]
    new = simplify(roots)
    for got, expected in zip(evaluate(new), evaluate(roots), strict=True):
        assert_same(got, expected)
    assert new[1] is new[3] and new[0] is not new[1] and new[0] is new[2]


def test_zeros_of_both_signs_through_the_surface() -> None:
    """In one program, in two programs of one structure, and as the padding of a view."""
    x = gs.tensor([1.0, 2.0])

    def signs(t: Any) -> list[bool]:
        return np.signbit(t.numpy()).tolist()

    def pair(a: Any) -> Any:
        return a * 0.0, a * -0.0

    def padded(a: Any) -> Any:
        return tuple(gs.nn.functional.pad(a, (1, 0), value=v) for v in (0.0, -0.0))
    for run in (lambda f: f(x), lambda f: gs.compile(f)(x)):
        assert [signs(r) for r in run(pair)] == [[False] * 2, [True] * 2]
        assert [signs(r) for r in run(padded)] == [[False] * 3, [True, False, False]]


def test_what_has_a_value_is_left_alone() -> None:
    x = leaf(FLOATS)
    y = op("neg", op("neg", x))
    y.value = x.value
    assert simplify([y]) == [y]
    (new,) = simplify([op("exp", y)])
    assert new.inputs == (y,)


# --------------------------------------------------------------------------------- all of them
BINARY = ("add", "sub", "mul", "div", "maximum", "copysign", "pow")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, INF, NAN)


@given(st.lists(st.tuples(st.sampled_from((*BINARY, "neg", "abs", "where", "flip")),
                          st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_random_expressions_keep_their_bits(steps: Sequence[tuple[str, int, int]]) -> None:
    x = leaf(FLOATS)
    values = [x, leaf(FLOATS[::-1]), *(number(v, x) for v in NUMBERS)]
    for name, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        values.append(op(name, a, b) if name in BINARY
                      else op("where", op("signbit", a), a, b) if name == "where"
                      else op(name, a, axes=(0,)) if name == "flip" else op(name, a))
    roots = values[-3:]
    new = simplify(roots)
    assert len(names(*new)) <= len(names(*roots))
    for got, expected in zip(evaluate(new), evaluate(roots), strict=True):
        assert_same(got, expected)
