"""Data that lies elsewhere: `https://` files and `hf://` folders, brought here once. Layer 7.

The one idea: a copy is named by its content. An address stands for a SHA-256, written into it
(`#sha256=…`), told by the hub, or computed when the file came; the copy lies under that sum, is
checked against it at every use, and a run remembers its data as addresses with sums (`pinned`). So
a resumed run reads the same bytes without a network, whatever has changed upstream since.

    GOSSAMER_DATA/remote/NAME-OF-THE-SUM/shard.parquet, shard.parquet.sha256
    GOSSAMER_DATA/remote/addresses/…          which sum an address had

Source: the hub's tree listing and its `X-Linked-Etag`, `X-Repo-Commit` headers are those that
`huggingface_hub` reads; a Git blob's name is SHA-1 of "blob SIZE" NUL content (git-hash-object).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gossamer.core.errors import DataError
from gossamer.core.settings import setting
from gossamer.data.safetensors import write_atomically
from gossamer.data.transfer import (
    CHUNK,
    Headers,
    Transfer,
    TransferError,
    fetch_page,
    free_space,
)

__all__ = ["Copy", "bring", "is_remote", "pinned"]

_MOST_FILES = 10_000  # of one address
_SUM = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"[0-9a-f]{40}")
_HUB = re.compile(  # a revision with a slash: where the hub keeps what it has made Parquet of
    r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")


@dataclass(frozen=True)
class _Address:
    """One file elsewhere.

    Args:
        name: as a person writes it, without the sum.
        url: where it is asked for.
        sha256: of its content, "" = not known yet.
        size: bytes, 0 = not known yet.
    """

    name: str
    url: str
    sha256: str = ""
    size: int = 0

    @property
    def file_name(self) -> str:
        """The last part of its path, as a name that any file system takes."""
        return re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(self.url).path)).name)


@dataclass(frozen=True)
class Copy:
    """A file that has been brought here.

    Args:
        path: where it lies.
        address: where it is from, with its sum.
    """

    path: Path
    address: str


def is_remote(given: str | Path) -> bool:
    """Whether this is an address and not a path."""
    return isinstance(given, str) and "://" in given


def bring(given: str, kinds: Sequence[str], console: Console | None = None) -> list[Copy]:
    """Copies of what an address stands for; those that are here already are checked, not asked for.

    Args:
        given: `https://HOST/FILE` or `hf://datasets/OWNER/NAME[@REVISION]/PATH`, where PATH is a
            file, a folder or a pattern with `*`, `?` and `[…]`; both may end in `#sha256=SUM`.
        kinds: name endings that can be read.
        console: where progress is shown; None = nowhere.

    Returns:
        Copies, in the order of their names.

    Raises:
        DataError: no such address, no file of these kinds, no room, or it did not come in spite of
            several attempts. One line that says which and what to do.

    Cost: a hash of each file (about 1 s a GB) when it is here.
    """
    try:
        addresses = _expand(given, kinds, console)
        for address in addresses:
            if PurePosixPath(address.file_name).suffix.lower() not in kinds:
                raise DataError(f"--data {given}: its kind is not one of {', '.join(kinds)}. Give "
                                "the address of such a file.")
        missing = [a for a in addresses if _kept(a) is None]
        _check_room(given, missing)
        with _Shown(console, missing) as shown:
            return [_copy(address, shown) for address in addresses]
    except TransferError as error:
        secret = ", set HF_TOKEN if it is not public" if given.startswith("hf:") else ""
        raise DataError(f"--data {given}: {error}. Check the address and the connection{secret}, "
                        "or download the file yourself and give its path.") from None


def pinned(
    paths: Sequence[str], kinds: Sequence[str], console: Console | None = None,
) -> tuple[str, ...]:
    """The same data for ever: addresses become those of single files with their sums; paths stay.

    Raises:
        DataError: as `bring`.
    """
    return tuple(address for given in paths for address in (
        [copy.address for copy in bring(given, kinds, console)] if is_remote(given) else [given]))


# What an address stands for ---------------------------------------------------------------------


def _expand(
    given: str, kinds: Sequence[str], console: Console | None = None,
) -> list[_Address]:
    bare, _, fragment = given.partition("#")
    sha256 = fragment.removeprefix("sha256=").lower()
    if fragment and (not fragment.startswith("sha256=") or not _SUM.fullmatch(sha256)):
        raise DataError(f"--data {given}: after # stands `sha256=` and 64 hexadecimal digits, as "
                        "`sha256sum FILE` prints them. Correct or remove it.")
    scheme = bare.split("://", 1)[0].lower()
    if scheme in ("http", "https"):
        try:
            whole = urlsplit(bare).hostname and urlsplit(bare).path.strip("/")
        except ValueError as error:  # brackets that do not close
            raise TransferError(f"it is no address ({error})") from None
        if not whole:
            raise DataError(f"--data {given}: an address names a host and a file, as in "
                            "https://example.org/text.parquet. Complete it.")
        return [_Address(bare, quote(bare, safe="/:?&=%@+,;~!*'()[]$"), sha256)]
    if scheme != "hf":
        raise DataError(f"--data {given}: {scheme}:// is not known here; addresses begin with "
                        "https://, http:// or hf://datasets/. Download it, and give its path.")
    found = _HUB.fullmatch(bare)
    if found is None:
        raise DataError(f"--data {given}: an address on the hub is hf://datasets/OWNER/NAME/PATH, "
                        "with a file, a folder or a pattern as PATH. Correct it.")
    repository, revision, path = found[1], unquote(found[2] or "main"), (found[3] or "").strip("/")
    if not set(path) & set("*?[") and PurePosixPath(path).suffix.lower() in kinds:
        return [_on_hub(repository, revision, path, sha256)]
    if sha256:
        raise DataError(f"--data {given}: a sum belongs to a single file, and this may be many. "
                        "Remove it.")
    return _listed(given, repository, revision, path, kinds, console)


def _on_hub(repository: str, revision: str, path: str, sha256: str = "", size: int = 0) -> _Address:
    folder = f"{_hub()}/datasets/{repository}/resolve/{quote(revision, safe='')}"
    at = "" if revision == "main" else f"@{revision}"
    return _Address(f"hf://datasets/{repository}{at}/{path}", f"{folder}/{quote(path)}", sha256,
                    size)


def _hub() -> str:
    return str(setting("HF_ENDPOINT")).rstrip("/")


def _listed(
    given: str, repository: str, revision: str, path: str, kinds: Sequence[str],
    console: Console | None,
) -> list[_Address]:
    """The files of a folder on the hub, or those that fit a pattern."""
    is_pattern = bool(set(path) & set("*?["))
    folder = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if is_pattern else path
    url = f"{_hub()}/api/datasets/{repository}/tree/{quote(revision, safe='')}"
    url += f"/{quote(folder, safe='')}" * bool(folder) + "?recursive=true"
    rows, commit = _listing_or_last(given, url, console)
    found = []
    for row in rows:
        name = str(row.get("path"))
        fits = fnmatchcase(name, path) if is_pattern else True
        if row.get("type") == "file" and fits and PurePosixPath(name).suffix.lower() in kinds:
            big = row.get("lfs") or {}
            sha256 = str(big.get("oid", "")).removeprefix("sha256:")
            found.append(_on_hub(repository, commit or revision, name,
                                 sha256 if _SUM.fullmatch(sha256) else "",
                                 int(big.get("size") or row.get("size") or 0)))
    if not found or len(found) > _MOST_FILES:
        raise DataError(
            f"--data {given}: {len(found):,} of its {len(rows):,} files fit and are of "
            f"{', '.join(kinds)}; 1 to {_MOST_FILES:,} are read. Give another folder or pattern.")
    return sorted(found, key=lambda address: address.name)


def _listing_or_last(
    given: str, url: str, console: Console | None,
) -> tuple[list[dict[str, Any]], str]:
    """A listing; without a network the one of last time, and we say so."""
    kept = _note(url).with_suffix(".list.json")
    try:
        rows, commit = _listing(given, url)
    except TransferError as error:
        try:
            last = json.loads(kept.read_text(encoding="utf-8"))
            rows, commit = list(last["rows"]), str(last["commit"])
        except (OSError, ValueError, KeyError, TypeError):
            raise error from None
        if console is not None:
            console.print(f"--data {given}: {error}; the listing of last time is used.",
                          highlight=False, markup=False)
        return rows, commit
    kept.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(kept) as file:
        file.write(json.dumps({"commit": commit, "rows": rows}).encode())
    return rows, commit


def _listing(given: str, url: str) -> tuple[list[dict[str, Any]], str]:
    """All rows of a listing, page after page, and the commit they are of."""
    rows, commit, next_url = list[dict[str, Any]](), "", url
    while next_url:
        body, headers = fetch_page(next_url, setting("HF_TOKEN"))
        try:
            page = json.loads(body)
        except ValueError:
            page = None
        if not isinstance(page, list) or not all(isinstance(row, dict) for row in page):
            raise DataError(f"--data {given}: {next_url} gave no listing. Is HF_ENDPOINT a hub?")
        rows += page
        commit = commit or _commit(headers)
        more = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', headers.get("link", ""))
        next_url = urljoin(next_url, more[1]) if more and page else ""
    return rows, commit


def _commit(headers: Headers) -> str:
    found = headers.get("x-repo-commit", "")
    return found if _BLOB.fullmatch(found) else ""


# Copies -----------------------------------------------------------------------------------------


def _folder() -> Path:
    return Path(setting("GOSSAMER_DATA")) / "remote"


def _note(url: str) -> Path:
    """Where the sum of an address is written down."""
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return _folder() / "addresses" / f"{key}.json"


def _noted(address: _Address) -> _Address:
    """The address with its sum, if that is known here, and the commit that it had."""
    if address.sha256:
        return address
    try:
        note = json.loads(_note(address.url).read_text(encoding="utf-8"))
        return replace(address, sha256=str(note["sha256"]), name=str(note["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        return address  # not here, or damaged: it is asked for again


def _kept(address: _Address) -> Copy | None:
    """The copy that is here already and is whole."""
    known = _noted(address)
    path = _folder() / known.sha256[:16] / known.file_name
    if not known.sha256 or not path.is_file():
        return None
    about = path.stat()
    if _sha256(path, about.st_size, about.st_mtime_ns) != known.sha256:
        path.unlink(missing_ok=True)  # damaged since; it is brought again
        return None
    return Copy(path, f"{known.name}#sha256={known.sha256}")


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Digest of a file; while it is as large and as old as before, that of before."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(address: _Address, shown: _Shown) -> Copy:
    """The copy of an address, brought if need be."""
    if (kept := _kept(address)) is not None:
        return kept
    hub = address.name.startswith("hf://")

    def accept(part: Path, headers: Headers) -> str | None:
        complaint = _complaint(part, address, headers)
        if complaint is None:
            name = _at_commit(address.name, _commit(headers)) if hub else address.name
            _put_away(part, replace(address, name=name))
        return complaint

    Transfer(address.url, _note(address.url).with_suffix(""), accept,
             lambda: _kept(address) is not None,
             str(setting("HF_TOKEN")) if hub else "", shown.teller(address)).run()
    brought = _kept(address)
    if brought is None:
        raise TransferError("its copy was removed as soon as it had come")
    return brought


def _put_away(part: Path, address: _Address) -> None:
    """Note the sum of a complete file and move it to where that says.

    The move comes last: from then on its lock keeps nobody away who wants the same file.
    """
    about = part.stat()
    sha256 = _sha256(part, about.st_size, about.st_mtime_ns)
    path = _folder() / sha256[:16] / address.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path.with_name(path.name + ".sha256")) as file:
        file.write(f"{sha256}  {path.name}\n".encode())
    with write_atomically(_note(address.url)) as file:
        file.write(json.dumps({"name": address.name, "sha256": sha256}).encode())
    part.replace(path)


def _at_commit(name: str, commit: str) -> str:
    """The name of a file on the hub with the revision it had when it came."""
    found = _HUB.fullmatch(name)
    return f"hf://datasets/{found[1]}@{commit}/{found[3]}" if found and commit else name


def _complaint(path: Path, address: _Address, headers: Headers) -> str | None:
    """What is wrong with a complete file, by the sum that is expected or that the hub tells."""
    told = headers.get("x-linked-etag") or headers.get("etag", "")
    told = told.removeprefix("W/").strip('"')
    on_hub = "x-linked-etag" in headers or "x-repo-commit" in headers
    expected = address.sha256 or (told if on_hub and _SUM.fullmatch(told) else "")
    if expected:
        about = path.stat()
        found = _sha256(path, about.st_size, about.st_mtime_ns)
        if found != expected:
            return f"its SHA-256 is {found[:12]}…, not {expected[:12]}…"
    elif on_hub and _BLOB.fullmatch(told):
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        if digest.hexdigest() != told:
            return f"its Git name is {digest.hexdigest()[:12]}…, not {told[:12]}…"
    return None


def _check_room(given: str, missing: Sequence[_Address]) -> None:
    """Refuse before the first byte what the disk cannot hold."""
    needed, room = sum(address.size for address in missing), free_space(_folder())
    if needed > room:
        raise DataError(
            f"--data {given}: {len(missing):,} files of {needed / 1e9:,.2f} GB in all; {_folder()} "
            f"has room for {room / 1e9:,.2f} GB. Give a narrower pattern, or set GOSSAMER_DATA to "
            "a folder on another disk.")


class _Shown:
    """A line for each download while it runs; without a console none."""

    def __init__(self, console: Console | None, missing: Sequence[_Address]) -> None:
        self._count, self._begun = len(missing), 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(None), DownloadColumn(),
            TransferSpeedColumn(), TimeRemainingColumn(), console=console,
            disable=console is None or not missing)

    def teller(self, address: _Address) -> Callable[[int, int | None], None]:
        """What `Transfer` tells how far it is."""
        self._begun += 1
        task = self._progress.add_task(f"{address.file_name} ({self._begun} of {self._count})",
                                       total=address.size or None)

        def tell(have: int, total: int | None) -> None:
            self._progress.update(task, completed=have, total=total)

        return tell

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
