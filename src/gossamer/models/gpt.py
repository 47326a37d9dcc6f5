"""A GPT for chat: tokens in, the next token's scores out. Layer 6.

Rotary positions, queries and keys of norm one (QK norm), a squared-relu feed-forward, norms without
gains, no biases, an output head of its own whose rows are padded to a multiple of 64, and
projections into the residual stream that start at zero, so that the network starts as the identity.
Two things make it learn to copy and to spell early: a smear (each embedding takes in a learned
share of the four before it) and value embeddings (every second layer's values take in a gated
look-up of the token itself). Optional grouped queries (fewer key than query heads).

Source: Vaswani et al. 2017; Su et al. 2021 (rotary); Henry et al. 2020 (QK norm); So et al. 2021
(squared relu); Ainslie et al. 2023 (grouped queries); Zhou et al. 2024 (value residual); the recipe
is nanochat's, written anew.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import gossamer as gs
from gossamer import nn
from gossamer.nn import functional as F

__all__ = ["SMEAR", "GPT", "GPTConfig"]

HEAD_MULTIPLE = 64  # rows of the output head: whole tiles for the matmul
ROTARY_BASE = 10_000.0  # Su et al. 2021; enough for contexts of a few thousand tokens
# Embeddings before its own that a position takes in. With four, "garden" in "Mia went to the
# garden" knows of Mia before any layer; with one, whose garden it is takes a layer that hardly a
# run learns: of questions on stories 56 % were right after 300 steps, with four 83 % (docs/log.md).
SMEAR = 4
GATE_INPUTS = 12  # channels that the gate of a value embedding looks at
GATE_RANGE = 3.0  # its largest value; it starts in the middle
SHARPNESS = 1.2  # queries and keys have norm one a component; nanochat's measured best factor


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT.

    Args:
        vocab_size: tokens of the tokenizer (V).
        n_layer: blocks.
        n_head: query heads (H); n_embd must be a multiple of it, and a head even.
        n_kv_head: key and value heads; it divides n_head. 0 = as many as query heads.
        n_embd: width of the residual stream (D).
        sequence_len: the longest context (T).
    """

    vocab_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0
    n_embd: int = 128
    sequence_len: int = 256

    def __post_init__(self) -> None:
        if self.n_embd % (2 * self.n_head):
            raise ValueError(
                f"GPTConfig(n_embd={self.n_embd}, n_head={self.n_head}): rotary positions turn "
                "pairs, so n_embd must be a multiple of 2 * n_head. Change one of them."
            )
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"GPTConfig(n_head={self.n_head}, n_kv_head={self.n_kv_head}): every key head "
                "serves equally many query heads; n_kv_head must divide n_head."
            )

    @property
    def head_dim(self) -> int:
        """Width of one head (K)."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def padded_vocab(self) -> int:
        """Rows of the output head."""
        return -(-self.vocab_size // HEAD_MULTIPLE) * HEAD_MULTIPLE

    def to_dict(self) -> dict[str, Any]:
        """The fields, for config.json."""
        return asdict(self)


def norm(x: gs.Tensor) -> gs.Tensor:
    """x / rms(x) over the last dimension, without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turn each pair (x[i], x[i + K/2]) by its position's angle: (B, H, T, K) -> the same."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return gs.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys.

    Every second layer, counted from the last, has a table of value embeddings.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        kv_width = config.kv_heads * config.head_dim
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k = nn.Linear(config.n_embd, kv_width, bias=False)
        self.v = nn.Linear(config.n_embd, kv_width, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.table, self.gate = None, None
        if (config.n_layer - 1 - layer) % 2 == 0:
            self.table = nn.Embedding(config.vocab_size, kv_width)
            self.gate = nn.Linear(min(GATE_INPUTS, config.n_embd), config.kv_heads, bias=False)

    def forward(
        self, x: gs.Tensor, ids: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, place: nn.Place | None
    ) -> gs.Tensor:
        B, T, D = x.shape
        K = self.config.head_dim
        q = self.q(x).view(B, T, -1, K).transpose(1, 2)  # (B, H, T, K)
        k = self.k(x).view(B, T, -1, K).transpose(1, 2)  # (B, H_kv, T, K)
        v = self._values(x, ids).view(B, T, -1, K).transpose(1, 2)
        q = norm(rotate(q, cos, sin)) * SHARPNESS
        k = norm(rotate(k, cos, sin)) * SHARPNESS
        if place is None:
            grouped = self.config.kv_heads != self.config.n_head
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            y = place.attend(self.layer, q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, T, D))

    def _values(self, x: gs.Tensor, ids: gs.Tensor) -> gs.Tensor:
        """(B, T, H_kv K): projections, plus the tokens' value embeddings times a gate per head."""
        v = self.v(x)
        if self.table is None or self.gate is None:
            return v
        gate = GATE_RANGE * gs.sigmoid(self.gate(x[..., :GATE_INPUTS]))  # (B, T, H_kv)
        table = self.table(ids).view(*gate.shape, -1)  # (B, T, H_kv, K)
        return v + (gate[..., None] * table).flatten(-2)


class FeedForward(nn.Module):
    """D -> 4 D -> D with relu(x)²."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = FeedForward(config)

    def forward(
        self, x: gs.Tensor, ids: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor, place: nn.Place | None
    ) -> gs.Tensor:
        x = x + self.attn(norm(x), ids, cos, sin, place)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """The language model.

    Args:
        config: its sizes.

    >>> model = GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16, sequence_len=8))
    >>> tuple(model(gs.zeros(1, 4, dtype=gs.int64)).shape)
    (1, 4, 65)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.smear = nn.Parameter(gs.zeros(SMEAR, config.n_embd))
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layer)])
        self.head = nn.Linear(config.n_embd, config.padded_vocab, bias=False)
        angles = _rotary_angles(config)  # (T, K/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    @gs.no_grad()
    def _initialise(self) -> None:
        """Uniform inputs of deviation 1/sqrt(D); zero outputs, so each block starts as identity."""
        nn.init.normal_(self.wte.weight, std=0.8)
        nn.init.normal_(self.head.weight, std=0.001)
        bound = math.sqrt(3.0 / self.config.n_embd)  # uniform on +-sqrt(3) s has deviation s
        for block in self.blocks:
            for linear in (block.attn.q, block.attn.k, block.attn.v):
                nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.uniform_(block.mlp.fc.weight, -0.4 * bound, 0.4 * bound)
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.proj.weight)
            if block.attn.table is not None:
                nn.init.uniform_(block.attn.table.weight, -bound, bound)
                nn.init.zeros_(block.attn.gate.weight)

    def forward(self, ids: gs.Tensor, place: nn.Place | None = None,
                before: gs.Tensor | None = None) -> gs.Tensor:
        """Scores of the next token at every position.

        Args:
            ids: (B, T) int64 token ids.
            place: where they continue the rows of a cache, to which they are added; without it
                they begin a sequence each.
            before: (B, SMEAR) int64, with `place`: the tokens before the first of each row, the
                nearest last (any where there are none).

        Returns:
            (B, T, V) float32 scores (logits).

        Raises:
            ValueError: more positions than the model's context.

        Cost: `estimate_flops / 3` a token without a cache.
        """
        return self.head(self._features(ids, place, before))[..., : self.config.vocab_size]

    def _features(self, ids: gs.Tensor, place: nn.Place | None = None,
                  before: gs.Tensor | None = None) -> gs.Tensor:
        """(B, T, D): what the head reads."""
        T = ids.shape[1]
        if T > self.config.sequence_len:
            raise ValueError(
                f"GPT.forward: {T} positions exceed the context of {self.config.sequence_len}. "
                "Drop the oldest tokens."
            )
        e = norm(self.wte(ids))  # (B, T, D)
        if place is None or before is None:
            cos, sin = self.cos[:T], self.sin[:T]  # (T, K/2)
            past = gs.zeros_like(e[:, :1]).expand(-1, SMEAR, -1)
        else:
            cos = self.cos[place.positions][:, None]  # (B, 1, T, K/2)
            sin = self.sin[place.positions][:, None]
            exists = place.positions[:, :1] >= gs.arange(SMEAR, 0, -1)  # (B, SMEAR)
            past = norm(self.wte(before)) * exists[..., None]
        x = self._smear(e, past)
        for block in self.blocks:
            x = block(x, ids, cos, sin, place)
        return norm(x)

    def _smear(self, e: gs.Tensor, past: gs.Tensor) -> gs.Tensor:
        """Each of (B, T, D) embeddings plus its share of those before; `past`: (B, SMEAR, D)."""
        T = e.shape[1]
        line, x = gs.cat([past, e], dim=1), e
        for back in range(1, SMEAR + 1):
            x = x + self.smear[back - 1] * line[:, SMEAR - back : SMEAR - back + T]
        return x

    def cache(self, rows: int) -> nn.KVCache:
        """An empty cache for `rows` conversations."""
        c = self.config
        return nn.KVCache(c.n_layer, rows, c.sequence_len, c.kv_heads, c.head_dim)

    def loss(self, ids: gs.Tensor, targets: gs.Tensor) -> gs.Tensor:
        """Mean cross-entropy in nats over the positions whose target is not -1.

        Args:
            ids: (B, T) int64.
            targets: (B, T) int64, -1 where nothing is asked.

        Cost: as `forward`; of large vocabularies only some rows of scores are held at a time.
        """
        return F.linear_cross_entropy(
            self._features(ids).reshape(-1, self.config.n_embd),
            self.head.weight[: self.config.vocab_size], targets.reshape(-1), ignore_index=-1
        )

    def matrix_parameters(self) -> list[nn.Parameter]:
        """The blocks' matrices: what Muon may orthogonalise."""
        linears = [
            linear for b in self.blocks
            for linear in (b.attn.q, b.attn.k, b.attn.v, b.attn.proj, b.mlp.fc, b.mlp.proj)
        ]
        return [linear.weight for linear in linears]

    def value_tables(self) -> list[nn.Parameter]:
        """The value embeddings."""
        return [b.attn.table.weight for b in self.blocks if b.attn.table is not None]

    def small_parameters(self) -> list[nn.Parameter]:
        """The smear and the gates."""
        gates = [b.attn.gate.weight for b in self.blocks if b.attn.gate is not None]
        return [self.smear, *gates]

    def count_parameters(self) -> int:
        """All parameters, the embedding included."""
        return sum(p.numel() for p in self.parameters())

    def estimate_flops(self) -> int:
        """FLOPs of training on one token: 6 a matmul parameter, 12 D T a layer for attention.

        Kaplan et al. 2020, with the full T x T product counted as is the custom.
        """
        matmul = sum(p.numel() for p in self.matrix_parameters()) + self.head.weight.numel()
        c = self.config
        return 6 * matmul + 12 * c.n_layer * c.n_embd * c.sequence_len


def _rotary_angles(config: GPTConfig) -> gs.Tensor:
    """(T, K/2) float32: position times base^(-2 i / K)."""
    half = config.head_dim // 2
    rates = ROTARY_BASE ** (-gs.arange(half, dtype=gs.float32) / half)
    return gs.arange(config.sequence_len, dtype=gs.float32)[:, None] * rates[None, :]
