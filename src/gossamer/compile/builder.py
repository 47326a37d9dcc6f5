"""A small writer of LLVM IR text: one function at a time. Layer 2.

The one idea: values are strings (`%t7`, `0`, `splat (float 1.0)`), so that a code generator reads
like the code it writes. Text is enough: LLVM parses a kernel in well under a millisecond, and the
text itself is the key of the object cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["FunctionBuilder"]


class FunctionBuilder:
    """Writes one LLVM function.

    Args:
        signature: everything between `define` and the attributes: `void @k(ptr %args, i64 %lo)`.
        attributes: function attributes; `#0` (nounwind, CPU features) is added by the JIT.
        avx512: whether instructions of AVX-512 may be named where vectors have 512 bits.
        flushes: whether bfloat16 results below 2^-126 may become 0, as the CPU has it.

    Declarations and constants that the function needs are collected in `declares`, a dict from
    symbol to its line, so that a module can merge those of many functions.
    """

    def __init__(self, signature: str, attributes: str = "#0", avx512: bool = False,
                 flushes: bool = False) -> None:
        self.avx512, self.flushes = avx512, flushes
        self.bfloat16: dict[str, str] = {}  # float32 values that are bfloat16: their bits, as i32
        self.lines: list[str] = [f"define {signature} {attributes} {{", "entry:"]
        self.declares: dict[str, str] = {}
        self.block = "entry"
        self._allocas = 2  # where the next alloca goes: all of them stand at the entry block's head
        self._count = 0

    # names, lines ---------------------------------------------------------------------------
    def name(self, prefix: str = "t") -> str:
        self._count += 1
        return f"%{prefix}{self._count}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str, prefix: str = "t") -> str:
        """Write `name = text` and return the new name."""
        result = self.name(prefix)
        self.lines.append(f"  {result} = {text}")
        return result

    def declare(self, symbol: str, line: str) -> str:
        self.declares[symbol] = line
        return symbol

    def intrinsic(self, symbol: str, result: str, arguments: list[tuple[str, str]]) -> str:
        """Call an LLVM intrinsic or external function; `arguments` are (type, value) pairs."""
        types = ", ".join(t for t, _ in arguments)
        self.declare(symbol, f"declare {result} @{symbol}({types})")
        text = ", ".join(f"{t} {v}" for t, v in arguments)
        call = f"call {result} @{symbol}({text})"
        if result == "void":
            self.line(call)
            return ""
        return self.value(call)

    # i64 arithmetic -------------------------------------------------------------------------
    def add(self, a: str, b: str) -> str:
        return self.value(f"add nsw i64 {a}, {b}")

    def sub(self, a: str, b: str) -> str:
        return self.value(f"sub nsw i64 {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        return self.value(f"mul nsw i64 {a}, {b}")

    def udiv(self, a: str, b: str) -> str:
        return self.value(f"udiv i64 {a}, {b}")

    def urem(self, a: str, b: str) -> str:
        return self.value(f"urem i64 {a}, {b}")

    def compare(self, predicate: str, a: str, b: str) -> str:
        return self.value(f"icmp {predicate} i64 {a}, {b}")

    def select(self, condition: str, a: str, b: str, type_: str = "i64") -> str:
        return self.value(f"select i1 {condition}, {type_} {a}, {type_} {b}")

    def minimum(self, a: str, b: str) -> str:
        return self.select(self.compare("slt", a, b), a, b)

    # memory -----------------------------------------------------------------------------------
    def gep(self, pointer: str, index: str, type_: str = "i8") -> str:
        return self.value(f"getelementptr inbounds {type_}, ptr {pointer}, i64 {index}", "p")

    def load(self, type_: str, pointer: str, align: int | None = None, note: str = "") -> str:
        tail = f", align {align}" if align else ""
        return self.value(f"load {type_}, ptr {pointer}{tail}{note}")

    def store(self, type_: str, value: str, pointer: str, align: int | None = None,
              note: str = "") -> None:
        tail = f", align {align}" if align else ""
        self.line(f"store {type_} {value}, ptr {pointer}{tail}{note}")

    def alloca(self, type_: str, count: int = 1, align: int = 64) -> str:
        """Stack space, always placed at the head of the entry block (never inside a loop)."""
        result = self.name("s")
        text = f"  {result} = alloca {type_}, i64 {count}, align {align}"
        self.lines.insert(self._allocas, text)
        self._allocas += 1
        return result

    def at_entry(self, text: str, prefix: str = "w") -> str:
        """A value computed at the head of the entry block (arguments and their unpacking)."""
        result = self.name(prefix)
        self.lines.insert(self._allocas, f"  {result} = {text}")
        self._allocas += 1
        return result

    # control flow -----------------------------------------------------------------------------
    def label(self, label: str) -> None:
        self.lines.append(label[1:] + ":")
        self.block = label[1:]

    def branch(self, label: str) -> None:
        self.line(f"br label {label}")

    def branch_if(self, condition: str, then: str, other: str) -> None:
        self.line(f"br i1 {condition}, label {then}, label {other}")

    @contextmanager
    def loop(self, start: str, end: str, step: int | str = 1, note: str = "") -> Iterator[str]:
        """`for i in range(start, end, step)`; the test stands before the body. Yields i (i64).

        `note` is appended to the back edge's branch, e.g. `, !llvm.loop !0`.
        """
        head, body, latch, done = (self.name(p) for p in ("head", "body", "latch", "done"))
        i, following, before = self.name("i"), self.name("n"), self.block
        self.branch(head)
        self.label(head)
        self.line(f"{i} = phi i64 [ {start}, %{before} ], [ {following}, {latch} ]")
        self.branch_if(self.compare("slt", i, end), body, done)
        self.label(body)
        yield i
        self.branch(latch)
        self.label(latch)
        self.line(f"{following} = add nsw i64 {i}, {step}")
        self.line(f"br label {head}{note}")
        self.label(done)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Run the body if `condition` (i1) holds."""
        then, done = self.name("then"), self.name("fi")
        self.branch_if(condition, then, done)
        self.label(then)
        yield
        self.branch(done)
        self.label(done)

    def either(self, condition: str, then: Callable[[], None], other: Callable[[], None]) -> None:
        yes, no, done = self.name("then"), self.name("else"), self.name("fi")
        self.branch_if(condition, yes, no)
        self.label(yes)
        then()
        self.branch(done)
        self.label(no)
        other()
        self.branch(done)
        self.label(done)

    def finish(self, result: str = "ret void") -> str:
        """The function's text. Module-level declarations are in `declares`."""
        return "\n".join([*self.lines, f"  {result}", "}"]) + "\n"
