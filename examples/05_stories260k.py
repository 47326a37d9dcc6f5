"""A real Llama file: load it, tell its story, and check every score against NumPy.

The model has 260,032 parameters and was trained on TinyStories (karpathy/tinyllamas). The forward
pass in NumPy below is the obvious one, so that the library's answer can be checked line by line.

Run: .venv/bin/python examples/05_stories260k.py   (downloads 1.1 MB on first use)
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import gossamer as gs
from gossamer.core.errors import DataError
from gossamer.data.download import fetch
from gossamer.models.llama import LlamaConfig, LlamaTokenizer, load_llama2c

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # looked into before a download
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She "
    "said, \"I want to play with your ball, but I can't find it.\"")


def numpy_forward(w: dict[str, np.ndarray], c: LlamaConfig, tokens: list[int]) -> np.ndarray:
    """Logits (T, V), all float32, one head after the other."""
    length, k = len(tokens), c.head_dim

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-5)) * gain

    speed = np.float32(10_000.0) ** (-np.arange(0, k, 2, dtype=np.float32) / k)
    angle = np.arange(length, dtype=np.float32)[:, None] * speed  # (T, K/2)
    cos, sin = np.cos(angle), np.sin(angle)

    def rotate(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        out[:, 0::2] = x[:, 0::2] * cos - x[:, 1::2] * sin
        out[:, 1::2] = x[:, 0::2] * sin + x[:, 1::2] * cos
        return out

    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    x = w["tok_embeddings.weight"][tokens]  # (T, D)
    for i in range(c.n_layers):
        p = f"layers.{i}."
        h = norm(x, w[p + "attention_norm.weight"])
        q, keys, values = (h @ w[f"{p}attention.w{n}.weight"].T for n in "qkv")
        heads = []
        for head in range(c.n_heads):
            mine = slice(head * k, head * k + k)
            group = head // (c.n_heads // c.n_kv_heads)  # the key head that this one shares
            shared = slice(group * k, group * k + k)
            scores = rotate(q[:, mine]) @ rotate(keys[:, shared]).T / np.float32(np.sqrt(k))
            e = np.exp(scores + future - np.max(scores + future, axis=-1, keepdims=True))
            heads.append(e / e.sum(-1, keepdims=True) @ values[:, shared])
        x = x + np.concatenate(heads, axis=1) @ w[p + "attention.wo.weight"].T
        h = norm(x, w[p + "ffn_norm.weight"])
        gate = h @ w[p + "feed_forward.w1.weight"].T
        up = h @ w[p + "feed_forward.w3.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def main() -> None:
    model = load_llama2c(fetch("stories260k/stories260K.bin", DATA))
    tokenizer = LlamaTokenizer(fetch("stories260k/tok512.bin", DATA))
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {model.config}")
    assert size == 260_032

    start = time.perf_counter()
    tokens = [1, *model.greedy([1], 200)]  # from BOS alone
    seconds = time.perf_counter() - start
    text = tokenizer.decode(tokens[1:])
    print(f"\n{text}\n\n{(len(tokens) - 1) / seconds:.0f} tokens/s")
    assert text.startswith(STORY), text

    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = numpy_forward(weights, model.config, tokens)
    with gs.no_grad():
        found = model(gs.tensor([tokens]))[0].numpy()
    worst = float(np.abs(found - expected).max())
    print(f"logits of {len(tokens)} tokens: the largest difference to NumPy is {worst:.1e}")
    assert worst <= 1e-4
    assert (expected[:-1].argmax(-1) == tokens[1:]).all(), "NumPy would have told another story"


if __name__ == "__main__":
    try:
        main()
    except DataError as error:  # no network, say: what to do, without a traceback
        raise SystemExit(str(error)) from None
