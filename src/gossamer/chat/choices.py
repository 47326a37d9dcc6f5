"""How likely a model finds the ends of texts that begin alike; the beginning is read once. Layer 7.

The choices of a question share all that stands before them, and with examples in the prompt that is
nearly everything. So the common beginning goes through the model once, into a cache of keys and
values; the cache is copied to a row for each choice, and only what differs is read there. Without
sharing every choice is read whole: the slow twin, and the faster way where beginnings are short.

Source: the cache is that of decoding (Shazeer 2019); the scores are those of Brown et al. 2020,
section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import gossamer as gs
import gossamer.nn.functional as F
from gossamer import nn
from gossamer.models.gpt import GPT, SMEAR

__all__ = ["Reader", "Reading", "Span", "common_start"]

ROWS = 32  # texts a forward pass: with 128 positions a training step's worth
_STEP = 16  # lengths are rounded up to it: sixteen shapes for a context of 256
_SHORT = 48  # beginnings up to it are read again: a second pass would cost more than it saves


@dataclass(frozen=True)
class Span:
    """A text, and which of its tokens are to be foretold.

    Args:
        ids: of the whole text, the start mark included.
        start: the first token that counts, at least 1; all from there to `end` do.
        end: behind the last one; 0 = the end of the text.
    """

    ids: Sequence[int]
    start: int
    end: int = 0


@dataclass(frozen=True)
class Reading:
    """What the model thinks of a span.

    Args:
        nats: mean of -log p over its tokens.
        exact: whether each of them was the likeliest.
        likeliest: the tokens that were.
    """

    nats: float
    exact: bool
    likeliest: tuple[int, ...]


@dataclass(frozen=True)
class _Text:
    """A span cut to the context: where it came from, and how many tokens others share with it."""

    group: int
    place: int
    ids: list[int]
    start: int
    end: int


class _Beginning(nn.Place):
    """A place at the beginning of each row, where there is no past: attention goes over the new
    keys and values alone, in tiles, and they are kept as they are.

    Attributes:
        kept: keys and values of each layer, (B, Hk, T, K).
    """

    def __init__(self, cache: nn.KVCache, starts: gs.Tensor, count: int) -> None:
        super().__init__(cache, starts, count, None)
        self.kept: dict[int, tuple[gs.Tensor, gs.Tensor]] = {}

    def attend(self, layer: int, q: gs.Tensor, k: gs.Tensor, v: gs.Tensor) -> gs.Tensor:
        self.kept[layer] = k, v
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True,
                                              window=self.cache.windows[layer])


def common_start(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with.

    >>> common_start([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    shortest = min(map(len, texts))
    for at in range(shortest):
        if any(text[at] != texts[0][at] for text in texts):
            return at
    return shortest


class Reader:
    """Reads spans, many at once.

    Args:
        model: in evaluation mode.
        sharing: whether texts of a group have their common beginning read once.

    Attributes:
        cropped: texts so far that were longer than the context and lost their beginning.

    >>> from gossamer.models.gpt import GPTConfig
    >>> reader = Reader(GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16)))
    >>> [[a, b]] = reader.read([[Span([1, 2, 3], 2), Span([1, 2, 4, 5], 2)]])
    >>> len(a.likeliest), len(b.likeliest)
    (1, 2)
    """

    def __init__(self, model: GPT, *, sharing: bool = True) -> None:
        self.model, self.sharing = model, sharing
        self.context = model.config.sequence_len
        self.cropped = 0

    def read(self, groups: Sequence[Sequence[Span]]) -> list[list[Reading]]:
        """A reading for each span.

        Args:
            groups: spans whose texts begin alike, as those of one question's choices do.

        Cost: one pass over the common beginnings and one over the rest, ROWS texts at a time.
        """
        texts = [self._cut(number, group) for number, group in enumerate(groups)]
        found: list[list[Reading | None]] = [[None] * len(group) for group in groups]
        for shared, batch in self._batches(texts):
            for text, reading in zip(*self._pass(shared, batch), strict=True):
                found[text.group][text.place] = reading
        return [[reading for reading in group if reading is not None] for group in found]

    def _cut(self, number: int, group: Sequence[Span]) -> list[_Text]:
        """The texts with what fits the context before their ends. All lose as much as the longest
        must, so that they still begin alike; none loses what is to be foretold but one of which
        that alone is longer than the context: of it the end is kept."""
        ends = [span.end or len(span.ids) for span in group]
        most = max(0, max(ends, default=0) - self.context)
        texts = []
        for place, (span, end) in enumerate(zip(group, ends, strict=True)):
            cut = max(end - self.context, min(most, span.start - 1))
            self.cropped += cut > 0
            texts.append(_Text(number, place, list(span.ids[cut:end]), max(1, span.start - cut),
                               end - cut))
        return texts

    def _batches(self, texts: list[list[_Text]]) -> Iterator[tuple[list[int], list[list[_Text]]]]:
        """Groups of like lengths, at most ROWS texts together, and what each group shares."""
        shared = [self._shared(group) if group else 0 for group in texts]
        order = sorted((i for i, group in enumerate(texts) if group),
                       key=lambda i: (shared[i], max(text.end for text in texts[i])))
        batch: list[int] = []
        rows = 0
        for i in order:
            if batch and (rows + len(texts[i]) > ROWS or (shared[batch[0]] == 0) != (shared[i] == 0)
                          ):
                yield [shared[j] for j in batch], [texts[j] for j in batch]
                batch, rows = [], 0
            batch.append(i)
            rows += len(texts[i])
        if batch:
            yield [shared[j] for j in batch], [texts[j] for j in batch]

    def _shared(self, group: list[_Text]) -> int:
        """Tokens read once for the group. The last common one is read again, in each row: what
        comes after it is the first thing to be foretold."""
        if not self.sharing or len(group) == 1:
            return 0
        count = min(common_start([t.ids for t in group]), min(t.start for t in group)) - 1
        return count if count > _SHORT else 0

    def _pass(self, shared: list[int], batch: list[list[_Text]]
              ) -> tuple[list[_Text], list[Reading]]:
        """The texts of some groups, and a reading of each."""
        texts = [text for group in batch for text in group]
        rows = max(ROWS, len(texts))  # one shape a length, so few programs
        width = max(len(t.ids) - s for s, group in zip(shared, batch, strict=True) for t in group)
        width = min(_rounded(max(width - 1, 1)), self.context)
        # A row is as wide as the longest rest of all; none may reach behind the context.
        shared = [min(count, self.context - width) for count in shared]
        skipped = np.repeat(shared, [len(group) for group in batch])
        ids, targets = np.zeros((2, rows, width), np.int64)
        for row, (text, skip) in enumerate(zip(texts, skipped, strict=True)):
            rest = text.ids[skip:]
            ids[row, : len(rest) - 1], targets[row, : len(rest) - 1] = rest[:-1], rest[1:]
        with gs.no_grad():
            logits = (self._continued(shared, batch, ids) if max(shared) else
                      self.model(gs.from_numpy(ids)))
            nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                   gs.from_numpy(targets).reshape(-1), reduction="none")
            found, likeliest = nats.numpy().reshape(targets.shape), logits.argmax(-1).numpy()
        readings = []
        for row, (text, skip) in enumerate(zip(texts, skipped, strict=True)):
            # the token at `start` is foretold by the position before it
            part = slice(text.start - 1 - skip, text.end - 1 - skip)
            readings.append(Reading(
                float(found[row, part].mean(dtype=np.float64)),
                bool((likeliest[row, part] == targets[row, part]).all()),
                tuple(int(i) for i in likeliest[row, part])))
        return texts, readings

    def _continued(self, shared: list[int], batch: list[list[_Text]], ids: np.ndarray) -> gs.Tensor:
        """(R, T, V) logits of rows that continue their group's beginning.

        Args:
            shared: tokens of each group's beginning (G,).
            ids: (R, T) what each row goes on with.
        """
        (R, T), G = ids.shape, len(batch)
        length = _rounded(max(shared))
        first = np.zeros((G, length), np.int64)
        starts, source = np.zeros(R, np.int64), np.zeros(R, np.int64)
        before = np.zeros((R, SMEAR), np.int64)
        row = 0
        for g, (count, group) in enumerate(zip(shared, batch, strict=True)):
            first[g, :count] = group[0].ids[:count]
            rows = slice(row, row + len(group))
            starts[rows], source[rows] = count, g
            before[rows] = [*[0] * SMEAR, *first[g, :count]][-SMEAR:]
            row += len(group)
        each = self._cache(R, length + T)
        beginning = _Beginning(self._cache(G, length), gs.zeros(G, dtype=gs.int64), length)
        # Nobody looks at the scores of the beginnings, so only their keys and values are computed.
        self.model(gs.from_numpy(first), beginning, gs.zeros(G, SMEAR, dtype=gs.int64))
        rows_of = gs.from_numpy(source)
        for layer, (keys, values) in beginning.kept.items():
            for new, buffer in ((keys, each.keys[layer]), (values, each.values[layer])):
                lines = new.transpose(1, 2).reshape(G, length, -1).index_select(0, rows_of)
                buffer.view(R, length + T, -1)[:, :length] = lines
        # Behind a shorter beginning stands padding: the row writes over it, or does not see it.
        return self.model(gs.from_numpy(ids), each.place(gs.from_numpy(starts), T),
                          gs.from_numpy(before))

    def _cache(self, rows: int, length: int) -> nn.KVCache:
        """The model's kind of cache, as long as needed; layers with a window keep all of it."""
        like = self.model.cache(1)
        return nn.KVCache(len(like.keys), rows, length, like.heads, like.head_dim, like.windows,
                          piece=length)


def _rounded(length: int) -> int:
    return -(-length // _STEP) * _STEP
