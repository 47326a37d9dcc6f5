"""What several samples of one question are worth: pass@k and the majority's vote. Layer 7.

Drawing exactly k replies to see whether one is right is a noisy estimate of pass@k. Of n >= k
replies, c of them right, the chance that k drawn without replacement are all wrong is known:

    pass@k = 1 - C(n - c, k) / C(n, k)

and its mean over questions is an estimate without bias.

Source: Chen et al. 2021 (Codex), equation 1; Wang et al. 2022, "Self-Consistency" (the vote).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gossamer.chat.evaluate import Figure
from gossamer.chat.spread import share_error

__all__ = ["figures", "majority", "pass_at_k"]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k replies is right, from n of which c are.

    Args:
        n: replies drawn.
        c: right ones among them.
        k: at most n.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): k must be from 1 to n, c from 0 to n.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers: Sequence[str]) -> str:
    """The answer given most often; among equals the one given first. Empty answers do not vote.

    >>> majority(["7", "", "8", "8", ""])
    '8'
    """
    counted = Counter(answer for answer in answers if answer)
    return max(counted, key=lambda a: counted[a], default="")


def figures(right: Sequence[Sequence[bool]], voted: Sequence[bool]) -> tuple[Figure, ...]:
    """pass@1, 2, 4, ... up to the number of replies, and how often the majority is right.

    Args:
        right: a row a question, a verdict a reply; rows of one length n >= 2.
        voted: whether the majority's answer is right, a question each.
    """
    n = len(right[0])
    powers = [1 << i for i in range(n.bit_length()) if 1 << i < n]
    found = [_mean(f"pass@{k}", [pass_at_k(n, sum(row), k) for row in right])
             for k in [*powers, n]]
    return (*found, _mean(f"majority of {n}", [float(v) for v in voted]))


def _mean(name: str, values: Sequence[float]) -> Figure:
    """The mean over questions, of values in 0 to 1, and its standard error."""
    return Figure(name, math.fsum(values) / len(values), share_error(values))
