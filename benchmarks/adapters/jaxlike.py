"""JAX: one jitted function per step, its state donated; optimizers written out on the dict."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from benchmarks.adapters.base import Arrays, Model, Task

__all__ = ["JaxLike", "adapter"]


class JaxLike:
    """`jax` behind the protocol `Adapter`."""

    family = "jax"

    def __init__(self) -> None:
        self.lib = importlib.import_module("jax")
        self.np = importlib.import_module("jax.numpy")
        self.version = str(self.lib.__version__)

    def tensor(self, array: np.ndarray) -> Any:
        return self.np.asarray(array)

    def wait(self, result: Any) -> Any:
        return self.lib.block_until_ready(result)

    def numpy(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def _look(self, result: Any) -> list[np.ndarray]:
        return [np.asarray(x) for x in self.lib.tree_util.tree_leaves(result)]

    def _update(self, name: str, lr: float) -> Any:
        """(state, parameters, gradients, step) -> (parameters, state), PyTorch's formulas."""
        tree, jnp = self.lib.tree_util, self.np

        def sgd(state: Any, p: Any, g: Any, t: Any) -> Any:
            return tree.tree_map(lambda p, g: p - lr * g, p, g), state

        def adamw(state: Any, p: Any, g: Any, t: Any) -> Any:
            m = tree.tree_map(lambda m, g: 0.9 * m + 0.1 * g, state[0], g)
            v = tree.tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], g)
            first, second = lr / (1 - 0.9 ** t), jnp.sqrt(1 - 0.999 ** t)

            def one(p: Any, m: Any, v: Any) -> Any:
                return p * (1 - lr * 0.01) - first * m / (jnp.sqrt(v) / second + 1e-8)

            return tree.tree_map(one, p, m, v), (m, v)

        return {"sgd": sgd, "adamw": adamw}[name]

    def train(self, model: Model, p: Arrays, inputs: list[np.ndarray], optimizer: str,
              lr: float, dtype: str = "float32") -> Task:
        tree, jnp = self.lib.tree_util, self.np
        update = self._update(optimizer, lr)
        tensors = [self.tensor(x) for x in inputs]

        def step(p: Any, state: Any, t: Any, *tensors: Any) -> Any:
            loss, gradients = self.lib.value_and_grad(model)(p, *tensors)
            p, state = update(state, p, gradients, t)
            return p, state, t + 1, loss

        parameters = {k: self.tensor(v) for k, v in p.items()}
        zeros = tree.tree_map(jnp.zeros_like, parameters)
        state = (zeros, tree.tree_map(jnp.zeros_like, parameters)) if optimizer == "adamw" else ()
        now = [parameters, state, jnp.float32(1)]
        run = self.lib.jit(step, donate_argnums=(0, 1, 2))

        def call() -> Any:
            *now[:], loss = run(*now, *tensors)
            return self.wait(loss)

        return Task(call, self._look)

    def forward(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}
        tensors = [self.tensor(x) for x in inputs]
        run = self.lib.jit(model)
        return Task(lambda: self.wait(run(parameters, *tensors)), self._look)

    def gradient(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        parameters = {k: self.tensor(v) for k, v in p.items()}
        tensors = tuple(self.tensor(x) for x in inputs)

        def both(tensors: Any) -> Any:
            return self.lib.value_and_grad(lambda t: model(parameters, *t))(tensors)

        run = self.lib.jit(both)
        return Task(lambda: self.wait(run(tensors)), self._look)


def adapter(package: str, compiled: bool, threads: int) -> JaxLike:
    """Threads are set by the environment (NPROC) and by the cores the process may run on."""
    return JaxLike()
