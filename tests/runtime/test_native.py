"""The native loops are code for every system; what they do is tested in test_threads."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import pytest

from gossamer.runtime.native import native_source

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()

X86, ARM, RISCV = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "riscv64-linux-gnu"


def assembly(triple: str, portable: bool = False) -> str:
    module = llvm.parse_assembly(native_source(triple, portable).text
                                 + "\nattributes #0 = { nounwind }\n")
    module.verify()
    module.triple = triple
    features = "+m,+a,+d" if triple == RISCV else ""  # without +a, atomics are calls of a library
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=2)
    return machine.emit_assembly(module)


@pytest.mark.parametrize(("triple", "portable", "present", "absent"), [
    (X86, False, ("pause", "syscall", "sched_yield"), ("usleep",)),
    (X86, True, ("pause", "usleep", "sched_yield"), ("syscall",)),
    (ARM, False, ("yield", "syscall", "sched_yield"), ("usleep", "pause")),
    ("arm64-apple-macosx14.0", False, ("yield", "usleep"), ("syscall",)),
    ("x86_64-pc-windows-msvc", False, ("pause", "Sleep", "SwitchToThread"),
     ("syscall", "usleep", "sched_yield")),
    (RISCV, False, ("syscall", "sched_yield"), ("usleep",)),
])
def test_each_system_waits_in_its_own_way(triple: str, portable: bool, present: tuple[str, ...],
                                          absent: tuple[str, ...]) -> None:
    text = assembly(triple, portable)
    words = {word.lstrip("_") for word in re.findall(r"\w+", text)}
    assert set(present) <= words
    assert not set(absent) & words


def test_the_text_is_the_same_every_time() -> None:
    # It is the key of the cache on disk.
    assert native_source(X86) == native_source(X86) != native_source(X86, portable=True)
