"""Data types: one row each, and PyTorch's promotion rules. Layer 0.

A dtype is one `DType` row; its names in NumPy, LLVM, ONNX and safetensors are columns. NumPy has
no bfloat16: there the reference keeps float32 values rounded to bfloat16, and memory is uint16.

Source of the promotion rules: PyTorch, "Tensor Attributes", section torch.dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gossamer.core.errors import DTypeError

__all__ = [
    "DTYPES", "DType", "as_dtype", "bfloat16", "bool_", "common_dtype", "float16", "float32",
    "float64", "get_default_dtype", "int16", "int32", "int64", "int8", "promote",
    "round_to_bfloat16", "set_default_dtype", "uint8",
]


@dataclass(frozen=True, eq=False)
class DType:
    """One data type. Compared by identity; `repr` reads `gossamer.float32`."""

    name: str
    kind: str  # "f" float, "i" signed integer, "u" unsigned integer, "b" boolean
    itemsize: int  # bytes in memory
    numpy: np.dtype  # NumPy dtype of the reference's arrays (float32 for bfloat16)
    storage: np.dtype  # NumPy dtype of the bytes in memory (uint16 for bfloat16)
    llvm: str  # LLVM type in memory
    onnx: int  # TensorProto.DataType
    safetensors: str
    rank: int  # order within its category for promotion

    @property
    def is_floating_point(self) -> bool:
        return self.kind == "f"

    @property
    def is_complex(self) -> bool:
        return False

    @property
    def is_signed(self) -> bool:
        return self.kind in "fi"

    @property
    def is_integer(self) -> bool:
        """Signed or unsigned integer; bool is neither."""
        return self.kind in "iu"

    @property
    def category(self) -> int:
        """0 bool, 1 integer, 2 float: PyTorch's categories of promotion."""
        return {"b": 0, "i": 1, "u": 1, "f": 2}[self.kind]

    def __repr__(self) -> str:
        return f"gossamer.{self.name}"

    def __reduce__(self) -> tuple[object, ...]:
        return (as_dtype, (self.name,))


def _row(name: str, kind: str, size: int, llvm: str, onnx: int, st: str, rank: int,
         numpy: str | None = None, storage: str | None = None) -> DType:
    return DType(name, kind, size, np.dtype(numpy or name), np.dtype(storage or numpy or name),
                 llvm, onnx, st, rank)


float64 = _row("float64", "f", 8, "double", 11, "F64", 4)
float32 = _row("float32", "f", 4, "float", 1, "F32", 3)
float16 = _row("float16", "f", 2, "half", 10, "F16", 1)
bfloat16 = _row("bfloat16", "f", 2, "i16", 16, "BF16", 1, "float32", "uint16")
int64 = _row("int64", "i", 8, "i64", 7, "I64", 4)
int32 = _row("int32", "i", 4, "i32", 6, "I32", 3)
int16 = _row("int16", "i", 2, "i16", 5, "I16", 2)
int8 = _row("int8", "i", 1, "i8", 3, "I8", 1)
uint8 = _row("uint8", "u", 1, "i8", 2, "U8", 1)
bool_ = _row("bool", "b", 1, "i8", 9, "BOOL", 0)

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, bool_)
}
_ALIASES: dict[object, DType] = {
    "double": float64, "float": float32, "half": float16, "long": int64, "int": int32,
    "short": int16, bool: bool_, int: int64, float: float32,
}


def as_dtype(value: object) -> DType:
    """The DType named by `value`: a DType, a name, a NumPy dtype, or Python's bool/int/float.

    Raises:
        DTypeError: no such dtype.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, (str, type)) and value in _ALIASES:
        return _ALIASES[value]
    name = value if isinstance(value, str) else None
    if name is None:
        try:
            name = np.dtype(value).name  # type: ignore[call-overload]
        except TypeError:
            name = repr(value)
    found = DTYPES.get(name)
    if found is None:
        raise DTypeError(f"dtype: got {value!r}; Gossamer has {', '.join(DTYPES)}. "
                         "Convert the data to one of them first.")
    return found


def promote(a: DType, b: DType) -> DType:
    """The dtype that holds both `a` and `b`, both of tensors with dimensions."""
    if a is b:
        return a
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.kind == "f":
        if a.rank == b.rank:  # float16 with bfloat16
            return float32
        return a if a.rank > b.rank else b
    if a.kind != b.kind:  # uint8 with a signed integer: the signed one must hold 255
        signed = a if a.kind == "i" else b
        return int16 if signed is int8 else signed
    return a if a.rank > b.rank else b


_default = float32


def get_default_dtype() -> DType:
    """The dtype of new floating-point tensors made from Python numbers."""
    return _default


def set_default_dtype(dtype: object) -> None:
    """Set the dtype of new floating-point tensors.

    Raises:
        DTypeError: `dtype` is not a floating-point type.
    """
    global _default
    chosen = as_dtype(dtype)
    if chosen.kind != "f":
        raise DTypeError(f"set_default_dtype({chosen!r}): only floating-point types are allowed. "
                         "Pass gossamer.float32, float64, float16 or bfloat16.")
    _default = chosen


def common_dtype(dimensioned: DType | None, zero_dim: DType | None, scalar: type | None) -> DType:
    """Result dtype of an operator by PyTorch's three ranks of participants.

    Tensors with dimensions decide; a zero-dimensional tensor, and after it a Python scalar, takes
    part only when its category (bool < integer < float) is higher than what is there already.

    Args:
        dimensioned: promotion over all tensors with at least one dimension, or None.
        zero_dim: promotion over all zero-dimensional tensors, or None.
        scalar: the highest Python type among the scalars (bool, int or float), or None.
    """
    result = dimensioned
    if zero_dim is not None and (result is None or zero_dim.category > result.category):
        result = zero_dim
    if scalar is not None:
        own = {bool: bool_, int: int64, float: _default}[scalar]
        if result is None or own.category > result.category:
            result = own
    assert result is not None, "common_dtype needs at least one participant"
    return result


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Round float values to the nearest bfloat16 (ties to even), kept as float32."""
    x32 = np.ascontiguousarray(x, np.float32)
    bits = x32.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded &= np.uint32(0xFFFF0000)
    kept = np.where(np.isnan(x32), np.float32(np.nan), rounded.view(np.float32))
    return kept.reshape(np.shape(x))
