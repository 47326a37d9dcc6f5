"""Scaled dot-product attention and its backward pass, each one operator. Layer 1.

The bodies say what is meant, with scores in memory; the scheduler may keep both records whole and
compute them by tiles. The forward pass also returns the log-sum-exp of every row, from which the
backward pass recomputes the weights. A row that sees nothing gives zeros.

Letters: B batch axes, H query heads, G key heads (G divides H), T queries, S keys, K and V sizes.
Sources: Vaswani et al. 2017; Dao et al. 2022 (FlashAttention); Ainslie et al. 2023 (grouped heads).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.core.dtype import DType, bool_, float32, float64, int64
from gossamer.ir.node import Node, Shape
from gossamer.ir.op import IOTA, PICK, Op, Sample, constant
from gossamer.ops.composite import composite, scaled, to_dtype
from gossamer.ops.contraction import dot_general
from gossamer.ops.elementwise import add, div, eq, gt, isinf, le, mul, sub, where
from gossamer.ops.functions import exp, log
from gossamer.ops.movement import reshape
from gossamer.ops.reduction import broadcast, reduce_max, reduce_sum
from gossamer.ops.rules import Type, dtype_error, shape_error
from gossamer.ops.wrapper import detach

__all__ = ["attention", "attention_grad", "scaled_dot_product_attention"]

NEG_INF = float("-inf")


def _statistics_dtype(dtype: DType) -> DType:
    """float64 for float64, else float32: log-sum-exps are never 16-bit."""
    return dtype if dtype is float64 else float32


def _attention_type(op: Op, q: Node, k: Node, v: Node, *extras: Node, mask: bool, start: bool,
                    causal: bool, window: int, scale: float, begins: bool = False,
                    rows_first: bool = False) -> list[Type]:
    """`rows_first` (set by the compiler): result 0 is (..., T, H, V), as projections want it."""
    inputs = (q, k, v, *extras)
    if not q.dtype is k.dtype is v.dtype or q.dtype.kind != "f":
        raise dtype_error(op, inputs, "query, key and value must have one floating-point dtype",
                          "Convert them with .to(dtype).")
    if q.ndim < 3 or k.ndim != q.ndim or v.ndim != q.ndim or q.shape[:-3] != k.shape[:-3]:
        raise shape_error(op, inputs, "query, key and value must be (..., heads, length, size) "
                          "with equal leading axes", "Add or expand axes.")
    fits = (k.shape[:-1] == v.shape[:-1] and q.shape[-1] == k.shape[-1] and k.shape[-3] > 0
            and q.shape[-3] % k.shape[-3] == 0)
    if not fits:
        raise shape_error(op, inputs, "key and value must agree in heads and length, query and "
                          "key in size, and key heads must divide query heads",
                          "Check the projections.")
    if len(extras) != mask + start + begins:
        raise shape_error(op, inputs, f"mask={mask}, start={start}, begins={begins} need "
                          f"{mask + start + begins} operands more", "Pass them behind the value.")
    rows = q.shape[:-1]
    seen = (*rows, k.shape[-2])
    if mask and (extras[0].shape != seen or extras[0].dtype not in (bool_, q.dtype)):
        raise shape_error(op, inputs, f"the mask must be bool or {q.dtype.name} of shape {seen}",
                          "Expand it.")
    first = extras[mask] if start else None
    if first is not None and (first.dtype is not int64 or first.shape != q.shape[:first.ndim]
                              or first.ndim > q.ndim - 3):
        raise shape_error(op, inputs, "start must be int64 with a shape that leads the batch axes",
                          "Pass one position, or one for each sequence.")
    each = (*q.shape[:-3], q.shape[-2])
    if begins and (extras[-1].dtype is not int64 or extras[-1].shape != each):
        raise shape_error(op, inputs, f"begins must be int64 of shape {each}",
                          "Pass the first key that each query sees.")
    shape = (*rows, v.shape[-1])
    return [(_rows_first(shape) if rows_first else shape, q.dtype),
            (rows, _statistics_dtype(q.dtype))]


def _rows_first(shape: Shape) -> Shape:
    """(..., T, H, K) of (..., H, T, K)."""
    *lead, heads, rows, size = shape
    return (*lead, rows, heads, size)


def _visible(q: Node, k: Node, start: Node | None, begins: Node | None, causal: bool,
             window: int) -> Node | None:
    """bool (..., H, T, S): key j is at most query i's position, not `window` or more behind, and
    not before `begins[i]`."""
    if not causal and not window and begins is None:
        return None
    shape = (*q.shape[:-1], k.shape[-2])
    ndim = len(shape)
    place = IOTA(axis=ndim - 2, shape=shape, dtype=int64)
    if start is not None:
        place = add(place, broadcast(start, shape=shape, axes=tuple(range(start.ndim, ndim))))
    key = IOTA(axis=ndim - 1, shape=shape, dtype=int64)
    seen = le(key, place) if causal else None
    if window:
        near = gt(key, sub(place, constant(window, place)))
        seen = near if seen is None else mul(seen, near)
    if begins is not None:
        first = broadcast(begins, shape=shape, axes=(ndim - 3, ndim - 1))
        own = le(first, key)
        seen = own if seen is None else mul(seen, own)
    return seen


def _with_groups(x: Node, heads: int) -> Node:
    """(..., H, T, K) to (..., G, H/G, T, K): queries that share a key head side by side."""
    *lead, h, t, size = x.shape
    return reshape(x, shape=(*lead, heads, h // heads, t, size))


def _batched_dot(a: Node, b: Node, a_contract: Shape, b_contract: Shape, batch: int) -> Node:
    axes = tuple(range(batch))
    return dot_general(a, b, a_batch=axes, a_contract=a_contract, b_batch=axes,
                       b_contract=b_contract)


def _rows_with_keys(q: Node, k: Node) -> Node:
    """q.k^T for each head: (..., H, T, S), in q's dtype."""
    grouped = _with_groups(q, k.shape[-3])
    product = _batched_dot(grouped, k, (grouped.ndim - 1,), (k.ndim - 1,), k.ndim - 2)
    return reshape(product, shape=(*q.shape[:-1], k.shape[-2]))


def _keys_to_rows(p: Node, v: Node) -> Node:
    """p.v for each head: (..., H, T, V)."""
    grouped = _with_groups(p, v.shape[-3])
    product = _batched_dot(grouped, v, (grouped.ndim - 1,), (v.ndim - 2,), v.ndim - 2)
    return reshape(product, shape=(*p.shape[:-1], v.shape[-1]))


def _rows_to_keys(p: Node, x: Node, heads: int) -> Node:
    """p^T.x for each key head, summed over the queries that share it: (..., G, S, K)."""
    left, right = _with_groups(p, heads), _with_groups(x, heads)
    shared = (left.ndim - 3, left.ndim - 2)
    return _batched_dot(left, right, shared, shared, left.ndim - 3)


def _scores(q: Node, k: Node, extras: tuple[Node, ...], *, mask: bool, start: bool, causal: bool,
            window: int, scale: float, begins: bool = False) -> Node:
    """Masked scores in the dtype of statistics."""
    s = scaled(to_dtype(_rows_with_keys(q, k), _statistics_dtype(q.dtype)), scale)
    hidden = constant(NEG_INF, s)
    if mask and extras[0].dtype is bool_:
        s = where(extras[0], s, hidden)
    elif mask:
        s = add(s, to_dtype(extras[0], s.dtype))
    seen = _visible(q, k, extras[mask] if start else None, extras[-1] if begins else None, causal,
                    window)
    return s if seen is None else where(seen, s, hidden)


def _finite(x: Node) -> Node:
    return where(isinf(x), constant(0, x), x)


def _attention(q: Node, k: Node, v: Node, *extras: Node, **attrs: Any) -> tuple[Node, Node]:
    s = _scores(q, k, extras, **attrs)
    last = (s.ndim - 1,)
    if s.shape[-1] == 0:
        rows = reduce_sum(s, axes=last)
        return _keys_to_rows(to_dtype(s, q.dtype), v), constant(NEG_INF, rows)
    top = _finite(detach(reduce_max(s, axes=last)))
    e = exp(sub(s, broadcast(top, shape=s.shape, axes=last)))
    total = reduce_sum(e, axes=last)
    none = eq(total, constant(0, total))
    safe = where(none, constant(1, total), total)
    p = div(e, broadcast(safe, shape=s.shape, axes=last))
    lse = where(none, constant(NEG_INF, total), add(log(safe), top))
    return _keys_to_rows(to_dtype(p, q.dtype), v), lse


def _attention_vjp(g: tuple[Node | None, Node | None], y: Node, q: Node, k: Node, v: Node,
                   *extras: Node, **attrs: Any) -> tuple[Node | None, ...]:
    out, lse = PICK(y, index=0), PICK(y, index=1)
    g_out = g[0] if g[0] is not None else constant(0, out)
    wide = lse.dtype
    delta = reduce_sum(mul(to_dtype(g_out, wide), to_dtype(out, wide)), axes=(out.ndim - 1,))
    if g[1] is not None:
        delta = sub(delta, g[1])
    mask_grad = attrs["mask"] and extras[0].grad
    back = attention_grad(q, k, v, lse, g_out, delta, *extras, mask_grad=mask_grad, **attrs)
    found: list[Node | None] = [PICK(back, index=i) if x.grad else None
                                for i, x in enumerate((q, k, v))]
    if extras:
        found += [None] * len(extras)
    if mask_grad:
        found[3] = PICK(back, index=3)
    return tuple(found)


def _attention_batch(op: Op, size: int, *inputs: Node, **attrs: Any) -> Node:
    """Attention has any number of leading axes; a start for all stays one."""
    if attrs["start"]:
        at = len(inputs) - 1 - attrs.get("begins", False)
        start = inputs[at]
        if start.op is broadcast and start.attrs["axes"] == (0,) and start.ndim == 1:
            start = start.inputs[0]
        inputs = (*inputs[:at], start, *inputs[at + 1:])
    return op(*inputs, **attrs)


def _blind(rng: np.random.Generator) -> Sample:
    """A query that sees no key: its log-sum-exp is -inf, which has no derivative."""
    (q, k, v, seen), attrs = next(c for c in _cases(rng) if c[0][-1].dtype == bool)
    return Sample((q, k, v, np.zeros_like(seen)), attrs, gradient=False)


def _cases(rng: np.random.Generator) -> list[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
    plain = {"mask": False, "start": False, "causal": False, "window": 0, "scale": 0.5}
    def qkv(batch: Shape, h: int, g: int, t: int, s: int) -> tuple[np.ndarray, ...]:
        return (rng.normal(size=(*batch, h, t, 2)), rng.normal(size=(*batch, g, s, 2)),
                rng.normal(size=(*batch, g, s, 3)))
    seen = rng.random((1, 1, 3, 4)) < 0.6
    seen[..., 0] = True
    return [
        (qkv((), 1, 1, 1, 1), plain), (qkv((2,), 2, 1, 3, 3), {**plain, "causal": True}),
        (qkv((1,), 4, 2, 2, 5), {**plain, "scale": 0.7}),
        ((*qkv((1,), 1, 1, 3, 4), seen), {**plain, "mask": True}),
        ((*qkv((1,), 2, 1, 3, 4), rng.normal(size=(1, 2, 3, 4))), {**plain, "mask": True}),
        ((*qkv((2,), 1, 1, 2, 6), np.array(3)), {**plain, "start": True, "causal": True}),
        ((*qkv((2,), 1, 1, 2, 6), np.array([1, 4])),
         {**plain, "start": True, "causal": True, "window": 2}),
        ((*qkv((2,), 2, 1, 4, 4), np.array([[0, 0, 2, 2], [0, 1, 1, 3]])),
         {**plain, "causal": True, "begins": True}),
        ((*qkv((2,), 1, 1, 2, 6), np.array([1, 4]), np.array([[0, 1], [3, 5]])),
         {**plain, "start": True, "causal": True, "begins": True})]


attention: Op = composite(
    "attention",
    "softmax(q.k^T * scale + mask).v for each head, and the log-sum-exp of each row. Keys behind "
    "position start + i (causal), `window` or more before it, or before begins[i] are not seen by "
    "query i.",
    infer=_attention_type, body=_attention, vjp=_attention_vjp, batch=_attention_batch,
    promote="none", cost=100.0, onnx="Attention-23",
    samples=lambda rng: [*(Sample(inputs, attrs) for inputs, attrs in _cases(rng)), _blind(rng)])


def scaled_dot_product_attention(q: Node, k: Node, v: Node, mask: Node | None = None,
                                 start: Node | None = None, begins: Node | None = None, *,
                                 causal: bool, scale: float, window: int = 0) -> Node:
    """The first result of `attention`: (..., H, T, V)."""
    extras = tuple(x for x in (mask, start, begins) if x is not None)
    own = {"begins": True} if begins is not None else {}
    return PICK(attention(q, k, v, *extras, mask=mask is not None, start=start is not None,
                          causal=causal, window=window, scale=scale, **own), index=0)


# the backward pass -------------------------------------------------------------------------------


def _grad_type(op: Op, q: Node, k: Node, v: Node, lse: Node, g: Node, delta: Node, *extras: Node,
               mask_grad: bool, packed: bool = False, **attrs: Any) -> list[Type]:
    """`packed` (set by the compiler, for T = S and K = V): one result, (..., T, H + 2 G, K), holds
    the cotangents of the query heads, of the key heads and of the value heads."""
    (out, dtype), (rows, wide) = _attention_type(op, q, k, v, *extras, **attrs)
    if (g.shape, g.dtype) != (out, dtype) or (lse.shape, lse.dtype) != (rows, wide) or \
            (delta.shape, delta.dtype) != (rows, wide):
        raise shape_error(op, (q, k, v, lse, g, delta), f"g must be {dtype.name} {out}, lse and "
                          f"delta {wide.name} {rows}", "Pass the results of attention.")
    if packed:
        heads = q.shape[-3] + 2 * k.shape[-3]
        return [((*q.shape[:-3], q.shape[-2], heads, q.shape[-1]), q.dtype)]
    found = [(x.shape, x.dtype) for x in (q, k, v)]
    return [*found, (extras[0].shape, extras[0].dtype)] if mask_grad else found


def _attention_grad(q: Node, k: Node, v: Node, lse: Node, g: Node, delta: Node, *extras: Node,
                    mask_grad: bool, **attrs: Any) -> tuple[Node, ...]:
    s = _scores(q, k, extras, **attrs)
    last = (s.ndim - 1,)
    p = exp(sub(s, broadcast(_finite(lse), shape=s.shape, axes=last)))
    dp = to_dtype(_rows_with_keys(g, v), s.dtype)
    ds = mul(p, sub(dp, broadcast(delta, shape=s.shape, axes=last)))
    scores = to_dtype(scaled(ds, attrs["scale"]), q.dtype)
    heads = k.shape[-3]
    found = (_keys_to_rows(scores, k), _rows_to_keys(scores, q, heads),
             _rows_to_keys(to_dtype(p, q.dtype), g, heads))
    return (*found, to_dtype(ds, extras[0].dtype)) if mask_grad else found


def _grad_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for (q, k, v, *extras), attrs in _cases(rng):
        rows = q.shape[:-1]
        lse, g = rng.normal(size=rows) + 2, rng.normal(size=(*rows, v.shape[-1]))
        mask_grad = bool(attrs["mask"]) and extras[0].dtype.kind == "f"
        found.append(Sample((q, k, v, lse, g, rng.normal(size=rows), *extras),
                            {**attrs, "mask_grad": mask_grad}))
    return found


attention_grad: Op = composite(
    "attention_grad",
    "Cotangents of q, k, v (and of a float mask if mask_grad) from that of attention's result, its "
    "log-sum-exps `lse`, and delta = sum of g * result over the last axis.",
    infer=_grad_type, body=_attention_grad, promote="none", cost=200.0, batch=_attention_batch,
    samples=_grad_samples)
