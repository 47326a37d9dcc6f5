"""One file over HTTP: whole or not at all, whatever the server does. Layer 5.

The bytes are collected in `NAME.part`, which only one process at a time may write. When the
connection breaks, the next attempt asks for the rest (Range), if the server can say that the file
is still the same (If-Range: its ETag or date); so does the next process. The caller gives the file
its name when it is complete and right.

Source: RFC 9110, 13.1.5 (If-Range), 14 (Range), 10.2.3 (Retry-After); jitter is from Brooker,
"Exponential Backoff And Jitter" (2015).
"""

from __future__ import annotations

import email.utils
import http.client
import os
import random
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from gossamer.core.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: there each process collects in a file of its own
    fcntl = None  # type: ignore[assignment]

__all__ = ["CHUNK", "Headers", "Transfer", "TransferError", "fetch_page", "free_space",
           "unwritable"]

ATTEMPTS = 4  # in a row that bring no new bytes
PAUSE = 0.5  # seconds before the second attempt; doubles, and a random half of it is left out
LONGEST_PAUSE = 20.0  # seconds of our own
LONGEST_WISH = 120.0  # seconds that a server's Retry-After is obeyed
TIMEOUT = 20.0  # seconds without a byte
SLOW, WATCHED = 1000.0, 30.0  # bytes a second, over so many seconds, are as good as none
CHUNK = 1 << 20  # bytes
KEEP_FREE = 64 << 20  # bytes of the disk that stay free: a small run's checkpoints need some
WORTH_KEEPING = 1 << 20  # bytes; fewer are not worth a file that lies about after a failure
_LARGEST_PAGE = 64 << 20  # bytes of an answer that is kept in memory
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529}
_random = random.Random()  # its own: the user's generators are theirs

Headers = Mapping[str, str]
Accept = Callable[[Path, Headers], str | None]
Progress = Callable[[int, int | None], None]  # bytes that are there, and of how many


class TransferError(Exception):
    """The file did not come; the text is why, to be put into a sentence."""


class _Again(Exception):
    """This attempt failed, another may not.

    Args:
        reason: why.
        pause: seconds that the server asked for.
        restart: what has come is of no use.
    """

    def __init__(self, reason: str, pause: float = 0.0, restart: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.restart = pause, restart


@dataclass
class Transfer:
    """A file on its way.

    Args:
        url: where it is.
        near: `near.part` is where it is collected; the folder is made.
        accept: given the complete file and the first answer's headers (names in lower case; a
            redirect is the first answer), moves it to its place, or says what is wrong with it.
        is_here: whether another process has brought it while we waited for the part file.
        token: sent to the host of `url` alone, as `Authorization: Bearer`.
        progress: told how far it is.
    """

    url: str
    near: Path
    accept: Accept
    is_here: Callable[[], bool] = lambda: False
    token: str = ""
    progress: Progress = lambda have, total: None

    def run(self) -> None:
        """Bring it, in as many attempts as help.

        Raises:
            TransferError: it did not come.
            DataError: there is no room for it, or it cannot be written.
        """
        try:
            self.near.parent.mkdir(parents=True, exist_ok=True)
            part = _part_of(self.near)
            with _held(part):
                try:
                    if not self.is_here():
                        self._collect(part)
                finally:
                    if _size(part) < WORTH_KEEPING:
                        part.unlink(missing_ok=True)
                        _tag_of(part).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.near.parent, error) from None

    def _collect(self, part: Path) -> None:
        tries = 0
        while True:
            before = _size(part)
            try:
                return self._attempt(part, before)
            except _Again as failure:
                if failure.restart:
                    os.truncate(part, 0)
                tries = 1 if _size(part) > before else tries + 1
                if tries >= ATTEMPTS:
                    raise TransferError(str(failure)) from None
                time.sleep(failure.pause or _pause(tries))

    def _attempt(self, part: Path, have: int) -> None:
        """Ask for what is missing, write it, and hand the whole over.

        The file is closed by then: Windows moves none that is open.
        """
        with part.open("ab") as file:
            headers = self._fill(file, have)
            os.fsync(file.fileno())
        if (complaint := self.accept(part, headers)) is not None:
            raise _Again(complaint, restart=True)

    def _fill(self, file: BinaryIO, have: int) -> Headers:
        """Ask for what is missing and write it; the first answer's headers."""
        part = Path(file.name)
        tag = _tag_of(part)
        validator = tag.read_text(encoding="latin-1") if have and tag.is_file() else ""
        asked = {"Range": f"bytes={have}-", "If-Range": validator} if validator else {}
        with _open(self.url, self.token, asked) as answer:
            if answer.status != 206:
                have = 0
                file.truncate(0)
                tag.write_text(_validator(answer.headers), encoding="latin-1")
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise _Again("the server sent another part than the one asked for", restart=True)
            total = _length(answer.headers, have)
            _check_room(part.parent, (total or 0) - have)
            have = self._receive(answer, file, have, total)
        if total is not None and have != total:
            raise _Again(f"the connection ended after {have:,} of {total:,} bytes")
        return answer.first

    def _receive(self, answer: _Answer, file: BinaryIO, have: int, total: int | None) -> int:
        """Write what comes; how much there is at the end."""
        since, had = time.monotonic(), have
        while block := answer.read():
            if total is None:
                _check_room(Path(file.name).parent, len(block))
            _put(file, block)
            have += len(block)
            self.progress(have, total)
            seconds = time.monotonic() - since
            if seconds > WATCHED:
                if have - had < SLOW * seconds:
                    raise _Again(f"only {have - had:,} bytes came in {seconds:.0f} seconds")
                since, had = time.monotonic(), have
        return have


def fetch_page(url: str, token: str = "") -> tuple[bytes, Headers]:
    """The body and the headers of a small answer, such as a listing.

    Raises:
        TransferError: it did not come.
    """
    for tries in range(1, ATTEMPTS + 1):
        try:
            with _open(url, token, {}) as answer:
                blocks, size = [], 0
                while size <= _LARGEST_PAGE and (block := answer.read()):
                    blocks.append(block)
                    size += len(block)
            total = _length(answer.headers, 0)
            if total is not None and size != total:
                raise _Again(f"the connection ended after {size:,} of {total:,} bytes")
            return b"".join(blocks), answer.first
        except _Again as failure:
            if tries == ATTEMPTS:
                raise TransferError(str(failure)) from None
            time.sleep(failure.pause or _pause(tries))
    raise AssertionError("the last attempt returns or raises")


# One answer -------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; notes the headers of the first, and keeps the token from other hosts."""

    first: Headers | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        self.first = self.first or _plain(headers)
        if made is not None and urlsplit(req.full_url)[:2] == urlsplit(newurl)[:2]:
            for name, value in req.unredirected_hdrs.items():
                if name == "Authorization":
                    made.add_unredirected_header(name, value)
        return made


def _plain(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class _Answer:
    """An open response.

    Attributes:
        first: headers of the first answer on the way to it.
    """

    def __init__(self, response: Any, first: Headers | None) -> None:
        self._response, self.headers, self.status = response, response.headers, response.status
        self.first = first or _plain(response.headers)

    def read(self) -> bytes:
        """What has come by now, at most CHUNK bytes; empty at the end."""
        try:
            return bytes(self._response.read1(CHUNK))
        except TimeoutError:
            raise _Again(f"nothing came for {TIMEOUT:g} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(_words(error)) from None

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._response.close()


def _open(url: str, token: str, more: Headers) -> _Answer:
    """The answer to a GET, by http and https alone: no redirect leads to a file of this machine."""
    opener, redirects = urllib.request.OpenerDirector(), _Redirects()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
                    urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(),
                    redirects, urllib.request.HTTPErrorProcessor(),
                    urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    headers = {"User-Agent": "gossamer", "Accept-Encoding": "identity", **more}
    try:
        request = urllib.request.Request(url, headers=headers)
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise TransferError("its certificate is not valid "
                                f"({error.reason.verify_message})") from None
        raise _Again(_words(error.reason)) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise TransferError(f"it is no address ({error})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Again(_words(error)) from None
    answer = _Answer(response, redirects.first)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        answer.__exit__()
        raise TransferError("the server packs what it sends, though that was not asked for")
    return answer


def _words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _refused(error: urllib.error.HTTPError) -> Exception:
    """_Again if asking again may help, and the pause that the server asks for."""
    said = f"the server says {error.code} {error.reason}".rstrip()
    if error.code == 416:  # we have more than there is: it is another file
        return _Again(said, restart=True)
    if error.code not in _AGAIN:
        return TransferError(said)
    pause = _wished_pause(error.headers.get("Retry-After") or "")
    if pause > LONGEST_WISH:
        return TransferError(f"{said}, and to come back in {pause:,.0f} seconds")
    return _Again(said, pause)


def _wished_pause(text: str) -> float:
    """Seconds of a Retry-After: a number or a date; 0 if there is none."""
    if text.strip().isdigit():
        return float(text)
    with suppress(TypeError, ValueError):  # no date
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _pause(tries: int) -> float:
    return min(LONGEST_PAUSE, PAUSE * 2 ** (tries - 1)) * _random.uniform(0.5, 1.0)


def _validator(headers: Any) -> str:
    """What tells later whether the file is still the same: a strong ETag or the date."""
    if headers.get("Accept-Ranges") == "none":
        return ""
    tag = headers.get("ETag") or ""
    return str(tag if tag.startswith('"') else headers.get("Last-Modified") or "")


def _length(headers: Any, have: int) -> int | None:
    """Bytes of the whole file, if the server says so."""
    if whole := re.match(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range") or ""):
        return int(whole[1])
    text = headers.get("Content-Length") or ""
    return have + int(text) if text.isdigit() else None


# The file ---------------------------------------------------------------------------------------


def _part_of(near: Path) -> Path:
    own = "" if fcntl is not None else f".{os.getpid()}.{time.monotonic_ns()}"
    return near.with_name(f"{near.name}{own}.part")


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


@contextmanager
def _held(part: Path) -> Iterator[None]:
    """While the part file is ours alone; waits while another process has it."""
    if fcntl is None:  # it is ours by its name
        yield
        return
    while True:
        with part.open("ab") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _still_at(part, file):  # else it was renamed or removed while we waited
                yield
                return


def _still_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file is the one at a path, which others may move at any moment."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(part: Path) -> int:
    """Bytes that have come; 0 where the file is gone."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _put(file: BinaryIO, block: bytes) -> None:
    """Write and flush, so that a full disk is told from a broken connection."""
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise unwritable(Path(file.name).parent, error) from None


def free_space(folder: Path) -> int:
    """Bytes that a download may take where `folder` is or will be: KEEP_FREE less than are free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return max(0, shutil.disk_usage(there).free - KEEP_FREE)


def _check_room(folder: Path, missing: int) -> None:
    """Refuse at once what cannot end well."""
    room = free_space(folder)
    if missing > room:
        raise DataError(
            f"{folder}: {missing / 1e6:,.1f} MB are still to come, and there is room for "
            f"{room / 1e6:,.1f} MB ({KEEP_FREE / 1e6:,.0f} MB stay free). Make room, or set "
            "GOSSAMER_DATA to a folder on another disk.")


def unwritable(folder: Path, error: OSError) -> DataError:
    """The sentence for a folder that does not take a download."""
    return DataError(f"{folder} cannot be written ({error.strerror or error}). Make room, or set "
                     "GOSSAMER_DATA to a folder that can be written.")
