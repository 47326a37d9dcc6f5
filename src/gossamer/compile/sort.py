"""Sorting along an axis: a stable merge sort of (key, position) pairs. Layer 2.

The one idea: every dtype becomes a 64-bit integer key with the same order (for floats, the bits
with the negative ones mirrored; NaN is the largest), so that one merge sort serves all; a
descending sort complements the keys, which keeps it stable. Rows are sorted side by side by the
workers.

Source of the float key: Herf, "Radix Tricks" (2001); bottom-up merge: Knuth, TAOCP 3, 5.2.4.
"""

from __future__ import annotations

from math import prod

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource, Scratch
from gossamer.compile.emitter import Emitter
from gossamer.compile.llvm import module_text, named
from gossamer.core.dtype import DType, float64, int64
from gossamer.ir.node import Node

__all__ = ["argsort_calls"]

_WORDS = ("x", "out", "n", "inner", "scratch", "area")
_SERIAL = 1 << 12  # elements below which waking a second thread costs more than it saves


def argsort_calls(node: Node, buffer: int, out: int) -> list[Call]:
    """The call that sorts `buffer` along the node's axis and writes positions (int64) to `out`."""
    shape, axis = node.shape, node.attrs["axis"]
    n, inner = shape[axis], prod(shape[axis + 1:])
    rows = prod(shape) // max(n, 1)
    area = -(-4 * 8 * max(n, 1) // 64) * 64
    words = (BufferRef(buffer), BufferRef(out), n, inner, Scratch(area, per_thread=True), area)
    source = _source(node.inputs[0].dtype, node.attrs["descending"])
    grain = 0 if rows * n < _SERIAL else max(1, _SERIAL // max(n, 1))
    return [Call(source, words, rows, grain, "argsort", (buffer,), (out,))]


def _source(dtype: DType, descending: bool) -> KernelSource:
    b = FunctionBuilder("void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)")
    words = {}
    for number, name in enumerate(_WORDS):
        kind = "ptr" if name in ("x", "out", "scratch") else "i64"
        words[name] = b.load(kind, b.gep("%args", str(8 * number)), 8)
    n, inner = words["n"], words["inner"]
    area = b.gep(words["scratch"], b.mul("%tid", words["area"]))
    size = b.mul(n, "8")
    parts = [area]
    for _ in range(3):
        parts.append(b.gep(parts[-1], size))
    slots = [b.alloca("ptr") for _ in range(4)]  # keys, positions, and where the next round goes
    with b.loop("%lo", "%hi") as row:
        base = b.add(b.mul(b.udiv(row, inner), b.mul(n, inner)), b.urem(row, inner))
        for slot, part in zip(slots, parts, strict=True):
            b.store("ptr", part, slot)
        with b.loop("0", n) as i:
            at = b.gep(words["x"], b.add(base, b.mul(i, inner)), dtype.llvm)
            key = _key(Emitter(b, dtype, 0), Emitter(b, dtype, 0).load(at), descending)
            b.store("i64", key, b.gep(parts[0], i, "i64"))
            b.store("i64", i, b.gep(parts[1], i, "i64"))
        _rounds(b, n, slots)
        sorted_positions = b.load("ptr", slots[1])
        with b.loop("0", n) as i:
            value = b.load("i64", b.gep(sorted_positions, i, "i64"))
            b.store("i64", value, b.gep(words["out"], b.add(base, b.mul(i, inner)), "i64"))
    return named(module_text(b), "@kernel")


def _key(e: Emitter, x: str, descending: bool) -> str:
    """An i64 that orders as x does."""
    b, wide = e.builder, Emitter(e.builder, int64, 0)
    if e.dtype.kind == "f":
        d = e if e.dtype is float64 else e.of(float64)
        x = e.cast(x, float64)
        x = d.add(x, d.const(0.0))  # -0 becomes 0: they compare equal
        bits = d.to_bits(x)
        mirrored = wide.xor(bits, wide.lshr(wide.shr(bits, wide.const(63)), wide.const(1)))
        key = b.select(d.isnan(x), str((1 << 63) - 1), mirrored)
    else:
        key = e.cast(x, int64)
    return wide.not_(key) if descending else key


def _rounds(b: FunctionBuilder, n: str, slots: list[str]) -> None:
    """Merge runs of 1, 2, 4, … until one is left; the result is in slots 0 and 1."""
    run = b.alloca("i64")
    b.store("i64", "1", run)
    head, body, done = b.name("rounds"), b.name("round"), b.name("sorted")
    b.branch(head)
    b.label(head)
    width = b.load("i64", run)
    b.branch_if(b.compare("slt", width, n), body, done)
    b.label(body)
    keys, positions, to_keys, to_positions = (b.load("ptr", s) for s in slots)
    double = b.mul(width, "2")
    with b.loop("0", n, double) as start:
        middle = b.minimum(b.add(start, width), n)
        end = b.minimum(b.add(start, double), n)
        _merge(b, (keys, positions), (to_keys, to_positions), start, middle, end)
    for slot, pointer in zip(slots, (to_keys, to_positions, keys, positions), strict=True):
        b.store("ptr", pointer, slot)
    b.store("i64", double, run)
    b.branch(head)
    b.label(done)


def _merge(b: FunctionBuilder, source: tuple[str, str], target: tuple[str, str], start: str,
           middle: str, end: str) -> None:
    """Merge two neighbouring runs; of equal keys the left one goes first."""
    left, right = b.alloca("i64"), b.alloca("i64")
    b.store("i64", start, left)
    b.store("i64", middle, right)
    with b.loop(start, end) as k:
        i, j = b.load("i64", left), b.load("i64", right)
        left_there = b.compare("slt", i, middle)
        right_there = b.compare("slt", j, end)
        # Read at a place that exists; the result counts only if both runs have elements left.
        a = b.load("i64", b.gep(source[0], b.select(left_there, i, start), "i64"))
        c = b.load("i64", b.gep(source[0], b.select(right_there, j, start), "i64"))
        smaller = b.value(f"icmp sle i64 {a}, {c}")
        no_right = b.value(f"xor i1 {right_there}, true")
        take_left = b.value(f"and i1 {left_there}, {b.value(f'or i1 {no_right}, {smaller}')}")
        at = b.select(take_left, i, j)
        for s, t in zip(source, target, strict=True):
            b.store("i64", b.load("i64", b.gep(s, at, "i64")), b.gep(t, k, "i64"))
        step = b.value(f"zext i1 {take_left} to i64")
        b.store("i64", b.add(i, step), left)
        b.store("i64", b.add(j, b.sub("1", step)), right)
