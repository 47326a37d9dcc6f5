"""Batches of sequences of unequal length. Layer 5."""

from __future__ import annotations

from collections.abc import Iterable

import gossamer.functional as gf
from gossamer.tensor import Tensor

__all__ = ["pad_sequence", "unpad_sequence"]


def pad_sequence(sequences: Iterable[Tensor], batch_first: bool = False,
                 padding_value: float = 0.0, padding_side: str = "right") -> Tensor:
    """Sequences (L_i, *) stacked to (T, B, *), or (B, T, *), filled with `padding_value`."""
    if padding_side not in ("right", "left"):
        raise ValueError(f"pad_sequence: padding_side={padding_side!r}; it is 'right' or 'left'.")
    listed = list(sequences)
    longest = max(s.shape[0] for s in listed)
    rows = []
    for s in listed:
        missing = longest - s.shape[0]
        fill = gf.full((missing, *s.shape[1:]), padding_value, dtype=s.dtype)
        rows.append(gf.cat([s, fill] if padding_side == "right" else [fill, s]) if missing else s)
    return gf.stack(rows, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths: Tensor,
                   batch_first: bool = False) -> list[Tensor]:
    """The sequences of given lengths out of a padded batch."""
    batch = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [row[:int(n)] for row, n in zip(batch.unbind(0), lengths.tolist(), strict=True)]
