"""What an adapter gives: the same four ways to run a model, in the words of its framework.

A model is a function `f(p, *inputs)` of a dict of parameters, named as in a PyTorch state dict, and
of input arrays. `train` makes a step (forward, backward, optimizer) that returns the loss,
`forward` a call without gradients, `gradient` a call that returns the gradients of the sum of the
result times a given array, or of a scalar result, with respect to the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Adapter", "Arrays", "Model", "Task"]

Arrays = Mapping[str, np.ndarray]
Model = Callable[..., Any]  # (parameters, *inputs) -> result


@dataclass
class Task:
    """Work that is ready to run.

    Attributes:
        call: does it once; the work is finished when it returns.
        look: the results of a call as NumPy arrays.
        units: how often one `call` does what the table counts.
        explain: kernels of the work with their times and limits, where the framework can tell.
    """

    call: Callable[[], Any]
    look: Callable[[Any], list[np.ndarray]]
    units: int = 1
    explain: Callable[[], Any] | None = None


class Adapter(Protocol):
    """One framework in one mode."""

    family: str  # whose models it runs: "torch", "jax", "tinygrad"
    version: str
    lib: Any

    def tensor(self, array: np.ndarray) -> Any:
        """A tensor of the framework with these values."""

    def train(self, model: Model, p: Arrays, inputs: list[np.ndarray], optimizer: str,
              lr: float, dtype: str = "float32") -> Task:
        """Steps of "sgd", "adamw" or "muon" on the loss that `model` returns.

        `dtype` is that of the products: under "bfloat16" Gossamer and PyTorch run the model under
        autocast; the other families' models cast by themselves.
        """

    def forward(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        """Calls of `model` without gradients."""

    def gradient(self, model: Model, p: Arrays, inputs: list[np.ndarray]) -> Task:
        """Calls that return `model`'s sum and its gradient with respect to all inputs."""

    def wait(self, result: Any) -> Any:
        """Return when `result` has been computed."""

    def numpy(self, result: Any) -> np.ndarray:
        """The values of a tensor."""
