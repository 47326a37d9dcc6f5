"""What `lower_loops` yields, run by an interpreter of the loop IR in plain Python.

Every load and store is held inside its buffer, every element is stored once, and the result is
the reference's. Which loops are split, which conditions are left, and what does not fit, is held
too.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from gossamer.compile.cluster import canonical_space
from gossamer.compile.lower import Misfit, Nest, lower_loops
from gossamer.core.dtype import DType, bool_, float64, int64
from gossamer.ir.index import Condition, Index, Quotient, Read, Remainder, Var
from gossamer.ir.loop import Axis, Kernel, Store, Val
from gossamer.ir.node import Node, toposort
from gossamer.ir.op import BUFFER, CONSTANT, IOTA, TABLE
from gossamer.runtime.data import Data
from gossamer.runtime.reference import evaluate

OPERATORS: dict[str, Any] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "exp": math.exp, "neg": lambda a: -a, "cast": lambda a: a,
    "lt": lambda a, b: a < b, "where": lambda c, a, b: a if c else b}
COMBINE: dict[str, Any] = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b,
                           "max": max, "min": min}


class Machine:
    """Runs a kernel over buffers that are Python lists."""

    def __init__(self, buffers: dict[int, list[Any]]) -> None:
        self.buffers = buffers
        self.loops: dict[str, int] = {}
        self.accumulators: dict[int, Any] = {}
        self.loaded: set[tuple[int, int]] = set()

    def run(self, kernel: Kernel) -> None:
        for _ in self.walk(kernel.kept):
            self.accumulators = {}
            for p in kernel.passes:
                found: dict[int, Any] = {}
                for _ in self.walk(kernel.reduced):
                    for r in p.reduces:
                        value = self.value(r.value)
                        found[r.number] = COMBINE[r.combine](found[r.number], value) \
                            if r.number in found else value
                    for s in p.stores:
                        self.store(s)
                self.accumulators |= found
                for s in p.row_stores:
                    self.store(s)

    def walk(self, axes: list[Axis]) -> Any:
        for point in product(*(range(a.extent) for a in axes)):
            self.loops |= dict(zip((a.name for a in axes), point, strict=True))
            yield point

    def store(self, s: Store) -> None:
        at = self.index(s.index)
        assert 0 <= at < len(self.buffers[s.buffer]) and self.buffers[s.buffer][at] is None
        self.buffers[s.buffer][at] = self.value(s.value)

    def index(self, index: Index) -> int:
        return index.constant + sum(k * self.atom(a) for a, k in index.terms.items())

    def atom(self, atom: Any) -> int:
        if isinstance(atom, Var):
            assert self.loops[atom.name] < atom.extent
            return self.loops[atom.name]
        if isinstance(atom, Read):
            if not self.holds(atom.condition):
                return 0
            at = int(self.value(atom.source))
            return at + atom.extent if at < 0 else at
        inner = self.index(atom.value)
        return inner // atom.divisor if isinstance(atom, Quotient) else inner % atom.divisor

    def holds(self, condition: Condition | None) -> bool:
        return condition is None or (
            all(low <= self.index(i) < high for i, low, high in condition.bounds)
            and all(self.index(i) % d == 0 for i, d in condition.multiples))

    def value(self, val: Val) -> Any:
        if val.kind == "const":
            return val.data
        if val.kind == "index":
            return self.index(val.data)
        if val.kind == "acc":
            return self.accumulators[val.data]
        if val.kind == "load":
            buffer, index, condition = val.data
            if not self.holds(condition):
                return 0
            at = self.index(index)
            assert 0 <= at < len(self.buffers[buffer])
            self.loaded.add((buffer, at))
            return self.buffers[buffer][at]
        if val.kind == "select":
            return self.value(val.inputs[0 if self.holds(val.data) else 1])
        assert val.kind == "op", val.kind
        return OPERATORS[val.data[0].name](*map(self.value, val.inputs))


def leaf(shape: tuple[int, ...], values: Any = None, dtype: DType = float64) -> Node:
    array = np.arange(1.0, math.prod(shape) + 1).reshape(shape) if values is None else values
    array = np.asarray(array, dtype.numpy)
    node = BUFFER(shape=array.shape, dtype=dtype)
    node.value = Data.from_array(array, dtype)
    return node


def op(name: str, *inputs: Node, **attrs: Any) -> Node:
    return TABLE[name](*inputs, **attrs)


def run(*outputs: Node, space: Any = None, reductions: tuple[Node, ...] = (),
        rows: tuple[Node, ...] = ()) -> tuple[Kernel, Machine]:
    """The kernel of one nest, after its results were held against the reference."""
    leaves = [n for n in toposort(outputs, stop=lambda n: n.value is not None)
              if n.value is not None]
    buffers = {id(x): i for i, x in enumerate([*leaves, *outputs])}
    space = ((outputs[0].size, False),) if space is None else space
    nest = Nest("test", space, list(reductions), [(o, buffers[id(o)]) for o in outputs],
                {id(r) for r in rows})
    kernel = lower_loops(nest, buffers)
    memory = {buffers[id(x)]: x.value.array().reshape(-1).tolist() for x in leaves}
    memory |= {buffers[id(o)]: [None] * o.size for o in outputs}
    machine = Machine(memory)
    machine.run(kernel)
    for node, expected in zip(outputs, evaluate(outputs), strict=True):
        np.testing.assert_allclose(np.array(memory[buffers[id(node)]], float),
                                   expected.reshape(-1), rtol=1e-12)
    return kernel, machine


def extents(kernel: Kernel) -> tuple[list[int], list[int]]:
    return [a.extent for a in kernel.kept], [a.extent for a in kernel.reduced]


def quotients(kernel: Kernel) -> int:
    """Quotients and remainders left in loads and stores."""
    places = [v.data[1] for v in kernel.values() if v.kind == "load"]
    return sum(isinstance(a, (Quotient, Remainder)) for i in
               [*places, *(s.index for s in kernel.stores())] for a in i.terms)


# ----------------------------------------------------------------------------------------- splits
X = leaf((4, 6))


@pytest.mark.parametrize(("make", "kept"), [
    (lambda: op("neg", X), [24]), (lambda: op("add", X, leaf((4, 6))), [24]),
    (lambda: op("neg", op("reshape", X, shape=(3, 8))), [24]),
    (lambda: op("neg", op("slice", X, starts=(1, 0), stops=(3, 6), steps=(1, 1))), [12]),
    (lambda: op("neg", op("permute", leaf((5, 6)), axes=(1, 0))), [6, 5]),
    (lambda: op("add", X, op("broadcast", leaf((6,)), shape=(4, 6), axes=(0,))), [4, 6]),
    (lambda: op("add", X, op("broadcast", leaf((4,)), shape=(4, 6), axes=(1,))), [4, 6]),
    (lambda: op("neg", op("slice", X, starts=(0, 1), stops=(4, 6), steps=(1, 2))), [12]),
    (lambda: op("neg", op("flip", X, axes=(1,))), [4, 6]),
    (lambda: op("neg", op("permute", leaf((2, 3, 5)), axes=(2, 0, 1))), [5, 6]),
    (lambda: op("neg", op("permute", leaf((3, 7, 5)), axes=(2, 1, 0))), [5, 7, 3])])
def test_loops_are_split_where_a_quotient_disappears(make: Any, kept: list[int]) -> None:
    kernel, _ = run(make())
    assert extents(kernel) == (kept, [])
    assert quotients(kernel) == 0


@pytest.mark.parametrize("inner", [2, 4])
def test_halves_and_quarters_of_the_lanes_stay_together(inner: int) -> None:
    """They are found inside a vector; any other loop is split for them."""
    kernel, _ = run(op("neg", op("permute", leaf((inner, 6)), axes=(1, 0))))
    assert extents(kernel) == ([6 * inner], []) and quotients(kernel) == 2


def test_a_number_needs_no_loop_of_more_than_one() -> None:
    kernel, _ = run(op("neg", leaf(())), space=())
    assert extents(kernel) == ([], [])


# ------------------------------------------------------------------------------------- conditions
@pytest.mark.parametrize("interior", [0, 1, 2])
@pytest.mark.parametrize(("low", "high"), [((1, 0), (0, 2)), ((0, 0), (0, 0)), ((2, 3), (1, 1))])
def test_padding_reads_under_its_condition(low: Any, high: Any, interior: int) -> None:
    x = leaf((2, 3))
    kernel, machine = run(op("neg", op("pad", x, low=low, high=high, interior=(0, interior),
                                       value=7.0)))
    assert len(machine.loaded) == 6
    (load,) = (v for v in kernel.values() if v.kind == "load")
    assert (load.data[2] is None) == (not any((*low, *high, interior)))
    if load.data[2] is not None:
        assert bool(load.data[2].multiples) == (interior > 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_of_a_concatenation_read_only_themselves(axis: int) -> None:
    parts = [leaf((2, 3)), leaf((2, 3), -np.ones((2, 3))), leaf((2, 3), np.zeros((2, 3)))]
    kernel, machine = run(op("exp", op("concat", *parts, axis=axis)))
    assert len(machine.loaded) == 18
    assert sum(v.kind == "select" for v in kernel.values()) >= 2


def test_conditions_of_nested_padding_meet() -> None:
    pads = {"low": (1,), "high": (1,), "interior": (0,), "value": 2.0}
    _, machine = run(op("neg", op("pad", op("exp", op("pad", leaf((3,)), **pads)), **pads)))
    assert len(machine.loaded) == 3


# ------------------------------------------------------------------------------ indices from data
def test_an_index_read_from_data() -> None:
    where = leaf((4,), [2, -1, 0, 2], int64)
    kernel, _ = run(op("neg", op("take", leaf((3, 2)), where)))
    assert any(isinstance(a, Read) for v in kernel.values() if v.kind == "load"
               for a in v.data[1].terms)


def test_an_index_is_read_under_the_condition_of_its_reader() -> None:
    """Behind the index there may be no memory at all."""
    taken = op("take", leaf((3, 2)), leaf((4,), [2, -1, 0, 2], int64))
    kernel, machine = run(op("exp", op("pad", taken, low=(1, 0), high=(2, 1), interior=(0, 0),
                                       value=0.5)))
    reads = [a for v in kernel.values() if v.kind == "load" for a in v.data[1].terms
             if isinstance(a, Read)]
    assert reads and all(r.condition is not None for r in reads)
    assert all(0 <= at for _, at in machine.loaded)


def test_positions_are_indices() -> None:
    run(op("add", leaf((3, 4)), op("cast", IOTA(axis=1, shape=(3, 4), dtype=int64),
                                   dtype=float64)))


# ------------------------------------------------------------------------------------- reductions
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_prod", "reduce_max", "reduce_min"])
@pytest.mark.parametrize(("axes", "sizes"), [((2,), ([6], [4])), ((0, 1), ([4], [6])),
                                             ((0, 2), ([3], [2, 4])), ((0, 1, 2), ([], [24]))])
def test_reductions(name: str, axes: Any, sizes: Any) -> None:
    x = leaf((2, 3, 4), np.linspace(-1.5, 2, 24).reshape(2, 3, 4))
    y = op(name, x, axes=axes)
    kernel, _ = run(y, space=canonical_space(x.shape, axes), reductions=(y,), rows=(y,))
    assert extents(kernel) == sizes and len(kernel.passes) == 1


def test_softmax_is_three_passes() -> None:
    x = leaf((3, 5), np.linspace(-2, 2, 15).reshape(3, 5))
    def wide(n: Node) -> Node:
        return op("broadcast", n, shape=x.shape, axes=(1,))
    top = op("reduce_max", x, axes=(1,))
    e = op("exp", op("sub", x, wide(top)))
    total = op("reduce_sum", e, axes=(1,))
    y = op("div", e, wide(total))
    kernel, _ = run(y, total, space=canonical_space(x.shape, (1,)), reductions=(top, total),
                    rows=(total,))
    assert extents(kernel) == ([3], [5])
    assert [(len(p.reduces), len(p.stores), len(p.row_stores)) for p in kernel.passes] == [
        (1, 0, 0), (1, 0, 1), (0, 1, 0)]


def test_any_is_an_integer_maximum() -> None:
    x = leaf((3, 4), np.linspace(-1, 1, 12).reshape(3, 4))
    hit = op("lt", x, CONSTANT(value=-0.5, shape=x.shape, dtype=float64))
    y = op("reduce_max", hit, axes=(1,))
    assert y.dtype is bool_
    run(y, space=canonical_space(x.shape, (1,)), reductions=(y,), rows=(y,))


# ----------------------------------------------------------------------------------------- misfits
def test_a_reduction_asked_at_another_row_does_not_fit() -> None:
    x = leaf((4, 4))
    total = op("reduce_sum", x, axes=(1,))
    moved = op("broadcast", op("flip", total, axes=(0,)), shape=(4, 4), axes=(1,))
    with pytest.raises(Misfit, match="reduce_sum is asked at another row"):
        run(op("sub", x, moved), space=canonical_space(x.shape, (1,)), reductions=(total,))


@pytest.mark.parametrize("make", [
    lambda x: op("reduce_sum", x, axes=(0,)), lambda x: op("argsort", x, axis=0, descending=False),
    lambda x: op("dot_general", x, x, a_batch=(), a_contract=(1,), b_batch=(), b_contract=(0,))])
def test_what_needs_a_kernel_of_its_own_does_not_fit(make: Any) -> None:
    inner = make(leaf((3, 3)))
    with pytest.raises(Misfit, match=f"{inner.op.name} cannot be computed inside another kernel"):
        run(op("neg", inner))
