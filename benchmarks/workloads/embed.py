"""`embed`: sentence embeddings by a BERT of MiniLM's shape: 6 layers of 384, 8 x 256 tokens.

Sentences have different lengths: padding is masked in attention, and left out of the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]

EPS = 1e-12  # of BERT's layer norms


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    d = size["dim"]
    made: dict[str, tuple[int, ...]] = {"embed.tokens": (size["vocab"], d),
                                        "embed.places": (size["time"], d)}
    for i in range(size["layers"]):
        for name, out, into in (("query", d, d), ("key", d, d), ("value", d, d), ("out", d, d),
                                ("up", 4 * d, d), ("down", d, 4 * d)):
            made[f"{i}.{name}.weight"], made[f"{i}.{name}.bias"] = (out, into), (out,)
        for norm in ("norm1", "norm2"):
            made[f"{i}.{norm}.weight"], made[f"{i}.{norm}.bias"] = (d,), (d,)
    return {**made, "norm.weight": (d,), "norm.bias": (d,)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    b, t = size["batch"], size["time"]
    lengths = rng.integers(t // 4, t + 1, b)
    mask = np.arange(t) < lengths[:, None]
    return [rng.integers(0, size["vocab"], (b, t)), mask]


def torch(lib: Any, size: Size) -> Model:
    F, d, heads = lib.nn.functional, size["dim"], size["heads"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(p: Any, name: str, x: Any) -> Any:
        return F.layer_norm(x, (d,), p[f"{name}.weight"], p[f"{name}.bias"], EPS)

    def encode(p: Any, tokens: Any, mask: Any) -> Any:
        b, t = tokens.shape
        x = norm(p, "norm", F.embedding(tokens, p["embed.tokens"]) + p["embed.places"])
        for i in range(size["layers"]):
            q, k, v = (linear(p, f"{i}.{n}", x).view(b, t, heads, d // heads).transpose(1, 2)
                       for n in ("query", "key", "value"))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            y = linear(p, f"{i}.out", y.transpose(1, 2).reshape(b, t, d))
            x = norm(p, f"{i}.norm1", x + y)
            y = linear(p, f"{i}.down", F.gelu(linear(p, f"{i}.up", x)))
            x = norm(p, f"{i}.norm2", x + y)
        weight = mask.to(x.dtype)[:, :, None]
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=1)

    return encode


def jax(lib: Any, size: Size) -> Model:
    np_, nn, d, heads = lib.numpy, lib.nn, size["dim"], size["heads"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(p: Any, name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x * lib.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def encode(p: Any, tokens: Any, mask: Any) -> Any:
        b, t = tokens.shape
        x = norm(p, "norm", p["embed.tokens"][tokens] + p["embed.places"])
        for i in range(size["layers"]):
            q, k, v = (linear(p, f"{i}.{n}", x).reshape(b, t, heads, d // heads)
                       for n in ("query", "key", "value"))
            y = nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
            x = norm(p, f"{i}.norm1", x + linear(p, f"{i}.out", y.reshape(b, t, d)))
            y = nn.gelu(linear(p, f"{i}.up", x), approximate=False)
            x = norm(p, f"{i}.norm2", x + linear(p, f"{i}.down", y))
        weight = mask[:, :, None]
        mean = (x * weight).sum(1) / weight.sum(1)
        return mean / np_.linalg.norm(mean, axis=1, keepdims=True)

    return encode


def tinygrad(lib: Any, size: Size) -> Model:
    d, heads = size["dim"], size["heads"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return x.linear(p[f"{name}.weight"].T, p[f"{name}.bias"])

    def norm(p: Any, name: str, x: Any) -> Any:
        return x.layernorm(eps=EPS) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def encode(p: Any, tokens: Any, mask: Any) -> Any:
        b, t = tokens.shape
        x = norm(p, "norm", p["embed.tokens"][tokens] + p["embed.places"])
        for i in range(size["layers"]):
            q, k, v = (linear(p, f"{i}.{n}", x).reshape(b, t, heads, d // heads).transpose(1, 2)
                       for n in ("query", "key", "value"))
            y = q.scaled_dot_product_attention(k, v, attn_mask=mask.reshape(b, 1, 1, t))
            y = linear(p, f"{i}.out", y.transpose(1, 2).reshape(b, t, d))
            x = norm(p, f"{i}.norm1", x + y)
            y = linear(p, f"{i}.down", linear(p, f"{i}.up", x).gelu(approximate="none"))
            x = norm(p, f"{i}.norm2", x + y)
        weight = mask.cast(x.dtype).unsqueeze(2)
        mean = (x * weight).sum(1) / weight.sum(1)
        return mean / (mean * mean).sum(1, keepdim=True).sqrt()

    return encode


WORKLOADS = [
    Workload("embed", "BERT encoder, 6 x 384, 8 x 256 tokens, forward", "forward",
             {"torch": torch, "jax": jax, "tinygrad": tinygrad}, shapes, inputs,
             {"full": {"layers": 6, "dim": 384, "heads": 12, "time": 256, "batch": 8,
                       "vocab": 30522},
              "tiny": {"layers": 2, "dim": 16, "heads": 2, "time": 8, "batch": 3, "vocab": 50}},
             tolerance=5e-4),
]
