"""What the scheduler joins, what it keeps apart, and that clusters can run in their order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs
from gossamer.compile.cluster import MAX_OPERATIONS, Precedence, canonical_space, listed
from gossamer.compile.schedule import Plan
from gossamer.core.errors import IndexingError
from gossamer.ir.node import Node, toposort

from . import programs
from .graphs import graph, kernels, plan

X = (32, 64)


# ------------------------------------------------------------------------------------- downwards
def test_a_chain_is_one_kernel() -> None:
    assert kernels(lambda x: (x * 2 + 1).tanh().exp(), X) == [["mul", "add", "tanh", "exp"]]


def test_softmax_is_one_row_kernel() -> None:
    (ops,) = kernels(lambda x: x.softmax(dim=1), X)
    assert ops.count("reduce_max") == 1 and ops.count("reduce_sum") == 1


def test_an_epilogue_follows_its_product() -> None:
    (cluster,) = plan(lambda x, w, b: (x @ w + b).relu(), X, (64, 16), (16,)).clusters
    assert cluster.kind == "dot" and len(cluster.members) > 2


def test_a_product_that_is_wanted_itself_takes_no_epilogue() -> None:
    def program(x: Any, w: Any) -> Any:
        y = x @ w
        return y, y * 2 + 1
    assert sorted(c.kind for c in plan(program, X, (64, 16)).clusters) == ["dot", "loops"]


@pytest.mark.parametrize(("op", "length"), [(lambda x: x.abs().neg(), MAX_OPERATIONS),
                                            (lambda x: x.tanh(), 16)])
def test_a_chain_is_cut_at_the_bound(op: Any, length: int) -> None:
    """By the number of operators, or by their work."""
    def program(x: Any) -> Any:
        for _ in range(3 * MAX_OPERATIONS):
            x = op(x)
        return x
    lengths = [len(ops) for ops in kernels(program, (8,))]
    assert lengths == [length] * (sum(lengths) // length)


def test_few_rows_stay_apart_from_the_elementwise_work() -> None:
    """A kernel over 2 rows would leave cores idle."""
    assert len(kernels(lambda x: x - x.exp().sum(dim=1, keepdim=True), (2, 1 << 20))) > 1


# -------------------------------------------------------------------------------------- sideways
def adam(p: Any, g: Any, m: Any, v: Any) -> Any:
    m = m * 0.9 + g * 0.1
    v = v * 0.99 + g * g * 0.01
    return p - m / (v.sqrt() + 1e-8), m, v


def test_an_adam_step_is_one_kernel() -> None:
    assert len(kernels(adam, X, X, X, X)) == 1


def test_adam_behind_a_clipping_factor_is_one_kernel_and_the_norm() -> None:
    def program(p: Any, g: Any, m: Any, v: Any) -> Any:
        return adam(p, g * (1 / (g.square().sum().sqrt() + 1e-6)).clamp(max=1), m, v)
    assert len(plan(program, X, X, X, X).clusters) == 1  # too small to keep two cores busy
    large = (256, 256)
    made = plan(program, large, large, large, large).clusters
    assert "sqrt" in [m.op.name for m in made[-1].members]
    assert len(made[-1].outputs) == 3
    assert not made[-1].reductions


def test_two_chains_over_one_input_share_its_walk() -> None:
    (cluster,) = plan(lambda x: (x.exp(), x.sin() + 1), X).clusters
    assert len(cluster.outputs) == 2


def test_chains_that_share_nothing_stay_apart() -> None:
    assert len(kernels(lambda x, y: (x.exp(), y.exp()), X, X)) == 2


def test_other_sizes_stay_apart() -> None:
    assert len(kernels(lambda x: (x.exp(), x[:16].sin()), X)) == 2


def test_a_transposed_reader_stays_apart() -> None:
    """Its loops would make the other's accesses gathers."""
    assert len(kernels(lambda x, y: (x.exp(), x.t() + y), X, (64, 32))) == 2


def test_rows_of_one_matrix_share_a_row_kernel() -> None:
    assert len(kernels(lambda x: (x.softmax(dim=1), x.amax(dim=1)), X)) == 1


def test_column_sums_of_one_matrix_share_a_kernel() -> None:
    def program(g: Any, x: Any) -> Any:
        return g.sum(dim=0), (g * x).sum(dim=0)
    (cluster,) = plan(program, X, X).clusters
    assert len(cluster.reductions) == 2


def test_column_sums_of_different_matrices_stay_apart() -> None:
    assert len(kernels(lambda x, y: (x.sum(dim=0), y.sum(dim=0)), X, X)) == 2


def test_work_on_a_column_sum_goes_with_it() -> None:
    """A bias: its gradient and its Adam step are one kernel."""
    def program(p: Any, g: Any, m: Any, v: Any) -> Any:
        return adam(p, g.sum(dim=0), m, v)
    assert len(kernels(program, (64,), X, (64,), (64,))) == 1


def test_no_third_cluster_between() -> None:
    """`x.exp()` feeds a product whose result the second reader of x needs: joined, the two would
    wait for each other."""
    def program(x: Any, w: Any) -> Any:
        return (x.exp() @ w) + x.sin()
    made = plan(program, (32, 32), (32, 32)).clusters
    assert_runs(Plan(made, {}), program, (32, 32), (32, 32))
    assert [c.kind for c in made] == ["loops", "dot"]


def test_index_checks_share_no_kernel_with_state() -> None:
    """The check of an index that is state reads it, and so does its update: joined, the check
    would already advance the state of a step that then fails."""
    table, index = gs.ones(5, 3), gs.tensor([1, 2, 0])

    @gs.compile
    def step() -> Any:
        rows = table[index]
        index.add_(3)
        return rows

    assert step().tolist() == [[1.0] * 3] * 3
    assert index.tolist() == [4, 5, 3]
    with pytest.raises(IndexingError):
        step()
    assert index.tolist() == [4, 5, 3]


# ----------------------------------------------------------------------------------------- order
def assert_runs(made: Plan, program: Any, *shapes: Any) -> None:
    """Every cluster comes after the clusters whose members it reads."""
    when = {id(m): t for t, c in enumerate(made.clusters) for m in c.members}
    for t, cluster in enumerate(made.clusters):
        for node in cluster.members:
            below = toposort(node.inputs, stop=lambda n: id(n) in when)
            assert all(when[id(n)] <= t for n in below if id(n) in when), (node, program)


@given(programs.steps(1, 40), st.lists(st.integers(0, 40), max_size=5))
@settings(max_examples=60, deadline=None)
def test_random_graphs_have_an_order(steps: list[programs.Step], wanted: list[int]) -> None:
    run = programs.program(steps, wanted)

    def program(*leaves: Any) -> Any:
        return [v.sin() for v in run(*leaves)]  # a leaf is no root of a plan

    shapes = [(12, 12)] * 3
    made = plan(program, *shapes)
    assert_runs(made, steps, *shapes)
    seen: set[int] = set()
    for cluster in made.clusters:
        assert len(cluster.members) <= MAX_OPERATIONS + 1
        assert not seen & {id(m) for m in cluster.members}
        seen |= {id(m) for m in cluster.members}
    assert {id(n) for n in made.stored.values()} <= seen


# ------------------------------------------------------------------------------------ precedence
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60),
       st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12))
@settings(max_examples=80, deadline=None)
def test_precedence_is_the_transitive_closure(edges: list[tuple[int, int]],
                                              merges: list[tuple[int, int]]) -> None:
    order, size = Precedence(), 20
    direct: dict[int, set[int]] = {order.new(): set() for _ in range(size)}

    def reach(a: int) -> set[int]:
        found, stack = set(), [a]
        while stack:
            for b in direct[stack.pop()]:
                if b not in found:
                    found.add(b)
                    stack.append(b)
        return found

    for a, b in edges:  # b before a, unless a is before b
        if a != b and a not in reach(b):
            assert not order.closes_cycle(a, 1 << b)
            order.require(a, 1 << b)
            direct[a].add(b)
        elif a != b:
            assert order.closes_cycle(a, 1 << b)
    for a, b in merges:
        a, b = order.find(a), order.find(b)
        if a == b or any(a in reach(c) for c in direct[b] - {a}) \
                or any(b in reach(c) for c in direct[a] - {b}):
            continue
        order.merge(a, b)
        direct[a] = (direct[a] | direct.pop(b)) - {a, b}
        for others in direct.values():
            if b in others:
                others.discard(b)
                others.add(a)
        direct[a].discard(a)
    for a in direct:
        assert {order.find(c) for c in listed(order.before(a))} == reach(a)


@pytest.mark.parametrize(("shape", "axes", "space"), [
    ((3, 4), (), ((12, False),)), ((3, 4), (1,), ((3, False), (4, True))),
    ((3, 1, 4), (1, 2), ((3, False), (4, True))), ((1, 1), (0,), ()),
    ((2, 3, 4), (0, 2), ((2, True), (3, False), (4, True)))])
def test_canonical_space(shape: Any, axes: Any, space: Any) -> None:
    assert canonical_space(shape, axes) == space


def test_the_graph_helper_sees_primitives_only() -> None:
    roots, _ = graph(lambda x: x.softmax(dim=1), X)

    def composite(n: Node) -> bool:
        return n.op.body is not None
    assert not any(composite(n) for n in toposort(roots))


def test_a_chain_over_changing_points_is_cut_too() -> None:
    """Each link has a kernel of its own kind of loop, one reader, and so no reason to be stored."""
    def program(x: Any) -> Any:
        for _ in range(2 * MAX_OPERATIONS):
            x = x.t().tanh()
        return x
    made = plan(program, (8, 9))
    assert MAX_OPERATIONS // 8 <= len(made.clusters) <= MAX_OPERATIONS // 4
