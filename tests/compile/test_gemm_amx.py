"""AMX products. No tiles are needed: their seven instructions are emulated in LLVM text, so that
what the generator writes runs on any x86; and LLVM's code for a CPU that has them is looked at."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm import Output, Target
from gossamer.compile.gemm.low import low_gemm
from gossamer.compile.gemm.micro_amx import amx_source, has_amx
from gossamer.compile.gemm.target import pair_tile
from gossamer.core.dtype import as_dtype, bfloat16, round_to_bfloat16
from gossamer.runtime import device, jit
from gossamer.runtime.amx import usable_features
from tests.compile.gemm_runner import Runner
from tests.compile.test_gemm_low import _operand

AMX = Target(64, frozenset({"avx512f", "avx512bf16", "amx-tile", "amx-bf16"}))
_ROW = "<16 x i32>"


def _row(f: FunctionBuilder, tile: str, row: str) -> str:
    index = f.add(f.mul(f.value(f"zext i8 {tile} to i64"), "1024"), f.mul(row, "64"))
    return f.gep("@emulated", index)


def _moves(name: str, load: bool) -> str:
    f = FunctionBuilder(f"internal void @{name}(i8 %t, ptr %p, i64 %pitch)", "noinline #0")
    with f.loop("0", "16") as r:
        memory, tile = f.gep("%p", f.mul(r, "%pitch")), _row(f, "%t", r)
        source, to = (memory, tile) if load else (tile, memory)
        f.store(_ROW, f.load(_ROW, source, 4), to, 4)
    return f.finish()


def _products() -> str:
    """Row by row: acc + low * low + high * high over the 16 pairs."""
    f = FunctionBuilder("internal void @emulated.tdpbf16ps(i8 %c, i8 %a, i8 %b)", "noinline #0")

    def halves(x: str) -> list[str]:
        low = f.value(f"shl {_ROW} {x}, splat (i32 16)")
        high = f.value(f"and {_ROW} {x}, splat (i32 -65536)")
        return [f.value(f"bitcast {_ROW} {h} to <16 x float>") for h in (low, high)]

    with f.loop("0", "16") as m, f.loop("0", "16") as k:
        word = f.load("i32", f.gep(_row(f, "%a", m), k, "i32"), 4)
        one = f.value(f"insertelement {_ROW} poison, i32 {word}, i64 0")
        all_ = f.value(f"shufflevector {_ROW} {one}, {_ROW} poison, {_ROW} zeroinitializer")
        place = _row(f, "%c", m)
        total = f.load("<16 x float>", place, 4)
        for x, y in zip(halves(all_), halves(f.load(_ROW, _row(f, "%b", k), 4)), strict=True):
            total = f.value(f"fadd <16 x float> {total}, {f.value(f'fmul <16 x float> {x}, {y}')}")
        f.store("<16 x float>", total, place, 4)
    return f.finish()


def _emulated(source: KernelSource) -> KernelSource:
    """The kernel with functions in place of the tiles' instructions."""
    if "tdpbf16ps" not in source.text:
        return source
    lines = [line for line in source.text.split("\n")
             if not re.match(r"declare .*@llvm\.x86\.", line)]
    text = re.sub(r"@llvm\.x86\.(ldtilecfg|tile\w+|tdpbf16ps)", r"@emulated.\1", "\n".join(lines))
    zero = FunctionBuilder("internal void @emulated.tilezero(i8 %t)", "noinline #0")
    with zero.loop("0", "16") as r:
        zero.store(_ROW, "zeroinitializer", _row(zero, "%t", r), 4)
    return replace(source, text="\n".join([
        text, "@emulated = internal global [8192 x i8] zeroinitializer, align 64", zero.finish(),
        _moves("emulated.tileloadd64", True), _moves("emulated.tilestored64", False), _products(),
        "define internal void @emulated.ldtilecfg(ptr %p) #0 { ret void }",
        "define internal void @emulated.tilerelease() #0 { ret void }"]))


class _Emulator(Runner):
    tiles = 0  # kernels that were emulated

    def address(self, source: KernelSource) -> int:
        made = _emulated(source)
        self.tiles += made is not source
        return jit.addresses([made])[0]


@pytest.mark.parametrize("shape", [
    (1, 1, 1, 1, 2), (1, 1, 32, 32, 32), (1, 1, 33, 17, 34), (2, 3, 15, 33, 18),
    (1, 2, 61, 53, 42), (1, 1, 100, 70, 302), (1, 1, 300, 10, 64), (1, 1, 64, 96, 2000)], ids=str)
def test_tiles_emulated(shape: tuple[int, int, int, int, int]) -> None:
    if not device.host().has("avx512bf16"):
        pytest.skip("packing rounds with an instruction that this CPU lacks")
    b0, b1, m, n, k = shape
    rng = np.random.default_rng(m + n + k)
    for order, dtype in itertools.product("krs", ("bfloat16", "float32")):
        a, left, x = _operand(rng, 0, (b0, b1, m, k), "k", bfloat16)
        b, right, y = _operand(rng, 1, (b0, b1, n, k), order, as_dtype(dtype))
        c = np.full((b0, b1, m, n), -7.0, np.float32)
        calls = low_gemm((b0, b1), m, n, k, bfloat16, a, b, Output(2, 0, (b1 * m * n, m * n, n, 1)),
                         AMX)
        run = _Emulator(calls, [left, right, c])
        assert run.tiles == 1 or n < m  # exchanged, A may be the one that must be packed
        run.run()
        wide = [round_to_bfloat16(v).astype(np.float64) for v in (x, y)]
        expected = wide[0] @ wide[1].swapaxes(2, 3)
        bound = (k + 1) * 2.0**-23 * (np.abs(wide[0]) @ np.abs(wide[1].swapaxes(2, 3)) + 1e-30)
        assert (np.abs(c - expected) <= bound).all()


def test_the_code_for_a_cpu_with_tiles() -> None:
    """Four products and four loads a step, and the tiles are released."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    tile = pair_tile(AMX)
    assert tile is not None and has_amx(AMX)
    features = "+avx512f,+avx512vl,+avx512bf16,+amx-tile,+amx-bf16"
    text = amx_source(tile).text
    text += f'\nattributes #0 = {{ nounwind "target-features"="{features}" }}\n'
    module = llvm.parse_assembly(text, llvm.create_context())
    module.verify()
    module.triple = "x86_64-unknown-linux-gnu"
    machine = llvm.Target.from_triple(module.triple).create_target_machine(features=features, opt=2)
    code = str(machine.emit_assembly(module))
    assert code.count("\tldtilecfg") == code.count("\ttilerelease") == 1
    loop = next(b for b in code.split("\n.LBB") if b.count("\ttdpbf16ps") == 4)
    assert loop.count("\ttileloadd") == 4
    assert code.count("\ttdpbf16ps") == 8 and code.count("\ttilestored") == 4


def test_tiles_are_used_only_where_they_are_granted() -> None:
    host = device.host()
    assert usable_features(host) <= host.features
    assert not has_amx(Target(64, host.features - {"amx-bf16"}))
    assert not has_amx(Target(64, frozenset({"avx512f", "amx-tile", "amx-bf16"})))
