"""Numbers that write down how they were computed and what was decided by them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from gossamer.core.traced import Text, Trace, Untraceable, gcd, pinned, text_of


def compute(a: Any, b: Any) -> tuple[Any, ...]:
    """Arithmetic and decisions, as a pass might make them."""
    rows = a * b + 3 - a
    whole, rest = divmod(rows, 4)
    parts = next((p for p in range(9, 1, -1) if a % p == 0), 1)
    if rows > 50 and not rest:
        whole = whole + max(a, b) * 0.5
    known = {a: 1, b: 2, a + b: 3}
    return (whole, rest, parts, gcd(a, b * 6), -b, (a + 63) & -64, known[b + a], len(known),
            1 / (a + b), 7 // (b + 1), 5 - a, 9 % (a + 1), min(a, 12), abs(a - b),
            pinned(b) if b < 3 else 0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_program_gives_what_the_code_gives(a: int, b: int, c: int, d: int) -> None:
    trace = Trace((a, b))
    found = compute(*trace.symbols)
    program = trace.program(found)
    assert program(a, b) == compute(a, b)
    other = program(c, d)
    assert other is None or other == compute(c, d)


def test_decisions_are_guards() -> None:
    trace = Trace((8, 5))
    n, m = trace.symbols
    assert n > m and n % 4 == 0 and bool(n) and n != 9 and n == n and not n < n
    program = trace.program([n * m, 7])
    assert program(8, 5) == (40, 7) and program(12, 11) == (132, 7)
    for other in ((8, 8), (5, 8), (10, 5), (9, 5)):
        assert program(*other) is None, other


def test_equal_expressions_are_one_line_and_unused_ones_none() -> None:
    trace = Trace((6,))
    (n,) = trace.symbols
    assert n * 4 is 4 * n and n + 0 is n and 1 * n is n and n - n == 0 and n * 0 == 0
    assert (n // 3) / 2 == 1.0
    assert trace.program([n])(7) == (7,) and trace.program([n])(9) is None
    assert Trace((6,)).program([])(1) == ()


def test_texts_are_written_later() -> None:
    (n,) = Trace((6,)).symbols
    assert text_of("{}x{}", 2, 3) == "2x3" and text_of("{}x{}", n, 3) == Text("{}x{}", (n, 3))


def test_what_cannot_be_written_down_is_refused() -> None:
    (n,) = Trace((6,)).symbols
    for use in (int, float, str, range, repr, lambda x: [0] * x, lambda x: "ab"[x], math.sqrt,
                lambda x: f"{x}", lambda x: math.gcd(x, 2), lambda x: x.__reduce_ex__(2)):
        with pytest.raises(Untraceable):
            use(n)
    assert n != "6" and (n == None) is False  # noqa: E711
    with pytest.raises(TypeError):
        n + "6"
