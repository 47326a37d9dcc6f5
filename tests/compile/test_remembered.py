"""Kernels written once, for all sizes or all buffers, are those that would be written anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile import remembered
from gossamer.compile.llvm import Written, write_split
from gossamer.ir.index import Condition, Index, Quotient, Read, Remainder, Var
from gossamer.ir.loop import Axis, Kernel, Pass, Reduce, Store, Val
from gossamer.runtime import engine, jit

special = import_module("gossamer.compile.special")

# 0, 1 and 2 are special, 8 and less are short of a vector, 16 and 64 are whole vectors
LENGTHS = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 64, 100)
LARGE = ((1500, 1500), (1, 500_000), (500_000, 1))  # cut into chunks for several threads

STRUCTURES: dict[str, Callable[[gs.Tensor], gs.Tensor]] = {
    "softmax": lambda x: (x.tanh() * 2).softmax(-1).sum(),
    "rows and columns": lambda x: x.sum(0).unsqueeze(1) + x.mean(1),
    "transposed": lambda x: (x.T * x.T.cos()).sum(1),
    "every other": lambda x: x[::2, 1::2] * 3 - x[::2, 1::2].flip(0),
    "every third, from behind": lambda x: x.flip(1)[:, ::3].exp().sum(0),
    "broadcast": lambda x: x[:1] + x[:, :1] * x,
    "shifted": lambda x: gs.cat([x[1:], x[:1] * 0]) - x,
    "padded": lambda x: gs.nn.functional.pad(x, (2, 1, 0, 3)).abs().sum(1),
    "reshaped": lambda x: x.reshape(-1).cumsum(0).reshape(x.shape) + x,
    "repeated": lambda x: x.repeat_interleave(4, 1) + x.repeat(1, 4),
    "window": lambda x: x.unfold(1, 3, 2).sum(-1) if x.shape[1] > 2 else x,
    "taken": lambda x: x[gs.arange(x.shape[0]).flip(0)] * 2,
    "halves": lambda x: x.half().float() + (x > 0).float().double().sum(0),
    "iota": lambda x: (gs.arange(x.numel()).reshape(x.shape) % 7).float() * x,
}


@pytest.fixture
def twins(monkeypatch) -> list[bool]:
    """Every kernel is also written anew and compared; for each, whether it had been known."""
    seen: list[bool] = []

    def checked(kernel: Kernel, vector_bytes: int, specialize: bool) -> Written:
        known = len(remembered._known)
        found = remembered.write_remembered(kernel, vector_bytes, specialize)
        anew = write_split(kernel, vector_bytes, specialize)[0]
        assert found == anew and found.source.text == anew.source.text
        assert found.source.loops == anew.source.loops
        seen.append(len(remembered._known) == known)
        return found

    remembered.forget()
    engine.clear()
    monkeypatch.setattr(special, "write_remembered", checked)
    return seen


@pytest.mark.parametrize("name", STRUCTURES)
def test_another_size_is_the_kernel_that_would_be_written(name: str, twins: list[bool],
                                                          rng: np.random.Generator) -> None:
    """In random order, so that each size is found after others; compiled where new, so few."""
    shapes = list(itertools.product(LENGTHS, LENGTHS))
    rng.shuffle(shapes)
    graphs = []
    for rows, columns in [*shapes[:60], *LARGE]:
        if rows and columns:
            x = gs.from_numpy(np.zeros((rows, columns), np.float32))
            graphs.append(STRUCTURES[name](x)._node)
    for node in graphs:
        compiled(node)
    assert sum(twins) >= len(twins) // 5, (sum(twins), len(twins))


def compiled(node, specialize: bool = False) -> None:
    """The passes without LLVM."""
    graph = engine.Canonical([node])
    roots, inputs = graph.graph(literal=specialize)
    engine.compile_graph(roots, inputs, engine.host_target(), specialize=specialize)


@pytest.mark.parametrize("specialize", [True, False])
def test_layers_share_their_kernels(specialize: bool, twins: list[bool]) -> None:
    """The same loops on other buffers, in other orders, on one buffer twice, and in place."""
    x = gs.from_numpy(np.zeros((24, 40), np.float32))
    y = gs.from_numpy(np.ones((24, 40), np.float32))
    first = second = x
    for a, b in ((x, y), (y, x), (x, x)) * 4:
        first = (first.softmax(-1) * a - b.sum(0)).cumsum(0)
        second = (b - second.T.cumsum(0).T * first.amax(1, keepdim=True) + a).softmax(0)
    compiled((first + second)._node, specialize)
    assert sum(twins) > len(twins) // 2


@pytest.mark.parametrize("name", STRUCTURES)
def test_literal_sizes_are_those_of_the_loops(name: str, twins: list[bool]) -> None:
    for shape in ((20, 30), (30, 20), (20, 20), (16, 64), (3, 9), (20, 30)):
        for dtype in (np.float32, np.float64):
            x = gs.from_numpy(np.zeros(shape, dtype))
            compiled((STRUCTURES[name](x) + STRUCTURES[name](x * 2))._node, True)
    assert any(twins) and not all(twins)


def test_what_the_writer_looks_at_is_told_apart(twins: list[bool]) -> None:
    """Coincidences of sizes must not become rules: rows = columns, a stride that is a length."""
    for rows, columns in ((20, 20), (20, 30), (30, 20), (16, 16), (12, 24), (24, 12), (8, 12)):
        x = gs.from_numpy(np.zeros((rows, columns), np.float32))
        for view in (x, x.T, x[::2], x[:, ::2], x[:, 5:], x.reshape(-1, 2), x.expand(3, -1, -1),
                     x.reshape(columns, rows), x[3:, 3:], x[:, -2:]):
            compiled((view.sin() + 1)._node)
            compiled((view * 2).sum(-1)._node)
    assert any(twins) and not all(twins)


def test_a_chunk_is_a_part_after_a_small_kernel_too(rng: np.random.Generator) -> None:
    """One text for a bias and a weight that are updated in place, the small one written first: no
    chunk of the large one may start at its beginning and add twice."""
    remembered.forget()
    engine.clear()
    small = gs.from_numpy(rng.standard_normal(300).astype(np.float32))
    large = gs.from_numpy(rng.standard_normal(1_000_000).astype(np.float32))
    before = [t.numpy().copy() for t in (small, large)]

    @gs.compile
    def step() -> None:
        small.add_(small.tanh())
        large.add_(large.tanh())

    threads = gs.get_num_threads()
    gs.set_num_threads(2)
    try:
        step()
        got = [small.numpy(), large.numpy()]
    finally:
        gs.set_num_threads(threads)
    calls = [c for p in step.programs() for c in p.compiled.calls]
    assert any(c.n > c.grain > 0 for c in calls)
    for x, y in zip(before, got, strict=True):
        np.testing.assert_allclose(y, x + np.tanh(x), rtol=1e-6, atol=1e-6)


def test_constants_are_part_of_a_structure(twins: list[bool]) -> None:
    for value in (0.0, -0.0, 1.0, 2.0, 0.5, float("nan"), True):
        for n in (20, 30):
            compiled(gs.where(gs.from_numpy(np.zeros(n, np.float32)) > 0, value, 7.0)._node)
    assert any(twins)


def test_remembered_text_is_bounded(monkeypatch) -> None:
    remembered.forget()
    monkeypatch.setattr(remembered, "_MOST_TEXT", 20_000)
    x = gs.from_numpy(np.zeros(20, np.float32))
    for name in ("sin", "cos", "tan", "exp", "log", "sinh", "cosh", "erf"):
        compiled(getattr(x, name)()._node)
        assert remembered._text == sum(len(m.text) for m in remembered._known.values())
        assert remembered._text <= 20_000 or len(remembered._known) == 1
    assert 1 <= len(remembered._known) < 8


def looked_at(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ours, NumPy's) for views of an array."""
    t = gs.from_numpy(x)
    pairs = []
    for ours, theirs in ((t, x), (t.T, x.T), (t[::2, 1:], x[::2, 1:]), (t[:, ::3], x[:, ::3]),
                         (t.flip(0)[1:], x[::-1][1:])):
        pairs.append(((ours * 3 + 1).numpy(), theirs * 3 + 1))
        pairs.append((ours.sum(0).numpy(), theirs.sum(0)))
        pairs.append((ours.amax(1).numpy(), theirs.max(1)))
    return pairs


def test_a_new_shape_compiles_nothing(rng: np.random.Generator) -> None:
    """Outside `compile`, over many lengths, views and strides; and the values are right."""
    def check(rows: int, columns: int) -> None:
        x = rng.standard_normal((rows, columns)).astype(np.float32)
        for ours, theirs in looked_at(x):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    check(40, 50)
    check(50, 51)  # every third of a multiple of three: rows without a seam, one loop
    before = jit.stats.compiled + jit.stats.loaded_from_disk
    for rows, columns in ((41, 63), (64, 48), (130, 37), (33, 1000), (777, 29), (48, 64)):
        check(rows, columns)
    assert jit.stats.compiled + jit.stats.loaded_from_disk == before


def test_whatever_a_kernel_is_made_of_is_in_its_walk() -> None:
    """A new field changes texts: `remembered._Shape` must write it into its key as well."""
    made_of = {Kernel: "name kept reduced passes serial", Axis: "name extent",
               Pass: "reduces stores row_stores", Reduce: "number combine value running factor",
               Store: "buffer index value dtype update", Condition: "bounds multiples",
               Var: "name extent", Quotient: "value divisor", Remainder: "value divisor",
               Read: "source index extent condition"}
    for kind, names in made_of.items():
        assert [f.name for f in fields(kind)] == names.split(), kind
    assert set(Val.__slots__) == {"data", "dtype", "inputs", "kind", "vars"}
    assert set(Index.__slots__) == {"_hash", "constant", "high", "low", "terms"}
