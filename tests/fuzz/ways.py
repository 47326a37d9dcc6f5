"""The ways to run one program, and what must be equal between them.

Every way runs the program twice on the same leaves: gradients accumulate and state goes on, so that
the second run of a compiled function is held to the second run of the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gossamer as gs
import tests.fuzz.shapes
import tests.fuzz.steps  # noqa: F401  (they fill the table of steps)
from gossamer.core.errors import (
    DTypeError,
    GossamerError,
    GradientError,
    IndexingError,
    ShapeError,
)
from gossamer.core.settings import refresh
from tests.fuzz.machine import MANTISSA, Item, Machine, Program, Store
from tests.fuzz.rare import random_steps

REFUSALS = (ShapeError, DTypeError, IndexingError, GradientError)
RUNS = 2


@dataclass
class Outcome:
    """What a way gave: arrays of each run, gradients and state after each run."""

    values: list[list[np.ndarray]] = field(default_factory=list)
    grads: list[list[np.ndarray | None]] = field(default_factory=list)
    states: list[list[np.ndarray]] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    state_stores: list[Store] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    held: list[np.ndarray] = field(default_factory=list)  # the first results after the last run


def array(lib: Any, t: Any) -> np.ndarray:
    """A copy of the values, float32 for bfloat16."""
    t = t.detach()
    if t.dtype is lib.bfloat16 or t.dtype == lib.bfloat16:
        t = t.float()
    return np.array(t.clone().numpy())


def leaves_of(lib: Any, program: Program) -> list[Any]:
    found = []
    for leaf in program.leaves:
        t = lib.tensor(leaf.array()).to(getattr(lib, leaf.dtype))
        if program.backward and leaf.grad and leaf.dtype in MANTISSA and leaf.kind == "closure":
            t.requires_grad_(True)
        found.append(t)
    return found


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    refresh()
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        refresh()


def body(program: Program, machine: Callable[[], Machine], outcome: Outcome,
         leaves: Sequence[Any]) -> list[Any]:
    """One run: the results that are looked at; derivatives go into the leaves."""
    m = machine()
    m.run(program, leaves)
    outs = m.results(program)
    outcome.stores = [o.s for o in outs]
    outcome.state_stores = [i.s for i, leaf in zip(m.items, program.leaves, strict=False)
                            if leaf.kind == "state"]
    outcome.dtypes = [o.dtype for o in outs]
    outcome.refused = m.refused
    total = m.loss(outs) if program.backward else None
    results = [o.t for o in outs]
    m.items.clear()  # what nobody looks at need not be stored
    del outs
    if total is not None:
        total.backward()
    return results


def run(program: Program, lib: Any, machine: Callable[[], Machine],
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f) -> Outcome:
    """Run a program RUNS times."""
    lib.manual_seed(7)
    outcome = Outcome()
    leaves = leaves_of(lib, program)
    passed = [i for i, leaf in enumerate(program.leaves) if leaf.kind == "argument"]

    def once(*arguments: Any) -> list[Any]:
        own = list(leaves)
        for i, t in zip(passed, arguments, strict=True):
            own[i] = t
        return body(program, machine, outcome, own)

    call = wrap(once)
    first: list[Any] = []
    for number in range(RUNS):
        outs = call(*(leaves[i] for i in passed))
        outcome.values.append([array(lib, t) for t in outs])
        if not number and program.steps[0][1] & 1:  # a held result must stay, a free one may go
            first = outs
        del outs
        outcome.grads.append([None if t.grad is None else array(lib, t.grad) for t in leaves])
        outcome.states.append([array(lib, t) for t, leaf in zip(leaves, program.leaves, strict=True)
                               if leaf.kind == "state"])
    outcome.held = [array(lib, t) for t in first]
    return outcome


def lazily(program: Program) -> Outcome:
    return run(program, gs, lambda: Machine(gs, gs.nn.functional, REFUSALS))


def reference(program: Program) -> Outcome:
    with environment("GOSSAMER_REFERENCE", "1"):
        return lazily(program)


def compiled(program: Program) -> Outcome:
    return run(program, gs, lambda: Machine(gs, gs.nn.functional, REFUSALS, tracing=True),
               gs.compile)


def by_torch(program: Program, torch: Any) -> Outcome | None:
    """PyTorch's outcome; None where it refuses to differentiate a program with in-place writes."""
    kinds = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
    try:
        return run(program, torch, lambda: Machine(torch, torch.nn.functional, kinds))
    except RuntimeError as error:
        for known in ("modified by an inplace operation", "does not require grad",
                      "output of a function that returns multiple views"):
            if known in str(error):
                return None
        raise


# ------------------------------------------------------------------------------------ comparison

def close(found: np.ndarray, wanted: np.ndarray, atol: float, what: str) -> None:
    assert found.shape == wanted.shape, f"{what}: shape {found.shape} instead of {wanted.shape}"
    assert found.dtype == wanted.dtype, f"{what}: {found.dtype} instead of {wanted.dtype}"
    np.testing.assert_allclose(found, wanted, rtol=1e-12 if atol else 0, atol=atol, err_msg=what)


# Of gradients no error is tracked: relative to the largest element, by the coarsest dtype.
SLACK = {"float64": 1e-7, "float32": 3e-3, "float16": 0.2, "bfloat16": 0.5}


def slack(program: Program, outcome: Outcome) -> float:
    seen = {leaf.dtype for leaf in program.leaves} | set(outcome.dtypes)
    seen |= {("float64", "float32", "float16", "bfloat16", *[""] * 5)[b % 9]
             for name, _, b, _ in program.steps if name == "cast"}
    if any(name in ("make", "total", "along", "cast") for name, *_ in program.steps):
        seen.add("float32")
    return max(SLACK.get(d, SLACK["float32"]) for d in seen)


def same(found: Outcome, wanted: Outcome, program: Program, way: str, grads: bool = True) -> None:
    """Raise AssertionError where two outcomes differ by more than rounding explains."""
    loose = slack(program, wanted)
    for i, (a, b) in enumerate(zip(found.held, wanted.held, strict=True)):
        close(a, b, 32 * wanted.stores[i].err, f"{way}: result {i} of the first run, held")
    for number in range(RUNS):
        for i, (a, b) in enumerate(zip(found.values[number], wanted.values[number], strict=True)):
            close(a, b, 16 * wanted.stores[i].err, f"{way}: run {number}, result {i}")
        for i, (a, b) in enumerate(zip(found.states[number], wanted.states[number], strict=True)):
            close(a, b, 16 * wanted.state_stores[i].err, f"{way}: run {number}, state {i}")
        for i, (g, h) in enumerate(zip(found.grads[number], wanted.grads[number], strict=True)):
            if not grads:
                continue
            what = f"{way}: run {number}, gradient of leaf {i}"
            assert (g is None) == (h is None), f"{what}: {g} instead of {h}"
            if g is not None and h is not None:
                finite = np.abs(h[np.isfinite(h)])
                close(g, h, loose * max(1.0, float(finite.max(initial=0))), what)


def check(program: Program, torch: Any = None) -> str:
    """Run a program all ways and compare. Returns what PyTorch took part in."""
    wanted = reference(program)
    same(lazily(program), wanted, program, "lazily")
    same(compiled(program), wanted, program, "compiled")
    if torch is None or random_steps(program):
        return "none"
    other = by_torch(program, torch)
    if other is None:
        return "no gradient"
    refused = sorted(set(wanted.refused) - set(other.refused))
    assert not refused, f"steps {refused} are refused, PyTorch does them"
    if other.refused != wanted.refused:
        return "refused"
    same(wanted, other, program, "against PyTorch")
    return "all"


__all__ = ["GossamerError", "Item", "Outcome", "check", "compiled", "lazily", "reference", "same"]
