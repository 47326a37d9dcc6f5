"""The machine code of the micro-kernels, for CPUs that this machine need not be."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import pytest

from gossamer.compile.gemm import Target
from gossamer.compile.gemm.micro import panel_source
from gossamer.compile.gemm.target import Tile, pair_tile, tile_for
from gossamer.core.dtype import DType, float32, float64

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()

# LLVM's triple, features and the name of a multiply-add; vector registers as they are spilled.
_X86 = r"[yz]mm\d+, -?\d*\(%rsp|\(%rsp[^)]*\), %[yz]mm"
CPUS = {
    "avx512": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512vl,+fma", "vfmadd", _X86),
    "pairs": ("x86_64-unknown-linux-gnu", "+avx512f,+avx512vl,+avx512bf16", "vdpbf16ps", _X86),
    "avx2": ("x86_64-unknown-linux-gnu", "+avx2,+fma", "vfmadd", _X86),
    "neon": ("aarch64-unknown-linux-gnu", "+neon", "fmla", r"(str|ldr|stp|ldp)\tq.*\[sp"),
}
TARGETS = {"avx512": Target(64, frozenset({"avx512f"})), "avx2": Target(32),
           "neon": Target(16, frozenset({"neon"}))}


def assembly(text: str, cpu: str) -> str:
    triple, features, _, _ = CPUS[cpu]
    attributes = f'\nattributes #0 = {{ nounwind "target-features"="{features}" }}\n'
    module = llvm.parse_assembly(text + attributes, llvm.create_context())
    module.verify()
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=2)
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


def kernel(tile: Tile, by_rows: bool, cpu: str) -> str:
    """Assembly of the largest micro-kernel."""
    text = assembly(panel_source(tile, by_rows).text, cpu)
    return text.split(f"\nmicro_{tile.rows}x{tile.vectors}:")[1].split("\n.Lfunc_end")[0]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("by_rows", [False, True], ids=["panels", "rows"])
@pytest.mark.parametrize("cpu", TARGETS)
def test_accumulators_stay_in_registers(cpu: str, by_rows: bool, dtype: DType) -> None:
    """The loop multiplies once for each accumulator, and no vector goes through the stack."""
    _check(tile_for(dtype, TARGETS[cpu]), by_rows, cpu)


@pytest.mark.parametrize("by_rows", [False, True], ids=["panels", "rows"])
def test_so_do_those_of_pairs(by_rows: bool) -> None:
    tile = pair_tile(Target(64, frozenset({"avx512f", "avx512bf16"})))
    assert tile is not None and pair_tile(TARGETS["avx512"]) is None
    _check(tile, by_rows, "pairs")


def _check(tile: Tile, by_rows: bool, cpu: str) -> None:
    code = kernel(tile, by_rows, cpu)
    _, _, multiply, spilled = CPUS[cpu]
    assert len(re.findall(rf"\t{multiply}", code)) == tile.rows * tile.vectors
    assert not re.search(spilled, code)


def test_neon_multiplies_by_lanes() -> None:
    """A is loaded in vectors: a load for every four rows instead of a broadcast for each."""
    tile = tile_for(float32, TARGETS["neon"])
    code = kernel(tile, False, "neon")
    assert len(re.findall(r"\tfmla\t.*\.s\[\d\]", code)) == tile.rows * tile.vectors


@pytest.mark.parametrize("cpu", TARGETS)
def test_all_variants_of_a_target_are_written(cpu: str) -> None:
    tile = tile_for(float32, TARGETS[cpu])
    text = panel_source(tile, False).text
    for rows in range(1, tile.rows + 1):
        for vectors in range(1, tile.vectors + 1):
            assert f"define internal void @micro_{rows}x{vectors}(" in text
