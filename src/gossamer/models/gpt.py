"""A GPT for chat: tokens in, the next token's scores out. Layer 6.

Rotary positions, queries and keys of norm one (QK norm), a squared-relu feed-forward, norms without
gains, no biases, an output head of its own whose rows are padded to a multiple of 64, and
projections into the residual stream that start at zero, so that the network starts as the identity.
Two things make it learn to copy and to spell early: a smear (each embedding takes in a learned
share of the four before it) and value embeddings (every second layer's values take in a gated
look-up of the token itself). Each of these is a field of `GPTConfig` that switches it off; grouped
queries, window layers, scalars per layer, backout and capped scores can be switched on.

Source: Vaswani et al. 2017; Su et al. 2021 (rotary); Henry et al. 2020 (QK norm); So et al. 2021
(squared relu); Ainslie et al. 2023 (grouped queries); Zhou et al. 2024 (value residual); Gemma Team
2024 (capped scores); the recipe is nanochat's, written anew.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import gossamer as gs
from gossamer import nn
from gossamer.nn import functional as F

__all__ = ["SMEAR", "SWITCHES", "GPT", "GPTConfig"]

HEAD_MULTIPLE = 64  # rows of the output head: whole tiles for the matmul
ROTARY_BASE = 10_000.0  # Su et al. 2021; enough for contexts of a few thousand tokens
# Embeddings before its own that a position takes in. With four, "garden" in "Mia went to the
# garden" knows of Mia before any layer; with one, whose garden it is takes a layer that hardly a
# run learns: of questions on stories 56 % were right after 300 steps, with four 83 % (docs/log.md).
SMEAR = 4
GATE_INPUTS = 12  # channels that the gate of a value embedding looks at
GATE_RANGE = 3.0  # its largest value; it starts in the middle
SHARPNESS = 1.2  # queries and keys have norm one a component; nanochat's measured best factor
# Scalars per layer, first to last: the stream is scaled up a little, and takes in the embeddings;
# backout takes half-way features out of what the head reads (nanochat's initial values).
STREAM_SCALE, EMBEDDING_SHARE, BACKOUT = (1.15, 1.05), (0.20, 0.05), 0.2
TIED_DEVIATION = 0.02  # of a table that is embedding and head in one (Radford et al. 2019)
SHORT_SHARE = 4  # a window layer ("S") sees this part of the context


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
        rotary: positions; without them order shows only through smear and causality.
        qk_norm: queries and keys of norm one.
        relu2: squared relu in the feed-forward; else gelu.
        value_embeddings: tables of values in every second layer.
        smear: embeddings take in those before them.
        untied: an output head of its own; else the embedding table is the head too.
        padded_head: rows of the head rounded up to whole tiles.
        layer_scalars: before each block x = a x + b x0 with learned a and b, x0 the embeddings.
        backout: the head reads x - c h with h the features half-way and a learned c.
        softcap: scores z become softcap tanh(z / softcap); 0 = as they are (nanochat: 15).
        windows: a letter a layer, repeated as needed: L sees the whole context, S its last
            quarter; the last layer is always L.
    """

    vocab_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0
    n_embd: int = 128
    sequence_len: int = 256
    rotary: bool = True
    qk_norm: bool = True
    relu2: bool = True
    value_embeddings: bool = True
    smear: bool = True
    untied: bool = True
    padded_head: bool = True
    layer_scalars: bool = False
    backout: bool = False
    softcap: float = 0.0
    windows: str = "L"

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
        if not self.windows or set(self.windows) - set("SL"):
            raise ValueError(
                f"GPTConfig(windows={self.windows!r}): a letter a layer, S for a window or L for "
                "the whole context, for example 'SSSL'."
            )
        if not self.softcap >= 0.0:
            raise ValueError(
                f"GPTConfig(softcap={self.softcap}): scores are capped at +- softcap; it must be "
                "positive, or 0 for no cap."
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
        multiple = HEAD_MULTIPLE if self.untied and self.padded_head else 1
        return -(-self.vocab_size // multiple) * multiple

    def window(self, layer: int) -> int:
        """How many positions, its own included, a layer's queries see; 0 = all."""
        short = self.windows[layer % len(self.windows)] == "S" and layer < self.n_layer - 1
        return -(-self.sequence_len // SHORT_SHARE) if short else 0

    @property
    def matrix_count(self) -> int:
        """Parameters that are multiplied with: the blocks' matrices and the head."""
        block = 2 * self.n_embd * (5 * self.n_embd + self.kv_heads * self.head_dim)
        return self.n_layer * block + self.padded_vocab * self.n_embd

    @property
    def flops_per_token(self) -> int:
        """FLOPs of training on one token: 6 a matrix parameter, 12 D T a layer for attention.

        Kaplan et al. 2020, with the full T x T product counted as is the custom (T x window in a
        window layer).
        """
        seen = sum(self.window(i) or self.sequence_len for i in range(self.n_layer))
        return 6 * self.matrix_count + 12 * self.n_embd * seen

    def to_dict(self) -> dict[str, Any]:
        """The fields, for config.json."""
        return asdict(self)


# What one word switches, off or on: `gossamer speedrun --without smear --with backout`.
SWITCHES: dict[str, tuple[str, Any, Any]] = {  # name: (field, value when off, value when on)
    **{name: (name, False, True) for name in (
        "rotary", "qk_norm", "relu2", "value_embeddings", "smear", "untied", "padded_head",
        "layer_scalars", "backout")},
    "softcap": ("softcap", 0.0, 15.0), "windows": ("windows", "L", "SSSL"),
}


@dataclass(frozen=True)
class _Where:
    """What every block is told besides its input.

    Args:
        ids: (B, T) int64 tokens.
        cos, sin: (T, K/2) or (B, 1, T, K/2), of the rotary angles.
        place: of the tokens in a cache, if they continue rows of one.
        begins: (B, T) int64, first position of each token's text, if rows hold several.
    """

    ids: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    place: nn.Place | None
    begins: gs.Tensor | None


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
        if config.value_embeddings and (config.n_layer - 1 - layer) % 2 == 0:
            self.table = nn.Embedding(config.vocab_size, kv_width)
            self.gate = nn.Linear(min(GATE_INPUTS, config.n_embd), config.kv_heads, bias=False)

    def forward(self, x: gs.Tensor, where: _Where) -> gs.Tensor:
        B, T, D = x.shape
        K = self.config.head_dim
        q = self._turned(self.q(x).view(B, T, -1, K).transpose(1, 2), where)  # (B, H, T, K)
        k = self._turned(self.k(x).view(B, T, -1, K).transpose(1, 2), where)  # (B, H_kv, T, K)
        v = self._values(x, where.ids).view(B, T, -1, K).transpose(1, 2)
        y = self._attend(q, k, v, where)
        return self.proj(y.transpose(1, 2).reshape(B, T, D))

    def _turned(self, x: gs.Tensor, where: _Where) -> gs.Tensor:
        """Queries or keys, turned by their positions and scaled to one norm."""
        if self.config.rotary:
            x = rotate(x, where.cos, where.sin)
        return norm(x) * SHARPNESS if self.config.qk_norm else x

    def _attend(self, q: gs.Tensor, k: gs.Tensor, v: gs.Tensor, where: _Where) -> gs.Tensor:
        if where.place is not None:
            return where.place.attend(self.layer, q, k, v)
        limits: dict[str, Any] = {}
        if window := self.config.window(self.layer):
            limits["window"] = window
        if where.begins is not None:
            limits["begins"] = where.begins
        grouped = self.config.kv_heads != self.config.n_head
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped, **limits)

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
        self.squared = config.relu2
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        h = self.fc(x)
        return self.proj(F.relu(h).square() if self.squared else F.gelu(h))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = FeedForward(config)

    def forward(self, x: gs.Tensor, where: _Where) -> gs.Tensor:
        x = x + self.attn(norm(x), where)
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
        self.smear = nn.Parameter(gs.zeros(SMEAR, config.n_embd)) if config.smear else None
        self.scale, self.share, self.backout = None, None, None
        if config.layer_scalars:
            first_to_last = gs.linspace(0.0, 1.0, config.n_layer)
            self.scale, self.share = (nn.Parameter(first + (last - first) * first_to_last)
                                      for first, last in (STREAM_SCALE, EMBEDDING_SHARE))
        if config.backout:
            self.backout = nn.Parameter(gs.full((1,), BACKOUT))
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layer)])
        self.head = None
        if config.untied:
            self.head = nn.Linear(config.n_embd, config.padded_vocab, bias=False)
        angles = _rotary_angles(config)  # (T, K/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    @gs.no_grad()
    def _initialise(self) -> None:
        """Uniform inputs of deviation 1/sqrt(D); zero outputs, so each block starts as identity."""
        if self.head is not None:
            nn.init.normal_(self.wte.weight, std=0.8)
            nn.init.normal_(self.head.weight, std=0.001)
        else:
            nn.init.normal_(self.wte.weight, std=TIED_DEVIATION)
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
                before: gs.Tensor | None = None, begins: gs.Tensor | None = None,
                last: gs.Tensor | None = None) -> gs.Tensor:
        """Scores of the next token at every position.

        Args:
            ids: (B, T) int64 token ids.
            place: where they continue the rows of a cache, to which they are added; without it
                they begin a sequence each.
            before: (B, SMEAR) int64, with `place`: the tokens before the first of each row, the
                nearest last (any where there are none).
            begins: (B, T) int64, without `place`: where the text of each token begins in its row,
                if rows hold several; no text sees another.
            last: (1,) int64, the only position whose scores are wanted; None = all.

        Returns:
            (B, T, V) float32 scores (logits), or (B, 1, V) with `last`.

        Raises:
            ValueError: more positions than the model's context.

        Cost: `estimate_flops / 3` a token without a cache.
        """
        x = self._features(ids, place, before, begins)
        x = x if last is None else x.index_select(1, last)
        # The head is called, not its weight used: its weights may be packed.
        logits = F.linear(x, self.wte.weight) if self.head is None else self.head(x)
        logits = logits[..., : self.config.vocab_size]
        cap = self.config.softcap
        return cap * gs.tanh(logits / cap) if cap else logits

    @property
    def head_weight(self) -> gs.Tensor:
        """(padded V, D): what the features are compared with."""
        return self.wte.weight if self.head is None else self.head.weight

    def _features(self, ids: gs.Tensor, place: nn.Place | None = None,
                  before: gs.Tensor | None = None, begins: gs.Tensor | None = None) -> gs.Tensor:
        """(B, T, D): what the head reads."""
        T = ids.shape[1]
        if T > self.config.sequence_len:
            raise ValueError(
                f"GPT.forward: {T} positions exceed the context of {self.config.sequence_len}. "
                "Drop the oldest tokens."
            )
        if place is None:
            cos, sin = self.cos[:T], self.sin[:T]  # (T, K/2)
        else:
            cos = self.cos[place.positions][:, None]  # (B, 1, T, K/2)
            sin = self.sin[place.positions][:, None]
        x = start = self._smeared(norm(self.wte(ids)), place, before, begins)  # (B, T, D)
        where, half = _Where(ids, cos, sin, place, begins), x
        for i, block in enumerate(self.blocks):
            if self.scale is not None and self.share is not None:
                x = self.scale[i] * x + self.share[i] * start
            x = block(x, where)
            if i == self.config.n_layer // 2:
                half = x
        return norm(x if self.backout is None else x - self.backout * half)

    def _smeared(self, e: gs.Tensor, place: nn.Place | None, before: gs.Tensor | None,
                 begins: gs.Tensor | None) -> gs.Tensor:
        """Each of (B, T, D) embeddings plus its share of those before it in its text."""
        if self.smear is None:
            return e
        T, x = e.shape[1], e
        past = gs.zeros_like(e[:, :1]).expand(-1, SMEAR, -1)
        if place is not None and before is not None:
            exists = place.positions[:, :1] >= gs.arange(SMEAR, 0, -1)  # (B, SMEAR)
            past = norm(self.wte(before)) * exists[..., None]
        line = gs.cat([past, e], dim=1)
        for back in range(1, SMEAR + 1):
            share = self.smear[back - 1] * line[:, SMEAR - back : SMEAR - back + T]
            if begins is not None:
                share = share * (gs.arange(T) - back >= begins)[..., None]
            x = x + share
        return x

    def cache(self, rows: int, piece: int = 0) -> nn.KVCache:
        """An empty cache for `rows` conversations.

        Args:
            rows: of the cache.
            piece: most new tokens at once, for a caller that slides the rows of window layers,
                which then keep a window and a piece; 0 = every layer keeps whole rows.
        """
        c = self.config
        windows = [c.window(i) for i in range(c.n_layer)]
        return nn.KVCache(c.n_layer, rows, c.sequence_len, c.kv_heads, c.head_dim, windows,
                          piece or c.sequence_len)

    def loss(self, ids: gs.Tensor, targets: gs.Tensor,
             begins: gs.Tensor | None = None) -> gs.Tensor:
        """Mean cross-entropy in nats over the positions whose target is not -1.

        Args:
            ids: (B, T) int64.
            targets: (B, T) int64, -1 where nothing is asked.
            begins: (B, T) int64, where the text of each token begins in its row; None: at 0.

        Cost: as `forward`; of large vocabularies only some rows of scores are held at a time.
        """
        cap: dict[str, Any] = {"softcap": self.config.softcap} if self.config.softcap else {}
        return F.linear_cross_entropy(
            self._features(ids, begins=begins).reshape(-1, self.config.n_embd),
            self.head_weight[: self.config.vocab_size], targets.reshape(-1), ignore_index=-1, **cap
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
        """The smear, the gates, backout and what each layer takes in of the embeddings."""
        gates = [b.attn.gate.weight for b in self.blocks if b.attn.gate is not None]
        return [*(p for p in (self.smear, self.backout, self.share) if p is not None), *gates]

    def stream_parameters(self) -> list[nn.Parameter]:
        """The factors on the stream itself: they act on all that came before, so they learn slowly.
        """
        return [] if self.scale is None else [self.scale]

    def count_parameters(self) -> int:
        """All parameters, the embedding included."""
        return sum(p.numel() for p in self.parameters())

    def estimate_flops(self) -> int:
        """`GPTConfig.flops_per_token`."""
        return self.config.flops_per_token


def _rotary_angles(config: GPTConfig) -> gs.Tensor:
    """(T, K/2) float32: position times base^(-2 i / K)."""
    half = config.head_dim // 2
    rates = ROTARY_BASE ** (-gs.arange(half, dtype=gs.float32) / half)
    return gs.arange(config.sequence_len, dtype=gs.float32)[:, None] * rates[None, :]
