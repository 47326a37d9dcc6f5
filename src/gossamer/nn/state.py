"""Saving and loading a module's state: `state_dict` and `load_state_dict`. Layer 5.

One module at a time is saved (`save_own`) or filled (`load_own`); the walk over the tree and the
report of everything that did not fit, in one message, are here too. Keys are PyTorch's, so weights
interchange.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from gossamer.core.errors import CheckpointError
from gossamer.tensor import Parameter, Tensor, no_grad

if TYPE_CHECKING:
    from gossamer.nn.module import Module

__all__ = ["EXTRA_STATE", "IncompatibleKeys", "Report", "load_own", "load_tree", "save_own"]

EXTRA_STATE = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """Keys that a non-strict load left out: not in the file, or not in the model."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (f"IncompatibleKeys(missing_keys={self.missing_keys!r}, "
                f"unexpected_keys={self.unexpected_keys!r})")


@dataclass
class Report:
    """What did not fit, collected over the whole tree."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def save_own(module: Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Put the module's own parameters, persistent buffers and extra state into `destination`."""
    for name, param in module._parameters.items():
        if param is not None:
            destination[prefix + name] = param if keep_vars else param.detach()
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            destination[prefix + name] = buffer if keep_vars else buffer.detach()
    if has_extra_state(module):
        destination[prefix + EXTRA_STATE] = module.get_extra_state()


def has_extra_state(module: Module) -> bool:
    """Whether the module's class overrides `get_extra_state`."""
    return getattr(type(module).get_extra_state, "is_default", False) is False


def _own_state(module: Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def load_own(module: Module, state: Mapping[str, Any], prefix: str, strict: bool, assign: bool,
             report: Report) -> None:
    """Fill the module's own parameters and buffers from `state`, noting what does not fit."""
    for name, tensor in _own_state(module):
        key = prefix + name
        if key not in state:
            if strict:
                report.missing.append(key)
            continue
        _load_one(module, name, key, tensor, state[key], assign, report)
    extra = prefix + EXTRA_STATE
    if has_extra_state(module):
        if extra in state:
            module.set_extra_state(state[extra])
        elif strict:
            report.missing.append(extra)
    elif strict and extra in state:
        report.unexpected.append(extra)
    if strict:
        _note_unexpected(module, state, prefix, report)


def _load_one(module: Module, name: str, key: str, tensor: Tensor, new: Any, assign: bool,
              report: Report) -> None:
    if not isinstance(new, Tensor):
        report.errors.append(f"{key}: the state holds a {type(new).__name__}, not a tensor.")
        return
    if tensor.dim() == 0 and tuple(new.shape) == (1,):  # scalars saved by very old PyTorch
        new = new[0]
    if tuple(new.shape) != tuple(tensor.shape):
        report.errors.append(f"size mismatch for {key}: the state has shape {tuple(new.shape)}, "
                             f"the model has {tuple(tensor.shape)}.")
        return
    if assign:
        if isinstance(tensor, Parameter) and not isinstance(new, Parameter):
            new = Parameter(new, requires_grad=tensor.requires_grad)
        setattr(module, name, new)
        return
    if str(tensor.device) == "meta" and str(new.device) != "meta":
        warnings.warn(f"load_state_dict: {key} is on the meta device, so copying into it does "
                      "nothing. Pass assign=True, or call to_empty(device='cpu') first.",
                      stacklevel=2)
    with no_grad():
        tensor.copy_(new)


def _note_unexpected(module: Module, state: Mapping[str, Any], prefix: str,
                     report: Report) -> None:
    for key in state:
        if not key.startswith(prefix):
            continue
        head, dot, _ = key[len(prefix):].partition(".")
        known = head in module._modules if dot else (
            head in module._parameters or head in module._buffers or head == EXTRA_STATE)
        if dot and not known:
            # A dotted name may be a parameter whose own name has no dot: never; so unexpected.
            report.unexpected.append(key)
        elif not dot and (not known or head in module._non_persistent_buffers_set):
            report.unexpected.append(key)


def load_tree(root: Module, state: Mapping[str, Any], strict: bool,
              assign: bool) -> IncompatibleKeys:
    """`Module.load_state_dict`.

    Raises:
        CheckpointError: shapes differ, or `strict` and the keys are not the model's.
        TypeError: `state` is not a mapping.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{_name(root)}.load_state_dict: got a {type(state).__name__}; it takes a "
                        "dict from names to tensors. Pass what state_dict() or load_file returned.")
    state = dict(state)  # hooks may rename keys
    report = Report()

    def load(module: Module, local: dict[str, Any], prefix: str) -> None:
        for hook, with_module in module._load_state_dict_pre_hooks.values():
            args = (local, prefix, dict[str, Any](), True, report.missing, report.unexpected,
                    report.errors)
            hook(module, *args) if with_module else hook(*args)
        module._load_from_state_dict(local, prefix, {"assign_to_params_buffers": assign}, True,
                                     report.missing, report.unexpected, report.errors)
        for name, child in module._modules.items():
            if child is not None:
                below = prefix + name + "."
                load(child, {k: v for k, v in local.items() if k.startswith(below)}, below)
        incompatible = IncompatibleKeys(report.missing, report.unexpected)
        for hook in module._load_state_dict_post_hooks.values():
            if hook(module, incompatible) is not None:
                raise TypeError(f"{_name(module)}: a load_state_dict post-hook returned a value; "
                                "it must change the given keys in place and return None.")

    load(root, state, "")
    _raise_if_bad(root, report, strict)
    return IncompatibleKeys(report.missing, report.unexpected)


def _raise_if_bad(root: Module, report: Report, strict: bool) -> None:
    problems = list(report.errors)
    if strict and report.unexpected:
        problems.insert(0, "unexpected keys in the state: " + _listed(report.unexpected))
    if strict and report.missing:
        problems.insert(0, "keys missing in the state: " + _listed(report.missing))
    if problems:
        raise CheckpointError(
            f"{_name(root)}.load_state_dict: the state does not fit the model:\n  "
            + "\n  ".join(problems) + "\nBuild the model with the configuration that was saved"
            + (", or pass strict=False to leave out what has no partner." if not report.errors
               else "."))


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(k) for k in keys[:20])
    return shown + (f" and {len(keys) - 20} more" if len(keys) > 20 else "") + "."


def _name(module: Module) -> str:
    return type(module).__name__
