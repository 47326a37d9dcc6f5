"""A few samples of every name of PyTorch's operator database that passes (`make opdb` runs all)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.opdb.__main__ import passing_names
from tests.opdb.calls import Call
from tests.opdb.check import Difference, check_name, check_sample
from tests.opdb.database import load, samples

SAMPLES = 1  # a variant; `make opdb` runs them all


@pytest.mark.parametrize("name", passing_names())
def test_name_agrees_with_pytorch(name: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `compare`)")
    pytest.importorskip("expecttest", reason="expecttest is not installed (extra `compare`)")
    outcome = check_name(name, SAMPLES)
    assert outcome.status == "pass", outcome.message or outcome.left_out


# The harness itself: a wrong value, a wrong gradient and a lost gradient must be seen.
WRONG = [
    ("differs in", lambda x: x.sin() * 1.001),
    ("gradient 0 differs", lambda x: x.detach().sin() + (x - x.detach())),
    ("gradient 0 differs in", lambda x: x.detach().sin()),
    ("has dtype float64", lambda x: x.double().sin()),
    ("has shape", lambda x: x.sin().reshape(-1, 1)),
    ("not a Tensor", lambda x: 0.0),
]


@pytest.mark.parametrize(("what", "ours"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_the_comparison_can_fail(what: str, ours: Callable[[Any], Any]) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `compare`)")
    pytest.importorskip("expecttest", reason="expecttest is not installed (extra `compare`)")
    (info,) = load()["sin"]
    sample = next(iter(samples(info, 1)))
    check_sample(info, Call("right", lambda x: x.sin(), info.op), sample)
    with pytest.raises(Difference, match=what):
        check_sample(info, Call("wrong", ours, info.op), sample)
