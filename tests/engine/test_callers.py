"""Who calls whom: many Python threads at once, calls from inside calls, forks in the middle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from tests.runtime.kernels import python


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of `work(number)` on as many threads, all released at the same moment."""
    barrier, found, errors = threading.Barrier(count), [None] * count, []

    def one(number: int) -> None:
        try:
            barrier.wait(60)
            found[number] = work(number)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert not any(caller.is_alive() for caller in callers), "a deadlock"
    if errors:
        raise errors[0]
    return found


def test_one_compiled_function_from_many_threads() -> None:
    """Its first call, the compilation, is raced for too; every caller gets its own result."""
    step = gs.compile(lambda x: ((x @ x.T).softmax(-1) @ x).sum(0))
    inputs = [np.random.default_rng(n).normal(size=(160, 48)).astype(np.float32) for n in range(6)]
    expected = [gs.compile(lambda x: ((x @ x.T).softmax(-1) @ x).sum(0))(gs.tensor(x)).numpy()
                for x in inputs]

    def work(number: int) -> list[np.ndarray]:
        return [step(gs.tensor(inputs[number])).numpy() for _ in range(12)]

    for number, results in enumerate(together(6, work)):
        for found in results:
            np.testing.assert_array_equal(found, expected[number])


def test_threads_train_models_of_their_own() -> None:
    def train(number: int) -> list[float]:
        generator = np.random.default_rng(number)
        w = gs.tensor(generator.normal(size=(8, 4)).astype(np.float32), requires_grad=True)
        x = gs.tensor(generator.normal(size=(64, 8)).astype(np.float32))
        optimizer, losses = gs.optim.AdamW([w], lr=0.05), []

        def step(x: gs.Tensor) -> gs.Tensor:
            loss = ((x @ w).tanh() - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = gs.compile(step) if number % 2 else step
        for _ in range(8):
            losses.append(run(x).item())
        return losses

    alone = [train(number) for number in range(4)]
    assert all(one[-1] < one[0] for one in alone)
    assert together(4, train) == alone


def test_a_compiled_function_from_inside_a_hook() -> None:
    """A backward pass of a graph calls hooks; a hook may run kernels of all threads itself."""
    inner = gs.compile(lambda g: (g * 2 + g.sum()).tanh())
    x = gs.arange(200_000.0).div(200_000).requires_grad_()
    seen: list[float] = []

    def hook(g: gs.Tensor) -> gs.Tensor:
        out = inner(g)
        seen.append(out.mean().item())
        return out

    x.register_hook(hook)
    (x * 3).sum().backward()
    assert seen == [1.0]
    np.testing.assert_array_equal(x.grad.numpy(), np.ones(200_000, np.float32))


def test_a_compiled_function_from_inside_an_autograd_function() -> None:
    double = gs.compile(lambda g: g * 2)

    class Doubled(gs.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: gs.Tensor) -> gs.Tensor:
            return double(x)

        @staticmethod
        def backward(ctx: Any, g: gs.Tensor) -> gs.Tensor:
            return double(g)

    x = gs.ones(3, requires_grad=True)
    y = Doubled.apply(x)
    y.sum().backward()
    assert y.tolist() == [2.0] * 3 and x.grad.tolist() == [2.0] * 3


def test_a_compiled_function_from_inside_a_compiled_function() -> None:
    inner = gs.compile(lambda x: x.softmax(-1))
    outer = gs.compile(lambda x: (inner(x) * inner(x + 1)).sum(-1))
    x = gs.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(outer(x).numpy(), (x.softmax(-1) ** 2).sum(-1).numpy(), rtol=1e-6)


def test_a_look_from_inside_a_module_hook() -> None:
    layer = nn.Linear(4, 4)
    sums: list[float] = []
    layer.register_forward_hook(lambda m, a, out: sums.append(out.sum().item()))
    total = layer(gs.ones(2, 4)).sum().item()
    assert sums == [total]


def test_looks_at_one_lazy_tensor_from_many_threads() -> None:
    x = gs.arange(50_000.0)
    for _ in range(5):
        x = (x * 0.5).sin()
    found = together(5, lambda number: x.sum().item())
    # Who comes second may read x where the first stored it, and rounds once more.
    assert found == pytest.approx([x.numpy().sum()] * 5, rel=1e-4)


def test_a_callback_may_change_the_number_of_threads() -> None:
    """Programs hold addresses of the pool: they must find the new one."""
    step = gs.compile(lambda x: (x.sin() * 2).sum())
    x = gs.arange(300_000.0)
    before, expected = gs.get_num_threads(), step(x).item()
    try:
        for threads in (1, 3, 2):
            gs.set_num_threads(threads)
            assert step(x).item() == expected
        assert len(set(together(3, lambda n: (gs.set_num_threads(n + 1), step(x).item())[1]))) == 1
    finally:
        gs.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_other_threads_run_kernels() -> None:
    """The child has no worker and no other caller; what they held is free there."""
    done = python("""
import os, signal, threading
import gossamer as gs

step = gs.compile(lambda x: ((x @ x.T).softmax(-1) @ x).sum())
x = gs.randn(256, 64)
expected = step(x).item()
stop = threading.Event()

def work():
    while not stop.is_set():
        assert step(x).item() == expected

callers = [threading.Thread(target=work) for _ in range(3)]
for caller in callers:
    caller.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a deadlock ends
        same = step(x).item() == expected and gs.arange(4.0).cos().exp().shape == (4,)
        fresh = gs.compile(lambda x: (x * 2).max())(x).item() == x.max().item() * 2
        os._exit(0 if same and fresh else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
for caller in callers:
    caller.join()
print(codes)
""", GOSSAMER_THREADS="2")
    assert done.stdout == "[0, 0, 0, 0, 0]\n", done.stderr
