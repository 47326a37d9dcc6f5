"""The passes are linear: a chain four times as long costs less than eight times as much.

Processor time of this thread, against the smaller of two for a chain so long that fixed costs do
not count; machine code is not made (equal pieces of a chain are one kernel, and the count of
distinct kernels is held instead). The slow tests take ten thousand links from the first line to
the value.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest

import gossamer as gs
from gossamer.compile import remembered
from gossamer.compile.pipeline import Compiled, compile_graph
from gossamer.runtime.engine import Canonical
from gossamer.runtime.program import host_target


def _tanh_with_gradient(n: int) -> list[Any]:
    x = gs.ones(4)
    x.tolist()
    y = x.requires_grad_()
    for _ in range(n):
        y = y.tanh()
    return list(gs.autograd.grad(y.sum(), [x], create_graph=True))


def _layers(n: int) -> list[Any]:
    """Products, row kernels and a residual stream: many clusters instead of few large ones."""
    x, w = gs.ones(8, 8), gs.ones(8, 8)
    for t in (x, w):
        t.tolist()
    y = x
    for _ in range(n // 8):
        y = y + (y.softmax(dim=1) @ w).tanh()
    return [y]


def _many_readers(n: int) -> list[Any]:
    """One buffer that every cluster reads."""
    x, y = gs.ones(16), gs.ones(16)
    for t in (x, y):
        t.tolist()
    return [(x * float(i)).sin() for i in range(n)]


def _compiled(roots: list[Any]) -> tuple[Compiled, float]:
    roots_, inputs = Canonical([r._read() for r in roots]).graph(literal=True)
    gc.collect()
    gc.disable()
    try:
        start = time.thread_time()
        made = compile_graph(roots_, inputs, host_target(), specialize=True)
        return made, time.thread_time() - start
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [_tanh_with_gradient, _layers, _many_readers])
def test_four_times_the_nodes_cost_less_than_eight_times(
        make: Callable[[int], list[Any]]) -> None:
    """From where the bounds of fusion are reached: below, a node has fewer partners to try."""
    def seconds(n: int) -> float:
        found = []
        for _ in range(2):
            remembered.forget()  # few kernels would be found again, and many would not
            found.append(_compiled(make(n))[1])
        return min(found)
    seconds(64)  # whatever is done once
    assert seconds(1800) < 8 * seconds(450)


def test_a_long_chain_has_few_distinct_kernels() -> None:
    counts = []
    for n in (200, 800):
        made, _ = _compiled(_tanh_with_gradient(n))
        counts.append(len({c.source for c in made.calls}))
    assert counts[1] <= counts[0] + 4 <= 12


def test_fifteen_hundred_links_need_no_recursion() -> None:
    """Python stops at a thousand."""
    x = gs.ones(4)
    x.tolist()
    y = x.requires_grad_()
    for _ in range(1_500):
        y = y.tanh()
    (g,) = gs.autograd.grad(y.sum(), [x])
    assert 0 < g[0].item() < 1


# ------------------------------------------------------------------------------------------ slow
def _seconds(run: Callable[[], Any]) -> float:
    """Processor time of the process: workers and compilation on all cores included."""
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def _lazily(n: int) -> None:
    _tanh_with_gradient(n)[0].tolist()


def _compiled_function(n: int) -> None:
    x = gs.ones(4, requires_grad=True)

    @gs.compile
    def step(x: Any) -> Any:
        y = x
        for _ in range(n):
            y = y.tanh()
        return gs.autograd.grad(y.sum(), [x])[0]
    assert 0 < step(x)[0].item() < 1


@pytest.mark.slow
@pytest.mark.parametrize("run", [_lazily, _compiled_function])
def test_ten_thousand_links(run: Callable[[int], None]) -> None:
    """All of it: tracing, derivatives, passes, machine code, one run."""
    run(64)
    assert _seconds(lambda: run(10_000)) < 15 * _seconds(lambda: run(1_000))
