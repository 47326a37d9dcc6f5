"""Random indices: reading and writing agree with PyTorch, and gradients with scattered ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import gossamer as gs

torch = pytest.importorskip("torch", reason="PyTorch, the yardstick, is not installed")


@st.composite
def keys(draw: Any, shape: tuple[int, ...]) -> list[Any]:
    """A key as plain data: ("int", i), ("slice", a, b, s), ("new",), ("dots",), ("list", [...]),
    ("mask", [...])."""
    parts: list[Any] = []
    for n in shape[:draw(st.integers(0, len(shape)))]:
        if draw(st.integers(0, 7)) == 0:
            parts.append(("new",))
        kind = draw(st.sampled_from(["int", "slice", "slice", "list", "mask"] if n else ["slice"]))
        if kind == "int":
            parts.append((kind, draw(st.integers(-n, n - 1))))
        elif kind == "slice":
            ends = st.none() | st.integers(-n - 1, n + 1)
            parts.append((kind, draw(ends), draw(ends), draw(st.none() | st.integers(1, 3))))
        elif kind == "list":  # one length for all lists of a key, so that they broadcast
            parts.append((kind, draw(st.lists(st.integers(-n, n - 1), min_size=2, max_size=2))))
        else:  # two true elements, to go with the lists
            true = draw(st.permutations(range(n)))[:2]
            mask = [i in true for i in range(n)]
            parts.append((kind, mask) if n >= 2 else ("slice", None, None, None))
    if draw(st.integers(0, 3)) == 0:
        parts.append(("dots",))
    return parts


def build(parts: list[Any], module: Any) -> tuple[Any, ...]:
    out: list[Any] = []
    for kind, *rest in parts:
        out.append({"int": lambda r: r[0], "slice": lambda r: slice(*r), "new": lambda r: None,
                    "dots": lambda r: Ellipsis, "list": lambda r: module.tensor(r[0]),
                    "mask": lambda r: module.tensor(r[0])}[kind](rest))
    return tuple(out)


shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@given(st.data())
def test_reading(data: Any) -> None:
    shape = data.draw(shapes)
    parts = data.draw(keys(shape))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours = gs.tensor(values, requires_grad=True)
    theirs = torch.tensor(values, requires_grad=True)
    a, b = ours[build(parts, gs)], theirs[build(parts, torch)]
    assert tuple(a.shape) == tuple(b.shape) and a.tolist() == b.tolist(), parts
    weight = np.linspace(1, 2, b.numel(), dtype=np.float32).reshape(tuple(b.shape))
    (a * gs.tensor(weight)).sum().backward()
    (b * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-5)


@given(st.data())
def test_writing(data: Any) -> None:
    shape = data.draw(shapes)
    parts = data.draw(keys(shape))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours, theirs = gs.tensor(values), torch.tensor(values)
    # A view in between: writes must land in the root.
    if len(shape) > 1 and data.draw(st.booleans()):
        order = data.draw(st.permutations(range(len(shape))))
        a, b = ours.permute(*order), theirs.permute(*order)
        parts = data.draw(keys(tuple(a.shape)))
    else:
        a, b = ours, theirs
    picked = b[build(parts, torch)]
    size = tuple(picked.shape)
    if data.draw(st.booleans()):
        new = np.linspace(-1, -2, picked.numel(), dtype=np.float32).reshape(size)
    else:
        new = np.float32(-5).reshape((1,) * data.draw(st.integers(0, len(size))))
    flags = np.zeros(tuple(b.shape), np.int64)
    np.add.at(flags, tuple(k.numpy() if hasattr(k, "numpy") else k
                           for k in build(parts, torch)), 1)
    if flags.max(initial=0) > 1:
        new = np.float32(-5).reshape(())  # of several values for one place any may stay
    a[build(parts, gs)] = gs.tensor(new)
    b[build(parts, torch)] = torch.tensor(new)
    assert ours.tolist() == theirs.tolist(), (parts, new.shape)


@given(st.data())
def test_chains_of_views_and_writes(data: Any) -> None:
    """A random program of views, in-place operations and reads on one storage."""
    ours, theirs = gs.arange(24).float(), torch.arange(24).float()
    a, b = [ours], [theirs]
    for _ in range(data.draw(st.integers(1, 8))):
        i = data.draw(st.integers(0, len(a) - 1))
        x, y = a[i], b[i]
        kind = data.draw(st.sampled_from(["view", "permute", "slice", "select", "add", "mul",
                                          "fill", "copy", "diagonal", "unsqueeze"]))
        if kind == "view" and y.is_contiguous() and y.numel() % 2 == 0:
            x, y = x.view(-1, 2), y.view(-1, 2)
        elif kind == "permute" and y.ndim:
            order = data.draw(st.permutations(range(y.ndim)))
            x, y = x.permute(*order), y.permute(*order)
        elif kind == "slice" and y.ndim:
            step = data.draw(st.integers(1, 3))
            x, y = x[1::step], y[1::step]
        elif kind == "select" and y.ndim and y.shape[-1]:
            k = data.draw(st.integers(0, y.shape[-1] - 1))
            x, y = x[..., k], y[..., k]
        elif kind == "diagonal" and y.ndim >= 2:
            k = data.draw(st.integers(-2, 2))
            x, y = x.diagonal(k), y.diagonal(k)
        elif kind == "unsqueeze":
            x, y = x.unsqueeze(0), y.unsqueeze(0)
        elif kind == "add":
            x.add_(1.5), y.add_(1.5)
        elif kind == "mul":
            x.mul_(-2), y.mul_(-2)
        elif kind == "fill":
            x.fill_(7), y.fill_(7)
        elif kind == "copy":
            x.copy_(x.clone().flip(0) if y.ndim else x.clone())
            y.copy_(y.clone().flip(0) if y.ndim else y.clone())
        a.append(x), b.append(y)
    for x, y in zip(a, b, strict=True):
        assert x.tolist() == y.tolist()
        if y.numel():  # the stride of an extent of 1 means nothing
            moving = [k for k, n in enumerate(y.shape) if n > 1]
            assert [x.stride(k) for k in moving] == [y.stride(k) for k in moving]
            assert x.storage_offset() == y.storage_offset()
