"""Sorting: the stable permutation that orders an axis. Layer 1.

Only positions are primitive; sort, topk, median and unique gather with them. NaN counts as larger
than every number, as in PyTorch and NumPy.
"""

from __future__ import annotations

import numpy as np

from gossamer.core.dtype import int64
from gossamer.ir.node import Node
from gossamer.ir.op import Op, Sample, define
from gossamer.ops.rules import Type, axis_in_range

__all__ = ["argsort"]


def _argsort_type(op: Op, x: Node, *, axis: int, descending: bool) -> Type:
    axis_in_range(op, x, axis)
    return x.shape, int64


def _argsort_reference(x: np.ndarray, *, axis: int, descending: bool) -> np.ndarray:
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    # Equal elements keep their order: sort the reversed axis upwards and read it backwards.
    order = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - order)


def _argsort_samples(rng: np.random.Generator) -> list[Sample]:
    arrays = ((rng.normal(size=(7,)), 0), (rng.normal(size=(3, 5)), 1),
              (rng.normal(size=(4, 3)), 0),
              (rng.integers(0, 3, (11,)), 0), (np.array([np.nan, 2.0, -np.inf, np.nan, np.inf]), 0),
              (np.zeros((0, 2)), 0), (np.array([-0.0, 0.0, -0.0]), 0), (rng.random(6) < 0.5, 0))
    return [Sample((x,), {"axis": axis, "descending": descending}, gradient=False)
            for x, axis in arrays for descending in (False, True)]


argsort: Op = define(Op(
    "argsort", "sort", "Positions that put x in order along `axis`; stable; NaN is largest.",
    infer=_argsort_type, reference=_argsort_reference,
    batch=lambda op, size, x, *, axis, descending: op(x, axis=axis + 1, descending=descending),
    cost=50.0, samples=_argsort_samples))
