"""`mlp`: a training step of 784-512-512-10 with ReLU, batch 128, plain SGD."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    widths = [size["inputs"], size["hidden"], size["hidden"], 10]
    made: dict[str, tuple[int, ...]] = {}
    for i in range(3):
        made[f"{i}.weight"], made[f"{i}.bias"] = (widths[i + 1], widths[i]), (widths[i + 1],)
    return made


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.normal(size=(size["batch"], size["inputs"])).astype(np.float32)
    return [x, rng.integers(0, 10, size["batch"])]


def torch(lib: Any, size: Size) -> Model:
    F = lib.nn.functional

    def loss(p: Any, x: Any, y: Any) -> Any:
        for i in range(2):
            x = F.relu(F.linear(x, p[f"{i}.weight"], p[f"{i}.bias"]))
        return F.cross_entropy(F.linear(x, p["2.weight"], p["2.bias"]), y)

    return loss


def jax(lib: Any, size: Size) -> Model:
    np_, nn = lib.numpy, lib.nn

    def loss(p: Any, x: Any, y: Any) -> Any:
        for i in range(2):
            x = nn.relu(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
        rows = nn.log_softmax(x @ p["2.weight"].T + p["2.bias"])
        return -np_.take_along_axis(rows, y[:, None], axis=1).mean()

    return loss


def tinygrad(lib: Any, size: Size) -> Model:
    def loss(p: Any, x: Any, y: Any) -> Any:
        for i in range(2):
            x = x.linear(p[f"{i}.weight"].T, p[f"{i}.bias"]).relu()
        return x.linear(p["2.weight"].T, p["2.bias"]).sparse_categorical_crossentropy(y)

    return loss


WORKLOADS = [
    Workload("mlp", "784-512-512-10, batch 128, SGD", "train",
             {"torch": torch, "jax": jax, "tinygrad": tinygrad}, shapes, inputs,
             {"full": {"inputs": 784, "hidden": 512, "batch": 128},
              "tiny": {"inputs": 20, "hidden": 16, "batch": 8}}, lr=0.05, defaults=True),
]
