"""The calculator: exact, small, and deaf to everything that is not arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from gossamer.chat.calculator import Calculator, calculate
from gossamer.chat.tokenizer import Tokenizer


@pytest.mark.parametrize(("text", "value"), [
    ("1+2*3", "7"), ("(1+2)*3", "9"), ("-2--3", "1"), ("2*-3", "-6"), ("7/2", "3.5"),
    ("1/3", "0.333333333333"), ("0.1+0.2", "0.3"), ("10/5", "2"), (".5*4.", "2"),
    ("99999999999*99999999999", "9999999999800000000001"), (" 1 + 1 ", "2"),
    ("'strawberry'.count('r')", "3"), ('"aXbX".count("X")+1', "3"), ("''.count('a')", "0"),
])
def test_values(text: str, value: str) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize("text", [
    "", " ", "1+", "*1", "(1", "1)", "1 2", "1/0", "1/(2-2)", "2**9", "a", "__import__('os')",
    "'a'", "'a'.count(1)", "'a'.count('a'", ".count", "'a'.upper()", "1;2", "1e5", "0x10", "1_0",
    "(" * 200 + "1" + ")" * 200, "-" * 200 + "1", "9" * 300, "9" * 50 + "*" + "9" * 50, "١+١",
])
def test_no_value(text: str) -> None:
    assert calculate(text) is None


@given(st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda t: f"({t[0]}{t[1]}{t[2]})"), max_leaves=8))
def test_equals_fractions(text: str) -> None:
    import re

    try:
        exact = eval(re.sub(r"(\d+)", r"F(\1)", text), {"F": Fraction})
    except ZeroDivisionError:
        assert calculate(text) is None
        return
    found = calculate(text)
    if found is not None:
        assert abs(float(exact) - float(found)) <= 1e-11 * abs(float(exact))
        if exact.denominator == 1:
            assert int(found) == exact


@given(st.text(max_size=30))
def test_any_text_is_harmless(text: str) -> None:
    value = calculate(text)
    assert value is None or float(value) is not None


def test_a_call_is_answered() -> None:
    tokenizer = Tokenizer.train(["12*34=408"] * 5, 270)
    calls = Calculator(tokenizer)

    def forced(ids: list[int]) -> list[list[int]]:
        return [list(calls.follow(i)) for i in ids]

    call = [tokenizer.python_start, *tokenizer.encode("12*34"), tokenizer.python_end]
    answer = [tokenizer.output_start, *tokenizer.encode("408"), tokenizer.output_end]
    assert forced(call) == [[]] * (len(call) - 1) + [answer]
    assert forced(tokenizer.encode("12*34")) == [[]] * 5
    assert forced([tokenizer.python_start, *tokenizer.encode("=="), tokenizer.python_end]) == \
        [[]] * 4
    assert forced([tokenizer.python_end]) == [[]]
    assert forced(call)[-1] == answer
