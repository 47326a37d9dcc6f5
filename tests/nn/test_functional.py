"""Functions that PyTorch's operator database does not have, and corners it does not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.nn import functional as F

torch = pytest.importorskip("torch", reason="the values come from PyTorch")
TF = torch.nn.functional

# function, shapes of the tensor arguments, further arguments
CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("affine_grid", [(2, 2, 3)], {"size": (2, 1, 4, 5), "align_corners": False}),
    ("affine_grid", [(1, 3, 4)], {"size": (1, 2, 2, 3, 4), "align_corners": True}),
    ("fold", [(2, 8, 9)], {"output_size": (4, 4), "kernel_size": 2}),
    ("fold", [(12, 6)], {"output_size": (5, 5), "kernel_size": (2, 3), "stride": 2, "padding": 1,
                         "dilation": (1, 2)}),
    ("adaptive_max_pool3d", [(2, 3, 4, 5)], {"output_size": (2, None, 3)}),
    ("conv_transpose2d", [(1, 4, 3, 3), (4, 2, 3, 3)], {"groups": 2, "stride": 2,
                                                        "output_padding": 1}),
    ("interpolate", [(1, 2, 7, 5)], {"size": (3, 4), "mode": "bilinear", "antialias": True}),
    ("interpolate", [(1, 2, 7, 5)], {"size": (3, 9), "mode": "bicubic", "antialias": True}),
    ("interpolate", [(1, 2, 7)], {"scale_factor": 1.7, "mode": "nearest-exact"}),
    ("interpolate", [(1, 2, 7)], {"scale_factor": 0.6, "mode": "linear",
                                  "recompute_scale_factor": True}),
    ("interpolate", [(1, 2, 6, 5)], {"size": 3, "mode": "area"}),
    ("grid_sample", [(1, 2, 4, 5), (1, 3, 3, 2)], {"mode": "bicubic", "align_corners": False,
                                                   "padding_mode": "border"}),
    ("grid_sample", [(1, 2, 3, 4, 3), (1, 2, 2, 2, 3)], {"align_corners": True,
                                                         "padding_mode": "reflection"}),
    ("normalize", [(3, 4)], {"p": 1.0, "dim": 0}),
    ("cosine_similarity", [(3, 4), (1, 4)], {"dim": -1}),
    ("softmin", [(3, 4)], {"dim": 1}),
    ("local_response_norm", [(2, 6, 3, 3)], {"size": 4, "alpha": 0.1}),
    ("pdist", [(5, 3)], {"p": 1.5}),
    ("lp_pool2d", [(1, 2, 5, 5)], {"norm_type": 3.0, "kernel_size": 2, "ceil_mode": True}),
    ("avg_pool2d", [(1, 2, 5, 5)], {"kernel_size": 2, "ceil_mode": True, "padding": 1,
                                    "count_include_pad": False}),
    ("max_pool1d", [(0, 2, 5)], {"kernel_size": 2}),
    ("linear", [(0, 3), (2, 3)], {}),
    ("layer_norm", [(0, 3)], {"normalized_shape": (3,)}),
    ("batch_norm", [(0, 3), (3,), (3,)], {}),
]


@pytest.mark.parametrize(("name", "shapes", "settings"), CASES, ids=lambda v: str(v)[:50])
def test_same_as_pytorch(name: str, shapes: Any, settings: Any, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    if name in ("batch_norm", "lp_pool2d"):
        arrays = [np.abs(a) + 0.1 for a in arrays]
    a = [gs.tensor(x).requires_grad_(True) for x in arrays]
    b = [torch.tensor(x).requires_grad_(True) for x in arrays]
    if name == "batch_norm":
        a[1:], b[1:] = [t.detach() for t in a[1:]], [t.detach() for t in b[1:]]
    ya, yb = getattr(F, name)(*a, **settings), getattr(TF, name)(*b, **settings)
    assert tuple(ya.shape) == tuple(yb.shape)
    np.testing.assert_allclose(ya.detach().numpy(), yb.detach().numpy(), rtol=1e-4, atol=1e-5)
    weights = rng.standard_normal(tuple(yb.shape)).astype(np.float32)
    (ya * gs.tensor(weights)).sum().backward()
    (yb * torch.tensor(weights)).sum().backward()
    for t, u in zip(a, b, strict=True):
        if u.grad is not None:
            np.testing.assert_allclose(t.grad.numpy(), u.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_pool_indices_and_unpool(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 6, 7)).astype(np.float32)
    ya, ia = F.max_pool2d(gs.tensor(x), 3, 2, 1, return_indices=True)
    yb, ib = TF.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)
    assert np.array_equal(ia.numpy(), ib.numpy()) and np.array_equal(ya.numpy(), yb.numpy())
    ya, ia = F.max_pool2d(gs.tensor(x), 2, return_indices=True)
    yb, ib = TF.max_pool2d(torch.tensor(x), 2, return_indices=True)
    assert np.array_equal(F.max_unpool2d(ya, ia, 2, output_size=(6, 7)).numpy(),
                          TF.max_unpool2d(yb, ib, 2, output_size=(6, 7)).numpy())
    samples = rng.random((2, 3, 2)).astype(np.float32)
    ya, ia = F.fractional_max_pool2d(gs.tensor(x), 2, (3, 4), return_indices=True,
                                     _random_samples=gs.tensor(samples))
    yb, ib = TF.fractional_max_pool2d(torch.tensor(x), 2, (3, 4), return_indices=True,
                                      _random_samples=torch.tensor(samples))
    assert np.array_equal(ia.numpy(), ib.numpy()) and np.array_equal(ya.numpy(), yb.numpy())


def test_a_maximum_goes_to_the_first_of_equals() -> None:
    x = gs.zeros(1, 1, 4).requires_grad_(True)
    F.max_pool1d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[1, 0, 1, 0]]]
    y = F.max_pool1d(gs.tensor([[[1.0, float("nan"), 0.0, 2.0]]]), 2)
    assert np.isnan(y.tolist()[0][0][0]) and y.tolist()[0][0][1] == 2.0


def test_gumbel_softmax() -> None:
    logits = gs.tensor([[0.0, 1.0, 2.0]]).expand(4000, 3)
    gs.manual_seed(0)
    soft = F.gumbel_softmax(logits, tau=0.5)
    np.testing.assert_allclose(soft.sum(1).numpy(), 1, rtol=1e-5)
    hard = F.gumbel_softmax(logits.clone().requires_grad_(True), hard=True)
    assert set(np.unique(hard.detach().numpy().round(5))) == {0.0, 1.0} and hard.requires_grad
    share = hard.detach().mean(0).numpy()
    np.testing.assert_allclose(share, np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), atol=0.03)


def test_in_place_variants_write_their_input() -> None:
    for name, args in (("relu_", ()), ("elu_", ()), ("leaky_relu_", (0.1,)), ("hardtanh_", ()),
                       ("threshold_", (0.0, 5.0)), ("celu_", ()), ("selu_", ())):
        x = gs.tensor([-1.0, 2.0])
        y = getattr(F, name)(x, *args)
        expected = getattr(TF, name)(torch.tensor([-1.0, 2.0]), *args)
        assert y is x and x.tolist() == pytest.approx(expected.tolist())
    x = gs.tensor([-1.0, 2.0])
    assert F.relu(x, inplace=True) is x and x.tolist() == [0, 2]


def test_half_precision_statistics_are_wide() -> None:
    x = (gs.arange(64).float().reshape(2, 32) + 1000).bfloat16()
    y = F.group_norm(x, 1).float()
    assert y.dtype is gs.float32 and abs(y.mean().item()) < 0.02
    assert F.batch_norm(x, None, None, training=True).dtype is gs.bfloat16


def test_attention_dropout_keeps_the_mean() -> None:
    gs.manual_seed(1)
    q = gs.randn(1, 4, 8, 16)
    plain = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    many = q.repeat(200, 1, 1, 1)
    mean = F.scaled_dot_product_attention(many, many, many, dropout_p=0.3, is_causal=True).mean(0)
    assert (mean - plain).abs().mean().item() < 0.1
    with pytest.raises(ValueError, match="is_causal"):
        F.scaled_dot_product_attention(q, q, q, gs.ones(8, 8), is_causal=True)


@pytest.mark.parametrize(("settings", "text"), [
    ({"size": 3, "scale_factor": 2}, "only one of"), ({}, "either"),
    ({"size": 3, "mode": "nearest", "align_corners": True}, "align_corners"),
    ({"size": 3, "mode": "nearest", "antialias": True}, "antialias"),
    ({"size": (3, 3, 3)}, "size="), ({"size": 0}, "greater than 0"),
])
def test_interpolate_mistakes(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        F.interpolate(gs.ones(1, 1, 4, 4), **settings)
