"""Muon: momentum, orthogonalised. Layer 5.

The update of a matrix is the nearest semi-orthogonal matrix to its momentum, found in five steps.
Matrices of equal shape are stacked, so that a step is a few large kernels. The parts, in order:
Nesterov momentum (Jordan 2024), row equilibration (MuonEq, arXiv 2603.28254), Polar Express (Amsel
et al. 2025, arXiv 2505.16932), renormalisation (Muon+, arXiv 2602.21545), a factored second moment
(NorMuon, arXiv 2510.05491), cautious weight decay (arXiv 2411.16085).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import as_dtype, float32
from gossamer.core.errors import ShapeError
from gossamer.optim.adam import adam_update, zero_moments
from gossamer.optim.base import Group, Hyper, Optimizer, State
from gossamer.optim.checks import check_betas, need
from gossamer.realize import settle
from gossamer.tensor import Tensor, no_grad
from gossamer.tracing import outside

__all__ = ["POLAR_EXPRESS", "Muon", "MuonAdamW", "orthogonalize"]

# Quintic steps a·X + (b·A + c·A²)·X with A = X·Xᵀ, optimal for five steps from singular values in
# [1e-3, 1] with a safety factor of 2 %: arXiv 2505.16932, algorithm 1 and its published table.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_TINY = 1e-6  # floor of norms that divide
_TINY_SQUARE = 1e-10  # floor of second moments that divide


def _frobenius(x: Tensor) -> Tensor:
    """Norm of each matrix of a stack: (..., m, n) to (..., 1, 1)."""
    return x.square().sum((-2, -1), keepdim=True).sqrt()


def orthogonalize(g: Tensor, steps: int = 5, dtype: Any = None) -> Tensor:
    """The semi-orthogonal factor of each matrix of a stack, by Polar Express.

    Args:
        g: (..., m, n).
        steps: how many of the five quintic steps.
        dtype: of the products, also by name (bfloat16 is enough where the machine is fast at it).

    Returns:
        (..., m, n) with singular values near 1, in g's dtype.

    Cost: `steps` · (4·k²·l + 2·k³) FLOPs a matrix, k and l its smaller and larger extent.
    """
    if not 0 <= steps <= len(POLAR_EXPRESS):
        raise ValueError(f"orthogonalize: steps={steps}; there are {len(POLAR_EXPRESS)} steps.")
    x = g / (_frobenius(g) * 1.01 + _TINY)  # 1 %: singular values stay below 1 after rounding
    x = x if dtype is None else x.to(as_dtype(dtype))
    tall = g.shape[-2] > g.shape[-1]
    for a, b, c in POLAR_EXPRESS[:steps]:
        square = x.mT.matmul(x) if tall else x.matmul(x.mT)
        poly = b * square + c * square.matmul(square)
        x = a * x + (x.matmul(poly) if tall else poly.matmul(x))
    return x.to(g.dtype)


def _equilibrated(g: Tensor) -> Tensor:
    """Every row scaled to the mean row norm."""
    row = g.square().sum(-1, keepdim=True).sqrt().clamp(min=_TINY)
    return g * (_frobenius(g) / g.shape[-2] ** 0.5 / row)


def _factored_dim(x: Tensor) -> int:
    """The dimension over which the second moment is averaged: the shorter one."""
    return -1 if x.shape[-2] >= x.shape[-1] else -2


def _renormalized(x: Tensor) -> Tensor:
    """Scaled to the Frobenius norm of an exactly semi-orthogonal matrix, √min(m, n)."""
    target = min(x.shape[-2], x.shape[-1]) ** 0.5
    return x * (target / _frobenius(x).clamp(min=_TINY))


def _variance_reduced(x: Tensor, second: Tensor, beta2: Any) -> Tensor:
    """Divided by the root of a running mean square per row (or column), the norm kept.

    `second` (..., m, 1), or (..., 1, n) where m < n, is updated in place.
    """
    dim = _factored_dim(x)
    extent = x.shape[dim]
    mean = x.square().mean(dim, keepdim=True)
    norm = (mean.sum((-2, -1), keepdim=True) * extent).sqrt()
    second.add_((mean - second) * (1 - beta2))
    scale = second.clamp(min=_TINY_SQUARE).rsqrt()
    scaled = (mean * extent * scale.square()).sum((-2, -1), keepdim=True).sqrt()
    return x * (scale * (norm / scaled.clamp(min=_TINY_SQUARE)))


def _update_stack(params: Tensor, grads: Tensor, state: State, h: Hyper) -> Tensor:
    """One Muon step of a stack (K, ..., m, n); returns the new parameters, updates the state."""
    momentum = h["momentum"]
    buffer = state["momentum_buffer"]
    buffer.add_((grads - buffer) * (1 - momentum))
    g = grads + (buffer - grads) * momentum if h.group["nesterov"] else buffer
    x = orthogonalize(_equilibrated(g), h.group["ns_steps"], h.group["ns_dtype"])
    x = _variance_reduced(_renormalized(x), state["second_momentum_buffer"], h["beta2"])
    rows, cols = params.shape[-2], params.shape[-1]
    lr = h["lr"] * max(1.0, rows / cols) ** 0.5
    agree = (x * params >= 0).to(params.dtype)  # decay only what the update shrinks too
    return params - (lr * x + lr * h["weight_decay"] * params * agree)


def _work_dtype(p: Tensor) -> Any:
    """float32 for half-precision parameters, else their own."""
    return float32 if p.dtype.itemsize < 4 else p.dtype


def _by_shape(params: list[Tensor]) -> list[list[Tensor]]:
    stacks: dict[Any, list[Tensor]] = {}
    for p in params:
        stacks.setdefault((tuple(p.shape), str(p.dtype)), []).append(p)
    return list(stacks.values())


def _check_matrices(params: list[Tensor]) -> None:
    for p in params:
        if p.dim() < 2:
            raise ShapeError(f"Muon: a parameter has shape {tuple(p.shape)}; it takes matrices (or "
                             "stacks of matrices). Give vectors and scalars to AdamW, for example "
                             "in a MuonAdamW group of kind 'adamw'.")


_MUON: Group = {"kind": "muon", "lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.0,
                "nesterov": True, "ns_steps": 5, "ns_dtype": None, "maximize": False}
_ADAMW: Group = {"kind": "adamw", "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-10,
                 "weight_decay": 0.0, "amsgrad": False, "decoupled_weight_decay": True,
                 "maximize": False}


class MuonAdamW(Optimizer):
    """Muon for groups of kind "muon", AdamW for groups of kind "adamw".

    Args:
        param_groups: dicts with "params", "kind" and, as needed, "lr", "weight_decay"; muon:
            "momentum", "beta2", "nesterov", "ns_steps", "ns_dtype"; adamw: "betas", "eps".

    The learning rate of a matrix is lr·√max(1, rows/columns). Hidden matrices belong to Muon;
    embeddings, heads, vectors and scalars to AdamW. State of a stack is with its first parameter.

    Example:
        >>> optimizer = MuonAdamW([
        ...     {"kind": "muon", "params": matrices, "lr": 0.02, "weight_decay": 0.1},
        ...     {"kind": "adamw", "params": others, "lr": 3e-3, "betas": (0.8, 0.95)}])
    """

    def __init__(self, param_groups: Iterable[Any]) -> None:
        super().__init__(param_groups, {})

    def add_param_group(self, param_group: Group) -> None:
        kind = param_group.get("kind") if isinstance(param_group, dict) else None
        if kind not in ("muon", "adamw"):
            raise ValueError(f"MuonAdamW: a parameter group has kind={kind!r}; each group must be "
                             "a dict with kind 'muon' or 'adamw'.")
        defaults = _MUON if kind == "muon" else _ADAMW
        super().add_param_group({**defaults, **param_group})
        group = self.param_groups[-1]
        need("MuonAdamW", lr=group["lr"], weight_decay=group["weight_decay"])
        if kind == "adamw":
            check_betas("MuonAdamW", group["betas"])
        else:
            try:
                _check_matrices(group["params"])
            except ShapeError:
                self.param_groups.pop()
                raise

    def init_one(self, p: Tensor, group: Group) -> State:
        return zero_moments(p)

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        adam_update(p, grad, state, h)

    def apply_group(self, group: Group) -> list[Tensor]:
        if group["kind"] == "adamw":
            return super().apply_group(group)
        h = Hyper(group)
        touched: list[Tensor] = []
        for params in _by_shape([p for p in group["params"] if p.grad is not None]):
            state = self._stack_state(params, h)
            grads = gf.stack([p.grad for p in params])
            if group["maximize"]:
                grads = -grads
            dtype = _work_dtype(params[0])
            old = gf.stack(list(params)).to(dtype)
            new = _update_stack(old, grads.to(dtype), state, h)
            for p, value in zip(params, new.unbind(0), strict=True):
                p.copy_(value)
            touched += [*params, *state.values()]
        return touched

    def _stack_state(self, params: list[Tensor], h: Hyper) -> State:
        """Buffers of a stack, kept under its first parameter."""
        first = params[0]
        state = self.state.get(first)
        shape = (len(params), *first.shape)
        if state and tuple(state["momentum_buffer"].shape) == shape:
            return state
        if state:
            raise ShapeError(f"Muon: the buffers of a stack have shape "
                             f"{tuple(state['momentum_buffer'].shape)}, the parameters with "
                             f"gradients {shape}; the same matrices must have gradients in "
                             "every step.")
        factored = list(shape)
        factored[_factored_dim(first)] = 1
        with outside(), no_grad():
            made = {"momentum_buffer": gf.zeros(shape, dtype=_work_dtype(first)),
                    "second_momentum_buffer": gf.zeros(factored, dtype=_work_dtype(first))}
            settle([v._read() for v in made.values()])
        self.state[first] = made
        return made


class Muon(MuonAdamW):
    """Muon for matrices alone.

    Args:
        params: matrices (..., m, n), or groups of them.
        lr, momentum, weight_decay: runtime scalars; the rate is scaled by √max(1, m/n).
        beta2: decay of the factored second moment.
        nesterov: look ahead along the momentum.
        ns_steps: quintic steps of the orthogonalisation, at most 5.
        ns_dtype: dtype of its products; a name ("bfloat16") can be saved as JSON.

    Differs from `torch.optim.Muon`, which has none of the parts after orthogonalisation.
    """

    def __init__(self, params: Iterable[Any], lr: Any = 0.02, momentum: Any = 0.95,
                 weight_decay: Any = 0.0, beta2: float = 0.9, nesterov: bool = True,
                 ns_steps: int = 5, ns_dtype: Any = None) -> None:
        groups: list[Any] = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        given = {"kind": "muon", "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                 "beta2": beta2, "nesterov": nesterov, "ns_steps": ns_steps, "ns_dtype": ns_dtype}
        super().__init__([{**given, **group} for group in groups])
