"""tinygrad: TinyJit around the step, its own optimizers."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np

from benchmarks.adapters.base import Arrays, Model, Task

__all__ = ["TinyLike", "adapter"]


class TinyLike:
    """`tinygrad` behind the protocol `Adapter`."""

    family = "tinygrad"

    def __init__(self) -> None:
        self.lib = importlib.import_module("tinygrad")
        self.context = importlib.import_module("tinygrad.helpers").Context
        self.optim = importlib.import_module("tinygrad.nn.optim")
        self.version = importlib.metadata.version("tinygrad")

    def tensor(self, array: np.ndarray) -> Any:
        return self.lib.Tensor(np.ascontiguousarray(array)).realize()

    def wait(self, result: Any) -> Any:
        self.lib.Device[self.lib.Device.DEFAULT].synchronize()
        return result

    def numpy(self, result: Any) -> np.ndarray:
        return np.asarray(result.numpy())

    def _look(self, result: Any) -> list[np.ndarray]:
        return [x.numpy() for x in (result if isinstance(result, (list, tuple)) else [result])]

    def _task(self, function: Any, *tensors: Any) -> Task:
        run = self.lib.TinyJit(function)
        return Task(lambda: self.wait(run(*tensors)), self._look)

    def train(self, model: Model, p: Arrays, inputs: list[np.ndarray], optimizer: str,
              lr: float, dtype: str = "float32") -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}
        for tensor in parameters.values():
            tensor.is_param_()
        values = list(parameters.values())
        chosen = (self.optim.SGD(values, lr=lr, momentum=0.0, weight_decay=0.0)
                  if optimizer == "sgd" else self.optim.AdamW(values, lr=lr, weight_decay=0.01))

        def step(*tensors: Any) -> Any:
            with self.context(TRAINING=1):
                chosen.zero_grad()
                loss = model(parameters, *tensors).backward()
                return loss.realize(*chosen.schedule_step())

        return self._task(step, *(self.tensor(x) for x in inputs))

    def forward(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}

        def call(*tensors: Any) -> Any:
            return model(parameters, *tensors).realize()

        return self._task(call, *(self.tensor(x) for x in inputs))

    def gradient(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}

        def call(*tensors: Any) -> Any:
            value = model(parameters, *tensors)
            found = value.gradient(*tensors)
            return [x.realize() for x in (value, *found)]

        return self._task(call, *(self.tensor(x) for x in inputs))


def adapter(package: str, compiled: bool, threads: int) -> TinyLike:
    """Threads are set by the environment (NUM_CPU_THREADS)."""
    return TinyLike()
