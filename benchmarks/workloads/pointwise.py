"""`gelu-N`, `chain-N`: elementwise work on arrays inside the caches and beyond them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=size["n"]).astype(np.float32) for _ in range(size["arrays"])]


def gelu(call: Callable[[Any], Any]) -> Callable[[Any, Size], Model]:
    """The erf form of GELU; `call` finds it in a library."""
    return lambda lib, size: lambda p, x: call(lib)(x)


def chain(tanh: Callable[[Any], Any]) -> Callable[[Any, Size], Model]:
    """Five operations on two arrays: *, +, tanh, *, -."""
    return lambda lib, size: lambda p, x, y: tanh(lib)(x * y + x) * y - x


_GELU = {"torch": gelu(lambda lib: lib.nn.functional.gelu),
         "jax": gelu(lambda lib: lambda x: lib.nn.gelu(x, approximate=False)),
         "tinygrad": gelu(lambda lib: lambda x: x.gelu(approximate="none"))}
_CHAIN = {"torch": chain(lambda lib: lib.tanh), "jax": chain(lambda lib: lib.numpy.tanh),
          "tinygrad": chain(lambda lib: lambda x: x.tanh())}

WORKLOADS = [
    Workload(f"{name}-{label}", f"{title} of {label} numbers", "forward", models, inputs=inputs,
             sizes={"full": {"n": n, "arrays": arrays}, "tiny": {"n": 100, "arrays": arrays}})
    for name, title, models, arrays in (
        ("gelu", "GELU (erf)", _GELU, 1), ("chain", "tanh(xy + x) y - x", _CHAIN, 2))
    for label, n in (("16k", 1 << 14), ("256k", 1 << 18), ("4m", 1 << 22))
]
