"""Runs one scenario with Gossamer and with PyTorch and compares everything it returns.

A scenario is a function of the module (`m` is gossamer or torch), so the same source text is the
test of both: what PyTorch does is the specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs


def plain(value: Any) -> Any:
    """Tensors as (dtype, shape, values, requires_grad); containers part by part."""
    if hasattr(value, "detach"):
        with_grad = bool(value.requires_grad)
        value = value.detach()
        dtype = str(value.dtype).split(".")[-1]
        return dtype, tuple(value.shape), value.tolist(), with_grad
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value).__name__ == "Size":
        return list(value)
    return value


def same(ours: Any, theirs: Any, where: str = "result") -> None:
    """Equal, floats to 1e-5."""
    if isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple)) and len(ours) == len(theirs), (where, ours, theirs)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, float):
        assert isinstance(ours, float), (where, ours, theirs)
        close = math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6)
        assert close or ours != ours and theirs != theirs, (where, ours, theirs)
    else:
        assert ours == theirs, (where, ours, theirs)


def compare(scenario: Callable[[Any], Any]) -> None:
    """Hold what `scenario` returns with Gossamer against what it returns with PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch, the yardstick, is not installed")
    same(plain(scenario(gs)), plain(scenario(torch)))


def scenarios(namespace: dict[str, Any]) -> Any:
    """Decorator material: every function named `case_*` of a module as one parameter."""
    found = {name: fn for name, fn in namespace.items() if name.startswith("case_")}
    assert found, "no scenario found"
    return pytest.mark.parametrize("scenario", found.values(), ids=[n[5:] for n in found])
