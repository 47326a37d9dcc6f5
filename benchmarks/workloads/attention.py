"""`attention-T`, `attention-back-T`: causal attention, forward, and with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]

# (B, H, T, K): many short sequences, the usual, one long sequence.
SHAPES = {256: (16, 6, 256, 32), 1024: (4, 8, 1024, 64), 4096: (1, 8, 4096, 64)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    shape = (size["batch"], size["heads"], size["time"], size["dim"])
    return [rng.normal(size=shape).astype(np.float32) for _ in range(3)]


def torch(lib: Any, size: Size) -> Model:
    attend = lib.nn.functional.scaled_dot_product_attention
    return lambda p, q, k, v: attend(q, k, v, is_causal=True)


def jax(lib: Any, size: Size) -> Model:
    def attend(p: Any, *qkv: Any) -> Any:
        y = lib.nn.dot_product_attention(*(x.swapaxes(1, 2) for x in qkv), is_causal=True)
        return y.swapaxes(1, 2)

    return attend


def tinygrad(lib: Any, size: Size) -> Model:
    return lambda p, q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True)


def energy(make: Any) -> Any:
    """Half the sum of squares of a model's result: its gradient there is the result itself."""
    def made(lib: Any, size: Size) -> Model:
        model = make(lib, size)

        def value(p: Any, *inputs: Any) -> Any:
            y = model(p, *inputs)
            return (y * y).sum() * 0.5

        return value

    return made


_FORWARD = {"torch": torch, "jax": jax, "tinygrad": tinygrad}
_BACKWARD = {family: energy(make) for family, make in _FORWARD.items()}

WORKLOADS = [
    Workload(f"{name}-{time}", f"causal attention{what}, (B, H, T, K) = {shape}", kind, models,
             inputs=inputs,
             sizes={"full": dict(zip(("batch", "heads", "time", "dim"), shape, strict=True)),
                    "tiny": {"batch": 2, "heads": 2, "time": 9, "dim": 4}})
    for name, what, kind, models in (
        ("attention", "", "forward", _FORWARD),
        ("attention-back", " and gradient", "gradient", _BACKWARD))
    for time, shape in SHAPES.items()
]
