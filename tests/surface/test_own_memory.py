"""Results that equal their operand: memory of their own, or the operand's, as in PyTorch.

A function that has nothing to do (a pad of nothing, an average over windows of one element) must
not hand its operand back where PyTorch makes a new tensor: what is then written to the result would
be written to the operand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gossamer as gs

# m is the library, F its functional, x float32[2,3,4]
CALLS = """
F.adaptive_avg_pool1d(x, 4)
F.adaptive_max_pool1d(x, 4)
F.adaptive_avg_pool2d(x, (3,4))
F.adaptive_avg_pool2d(x, (None,None))
F.adaptive_max_pool2d(x, (3,4))
F.avg_pool1d(x, 1)
F.max_pool1d(x, 1)
F.max_pool2d(x, 1)
F.avg_pool2d(x, 1)
F.lp_pool1d(x, 1, 1)
F.dropout(x, 0.0)
F.dropout(x, 0.5, False)
F.dropout1d(x, 0.0)
F.dropout1d(x, 0.5, False)
F.alpha_dropout(x, 0.0, True)
F.alpha_dropout(x, 0.5, False)
F.feature_alpha_dropout(x, 0.0, True)
F.feature_alpha_dropout(x, 0.5, False)
F.interpolate(x, size=4)
F.interpolate(x, scale_factor=1)
F.interpolate(x, scale_factor=1, mode='linear')
F.interpolate(x[None], size=(3,4), mode='bilinear')
F.interpolate(x[None], size=(3,4), mode='nearest')
F.interpolate(x[None], size=(3,4), mode='bicubic')
F.interpolate(x[None], size=(3,4), mode='area')
F.interpolate(x[None], size=(3,4), mode='bilinear', antialias=True)
F.pad(x, (0,0))
F.pad(x, ())
F.pad(x, (0,0), mode='reflect')
F.pad(x, (0,0), mode='replicate')
F.pad(x, (0,0), mode='circular')
F.pixel_shuffle(x, 1)
F.pixel_unshuffle(x, 1)
F.channel_shuffle(x[None], 1)
F.unfold(x[None], 1)
F.fold(x, (2,2), 1)
F.relu(x.abs())
F.hardtanh(x, -9, 9)
F.threshold(x, -9, 0)
F.leaky_relu(x, 1)
F.softmax(x[..., :1], -1)
F.normalize(x)
F.embedding(m.arange(3), x[0])
F.linear(x, m.eye(4))
F.celu(x.abs())
x.repeat(1,1,1)
x.repeat_interleave(1)
x.repeat_interleave(1, 0)
x.tile(())
x.tile((1,))
x.roll(0)
x.roll(0, 0)
x.roll(4, 2)
x.flip(())
x.flip(0)
x.fliplr()
m.cat([x])
m.cat([x, x[:0]])
m.stack([x])
m.hstack([x])
m.vstack([x])
m.dstack([x])
m.concat((x,))
m.block_diag(x[0])
m.cartesian_prod(x[0,0])
m.combinations(x[0,0], 1)
m.meshgrid(x[0,0], indexing='ij')[0]
m.broadcast_tensors(x)[0]
m.atleast_1d(x)
m.atleast_3d(x)
x.clamp(-99)
x.clip(-99, 99)
x.diff(n=0)
x.tril(9)
x.triu(-9)
x.round()
x.to(m.int64).round()
x.to(m.int64).floor()
x.to(m.int64).ceil()
x.to(m.int64).trunc()
x.trunc()
+x
x.positive()
x.real
m.real(x)
x.conj()
m.resolve_conj(x)
m.conj_physical(x)
x.to(m.float32)
x.to(x)
x.to('cpu')
x.cpu()
x.float()
x.type(m.float32)
x.type_as(x)
x.to(m.float32, copy=True)
x.contiguous()
x.clone()
x.data
x.detach()
x.view_as(x)
x.reshape(2,3,4)
x.reshape(-1)
x.expand(2,3,4)
x.expand(-1,-1,-1)
x.broadcast_to((2,3,4))
x.expand_as(x)
x.squeeze()
x.squeeze(0)
x.unflatten(2,(4,1))
x.flatten()
x.flatten(2)
x.ravel()
x.permute(0,1,2)
x.transpose(0,0)
x.movedim(0,0)
x.swapaxes(1,1)
x.narrow(0,0,2)
x.split(2)[0]
x.chunk(1)[0]
x.tensor_split(1)[0]
x.unbind()[0]
x.select(0,0)
x.diagonal()
x.as_strided((2,3,4),(12,4,1))
x[...]
x[:]
x[None]
x[:, m.arange(3)]
x[x==x]
x.index_select(0, m.arange(2))
x.take_along_dim(m.zeros(2,3,4).long(), 0)
x.gather(0, m.zeros(2,3,4).long())
x.masked_select(x==x)
x.masked_fill(x!=x, 0.)
m.where(x==x, x, 0.)
x.sum(2, keepdim=True)
x[...,:1].sum(2)
x[...,:1].sum(2, keepdim=True)
x[...,:1].mean(2)
x[...,:1].prod(2)
x[...,:1].amax(2)
x[...,:1].max(2).values
x[...,:1].median(2).values
x[...,:1].mode(2).values
x[...,:1].kthvalue(1,2).values
x[...,:1].sort(2).values
x[...,:1].topk(1).values
x[...,:1].cumsum(2)
x[...,:1].cumprod(2)
x[...,:1].cummax(2).values
x[...,:1].logcumsumexp(2)
x[...,:1].logsumexp(2)
x[...,:1].norm(dim=2)
x[...,:1].quantile(0.5, 2)
x[...,:1].nansum(2)
x[0,0,0].sum()
x[0,0,0].mean()
x[0,0,0].max()
x[0,0,0].min()
x[0,0,0].prod()
x[0,0,0].cumsum(0)
x[0,0,0].sort().values
x[0,0,0].median()
x[0,0,0].amax()
x[0,0,0].sort(0)[0]
x[0,0,0].unsqueeze(0)
x[0,0,0].flatten()
x[0,:3,:3].matrix_power(1)
x[0,:3,:3].rot90(0)
x.rot90(4)
x.rot90(0)
m.einsum('abc->abc', x)
m.einsum('abc->cab', x)
m.einsum('aac->ac', x[:, :2])
m.tensordot(x, m.tensor(1.), 0)
x.pow(1)
x ** 1
x * 1
x + 0
x - 0
x / 1
x.mul(1)
x.abs().abs()
x.nan_to_num()
x.float_power(1).float()
m.lerp(x, x, 0.)
m.add(x, x, alpha=0)
x.addcmul(x, x, value=0)
x.maximum(x)
x.fmax(x)
x.remainder(99)
x.hypot(m.tensor(0.))
x.trace() if x.ndim==2 else x[0].trace()
x[0].diag()
x[0,0].diag()
x.unique()
x[0,0].unique_consecutive()
m.as_tensor(x)
m.squeeze(x[..., :1])
x.swapdims(0,0)
x.adjoint()
x.mT
x.mH
x[0].T
x[0].t()
x.half().float()
x.bfloat16().to(m.bfloat16)
x.renorm(2, 0, 999.)
x.index_add(0, m.arange(0), x[:0])
x.index_copy(0, m.arange(0), x[:0])
x.index_fill(0, m.arange(0), 1.)
x.index_put((m.arange(0),), x[:0])
x.scatter(0, m.zeros(0,3,4).long(), x[:0])
x.scatter_add(0, m.zeros(0,3,4).long(), x[:0])
x.slice_scatter(x)
x.select_scatter(x[0], 0, 0)
x.diagonal_scatter(x.diagonal())
x.squeeze((0,1))
x.view(m.float32)
x.requires_grad_(False)
x.nanmedian(2).values
x.sgn().abs()
x.deg2rad().rad2deg()
m.nn.Identity()(x)
m.nn.Sequential()(x)
m.nn.Dropout(0.5).eval()(x)
m.nn.Dropout(0.0)(x)
m.nn.Flatten(2)(x)
m.nn.Unflatten(2,(4,1))(x)
m.nn.Upsample(scale_factor=1)(x)
m.nn.ZeroPad1d(0)(x)
m.nn.ConstantPad1d(0, 1.)(x)
m.nn.PixelShuffle(1)(x)
m.nn.AdaptiveAvgPool1d(4)(x)
m.nn.ReLU()(x.abs())
m.nn.Hardtanh(-99,99)(x)
m.linalg.matrix_power(x[0,:3,:3], 1)
m.linalg.multi_dot([x[0], m.eye(4)])
m.movedim(x, 0, 0)
m.special.logit(x.sigmoid())
m.column_stack([x[0]])
m.row_stack([x[0]])
m.trapezoid(x[..., :2])
m.cov(x[0])
m.bucketize(x, x[0,0])
m.searchsorted(x[0,0].sort().values, x)
m.func.vmap(lambda t: t)(x)
F.pad(x, (-1, 0))
F.pad(x, (0, -1, 0, 0))
F.pad(x, (-1, 0), mode='reflect')
F.unfold(x[None], (1, 2))
x.unfold(1, 1, 1)
x.unfold(2, 2, 2)
x.unfold(1, 2, 3)
F.max_pool2d(x[None], 1, 2)
F.avg_pool1d(x, 1, 2)
F.one_hot(x.long().abs(), 13)
F.glu(m.cat([x, x]), 0)
m.nn.Softmax2d()(x)
m.nn.ChannelShuffle(1)(x[None])
""".strip().splitlines()


def written(m: Any, call: str) -> tuple[np.ndarray, np.ndarray]:
    """The result of a call, and its operand after the result was overwritten."""
    x = m.arange(24).reshape(2, 3, 4).float() - 11
    y = eval(call, {"m": m, "F": m.nn.functional, "x": x})
    before = np.array(y.tolist(), float)
    y.fill_(7)
    return before, np.array(x.tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_what_is_written_to_a_result_reaches_the_operand_only_if_in_pytorch(call: str) -> None:
    (ours, kept), (theirs, wanted) = written(gs, call), written(torch, call)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    start = np.arange(24).reshape(2, 3, 4) - 11
    if np.array_equal(wanted, start):
        np.testing.assert_array_equal(kept, start)


@pytest.mark.parametrize("call", [
    "x[:]", "x.view_as(x)", "x.reshape(-1)", "x.unfold(2,2,2)", "x.unfold(1,1,1)", "x.mT", "x.data",
    "x.contiguous()", "x.squeeze()", "x.unfold(1,2,3)"])
def test_views_share(call: str) -> None:
    (_, kept), (_, wanted) = written(gs, call), written(torch, call)
    np.testing.assert_array_equal(kept, wanted)
    assert (wanted == 7).any()
