"""`gpt`: a training step of a GPT (6 layers of 192, T 256, batch 16, vocabulary 2048), AdamW.

`gpt-bf16` is the same with products in bfloat16: under autocast in Gossamer and PyTorch; JAX casts
the operands of its products and keeps parameters, norms and the loss in float32, as autocast does.
The same model in other sizes is `scaling`; its first step, roofline and share of a busy machine are
in `derived`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.adapters.base import Model
from benchmarks.workloads.base import Size, Workload

__all__ = ["MODELS", "WORKLOADS", "flops", "inputs", "shapes"]


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    d = size["dim"]
    made: dict[str, tuple[int, ...]] = {"embed.tokens": (size["vocab"], d),
                                        "embed.places": (size["time"], d)}
    for i in range(size["layers"]):
        for norm in ("norm1", "norm2"):
            made[f"{i}.{norm}.weight"], made[f"{i}.{norm}.bias"] = (d,), (d,)
        for name, out, into in (("qkv", 3 * d, d), ("out", d, d), ("up", 4 * d, d),
                                ("down", d, 4 * d)):
            made[f"{i}.{name}.weight"], made[f"{i}.{name}.bias"] = (out, into), (out,)
    return {**made, "norm.weight": (d,), "norm.bias": (d,), "head.weight": (size["vocab"], d)}


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    shape = (size["batch"], size["time"])
    return [rng.integers(0, size["vocab"], shape), rng.integers(0, size["vocab"], shape)]


def flops(size: Size) -> float:
    """Of a step: 6 a parameter of a product and token, and 12 L D T for attention (half of it
    skipped: causal)."""
    d, tokens = size["dim"], size["batch"] * size["time"]
    products = 12 * size["layers"] * d * d + d * size["vocab"]
    return 6.0 * tokens * (products + size["layers"] * d * size["time"])


def torch(lib: Any, size: Size) -> Model:
    F, d, heads = lib.nn.functional, size["dim"], size["heads"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(p: Any, name: str, x: Any) -> Any:
        return F.layer_norm(x, (d,), p[f"{name}.weight"], p[f"{name}.bias"])

    def block(p: Any, i: int, x: Any) -> Any:
        b, t, _ = x.shape
        parts = linear(p, f"{i}.qkv", norm(p, f"{i}.norm1", x)).split(d, dim=2)
        q, k, v = (s.view(b, t, heads, d // heads).transpose(1, 2) for s in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(p, f"{i}.out", y.transpose(1, 2).reshape(b, t, d))
        y = F.gelu(linear(p, f"{i}.up", norm(p, f"{i}.norm2", x)), approximate="tanh")
        return x + linear(p, f"{i}.down", y)

    def loss(p: Any, tokens: Any, targets: Any) -> Any:
        x = F.embedding(tokens, p["embed.tokens"]) + p["embed.places"]
        for i in range(size["layers"]):
            x = block(p, i, x)
        logits = F.linear(norm(p, "norm", x), p["head.weight"])
        return F.cross_entropy(logits.view(-1, size["vocab"]), targets.view(-1))

    return loss


def jax(lib: Any, size: Size, dtype: str = "float32") -> Model:
    np_, nn, heads = lib.numpy, lib.nn, size["heads"]

    def low(x: Any) -> Any:
        return x.astype(dtype)

    def linear(p: Any, name: str, x: Any) -> Any:
        return low(x) @ low(p[f"{name}.weight"]).T + low(p[f"{name}.bias"])

    def norm(p: Any, name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        scale = lib.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * scale * p[f"{name}.weight"] + p[f"{name}.bias"]

    def block(p: Any, i: int, x: Any) -> Any:
        b, t, d = x.shape
        parts = np_.split(linear(p, f"{i}.qkv", norm(p, f"{i}.norm1", x)), 3, axis=2)
        q, k, v = (s.reshape(b, t, heads, d // heads) for s in parts)
        y = nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(p, f"{i}.out", y.reshape(b, t, d))
        return x + linear(p, f"{i}.down", nn.gelu(linear(p, f"{i}.up", norm(p, f"{i}.norm2", x))))

    def loss(p: Any, tokens: Any, targets: Any) -> Any:
        x = p["embed.tokens"][tokens] + p["embed.places"]
        for i in range(size["layers"]):
            x = block(p, i, x)
        logits = low(norm(p, "norm", x)) @ low(p["head.weight"]).T
        rows = nn.log_softmax(logits.astype("float32"))
        return -np_.take_along_axis(rows, targets[..., None], axis=2).mean()

    return loss


def tinygrad(lib: Any, size: Size) -> Model:
    d, heads = size["dim"], size["heads"]

    def linear(p: Any, name: str, x: Any) -> Any:
        return x.linear(p[f"{name}.weight"].T, p[f"{name}.bias"])

    def norm(p: Any, name: str, x: Any) -> Any:
        return x.layernorm() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def block(p: Any, i: int, x: Any) -> Any:
        b, t, _ = x.shape
        parts = linear(p, f"{i}.qkv", norm(p, f"{i}.norm1", x)).split(d, dim=2)
        q, k, v = (s.reshape(b, t, heads, d // heads).transpose(1, 2) for s in parts)
        y = q.scaled_dot_product_attention(k, v, is_causal=True)
        x = x + linear(p, f"{i}.out", y.transpose(1, 2).reshape(b, t, d))
        return x + linear(p, f"{i}.down", linear(p, f"{i}.up", norm(p, f"{i}.norm2", x)).gelu())

    def loss(p: Any, tokens: Any, targets: Any) -> Any:
        x = p["embed.tokens"][tokens] + p["embed.places"]
        for i in range(size["layers"]):
            x = block(p, i, x)
        return (norm(p, "norm", x) @ p["head.weight"].T).sparse_categorical_crossentropy(targets)

    return loss


# Measured with tinygrad 0.14: no first step after 50 s of CPU time.
SKIP = {"tinygrad": "tinygrad compiles the GPT step for more than a minute"}
MODELS = {"torch": torch, "jax": jax, "tinygrad": tinygrad}
SIZES = {"full": {"layers": 6, "dim": 192, "heads": 6, "time": 256, "batch": 16, "vocab": 2048},
         "tiny": {"layers": 2, "dim": 16, "heads": 2, "time": 8, "batch": 2, "vocab": 32}}
WORKLOADS = [
    Workload("gpt", "6 x 192, T 256, batch 16, vocabulary 2048, AdamW", "train", MODELS, shapes,
             inputs, SIZES, "adamw", 1e-3, amount=flops, skip=SKIP),
    # bfloat16 keeps 8 bits: after 20 steps two ways of rounding give losses 1 % apart.
    Workload("gpt-bf16", "gpt with products in bfloat16 (autocast)", "train",
             {"torch": torch, "jax": partial(jax, dtype="bfloat16")}, shapes, inputs, SIZES,
             "adamw", 1e-3, amount=flops, tolerance=2e-3, dtype="bfloat16"),
]
