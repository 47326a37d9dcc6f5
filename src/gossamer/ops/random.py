"""Random numbers from a counter: pure functions of (key, counter), written elementwise. Layer 1.

Element i of a result is a function of the key and of counter + i, so that it fuses into whatever
reads it and is the same bit for bit for any number of threads. `key` is int32[2] (the seed) and
`counter` int64[] (how many numbers were drawn before); both are data, so compiled steps advance. A
generator that adds the number of elements to its counter after every call never repeats itself.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Threefry-2x32 with 13
rounds, the fewest that pass BigCrush; its known answers are in tests/ops/test_random.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gossamer.core.dtype import DType, bfloat16, float16, float32, float64, int32, int64
from gossamer.core.shape import size_of
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import CONSTANT, IOTA, Op, Sample, constant
from gossamer.ops.bitwise import (
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    mulhi_u32,
    shift_left,
    shift_right_logical,
)
from gossamer.ops.composite import composite, scaled
from gossamer.ops.elementwise import add, cast, ge, lt, mul, remainder, sqrt, where
from gossamer.ops.functions import cos, log
from gossamer.ops.movement import reshape, slice_
from gossamer.ops.reduction import broadcast
from gossamer.ops.rules import Type, dtype_error, shape_error

__all__ = ["dropout", "random_bits", "random_integers", "random_normal", "random_uniform",
           "threefry"]

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)  # Salmon et al., table 3 (Threefry-2x32)
_PARITY = 0x1BD11BDA
_ROUNDS = 13
# Random bits of a uniform number: the digits of its mantissa, so that no value rounds up to 1.
_DIGITS = {float64: 53, float32: 24, float16: 11, bfloat16: 8}


def _wrap(value: int) -> int:
    """An unsigned 32-bit number as int32."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _rotate(x: Node, count: int) -> Node:
    return bitwise_or(shift_left(x, constant(count, x)),
                      shift_right_logical(x, constant(32 - count, x)))


def threefry(keys: tuple[Node, Node], block: tuple[Node, Node]) -> tuple[Node, Node]:
    """Threefry-2x32-13 of counter words under key words, all int32 of one shape."""
    k0, k1 = keys
    schedule = (k0, k1, bitwise_xor(bitwise_xor(k0, k1), constant(_PARITY, k0)))
    x0, x1 = add(block[0], k0), add(block[1], k1)
    for r in range(_ROUNDS):
        x0 = add(x0, x1)
        x1 = bitwise_xor(_rotate(x1, _ROTATIONS[r % 8]), x0)
        if r % 4 == 3:
            n = r // 4 + 1
            x0 = add(x0, schedule[n % 3])
            x1 = add(x1, add(schedule[(n + 1) % 3], constant(n, x1)))
    return x0, x1


def _spread(x: Node, n: int) -> Node:
    return broadcast(reshape(x, shape=()), shape=(n,), axes=(0,))


def _element(x: Node, index: int) -> Node:
    return slice_(x, starts=(index,), stops=(index + 1,), steps=(1,))


def _counters(counter: Node, n: int) -> tuple[Node, Node]:
    """The 64-bit numbers counter + i, i = 0..n-1, as (low, high) words.

    In 32-bit arithmetic, which has twice the lanes of 64-bit.
    """
    flip_sign = CONSTANT(value=_wrap(0x80000000), shape=(n,), dtype=int32)
    low0 = _spread(cast(counter, dtype=int32), n)
    high0 = _spread(cast(shift_right_logical(counter, constant(32, counter)), dtype=int32), n)
    low = add(low0, IOTA(axis=0, shape=(n,), dtype=int32))
    # Unsigned low < low0: the addition carried.
    carry = lt(bitwise_xor(low, flip_sign), bitwise_xor(low0, flip_sign))
    return low, add(high0, cast(carry, dtype=int32))


def _words(key: Node, counter: Node, n: int, stream: int = 0) -> tuple[Node, Node]:
    """Two random words for each of n elements. Streams (0, 1) of one counter never meet."""
    keys = _spread(_element(key, 0), n), _spread(_element(key, 1), n)
    low, high = _counters(counter, n)
    if stream:  # bit 63 of the counter, which no generator reaches
        high = bitwise_xor(high, constant(_wrap(stream << 31), high))
    return threefry(keys, (low, high))


def _draw_type(op: Op, key: Node, counter: Node, *, shape: Shape, **attrs: Any) -> Type:
    if key.dtype is not int32 or key.shape != (2,) or counter.dtype is not int64 or counter.shape:
        raise dtype_error(op, (key, counter), "the key must be int32[2] and the counter int64[]",
                          "Pass the state of a Generator.")
    if size_of(shape) >= 2**31:
        raise shape_error(op, (key, counter), f"shape {shape} has 2^31 or more elements",
                          "Draw in parts.")
    return shape, attrs.get("dtype", int32)


def _draw_float_type(op: Op, key: Node, counter: Node, *, shape: Shape, dtype: DType) -> Type:
    if dtype.kind != "f":
        raise dtype_error(op, (key, counter), f"dtype {dtype.name} must be floating-point",
                          "Use random_integers.")
    return _draw_type(op, key, counter, shape=shape, dtype=dtype)


def _state(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return (rng.integers(-2**31, 2**31, (2,)).astype(np.int32),
            np.array(2**32 - 3))  # the low word overflows within the draw


def _draw_samples(*attrs: dict[str, Any]) -> Any:
    def draw(rng: np.random.Generator) -> list[Sample]:
        return [Sample(_state(rng), {"shape": shape, **chosen}, gradient=False)
                for chosen in attrs for shape in ((), (1,), (7,), (2, 3), (0, 4))]
    return draw


random_bits: Op = composite(
    "random_bits", "32 random bits for each element of `shape`, as int32.", infer=_draw_type,
    body=lambda key, counter, *, shape: reshape(_words(key, counter, size_of(shape))[0],
                                                shape=shape),
    promote="none", cost=60.0, samples=_draw_samples({}))


def _fraction(word: Node, digits: int, dtype: DType) -> Node:
    """The upper `digits` (< 32) bits as a number in [0, 1), exactly."""
    whole = shift_right_logical(word, constant(32 - digits, word))
    return scaled(cast(whole, dtype=dtype), 2.0 ** -digits)


def _unit(words: tuple[Node, Node], dtype: DType) -> Node:
    """A number in [0, 1) from one word, for float64 from two."""
    if dtype is not float64:
        return _fraction(words[0], _DIGITS[dtype], dtype)
    upper = _fraction(words[0], 27, float64)
    return add(upper, scaled(_fraction(words[1], 26, float64), 2.0 ** -27))


random_uniform: Op = composite(
    "random_uniform", "Uniform random numbers in [0, 1), all digits of the mantissa random.",
    infer=_draw_float_type, promote="none", cost=60.0,
    body=lambda key, counter, *, shape, dtype: reshape(
        _unit(_words(key, counter, size_of(shape)), dtype), shape=shape),
    samples=_draw_samples({"dtype": float32}, {"dtype": float64}))


def _random_normal(key: Node, counter: Node, *, shape: Shape, dtype: DType) -> Node:
    """Box-Muller: sqrt(-2 log u) cos(2 pi v), u in (0, 1), v in [0, 1).

    Chosen over erfinv of one uniform: both words of a block are used, and the tail is that of 31
    bits (6.6 standard deviations) instead of 24 (5.4).
    """
    n = size_of(shape)
    words = _words(key, counter, n)
    if dtype is float64:
        v = _unit(words, float64)
        u = _unit(_words(key, counter, n, stream=1), float64)
        u = add(u, constant(2.0 ** -54, u))
    else:
        v = _fraction(words[0], 24, float32)
        u = _fraction(words[1], 31, float32)
        u = add(u, constant(2.0 ** -32, u))
    radius = sqrt(scaled(log(u), -2.0))
    found = mul(radius, cos(scaled(v, 2 * math.pi)))
    return reshape(found if found.dtype is dtype else cast(found, dtype=dtype), shape=shape)


random_normal: Op = composite(
    "random_normal", "Random numbers of the normal distribution with mean 0 and variance 1.",
    infer=_draw_float_type, body=_random_normal, promote="none", cost=100.0,
    samples=_draw_samples({"dtype": float32}, {"dtype": float64}))


def _integer_type(op: Op, key: Node, counter: Node, *, shape: Shape, low: int, high: int) -> Type:
    if not (-2**63 <= low < high <= 2**63 and high - low <= 2**63):
        raise shape_error(op, (key, counter), f"low={low}, high={high}; low < high must hold, "
                          "within int64 and at most 2^63 apart", "Give a non-empty range.")
    return _draw_type(op, key, counter, shape=shape, dtype=int64)


def _random_integers(key: Node, counter: Node, *, shape: Shape, low: int, high: int) -> Node:
    """Up to 2^32 values: the upper word of bits * range (Lemire 2019); beyond: 63 bits mod range.

    The bias is at most range / 2^32 or range / 2^63.
    """
    w0, w1 = _words(key, counter, size_of(shape))
    extent = high - low
    mask = CONSTANT(value=0xFFFFFFFF, shape=w0.shape, dtype=int64)
    if extent <= 2**32:
        word = w0 if extent == 2**32 else mulhi_u32(w0, constant(_wrap(extent), w0))
        value = bitwise_and(cast(word, dtype=int64), mask)
    else:
        upper = shift_left(cast(w0, dtype=int64), constant(32, mask))
        value = bitwise_or(upper, bitwise_and(cast(w1, dtype=int64), mask))
        value = shift_right_logical(value, constant(1, mask))
        if extent < 2**63:
            value = remainder(value, constant(extent, mask))
    return reshape(add(value, constant(low, value)), shape=shape)


random_integers: Op = composite(
    "random_integers", "Random integers in [low, high), int64.", infer=_integer_type,
    body=_random_integers, promote="none", cost=60.0,
    samples=_draw_samples({"low": 0, "high": 10}, {"low": -5, "high": 2**40},
                          {"low": -2**31, "high": 2**31}))

# dropout -----------------------------------------------------------------------------------------


def _dropout_type(op: Op, x: Node, key: Node, counter: Node, *, p: float) -> Type:
    if not 0.0 <= p <= 1.0:
        raise shape_error(op, (x, key, counter), f"p={p} must be between 0 and 1",
                          "Give a probability.")
    _draw_type(op, key, counter, shape=x.shape)
    if x.dtype.kind != "f":
        raise dtype_error(op, (x, key, counter), "the operand must be floating-point",
                          "Convert it with .float().")
    return x.shape, x.dtype


def _kept(x: Node, key: Node, counter: Node, p: float) -> Node:
    """bool: 24 random bits at or above p."""
    word, _ = _words(key, counter, x.size)
    bits = shift_right_logical(word, constant(8, word))
    return reshape(ge(bits, constant(round(p * 2**24), bits)), shape=x.shape)


def _dropout(x: Node, key: Node, counter: Node, *, p: float) -> Node:
    scale = 1 / (1 - p) if p < 1 else 0.0
    return where(_kept(x, key, counter, p), scaled(x, scale), constant(0, x))


dropout: Op = composite(
    "dropout", "x / (1 - p), but 0 with probability p.", infer=_dropout_type, body=_dropout,
    vjp=lambda g, y, x, key, counter, *, p: (dropout(g, key, counter, p=p), None, None),
    promote="none", cost=60.0,
    samples=lambda rng: [Sample((rng.normal(size=s), *_state(rng)), {"p": p})
                         for s in ((), (7,), (2, 3), (0, 4)) for p in (0.0, 0.3)])
