"""Data from elsewhere, against a server on this machine that misbehaves in every way we know."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from rich.console import Console

from gossamer.chat import remote
from gossamer.chat.corpus import Corpus, find_shards, pin
from gossamer.chat.document import text_of
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.core.errors import DataError
from gossamer.data import transfer

TEXT = "".join(f"Line {i} of the file, {i * 7919 % 1000}.\n\n" for i in range(4000)).encode()
SUM = hashlib.sha256(TEXT).hexdigest()
COMMIT = "c" * 40
REVISIONS = ("main", COMMIT, "v1.0", "refs%2Fconvert%2Fparquet")


@dataclass
class Behaviour:
    """What the server does: `script` for each request in turn (the last repeats), then as told."""

    files: dict[str, bytes] = field(default_factory=lambda: {"/a.txt": TEXT})
    script: list[str] = field(default_factory=lambda: ["good"])
    ranges: bool = True
    etag: bool = True
    headers: dict[str, str] = field(default_factory=dict)  # of every error
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # path, Range, Authorization


class Server(http.server.ThreadingHTTPServer):
    does: Behaviour
    daemon_threads = True

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        does, path = self.server.does, self.path.partition("?")[0]
        step = does.script[min(len(does.asked), len(does.script) - 1)]
        does.asked.append((self.path, self.headers.get("Range", ""),
                           self.headers.get("Authorization", "")))
        self.close_connection = True
        if step == "gone":
            return  # closes without a word
        if step.isdigit():
            self._send(int(step), b"no", does.headers)
        elif path.startswith("/api/"):
            self._listing(path)
        elif path.startswith("/datasets/"):
            self._to_storage(path)
        elif path in does.files:
            self._file(does.files[path], step)
        else:
            self._send(404, b"no", {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _file(self, whole: bytes, step: str) -> None:
        does = self.server.does
        if step == "wrong":
            whole = whole.replace(b"Line", b"Lime")
        headers = {"ETag": '"' + hashlib.md5(whole).hexdigest() + '"'} if does.etag else {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        body, status = whole, 200
        if wanted and does.ranges and self.headers.get("If-Range") == headers.get("ETag"):
            start = int(wanted[1])
            body, status = whole[start:], 206
            headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        if step == "packed":
            headers["Content-Encoding"] = "gzip"
        if step in ("cut", "stall"):
            headers["Content-Length"] = str(len(body))
            body = body[: len(body) // 2]
        if step == "short":  # a length that is too small, and a body of that length
            body = body[:-100]
        if step == "drip":
            self._send(status, body[:20_000], {"Content-Length": str(len(body)), **headers})
            for at in range(20_000, 24_000, 1000):
                time.sleep(0.05)
                self.wfile.write(body[at : at + 1000])
                self.wfile.flush()
            return
        self._send(status, body, headers)
        if step == "stall":
            self.wfile.flush()
            time.sleep(0.6)

    def _listing(self, path: str) -> None:
        """Two pages of a tree, as the hub answers."""
        match = re.fullmatch(r"/api/datasets/(\w+/\w+)/tree/([\w.%]+)(/.*)?", path)
        if match is None or match[1] != "me/set" or match[2] not in REVISIONS:
            self._send(404, b"{}", {})
            return
        folder = unquote(match[3] or "").strip("/")
        rows: list[dict[str, Any]] = [{"type": "directory", "path": "data", "oid": "d" * 40}]
        for name, body in self.server.does.files.items():
            name = name.removeprefix("/")
            if name.startswith(folder):
                row = {"type": "file", "path": name, "size": len(body), "oid": _blob(body)}
                if not name.endswith(".md"):
                    row["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body),
                                  "pointerSize": 130}
                rows.append(row)
        headers = {"X-Repo-Commit": COMMIT}
        if "cursor" in self.path:
            rows = rows[2:]
        else:
            rows = rows[:2]
            headers["Link"] = f'<{self.server.base}{self.path}&cursor=2>; rel="next"'
        self._send(200, json.dumps(rows).encode(), headers)

    def _to_storage(self, path: str) -> None:
        """The hub redirects big files, and says which content to expect there."""
        match = re.fullmatch(r"/datasets/me/set/resolve/([\w.%]+)(/.*)", path)
        if match is None or match[1] not in REVISIONS or match[2] not in self.server.does.files:
            self._send(404, b"no", {})
            return
        body = self.server.does.files[match[2]]
        told = _blob(body) if path.endswith(".md") else hashlib.sha256(body).hexdigest()
        storage = self.server.base.replace("127.0.0.1", "localhost")
        self._send(302, b"", {"Location": storage + match[2], "X-Repo-Commit": COMMIT,
                              "X-Linked-Etag": f'"{told}"', "X-Linked-Size": str(len(body))})

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Quiet."""


def _blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start(script=[...], ...)` starts a server; it is also the hub."""
    servers = list[Server]()

    def begin(**behaviour: object) -> Server:
        server = Server(("127.0.0.1", 0), Handler)
        server.does = Behaviour(**behaviour)  # type: ignore[arg-type]
        if "stall" in server.does.script:  # else a busy machine has its time
            monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.base + "/")
        return server

    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "CHUNK", 10_000)
    monkeypatch.setattr(transfer, "WORTH_KEEPING", 1000)
    monkeypatch.setattr(transfer, "KEEP_FREE", 0)
    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def content(address: str) -> bytes:
    copy, = remote.bring(address, (".txt",))
    return copy.path.read_bytes()


def leftovers(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "data").rglob("*") if ".part" in p.name]


SCRIPTS = [["good"], ["500", "good"], ["429", "503", "good"], ["gone", "good"], ["cut", "good"],
           ["stall", "good"]]


@pytest.mark.parametrize(("script", "ranges"), [
    *((script, ranges) for script in SCRIPTS for ranges in (True, False)),
    (["cut"] * 6 + ["good"], True),  # each brings some more, so it is tried on and on
])
def test_it_comes_whole_in_the_end(
    start: Start, tmp_path: Path, script: list[str], ranges: bool,
) -> None:
    server = start(script=script, ranges=ranges)
    assert content(f"{server.base}/a.txt") == TEXT
    assert len(server.does.asked) == len(script) and leftovers(tmp_path) == []


def test_only_the_rest_is_asked_for(start: Start) -> None:
    server = start(script=["cut", "cut", "good"])
    assert content(f"{server.base}/a.txt") == TEXT
    half = len(TEXT) // 2
    assert [asked[1] for asked in server.does.asked] == [
        "", f"bytes={half}-", f"bytes={half + (len(TEXT) - half) // 2}-"]


def test_the_next_process_asks_for_the_rest_too(start: Start, tmp_path: Path) -> None:
    server = start(script=["cut", "500"])
    with pytest.raises(DataError, match="says 500"):
        content(f"{server.base}/a.txt")
    assert len(leftovers(tmp_path)) == 2  # the part and what says which file it is of
    server.does.script.append("good")
    assert content(f"{server.base}/a.txt") == TEXT
    assert server.does.asked[-1][1] == f"bytes={len(TEXT) // 2}-" and leftovers(tmp_path) == []


@pytest.mark.parametrize("etag", [True, False])
def test_halves_of_two_files_are_never_joined(start: Start, etag: bool) -> None:
    server = start(script=["cut", "500"], etag=etag)
    with pytest.raises(DataError, match="says 500"):
        content(f"{server.base}/a.txt")
    other = TEXT.replace(b"Line", b"Word")
    server.does.files["/a.txt"] = other
    server.does.script.append("good")
    assert content(f"{server.base}/a.txt") == other


def test_a_connection_that_only_drips_is_made_anew(
    start: Start, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "WATCHED", 0.12)
    monkeypatch.setattr(transfer, "SLOW", 500_000.0)
    server = start(script=["drip", "good"])
    assert content(f"{server.base}/a.txt") == TEXT
    assert server.does.asked[1][1].startswith("bytes=2")  # 20,000 and some
    server = start(script=["drip"], etag=False)
    with pytest.raises(DataError, match=r"only [\d,]+ bytes came in 0 seconds"):
        content(f"{server.base}/a.txt?again")


def test_a_part_longer_than_the_file_is_begun_anew(start: Start, tmp_path: Path) -> None:
    server = start(script=["cut", "500"])
    with pytest.raises(DataError):
        content(f"{server.base}/a.txt")
    server.does.script = [*["500"] * len(server.does.asked), "416", "good"]
    assert content(f"{server.base}/a.txt") == TEXT
    assert [asked[1] for asked in server.does.asked][-2:] == [f"bytes={len(TEXT) // 2}-", ""]


LASTING = {
    "404": (1, "the server says 404 Not Found"), "403": (1, "says 403"),
    "500": (4, "says 500"), "gone": (4, "closed connection"), "packed": (1, "packs what it sends"),
    "stall": (None, "nothing came for 0.3 seconds"),
}


@pytest.mark.parametrize("step", LASTING)
def test_a_lasting_failure_is_one_line(start: Start, step: str) -> None:
    server, (times, words) = start(script=[step], etag=step != "stall"), LASTING[step]
    with pytest.raises(DataError, match=words) as raised:
        content(f"{server.base}/a.txt")
    assert f"--data {server.base}/a.txt: " in str(raised.value) and "\n" not in str(raised.value)
    assert times is None or len(server.does.asked) == times


@pytest.mark.parametrize(("wish", "times"), [
    ("0", 4), ("1", 2), (lambda: formatdate(time.time() + 1, usegmt=True), 2), ("soon", 4),
    ("3600", 1),
])
def test_the_server_s_wish_to_wait_is_obeyed(
    start: Start, monkeypatch: pytest.MonkeyPatch, wish: str | Callable[[], str], times: int,
) -> None:
    slept = list[float]()
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    wish = wish if isinstance(wish, str) else wish()
    script = ["429"] * (times - 1) + ["good" if times == 2 else "429"]
    server = start(script=script, headers={"Retry-After": wish})
    if times == 2:
        assert content(f"{server.base}/a.txt") == TEXT
        assert len(slept) == 1 and 0 < slept[0] <= 1
    else:
        with pytest.raises(DataError, match="429.*3,600 seconds" if times == 1 else "says 429"):
            content(f"{server.base}/a.txt")
        assert len(slept) == times - 1 and max(slept, default=0) < 0.1
    assert len(server.does.asked) == times


def test_pauses_double_and_differ() -> None:
    pauses = [[transfer._pause(tries) for _ in range(50)] for tries in (1, 2, 3, 40)]
    for tries, found in enumerate(pauses[:3]):
        longest = transfer.PAUSE * 2**tries
        assert longest / 2 <= min(found) < max(found) <= longest
    assert max(pauses[3]) <= transfer.LONGEST_PAUSE


@pytest.mark.parametrize("step", ["wrong", "short"])
def test_a_wrong_sum_is_tried_again_and_then_told(start: Start, tmp_path: Path, step: str) -> None:
    server = start(script=[step, "good"])
    assert content(f"{server.base}/a.txt#sha256={SUM}") == TEXT
    server = start(script=[step])
    with pytest.raises(DataError, match="its SHA-256 is"):
        content(f"{server.base}/a.txt?again#sha256={'0' * 64}")
    assert len(server.does.asked) == 4 and leftovers(tmp_path) == []


def test_what_is_here_is_checked_and_not_asked_for(start: Start, tmp_path: Path) -> None:
    server = start()
    first, = remote.bring(f"{server.base}/a.txt", (".txt",))
    assert first.address == f"{server.base}/a.txt#sha256={SUM}"
    beside = first.path.with_name("a.txt.sha256").read_text()
    assert beside == f"{SUM}  a.txt\n"
    server.does.script = ["500"]
    assert remote.bring(f"{server.base}/a.txt", (".txt",)) == [first]
    assert remote.bring(first.address, (".txt",)) == [first]
    assert len(server.does.asked) == 1
    data = bytearray(first.path.read_bytes())
    data[1000] ^= 1
    first.path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="says 500"):
        remote.bring(first.address, (".txt",))
    server.does.script = ["good"]
    assert content(first.address) == TEXT


def test_a_run_keeps_its_files_when_the_address_changes(start: Start) -> None:
    server = start()
    kept, = pin([f"{server.base}/a.txt"])
    server.does.files["/a.txt"] = TEXT[:5000]
    new = hashlib.sha256(TEXT[:5000]).hexdigest()
    assert content(f"{server.base}/a.txt#sha256={new}") == TEXT[:5000]
    assert content(kept) == TEXT
    assert len(server.does.asked) == 2


def test_two_processes_bring_it_once(start: Start) -> None:
    server, found = start(), list[bytes]()
    threads = [threading.Thread(target=lambda: found.append(content(f"{server.base}/a.txt")))
               for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TEXT] * 6 and len(server.does.asked) == 1


@pytest.mark.parametrize("moment", [1, 2])
def test_a_part_that_is_moved_while_one_waits_for_it(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had it is done at the worst moment: after the lock, before this look at the file."""
    fcntl = pytest.importorskip("fcntl", reason="files are locked by POSIX calls only")
    part, looks, stat = tmp_path / "a.part", list[Path](), Path.stat

    def look(path: Path, **options: bool) -> os.stat_result:
        if path == part:
            looks.append(path)
            if len(looks) == moment:
                part.unlink()
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", look)
    with transfer._held(part):
        assert looks and (moment > 1 or part.exists())
        with part.open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with part.open("ab") as other:  # nobody holds it any more
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_room(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = start(files={"/data/a.txt": TEXT})
    monkeypatch.setattr(transfer, "KEEP_FREE", 1 << 60)
    with pytest.raises(DataError, match="0.1 MB are still to come.*room for 0.0 MB"):
        content(f"{server.base}/data/a.txt")
    with pytest.raises(DataError, match="1 files of 0.00 GB in all.*room for"):
        content("hf://datasets/me/set/data")
    assert leftovers(tmp_path) == [] and not any(a[0] == "/datasets" for a in server.does.asked)


def test_a_folder_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    server = start()
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written.*GOSSAMER_DATA"):
        content(f"{server.base}/a.txt")


def test_a_disk_that_fills(start: Start, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    server = start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError, match="cannot be written .*File too large"):
            content(f"{server.base}/a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(f"{server.base}/a.txt") == TEXT
    assert server.does.asked[-1][1].startswith("bytes=")  # what had come was not thrown away


HUB = {"/data/b.txt": TEXT, "/data/a.txt": TEXT[:9000], "/data/deep/c.txt": TEXT[:500],
       "/README.md": b"Read me.\n", "/data/picture.png": b"PNG"}


@pytest.mark.parametrize(("path", "names"), [
    ("data/*.txt", ["data/a.txt", "data/b.txt", "data/deep/c.txt"]),
    ("data/[b-z].txt", ["data/b.txt"]), ("data/deep", ["data/deep/c.txt"]),
    ("", ["README.md", "data/a.txt", "data/b.txt", "data/deep/c.txt"]),
    ("README.md", ["README.md"]),
])
def test_folders_and_patterns_on_the_hub(start: Start, path: str, names: list[str]) -> None:
    server = start(files=HUB)
    copies = remote.bring(f"hf://datasets/me/set/{path}".rstrip("/"), (".txt", ".md"))
    assert [copy.path.read_bytes() for copy in copies] == [HUB[f"/{name}"] for name in names]
    sums = [hashlib.sha256(HUB[f"/{name}"]).hexdigest() for name in names]
    assert [copy.address for copy in copies] == [
        f"hf://datasets/me/set@{COMMIT}/{name}#sha256={s}"
        for name, s in zip(names, sums, strict=True)]
    server.does.script = ["500"]
    assert [remote.bring(copy.address, (".txt", ".md"))[0] for copy in copies] == copies


def test_without_a_network_the_listing_of_last_time_holds(start: Start) -> None:
    server = start(files=HUB)
    copies = remote.bring("hf://datasets/me/set/data/*.txt", (".txt",))
    server.does.script = ["500"]
    out = io.StringIO()
    again = remote.bring("hf://datasets/me/set/data/*.txt", (".txt",), Console(file=out, width=200))
    assert again == copies and "says 500" in out.getvalue() and "last time" in out.getvalue()
    with pytest.raises(DataError, match="says 500"):
        remote.bring("hf://datasets/me/set/*.md", (".md",))


@pytest.mark.parametrize("revision", ["v1.0", "refs/convert/parquet", "refs%2Fconvert%2Fparquet"])
@pytest.mark.parametrize("path", ["data/a.txt", "data/a.*"])
def test_revisions(start: Start, revision: str, path: str) -> None:
    start(files=HUB)
    copy, = remote.bring(f"hf://datasets/me/set@{revision}/{path}", (".txt",))
    assert copy.path.read_bytes() == HUB["/data/a.txt"] and f"@{COMMIT}/" in copy.address
    with pytest.raises(DataError, match="says 404"):
        remote.bring(f"hf://datasets/me/set@none/{path}", (".txt",))


def test_our_hub_answers_as_the_real_one(start: Start) -> None:
    """Its own client understands the server of these tests."""
    hub = pytest.importorskip("huggingface_hub")
    server = start(files=HUB)
    client = hub.HfApi(endpoint=server.base, token=False)
    rows = client.list_repo_tree("me/set", "data", recursive=True, repo_type="dataset")
    files = {row.path: row.lfs.sha256 for row in rows if isinstance(row, hub.hf_api.RepoFile)}
    assert files == {name.removeprefix("/"): hashlib.sha256(body).hexdigest()
                     for name, body in HUB.items() if name.startswith("/data")}
    url = hub.hf_hub_url("me/set", "data/a.txt", repo_type="dataset", endpoint=server.base)
    assert url == remote._expand("hf://datasets/me/set/data/a.txt", (".txt",))[0].url
    told = hub.get_hf_file_metadata(url, endpoint=server.base)
    assert told.commit_hash == COMMIT
    assert told.etag == hashlib.sha256(HUB["/data/a.txt"]).hexdigest()


@pytest.mark.parametrize("name", ["README.md", "data/a.txt"])
def test_the_hub_s_own_sum_is_checked(start: Start, name: str) -> None:
    body = HUB[f"/{name}"] + b"Line"
    start(files={f"/{name}": body}, script=["good", "wrong"])
    with pytest.raises(DataError, match="its (SHA-256|Git name) is"):
        remote.bring(f"hf://datasets/me/set/{name}", (".txt", ".md"))


def test_the_token_goes_to_the_hub_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    server = start(files=HUB)
    content("hf://datasets/me/set/data/a.txt")
    content(f"{server.base}/data/b.txt")
    assert [(path, token) for path, _, token in server.does.asked] == [
        ("/datasets/me/set/resolve/main/data/a.txt", "Bearer hush"), ("/data/a.txt", ""),
        ("/data/b.txt", "")]


BAD = {
    "ftp://a.org/b.txt": "ftp:// is not known", "s3://bucket/b.txt": "s3:// is not known",
    "https://": "names a host and a file", "https://a.org": "names a host and a file",
    "http://127.0.0.1:1/a.txt": "refused", "http://127.0.0.1:1/a.bin": "its kind is not one of",
    "http://[::1/a.txt": "no address", "http://a.org:x/a.txt": "no address",
    "hf://me/set": "is hf://datasets/OWNER/NAME", "hf://datasets/me": "is hf://datasets/OWNER/NAME",
    "hf://datasets/you/set/*.txt": "says 404", "hf://datasets/me/set/*.csv": "0 of its 6 files fit",
    "https://a.org/a.txt#sha256=abc": "64 hexadecimal", "https://a.org/a.txt#top": "64 hexadecimal",
    f"hf://datasets/me/set#sha256={SUM}": "belongs to a single file",
    "http://no-such-host.invalid/a.txt": "no-such-host",
}


@pytest.mark.parametrize("address", BAD)
def test_a_bad_address_is_one_line(start: Start, address: str) -> None:
    start(files=HUB)
    with pytest.raises(DataError, match=re.escape(BAD[address])) as raised:
        remote.bring(address, (".txt",))
    assert str(raised.value).startswith(f"--data {address}: ") and "\n" not in str(raised.value)


def test_a_listing_that_is_none(start: Start) -> None:
    start(files={"/api": b""}, script=["500"])
    with pytest.raises(DataError, match="says 500"):
        remote.bring("hf://datasets/me/set/*.txt", (".txt",))


def test_progress_is_shown(start: Start) -> None:
    start(files=HUB)
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    remote.bring("hf://datasets/me/set/data", (".txt",), console)
    assert "c.txt (3 of 3)" in out.getvalue() and "500/500 bytes" in out.getvalue()


def test_a_corpus_from_elsewhere_goes_on_where_it_stood(start: Start, tmp_path: Path) -> None:
    server = start(files=HUB)
    (tmp_path / "mine.md").write_text("My own words.\n")
    given = ["hf://datasets/me/set/data/*.txt", str(tmp_path / "mine.md")]
    kept = pin(given)
    shards = find_shards(kept)
    assert [shard.name.rpartition("/")[2] for shard in shards] == [
        "a.txt", "b.txt", "c.txt", "mine.md"]
    corpus = Corpus(shards, seed=1)
    for _ in range(60):
        corpus.next()
    state = corpus.state()
    after = [text_of(corpus.next()) for _ in range(90)]
    server.does.files = {}
    server.does.script = ["404"]
    again = Corpus(find_shards(json.loads(json.dumps(kept))), seed=1)
    again.load_state(state)
    assert [text_of(again.next()) for _ in range(90)] == after


def test_a_broken_file_says_where_it_is_from(start: Start) -> None:
    server = start(files={"/a.txt": b"\xff\xfe\0"})
    with pytest.raises(DataError, match="no UTF-8|zero byte") as raised:
        find_shards([f"{server.base}/a.txt"])
    assert str(raised.value).endswith(f"It is the copy of {server.base}/a.txt.")
    assert os.environ["GOSSAMER_DATA"] in str(raised.value)


def test_a_run_reads_on_without_a_network(start: Start, tmp_path: Path) -> None:
    server = start(files=HUB)
    quiet = Console(file=io.StringIO())
    options = SpeedrunOptions(name="mine", steps=2, questions=1, depth=1, root=tmp_path / "runs",
                              data=("hf://datasets/me/set/data",))
    folder = speedrun(options, console=quiet)
    kept = json.loads((folder / "run.json").read_text())["options"]["data"]
    assert len(kept) == 3 and all("#sha256=" in address for address in kept)
    asked = len(server.does.asked)
    speedrun(SpeedrunOptions(root=tmp_path / "runs"), resume="mine", console=quiet)
    assert len(server.does.asked) == asked
    for copy in (tmp_path / "data" / "remote").glob("*/a.txt"):
        copy.unlink()
    server.does.files = {**HUB, "/data/a.txt": b"Another text."}
    with pytest.raises(DataError, match=f"me/set@{COMMIT}/data/a.txt.*its SHA-256 is"):
        speedrun(SpeedrunOptions(root=tmp_path / "runs"), resume="mine", console=quiet)
