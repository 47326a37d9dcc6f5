"""From kernel texts to addresses."""

from __future__ import annotations

import ctypes
import threading
from array import array

import pytest

from gossamer.compile.calls import KernelSource
from gossamer.core.errors import CompileError
from gossamer.runtime import device, jit
from tests.runtime.kernels import ADD, kernel, python


def call(address: int, words: list[int], n: int) -> None:
    block = array("q", words + [0] * 4)
    kernel_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3)
    kernel_type(address)(block.buffer_info()[0], 0, n, 0)


def result_of(address: int) -> int:
    """What a kernel that stores one number at its first word stores."""
    out = array("q", [0])
    call(address, [out.buffer_info()[0]], 1)
    return out[0]


def constant(value: int, symbol: str = "k") -> KernelSource:
    return kernel(f"  %p = inttoptr i64 %w0 to ptr\n  store i64 {value}, ptr %p", symbol=symbol)


def test_a_kernel_computes() -> None:
    a, b, out = array("q", range(10)), array("q", range(0, 100, 10)), array("q", [0] * 10)
    call(jit.addresses([ADD])[0], [x.buffer_info()[0] for x in (out, a, b)], 10)
    assert list(out) == [11 * i for i in range(10)]


def test_equal_texts_are_one_kernel_and_symbols_never_clash() -> None:
    sources = [constant(v) for v in (1, 2, 3, 2, 1)]
    found = jit.addresses(sources)
    assert [result_of(a) for a in found] == [1, 2, 3, 2, 1]
    assert found[0] == found[4] and len(set(found)) == 3
    assert jit.addresses([KernelSource("k", sources[0].text, loops="other")]) == [found[0]]
    twin = KernelSource("other", sources[0].text.replace("@k(", "@other("))
    assert result_of(jit.addresses([twin])[0]) == 1


def helped(value: int) -> KernelSource:
    """A kernel with a helper function, a table and a variable that all have common names."""
    source = kernel("""  %p = inttoptr i64 %w0 to ptr
  %t = getelementptr i64, ptr @table, i64 %w1
  %x = load i64, ptr %t
  %y = load volatile i64, ptr @state
  %z = add i64 %x, %y
  %r = call i64 @helper(i64 %z)
  store i64 %r, ptr %p""")
    return KernelSource("k", source.text + f"""
@table = constant [4 x i64] [i64 {value}, i64 {value + 1}, i64 0, i64 0]
@state = global i64 1000
define i64 @helper(i64 %x) noinline #0 {{
  %r = mul i64 %x, 2
  ret i64 %r
}}
""")


def test_private_names_of_different_texts_do_not_meet() -> None:
    one, two = jit.addresses([helped(5), helped(70)])
    three = jit.addresses([helped(600)])[0]
    assert [result_of(a) for a in (one, two, three)] == [2010, 2140, 3200]


def test_functions_are_inlined_where_they_ask_for_it() -> None:
    plain = helped(8)
    assert jit.machine_text(plain).count("@helper(") == 2  # its definition and one call
    inlined = KernelSource("k", plain.text.replace(" noinline", " alwaysinline"))
    assert "@helper" not in jit.machine_text(inlined)
    assert [result_of(a) for a in jit.addresses([plain, inlined])] == [2016, 2016]


@pytest.mark.parametrize(("function", "argument", "expected"), [
    ("expf", 0.0, 1.0), ("erff", 0.0, 0.0), ("sqrtf", 9.0, 3.0), ("tgammaf", 5.0, 24.0)])
def test_libm_is_there(function: str, argument: float, expected: float) -> None:
    source = kernel(f"""  %p = inttoptr i64 %w0 to ptr
  %x = load float, ptr %p
  %y = call float @{function}(float %x)
  store float %y, ptr %p""", f"declare float @{function}(float)")
    value = array("f", [argument])
    call(jit.addresses([source])[0], [value.buffer_info()[0]], 1)
    assert value[0] == expected


def test_a_switch_and_a_constant_vector_are_found_at_any_address() -> None:
    # Jump tables and constant pools are read relative to the code (see jit's head).
    cases = "\n".join(f"    i64 {i}, label %c{i}" for i in range(8))
    bodies = "\n".join(f"c{i}:\n  store i64 {i * i + 7}, ptr %p\n  br label %tail"
                       for i in range(8))
    source = kernel(f"""  %p = inttoptr i64 %w0 to ptr
  switch i64 %w1, label %other [
{cases}
  ]
{bodies}
other:
  %q = load <8 x i64>, ptr %p, align 8
  %v = mul <8 x i64> %q, <i64 3, i64 1, i64 4, i64 1, i64 5, i64 9, i64 2, i64 6>
  store <8 x i64> %v, ptr %p, align 8""")
    address = jit.addresses([source])[0]
    out = array("q", [10] * 8)
    for i in range(8):
        call(address, [out.buffer_info()[0], i], 1)
        assert out[0] == i * i + 7
    out[0] = 10
    call(address, [out.buffer_info()[0], 99], 1)
    assert list(out) == [30, 10, 40, 10, 50, 90, 20, 60]


@pytest.mark.parametrize(("text", "reason"), [
    ("define void @k() {\n  this is not LLVM\n}", "expected instruction opcode"),
    ("define void @k() {\n  %x = add i32 1, %y\n  ret void\n}", "undefined value"),
    ("define void @k(i1 %c) {\nentry:\n  br i1 %c, label %a, label %b\na:\n  %x = add i64 1, 1\n"
     "  br label %b\nb:\n  %y = add i64 %x, 1\n  ret void\n}", "dominate"),
    ("define void @other() {\n  ret void\n}", "defines no function @k"),
    ("declare void @k()", "defines no function @k"),
])
def test_a_bad_text_is_our_defect_and_says_how_to_report_it(
        text: str, reason: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    with pytest.raises(CompileError, match=rf"^kernel k: .*{reason}.*report it with") as caught:
        jit.addresses([KernelSource("k", text)])
    kept = next((tmp_path / "failures").iterdir())
    assert text in kept.read_text() and kept.name in str(caught.value)
    assert caught.value.__cause__ is None  # no traceback of llvmlite
    assert result_of(jit.addresses([constant(77)])[0]) == 77  # and the JIT goes on


def test_a_function_that_nobody_defines_is_named() -> None:
    source = kernel("  call void @no_such_function()", "declare void @no_such_function()")
    with pytest.raises(CompileError, match="kernel k: it calls no_such_function"):
        jit.addresses([source])
    with pytest.raises(CompileError, match="kernel k: it calls no_such_function"):
        jit.addresses([constant(1), source])  # from disk, or compiled again: it stays an error
    assert result_of(jit.addresses([constant(1)])[0]) == 1


def test_many_kernels_at_once_and_one_bad_among_them() -> None:
    sources = [constant(10_000 + i) for i in range(20)]
    with pytest.raises(CompileError, match="kernel bad"):
        jit.addresses([*sources, KernelSource("bad", "nonsense")])
    assert [result_of(a) for a in jit.addresses(sources)] == [10_000 + i for i in range(20)]


def test_python_threads_may_ask_at_once() -> None:
    results: dict[int, int] = {}

    def ask(number: int) -> None:
        # Half of the kernels are asked for by every thread.
        found = jit.addresses([constant(20_000 + i * (number if i % 2 else 1)) for i in range(8)])
        results[number] = sum(result_of(a) for a in found)

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(1, 7)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert results == {k: 8 * 20_000 + 12 + 16 * k for k in range(1, 7)}


def test_statistics_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    before = jit.Stats(**vars(jit.stats))
    jit.addresses([constant(31), constant(32), constant(31)])
    jit.addresses([constant(32)])
    assert jit.stats.compiled - before.compiled == 2
    assert jit.stats.memory_hits - before.memory_hits == 1
    assert jit.stats.compile_seconds > before.compile_seconds


def test_debug_prints_what_is_compiled() -> None:
    code = ("from gossamer.runtime import jit\nfrom gossamer.compile.calls import KernelSource\n"
            "from tests.runtime.kernels import ADD\n"
            "jit.addresses([KernelSource('k', ADD.text, loops='for i')])")
    for level, shown in ((0, ()), (1, ("compiled k",)), (2, ("for i",)), (3, ("define void @k",))):
        done = python(code, GOSSAMER_DEBUG=str(level), GOSSAMER_NO_CACHE="1")
        assert done.returncode == 0 and all(text in done.stderr for text in shown)
        assert ("for i" in done.stderr) == (level >= 2)
        assert ("define void" in done.stderr) == (level >= 3)


def test_explain_can_show_ir_and_assembly() -> None:
    assert "define void @k(" in jit.machine_text(ADD)
    assembly = jit.assembly(ADD)
    assert "k:" in assembly and ("ret" in assembly)


def test_the_instruction_set_is_what_the_host_allows(monkeypatch) -> None:
    if not device.host().has("avx512f"):
        pytest.skip("needs a host with AVX-512")
    source = kernel("""  %p = inttoptr i64 %w0 to ptr
  %v = load <16 x float>, ptr %p, align 4
  %s = fadd <16 x float> %v, %v
  store <16 x float> %s, ptr %p, align 4""")
    assert "zmm" in jit.assembly(source)
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "-avx512f")
    assert "zmm" not in jit.assembly(source) and "ymm" in jit.assembly(source)


def test_a_fork_while_another_thread_compiles_can_still_compile() -> None:
    done = python("""
import os, threading
from gossamer.runtime import jit
from tests.runtime.kernels import kernel

def compile_some(start, count):
    jit.addresses([kernel(f"  store i64 {start + i}, ptr %args") for i in range(count)])

compile_some(0, 1)
busy = threading.Thread(target=compile_some, args=(100, 30))
busy.start()
for i in range(5):
    child = os.fork()
    if child == 0:
        compile_some(1000 + 10 * i, 2)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
busy.join()
print("done")
""", GOSSAMER_NO_CACHE="1")
    assert done.stdout.split() == ["done"], done.stderr
