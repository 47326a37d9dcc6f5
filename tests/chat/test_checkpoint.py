"""Checkpoints: whole, self-describing, the newest found; what is damaged is named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from gossamer.chat import checkpoint as room
from gossamer.chat.checkpoint import checkpoints_of, find_run, latest, load_model, save
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.train import TrainSettings, build_optimizers
from gossamer.core.errors import CheckpointError
from gossamer.models.gpt import GPT, GPTConfig

SETTINGS = TrainSettings()


def newest(folder: Path) -> Path:
    found = latest(folder)
    assert found is not None
    return found


@pytest.fixture
def run_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A run with a checkpoint of its second step."""
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16,
                          sequence_len=128))
    save(tmp_path / "run" / "checkpoints", model, tokenizer, build_optimizers(model, SETTINGS),
         {"step": 2})
    return tmp_path / "run"


def test_checkpoint_is_self_describing(run_folder: Path) -> None:
    folder = newest(run_folder)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors", "optimizer.safetensors",
        "state.json", "SHA256SUMS"}
    assert load_model(folder).model.config.n_embd == 16


def test_only_the_newest_two_are_kept(run_folder: Path) -> None:
    checkpoint = load_model(newest(run_folder))
    optimizers = build_optimizers(checkpoint.model, SETTINGS)
    for step in (5, 6, 7):
        save(run_folder / "checkpoints", checkpoint.model, checkpoint.tokenizer, optimizers,
             {"step": step})
    names = [p.name for p in checkpoints_of(run_folder / "checkpoints")]
    assert names == ["step-000006", "step-000007"]
    assert not list((run_folder / "checkpoints").glob(".partial-*"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors",
                                  "state.json", "optimizer.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "garbage"])
def test_damaged_checkpoints_are_named(run_folder: Path, name: str, harm: str) -> None:
    path = newest(run_folder) / name
    if harm == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if harm == "truncated" else b"\x93 no")
    with pytest.raises(CheckpointError, match=name):
        load_model(newest(run_folder))


def seal(folder: Path) -> None:
    """Write the sums anew, as one would who puts files of two runs together."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def test_other_formats_are_refused(run_folder: Path) -> None:
    path = newest(run_folder) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(CheckpointError, match=r"newer gossamer \(format 99\)"):
        load_model(newest(run_folder))
    path.write_text(json.dumps({**config, "format": 1}))
    with pytest.raises(CheckpointError, match="the version that wrote it"):
        load_model(newest(run_folder))
    config["config"]["n_embd"] = 32
    path.write_text(json.dumps(config))
    seal(path.parent)
    with pytest.raises(CheckpointError, match="from one run"):
        load_model(newest(run_folder))


def test_the_tokenizer_of_another_run_is_refused(run_folder: Path) -> None:
    folder = newest(run_folder)
    Tokenizer.train(["other"], 270).save(folder / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not what was saved"):
        load_model(folder)
    seal(folder)
    with pytest.raises(CheckpointError, match="tokens, the model knows 320"):
        load_model(folder)


def test_a_flipped_bit_in_a_weight_is_found(run_folder: Path) -> None:
    path = newest(run_folder) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content is not"):
        load_model(path.parent)


def test_a_damaged_checkpoint_names_the_one_before(run_folder: Path) -> None:
    checkpoint = load_model(newest(run_folder))
    save(run_folder / "checkpoints", checkpoint.model, checkpoint.tokenizer,
         build_optimizers(checkpoint.model, SETTINGS), {"step": 5})
    (newest(run_folder) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="Delete .*step-000005; .* step-000002, is used"):
        load_model(newest(run_folder))


def test_the_newest_is_the_one_of_the_highest_step(run_folder: Path) -> None:
    """Steps are numbers: of a million steps the name is longer, and the text is before others."""
    checkpoint = load_model(newest(run_folder))
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save(run_folder / "checkpoints", checkpoint.model, checkpoint.tokenizer, [], {"step": step})
    (run_folder / "checkpoints" / "step-of-mine").mkdir()
    assert [p.name for p in checkpoints_of(run_folder / "checkpoints")] == [
        "step-1000000", "step-1000001"]
    (newest(run_folder) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="Delete .*step-1000001; .* step-1000000, is used"):
        load_model(newest(run_folder))
    shutil.rmtree(newest(run_folder))
    (newest(run_folder) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no other checkpoint"):
        load_model(newest(run_folder))


def test_a_kill_while_a_step_is_saved_again_hides_nothing(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each rename and each removal: some whole checkpoint of that step can be read, and
    the save after it leaves one of them and nothing else."""
    folder, checkpoint = run_folder / "checkpoints", load_model(newest(run_folder))

    class Killed(BaseException):
        pass

    def again() -> None:
        save(folder, checkpoint.model, checkpoint.tokenizer, [], {**checkpoint.state, "step": 2})

    rename, calls, moment = os.rename, 0, 0

    def die(*paths: object) -> None:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise Killed
        rename(*paths)  # type: ignore[arg-type]

    for moment in range(3):
        calls = 0
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "rename", die)
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a dead process removes nothing
            again()
        assert calls == min(moment + 1, 2)
        assert load_model(newest(run_folder)).state["step"] == 2
        again()
        assert [p.name for p in folder.iterdir()] == ["step-000002"]


@pytest.mark.skipif(os.name == "nt", reason="limits of the file size are POSIX's")
def test_a_full_disk_leaves_the_old_one(run_folder: Path) -> None:
    """The system refuses the writes half way (RLIMIT_FSIZE), not a stand-in for it."""
    resource = pytest.importorskip("resource")
    checkpoint = load_model(newest(run_folder))
    optimizers = build_optimizers(checkpoint.model, SETTINGS)
    before = sorted(p.name for p in (run_folder / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    refused = 0
    try:
        for room in (0, 100, 20_000, 60_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            try:
                save(run_folder / "checkpoints", checkpoint.model, checkpoint.tokenizer,
                     optimizers, {"step": 9})
            except CheckpointError as error:
                refused += "File too large" in str(error) and "stand" in str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused == 4
    assert sorted(p.name for p in (run_folder / "checkpoints").iterdir()) == before
    assert load_model(newest(run_folder)).state["step"] == 2


def test_a_failed_write_leaves_the_old_one(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_model(newest(run_folder))
    before = sorted(p.name for p in (run_folder / "checkpoints").iterdir())

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(run_folder / "checkpoints", checkpoint.model, checkpoint.tokenizer,
             build_optimizers(checkpoint.model, SETTINGS), {"step": 9})
    assert sorted(p.name for p in (run_folder / "checkpoints").iterdir()) == before


def test_a_half_written_checkpoint_is_not_seen(run_folder: Path) -> None:
    (run_folder / "checkpoints" / ".partial-1-step-000099").mkdir()
    assert newest(run_folder).name == "step-000002"


def test_find_run(run_folder: Path) -> None:
    root = run_folder.parent
    assert find_run(root, None) == find_run(root, "run") == find_run(root, str(run_folder))
    with pytest.raises(CheckpointError, match="the runs here are: run"):
        find_run(root, "other")
    with pytest.raises(CheckpointError, match="gossamer speedrun"):
        find_run(root / "nowhere", None)
