"""Keys and values of what a model has read so far, for many conversations at once. Layer 5.

The one idea: the buffers always have the full context, and how much of a row is filled is a number
in memory. So every decoded token has the same shapes and runs the same compiled program, wherever
in its conversation each row stands, and attention reads only what is filled.

Source: Shazeer 2019 (incremental decoding); Yu et al. 2022, "Orca" (rows at different positions in
one batch).
"""

from __future__ import annotations

import gossamer.functional as gf
from gossamer.neural import scaled_dot_product_attention
from gossamer.tensor import Tensor

__all__ = ["KVCache", "Place"]


class KVCache:
    """Keys and values of `rows` conversations, one pair of buffers a layer.

    Args:
        layers: layers of the model.
        rows: conversations held at once (R).
        context: positions a row has room for (S).
        heads: key and value heads (H).
        head_dim: width of one head (K).

    A buffer is (R S, H K): one line a position, so that a new token is one line written.

    Cost: 2 · layers · R · S · H · K elements.
    """

    def __init__(self, layers: int, rows: int, context: int, heads: int, head_dim: int) -> None:
        self.rows, self.context, self.heads, self.head_dim = rows, context, heads, head_dim
        shape = (rows * context, heads * head_dim)
        self.keys = [gf.zeros(shape) for _ in range(layers)]
        self.values = [gf.zeros(shape) for _ in range(layers)]

    def place(self, starts: Tensor, count: int, rows: Tensor | None = None) -> Place:
        """Where `count` new tokens of some rows go.

        Args:
            starts: (B,) int64, positions that are filled already in each row.
            count: new tokens a row (T).
            rows: (B,) int64, which rows of the cache; None = all, in order.
        """
        return Place(self, starts, count, rows)


class Place:
    """The T new positions of B rows of a cache.

    Attributes:
        starts: (B,) int64, positions that were filled before.
        positions: (B, T) int64, position of each new token in its conversation.
    """

    def __init__(self, cache: KVCache, starts: Tensor, count: int,
                 rows: Tensor | None) -> None:
        self.cache, self.rows, self.starts = cache, rows, starts
        self.positions = starts[:, None] + gf.arange(count)
        lines = gf.arange(cache.rows) if rows is None else rows
        self._lines = (lines[:, None] * cache.context + self.positions).flatten()  # (B T,)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new keys and values, (B, Hk, T, K), and let the queries attend to them and to
        all of the past: (B, H, T, K) to (B, H, T, K).

        Cost: reads the positions that are filled, not the whole context.
        """
        keys, values = (self._extend(buffer, new) for buffer, new in (
            (self.cache.keys[layer], k), (self.cache.values[layer], v)))
        y = scaled_dot_product_attention(q.to(keys.dtype), keys, values, is_causal=True,
                                         enable_gqa=True, start=self.starts)
        return y.to(q.dtype)

    def _extend(self, buffer: Tensor, new: Tensor) -> Tensor:
        """The whole rows, (B, Hk, S, K), with the new positions written."""
        cache = self.cache
        lines = new.transpose(1, 2).reshape(-1, buffer.shape[1])
        buffer.index_copy_(0, self._lines, lines.to(buffer.dtype))
        whole = buffer.view(cache.rows, cache.context, cache.heads, cache.head_dim)
        if self.rows is not None:
            whole = whole.index_select(0, self.rows)
        return whole.transpose(1, 2)
