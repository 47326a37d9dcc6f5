"""What the runtime finds out about the machine."""

from __future__ import annotations

import os

import pytest

from gossamer.runtime import device
from tests.runtime.kernels import python


def test_importing_the_runtime_does_not_import_llvmlite() -> None:
    done = python("import sys\n"
                  "from gossamer.runtime import buffer, cache, device, execute, jit, threads\n"
                  "print('llvmlite' in sys.modules)\n"
                  "device.host(); print('llvmlite' in sys.modules)")
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_vector_width_follows_the_features() -> None:
    def width(*features: str) -> int:
        return device.Host("x86_64-unknown-linux-gnu", "", frozenset(features), "", 1, 1,
                           1).vector_bytes

    assert [width("avx512f", "avx2"), width("avx2", "avx"), width("avx"), width()] == [64, 32, 16,
                                                                                      16]


@pytest.mark.parametrize(("triple", "architecture"), [
    ("x86_64-unknown-linux-gnu", "x86"), ("i686-pc-windows-msvc", "x86"),
    ("arm64-apple-darwin23", "aarch64"), ("aarch64-linux-gnu", "aarch64"),
    ("riscv64-linux-gnu", "riscv64")])
def test_the_architecture_is_read_from_the_triple(triple: str, architecture: str) -> None:
    assert device.Host(triple, "", frozenset(), "", 1, 1, 1).architecture == architecture


def test_removed_features_fall_with_what_depends_on_them(monkeypatch) -> None:
    everything = frozenset({"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512bf16", "sse2",
                            "amx-tile", "amx-bf16"})
    assert device._fallen("avx512f", everything) == {"avx512f", "avx512bw", "avx512bf16"}
    assert everything - device._fallen("avx", everything) == {"sse2", "amx-tile", "amx-bf16"}
    assert device._fallen("amx-tile", everything) == {"amx-tile", "amx-bf16"}
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "-avx512f -avx2")
    host = device.host()
    assert host.vector_bytes == 16
    assert host.feature_string.endswith(",-avx512f,-avx2")
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "+avx512f")
    assert device.host().has("avx512f")


def test_a_feature_without_a_sign_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "avx512f")
    with pytest.raises(ValueError, match=r"'avx512f' has no sign.*-avx512f"):
        device.host()


def test_the_setting_decides_the_number_of_threads(monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_THREADS", "5")
    assert device.usable_cores() == 5
    monkeypatch.setenv("GOSSAMER_THREADS", "0")
    assert 1 <= device.usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("GOSSAMER_THREADS", "-1")
    with pytest.raises(ValueError, match="cannot be negative"):
        device.usable_cores()


@pytest.mark.parametrize(("membership", "files", "cores"), [
    ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
    ("0::/\n", {"cpu.max": "300000 100000"}, 3.0),
    ("3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                            "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 2.0),
    ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
    ("", {}, float("inf")),
])
def test_container_limits(tmp_path, membership: str, files: dict[str, str], cores: float) -> None:
    (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert device._cgroup_cores(tmp_path / "self", tmp_path / "fs") == cores


def test_cache_sizes_are_plausible() -> None:
    l1, l2, l3 = (device.cache_bytes(level) for level in (1, 2, 3))
    assert 8 * 1024 <= l1 <= l2 and l3 >= 256 * 1024


def test_every_aarch64_has_neon_even_where_llvm_cannot_tell(monkeypatch) -> None:
    class Binding:
        def get_host_cpu_features(self) -> dict[str, bool]:
            raise RuntimeError("unknown")

        def get_process_triple(self) -> str:
            return "arm64-apple-darwin23"

        def get_host_cpu_name(self) -> str:
            return "generic"

    monkeypatch.setattr(device, "llvm", Binding)
    device._host.cache_clear()
    try:
        assert device._host("").features == {"neon"}
        assert device._host("-neon").features == frozenset()
    finally:
        device._host.cache_clear()
