"""`finfo` and `iinfo`: the limits of dtypes. Layer 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gossamer.core.dtype import as_dtype, get_default_dtype, set_default_dtype
from gossamer.core.errors import DTypeError
from gossamer.dispatch import PUBLIC

__all__ = ["finfo", "iinfo"]


@dataclass(frozen=True)
class _Float:
    bits: int
    eps: float
    max: float
    min: float
    tiny: float
    resolution: float
    dtype: str

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all digits."""
        return self.tiny


# digits of the mantissa, exponent range: IEEE 754; bfloat16 has float32's exponents
_FLOATS = {
    "float64": _Float(64, 2.0 ** -52, 1.7976931348623157e308, -1.7976931348623157e308,
                      2.0 ** -1022, 1e-15, "float64"),
    "float32": _Float(32, 2.0 ** -23, (2 - 2.0 ** -23) * 2.0 ** 127,
                      -(2 - 2.0 ** -23) * 2.0 ** 127, 2.0 ** -126, 1e-6, "float32"),
    "float16": _Float(16, 2.0 ** -10, 65504.0, -65504.0, 2.0 ** -14, 1e-3, "float16"),
    "bfloat16": _Float(16, 2.0 ** -7, (2 - 2.0 ** -7) * 2.0 ** 127, -(2 - 2.0 ** -7) * 2.0 ** 127,
                       2.0 ** -126, 1e-2, "bfloat16"),
}


@dataclass(frozen=True)
class _Integer:
    bits: int
    max: int
    min: int
    dtype: str


def finfo(dtype: Any = None) -> _Float:
    """Limits of a floating dtype: bits, eps, max, min, tiny, resolution."""
    chosen = get_default_dtype() if dtype is None else as_dtype(dtype)
    if chosen.kind != "f":
        raise DTypeError(f"gs.finfo({chosen!r}): it is not a float. Use gs.iinfo.")
    return _FLOATS[chosen.name]


def iinfo(dtype: Any) -> _Integer:
    """Limits of an integer dtype: bits, max, min."""
    chosen = as_dtype(dtype)
    if chosen.kind not in "iu":
        raise DTypeError(f"gs.iinfo({chosen!r}): it is not an integer type. Use gs.finfo.")
    bits = 8 * chosen.itemsize
    if chosen.kind == "u":
        return _Integer(bits, 2 ** bits - 1, 0, chosen.name)
    return _Integer(bits, 2 ** (bits - 1) - 1, -2 ** (bits - 1), chosen.name)


for _function in (finfo, iinfo, get_default_dtype, set_default_dtype):
    PUBLIC[_function.__name__] = _function
