"""Mathematical functions on vectors: the registry. Layer 2."""

from __future__ import annotations

from collections.abc import Callable

from gossamer.compile.emitter_memory import Memory

__all__ = ["FUNCTIONS"]


def _libm(name: str) -> Callable[..., str]:
    return lambda e, *operands: e.libm(name, *operands)


def sigmoid(e: Memory, x: str) -> str:
    """1 / (1 + exp(-x))."""
    return e.reciprocal(e.add(e.const(1), e.libm("exp", e.neg(x))))


FUNCTIONS: dict[str, Callable[..., str]] = {
    name: _libm(name) for name in (
        "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh "
        "atanh erf erfc lgamma cbrt atan2 pow hypot").split()
}
FUNCTIONS["sigmoid"] = sigmoid
