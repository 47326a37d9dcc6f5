"""A whole training state as one folder, written whole or not at all. Layer 5.

    folder/
        state.json            step, extra, everything that is no tensor, a digest of itself and of
                              each other file
        NAME.safetensors      the tensors of each part (model, optimizer, …)

A part is anything with `state_dict` and `load_state_dict`, or a Generator. The folder is built
under another name, synced and renamed. Loading verifies digests first and restores bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossamer.core.errors import CheckpointError
from gossamer.data.safetensors import _sync_folder, load_file, save_file, write_atomically
from gossamer.tensor import Tensor

__all__ = ["TrainingState", "load_checkpoint", "pack", "save_checkpoint", "unpack"]

FORMAT = 2  # 1 had no digest of state.json itself
_STATE = "state.json"
PREVIOUS = ".previous"  # suffix of the folder that is being replaced


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds beside the parts that were filled."""

    step: int
    extra: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


# -------------------------------------------------------------------------- trees

def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A nested structure as JSON values; tensors go to `tensors` under their path.

    Raises:
        CheckpointError: a value of a type that cannot be saved.
    """
    if isinstance(value, Tensor):
        tensors[path or "value"] = value
        return {"$tensor": path or "value"}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [pack(v, tensors, f"{path}.{i}" if path else str(i)) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        below = {k: pack(v, tensors, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
        if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return below
        return {"$dict": [[pack(k, tensors), v] for k, v in below.items()]}
    raise CheckpointError(f"save_checkpoint: {path or 'the state'} is a {type(value).__name__}; "
                          "tensors, numbers, strings, None, lists, tuples and dicts of them can "
                          "be saved.")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The structure that `pack` took apart."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(unpack(v, tensors) for v in value["$tuple"])
    if "$dict" in value:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in value["$dict"]}
    return {k: unpack(v, tensors) for k, v in value.items()}


def _state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state without its digest; numbers come back from JSON as they went in."""
    rest = {key: value for key, value in state.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _state_of(name: str, part: Any) -> Any:
    if hasattr(part, "state_dict"):
        return part.state_dict()
    if hasattr(part, "get_state"):
        return {"generator": part.get_state()}
    raise CheckpointError(f"save_checkpoint({name}=...): a {type(part).__name__} has neither "
                          "state_dict nor get_state. Pass a module, optimizer, schedule, loader "
                          "or generator.")


def _restore(name: str, part: Any, state: Any) -> None:
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    else:
        part.set_state(state["generator"])


# -------------------------------------------------------------------------- saving

def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Any, *, step: int = 0, extra: Mapping[str, Any] | None = None,
                    **parts: Any) -> None:
    """Write a training state into `folder`, replacing one that is there.

    Args:
        step: number of steps done.
        extra: JSON values of your own (settings, curves).
        **parts: by name, e.g. `model=model, optimizer=optimizer, loader=loader,
            generator=gs.default_generator`.

    Raises:
        CheckpointError: something cannot be saved or written; what was in `folder` stays.

    Cost: writes every tensor once, and reads it back for its digest.

    Example:
        >>> save_checkpoint("run/last", step=100, model=model, optimizer=optimizer)
    """
    target = Path(folder)
    packed: dict[str, Any] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, part in parts.items():
        tensors[name] = {}
        packed[name] = pack(_state_of(name, part), tensors[name], "")
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"save_checkpoint: extra is not JSON ({error}). Use numbers, "
                              "strings, lists and dicts.") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    building = None
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        os.chmod(building, 0o755)  # `mkdtemp` makes it its owner's alone
        files = {}
        for name, named in tensors.items():
            if named:
                save_file(named, building / f"{name}.safetensors")
                files[f"{name}.safetensors"] = _digest(building / f"{name}.safetensors")
        state = {"format": FORMAT, "step": int(step), "extra": dict(extra or {}), "parts": packed,
                 "files": files}
        state = json.loads(json.dumps(state))  # keys become strings, as they will be when read
        state["digest"] = _state_digest(state)
        with write_atomically(building / _STATE) as file:
            file.write(json.dumps(state).encode())
        exchange(building, target)
        building = None
    except OSError as error:
        raise CheckpointError(f"save_checkpoint {target}: {error}; nothing was replaced. Check the "
                              "permissions and the free space.") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def exchange(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, if there is one.

    A crash in between leaves the old one beside it, as `target` + PREVIOUS.
    """
    recover(target)
    previous = target.with_name(target.name + PREVIOUS)
    if target.exists():
        os.rename(target, previous)
    os.rename(new, target)
    _sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def recover(target: Path) -> None:
    """Finish an exchange that a crash cut short."""
    previous = target.with_name(target.name + PREVIOUS)
    if previous.exists():
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.rename(previous, target)


# -------------------------------------------------------------------------- loading

def load_checkpoint(folder: Any, **parts: Any) -> TrainingState:
    """Fill `parts` from a checkpoint.

    Args:
        **parts: by the names they were saved under; saved parts not given are left alone.

    Returns:
        step, extra and the names of all saved parts.

    Raises:
        CheckpointError: the folder is missing, incomplete or damaged, or a part does not fit. Files
            are verified before any part is changed.
    """
    target = Path(folder)
    recover(target)
    state = _read_state(target)
    missing = sorted(set(parts) - set(state["parts"]))
    if missing:
        raise CheckpointError(f"load_checkpoint {target}: it has no part {missing[0]!r}; it has "
                              f"{', '.join(sorted(state['parts'])) or 'none'}.")
    for name, digest in state["files"].items():
        path = target / name
        if not path.is_file():
            raise CheckpointError(f"load_checkpoint {target}: {name} is missing. Use another "
                                  "checkpoint.")
        if _digest(path) != digest:
            raise CheckpointError(f"load_checkpoint {target}: {name} is damaged: its content "
                                  "differs from what was saved. Use another checkpoint.")
    for name, part in parts.items():
        path = target / f"{name}.safetensors"
        tensors = load_file(path) if path.name in state["files"] else {}
        _restore(name, part, unpack(state["parts"][name], tensors))
    return TrainingState(state["step"], state["extra"], tuple(state["parts"]))


def _read_state(target: Path) -> dict[str, Any]:
    try:
        state = json.loads((target / _STATE).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"load_checkpoint {target}: there is no {_STATE}; this is not a "
                              "complete checkpoint. Check the path.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load_checkpoint {target}: {_STATE} cannot be read ({error}). Use "
                              "another checkpoint.") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"load_checkpoint {target}: {_STATE} is not a checkpoint's.")
    if state["format"] != FORMAT:
        raise CheckpointError(f"load_checkpoint {target}: format {state['format']!r}; this version "
                              f"reads format {FORMAT}. Use the version that wrote it.")
    if state.get("digest") != _state_digest(state):
        raise CheckpointError(f"load_checkpoint {target}: {_STATE} is damaged: its content differs "
                              "from what was saved. Use another checkpoint.")
    return state
