"""What goes wrong for a person at the command line: one clear line, nothing lost, status 1."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gossamer as gs
from gossamer import cli
from gossamer.chat import checkpoint
from gossamer.chat.checkpoint import checkpoints_of, latest, load_model, save
from gossamer.chat.interrupt import only_writer
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.core.errors import CheckpointError

NEW = ("speedrun", "--steps", "2", "--questions", "1", "--depth", "1", "--no-chat")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one run that came to its end."""
    root = tmp_path_factory.mktemp("finished")
    speedrun(SpeedrunOptions(name="mine", steps=2, questions=1, depth=1, root=root),
             console=Console(file=StringIO()))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "runs"))


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`run(*arguments)` runs the command line: status, what it said, what it complained of."""
    def call(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gossamer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", StringIO(typed))
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def the_checkpoint(root: Path) -> Path:
    found = latest(root / "mine")
    assert found is not None
    return found


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file, less the lock, by its path."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def check_one_line(result: tuple[int, str, str], words: str) -> None:
    status, _, complaint = result
    assert status == 1, result
    assert complaint.startswith("gossamer: ") and complaint.count("\n") == 1, complaint
    assert words in complaint, complaint
    assert "Traceback" not in complaint and len(complaint) < 900


# Checkpoints ------------------------------------------------------------------------------------


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """As another version might write it: the sums are right."""
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))
        write_sums(folder)

    return damage


def write_sums(folder: Path) -> None:
    rows = [f"{digest}  {name}\n" for name, digest in contents(folder).items()
            if name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(rows))


def with_sums(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        damage(folder)
        write_sums(folder)

    return both


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer version": (edit("config.json", lambda c: c.update(format=99)), "Update gossamer"),
    "unknown version": (edit("config.json", lambda c: c.update(format="x")), "format 'x'"),
    "no version": (edit("config.json", lambda c: c.pop("format")), "format None"),
    "other model": (edit("config.json", lambda c: c.update(model="bert")), "model 'bert'"),
    "other sizes": (edit("config.json", lambda c: c["config"].update(n_layer=9)), "one run"),
    "unknown size": (edit("config.json", lambda c: c["config"].update(x=1)), "unknown fields x"),
    "no config": (remove("config.json"), "config.json"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json: No such file"),
    "no weights": (remove("model.safetensors"), "model.safetensors: No such file"),
    "no sums": (remove("SHA256SUMS"), "SHA256SUMS: it is missing"),
    "weights cut": (cut("model.safetensors", 50_000), "not what was saved"),
    "weights cut, sums right": (with_sums(cut("model.safetensors", 50_000)), "truncated"),
    "header cut, sums right": (with_sums(cut("model.safetensors", 100)), "truncated"),
    "weights empty, sums right": (with_sums(cut("model.safetensors", 0)), "has 0 bytes"),
    "tokenizer cut, sums right": (with_sums(cut("tokenizer.json", 500)), "must be a tokenizer"),
    "optimizer cut": (cut("optimizer.safetensors", 50_000), "not what was saved"),
}
ONLY_TRAINING: dict[str, tuple[Callable[[Path], None], str]] = {
    "optimizer cut, sums right": (with_sums(cut("optimizer.safetensors", 50_000)), "truncated"),
    "no state": (edit("state.json", dict.clear), "no usable step, seconds, data"),
    "no place": (edit("state.json", lambda s: s["data"].pop("waiting")), "data.waiting"),
    "no optimizer": (edit("state.json", lambda s: s.update(optimizers=[])), "holds 0 optimizers"),
    "other optimizer": (edit("state.json", lambda s: s["optimizers"].reverse()), "do not fit"),
    "other tasks": (edit("state.json", lambda s: s["curriculum"]["weights"].pop("spell")),
                    "KeyError: 'spell'"),
    "other curves": (edit("state.json", lambda s: s["history"].update(x=1)), "state.json' is not"),
    "no run.json": (lambda f: (f.parents[1] / "run.json").unlink(), "run.json is missing"),
    "broken run.json": (lambda f: (f.parents[1] / "run.json").write_text("{"), "or damaged"),
    "other run.json": (lambda f: (f.parents[1] / "run.json").write_text(
        '{"seconds": 1, "options": {"minutes": "ten"}}'), "minutes is 'ten', no float"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_line(root: Path, run: Cli, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(the_checkpoint(root))
    before = contents(root)
    check_one_line(run("chat", "--root", root), words)
    check_one_line(run("speedrun", "--resume", "mine", "--no-chat", "--root", root), words)
    assert contents(root) == before


@pytest.mark.parametrize("name", ONLY_TRAINING)
def test_what_only_training_needs_stops_only_training(root: Path, run: Cli, name: str) -> None:
    damage, words = ONLY_TRAINING[name]
    damage(the_checkpoint(root))
    before = contents(the_checkpoint(root))
    words = words.replace("state.json' is", "state.json is")
    check_one_line(run("speedrun", "--resume", "mine", "--no-chat", "--root", root), words)
    assert contents(the_checkpoint(root)) == before
    status, said, _ = run("chat", "--root", root, typed="/quit\n")
    assert status == 0 and "parameters" in said


def test_the_one_before_is_named(root: Path, run: Cli) -> None:
    newest = the_checkpoint(root)
    shutil.copytree(newest, newest.with_name("step-000001"))
    cut("model.safetensors", 9)(newest)
    check_one_line(run("chat", "--root", root), "the one before it, step-000001, is used")
    shutil.rmtree(newest)
    assert run("chat", "--root", root, typed="/quit\n")[0] == 0


# Disks ------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that takes no more: writing beyond it fails in the middle."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 60_000, 600_000])
def test_a_disk_that_fills_while_a_checkpoint_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, size: int,
) -> None:
    """At the first file, in the state, in the weights and in the optimizer's state."""
    loaded, folder = load_model(the_checkpoint(root)), root / "mine" / "checkpoints"
    before = contents(folder)
    state = {**loaded.state, "step": 3}
    adamw = gs.optim.AdamW(loaded.model.parameters())
    loaded.model(gs.zeros(1, 8, dtype=gs.int64)).sum().backward()
    adamw.step()
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")  # it is the checkpoint's writing that shall fail
    with files_of_at_most(size), pytest.raises(CheckpointError, match="step-000002 stands"):
        save(folder, loaded.model, loaded.tokenizer, [adamw], state)
    assert contents(folder) == before and [p.name for p in folder.iterdir()] == ["step-000002"]
    again = load_model(the_checkpoint(root)).model.state_dict()
    assert all(bool((a == again[n]).all()) for n, a in load_model(
        folder / "step-000002").model.state_dict().items())
    assert save(folder, loaded.model, loaded.tokenizer, [adamw], state).name == "step-000003"


def test_a_full_disk_at_the_end_of_a_run_is_one_line(
    root: Path, run: Cli, monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(the_checkpoint(root))
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    with files_of_at_most(100_000):
        check_one_line(run("speedrun", "--resume", "mine", "--no-chat", "--root", root),
                       "step-000002: File too large")
    assert contents(the_checkpoint(root)) == before
    assert run("chat", "--root", root, typed="/quit\n")[0] == 0


def test_a_full_disk_gives_up_the_older_of_two(
    root: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, folder = load_model(the_checkpoint(root)), root / "mine" / "checkpoints"
    shutil.copytree(folder / "step-000002", folder / "step-000001")
    tensors = checkpoint.save_file

    def full(values: Any, path: str) -> None:
        if len(checkpoints_of(folder)) > kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        tensors(values, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    for kept, left in ((0, ["step-000002"]), (1, ["step-000002", "step-000003"])):
        if kept:
            save(folder, loaded.model, loaded.tokenizer, [], {**loaded.state, "step": 3})
        else:
            with pytest.raises(CheckpointError, match=r"No space left.*step-000002 stands"):
                save(folder, loaded.model, loaded.tokenizer, [], {**loaded.state, "step": 3})
        assert [p.name for p in checkpoints_of(folder)] == left
    load_model(folder / "step-000002")


@pytest.mark.parametrize("kind", ["file", "permission"])
def test_a_run_folder_that_cannot_be_written(tmp_path: Path, run: Cli, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("in the way")
    elif os.name == "nt" or os.geteuid() == 0:
        place = Path("/proc/self/runs") if Path("/proc/self").is_dir() else tmp_path / "place/\0"
    else:
        place.mkdir(mode=0o500)
    check_one_line(run(*NEW, "--root", place), "cannot be written")


def test_a_run_in_hand_is_not_resumed(root: Path, run: Cli) -> None:
    before = contents(root)
    with only_writer(root / "mine"):
        check_one_line(run("speedrun", "--resume", "mine", "--no-chat", "--root", root),
                       "another process is training")
    assert contents(root) == before


def test_a_taken_name_is_not_overwritten(root: Path, run: Cli) -> None:
    before = contents(root)
    check_one_line(run(*NEW, "--name", "mine", "--root", root), "exists already")
    assert contents(root) == before


# What a person gives ----------------------------------------------------------------------------


DATA: dict[str, tuple[bytes | None, str]] = {
    "empty.txt": (b"", "no document is in there"),
    "empty.jsonl": (b"\n\n", "no document is in there"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0", "zero byte at byte 8"),
    "latin.md": ("naïve".encode("latin1"), "no UTF-8 at byte 2"),
    "line.jsonl": (b"x" * (1 << 24) + b"yz", "a line of more than 16,777,216 bytes"),
    "cut.parquet": (b"PAR1 and no end", "no Parquet file"),
    "cut.arrow": (b"ARROW1\0\0 and no end", "no Arrow file"),
    "roles.jsonl": (b'{"messages": [{"role": "tool", "content": "a"}]}',
                    "needs a 'role' of system, user or assistant"),
    "turns.jsonl": (b'{"messages": [{"role": "user", "content": "a"}]}', "must end with"),
    "fields.jsonl": (b'{"body": "a"}', "its fields are 'body'"),
    "broken.jsonl": (b'{"text": "a"}\n{"text', "line 2: it is no JSON"),
    "thing.bin": (b"abc", "of kind .bin"),
    "absent.txt": (None, "no such file"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_bad_file_is_one_line_and_makes_no_run(tmp_path: Path, run: Cli, name: str) -> None:
    data, words = DATA[name]
    if name.endswith((".parquet", ".arrow")):
        pytest.importorskip("pyarrow")
    if data is not None:
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.txt").write_text("A good text.")
    runs = tmp_path / "runs"
    good, bad = tmp_path / "good.txt", tmp_path / name
    check_one_line(run(*NEW, "--data", good, "--data", bad, "--root", runs), words)
    assert list(runs.iterdir()) == []
    check_one_line(run("data", good, bad), words)
    check_one_line(run("tok", "train", good, bad, "--out", tmp_path / "t.json"), words)
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(("address", "words"), [
    ("http://127.0.0.1:1/a.txt", "refused"), ("hf://nobody", "hf://datasets/OWNER/NAME"),
    ("s3://bucket/a.txt", "s3:// is not known"), ("https://a.org/a.zip", "its kind is not"),
])
def test_a_bad_address_is_one_line_and_makes_no_run(
    tmp_path: Path, run: Cli, monkeypatch: pytest.MonkeyPatch, address: str, words: str,
) -> None:
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("gossamer.data.transfer.PAUSE", 0.0)
    check_one_line(run(*NEW, "--data", address, "--root", tmp_path / "runs"), words)
    assert list((tmp_path / "runs").iterdir()) == []
    check_one_line(run("data", address), words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path, run: Cli) -> None:
    os.mkfifo(tmp_path / "a.txt")
    check_one_line(run("data", tmp_path / "a.txt"), "a pipe or a device")


def test_a_message_longer_than_the_context_ends_no_chat(root: Path, run: Cli) -> None:
    status, said, complaint = run("chat", "--root", root, typed="word " * 900 + "\nHi!\n/quit\n")
    assert status == 0 and complaint == ""
    assert "this model reads at most" in said and said.count("bot >") == 2


def test_a_port_in_use_is_told_before_the_model_is_read(root: Path, run: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check_one_line(run("serve", "--port", port, "--root", root), "cannot be used")
        check_one_line(run("serve", "--port", port, "--root", root / "none"), "cannot be used")


def test_a_mask_without_a_tokenizer(root: Path, run: Cli) -> None:
    remove("tokenizer.json")(the_checkpoint(root))
    check_one_line(run("mask", "--root", root), "tokenizer.json")
    check_one_line(run("tok", "eval", "--root", root), "tokenizer.json")
