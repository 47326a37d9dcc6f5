"""Every kernel of the golden programs and their gradients, for CPUs that this machine need not be.

LLVM must take the text and make code of it: no intrinsic of another processor, no type that its
instruction selection does not know. What the code computes is tested on the machine itself; under
an emulator for AArch64 once in a while (docs/log.md).
"""

from __future__ import annotations

import llvmlite.binding as llvm
import pytest

import gossamer as gs
from gossamer.compile.calls import KernelSource
from gossamer.compile.gemm import Target
from gossamer.compile.pipeline import compile_graph
from gossamer.runtime.engine import Canonical
from gossamer.runtime.execute import sources_of
from tests.test_golden import PROGRAMS

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()

# triple, LLVM's features, what the generator is told
CPUS = {
    "neon": ("aarch64-unknown-linux-gnu", "+neon", Target(16, frozenset({"neon"}), threads=2)),
    "sse2": ("x86_64-unknown-linux-gnu", "+sse2", Target(16, frozenset({"sse2"}), threads=2)),
    "avx2": ("x86_64-unknown-linux-gnu", "+avx2,+fma",
             Target(32, frozenset({"avx2", "fma"}), threads=2)),
}


def sources(name: str, target: Target) -> list[KernelSource]:
    """Kernels of a golden program and of its gradient, sizes as literals."""
    shapes, program = PROGRAMS[name]
    inputs = [gs.zeros(*shape) for shape in shapes]
    for t in inputs:
        t.tolist()
        t.requires_grad_()
    result = program(*inputs)
    wanted = [result]
    if result.requires_grad:
        wanted += gs.autograd.grad(result, inputs, gs.ones(*result.shape), create_graph=True)
    roots, leaves = Canonical([t._read() for t in wanted]).graph(literal=True)
    return sources_of(compile_graph(roots, leaves, target, specialize=True).calls)


def machine_code(text: str, triple: str, features: str) -> str:
    attributes = f'\nattributes #0 = {{ nounwind "target-features"="{features}" }}\n'
    module = llvm.parse_assembly(text + attributes, llvm.create_context())
    module.verify()
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=1)
    module.data_layout = str(machine.target_data)
    return str(machine.emit_assembly(module))


@pytest.mark.parametrize("cpu", CPUS)
def test_every_golden_kernel_becomes_code(cpu: str) -> None:
    triple, features, target = CPUS[cpu]
    texts = {s.text: s.symbol for name in PROGRAMS for s in sources(name, target)}
    assert len(texts) > 50
    multiplies = 0
    for text, name in texts.items():
        try:
            code = machine_code(text, triple, features)
        except RuntimeError as error:
            error.add_note(f"{name} for {cpu}")
            raise
        assert "ret" in code
        multiplies += code.count({"neon": "\tfmla", "sse2": "\tmulps", "avx2": "\tvfmadd"}[cpu])
    assert multiplies > 20
