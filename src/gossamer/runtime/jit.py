"""Kernel texts to addresses: memory, then disk, then LLVM. Layer 3.

The one idea: one source is one module with one exported symbol, renamed after the hash of all
that decides its machine code. So texts may use any names, objects never clash, the kernels of a
program link as one library, and the same hash is the key on disk. Texts that nobody has compiled
yet go through LLVM on all cores at once.

Measured (60 kernels of 1.6 KB of code, llvmlite 0.50): ORC with JITLink links them in 4.7 ms as
one library and in 12 one by one; MCJIT needs 4.5 with one engine and 65 with an engine each, ends
the process at an unknown symbol, and may place code and constants further apart than 2 GiB. That
matters because code model "small" reads constants in place, where MCJIT's default, "large", loads
the address of every constant and callee first.

Five passes (`_simplify`) take a sixth of the time of LLVM's O1, and the code is as fast: products
0.99 to 1.00, softmax, norms and elementwise kernels 0.98 to 1.06, column sums 1.10, cumsum 2.7
(O1 unrolls what is better left alone). O3 is no faster than O1 for explicit vectors.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.compile.calls import KernelSource
from gossamer.core.errors import CompileError
from gossamer.core.settings import setting
from gossamer.runtime import cache, device, watch
from gossamer.runtime.softfloat import SOFTFLOAT

__all__ = ["Stats", "addresses", "assembly", "function_attributes", "machine_text", "stats"]

_VERSION = 2  # of the way from text to object code; part of every key on disk
_CODEGEN_LEVEL = 2  # LLVM's default; 1 and 3 take as long


@dataclass
class Stats:
    """What `addresses` did since the process began."""

    compiled: int = 0  # texts that went through LLVM
    loaded_from_disk: int = 0
    memory_hits: int = 0
    compile_seconds: float = 0.0  # wall time in LLVM, all cores together
    load_seconds: float = 0.0  # wall time reading the disk cache and linking


stats = Stats()
_addresses: dict[KernelSource, int] = {}
_lock = threading.RLock()  # guards LLVM's engine and everything below `addresses`
# A child forked while another thread compiles would inherit a locked LLVM: fork waits for us.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release,
                        after_in_child=_lock.release)


def addresses(sources: Sequence[KernelSource]) -> list[int]:
    """Address of each source's symbol; what is new is compiled on all cores.

    Args:
        sources: kernels; repetitions and equal texts cost nothing.

    Raises:
        CompileError: LLVM rejects a text, or it calls a function that nobody defines.

    Cost: a dictionary look-up for a known source, 0.1 ms for one on disk, 3 to 10 ms of one core
    for a new one.
    """
    found = [_addresses.get(source) for source in sources]
    known = len(found) - found.count(None)
    stats.memory_hits += known
    if known < len(found):
        with _lock:
            _build([s for s in dict.fromkeys(sources) if s not in _addresses])
        return [_addresses[source] for source in sources]
    return found  # type: ignore[return-value]


def _build(sources: list[KernelSource]) -> None:
    """Bring `sources` into memory: those on disk, then the others through LLVM."""
    if not sources:
        return
    disk, host, start = cache.current(), device.host(), time.perf_counter()
    keys = {source: _key(source, host) for source in sources}
    objects: dict[KernelSource, bytes] = {}
    if disk is not None:
        for source in sources:
            stored = disk.read(keys[source])
            if stored is not None:
                objects[source] = stored
    _link(objects, keys)
    stats.loaded_from_disk += len(objects)
    stats.load_seconds += time.perf_counter() - start
    missing = [source for source in sources if source not in objects]
    if not missing:
        return
    start = time.perf_counter()
    with watch.span("llvm", f"{len(missing)} kernels"):
        built = _compile_all(missing, keys, host)
    stats.compiled += len(built)
    stats.compile_seconds += time.perf_counter() - start
    start = time.perf_counter()
    _link(built, keys)
    if disk is not None:
        for source, code in built.items():
            disk.write(keys[source], code)
    stats.load_seconds += time.perf_counter() - start


# from text to object code -----------------------------------------------------------------------
def function_attributes(host: device.Host) -> str:
    """The attribute group #0 that every kernel text may name: this host's instruction set."""
    return (f'\nattributes #0 = {{ nounwind "target-cpu"="{host.cpu}" '
            f'"target-features"="{host.feature_string}" '
            f'"prefer-vector-width"="{8 * host.vector_bytes}" }}\n')


@functools.lru_cache(maxsize=8)
def _key_prefix(host: device.Host) -> Any:
    version = device.llvm().llvm_version_info
    parts = (_VERSION, version, host.triple, os.name, _CODEGEN_LEVEL,
             function_attributes(host))
    return hashlib.sha256(repr(parts).encode())


def _key(source: KernelSource, host: device.Host) -> bytes:
    digest = _key_prefix(host).copy()
    digest.update(source.symbol.encode() + b"\0" + source.text.encode())
    return bytes(digest.digest())


def _exported(key: bytes) -> str:
    """The symbol under which a source's kernel is linked: unique by its key."""
    return "gs_" + key.hex()[:32]


def _compile_all(sources: list[KernelSource], keys: dict[KernelSource, bytes],
                 host: device.Host) -> dict[KernelSource, bytes]:
    """Object code of each source; the longest texts start first so that no core ends alone."""
    ordered = sorted(sources, key=lambda s: -len(s.text))
    workers = min(len(ordered), device.usable_cores())

    def one(source: KernelSource) -> bytes:
        return _compile(source, _exported(keys[source]), host)

    return _map_parallel(one, ordered, workers)


def _map_parallel(function: Callable[[KernelSource], bytes], items: list[KernelSource],
                  workers: int) -> dict[KernelSource, bytes]:
    """{item: function(item)} on `workers` threads, of which the caller is one; first error wins."""
    results: dict[KernelSource, bytes] = {}
    errors: list[BaseException] = []
    pending = iter(items)  # a list's iterator: `next` is atomic

    def work() -> None:
        try:
            while not errors and (item := next(pending, None)) is not None:
                results[item] = function(item)
        except BaseException as error:  # raised again below, in the caller's thread
            errors.append(error)

    helpers = [threading.Thread(target=work, name=f"gossamer-compile-{i}", daemon=True)
               for i in range(1, workers)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return results


# Idle target machines. They must not be shared while compiling, and never die: LLVM objects that
# die with a thread take llvmlite's lock at a moment when the process may be forking.
_machines: dict[device.Host, list[Any]] = {}


@contextlib.contextmanager
def _machine(host: device.Host) -> Iterator[Any]:
    """A target machine for this thread alone."""
    idle = _machines.setdefault(host, [])
    machine = idle.pop() if idle else _new_machine(host)
    try:
        yield machine
    finally:
        idle.append(machine)


def _new_machine(host: device.Host) -> Any:
    triple = host.triple + ("-elf" if os.name == "nt" else "")  # llvmlite's JIT loads no COFF
    return device.llvm().Target.from_triple(triple).create_target_machine(
        cpu=host.cpu, features=host.feature_string, opt=_CODEGEN_LEVEL, reloc="pic",
        codemodel="small", jit=True)


def _compile(source: KernelSource, exported: str, host: device.Host) -> bytes:
    """One source through LLVM: parse, verify, optimise, generate code."""
    start = time.perf_counter()
    with _optimised(source, exported, host) as (module, machine):
        code = _emit(source, machine, module)
    _report(source, time.perf_counter() - start)
    return code


@contextlib.contextmanager
def _optimised(source: KernelSource, exported: str,
               host: device.Host) -> Iterator[tuple[Any, Any]]:
    """(simplified module, target machine); `source.symbol` is its only export.

    The module has a context of its own, since contexts are not thread-safe, and is closed before
    it: left to the garbage collector they may die in the wrong order, which crashes LLVM.
    """
    binding = device.llvm()
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(_machine(host))
        context = stack.enter_context(binding.create_context())
        try:
            module = stack.enter_context(
                binding.parse_assembly(source.text + function_attributes(host), context))
            module.verify()
        except RuntimeError as error:
            raise _failure(source, host, str(error)) from None
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        _export_only(source, module, exported, host)
        _simplify(module, machine, stack)
        yield module, machine


def _simplify(module: Any, machine: Any, stack: contextlib.ExitStack) -> None:
    """The passes that our kernels need; explicit vectors and hand-unrolled loops leave it at that.

    Functions are inlined where they say `alwaysinline`, nowhere else.
    """
    binding = device.llvm()
    options = stack.enter_context(binding.create_pipeline_tuning_options(speed_level=1))
    builder = stack.enter_context(binding.create_pass_builder(machine, options))
    passes = stack.enter_context(binding.create_new_module_pass_manager())
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_loop_rotate_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    _unlocked("LLVMPY_RunNewModulePassManager")(passes, module, builder)


def _export_only(source: KernelSource, module: Any, exported: str, host: device.Host) -> None:
    """Give the kernel its unique name and make everything else that the text defines internal."""
    kernel = None
    for value in (*module.functions, *module.global_variables):
        if value.is_declaration:
            continue
        if value.name == source.symbol:
            kernel = value
        else:
            value.linkage = "internal"
    if kernel is None:
        raise _failure(source, host, f"the text defines no function @{source.symbol}")
    kernel.name = exported
    kernel.linkage = "external"


def _emit(source: KernelSource, machine: Any, module: Any) -> bytes:
    """`machine.emit_object(module)`, without llvmlite's lock."""
    binding = device.llvm()
    with binding.ffi.OutputString() as error:
        buffer = _unlocked("LLVMPY_TargetMachineEmitToMemory")(machine, module, 1, error)
        if not buffer:
            raise _failure(source, device.host(), str(error))
    library = binding.ffi.lib
    try:
        return ctypes.string_at(library.LLVMPY_GetBufferStart(buffer),
                                library.LLVMPY_GetBufferSize(buffer))
    finally:
        library.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(name: str) -> Any:
    """An LLVM function without the lock that llvmlite puts around every call.

    LLVM allows one thread per context and target machine, and each of ours has its own. Measured
    on two cores: 60 kernels in 0.54 of the serial time; with the lock, in 1.0.
    """
    locked = getattr(device.llvm().ffi.lib, name)
    return getattr(locked, "_cfn", locked)


def _report(source: KernelSource, seconds: float) -> None:
    """What GOSSAMER_DEBUG asks to see."""
    level = setting("GOSSAMER_DEBUG")
    if level >= 1:
        parts = [f"gossamer: compiled {source.symbol} in {1e3 * seconds:.1f} ms"]
        parts += [source.loops] if level >= 2 and source.loops else []
        parts += [source.text] if level >= 3 else []
        print("\n".join(parts), file=sys.stderr, flush=True)


def _failure(source: KernelSource, host: device.Host, reason: str) -> CompileError:
    """The error of a text that LLVM rejects, with the text kept for the report."""
    reason = " ".join(reason.split())
    name = hashlib.sha256(source.text.encode()).hexdigest()[:12]
    path = Path(setting("GOSSAMER_CACHE")) / "failures" / f"{name}.ll"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.text + function_attributes(host))
        where = f"Please report it with the file {path}."
    except OSError:
        where = "Please report it with what GOSSAMER_DEBUG=3 prints."
    return CompileError(f"kernel {source.symbol}: LLVM cannot compile its text: {reason}; every "
                        f"kernel that Gossamer writes must compile. {where}")


def machine_text(source: KernelSource) -> str:
    """LLVM IR of `source` after optimisation, as `explain` shows it."""
    with _lock, _optimised(source, source.symbol, device.host()) as (module, _):
        return str(module)


def assembly(source: KernelSource) -> str:
    """Assembly of `source` for this host, as `explain` shows it."""
    with _lock, _optimised(source, source.symbol, device.host()) as (module, machine):
        return str(machine.emit_assembly(module))


# from object code to addresses ------------------------------------------------------------------
@functools.cache
def _linker() -> Any:
    """The linker of this process. Never freed: workers may still run its code when Python ends."""
    compiler = device.llvm().create_lljit_compiler(
        _new_machine(device.host()), use_jit_link=os.name != "nt", suppress_errors=True)
    _immortal(compiler)
    return compiler


def _immortal(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _link(objects: dict[KernelSource, bytes], keys: dict[KernelSource, bytes]) -> None:
    """Load object code as one library and note the addresses."""
    if not objects:
        return
    binding = device.llvm()
    library = binding.JITLibraryBuilder().add_current_process()
    for source, code in objects.items():
        for name in _undefined(code):
            library.import_symbol(name, _external(source, name))
        library.add_object_img(code).export_symbol(_exported(keys[source]))
    try:
        linked = library.link(_linker(), f"gossamer{next(_serial)}")
    except RuntimeError as error:
        names = ", ".join(source.symbol for source in objects)
        raise CompileError(f"kernels {names}: their machine code cannot be linked: {error}; "
                           "kernels may call libm and libc only. Please report this.") from None
    _immortal(linked)
    for source in objects:
        _addresses[source] = linked[_exported(keys[source])]


_serial = itertools.count()


@functools.cache
def _libraries() -> list[Any]:
    """Where kernels' external functions are looked for: this process, then libm."""
    names: tuple[str | None, ...] = (None, "libm.so.6") if os.name == "posix" else (
        "ucrtbase", "kernel32")
    found: list[Any] = [ctypes.pythonapi]
    for name in names:
        with contextlib.suppress(OSError):  # macOS and musl have libm inside libc
            found.append(ctypes.CDLL(name))
    return found


@functools.cache
def _find(name: str) -> int:
    """Address of an external function, 0 when no library of this process defines it."""
    for library in _libraries():
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    return 0


def _external(source: KernelSource, name: str) -> int:
    """Address of a function that `source` calls: of this process, or one of ours."""
    address = _find(name)
    if not address and name in SOFTFLOAT:
        address = addresses([SOFTFLOAT[name]])[0]
    if not address:
        raise CompileError(
            f"kernel {source.symbol}: it calls {name}, which no library of this process defines; "
            "kernels may call libm and libc only. Please report this.")
    return address


_ELF_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2  # sh_type SHT_SYMTAB


def _undefined(code: bytes) -> Iterator[str]:
    """Names that an ELF object (64 bits, little-endian) uses and does not define.

    Source: System V ABI, chapters 4 and 5. Other formats (Mach-O) yield nothing: there, the
    linker itself looks the names up in the process.
    """
    if code[:6] != b"\x7fELF\x02\x01":
        return
    _, _, _, _, _, table, _, _, _, _, size, count, _ = _ELF_HEADER.unpack_from(code)
    sections = [_ELF_SECTION.unpack_from(code, table + size * i) for i in range(count)]
    for _, kind, _, _, offset, nbytes, link, _, _, _ in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][4]
        for name, _, _, section, _, _ in _ELF_SYMBOL.iter_unpack(code[offset:offset + nbytes]):
            if section == 0 and name:
                yield code[names + name:code.index(b"\0", names + name)].decode()
