"""Adam and its relatives: AdamW, Adamax, NAdam, RAdam. Layer 5.

All keep the mean m of the gradients and a mean v of their squares (Adamax: a decaying maximum),
both corrected for having started at 0. Sources: Kingma & Ba 2014 (Adam, Adamax), Loshchilov and
Hutter 2017 (AdamW), Dozat 2016 (NAdam), Liu et al. 2019 (RAdam), Reddi et al. 2018 (amsgrad).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32
from gossamer.optim.base import Group, Hyper, Optimizer, State, blend_
from gossamer.optim.checks import check_betas, compatible, need
from gossamer.tensor import Tensor

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "adam_update"]


def decayed(p: Tensor, grad: Tensor, h: Hyper) -> Tensor:
    """The gradient with weight decay: p shrinks (decoupled), or decay·p joins the gradient."""
    if not h.active("weight_decay"):
        return grad
    if h.group.get("decoupled_weight_decay"):
        p.mul_(1 - h["lr"] * h["weight_decay"])
        return grad
    return grad + h["weight_decay"] * p


def update_moments(grad: Tensor, state: State, h: Hyper) -> None:
    """m ← m + (1 - β1)(g - m);  v ← β2·v + (1 - β2)·g²."""
    blend_(state["exp_avg"], grad, 1 - h["betas", 0])
    state["exp_avg_sq"].mul_(h["betas", 1]).add_((1 - h["betas", 1]) * grad.square())


def adam_update(p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
    """p ← p - lr/(1 - β1ᵗ) · m / (√v/√(1 - β2ᵗ) + eps), after weight decay."""
    grad = decayed(p, grad, h)
    update_moments(grad, state, h)
    step_size = h.derived("step_size", lambda: h["lr"] / h.correction(0))
    root = h.derived("root", lambda: h.correction(1).sqrt())
    square = state["exp_avg_sq"]
    if h.group.get("amsgrad"):
        square = state["max_exp_avg_sq"].copy_(gf.maximum(state["max_exp_avg_sq"], square))
    p.sub_(step_size * state["exp_avg"] / (square.sqrt() / root + h["eps"]))


def zero_moments(p: Tensor) -> State:
    """The state m = v = 0."""
    return {"exp_avg": gf.zeros_like(p), "exp_avg_sq": gf.zeros_like(p)}


class Adam(Optimizer):
    """Adaptive moments.

    Args:
        params: parameters or groups.
        lr, betas, eps: step size, decay of m and v, floor of the denominator.
        weight_decay: added to the gradient (decoupled_weight_decay: shrinks p by lr·weight_decay).
        amsgrad: divide by the largest v so far.
        maximize: go up instead of down.
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 0, amsgrad: bool = False, *,
                 maximize: bool = False, decoupled_weight_decay: bool = False,
                 **switches: Any) -> None:
        name = type(self).__name__
        compatible(name, switches)
        need(name, lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(name, betas)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay})

    def init_one(self, p: Tensor, group: Group) -> State:
        state = zero_moments(p)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = gf.zeros_like(p)
        return state

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        adam_update(p, grad, state, h)


class AdamW(Adam):
    """Adam with decoupled weight decay; arguments as `Adam`.

    Example:
        >>> optimizer = AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 1e-2, amsgrad: bool = False, *,
                 maximize: bool = False, **switches: Any) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize,
                         decoupled_weight_decay=True, **switches)


class Adamax(Optimizer):
    """Adam with a decaying maximum u of |g| + eps in place of √v."""

    def __init__(self, params: Iterable[Any], lr: Any = 2e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 0, *, maximize: bool = False,
                 **switches: Any) -> None:
        compatible("Adamax", switches)
        need("Adamax", lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas("Adamax", betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"exp_avg": gf.zeros_like(p), "exp_inf": gf.zeros_like(p)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = decayed(p, grad, h)
        mean, largest = state["exp_avg"], state["exp_inf"]
        blend_(mean, grad, 1 - h["betas", 0])
        largest.copy_(gf.maximum(largest * h["betas", 1], grad.abs() + h["eps"]))
        p.sub_(h.derived("step_size", lambda: h["lr"] / h.correction(0)) * mean / largest)


class NAdam(Optimizer):
    """Adam with Nesterov momentum whose coefficient warms up with 0.96^(t·momentum_decay)."""

    def __init__(self, params: Iterable[Any], lr: Any = 2e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 0, momentum_decay: float = 4e-3,
                 decoupled_weight_decay: bool = False, *, maximize: bool = False,
                 **switches: Any) -> None:
        compatible("NAdam", switches)
        need("NAdam", lr=lr, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        check_betas("NAdam", betas)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"mu_product": gf.ones((), dtype=float32), **zero_moments(p)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = decayed(p, grad, h)
        update_moments(grad, state, h)

        def coefficient(ahead: int) -> Any:
            decay = 0.96 ** ((h.steps() + ahead) * h["momentum_decay"])
            return h["betas", 0] * (1.0 - 0.5 * decay)

        mu = h.derived("mu", lambda: coefficient(0))
        following = h.derived("following", lambda: coefficient(1))
        product = state["mu_product"].mul_(mu)
        floor = (state["exp_avg_sq"] / h.correction(1)).sqrt() + h["eps"]
        p.sub_(h["lr"] * (1 - mu) / (1 - product) * grad / floor)
        p.sub_(h["lr"] * following / (1 - product * following) * state["exp_avg"] / floor)


class RAdam(Optimizer):
    """Adam whose adaptive part is switched on once its variance is known well enough."""

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 0, decoupled_weight_decay: bool = False, *,
                 maximize: bool = False, **switches: Any) -> None:
        compatible("RAdam", switches)
        need("RAdam", lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas("RAdam", betas)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay})

    def init_one(self, p: Tensor, group: Group) -> State:
        return zero_moments(p)

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = decayed(p, grad, h)
        update_moments(grad, state, h)
        known, rectify = h.derived("rectified", lambda: self._rectification(h))
        root = h.derived("root", lambda: h.correction(1).sqrt())
        adaptive = root / (state["exp_avg_sq"].sqrt() + h["eps"]) * rectify
        step_size = h.derived("step_size", lambda: h["lr"] / h.correction(0))
        p.sub_(step_size * state["exp_avg"] * gf.where(known, adaptive, gf.ones_like(adaptive)))

    @staticmethod
    def _rectification(h: Hyper) -> tuple[Tensor, Tensor]:
        """Whether the variance is tractable (rho > 5) and the factor r of the paper's eq. 9."""
        beta2 = h["betas", 1]
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * h.steps() * beta2 ** h.steps() / h.correction(1)
        safe = rho.clamp(min=5)
        ratio = ((safe - 4) * (safe - 2) * longest) / ((longest - 4) * (longest - 2) * safe)
        return rho > 5, ratio.sqrt()
