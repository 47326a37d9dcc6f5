"""`nanochat`: a training step of nanochat's architecture with Muon, 6 x 192 ("P1"), T 256.

The model is the framework's own `models/gpt.py`: rotary positions, QK norm, relu squared, value
embeddings, smear. PyTorch runs that same file, its three imports of Gossamer replaced by PyTorch's;
Muon is `adapters/torchmuon.py` there. JAX and tinygrad have no twin.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import gpt
from benchmarks.workloads.base import Size, Workload

__all__ = ["WORKLOADS"]

SMEAR, GATE_INPUTS = 4, 12  # of models/gpt.py; the shapes must be known without a framework
# nanochat's rates are for 768 wide; these train 20 steps of one batch without jumps, so that
# rounding cannot grow to a difference of losses.
RATES = {"embedding": 0.1, "head": 0.004, "small": 0.01}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    d, heads, layers = size["dim"], size["heads"], size["layers"]
    padded = -(-size["vocab"] // 64) * 64
    made: dict[str, tuple[int, ...]] = {"smear": (SMEAR, d), "wte.weight": (size["vocab"], d)}
    for i in range(layers):
        for name in ("q", "k", "v", "proj"):
            made[f"blocks.{i}.attn.{name}.weight"] = (d, d)
        if (layers - 1 - i) % 2 == 0:
            made[f"blocks.{i}.attn.table.weight"] = (size["vocab"], d)
            made[f"blocks.{i}.attn.gate.weight"] = (heads, min(GATE_INPUTS, d))
        made[f"blocks.{i}.mlp.fc.weight"] = (4 * d, d)
        made[f"blocks.{i}.mlp.proj.weight"] = (d, 4 * d)
    return {**made, "head.weight": (padded, d)}


def flops(size: Size) -> float:
    """Of a step, as `GPT.estimate_flops` counts them: 6 a matrix parameter and token, 12 D T a
    layer for attention; the optimizer is not counted."""
    d, tokens = size["dim"], size["batch"] * size["time"]
    matrices = 12 * size["layers"] * d * d + -(-size["vocab"] // 64) * 64 * d
    return tokens * (6.0 * matrices + 12 * size["layers"] * d * size["time"])


def _module(lib: Any) -> types.ModuleType:
    """`gossamer.models.gpt`, or the same text on PyTorch."""
    if lib.__name__ == "gossamer":
        return importlib.import_module("gossamer.models.gpt")
    spec = importlib.util.find_spec("gossamer")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "models" / "gpt.py"
    text = path.read_text(encoding="utf-8")
    for ours, theirs in (("import gossamer as gs", "import torch as gs"),
                         ("from gossamer import nn", "from torch import nn"),
                         ("from gossamer.nn import functional", "from torch.nn import functional")):
        assert ours in text, ours
        text = text.replace(ours, theirs)
    module = types.ModuleType("gpt_on_torch")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


class Torch:
    """The model, its weights replaced by the shared ones before it runs."""

    def __init__(self, lib: Any, size: Size) -> None:
        made = _module(lib)
        self.model = made.GPT(made.GPTConfig(
            vocab_size=size["vocab"], n_layer=size["layers"], n_head=size["heads"],
            n_embd=size["dim"], sequence_len=size["time"]))

    def bind(self, p: Any) -> None:
        for name, value in p.items():
            path, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(path), last, value)

    def groups(self, lr: float, low: Any) -> list[dict[str, Any]]:
        """Muon for the blocks' matrices, AdamW for the rest; `low`: dtype of Muon's products."""
        m = self.model
        constants = {"weight_decay": 0.0, "betas": (0.8, 0.95)}
        rest = (("embedding", [m.wte.weight, *m.value_tables()]), ("head", [m.head.weight]),
                ("small", m.small_parameters()))
        return [{"kind": "muon", "params": m.matrix_parameters(), "lr": lr, "momentum": 0.9,
                 "beta2": 0.9, "weight_decay": 0.1, "ns_dtype": low},
                *({"kind": "adamw", "params": params, "lr": RATES[name], **constants}
                  for name, params in rest)]

    def __call__(self, p: Any, ids: Any, targets: Any) -> Any:
        return self.model.loss(ids, targets)


def inputs(size: Size, rng: np.random.Generator) -> list[np.ndarray]:
    return gpt.inputs(size, rng)


# A Muon step is of the size of the matrix whatever its gradient's, so rounding of small singular
# values reaches the loss; bfloat16 rounds three digits off every product.
WORKLOADS = [
    Workload(f"nanochat{suffix}", f"nanochat 6 x 192, T 256, batch 16, Muon, {dtype}", "train",
             {"torch": Torch}, shapes, inputs, gpt.SIZES, "muon", 0.005, tolerance=tolerance,
             dtype=dtype, amount=flops, threads=threads)
    for suffix, dtype, tolerance, threads in (("", "float32", 2e-4, "one"),
                                              ("-bf16", "bfloat16", 2e-3, "each"))
]
