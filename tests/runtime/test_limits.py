"""A system that grants less than the machine has: tiles, cores, time on them."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gossamer.compile.gemm.micro_amx import has_amx
from gossamer.compile.gemm.target import Target
from gossamer.runtime import amx, device
from tests.runtime.kernels import ROOT, python

AMX = frozenset({"avx512f", "avx512bf16", "amx-tile", "amx-bf16", "amx-int8"})


class Kernel:
    """Linux's answers about the tiles: (refused, bits of the granted state)."""

    def __init__(self, refused: int, bits: int) -> None:
        self.refused, self.bits, self.asked = refused, bits, 0

    def __call__(self, call: int, request: int, argument: object) -> int:
        assert call == 158
        self.asked += 1
        if request == 0x1023:
            assert argument == 18
            return self.refused
        argument._obj.value = self.bits  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(("refused", "bits", "granted"), [
    (0, 1 << 18, True), (-1, 0, False), (-1, 1 << 18, False), (0, 1 << 17, False)])
def test_tiles_need_the_systems_leave(monkeypatch: pytest.MonkeyPatch, refused: int, bits: int,
                                      granted: bool) -> None:
    asked = Kernel(refused, bits)
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda *a, **k: SimpleNamespace(syscall=asked))
    monkeypatch.setattr(amx.sys, "platform", "linux")
    amx._granted.cache_clear()
    try:
        host = device.Host("x86_64-unknown-linux-gnu", "", AMX, "", 1, 1, 1)
        usable = amx.usable_features(host)
        assert (usable == AMX) is granted and asked.asked
        assert usable >= {"avx512f", "avx512bf16"}  # vectors stay
        assert has_amx(Target(64, usable)) is granted
    finally:
        amx._granted.cache_clear()


def test_other_systems_grant_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx.sys, "platform", "darwin")
    amx._granted.cache_clear()
    try:
        host = device.Host("x86_64-apple-darwin", "", AMX, "", 1, 1, 1)
        assert amx.usable_features(host) == {"avx512f", "avx512bf16"}
    finally:
        amx._granted.cache_clear()


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("GOSSAMER_THREADS", "0")
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    device._cores_of_process.cache_clear()
    yield monkeypatch
    device._cores_of_process.cache_clear()


@pytest.mark.parametrize(("quota", "threads"), [
    (math.inf, 4), (4.0, 4), (2.5, 3), (2.0, 2), (1.0, 1), (0.1, 1), (64.0, 4)])
def test_a_containers_quota_decides_the_number_of_threads(
        four_cores: pytest.MonkeyPatch, quota: float, threads: int) -> None:
    four_cores.setattr(device, "cpu_quota", lambda: quota)
    assert device.usable_cores() == threads
    four_cores.setenv("GOSSAMER_THREADS", "7")
    assert device.usable_cores() == 7  # who says a number gets it


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_taskset_decides_the_number_of_threads() -> None:
    core = min(os.sched_getaffinity(0))
    code = ("import gossamer as gs; from gossamer.runtime.threads import get_num_threads\n"
            "print(get_num_threads(), gs.arange(100_000.0).sin().square().mean().item())")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "GOSSAMER_THREADS": "0"}
    done = subprocess.run(["taskset", "-c", str(core), sys.executable, "-c", code],
                          env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    threads, mean = done.stdout.split()
    assert threads == "1" and abs(float(mean) - 0.5) < 1e-4


CROWDED = """
import os, time
import gossamer as gs
from gossamer.runtime.threads import current_pool

x = gs.randn(512, 256)
step = gs.compile(lambda x: ((x @ x.T).softmax(-1) @ x).tanh())

def measure():
    start, values = time.process_time(), None
    for _ in range(40):
        values = step(x).numpy()
    return time.process_time() - start, values

step(x).numpy()
before, expected = min((measure() for _ in range(3)), key=lambda m: m[0])
assert current_pool().threads == 4
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), [min(os.sched_getaffinity(0))])
after, values = min((measure() for _ in range(3)), key=lambda m: m[0])
assert (values == expected).all()
print(after / before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_four_threads_on_one_core_burn_no_time_waiting() -> None:
    """Cores taken away from a running pool: the same values, and no spinning to death.

    CPU time, which a busy machine leaves alone: waiting that spins would show in it.
    """
    done = python(CROWDED, GOSSAMER_THREADS="4")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0
