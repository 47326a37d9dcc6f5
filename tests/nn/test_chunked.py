"""`linear_cross_entropy` a few rows at a time = `cross_entropy(linear(...))`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.nn import functional as F

N, D, C = 23, 6, 11  # rows in chunks of 5: the last one is shorter
CHUNKS = SimpleNamespace(batch_chunk_size=5)
CASES: dict[str, dict[str, Any]] = {
    "mean": {}, "sum": {"reduction": "sum"}, "ignored": {"ignore_index": 3},
    "bias": {"linear_bias": True}, "smoothed": {"label_smoothing": 0.2, "ignore_index": 3},
    "weighted": {"weight": True, "ignore_index": 2},
    "all": {"weight": True, "linear_bias": True, "label_smoothing": 0.1, "ignore_index": 5,
            "softcap": 3.0},
}


def _setting(rng: np.random.Generator, case: str, dtype: gs.DType) -> tuple[list[Any], Any, Any]:
    """(layer's tensors with the input first, target, keywords)."""
    options = dict(CASES[case])
    tensors = [gs.tensor(rng.standard_normal(s), dtype=dtype, requires_grad=True)
               for s in ((N, D), (C, D), (C,))]
    if options.get("weight"):
        options["weight"] = gs.tensor(rng.random(C) + 0.5, dtype=dtype)
    if not options.pop("linear_bias", False):
        tensors.pop()
    return tensors, gs.tensor(rng.integers(0, C, N)), options


def _loss(tensors: list[Any], target: Any, options: Any, chunked: bool) -> Any:
    x, w, *bias = tensors
    return F.linear_cross_entropy(x, w, target, linear_bias=bias[0] if bias else None,
                                  options=CHUNKS if chunked else None, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_gradients(rng: np.random.Generator, case: str, compiled: bool) -> None:
    tensors, target, options = _setting(rng, case, gs.float64)

    def gradients(chunked: bool) -> list[Any]:
        loss = _loss(tensors, target, options, chunked)
        return [loss.detach(), *gs.autograd.grad(3 * loss, tensors)]
    plain = gradients(False)
    made = gs.compile(lambda: gradients(True))() if compiled else gradients(True)
    for a, b in zip(made, plain, strict=True):
        assert a.dtype is b.dtype and tuple(a.shape) == tuple(b.shape)
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-12)
    if "softcap" not in options:
        x, w, *bias = tensors
        expected = F.cross_entropy(F.linear(x, w, *bias), target, **options)
        np.testing.assert_allclose(made[0].item(), expected.item(), rtol=1e-12)


def test_ignored_rows_may_hold_anything(rng: np.random.Generator) -> None:
    tensors, target, options = _setting(rng, "ignored", gs.float64)
    with gs.no_grad():
        tensors[0][target == 3] = float("nan")
    plain, chunked = (_loss(tensors, target, options, c).item() for c in (False, True))
    assert chunked == pytest.approx(plain, rel=1e-12)
    every = gs.full((N,), 3, dtype=gs.int64)
    assert np.isnan(_loss(tensors, every, options, True).item())


def test_second_derivatives_are_those_of_the_plain_loss(rng: np.random.Generator) -> None:
    tensors, target, options = _setting(rng, "bias", gs.float64)
    found = []
    for chunked in (False, True):
        grads = gs.autograd.grad(_loss(tensors, target, options, chunked), tensors,
                                 create_graph=True)
        again = gs.autograd.grad(sum((g * g).sum() for g in grads), tensors)
        found.append([g.numpy() for g in again])
    assert all(np.abs(g).max() > 1e-6 for g in found[0])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-12)


def test_under_vmap_and_its_gradient(rng: np.random.Generator) -> None:
    (x, w), target, options = _setting(rng, "mean", gs.float64)
    many = gs.stack([x.detach(), 2 * x.detach()])

    def loss(x: Any, w: Any) -> Any:
        return _loss([x, w], target, options, True)
    values = gs.vmap(loss, in_dims=(0, None))(many, w.detach())
    expected = [loss(m, w).item() for m in (x, 2 * x)]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)
    grads = gs.vmap(gs.func.grad(loss, argnums=1), in_dims=(0, None))(many, w.detach())
    (second,) = gs.autograd.grad(loss(2 * x, w), [w])
    np.testing.assert_allclose(grads[1].numpy(), second.numpy(), rtol=1e-9)


def test_autocast(rng: np.random.Generator) -> None:
    tensors, target, options = _setting(rng, "bias", gs.float32)
    with gs.autocast("cpu", dtype=gs.bfloat16):
        plain, chunked = (_loss(tensors, target, options, c) for c in (False, True))
    assert chunked.dtype is plain.dtype
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-5)
    grads = gs.autograd.grad(chunked, tensors)
    for a, b in zip(grads, gs.autograd.grad(plain, tensors), strict=True):
        assert a.dtype is gs.float32
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0.05, atol=2e-3)


def test_a_class_out_of_range_is_an_error(rng: np.random.Generator) -> None:
    tensors, target, options = _setting(rng, "mean", gs.float32)
    target[7] = C
    with pytest.raises(gs.IndexingError):
        _loss(tensors, target, options, True).item()
    with pytest.raises(gs.ShapeError):
        _loss(tensors, target[:5], options, True)


def test_large_logits_are_never_all_there(rng: np.random.Generator, arenas: list[int]) -> None:
    rows, classes, width = 2048, 4096, 16
    x = gs.tensor(rng.standard_normal((rows, width)), dtype=gs.float32, requires_grad=True)
    w = gs.tensor(rng.standard_normal((classes, width)) / 4, dtype=gs.float32, requires_grad=True)
    target = gs.tensor(rng.integers(0, classes, rows))

    def gradients(loss: Any) -> list[Any]:
        return [loss.detach(), *gs.autograd.grad(loss, [x, w])]
    chunked = gs.compile(lambda: gradients(F.linear_cross_entropy(x, w, target)))()
    plain = gs.compile(lambda: gradients(F.cross_entropy(F.linear(x, w), target)))()
    for a, b in zip(chunked, plain, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-7)
    logits = 4 * rows * classes
    assert arenas[0] < 0.4 * logits < logits <= arenas[1]
