"""`first`, `roofline-*`, `busy-*`: other questions about workloads that have a row of their own.

`first`: what the first step costs in a new process. `roofline`: the least time the machine's
measured limits allow for all kernels of a step, over the time the step takes (`gs.explain`).
`busy`: the step on all cores while another process keeps one of them busy.
"""

from __future__ import annotations

from benchmarks.workloads.base import Workload

__all__ = ["WORKLOADS"]

WORKLOADS = [
    Workload("first", "first step of gpt in a new process, beyond a warm one", "first", of="gpt",
             threads="all", only=("gossamer", "torch", "torch-compile", "jax")),
    *(Workload(f"roofline-{name}", f"share of the roofline of the whole {name} step", "roofline",
               of=name, only=("gossamer",)) for name in ("gpt", "gpt-bf16", "nanochat-bf16")),
    *(Workload(f"busy-{name}", f"{name} step while another process keeps one core busy", "busy",
               of=name, threads="all", only=("gossamer", "torch")) for name in ("mlp", "gpt")),
]
