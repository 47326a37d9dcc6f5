"""Compiled kernels and plans on disk, under GOSSAMER_CACHE. Layer 3.

The one idea: an entry proves itself. Each file carries its key, its length and a checksum, is
written beside its place and moved there in one step; so a reader sees a whole entry or none, two
processes may share the folder without locks, and whatever fails the proof is removed and built
again. A cache that cannot be written costs time, never an error: one warning, then memory only.

One file per kernel: 60 of them read and checked in 2 ms, so files of many kernels (by program)
would save nothing that one can feel, and every program would store its own copies.

The folder is bounded, and nobody counts it to know: the file `account` is one byte long for every
KiB that was ever written since the folder was last counted. Appending is atomic, so processes share
the account without locks; replaced and removed entries make it too large, never too small, which
costs a count too early. Counting 8,000 entries takes 60 ms to 1 s, appending 20 us.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from gossamer.core.settings import setting

__all__ = ["CacheInfo", "DiskCache", "KERNEL", "PLAN", "clear", "current", "info", "verify"]

_MAGIC = b"gossamer kernel 1\n"
_HEADER = struct.Struct("<18s32s32sQ")  # magic, key, sha256 of the payload, length of the payload
KERNEL, PLAN = ".kernel", ".plan"  # kinds of entries: object code, a whole program's plan
_TEMPORARY, _ACCOUNT = ".kernel-part", "account"
_UNIT = 1024  # bytes that a byte of the account stands for
_BOUND = 1 << 30  # bytes; a GPT training step leaves about 2 MB, so this holds hundreds of programs
_KEEP = 0.8  # fraction of the bound that a clean-up leaves, so that it does not run at every write
_TOUCH_AFTER = 24 * 3600.0  # seconds: "recently used" needs no finer clock, and writes cost
_PART_AGE = 3600.0  # seconds after which a part-written file belongs to a process that died


@dataclass(frozen=True)
class CacheInfo:
    """What `info()` tells.

    Attributes:
        folder: None: memory only.
        entries: kernels and plans.
        nbytes, bound: bytes held, and the most that are kept.
        plans: how many of the entries are plans.
        oldest, newest: when entries were last used, in seconds since 1970 (exact to a day); 0
            without any.
        broken: why nothing can be written, or "".
    """

    folder: Path | None
    entries: int
    nbytes: int
    bound: int
    plans: int = 0
    oldest: float = 0.0
    newest: float = 0.0
    broken: str = ""


class DiskCache:
    """Entries of one folder, `key (32 bytes) -> payload`.

    Args:
        folder: created at the first write.
        bound: bytes kept; the least recently used entries go first.
    """

    def __init__(self, folder: Path, bound: int = _BOUND) -> None:
        self.folder, self.bound = folder, bound
        self.broken = ""  # why nothing is written any more

    def path(self, key: bytes, kind: str = KERNEL) -> Path:
        return self.folder / (key.hex() + kind)

    def read(self, key: bytes, kind: str = KERNEL) -> bytes | None:
        """The payload stored under `key`, or None. A file that fails the proof is removed."""
        path = self.path(key, kind)
        try:
            with open(path, "rb") as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._give_up(error)
            return None
        payload = _proven(key, data)
        if payload is None:
            self._remove(path)
        elif age > _TOUCH_AFTER:
            self._touch(path)
        return payload

    def write(self, key: bytes, payload: bytes, kind: str = KERNEL) -> None:
        """Store `payload`; never raises for the disk's sake (see `broken`)."""
        if self.broken:
            return
        header = _HEADER.pack(_MAGIC, key, hashlib.sha256(payload).digest(), len(payload))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._replace(self.path(key, kind), header + payload)
            self._account(_HEADER.size + len(payload))
        except OSError as error:
            self._give_up(error)

    def entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry, the least recently used first."""
        return sorted(self._scan((KERNEL, PLAN)))

    def clear(self) -> int:
        """Remove every entry; other files in the folder stay. Returns how many went."""
        found = [path for _, _, path in self._scan((KERNEL, PLAN))]
        for path in found:
            self._remove(path)
        self._remove_parts(_PART_AGE)
        self._remove(self.folder / _ACCOUNT)
        return len(found)

    def verify(self) -> tuple[int, list[Path]]:
        """(entries looked at, those that failed the proof and were removed)."""
        damaged, entries = [], self.entries()
        for _, _, path in entries:
            try:
                key = bytes.fromhex(path.stem)
            except ValueError:
                key = b""
            if self.read(key, path.suffix) is None:
                self._remove(path)
                damaged.append(path)
        return len(entries), damaged

    # inside -------------------------------------------------------------------------------------
    def _replace(self, path: Path, data: bytes) -> None:
        """Write beside `path`, then move into place: readers never see half a file."""
        part = self.folder / (os.urandom(16).hex() + _TEMPORARY)
        try:
            with open(part, "xb") as file:
                file.write(data)
            os.replace(part, path)
        except OSError:
            self._remove(part)
            # Windows refuses to replace a file that another process reads. It is whole, and equal.
            if not path.exists():
                raise

    def _account(self, added: int) -> None:
        """Note that `added` bytes were written; count and shrink when the bound may be reached."""
        path = self.folder / _ACCOUNT
        with open(path, "ab") as file:
            new = file.tell() == 0
            file.write(bytes(-(-added // _UNIT)))
            total = file.tell() * _UNIT
        if new:  # an account begins with what is there already
            self._remove_parts(_PART_AGE)
        if new or total > self.bound:
            self._set_account(self._shrink())

    def _set_account(self, nbytes: int) -> None:
        """Write an account anew. What other processes write meanwhile may be missed, once."""
        self._replace(self.folder / _ACCOUNT, bytes(max(1, -(-nbytes // _UNIT))))

    def _shrink(self) -> int:
        """If the bound is passed, remove the least recently used entries until the folder is well
        under it. Returns the bytes that are left."""
        entries = self.entries()
        held = sum(_rounded(size) for _, size, _ in entries)
        if held > self.bound:
            for _, size, path in entries:
                if held <= self.bound * _KEEP:
                    break
                self._remove(path)
                held -= _rounded(size)
        return held

    def _scan(self, suffix: str | tuple[str, ...]) -> list[tuple[float, int, Path]]:
        found = []
        try:
            with os.scandir(self.folder) as listing:
                for entry in listing:
                    if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                        try:
                            stat = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue  # another process removed it meanwhile
                        found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        except OSError:
            return found  # no folder yet, or none that can be listed: nothing that we could remove
        return found

    def _remove_parts(self, age: float) -> None:
        now = time.time()
        for used, _, path in self._scan(_TEMPORARY):
            if now - used >= age:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Stop writing, and say so once."""
        if self.broken:
            return
        self.broken = str(error)
        warnings.warn(
            f"GOSSAMER_CACHE={str(self.folder)!r}: {error}; compiled kernels are kept in memory "
            "only, and every start compiles them again. Free some space, or set GOSSAMER_CACHE to "
            "a folder that can be written (GOSSAMER_NO_CACHE=1 silences this).",
            RuntimeWarning, stacklevel=2)


def _rounded(size: int) -> int:
    return -(-size // _UNIT) * _UNIT


def _proven(key: bytes, data: bytes) -> bytes | None:
    """The payload of a file's bytes, or None when they are not a whole entry of ours."""
    if len(data) < _HEADER.size:
        return None
    magic, written_key, checksum, length = _HEADER.unpack_from(data)
    payload = data[_HEADER.size:]
    sound = (magic == _MAGIC and written_key == key and length == len(payload)
             and hashlib.sha256(payload).digest() == checksum)
    return payload if sound else None


# The cache of this process ----------------------------------------------------------------------
_caches: dict[str, DiskCache] = {}


def current() -> DiskCache | None:
    """The cache that the settings name, or None under GOSSAMER_NO_CACHE."""
    if setting("GOSSAMER_NO_CACHE"):
        return None
    folder = setting("GOSSAMER_CACHE")
    if folder not in _caches:
        _caches[folder] = DiskCache(Path(folder) / "kernels")
    return _caches[folder]


def info() -> CacheInfo:
    """What the cache on disk holds."""
    cache = current()
    if cache is None:
        return CacheInfo(None, 0, 0, 0)
    entries = cache.entries()
    return CacheInfo(cache.folder, len(entries), sum(size for _, size, _ in entries), cache.bound,
                     sum(path.suffix == PLAN for _, _, path in entries),
                     entries[0][0] if entries else 0.0, entries[-1][0] if entries else 0.0,
                     cache.broken)


def verify() -> tuple[int, list[Path]]:
    """(entries looked at, damaged ones, which were removed) of the cache on disk."""
    cache = current()
    return cache.verify() if cache is not None else (0, [])


def clear() -> int:
    """Remove all compiled kernels from disk; those in memory stay. Returns how many went."""
    cache = current()
    return cache.clear() if cache is not None else 0
