"""The cache on disk: it proves what it reads, survives what disks do, and stays in bounds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from gossamer.runtime import cache, jit
from gossamer.runtime.cache import DiskCache
from tests.runtime.kernels import ROOT, kernel, python

KEY, OTHER = b"k" * 32, b"o" * 32


def test_what_was_written_is_read(tmp_path) -> None:
    disk = DiskCache(tmp_path / "new" / "folder")
    assert disk.read(KEY) is None
    disk.write(KEY, b"machine code")
    disk.write(OTHER, b"")
    assert disk.read(KEY) == b"machine code" and disk.read(OTHER) == b""
    disk.write(KEY, b"a plan", cache.PLAN)
    assert disk.read(KEY, cache.PLAN) == b"a plan" and disk.read(KEY) == b"machine code"
    names = sorted(p.suffix or p.name for p in disk.folder.iterdir())
    assert names == [".kernel", ".kernel", ".plan", "account"]


def _truncate(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize("damage", [
    _truncate, lambda data: b"", lambda data: data[:40], lambda data: data + b"x",
    lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"\x7fELF" + data[4:],
    lambda data: data.replace(KEY, OTHER)],
    ids=["truncated", "empty", "header", "longer", "bit", "foreign", "renamed"])
def test_a_damaged_file_is_removed_and_written_again(tmp_path, damage) -> None:
    disk = DiskCache(tmp_path)
    disk.write(KEY, b"machine code")
    path = disk.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # silently
        assert disk.read(KEY) is None
        assert not path.exists()
        disk.write(KEY, b"machine code")
    assert disk.read(KEY) == b"machine code"


def test_a_folder_that_cannot_be_made_gives_one_warning(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    disk = DiskCache(tmp_path / "file" / "kernels")
    with pytest.warns(RuntimeWarning, match="kept in memory only.*GOSSAMER_CACHE") as caught:
        for _ in range(3):
            disk.write(KEY, b"code")
            assert disk.read(KEY) is None
    assert len(caught) == 1 and disk.broken


def test_a_full_disk_gives_one_warning_and_leaves_no_parts(tmp_path, monkeypatch) -> None:
    def no_space(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk = DiskCache(tmp_path)
    disk.write(OTHER, b"written before")
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        disk.write(KEY, b"code")
        disk.write(KEY, b"code")
    assert len(caught) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [disk.path(OTHER).name, "account"]
    assert disk.read(OTHER) == b"written before"  # reading goes on


def test_the_least_recently_used_go_first(tmp_path) -> None:
    disk = DiskCache(tmp_path, bound=20_000)
    keys = [bytes([i]) * 32 for i in range(9)]
    now = time.time()
    for i, key in enumerate(keys):
        disk.write(key, bytes(1000))
        os.utime(disk.path(key), (now, now - 100_000 + i))
    assert disk.read(keys[0]) is not None  # older than a day: reading makes it new
    disk.write(b"x" * 32, bytes(1000))
    left = [i for i, key in enumerate(keys) if disk.path(key).exists()]
    assert left == [0, 4, 5, 6, 7, 8]  # 10 entries of 2 KiB each; 7 are under 80 %
    assert sum(size for _, size, _ in disk.entries()) <= 0.8 * disk.bound


def test_other_files_in_the_folder_are_never_touched(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "folder.kernel").mkdir()
    stale, fresh = tmp_path / "a.kernel-part", tmp_path / "b.kernel-part"
    stale.write_text("half")
    fresh.write_text("half")
    os.utime(stale, (0, 0))
    disk = DiskCache(tmp_path, bound=1)
    disk.write(KEY, bytes(5000))
    disk.write(OTHER, bytes(5000))
    disk.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "b.kernel-part", "folder.kernel", "thesis.txt"]  # a part may be another process's


def test_a_write_does_not_count_the_folder(tmp_path, monkeypatch) -> None:
    counts = 0
    scan = DiskCache._scan

    def counted(self, suffix):
        nonlocal counts
        counts += 1
        return scan(self, suffix)

    monkeypatch.setattr(DiskCache, "_scan", counted)
    for process in range(5):  # each begins with an object of its own
        disk = DiskCache(tmp_path)
        for i in range(20):
            disk.write(bytes([process, i]) * 16, bytes(300 * i))
    assert counts <= 2  # the first write of all: what is there, and parts of dead processes
    written = sum(-(-size // 1024) for _, size, _ in disk.entries())
    assert (tmp_path / "account").stat().st_size == written


@pytest.mark.parametrize("account", [None, 0, 1, 10_000])
def test_a_wrong_account_costs_a_count_and_no_entry_too_many(tmp_path, account) -> None:
    disk = DiskCache(tmp_path, bound=30_000)
    for i in range(10):
        disk.write(bytes([i]) * 32, bytes(900))
    path = tmp_path / "account"
    path.unlink()
    if account is not None:
        path.write_bytes(b"x" * account)
    for i in range(10, 40):
        disk.write(bytes([i]) * 32, bytes(900))
    held = sum(size for _, size, _ in disk.entries())
    assert 10_000 < held <= (60_000 if account == 1 else 30_000)
    assert not disk.broken and path.stat().st_size * 1024 >= held / 2


def test_verify_finds_and_removes_what_is_damaged(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    disk = cache.current()
    assert disk is not None and cache.verify() == (0, [])
    keys = [bytes([i]) * 32 for i in range(5)]
    for key in keys:
        disk.write(key, b"code" * 100)
    disk.path(keys[1]).write_bytes(b"")
    disk.path(keys[3]).write_bytes(disk.path(keys[2]).read_bytes())
    (disk.folder / "what.kernel").write_text("no key")
    looked, damaged = cache.verify()
    assert looked == 6
    assert sorted(p.name for p in damaged) == sorted(
        [disk.path(keys[1]).name, disk.path(keys[3]).name, "what.kernel"])
    assert cache.verify() == (3, [])


def test_info_and_clear(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    assert cache.info() == cache.CacheInfo(tmp_path / "kernels", 0, 0, 1 << 30)
    jit.addresses([kernel("  store i64 4711, ptr %args")])
    found = cache.info()
    assert (found.entries, found.plans) == (1, 0) and found.nbytes > 100
    assert abs(found.newest - time.time()) < 60 and found.oldest == found.newest
    assert cache.clear() == 1 and cache.info().entries == 0
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    assert cache.info().folder is None and cache.clear() == 0


COMPILE = """
from gossamer.runtime import jit
from tests.runtime.kernels import kernel
jit.addresses([kernel(f"  store i64 {i}, ptr %args") for i in range(COUNT)])
print(jit.stats.compiled, jit.stats.loaded_from_disk)
"""


def test_a_second_process_compiles_nothing(tmp_path) -> None:
    code = COMPILE.replace("COUNT", "7")
    runs = [python(code, GOSSAMER_CACHE=str(tmp_path)) for _ in range(2)]
    assert [run.stdout.split() for run in runs] == [["7", "0"], ["0", "7"]], runs[1].stderr
    for path in (tmp_path / "kernels").glob("*.kernel"):
        path.write_bytes(path.read_bytes()[:100])
    again = python(code, GOSSAMER_CACHE=str(tmp_path))
    assert again.stdout.split() == ["7", "0"] and again.stderr == ""


def test_another_instruction_set_is_another_kernel(tmp_path) -> None:
    code = COMPILE.replace("COUNT", "1")
    runs = [python(code, GOSSAMER_CACHE=str(tmp_path), GOSSAMER_CPU_FEATURES=features)
            for features in ("", "-avx2", "-avx2")]
    assert [run.stdout.split() for run in runs] == [["1", "0"], ["1", "0"], ["0", "1"]]


def test_processes_share_a_folder(tmp_path) -> None:
    environment = {**os.environ, "GOSSAMER_CACHE": str(tmp_path), "GOSSAMER_THREADS": "1",
                   "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    code = COMPILE.replace("COUNT", "25")
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for _ in range(4)]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert sum(map(int, out.split())) == 25
    disk = DiskCache(Path(tmp_path) / "kernels")
    assert len(disk.entries()) == 25
    for _, _, path in disk.entries():
        assert disk.read(bytes.fromhex(path.stem)) is not None


def test_without_a_place_to_write_kernels_still_run(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = python("import warnings; warnings.simplefilter('default')\n" + COMPILE.replace(
        "COUNT", "3"), GOSSAMER_CACHE=str(tmp_path / "file"))
    assert done.stdout.split() == ["3", "0"]
    assert done.stderr.count("kept in memory only") == 1
