"""Attention, forward and backward, against softmax attention written out in float64 NumPy.

Lengths around the tiles of `compile/flash.py` (64 queries, 48 keys, 6 and 12 rows of a product),
head widths around vectors, masks with rows that see nothing, grouped heads, 16-bit floats, views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import functional as F
from gossamer.compile.flash import Seen, backward_source, forward_source

from .graphs import plan
from .test_other_cpus import CPUS, machine_code

LENGTHS = (1, 2, 31, 32, 33, 65, 130)
WIDTHS = (1, 8, 20, 64, 80)
# Half an ulp of a 16-bit result; float32 sums of up to 130 products of numbers around 1.
TOLERANCE = {"float64": 1e-12, "float32": 4e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass
class Case:
    """One problem: what PyTorch's function takes, and the cotangent of its result."""

    q: Any
    k: Any
    v: Any
    g: Any
    mask: Any = None
    causal: bool = False
    window: int = 0
    start: int = 0
    begins: Any = None

    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(x.double().numpy() for x in (self.q, self.k, self.v, self.g))


def case(rng: np.random.Generator, t: int, s: int, size: int = 8, value: int | None = None, *,
         heads: tuple[int, int] = (2, 2), batch: int = 2, dtype: Any = gs.float32,
         **more: Any) -> Case:
    def tensor(*shape: int) -> Any:
        return gs.from_numpy(rng.standard_normal(shape)).to(dtype)
    value = size if value is None else value
    return Case(tensor(batch, heads[0], t, size), tensor(batch, heads[1], s, size),
                tensor(batch, heads[1], s, value), tensor(batch, heads[0], t, value), **more)


def expected(c: Case) -> list[np.ndarray]:
    """The result and the cotangents of q, k, v (and of an additive mask): the definition."""
    q, k, v, g = c.arrays()
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    t, s, scale = q.shape[2], k.shape[2], 1 / np.sqrt(q.shape[3])
    score = np.einsum("bhtd,bhsd->bhts", q, k) * scale
    added = c.mask is not None and c.mask.dtype is not gs.bool
    if c.mask is not None:
        mask = c.mask.numpy()
        score = score + mask if added else np.where(mask, score, -np.inf)
    i, j = np.arange(t)[:, None] + c.start, np.arange(s)
    if c.causal:
        score = np.where(j <= i, score, -np.inf)
    if c.window:
        score = np.where(j > i - c.window, score, -np.inf)
    if c.begins is not None:
        score = np.where(j >= c.begins.numpy()[:, None, :, None], score, -np.inf)
    top = score.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(score - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    out = p @ v
    dp = np.einsum("bhtv,bhsv->bhts", g, v)
    ds = p * (dp - (g * out).sum(-1, keepdims=True))
    dk = np.einsum("bhts,bhtd->bhsd", ds, q) * scale
    dv = np.einsum("bhts,bhtv->bhsv", p, g)
    shared = [x.reshape(x.shape[0], x.shape[1] // group, group, *x.shape[2:]).sum(2)
              for x in (dk, dv)]
    return [out, np.einsum("bhts,bhsd->bhtd", ds, k) * scale, *shared, *([ds] if added else [])]


def program(c: Case) -> Callable[..., tuple[Any, ...]]:
    start = gs.tensor(c.start) if c.start else None

    def run(q: Any, k: Any, v: Any, g: Any, mask: Any = None) -> tuple[Any, ...]:
        wanted = [x.detach().requires_grad_() for x in (q, k, v)]
        if mask is not None and mask.dtype is not gs.bool:
            wanted.append(mask := mask.detach().requires_grad_())
        y = F.scaled_dot_product_attention(*wanted[:3], mask, c.causal, window=c.window,
                                           start=start, enable_gqa=q.shape[1] != k.shape[1],
                                           begins=c.begins)
        return y.detach(), *gs.autograd.grad(y, wanted, g)
    return run


def check(c: Case, compiled: bool = False) -> None:
    run = gs.compile(program(c)) if compiled else program(c)
    found = run(c.q, c.k, c.v, c.g, *([] if c.mask is None else [c.mask]))
    tolerance = TOLERANCE[c.q.dtype.name]
    for i, (got, right) in enumerate(zip(found, expected(c), strict=True)):
        name = ("out", "dq", "dk", "dv", "mask")[i]
        assert got.shape == right.shape
        limit = tolerance * max(1.0, float(np.abs(right).max(initial=0)))
        error = np.abs(got.double().numpy() - right).max(initial=0)
        assert error <= limit, (name, error, limit)


# -------------------------------------------------------------------------------- lengths, widths
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_lengths(rng: np.random.Generator, t: int, causal: bool) -> None:
    for s in LENGTHS:
        check(case(rng, t, s, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", WIDTHS)
def test_widths(rng: np.random.Generator, size: int, causal: bool) -> None:
    for value in {size, 8, 20}:
        check(case(rng, 33, 65, size, value, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t", "s", "size"), [(1, 1, 1), (33, 65, 20), (65, 33, 8), (130, 130, 80),
                                              (1, 130, 64), (64, 48, 64)])
def test_compiled(rng: np.random.Generator, t: int, s: int, size: int, causal: bool) -> None:
    check(case(rng, t, s, size, causal=causal), compiled=True)


@pytest.mark.parametrize("causal", [False, True])
def test_double(rng: np.random.Generator, causal: bool) -> None:
    for t, s in ((1, 33), (65, 130), (130, 31)):
        check(case(rng, t, s, 20, 8, dtype=gs.float64, causal=causal))


# ------------------------------------------------------------------------------------ 16-bit floats
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [gs.bfloat16, gs.float16], ids=lambda d: d.name)
def test_low_precision(rng: np.random.Generator, dtype: Any, compiled: bool) -> None:
    for t, s, size in ((2, 31, 8), (33, 65, 20), (130, 32, 64)):
        for causal in (False, True):
            check(case(rng, t, s, size, dtype=dtype, causal=causal), compiled)


# ------------------------------------------------------------------------------------------ heads
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("heads", [(6, 2), (4, 1), (3, 3)])
def test_grouped_queries(rng: np.random.Generator, heads: tuple[int, int], compiled: bool) -> None:
    for t, s in ((1, 33), (65, 32)):
        check(case(rng, t, s, heads=heads, causal=t == 65), compiled)


@pytest.mark.parametrize("dtype", [gs.float32, gs.bfloat16], ids=lambda d: d.name)
def test_grouped_queries_with_a_mask(rng: np.random.Generator, dtype: Any) -> None:
    c = case(rng, 33, 31, heads=(6, 2), dtype=dtype)
    c.mask = gs.from_numpy(rng.random((2, 1, 33, 31)) < 0.5)
    check(c)


# ------------------------------------------------------------------------------------------ masks
def masks(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Any:
    """A third of the pairs hidden, and two rows that see nothing."""
    seen = rng.random(shape) < 0.67
    seen[..., 0, :] = seen[..., -1, :] = False
    if kind == "bool":
        return gs.from_numpy(seen)
    return gs.from_numpy(np.where(seen, rng.standard_normal(shape), -np.inf).astype(np.float32))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_masks_with_blind_rows(rng: np.random.Generator, kind: str, compiled: bool,
                               causal: bool) -> None:
    for t, s in ((3, 2), (33, 65), (65, 32)):
        c = case(rng, t, s, mask=masks(rng, kind, (2, 2, t, s)), causal=causal)
        check(c, compiled)
        if not compiled:
            y = F.scaled_dot_product_attention(c.q, c.k, c.v, c.mask, causal)
            assert (y.numpy()[:, :, [0, -1]] == 0).all()


@pytest.mark.parametrize("shape", [(33, 31), (1, 31), (2, 1, 33, 31), (1, 2, 1, 31)])
def test_masks_are_broadcast(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    c = case(rng, 33, 31, mask=gs.from_numpy(rng.random(shape) < 0.5))
    found = program(c)(c.q, c.k, c.v, c.g, c.mask)
    c.mask = c.mask.expand(2, 2, 33, 31)
    for got, right in zip(found, expected(c), strict=True):
        np.testing.assert_allclose(got.numpy(), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_windows(rng: np.random.Generator, causal: bool, compiled: bool) -> None:
    """Behind the last key's window a query sees nothing: t > s + window."""
    for t, s, window in ((33, 33, 1), (130, 130, 50), (65, 33, 7), (32, 65, 200), (192, 64, 8),
                         (200, 10, 5)):
        check(case(rng, t, s, causal=causal, window=window), compiled)


@pytest.mark.parametrize("start", [1, 31, 64])
def test_a_key_cache(rng: np.random.Generator, start: int) -> None:
    check(case(rng, 2, 66, causal=True, start=start))
    check(case(rng, 1, 66, heads=(4, 2), causal=True, start=start, window=9))


# ------------------------------------------------------------------------- several texts in a row
def texts(rng: np.random.Generator, batch: int, t: int, longest: int) -> Any:
    """Where the text of each position begins: texts of 1 to `longest` positions."""
    found = np.zeros((batch, t), np.int64)
    for row in found:
        place = 0
        while place < t:
            end = place + int(rng.integers(1, longest + 1))
            row[place:end], place = place, end
    return gs.from_numpy(found)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("longest", [1, 5, 60, 300])
def test_texts_in_a_row_see_themselves_only(rng: np.random.Generator, longest: int,
                                            compiled: bool) -> None:
    for t, heads in ((33, (2, 2)), (130, (4, 2)), (257, (1, 1))):
        begins = texts(rng, 2, t, longest)
        check(case(rng, t, t, heads=heads, causal=True, begins=begins), compiled)
        check(case(rng, t, t, causal=True, begins=begins, window=40), compiled)


@pytest.mark.parametrize("dtype", [gs.float64, gs.bfloat16], ids=lambda d: d.name)
def test_texts_of_other_dtypes(rng: np.random.Generator, dtype: Any) -> None:
    check(case(rng, 130, 130, 20, causal=True, dtype=dtype, begins=texts(rng, 2, 130, 50)))


def test_beginnings_in_any_order(rng: np.random.Generator) -> None:
    """Not from a packing: they rise and fall, some hide every key, and without a causal mask."""
    begins = gs.from_numpy(rng.integers(-3, 140, (2, 130)))
    check(case(rng, 130, 130, causal=True, begins=begins))
    check(case(rng, 130, 130, begins=begins))
    check(case(rng, 130, 70, begins=begins, window=30))


def test_texts_that_begin_behind_the_last_key(rng: np.random.Generator) -> None:
    """All queries of a chunk see nothing, those of others something."""
    begins = np.zeros((2, 130), np.int64)
    begins[:, 64:] = 170
    for causal in (False, True):
        check(case(rng, 130, 70, causal=causal, begins=gs.from_numpy(begins)))


def test_texts_with_a_mask_or_a_cache(rng: np.random.Generator) -> None:
    """What the tiled kernel leaves to the body."""
    begins = texts(rng, 2, 33, 20)
    check(case(rng, 33, 33, causal=True, begins=begins, mask=masks(rng, "bool", (2, 2, 33, 33))))
    check(case(rng, 33, 66, causal=True, begins=begins, start=20))
    check(case(rng, 2, 66, causal=True, begins=gs.tensor([[3, 5], [0, 40]]), start=50))


@pytest.mark.parametrize("cpu", CPUS)
def test_texts_become_code_for_other_cpus(cpu: str) -> None:
    triple, features, target = CPUS[cpu]
    for make in (forward_source, backward_source):
        for dtype in (gs.float32, gs.float64):
            source = make(dtype, target, Seen(causal=True, window=True, begins=True))
            assert machine_code(source.text, triple, features)


def test_beginnings_have_a_shape(rng: np.random.Generator) -> None:
    c = case(rng, 5, 5)
    for wrong in (gs.zeros(2, 4, dtype=gs.int64), gs.zeros(5, dtype=gs.int64), gs.zeros(2, 5)):
        with pytest.raises(gs.ShapeError, match=r"begins must be int64 of shape \(2, 5\)"):
            F.scaled_dot_product_attention(c.q, c.k, c.v, is_causal=True, begins=wrong)


# ------------------------------------------------------------------------------------------ values
def test_scores_beyond_the_range_of_exp(rng: np.random.Generator) -> None:
    """The running maximum is subtracted first, and rises from block to block."""
    c = case(rng, 65, 130)
    c.q, c.k = c.q * 40, c.k * gs.linspace(0.1, 5, 130).reshape(130, 1)
    out, *_ = program(c)(c.q, c.k, c.v, c.g)
    np.testing.assert_allclose(out.numpy(), expected(c)[0], rtol=0, atol=3e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_rows(rng: np.random.Generator, value: float) -> None:
    c = case(rng, 65, 33)
    q = c.q.numpy().copy()
    q[1, 0, 7] = value
    out = F.scaled_dot_product_attention(gs.from_numpy(q), c.k, c.v).numpy()
    clean = F.scaled_dot_product_attention(c.q, c.k, c.v).numpy()
    assert np.isnan(out[1, 0, 7]).all()
    out[1, 0, 7] = clean[1, 0, 7]
    np.testing.assert_array_equal(out, clean)


def test_the_scale_is_what_was_given(rng: np.random.Generator) -> None:
    c = case(rng, 5, 9)
    for scale in (0.0, -0.5, 3.0):
        got = F.scaled_dot_product_attention(c.q, c.k, c.v, scale=scale)
        q = c.q.double() * (scale * np.sqrt(8))
        np.testing.assert_allclose(got.numpy(), expected(Case(q, c.k, c.v, c.g))[0], atol=1e-5)


@pytest.mark.parametrize(("t", "s"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_attend_to(rng: np.random.Generator, t: int, s: int) -> None:
    check(case(rng, t, s))


# ------------------------------------------------------------------------------------------- views
@pytest.mark.parametrize("compiled", [False, True])
def test_operands_are_read_where_they_are(rng: np.random.Generator, compiled: bool) -> None:
    """Heads split from one projection; reversed and repeated operands, which must be copied."""
    qkv = gs.from_numpy(rng.standard_normal((2, 65, 3 * 2 * 8)).astype(np.float32))
    q, k, v = (x.reshape(2, 65, 2, 8).transpose(1, 2) for x in qkv.split(16, dim=2))
    g = gs.from_numpy(rng.standard_normal((2, 65, 2, 8)).astype(np.float32)).transpose(1, 2)
    check(Case(q, k, v, g, causal=True), compiled)
    check(Case(q.flip(2), k[:, :1].expand(2, 2, 65, 8), v.flip(3), g[:, :1].expand(2, 2, 65, 8)),
          compiled)


def test_the_tiled_kernel_is_used() -> None:
    """Else all of the above would have tested the body only."""
    shape = (2, 2, 65, 8)
    (cluster,) = plan(F.scaled_dot_product_attention, shape, shape, shape).clusters
    assert cluster.kind == "attention"


# ------------------------------------------------------------------------------------------ layout
@pytest.mark.parametrize(("heads", "size"), [((2, 2), 8), ((6, 2), 20)])
def test_projections_meet_the_kernels_without_a_copy(rng: np.random.Generator,
                                                     heads: tuple[int, int], size: int) -> None:
    """Forward and backward: two kernels of attention, delta, and products. Where rows are long,
    delta is summed in the order of memory: its few numbers are put in the kernel's own order."""
    b, t, (h, g) = 2, 40, heads
    widths = [h * size, g * size, g * size]
    x, w, out = (gs.from_numpy(0.3 * rng.standard_normal(s).astype(np.float32))
                 for s in ((b, t, 24), (sum(widths), 24), (24, h * size)))

    def gradients(x: Any, w: Any, out: Any) -> list[Any]:
        leaves = [v.detach().requires_grad_() for v in (w, out)]
        q, k, v = (part.view(b, t, -1, size).transpose(1, 2)
                   for part in (x @ leaves[0].t()).split(widths, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != g)
        loss = (y.transpose(1, 2).reshape(b, t, -1) @ leaves[1].t()).square().sum()
        return list(gs.autograd.grad(loss, leaves, retain_graph=True))
    kinds = [c.kind for c in plan(gradients, x.shape, w.shape, out.shape).clusters]
    assert sorted(kinds) == [
        "attention", "attention_grad", *["dot"] * 5, *["loops"] * (2 if size >= 16 else 1)]
    fast = gs.compile(gradients)(x, w, out)
    for a, b_ in zip(fast, gradients(x.double(), w.double(), out.double()), strict=True):
        np.testing.assert_allclose(a.numpy(), b_.numpy(), rtol=1e-4, atol=1e-4)
