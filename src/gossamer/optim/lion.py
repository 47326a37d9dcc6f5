"""Lion: the sign of an interpolated momentum. Layer 5. Source: Chen et al. 2023, algorithm 2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.optim.base import Group, Hyper, Optimizer, State, blend_
from gossamer.optim.checks import check_betas, compatible, need
from gossamer.tensor import Tensor

__all__ = ["Lion"]


class Lion(Optimizer):
    """p ← p - lr·(sign(β1·m + (1-β1)·g) + weight_decay·p);  m ← β2·m + (1-β2)·g.

    Args:
        lr: 3 to 10 times below AdamW's; weight_decay as much above.
    """

    counts = False

    def __init__(self, params: Iterable[Any], lr: Any = 1e-4, betas: Any = (0.9, 0.99),
                 weight_decay: Any = 0.0, *, maximize: bool = False, **switches: Any) -> None:
        compatible("Lion", switches)
        need("Lion", lr=lr, weight_decay=weight_decay)
        check_betas("Lion", betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay,
                                  "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"exp_avg": gf.zeros_like(p)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        mean = state["exp_avg"]
        update = (mean * h["betas", 0] + grad * (1 - h["betas", 0])).sign()
        if h.active("weight_decay"):
            update = update + h["weight_decay"] * p
        p.sub_(h["lr"] * update)
        blend_(mean, grad, 1 - h["betas", 1])
