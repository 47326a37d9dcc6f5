"""Machine code in memory: placed right, given back, never while someone may run it."""

from __future__ import annotations

import ctypes
import gc
import threading
from array import array

import pytest

from gossamer.compile.calls import KernelSource
from gossamer.runtime import jit, loader
from tests.runtime.kernels import kernel, python
from tests.runtime.test_jit import call, constant, helped, result_of


@pytest.fixture
def placed():
    """Skips where this loader is not in use."""
    try:
        loader.load([(object_of(constant(1)), "f")], lambda name: 0)
    except loader.Unsupported as error:
        pytest.skip(f"LLVM's linker serves this machine: {error}")


def object_of(source: KernelSource) -> bytes:
    return jit._compile(source, "f", jit.device.host())


def calling(function: str) -> KernelSource:
    return kernel(f"""  %p = inttoptr i64 %w0 to ptr
  %x = load float, ptr %p
  %y = call float @{function}(float %x)
  store float %y, ptr %p""", f"declare float @{function}(float)")


# A table of float constants, a switch, a function's address as a value, and a call: every
# relocation that our kernels have.
MIXED = kernel("""  %p = inttoptr i64 %w0 to ptr
  %v = load <8 x float>, ptr %p, align 4
  %s = fadd <8 x float> %v, <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0,
                             float 7.0, float 8.0>
  store <8 x float> %s, ptr %p, align 4
  %f = select i1 true, ptr @sqrtf, ptr null
  %slot = getelementptr i64, ptr %p, i64 8
  store volatile ptr %f, ptr %slot
  %g = load volatile ptr, ptr %slot
  %x = load float, ptr %p
  %y = call float %g(float %x)
  %z = call float @expm1f(float %y)
  store float %z, ptr %p""", "declare float @sqrtf(float)\ndeclare float @expm1f(float)")


def test_constants_calls_and_addresses_of_functions(placed) -> None:
    image = loader.load([(object_of(MIXED), "f"), (object_of(calling("expf")), "f")], jit._find)
    out = array("f", [8.0] * 8 + [0.0] * 16)
    call(image.addresses[0], [out.buffer_info()[0]], 1)
    assert list(out[1:8]) == [10, 11, 12, 13, 14, 15, 16]
    assert out[0] == pytest.approx(19.085537, rel=1e-6)  # exp(sqrt(9)) - 1
    one = array("f", [0.0])
    call(image.addresses[1], [one.buffer_info()[0]], 1)
    assert one[0] == 1.0


def test_llvms_linker_gives_the_same(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise loader.Unsupported("for the test")

    ours = [result_of(k.address) for k in jit.kernels([constant(511), constant(512)])]
    with monkeypatch.context() as patched:
        patched.setattr(loader, "load", refuse)
        again = [constant(511, "q"), constant(512, "q"), MIXED]
        theirs = jit.kernels(again)
        assert [result_of(k.address) for k in theirs[:2]] == ours == [511, 512]
        gone = len(jit._unused)
        del theirs
        jit.forget()
        gc.collect()
        assert len(jit._unused) == gone + 1  # one image, to be closed at the next link
        assert result_of(jit.kernels([constant(513, "q")])[0].address) == 513
        assert not jit._unused


def test_what_it_cannot_read_is_left_to_llvm(placed) -> None:
    code = object_of(constant(3))
    for damaged in (code[:18] + b"\xb7\0" + code[20:], b"\xcf\xfa\xed\xfe" + code[4:]):
        with pytest.raises(loader.Unsupported):
            loader.load([(damaged, "f")], lambda name: 0)
    used = loader.code_bytes()
    with pytest.raises(loader.Unsupported, match="a variable"):
        loader.load([(object_of(helped(4)), "f")], lambda name: 0)
    assert loader.code_bytes() == used
    assert result_of(jit.kernels([helped(4)])[0].address) == 2008


def test_pages_are_writable_or_executable_never_both(placed) -> None:
    done = python("""
from pathlib import Path
from gossamer.runtime import jit
from tests.runtime.test_jit import constant

def both():
    return sum('wx' in line.split()[1] for line in Path('/proc/self/maps').read_text().splitlines())

jit.kernels([constant(-1)])  # ctypes has such pages of its own
before = both()
kept = jit.kernels([constant(i) for i in range(40)])
print(both() - before)
""", GOSSAMER_NO_CACHE="1")
    assert done.stdout.split() == ["0"], done.stderr


def test_code_lives_as_long_as_someone_refers_to_it(placed) -> None:
    jit.forget()
    gc.collect()
    before = loader.code_bytes()
    sources = [constant(30_000 + i) for i in range(6)]
    first, *others = jit.kernels(sources)
    held = loader.code_bytes()
    assert held > before
    del others
    jit.forget()
    gc.collect()
    assert loader.code_bytes() == held  # one image: the first kernel holds it
    assert result_of(first.address) == 30_000
    assert jit.kernels(sources[:1])[0] is first  # alive, so nothing is compiled
    del first
    jit.forget()
    gc.collect()
    assert loader.code_bytes() == before


def test_bare_addresses_stay(placed) -> None:
    address = jit.addresses([constant(40_000)])[0]
    jit.forget()
    for i in range(50):
        jit.kernels([constant(40_001 + i)])
    assert result_of(address) == 40_000


def test_freed_pages_are_used_again_and_neighbours_join(placed) -> None:
    pages = loader._Pages()
    a, b, c = (pages.take(4096 * n) for n in (1, 2, 3))
    assert b == a + 4096 and c == b + 8192 and pages.used == 6 * 4096
    pages.returned.extend([(a, 4096), (c, 3 * 4096)])
    pages.collect()
    assert len(pages.free) == 2 and pages.used == 8192
    assert pages.take(4096) == a
    pages.returned.extend([(b, 8192), (a, 4096)])
    pages.collect()
    assert pages.free == [(a, 1 << 20)] and pages.used == 0
    large = pages.take(3 << 20)
    ctypes.memset(large, 1, 3 << 20)
    assert pages.used == 3 << 20


def test_threads_compile_run_and_drop_at_once(placed) -> None:
    wrong: list[int] = []

    def churn(number: int) -> None:
        for i in range(60):
            value = 50_000 + (i * number if i % 2 else i)
            kept = jit.kernels([constant(value)])[0]
            if i % 5 == 0:
                jit.forget()
            if result_of(kept.address) != value:
                wrong.append(value)

    churning = [threading.Thread(target=churn, args=(number,)) for number in range(1, 5)]
    for thread in churning:
        thread.start()
    for thread in churning:
        thread.join()
    assert not wrong


def test_a_forked_child_may_overwrite_what_its_parent_runs(placed) -> None:
    done = python("""
import gc, os
from gossamer.runtime import jit
from tests.runtime.test_jit import constant, result_of
kept = jit.kernels([constant(1)])
child = os.fork()
if child == 0:
    kept.clear(); jit.forget(); gc.collect()
    new = jit.kernels([constant(2)])
    os._exit(result_of(new[0].address))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), result_of(kept[0].address))
""", GOSSAMER_NO_CACHE="1")
    assert done.stdout.split() == ["2", "1"], done.stderr
