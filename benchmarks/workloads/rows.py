"""`softmax-RxC`, `layernorm-RxC`: reductions along rows with what surrounds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.normal(size=(size["rows"], size["columns"])).astype(np.float32)]


def scales(size: Size) -> dict[str, tuple[int, ...]]:
    return {"norm.weight": (size["columns"],), "norm.bias": (size["columns"],)}


def torch_norm(lib: Any, size: Size) -> Model:
    layer_norm, shape = lib.nn.functional.layer_norm, (size["columns"],)
    return lambda p, x: layer_norm(x, shape, p["norm.weight"], p["norm.bias"])


def jax_norm(lib: Any, size: Size) -> Model:
    def norm(p: Any, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        scale = lib.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * scale * p["norm.weight"] + p["norm.bias"]

    return norm


_SOFTMAX = {"torch": lambda lib, size: lambda p, x: lib.softmax(x, -1),
            "jax": lambda lib, size: lambda p, x: lib.nn.softmax(x),
            "tinygrad": lambda lib, size: lambda p, x: x.softmax(-1)}
_NORM = {"torch": torch_norm, "jax": jax_norm,
         "tinygrad": lambda lib, size: lambda p, x: x.layernorm() * p["norm.weight"]
         + p["norm.bias"]}

WORKLOADS = [
    Workload(f"{name}-{rows}x{columns}", f"{name} of {rows} rows of {columns}", "forward", models,
             shapes, inputs, {"full": {"rows": rows, "columns": columns},
                              "tiny": {"rows": 7, "columns": 20}})
    for name, models, shapes in (("softmax", _SOFTMAX, lambda size: {}),
                                 ("layernorm", _NORM, scales))
    for rows, columns in ((256, 256), (1024, 1024), (4096, 1024))
]
