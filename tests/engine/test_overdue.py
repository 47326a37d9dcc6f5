"""What nobody looks at is computed all the same once much waits behind it."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

import gossamer as gs
from gossamer.ir.node import Node, toposort
from gossamer.realize import _OVERDUE, _TOGETHER, PATIENCE
from gossamer.runtime import jit
from tests.runtime.kernels import python


@pytest.fixture(autouse=True)
def none_noted():
    _OVERDUE.nodes.clear()


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Tensors are overdue at once: whole programs run in pieces of a few nodes."""
    monkeypatch.setattr(sys.modules["gossamer.tensor"], "PATIENCE", 6)
    monkeypatch.setattr("gossamer.realize._TOGETHER", 3)


def waiting(x: gs.Tensor) -> int:
    """How many nodes behind `x`, numbers apart, are not computed."""
    order = toposort([x._node], stop=lambda n: n.value is not None)
    return sum(n.value is None and len(n.inputs) > 0 for n in order)


def test_a_node_knows_how_long_it_waits() -> None:
    x = gs.ones(3)
    x.tolist()
    y = x.sin()
    first: Node = y._node
    z = (y * 2 + y).cos()
    assert z._node.oldest == first.oldest == first.born < z._node.born
    assert z._node.born - z._node.oldest >= waiting(z) - 1
    y.tolist()  # what is computed waits no more
    assert (y + 1)._node.oldest > first.born
    traced = []
    gs.vmap(lambda row: traced.append(row.exp().sin()) or row)(gs.ones(2, 3))
    assert traced[0]._node.born == traced[0]._node.oldest  # never overdue


@pytest.mark.parametrize(("step", "start", "expected"), [
    (lambda x: x + 1, 0.0, 6_000.0),
    (lambda x: x * 0.999 + 0.001, 0.0, 1 - 0.999 ** 6_000),
    (lambda x: x.abs().maximum(x), 3.0, 3.0)], ids=["count", "average", "diamonds"])
def test_what_waits_is_bounded(step, start: float, expected: float) -> None:
    x = gs.full((4,), start)
    most = 0
    for i in range(6_000):
        x = step(x)
        if i % 250 == 0:
            most = max(most, waiting(x))
    assert most <= PATIENCE + 10 * _TOGETHER
    assert x.tolist() == pytest.approx([expected] * 4, rel=1e-3)


def test_a_hundred_thousand_steps() -> None:
    """Memory as after two thousand, and about the time that each step takes to be written."""
    done = python("""
import gc, time
import gossamer as gs

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def steps(x, count):
    for _ in range(count):
        x = x + 1
    return x

x = steps(gs.zeros(4), 6_000)
before, start = resident(), time.process_time()
x = steps(x, 100_000)
spent, grown = time.process_time() - start, resident() - before
print(x.tolist(), grown // 1_000_000, spent)
""", GOSSAMER_NO_CACHE="1")  # so that LLVM, 30 MB, is there before the counting begins
    values, (grown, spent) = done.stdout.rsplit(None, 2)[0], done.stdout.split()[-2:]
    assert values == "[106000.0, 106000.0, 106000.0, 106000.0]", done.stderr
    assert int(grown) < 20  # 600 bytes for each node would be 150
    assert float(spent) < 20  # 2 here; a look at each step takes as long


def test_a_tensor_grown_by_cat() -> None:
    x, part = gs.zeros(1), gs.arange(3.0)
    for _ in range(200):
        x = gs.cat([x, part])
    assert waiting(x) < 64
    assert x.tolist() == [0.0] + [0.0, 1.0, 2.0] * 200


def test_losses_added_up_and_never_printed() -> None:
    """Each step's graph must go with the step, although the sum refers to it."""
    gs.manual_seed(0)
    w = gs.randn(8, 8, requires_grad=True)
    x, total, seen = gs.randn(4, 8), gs.zeros(()), []
    for i in range(1_500):
        loss = (x @ w).tanh().square().mean()
        total = total + loss.detach()
        if i % 50 == 0:
            seen.append(waiting(total))
    assert max(seen) <= PATIENCE + 20 * _TOGETHER
    one = (x @ w).tanh().square().mean().item()
    assert total.item() == pytest.approx(1_500 * one, rel=1e-4)


def test_the_next_look_computes_what_is_overdue() -> None:
    x = gs.zeros(2)
    while x._node.born - x._node.oldest <= PATIENCE:
        x = x + 1
    assert x._node.value is None and _OVERDUE.nodes
    gs.ones(3).sin().tolist()  # something else
    assert x._node.value is not None and not _OVERDUE.nodes


def trained(steps: int) -> list[np.ndarray]:
    gs.manual_seed(1)
    layers = [gs.nn.Linear(5, 5) for _ in range(3)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = gs.optim.AdamW(parameters, lr=0.05)
    x, mean = gs.randn(7, 5), gs.zeros(5)
    for _ in range(steps):
        y = x
        for layer in layers:
            y = layer(y).tanh()
        mean = mean * 0.9 + y.detach().mean(0) * 0.1
        optimizer.zero_grad()
        (y - x).square().mean().backward()
        optimizer.step()
    return [t.detach().numpy().copy() for t in (*parameters, mean)]


def test_pieces_give_the_same_training(request) -> None:
    whole = trained(6)
    request.getfixturevalue("hasty")
    for a, b in zip(whole, trained(6), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_pieces_keep_gradients_of_gradients(request) -> None:
    def curvature() -> list[float]:
        x = gs.tensor([0.3, -0.7, 1.1], requires_grad=True)
        y = x
        for _ in range(5):
            y = (y * 1.5).sin() + y
        (g,) = gs.autograd.grad(y.sum(), [x], create_graph=True)
        (h,) = gs.autograd.grad((g * g).sum(), [x])
        return h.tolist()

    whole = curvature()
    request.getfixturevalue("hasty")
    assert curvature() == pytest.approx(whole, rel=1e-5)


def test_a_trace_stays_whole(hasty) -> None:
    """Inside compile nothing is computed early, however long the function is."""
    def long(x: gs.Tensor) -> gs.Tensor:
        for i in range(200):
            x = (x + i).sin()
        return x

    a = gs.arange(4.0)
    step = gs.compile(long)
    np.testing.assert_allclose(step(a).numpy(), long(a).numpy(), rtol=1e-5)
    assert len(step.programs()) == 1 and step.traced == 1


def test_a_loop_compiles_its_pieces_once() -> None:
    x = gs.zeros(4)
    for _ in range(3 * PATIENCE):
        x = x * 0.5 + 1
    x.tolist()
    gc.collect()
    compiled = jit.stats.compiled
    for _ in range(3 * PATIENCE):
        x = x * 0.5 + 1
    x.tolist()
    assert jit.stats.compiled == compiled
