"""How a name of the database is called in Gossamer: as function, method, in-place, by alias.

The database's own callables sometimes permute the arguments (`embedding(weight, index)`, because
the differentiable argument must come first); `ARRANGED` undoes that for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gossamer as gs

Arrange = Callable[[Callable[..., Any]], Callable[..., Any]]


def _swap(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, second, *rest, **kwargs: f(second, first, *rest, **kwargs)


def _on_a_copy(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, *rest, **kwargs: f(first.clone(), *rest, **kwargs)


def _two(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: f(*args, **kwargs)[:2]


# (name, variant) or name -> how the sample's arguments reach the function.
ARRANGED: dict[str | tuple[str, str], Arrange] = {
    "einsum": lambda f: lambda tensors, equation: f(equation, *tensors),
    "polygamma": _swap,
    "special.polygamma": _swap,
    "where": _swap,
    "nn.functional.embedding": _swap,
    "nn.functional.embedding_bag": _swap,
    ("normal", "number_mean"): _swap,
    ("linalg.lstsq", "grad_oriented"): _two,
    ("linalg.pinv", "singular"): lambda f: lambda a, b: f(a @ b.mT),
    "resize_": _on_a_copy, "resize_as_": _on_a_copy, "zero_": _on_a_copy,
}
# Names whose only public form is the in-place method.
IN_PLACE_ONLY = ("cauchy", "exponential", "geometric", "log_normal", "uniform")


@dataclass(frozen=True)
class Call:
    """One public way to call a name. `label` is what a user would write."""

    label: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]


def _lookup(name: str) -> Callable[..., Any] | None:
    """The public function of that dotted name in Gossamer; dtypes and modules are none."""
    found: Any = gs
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    kind = type(found)
    callable_ = callable(found) and not isinstance(found, type) and kind.__name__ != "DType"
    return found if callable_ else None


def _method(name: str) -> Callable[..., Any] | None:
    """`Tensor.name` as a function of the tensor, a property included."""
    if "." in name:
        return None
    found = getattr(gs.Tensor, name, None)
    if found is None:
        return None
    if callable(found):
        return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)
    return lambda x: getattr(x, name)


def calls(info: Any) -> list[Call]:
    """Every public way in which Gossamer bears this record's name or one of its aliases."""
    import torch

    found = []
    for name in (info.name, *(alias.name for alias in info.aliases or ())):
        arrange = ARRANGED.get((name, info.variant_test_name)) or ARRANGED.get(name)
        in_place_only = info.variant_test_name == "in_place" or name in IN_PLACE_ONLY
        function = None if in_place_only else _lookup(name)
        if function is not None:
            found.append(Call(f"gs.{name}", arrange(function) if arrange else function, info.op))
        # Some names (`short`, `expand`) exist in PyTorch as methods only.
        if hasattr(torch.Tensor, name) and (method := _method(name)) is not None:
            plain = name == "where" or arrange not in (_swap, _on_a_copy)
            found.append(Call(f"Tensor.{name}", method if plain or not arrange else _bind(name),
                              info.op))
        found += _in_place(info, name)
    return found


def _bind(name: str) -> Callable[..., Any]:
    """Methods of rows in ARRANGED: the tensor itself is the first argument of the sample."""
    if name.endswith("_"):
        return lambda x, *args, **kwargs: getattr(x.clone(), name)(*args, **kwargs)
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _in_place(info: Any, name: str) -> list[Call]:
    import torch

    inner = f"{name}_"
    if "." in name or name.endswith("_") or not hasattr(gs.Tensor, inner):
        return []
    if not hasattr(torch.Tensor, inner):
        return []
    only = name in IN_PLACE_ONLY or info.variant_test_name == "in_place"
    if info.inplace_variant is None and not only:
        return []

    def ours(x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x.clone(), inner)(*args, **kwargs)

    return [Call(f"Tensor.{inner}", ours, ours)]
