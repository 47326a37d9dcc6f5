"""Composites over axes against PyTorch: values and all cotangents, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from gossamer import ops
from gossamer.compile.vjp import vjp
from gossamer.ir.node import Node
from tests.ops.laws import buffer, value

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(8)


def agree(ours: Callable[..., Node], theirs: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Values and cotangents of every float operand."""
    xs = [buffer(a) for a in arrays]
    ts = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, t = ours(*xs), theirs(*ts)
    np.testing.assert_allclose(value(y), t.detach().numpy(), rtol=1e-9, atol=1e-10)
    g = RNG.normal(size=y.shape)
    wrt = [i for i, x in enumerate(xs) if x.grad]
    found = vjp([y], [buffer(g, grad=False)], [xs[i] for i in wrt])
    expected = torch.autograd.grad(t, [ts[i] for i in wrt], torch.tensor(g))
    for own, their in zip(found, expected, strict=True):
        assert own is not None
        np.testing.assert_allclose(value(own), their.numpy(), rtol=1e-8, atol=1e-9)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


small = st.integers(1, 3)


@settings(max_examples=40)
@given(n=small, groups=small, c=small, o=small, length=st.integers(3, 9), k=st.integers(1, 4),
       stride=small, padding=st.integers(0, 3), dilation=small)
def test_conv1d(n: int, groups: int, c: int, o: int, length: int, k: int, stride: int, padding: int,
                dilation: int) -> None:
    assume(length + 2 * padding >= dilation * (k - 1) + 1)
    agree(lambda x, w: ops.conv(x, w, stride=(stride,), low=(padding,), high=(padding,),
                                interior=(0,), dilation=(dilation,), groups=groups),
          lambda x, w: F.conv1d(x, w, None, stride, padding, dilation, groups),
          normal(n, c * groups, length), normal(o * groups, c, k))


@settings(max_examples=40)
@given(groups=small, c=small, o=small, length=st.integers(1, 5), k=st.integers(1, 4),
       stride=small, padding=st.integers(0, 3), extra=st.integers(0, 2), dilation=small)
def test_conv_transpose1d(groups: int, c: int, o: int, length: int, k: int, stride: int,
                          padding: int, extra: int, dilation: int) -> None:
    assume((length - 1) * stride - 2 * padding + dilation * (k - 1) + extra + 1 > 0)
    assume(extra < max(stride, dilation))
    agree(lambda x, w: ops.conv_transpose(x, w, stride=(stride,), low=(padding,),
                                          high=(padding - extra,), dilation=(dilation,),
                                          groups=groups),
          lambda x, w: F.conv_transpose1d(x, w, None, stride, padding, extra, groups, dilation),
          normal(2, c * groups, length), normal(c * groups, o, k))


def test_conv2d_and_its_transpose() -> None:
    attrs = {"stride": (2, 1), "low": (1, 2), "high": (1, 2), "dilation": (1, 2)}
    agree(lambda x, w: ops.conv(x, w, interior=(0, 0), groups=2, **attrs),
          lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 2),
          normal(2, 4, 6, 7), normal(6, 2, 3, 2))
    agree(lambda x, w: ops.conv_transpose(x, w, groups=2, **attrs),
          lambda x, w: F.conv_transpose2d(x, w, None, (2, 1), (1, 2), 0, 2, (1, 2)),
          normal(2, 4, 4, 5), normal(4, 3, 3, 2))


@settings(max_examples=30)
@given(length=st.integers(3, 9), k=st.integers(1, 4), stride=small, dilation=small,
       ties=st.booleans())
def test_max_pool(length: int, k: int, stride: int, dilation: int, ties: bool) -> None:
    padding = k // 2
    assume(length + 2 * padding >= dilation * (k - 1) + 1)
    x = normal(2, 3, length)
    agree(lambda x: ops.max_pool(x, kernel=(k,), stride=(stride,), low=(padding,), high=(padding,),
                                 dilation=(dilation,)),
          lambda x: F.max_pool1d(x, k, stride, padding, dilation),
          np.round(x) if ties else x)


@pytest.mark.parametrize("ndim", [1, 2])
def test_layer_norm(ndim: int) -> None:
    shape = (3, 4, 5)[-ndim:]
    agree(lambda x, w, b: ops.layer_norm(x, w, b, ndim=ndim, eps=1e-5),
          lambda x, w, b: F.layer_norm(x, shape, w, b, 1e-5),
          normal(2, 3, 4, 5) * 3 + 1, normal(*shape), normal(*shape))


def test_rms_norm() -> None:
    agree(lambda x, w: ops.rms_norm(x, w, ndim=1, eps=1e-6),
          lambda x, w: F.rms_norm(x, (5,), w, 1e-6), normal(3, 5), normal(5))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_family(axis: int) -> None:
    x = normal(2, 3, 4) * 5
    agree(lambda x: ops.softmax(x, axis=axis), lambda x: F.softmax(x, axis), x)
    agree(lambda x: ops.log_softmax(x, axis=axis), lambda x: F.log_softmax(x, axis), x)
    agree(lambda x: ops.logsumexp(x, axes=(axis,)), lambda x: torch.logsumexp(x, axis), x)
    agree(lambda x: ops.std(x, axes=(axis,), correction=1), lambda x: torch.std(x, axis), x)
    agree(lambda x: ops.var(x, axes=(0, 2), correction=0),
          lambda x: torch.var(x, (0, 2), correction=0), x)


def test_softmax_of_infinities() -> None:
    inf = float("inf")
    x = np.array([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [inf, 0.0, 1.0], [1e300, 0.0, -1e300]])
    for ours, theirs in ((ops.softmax, F.softmax), (ops.log_softmax, F.log_softmax)):
        found = value(ours(buffer(x), axis=1))
        np.testing.assert_allclose(found, theirs(torch.tensor(x), 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(value(ops.logsumexp(buffer(x), axes=(1,))),
                               torch.logsumexp(torch.tensor(x), 1).numpy())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    target = np.array([0, 4, 2, 1, 2])
    agree(lambda x, t: ops.cross_entropy(x, t, ignore_index=2, smoothing=smoothing),
          lambda x, t: F.cross_entropy(x, t, ignore_index=2, label_smoothing=smoothing,
                                       reduction="none"),
          normal(5, 5) * 3, target)


def test_cross_entropy_of_large_logits_keeps_its_digits() -> None:
    x = np.array([[1e4, 1e4 + 1, 1e4 - 3]], np.float32)
    loss = value(ops.cross_entropy(buffer(x), buffer(np.array([1])), ignore_index=-100,
                                   smoothing=0.0))
    d = x.astype(np.float64)[0] - x[0, 1]
    np.testing.assert_allclose(loss, [np.log(np.exp(d).sum())], rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads, groups", [(2, 2), (4, 2), (3, 1)])
def test_attention(causal: bool, heads: int, groups: int) -> None:
    agree(lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, causal=causal, scale=0.4),
          lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.4,
                                                         enable_gqa=True),
          normal(2, heads, 5, 3), normal(2, groups, 6, 3), normal(2, groups, 6, 4))


def test_attention_with_masks() -> None:
    q, k, v = normal(2, 2, 5, 3), normal(2, 2, 6, 3), normal(2, 2, 6, 4)
    seen = RNG.random((2, 2, 5, 6)) < 0.6
    seen[0, 0, 1] = False  # this query sees nothing: zeros, and no gradient
    agree(lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, causal=False, scale=0.5),
          lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.5), q, k, v, seen)
    agree(lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, causal=False, scale=0.5),
          lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.5),
          q, k, v, normal(2, 2, 5, 6))


def test_attention_from_a_position_with_a_window() -> None:
    """A decode step: query i stands at start + i and sees `window` keys up to itself."""
    q, k, v = normal(2, 2, 2, 3), normal(2, 2, 8, 3), normal(2, 2, 8, 4)
    start = np.array([3, 5])
    place = start[:, None, None, None] + np.arange(2)[:, None]
    key = np.arange(8)
    seen = np.broadcast_to((key <= place) & (key > place - 3), (2, 2, 2, 8))
    agree(lambda q, k, v, s: ops.scaled_dot_product_attention(q, k, v, None, s, causal=True,
                                                              scale=0.5, window=3),
          lambda q, k, v, s: F.scaled_dot_product_attention(q, k, v, torch.tensor(seen), scale=0.5),
          q, k, v, start)


@pytest.mark.parametrize("combine, theirs", [
    ("add", lambda x: x.cumsum(1)), ("mul", lambda x: x.cumprod(1)),
    ("max", lambda x: x.cummax(1).values), ("min", lambda x: x.cummin(1).values)])
def test_scans(combine: str, theirs: Callable[..., Any]) -> None:
    x = np.round(normal(3, 9))  # ties and zeros
    agree(lambda x: ops.scan(x, axis=1, combine=combine), theirs, x)


def test_products_with_zeros() -> None:
    x = np.array([[1.0, 2.0, 3.0], [0.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
    agree(lambda x: ops.reduce_prod(x, axes=(1,)), lambda x: x.prod(1), x)


def test_extremes_share_among_ties() -> None:
    x = np.array([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    agree(lambda x: ops.reduce_max(x, axes=(1,)), lambda x: x.amax(1), x)
    agree(lambda x: ops.reduce_min(x, axes=(0, 1)), lambda x: x.amin((0, 1)), x)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_lerp(weight: float) -> None:
    agree(ops.lerp, torch.lerp, normal(7), normal(7), np.full(7, weight))


@pytest.mark.parametrize("descending", [False, True])
def test_argsort_is_stable(descending: bool) -> None:
    x = np.round(normal(40))
    x[[3, 17]] = np.nan
    expected = torch.sort(torch.tensor(x), descending=descending, stable=True).indices
    found = value(ops.argsort(buffer(x), axis=0, descending=descending))
    np.testing.assert_array_equal(found, expected.numpy())
