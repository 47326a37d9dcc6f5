"""Affine layers. Layer 5.

Initialisation is PyTorch's: U(-1/√in, 1/√in) for weight and bias (the weight's is written as
kaiming_uniform with a = √5, which is the same).
"""

from __future__ import annotations

import math
from typing import Any

import gossamer.functional as gf
from gossamer.nn import functional as F, init
from gossamer.nn.module import Module
from gossamer.tensor import Parameter, Tensor

__all__ = ["Bilinear", "Identity", "Linear"]


class Identity(Module):
    """y = x; takes and ignores any constructor arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class Linear(Module):
    """y = x·Wᵀ + b.

    Args:
        in_features, out_features: extents of the last dimension before and after.
        bias: whether there is a b.

    Shape: (..., in_features) to (..., out_features); weight (out_features, in_features).

    Example:
        >>> Linear(3, 2)(gs.ones(5, 3)).shape
        gossamer.Size([5, 2])
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(gf.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(gf.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}")


class Bilinear(Module):
    """y[o] = x1ᵀ·W[o]·x2 + b[o]; weight (out, in1, in2)."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, in1_features: int, in2_features: int, out_features: int, bias: bool = True,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if in1_features <= 0:
            raise ValueError(f"Bilinear: in1_features must be > 0, but got {in1_features}.")
        self.in1_features, self.in2_features = in1_features, in2_features
        self.out_features = out_features
        self.weight = Parameter(gf.empty(out_features, in1_features, in2_features, device=device,
                                         dtype=dtype))
        if bias:
            self.bias = Parameter(gf.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew from U(-1/√in1, 1/√in1)."""
        bound = 1 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
                f"out_features={self.out_features}, bias={self.bias is not None}")
