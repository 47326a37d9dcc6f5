"""Attention: the multi-head form around `scaled_dot_product_attention`. Layer 5.

Source: Vaswani et al. 2017, section 3.2. Shapes: B batch, T target length, S source length, D
model, H heads, K head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gossamer.functional as gf
from gossamer.casting import lower_precision
from gossamer.core.dtype import bool_
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.nn.functional.common import shape_of
from gossamer.nn.functional.dropout import dropout
from gossamer.nn.functional.linear import linear
from gossamer.nn.functional.padding import pad
from gossamer.tensor import Tensor

__all__ = ["multi_head_attention_forward", "scaled_dot_product_attention"]


@lower_precision
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor,
                                 attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                                 is_causal: bool = False, scale: float | None = None,
                                 enable_gqa: bool = False, *, window: int = 0,
                                 begins: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ·scale + mask)·v.

    Args:
        query: (…, H, T, K); key: (…, Hk, S, K); value: (…, Hk, S, V).
        attn_mask: broadcasts to (…, H, T, S): bool (True = may look) or a float that is added.
        dropout_p: share of attention weights set to zero.
        is_causal: position t sees positions up to t only.
        scale: default 1/√K.
        enable_gqa: Hk may divide H; each key head serves H/Hk query heads.
        window: position t sees the last so many up to its own only (0: all).
        begins: (…, T) int64: position t sees those from begins[t] on only, where several texts
            share a row. This and `window` are Gossamer's own, and exclude dropout.

    Returns:
        (…, H, T, V).
    """
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: explicit attn_mask should not be set when "
                         "is_causal=True. Fold the causal mask into attn_mask.")
    if dropout_p != 0.0 and (window or begins is not None):
        raise ValueError(f"scaled_dot_product_attention(dropout_p={dropout_p}): window and begins "
                         "are for attention without dropout. Pass an attn_mask instead.")
    if dropout_p == 0.0:
        return gf.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask,
                                               is_causal=is_causal, scale=scale,
                                               enable_gqa=enable_gqa, window=window, begins=begins)
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(times, -3) for t in (key, value))
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor).matmul(key.transpose(-2, -1))
    if is_causal:
        t, s = query.shape[-2], key.shape[-2]
        attn_mask = gf.ones(t, s, dtype=bool_).tril()
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, scores)
    return dropout(gf.softmax(scores, -1), dropout_p).matmul(value)


def _additive(mask: Tensor, like: Tensor, true_is_hidden: bool = False) -> Tensor:
    """A mask as what is added to scores: 0 or -inf for a bool mask."""
    if mask.dtype is not bool_:
        return mask.to(like.dtype)
    zero = gf.zeros((), dtype=like.dtype)
    low = gf.full((), float("-inf"), dtype=like.dtype)
    return gf.where(mask, low, zero) if true_is_hidden else gf.where(mask, zero, low)


@dataclass
class _Projections:
    """The projection weights of one call, packed or separate."""

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None

    def apply(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = query.shape[-1]
        if self.in_proj_weight is not None and query is key and key is value:
            q, k, v = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            return q, k, v
        weights: Any = ((self.q, self.k, self.v) if self.in_proj_weight is None
                        else self.in_proj_weight.chunk(3))
        biases: Any = ((None,) * 3 if self.in_proj_bias is None
                       else self.in_proj_bias.split(dim))
        q, k, v = (linear(x, w, b)
                   for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v


def multi_head_attention_forward(
        query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
        in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None,
        bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor,
        out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None,
        k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
        static_k: Tensor | None = None, static_v: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Project, attend with several heads, project back.

    Args:
        query: (T, B, D) or (T, D); key, value: (S, B, D) or (S, D).
        key_padding_mask: (B, S) or (S): True (or -inf) hides a source position.
        attn_mask: (T, S) or (B·H, T, S): True (or -inf) hides, floats are added.
        is_causal: a hint that attn_mask is causal; without a mask it is an error, as in PyTorch.

    Returns:
        (T, B, D) or (T, D), and the weights (B, T, S) (per head (B, H, T, S)) or None.
    """
    batched = query.dim() == 3
    if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
        raise ShapeError(f"multi_head_attention: query {shape_of(query)}, key {shape_of(key)}, "
                         f"value {shape_of(value)}; all must be (T, B, D), or all (T, D).")
    if is_causal and attn_mask is None:
        raise ValueError("multi_head_attention: need attn_mask if specifying the is_causal hint.")
    if not batched:
        same = (key is query, value is key)
        query = query.unsqueeze(1)
        key = query if same[0] else key.unsqueeze(1)
        value = key if same[1] else value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    t, b, dim = shape_of(query)
    _check_sizes(query, key, value, embed_dim_to_check, num_heads)
    packed = None if use_separate_proj_weight else in_proj_weight
    projections = _Projections(packed, in_proj_bias, q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = projections.apply(query, key, value)
    # Only causal: attention knows the pattern itself and needs no (T, S) mask.
    causal = (is_causal and key_padding_mask is None and not need_weights and not add_zero_attn
              and bias_k is None)
    mask = None if attn_mask is None or causal else _additive(
        _checked_mask(attn_mask, t, key.shape[0], b * num_heads), q, true_is_hidden=True)
    if bias_k is not None and bias_v is not None:
        k, v = gf.cat([k, bias_k.expand(1, b, -1)]), gf.cat([v, bias_v.expand(1, b, -1)])
        mask, key_padding_mask = _one_more(mask), _one_more(key_padding_mask)
    heads = [_split(x, b, num_heads) for x in (q, k, v)]
    for i, static in ((1, static_k), (2, static_v)):
        if static is not None:
            heads[i] = static.reshape(b, num_heads, -1, dim // num_heads)
    if add_zero_attn:
        heads[1], heads[2] = pad(heads[1], (0, 0, 0, 1)), pad(heads[2], (0, 0, 0, 1))
        mask, key_padding_mask = _one_more(mask), _one_more(key_padding_mask)
    mask = _merged(mask, key_padding_mask, q, b, num_heads, heads[1].shape[2])
    drop = dropout_p if training else 0.0
    attended, weights = _attend(heads, mask, drop, need_weights, causal)
    y = linear(attended.permute(2, 0, 1, 3).reshape(t, b, dim), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        y, weights = y.squeeze(1), None if weights is None else weights.squeeze(0)
    return y, weights


def _check_sizes(query: Tensor, key: Tensor, value: Tensor, embed_dim: int, heads: int) -> None:
    dim = query.shape[-1]
    if dim != embed_dim:
        raise ShapeError(f"multi_head_attention (embed_dim={embed_dim}): query has shape "
                         f"{shape_of(query)}; its last dimension must be {embed_dim}.")
    if dim % heads:
        raise ShapeError(f"multi_head_attention: embed_dim {dim} not divisible by num_heads "
                         f"{heads}.")
    if shape_of(key)[:2] != shape_of(value)[:2]:
        raise ShapeError(f"multi_head_attention: key {shape_of(key)} and value {shape_of(value)}; "
                         "length and batch must be equal.")


def _checked_mask(mask: Tensor, t: int, s: int, groups: int) -> Tensor:
    if mask.dtype is not bool_ and not mask.dtype.is_floating_point:
        raise DTypeError(f"multi_head_attention: attn_mask is {mask.dtype}; it must be bool or "
                         "float.")
    if shape_of(mask) not in ((t, s), (groups, t, s)):
        raise ShapeError(f"multi_head_attention: attn_mask has shape {shape_of(mask)}; it must be "
                         f"{(t, s)} or {(groups, t, s)}.")
    return mask


def _one_more(mask: Tensor | None) -> Tensor | None:
    """A mask for one source position more, which is visible."""
    if mask is None:
        return None
    column = gf.zeros(*shape_of(mask)[:-1], 1, dtype=mask.dtype)
    return gf.cat([mask, column], -1)


def _split(x: Tensor, b: int, heads: int) -> Tensor:
    """(S, B, D) to (B, H, S, K)."""
    return x.reshape(x.shape[0], b, heads, -1).permute(1, 2, 0, 3)


def _merged(mask: Tensor | None, padding: Tensor | None, like: Tensor, b: int, heads: int,
            s: int) -> Tensor | None:
    """One additive mask that broadcasts to (B, H, T, S), or None."""
    if mask is not None and mask.dim() == 3:
        mask = mask.reshape(b, heads, mask.shape[1], mask.shape[2])
    if padding is None:
        return mask
    if shape_of(padding) != (b, s):
        raise ShapeError(f"multi_head_attention: key_padding_mask has shape {shape_of(padding)}; "
                         f"it must be {(b, s)}.")
    added = _additive(padding, like, true_is_hidden=True).reshape(b, 1, 1, s)
    return added if mask is None else mask + added


def _attend(heads: list[Tensor], mask: Tensor | None, dropout_p: float,
            need_weights: bool, causal: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = heads
    if not need_weights:
        return scaled_dot_product_attention(q, k, v, mask, dropout_p, causal), None
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))).matmul(k.transpose(-2, -1))
    weights = gf.softmax(scores if mask is None else scores + mask, -1)
    if dropout_p:
        weights = dropout(weights, dropout_p)
    return weights.matmul(v), weights
