"""A checkpoint is one self-describing folder, written whole or not at all. Layer 7.

    runs/NAME/checkpoints/step-000400/
        config.json            the model's sizes, the format's version
        tokenizer.json         the tokenizer
        model.safetensors      the weights
        optimizer.safetensors  the optimizers' state and the generator's
        state.json             step, seconds, position in the data, curves

It is written under another name, flushed and renamed, so a reader finds all of it or nothing, also
after the power fails. The two newest are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gossamer as gs
from gossamer.chat.tokenizer import Tokenizer
from gossamer.core.errors import CheckpointError
from gossamer.data import load_file, save_file
from gossamer.models.gpt import GPT, GPTConfig

__all__ = ["Checkpoint", "checkpoints_of", "find_run", "latest", "load_model", "runs_in", "save"]

FORMAT = 1
KEPT = 2
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
        """Load the optimizers' state and the default generator's; the order is that of `save`."""
        tensors = _read_tensors(self.folder / "optimizer.safetensors")
        scalars = self.state["optimizers"]
        if len(scalars) != len(optimizers):
            raise CheckpointError(
                f"restore {self.folder}: it holds {len(scalars)} optimizers, the run has "
                f"{len(optimizers)}. Resume with the settings the run began with."
            )
        if _RNG in tensors:
            gs.set_rng_state(tensors.pop(_RNG))
        for index, (optimizer, saved) in enumerate(zip(optimizers, scalars, strict=True)):
            optimizer.load_state_dict(_join_state(index, saved, tensors))


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
        CheckpointError: it cannot be written (a full disk, no permission); older ones are intact.

    Cost: three times the weights' bytes with AdamW or Muon.
    """
    final = folder / f"step-{state['step']:06d}"
    partial = folder / f".partial-{os.getpid()}-{final.name}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, "model": "gpt", "config": model.config.to_dict()}
        tensors, scalars = _split_state(optimizers)
        tensors[_RNG] = gs.get_rng_state()
        _write_text(partial / "config.json", json.dumps(config, indent=2))
        _write_text(partial / "tokenizer.json", tokenizer.to_json())
        _write_text(partial / "state.json", json.dumps({**state, "optimizers": scalars}))
        save_file(dict(model.state_dict()), str(partial / "model.safetensors"))
        save_file(tensors, str(partial / "optimizer.safetensors"))
        for path in partial.iterdir():
            _flush(path)
        if final.exists():  # the same step again: the new one replaces it
            shutil.rmtree(final)
        partial.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"save {final}: {error}; nothing was replaced. Free space or choose another folder, "
            "then resume from the last checkpoint."
        ) from error
    for old in checkpoints_of(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_model(folder: Path) -> Checkpoint:
    """Read a checkpoint's model, tokenizer and state.

    Raises:
        CheckpointError: a file is missing, damaged, from a newer version, or does not fit.
    """
    config = _read_json(folder / "config.json")
    if config.get("format") != FORMAT or config.get("model") != "gpt":
        raise CheckpointError(
            f"load {folder}: format {config.get('format')!r}, model {config.get('model')!r}; this "
            f"version reads format {FORMAT}, model 'gpt'. Update gossamer, or train anew."
        )
    known = {f.name for f in fields(GPTConfig)}
    weights = _read_tensors(folder / "model.safetensors")
    try:
        unknown = sorted(set(config["config"]) - known)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}")
        model = GPT(GPTConfig(**config["config"]))
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        mismatch = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise CheckpointError(
            f"load {folder}: {mismatch}; config.json and model.safetensors must come from one run. "
            "Use another checkpoint of the run, or train anew."
        ) from error
    model.eval()
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Checkpoint(folder, model, tokenizer, _read_json(folder / "state.json"))


def checkpoints_of(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's `checkpoints` folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


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
                "`gossamer speedrun` (ten minutes), or name a run: `gossamer chat PATH`."
            )
        return runs[-1]
    for run in (root / name, Path(name)):
        if latest(run) is not None:
            return run
    known = ", ".join(p.name for p in runs_in(root)) or "none"
    raise CheckpointError(
        f"run {name!r}: no checkpoint in {root / name} nor in {name}; the runs here are: {known}. "
        "Name one of them, or make one with `gossamer speedrun`."
    )


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
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    """Force a file or folder to disk; Windows cannot open folders, and need not."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"read {path}: {error}; the file is missing or damaged. Use another checkpoint of the "
            "run (the two newest are kept), or train anew."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"read {path}: a JSON object is expected. Use another checkpoint.")
    return value


def _read_tensors(path: Path) -> dict[str, gs.Tensor]:
    try:
        return dict(load_file(str(path)))
    except CheckpointError:
        raise
    except Exception as error:  # safetensors readers raise types of their own
        raise CheckpointError(
            f"read {path}: {error}; the file is missing or damaged. Use another checkpoint of the "
            "run (the two newest are kept), or train anew."
        ) from error
