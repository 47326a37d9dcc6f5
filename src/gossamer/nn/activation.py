"""Activation layers. Layer 5."""

from __future__ import annotations

from typing import Any

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
from gossamer.nn import functional as F
from gossamer.nn.init import constant_
from gossamer.nn.module import Module
from gossamer.nn.stateless import REQUIRED, Stateless
from gossamer.tensor import Parameter, Tensor

__all__ = [
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU",
    "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU",
    "Sigmoid", "Softmax", "Softmax2d", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "Threshold",
]


class ReLU(Stateless):
    """max(x, 0)."""

    _function, _arguments = "relu", {"inplace": False}


class ReLU6(Stateless):
    """min(max(x, 0), 6)."""

    _function, _arguments = "relu6", {"inplace": False}


class Threshold(Stateless):
    """x where x > threshold, else value."""

    _function = "threshold"
    _arguments = {"threshold": REQUIRED, "value": REQUIRED, "inplace": False}


class Hardtanh(Stateless):
    """x limited to [min_val, max_val]."""

    _function, _arguments = "hardtanh", {"min_val": -1.0, "max_val": 1.0, "inplace": False}


class ELU(Stateless):
    """x where x > 0, else alpha·(eˣ - 1)."""

    _function, _arguments = "elu", {"alpha": 1.0, "inplace": False}


class CELU(Stateless):
    """max(0, x) + min(0, alpha·(e^(x/alpha) - 1))."""

    _function, _arguments = "celu", {"alpha": 1.0, "inplace": False}


class SELU(Stateless):
    """ELU with the constants that keep mean 0 and variance 1 (Klambauer et al. 2017)."""

    _function, _arguments = "selu", {"inplace": False}


class LeakyReLU(Stateless):
    """x where x > 0, else negative_slope·x."""

    _function, _arguments = "leaky_relu", {"negative_slope": 0.01, "inplace": False}


class RReLU(Stateless):
    """Leaky ReLU with a random slope while training."""

    _function = "rrelu"
    _arguments = {"lower": 1.0 / 8, "upper": 1.0 / 3, "inplace": False}

    def forward(self, input: Tensor) -> Tensor:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class PReLU(Module):
    """x where x > 0, else weight·x, the weight being learned (one, or one per channel)."""

    weight: Parameter

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(gf.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every weight is `init`."""
        constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class GELU(Stateless):
    """x·Φ(x)."""

    _function, _arguments = "gelu", {"approximate": "none"}


class SiLU(Stateless):
    """x·σ(x)."""

    _function, _arguments = "silu", {"inplace": False}


class Mish(Stateless):
    """x·tanh(softplus(x))."""

    _function, _arguments = "mish", {"inplace": False}


class Hardswish(Stateless):
    """x·relu6(x + 3) / 6."""

    _function, _arguments = "hardswish", {"inplace": False}


class Hardsigmoid(Stateless):
    """relu6(x + 3) / 6."""

    _function, _arguments = "hardsigmoid", {"inplace": False}


class Sigmoid(Stateless):
    """1 / (1 + e^-x)."""

    _function = "sigmoid"


class Tanh(Stateless):
    """Hyperbolic tangent."""

    _function = "tanh"


class LogSigmoid(Stateless):
    """log σ(x)."""

    _function = "logsigmoid"


class Softplus(Stateless):
    """log(1 + e^(beta·x)) / beta."""

    _function, _arguments = "softplus", {"beta": 1.0, "threshold": 20.0}


class _Shrink(Stateless):
    def extra_repr(self) -> str:
        return str(self.lambd)


class Hardshrink(_Shrink):
    """x where |x| > lambd, else 0."""

    _function, _arguments = "hardshrink", {"lambd": 0.5}


class Softshrink(_Shrink):
    """x moved by lambd towards 0."""

    _function, _arguments = "softshrink", {"lambd": 0.5}


class Tanhshrink(Stateless):
    """x - tanh x."""

    _function = "tanhshrink"


class Softsign(Stateless):
    """x / (1 + |x|)."""

    _function = "softsign"


class GLU(Stateless):
    """a·σ(b), a and b the two halves along `dim`."""

    _function, _arguments = "glu", {"dim": -1}


class Softmax(Stateless):
    """e^x / Σ e^x along `dim`."""

    _function, _arguments = "softmax", {"dim": None}


class LogSoftmax(Stateless):
    """x - log Σ e^x along `dim`."""

    _function, _arguments = "log_softmax", {"dim": None}


class Softmin(Stateless):
    """softmax(-x) along `dim`."""

    _function, _arguments = "softmin", {"dim": None}


class Softmax2d(Module):
    """Softmax over the channels of (N, C, H, W) or (C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ShapeError(f"Softmax2d: expected input to be 3D or 4D, got shape "
                             f"{tuple(input.shape)}.")
        return F.softmax(input, -3)
