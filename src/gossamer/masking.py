"""Elements that a mask chooses: where, masked_fill, masked_select, nonzero. Layer 4.

`where` and the fills are elementwise. What depends on a count in the data (`nonzero`,
`masked_select`) computes the mask first, so that the shape of the result is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import bool_, int64
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.creation import array_node
from gossamer.dispatch import (
    fit,
    give,
    mask_of,
    node_of,
    number,
    public,
    same_type,
    with_out,
)
from gossamer.indexing import nonzero_nodes
from gossamer.ir.node import type_text
from gossamer.ir.op import TABLE
from gossamer.tensor import Tensor, attach, twin, wrap

__all__ = ["argwhere", "masked_fill", "masked_scatter", "masked_select", "nonzero", "where"]


@public(method=False)
def where(condition: Tensor, input: Any = None, other: Any = None, *,
          out: Tensor | None = None) -> Any:
    """`input` where the condition holds, else `other`; with one argument `nonzero(as_tuple=True)`.

    Args:
        condition: bool.
        input, other: tensors or numbers; all three broadcast, dtypes are promoted.
    """
    c = node_of(condition, "gs.where", "condition")
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    if c.dtype is not bool_:
        raise DTypeError(f"gs.where: the condition is {type_text(c)}; it must be bool. Write a "
                         "comparison such as c != 0.")
    a, b = same_type("gs.where", (input, other))
    c, a, b = fit("gs.where", c, a, b)
    made = wrap(prims.where(c, a, b))
    return made if out is None else give(out, made._node, "gs.where")


def _where_method(self: Tensor, condition: Tensor, other: Any) -> Tensor:
    """This tensor where the condition holds, else `other`."""
    return where(condition, self, other)


attach("where", _where_method)


@public(inplace=True)
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`input` with `value` (a number or a tensor without dimensions) where the mask is true."""
    x, m = node_of(input, "gs.masked_fill"), mask_of(mask, "gs.masked_fill")
    if isinstance(value, Tensor):
        if value.ndim:
            raise ShapeError(f"gs.masked_fill: value has {value.ndim} dimensions; it must have "
                             "none.")
        v = prims.cast(value._read(), x.dtype)
    else:
        v = prims.full(number(value, "gs.masked_fill"), (), x.dtype)
    x, m, v = fit("gs.masked_fill", x, m, v)
    return wrap(prims.where(m, v, x))


@public()
@with_out
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where the mask is true, in one row. Computes the mask: the count is data."""
    x, m = fit("gs.masked_select", node_of(input, "gs.masked_select"),
               mask_of(mask, "gs.masked_select"))
    flat = prims.reshape(m, (m.size,))
    return wrap(prims.take(prims.reshape(x, (x.size,)), nonzero_nodes(flat)[0]))


@public(inplace=True)
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """`input` with the elements where the mask is true replaced, in order, by those of `source`."""
    name = "gs.masked_scatter"
    x, m = fit(name, node_of(input, name), mask_of(mask, name))
    s = node_of(source, name, "source")
    if s.dtype is not x.dtype:
        raise DTypeError(f"{name}: x is {type_text(x)} and source {type_text(s)}; the dtypes must "
                         "be equal.")
    if s.size == 0:
        return wrap(twin(x))
    flat = prims.reshape(m, (m.size,))
    count = prims.scan(prims.cast(flat, int64), 0, "add")
    place = prims.sub(count, prims.const(1, count))
    zero = prims.const(0, place)
    found = prims.take(prims.reshape(s, (s.size,)), prims.where(flat, place, zero))
    return wrap(prims.where(m, prims.reshape(found, x.shape), x))


@public()
def nonzero(input: Tensor, *, as_tuple: bool = False, out: Tensor | None = None) -> Any:
    """Indices of the elements that are not zero, one row each (or one vector per dimension).

    Computes `input`: the count is data.
    """
    x = node_of(input, "gs.nonzero")
    mask = x if x.dtype is bool_ else TABLE["ne"](x, prims.const(0, x))
    found = nonzero_nodes(mask)
    if as_tuple:
        return tuple(wrap(i) for i in found)
    if x.ndim == 0:
        return wrap(array_node(np.zeros((found[0].size, 0)), int64))
    return wrap(prims.concat([prims.reshape(i, (i.size, 1)) for i in found], 1))


@public()
def argwhere(input: Tensor) -> Tensor:
    """`nonzero(input)`."""
    return nonzero(input)
