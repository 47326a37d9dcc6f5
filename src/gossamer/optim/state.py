"""Optimizer state as plain dicts, in PyTorch's layout, and back. Layer 5.

`{"state": {number: {...}}, "param_groups": [{..., "params": [numbers]}]}`: parameters are counted
over the groups in order. Loading writes into tensors that are there already, so that a compiled
step, which holds on to them, goes on from the loaded state.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import gossamer.functional as gf
from gossamer.core.dtype import float32
from gossamer.core.errors import CheckpointError
from gossamer.tensor import Tensor, no_grad

if TYPE_CHECKING:
    from gossamer.optim.base import Optimizer

__all__ = ["Removable", "load_state", "save_state"]

_numbers = itertools.count()


class Removable:
    """What registering a hook returns; `remove()` takes it away."""

    def __init__(self, table: OrderedDict[int, Any], hook: Any) -> None:
        self.id = next(_numbers)
        self._table = table
        table[self.id] = hook

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self._table.pop(self.id, None)


def save_state(optimizer: Optimizer) -> dict[str, Any]:
    """The state dict; its tensors are the optimizer's own."""
    number: dict[int, int] = {}
    groups = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            number.setdefault(id(p), len(number))
        saved = {k: v for k, v in group.items() if k not in ("params", "_fresh")}
        groups.append({**saved, "params": [number[id(p)] for p in group["params"]]})
    state = {number[id(p)] if isinstance(p, Tensor) else p: dict(own)
             for p, own in optimizer.state.items() if own}
    return {"state": state, "param_groups": groups}


def load_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict`."""
    name = type(optimizer).__name__
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise CheckpointError(f"{name}.load_state_dict: got {_kind(state_dict)}; it takes a dict "
                              "with 'state' and 'param_groups', as state_dict() returns.")
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    if len(groups) != len(saved):
        raise CheckpointError(f"{name}.load_state_dict: loaded state dict has a different number "
                              f"of parameter groups ({len(saved)}, here {len(groups)}).")
    lengths = [(len(g["params"]), len(s["params"])) for g, s in zip(groups, saved, strict=True)]
    if any(here != there for here, there in lengths):
        raise CheckpointError(f"{name}.load_state_dict: loaded state dict contains a parameter "
                              "group that doesn't match the size of optimizer's group "
                              f"({lengths} parameters here and there).")
    by_number: dict[Any, Tensor] = {}
    for group, other in zip(groups, saved, strict=True):
        by_number.update(zip(other["params"], group["params"], strict=True))
        kept = {k: group[k] for k in ("params", "param_names") if k in group}
        fresh = {k: v for k, v in other.items() if k not in ("params", "param_names", "_fresh")}
        group.clear()  # the dict itself stays: compiled steps read their scalars from it
        group.update(fresh, **kept)
    counts = {id(p): own["step"] for p, own in optimizer.state.items() if "step" in own}
    for number, own in state_dict["state"].items():
        if number in by_number:
            p = by_number[number]
            optimizer.state[p] = _loaded(optimizer.state.get(p) or {}, own, p, name)
        else:
            optimizer.state[number] = dict(own)
    for group in groups:
        _share_counts(optimizer, group, counts)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict with {sorted(map(str, value))}"
    return f"a {type(value).__name__}"


def _loaded(old: dict[str, Any], new: dict[str, Any], p: Tensor, name: str) -> dict[str, Any]:
    """State of one parameter: new values, in the old tensors where they fit."""
    result: dict[str, Any] = {}
    for key, value in new.items():
        if not isinstance(value, Tensor):
            result[key] = value
            continue
        if key == "step":
            wanted = float32
        else:
            wanted = p.dtype if p.is_floating_point() and value.is_floating_point() else value.dtype
        was = old.get(key)
        with no_grad():
            if isinstance(was, Tensor) and key != "step" and was.shape == value.shape:
                result[key] = was.copy_(value)
            else:
                result[key] = value.detach().to(wanted).clone()
    return result


def _share_counts(optimizer: Optimizer, group: dict[str, Any], old: dict[int, Any]) -> None:
    """Parameters of a group with equal step counts share one tensor, an old one if possible."""
    known: dict[float, Tensor] = {}
    taken: set[int] = set()
    for p in group["params"]:
        own = optimizer.state.get(p)
        if not own or "step" not in own:
            continue
        loaded = own["step"]  # very old files have plain numbers
        value = float(loaded.item()) if isinstance(loaded, Tensor) else float(loaded)
        if value not in known:
            count = old.get(id(p))
            if not isinstance(count, Tensor) or id(count) in taken:
                count = gf.zeros((), dtype=float32)
            taken.add(id(count))
            with no_grad():
                known[value] = count.fill_(value)
        own["step"] = known[value]
