"""Matrix products against PyTorch on one core: GPT shapes, layers, squares, vectors.

    python benchmarks/gemm.py [--filter TEXT] [--seconds 0.5] [--dtype float32] [--avx2]

Both sides run interleaved in one process on the same arrays; medians of thread CPU time, so that
other work on the machine disturbs both alike. `ratio` is our speed over PyTorch's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from gossamer.compile.gemm import Operand, Output, Target, gemm
from gossamer.core.dtype import as_dtype
from gossamer.runtime import device
from gossamer.runtime.execute import Executable


@dataclass(frozen=True)
class Case:
    """C[b, m, n] = A B; layout "n" is row-major, "t" transposed, "h" heads inside (B, T, H, D)."""

    name: str
    m: int
    n: int
    k: int
    a: str = "n"
    b: str = "n"
    batch: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k


CASES = [
    Case("mlp up", 4096, 768, 192), Case("mlp up, weight (out, in)", 4096, 768, 192, b="t"),
    Case("mlp down", 4096, 192, 768), Case("mlp down, weight (out, in)", 4096, 192, 768, b="t"),
    Case("dW = x^T dy", 192, 768, 4096, a="t"), Case("dW = dy^T x", 768, 192, 4096, a="t"),
    Case("dx up", 4096, 192, 768, b="t"),
    Case("logits", 4096, 2048, 192, b="t"), Case("logits dx", 4096, 192, 2048),
    Case("logits dW", 2048, 192, 4096, a="t"),
    Case("QK^T", 256, 256, 32, a="h", b="ht", batch=96),
    Case("PV", 256, 32, 256, b="h", batch=96),
    Case("dV = P^T dO", 256, 32, 256, a="t", b="h", batch=96),
    Case("bmm QK^T", 256, 256, 32, b="t", batch=96), Case("bmm PV", 256, 32, 256, batch=96),
    Case("MNIST 1", 128, 512, 784, b="t"), Case("MNIST 2", 128, 10, 512, b="t"),
    Case("MNIST dW", 512, 784, 128, a="t"),
    *(Case(f"square {s}", s, s, s) for s in (32, 64, 128, 256, 512, 1024, 2048)),
    Case("odd 100", 100, 100, 100), Case("odd 1000 x 77", 1000, 77, 333),
    Case("rank 8", 1024, 1024, 8), Case("rank 16, t", 1024, 1024, 16, b="t"),
    Case("long K", 64, 64, 16384, a="t"),
    Case("mv 2048 (rows)", 2048, 1, 2048), Case("vm 2048 (columns)", 1, 2048, 2048),
    Case("mv 192x768", 1, 768, 192, b="t"), Case("vm 768x192", 1, 192, 768, b="t"),
    Case("vm logits", 1, 32000, 768, b="t"), Case("decode batch 4", 4, 2048, 768, b="t"),
    Case("tiny 4", 4, 4, 4), Case("tiny 8", 8, 8, 8), Case("tiny bmm", 16, 16, 16, batch=256),
]


def operand(batch: int, rows: int, columns: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """(batch, rows, columns) with the layout's strides."""
    if layout.startswith("h"):
        if layout == "ht":
            return operand(batch, columns, rows, "h", dtype).transpose(-1, -2)
        x = torch.randn(batch // 6, rows, 6, columns, dtype=dtype)
        return x.transpose(1, 2)
    if layout == "t":
        return torch.randn(batch, columns, rows, dtype=dtype).transpose(1, 2)
    return torch.randn(batch, rows, columns, dtype=dtype)


def native(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, target: Target) -> Callable[[], None]:
    def strides(x: torch.Tensor) -> tuple[int, int, int, int]:
        s = x.stride()
        return (s[0], s[1], s[2], s[3]) if len(s) == 4 else (0, s[0], s[1], s[2])

    batch = (c.shape[0], c.shape[1]) if c.dim() == 4 else (1, c.shape[0])
    dtype = as_dtype(str(c.dtype).removeprefix("torch."))
    calls = gemm(batch, c.shape[-2], c.shape[-1], a.shape[-1], dtype, Operand(0, 0, strides(a)),
                 Operand(1, 0, strides(b)), Output(2, 0, strides(c)), target)
    program = Executable(calls, 3)
    return partial(program.run, [x.data_ptr() for x in (a, b, c)])


def compare(ours: Callable[[], None], theirs: Callable[[], None], inner: int,
            seconds: float) -> tuple[float, float]:
    """Interleaved medians, seconds a call."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for run, samples in zip((ours, theirs), times, strict=True):
            start = time.thread_time()
            for _ in range(inner):
                run()
            samples.append((time.thread_time() - start) / inner)
    first, second = (sorted(t)[len(t) // 2] for t in times)
    return first, second


def measure(case: Case, dtype: torch.dtype, target: Target, seconds: float) -> None:
    a = operand(case.batch, case.m, case.k, case.a, dtype)
    b = operand(case.batch, case.k, case.n, case.b, dtype)
    shape = a.shape[:-2] if a.dim() >= b.dim() else b.shape[:-2]
    a, b = (x.reshape(*shape, *x.shape[-2:]) if x.dim() < len(shape) + 2 else x for x in (a, b))
    c = torch.empty(*shape, case.m, case.n, dtype=dtype)
    expected = torch.empty_like(c)
    run = native(a, b, c, target)
    multiply = torch.mm if case.batch == 1 else torch.matmul
    x, y, z = (a[0], b[0], expected[0]) if case.batch == 1 else (a, b, expected)

    def other() -> None:
        multiply(x, y, out=z)

    run()
    other()
    error = (c - expected).abs().max().item()
    assert error < 1e-4 * case.k ** 0.5 + 1e-5, (case, error)
    inner = max(1, int(2e-3 / (case.flops / 5e10 + 1e-6)))
    ours, theirs = compare(run, other, inner, seconds)
    print(f"{case.name:28} {case.batch:3} x {case.m:5} x {case.n:5} x {case.k:5} "
          f"{1e6 * ours:10.1f} us {case.flops / ours / 1e9:6.1f} {case.flops / theirs / 1e9:6.1f} "
          f"GFLOP/s  ratio {theirs / ours:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Matrix products against PyTorch.")
    parser.add_argument("--filter", default="")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--avx2", action="store_true", help="kernels for vectors of 32 bytes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = device.host()
    target = Target(32, frozenset(), host.l1_bytes, host.l2_bytes) if options.avx2 else \
        Target(host.vector_bytes, host.features, host.l1_bytes, host.l2_bytes)
    for case in CASES:
        if options.filter in case.name:
            measure(case, getattr(torch, options.dtype), target, options.seconds)


if __name__ == "__main__":
    main()
