"""Object code to addresses: our own loader for kernels, and their memory given back. Layer 3.

The one idea: a kernel is a leaf. It calls libm or libc at most, throws nothing and owns no
variables, so placing it takes one copy and a handful of relocations. An `Image` is a few kernels
(those of one program) in pages of their own, writable or executable but never both; when nobody
refers to it any more, its pages serve the next one.

Measured (LLVM 20, kernels of 2.6 KB): 4 KB and 0.1 ms a kernel. LLVM's JITLink takes 44 KB and
0.8 ms, of which it gives 15 KB back, and three mappings of the 65,530 that Linux allows a process;
it serves the formats that are not read here (`Unsupported`: everything but x86-64 ELF).

Source: System V ABI, chapters 4 and 5, and its x86-64 supplement, section 4.4 (relocations).
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Image", "Kernel", "Unsupported", "code_bytes", "load", "undefined"]


class Unsupported(Exception):
    """The object code is of a kind that this loader leaves to LLVM's."""


class Image:
    """Machine code of a few kernels in memory; it goes when the last reference does.

    Args:
        addresses: of the exported functions.
        release: called once nobody refers to the image, on any thread and at any line; it may
            only take note.
    """

    __slots__ = ("_release", "addresses")

    def __init__(self, addresses: Sequence[int], release: Callable[[], None]) -> None:
        self.addresses, self._release = tuple(addresses), release

    def __del__(self) -> None:
        self._release()


class Kernel:
    """One function of an image. Whoever may call `address` keeps a reference."""

    __slots__ = ("__weakref__", "address", "image", "nbytes")

    def __init__(self, address: int, image: Image, nbytes: int) -> None:
        self.address, self.image, self.nbytes = address, image, nbytes


# executable memory ------------------------------------------------------------------------------
_SLAB = 1 << 20  # bytes asked of the system at once
_RW, _RX = mmap.PROT_READ | mmap.PROT_WRITE if os.name == "posix" else 0, 5  # sys/mman.h


class _Pages:
    """Free pages as (address, bytes), sorted and never adjacent; slabs are kept for ever.

    Python's end must not unmap what a worker thread may still run, hence no mmap objects.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.free: list[tuple[int, int]] = []
        self.returned: deque[tuple[int, int]] = deque()  # by images that died; see `Image`
        self.used = 0

    def take(self, nbytes: int) -> int:
        """Address of `nbytes` writable bytes, a multiple of the page size."""
        self.collect()
        i = next((i for i, (_, room) in enumerate(self.free) if room >= nbytes), None)
        if i is None:
            room = max(_SLAB, nbytes)
            self.give(_map(room), room)
            return self.take(nbytes)
        address, room = self.free[i]
        if room > nbytes:
            self.free[i] = (address + nbytes, room - nbytes)
        else:
            del self.free[i]
        self.used += nbytes
        return address

    def give(self, address: int, nbytes: int) -> None:
        """Make pages free."""
        i = bisect.bisect(self.free, (address, nbytes))
        if i < len(self.free) and address + nbytes == self.free[i][0]:
            nbytes += self.free.pop(i)[1]
        if i and sum(self.free[i - 1]) == address:
            first, before = self.free.pop(i - 1)
            self.free.insert(i - 1, (first, before + nbytes))
        else:
            self.free.insert(i, (address, nbytes))

    def collect(self) -> None:
        """Make the pages of dead images writable, empty and free."""
        while self.returned:
            address, nbytes = self.returned.popleft()
            _protect(address, nbytes, _RW)
            _libc().madvise(address, nbytes, mmap.MADV_DONTNEED)
            self.used -= nbytes
            self.give(address, nbytes)


_pages = _Pages()


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, flag = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [pointer, size, flag, flag, flag, ctypes.c_int64]
    libc.mmap.restype = pointer
    libc.mprotect.argtypes = libc.madvise.argtypes = [pointer, size, flag]
    return libc


def _map(nbytes: int) -> int:
    """New pages, private: a forked child changes its own copy only."""
    address = _libc().mmap(None, nbytes, _RW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise MemoryError(f"machine code: the system refuses {nbytes} bytes for compiled kernels: "
                          f"{os.strerror(ctypes.get_errno())}.")
    return int(address)


def _protect(address: int, nbytes: int, protection: int) -> None:
    if _libc().mprotect(address, nbytes, protection):
        raise Unsupported(f"mprotect: {os.strerror(ctypes.get_errno())}")


def code_bytes() -> int:
    """Bytes of the pages that hold machine code now."""
    with _pages.lock:
        _pages.collect()
        return _pages.used


# ELF --------------------------------------------------------------------------------------------
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_X86_64 = 62
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8  # sh_type
_WRITE, _ALLOC, _TLS = 1, 2, 1 << 10  # sh_flags
_ABSOLUTE, _RESERVED = 0xFFF1, 0xFF00  # st_shndx

# r_type -> (struct of the place, whether relative to it, whether the address may be a stub's,
# whether the address of the slot that holds the address is meant)
_RELOCATIONS = {
    1: ("<Q", False, False, False),  # R_X86_64_64
    2: ("<i", True, True, False),  # PC32
    4: ("<i", True, True, False),  # PLT32
    9: ("<i", True, False, True),  # GOTPCREL
    24: ("<q", True, False, False),  # PC64
    41: ("<i", True, False, True),  # GOTPCRELX
    42: ("<i", True, False, True),  # REX_GOTPCRELX
}
_STUB = b"\xff\x25\x02\0\0\0\x0f\x0b"  # jmp *[rip + 2]; ud2; then the address: 16 bytes
_STUB_BYTES, _SLOT = 16, 8  # the address lies at byte 8 of a stub, so that a stub is a slot too


@dataclass
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    name: str
    place: int = -1  # offset in the image

    @property
    def loaded(self) -> bool:
        """Whether kernels need it at run time: unwind tables and notes they do not."""
        return bool(self.flags & _ALLOC) and self.size > 0 and (
            self.kind == _NOBITS or self.kind == _PROGBITS and self.name != ".eh_frame")


class _Object:
    """An object file: its sections, and its symbols as (name, section, value)."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        _, _, _, _, _, table, _, _, _, _, size, count, names = _HEADER.unpack_from(code)
        raw = [_SECTION.unpack_from(code, table + size * i) for i in range(count)]
        strings = raw[names][4]
        self.sections = [
            _Section(kind, flags, offset, nbytes, link, info, max(1, align),
                     self._text(strings + name))
            for name, kind, flags, _, offset, nbytes, link, info, align, _ in raw]
        self.symbols: list[tuple[str, int, int]] = []
        for section in self.sections:
            if section.kind == _SYMTAB:
                strings = self.sections[section.link].offset
                table = code[section.offset:section.offset + section.size]
                self.symbols = [(self._text(strings + name), where, value)
                                for name, _, _, where, value, _ in _SYMBOL.iter_unpack(table)]

    def _text(self, at: int) -> str:
        return self.code[at:self.code.index(b"\0", at)].decode()

    def undefined(self) -> list[str]:
        return [name for name, section, _ in self.symbols if section == 0 and name]


def undefined(code: bytes) -> list[str]:
    """Names that an object uses and does not define; none of formats that are not ELF, whose
    linker looks them up in the process by itself."""
    return _Object(code).undefined() if code[:6] == _MAGIC else []


def load(objects: Sequence[tuple[bytes, str]], external: Callable[[str], int]) -> Image:
    """Place objects in executable memory.

    Args:
        objects: object code, and the name of the function that it exports.
        external: address of a function that they call and do not define.

    Raises:
        Unsupported: a format, section or relocation that is left to LLVM's linker.
        MemoryError: the system gives no more.
    """
    if any(code[:6] != _MAGIC or code[18:20] != _X86_64.to_bytes(2, "little")
           for code, _ in objects) or os.name != "posix":
        raise Unsupported("object code that is not x86-64 ELF")
    parsed = [_Object(code) for code, _ in objects]
    layout = _Layout(parsed)
    outside = {name: external(name) for name in layout.stubs}
    with _pages.lock:
        nbytes = -(-layout.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        base = _pages.take(nbytes)
        try:
            image = layout.written(base, outside)
            ctypes.memmove(base, bytes(image), len(image))
            _protect(base, nbytes, _RX)
        except BaseException:
            _pages.returned.append((base, nbytes))
            raise
    exports = [base + layout.value(o, name) for o, (_, name) in zip(parsed, objects, strict=True)]
    return Image(exports, functools.partial(_pages.returned.append, (base, nbytes)))


class _Layout:
    """Where sections, and stubs for what lies outside, go in an image."""

    def __init__(self, objects: Sequence[_Object]) -> None:
        self.objects, self.nbytes = objects, 0
        for found in objects:
            for section in found.sections:
                if not section.loaded:
                    continue
                if section.flags & _TLS or (section.flags & _WRITE
                                            and not section.name.startswith(".data.rel.ro")):
                    raise Unsupported(f"section {section.name}: a variable")
                section.place = -(-self.nbytes // section.align) * section.align
                self.nbytes = section.place + section.size
        self.stubs: dict[str, int] = {}
        for found in objects:
            for name in found.undefined():
                if name not in self.stubs:
                    self.stubs[name] = -(-self.nbytes // _STUB_BYTES) * _STUB_BYTES
                    self.nbytes = self.stubs[name] + _STUB_BYTES

    def value(self, found: _Object, name: str) -> int:
        """Offset of a function that an object defines."""
        for symbol, section, value in found.symbols:
            if symbol == name and 0 < section < _RESERVED:
                return found.sections[section].place + value
        raise Unsupported(f"no function {name}")

    def written(self, base: int, outside: dict[str, int]) -> bytearray:
        """The bytes of the image at address `base`."""
        image = bytearray(self.nbytes)
        for name, at in self.stubs.items():
            image[at:at + _STUB_BYTES] = _STUB + struct.pack("<Q", outside[name])
        for found in self.objects:
            for section in found.sections:
                if section.place >= 0 and section.kind != _NOBITS:
                    image[section.place:section.place + section.size] = \
                        found.code[section.offset:section.offset + section.size]
        for found in self.objects:
            for section in found.sections:
                if section.kind == _RELA and found.sections[section.info].place >= 0:
                    self._relocate(found, section, image, base, outside)
        return image

    def _relocate(self, found: _Object, table: _Section, image: bytearray, base: int,
                  outside: dict[str, int]) -> None:
        target = found.sections[table.info].place
        raw = found.code[table.offset:table.offset + table.size]
        for offset, info, addend in _RELOCATION.iter_unpack(raw):
            kind = _RELOCATIONS.get(info & 0xFFFFFFFF)
            name, section, value = found.symbols[info >> 32]
            if kind is None or (section >= _RESERVED and section != _ABSOLUTE):
                raise Unsupported(f"relocation {info & 0xFFFFFFFF} of {name}")
            form, relative, by_stub, by_slot = kind
            place = target + offset
            if section == 0:
                stub = self.stubs.get(name)
                if stub is None:
                    raise Unsupported(f"relocation of a symbol without a name at {offset:#x}")
                address = base + stub if by_stub else \
                    base + stub + _SLOT if by_slot else outside[name]
            elif by_slot or section == _ABSOLUTE or found.sections[section].place < 0:
                raise Unsupported(f"relocation of {name}: a constant, or a section not loaded")
            else:
                address = base + found.sections[section].place + value
            number = address + addend - (base + place if relative else 0)
            try:
                struct.pack_into(form, image, place, number)
            except struct.error:
                raise Unsupported(f"relocation of {name}: {number:#x} does not fit") from None


def _after_fork_in_child() -> None:
    _pages.lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
