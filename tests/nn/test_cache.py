"""Keys and values in a cache: a window that slides sees what a whole row sees."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.neural import scaled_dot_product_attention

HEADS, SIZE, CONTEXT, WINDOW, PIECE = 2, 8, 96, 12, 16


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def feed(cache: nn.KVCache, row: int, pieces: list[int]) -> list[np.ndarray]:
    """Attention of every piece of a conversation, layer 0 and 1; the row slides where it must."""
    seen, start, base, step = [], 0, 0, gs.compile(one)
    for number, count in enumerate(pieces):
        if start - base + count > cache.room:
            first = start - base - cache.window
            cache.slide(gs.tensor([row]), gs.tensor([first]))
            base += first
        q, k, v = (gs.tensor(random(1, HEADS, count, SIZE, seed=9 * number + i)) for i in range(3))
        where = (gs.tensor([n]) for n in (start, base, row))
        seen += [y.numpy() for y in step(cache, q, k, v, *where)]
        start += count
    return seen


def one(cache: nn.KVCache, q: gs.Tensor, k: gs.Tensor, v: gs.Tensor, start: gs.Tensor,
        base: gs.Tensor, row: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
    place = cache.place(start, q.shape[2], row, base)
    return place.attend(0, q, k, v), place.attend(1, q, k + 1, v - 1)


def test_a_window_that_slides_is_a_whole_row() -> None:
    pieces = [PIECE, 1, 1, 3, PIECE, *[1] * 20, PIECE, 7, 1, 1]
    sliding = nn.KVCache(2, 3, CONTEXT, HEADS, SIZE, windows=[0, WINDOW], piece=PIECE)
    whole = nn.KVCache(2, 3, CONTEXT, HEADS, SIZE, windows=[0, WINDOW], piece=CONTEXT)
    assert sliding.rooms == [CONTEXT, WINDOW + PIECE] and whole.rooms == [CONTEXT] * 2
    assert sliding.nbytes == 2 * 3 * (CONTEXT + WINDOW + PIECE) * HEADS * SIZE * 4
    for a, b in zip(feed(sliding, 1, pieces), feed(whole, 1, pieces), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_window_is_the_mask_it_names() -> None:
    cache = nn.KVCache(1, 1, CONTEXT, HEADS, SIZE, windows=[WINDOW], piece=PIECE)
    whole = [random(1, HEADS, 40, SIZE, seed=i) for i in range(3)]
    found, base = [], 0
    for start in range(40):
        if start - base == cache.room:
            cache.slide(gs.tensor([0]), gs.tensor([start - base - WINDOW]))
            base = start - WINDOW
        place = cache.place(gs.tensor([start]), 1, bases=gs.tensor([base]))
        found.append(place.attend(0, *(gs.tensor(x[:, :, start:start + 1]) for x in whole)))
    right = scaled_dot_product_attention(*map(gs.tensor, whole), is_causal=True,
                                         window=WINDOW)
    np.testing.assert_allclose(gs.cat(found, dim=2).numpy(), right.numpy(), atol=1e-5)


def test_copying_a_row() -> None:
    cache = nn.KVCache(1, 3, 8, HEADS, SIZE)
    for buffers, seed in ((cache.keys, 1), (cache.values, 2)):
        buffers[0].copy_(gs.tensor(random(24, HEADS * SIZE, seed=seed)))
    before = [b.numpy().reshape(3, -1).copy() for b in (*cache.keys, *cache.values)]
    cache.copy(gs.tensor([2]), gs.tensor([0]))
    for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
        np.testing.assert_array_equal(new.numpy().reshape(3, -1), old[[2, 1, 2]])


@pytest.mark.parametrize("windows", [[1], [1, 2, 3], [-1, 0]])
def test_impossible_windows(windows: list[int]) -> None:
    with pytest.raises(gs.ShapeError, match="one window a layer"):
        nn.KVCache(2, 1, 8, HEADS, SIZE, windows=windows)
