"""Who takes part, each with the thread settings that suit it best. One row a peer.

A peer runs in a process of its own, whose environment is made here and nowhere else: variables that
steer threads or caches are removed from what the caller has set, so that nothing leaks in. With
fewer threads than cores the process is bound to that many cores, because JAX and tinygrad size
their pools by what they may run on. A name that ends in `:default` is the same peer with none of
these settings, as somebody finds it who has just installed it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "ROOT", "Peer", "cores", "environment", "find"]

ROOT = Path(__file__).resolve().parents[1]
_STEERING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOSSAMER_", "TORCH", "XLA_", "JAX_",
             "NPROC", "PJRT_", "NUM_CPU_THREADS", "CACHEDB", "BEAM", "DEV",
             "PYTHONDONTWRITEBYTECODE")  # importing is not to mean compiling each time


@dataclass(frozen=True)
class Peer:
    """One way to do the work.

    Attributes:
        name: as the tables write it.
        package: the module whose import says whether the peer is there.
        adapter: the module that knows the family.
        compiled: the step is compiled (only families with both ways look at it).
        settings: environment for a number of threads.
        caches: environment that puts what it compiles into a folder.
        tuned: False for `:default`, which gets no settings.
        patience: the most seconds it gets for one answer, where less than the plan allows.
    """

    name: str
    package: str
    adapter: str
    compiled: bool
    settings: Callable[[int], dict[str, str]]
    caches: Callable[[Path], dict[str, str]]
    tuned: bool = True
    patience: float = 0.0

    @property
    def family(self) -> str:
        """Whose models it runs, as workloads name them; "" for an adapter that is not ours."""
        return _FAMILIES.get(self.adapter, "")

    @property
    def missing(self) -> str:
        """Why it cannot take part on this machine; empty if it can."""
        if self.package == "gossamer":
            return ""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed (pip install '.[compare]')"
        if self.package == "tinygrad" and not _clang():
            return "tinygrad needs clang (pip install ziglang brings one)"
        if self.package == "xllamacpp" and importlib.util.find_spec("gguf") is None:
            return "llama.cpp needs gguf to write its models (pip install '.[bench]')"
        return ""


def cores() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _torch(threads: int) -> dict[str, str]:
    # Waiting threads that spin take the cores from the one that works: on two virtual cores the
    # mlp step takes 192 ms with the default and 5.2 with PASSIVE.
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE"}


def _clang() -> str:
    """A clang for tinygrad: the system's, or the one inside the wheel of Zig."""
    found = shutil.which("clang")
    if found:
        return found
    spec = importlib.util.find_spec("ziglang")
    return str(Path(spec.origin).parent / "zig") if spec and spec.origin else ""


def _tinygrad_caches(folder: Path) -> dict[str, str]:
    made = {"CACHEDB": str(folder / "tinygrad.db")}
    clang = _clang()
    if Path(clang).name == "zig":  # a driver of many tools; tinygrad calls $CC with no first word
        script = folder / "clang"
        folder.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec "{clang}" clang "$@"\n')
        script.chmod(0o755)
        made["CC"] = str(script)
    return made


def _jax_caches(folder: Path) -> dict[str, str]:
    return {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax"), "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def _torch_caches(folder: Path) -> dict[str, str]:
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


_A = "benchmarks.adapters."
_FAMILIES = {_A + "torchlike": "torch", _A + "jaxlike": "jax", _A + "tinylike": "tinygrad",
             _A + "llamacpp": "llamacpp"}
_TORCH = (_torch, _torch_caches)
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("gossamer", "gossamer", _A + "torchlike", True, lambda n: {"GOSSAMER_THREADS": str(n)},
             lambda folder: {"GOSSAMER_CACHE": str(folder / "gossamer")}),
        Peer("torch", "torch", _A + "torchlike", False, *_TORCH),
        Peer("torch-compile", "torch", _A + "torchlike", True, *_TORCH),
        Peer("jax", "jax", _A + "jaxlike", True, lambda n: {"NPROC": str(n), "PJRT_NPROC": str(n)},
             _jax_caches),
        Peer("tinygrad", "tinygrad", _A + "tinylike", True, lambda n: {"NUM_CPU_THREADS": str(n)},
             _tinygrad_caches, patience=25.0),
        Peer("llamacpp", "xllamacpp", _A + "llamacpp", False, lambda n: {}, lambda folder: {}),
        # JAX and tinygrad by default do what is set above: one thread a core they may run on.
        Peer("torch:default", "torch", _A + "torchlike", False, *_TORCH, tuned=False),
        Peer("torch-compile:default", "torch", _A + "torchlike", True, *_TORCH, tuned=False),
    )
}


def find(names: list[str]) -> list[Peer]:
    """The peers of these names.

    Raises:
        ValueError: there is no peer of that name.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers {name}: there is no such peer; there are "
                             f"{', '.join(PEERS)}.")
    return [PEERS[name] for name in names]


def environment(peer: Peer, threads: int, caches: Path) -> dict[str, str]:
    """The whole environment of the peer's process."""
    made = {k: v for k, v in os.environ.items() if not k.startswith(_STEERING)}
    path = [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT)]
    made["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
    made["PYTHONWARNINGS"] = "ignore"
    # Some find their tools beside the interpreter.
    made["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), made.get("PATH", "")])
    made.update(peer.caches(caches))
    if peer.tuned:
        made.update(peer.settings(threads))
    return made
