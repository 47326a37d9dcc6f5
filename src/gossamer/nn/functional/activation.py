"""Activations with torch.nn.functional's names and arguments. Layer 5.

The formulas are records of the operator table; here they get `inplace`, `dtype` and the implicit
`dim` of PyTorch's signatures. `glu`, `prelu`, `rrelu`, `gumbel_softmax` are written in tensors.
"""

from __future__ import annotations

import warnings
from typing import Any

import gossamer.functional as gf
from gossamer.casting import lower_precision
from gossamer.core.errors import ShapeError
from gossamer.nn.functional.common import replace, shape_of
from gossamer.tensor import Tensor

__all__ = [
    "celu", "celu_", "elu", "elu_", "gelu", "glu", "gumbel_softmax", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "log_softmax", "logsigmoid",
    "mish", "prelu", "relu", "relu6", "relu_", "rrelu", "rrelu_", "selu", "selu_", "sigmoid",
    "silu", "softmax", "softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink",
    "threshold", "threshold_",
]


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return replace(input, gf.relu(input), inplace)


def relu_(input: Tensor) -> Tensor:
    """`relu` in place."""
    return relu(input, inplace=True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)."""
    return replace(input, gf.relu6(input), inplace)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value."""
    return replace(input, gf.threshold(input, threshold, value), inplace)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """`threshold` in place."""
    return input.copy_(gf.threshold(input, threshold, value))


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0,
             inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val].

    Raises:
        ValueError: min_val > max_val.
    """
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val={min_val} is greater than max_val={max_val}. Swap "
                         "them.")
    return replace(input, gf.hardtanh(input, min_val, max_val), inplace)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`hardtanh` in place."""
    return hardtanh(input, min_val, max_val, inplace=True)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha·(eˣ - 1)."""
    return replace(input, gf.elu(input, alpha), inplace)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`elu` in place."""
    return elu(input, alpha, inplace=True)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale·(x where x > 0, else α·(eˣ - 1)), with the constants of Klambauer et al. 2017."""
    return replace(input, gf.selu(input), inplace)


def selu_(input: Tensor) -> Tensor:
    """`selu` in place."""
    return selu(input, inplace=True)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, x) + min(0, alpha·(e^(x/alpha) - 1))."""
    return replace(input, gf.celu(input, alpha), inplace)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`celu` in place."""
    return celu(input, alpha, inplace=True)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope·x."""
    return replace(input, gf.leaky_relu(input, negative_slope), inplace)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """`leaky_relu` in place."""
    return leaky_relu(input, negative_slope, inplace=True)


@lower_precision
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight·x, one weight for all or one per channel (dimension 1).

    Raises:
        ShapeError: neither one weight nor as many as channels.
    """
    if weight.numel() != 1:
        channels = input.shape[1] if input.dim() >= 2 else 1
        if weight.dim() > 1 or weight.numel() != channels:
            raise ShapeError(f"prelu: input {shape_of(input)}, weight {shape_of(weight)}; the "
                             f"weight must have 1 element or one for each of the {channels} "
                             "channels.")
        weight = weight.reshape([-1 if d == 1 else 1 for d in range(input.dim())])
    elif weight.dim() > 0:
        weight = weight.reshape([1] * input.dim())
    return gf.where(input > 0, input, weight * input)


def rrelu(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False,
          inplace: bool = False) -> Tensor:
    """Leaky ReLU whose slope is drawn from U(lower, upper) per element while training."""
    if lower > upper:
        raise ValueError(f"rrelu: lower={lower} is greater than upper={upper}. Swap them.")
    if training:
        slope: Any = gf.rand_like(input) * (upper - lower) + lower
    else:
        slope = (lower + upper) / 2
    return replace(input, gf.where(input > 0, input, input * slope), inplace)


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3,
           training: bool = False) -> Tensor:
    """`rrelu` in place."""
    return rrelu(input, lower, upper, training, inplace=True)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a·σ(b), a and b the two halves of x along `dim`.

    Raises:
        ShapeError: the extent along `dim` is odd, or x has no dimension.
    """
    if input.dim() == 0 or input.shape[dim] % 2:
        raise ShapeError(f"glu (dim={dim}): the input has shape {shape_of(input)}; dimension {dim} "
                         "is cut in two halves, so its extent must be even.")
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def logsigmoid(input: Tensor) -> Tensor:
    """log σ(x)."""
    return gf.logsigmoid(input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, else 0."""
    return gf.hardshrink(input, lambd)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved by lambd towards 0, and 0 where |x| ≤ lambd.

    Raises:
        ValueError: lambd is negative.
    """
    if lambd < 0:
        raise ValueError(f"softshrink: lambda must be greater or equal to 0, but found to be "
                         f"{lambd}.")
    return gf.softshrink(input, lambd)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh x."""
    return gf.tanhshrink(input)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return gf.softsign(input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta·x)) / beta; x itself where beta·x > threshold."""
    return gf.softplus(input, beta, threshold)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x·σ(x)."""
    return replace(input, gf.silu(input), inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x·tanh(softplus(x))."""
    return replace(input, gf.mish(input), inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x·relu6(x + 3) / 6."""
    return replace(input, gf.hardswish(input), inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return replace(input, gf.hardsigmoid(input), inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x·Φ(x), exactly ('none') or by the tanh formula ('tanh')."""
    return gf.gelu(input, approximate=approximate)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return input.sigmoid()


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return input.tanh()


def _implicit_dim(name: str, input: Tensor, dim: int | None) -> int:
    if dim is not None:
        return dim
    warnings.warn(f"Implicit dimension choice for {name} has been deprecated. Change the call to "
                  "include dim=X as an argument.", stacklevel=3)
    return 0 if input.dim() in (0, 1, 3) else 1


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3,
            dtype: Any = None) -> Tensor:
    """e^x / Σ e^x along `dim`; `dtype` casts the input first."""
    dim = _implicit_dim("softmax", input, dim)
    return gf.softmax(input if dtype is None else input.to(dtype), dim)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3,
            dtype: Any = None) -> Tensor:
    """softmax(-x)."""
    dim = _implicit_dim("softmin", input, dim)
    return gf.softmax(-(input if dtype is None else input.to(dtype)), dim)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3,
                dtype: Any = None) -> Tensor:
    """x - log Σ e^x along `dim`; `dtype` casts the input first."""
    dim = _implicit_dim("log_softmax", input, dim)
    return gf.log_softmax(input if dtype is None else input.to(dtype), dim)


def gumbel_softmax(logits: Tensor, tau: float = 1.0, hard: bool = False, eps: float = 1e-10,
                   dim: int = -1) -> Tensor:
    """A draw from the Gumbel-softmax distribution (Jang et al. 2016), relaxed or one-hot.

    softmax((logits + g) / tau), g = -log E with E ~ Exp(1). `hard`: the one-hot vector of the
    largest entry forward, the derivative of the relaxed one backward.
    """
    gumbels = -gf.empty_like(logits).exponential_().log()
    soft = gf.softmax((logits + gumbels) / tau, dim)
    if not hard:
        return soft
    index = soft.argmax(dim, keepdim=True)
    one_hot = gf.zeros_like(logits).scatter(dim, index, 1.0)
    return one_hot - soft.detach() + soft
