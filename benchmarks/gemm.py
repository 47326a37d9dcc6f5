"""Matrix products against PyTorch: GPT shapes, layers, squares, few rows, vectors.

    python -m benchmarks.gemm [--filter TEXT] [--dtype bfloat16] [--threads 2] [--avx2]

Both sides run interleaved in one process on the same arrays, each with its result in its operands'
dtype. On one thread times are CPU time, so that other work on the machine disturbs both alike; on
several, wall time. `ratio` is our speed over PyTorch's: of the medians, and of the best rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's best setting on few cores

import torch

from gossamer.compile.gemm import Target
from gossamer.compile.pipeline import compile_graph
from gossamer.core.dtype import as_dtype
from gossamer.ir.node import Node
from gossamer.ir.op import INPUT, TABLE
from gossamer.ops.contraction import matmul
from gossamer.runtime.buffer import allocate
from gossamer.runtime.program import Program, host_target
from gossamer.runtime.threads import set_num_threads


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
    Case("qkv, weight (out, in)", 4096, 576, 192, b="t"), Case("qkv dx", 4096, 192, 576),
    Case("qkv dW", 576, 192, 4096, a="t"), Case("proj", 4096, 192, 192, b="t"),
    Case("proj dW", 192, 192, 4096, a="t"), Case("dx up", 4096, 192, 768, b="t"),
    Case("logits", 4096, 2048, 192, b="t"), Case("logits dx", 4096, 192, 2048),
    Case("logits dW", 2048, 192, 4096, a="t"),
    Case("K256 N1024", 2048, 1024, 256, b="t"), Case("K1024 N256", 2048, 256, 1024, b="t"),
    Case("K256 N4096", 2048, 4096, 256, b="t"), Case("K256 N4096 dW", 4096, 256, 2048, a="t"),
    Case("QK^T", 256, 256, 32, a="h", b="ht", batch=96),
    Case("PV", 256, 32, 256, b="h", batch=96),
    Case("dV = P^T dO", 256, 32, 256, a="t", b="h", batch=96),
    Case("bmm QK^T", 256, 256, 32, b="t", batch=96), Case("bmm PV", 256, 32, 256, batch=96),
    Case("MNIST 1", 128, 512, 784, b="t"), Case("MNIST 2", 128, 512, 512, b="t"),
    Case("MNIST 2 dx", 128, 512, 512), Case("MNIST 3", 128, 10, 512, b="t"),
    Case("MNIST 1 dW", 512, 784, 128, a="t"), Case("MNIST 2 dW", 512, 512, 128, a="t"),
    Case("MNIST 3 dW", 10, 512, 128, a="t"), Case("MNIST 3 dx", 128, 512, 10),
    *(Case(f"square {s}", s, s, s) for s in (32, 64, 128, 256, 512, 1024, 2048)),
    *(Case(f"square {s} {a}{b}", s, s, s, a, b) for s in (256, 1024)
      for a, b in ("nt", "tn", "tt")),
    Case("odd 100", 100, 100, 100), Case("odd 1000 x 77", 1000, 77, 333),
    Case("rank 8", 1024, 1024, 8), Case("rank 16, t", 1024, 1024, 16, b="t"),
    Case("long K", 64, 64, 16384, a="t"),
    Case("mv 2048 (rows)", 2048, 1, 2048), Case("vm 2048 (columns)", 1, 2048, 2048),
    Case("mv 192x768", 1, 768, 192, b="t"), Case("vm 768x192", 1, 192, 768, b="t"),
    Case("vm logits", 1, 32000, 768, b="t"),
    *(Case(f"rows {m}, weight (out, in)", m, 2048, 768, b="t") for m in (1, 2, 3, 4, 6, 8)),
    *(Case(f"rows {m}", m, 2048, 768) for m in (1, 2, 4, 8)),
    Case("tiny 4", 4, 4, 4), Case("tiny 8", 8, 8, 8), Case("tiny bmm", 16, 16, 16, batch=256),
]


@dataclass(frozen=True)
class Side:
    """An operand: contiguous memory, and the permutation to (*batch, rows, columns)."""

    memory: torch.Tensor
    axes: tuple[int, ...]

    @property
    def view(self) -> torch.Tensor:
        return self.memory.permute(self.axes)

    def node(self, number: int) -> Node:
        leaf = INPUT(index=number, shape=tuple(self.memory.shape),
                     dtype=as_dtype(str(self.memory.dtype).removeprefix("torch.")))
        return leaf if self.axes == tuple(range(len(self.axes))) else \
            TABLE["permute"](leaf, axes=self.axes)


def operand(batch: int, rows: int, columns: int, layout: str, dtype: torch.dtype,
            heads: bool) -> Side:
    """(batch / 6, 6, rows, columns) if some operand of the case has heads, else (batch, rows,
    columns), without a batch of 1."""
    if "t" in layout:
        turned = operand(batch, columns, rows, layout.replace("t", "") or "n", dtype, heads)
        return replace(turned, axes=(*turned.axes[:-2], turned.axes[-1], turned.axes[-2]))
    if layout == "h":
        return Side(torch.randn(batch // 6, rows, 6, columns, dtype=dtype), (0, 2, 1, 3))
    shape = (batch // 6, 6) if heads else () if batch == 1 else (batch,)
    return Side(torch.randn(*shape, rows, columns, dtype=dtype), tuple(range(len(shape) + 2)))


def native(a: Side, b: Side, result: torch.Tensor, target: Target) -> Callable[[], object]:
    """Our product as one native call."""
    nodes = [x.node(i) for i, x in enumerate((a, b))]
    root = matmul(*nodes)
    leaves = [n if n.op is INPUT else n.inputs[0] for n in nodes]
    program = Program(compile_graph([root], leaves, target, True), [(root.shape, root.dtype)])
    arena = allocate(max(program.arena_bytes, 64))
    pointers = [a.memory.data_ptr(), b.memory.data_ptr(), result.data_ptr(), arena.address]
    run = partial(program.executable.run, pointers)
    run.keywords["params"] = ()
    run.arena = arena  # type: ignore[attr-defined]  # lives as long as the function
    return run


def compare(ours: Callable[[], object], theirs: Callable[[], object], inner: int, seconds: float,
            clock: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Interleaved rounds, seconds a call, in ascending order."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for run, samples in zip((ours, theirs), times, strict=True):
            run()  # caches and threads as this side leaves them
            start = clock()
            for _ in range(inner):
                run()
            samples.append((clock() - start) / inner)
    return sorted(times[0]), sorted(times[1])


def measure(case: Case, dtype: torch.dtype, target: Target, seconds: float) -> float:
    heads = "h" in case.a + case.b
    a = operand(case.batch, case.m, case.k, case.a, dtype, heads)
    b = operand(case.batch, case.k, case.n, case.b, dtype, heads)
    x, y = a.view, b.view
    result = torch.empty(*x.shape[:-1], case.n, dtype=dtype)
    expected = torch.empty_like(result)
    run = native(a, b, result, target)
    other = partial(torch.matmul, x, y, out=expected)
    run()
    other()
    exact = x.double() @ y.double()
    allowed = (x.double().abs() @ y.double().abs()) * 1e-6 + exact.abs() * torch.finfo(dtype).eps
    assert ((result - exact).abs() <= allowed + 1e-30).all(), case
    inner = max(1, int(2e-3 / (case.flops / 5e10 + 1e-6)))
    clock = time.thread_time if target.threads == 1 else time.perf_counter
    ours, theirs = compare(run, other, inner, seconds, clock)
    middle, best = theirs[len(theirs) // 2] / ours[len(ours) // 2], theirs[0] / ours[0]
    print(f"{case.name:26} {case.batch:3} x {case.m:5} x {case.n:5} x {case.k:5} "
          f"{1e6 * ours[len(ours) // 2]:10.1f} us {case.flops / ours[0] / 1e9:6.1f} "
          f"{case.flops / theirs[0] / 1e9:6.1f} GFLOP/s  ratio {middle:5.2f} best {best:5.2f}"
          f"{'  <' if max(middle, best) < 0.97 else ''}", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description="Matrix products against PyTorch.")
    parser.add_argument("--filter", default="", help="part of a name; several with commas")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--avx2", action="store_true", help="kernels for vectors of 32 bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_num_threads(options.threads)
    target = host_target()
    if options.avx2:
        target = replace(target, vector_bytes=32, features=frozenset())
    for case in CASES:
        if any(part in case.name for part in options.filter.split(",")):
            measure(case, getattr(torch, options.dtype), target, options.seconds)


if __name__ == "__main__":
    main()
