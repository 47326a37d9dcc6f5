"""Step sizes from accumulated squares: Adagrad, RMSprop, Adadelta, Adafactor; Rprop. Layer 5.

Sources: Duchi et al. 2011; Hinton's lecture 6e and Graves 2013 (centered); Zeiler 2012; Shazeer &
Stern 2018; Riedmiller & Braun 1993. Forms and defaults are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.optim.base import Group, Hyper, Optimizer, State, blend_
from gossamer.optim.checks import compatible, need
from gossamer.tensor import Tensor

__all__ = ["Adadelta", "Adafactor", "Adagrad", "RMSprop", "Rprop"]


def _decayed(p: Tensor, grad: Tensor, h: Hyper) -> Tensor:
    return grad + h["weight_decay"] * p if h.active("weight_decay") else grad


class Adagrad(Optimizer):
    """s ← s + g²;  p ← p - lr/(1 + (t-1)·lr_decay) · g/(√s + eps)."""

    def __init__(self, params: Iterable[Any], lr: Any = 1e-2, lr_decay: float = 0,
                 weight_decay: Any = 0, initial_accumulator_value: float = 0, eps: float = 1e-10,
                 *, maximize: bool = False, **switches: Any) -> None:
        compatible("Adagrad", switches)
        need("Adagrad", lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps,
             initial_accumulator_value=initial_accumulator_value)
        super().__init__(params, {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"sum": gf.full_like(p, group["initial_accumulator_value"])}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = _decayed(p, grad, h)
        rate = h.derived("rate", lambda: h["lr"] / (1 + (h.steps() - 1) * h["lr_decay"]))
        state["sum"].add_(grad.square())
        p.sub_(rate * grad / (state["sum"].sqrt() + h["eps"]))


class RMSprop(Optimizer):
    """v ← alpha·v + (1 - alpha)·g²;  p ← p - lr·g/(√v + eps), with momentum if asked for.

    Args:
        centered: subtract the squared mean of the gradient from v.
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-2, alpha: float = 0.99,
                 eps: float = 1e-8, weight_decay: Any = 0, momentum: Any = 0,
                 centered: bool = False, capturable: bool = False, foreach: bool | None = None,
                 maximize: bool = False, differentiable: bool = False) -> None:
        need("RMSprop", lr=lr, eps=eps, momentum=momentum, weight_decay=weight_decay, alpha=alpha)
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        state = {"square_avg": gf.zeros_like(p)}
        if group["momentum"] > 0:
            state["momentum_buffer"] = gf.zeros_like(p)
        if group["centered"]:
            state["grad_avg"] = gf.zeros_like(p)
        return state

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = _decayed(p, grad, h)
        square = state["square_avg"]
        square.mul_(h["alpha"]).add_((1 - h["alpha"]) * grad.square())
        if "grad_avg" in state:
            mean = blend_(state["grad_avg"], grad, 1 - h["alpha"])
            floor = (square - mean.square()).sqrt() + h["eps"]
        else:
            floor = square.sqrt() + h["eps"]
        update = grad / floor
        if "momentum_buffer" in state:
            update = state["momentum_buffer"].mul_(h["momentum"]).add_(update)
        p.sub_(h["lr"] * update)


class Adadelta(Optimizer):
    """Steps √(u + eps)/√(v + eps)·g, u and v decaying means of squared steps and gradients."""

    def __init__(self, params: Iterable[Any], lr: Any = 1.0, rho: float = 0.9, eps: float = 1e-6,
                 weight_decay: Any = 0, *, maximize: bool = False, **switches: Any) -> None:
        compatible("Adadelta", switches)
        need("Adadelta", lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay,
                                  "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"square_avg": gf.zeros_like(p), "acc_delta": gf.zeros_like(p)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        grad = _decayed(p, grad, h)
        rho, eps = h["rho"], h["eps"]
        square, moved = state["square_avg"], state["acc_delta"]
        square.mul_(rho).add_((1 - rho) * grad.square())
        delta = (moved + eps).sqrt() / (square + eps).sqrt() * grad
        moved.mul_(rho).add_((1 - rho) * delta.square())
        p.sub_(h["lr"] * delta)


class Adafactor(Optimizer):
    """Adam's second moment kept as one row and one column per matrix.

    Args:
        beta2_decay: the decay of the moments is 1 - t^beta2_decay.
        eps: floors of the squared gradient (None: the dtype's epsilon²) and of the scale of p.
        d: updates with a root mean square above d are scaled down.
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-2, beta2_decay: float = -0.8,
                 eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0,
                 weight_decay: Any = 0.0, *, maximize: bool = False, **switches: Any) -> None:
        compatible("Adafactor", switches)
        need("Adafactor", lr=lr, weight_decay=weight_decay)
        if d < 1.0 or beta2_decay > 0.0:
            raise ValueError(f"Adafactor: d={d} should be >= 1 and beta2_decay={beta2_decay} <= 0.")
        super().__init__(params, {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d,
                                  "weight_decay": weight_decay, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        if p.dim() < 2:
            return {"variance": gf.zeros_like(p)}
        return {"row_var": gf.zeros_like(p[..., :1]), "col_var": gf.zeros_like(p[..., :1, :])}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        group = h.group
        eps1 = group["eps"][0] if group["eps"][0] is not None else gf.finfo(p.dtype).eps
        eps2, d = group["eps"][1], group["d"]
        share = h.derived("share", lambda: h.steps() ** h["beta2_decay"])
        rho = h.derived("rho", lambda: (1 / h.steps().sqrt()).clamp(max=h["lr"]))
        count = float(p.numel()) ** 0.5
        size = rho * (p.norm(2) / count).clamp(min=eps2)
        if h.active("weight_decay"):
            p.mul_(1 - h["lr"] * h["weight_decay"])
        if "row_var" in state:
            rows, cols = state["row_var"], state["col_var"]
            blend_(rows, grad.square().mean(-1, keepdim=True), share)
            blend_(cols, grad.square().mean(-2, keepdim=True), share)
            variance = rows.matmul(cols) / rows.mean(-2, keepdim=True).clamp(min=eps1)
        else:
            variance = blend_(state["variance"], grad.square(), share)
        update = variance.clamp(min=eps1 * eps1).rsqrt() * grad
        scale = (update.norm(2) / (count * d)).clamp(min=1.0)
        p.sub_(size / scale * update)


class Rprop(Optimizer):
    """Step sizes per element: they grow while the gradient keeps its sign, else they shrink."""

    def __init__(self, params: Iterable[Any], lr: Any = 1e-2, etas: Any = (0.5, 1.2),
                 step_sizes: Any = (1e-6, 50), *, maximize: bool = False, **switches: Any) -> None:
        compatible("Rprop", switches)
        need("Rprop", lr=lr)
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Rprop: invalid etas {etas}; they must be below and above 1.")
        super().__init__(params, {"lr": lr, "etas": etas, "step_sizes": step_sizes,
                                  "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"prev": gf.zeros_like(p), "step_size": gf.full_like(p, float(group["lr"]))}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        turn = grad * state["prev"]
        size = state["step_size"]
        one = gf.ones_like(size)
        factor = gf.where(turn > 0, one * h["etas", 1], gf.where(turn < 0, one * h["etas", 0], one))
        low, high = h.group["step_sizes"]
        size.copy_((size * factor).clamp(low, high))
        grad = gf.where(turn < 0, gf.zeros_like(grad), grad)  # no step where it turned
        p.sub_(grad.sign() * size)
        state["prev"].copy_(grad)
