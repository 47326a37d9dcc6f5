"""Index arithmetic: what a normal form is worth at every point, and the forms fusion relies on."""

from __future__ import annotations

import itertools

from hypothesis import given, strategies as st

from gossamer.ir.index import Index, Quotient, Remainder, Var, var

NAMES = "ijk"
STEPS = st.lists(st.tuples(st.sampled_from("+-*/%"), st.integers(0, 5), st.integers(0, 5),
                           st.sampled_from([2, 3, 4, 6, 8, 9, 12])), max_size=7)


def _value(index: Index, at: dict[str, int]) -> int:
    total = index.constant
    for atom, k in index.terms.items():
        if isinstance(atom, Var):
            total += k * at[atom.name]
        elif isinstance(atom, Quotient):
            total += k * (_value(atom.value, at) // atom.divisor)
        elif isinstance(atom, Remainder):
            total += k * (_value(atom.value, at) % atom.divisor)
    return total


def _divided(index: Index) -> list[Quotient | Remainder]:
    found = [atom for atom in index.terms if isinstance(atom, Quotient | Remainder)]
    return found + [inner for atom in found for inner in _divided(atom.value)]


@given(st.tuples(*[st.integers(1, 6)] * 3), STEPS)
def test_simplified_is_equal_everywhere(extents: tuple[int, ...],
                                        steps: list[tuple[str, int, int, int]]) -> None:
    pool = [var(n, e) for n, e in zip(NAMES, extents, strict=True)]
    points = [dict(zip(NAMES, p, strict=True))
              for p in itertools.product(*(range(e) for e in extents))]
    plain = [[p[n] for p in points] for n in NAMES]
    for op, a, b, d in steps:
        x, y = pool[a % len(pool)], pool[b % len(pool)]
        u, v = plain[a % len(plain)], plain[b % len(plain)]
        pool.append({"+": x + y + a, "-": x - y * d + a, "*": x * d, "/": x // d, "%": x % d}[op])
        plain.append([{"+": p + q + a, "-": p - q * d + a, "*": p * d, "/": p // d, "%": p % d}[op]
                      for p, q in zip(u, v, strict=True)])
    for index, values in zip(pool, plain, strict=True):
        assert [_value(index, p) for p in points] == values
        assert all(index.low <= v <= index.high for v in values)
        assert all(atom.value.low >= 0 for atom in _divided(index))  # divided as unsigned numbers


def test_small_parts_do_not_reach_a_quotient() -> None:
    i, j = var("i", 4), var("j", 9)
    y = 3 * i + j // 3  # j // 3 < 3
    assert y // 6 == i // 2
    assert y % 6 == 3 * (i % 2) + j // 3
    assert (3 * (y % 6) + j % 3) // 9 + 2 * (y // 6) == i
