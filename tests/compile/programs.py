"""Random programs on square matrices, for properties of the passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

import gossamer as gs

__all__ = ["program", "steps"]

# Every step takes two matrices of one even side and gives a third.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "exp": lambda x, y: x.exp(), "scale": lambda x, y: x * 0.5, "add": lambda x, y: x + y,
    "where": lambda x, y: gs.where(x > 0, x, y), "sum": lambda x, y: x * y.sum(),
    "sum_rows": lambda x, y: x - x.sum(dim=1, keepdim=True),
    "sum_columns": lambda x, y: x - x.sum(dim=0, keepdim=True),
    "softmax": lambda x, y: x.softmax(dim=1),
    "largest": lambda x, y: x - y.amax(dim=0, keepdim=True),
    "column": lambda x, y: x + y[:, :1], "row": lambda x, y: x * y[:1],
    "transpose": lambda x, y: x.t() * y, "flip": lambda x, y: x.flip(1),
    "cat": lambda x, y: gs.cat([x[:5], y[5:]]),
    "slice": lambda x, y: gs.cat([x[:, ::2], y[:, ::2]], dim=1),
    "matmul": lambda x, y: x @ y, "sort": lambda x, y: x.sort(dim=1)[0],
}
Step = tuple[str, int, int]


def steps(least: int, most: int) -> st.SearchStrategy[list[Step]]:
    """Lists of (name, number of the first operand, number of the second)."""
    number = st.integers(0, 40)
    return st.lists(st.tuples(st.sampled_from(sorted(STEPS)), number, number),
                    min_size=least, max_size=most)


def program(made: list[Step], wanted: list[int]) -> Callable[..., list[Any]]:
    """The function of those steps: its last value, and the `wanted` ones."""
    def run(*leaves: Any) -> list[Any]:
        values = list(leaves)
        for name, i, j in made:
            values.append(STEPS[name](values[i % len(values)], values[j % len(values)]))
        return [values[-1], *(values[w % len(values)] for w in wanted)]
    return run
