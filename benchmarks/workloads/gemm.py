"""`gemm-N`, `gemm-bf16-N`: one product of two N x N matrices, all there is in a call.

`benchmarks/gemm.py` compares the kernels alone, in one process and over many more shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters.base import Adapter, Task
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    n = size["n"]
    return [(rng.normal(size=(n, n)) / n ** 0.25).astype(np.float32) for _ in range(2)]


def product(dtype: str) -> Any:
    """(adapter, size, inputs) -> the product in a dtype, both operands in it before."""
    def torch(adapter: Adapter, size: Size, arrays: list[np.ndarray]) -> Task:
        lib = adapter.lib
        a, b = (adapter.tensor(x).to(getattr(lib, dtype)) for x in arrays)
        run = lib.compile(lib.mm) if lib.__name__ == "gossamer" else lib.mm
        return Task(lambda: run(a, b), lambda c: [adapter.numpy(c.to(lib.float32))])

    def jax(adapter: Adapter, size: Size, arrays: list[np.ndarray]) -> Task:
        lib = adapter.lib
        a, b = (adapter.tensor(x).astype(dtype) for x in arrays)
        run = lib.jit(lib.numpy.matmul)
        return Task(lambda: adapter.wait(run(a, b)),
                    lambda c: [adapter.numpy(c.astype("float32"))])

    return {"torch": torch, "jax": jax}


# torch.compile calls the same library as eager PyTorch; tinygrad is ten times slower (its tuner is
# not used), and compiles these for minutes.
WORKLOADS = [
    Workload(f"gemm{label}-{n}", f"{n} x {n} matrix product, {dtype}", "task", product(dtype),
             inputs=inputs, sizes={"full": {"n": n}, "tiny": {"n": 20}}, tolerance=tolerance,
             only=("gossamer", "torch", "jax"), dtype=dtype,
             amount=lambda size: 2.0 * size["n"] ** 3)
    for label, dtype, tolerance in (("", "float32", 2e-4), ("-bf16", "bfloat16", 1e-2))
    for n in (256, 512, 1024, 2048)
]
