"""Random programs: compiled, uncompiled, NumPy and PyTorch agree on values and gradients.

`make test` runs a fixed set of programs (half a minute); `make fuzz COUNT=10000 SEED=1` runs others
(`tests/fuzz/__main__.py`). A failure prints the shrunken program, which `check` runs again.
"""

from __future__ import annotations

import importlib
import importlib.util
from math import prod
from typing import Any

from hypothesis import given, settings, strategies as st

from tests.fuzz import chunks
from tests.fuzz.machine import STEPS, Leaf, Program
from tests.fuzz.ways import check

torch: Any = None
if importlib.util.find_spec("torch") is not None:
    torch = importlib.import_module("torch")

SIZES = st.sampled_from([0, 1, 2, 3, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 65])
DTYPES = st.sampled_from(["float32", "float32", "float32", "float64", "float64", "bfloat16",
                          "float16", "int64", "int32", "int8", "uint8", "bool"])
NUMBER = st.integers(0, 1023)
SHAPES = st.one_of(
    st.lists(SIZES, max_size=3), st.lists(st.sampled_from([2, 3, 5, 8]), max_size=4),
    st.sampled_from([[130, 257], [3, 17, 500], [40_000], [4, 64, 65], [17, 2049]]),
).map(tuple).filter(lambda shape: prod(shape) <= 70_000)
LEAVES = st.builds(Leaf, SHAPES, DTYPES, st.integers(0, 5),
                   st.sampled_from(["closure", "closure", "argument", "state"]), st.booleans())
STEP = st.tuples(st.sampled_from(sorted(STEPS)), NUMBER, NUMBER, NUMBER)
PROGRAMS = st.builds(
    Program, st.lists(LEAVES, min_size=1, max_size=3).map(tuple),
    st.lists(STEP, min_size=1, max_size=12).map(tuple),
    st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), st.booleans())


@settings(max_examples=80)
@given(PROGRAMS)
def test_all_ways_agree(program: Program) -> None:
    check(program, torch)


def test_all_ways_agree_in_chunks() -> None:
    """In chunks of one index or one vector, as only large tensors are cut otherwise; sizes follow
    one another at random, so that a kernel made for one is used for others."""
    @settings(max_examples=40)
    @given(PROGRAMS)
    def agree(program: Program) -> None:
        check(program, torch)

    with chunks.everywhere():
        agree()
