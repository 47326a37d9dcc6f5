"""What this machine can do at most: FLOPs, bandwidth by level of memory, cost of a parallel region.

Surface. The one idea: the roofline's two lines are measured by kernels of our own, through the
same JIT, pool and program walker as everything else, so that a fraction of the peak compares like
with like. Best of many short runs: other work on the machine only ever makes a run slower. The
figures are kept in the cache folder, one file a machine; `gossamer doctor --measure` takes them
anew, and so does the first use on a quiet machine after one on a busy one.

Sources: Williams, Waterman, Patterson 2009, "Roofline"; McCalpin's STREAM (the triad).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource
from gossamer.core.settings import setting
from gossamer.runtime.buffer import allocate
from gossamer.runtime.device import Host, host
from gossamer.runtime.execute import Executable
from gossamer.runtime.threads import get_num_threads

__all__ = ["Peaks", "peaks"]

_VERSION = 1  # of what is measured; part of the file's name
_CHAINS = 12  # independent sums: two FMA units of latency 4 to 5 need 8 to 10
_TURNS = 1 << 13  # of the FMA loop in one item
_SECONDS = 0.12  # of runs for one figure
_LARGEST = 1 << 28  # bytes of the arrays that are to lie in memory, on hosts that tell of huge L3


@dataclass(frozen=True)
class Peaks:
    """Measured limits. Rates are of all threads together unless the name says `core`.

    Attributes:
        flops: dtype -> FLOP/s; `flops_core` of one thread.
        bandwidth: level ("L2", "L3", "memory") -> bytes/s of a triad; `bandwidth_core` of one.
        capacity: level -> bytes up to which a kernel's data counts as lying there.
        region, call: seconds that a parallel region and a serial call cost, besides their work.
        threads: how many were used.
        load: what else ran while measuring: the system's load average, in cores.
    """

    flops: dict[str, float]
    flops_core: dict[str, float]
    bandwidth: dict[str, float]
    bandwidth_core: dict[str, float]
    capacity: dict[str, int]
    region: float
    call: float
    threads: int
    load: float = 0.0

    def level(self, nbytes: int) -> str:
        """The nearest level of memory that holds `nbytes`."""
        return next((name for name in ("L2", "L3") if nbytes <= self.capacity[name]), "memory")

    def bound(self, flops: float, dtype: str, nbytes: int) -> tuple[float, str]:
        """(least seconds, what sets them): max(FLOPs / peak, bytes / bandwidth) of a kernel."""
        level = self.level(nbytes)
        compute = flops / self.flops.get(dtype, self.flops["float32"])
        traffic = nbytes / self.bandwidth[level]
        return (compute, "compute") if compute >= traffic else (traffic, level)


def peaks(measure: bool = False) -> Peaks:
    """The limits of this machine: from the cache folder, or measured now.

    Args:
        measure: measure again even if the figures are known.

    Cost: 2 s and up to 256 MB the first time, nothing later.

    Example:
        >>> limits = gs.insight.peaks()
        >>> limits.flops["float32"] > 1e8
        True
    """
    return _measured() if measure else _known(get_num_threads(), setting("GOSSAMER_CACHE"),
                                              setting("GOSSAMER_NO_CACHE"))


@functools.lru_cache(maxsize=4)
def _known(threads: int, folder: str, no_cache: bool) -> Peaks:
    path = cache_file()
    try:
        found = Peaks(**json.loads(path.read_text())) if path else None
    except (OSError, ValueError, TypeError):  # not there, or of another version
        found = None
    if found is None or (is_busy(found.load) and not is_busy(load_average())):
        return _measured()
    return found


def load_average() -> float:
    """Of the last minute, in cores; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def is_busy(load: float) -> bool:
    """Whether so much else runs that figures of all threads mean nothing."""
    return load > 0.5 * (os.cpu_count() or 1)


def cache_file() -> Path | None:
    """Where the figures of this machine are kept; None under GOSSAMER_NO_CACHE."""
    if setting("GOSSAMER_NO_CACHE"):
        return None
    h = host()
    key = repr((_VERSION, h.triple, h.cpu, h.feature_string, h.l2_bytes, h.l3_bytes,
                get_num_threads()))
    name = f"peaks-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    return Path(setting("GOSSAMER_CACHE")) / name


def _measured() -> Peaks:
    found = _measure(host(), get_num_threads())
    path = cache_file()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(found), indent=1))
        except OSError:
            return found  # the cache itself warns of a folder that cannot be written
    _known.cache_clear()
    return found


def _measure(machine: Host, threads: int) -> Peaks:
    dtypes = ["float32", "float64", *(["bfloat16"] if machine.has("avx512bf16") else [])]
    load = load_average()
    core = {d: _flops(machine, d, 1) for d in dtypes}
    every = {d: max(core[d], _flops(machine, d, threads)) for d in core} if threads > 1 else core
    l2, l3 = machine.l2_bytes, max(machine.l3_bytes, 2 * machine.l2_bytes * threads)
    sizes = {"L2": l2 // 2, "L3": min(l3 // 2 // threads, 4 * l2),
             "memory": min(_LARGEST, max(1 << 26, 4 * l3)) // threads}
    one = {level: _bandwidth(machine, n, 1) for level, n in sizes.items()}
    all_ = {level: max(one[level], _bandwidth(machine, n, threads))
            for level, n in sizes.items()} if threads > 1 else dict(one)
    if is_busy(load):  # what is each core's own scales with the threads; memory does not
        every = {d: threads * rate for d, rate in core.items()}
        all_["L2"] = threads * one["L2"]
    call, region = _empty(0), _empty(1) if threads > 1 else 0.0
    return Peaks(every, core, all_, one, {"L2": l2 * threads, "L3": l3}, region, call, threads,
                 load)


# kernels ----------------------------------------------------------------------------------------
def _word(f: FunctionBuilder, i: int, type_: str = "i64") -> str:
    return f.load(type_, f.gep("%args", str(i), "i64"), 8)


@functools.cache
def _fma_source(machine: Host, dtype: str) -> KernelSource:
    """`_CHAINS` independent chains of multiply-adds in registers; their sum is stored once.

    bfloat16: products of pairs, summed in float32 (AVX512-BF16).
    """
    element = "double" if dtype == "float64" else "float"
    lanes = machine.vector_bytes // (8 if dtype == "float64" else 4)
    vector = f"<{lanes} x {element}>"
    half, one = f"splat ({element} 0.5)", f"splat ({element} 1.0)"
    bits = 64 if dtype == "float64" else 32

    def step(x: str) -> str:
        if dtype == "bfloat16":
            pairs = f"<{2 * lanes} x bfloat>"
            y = (pairs, "splat (bfloat 0xR3F00)")  # 0.5
            return f.intrinsic(f"llvm.x86.avx512bf16.dpbf16ps.{8 * machine.vector_bytes}", vector,
                               [(vector, x), y, y])
        return f.intrinsic(f"llvm.fmuladd.v{lanes}f{bits}", vector,
                           [(vector, x), (vector, half), (vector, one)])

    f = FunctionBuilder("void @fma_peak(ptr %args, i64 %lo, i64 %hi, i64 %tid)")
    sums = [f.alloca(vector) for _ in range(_CHAINS)]
    for i, place in enumerate(sums):
        f.store(vector, f"splat ({element} {float(i)})", place, 64)
    with f.loop("%lo", "%hi"), f.loop("0", str(_TURNS)):
        for place in sums:
            f.store(vector, step(f.load(vector, place, 64)), place, 64)
    total = f.load(vector, sums[0], 64)
    for place in sums[1:]:
        total = f.value(f"fadd {vector} {total}, {f.load(vector, place, 64)}")
    out = f.gep(_word(f, 0, "ptr"), f.mul("%tid", "64"))
    f.store(vector, total, out, 64)
    return KernelSource("fma_peak", f.finish() + "\n".join(f.declares.values()) + "\n")


@functools.cache
def _triad_source(machine: Host) -> KernelSource:
    """a = b + s * c over arrays of each thread's own; words: base, bytes a thread, elements."""
    lanes = machine.vector_bytes // 4
    vector, unroll = f"<{lanes} x float>", 4
    f = FunctionBuilder("void @triad(ptr %args, i64 %lo, i64 %hi, i64 %tid)")
    base, count = _word(f, 0, "ptr"), _word(f, 2)
    a = f.gep(base, f.mul("%tid", _word(f, 1)))
    b = f.gep(a, count, "float")
    c = f.gep(b, count, "float")
    with f.loop("%lo", "%hi"), f.loop("0", count, lanes * unroll) as i:
        for k in range(unroll):
            at = f.add(i, str(k * lanes))
            x, y = (f.load(vector, f.gep(p, at, "float"), 4) for p in (b, c))
            scaled = f.value(f"fmul contract {vector} {y}, splat (float 0.5)")
            total = f.value(f"fadd contract {vector} {x}, {scaled}")
            f.store(vector, total, f.gep(a, at, "float"), 4)
    return KernelSource("triad", f.finish() + "\n".join(f.declares.values()) + "\n")


_EMPTY = KernelSource("nothing", "define void @nothing(ptr %args, i64 %lo, i64 %hi, i64 %tid) #0 "
                      "{\n  ret void\n}\n")


# measuring --------------------------------------------------------------------------------------
def _times(executable: Executable, pointers: list[int], seconds: float) -> list[float]:
    """Of each run, over runs that take `seconds` together."""
    executable.run(pointers)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        executable.run(pointers)
        found.append(time.perf_counter() - start)
    return found


def _best(executable: Executable, pointers: list[int]) -> float:
    return min(_times(executable, pointers, _SECONDS))


def _flops(machine: Host, dtype: str, threads: int) -> float:
    items = 32 * threads  # about 1 ms each thread
    out = allocate(64 * 64 * max(1, threads))
    call = Call(_fma_source(machine, dtype), (BufferRef(0),), items, 1 if threads > 1 else 0)
    multiplies = machine.vector_bytes // {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]
    seconds = _best(Executable([call], 1), [out.address])
    return 2.0 * multiplies * _CHAINS * _TURNS * items / seconds


def _bandwidth(machine: Host, nbytes: int, threads: int) -> float:
    """Bytes/s of a triad over `nbytes` of each thread: two arrays read, one written."""
    count = max(1024, nbytes // 12 & -1024)  # elements of one array
    pitch = 12 * count + 4096
    arrays = allocate(pitch * max(threads, get_num_threads()))
    arrays.as_numpy(np.dtype(np.uint8), (arrays.nbytes,))[:] = 0
    each = max(1, (1 << 22) // (12 * count))  # walks in an item, so that an item takes 0.1 ms
    items = each if threads == 1 else each * threads * 4
    call = Call(_triad_source(machine), (BufferRef(0), pitch, count), items,
                0 if threads == 1 else each)
    return 12.0 * count * items / _best(Executable([call], 1), [arrays.address])


def _empty(grain: int) -> float:
    """Seconds of one call (grain 0) or one parallel region of as many chunks as threads."""
    count = 256
    call = Call(_EMPTY, (), get_num_threads(), grain)
    # Not the least: a region is cheapest when the workers do not come at all.
    runs = _times(Executable([call] * count, 0), [], _SECONDS / 2)
    return statistics.median(runs) / count
