"""Muon and AdamW for PyTorch: the steps of `gossamer.optim.MuonAdamW`, written for PyTorch.

The twin of the benchmark: matrices of equal shape are stacked, the update of a stack is one
function, which `torch.compile` compiles where that is the peer; the rest goes to PyTorch's own
fused AdamW. Parts and constants as in `gossamer/optim/muon.py`, where the papers are named; losses
after 20 steps hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MuonAdamW"]

_QUINTIC = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def _norm(x: Any) -> Any:
    return x.square().sum((-2, -1), keepdim=True).sqrt()


def _orthogonal(g: Any, dtype: Any) -> Any:
    x = g / (_norm(g) * 1.01 + 1e-6)
    x = x if dtype is None else x.to(dtype)
    tall = g.shape[-2] > g.shape[-1]
    for a, b, c in _QUINTIC:
        square = x.mT @ x if tall else x @ x.mT
        poly = b * square + c * (square @ square)
        x = a * x + (x @ poly if tall else poly @ x)
    return x.to(g.dtype)


def _update(params: Any, grads: Any, momentum: Any, second: Any, h: dict[str, Any]) -> Any:
    """New values of a stack (N, m, n); `momentum` and `second` are written in place."""
    momentum.lerp_(grads, 1 - h["momentum"])
    g = grads.lerp(momentum, h["momentum"])
    rows = g.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    x = _orthogonal(g * (_norm(g) / g.shape[-2] ** 0.5 / rows), h["ns_dtype"])
    x = x * (min(x.shape[-2:]) ** 0.5 / _norm(x).clamp(min=1e-6))
    dim = -1 if x.shape[-2] >= x.shape[-1] else -2
    extent = x.shape[dim]
    mean = x.square().mean(dim, keepdim=True)
    norm = (mean.sum((-2, -1), keepdim=True) * extent).sqrt()
    second.lerp_(mean, 1 - h["beta2"])
    scale = second.clamp(min=1e-10).rsqrt()
    scaled = (mean * extent * scale.square()).sum((-2, -1), keepdim=True).sqrt()
    x = x * (scale * (norm / scaled.clamp(min=1e-10)))
    lr = h["lr"] * max(1.0, params.shape[-2] / params.shape[-1]) ** 0.5
    agree = (x * params >= 0).to(params.dtype)
    return params - (lr * x + lr * h["weight_decay"] * params * agree)


class MuonAdamW:
    """Groups of kind "muon" (matrices) and "adamw", as Gossamer's class of that name takes them.

    Args:
        lib: the module `torch`.
        groups: dicts with "kind", "params", "lr" and the group's constants.
        compile: what makes the update of a stack fast; the identity for eager PyTorch.
    """

    def __init__(self, lib: Any, groups: list[dict[str, Any]], compile: Callable[..., Any]) -> None:
        self.lib = lib
        others = [{k: v for k, v in g.items() if k != "kind"} for g in groups
                  if g["kind"] == "adamw"]
        self.adamw = lib.optim.AdamW(others, eps=1e-10, fused=True)
        self.update = compile(_update)
        self.stacks: list[tuple[list[Any], Any, Any, dict[str, Any]]] = []
        for group in groups:
            if group["kind"] == "muon":
                self._stack(group)

    def _stack(self, group: dict[str, Any]) -> None:
        by_shape: dict[Any, list[Any]] = {}
        for p in group["params"]:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        for (m, n), params in by_shape.items():
            factored = (len(params), m, 1) if m >= n else (len(params), 1, n)
            constants = {k: v for k, v in group.items() if k not in ("params", "kind")}
            self.stacks.append((params, self.lib.zeros(len(params), m, n),
                                self.lib.zeros(factored), constants))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.adamw.zero_grad(set_to_none=set_to_none)
        for params, *_ in self.stacks:
            for p in params:
                p.grad = None

    def step(self) -> None:
        self.adamw.step()
        with self.lib.no_grad():
            for params, momentum, second, constants in self.stacks:
                grads = self.lib.stack([p.grad for p in params])
                new = self.update(self.lib.stack(params), grads, momentum, second, constants)
                self.lib._foreach_copy_(params, list(new.unbind(0)))
