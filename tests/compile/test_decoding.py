"""Attention to a cache: the kernel against loops over positions."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile.decoding import has_kernel
from gossamer.core.dtype import float32, int64
from gossamer.ir.op import INPUT
from gossamer.neural import scaled_dot_product_attention
from gossamer.ops.attention import attention

# batch, query heads, key heads, new positions, cache, sizes of keys and values, window
CASES = [(1, 9, 3, 1, 100, 64, 64, 0), (2, 4, 2, 3, 50, 48, 48, 0), (3, 8, 1, 5, 64, 8, 12, 7),
         (2, 6, 6, 32, 64, 64, 32, 0), (1, 16, 1, 1, 40, 128, 128, 0), (1, 2, 1, 1, 33, 4, 256, 1)]


def loops(q: np.ndarray, k: np.ndarray, v: np.ndarray, starts: list[int],
          window: int) -> np.ndarray:
    batch, heads, t, size = q.shape
    shared = heads // k.shape[1]
    out = np.zeros((batch, heads, t, v.shape[-1]))
    for b, h, i in np.ndindex(batch, heads, t):
        end = min(starts[b] + i + 1, k.shape[2])
        first = max(0, starts[b] + i + 1 - window) if window else 0
        if end > first:
            seen = k[b, h // shared, first:end].astype(float)
            scores = seen @ q[b, h, i] / np.sqrt(size)
            p = np.exp(scores - scores.max())
            out[b, h, i] = p / p.sum() @ v[b, h // shared, first:end]
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_each_position_sees(case: tuple[int, ...]) -> None:
    batch, heads, groups, t, keys, size, value_size, window = case
    rng = np.random.default_rng(heads * 100 + size)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in (
        (batch, heads, t, size), (batch, groups, keys, size), (batch, groups, keys, value_size)))
    for starts in ([0] * batch, [keys - t] * batch, list(range(-2, 3 * batch - 2, 3))):
        for low, high in ((0, 0), (2, 3)):  # what has not been written may hold anything
            fresh = [np.full((x.shape[0], x.shape[1], low + x.shape[2] + high, x.shape[3]), np.nan,
                             np.float32) for x in (k, v)]
            for whole, x in zip(fresh, (k, v), strict=True):
                whole[:, :, low:low + keys] = x
                for b, s in enumerate(starts):
                    whole[b, :, low + max(s, 0) + t:] = np.nan
            views = [gs.tensor(x)[:, :, low:low + keys] for x in fresh]
            y = scaled_dot_product_attention(gs.tensor(q), *views, is_causal=True, enable_gqa=True,
                                             window=window, start=gs.tensor(starts))
            np.testing.assert_allclose(y.numpy(), loops(q, k, v, starts, window), atol=1e-5)


def test_scores_as_large_as_they_come() -> None:
    q, k = gs.full((1, 1, 1, 4), 1e18), gs.full((1, 1, 20, 4), 1e18)
    v = gs.arange(20.0)[None, None, :, None].expand(1, 1, 20, 4)
    y = scaled_dot_product_attention(q, k, v, is_causal=True, start=gs.tensor([9]))
    np.testing.assert_allclose(y.numpy(), 4.5)


def test_one_start_for_all_rows() -> None:
    rng = np.random.default_rng(0)
    q, k = (gs.tensor(rng.standard_normal(s).astype(np.float32))
            for s in ((2, 2, 1, 8), (2, 2, 30, 8)))
    one = scaled_dot_product_attention(q, k, k, is_causal=True, start=gs.tensor(17))
    two = scaled_dot_product_attention(q, k, k, is_causal=True, start=gs.tensor([17, 17]))
    np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_what_has_a_kernel() -> None:
    def node(t: int, size: int, **attrs: object) -> bool:
        leaves = [INPUT(index=i, shape=s, dtype=d) for i, (s, d) in enumerate(
            [((1, 2, t, size), float32), ((1, 1, 50, size), float32), ((1, 1, 50, size), float32),
             ((1,), int64)])]
        all_attrs = {"mask": False, "start": True, "causal": True, "window": 0, "scale": 1.0}
        return has_kernel(attention(*leaves, **{**all_attrs, **attrs}))

    assert node(1, 8) and node(32, 8) and node(1, 8, window=3)
    assert not node(33, 8) and not node(1, 6) and not node(1, 8, causal=False)
