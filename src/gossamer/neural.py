"""The composite operators of neural networks as functions of tensors. Layer 4.

Activations with parameters, normalisation, convolution and attention: each checks its arguments,
brings them into the form of its record in the table, and builds one node. `nn.functional` gives
them PyTorch's full signatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gossamer import prims
from gossamer.casting import lower_precision
from gossamer.core.dtype import bool_, float32
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.dispatch import broadcast_shapes, node_of, public
from gossamer.ir.node import Node, type_text
from gossamer.ir.op import TABLE
from gossamer.mathematics import composite
from gossamer.ops.attention import scaled_dot_product_attention as attention_node
from gossamer.ops.convolution import conv_transpose as conv_transpose_node
from gossamer.tensor import Tensor, wrap

__all__ = ["NEURAL", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
           "conv_transpose3d", "layer_norm", "rms_norm", "scaled_dot_product_attention"]

# Names that belong to nn.functional, not to the package itself.
NEURAL: dict[str, Callable[..., Any]] = {
    "celu": composite("celu", "alpha", alpha=1.0),
    "elu": composite("elu", "alpha", alpha=1.0),
    "gelu": composite("gelu", "approximate", approximate="none"),
    "hardshrink": composite("hardshrink", "width", width=0.5),
    "hardsigmoid": composite("hardsigmoid"),
    "hardswish": composite("hardswish"),
    "hardtanh": composite("hardtanh", "low", "high", low=-1.0, high=1.0),
    "leaky_relu": composite("leaky_relu", "slope", slope=0.01),
    "logsigmoid": composite("logsigmoid"),
    "max_pool": composite("max_pool", "kernel", "stride", "low", "high", "dilation"),
    "sum_pool": composite("sum_pool", "kernel", "stride", "low", "high", "dilation"),
    "mish": composite("mish"),
    "relu6": composite("relu6"),
    "selu": composite("selu"),
    "silu": composite("silu"),
    "softplus": composite("softplus", "beta", "limit", beta=1.0, limit=20.0),
    "softshrink": composite("softshrink", "width", width=0.5),
    "softsign": composite("softsign"),
    "tanhshrink": composite("tanhshrink"),
    "threshold": composite("threshold", "limit", "value"),
}


# ------------------------------------------------------------------------------- normalisation

def _affine(x: Node, shape: tuple[int, ...], parameters: Sequence[Tensor | None],
            name: str) -> list[Node]:
    if not shape or x.shape[x.ndim - len(shape):] != shape:
        raise ShapeError(f"{name}: x is {type_text(x)}; its last dimensions must be {shape}, the "
                         "normalized_shape. Build the layer with the extents that it normalises.")
    nodes = [None if p is None else node_of(p, name, "weight") for p in parameters]
    for p in nodes:
        if p is not None and p.shape != shape:
            raise ShapeError(f"{name}: a parameter is {type_text(p)}; its shape must be {shape}.")
    if len(nodes) > 1 and nodes[0] is None and nodes[1] is not None:
        nodes[0] = prims.full(1, shape, x.dtype)
    return [prims.cast(p, x.dtype) for p in nodes if p is not None]


def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
               bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last dimensions, times weight, plus bias."""
    x = node_of(input, "layer_norm")
    shape = tuple(normalized_shape)
    affine = _affine(x, shape, (weight, bias), "layer_norm")
    return wrap(TABLE["layer_norm"](x, *affine, ndim=len(shape), eps=float(eps)))


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
             eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimensions, times weight."""
    x = node_of(input, "rms_norm")
    shape = tuple(normalized_shape)
    if eps is None:  # PyTorch: the smallest step of the dtype in which it computes
        eps = 2.220446049250313e-16 if x.dtype.name == "float64" else 1.1920928955078125e-07
    affine = _affine(x, shape, (weight,), "rms_norm")
    return wrap(TABLE["rms_norm"](x, *affine, ndim=len(shape), eps=float(eps)))


# --------------------------------------------------------------------------------- convolution

def _tuple(value: Any, n: int, name: str, what: str) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    value = tuple(int(v) for v in value)
    if len(value) == 1:
        value *= n
    if len(value) != n:
        raise ShapeError(f"{name}: {what}={value}; it must be a number or have {n} entries.")
    return value


def _operands(input: Tensor, weight: Tensor, n: int, name: str) -> tuple[Node, Node, bool]:
    x, w = node_of(input, name), node_of(weight, name, "weight")
    if w.ndim != n + 2 or x.ndim not in (n + 1, n + 2):
        raise ShapeError(f"{name}: x is {type_text(x)} and weight {type_text(w)}; x must "
                         f"have {n + 2} dimensions (or {n + 1} without the batch) and weight "
                         f"{n + 2}.")
    if x.dtype is not w.dtype:
        raise DTypeError(f"{name}: x is {type_text(x)} and weight {type_text(w)}; both must have "
                         "one dtype. Use .to(dtype).")
    single = x.ndim == n + 1
    return prims.reshape(x, (1, *x.shape)) if single else x, w, single


def _finish(y: Node, bias: Tensor | None, n: int, single: bool, name: str) -> Tensor:
    if bias is not None:
        b = node_of(bias, name, "bias")
        if b.shape != (y.shape[1],):
            raise ShapeError(f"{name}: bias is {type_text(b)}; it must have shape ({y.shape[1]},), "
                             "one for each output channel.")
        b = prims.cast(b, y.dtype)
        y = prims.add(y, prims.expand(prims.reshape(b, (y.shape[1], *(1,) * n)), y.shape))
    return wrap(prims.reshape(y, y.shape[1:]) if single else y)


def _check_positive(name: str, **values: tuple[int, ...]) -> None:
    for what, value in values.items():
        if any(v <= 0 for v in value):
            raise ShapeError(f"{name}: {what}={value}; it must be positive.")


def _conv(n: int) -> Callable[..., Tensor]:
    name = f"conv{n}d"

    def fn(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
           padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:
        x, w, single = _operands(input, weight, n, name)
        steps, spread = (_tuple(v, n, name, k) for v, k in ((stride, "stride"),
                                                            (dilation, "dilation")))
        _check_positive(name, stride=steps, dilation=spread)
        if groups <= 0 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
            raise ShapeError(
                f"{name}(groups={groups}): x is {type_text(x)} and weight {type_text(w)}; x must "
                f"have {w.shape[1] * groups} channels, and {groups} divide weight's {w.shape[0]}.")
        low, high = _paddings(padding, w.shape[2:], steps, spread, n, name)
        for i in range(n):
            extent = x.shape[2 + i] + low[i] + high[i]
            if extent < spread[i] * (w.shape[2 + i] - 1) + 1:
                raise ShapeError(f"{name}: x is {type_text(x)} and weight {type_text(w)}; the "
                                 f"padded input ({extent}) is smaller than the kernel in dimension "
                                 f"{i}.")
        y = TABLE["conv"](x, w, stride=steps, low=low, high=high, interior=(0,) * n,
                          dilation=spread, groups=groups)
        return _finish(y, bias, n, single, name)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (
        f"{name}: the cross-correlation of x with a bank of filters.\n\nArgs:\n    input: (N, C, "
        "spatial...) or without N.\n    weight: (O, C / groups, kernel...).\n    bias: (O,) or "
        "None.\n    stride, padding, dilation: numbers or one per spatial dimension; padding may "
        "be 'same' or 'valid'.\n    groups: C and O are split into so many independent parts.\n")
    return fn


def _paddings(padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
              n: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "valid":
        return (0,) * n, (0,) * n
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ShapeError(f"{name}(padding='same'): stride={tuple(stride)}; it must be 1.")
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    around = _tuple(padding, n, name, "padding")
    if any(p < 0 for p in around):
        raise ShapeError(f"{name}: padding={around}; it must not be negative.")
    return around, around


def _conv_transpose(n: int) -> Callable[..., Tensor]:
    name = f"conv_transpose{n}d"

    def fn(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
           padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Tensor:
        x, w, single = _operands(input, weight, n, name)
        steps, around, extra, spread = (
            _tuple(v, n, name, k) for v, k in ((stride, "stride"), (padding, "padding"),
                                               (output_padding, "output_padding"),
                                               (dilation, "dilation")))
        _check_positive(name, stride=steps, dilation=spread)
        if groups <= 0 or x.shape[1] != w.shape[0] or w.shape[0] % groups:
            raise ShapeError(f"{name}(groups={groups}): x is {type_text(x)} and weight "
                             f"{type_text(w)}; x must have {w.shape[0]} channels, divisible by "
                             "groups.")
        if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)):
            raise ShapeError(f"{name}: output_padding={extra}; it must not be negative, and be "
                             f"smaller than stride={steps} or dilation={spread}.")
        sizes = tuple((m - 1) * s + d * (k - 1) + 1 + e - 2 * p for m, s, d, k, e, p in
                      zip(x.shape[2:], steps, spread, w.shape[2:], extra, around, strict=True))
        if any(size < 1 for size in sizes):
            raise ShapeError(f"{name}(padding={around}): x is {type_text(x)} and weight "
                             f"{type_text(w)}; the result would have the spatial sizes {sizes}, "
                             "which must be 1 or more. Use less padding.")
        y = conv_transpose_node(x, w, stride=steps, low=around,
                                high=tuple(p - e for p, e in zip(around, extra, strict=True)),
                                dilation=spread, groups=groups)
        return _finish(y, bias, n, single, name)
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = (f"{name}: the transpose (gradient) of conv{n}d as a map.\n\nArgs:\n    input: "
                  "(N, C, spatial...) or without N.\n    weight: (C, O / groups, kernel...).\n    "
                  "bias: (O,) or None.\n    output_padding: added to one side of the result.\n")
    return fn


conv1d, conv2d, conv3d = (lower_precision(_conv(n)) for n in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (
    lower_precision(_conv_transpose(n)) for n in (1, 2, 3))
for _fn in (conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d):
    public(method=False)(_fn)


# ----------------------------------------------------------------------------------- attention

def _attention_operands(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool,
                        ) -> tuple[Node, Node, Node]:
    name = "scaled_dot_product_attention"
    q, k, v = (node_of(t, name, w) for t, w in ((query, "query"), (key, "key"), (value, "value")))
    given = f"got query {type_text(q)}, key {type_text(k)}, value {type_text(v)}"
    if not q.dtype is k.dtype is v.dtype or q.dtype.kind != "f":
        raise DTypeError(f"{name}: {given}; all must have one floating dtype.")
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(f"{name}: {given}; they must be (..., T, K), (..., S, K) and (..., S, V).")
    ndim = max(q.ndim, k.ndim, v.ndim, 3)
    q, k, v = (prims.reshape(n, (1,) * (ndim - n.ndim) + n.shape) for n in (q, k, v))
    heads = [n.shape[-3] for n in (q, k, v)]
    if enable_gqa:
        if heads[1] != heads[2] or heads[0] % heads[1]:
            raise ShapeError(f"{name}(enable_gqa=True): {given}; key and value must have equally "
                             "many heads, a divisor of query's.")
    else:
        heads = [broadcast_shapes(name, [(h,) for h in heads])[0]] * 3
    lead = broadcast_shapes(name, [n.shape[:-3] for n in (q, k, v)])
    q, k, v = (prims.expand(n, (*lead, h, *n.shape[-2:]))
               for n, h in zip((q, k, v), heads, strict=True))
    return q, k, v


@lower_precision
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor,
                                 attn_mask: Tensor | None = None, is_causal: bool = False,
                                 scale: float | None = None, enable_gqa: bool = False,
                                 window: int = 0, start: Tensor | None = None,
                                 begins: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ scale + mask) v for each head; only with `attn_mask`, or heads of more than 256
    numbers, are the T × S scores built.

    Args:
        query: (..., H, T, K); key: (..., Hk, S, K); value: (..., Hk, S, V).
        attn_mask: broadcasts to (..., H, T, S): bool (True may look) or a float that is added.
        is_causal: query i sees keys up to position `start` + i (start 0 without it).
        scale: default 1 / sqrt(K).
        enable_gqa: Hk may divide H.
        window: see only the last so many keys (0: all).
        start: int64, the position of the first query: for decoding with a cache.
        begins: (..., T) int64, the first key that each query sees: where its text begins, if
            several are packed into one row.

    Returns:
        (..., H, T, V).
    """
    name = "scaled_dot_product_attention"
    q, k, v = _attention_operands(query, key, value, enable_gqa)
    dtype = q.dtype
    if dtype.itemsize == 2:  # scores and sums in float32, one rounding at the end
        q, k, v = (prims.cast(n, float32) for n in (q, k, v))
    mask = None
    if attn_mask is not None:
        mask = node_of(attn_mask, name, "attn_mask")
        if mask.dtype is not bool_:
            if mask.dtype.kind != "f":
                raise DTypeError(f"{name}: attn_mask is {type_text(mask)}; it must be bool or "
                                 "float.")
            mask = prims.cast(mask, q.dtype)
        shape = (*q.shape[:-1], k.shape[-2])
        if broadcast_shapes(name, [mask.shape, shape]) != shape:
            raise ShapeError(f"{name}: attn_mask is {type_text(mask)}; it must broadcast to "
                             f"{shape}.")
        mask = prims.expand(mask, shape)
    factor = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    made = attention_node(q, k, v, mask, None if start is None else start._read(),
                          None if begins is None else begins._read(),
                          causal=is_causal, scale=float(factor), window=window)
    ndim = max(query.ndim, key.ndim, value.ndim)
    made = prims.cast(made, dtype)
    return wrap(prims.reshape(made, made.shape[made.ndim - ndim:]))


NEURAL.update(layer_norm=layer_norm, rms_norm=rms_norm,
              scaled_dot_product_attention=scaled_dot_product_attention)
