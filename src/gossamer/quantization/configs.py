"""How weights are quantised: bits, groups, and whether activations are rounded too. Layer 5.

The one idea: a scheme is a value of three numbers; the names are torchao's, so that a reader knows
what each does. Measured errors are in docs/quantization.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.core.dtype import DType, bfloat16, float16, float32
from gossamer.ops.quantized import BLOCK

__all__ = ["Int4WeightOnlyConfig", "Int8DynamicActivationInt4WeightConfig",
           "Int8DynamicActivationInt8WeightConfig", "Int8WeightOnlyConfig", "QuantizationConfig"]


@dataclass(frozen=True)
class QuantizationConfig:
    """A scheme; use one of its subclasses, which name the common ones.

    Args:
        group_size: weights along a row that share a scale, a multiple of 32; None = the whole row.
        scale_dtype: float16, bfloat16 or float32.
    """

    group_size: int | None = None
    scale_dtype: DType = float16

    bits = 8
    dynamic = False

    def __post_init__(self) -> None:
        size, name = self.group_size, type(self).__name__
        if size is not None and (size <= 0 or size % BLOCK):
            raise ValueError(f"{name}(group_size={size}): it must be a multiple of {BLOCK}, or "
                             "None for one scale a row.")
        if self.scale_dtype not in (float16, bfloat16, float32):
            raise ValueError(f"{name}(scale_dtype={self.scale_dtype}): it must be float16, "
                             "bfloat16 or float32.")


@dataclass(frozen=True)
class Int8WeightOnlyConfig(QuantizationConfig):
    """Weights as scale · (-127 … 127), by default one scale a row; activations stay as they are."""


@dataclass(frozen=True)
class Int4WeightOnlyConfig(QuantizationConfig):
    """Weights as scale · (-8 … 7) in groups; activations stay as they are."""

    group_size: int | None = 32

    bits = 4


@dataclass(frozen=True)
class Int8DynamicActivationInt8WeightConfig(QuantizationConfig):
    """Weights of 8 bits; activations are rounded to scale · (-127 … 127) in blocks of 32 when they
    come, and whole numbers are multiplied: the fastest on a CPU with VNNI. With group_size=32 the
    arithmetic of ggml's Q8_0."""

    dynamic = True


@dataclass(frozen=True)
class Int8DynamicActivationInt4WeightConfig(QuantizationConfig):
    """Weights of 4 bits in groups; activations rounded as by `Int8DynamicActivationInt8Weight-
    Config`. With group_size=32 the arithmetic of ggml's Q4_0."""

    group_size: int | None = 32

    bits = 4
    dynamic = True
