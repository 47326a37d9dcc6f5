"""Tensors print as PyTorch's do."""

from __future__ import annotations

import numpy as np
import pytest

import gossamer as gs

ARRAYS = {
    "matrix": np.array([[1.0, 2.5], [3.0, -4.125]]),
    "whole": np.array([[1.0, 20.0], [3.0, 4.0]]),
    "normal": np.random.default_rng(0).normal(size=(3, 4)),
    "cube": np.random.default_rng(1).normal(size=(2, 3, 4)),
    "wide range": np.array([1e10, 1.0]),
    "tiny": np.array([1e-6, 1.0]),
    "whole, wide": np.array([100000.0, 1.0]),
    "large whole": np.array([1e9, 2e9]),
    "not finite": np.array([1.0, np.nan, -np.inf, np.inf]),
    "fraction, not finite": np.array([0.5, np.nan, -np.inf]),
    "all nan": np.array([np.nan, np.nan]),
    "zero": np.array([0.0, 0.0]),
    "mixed": np.array([100000.5, 2.0]),
    "integers": np.arange(12).reshape(3, 4) * 37,
    "negative": np.array([-1, 10, -100]),
    "bools": np.array([[True, False]]),
    "scalar": np.array(3.25),
    "whole scalar": np.array(3.0),
    "integer scalar": np.array(-7),
    "empty": np.zeros((0, 3)),
    "empty vector": np.zeros(0),
    "row that wraps": np.arange(30) * 1.0,
    "summarised": np.arange(2000).reshape(40, 50),
    "summarised vector": np.linspace(0, 1, 1500),
    "summarised cube": np.arange(4000).reshape(10, 20, 20),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_as_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the yardstick, is not installed")
    array = ARRAYS[name]
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    assert repr(gs.tensor(array)) == repr(torch.tensor(array))


def test_suffixes() -> None:
    assert repr(gs.zeros(1, dtype=gs.float64)) == "tensor([0.], dtype=gossamer.float64)"
    assert repr(gs.ones(1, dtype=gs.int32)) == "tensor([1], dtype=gossamer.int32)"
    x = gs.ones(2, requires_grad=True)
    assert repr(x) == "tensor([1., 1.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 2.], grad_fn=<MulBackward>)"
    assert repr(gs.empty(2, 3, device="meta")) == "tensor(..., device='meta', size=(2, 3))"
    assert repr(gs.Parameter(gs.ones(1))) == ("Parameter containing:\n"
                                             "tensor([1.], requires_grad=True)")


def test_options() -> None:
    try:
        gs.set_printoptions(precision=2)
        assert repr(gs.tensor([1.23456])) == "tensor([1.23])"
        gs.set_printoptions(threshold=4, edgeitems=1)
        assert repr(gs.arange(6)) == "tensor([0,  ..., 5])"
        gs.set_printoptions(sci_mode=True)
        assert repr(gs.tensor([1.5])) == "tensor([1.50e+00])"
    finally:
        gs.set_printoptions(profile="default")


def test_format() -> None:
    assert f"{gs.tensor(1.23456):.2f}" == "1.23" and f"{gs.tensor(7):03d}" == "007"
    assert str(gs.Size((2, 3))) == "gossamer.Size([2, 3])"
    assert repr(gs.float32) == "gossamer.float32" and repr(gs.device("cpu:0")) == (
        "device(type='cpu', index=0)")
