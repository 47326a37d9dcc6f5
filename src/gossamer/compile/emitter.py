"""The emitter that operators' `lower` rules are written against. Layer 2.

The one idea: `lower=lambda e, a, b: e.mul(a, e.exp(b))` is scalar code over strings, and becomes
instructions on any float type and any vector width. Arithmetic is in `emitter_arith`, memory and
conversions in `emitter_memory`; this file adds the mathematical functions of `vecmath_*`.
"""

from __future__ import annotations

from gossamer.compile import vecmath
from gossamer.compile.emitter_memory import Memory

__all__ = ["Emitter"]


class Emitter(Memory):
    """Writes typed scalar or vector instructions of one dtype and width into a FunctionBuilder.

    Args:
        builder: the function being written.
        dtype: dtype of the operands of the current operator; `of(dtype)` gives a sibling.
        width: lanes; 0 and 1 are scalar code.

    Example: `e = Emitter(b, float32, 16); e.store(e.exp(e.load(p)), q)`.
    """

    def math(self, name: str, *operands: str) -> str:
        """The mathematical function `name` of `vecmath` (also a method of that name)."""
        return vecmath.FUNCTIONS[name](self.strict, *operands)

    def exp(self, x: str) -> str:
        return self.math("exp", x)

    def exp2(self, x: str) -> str:
        return self.math("exp2", x)

    def expm1(self, x: str) -> str:
        return self.math("expm1", x)

    def log(self, x: str) -> str:
        return self.math("log", x)

    def log2(self, x: str) -> str:
        return self.math("log2", x)

    def log10(self, x: str) -> str:
        return self.math("log10", x)

    def log1p(self, x: str) -> str:
        return self.math("log1p", x)

    def sin(self, x: str) -> str:
        return self.math("sin", x)

    def cos(self, x: str) -> str:
        return self.math("cos", x)

    def tan(self, x: str) -> str:
        return self.math("tan", x)

    def asin(self, x: str) -> str:
        return self.math("asin", x)

    def acos(self, x: str) -> str:
        return self.math("acos", x)

    def atan(self, x: str) -> str:
        return self.math("atan", x)

    def sinh(self, x: str) -> str:
        return self.math("sinh", x)

    def cosh(self, x: str) -> str:
        return self.math("cosh", x)

    def tanh(self, x: str) -> str:
        return self.math("tanh", x)

    def asinh(self, x: str) -> str:
        return self.math("asinh", x)

    def acosh(self, x: str) -> str:
        return self.math("acosh", x)

    def atanh(self, x: str) -> str:
        return self.math("atanh", x)

    def sigmoid(self, x: str) -> str:
        return self.math("sigmoid", x)

    def erf(self, x: str) -> str:
        return self.math("erf", x)

    def erfc(self, x: str) -> str:
        return self.math("erfc", x)

    def erfinv(self, x: str) -> str:
        return self.math("erfinv", x)

    def lgamma(self, x: str) -> str:
        return self.math("lgamma", x)

    def digamma(self, x: str) -> str:
        return self.math("digamma", x)

    def gelu(self, x: str) -> str:
        return self.math("gelu", x)

    def gelu_slope(self, x: str) -> str:
        return self.math("gelu_slope", x)

    def atan2(self, y: str, x: str) -> str:
        return self.math("atan2", y, x)

    def pow(self, x: str, y: str) -> str:
        return self.math("pow", x, y)

    def hypot(self, x: str, y: str) -> str:
        return self.math("hypot", x, y)
