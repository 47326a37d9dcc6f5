"""`gossamer doctor`: what this machine is, what it can do, and what is wrong here. Surface.

The one idea: one row for each thing that decides speed or stops the work, and next to a row that is
wrong, in red, what to do. Limits are measured once and kept (see `limits`); a small program is
compiled, run and compared with NumPy, since a machine that computes wrongly is the worst problem.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gossamer.core.errors import GossamerError
from gossamer.core.settings import setting
from gossamer.insight import limits, table
from gossamer.insight.limits import Peaks
from gossamer.interop import from_numpy
from gossamer.runtime import cache, device
from gossamer.runtime.threads import get_num_threads

__all__ = ["Diagnosis", "Finding", "doctor"]

_FEATURES = ("avx2", "fma", "avx512f", "avx512bf16", "avx512vnni", "avx512fp16", "amx-tile",
             "amx-bf16", "amx-int8", "neon", "bf16", "i8mm", "sve")
_EXTRAS = ("rich", "typer", "tokenizers", "matplotlib", "safetensors")
_LITTLE_MEMORY, _LITTLE_DISK = 2 << 30, 1 << 30  # bytes; below, a small training run is at risk


@dataclass(frozen=True)
class Finding:
    """One row: what, its value, and what is wrong with it and what to do (or nothing)."""

    name: str
    value: str
    problem: str = ""
    advice: str = ""  # worth knowing, but no problem


@dataclass
class Diagnosis:
    """What `doctor` found. Prints as a table.

    Attributes:
        findings: rows in order.
        peaks: measured limits.
    """

    findings: list[Finding] = field(default_factory=list)
    peaks: Peaks | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong, with what to do about it."""
        return [f"{f.name}: {f.problem}" for f in self.findings if f.problem]

    def __str__(self) -> str:
        rows: list[list[table.Cell]] = []
        for f in self.findings:
            style = "red" if f.problem else "yellow" if f.advice else ""
            rows.append([(f.name, style), (f.value, style)])
        notes: list[table.Cell] = [(f"! {p}", "red") for p in self.problems]
        notes += [(f"- {f.name}: {f.advice}", "yellow") for f in self.findings if f.advice]
        if not self.problems:
            notes.append(("no problems found", "green"))
        return table.render("gossamer doctor", ("", ""), rows, notes, wide=(0, 1))

    __repr__ = __str__


def doctor(measure: bool = False) -> Diagnosis:
    """Look at this machine: instruction set, threads, limits, caches, speed, problems.

    Args:
        measure: measure the machine's limits again, even if they are known.

    Returns:
        A `Diagnosis`; print it.

    Cost: 4 s the first time on a machine, then 0.1 s.

    Example:
        >>> d = gs.insight.doctor()
        >>> [f.name for f in d.findings][:2]
        ['gossamer', 'python']
    """
    found = Diagnosis()
    for part in (_versions, _processor, _threads, _memory, _cache_state, _switches, _self_test):
        found.findings += part()
    found.peaks = limits.peaks(measure)
    found.findings += _speed(found.peaks)
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _versions() -> list[Finding]:
    binding = device.llvm()
    llvm = ".".join(map(str, binding.llvm_version_info))
    extras = [f"{name} {v}" for name in _EXTRAS if (v := _version(name))]
    missing = [name for name in _EXTRAS if not _version(name)]
    advice = f"not installed: {', '.join(missing)}; pip install 'gossamer[chat]'" if missing else ""
    return [Finding("gossamer", _version("gossamer") or "from source"),
            Finding("python", f"{platform.python_version()} {platform.python_implementation()}, "
                    f"{platform.system()} {platform.release()}"),
            Finding("numpy, llvmlite", f"{np.__version__}, {_version('llvmlite')} (LLVM {llvm})"),
            Finding("extras", ", ".join(extras) or "none", advice=advice)]


def _processor() -> list[Finding]:
    h = device.host()
    have = [f for f in _FEATURES if h.has(f)]
    problem = ""
    if h.architecture == "x86" and not h.has("avx2"):
        problem = ("no AVX2: kernels use vectors of 4 floats, a quarter of the usual speed; if "
                   "this is a virtual machine, pass the host's CPU through")
    overrides = setting("GOSSAMER_CPU_FEATURES")
    if overrides:
        problem = f"GOSSAMER_CPU_FEATURES={overrides!r} switches features; unset it unless testing"
    kib = [f"L{i} {n >> 10} KiB" for i, n in ((1, h.l1_bytes), (2, h.l2_bytes), (3, h.l3_bytes))]
    return [Finding("processor", f"{h.cpu}, {h.triple}, {8 * h.vector_bytes}-bit vectors"),
            Finding("features", " ".join(have) or "baseline", problem),
            Finding("caches", ", ".join(kib))]


def _threads() -> list[Finding]:
    cores, used, free = os.cpu_count() or 1, get_num_threads(), device.usable_cores()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = device.cpu_quota()
    problem = advice = ""
    if used > min(affinity, quota):
        problem = (f"{used} threads on {min(affinity, quota):g} usable cores: they take turns; "
                   "unset GOSSAMER_THREADS or set_num_threads")
    elif quota % 1 and quota < affinity:
        advice = (f"the container may use {quota:g} cores: kernels are stopped for part of the "
                  "time; ask for a whole number")
    elif used < free:
        advice = f"{free - used} usable cores lie idle (GOSSAMER_THREADS)"
    load = limits.load_average()
    busy = ("other work takes the cores; timings are too long, and limits measured now too low"
            if limits.is_busy(load) else "")
    limit = "no limit" if quota == float("inf") else f"limit {quota:g} cores"
    return [Finding("threads", f"{used} used; {cores} cores, {affinity} by affinity, {limit}",
                    problem, advice),
            Finding("load", f"{load:.1f}", advice=busy)]


def _memory() -> list[Finding]:
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    text = _first_line(Path("/sys/fs/cgroup/memory.max"))
    limit = int(text) if text.isdigit() else 0
    least = min(n for n in (total, limit, 1 << 62) if n)
    problem = (f"only {table.nbytes(least)} of memory: use small batches, or raise the container's "
               "limit") if least < _LITTLE_MEMORY else ""
    shown = f"{table.nbytes(total)}" + (f", container limit {table.nbytes(limit)}" if limit else "")
    return [Finding("memory", shown, problem)]


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip().partition("\n")[0]
    except OSError:  # another system, or no control groups
        return ""


def _cache_state() -> list[Finding]:
    if setting("GOSSAMER_NO_CACHE"):
        return [Finding("kernel cache", "off (GOSSAMER_NO_CACHE)",
                        "every start compiles everything anew; unset GOSSAMER_NO_CACHE")]
    folder, state = Path(setting("GOSSAMER_CACHE")), cache.info()
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"doctor-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
        free = shutil.disk_usage(folder).free
        if free < _LITTLE_DISK:
            problem = f"{table.nbytes(free)} free on its disk: free some space"
    except OSError as error:
        problem = (f"it cannot be written ({error.strerror}): every start compiles anew; set "
                   "GOSSAMER_CACHE to a folder that can")
    held = f"{state.entries} kernels, {table.nbytes(state.nbytes)} of {table.nbytes(state.bound)}"
    return [Finding("kernel cache", f"{folder}: {held}", problem)]


def _switches() -> list[Finding]:
    """Settings that are for tests and cost time."""
    slow = {"GOSSAMER_REFERENCE": "everything runs in NumPy, a hundred times slower",
            "GOSSAMER_VERIFY": "every graph is verified between passes",
            "GOSSAMER_DEBUG": "kernels are printed as they are compiled"}
    return [Finding(name, str(setting(name)), f"{what}; unset it") for name, what in slow.items()
            if setting(name)]


def _self_test() -> list[Finding]:
    """Compile and run a small program, and compare it with NumPy."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(33, 47)).astype(np.float32)
    b = rng.normal(size=(47, 29)).astype(np.float32)
    try:
        made = (from_numpy(a) @ from_numpy(b)).exp().sum(dim=1).numpy()
    except (GossamerError, OSError, RuntimeError) as error:
        return [Finding("self test", "failed", f"{error}")]
    want = np.exp(a.astype(np.float64) @ b).sum(axis=1)
    worst = float(np.max(np.abs(made - want) / want))
    problem = "" if worst < 1e-4 else ("kernels compute wrong values here: report this table; "
                                       "GOSSAMER_CPU_FEATURES='-avx512f' may help meanwhile")
    return [Finding("self test", f"product, exp and sum within {worst:.1e} of NumPy", problem)]


def _speed(p: Peaks) -> list[Finding]:
    def both(each: dict[str, float], every: dict[str, float], unit: str) -> Callable[[str], str]:
        return lambda k: (f"{table.count(each[k])}{unit} a core, {table.count(every[k])}{unit} "
                          f"with {p.threads} thread(s)")

    flops = both(p.flops_core, p.flops, "FLOP/s")
    rate = both(p.bandwidth_core, p.bandwidth, "B/s")
    rows = [Finding(f"peak {d}", flops(d)) for d in p.flops]
    rows += [Finding(f"bandwidth {level}", rate(level)) for level in p.bandwidth]
    costs = f"{table.duration(p.region)} a parallel region, {table.duration(p.call)} a call"
    slow = "a parallel region costs over 20 us: threads are not free to run" \
        if p.region > 2e-5 else ""
    advice = (f"measured under load {p.load:.1f}; run `gossamer doctor --measure` on a quiet "
              "machine" if limits.is_busy(p.load) else "")
    return [*rows, Finding("kernel start", costs, slow, advice)]
