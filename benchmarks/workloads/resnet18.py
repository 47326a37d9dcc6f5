"""`resnet18`: a training step of ResNet-18 for 32x32 pictures (3x3 stem, no first pool), batch 32.

Batch norms use the statistics of the batch; running ones are kept by none of the peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def blocks(size: Size) -> Iterator[tuple[str, int, int, int]]:
    """(name, channels in, channels out, stride) of the residual blocks."""
    width = size["width"]
    into = width
    for stage in range(4):
        for block in range(size["blocks"]):
            out = width << stage
            yield f"{stage}.{block}", into, out, 2 if stage and not block else 1
            into = out


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}

    def conv(name: str, into: int, out: int, k: int) -> None:
        made[f"{name}.weight"] = (out, into, k, k)
        made[f"{name}.norm.weight"], made[f"{name}.norm.bias"] = (out,), (out,)

    conv("stem", 3, size["width"], 3)
    for name, into, out, stride in blocks(size):
        conv(f"{name}.first", into, out, 3)
        conv(f"{name}.second", out, out, 3)
        if stride > 1 or into != out:
            conv(f"{name}.short", into, out, 1)
    return {**made, "head.weight": (10, size["width"] * 8), "head.bias": (10,)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.normal(size=(size["batch"], 3, size["side"], size["side"])).astype(np.float32)
    return [x, rng.integers(0, 10, size["batch"])]


def _net(size: Size, conv: Any, relu: Any) -> Any:
    """Features of the net, from a family's `conv(p, name, x, stride)` with its norm, and `relu`."""
    def features(p: Any, x: Any) -> Any:
        x = relu(conv(p, "stem", x, 1))
        for name, into, out, stride in blocks(size):
            y = conv(p, f"{name}.second", relu(conv(p, f"{name}.first", x, stride)), 1)
            short = conv(p, f"{name}.short", x, stride) if stride > 1 or into != out else x
            x = relu(y + short)
        return x.mean((2, 3))

    return features


def torch(lib: Any, size: Size) -> Model:
    F = lib.nn.functional

    def conv(p: Any, name: str, x: Any, stride: int) -> Any:
        w = p[f"{name}.weight"]
        x = F.conv2d(x, w, stride=stride, padding=w.shape[2] // 2)
        return F.batch_norm(x, None, None, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"],
                            training=True)

    features = _net(size, conv, F.relu)

    def loss(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(F.linear(features(p, x), p["head.weight"], p["head.bias"]), y)

    return loss


def jax(lib: Any, size: Size) -> Model:
    np_, nn, lax = lib.numpy, lib.nn, lib.lax

    def conv(p: Any, name: str, x: Any, stride: int) -> Any:
        w = p[f"{name}.weight"]
        pad = w.shape[2] // 2
        x = lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2)
        x = x - x.mean((0, 2, 3), keepdims=True)
        x = x * lax.rsqrt((x * x).mean((0, 2, 3), keepdims=True) + 1e-5)
        return x * p[f"{name}.norm.weight"][:, None, None] + p[f"{name}.norm.bias"][:, None, None]

    features = _net(size, conv, nn.relu)

    def loss(p: Any, x: Any, y: Any) -> Any:
        rows = nn.log_softmax(features(p, x) @ p["head.weight"].T + p["head.bias"])
        return -np_.take_along_axis(rows, y[:, None], axis=1).mean()

    return loss


def tinygrad(lib: Any, size: Size) -> Model:
    def conv(p: Any, name: str, x: Any, stride: int) -> Any:
        w = p[f"{name}.weight"]
        x = x.conv2d(w, stride=stride, padding=w.shape[2] // 2)
        mean = x.mean((0, 2, 3))
        off = x - mean.reshape(1, -1, 1, 1)
        scale = ((off * off).mean((0, 2, 3)) + 1e-5).rsqrt()
        return x.batchnorm(p[f"{name}.norm.weight"], p[f"{name}.norm.bias"], mean, scale)

    features = _net(size, conv, lambda x: x.relu())

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = features(p, x).linear(p["head.weight"].T, p["head.bias"])
        return x.sparse_categorical_crossentropy(y)

    return loss


WORKLOADS = [
    Workload("resnet18", "ResNet-18 on 32x32, batch 32, SGD", "train",
             {"torch": torch, "jax": jax, "tinygrad": tinygrad}, shapes, inputs,
             {"full": {"width": 64, "blocks": 2, "side": 32, "batch": 32},
              "tiny": {"width": 4, "blocks": 1, "side": 16, "batch": 4}},
             # Batch norms amplify rounding: in 20 steps the last digits become the fourth.
             lr=0.001, tolerance=1e-3),
]
