"""`lstm`: a training step of a two-layer LSTM over sequences (T 64, batch 32, 128 -> 256), SGD.

Left out for tinygrad: it has no loop, so that 128 unrolled cells and their gradient become
thousands of kernels and minutes of compilation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]

LAYERS = 2


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    hidden, into = size["hidden"], size["inputs"]
    made: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        made[f"weight_ih_l{i}"] = (4 * hidden, hidden if i else into)
        made[f"weight_hh_l{i}"] = (4 * hidden, hidden)
        made[f"{i}.ih.bias"] = made[f"{i}.hh.bias"] = (4 * hidden,)
    return {**made, "head.weight": (size["classes"], hidden), "head.bias": (size["classes"],)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    b, t = size["batch"], size["time"]
    x = rng.normal(size=(b, t, size["inputs"])).astype(np.float32)
    return [x, rng.integers(0, size["classes"], (b, t))]


class Torch:
    """The framework's own module, its weights replaced by the shared ones before it runs."""

    def __init__(self, lib: Any, size: Size) -> None:
        self.F, self.classes = lib.nn.functional, size["classes"]
        self.lstm = lib.nn.LSTM(size["inputs"], size["hidden"], num_layers=LAYERS,
                                batch_first=True)

    def bind(self, p: Any) -> None:
        for i in range(LAYERS):
            for side in ("ih", "hh"):
                setattr(self.lstm, f"weight_{side}_l{i}", p[f"weight_{side}_l{i}"])
                setattr(self.lstm, f"bias_{side}_l{i}", p[f"{i}.{side}.bias"])

    def __call__(self, p: Any, x: Any, y: Any) -> Any:
        h, _ = self.lstm(x)
        logits = self.F.linear(h, p["head.weight"], p["head.bias"])
        return self.F.cross_entropy(logits.reshape(-1, self.classes), y.reshape(-1))


def jax(lib: Any, size: Size) -> Model:
    np_, nn, lax = lib.numpy, lib.nn, lib.lax

    def layer(p: Any, i: int, x: Any) -> Any:
        """(T, B, inputs) -> (T, B, hidden); the products with the inputs are one."""
        given = x @ p[f"weight_ih_l{i}"].T + p[f"{i}.ih.bias"] + p[f"{i}.hh.bias"]
        w = p[f"weight_hh_l{i}"].T

        def cell(state: Any, g: Any) -> Any:
            h, c = state
            a, f, new, o = np_.split(g + h @ w, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(a) * np_.tanh(new)
            h = nn.sigmoid(o) * np_.tanh(c)
            return (h, c), h

        zero = np_.zeros((x.shape[1], size["hidden"]))
        return lax.scan(cell, (zero, zero), given)[1]

    def loss(p: Any, x: Any, y: Any) -> Any:
        h = x.transpose(1, 0, 2)
        for i in range(LAYERS):
            h = layer(p, i, h)
        rows = nn.log_softmax(h @ p["head.weight"].T + p["head.bias"])
        return -np_.take_along_axis(rows, y.T[..., None], axis=2).mean()

    return loss


WORKLOADS = [
    Workload("lstm", "2 layers, T 64, batch 32, 128-256-64, SGD", "train",
             {"torch": Torch, "jax": jax}, shapes, inputs,
             {"full": {"inputs": 128, "hidden": 256, "classes": 64, "time": 64, "batch": 32},
              "tiny": {"inputs": 4, "hidden": 8, "classes": 5, "time": 6, "batch": 3}}),
]
