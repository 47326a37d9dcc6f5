"""How exact float32 products must be: one switch for the process. Layer 0.

"highest" is float32 throughout. "medium" lets the operands of large products be rounded to
bfloat16, with sums in float32. "high" asks for about float32 out of several bfloat16 products,
which on the CPUs known here takes longer than float32 itself: it is the same as "highest".

Source: PyTorch, `torch.set_float32_matmul_precision`.
"""

from __future__ import annotations

from gossamer.core.dtype import DType, bfloat16

__all__ = ["get_float32_matmul_precision", "product_dtype", "set_float32_matmul_precision"]

_LEVELS = ("highest", "high", "medium")
_chosen = "highest"


def get_float32_matmul_precision() -> str:
    """The precision of float32 products: "highest", "high" or "medium"."""
    return _chosen


def set_float32_matmul_precision(precision: str) -> None:
    """Choose how exact float32 matrix products must be, for all threads.

    Args:
        precision: "highest" (float32), "high" (the same on CPUs) or "medium" (operands may be
            rounded to bfloat16, relative error about 2^-8; about twice as fast with AVX-512 BF16).
            Convolutions, products with fewer than 16 rows, columns or terms, and attention stay
            in float32.

    Raises:
        ValueError: no such level.
    """
    global _chosen
    if precision not in _LEVELS:
        raise ValueError(f"set_float32_matmul_precision({precision!r}): the precision must be one "
                         f"of {', '.join(map(repr, _LEVELS))}.")
    _chosen = precision


def product_dtype() -> DType | None:
    """What operands of large float32 products may be rounded to; None for nothing."""
    return bfloat16 if _chosen == "medium" else None
