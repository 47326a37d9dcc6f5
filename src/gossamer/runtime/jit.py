"""Kernel texts to addresses: memory, then disk, then LLVM. Layer 3.

The one idea: one source is one module with one exported symbol, renamed after the hash of all
that decides its machine code. So texts may use any names, objects never clash, the kernels of a
program link as one library, and the same hash is the key on disk. Texts that nobody has compiled
yet go through LLVM on all cores at once.

Kernels live as long as a program refers to them; the most recently used ones stay without, since
another shape or graph is likely to ask for the same text. `loader` places x86-64 ELF, LLVM's ORC
with JITLink the rest. (MCJIT ends the process at an unknown symbol, and may place code and
constants further apart than 2 GiB, which code model "small" must not see.)

Five passes (`_simplify`) take a sixth of the time of LLVM's O1, and the code is as fast: products
0.99 to 1.00, softmax, norms and elementwise kernels 0.98 to 1.06, column sums 1.10, cumsum 2.7
(O1 unrolls what is better left alone). O3 is no faster than O1 for explicit vectors. Texts that
say so (`calls.PLAIN`) go through LLVM's code generator of level 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from gossamer.compile.calls import PLAIN, KernelSource
from gossamer.core.errors import CompileError
from gossamer.core.settings import setting
from gossamer.runtime import cache, device, jobs, loader, watch
from gossamer.runtime.loader import Kernel
from gossamer.runtime.softfloat import SOFTFLOAT

__all__ = ["Kernel", "Stats", "addresses", "assembly", "begin", "forget", "function_attributes",
           "kernels", "machine_text", "stats"]

_VERSION = 2  # of the way from text to object code; part of every key on disk
_CODEGEN_LEVELS = 2, 0  # LLVM's default (1 and 3 take as long), and that of plain texts


@dataclass
class Stats:
    """What `kernels` did since the process began."""

    compiled: int = 0  # texts that went through LLVM
    loaded_from_disk: int = 0
    memory_hits: int = 0
    compile_seconds: float = 0.0  # wall time in LLVM, all cores together
    load_seconds: float = 0.0  # wall time reading the disk cache and linking


stats = Stats()
_alive: WeakValueDictionary[bytes, Kernel] = WeakValueDictionary()
# Kernels that stay although no program may use them, the least recently used first. The bounds are
# some 30 programs of the size of a GPT training step: what lies on disk loads in 0.1 ms.
_recent: OrderedDict[bytes, Kernel] = OrderedDict()
_recent_bytes = 0
_MOST_RECENT, _MOST_RECENT_BYTES = 1024, 8 << 20
_pinned: dict[bytes, Kernel] = {}  # whose addresses were handed out bare
_lock = threading.RLock()  # guards LLVM's engine and everything above
# A child forked while another thread compiles would inherit a locked LLVM: fork waits for us.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release,
                        after_in_child=_lock.release)


def kernels(sources: Sequence[KernelSource]) -> list[Kernel]:
    """The machine code of each source; what is new is compiled on all cores.

    A kernel's memory is used for others when nobody refers to it any more: whoever may call its
    address keeps it.

    Args:
        sources: kernels; repetitions and equal texts cost nothing.

    Raises:
        CompileError: LLVM rejects a text, or it calls a function that nobody defines.

    Cost: 10 us for a known source (its text is hashed), 0.2 ms for one on disk, 3 to 10 ms of one
    core for a new one.
    """
    host = device.host()
    keys = {source: _key(source, host) for source in dict.fromkeys(sources)}
    with _lock:
        found = {source: _alive.get(key) for source, key in keys.items()}
        stats.memory_hits += sum(found[source] is not None for source in sources)
        missing = [source for source, kernel in found.items() if kernel is None]
        if missing:
            found.update(_build(missing, keys, host))
        for source, key in keys.items():
            _use(key, found[source])  # type: ignore[arg-type]
    return [found[source] for source in sources]  # type: ignore[misc]


def addresses(sources: Sequence[KernelSource]) -> list[int]:
    """Address of each source's symbol; these kernels stay for as long as the process."""
    found = kernels(sources)
    host = device.host()
    _pinned.update((_key(source, host), kernel)
                   for source, kernel in zip(sources, found, strict=True))
    return [kernel.address for kernel in found]


def forget() -> None:
    """Let go of the kernels that no program uses."""
    global _recent_bytes
    with _lock:
        _recent.clear()
        _recent_bytes = 0


def _use(key: bytes, kernel: Kernel) -> None:
    """Note that a kernel was asked for; those not asked for longest may go."""
    global _recent_bytes
    if key not in _recent:
        _recent_bytes += kernel.nbytes
    _recent[key] = kernel
    _recent.move_to_end(key)
    while len(_recent) > _MOST_RECENT or _recent_bytes > _MOST_RECENT_BYTES:
        _recent_bytes -= _recent.popitem(last=False)[1].nbytes


def _build(sources: list[KernelSource], keys: dict[KernelSource, bytes],
           host: device.Host) -> dict[KernelSource, Kernel]:
    """Bring `sources` into memory: those on disk, then the others through LLVM."""
    disk, start = cache.current(), time.perf_counter()
    objects: dict[KernelSource, bytes] = {}
    if disk is not None:
        for source in sources:
            stored = disk.read(keys[source])
            if stored is not None:
                objects[source] = stored
    made = _link(objects, keys)
    stats.loaded_from_disk += len(objects)
    stats.load_seconds += time.perf_counter() - start
    missing = [source for source in sources if source not in objects]
    if not missing:
        return made
    start = time.perf_counter()
    with watch.span("llvm", f"{len(missing)} kernels"):
        built = _compile_all(missing, keys, host)
    stats.compiled += len(built)
    stats.compile_seconds += time.perf_counter() - start
    start = time.perf_counter()
    made.update(_link(built, keys))
    if disk is not None:
        for source, code in built.items():
            disk.write(keys[source], code)
    stats.load_seconds += time.perf_counter() - start
    return made


# from text to object code -----------------------------------------------------------------------
def function_attributes(host: device.Host) -> str:
    """The attribute group #0 that every kernel text may name: this host's instruction set."""
    return (f'\nattributes #0 = {{ nounwind "target-cpu"="{host.cpu}" '
            f'"target-features"="{host.feature_string}" '
            f'"prefer-vector-width"="{8 * host.vector_bytes}" }}\n')


@functools.lru_cache(maxsize=8)
def _key_prefix(host: device.Host) -> Any:
    version = device.llvm().llvm_version_info
    parts = (_VERSION, version, host.triple, os.name, _CODEGEN_LEVELS,
             function_attributes(host))
    return hashlib.sha256(repr(parts).encode())


def _key(source: KernelSource, host: device.Host) -> bytes:
    digest = _key_prefix(host).copy()
    digest.update(source.symbol.encode() + b"\0" + source.text.encode())
    return bytes(digest.digest())


def _exported(key: bytes) -> str:
    """The symbol under which a source's kernel is linked: unique by its key."""
    return "gs_" + key.hex()[:32]


def begin(sources: Iterable[KernelSource]) -> None:
    """Let another core compile what `kernels` will be asked for, while Python goes on.

    Only long texts: helpers need the interpreter's lock now and then, and wait for it 5 ms each
    time while Python is busy; a product or an attention takes LLVM 100 to 250 ms.
    """
    cores = device.usable_cores()
    if cores < 2:
        return
    disk, host = cache.current(), device.host()
    for source in sources:
        if len(source.text) >= _LONG_TEXT:
            key = _key(source, host)
            if key not in _alive and (disk is None or not disk.path(key).exists()):
                _begin(source, key, host, cores - 1)


_LONG_TEXT = 32_000  # characters


def _begin(source: KernelSource, key: bytes, host: device.Host, helpers: int) -> None:
    jobs.begin(key, len(source.text), lambda: _compile(source, _exported(key), host), helpers)


def _compile_all(sources: list[KernelSource], keys: dict[KernelSource, bytes],
                 host: device.Host) -> dict[KernelSource, bytes]:
    """Object code of each source, made on all cores; the longest texts start first so that no core
    ends alone."""
    helpers = min(len(sources), device.usable_cores()) - 1
    wanted = {keys[source]: source for source in sources}
    for key, source in wanted.items():
        _begin(source, key, host, helpers)
    made = dict(zip(wanted, jobs.finish(list(wanted)), strict=True))
    return {source: made[keys[source]] for source in sources}


class _Tools:
    """What one thread needs to compile: a target machine, and the passes that our kernels need.

    Explicit vectors and hand-unrolled loops leave it at five; functions are inlined where they say
    `alwaysinline`, nowhere else.
    """

    def __init__(self, host: device.Host, level: int) -> None:
        self.machine = _new_machine(host, level)
        self._stack = contextlib.ExitStack()
        self._runs = 0

    def simplify(self, module: Any) -> None:
        """Run the passes over a module.

        llvmlite never frees all of a pass manager (11 KB each), and a pass builder becomes slower
        with every module it sees; so they serve a while, then new ones are made.
        """
        if self._runs % _PASS_RUNS == 0:
            self._renew()
        self._runs += 1
        _unlocked("LLVMPY_RunNewModulePassManager")(self._passes, module, self._builder)

    def _renew(self) -> None:
        binding = device.llvm()
        self._stack.close()
        options = self._stack.enter_context(binding.create_pipeline_tuning_options(speed_level=1))
        self._builder = self._stack.enter_context(
            binding.create_pass_builder(self.machine, options))
        self._passes = passes = self._stack.enter_context(binding.create_new_module_pass_manager())
        passes.add_always_inliner_pass()
        passes.add_global_dead_code_eliminate_pass()
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        passes.add_loop_rotate_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()


_PASS_RUNS = 32
# Idle tools. They must not be shared while compiling, and never die: LLVM objects that die with a
# thread take llvmlite's lock at a moment when the process may be forking.
_idle_tools: dict[tuple[device.Host, int], list[_Tools]] = {}


@contextlib.contextmanager
def _tools(host: device.Host, plain: bool) -> Iterator[_Tools]:
    """Tools for this thread alone."""
    key = host, _CODEGEN_LEVELS[plain]
    idle = _idle_tools.setdefault(key, [])
    tools = idle.pop() if idle else _Tools(*key)
    try:
        yield tools
    finally:
        idle.append(tools)


def _new_machine(host: device.Host, level: int) -> Any:
    triple = host.triple + ("-elf" if os.name == "nt" else "")  # llvmlite's JIT loads no COFF
    return device.llvm().Target.from_triple(triple).create_target_machine(
        cpu=host.cpu, features=host.feature_string, opt=level, reloc="pic",
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
        tools = stack.enter_context(_tools(host, source.text.startswith(PLAIN)))
        machine = tools.machine
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
        tools.simplify(module)
        yield module, machine


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
def _link(objects: dict[KernelSource, bytes],
          keys: dict[KernelSource, bytes]) -> dict[KernelSource, Kernel]:
    """Load object code as one image."""
    if not objects:
        return {}
    callers = {name: source for source, code in objects.items() for name in loader.undefined(code)}
    outside = {name: _external(source, name) for name, source in callers.items()}
    exports = [(code, _exported(keys[source])) for source, code in objects.items()]
    try:
        image = loader.load(exports, outside.__getitem__)
    except loader.Unsupported:
        try:
            image = _link_by_llvm(exports, outside)
        except RuntimeError as error:
            names = ", ".join(source.symbol for source in objects)
            raise CompileError(f"kernels {names}: their machine code cannot be linked: {error}; "
                               "kernels may call libm and libc only. Please report this.") from None
    made = {source: Kernel(address, image, len(code))
            for (source, code), address in zip(objects.items(), image.addresses, strict=True)}
    _alive.update((keys[source], kernel) for source, kernel in made.items())
    return made


@functools.cache
def _linker() -> Any:
    """LLVM's linker. Never freed: workers may still run its code when Python ends."""
    compiler = device.llvm().create_lljit_compiler(
        _new_machine(device.host(), _CODEGEN_LEVELS[0]), use_jit_link=os.name != "nt",
        suppress_errors=True)
    _immortal(compiler)
    return compiler


def _immortal(thing: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_unused: deque[Any] = deque()  # LLVM's handles of images that died: closed under our lock only


def _link_by_llvm(exports: list[tuple[bytes, str]], outside: dict[str, int]) -> loader.Image:
    """Load object code of a kind that `loader` does not read."""
    while _unused:
        _unused.popleft().close()
    library = device.llvm().JITLibraryBuilder().add_current_process()
    for name, address in outside.items():
        library.import_symbol(name, address)
    for code, name in exports:
        library.add_object_img(code).export_symbol(name)
    linked = library.link(_linker(), f"gossamer{next(_serial)}")
    _immortal(linked)
    return loader.Image([linked[name] for _, name in exports],
                        functools.partial(_unused.append, linked))


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
