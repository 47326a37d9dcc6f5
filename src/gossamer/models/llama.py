"""Llama, as llama2.c writes it to a file: load a real model and continue a text. Layer 6.

One idea a line: norms by the root mean square, rotary positions on interleaved pairs, grouped
queries (several query heads share one key and value head), a gated feed-forward, no biases, and an
output layer that may be the embedding itself.

Sources: Touvron et al. 2023 (Llama 2); Su et al. 2021 (rotary positions); Ainslie et al. 2023
(grouped queries); Shazeer 2020 (SwiGLU); karpathy/llama2.c, run.c, for the file formats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gossamer as gs
from gossamer import nn
from gossamer.core.errors import CheckpointError

__all__ = ["Decoder", "Llama", "LlamaConfig", "LlamaTokenizer", "load_llama2c"]

F = nn.functional
NORM_EPS = 1e-5  # llama2.c's rmsnorm
ROTARY_BASE = 10_000.0  # Su et al. 2021
PIECE = 32  # tokens of a prompt read at once, padded to it: one program for prompts of any length


@dataclass(frozen=True)
class LlamaConfig:
    """The seven integers at the head of a llama2.c file.

    Args:
        dim: width of the residual stream (D).
        hidden_dim: width of the feed-forward (F).
        n_layers: blocks.
        n_heads: query heads (H); K = dim // n_heads is the width of a head.
        n_kv_heads: key and value heads; it divides n_heads.
        vocab_size: tokens (V).
        seq_len: the longest context.
        tied: the output layer is the embedding itself (in the file: V is positive).
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def rotary(positions: gs.Tensor, width: int) -> tuple[gs.Tensor, gs.Tensor]:
    """cos and sin of position * base^(-2i/K) for heads of `width`: (..., T) to (..., T, K/2)."""
    speed = ROTARY_BASE ** (-gs.arange(0, width, 2, dtype=gs.float32) / width)  # (K/2,)
    angle = positions.to(gs.float32)[..., None] * speed
    return gs.cos(angle), gs.sin(angle)


def rotate(x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turn each pair (x[2i], x[2i+1]) by its position's angle. (B, H, T, K)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    y = gs.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return y.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped queries. (B, T, D) -> (B, T, D)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        kv = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv, bias=False)
        self.wv = nn.Linear(config.dim, kv, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, place: nn.Place | None,
                layer: int) -> gs.Tensor:
        batch, length, dim = x.shape

        def heads(y: gs.Tensor) -> gs.Tensor:
            return y.view(batch, length, -1, self.config.head_dim).transpose(1, 2)  # (B, H, T, K)

        q, k, v = heads(self.wq(x)), heads(self.wk(x)), heads(self.wv(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if place is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = place.attend(layer, q, k, v)
        out: gs.Tensor = self.wo(y.transpose(1, 2).reshape(batch, length, dim))
        return out


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        out: gs.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.feed_forward = FeedForward(config)

    def forward(self, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, place: nn.Place | None,
                layer: int) -> gs.Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, place, layer)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Tokens int64 (B, T) -> logits float32 (B, T, V)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: gs.Tensor, place: nn.Place | None = None,
                last: gs.Tensor | None = None) -> gs.Tensor:
        """Scores of the next token.

        Args:
            tokens: (B, T) int64.
            place: where they continue the rows of a cache, to which they are added; without it
                they begin a sequence each.
            last: (1,) int64: the one position whose scores are wanted.

        Returns:
            (B, T, V) float32, or (B, 1, V) with `last`.
        """
        c = self.config
        if place is None:
            cos, sin = rotary(gs.arange(tokens.shape[1]), c.head_dim)  # (T, K/2)
        else:
            cos, sin = (t[:, None] for t in rotary(place.positions, c.head_dim))  # (B, 1, T, K/2)
        x = self.tok_embeddings(tokens)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, place, layer)
        if last is not None:
            x = x.index_select(1, last)
        out: gs.Tensor = self.output(self.norm(x))
        return out

    def cache(self, rows: int = 1, context: int = 0) -> nn.KVCache:
        """An empty cache for `rows` conversations of up to `context` tokens (0: as the config)."""
        c = self.config
        return nn.KVCache(c.n_layers, rows, context or c.seq_len, c.n_kv_heads, c.head_dim)

    def greedy(self, tokens: list[int], count: int) -> Iterator[int]:
        """Up to `count` further tokens, each the likeliest; ends before BOS (1) or EOS (2).

        Cost: the text once, in pieces of 32, then the weights once a token: one compiled step for
        every position.
        """
        length = min(len(tokens) + count, self.config.seq_len)
        decoder = Decoder(self, length)
        token = decoder.read(tokens)
        for _ in range(len(tokens), length):
            if token in (1, 2):
                return
            yield token
            if decoder.position < length:
                token = decoder.read([token])


class Decoder:
    """One conversation with a model: what was read stays in the cache. Greedy.

    Args:
        model: a Llama, quantised or not; it is not trained here.
        context: most tokens of the conversation (0: the model's own).

    Attributes:
        position: tokens read so far.
    """

    def __init__(self, model: Llama, context: int = 0) -> None:
        self.model, self.position = model, 0
        # Room for a whole piece at the end: what lies behind the text is never looked at.
        self.context = context or model.config.seq_len
        self.cache = model.cache(1, -(-self.context // PIECE) * PIECE)
        self._step = gs.compile(self._compute)

    def read(self, tokens: list[int]) -> int:
        """Read tokens behind what was read; returns the likeliest next one.

        Raises:
            ValueError: nothing to read, or no room for it.
        """
        if not 0 < len(tokens) <= self.context - self.position:
            raise ValueError(f"Decoder.read: {len(tokens)} tokens at position {self.position} of "
                             f"{self.context}; at least one must be given and all must fit. "
                             "Make a Decoder with a longer context.")
        token = 0
        while tokens:
            # Whole pieces must begin at a multiple of their length to end within the cache.
            piece = tokens[:PIECE - self.position % PIECE]
            whole = len(piece) > 1 and self.position % PIECE == 0
            piece, tokens = (piece, tokens[len(piece):]) if whole else (tokens[:1], tokens[1:])
            padded = [*piece, *[0] * (PIECE - len(piece))] if whole else piece
            with gs.no_grad():
                found = self._step(gs.tensor([[*padded, self.position, len(piece) - 1]]))
            self.position += len(piece)
            token = int(found.item()) if not tokens else 0
        return token

    def _compute(self, given: gs.Tensor) -> gs.Tensor:
        """The compiled step: (1, T + 2) int64, tokens, their position, and whose scores count."""
        tokens, start, last = given[:, :-2], given[0, -2:-1], given[0, -1:]
        place = self.cache.place(start, tokens.shape[1])
        return self.model(tokens, place, last)[0, 0].argmax(-1)


def load_llama2c(path: str | Path) -> Llama:
    """The model of a llama2.c file: seven int32 (little endian), then float32 arrays.

    Args:
        path: the `.bin` file; a negative vocabulary size in it says that the output layer is an
            array of its own.

    Returns:
        The model, without gradients.

    Raises:
        CheckpointError: the file is truncated, too long or no llama2.c file.
    """
    data = Path(path).read_bytes()
    if len(data) < 28:
        raise CheckpointError(f"load_llama2c({str(path)!r}): {len(data)} bytes; the head alone has "
                              "28. Copy the file again.")
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    config = LlamaConfig(dim, hidden, layers, heads, kv_heads, abs(vocab), length, tied=vocab > 0)
    # A width is a multiple of two per head: rotary positions turn pairs.
    if (min(dim, hidden, layers, heads, kv_heads, abs(vocab), length) <= 0
            or dim % (2 * heads) or heads % kv_heads):
        raise CheckpointError(f"load_llama2c({str(path)!r}): the head says {config}, which is no "
                              "model. Is it another file?")
    shapes = _layout(config)
    expected = 28 + 4 * sum(int(np.prod(shape)) for _, shape in shapes)
    if len(data) != expected:
        raise CheckpointError(f"load_llama2c({str(path)!r}): {len(data)} bytes; a model with "
                              f"{config} has {expected}. Copy the file again.")
    model = Llama(config).requires_grad_(False)
    model.load_state_dict(_state(data, shapes, config.n_layers))
    return model


def _layout(config: LlamaConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the arrays in the order of the file; `{}` stands for the layer."""
    n, d, f, k = config.n_layers, config.dim, config.hidden_dim, config.head_dim
    kv = config.n_kv_heads * k
    rows: list[tuple[str, tuple[int, ...]]] = [
        ("tok_embeddings.weight", (config.vocab_size, d)),
        ("layers.{}.attention_norm.weight", (n, d)),
        ("layers.{}.attention.wq.weight", (n, d, d)),
        ("layers.{}.attention.wk.weight", (n, kv, d)),
        ("layers.{}.attention.wv.weight", (n, kv, d)),
        ("layers.{}.attention.wo.weight", (n, d, d)),
        ("layers.{}.ffn_norm.weight", (n, d)),
        ("layers.{}.feed_forward.w1.weight", (n, f, d)),
        ("layers.{}.feed_forward.w2.weight", (n, d, f)),
        ("layers.{}.feed_forward.w3.weight", (n, f, d)),
        ("norm.weight", (d,)),
        ("rotary tables, which we compute", (2, config.seq_len, k // 2)),
    ]
    return rows if config.tied else [*rows, ("output.weight", (config.vocab_size, d))]


def _state(data: bytes, shapes: list[tuple[str, tuple[int, ...]]],
           layers: int) -> dict[str, gs.Tensor]:
    """The file's arrays by parameter name."""
    state: dict[str, gs.Tensor] = {}
    offset = 28
    for name, shape in shapes:
        size = int(np.prod(shape))
        array = np.frombuffer(data, "<f4", size, offset).reshape(shape).astype(np.float32)
        offset += 4 * size
        if "{}" in name:
            state |= {name.format(i): gs.tensor(array[i]) for i in range(layers)}
        elif name.endswith("weight"):
            state[name] = gs.tensor(array)
    state.setdefault("output.weight", state["tok_embeddings.weight"])  # tied
    return state


class LlamaTokenizer:
    """Tokens of llama2.c's tokenizer file: for each a score (float32), a length (int32), bytes.

    Only decoding: `decode([...])` gives the text. The file starts with the longest token's length.
    """

    def __init__(self, path: str | Path) -> None:
        data, offset = Path(path).read_bytes(), 4
        self.tokens: list[bytes] = []
        while offset < len(data):
            if offset + 8 > len(data):
                raise CheckpointError(f"LlamaTokenizer({str(path)!r}): cut short in token "
                                      f"{len(self.tokens)}. Copy the file again.")
            (length,) = struct.unpack_from("<i", data, offset + 4)
            if length < 0 or offset + 8 + length > len(data):
                raise CheckpointError(
                    f"LlamaTokenizer({str(path)!r}): token {len(self.tokens)} has {length} bytes, "
                    "more than are left. Is it another file?")
            self.tokens.append(data[offset + 8:offset + 8 + length])
            offset += 8 + length

    def decode(self, tokens: list[int]) -> str:
        """Text of the tokens after BOS, whose leading space is dropped as in llama2.c."""
        parts = []
        for token in tokens:
            piece = self.tokens[token]
            if len(piece) == 6 and piece[:3] == b"<0x":  # a raw byte such as <0x0A>
                piece = bytes([int(piece[3:5], 16)])
            parts.append(piece)
        return b"".join(parts).decode("utf-8", errors="replace").removeprefix(" ")
