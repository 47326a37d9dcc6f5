"""Loop IR: one kernel as a nest of loops with passes. Layer 0.

The grammar, all of it:

    Kernel  = for each kept axis (parallel): Pass*
    Pass    = for each reduced axis: (Reduce | Store)*      then Store*  (once per row)
    Reduce  = accumulator[number] <- accumulator `combine` Val
    Store   = buffer[Index] <- Val       (or `+=`, for scatter-add)
    Val     = op(Val, ...) | load buffer[Index] if Condition | constant | parameter
            | Index as number | accumulator[number] | Condition ? Val : Val

An elementwise kernel has one pass and no reduced axis; softmax has three passes over one reduced
axis; a column sum has its reduced axis outside and its kept axis contiguous. Which axis becomes
vector lanes is a choice of `compile/llvm.py`, by the strides of all accesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gossamer.core.dtype import DType
from gossamer.core.traced import is_traced
from gossamer.ir.index import Condition, Index

__all__ = ["Axis", "Kernel", "Pass", "Reduce", "Store", "Val", "show"]


class Val:
    """A scalar expression inside a kernel: one node of a DAG.

    `kind` and `data`:
        "op": (operator record, attrs), over `inputs`.
        "load": (buffer number, linear Index in elements, Condition or None [0 when it fails]).
        "const": a Python number. "param": number of a runtime scalar of the program.
        "index": an Index, as a number. "acc": number of a reduction.
        "select": a Condition, over two `inputs`.
        "tile": the accumulator of a contraction (epilogues only), an Index row and column.
    """

    __slots__ = ("data", "dtype", "inputs", "kind", "vars")

    def __init__(self, kind: str, dtype: DType, data: Any, inputs: tuple[Val, ...] = (),
                 own_vars: Iterable[str] = ()) -> None:
        self.kind = kind
        self.dtype = dtype
        self.data = data
        self.inputs = inputs
        names = set(own_vars)
        for x in inputs:
            names |= x.vars
        self.vars: frozenset[str] = frozenset(names)


@dataclass(frozen=True)
class Axis:
    """A loop: its variable's name and its extent."""

    name: str
    extent: int


@dataclass
class Reduce:
    """Accumulate `value` over the reduced axes; `combine` is add, mul, max or min.

    A recurrence multiplies the accumulator by `factor` before each step.
    """

    number: int
    combine: str
    value: Val
    running: Store | None = None  # scans: store the accumulator at every step
    factor: Val | None = None

    def operands(self) -> tuple[Val, ...]:
        """What each step reads."""
        return (self.value,) if self.factor is None else (self.factor, self.value)


@dataclass
class Store:
    """Write `value` to `buffer` at a linear `index` (elements)."""

    buffer: int
    index: Index
    value: Val
    dtype: DType
    update: str | None = None  # "add": read, add, write (scatter-add)


@dataclass
class Pass:
    """One walk over the reduced axes, then the stores made once per row."""

    reduces: list[Reduce] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    row_stores: list[Store] = field(default_factory=list)


@dataclass
class Kernel:
    """A kernel before vectorisation."""

    name: str
    kept: list[Axis]
    reduced: list[Axis]
    passes: list[Pass]
    serial: bool = False  # a scan along the reduced axes: order matters

    def copied(self) -> tuple[int, int] | None:
        """(source, destination) if all it does is copy a buffer, element by element."""
        stores = list(self.stores())
        if self.reduced or len(stores) != 1 or stores[0].update:
            return None
        value, put = stores[0].value, stores[0]
        if value.kind != "load" or value.dtype is not put.dtype \
                or value.data[1:] != (put.index, None):
            return None
        return value.data[0], put.buffer

    def stores(self) -> Iterator[Store]:
        for p in self.passes:
            yield from p.stores
            yield from p.row_stores
            yield from (r.running for r in p.reduces if r.running)

    def inner_stores(self) -> Iterator[Store]:
        """Stores made at each point of the reduced axes."""
        for p in self.passes:
            yield from p.stores
            yield from (r.running for r in p.reduces if r.running)

    def values(self, inner: bool = False) -> list[Val]:
        """Every distinct Val, each after its inputs (also those inside indices).

        `inner`: only those of the loops over the reduced axes, not what follows once a row.
        """
        order: list[Val] = []
        done: set[int] = set()
        stores = list(self.inner_stores() if inner else self.stores())
        roots = [*(v for p in self.passes for r in p.reduces for v in r.operands()),
                 *(s.value for s in stores)]
        stack = [(root, False) for root in roots]
        for s in stores:
            stack.extend((v, False) for v in index_values(s.index))
        while stack:
            val, ready = stack.pop()
            if ready:
                order.append(val)
                continue
            if id(val) in done:
                continue
            done.add(id(val))
            stack.append((val, True))
            stack.extend((x, False) for x in operands(val))
        return order


def index_values(index: Index) -> Iterator[Val]:
    """The Vals that an Index reads."""
    for atom in index.terms:
        source = getattr(atom, "source", None)
        if source is not None:
            yield source
        inner = getattr(atom, "value", None)
        if isinstance(inner, Index):
            yield from index_values(inner)


def condition_values(condition: Condition | None) -> Iterator[Val]:
    if condition is not None:
        for index in (*(b[0] for b in condition.bounds), *(m[0] for m in condition.multiples)):
            yield from index_values(index)


def operands(val: Val) -> Iterator[Val]:
    """Inputs of a Val, those inside its index and condition included."""
    yield from val.inputs
    if val.kind == "load":
        yield from index_values(val.data[1])
        yield from condition_values(val.data[2])
    elif val.kind == "index":
        yield from index_values(val.data)
    elif val.kind == "select":
        yield from condition_values(val.data)


def show(kernel: Kernel) -> str:
    """The kernel as readable loops; nothing for one of a trace (`core/traced`)."""
    if any(is_traced(a.extent) for a in (*kernel.kept, *kernel.reduced)):
        return ""
    names: dict[int, str] = {}
    lines = [f"kernel {kernel.name}:"]
    pad = "  "
    for axis in kernel.kept:
        lines.append(f"{pad}for {axis.name} in {axis.extent}:  # parallel")
        pad += "  "
    for p in kernel.passes:
        inner = pad
        for axis in kernel.reduced:
            lines.append(f"{inner}for {axis.name} in {axis.extent}:")
            inner += "  "
        for r in p.reduces:
            if r.factor is not None:
                lines.append(f"{inner}acc{r.number} mul= {_text(r.factor, names)}")
            lines.append(f"{inner}acc{r.number} {r.combine}= {_text(r.value, names)}")
            if r.running is not None:
                lines.append(f"{inner}b{r.running.buffer}[{r.running.index!r}] = acc{r.number}")
        for s in p.stores:
            sign = "+=" if s.update else "="
            lines.append(f"{inner}b{s.buffer}[{s.index!r}] {sign} {_text(s.value, names)}")
        for s in p.row_stores:
            lines.append(f"{pad}b{s.buffer}[{s.index!r}] = {_text(s.value, names)}")
    return "\n".join(lines)


def _text(val: Val, names: dict[int, str], depth: int = 0) -> str:
    if depth > 12:
        return "…"
    inputs = [_text(x, names, depth + 1) for x in val.inputs]
    if val.kind == "op":
        return f"{val.data[0].name}({', '.join(inputs)})"
    if val.kind == "load":
        guard = " if …" if val.data[2] is not None else ""
        return f"b{val.data[0]}[{val.data[1]!r}]{guard}"
    if val.kind == "select":
        return f"select({', '.join(inputs)})"
    if val.kind in ("const", "param", "acc"):
        return f"{val.data}" if val.kind == "const" else f"{val.kind}{val.data}"
    return f"{val.kind}({val.data!r})"
