"""Step sizes for whole tensors: LAMB and NovoGrad. Layer 5.

Both are for large batches. LAMB takes Adam's direction and makes the step of each parameter as long
as a fixed share of that parameter; NovoGrad divides each gradient by a running mean of its own
norm, one number a tensor in place of one an element. The options are those of Apex's FusedLAMB
and FusedNovoGrad; the fusing is the compiler's.

Sources: You et al. 2020 (arXiv 1904.00962, algorithm 2), Ginsburg et al. 2019 (arXiv 1905.11286,
algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32, float64
from gossamer.optim.adam import zero_moments
from gossamer.optim.base import Group, Hyper, Optimizer, State
from gossamer.optim.checks import check_betas, compatible, need
from gossamer.tensor import Tensor

__all__ = ["LAMB", "NovoGrad"]


def _with_decay(x: Tensor, p: Tensor, h: Hyper) -> Tensor:
    """x + weight_decay·p."""
    return x + h["weight_decay"] * p if h.active("weight_decay") else x


def _moment(grad: Tensor, state: State, h: Hyper) -> Tensor:
    """m ← β1·m + (1 - β1)·g, without the factor of g unless `grad_averaging`."""
    share = 1 - h["betas", 0] if h.group["grad_averaging"] else 1.0
    mean: Tensor = state["exp_avg"]
    return mean.mul_(h["betas", 0]).add_(share * grad)


class LAMB(Optimizer):
    """Adam's direction, its length taken from the parameter (Apex's FusedLAMB).

    g ← g · min(1, max_grad_norm / ‖all gradients‖);  m, v as in Adam;
    r = m̂ / (√v̂ + eps) + weight_decay·p;  p ← p - lr · ‖p‖/‖r‖ · r.

    The ratio ‖p‖/‖r‖ is 1 where a norm is 0, and in groups without weight decay (biases and norms)
    unless `use_nvlamb`.

    Args:
        params: parameters or groups; each tensor is a layer.
        lr, betas, eps: step size relative to ‖p‖, decay of m and v, floor of the denominator.
        weight_decay: joins the direction r (`adam_w_mode`), or else the gradient.
        bias_correction: m̂ = m/(1 - β1ᵗ), v̂ = v/(1 - β2ᵗ); else m and v themselves.
        adam_w_mode: see weight_decay.
        grad_averaging: m takes (1 - β1)·g; else all of g.
        max_grad_norm: limit of the norm over the gradients of all groups; 0 is no limit.
        use_nvlamb: use the ratio also without weight decay.
        maximize: go up instead of down.

    Cost: beyond Adam's, two norms a parameter and one pass over all gradients.

    Example:
        >>> import gossamer as gs
        >>> p = gs.nn.Parameter(gs.tensor([3.0, 4.0]))
        >>> optimizer = LAMB([p], lr=0.1)
        >>> p.square().sum().backward()
        >>> optimizer.step()  # a step of length 0.1 · 5
        >>> round(float((p.detach() - gs.tensor([3.0, 4.0])).norm()), 4)
        0.5
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-6, weight_decay: Any = 0.01, *, bias_correction: bool = True,
                 adam_w_mode: bool = True, grad_averaging: bool = True, max_grad_norm: Any = 1.0,
                 use_nvlamb: bool = False, maximize: bool = False, **switches: Any) -> None:
        compatible("LAMB", switches)
        need("LAMB", lr=lr, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
        check_betas("LAMB", betas)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "bias_correction": bias_correction, "adam_w_mode": adam_w_mode,
            "grad_averaging": grad_averaging, "max_grad_norm": max_grad_norm,
            "use_nvlamb": use_nvlamb, "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return zero_moments(p)

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        if h.active("max_grad_norm"):
            grad = grad * h.derived("clip", lambda: self._clip(h))
        if not h.group["adam_w_mode"]:
            grad = _with_decay(grad, p, h)
        mean, square = _moment(grad, state, h), state["exp_avg_sq"]
        root = square.mul_(h["betas", 1]).add_((1 - h["betas", 1]) * grad.square()).sqrt()
        if h.group["bias_correction"]:
            mean = mean / h.correction(0)
            root = root / h.derived("root", lambda: h.correction(1).sqrt())
        update = mean / (root + h["eps"])
        if h.group["adam_w_mode"]:
            update = _with_decay(update, p, h)
        p.sub_(h["lr"] * self._ratio(p, update, h) * update)

    def _clip(self, h: Hyper) -> Tensor:
        """The factor that brings the norm over all gradients down to `max_grad_norm`."""
        grads = [p.grad for group in self.param_groups for p in group["params"]
                 if p.grad is not None]
        total: Any = 0.0
        for grad in grads:
            wide = grad if grad.dtype.itemsize >= 4 else grad.to(float32)
            total = total + wide.square().sum()
        limit = h["max_grad_norm"]
        factor = (limit / total.sqrt()).clamp(max=1.0)
        # A traced step reads the limit anew at each run, where it may have become 0.
        return factor if not isinstance(limit, Tensor) else gf.where(
            limit > 0, factor, gf.ones_like(factor))

    @staticmethod
    def _ratio(p: Tensor, update: Tensor, h: Hyper) -> Any:
        """‖p‖/‖update‖ where it is defined and wanted, else 1."""
        always = h.group["use_nvlamb"]
        if not always and not h.active("weight_decay"):
            return 1.0
        size, length = p.norm(2), update.norm(2)
        wanted = (size > 0) & (length > 0)
        decay = h["weight_decay"]
        if not always and isinstance(decay, Tensor):  # read anew at each run: it may be 0
            wanted = wanted & (decay != 0)
        return gf.where(wanted, size / length, gf.ones_like(size))


class NovoGrad(Optimizer):
    """Gradients divided by a running mean of their norm, tensor by tensor (Apex's FusedNovoGrad).

    n ← √(β2·n² + (1 - β2)·‖g‖²), at the first step ‖g‖;  m ← β1·m + (1 - β1)·g;
    p ← p - lr · (m̂ / (n̂ + eps) + weight_decay·p).

    With `reg_inside_moment` the moment averages g / (n̂ + eps) + weight_decay·p and is itself
    the direction. The paper's algorithm is reg_inside_moment=True, grad_averaging=False,
    bias_correction=False; its betas are (0.95, 0.98).

    Args:
        params: parameters or groups; each tensor is a layer.
        lr, betas, eps: step size, decay of m and n, floor of the denominator.
        weight_decay: see above.
        grad_averaging: m takes (1 - β1) of what is new; else all of it.
        norm_type: 2, or 0 or infinity for the largest |g|, of which n is the plain running mean.
        init_zero: n starts at 0 and not at the first norm.
        reg_inside_moment: see above.
        bias_correction: m̂ = m/(1 - β1ᵗ), n̂ = n/√(1 - β2ᵗ); else m and n themselves.
        maximize: go up instead of down.

    Cost: the state is one tensor like p and one number; a norm a parameter.

    Example:
        >>> import gossamer as gs
        >>> p = gs.nn.Parameter(gs.tensor([3.0, 4.0]))
        >>> optimizer = NovoGrad([p], lr=0.5, bias_correction=False, grad_averaging=False)
        >>> p.square().sum().backward()
        >>> optimizer.step()  # the gradient, (6, 8), has norm 10
        >>> [round(v, 4) for v in p.tolist()]
        [2.7, 3.6]
    """

    def __init__(self, params: Iterable[Any], lr: Any = 1e-3, betas: Any = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: Any = 0.0, *, grad_averaging: bool = True,
                 norm_type: float = 2, init_zero: bool = False, reg_inside_moment: bool = False,
                 bias_correction: bool = True, maximize: bool = False, **switches: Any) -> None:
        compatible("NovoGrad", switches)
        need("NovoGrad", lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas("NovoGrad", betas)
        if norm_type not in (0, 2, math.inf):
            raise ValueError(f"NovoGrad: invalid norm_type={norm_type}; it must be 2, or 0 or "
                             "infinity for the largest entry. Pass norm_type=2.")
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "grad_averaging": grad_averaging, "norm_type": norm_type, "init_zero": init_zero,
            "reg_inside_moment": reg_inside_moment, "bias_correction": bias_correction,
            "maximize": maximize})

    def init_one(self, p: Tensor, group: Group) -> State:
        return {"exp_avg": gf.zeros_like(p), "grad_norm": gf.zeros((), dtype=p.dtype)}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        floor = self._running_norm(grad, state, h)
        if h.group["bias_correction"]:
            floor = floor / h.derived("root", lambda: h.correction(1).sqrt())
        floor = floor + h["eps"]
        if h.group["reg_inside_moment"]:
            update = self._corrected(_moment(_with_decay(grad / floor, p, h), state, h), h)
        else:
            update = self._corrected(_moment(grad, state, h), h) / floor
            update = _with_decay(update, p, h)
        p.sub_(h["lr"] * update)

    @staticmethod
    def _corrected(mean: Tensor, h: Hyper) -> Tensor:
        return mean / h.correction(0) if h.group["bias_correction"] else mean

    @staticmethod
    def _running_norm(grad: Tensor, state: State, h: Hyper) -> Tensor:
        """n after this step; a first step without `init_zero` keeps nothing of the 0 before."""
        def keep() -> Any:
            beta2 = h["betas", 1]
            return beta2 if h.group["init_zero"] else beta2 * (h.steps() > 1).to(float64)

        share, norm = h.derived("keep", keep), state["grad_norm"]
        if h.group["norm_type"] == 2:
            mean = share * norm.square() + (1 - share) * grad.square().sum()
            return norm.copy_(mean.sqrt())
        return norm.copy_(share * norm + (1 - share) * grad.abs().amax())
