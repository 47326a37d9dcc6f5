"""`flops-N`, `nodes-N`: does cost grow in proportion to the work?

Training steps of GPTs from 10^6 to 10^12 floating-point operations, and the first (cold) call of
chains of tanh with gradient: what compiling costs as the graph grows.
"""

from __future__ import annotations

from benchmarks.workloads import gpt, small
from benchmarks.workloads.base import Workload

__all__ = ["WORKLOADS"]

# (layers, dim, heads, time, batch, vocabulary), about ten times more operations each.
STEPS = {
    "1e6": (1, 16, 1, 16, 2, 64), "1e7": (1, 32, 1, 32, 2, 256), "1e8": (2, 64, 2, 64, 2, 256),
    "1e9": (2, 96, 3, 128, 4, 512), "1e10": (4, 128, 4, 256, 6, 1024),
    "1e11": (6, 192, 6, 256, 18, 2048), "1e12": (12, 384, 6, 512, 15, 4096),
}
NAMES = ("layers", "dim", "heads", "time", "batch", "vocab")
LENGTHS = (100, 1000, 5000, 20000)

WORKLOADS = [
    *(Workload(f"flops-{label}", f"GPT step of about {label} operations", "train", gpt.MODELS,
               gpt.shapes, gpt.inputs,
               {"full": dict(zip(NAMES, numbers, strict=True)), "tiny": gpt.SIZES["tiny"]},
               "adamw", 1e-3, grows="flops", amount=gpt.flops, only=("gossamer", "torch"),
               threads="all", steps=4)
      for label, numbers in STEPS.items()),
    *(Workload(f"nodes-{length}", f"{length} chained tanh and gradient, first call", "gradient",
               small.CHAIN, inputs=small.four,
               sizes={"full": {"length": length}, "tiny": {"length": 5}}, cold=True,
               grows="nodes", amount=lambda size: size["length"], only=("gossamer",),
               threads="one")
      for length in LENGTHS),
]
