"""A checkpoint is one self-describing folder, written whole or not at all. Layer 7.

    runs/NAME/checkpoints/step-000400/
        config.json            the model's sizes, the format's version
        tokenizer.json         the tokenizer
        model.safetensors      the weights
        optimizer.safetensors  the optimizers' state and the generator's
        state.json             step, seconds, position in the data, curves
        SHA256SUMS             of the others, as `sha256sum --check` reads it

It is written under another name, flushed and renamed, so a reader finds all of it or nothing, also
after the power fails; the sums find what went bad later. The two newest are kept. Where a step is
saved again, the new one takes the old one's place, which is `step-000400.previous` meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import gossamer as gs
from gossamer.chat.interrupt import command
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import CheckpointError
from gossamer.data import load_file, save_file
from gossamer.data.checkpoint import PREVIOUS, exchange
from gossamer.data.safetensors import write_atomically
from gossamer.models.gpt import GPT, GPTConfig

__all__ = ["Checkpoint", "checkpoints_of", "find_checkpoint", "find_run", "latest", "load_model",
           "runs_in", "save"]

FORMAT = 2  # 1 had no SHA256SUMS
KEPT = 2
_SHOWN = 300  # characters of what went wrong
_NAME = re.compile(rf"step-(\d+)(?:{re.escape(PREVIOUS)})?")
_SUMS = "SHA256SUMS"
_RNG = "rng_state"  # key of the default generator's state among the optimizer's tensors

Optimizers = list[gs.optim.Optimizer]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, ready for use."""

    folder: Path
    model: GPT
    tokenizer: Tokenizer
    state: dict[str, Any]

    def restore_optimizers(self, optimizers: Optimizers) -> None:
        """Load the optimizers' state and the default generator's; the order is that of `save`.

        Raises:
            CheckpointError: a file is damaged, or lacks what going on needs.
        """
        _check_state(self.folder, self.state)
        tensors = _read_tensors(self.folder / "optimizer.safetensors")
        scalars = self.state["optimizers"]
        if len(scalars) != len(optimizers):
            raise CheckpointError(
                f"restore {self.folder}: it holds {len(scalars)} optimizers, the run has "
                f"{len(optimizers)}. Resume with the settings the run began with."
            )
        if _RNG in tensors:
            gs.set_rng_state(tensors.pop(_RNG))
        try:
            for index, (optimizer, saved) in enumerate(zip(optimizers, scalars, strict=True)):
                optimizer.load_state_dict(_join_state(index, saved, tensors))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"restore {self.folder}: optimizer.safetensors and state.json do not fit the run "
                f"({shorten(str(error) or type(error).__name__, _SHOWN)}). "
                f"{_other_way(self.folder)}"
            ) from error


def save(
    folder: Path, model: GPT, tokenizer: Tokenizer, optimizers: Optimizers, state: dict[str, Any]
) -> Path:
    """Write a checkpoint into `folder` (the run's `checkpoints`) and drop all but the newest two.

    Args:
        folder: made if missing.
        state: plain JSON values; `state["step"]` names the checkpoint.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission); the newest that there
            was is intact. On a full disk those before it are given up first.

    Cost: three times the weights' bytes with AdamW or Muon.
    """
    final = folder / f"step-{state['step']:06d}"
    while True:
        try:
            _write(final, model, tokenizer, optimizers, state)
            break
        except (OSError, CheckpointError) as error:
            older = [path for path in checkpoints_of(folder) if path != final]
            if _is_full(error) and len(older) > 1:
                shutil.rmtree(older[0], ignore_errors=True)  # one stands, and there may be room now
                continue
            raise _not_saved(final, error, older) from error
    for old in checkpoints_of(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(
    final: Path, model: GPT, tokenizer: Tokenizer, optimizers: Optimizers, state: dict[str, Any]
) -> None:
    """Write a checkpoint under another name and rename it."""
    folder = final.parent
    partial = folder / f".partial-{os.getpid()}-{final.name}"
    try:
        for left_behind in folder.glob(".partial-*"):  # of a process that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, "model": "gpt", "config": model.config.to_dict()}
        tensors, scalars = _split_state(optimizers)
        tensors[_RNG] = gs.get_rng_state()
        _write_text(partial / "config.json", json.dumps(config, indent=2))
        _write_text(partial / "tokenizer.json", tokenizer.to_json())
        _write_text(partial / "state.json", json.dumps({**state, "optimizers": scalars}))
        save_file(dict(model.state_dict()), str(partial / "model.safetensors"))
        save_file(tensors, str(partial / "optimizer.safetensors"))
        _write_text(partial / _SUMS, "".join(
            f"{_sha256(path)}  {path.name}\n" for path in sorted(partial.iterdir())))
        exchange(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # by now renamed, or of no use


def _reason(error: Exception) -> BaseException:
    """What the system said, also where a writer of ours has wrapped it."""
    return (error.__cause__ or error) if isinstance(error, CheckpointError) else error


def _is_full(error: Exception) -> bool:
    return getattr(_reason(error), "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _not_saved(final: Path, error: Exception, older: list[Path]) -> CheckpointError:
    reason = _reason(error)
    what = getattr(reason, "strerror", None) or reason
    stands = f"{older[-1].name} stands" if older else "there is none before it"
    then = "resume from the last one" if older else "begin again"
    return CheckpointError(f"save {final}: {what}; {stands}. Make room, or make the folder "
                           f"writable, and {then}.")


def load_model(folder: Path) -> Checkpoint:
    """Read a checkpoint's model, tokenizer and state.

    Raises:
        CheckpointError: a file is missing, damaged, from a newer version, or does not fit.
    """
    config = _read_json(folder / "config.json")
    _check_format(folder, config)
    _check_sums(folder)
    known = {f.name for f in fields(GPTConfig)}
    weights = _read_tensors(folder / "model.safetensors")
    try:
        unknown = sorted(set(config["config"]) - known)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}")
        model = GPT(GPTConfig(**config["config"]))
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        mismatch = shorten(" ".join(str(error).split()), _SHOWN)
        raise CheckpointError(
            f"load {folder}: {mismatch}; config.json and model.safetensors must come from one run. "
            f"{_other_way(folder)}"
        ) from error
    model.eval()
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            f"load {folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model knows "
            f"{model.config.vocab_size}; both must come from one run. {_other_way(folder)}"
        )
    return Checkpoint(folder, model, tokenizer, _read_json(folder / "state.json"))


def _check_state(folder: Path, state: dict[str, Any]) -> None:
    """What a run needs to go on is there, and of the right kind."""
    needed: dict[str, Any] = {"step": int, "seconds": (int, float), "data": dict,
                              "curriculum": dict, "history": dict, "optimizers": list}
    bad = [name for name, kind in needed.items() if not isinstance(state.get(name), kind)]
    if "data" not in bad:
        bad += [f"data.{k}" for k in ("index", "split", "waiting") if k not in state["data"]]
    if bad:
        raise CheckpointError(
            f"restore {folder}: its state.json has no usable {', '.join(bad)}; training cannot go "
            f"on from it, though chatting can. {_other_way(folder)}"
        )


def _check_format(folder: Path, config: dict[str, Any]) -> None:
    found = config.get("format")
    if isinstance(found, int) and found > FORMAT:
        what = f"it was written by a newer gossamer (format {found}). Update gossamer"
    elif found != FORMAT or config.get("model") != "gpt":
        what = (f"format {found!r}, model {config.get('model')!r} is not what this version writes. "
                "Use the version that wrote it, or train anew")
    else:
        return
    raise CheckpointError(f"load {folder}: this version reads format {FORMAT} of model 'gpt'; "
                          f"{what}.")


def _check_sums(folder: Path) -> None:
    """Compare every file with its sum: a flipped bit in a weight has no other sign."""
    path = folder / _SUMS
    try:
        rows = (line.split("  ", 1) for line in path.read_text(encoding="ascii").splitlines())
        sums = {name: digest for digest, name in rows}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load {path}: it is missing or damaged ({error}). "
                              f"{_other_way(folder)}") from None
    for name in ("config.json", "model.safetensors", "optimizer.safetensors", "state.json",
                 "tokenizer.json"):
        try:
            whole = sums.get(name) == _sha256(folder / name)
        except OSError as error:
            raise CheckpointError(f"load {folder / name}: {error.strerror}. "
                                  f"{_other_way(folder)}") from None
        if not whole:
            raise CheckpointError(f"load {folder / name}: its content is not what was saved there, "
                                  f"by {_SUMS}. {_other_way(folder)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_way(folder: Path) -> str:
    """What to do when this checkpoint cannot be used."""
    others = [p for p in checkpoints_of(folder.parent) if _step(p) < _step(folder)]
    if others:
        return f"Delete {folder}; then the one before it, {others[-1].name}, is used."
    return "There is no other checkpoint of this run: train anew."


def checkpoints_of(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's `checkpoints` folder, oldest first."""
    found = dict[int, Path]()
    for path in sorted(folder.glob("step-*")):  # "step-1" is before "step-1.previous"
        if path.is_dir() and (step := _step(path)) >= 0:
            found.setdefault(step, path)
    return [found[step] for step in sorted(found)]


def _step(folder: Path) -> int:
    """The step in a checkpoint's name; -1 for another name."""
    name = _NAME.fullmatch(folder.name)
    return int(name[1]) if name else -1


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = checkpoints_of(run / "checkpoints")
    return found[-1] if found else None


def runs_in(root: Path) -> list[Path]:
    """The runs below `root` that have a checkpoint, the most recent last."""
    if not root.is_dir():
        return []
    runs = [p for p in root.iterdir() if latest(p) is not None]
    return sorted(runs, key=lambda p: (latest(p) or p).stat().st_mtime)


def find_run(root: Path, name: str | None) -> Path:
    """The folder of a run: by name, by path, or the most recent one.

    Raises:
        CheckpointError: there is none; the message says which command makes one.
    """
    if name is None:
        runs = runs_in(root)
        if not runs:
            raise CheckpointError(
                f"no model in {root.resolve()}: none has been trained here yet. Make one with "
                f"{command('speedrun')} (ten minutes), or name the folder of a run."
            )
        return runs[-1]
    for run in (root / name, Path(name)):
        if latest(run) is not None:
            return run
    known = ", ".join(p.name for p in runs_in(root)) or "none"
    raise CheckpointError(
        f"run {name!r}: no checkpoint in {root / name} nor in {name}; the runs here are: {known}. "
        f"Name one of them, or make one with {command('speedrun')}."
    )


def find_checkpoint(root: Path, name: str | None) -> Path:
    """The newest checkpoint of a run, or the one whose own path is given.

    Raises:
        CheckpointError: there is none.
    """
    if name is not None and (Path(name) / "config.json").is_file():
        return Path(name)
    newest = latest(find_run(root, name))
    assert newest is not None  # find_run returns only folders that have one
    return newest


def _split_state(optimizers: Optimizers) -> tuple[dict[str, gs.Tensor], list[dict[str, Any]]]:
    """Optimizer states as tensors for one safetensors file, and the rest as JSON values."""
    tensors: dict[str, gs.Tensor] = {}
    scalars: list[dict[str, Any]] = []
    for index, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for key, entry in state["state"].items():
            plain[str(key)] = {}
            for name, value in entry.items():
                if isinstance(value, gs.Tensor):
                    tensors[f"{index}.{key}.{name}"] = value
                else:
                    plain[str(key)][name] = value
        scalars.append({"state": plain, "param_groups": state["param_groups"]})
    return tensors, scalars


def _join_state(
    index: int, saved: dict[str, Any], tensors: dict[str, gs.Tensor]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in saved["state"].items()}
    for path, tensor in tensors.items():
        owner, key, name = path.split(".", 2)
        if int(owner) == index:
            state.setdefault(int(key), {})[name] = tensor
    return {"state": state, "param_groups": saved["param_groups"]}


def _write_text(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"read {path}: {error}; the file is missing or damaged. {_other_way(path.parent)}"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"read {path}: a JSON object is expected. {_other_way(path.parent)}")
    return value


def _read_tensors(path: Path) -> dict[str, gs.Tensor]:
    try:
        return dict(load_file(str(path)))
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_other_way(path.parent)}") from error
