"""`gossamer.func`: the function transforms by PyTorch's names. Layer 4."""

from __future__ import annotations

from gossamer.transforms import (
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    value_and_grad,
    vjp,
    vmap,
)

__all__ = ["grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "value_and_grad", "vjp",
           "vmap"]
