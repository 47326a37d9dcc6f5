"""Gossamer and PyTorch: the same code for both, because they share their names.

Gossamer compiles the whole step. PyTorch runs it eagerly, or compiles the loss (and with it the
backward pass); its optimizers are the fused ones, the fastest it has on a CPU.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy as np

from benchmarks.adapters import torchmuon
from benchmarks.adapters.base import Arrays, Model, Task

__all__ = ["TorchLike", "adapter"]


class TorchLike:
    """`gossamer` or `torch` behind the protocol `Adapter`."""

    family = "torch"

    def __init__(self, package: str, compiled: bool, threads: int) -> None:
        self.lib = importlib.import_module(package)
        self.ours, self.compiled = package == "gossamer", compiled
        for room in ("nn", "optim") if self.ours else ():
            importlib.import_module(f"{package}.{room}")
        self.version = str(self.lib.__version__)
        if threads:
            self.lib.set_num_threads(threads)
        if compiled and not self.ours:
            # Every workload is one function of fixed shapes; without this a second shape in a
            # process would be compiled for all shapes, which is slower.
            self.compile: Any = lambda f: self.lib.compile(f, dynamic=False)
        else:
            self.compile = self.lib.compile if compiled else lambda f: f

    def tensor(self, array: np.ndarray) -> Any:
        return self.lib.tensor(array)

    def wait(self, result: Any) -> Any:
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if self.ours:
                x.numpy() if not x.requires_grad else x.detach().numpy()
        return result

    def numpy(self, result: Any) -> np.ndarray:
        return np.asarray(result.detach().numpy())

    def _look(self, result: Any) -> list[np.ndarray]:
        return [self.numpy(x) for x in (result if isinstance(result, (list, tuple)) else [result])]

    def _optimizer(self, name: str, model: Any, p: list[Any], lr: float, dtype: str) -> Any:
        if name == "muon":  # the model says who gets which rate
            groups = model.groups(lr, self.lib.bfloat16 if dtype == "bfloat16" else None)
            return (self.lib.optim.MuonAdamW(groups) if self.ours
                    else torchmuon.MuonAdamW(self.lib, groups, self.compile))
        made = {"sgd": self.lib.optim.SGD, "adamw": self.lib.optim.AdamW}[name]
        return made(p, lr=lr) if self.ours else made(p, lr=lr, fused=True)

    def _precision(self, dtype: str) -> Any:
        """A context for the forward pass."""
        if dtype == "float32":
            return contextlib.nullcontext()
        return self.lib.autocast("cpu", dtype=getattr(self.lib, dtype))

    def train(self, model: Model, p: Arrays, inputs: list[np.ndarray], optimizer: str,
              lr: float, dtype: str = "float32") -> Task:
        parameters = {k: self.tensor(v).requires_grad_() for k, v in p.items()}
        bind = getattr(model, "bind", None)
        if bind is not None:  # a model that holds modules takes the parameters in
            parameters = {k: self.lib.nn.Parameter(v) for k, v in parameters.items()}
            bind(parameters)
        # Else plain tensors: with `Parameter`s in a dict PyTorch 2.13's Inductor trains the cnn
        # wrongly from step 2 on (loss 2.3038 for 2.3012; backend "aot_eager" is right).
        tensors = [self.tensor(x) for x in inputs]
        chosen = self._optimizer(optimizer, model, list(parameters.values()), lr, dtype)
        loss_of = model if self.ours else self.compile(model)

        def step(*tensors: Any) -> Any:
            with self._precision(dtype):
                loss = loss_of(parameters, *tensors)
            chosen.zero_grad(set_to_none=True)
            loss.backward()
            chosen.step()
            return loss

        run = self.compile(step) if self.ours else step
        explain = (lambda: self.lib.explain(run, *tensors)) if self.ours else None
        return Task(lambda: run(*tensors), self._look, explain=explain)

    def forward(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}
        tensors = [self.tensor(x) for x in inputs]
        no_grad = self.lib.no_grad
        run = self.compile(model)

        def call() -> Any:
            with no_grad():
                return run(parameters, *tensors)

        return Task(call, self._look)

    def gradient(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}
        tensors = [self.tensor(x).requires_grad_() for x in inputs]
        run = model if self.ours else self.compile(model)
        grad = self.lib.autograd.grad

        def call(*tensors: Any) -> Any:
            value = run(parameters, *tensors)
            # Detached, because Gossamer runs a function uncompiled whose result may still be
            # differentiated outside; PyTorch gets the same line.
            return (value.detach(), *grad(value, list(tensors)))

        whole = self.compile(call) if self.ours else call
        return Task(lambda: whole(*tensors), self._look)


def adapter(package: str, compiled: bool, threads: int) -> TorchLike:
    """`threads` 0 leaves the framework's own choice."""
    made = TorchLike(package, compiled, threads)
    if threads and not made.ours:
        made.lib.set_num_interop_threads(1)
    return made
