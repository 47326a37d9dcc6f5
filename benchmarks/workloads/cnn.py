"""`cnn`: a training step of the MNIST net: two 3x3 convolutions, pooling, two layers; batch 64."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    c, h = size["channels"], size["hidden"]
    flat = 2 * c * ((size["side"] - 4) // 2) ** 2
    return {"conv1.weight": (c, 1, 3, 3), "conv1.bias": (c,), "conv2.weight": (2 * c, c, 3, 3),
            "conv2.bias": (2 * c,), "fc1.weight": (h, flat), "fc1.bias": (h,),
            "fc2.weight": (10, h), "fc2.bias": (10,)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.normal(size=(size["batch"], 1, size["side"], size["side"])).astype(np.float32)
    return [x, rng.integers(0, 10, size["batch"])]


def torch(lib: Any, size: Size) -> Model:
    F = lib.nn.functional

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = F.relu(F.conv2d(x, p["conv1.weight"], p["conv1.bias"]))
        x = F.relu(F.conv2d(x, p["conv2.weight"], p["conv2.bias"]))
        x = F.max_pool2d(x, 2).flatten(1)
        x = F.relu(F.linear(x, p["fc1.weight"], p["fc1.bias"]))
        return F.cross_entropy(F.linear(x, p["fc2.weight"], p["fc2.bias"]), y)

    return loss


def jax(lib: Any, size: Size) -> Model:
    np_, nn, lax = lib.numpy, lib.nn, lib.lax

    def conv(x: Any, w: Any, b: Any) -> Any:
        return lax.conv(x, w, (1, 1), "VALID") + b[:, None, None]

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = nn.relu(conv(x, p["conv1.weight"], p["conv1.bias"]))
        x = nn.relu(conv(x, p["conv2.weight"], p["conv2.bias"]))
        window = (1, 1, 2, 2)
        x = lax.reduce_window(x, -np_.inf, lax.max, window, window, "VALID")
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(x @ p["fc1.weight"].T + p["fc1.bias"])
        rows = nn.log_softmax(x @ p["fc2.weight"].T + p["fc2.bias"])
        return -np_.take_along_axis(rows, y[:, None], axis=1).mean()

    return loss


def tinygrad(lib: Any, size: Size) -> Model:
    def loss(p: Any, x: Any, y: Any) -> Any:
        x = x.conv2d(p["conv1.weight"], p["conv1.bias"]).relu()
        x = x.conv2d(p["conv2.weight"], p["conv2.bias"]).relu()
        x = x.max_pool2d((2, 2)).flatten(1)
        x = x.linear(p["fc1.weight"].T, p["fc1.bias"]).relu()
        x = x.linear(p["fc2.weight"].T, p["fc2.bias"])
        return x.sparse_categorical_crossentropy(y)

    return loss


WORKLOADS = [
    Workload("cnn", "conv 1-32-64 3x3, pool, 9216-128-10, batch 64, SGD", "train",
             {"torch": torch, "jax": jax, "tinygrad": tinygrad}, shapes, inputs,
             {"full": {"channels": 32, "hidden": 128, "side": 28, "batch": 64},
              "tiny": {"channels": 2, "hidden": 8, "side": 8, "batch": 4}}, lr=0.01, defaults=True),
]
