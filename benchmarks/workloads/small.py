"""What each call costs, whatever it computes: `tanh100`, `newshape`, `node`, `look`, `import`.

`tanh100` is 100 chained tanh on 4 numbers with gradient, compiled, and its first call is cold.
`newshape` is softmax(2 tanh(x)).sum() of n x 64, n another one each call, with what a framework
offers for that: Gossamer uncompiled, `torch.compile` free to make n dynamic. `node` is an add of
two tensors of 4 numbers that nobody looks at (lazy frameworks only make a node; JAX computes it
some time later), `look` the same with its values as a NumPy array.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.adapters.base import Adapter, Model, Task
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS", "chain"]


def chain(tanh: Any) -> Any:
    """`length` chained tanh, summed; `tanh` finds it in a library."""
    def made(lib: Any, size: Size) -> Model:
        f = tanh(lib)

        def value(p: Any, x: Any) -> Any:
            for _ in range(size["length"]):
                x = f(x)
            return x.sum()

        return value

    return made


CHAIN = {"torch": chain(lambda lib: lib.tanh), "jax": chain(lambda lib: lib.numpy.tanh),
         "tinygrad": chain(lambda lib: lambda x: x.tanh())}


def four(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=4).astype(np.float32)]


def two_fours(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return four(size, rng) + four(size, rng)


def many_rows(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=(size["rows"], 64)).astype(np.float32)]


def new_shape(adapter: Adapter, size: Size, inputs: list[np.ndarray]) -> Task:
    lib, rows = adapter.lib, itertools.count(100)
    if adapter.family == "torch":
        def function(x: Any) -> Any:
            return lib.softmax(2 * lib.tanh(x), -1).sum()

        if lib.__name__ == "torch" and getattr(adapter, "compiled", False):
            function = lib.compile(function)
    elif adapter.family == "jax":
        function = lib.jit(lambda x: lib.nn.softmax(2 * lib.numpy.tanh(x)).sum())
    else:
        def function(x: Any) -> Any:
            return (2 * x.tanh()).softmax(-1).sum()

    def call() -> Any:
        return adapter.numpy(function(adapter.tensor(inputs[0][:next(rows)])))

    return Task(call, lambda result: [result])


def node(adapter: Adapter, size: Size, inputs: list[np.ndarray]) -> Task:
    a, b = (adapter.tensor(x) for x in inputs)
    count = size["repeats"]

    def call() -> Any:
        c = a
        for _ in range(count):
            c = a + b
        return adapter.wait(c) if adapter.family == "jax" else c

    return Task(call, lambda result: [adapter.numpy(result)], units=count)


def look(adapter: Adapter, size: Size, inputs: list[np.ndarray]) -> Task:
    a, b = (adapter.tensor(x) for x in inputs)
    numpy = adapter.numpy
    return Task(lambda: numpy(a + b), lambda result: [result])


def _all(task: Any) -> dict[str, Any]:
    return dict.fromkeys(("torch", "jax", "tinygrad"), task)


# A compiled function is no answer to "what does one operation cost".
_NOT_COMPILED = ("gossamer", "torch", "jax", "tinygrad")
WORKLOADS = [
    Workload("tanh100", "100 chained tanh on 4 numbers and gradient, compiled", "gradient", CHAIN,
             inputs=four, sizes={"full": {"length": 100}, "tiny": {"length": 5}}, cold=True),
    Workload("newshape", "softmax(2 tanh(x)).sum() of n x 64, a new n each call", "task",
             _all(new_shape), inputs=many_rows, calls=3,
             sizes={"full": {"rows": 1000}, "tiny": {"rows": 300}}),
    Workload("node", "an add of two tensors of 4, not looked at", "task", _all(node),
             inputs=two_fours, sizes={"full": {"repeats": 1000}, "tiny": {"repeats": 10}},
             only=_NOT_COMPILED, threads="one"),
    Workload("look", "an add of two tensors of 4 as a NumPy array", "task", _all(look),
             inputs=two_fours, only=_NOT_COMPILED, threads="one"),
    Workload("import", "importing the package in a new process", "import", only=_NOT_COMPILED,
             threads="one"),
]
