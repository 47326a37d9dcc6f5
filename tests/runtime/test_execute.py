"""Programs: words, patches, scratch, constants, params, threads; one native call each."""

from __future__ import annotations

import struct
import threading
import time

import numpy as np
import pytest

from gossamer.compile.calls import (
    Address,
    BufferRef,
    Call,
    FloatWord,
    KernelSource,
    Param,
    Scratch,
)
from gossamer.core.errors import CompileError
from gossamer.runtime import threads
from gossamer.runtime.buffer import Buffer, allocate
from gossamer.runtime.execute import Executable, float_bits, sources_of
from tests.runtime.kernels import ADD, FILL, SLOW, kernel, python

I64 = np.dtype(np.int64)


@pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n}-threads")
def thread_count(request):
    before = threads.get_num_threads()
    threads.set_num_threads(request.param)
    yield request.param
    threads.set_num_threads(before)


def longs(*shape: int) -> tuple[Buffer, np.ndarray]:
    memory = allocate(8 * int(np.prod(shape)))
    view = memory.as_numpy(I64, shape)
    view[...] = 0
    return memory, view


def add(out: int, a: int, b: int, n: int, grain: int = 0) -> Call:
    return Call(ADD, (BufferRef(out), BufferRef(a), BufferRef(b), 0), n, grain, name="add")


def test_a_program_of_three_calls(thread_count: int, rng) -> None:
    n = 1000
    a, b, out, more = (longs(n) for _ in range(4))
    a[1][:], b[1][:] = rng.integers(-1000, 1000, (2, n))
    program = Executable([add(2, 0, 1, n, 64), add(3, 2, 2, n), add(2, 3, 0, n, 999)], 4)
    program.run([x[0].address for x in (a, b, out, more)])
    assert (more[1] == 2 * (a[1] + b[1])).all()
    assert (out[1] == 3 * a[1] + 2 * b[1]).all()


def test_pointers_are_patched_at_every_run(rng) -> None:
    n = 5
    arrays = [longs(n) for _ in range(6)]
    for _, view in arrays:
        view[:] = rng.integers(0, 100, n)
    program = Executable([add(0, 1, 2, n)], 3)
    for _ in range(30):
        choice = rng.choice(6, 3, replace=False)
        expected = arrays[choice[1]][1] + arrays[choice[2]][1]
        pointers = [arrays[i][0].address for i in choice]
        program.run(pointers)
        assert (arrays[choice[0]][1] == expected).all()
        arrays[choice[0]][1][:] = -1
        program.run(tuple(pointers))  # the same again
        assert (arrays[choice[0]][1] == expected).all()


def test_offsets_and_constants(rng) -> None:
    table = allocate(80)
    table.as_numpy(I64, (10,))[:] = range(10)
    memory, view = longs(2, 4)
    calls = [Call(ADD, (BufferRef(0, 32), BufferRef(1, 8), BufferRef(1, 24), 0), 4, 0)]
    program = Executable(calls, 1, constants=[table])
    del table  # the program keeps it
    allocate(80).as_numpy(I64, (10,))[:] = -5
    program.run([memory.address])
    assert view.tolist() == [[0] * 4, [4, 6, 8, 10]]


def test_words_of_every_kind() -> None:
    store = kernel("""  %po = inttoptr i64 %w0 to ptr
  %oi = getelementptr i64, ptr %po, i64 %i
  %ai = getelementptr i64, ptr %args, i64 %i
  %v = load i64, ptr %ai
  store i64 %v, ptr %oi""")
    out, view = longs(7)
    words = (BufferRef(0), -3, 1 << 63, FloatWord(-1.5), Param(1), Param(0), True)
    program = Executable([Call(store, words, 7, 0)], 1, params=2)
    program.run([out.address], (float_bits(0.25), -9))
    assert view.tolist() == [out.address, -3, -(1 << 63),
                             struct.unpack("<q", struct.pack("<d", -1.5))[0], -9,
                             struct.unpack("<q", struct.pack("<d", 0.25))[0], 1]


def test_params_change_without_new_pointers() -> None:
    out, view = longs(4)
    program = Executable([Call(FILL, (BufferRef(0), Param(0), 0, 0), 4, 0)], 1, params=1)
    for value in (5, 5, -7, (1 << 64) - 1, 0):
        program.run((out.address,), (value,))
        assert (view == (-1 if value == (1 << 64) - 1 else value)).all()


def test_the_extent_may_be_a_param(thread_count: int) -> None:
    out, view = longs(500)
    program = Executable([Call(FILL, (BufferRef(0), 8, 0, 0), Param(0), 16)], 1, params=1)
    for n in (0, 1, 17, 500):
        view[:] = 0
        program.run([out.address], [n])
        assert (view[:n] == 8).all() and (view[n:] == 0).all()


CALLBACK = KernelSource("double_it", """define i64 @double_it(ptr %context, i64 %x) #0 {
  %b = load i64, ptr %context
  %inner = getelementptr i64, ptr %context, i64 1
  %q = load ptr, ptr %inner
  %c = load i64, ptr %q
  %t = mul i64 %x, %b
  %r = add i64 %t, %c
  ret i64 %r
}
""")


def test_nested_blocks_and_callbacks() -> None:
    apply = kernel("""  %po = inttoptr i64 %w0 to ptr
  %f = inttoptr i64 %w1 to ptr
  %context = inttoptr i64 %w2 to ptr
  %oi = getelementptr i64, ptr %po, i64 %i
  %r = call i64 %f(ptr %context, i64 %i)
  store i64 %r, ptr %oi""")
    out, view = longs(5)
    call = Call(apply, (BufferRef(0), Address(CALLBACK), (Param(0), (100, 7)), 0), 5, 0)
    assert sources_of([call, call]) == [apply, CALLBACK]
    program = Executable([call], 1, params=1)
    for factor in (3, 4):
        program.run([out.address], [factor])
        assert view.tolist() == [factor * i + 100 for i in range(5)]


# scratch[i] = i + 1 (or tid) / out[i] = scratch[i]; words: out or scratch pointers
def through_scratch(n: int) -> list[Call]:
    key = object()
    shared = Scratch(8 * n, key=key)
    own = Scratch(8 * n)
    return [
        Call(SLOW, (shared, Scratch(4096), 0, 0), n, 10),
        Call(FILL, (own, -1, 0, 0), n, 0),  # scratch of its own: must not hit the shared one
        Call(ADD, (BufferRef(0), shared, shared, 0), n, 10),
    ]


def test_scratch_of_one_key_lives_from_first_to_last_use(thread_count: int) -> None:
    n = 700
    out, view = longs(n)
    program = Executable(through_scratch(n), 1)
    for _ in range(3):
        view[:] = 0
        program.run([out.address])
        assert view.tolist() == [2 * (3 * i + 1) for i in range(n)]
    assert 2 * 8 * n <= program.scratch_bytes <= 2 * 8 * n + 4096 + 192


COUNT = kernel("""  %pc = inttoptr i64 %w0 to ptr
  %start = mul i64 %tid, 64
  %ci = getelementptr i8, ptr %pc, i64 %start
  %po = inttoptr i64 %w1 to ptr
  store i64 %i, ptr %ci
  %v = load volatile i64, ptr %ci
  %oi = getelementptr i64, ptr %po, i64 %i
  store i64 %v, ptr %oi""")


def test_scratch_per_thread_follows_the_number_of_threads(thread_count: int) -> None:
    n = 2000
    out, view = longs(n)
    program = Executable([Call(COUNT, (Scratch(40, per_thread=True), BufferRef(0), 0, 0), n, 3),
                          Call(FILL, (Scratch(40, per_thread=True), 1, 0, 0), 1, 0)], 1)
    program.run([out.address])
    assert program.scratch_bytes == 64 * thread_count
    assert view.tolist() == list(range(n))
    threads.set_num_threads(3)
    view[:] = 0
    program.run([out.address])
    assert program.scratch_bytes == 64 * 3 and view.tolist() == list(range(n))


def test_one_key_means_one_kind_of_area() -> None:
    calls = [Call(FILL, (Scratch(8, each, key="k"), 1, 0, 0), 1, 0) for each in (True, False)]
    with pytest.raises(CompileError, match="with and without per_thread"):
        Executable(calls, 0)


def test_the_number_of_values_is_checked() -> None:
    program = Executable([add(0, 1, 2, 1)], 3, params=1)
    for pointers, params in (((1, 2), (3, 4)), ((1, 2, 3), ()), ((1, 2, 3, 4), (5,))):
        with pytest.raises(ValueError, match="this program has 3 buffers and 1 params"):
            program.run(pointers, params)


def test_an_empty_program_and_a_bad_kernel() -> None:
    Executable([], 0).run(())
    with pytest.raises(CompileError):
        Executable([Call(KernelSource("k", "nonsense"), (), 1, 0)], 0)


def test_profile_tells_the_time_of_each_call(thread_count: int) -> None:
    out, view = longs(1000)
    work = [Call(SLOW, (BufferRef(0), Scratch(4096), turns, 0), 1000, 10, name=name)
            for turns, name in ((10_000, "long"), (10, ""))]
    program = Executable(work, 1)
    start = time.perf_counter()
    rows = program.profile([out.address])
    elapsed = time.perf_counter() - start
    assert [name for name, _ in rows] == ["long", "k"]
    assert 0 < rows[1][1] < rows[0][1] <= sum(seconds for _, seconds in rows) <= elapsed
    assert view.tolist() == [3 * i + 1 for i in range(1000)]
    program.run([out.address])  # no more time stamps
    assert program._words[2] == 0


def test_several_python_threads_run_one_program_and_others(thread_count: int) -> None:
    shared = Executable([Call(FILL, (BufferRef(0), Param(0), 0, 0), 300, 10),
                         *through_scratch(300)[0:2],
                         Call(FILL, (BufferRef(0), Param(0), 0, 0), 300, 7)], 1, params=1)
    wrong: list[int] = []

    def call(number: int) -> None:
        out, view = longs(300)
        other, other_view = longs(300)
        own = Executable(through_scratch(300), 1)
        for _ in range(100):
            shared.run([out.address], [number])
            own.run([other.address])
            if (view != number).any() or (other_view[1:3] != (8, 14)).any():
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(1, 6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


def test_other_python_threads_run_meanwhile() -> None:
    out, _ = longs(1)
    program = Executable([Call(SLOW, (BufferRef(0), Scratch(4096), 300_000_000, 0), 1, 0)], 1)
    running = threading.Thread(target=program.run, args=([out.address],))
    running.start()
    ticks = 0
    while running.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 20  # with the GIL held it would be none


def test_a_forked_child_runs_the_same_program() -> None:
    done = python("""
import os, threading
from gossamer.runtime import threads
from gossamer.runtime.execute import Executable
from tests.runtime.test_execute import longs, through_scratch

program = Executable(through_scratch(500), 1)
out, view = longs(500)

def works():
    view[:] = 0
    program.run([out.address])
    return view.tolist() == [2 * (3 * i + 1) for i in range(500)]

assert works()
stop = False
def busy():
    memory, _ = longs(500)
    while not stop:
        program.run([memory.address])
other = threading.Thread(target=busy)
other.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(3 if works() and works() else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert works()
stop = True
other.join()
print("done")
""", GOSSAMER_THREADS="2")
    assert done.stdout.split() == ["done"], done.stderr
