"""How sure a figure is: standard errors of ratios and of shares. Layer 7.

    r = sum a / sum b        error of r = sqrt(sum (a - r b)^2) / sum b

The one idea: a share of n draws that is 0 or 1 shows no spread, and yet n draws prove nothing. So
the error of a share is that of the same draws and four more, two right and two wrong. Twice it
covers the truth 9 to 10 times in 10 however few the draws and however near 0 or 1 the share is.

Source: Agresti and Coull 1998, "Approximate is better than exact" (two successes, two failures);
the ratio's linearised variance: Cochran 1977, "Sampling Techniques", section 6.3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ratio_error", "share_error"]


def ratio_error(parts: ArrayLike, wholes: ArrayLike) -> float:
    """Standard error of sum(parts) / sum(wholes), by how much the draws differ.

    Args:
        parts, wholes: (n,) one of each a draw; draws must not depend on one another.

    Returns:
        0 where the wholes are nothing.
    """
    a, b = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    total = float(b.sum())
    if not total:
        return 0.0
    return math.sqrt(float(((a - a.sum() / total * b) ** 2).sum())) / total


def share_error(parts: ArrayLike, wholes: ArrayLike | None = None, unit: float = 0.0) -> float:
    """Standard error of a share in 0 to 1; never 0 where something was drawn.

    Args:
        parts: (n,) what of each draw is right: a verdict, a share, or a number of right ones.
        wholes: (n,) what could be right of each; None = 1.
        unit: what a draw could be right of, for the four that are added; 0 = the mean of `wholes`.

    Returns:
        0 where nothing was drawn.

    >>> round(share_error([True] * 250), 4), round(share_error([True, False] * 125), 4)
    (0.0055, 0.0314)
    """
    a = np.asarray(parts, np.float64)
    b = np.ones(a.shape) if wholes is None else np.asarray(wholes, np.float64)
    if not b.sum():
        return 0.0
    more = unit or float(b.mean())
    return ratio_error(np.append(a, [0.0, 0.0, more, more]), np.append(b, [more] * 4))
