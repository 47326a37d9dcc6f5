"""The machine that runs the kernels: instruction set, cores, caches. Layer 3.

The one idea: everything is asked for by feature, never by the name of a processor, and answered
once as one frozen `Host` record. LLVM is reached through `llvm()`, which imports llvmlite at the
first question, so that importing Gossamer costs no more than importing NumPy.

Sources: sched_getaffinity(2); Linux `Documentation/admin-guide/cgroup-v2.rst` (cpu.max).
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.settings import setting

__all__ = ["Host", "cache_bytes", "cpu_quota", "host", "llvm", "usable_cores"]

# Features that fall with another one: LLVM clears what depends on a removed feature, and our own
# view of the host must agree. A name that ends in "*" stands for every feature beginning so.
_FALLS_WITH: dict[str, tuple[str, ...]] = {
    "avx": ("avx2", "fma", "f16c", "fma4", "xop", "vaes", "vpclmulqdq", "avx5*", "avx10*"),
    "avx2": ("avx512*", "avx10*", "avxvnni*", "avxifma", "avxneconvert"),
    "avx512f": ("avx512*", "avx10*", "amx-avx512"),
    "avx512bw": ("avx512bf16", "avx512bitalg", "avx512fp16", "avx512vbmi*", "avx10*"),
    "amx-tile": ("amx-*",),
    "neon": ("sve*", "sme*", "dotprod", "i8mm", "bf16"),
    "sve": ("sve*",),
}

# What every processor of an architecture has, said or not: LLVM cannot tell on every system (macOS,
# emulators), and the Armv8-A architecture (Arm DDI 0487, A1.5) makes Advanced SIMD standard.
_BASELINE = {"aarch64": frozenset({"neon"})}

# Used where the system does not tell: the smallest L1/L2 among the processors of the last decade
# that matter here (Skylake client 32 KiB / 256 KiB; Zen 32 KiB / 512 KiB; Neoverse 64 KiB / 1 MiB).
_DEFAULT_CACHE = {1: 32 * 1024, 2: 256 * 1024, 3: 4 * 1024 * 1024}


@functools.cache
def llvm() -> Any:
    """`llvmlite.binding`, imported and initialised for the host at the first call.

    Cost: about 40 ms at the first call, nothing later.
    """
    import llvmlite.binding as binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@dataclass(frozen=True)
class Host:
    """What kernels may assume about this machine.

    `features` are the LLVM names of those present; `feature_string` is the same for LLVM, absent
    ones included, with the overrides of GOSSAMER_CPU_FEATURES last (the last word wins in LLVM).
    """

    triple: str
    cpu: str
    features: frozenset[str]
    feature_string: str
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int

    @property
    def vector_bytes(self) -> int:
        """Width of the widest vector register, in bytes: 64, 32 or 16."""
        if "avx512f" in self.features:
            return 64
        return 32 if "avx2" in self.features else 16

    @property
    def architecture(self) -> str:
        """`x86`, `aarch64`, or whatever the triple begins with."""
        return _architecture(self.triple)

    def has(self, feature: str) -> bool:
        return feature in self.features


def _architecture(triple: str) -> str:
    first = triple.split("-")[0]
    if first in ("x86_64", "amd64") or (first.startswith("i") and first.endswith("86")):
        return "x86"
    return "aarch64" if first.startswith(("aarch64", "arm64")) else first


def host() -> Host:
    """The host as GOSSAMER_CPU_FEATURES lets us see it.

    Raises:
        ValueError: GOSSAMER_CPU_FEATURES is not a list of +feature and -feature.
    """
    return _host(setting("GOSSAMER_CPU_FEATURES"))


@functools.lru_cache(maxsize=8)
def _host(overrides: str) -> Host:
    binding = llvm()
    try:
        found: dict[str, bool] = dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on this system: the baseline of the target
        found = {}
    flags = [("+" if present else "-") + name for name, present in sorted(found.items())]
    features = {name for name, present in found.items() if present}
    triple = binding.get_process_triple()
    features |= _BASELINE.get(_architecture(triple), frozenset())
    for sign, name in _parse_overrides(overrides):
        flags.append(sign + name)
        if sign == "+":
            features.add(name)
        else:
            features -= _fallen(name, features)
    l1, l2, l3 = (cache_bytes(n) for n in (1, 2, 3))
    return Host(triple, binding.get_host_cpu_name(), frozenset(features), ",".join(flags),
                l1, l2, l3)


def _parse_overrides(text: str) -> list[tuple[str, str]]:
    """`'-avx512f, +fma'` as [('-', 'avx512f'), ('+', 'fma')]."""
    result = []
    for word in text.replace(",", " ").split():
        if word[0] not in "+-" or len(word) == 1:
            raise ValueError(f"GOSSAMER_CPU_FEATURES={text!r}: {word!r} has no sign; every "
                             "feature is +name or -name. Write for example '-avx512f'.")
        result.append((word[0], word[1:]))
    return result


def _fallen(name: str, features: Iterable[str]) -> set[str]:
    """`name` and everything in `features` that cannot be there without it."""
    fallen, pending = {name}, [name]
    while pending:
        for pattern in _FALLS_WITH.get(pending.pop(), ()):
            matches = {f for f in features if f == pattern
                       or (pattern.endswith("*") and f.startswith(pattern[:-1]))}
            pending.extend(matches - fallen)
            fallen |= matches
    return fallen


# cores ------------------------------------------------------------------------------------------
def usable_cores() -> int:
    """Threads worth starting: GOSSAMER_THREADS if set, else affinity and container limits.

    Raises:
        ValueError: GOSSAMER_THREADS is negative or no number.
    """
    wanted = setting("GOSSAMER_THREADS")
    if wanted < 0:
        raise ValueError(f"GOSSAMER_THREADS={wanted}: a number of threads cannot be negative. "
                         "Use 0 for all usable cores, or 1, 2, ...")
    return wanted or _cores_of_process()


@functools.cache
def _cores_of_process() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    # A quota of 1.5 cores is two threads at three quarters speed, which beats one at full speed.
    return max(1, cores if math.isinf(quota) else min(cores, math.ceil(quota)))


def cpu_quota() -> float:
    """Cores that the control groups of this process allow; infinity without a limit."""
    return _cgroup_cores(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))


def _cgroup_cores(membership: Path, root: Path) -> float:
    """Tightest CPU quota of this process's control groups, in cores; infinity without one."""
    quota = math.inf
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = min(quota, _quota_of(folder))
            if folder == base:
                break
    return quota


def _quota_of(folder: Path) -> float:
    """CPU quota that one control group sets, version 2 (`cpu.max`) or 1 (`cpu.cfs_*`)."""
    words = _read(folder / "cpu.max").split()
    if not words:
        words = (_read(folder / "cpu.cfs_quota_us") + " "
                 + _read(folder / "cpu.cfs_period_us")).split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    return math.inf  # "max" or -1: no limit


# caches -----------------------------------------------------------------------------------------
@functools.cache
def cache_bytes(level: int) -> int:
    """Size in bytes of one core's data or unified cache of `level` (1, 2 or 3)."""
    return _linux_cache(level) or _sysconf_cache(level) or _DEFAULT_CACHE[level]


def _linux_cache(level: int) -> int:
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(index / "level").strip() != str(level):
            continue
        if _read(index / "type").strip() == "Instruction":
            continue
        size = _read(index / "size").strip()
        scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1:], 1)
        digits = size.rstrip("KMG")
        if digits.isdigit():
            return int(digits) * scale
    return 0


def _sysconf_cache(level: int) -> int:
    name = {1: "SC_LEVEL1_DCACHE_SIZE", 2: "SC_LEVEL2_CACHE_SIZE", 3: "SC_LEVEL3_CACHE_SIZE"}[level]
    if sys.platform == "darwin":
        return _darwin_cache(level)
    if not hasattr(os, "sysconf") or name not in os.sysconf_names:
        return 0
    try:
        return max(0, os.sysconf(name))
    except OSError:
        return 0


def _darwin_cache(level: int) -> int:
    """Apple systems answer through sysctlbyname(3)."""
    names = {1: b"hw.l1dcachesize", 2: b"hw.l2cachesize", 3: b"hw.l3cachesize"}
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    failed = ctypes.CDLL(None).sysctlbyname(names[level], ctypes.byref(value),
                                            ctypes.byref(size), None, 0)
    return 0 if failed else int(value.value)


def _read(path: Path) -> str:
    """Text of a file of /proc or /sys; empty when it is not there or not readable."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
