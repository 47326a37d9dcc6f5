"""Checkpoints: a resumed run equals an uninterrupted one bit for bit; damage is found first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.core.errors import CheckpointError
from gossamer.data import DataLoader, TensorDataset, load_checkpoint, pack, save_checkpoint, unpack


class Run:
    """A small training run with everything that has a state."""

    def __init__(self, rng: np.random.Generator, seed: int | None) -> None:
        x = rng.standard_normal((24, 4)).astype(np.float32)
        data = TensorDataset(gs.tensor(x), gs.tensor(x.sum(1) > 0))
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
                                   nn.Linear(8, 2))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=0.02)
        self.schedule = optim.MultiStepLR(self.optimizer, [3, 9], 0.5)
        self.loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=1, seed=seed)
        self.generator = gs.default_generator
        self.batches = self._forever()

    def _forever(self) -> Any:
        while True:
            yield from self.loader

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            x, y = next(self.batches)
            loss = nn.functional.cross_entropy(self.model(x), y.long())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return losses

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule,
                "loader": self.loader, "generator": self.generator}


def test_resume_is_bit_for_bit(tmp_path: Path, seed: int) -> None:
    run = Run(np.random.default_rng(1), seed=4)
    run.steps(7)
    save_checkpoint(tmp_path / "last", step=7, extra={"curve": [1.5, None]}, **run.parts())
    straight = run.steps(6)
    values = {k: v.tolist() for k, v in run.model.state_dict().items()}

    gs.manual_seed(99)
    other = Run(np.random.default_rng(1), seed=None)
    other.steps(2)
    other = Run(np.random.default_rng(1), seed=None)
    state = load_checkpoint(tmp_path / "last", **other.parts())
    assert state.step == 7 and state.extra == {"curve": [1.5, None]}
    assert set(state.parts) == set(run.parts())
    assert other.steps(6) == straight
    assert {k: v.tolist() for k, v in other.model.state_dict().items()} == values


def test_packing() -> None:
    tree = {"a": (1, 2.5, None), "b": [True, "x"], 3: {"t": gs.ones(2)}, "n": float("inf")}
    tensors: dict[str, Any] = {}
    packed = json.loads(json.dumps(pack(tree, tensors)))
    back = unpack(packed, tensors)
    assert list(tensors) == ["3.t"]
    assert back[3]["t"] is tensors["3.t"]
    assert {k: v for k, v in back.items() if k != 3} == {k: v for k, v in tree.items() if k != 3}
    with pytest.raises(CheckpointError, match="a.b is a object"):
        pack({"a": {"b": object()}}, {})


def _saved(folder: Path) -> nn.Module:
    model = nn.Linear(2, 2)
    save_checkpoint(folder, step=3, model=model)
    return model


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "json", "state", "format"])
def test_damage_is_found_before_anything_changes(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _saved(folder)
    weights, state = folder / "model.safetensors", folder / "state.json"
    raw = bytearray(weights.read_bytes())
    if damage == "flip":
        raw[-1] ^= 1
        weights.write_bytes(raw)
    elif damage == "cut":
        weights.write_bytes(raw[:-4])
    elif damage == "remove":
        weights.unlink()
    elif damage == "json":
        state.write_bytes(state.read_bytes()[:-10])
    elif damage == "state":
        state.unlink()
    else:
        state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))
    model = nn.Linear(2, 2)
    before = model.weight.tolist()
    with pytest.raises(CheckpointError, match="run"):
        load_checkpoint(folder, model=model)
    assert model.weight.tolist() == before


def test_a_flipped_bit_in_the_state_changes_nothing(tmp_path: Path) -> None:
    """A letter of a name or a digit of the step: neither a wrong value nor another error."""
    folder = tmp_path / "run"
    save_checkpoint(folder, step=3, extra={10: "a", 9: 0.1}, model=nn.Linear(2, 2))
    path = folder / "state.json"
    whole = path.read_bytes()
    model = nn.Linear(2, 2)
    before = model.weight.tolist()
    for place in range(0, len(whole), 7):
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 7
        path.write_bytes(harmed)
        with pytest.raises(CheckpointError, match="run"):
            load_checkpoint(folder, model=model)
    assert model.weight.tolist() == before
    path.write_bytes(whole)
    assert load_checkpoint(folder, model=model).extra == {"10": "a", "9": 0.1}


def test_a_failed_save_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    model = _saved(folder)
    with pytest.raises(CheckpointError, match="neither state_dict"):
        save_checkpoint(folder, model=3)
    with pytest.raises(CheckpointError, match="not JSON"):
        save_checkpoint(folder, extra={"x": object()})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(folder, step=9, model=nn.Linear(2, 2))
    other = nn.Linear(2, 2)
    assert load_checkpoint(folder, model=other).step == 3
    assert other.weight.tolist() == model.weight.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _saved(folder)
    folder.rename(tmp_path / "run.previous")
    assert load_checkpoint(folder, model=nn.Linear(2, 2)).step == 3
    _saved(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    _saved(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no part 'optimizer'"):
        load_checkpoint(tmp_path / "run", optimizer=optim.SGD([nn.Parameter(gs.ones(1))]))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "nothing")
