"""A character-level GPT on Shakespeare: nanoGPT's setting for a laptop's CPU, in one compiled step.

4 layers of width 128, 4 heads, context 64, batch 12, 2,000 steps; nanoGPT reports a validation loss
of 1.88. We warm up to a rate three times higher and end at zero, which reaches 1.78. Source of the
setting: karpathy/nanoGPT, README, "I only have a macbook".

Run: .venv/bin/python examples/04_shakespeare_char.py   (downloads 1.1 MB on first use)
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

import gossamer as gs
from gossamer import nn
from gossamer.core.errors import DataError
from gossamer.data.download import fetch

F = nn.functional
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # looked into before a download
L, H, D, T, B = 4, 4, 128, 64, 12  # layers, heads, width, context, batch
STEPS, WARM, PEAK = 2000, 100, 3e-3


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.project = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        batch, time_, _ = x.shape
        q, k, v = (part.view(batch, time_, H, D // H).transpose(1, 2)  # (B, H, T, K)
                   for part in self.qkv(self.norm1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(batch, time_, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens (B, T) -> logits (B, T, V); the embedding is also the output layer."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        self.norm = nn.LayerNorm(D, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # GPT-2's start; residual projections smaller, one per sum
                residual = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * L) if residual else 0.02)

    def forward(self, tokens: gs.Tensor) -> gs.Tensor:
        x = self.token(tokens) + self.position(gs.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight)


def rate(step: int) -> float:
    """Linear warm-up, then half a cosine from PEAK down to zero."""
    if step < WARM:
        return PEAK * (step + 1) / (WARM + 1)
    done = (step - WARM) / (STEPS - WARM)
    return PEAK * (1 + math.cos(math.pi * done)) / 2


def generate(model: GPT, first: int, count: int) -> list[int]:
    """`count` tokens sampled one by one, each from the last T of them."""
    tokens = [first]
    with gs.no_grad():
        for _ in range(count):
            logits = model(gs.tensor([tokens[-T:]]))[0, -1]
            tokens.append(int(gs.multinomial(F.softmax(logits, dim=-1), 1).item()))
    return tokens


def main() -> float:
    start = time.perf_counter()
    gs.manual_seed(1337)
    text = fetch("tinyshakespeare/input.txt", DATA).read_text()
    letters = sorted(set(text))
    data = np.array([letters.index(c) for c in text], np.int64)
    train, validation = np.split(data, [int(0.9 * len(data))])

    model = GPT(len(letters))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    optimizer = gs.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK, betas=(0.9, 0.99))

    @gs.compile
    def train_step(x: gs.Tensor, y: gs.Tensor) -> gs.Tensor:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    @gs.compile
    def evaluate(x: gs.Tensor, y: gs.Tensor) -> gs.Tensor:
        with gs.no_grad():
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    rng = np.random.default_rng(1337)
    windows = np.arange(T + 1)
    for step in range(STEPS):
        at = rng.integers(0, len(train) - T - 1, B)[:, None] + windows  # (B, T + 1)
        batch = gs.tensor(train[at])
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = train_step(batch[:, :-1], batch[:, 1:])
        if step % 200 == 0 or step == STEPS - 1:
            print(f"step {step:4}  loss {loss.item():.4f}  {time.perf_counter() - start:.1f} s")

    # All of the validation text, cut into windows of T.
    count = (len(validation) - 1) // T // B * B
    batches = gs.tensor(validation[:count * T + 1])
    x, y = batches[:-1].view(-1, B, T), batches[1:].view(-1, B, T)
    result = float(np.mean([evaluate(x[i], y[i]).item() for i in range(len(x))]))
    print("".join(letters[t] for t in generate(model, letters.index("\n"), 200)))
    print(f"validation loss {result:.4f}  {time.perf_counter() - start:.1f} s")
    assert result <= 1.88, f"validation loss {result:.4f}, expected 1.88"
    return result


if __name__ == "__main__":
    try:
        main()
    except DataError as error:  # no network, say: what to do, without a traceback
        raise SystemExit(str(error)) from None
