"""The table of operators. Layer 1: importing this package fills `ir.op.TABLE`.

Every record is an attribute of this package under its own name: `from gossamer.ops import add`.
"""

from gossamer.ops.bitwise import (
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    mulhi_u32,
    shift_left,
    shift_right,
    shift_right_logical,
)
from gossamer.ops.contraction import dot_general, matmul
from gossamer.ops.elementwise import (
    abs_ as abs,
    add,
    cast,
    ceil,
    copysign,
    div,
    eq,
    floor,
    floor_divide,
    fmax,
    fmin,
    fmod,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    logical_not,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    nextafter,
    reciprocal,
    remainder,
    round_ as round,
    rsqrt,
    sign,
    signbit,
    sqrt,
    sub,
    trunc,
    trunc_divide,
    where,
)
from gossamer.ops.functions import (
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cos,
    cosh,
    digamma,
    erf,
    erfc,
    erfinv,
    exp,
    exp2,
    expm1,
    hypot,
    lgamma,
    log,
    log1p,
    log2,
    log10,
    polygamma,
    pow_ as pow,
    sigmoid,
    sin,
    sinh,
    tan,
    tanh,
)
from gossamer.ops.indexing import scatter, scatter_add, take
from gossamer.ops.movement import (
    concat,
    flip,
    pad,
    permute,
    reshape,
    slice_ as slice,
    unwindows,
    windows,
)
from gossamer.ops.reduction import argmax, argmin, broadcast, reduce_max, reduce_min, reduce_sum
from gossamer.ops.scan import reduce_prod, scan
from gossamer.ops.sort import argsort
from gossamer.ops.wrapper import custom, detach, leaf

__all__ = [
    "abs", "acos", "acosh", "add", "add`.", "argmax", "argmin", "argsort", "asin", "asinh",
    "atan", "atan2", "atanh", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor",
    "broadcast", "cast", "ceil", "concat", "copysign", "cos", "cosh", "custom", "detach",
    "digamma", "div", "dot_general", "eq", "erf", "erfc", "erfinv", "exp", "exp2", "expm1",
    "flip", "floor", "floor_divide", "fmax", "fmin", "fmod", "ge", "gt", "hypot", "isfinite",
    "isinf", "isnan", "le", "leaf", "lgamma", "log", "log10", "log1p", "log2", "logical_not",
    "lt", "matmul", "maximum", "minimum", "mul", "mulhi_u32", "ne", "neg", "nextafter", "pad",
    "permute", "polygamma", "pow", "reciprocal", "reduce_max", "reduce_min", "reduce_prod",
    "reduce_sum", "remainder", "reshape", "round", "rsqrt", "scan", "scatter", "scatter_add",
    "shift_left", "shift_right", "shift_right_logical", "sigmoid", "sign", "signbit", "sin",
    "sinh", "slice", "sqrt", "sub", "take", "tan", "tanh", "trunc", "trunc_divide", "unwindows",
    "where", "windows"
]
