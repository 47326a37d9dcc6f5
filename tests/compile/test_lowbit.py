"""Kernels for packed weights, by every instruction, against loops written from the description."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.compile.cluster import Cluster
from gossamer.compile.gemm import Target
from gossamer.compile.gemm.lowbit import Scheme, dot_source, instruction
from gossamer.compile.quantized import FEW, has_kernel, product_calls
from gossamer.core.dtype import DType, as_dtype, bfloat16, float16, float32, round_to_bfloat16
from gossamer.ir.node import Node
from gossamer.ir.op import INPUT
from gossamer.ops.quantized import quantized_linear
from gossamer.runtime import device
from tests.compile.gemm_runner import Runner

TARGETS = {
    "vnni": Target(64, frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx2"})),
    "vnni, 32 bytes": Target(32, frozenset({"avx512vl", "avx512vnni", "avx2"}), threads=2),
    "avx2": Target(32, frozenset({"avx2", "fma"})),
    "avx2 in wide vectors": Target(64, frozenset({"avx512f", "avx2"})),
    "plain": Target(16, threads=2), "plain, 64 bytes": Target(64),
}
SIZES = [(1, 16, 32, 32), (1, 48, 96, 32), (2, 17, 65, 32), (3, 5, 40, 64), (7, 33, 128, 64),
         (21, 20, 33, 32)]


def unpacked(packed: np.ndarray) -> np.ndarray:
    """(N, K) whole numbers, one by one as ops/quantized.py says."""
    tiles, quads = packed.shape[:2]
    if packed.dtype == np.int8:
        codes = np.zeros((tiles * 16, quads * 4), np.int64)
        for n, k in np.ndindex(codes.shape):
            codes[n, k] = packed[n // 16, k // 4, n % 16, k % 4]
        return codes
    codes = np.zeros((tiles * 16, quads * 8), np.int64)
    for n, k in np.ndindex(codes.shape):
        byte = int(packed[n // 16, 4 * (k // 32) + k % 16 // 4, n % 16, k % 4])
        codes[n, k] = (byte >> 4 if k % 32 >= 16 else byte & 15) - 8
    return codes


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whole numbers (M, K), a scale for each block of 32), in float32 as the kernels do."""
    m, k = x.shape
    parts = np.zeros((m, -(-k // 32) * 32), np.float32)
    parts[:, :k] = x
    blocks = parts.reshape(m, -1, 32)
    top = np.abs(blocks).max(-1)
    safe = np.where(top < 1e-36, np.float32(1), top)
    codes = np.rint(blocks * (np.float32(127) / safe)[..., None])
    codes[top < 1e-36] = 0
    return codes.reshape(parts.shape).astype(np.int64), \
        np.where(top < 1e-36, np.float32(0), top / np.float32(127))


def reference(x: np.ndarray, packed: np.ndarray, scale: np.ndarray, n: int,
              dynamic: bool) -> np.ndarray:
    """float64; whole numbers are multiplied and added exactly."""
    codes = unpacked(packed)
    scales = scale.astype(np.float64).transpose(0, 2, 1).reshape(codes.shape[0], -1)
    group = codes.shape[1] // max(scales.shape[1], 1)
    if not dynamic:
        weight = codes * np.repeat(scales, group, 1)
        return x.astype(np.float64) @ weight[:n, :x.shape[1]].T
    whole, steps = rounded(x)
    y = np.zeros((len(x), len(codes)))
    for block in range(whole.shape[1] // 32):
        part = slice(32 * block, 32 * block + 32)
        exact = whole[:, part] @ codes[:, part].T
        y += exact * steps[:, block, None].astype(np.float64) * scales[:, 32 * block // group]
    return y[:, :n]


def weights(rng: np.random.Generator, n: int, k: int, group: int, bits: int,
            ) -> tuple[np.ndarray, np.ndarray]:
    tiles, width = -(-n // 16), -(-k // group) * group
    shape = (tiles, width // (32 // bits), 16, 4)
    packed = rng.integers(-127, 128, shape).astype(np.int8) if bits == 8 \
        else rng.integers(0, 256, shape).astype(np.uint8)
    return packed, rng.uniform(-0.1, 0.1, (tiles, width // group, 16)).astype(np.float32)


def run(target: Target, x: np.ndarray, packed: np.ndarray, scale: np.ndarray, n: int,
        dynamic: bool, scale_dtype: DType = float32, chunk: int | None = None) -> np.ndarray:
    if instruction(target) != "plain":
        missing = {f for f in target.features if not device.host().has(f)}
        if missing:
            pytest.skip(f"this CPU has no {', '.join(missing)}")
    stored = (scale.view(np.uint32) >> 16).astype(np.uint16) if scale_dtype is bfloat16 \
        else scale.astype(scale_dtype.numpy)
    leaves: list[Node] = [
        INPUT(index=i, shape=a.shape, dtype=d) for i, (a, d) in enumerate(
            [(x, float32), (packed, as_dtype(packed.dtype)), (scale, scale_dtype)])]
    node = quantized_linear(*leaves, features=n, dynamic=dynamic)
    numbers = {id(y): i for i, y in enumerate((*leaves, node))}
    cluster = Cluster(0, "quantized_linear", (), [node], outputs=[node])
    out = np.full((len(x), n), np.nan, np.float32)
    calls = product_calls(cluster, numbers, target, False)
    Runner(calls, [x, packed, stored, out]).run(chunk)
    return out


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_product_is_what_the_loops_say(target: Target, bits: int, dynamic: bool) -> None:
    for m, n, k, group in SIZES:
        rng = np.random.default_rng(m * 1000 + n)
        packed, scale = weights(rng, n, k, group, bits)
        x = rng.standard_normal((m, k)).astype(np.float32)
        want = reference(x, packed, scale, n, dynamic)
        for chunk in (None, 1):
            found = run(target, x, packed, scale, n, dynamic, chunk=chunk)
            size = np.abs(want).max()
            np.testing.assert_allclose(found, want, rtol=0, atol=2e-6 * size,
                                       err_msg=f"{m}x{n}x{k} in groups of {group}")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_whole_numbers_are_exact(target: Target, bits: int) -> None:
    """Activations that are whole and scales that are powers of two: nothing may be rounded."""
    rng = np.random.default_rng(bits)
    packed, _ = weights(rng, 32, 96, 32, bits)
    if bits == 8:
        packed[0, :8, :2] = 127  # the largest sums of a block
        packed[0, :8, 1] = -127
    scale = np.exp2(rng.integers(-3, 3, (2, 3, 16))).astype(np.float32)
    x = rng.integers(-127, 128, (5, 96)).astype(np.float32)
    x[:, ::32] = 127
    x[0, :32] = 127
    found = run(target, x, packed, scale, 32, True)
    np.testing.assert_array_equal(found, reference(x, packed, scale, 32, True))


@pytest.mark.parametrize("scale_dtype", [float16, bfloat16])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_scales_of_16_bits(target: Target, scale_dtype: DType) -> None:
    rng = np.random.default_rng(3)
    for bits in (4, 8):
        packed, scale = weights(rng, 32, 64, 32, bits)
        scale = round_to_bfloat16(scale) if scale_dtype is bfloat16 \
            else scale.astype(np.float16).astype(np.float32)
        x = rng.standard_normal((3, 64)).astype(np.float32)
        want = reference(x, packed, scale, 32, True)
        found = run(target, x, packed, scale, 32, True, scale_dtype)
        np.testing.assert_allclose(found, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_odd_activations(target: Target) -> None:
    """Zeros and the smallest numbers give zero; NaN and infinity stay in their row."""
    rng = np.random.default_rng(5)
    packed, scale = weights(rng, 16, 64, 32, 8)
    x = np.zeros((5, 64), np.float32)
    x[1] = 1e-40
    x[2, 3], x[3, 40] = np.nan, np.inf
    x[4] = 1e30 * rng.standard_normal(64)
    found = run(target, x, packed, scale, 16, True)
    assert not found[:2].any()
    assert np.isnan(found[2:4]).all()
    want = reference(x[4:], packed, scale, 16, True)
    np.testing.assert_allclose(found[4:], want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_which_products_have_a_kernel() -> None:
    def node(rows: int, dtype: DType, dynamic: bool) -> Node:
        leaves = [INPUT(index=i, shape=s, dtype=d) for i, (s, d) in enumerate(
            [((rows, 32), dtype), ((1, 8, 16, 4), as_dtype(np.dtype(np.int8))),
             ((1, 1, 16), float16)])]
        return quantized_linear(*leaves, features=16, dynamic=dynamic)

    assert has_kernel(node(FEW, float32, False)) and has_kernel(node(FEW + 1, float32, True))
    assert not has_kernel(node(FEW + 1, float32, False)), "many rows: weights become floats once"
    assert not has_kernel(node(1, bfloat16, True)) and not has_kernel(node(0, float32, True))


@pytest.mark.parametrize("bits", [4, 8])
def test_neon_multiplies_by_sdot(bits: int) -> None:
    """Compiled for AArch64 and looked at: eight instructions for a block of 32 and each row."""
    target = Target(16, frozenset({"neon", "dotprod"}))
    text = dot_source(Scheme(bits, float16, True, True), target).text
    binding = device.llvm()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    features = "+neon,+dotprod"
    module = binding.parse_assembly(
        f'target triple = "aarch64-linux-gnu"\n{text}\n'
        f'attributes #0 = {{ nounwind "target-features"="{features}" }}\n')
    machine = binding.Target.from_triple("aarch64-linux-gnu").create_target_machine(
        features=features, opt=2)
    lines = machine.emit_assembly(module).splitlines()
    assert sum(line.split()[:1] == ["sdot"] for line in lines) == 8 * (4 + 2 + 1)
