"""One training step of a small GPT in Gossamer and in PyTorch eager: time, memory, compile time.

    python benchmarks/gpt_step.py [--threads 1] [--rounds 7]

The model is written once, against the names both packages share, and runs in a process of its own
for each; both start from the same weights and must report the same losses. Rounds are interleaved:
each process runs one step when asked, so that a noisy machine disturbs both alike. Times are
seconds of wall clock per step and medians over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

LAYERS, DIM, HEADS, TIME, BATCH, VOCAB = 6, 192, 6, 256, 16, 2048


def build(lib: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    """(step, tokens, targets): a function that trains once and returns the loss."""
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
            self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
            self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

        def forward(self, x: Any) -> Any:
            b, t, d = x.shape
            parts = self.qkv(self.norm1(x)).split(d, dim=2)
            q, k, v = (p.view(b, t, HEADS, d // HEADS).transpose(1, 2) for p in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCAB, DIM), nn.Embedding(TIME, DIM)
            self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
            self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.places(lib.arange(TIME))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    model = GPT()
    rng = np.random.default_rng(seed)
    with lib.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.ndim == 2:
                p.copy_(lib.from_numpy((0.05 * rng.normal(size=tuple(p.shape))).astype(np.float32)))
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = lib.from_numpy(rng.integers(0, VOCAB, (BATCH, TIME)))
    targets = lib.from_numpy(rng.integers(0, VOCAB, (BATCH, TIME)))

    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x).view(-1, VOCAB), y.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step, tokens, targets


def worker(name: str, threads: int) -> None:
    """Run one step for every line on standard input; answer each with a line of JSON."""
    started = time.perf_counter()
    lib = importlib.import_module(name)
    if name == "gossamer":
        importlib.import_module("gossamer.nn")
        importlib.import_module("gossamer.optim")
    if name == "gossamer":
        importlib.import_module("gossamer.runtime.threads").set_num_threads(threads)
    else:
        lib.set_num_threads(threads)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, tokens, targets = build(lib)
    if name == "gossamer":
        step = lib.compile(step)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = float(step(tokens, targets).item())
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": now - start, "loss": loss, "since_start": now - started,
                          "peak_mb": (peak - base) / 1024}), flush=True)


class Process:
    """A worker and its answers."""

    def __init__(self, name: str, threads: int, cache: str) -> None:
        environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", GOSSAMER_CACHE=cache,
                           OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.answers: list[dict[str, float]] = []

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.answers.append(json.loads(self.process.stdout.readline()))
        return self.answers[-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--worker", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as cache:
        cold = Process("gossamer", arguments.threads, cache)
        cold.step()
        cold.close()
        ours = Process("gossamer", arguments.threads, cache)
        ours.step()
        theirs = Process("torch", arguments.threads, cache)
        theirs.step()
        for _ in range(arguments.rounds):
            ours.step()
            theirs.step()
        ours.close()
        theirs.close()
    for i in (0, arguments.rounds):
        a, b = ours.answers[i]["loss"], theirs.answers[i]["loss"]
        assert abs(a - b) <= 2e-3 * abs(b), f"losses differ at step {i + 1}: {a} and {b}"
        print(f"loss at step {i + 1:2d}: gossamer {a:.5f}, torch {b:.5f}")
    mine = statistics.median(x["seconds"] for x in ours.answers[1:])
    peer = statistics.median(x["seconds"] for x in theirs.answers[1:])
    print(f"step, {arguments.threads} thread(s): gossamer {mine * 1e3:.0f} ms, torch eager "
          f"{peer * 1e3:.0f} ms, torch / gossamer = {peer / mine:.2f}")
    print(f"first step: cold {cold.answers[0]['seconds'] - mine:.2f} s beyond a step, "
          f"from the disk cache {ours.answers[0]['seconds'] - mine:.2f} s")
    print(f"peak memory above the import: gossamer {ours.answers[-1]['peak_mb']:.0f} MB, torch "
          f"{theirs.answers[-1]['peak_mb']:.0f} MB, ratio "
          f"{ours.answers[-1]['peak_mb'] / theirs.answers[-1]['peak_mb']:.2f}")


if __name__ == "__main__":
    main()
