"""Reverse mode as a graph transformation: order, cost, hooks, lines, errors; expand and batch."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from gossamer import ops
from gossamer.compile.batch import batch
from gossamer.compile.expand import expand, expansion
from gossamer.compile.vjp import vjp
from gossamer.core.collector import paused
from gossamer.core.dtype import float32, float64
from gossamer.core.errors import CompileError, GradientError, TraceError
from gossamer.ir.node import STATE, Node, toposort, user_line
from gossamer.ir.op import INPUT, PICK, TABLE, Op, constant
from gossamer.ir.verify import verify
from tests.ops.laws import buffer, value


def leaf(*shape: int) -> Node:
    return buffer(np.random.default_rng(0).normal(size=shape))


@pytest.fixture
def scratch_table() -> Iterator[dict[str, Op]]:
    """The table, restored afterwards."""
    saved = dict(TABLE)
    yield TABLE
    TABLE.clear()
    TABLE.update(saved)


def test_cotangents_of_a_node_used_twice_add_up() -> None:
    x = leaf(3)
    (g,) = vjp([ops.mul(x, x)], [None], [x])
    assert g is not None
    np.testing.assert_allclose(value(g), 2 * value(x))


def test_no_path_gives_none() -> None:
    x, y = leaf(2), leaf(2)
    assert vjp([ops.exp(x)], [None], [y]) == [None]
    assert vjp([ops.exp(ops.detach(x))], [None], [x]) == [None]
    assert vjp([ops.eq(x, y)], [None], [x]) == [None]


def test_a_root_may_be_wanted_itself_and_inner_nodes_too() -> None:
    x = leaf(2)
    inner = ops.exp(x)
    y = ops.mul(inner, inner)
    g = leaf(2)
    gy, gi, gx = vjp([y], [g], [y, inner, x])
    assert gy is g and gi is not None and gx is not None
    np.testing.assert_allclose(value(gi), 2 * value(g) * value(inner))
    np.testing.assert_allclose(value(gx), value(gi) * value(inner))


def test_several_roots() -> None:
    x = leaf(2)
    (g,) = vjp([ops.exp(x), ops.neg(x)], [None, constant(3, x)], [x])
    assert g is not None
    np.testing.assert_allclose(value(g), np.exp(value(x)) - 3)


def test_only_what_leads_to_wrt_is_differentiated() -> None:
    x, y = leaf(4), leaf(4)
    z = ops.mul(x, ops.tanh(y))
    (g,) = vjp([z], [None], [x])
    assert g is not None
    backward = [n for n in toposort([g]) if n.op.name in ("neg", "sub")]
    assert not backward  # tanh's rule was not applied


def test_leaf_stops() -> None:
    x = leaf(2)
    inner = ops.leaf(ops.exp(x))
    inner.grad = True
    gx, gi = vjp([ops.mul(inner, inner)], [None], [x, inner])
    assert gx is None and gi is not None


def test_custom_replaces_the_derivative() -> None:
    x = leaf(3)
    rounded = ops.custom(ops.round(x), x, rule=lambda g, y, x: (g,))
    (g,) = vjp([ops.mul(rounded, rounded)], [None], [x])
    assert g is not None
    np.testing.assert_allclose(value(g), 2 * np.rint(value(x)))


def test_custom_rule_with_too_few_cotangents() -> None:
    x = leaf(3)
    y = ops.custom(ops.exp(x), x, x, rule=lambda g, y, a, b: (g,))
    with pytest.raises(GradientError, match="custom: the rule returned 1 cotangents for 2 inputs"):
        vjp([y], [None], [x])


def test_hook_sees_every_finished_cotangent_once_and_may_replace_it() -> None:
    x = leaf(2)
    a = ops.exp(x)
    y = ops.add(ops.mul(a, a), a)
    seen: list[Node] = []

    def hook(node: Node, g: Node) -> Node:
        seen.append(node)
        return constant(0, g) if node is a else g

    (g,) = vjp([y], [None], [x], hook=hook)
    assert g is not None and not value(g).any()
    assert len(seen) == len({id(n) for n in seen}) == 4
    assert {n.op.name for n in seen} == {"add", "mul", "exp", "buffer"}


def test_backward_nodes_carry_the_forward_line() -> None:
    x, ones = leaf(2), leaf(2)
    y = ops.tanh(x)
    z = ops.softmax(y, axis=0)
    forward = {id(n) for n in toposort([z, ones])}
    (g,) = vjp([z], [ones], [x])
    assert STATE.where is None
    assert g is not None and user_line(g) == user_line(y)
    lines = {user_line(n) for n in toposort([g]) if id(n) not in forward}
    assert lines == {user_line(y), user_line(z)}
    assert user_line(y)[1] + 1 == user_line(z)[1]
    body = expansion(z)
    assert isinstance(body, Node) and user_line(body) == user_line(z)


def test_operator_without_rule_is_named_with_its_line(scratch_table: dict[str, Op]) -> None:
    bad = Op("bad", "elementwise", "x", infer=lambda op, x: (x.shape, x.dtype))
    x = leaf(2)
    y = bad(x)
    y.grad = True
    file, line = user_line(y)
    message = rf"bad \({file}:{line}\): got float64\[2\].*no derivative"
    with pytest.raises(GradientError, match=message):
        vjp([y], [None], [x])


def test_rule_with_a_wrong_type_is_named(scratch_table: dict[str, Op]) -> None:
    bad = Op("bad", "elementwise", "x", infer=lambda op, x: (x.shape, x.dtype),
             vjp=lambda g, y, x: (ops.reshape(g, shape=(1, *g.shape)),))
    x = leaf(2)
    with pytest.raises(GradientError, match=r"bad .*float64\[1,2\] for an operand float64\[2\]"):
        vjp([bad(x)], [None], [x])


def test_cotangent_of_another_type_is_refused() -> None:
    x = leaf(2)
    with pytest.raises(GradientError, match=r"float64\[3\] for a result float64\[2\]"):
        vjp([ops.exp(x)], [leaf(3)], [x])


def test_without_recording_the_backward_pass_is_plain() -> None:
    x = leaf(2)
    y = ops.softmax(ops.exp(x), axis=0)
    STATE.grad_enabled = False
    try:
        (g,) = vjp([y], [None], [x])
    finally:
        STATE.grad_enabled = True
    assert g is not None
    made = [n for n in toposort([g]) if id(n) not in {id(m) for m in toposort([y])}]
    assert made and not any(n.grad for n in made)


def test_weights_of_16_bits_get_cotangents_when_nothing_is_recorded() -> None:
    """The rule widens its operands; the copies must know that the originals want cotangents."""
    x, w = leaf(2, 3), leaf(3)
    x, w = (buffer(value(t).astype(np.float16)) for t in (x, w))
    y = ops.rms_norm(x, w, ndim=1, eps=1e-5)
    STATE.grad_enabled = False
    try:
        gx, gw = vjp([y], [None], [x, w])
    finally:
        STATE.grad_enabled = True
    assert gx is not None and gw is not None


def test_composites_without_a_rule_are_differentiated_through_their_body_once() -> None:
    x = leaf(4)
    y = ops.softplus(x, beta=1.0, limit=20.0)
    assert y.op.vjp is None
    (g,) = vjp([y], [None], [x])
    assert g is not None
    np.testing.assert_allclose(value(g), 1 / (1 + np.exp(-value(x))))
    assert expansion(y) is y.expansion is expansion(y)


def test_several_results_only_one_used() -> None:
    q, k, v = leaf(1, 2, 3), leaf(1, 4, 3), leaf(1, 4, 2)
    attrs = {"mask": False, "start": False, "causal": False, "window": 0, "scale": 0.5}
    both = ops.attention(q, k, v, **attrs)
    gq, gk, gv = vjp([PICK(both, index=0)], [None], [q, k, v])
    assert gq is not None and gk is not None and gv is not None
    gq, _, gv = vjp([PICK(both, index=1)], [None], [q, k, v])
    assert gq is not None and gv is not None and not value(gv).any()


@pytest.mark.parametrize("name", ["tanh", "silu", "softplus"])
def test_long_chains_need_no_recursion_and_linear_time(name: str) -> None:
    attrs = {"beta": 1.0, "limit": 20.0} if name == "softplus" else {}

    def seconds(n: int) -> float:
        x = y = leaf(2)
        for _ in range(n):
            y = TABLE[name](y, **attrs)
        with paused():  # as when a function is traced: the collector's time is the whole process's
            start = time.process_time()
            (g,) = vjp([y], [None], [x])
            assert g is not None
            expand([g])
            return time.process_time() - start

    seconds(100)
    short, long = min(seconds(1000) for _ in range(3)), seconds(8000)
    assert long < 8 * 4 * short + 0.05  # quadratic would be 64 times


def test_diamonds_are_not_walked_twice() -> None:
    """2^60 paths, 60 nodes."""
    x = y = leaf(2)
    for _ in range(60):
        y = ops.add(y, y)
    (g,) = vjp([y], [None], [x])
    assert g is not None
    assert len(toposort([g])) < 200
    np.testing.assert_allclose(value(g), 2.0**60)


# expand ----------------------------------------------------------------------------------------


def test_wrappers_vanish_and_untouched_nodes_stay() -> None:
    x = INPUT(index=0, shape=(2,), dtype=float32)
    plain = ops.exp(x)
    y = ops.add(ops.detach(plain), ops.leaf(plain))
    (found,) = expand([y])
    assert found.op.name == "add" and found.inputs == (plain, plain)
    assert expand([plain]) == [plain]
    assert user_line(found) == user_line(y)


def test_a_node_with_a_value_is_a_leaf_of_expansion() -> None:
    x = leaf(2)
    y = ops.softmax(x, axis=0)
    y.value = x.value
    assert expand([ops.exp(y)])[0].inputs == (y,)


def test_a_body_of_another_type_is_a_defect(scratch_table: dict[str, Op]) -> None:
    bad = Op("bad", "composite", "x", infer=lambda op, x: (x.shape, x.dtype),
             body=lambda x: ops.reshape(x, shape=(1, *x.shape)))
    with pytest.raises(CompileError, match=r"bad .*body gives float64\[1,2\]"):
        expand([bad(leaf(2))])


def test_several_results_are_kept_or_expanded_together() -> None:
    q = INPUT(index=0, shape=(1, 2, 3), dtype=float32)
    attrs = {"mask": False, "start": False, "causal": True, "window": 0, "scale": 0.5}
    both = ops.attention(q, q, q, **attrs)
    roots = [PICK(both, index=0), PICK(both, index=1)]

    def whole(node: Node) -> bool:
        return node.op.name == "attention"

    expanded = expand(roots)
    verify(expanded, primitive=True)
    kept = expand(roots, keep=whole)
    assert [n.inputs[0] for n in kept] == [both, both]
    again = expand([PICK(ops.attention(ops.detach(q), q, q, **attrs), index=0)], whole)[0]
    assert again.inputs[0].inputs == (q, q, q) and again.inputs[0].outs == both.outs


# batch -----------------------------------------------------------------------------------------


def test_what_does_not_depend_on_the_batch_stays_single() -> None:
    x, w = leaf(3), leaf(3)
    scale = ops.exp(w)
    over = leaf(5, 3)
    (y,) = batch([ops.mul(x, scale)], {x: over}, 5)
    assert scale in toposort([y])
    np.testing.assert_allclose(value(y), value(over) * np.exp(value(w)))
    (alone,) = batch([scale], {x: over}, 5)
    assert alone.shape == (5, 3)


def test_batched_products_with_a_shared_matrix_stay_one_product() -> None:
    x, w, over = leaf(3), leaf(3, 4), leaf(5, 3)
    y = ops.dot_general(x, w, a_batch=(), a_contract=(0,), b_batch=(), b_contract=(0,))
    (found,) = batch([y], {x: over}, 5)
    names = [n.op.name for n in toposort([found])]
    assert names.count("dot_general") == 1
    (product,) = (n for n in toposort([found]) if n.op.name == "dot_general")
    assert not product.attrs["a_batch"] and product.inputs == (over, w)


def test_gradient_of_a_batch_is_the_batch_of_gradients() -> None:
    x, over = leaf(3), leaf(5, 3)
    y = ops.logsumexp(ops.mul(x, x), axes=(0,))
    (g,) = vjp([y], [None], [x])
    assert g is not None
    (each,) = batch([g], {x: over}, 5)
    (z,) = batch([y], {x: over}, 5)
    (whole,) = vjp([z], [None], [over])
    assert whole is not None
    np.testing.assert_allclose(value(each), value(whole))


def test_operator_without_batching_rule_is_named(scratch_table: dict[str, Op]) -> None:
    bad = Op("bad", "special", "x", infer=lambda op, x: (x.shape, x.dtype))
    x = leaf(2)
    with pytest.raises(TraceError, match=r"vmap: bad .*has no batching rule"):
        batch([bad(x)], {x: leaf(3, 2)}, 3)


def test_batch_twice() -> None:
    x = leaf(2)
    once, twice = leaf(3, 2), leaf(4, 3, 2)
    (y,) = batch([ops.softmax(x, axis=0)], {x: once}, 3)
    (z,) = batch([y], {once: twice}, 4)
    e = np.exp(value(twice))
    np.testing.assert_allclose(value(z), e / e.sum(-1, keepdims=True))
    assert z.dtype is float64
