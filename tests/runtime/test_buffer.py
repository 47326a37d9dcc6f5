"""Memory: alignment, reuse, counters, views that keep it alive."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gossamer.runtime import buffer
from gossamer.runtime.buffer import Buffer, allocate, release_cached
from tests.runtime.kernels import python

F32 = np.dtype(np.float32)


@given(st.integers(0, 1 << 26))
def test_size_classes_waste_little_and_are_stable(nbytes: int) -> None:
    size = buffer.size_class(nbytes)
    assert size >= max(1, nbytes) and size % 64 == 0
    assert size - max(1, nbytes) < max(64, nbytes // 8 + 1, 4096 if nbytes >= 1 << 20 else 0)
    assert buffer.size_class(size) == size


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1000, 4097, 1 << 20, (1 << 22) + 5])
def test_memory_is_aligned_and_all_of_it_is_ours(nbytes: int) -> None:
    one, two = allocate(nbytes), allocate(nbytes)
    assert one.address % 64 == 0 and two.address % 64 == 0 and one.nbytes == nbytes
    a, b = (x.as_numpy(np.dtype(np.uint8), (nbytes,)) for x in (one, two))
    a[...], b[...] = 7, 9
    assert (a == 7).all() and (b == 9).all()


@pytest.mark.parametrize("nbytes", [100, 5000, 3 << 20])
def test_a_freed_block_is_used_again(nbytes: int) -> None:
    first = allocate(nbytes)
    address = first.address
    live, idle = buffer.live_bytes(), buffer.cached_bytes()
    del first
    size = buffer.size_class(nbytes)
    assert buffer.live_bytes() == live - size and buffer.cached_bytes() == idle + size
    assert allocate(nbytes - 1).address == address


def test_counters() -> None:
    buffer.reset_peak()
    start = buffer.live_bytes()
    one, two = allocate(1 << 20), allocate(1 << 20)
    assert buffer.live_bytes() == start + (2 << 20) == buffer.peak_bytes()
    del one, two
    assert buffer.live_bytes() == start and buffer.peak_bytes() == start + (2 << 20)
    buffer.reset_peak()
    assert buffer.peak_bytes() == start


def test_idle_memory_is_bounded(monkeypatch) -> None:
    buffer.release_cached()
    assert buffer.cached_bytes() == 0
    monkeypatch.setattr(buffer._pool, "bound", 10 << 20)
    blocks = [allocate(2 << 20) for _ in range(3)] + [allocate(3 << 20) for _ in range(3)]
    while blocks:
        blocks.pop()
    assert 0 < buffer.cached_bytes() <= 10 << 20
    # What came back last is still there; the class that was idle for longest went.
    assert (2 << 20) in buffer._pool.idle
    buffer.release_cached()
    assert buffer.cached_bytes() == 0


def test_released_memory_returns_to_the_system() -> None:
    done = python("""
import numpy as np
from gossamer.runtime import buffer
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
b = buffer.allocate(200 << 20)
start = resident()
b.as_numpy(np.dtype(np.uint8), (200 << 20,))[...] = 1
full = resident()
del b
buffer.release_cached()
print(full - start > 150 << 20, resident() - start < 20 << 20)
""", GOSSAMER_VERIFY="0")  # which fills fresh memory
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize(("dtype", "shape"), [
    (np.float32, (3, 4)), (np.int64, ()), (np.bool_, (7,)), (np.uint16, (0, 5)),
    (np.float64, (2, 1, 3))])
def test_a_view_has_type_and_shape_and_shares(dtype: type, shape: tuple[int, ...]) -> None:
    memory = allocate(200)
    view = memory.as_numpy(np.dtype(dtype), shape)
    assert view.dtype == dtype and view.shape == shape and view.flags.writeable
    view[...] = 1
    assert (memory.as_numpy(np.dtype(dtype), shape) == 1).all()
    if view.size:
        assert view.ctypes.data == memory.address


def test_a_view_keeps_its_memory_alive() -> None:
    memory = allocate(4000)
    address, gone = memory.address, weakref.ref(memory)
    view = memory.as_numpy(F32, (1000,))
    rows = view.reshape(10, 100)[3:]
    del memory, view
    gc.collect()
    assert gone() is not None and allocate(4000).address != address
    del rows
    gc.collect()
    assert gone() is None


def test_a_view_cannot_be_larger() -> None:
    with pytest.raises(ValueError, match=r"\(5, 5\)\): 100 bytes of a buffer of 99"):
        allocate(99).as_numpy(F32, (5, 5))


def test_a_numpy_array_is_shared_when_kernels_can_use_it() -> None:
    array = np.arange(12.0).reshape(3, 4)
    shared = Buffer.from_numpy(array)
    assert shared.borrowed and shared.address == array.ctypes.data and shared.nbytes == 96
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is not None
    view = shared.as_numpy(np.dtype(float), (12,))
    assert list(view) == list(range(12))
    del shared, view
    gc.collect()
    assert gone() is None


def _readonly(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("array", [
    np.arange(12.0).reshape(3, 4).T, np.arange(24.0)[::2], _readonly(np.arange(5.0)),
    np.arange(5.0).astype(">f8"), np.frombuffer(bytearray(65), np.float64, 8, 1),
    np.broadcast_to(np.float64(3), (4,))],
    ids=["transposed", "strided", "readonly", "byteorder", "unaligned", "broadcast"])
def test_other_arrays_are_copied(array: np.ndarray) -> None:
    copy = Buffer.from_numpy(array)
    assert not copy.borrowed and copy.address % 64 == 0
    assert (copy.as_numpy(np.dtype(np.float64), array.shape) == array).all()


def test_too_much_memory_is_an_error_with_sizes() -> None:
    buffer.release_cached()
    allocate(3 << 20)
    assert buffer.cached_bytes() > 0
    with pytest.raises(MemoryError, match=r"1,048,576.0 GiB asked for .* this machine has") as e:
        allocate(1 << 50)
    assert "batches" in str(e.value)
    assert buffer.cached_bytes() == 0  # idle memory went before giving up
    with pytest.raises(MemoryError):
        allocate(1 << 70)
    with pytest.raises(ValueError, match="cannot be negative"):
        allocate(-1)


def test_threads_allocate_at_once() -> None:
    start = buffer.live_bytes()
    wrong: list[int] = []

    def churn(mark: int) -> None:
        for i in range(400):
            mine = [allocate(64 << (i % 5)) for _ in range(3)]
            views = [b.as_numpy(np.dtype(np.uint8), (64,)) for b in mine]
            for view in views:
                view[...] = mark
            wrong.extend(mark for view in views if (view != mark).any())

    churning = [threading.Thread(target=churn, args=(mark,)) for mark in range(1, 5)]
    for thread in churning:
        thread.start()
    for thread in churning:
        thread.join()
    assert not wrong and buffer.live_bytes() == start


def test_a_forked_child_has_its_own_memory() -> None:
    done = python("""
import os
import numpy as np
from gossamer.runtime import buffer
byte = np.dtype(np.uint8)
views = [buffer.allocate(n).as_numpy(byte, (n,)) for n in (100, 5 << 20)]
for view in views:
    view[...] = 1
child = os.fork()
if child == 0:
    for view in views:
        view[...] = 2
    buffer.allocate(100)
    os._exit(0)
os.waitpid(child, 0)
print(*(int(view.max()) for view in views))
""")
    assert done.stdout.split() == ["1", "1"], done.stderr


@pytest.mark.skipif(not buffer._huge_pages, reason="no huge pages here")
def test_parts_of_a_region_do_not_overlap_and_outlive_the_next_region() -> None:
    release_cached()
    sizes = [4096, 5000, 100_000, 3_900_000] * 9  # more than one region
    made = [allocate(n) for n in sizes]
    for i, b in enumerate(made):
        b.as_numpy(np.dtype(np.uint8), (b.nbytes,))[:] = i
    spans = sorted((b.address, b.address + b.nbytes) for b in made)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    for i, b in enumerate(made):
        assert (b.as_numpy(np.dtype(np.uint8), (b.nbytes,)) == i).all()
    regions = {id(b._block[2].region) for b in made if b._block}
    assert len(regions) > 1
    del made, b
    release_cached()


@pytest.mark.skipif(not buffer._huge_pages, reason="no huge pages here")
def test_small_mappings_serve_where_a_region_is_too_much(monkeypatch) -> None:
    def refused(self: object) -> None:
        raise OSError("no memory")

    release_cached()
    monkeypatch.setattr(buffer._Region, "__init__", refused)
    monkeypatch.setattr(buffer, "_region", None)
    for nbytes in (5000, 3 << 20):
        made = allocate(nbytes)
        made.as_numpy(np.dtype(np.uint8), (nbytes,))[:] = 7
        assert made._block is not None and not isinstance(made._block[2], buffer._Part)
