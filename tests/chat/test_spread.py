"""Standard errors: of ratios as textbooks have them, of shares honest near 0 and 1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gossamer.chat.evaluate import Score, mean_score
from gossamer.chat.spread import ratio_error, share_error
from gossamer.chat.votes import figures


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (10, 10), (3, 10), (249, 250), (1, 1)])
def test_a_share_has_two_right_and_two_wrong_more(right: int, asked: int) -> None:
    p = (right + 2) / (asked + 4)
    error = math.sqrt(p * (1 - p) / (asked + 4))
    assert share_error([True] * right + [False] * (asked - right)) == pytest.approx(error)
    assert Score("x", right, asked).standard_error == pytest.approx(error) and error > 0


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98, 0.995])
def test_twice_the_error_covers_the_truth_as_often_as_it_promises(p: float) -> None:
    """95 % or nearly; sqrt(p (1 - p) / n) comes down to 5 % (p = 0.995, n = 10)."""
    for asked in (10, 50, 250):
        chances = [math.comb(asked, k) * p**k * (1 - p) ** (asked - k) for k in range(asked + 1)]
        covered = sum(chance for k, chance in enumerate(chances)
                      if abs(k / asked - p) <= 1.96 * Score("x", k, asked).standard_error)
        assert covered > 0.89, (asked, covered)


def test_nothing_is_certain_and_nothing_asked_is_nothing() -> None:
    assert mean_score([Score("a", 24, 24), Score("b", 24, 24)])[1] > 0.02
    assert share_error([]) == share_error([], []) == ratio_error([0.0], [0.0]) == 0.0
    assert all(figure.error > 0.02 for figure in figures([[True] * 4] * 20, [True] * 20))


def test_draws_of_unlike_size_weigh_as_much_as_they_hold() -> None:
    parts, wholes = np.array([3.0, 40.0, 9.0]), np.array([5.0, 50.0, 10.0])
    off = parts - 0.8 * wholes
    assert ratio_error(parts, wholes) == pytest.approx(math.sqrt((off**2).sum()) / 65)
    assert share_error(parts, wholes, unit=1.0) == pytest.approx(ratio_error(
        [*parts, 0, 0, 1, 1], [*wholes, 1, 1, 1, 1]))
