"""The pipeline as a whole: results in place, roots that are inputs, empty shapes, the arena."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs
from gossamer.compile.calls import Call
from gossamer.compile.memory import Arena, overwritable, plan_arena
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.runtime.program import host_target

from . import programs
from .graphs import graph


def _tensor(rng: np.random.Generator, *shape: int) -> tuple[Any, np.ndarray]:
    values = (rng.standard_normal(shape) / shape[-1]).astype(np.float32)
    return gs.from_numpy(values).clone(), values.astype(np.float64)


# --------------------------------------------------------------------------------------- in place
@pytest.mark.parametrize("n", [3, 64, 700])
def test_a_product_is_not_written_over_its_own_operand(rng: np.random.Generator, n: int) -> None:
    (a, a0), (v, v0), (w, w0) = (_tensor(rng, n, n), _tensor(rng, n), _tensor(rng, n, n))

    @gs.compile
    def step() -> Any:
        v.add_(a @ v)
        w.add_(w @ w)
        return v.sum()

    for _ in range(3):
        step()
        v0, w0 = v0 + a0 @ v0, w0 + w0 @ w0
    np.testing.assert_allclose(v.numpy(), v0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w.numpy(), w0, rtol=1e-4, atol=1e-5)


def test_states_that_change_places_share_a_kernel_but_not_memory(rng: np.random.Generator) -> None:
    """Each new state needs the others' old values at the same element."""
    (x, x0), (y, y0), (z, z0) = (_tensor(rng, 1000) for _ in range(3))

    @gs.compile
    def rotate() -> Any:
        a, b, c = x * 1.0, y * 1.0, z * 1.0
        x.copy_(b + c)
        y.copy_(c - a)
        z.copy_(a * b)
        return x.sum()

    for _ in range(3):
        rotate()
        x0, y0, z0 = y0 + z0, z0 - x0, x0 * y0
    for t, expected in ((x, x0), (y, y0), (z, z0)):
        np.testing.assert_allclose(t.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_state_is_updated_in_place(rng: np.random.Generator) -> None:
    (x, x0), (m, m0) = _tensor(rng, 5000), _tensor(rng, 5000)

    @gs.compile
    def step() -> None:
        m.mul_(0.9).add_(x, alpha=0.1)
        x.sub_(m)

    step()
    before = (x.data_ptr(), m.data_ptr())
    step()
    assert (x.data_ptr(), m.data_ptr()) == before
    for _ in range(2):
        m0 = 0.9 * m0 + 0.1 * x0
        x0 = x0 - m0
    np.testing.assert_allclose(x.numpy(), x0, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------ roots
def both(program: Any, *inputs: Any) -> list[Any]:
    """Results of a program, lazily and compiled, held to be the same."""
    lazy, made = program(*inputs), gs.compile(program)(*inputs)
    for a, b in zip(lazy, made, strict=True):
        assert (tuple(a.shape), a.dtype) == (tuple(b.shape), b.dtype)
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)
    return list(made)


def test_a_root_that_is_an_input(rng: np.random.Generator) -> None:
    x, values = _tensor(rng, 3, 4)
    same, other = both(lambda a: (a, a + 1), x)
    np.testing.assert_array_equal(same.numpy(), values.astype(np.float32))
    np.testing.assert_allclose(other.numpy(), values + 1, rtol=1e-6)
    (alone,) = both(lambda a: (a,), x)
    np.testing.assert_array_equal(alone.numpy(), x.numpy())
    views = both(lambda a: (a.t(), a.reshape(12), a[1:, ::2], a.expand(2, 3, 4)), x)
    for got, expected in zip(views, (values.T, values.reshape(12), values[1:, ::2],
                                     np.stack([values] * 2)), strict=True):
        np.testing.assert_array_equal(got.numpy(), expected.astype(np.float32))


def test_a_root_twice(rng: np.random.Generator) -> None:
    x, values = _tensor(rng, 50)

    def program(a: Any) -> Any:
        y = a.exp()
        return y, y, a.exp(), y.sum(), y
    made = both(program, x)
    for i in (0, 1, 2, 4):
        np.testing.assert_allclose(made[i].numpy(), np.exp(values), rtol=1e-6)


def test_a_root_that_is_a_view_of_another(rng: np.random.Generator) -> None:
    x, values = _tensor(rng, 6, 4)

    def program(a: Any) -> Any:
        y = a * 2
        return y, y.t(), y.reshape(24), y[2:5], y.flip(0), y.t().sin()
    made = both(program, x)
    y = values * 2
    for got, expected in zip(made, (y, y.T, y.reshape(24), y[2:5], y[::-1], np.sin(y.T)),
                             strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_writing_to_a_view_of_a_root_leaves_other_roots_alone(rng: np.random.Generator) -> None:
    """What shares memory inside a program does not share it as results of separate calls."""
    x, values = _tensor(rng, 6)
    f = gs.compile(lambda a: (a * 2, (a * 2).reshape(2, 3)))
    first, second = f(x)
    again, _ = f(x + 1)
    first.add_(1)
    np.testing.assert_allclose(again.numpy(), values * 2 + 2, rtol=1e-5)
    np.testing.assert_allclose(first.numpy(), values * 2 + 1, rtol=1e-5)
    assert tuple(second.shape) == (2, 3)


# ------------------------------------------------------------------------------------ empty shapes
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_shapes(shape: tuple[int, ...]) -> None:
    x = gs.zeros(*shape)
    total, rows, doubled, moved, joined = both(
        lambda a: (a.sum(), a.sum(dim=0), a * 2 + 1, a.flip(0).exp(), gs.cat([a, a])), x)
    assert total.item() == 0 and not rows.numpy().any()
    assert rows.shape == shape[1:] and doubled.shape == moved.shape == shape
    assert joined.shape == (2 * shape[0], *shape[1:])


def test_products_over_nothing_are_zero() -> None:
    (made,) = both(lambda a, b: (a @ b + 1,), gs.zeros(3, 0), gs.zeros(0, 2))
    np.testing.assert_array_equal(made.numpy(), np.ones((3, 2)))
    (made,) = both(lambda a, b: (a @ b,), gs.zeros(0, 4), gs.zeros(4, 2))
    assert made.shape == (0, 2)


def test_an_empty_part_beside_full_ones(rng: np.random.Generator) -> None:
    x, values = _tensor(rng, 4, 3)
    made = both(lambda a: (a[:0] * 2, a.sum(dim=0), (a[:0].sum(dim=0) + a).exp()), x)
    assert made[0].shape == (0, 3)
    np.testing.assert_allclose(made[2].numpy(), np.exp(values), rtol=1e-6)


# ------------------------------------------------------------------------------------------ arena
def _line(nbytes: int) -> int:
    """A buffer takes whole cache lines, and at least one."""
    return max(-(-nbytes // 64), 1) * 64


def assert_apart(calls: list[Call], sizes: dict[int, int], arena: Arena) -> None:
    """No two buffers share a byte while both are alive: from their first to their last call."""
    alive = {b: [t for t, c in enumerate(calls) if b in c.reads or b in c.writes] for b in sizes}
    alive = {b: times for b, times in alive.items() if times}
    assert set(arena.offsets) == set(alive)
    for a, offset in arena.offsets.items():
        assert offset % 64 == 0 and offset + sizes[a] <= arena.nbytes
        assert alive[a][0] == min(t for t, c in enumerate(calls) if a in c.writes)
        for b, other in arena.offsets.items():
            together = alive[a][0] <= alive[b][-1] and alive[b][0] <= alive[a][-1]
            if a < b and together and sizes[a] and sizes[b]:
                assert offset + sizes[a] <= other or other + sizes[b] <= offset, (a, b)
    most = max((sum(_line(sizes[b]) for b, times in alive.items() if times[0] <= t <= times[-1])
                for t in range(len(calls))), default=0)
    assert most <= arena.nbytes <= sum(_line(sizes[b]) for b in alive)


def _compile(program: Any, *shapes: tuple[int, ...]) -> Compiled:
    roots, inputs = graph(program, *shapes)
    return compile_graph(roots, inputs, host_target(), specialize=True)


@given(programs.steps(4, 20), st.lists(st.integers(0, 30), max_size=3))
@settings(max_examples=25, deadline=None)
def test_the_arena_keeps_living_buffers_apart(steps: list[programs.Step],
                                              wanted: list[int]) -> None:
    made = _compile(programs.program(steps, wanted), (8, 8), (8, 8))
    kept = {*made.outputs, *(b for b, _ in made.checks)}
    assert_apart(made.calls, {b: n for b, n in made.sizes.items() if b not in kept}, made.arena)
    written: set[int] = set(range(made.inputs))
    for call in made.calls:
        assert set(call.reads) - set(call.writes) <= written
        written |= set(call.writes)
    assert set(made.outputs) <= written


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 12)),
                max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_lifetimes_are_planned(buffers: list[tuple[int, int, int]]) -> None:
    """Sizes and lifetimes that no program would have, buffers that nobody reads among them."""
    sizes = {i: n for i, (n, _, _) in enumerate(buffers)}
    calls = [Call(None, (), 1, 1, "", tuple(i for i, (_, a, b) in enumerate(buffers)  # type: ignore
                                            if a < t <= a + b),
                  tuple(i for i, (_, a, _) in enumerate(buffers) if a == t)) for t in range(26)]
    assert_apart(calls, sizes, plan_arena(calls, sizes))


def test_a_chain_of_products_needs_two_places() -> None:
    """Each reads the one before it: the arena does not grow with their number."""
    def program(x: Any) -> Any:
        for _ in range(10):
            x = (x @ x).softmax(dim=1)
        return x
    made = _compile(program, (64, 64))
    assert made.arena.nbytes <= 3 * 64 * 64 * 4


# --------------------------------------------------------------------- one buffer over another
SIDE = 192  # a square of it is large enough to be written over another


def test_a_gradient_is_written_over_what_it_is_made_from(rng: np.random.Generator) -> None:
    """Of logits and their gradient only one is in memory: softmax reads a row before it writes."""
    (x, x0), (w, w0) = _tensor(rng, SIDE, SIDE), _tensor(rng, SIDE, SIDE)

    def program(x: Any, w: Any) -> Any:
        return (x @ w).softmax(dim=1) @ w
    made = _compile(program, (SIDE, SIDE), (SIDE, SIDE))
    assert made.arena.nbytes == 4 * SIDE * SIDE
    e = np.exp(x0 @ w0)
    expected = e / e.sum(1, keepdims=True) @ w0
    np.testing.assert_allclose(gs.compile(program)(x, w).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("program", [
    lambda x, w: ((x @ w).T + (x @ w)) @ w,  # read at another element
    lambda x, w: (x @ w + (x @ w)[0]) @ w,  # one row is read by all
    lambda x, w: ((x @ w) - (x @ w).sum(dim=0)) @ w,
    lambda x, w: (x @ w + (x @ w) @ w) @ w,  # an operand of the product whose epilogue writes
    lambda x, w: ((x @ w).sin() + (x @ w).softmax(dim=1)) @ w,
    lambda x, w: ((x @ w).flip(1) * (x @ w)) @ w,
    lambda x, w: (x @ w).cumsum(dim=1) @ w,
], ids=["transposed", "row", "columns", "operand", "later walk", "flipped", "scan"])
@pytest.mark.parametrize("n", [SIDE, 251])
def test_what_is_still_read_is_not_written_over(rng: np.random.Generator, program: Any,
                                                n: int) -> None:
    (x, _), (w, _) = _tensor(rng, n, n), _tensor(rng, n, n)
    fast = gs.compile(program)(x, w).numpy()
    parts = [gs.from_numpy(v.numpy().astype(np.float64)) for v in (x, w)]
    np.testing.assert_allclose(fast, program(*parts).numpy(), rtol=2e-4, atol=2e-5)


def test_a_buffer_takes_the_place_it_is_given() -> None:
    """Only one that dies in the same call, only once, and what is left over is free again."""
    big, small = 1 << 20, 1 << 18
    sizes = {0: big, 1: big, 2: small, 3: big}
    calls = [Call(None, (), 1, 1, "", reads, writes)  # type: ignore[arg-type]
             for reads, writes in (((), (0,)), ((0,), (1, 2)), ((1, 2), (3,)), ((3,), ()))]
    arena = plan_arena(calls, sizes, lambda t, buffer: {0, 1, 2})
    assert arena.offsets[1] == arena.offsets[0] == arena.offsets[3]
    assert arena.offsets[2] >= big and arena.nbytes == big + small
    apart = plan_arena(calls, sizes)
    assert apart.nbytes == 2 * big + small


def test_numbers_of_another_size_keep_their_own_place(rng: np.random.Generator) -> None:
    """Element i of four bytes lies where another worker may still read elements of eight."""
    x, _ = _tensor(rng, 251, 260)

    def program(x: Any) -> Any:
        order = x.argsort(dim=1)  # int64: 251 x 260 x 8 bytes
        return (order.to(gs.float32) * 2).sort(dim=1).values
    for _ in range(5):
        expected = np.broadcast_to(2.0 * np.arange(260), (251, 260))
        np.testing.assert_array_equal(gs.compile(program)(x).numpy(), expected)
    made = _compile(program, (251, 260))
    kernel, out = next((k, s.buffer) for k in made.kernels if k is not None for s in k.stores()
                       if s.dtype is gs.float32)
    assert overwritable(kernel, out) == set()
