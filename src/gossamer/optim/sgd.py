"""Stochastic gradient descent with momentum, and its average (ASGD). Layer 5.

Sources: Sutskever et al. 2013 (Nesterov momentum, in PyTorch's form); Polyak & Juditsky 1992.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32
from gossamer.optim.base import Group, Hyper, Optimizer, State
from gossamer.optim.checks import compatible, need
from gossamer.tensor import Tensor

__all__ = ["ASGD", "SGD"]


class SGD(Optimizer):
    """b ← momentum·b + (1 - dampening)·g;  p ← p - lr·b  (nesterov: p ← p - lr·(g + momentum·b)).

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: 0 keeps no buffer.
        dampening: share of the gradient left out of the buffer after the first step.
        weight_decay: added to the gradient as weight_decay·p.
        maximize: go up instead of down.

    Example:
        >>> optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    """

    counts = False

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, momentum: Any = 0,
                 dampening: float = 0, weight_decay: Any = 0, nesterov: bool = False, *,
                 maximize: bool = False, **switches: Any) -> None:
        compatible("SGD", switches)
        need("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening,
                                  "weight_decay": weight_decay, "nesterov": nesterov,
                                  "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        if group["momentum"] == 0:
            return {}
        state = {"momentum_buffer": gf.zeros_like(p)}
        if group["dampening"] != 0:  # the first step is not dampened
            state["started"] = gf.zeros((), dtype=float32)
        return state

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        if h.active("weight_decay"):
            grad = grad + h["weight_decay"] * p
        buffer = state.get("momentum_buffer")
        if buffer is not None:
            share: Any = 1.0
            if "started" in state:
                share = 1 - h["dampening"] * state["started"]
                state["started"].fill_(1)
            buffer.mul_(h["momentum"]).add_(grad * share)
            grad = grad + h["momentum"] * buffer if h.group["nesterov"] else buffer
        p.sub_(h["lr"] * grad)


class ASGD(Optimizer):
    """SGD that also averages the parameters (state "ax") after step t0."""

    def __init__(self, params: Iterable[Any], lr: Any = 1e-2, lambd: float = 1e-4,
                 alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0, *,
                 maximize: bool = False, **switches: Any) -> None:
        compatible("ASGD", switches)
        need("ASGD", lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0,
                                  "weight_decay": weight_decay, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"eta": gf.full((), float(group["lr"]), dtype=float32),
                "mu": gf.ones((), dtype=float32), "ax": gf.zeros_like(p)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        if h.active("weight_decay"):
            grad = grad + h["weight_decay"] * p
        eta, mu, ax = state["eta"], state["mu"], state["ax"]
        p.mul_(1 - h["lambd"] * eta)
        p.sub_(eta * grad)
        ax.add_((p - ax) * mu)
        steps = h.steps()
        eta.copy_(h["lr"] / (1 + h["lambd"] * h["lr"] * steps) ** h["alpha"])
        mu.copy_(1 / (steps - h["t0"]).clamp(min=1))
