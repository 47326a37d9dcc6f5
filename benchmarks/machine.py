"""What the figures were taken on, and how busy it was with other things.

Busyness is what /proc/stat counted as work on all cores while the rounds ran, minus what the
benchmark's own processes used. Above a tenth of one core the figures are marked, in the table and
in the JSON. Without /proc (macOS, Windows) only the load average is known.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BUSY", "Watch", "busy", "describe", "load", "thread_seconds"]

BUSY = 0.1  # of one core; /proc counts in ticks of 10 ms, so that less could be noise
_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16",
             "amx_int8", "asimd", "bf16", "i8mm")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_STAT = Path("/proc/stat")


def describe() -> dict[str, Any]:
    """Processor, features, caches, memory and versions of this machine."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = ((folder / f).read_text().strip() for f in ("level", "type"))
        if kind != "Instruction":
            caches[f"L{level}"] = (folder / "size").read_text().strip()
    return {"processor": fields.get("model name") or platform.processor() or platform.machine(),
            "cores": os.cpu_count(), "features": [f for f in _FEATURES if f in flags],
            "caches": caches, "system": _system(),
            "python": platform.python_version(),
            "memory_gb": round(_memory() / 1e9, 1),
            "versions": {name: _version(name) for name in ("numpy", "llvmlite")}}


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return 0.0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def load() -> float:
    """Load average of the last minute; 0 where it is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@dataclass
class Watch:
    """Starts when made; `others` says what the rest of the machine did since then.

    Attributes:
        own: identifiers of the processes that belong to the benchmark.
    """

    own: list[int]

    def __post_init__(self) -> None:
        self._start = self._now()

    def _now(self) -> tuple[float, float, float]:
        used = sum(_used(pid) for pid in [os.getpid(), *self.own])
        return time.perf_counter(), _busy_seconds(), used

    def others(self) -> float | None:
        """Cores that other processes (and a hypervisor) kept busy on average; None if unknown."""
        if not _STAT.exists():
            return None
        (t0, all0, own0), (t1, all1, own1) = self._start, self._now()
        return max(0.0, (all1 - all0) - (own1 - own0)) / max(t1 - t0, 1e-9)


def _busy_seconds() -> float:
    """CPU time of everything since the system started: all but idle and waiting for disks."""
    if not _STAT.exists():
        return 0.0
    fields = [int(x) for x in _STAT.read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def _used(pid: int) -> float:
    """CPU time of a process and of the children it has waited for."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return 0.0
    fields = path.read_text().rpartition(")")[2].split()
    return sum(int(x) for x in fields[11:15]) / _TICKS


def thread_seconds(pid: int) -> float:
    """CPU time of all threads that a process has now, to the nanosecond; 0 where it is unknown."""
    used = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            used += int(path.read_text().split()[0])
    return used / 1e9


def busy(others: float | None, load_before: float) -> bool:
    """Whether figures taken so should be taken again. Without /proc the load average decides."""
    return others > BUSY if others is not None else load_before > 0.5


def _system() -> str:
    """Its name and version without what a distributor appends."""
    return f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
