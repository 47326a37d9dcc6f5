"""Operands that a callback packs, and epilogues that take finished blocks of C."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource, Word
from gossamer.compile.gemm import Epilogue, Operand, Output, Packed, Target, gemm
from gossamer.core.dtype import float32
from tests.compile.gemm_runner import Runner

AVX512 = Target(64, frozenset({"avx512f"}))
TARGETS = {"avx512": AVX512, "avx2": Target(32), "neon": Target(16, frozenset({"neon"})),
           "small caches": Target(64, frozenset({"avx512f"}), l1=4 << 10, l2=24 << 10),
           "threads": replace(AVX512, threads=5)}
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 15, 33, 17), (1, 1, 40, 10, 70), (1, 2, 100, 130, 400),
          (1, 1, 1, 50, 30), (1, 1, 50, 1, 30), (1, 1, 1, 9, 9000), (1, 1, 20, 30, 3000),
          (1, 1, 5, 40, 300), (1, 1, 300, 70, 900), (2, 1, 6, 7, 0)]


def pack_source(along: str) -> KernelSource:
    """dst = 2 x + b0 - b1 with x at r * context[1] + k * context[2] + b0 * [3] + b1 * [4]."""
    f = FunctionBuilder("void @twice(ptr %ctx, ptr %dst, i64 %b0, i64 %b1, i64 %r0, i64 %rows, "
                        "i64 %k0, i64 %kc, i64 %width)")
    x = f.load("ptr", "%ctx", 8)
    r_step, k_step, s0, s1 = (f.load("i64", f.gep("%ctx", str(i), "i64"), 8) for i in range(1, 5))
    x = f.gep(x, f.add(f.mul("%b0", s0), f.mul("%b1", s1)), "float")
    bias = f.value(f"sitofp i64 {f.sub('%b0', '%b1')} to float")
    with f.loop("0", "%rows") as r, f.loop("0", "%kc") as k:
        place = f.add(f.mul(f.add("%r0", r), r_step), f.mul(f.add("%k0", k), k_step))
        value = f.load("float", f.gep(x, place, "float"), 4)
        value = f.value(f"fadd float {value}, {value}")
        to = f.add(f.mul(k, "%width"), r) if along == "r" else f.add(f.mul(r, "%width"), k)
        f.store("float", f.value(f"fadd float {value}, {bias}"), f.gep("%dst", to, "float"), 4)
    return KernelSource("twice", f.finish())


def epilogue_source() -> KernelSource:
    """out[b0, b1, m, n] += max(C + bias[n], 0) (b0 + 2 b1 + 1), and C is overwritten."""
    f = FunctionBuilder("void @relu(ptr %ctx, ptr %tile, i64 %ld, i64 %b0, i64 %b1, i64 %m0, "
                        "i64 %rows, i64 %n0, i64 %cols)")
    out, bias = f.load("ptr", "%ctx", 8), f.load("ptr", f.gep("%ctx", "1", "i64"), 8)
    s0, s1, sm = (f.load("i64", f.gep("%ctx", str(i), "i64"), 8) for i in range(2, 5))
    factor = f.value(f"sitofp i64 {f.add(f.add('%b0', f.mul('2', '%b1')), '1')} to float")
    batch = f.add(f.mul("%b0", s0), f.mul("%b1", s1))
    with f.loop("0", "%rows") as i, f.loop("0", "%cols") as j:
        place = f.gep("%tile", f.add(f.mul(i, "%ld"), j), "float")
        x = f.load("float", place, 4)
        f.store("float", "0x7FF8000000000000", place, 4)
        n = f.add("%n0", j)
        x = f.value(f"fadd float {x}, {f.load('float', f.gep(bias, n, 'float'), 4)}")
        x = f.value(f"select i1 {f.value(f'fcmp ogt float {x}, 0.0')}, float {x}, float 0.0")
        to = f.gep(out, f.add(f.add(batch, f.mul(f.add("%m0", i), sm)), n), "float")
        x = f.value(f"fmul float {x}, {factor}")
        f.store("float", f.value(f"fadd float {f.load('float', to, 4)}, {x}"), to, 4)
    return KernelSource("relu", f.finish())


class Setup:
    """Arrays of one product, each operand either in memory or packed by `twice`."""

    def __init__(self, shape: tuple[int, int, int, int, int], packed: str, along: str) -> None:
        b0, b1, m, n, k = self.shape = shape
        rng = np.random.default_rng(m + n + k)
        self.a = rng.standard_normal((b0, b1, m, k)).astype(np.float32)
        self.b = rng.standard_normal((b0, b1, k, n)).astype(np.float32)
        self.c = np.zeros((b0, b1, m, n), np.float32)
        self.bias = rng.standard_normal(n).astype(np.float32)
        self.buffers = [self.a, self.b, self.c, self.bias]
        shift = (np.arange(b0)[:, None] - np.arange(b1))[:, :, None, None]
        x, y = (2.0 * v + shift if name in packed else v.astype(float)
                for name, v in (("a", self.a), ("b", self.b)))
        self.product, self.scale = x @ y, np.abs(x) @ np.abs(y) + 1.0
        self.operands = [
            self.operand(0, (b1 * m * k, m * k, k, 1), "rk", packed, along),
            self.operand(1, (b1 * k * n, k * n, n, 1), "kr", packed, along)]

    def operand(self, number: int, strides: tuple[int, int, int, int], order: str, packed: str,
                along: str) -> Operand | Packed:
        if "ab"[number] not in packed:
            return Operand(number, 0, strides)
        r, k = (strides[2 + order.index(x)] for x in "rk")
        context: tuple[Word, ...] = (BufferRef(number), r, k, strides[0], strides[1])
        return Packed(pack_source(along), context, along)

    def calls(self, out: Output | Epilogue, target: Target) -> list[Call]:
        b0, b1, m, n, k = self.shape
        a, b = self.operands
        return gemm((b0, b1), m, n, k, float32, a, b, out, target)

    def strides(self) -> tuple[int, int, int, int]:
        _, b1, m, n, _ = self.shape
        return b1 * m * n, m * n, n, 1

    def check(self, expected: np.ndarray) -> None:
        k, b1 = self.shape[4], self.shape[1]
        bound = (k + 8) * np.finfo(np.float32).eps * self.scale * (2.0 * b1 + self.shape[0])
        assert (np.abs(self.c - expected) <= bound).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("along", ["r", "k"])
@pytest.mark.parametrize("packed", ["a", "b", "ab"])
def test_packed_operands(packed: str, along: str, target: str) -> None:
    for shape in SHAPES:
        s = Setup(shape, packed, along)
        out = Output(2, 0, s.strides())
        Runner(s.calls(out, TARGETS[target]), s.buffers).run(1)
        s.check(s.product)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("packed", ["", "a", "b"])
def test_epilogue_sees_every_element_once(packed: str, target: str) -> None:
    for shape in SHAPES:
        s = Setup(shape, packed, "r")
        s0, s1, sm, _ = s.strides()
        context: tuple[Word, ...] = (BufferRef(2), BufferRef(3), s0, s1, sm)
        out = Epilogue(epilogue_source(), context, reads=(3,), writes=(2,))
        calls = s.calls(out, TARGETS[target])
        assert calls[-1].writes == (2,) and 3 in calls[-1].reads
        Runner(calls, s.buffers).run(1)
        factor = (np.arange(shape[0])[:, None] + 2.0 * np.arange(shape[1]) + 1)[:, :, None, None]
        s.check(np.maximum(s.product + s.bias, 0) * factor)


@pytest.mark.parametrize("along", ["r", "k"])
@pytest.mark.parametrize("packed", ["", "b"])
def test_a_shared_b_and_an_epilogue(packed: str, along: str) -> None:
    """Several threads: B, also a computed one, is packed once, whatever takes the blocks of C."""
    s = Setup((1, 1, 300, 270, 950), packed, along)
    _, _, sm, _ = s.strides()
    out = Epilogue(epilogue_source(), (BufferRef(2), BufferRef(3), 0, 0, sm), (3,), (2,))
    calls = s.calls(out, replace(AVX512, threads=3))
    assert [1 in call.reads for call in calls] == [True, True]
    Runner(calls, s.buffers).run(1)
    s.check(np.maximum(s.product + s.bias, 0))


def test_calls_name_the_buffers_they_touch() -> None:
    s = Setup((1, 1, 20, 30, 40), "a", "r")
    call, = s.calls(Output(2, 0, s.strides()), AVX512)
    assert sorted(call.reads) == [0, 1]
    assert call.writes == (2,)
