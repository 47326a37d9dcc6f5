"""What a workload is: shared arrays, and one model a family that must give the same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.adapters.base import Adapter, Arrays, Model, Task

__all__ = ["Kind", "Size", "Workload", "initial"]

Size = Mapping[str, int]
# "train", "forward", "gradient", "task": rounds of calls; "import", "first", "busy", "roofline":
# measured as `benchmarks.apart` says.
Kind = str
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        name, title: what one types, and what it is.
        kind: how it is run (see `Kind`).
        shapes: parameters by the names of a PyTorch state dict.
        inputs: arrays that the model is called with.
        models: per family, (library, size) -> model; for "task" (adapter, size, inputs) -> Task.
        sizes: "full" is what the table shows, "tiny" what the tests run.
        tolerance: largest relative difference from Gossamer's result; losses 20 steps later may
            differ ten times as much.
        grows, amount: "flops" or "nodes" and how many a call has, for the plot of `scaling`.
        counts: what an amount is of, if not of FLOPs ("bytes": read from memory by a call).
        dtype: of the products; parameters are float32 ("bfloat16" trains under autocast).
        cold: the first call is measured too, so the row never takes kept caches.
        calls: calls of a turn, where it must be the same for all; 0: as many as fill it.
        only: the peers it makes sense for; empty for all.
        skip: reasons why families that have a model are left out, such as minutes of compiling.
        threads: "each" number of threads, only "one", or only "all" cores.
        defaults: peers with default settings take part too.
        steps: training steps in all, where not the plan's.
        of: for "first", "busy" and "roofline", the workload that is looked at.
    """

    name: str
    title: str
    kind: Kind
    models: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    shapes: Callable[[Size], Shapes] = lambda size: {}
    inputs: Callable[[Size, np.random.Generator], list[np.ndarray]] = lambda size, rng: []
    sizes: Mapping[str, Size] = field(default_factory=lambda: {"full": {}, "tiny": {}})
    optimizer: str = "sgd"
    lr: float = 0.1
    tolerance: float = 2e-4
    grows: str = ""
    amount: Callable[[Size], float] = lambda size: 0.0
    cold: bool = False
    calls: int = 0
    only: tuple[str, ...] = ()
    skip: Mapping[str, str] = field(default_factory=dict)
    threads: str = "each"
    defaults: bool = False
    steps: int = 0
    counts: str = "flops"
    dtype: str = "float32"
    of: str = ""

    def arrays(self, size: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Initial parameters and inputs for every peer, as written to one file."""
        rng = np.random.default_rng(seed)
        made = {f"p:{k}": v for k, v in initial(self.shapes(self.sizes[size]), rng).items()}
        for number, array in enumerate(self.inputs(self.sizes[size], rng)):
            made[f"x:{number}"] = array
        return made

    def build(self, adapter: Adapter, size: Size, arrays: Arrays) -> Task:
        """The work in one framework."""
        p = {k[2:]: v for k, v in arrays.items() if k.startswith("p:")}
        count = sum(k.startswith("x:") for k in arrays)
        inputs = [arrays[f"x:{number}"] for number in range(count)]
        make = self.models[adapter.family]
        if self.kind == "task":
            task: Task = make(adapter, size, inputs)
            return task
        model: Model = make(adapter.lib, size)
        if self.kind == "train":
            return adapter.train(model, p, inputs, self.optimizer, self.lr, self.dtype)
        run = adapter.gradient if self.kind == "gradient" else adapter.forward
        return run(model, p, inputs)


def initial(shapes: Shapes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters by name: biases 0, scales of norms 1, the rest normal over sqrt(fan-in)."""
    made = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            value = np.zeros(shape)
        elif len(shape) == 1:
            value = np.ones(shape)
        else:
            fan_in = 400 if "embed" in name else int(np.prod(shape[1:]))
            value = rng.normal(size=shape) / np.sqrt(fan_in)
        made[name] = value.astype(np.float32)
    return made
