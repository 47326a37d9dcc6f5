"""Checks of hyper-parameters that all optimizers share. Layer 5."""

from __future__ import annotations

from typing import Any

from gossamer.tensor import Tensor

__all__ = ["check_betas", "compatible", "need"]

# Switches of PyTorch's optimizers that choose between implementations; ours has one.
_COMPATIBLE = {"foreach", "capturable", "differentiable", "fused"}


def compatible(name: str, switches: dict[str, Any]) -> None:
    """Accept PyTorch's implementation switches and no other keyword."""
    unknown = sorted(set(switches) - _COMPATIBLE)
    if unknown:
        raise TypeError(f"{name}: got an unexpected keyword argument {unknown[0]!r}.")


def need(optimizer: str, **values: Any) -> None:
    """Each value must be a number ≥ 0 (a tensor is not looked at).

    Raises:
        ValueError: a negative number.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor) and not value >= 0.0:
            raise ValueError(f"{optimizer}: invalid {name}={value}; it must be 0 or more.")


def check_betas(optimizer: str, betas: Any) -> None:
    """Both betas must be in [0, 1)."""
    for i, beta in enumerate(betas):
        if not isinstance(beta, Tensor) and not 0.0 <= beta < 1.0:
            raise ValueError(f"{optimizer}: invalid beta parameter at index {i}: {beta}; it must "
                             "be in [0, 1).")
