"""Downloads against a server on this machine that misbehaves in every way we know."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gossamer.core.errors import DataError
from gossamer.data import download, transfer

CONTENT = b"some text\n" * 1000
NAME = "set/file.txt"


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with the next entry of `script`; the last one repeats."""

    script: list[str]
    body: bytes
    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        step = self.server.script[min(self.server.asked, len(self.server.script) - 1)]
        self.server.asked += 1
        if step.isdigit():
            self.send_error(int(step))
            return
        body = {"wrong": b"x" + self.server.body, "short": self.server.body}.get(
            step, self.server.body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if step == "short" else body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """`serve(*script, name=..., body=...)` starts the server and makes `name` a known file."""
    servers = []

    def start(*script: str, name: str = NAME, body: bytes = CONTENT,
              content: bytes = CONTENT) -> Server:
        server = Server(("127.0.0.1", 0), Handler)
        server.script, server.body = list(script), body
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setitem(download.FILES, name, download.RemoteFile(
            (url,), hashlib.sha256(content).hexdigest()))
        return server

    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _leftovers(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "data").rglob("*") if p.is_file())


@pytest.mark.parametrize("first", ["500", "503", "wrong", "short"])
def test_a_failure_is_tried_again(serve, tmp_path: Path, first: str) -> None:
    server = serve(first, first, "good")
    assert download.fetch(NAME).read_bytes() == CONTENT
    assert server.asked == 3
    assert _leftovers(tmp_path) == ["file.txt"]


def test_the_second_time_nothing_is_asked(serve) -> None:
    server = serve("good", "500")
    assert download.fetch(NAME) == download.fetch(NAME)
    assert server.asked == 1


@pytest.mark.parametrize(("script", "times", "text"), [
    ("404", 1, "404"), ("500", 4, "500"), ("wrong", 4, "SHA-256"),
    ("short", 4, "of 10,000 bytes"),
])
def test_a_lasting_failure_says_what_to_do(serve, tmp_path, script, times, text) -> None:
    server = serve(script)
    with pytest.raises(DataError, match=text) as caught:
        download.fetch(NAME)
    assert server.asked == times
    assert "GOSSAMER_DATA" in str(caught.value)
    assert str(server.server_port) in str(caught.value)
    assert _leftovers(tmp_path) == []


def test_no_server_at_all(serve) -> None:
    server = serve("good")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="refused"):
        download.fetch(NAME)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system lists no open files")
@pytest.mark.parametrize("script", [("good",), ("short", "good"), ("wrong", "good"), ("wrong",)])
def test_no_file_is_moved_or_removed_while_it_is_open(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: tuple[str, ...]
) -> None:
    """Windows refuses both, and has no locks of ours: the rule is applied here to what is open."""
    def closed(action: Callable[..., object]) -> Callable[..., object]:
        def guarded(path: Path, *more: object, **how: object) -> object:
            for held in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samefile(held, path):
                        raise AssertionError(f"{action.__name__} {path}: it is open")
            return action(path, *more, **how)
        return guarded

    monkeypatch.setattr(transfer, "fcntl", None)
    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(Path, name, closed(getattr(Path, name)))
    serve(*script)
    if script[-1] == "good":
        assert download.fetch(NAME).read_bytes() == CONTENT
    else:
        with pytest.raises(DataError, match="SHA-256"):
            download.fetch(NAME)
    assert _leftovers(tmp_path) == ["file.txt"] * (script[-1] == "good")


def test_packed_files_are_judged_by_their_content(serve) -> None:
    serve("good", name="set/a.gz", body=gzip.compress(CONTENT, 1))
    assert gzip.decompress(download.fetch("set/a.gz").read_bytes()) == CONTENT
    serve("good", name="set/b.gz", body=gzip.compress(CONTENT)[:-20])
    with pytest.raises(DataError, match="unpacked"):
        download.fetch("set/b.gz")


def test_a_folder_nearby_comes_first(serve, tmp_path: Path) -> None:
    server = serve("good")
    near = tmp_path / "near"
    (near / "set").mkdir(parents=True)
    (near / NAME).write_bytes(b"mine")
    assert download.fetch(NAME, near) == near / NAME
    assert download.fetch(NAME, tmp_path / "absent") != near / NAME
    assert server.asked == 1


def test_a_folder_that_is_a_file(serve, tmp_path: Path) -> None:
    serve("good")
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        download.fetch(NAME)


def test_a_full_disk(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("good")

    def full(*args: object) -> int:
        raise transfer.unwritable(tmp_path, OSError(28, "No space left on device"))

    monkeypatch.setattr(transfer, "_put", full)
    with pytest.raises(DataError, match="No space left"):
        download.fetch(NAME)
    assert _leftovers(tmp_path) == []


def test_what_another_process_brought_leaves_no_part(tmp_path: Path) -> None:
    """It came while we waited for the part file, whose place we then hold in vain."""
    transfer.Transfer("http://127.0.0.1:1/", tmp_path / "data" / "x", lambda path, headers: None,
                      is_here=lambda: True).run()
    assert _leftovers(tmp_path) == []


def test_many_at_once(serve) -> None:
    serve("good")
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(download.fetch(NAME).read_bytes()))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 8


def test_an_unknown_name() -> None:
    with pytest.raises(DataError, match=r"fetch\('cifar'\).*mnist_idx/t10k"):
        download.fetch("cifar")


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


@pytest.mark.parametrize("shape", [(0,), (5,), (3, 4, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_round_trip(tmp_path: Path, rng: np.random.Generator, shape, packed) -> None:
    array = rng.integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(_idx(array)) if packed else _idx(array))
    assert np.array_equal(download.read_idx(path), array)


@pytest.mark.parametrize(("data", "text"), [
    (b"", "header"), (b"\0\0\x0d\x01\0\0\0\1", "header"), (b"\0\0\x08\x03\0\0", "header"),
    (_idx(np.zeros((3, 4), np.uint8))[:-1], "needs 12 bytes"),
    (_idx(np.zeros(3, np.uint8)) + b"x", "needs 3 bytes"),
])
def test_damaged_idx_files(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(DataError, match=text):
        download.read_idx(tmp_path / "bad")


def test_a_packed_idx_file_cut_short(tmp_path: Path) -> None:
    (tmp_path / "bad.gz").write_bytes(gzip.compress(_idx(np.zeros(300, np.uint8)))[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        download.read_idx(tmp_path / "bad.gz")


def test_mnist_is_the_real_one(shared_data: Path) -> None:
    images, labels, test_images, test_labels = download.mnist(shared_data)
    assert images.shape == (60000, 28, 28) and test_images.shape == (10000, 28, 28)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9] and test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_digests_are_those_of_the_files(shared_data: Path) -> None:
    for name, row in download.FILES.items():
        assert download._complaint(shared_data / name, name.endswith(".gz"), row.sha256) is None
