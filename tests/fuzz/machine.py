"""A random program as data, and the machine that runs it on any library with PyTorch's names.

A program is a list of leaves and a list of steps of integers; every list is a valid program: a step
looks at the shapes it meets and does nothing where it does not fit. So one program runs on Gossamer
(lazily, compiled, by the reference) and on PyTorch, and Hypothesis can shrink it.

For every memory the machine knows a bound of its elements and of how far two correct evaluations
may be apart (first-order error analysis): operators that jump are only applied to exact values, and
a result is compared as sharply as it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

CAP = 70_000  # elements of one tensor: enough for several threads and for sums in two stages

# Bits of the mantissa behind the leading one, and the bound above which values are scaled down.
MANTISSA = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
LIMIT = {"float64": 1e4, "float32": 1024.0, "float16": 64.0, "bfloat16": 64.0}
INTEGER_LIMIT = {"int64": 2**20, "int32": 2**20, "int16": 2**10, "int8": 100, "uint8": 200}


@dataclass(frozen=True)
class Leaf:
    """An operand of a program.

    Attributes:
        kind: "closure" (found by the trace), "argument", or "state" (a closure's tensor that the
            program may write).
    """

    shape: tuple[int, ...]
    dtype: str
    seed: int
    kind: str = "closure"
    grad: bool = False

    def array(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        if self.dtype == "bool":
            return rng.integers(0, 2, self.shape).astype(bool)
        if self.dtype in MANTISSA:
            numpy = np.float32 if self.dtype == "bfloat16" else np.dtype(self.dtype)
            return (rng.integers(-16, 17, self.shape) / 8).astype(numpy)
        low = 0 if self.dtype == "uint8" else -6
        return rng.integers(low, 7, self.shape).astype(self.dtype)


@dataclass(frozen=True)
class Program:
    """Leaves, steps (name and three numbers), and which results are looked at."""

    leaves: tuple[Leaf, ...]
    steps: tuple[tuple[str, int, int, int], ...]
    keep: tuple[int, ...] = (0,)
    backward: bool = False


@dataclass
class Store:
    """What is known of one memory, through all its aliases.

    Attributes:
        mag: bound of the absolute values of the finite elements.
        frac: all elements are multiples of 2**-frac, so that arithmetic is exact; None if rounded.
        err: how far two correct evaluations may be apart.
        state: it outlives the program.
    """

    mag: float
    frac: int | None
    err: float = 0.0
    state: bool = False


@dataclass
class Item:
    """A tensor of the pool; `wide`: several elements may be one place in memory."""

    t: Any
    s: Store
    wide: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.t.shape)

    @property
    def ndim(self) -> int:
        return len(self.t.shape)

    @property
    def dtype(self) -> str:
        return str(self.t.dtype).split(".")[-1]

    @property
    def floating(self) -> bool:
        return self.dtype in MANTISSA

    @property
    def exact(self) -> bool:
        return self.s.frac is not None


Rule = Callable[["Machine", Item, int, int], None]
STEPS: dict[str, Rule] = {}


def step(rule: Rule) -> Rule:
    """Add a rule to the steps, by its name."""
    STEPS[rule.__name__.rstrip("_")] = rule
    return rule


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The common shape, or None."""
    try:
        return tuple(np.broadcast_shapes(tuple(a), tuple(b)))
    except ValueError:
        return None


@dataclass
class Machine:
    """Runs one program.

    Args:
        lib: gossamer, or torch.
        functional: its `nn.functional`.
        refusals: errors that mean "these operands do not fit".
        tracing: values are not known.
    """

    lib: Any
    functional: Any
    refusals: tuple[type[Exception], ...]
    tracing: bool = False
    items: list[Item] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)  # the steps that found an operand that fits
    done: bool = False  # the step did something

    # the pool ---------------------------------------------------------------------------------
    def leaf(self, leaf: Leaf, t: Any) -> None:
        if leaf.dtype == "bool":
            store = Store(1, 0)
        elif leaf.dtype in MANTISSA:
            store = Store(2, 3)
        else:
            store = Store(6, 0)
        if leaf.kind == "state":
            # What a run leaves behind is what the next begins with, and a compiled run takes the
            # same steps again: so the bounds must hold for both.
            store = Store(16, 0) if leaf.dtype not in MANTISSA else Store(
                16, None, 512 * 2.0 ** -MANTISSA[leaf.dtype])
            store.state = True
        # Only state is written itself: of a parameter, a copy.
        self.items.append(Item(t if store.state else t.clone(), store))

    def pick(self, k: int) -> Item:
        return self.items[-1 - k % len(self.items)]

    def view(self, x: Item, t: Any, wide: bool = False) -> None:
        if prod(t.shape) <= CAP:
            self.items.append(Item(t, x.s, x.wide or wide))
            self.done = True

    def add(self, t: Any, mag: float, frac: int | None, err: float = 0.0) -> None:
        """A new value: scaled down where it may have become too large."""
        if prod(t.shape) > CAP:
            return
        item = Item(t, Store(mag, frac, err))
        dtype = item.dtype
        if dtype == "bool":
            item.s = Store(1, 0)
        elif dtype in INTEGER_LIMIT:
            if mag > INTEGER_LIMIT[dtype]:
                item = Item(self.lib.remainder(t, 13), Store(13, 0))
            item.s.frac, item.s.err = 0, 0.0
        else:
            self._fit(item)
        self.items.append(item)
        self.done = True

    def _fit(self, item: Item) -> None:
        s, dtype = item.s, item.dtype
        unit = 2.0 ** -MANTISSA[dtype]
        if s.frac is not None and s.mag * 2.0**s.frac * unit > 1:
            s.frac = None
        if s.frac is None:
            s.err += unit * s.mag
        if s.mag > LIMIT[dtype]:
            k = int(np.ceil(np.log2(s.mag / LIMIT[dtype])))
            item.t = item.t * 2.0**-k
            s.mag, s.err = s.mag * 2.0**-k, s.err * 2.0**-k
            s.frac = None if s.frac is None else s.frac + k

    def like(self, x: Item, t: Any) -> None:
        """A copy of elements of x."""
        self.add(t, x.s.mag, x.s.frac, x.s.err)

    # operands ---------------------------------------------------------------------------------
    def number(self, x: Item) -> Item:
        """x, with bools as integers."""
        return Item(x.t.long(), Store(1, 0)) if x.dtype == "bool" else x

    def real(self, x: Item) -> Item:
        """x, floating."""
        if x.floating:
            return x
        return Item(x.t.float(), Store(x.s.mag, 0))

    def soft(self, x: Item) -> Item:
        """x, floating; a rounded value is moved off the kink at 0, on whose sides it could be."""
        x = self.real(x)
        if x.exact:
            return x
        return Item(x.t + 0.0371, Store(x.s.mag + 0.0371, None, x.s.err))

    def sharp(self, x: Item) -> Item:
        """x for an operator whose derivative depends on ties: without gradient if rounded."""
        return x if x.exact else Item(x.t.detach(), x.s)

    def axis(self, x: Item, k: int) -> int:
        return k % x.ndim if x.ndim else 0

    def partner(self, x: Item, k: int) -> Item:
        """An operand that broadcasts with x."""
        how, k = k % 4, k // 4
        if how == 1 and x.ndim and 0 not in x.shape:
            return Item(x.t.narrow(k % x.ndim, 0, 1), x.s)
        if how == 2 and x.ndim > 1 and 0 not in x.shape:
            return Item(x.t[0], x.s)
        if how == 3:
            return x
        fits = []
        for y in self.items:
            shape = broadcast(x.shape, y.shape)
            if shape is not None and prod(shape) <= CAP:
                fits.append(y)
        return fits[-1 - k % len(fits)] if fits else x

    # running ----------------------------------------------------------------------------------
    def run(self, program: Program, leaves: Sequence[Any]) -> None:
        for leaf, t in zip(program.leaves, leaves, strict=True):
            self.leaf(leaf, t)
        for number, (name, a, b, c) in enumerate(program.steps):
            self.done = False
            try:
                for k in range(len(self.items)):
                    STEPS[name](self, self.pick(a + k), b, c)
                    if self.done:
                        self.taken.append(name)
                        break
            except self.refusals:
                self.refused.append(number)

    def results(self, program: Program) -> list[Item]:
        chosen = {k % len(self.items): None for k in program.keep}
        return [self.items[-1 - k] for k in chosen]

    def loss(self, outs: Sequence[Item]) -> Any:
        """A number that depends on every floating result, each element with a weight of its own."""
        total = None
        for item in outs:
            if not item.floating or not item.t.requires_grad:
                continue
            t = item.t if item.dtype in ("float64", "float32") else item.t.float()
            count = prod(item.shape)
            weight = (self.lib.arange(count, dtype=t.dtype) % 7 - 2.5).reshape(item.shape)
            part = (t * weight).sum()
            total = part if total is None else total + part
        return total
