"""The native loops around kernels: worker pool and program walker, as LLVM IR. Layer 3.

The one idea: a caller waits for chunks, never for threads. A parallel region is one word, its
ticket: a number of the region and the chunks that nobody has claimed. The caller opens the region
by writing the ticket, wakes whoever sleeps, and claims chunks itself until none is left; then it
waits only for chunks that workers hold. A worker that comes late, or loses its core without a
chunk in hand, delays nobody: its claim, a compare-and-swap of the whole ticket, fails once the
region is over. What a region does (kernel, arguments, extent) may be read only after a claim,
because no region ends while a chunk of it is held.

A second caller finds the pool busy and runs its kernel alone. Sources: U. Drepper, "Futexes Are
Tricky" (sleep without a lost wake-up: announce, look again, sleep); CPython's C API for `call`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import PLAIN, KernelSource

__all__ = ["AT", "BLOCK_BYTES", "CHECKS", "CHECK_WORDS", "ENTRIES", "HEADER", "HEADER_WORDS",
           "PATCH_WORDS", "RECORD_WORDS", "SAME_AHEAD", "SAME_WORDS", "clock", "native_source"]

# Byte offsets in a pool's block. Words that different threads write lie 128 bytes apart: x86
# prefetches lines in pairs, and Apple's lines are 128 bytes long. The upper half of `ticket` is
# the region's number, and the futex word.
AT = {"ticket": 0, "region": 4, "sleeping": 128, "done": 256, "kernel": 384, "args": 392,
      "n": 400, "grain": 408, "chunks": 416, "stop": 512, "spins": 520, "busy": 640}
BLOCK_BYTES = 768
_REGION = 1 << 32  # one region further, in a ticket
_MOST_CHUNKS = 1 << 31

# A program in memory, in 8-byte words: this header, then `count` records (kernel, args, n, grain).
# Before the records run, `patch_count` patches (word, value, offset) are applied:
# words[word] = values[value] + offset. `profile` is null, or room for two times per record.
HEADER = {"count": 0, "pool": 1, "profile": 2, "patch_count": 3, "patches": 4, "values": 5,
          "words": 6}
HEADER_WORDS, RECORD_WORDS, PATCH_WORDS = 8, 4, 3

# Functions whose addresses the module's one exported function writes into a table, in this order.
ENTRIES = ("worker", "stop", "parallel", "run", "call", "pauses", "check", "same")

# What `check` compares: the kinds of its entries, and how many words each takes.
CHECKS = {"item": 0, "element": 1, "cell": 2, "size": 3}
CHECK_WORDS = 4
SAME_WORDS = 2
SAME_AHEAD = 24  # pairs of `same` whose words are under way from memory: 100 ns at 4 ns a pair

_YIELD_AFTER = 500  # pauses that a caller waits for a worker's chunk before it yields its core
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # with FUTEX_PRIVATE_FLAG; linux/futex.h
_FUTEX_CALL = {"x86_64": 202, "amd64": 202, "aarch64": 98, "arm64": 98, "riscv64": 98,
               "powerpc64le": 221, "loongarch64": 98}  # asm/unistd.h; little-endian (`region`)


class _Writer(FunctionBuilder):
    """FunctionBuilder with what threads need: atomics, pause, sleep, yield.

    `portable` leaves the futex out: sleepers wake by themselves and look again.
    """

    def __init__(self, signature: str, triple: str, portable: bool) -> None:
        super().__init__(signature)
        machine = triple.split("-")[0]
        self.system = next((s for s in ("linux", "windows") if s in triple), "posix")
        self.futex = _FUTEX_CALL.get(machine, 0) if self.system == "linux" and not portable else 0
        self.x86 = machine in ("x86_64", "amd64", "i386", "i686")
        self.arm = machine in ("aarch64", "arm64")

    def at(self, field: str) -> str:
        return self.gep("%pool", str(AT[field]))

    def get(self, field: str, type_: str, order: str = "") -> str:
        """Load a field of the pool, atomically if a memory order is given."""
        if not order:
            return self.load(type_, self.at(field), _ALIGN[type_])
        return self.value(f"load atomic {type_}, ptr {self.at(field)} {order}, "
                          f"align {_ALIGN[type_]}")

    def put(self, field: str, type_: str, value: str, order: str = "") -> None:
        if not order:
            self.store(type_, value, self.at(field), _ALIGN[type_])
            return
        self.line(f"store atomic {type_} {value}, ptr {self.at(field)} {order}, "
                  f"align {_ALIGN[type_]}")

    def update(self, operation: str, field: str, type_: str, value: str, order: str) -> str:
        """Atomic read-modify-write; the old value."""
        return self.value(f"atomicrmw {operation} ptr {self.at(field)}, {type_} {value} {order}")

    def exchange(self, field: str, old: str, new: str) -> str:
        """Atomic compare-and-swap of an i64 field; i1, whether it happened."""
        pair = self.value(f"cmpxchg ptr {self.at(field)}, i64 {old}, i64 {new} acq_rel acquire")
        return self.value(f"extractvalue {{ i64, i1 }} {pair}, 1")

    def word(self, base: str, index: int, type_: str = "i64") -> str:
        """Load 8-byte word number `index` of `base`."""
        return self.load(type_, self.gep(base, str(index), "i64"), 8)

    def pause(self) -> None:
        """Tell the core that this is a waiting loop."""
        if self.x86:
            self.intrinsic("llvm.x86.sse2.pause", "void", [])
        elif self.arm:
            self.intrinsic("llvm.aarch64.hint", "void", [("i32", "1")])

    def yield_core(self) -> None:
        self.intrinsic("SwitchToThread" if self.system == "windows" else "sched_yield", "i32", [])

    def sleep_while_region_is(self, region: str, naps: str) -> None:
        """Sleep until woken; without a futex, for 50 us and more the longer nothing happens."""
        if self.futex:
            self._futex(_FUTEX_WAIT, f"i32 {region}")
        elif self.system == "windows":
            self.intrinsic("Sleep", "void", [("i32", "1")])  # milliseconds
        else:
            nap = self.minimum(self.add(naps, "50"), "2000")  # microseconds
            self.intrinsic("usleep", "i32", [("i32", self.value(f"trunc i64 {nap} to i32"))])

    def wake(self, count: str) -> None:
        """Wake up to `count` (i64) sleepers; without a futex they wake by themselves."""
        if self.futex:
            self._futex(_FUTEX_WAKE, f"i64 {count}")

    def _futex(self, operation: int, value: str) -> None:
        self.declare("syscall", "declare i64 @syscall(i64, ...)")
        self.value(f"call i64 (i64, ...) @syscall(i64 {self.futex}, ptr {self.at('region')}, "
                   f"i64 {operation}, {value}, ptr null, ptr null, i64 0)")


_ALIGN = {"i32": 4, "i64": 8, "ptr": 8}


def native_source(triple: str, portable: bool = False) -> KernelSource:
    """LLVM text of pool and program walker for `triple`; its symbol fills the table of ENTRIES."""
    texts: list[str] = []
    declares: dict[str, str] = {}
    for signature, body in _PARTS:
        writer = _Writer(signature, triple, portable)
        texts.append(writer.finish(body(writer)))
        declares.update(writer.declares)
    text = PLAIN + "\n".join([*texts, *declares.values()]) + "\n"
    return KernelSource("gossamer_native", text)


# the pool ---------------------------------------------------------------------------------------
def _claim(w: _Writer) -> str:
    """claim(pool) -> i64: claim a chunk of the open region; its number, or -1 when none is left.

    Chunks are claimed from the first to the last: their number counts up as the ticket's lower
    half counts down.
    """
    w.branch("%look")
    w.label("%look")
    ticket = w.get("ticket", "i64", "acquire")
    left = w.value(f"and i64 {ticket}, {_REGION - 1}")
    w.branch_if(w.compare("eq", left, "0"), "%none", "%try")
    w.label("%try")
    w.branch_if(w.exchange("ticket", ticket, w.value(f"sub i64 {ticket}, 1")), "%held", "%look")
    w.label("%held")
    w.line(f"ret i64 {w.sub(w.get('chunks', 'i64'), left)}")
    w.label("%none")
    return "ret i64 -1"


def _chunk(w: _Writer) -> str:
    """chunk(pool, number, tid): run a claimed chunk."""
    kernel, args = w.get("kernel", "ptr"), w.get("args", "ptr")
    n, grain = w.get("n", "i64"), w.get("grain", "i64")
    start = w.mul("%number", grain)
    end = w.minimum(w.add(start, grain), n)
    w.line(f"call void {kernel}(ptr {args}, i64 {start}, i64 {end}, i64 %tid)")
    return "ret void"


def _worker(w: _Writer) -> str:
    """worker(pool, tid): the life of a worker thread; returns when the pool stops.

    It begins as one that has seen region 0, so that it enters a region opened before it ran.
    """
    spins = w.get("spins", "i64")
    w.branch("%idle")
    w.label("%idle")
    w.line("%seen = phi i32 [ 0, %entry ], [ %region, %next ]")
    w.branch("%spin")
    w.label("%spin")
    w.line("%i = phi i64 [ 0, %idle ], [ %i1, %again ]")
    early = w.get("region", "i32", "acquire")
    w.branch_if(w.value(f"icmp ne i32 {early}, %seen"), "%look", "%again")
    w.label("%again")
    w.pause()
    w.line("%i1 = add i64 %i, 1")
    w.branch_if(w.compare("slt", "%i1", spins), "%spin", "%announce")
    w.label("%announce")
    w.update("add", "sleeping", "i32", "1", "seq_cst")
    w.branch("%sleep")
    w.label("%sleep")
    w.line("%naps = phi i64 [ 0, %announce ], [ %naps1, %wait ]")
    late = w.get("region", "i32", "seq_cst")
    w.branch_if(w.value(f"icmp ne i32 {late}, %seen"), "%awake", "%wait")
    w.label("%wait")
    w.sleep_while_region_is("%seen", "%naps")
    w.line("%naps1 = add i64 %naps, 1")
    w.branch("%sleep")
    w.label("%awake")
    w.update("sub", "sleeping", "i32", "1", "seq_cst")
    w.branch("%look")
    w.label("%look")
    # A region that opens between here and the claims is worked on too, and seen again later.
    w.line(f"%region = phi i32 [ {early}, %spin ], [ {late}, %awake ]")
    stop = w.get("stop", "i32", "acquire")
    w.branch_if(w.value(f"icmp ne i32 {stop}, 0"), "%exit", "%next")
    w.label("%next")
    number = w.value("call i64 @claim(ptr %pool)")
    w.branch_if(w.compare("slt", number, "0"), "%idle", "%held")
    w.label("%held")
    w.line(f"call void @chunk(ptr %pool, i64 {number}, i64 %tid)")
    w.update("add", "done", "i64", "1", "release")
    w.branch("%next")
    w.label("%exit")
    return "ret void"


def _stop(w: _Writer) -> str:
    """stop(pool): workers return as soon as they are idle."""
    w.put("stop", "i32", "1", "release")
    w.update("add", "ticket", "i64", str(_REGION), "seq_cst")
    w.wake("2147483647")
    return "ret void"


def _parallel(w: _Writer) -> str:
    """parallel(pool, kernel, args, n, grain): kernel over [0, n) with whoever comes in time."""
    chunks = w.value(f"udiv i64 {w.sub(w.add('%n', '%grain'), '1')}, %grain")
    w.branch_if(w.compare("slt", chunks, str(_MOST_CHUNKS)), "%ask", "%alone")
    w.label("%ask")
    w.branch_if(w.exchange("busy", "0", "1"), "%open", "%alone")
    w.label("%alone")  # another caller has the pool: do not wait for it
    w.line("call void %kernel(ptr %args, i64 0, i64 %n, i64 0)")
    w.line("ret void")
    w.label("%open")
    for field, type_, value in (("kernel", "ptr", "%kernel"), ("args", "ptr", "%args"),
                                ("n", "i64", "%n"), ("grain", "i64", "%grain"),
                                ("chunks", "i64", chunks)):
        w.put(field, type_, value)
    w.put("done", "i64", "0", "monotonic")
    last = w.value(f"and i64 {w.get('ticket', 'i64', 'monotonic')}, {-_REGION}")
    ticket = w.value(f"add i64 {w.value(f'or i64 {last}, {chunks}')}, {_REGION}")
    w.update("xchg", "ticket", "i64", ticket, "seq_cst")
    sleeping = w.get("sleeping", "i32", "seq_cst")
    with w.when(w.value(f"icmp ne i32 {sleeping}, 0")):
        w.wake(w.sub(chunks, "1"))  # one sleeper for each chunk that the caller does not take
    before = w.block
    w.branch("%next")
    w.label("%next")
    w.line(f"%own = phi i64 [ 0, %{before} ], [ %own1, %held ]")
    number = w.value("call i64 @claim(ptr %pool)")
    w.branch_if(w.compare("slt", number, "0"), "%rest", "%held")
    w.label("%held")
    w.line(f"call void @chunk(ptr %pool, i64 {number}, i64 0)")
    w.line("%own1 = add i64 %own, 1")
    w.branch("%next")
    w.label("%rest")
    others = w.sub(chunks, "%own")
    w.branch("%wait")
    w.label("%wait")
    w.line("%i = phi i64 [ 0, %rest ], [ %i1, %more ]")
    w.branch_if(w.compare("eq", w.get("done", "i64", "acquire"), others), "%finished", "%busy")
    w.label("%busy")
    w.pause()
    w.line("%i1 = add i64 %i, 1")
    w.branch_if(w.compare("sgt", "%i", str(_YIELD_AFTER)), "%yield", "%more")
    w.label("%yield")
    w.yield_core()
    w.branch("%more")
    w.label("%more")
    w.branch("%wait")
    w.label("%finished")
    w.put("busy", "i64", "0", "release")
    return "ret void"


# programs ---------------------------------------------------------------------------------------
def _patch(w: _Writer) -> str:
    """patch(program): write this run's values into argument blocks and records."""
    count = w.word("%program", HEADER["patch_count"])
    patches = w.word("%program", HEADER["patches"], "ptr")
    values = w.word("%program", HEADER["values"], "ptr")
    words = w.word("%program", HEADER["words"], "ptr")
    with w.loop("0", count) as i:
        patch = w.gep(patches, w.mul(i, str(PATCH_WORDS)), "i64")
        value = w.load("i64", w.gep(values, w.word(patch, 1), "i64"), 8)
        total = w.value(f"add i64 {value}, {w.word(patch, 2)}")
        w.store("i64", total, w.gep(words, w.word(patch, 0), "i64"), 8)
    return "ret void"


def clock(w: FunctionBuilder) -> str:
    """clock() -> i64: nanoseconds where POSIX clocks exist, else cycles."""
    if not hasattr(time, "CLOCK_MONOTONIC"):
        return f"ret i64 {w.intrinsic('llvm.readcyclecounter', 'i64', [])}"
    room = w.alloca("i64", 2)
    w.intrinsic("clock_gettime", "i32", [("i32", str(time.CLOCK_MONOTONIC)), ("ptr", room)])
    seconds, rest = w.load("i64", room, 8), w.load("i64", w.gep(room, "1", "i64"), 8)
    return f"ret i64 {w.add(w.mul(seconds, '1000000000'), rest)}"


def _run(w: _Writer) -> str:
    """run(program): apply the patches, then every record, in order."""
    w.line("call void @patch(ptr %program)")
    count = w.word("%program", HEADER["count"])
    pool = w.word("%program", HEADER["pool"], "ptr")
    profile = w.word("%program", HEADER["profile"], "ptr")
    timed = w.value(f"icmp ne ptr {profile}, null")
    pooled = w.value(f"icmp ne ptr {pool}, null")
    with w.loop("0", count) as i:
        record = w.gep("%program", w.add(w.mul(i, str(RECORD_WORDS)), str(HEADER_WORDS)), "i64")
        kernel, args = w.word(record, 0, "ptr"), w.word(record, 1, "ptr")
        n, grain = w.word(record, 2), w.word(record, 3)
        times = w.gep(profile, w.mul(i, "2"), "i64")
        with w.when(timed):
            w.store("i64", w.value("call i64 @clock()"), times, 8)
        divisible = w.value(f"and i1 {w.compare('sgt', grain, '0')}, "
                            f"{w.compare('sgt', n, grain)}")
        w.either(
            w.value(f"and i1 {pooled}, {divisible}"),
            lambda: w.line(f"call void @parallel(ptr {pool}, ptr {kernel}, ptr {args}, i64 {n}, "
                           f"i64 {grain})"),
            lambda: w.line(f"call void {kernel}(ptr {args}, i64 0, i64 {n}, i64 0)"))
        with w.when(timed):
            w.store("i64", w.value("call i64 @clock()"), w.gep(times, "1", "i64"), 8)
    return "ret void"


def _call(w: _Writer) -> str:
    """call(self, address) -> address: `run` as a CPython function that releases the GIL."""
    program = w.intrinsic("PyLong_AsVoidPtr", "ptr", [("ptr", "%address")])
    w.branch_if(w.value(f"icmp eq ptr {program}, null"), "%failed", "%run")
    w.label("%failed")  # not an int: PyLong_AsVoidPtr has set the exception
    w.line("ret ptr null")
    w.label("%run")
    state = w.intrinsic("PyEval_SaveThread", "ptr", [])
    w.line(f"call void @run(ptr {program})")
    w.intrinsic("PyEval_RestoreThread", "void", [("ptr", state)])
    w.intrinsic("Py_IncRef", "void", [("ptr", "%address")])
    return "ret ptr %address"


def _held(w: _Writer) -> str:
    """held(entry) -> i64: address of the object that an entry's container holds now, or its size.

    References are borrowed. A missing element sets IndexError; `check` clears it.
    """
    container = w.word("%place", 1, "ptr")
    w.line("switch i64 " + w.word("%place", 0) + ", label %size [ " + " ".join(
        f"i64 {CHECKS[name]}, label %{name}" for name in ("item", "element", "cell")) + " ]")
    for name, function, key in (("item", "PyDict_GetItemWithError", "ptr"),
                                ("element", "PyList_GetItem", "i64"), ("cell", "PyCell_Get", "")):
        w.label(f"%{name}")
        found = w.intrinsic(function, "ptr", [
            ("ptr", container), *([(key, w.word("%place", 2, key))] if key else [])])
        if name == "cell":  # a new reference; the cell keeps the object
            w.intrinsic("Py_DecRef", "void", [("ptr", found)])
        w.line(f"ret i64 {w.value(f'ptrtoint ptr {found} to i64')}")
    w.label("%size")
    return f"ret i64 {w.intrinsic('PyObject_Size', 'i64', [('ptr', container)])}"


def _check(w: _Writer) -> str:
    """check(self, address) -> int: number of the first entry of a table that does not hold what it
    held, or how many entries there are; a CPython function.

    The table, in words: its length, then (kind, container, key, value) for each entry; CHECKS names
    the kinds. Values are compared by identity. Whoever made the table keeps its objects alive.
    """
    table = w.intrinsic("PyLong_AsVoidPtr", "ptr", [("ptr", "%address")])
    w.branch_if(w.value(f"icmp eq ptr {table}, null"), "%failed", "%begin")
    w.label("%failed")
    w.line("ret ptr null")
    w.label("%begin")
    count = w.word(table, 0)
    w.branch("%next")
    w.label("%next")
    w.line("%i = phi i64 [ 0, %begin ], [ %i1, %same ]")
    w.branch_if(w.compare("slt", "%i", count), "%look", "%done")
    w.label("%look")
    entry = w.gep(table, w.add(w.mul("%i", str(CHECK_WORDS)), "1"), "i64")
    now = w.value(f"call i64 @held(ptr {entry})")
    w.branch_if(w.compare("eq", now, w.word(entry, 3)), "%same", "%changed")
    w.label("%same")
    w.line("%i1 = add i64 %i, 1")
    w.branch("%next")
    w.label("%changed")
    w.intrinsic("PyErr_Clear", "void", [])
    w.branch("%done")
    w.label("%done")
    return f"ret ptr {w.intrinsic('PyLong_FromLongLong', 'ptr', [('i64', '%i')])}"


def _same(w: _Writer) -> str:
    """same(self, address) -> int: number of the first word that is not what it was, or how many
    there are; a CPython function.

    The table, in words: their count, then (address, value) for each, then SAME_AHEAD pairs more
    whose words are only fetched. A word is read only if all before it are what they were, so a
    pointer may be checked first and what it points to next.
    """
    table = w.intrinsic("PyLong_AsVoidPtr", "ptr", [("ptr", "%address")])
    w.branch_if(w.value(f"icmp eq ptr {table}, null"), "%failed", "%begin")
    w.label("%failed")
    w.line("ret ptr null")
    w.label("%begin")
    count, pairs = w.word(table, 0), w.gep(table, "1", "i64")
    w.branch("%next")
    w.label("%next")
    w.line("%i = phi i64 [ 0, %begin ], [ %i1, %same ]")
    w.branch_if(w.compare("slt", "%i", count), "%look", "%done")
    w.label("%look")
    pair = w.gep(pairs, w.mul("%i", str(SAME_WORDS)), "i64")
    w.intrinsic("llvm.prefetch.p0", "void", [
        ("ptr", w.word(pair, SAME_WORDS * SAME_AHEAD, "ptr")), ("i32", "0"), ("i32", "3"),
        ("i32", "1")])
    now = w.load("i64", w.word(pair, 0, "ptr"), 8)
    w.branch_if(w.compare("eq", now, w.word(pair, 1)), "%same", "%done")
    w.label("%same")
    w.line("%i1 = add i64 %i, 1")
    w.branch("%next")
    w.label("%done")
    return f"ret ptr {w.intrinsic('PyLong_FromLongLong', 'ptr', [('i64', '%i')])}"


def _pauses(w: _Writer) -> str:
    """pauses(n): n turns of a worker's spin loop, to measure how long they take."""
    with w.loop("0", "%n"):
        w.get("region", "i32", "acquire")
        w.pause()
    return "ret void"


def _table(w: _Writer) -> str:
    """gossamer_native(out): the addresses of ENTRIES."""
    for i, name in enumerate(ENTRIES):
        w.store("ptr", f"@{name}", w.gep("%out", str(i), "ptr"), 8)
    return "ret void"


_PARTS: tuple[tuple[str, Callable[[_Writer], str]], ...] = (
    ("internal i64 @claim(ptr %pool)", _claim),
    ("internal void @chunk(ptr %pool, i64 %number, i64 %tid)", _chunk),
    ("internal void @worker(ptr %pool, i64 %tid)", _worker),
    ("internal void @stop(ptr %pool)", _stop),
    ("internal void @parallel(ptr %pool, ptr %kernel, ptr %args, i64 %n, i64 %grain)", _parallel),
    ("internal void @patch(ptr %program)", _patch),
    ("internal i64 @clock()", clock),
    ("internal void @run(ptr %program)", _run),
    ("internal ptr @call(ptr %self, ptr %address)", _call),
    ("internal i64 @held(ptr %place)", _held),
    ("internal ptr @check(ptr %self, ptr %address)", _check),
    ("internal ptr @same(ptr %self, ptr %address)", _same),
    ("internal void @pauses(ptr %pool, i64 %n)", _pauses),
    ("void @gossamer_native(ptr %out)", _table),
)
