"""`decode`: one token at a time, greedily, by a Llama of 15M or 135M parameters in four precisions.

A call continues one token by `tokens` others, from an empty cache; the table counts a token. The
weights are normal numbers, drawn in every process from the same seed. Gossamer runs its own
`models/llama.py` with the schemes of `gossamer.quantization` that round activations as llama.cpp
does (Q8_0, Q4_0). PyTorch runs the same architecture with keys and values in place, eagerly with
slices of what is filled, compiled with a mask over the whole context. What is compared is the
largest log-probabilities after three tokens.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapters.base import Task
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS", "parameters"]

PROBE = [1, 5, 9]  # tokens after which scores are compared
LISTED = 16  # of the largest scores


def parameters(size: Size) -> dict[str, np.ndarray]:
    """Weights by the names of `models/llama.py`; deviation 0.02 as is the custom, norms 1."""
    rng = np.random.default_rng(0)
    d, f = size["dim"], size["hidden"]
    kv = d // size["heads"] * size["kv_heads"]

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    p = {"tok_embeddings.weight": drawn(size["vocab"], d)}
    for i in range(size["layers"]):
        p |= {f"layers.{i}.{name}.weight": drawn(*shape) for name, shape in (
            ("attention.wq", (d, d)), ("attention.wk", (kv, d)), ("attention.wv", (kv, d)),
            ("attention.wo", (d, d)), ("feed_forward.w1", (f, d)), ("feed_forward.w2", (d, f)),
            ("feed_forward.w3", (f, d)))}
        p |= {f"layers.{i}.{name}.weight": np.ones(d, np.float32)
              for name in ("attention_norm", "ffn_norm")}
    return {**p, "norm.weight": np.ones(d, np.float32)}


def weight_bytes(size: Size, bits: float) -> float:
    """Bytes of all matrices, each of which a token reads once (the tied table as the head)."""
    d, f = size["dim"], size["hidden"]
    kv = d // size["heads"] * size["kv_heads"]
    layer = 2 * d * d + 2 * kv * d + 3 * d * f
    return (size["layers"] * layer + size["vocab"] * d) * bits / 8


def largest(logits: np.ndarray) -> np.ndarray:
    """The LISTED largest log-probabilities, in order."""
    x = logits.astype(np.float64)
    return np.sort(x - x.max() - np.log(np.exp(x - x.max()).sum()))[::-1][:LISTED]


def _ours(lib: Any, size: Size, dtype: str) -> Task:
    llama = importlib.import_module("gossamer.models.llama")
    schemes = importlib.import_module("gossamer.quantization")
    config = llama.LlamaConfig(size["dim"], size["hidden"], size["layers"], size["heads"],
                               size["kv_heads"], size["vocab"], size["context"])
    model = llama.Llama(config).requires_grad_(False)
    state = {k: lib.tensor(v) for k, v in parameters(size).items()}
    model.load_state_dict({**state, "output.weight": state["tok_embeddings.weight"]})
    if dtype == "int8":
        lib.quantize_(model, schemes.Int8DynamicActivationInt8WeightConfig(group_size=32))
    elif dtype == "int4":
        lib.quantize_(model, schemes.Int8DynamicActivationInt4WeightConfig(group_size=32))
    elif dtype == "bfloat16":
        model.bfloat16()
    decoder = llama.Decoder(model)

    def call() -> None:
        decoder.position, token = 0, 1
        for _ in range(size["tokens"]):
            token = decoder.read([token])

    def look(_: None) -> list[np.ndarray]:
        with lib.no_grad():
            return [largest(model(lib.tensor([PROBE]))[0, -1].float().numpy())]

    return Task(call, look, units=size["tokens"])


def _rounded(weight: np.ndarray, dtype: str) -> np.ndarray:
    """What a weight of 4 or 8 bits stands for: PyTorch multiplies that in float32 (only the tests
    ask for it)."""
    if dtype not in ("int4", "int8") or weight.ndim != 2:
        return weight
    packing = importlib.import_module("gossamer.quantization.packing")
    half = importlib.import_module("gossamer").float16
    codes, scale = packing.quantize(weight, int(dtype[3:]), 32, half)
    n, k = weight.shape
    return np.ascontiguousarray((codes * np.repeat(scale, 32, 1))[:n, :k])


class _Torch:
    """The same architecture in PyTorch, one token at a time."""

    def __init__(self, lib: Any, size: Size, dtype: str, compiled: bool) -> None:
        self.lib, self.size, self.compiled = lib, size, compiled
        kind = lib.bfloat16 if dtype == "bfloat16" else lib.float32
        self.p = {k: lib.tensor(_rounded(v, dtype)).to(kind) for k, v in parameters(size).items()}
        self.width = size["dim"] // size["heads"]
        shape = (1, size["kv_heads"], size["context"], self.width)
        self.caches = [(lib.zeros(shape, dtype=kind), lib.zeros(shape, dtype=kind))
                       for _ in range(size["layers"])]
        speed = 10000.0 ** (-lib.arange(0, self.width, 2) / self.width)
        angle = lib.arange(size["context"])[:, None] * speed
        self.cos, self.sin = lib.cos(angle), lib.sin(angle)
        self.step = lib.compile(self.compute, dynamic=False) if compiled else self.compute

    def norm(self, x: Any, name: str) -> Any:
        return self.lib.nn.functional.rms_norm(x, (x.shape[-1],), self.p[name], 1e-5)

    def rotate(self, x: Any, at: Any) -> Any:
        cos, sin = self.cos[at], self.sin[at]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        y = self.lib.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        return y.to(x.dtype)

    def compute(self, token: Any, at: Any) -> Any:
        F, p = self.lib.nn.functional, self.p
        x = p["tok_embeddings.weight"][token]  # (1, D)
        grouped = self.size["heads"] != self.size["kv_heads"]
        mask = (self.lib.arange(self.size["context"]) <= at)[None, None] if self.compiled else None
        for i, (keys, values) in enumerate(self.caches):
            name = f"layers.{i}."

            def linear(y: Any, part: str, name: str = name) -> Any:
                return F.linear(y, p[f"{name}{part}.weight"])

            y = self.norm(x, name + "attention_norm.weight")
            q, k, v = (linear(y, "attention.w" + part).view(1, -1, 1, self.width)
                       for part in "qkv")
            keys.index_copy_(2, at, self.rotate(k, at))
            values.index_copy_(2, at, v)
            seen = (keys, values) if self.compiled else (
                t[:, :, :int(at) + 1] for t in (keys, values))
            y = F.scaled_dot_product_attention(self.rotate(q, at), *seen, attn_mask=mask,
                                               enable_gqa=grouped)
            x = x + linear(y.reshape(1, -1), "attention.wo")
            y = self.norm(x, name + "ffn_norm.weight")
            gate = F.silu(linear(y, "feed_forward.w1")) * linear(y, "feed_forward.w3")
            x = x + linear(gate, "feed_forward.w2")
        return F.linear(self.norm(x, "norm.weight"), p["tok_embeddings.weight"])[0]

    def call(self) -> None:
        lib, token = self.lib, self.lib.tensor([1])
        with lib.no_grad():
            for position in range(self.size["tokens"]):
                token = self.step(token, lib.tensor([position])).argmax()[None]
                token.item()  # as a reader of the text would

    def look(self, _: None) -> list[np.ndarray]:
        with self.lib.no_grad():
            for position, token in enumerate(PROBE):
                logits = self.step(self.lib.tensor([token]), self.lib.tensor([position]))
        return [largest(logits.float().numpy())]


def torch(adapter: Any, size: Size, inputs: list[np.ndarray], dtype: str) -> Task:
    if getattr(adapter, "ours", False):
        return _ours(adapter.lib, size, dtype)
    model = _Torch(adapter.lib, size, dtype, adapter.compiled)
    return Task(model.call, model.look, units=size["tokens"])


def llamacpp(adapter: Any, size: Size, inputs: list[np.ndarray], dtype: str) -> Task:
    files = importlib.import_module("benchmarks.adapters.llamacpp")
    with tempfile.TemporaryDirectory(prefix="gossamer-bench-") as folder:
        path = Path(folder) / "model.gguf"
        files.write_gguf(path, parameters(size), size, dtype)
        adapter.load(path, size["context"])

    def look(_: Any) -> list[np.ndarray]:
        return [adapter.scores(PROBE, LISTED)]

    return Task(lambda: adapter.complete([1], size["tokens"]), look, units=size["tokens"])


_SIZES = {
    "15m": {"dim": 288, "hidden": 768, "layers": 6, "heads": 6, "kv_heads": 6, "vocab": 32000,
            "context": 256, "tokens": 64},  # stories15M
    "135m": {"dim": 576, "hidden": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocab": 49152,
             "context": 256, "tokens": 64},  # SmolLM-135M
}
_TINY = {"dim": 64, "hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 320,
         "context": 32, "tokens": 8}
# Bits of a weight with its scale; and how far scores may be apart: bfloat16 and the schemes round
# at other places (PyTorch after every operation, llama.cpp's Q4_0 the other way at ties).
_PRECISIONS = {"float32": (32.0, 2e-4), "bfloat16": (16.0, 2e-2), "int8": (8.5, 2e-2),
               "int4": (4.5, 5e-2)}
_PEERS = {"float32": ("gossamer", "torch", "torch-compile", "llamacpp"),
          "bfloat16": ("gossamer", "torch", "torch-compile", "llamacpp"),
          "int8": ("gossamer", "llamacpp"), "int4": ("gossamer", "llamacpp")}


def _row(name: str, dtype: str) -> Workload:
    bits, tolerance = _PRECISIONS[dtype]
    models: dict[str, Callable[..., Task]] = {
        "torch": functools.partial(torch, dtype=dtype),
        "llamacpp": functools.partial(llamacpp, dtype=dtype)}
    return Workload(
        f"decode{name}-{dtype}", f"a token of a Llama, {name.upper()} parameters, {dtype}", "task",
        models, sizes={"full": _SIZES[name], "tiny": _TINY}, tolerance=tolerance,
        amount=lambda size: weight_bytes(size, bits), counts="bytes", dtype=dtype,
        only=_PEERS[dtype])


WORKLOADS = [_row(name, dtype) for name in _SIZES for dtype in _PRECISIONS]
