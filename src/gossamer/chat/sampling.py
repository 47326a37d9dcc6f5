"""How the next token is chosen from the scores of all. Layer 7.

The one idea: a random number between 0 and 1 falls into the running sum of what the filters leave,
token after token in the vocabulary's order. So plain sampling at a temperature needs no sort; only
the filters do, and one sort serves them and the list of alternatives.

Source: Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
"""

from __future__ import annotations

from dataclasses import dataclass

import gossamer as gs

__all__ = ["ALTERNATIVES", "KNOBS", "Sampling", "choose"]

ALTERNATIVES = 20  # tokens listed beside the chosen one when alternatives are asked for
COLDEST = 1e-6  # temperatures below divide by this; greedy rows do not look at the quotient
KNOBS = 5  # numbers a row by which `choose` goes


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: 0 takes the likeliest; above, samples from softmax(logits / temperature).
        top_k: among the k likeliest only; 0 = all.
        top_p: among the likeliest that together have this probability; 1 = all.
        min_p: among those at least this share as likely as the likeliest; 0 = all.
        seed: of the random numbers; a request's tokens depend on nothing else that is decoded.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"Sampling(temperature={self.temperature}): it must be from 0 to 100.")
        if self.top_k < 0 or not 0.0 < self.top_p <= 1.0 or not 0.0 <= self.min_p <= 1.0:
            raise ValueError(
                f"Sampling(top_k={self.top_k}, top_p={self.top_p}, min_p={self.min_p}): top_k must "
                "be 0 or more, top_p in (0, 1] and min_p in [0, 1]."
            )

    @property
    def filters(self) -> bool:
        """Whether some tokens are left out."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    def knobs(self, uniform: float) -> list[float]:
        """A row of `choose`'s knobs; `uniform`: a random number in [0, 1)."""
        return [self.temperature, self.top_k, self.top_p, self.min_p, uniform]


def choose(logits: gs.Tensor, knobs: gs.Tensor, ranked: gs.Tensor | None = None) -> gs.Tensor:
    """One token of each row.

    The filters act one after the other, each on what the one before left: temperature, top-k,
    top-p, min-p. Tokens as likely as the last that is left are left too.

    Args:
        logits: (B, V).
        knobs: (B, 5): temperature (0 = the likeliest), top_k (0 = all), top_p, min_p, and a
            uniform random number in [0, 1).
        ranked: (B, V), the logits of each row, largest first; None = no row has filters.

    Returns:
        (B,) int64.

    Cost: a few passes over the logits; `ranked` costs a sort of each row.
    """
    temperature, uniform = knobs[:, :1].clamp(min=COLDEST), knobs[:, 4:]
    top = logits.max(dim=-1, keepdim=True).values
    p = ((logits - top) / temperature).exp()  # (B, V), 1 for the likeliest
    if ranked is not None:
        count = _left(((ranked - top) / temperature).exp(), knobs)
        p = p * (logits >= ranked.gather(1, count - 1))
    total = p.cumsum(dim=-1)
    place = (total <= uniform * total[:, -1:]).sum(dim=-1)
    # Rounding may leave the sum short of the number: the last that is left is the limit.
    last = ((p > 0) * gs.arange(logits.shape[1])).max(dim=-1).values
    return gs.where(knobs[:, 0] > 0, gs.minimum(place, last), logits.argmax(-1))


def _left(p: gs.Tensor, knobs: gs.Tensor) -> gs.Tensor:
    """(B, 1): how many of p, (B, V) largest first and 1 at first, the filters leave; at least 1."""
    k, top_p, min_p = (knobs[:, i:i + 1] for i in (1, 2, 3))
    kept = p * ((gs.arange(p.shape[1]) < k) | (k == 0))
    before = kept.cumsum(dim=-1) - kept
    inside = (kept > 0) & (before < top_p * kept.sum(dim=-1, keepdim=True)) & (kept >= min_p)
    return inside.sum(dim=-1, keepdim=True).clamp(min=1)
