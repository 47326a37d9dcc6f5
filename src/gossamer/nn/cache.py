"""Keys and values of what a model has read so far, for many conversations at once. Layer 5.

The one idea: the buffers always have the same size, and how much of a row is filled is a number
in memory. So every decoded token has the same shapes and runs the same compiled program, wherever
in its conversation each row stands, and attention reads only what is filled.

A layer that looks back no further than a window keeps no more: its row holds the positions from
`base` on, and when it is full its last window moves to the front (`slide`). The same kernels read
the same numbers in the same order, so the results are those of a whole row.

Source: Shazeer 2019 (incremental decoding); Yu et al. 2022, "Orca" (rows at different positions in
one batch); Beltagy et al. 2020 (windows); Zheng et al. 2024, "SGLang" (prefixes are shared).
"""

from __future__ import annotations

from collections.abc import Sequence

import gossamer.functional as gf
from gossamer.core.errors import ShapeError
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
        windows: of each layer, how many positions it looks back to, its own included; 0 or
            nothing: all.
        piece: most new tokens at once in a row; a layer with a window has room for its window and
            a piece.

    Attributes:
        rooms: positions a row of each layer has room for (C).
        room: the least of them.
        window: the longest window; 0 without any.

    A buffer is (R C, H K): one line a position, so that a new token is one line written.

    Cost: 2 · R · H · K · (sum of the rooms) elements.
    """

    def __init__(self, layers: int, rows: int, context: int, heads: int, head_dim: int,
                 windows: Sequence[int] = (), piece: int = 128) -> None:
        self.rows, self.context, self.heads, self.head_dim = rows, context, heads, head_dim
        self.windows = [*windows] or [0] * layers
        if len(self.windows) != layers or min(self.windows, default=0) < 0:
            raise ShapeError(f"KVCache(layers={layers}, windows={[*windows]}): there must be one "
                             "window a layer, 0 or more. Pass 0 for a layer that sees everything.")
        # One room for all windows, so that one base serves all of those layers.
        self.room = min(context, max(self.windows) + piece) if any(self.windows) else context
        self.window = max(self.windows) if self.room < context else 0
        self.rooms = [self.room if window else context for window in self.windows]
        shapes = [(rows * room, heads * head_dim) for room in self.rooms]
        self.keys = [gf.zeros(shape) for shape in shapes]
        self.values = [gf.zeros(shape) for shape in shapes]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def place(self, starts: Tensor, count: int, rows: Tensor | None = None,
              bases: Tensor | None = None) -> Place:
        """Where `count` new tokens of some rows go.

        Args:
            starts: (B,) int64, positions that are filled already in each row.
            count: new tokens a row (T).
            rows: (B,) int64, which rows of the cache; None = the first B.
            bases: (B,) int64, the position of each row's first line in layers with a window; None
                = 0, for rows that never slid. `starts + count - bases` may not exceed `room`.
        """
        return Place(self, starts, count, rows, bases)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Write row `source` over row `target`; both (1,) int64.

        Cost: reads and writes a row of each buffer.
        """
        for buffer in (*self.keys, *self.values):
            whole = buffer.view(self.rows, -1)
            whole.index_copy_(0, target, whole.index_select(0, source))

    def slide(self, row: Tensor, first: Tensor) -> None:
        """Move the window that begins at line `first` of a row to its front; both (1,) int64.

        The row's base grows by `first`. Layers without a window stay as they are.

        Cost: reads and writes the longest window of each layer that has one.
        """
        lines = row * self.room + gf.arange(self.window)
        for layer, room in enumerate(self.rooms):
            if room == self.room < self.context:
                for buffer in (self.keys[layer], self.values[layer]):
                    buffer.index_copy_(0, lines, buffer.index_select(0, lines + first))


class Place:
    """The T new positions of B rows of a cache.

    Attributes:
        starts: (B,) int64, positions that were filled before.
        positions: (B, T) int64, position of each new token in its conversation.
    """

    def __init__(self, cache: KVCache, starts: Tensor, count: int, rows: Tensor | None,
                 bases: Tensor | None = None) -> None:
        self.cache, self.rows, self.starts = cache, rows, starts
        self.count = starts.shape[0]
        self.positions = starts[:, None] + gf.arange(count)
        self._first = gf.arange(self.count) if rows is None else rows
        self._inside = starts if bases is None else starts - bases  # lines before the new ones
        self._lines = {cache.context: self._at(self.positions, cache.context)}
        if cache.window:
            inside = self.positions if bases is None else self.positions - bases[:, None]
            self._lines[cache.room] = self._at(inside, cache.room)

    def _at(self, positions: Tensor, room: int) -> Tensor:
        """(B T,): lines of a buffer."""
        return (self._first[:, None] * room + positions).flatten()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new keys and values, (B, Hk, T, K), and let the queries attend to them and to
        all of the past that the layer's window shows: (B, H, T, K) to (B, H, T, K).

        Cost: reads the positions that are filled, not the whole context.
        """
        cache = self.cache
        room = cache.rooms[layer]
        keys, values = (self._extend(buffer, new, room) for buffer, new in (
            (cache.keys[layer], k), (cache.values[layer], v)))
        start = self._inside if room < cache.context else self.starts
        y = scaled_dot_product_attention(q.to(keys.dtype), keys, values, is_causal=True,
                                         enable_gqa=True, start=start,
                                         window=cache.windows[layer])
        return y.to(q.dtype)

    def _extend(self, buffer: Tensor, new: Tensor, room: int) -> Tensor:
        """The rows, (B, Hk, C, K), with the new positions written."""
        cache = self.cache
        lines = new.transpose(1, 2).reshape(-1, buffer.shape[1])
        buffer.index_copy_(0, self._lines[room], lines.to(buffer.dtype))
        whole = buffer.view(cache.rows, room, cache.heads, cache.head_dim)
        whole = whole[:self.count] if self.rows is None else whole.index_select(0, self.rows)
        return whole.transpose(1, 2)
