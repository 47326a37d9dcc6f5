"""Small public data sets: found beside the checkout, or downloaded once. Layer 5.

The one idea: a file is accepted by the SHA-256 of its content, never by its name or its source, and
it appears under its name only when it is complete (written beside, then renamed). So a broken
download, a full disk or two processes at once leave either a good file or none.

Sources: MNIST (LeCun, Cortes, Burges; IDX files), the Shakespeare file of karpathy/char-rnn, the
260,032-parameter Llama of karpathy/tinyllamas.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gossamer.core.errors import DataError
from gossamer.core.settings import setting

__all__ = ["FILES", "RemoteFile", "fetch", "mnist", "read_idx"]

ATTEMPTS = 3  # of each address, with a pause that doubles
PAUSE = 0.5  # seconds before the second attempt
TIMEOUT = 20.0  # seconds without a byte
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """One file: where it can be had, and the SHA-256 of its content (after unpacking .gz)."""

    urls: tuple[str, ...]
    sha256: str


_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/",
          "https://storage.googleapis.com/cvdf-datasets/mnist/")
_SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",)
_STORIES = ("https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K/",)


def _file(bases: tuple[str, ...], name: str, sha256: str) -> RemoteFile:
    return RemoteFile(tuple(base + name for base in bases), sha256)


# A name is `set/file`, below the data folder and in the same form below `near`.
FILES: dict[str, RemoteFile] = {
    name: _file(bases, name.split("/")[1], digest) for name, bases, digest in (
        ("mnist_idx/train-images-idx3-ubyte.gz", _MNIST,
         "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("mnist_idx/train-labels-idx1-ubyte.gz", _MNIST,
         "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("mnist_idx/t10k-images-idx3-ubyte.gz", _MNIST,
         "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("mnist_idx/t10k-labels-idx1-ubyte.gz", _MNIST,
         "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ("tinyshakespeare/input.txt", _SHAKESPEARE,
         "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        ("stories260k/stories260K.bin", _STORIES,
         "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"),
        ("stories260k/tok512.bin", _STORIES,
         "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312"),
    )
}


def fetch(name: str, near: str | Path | None = None) -> Path:
    """Path of a file of `FILES`; downloads it on first use.

    Args:
        name: `set/file`, a key of FILES.
        near: a folder to look into first, laid out as `set/file`; may not exist.

    Returns:
        The path, in `near` or below the folder of the setting GOSSAMER_DATA.

    Raises:
        DataError: the name is unknown, no address gave the right content, or the folder cannot be
            written. The text lists what was tried.

    Cost: one hash of the file when it is downloaded, nothing afterwards.

    Example:
        >>> sorted(FILES)[-1]
        'tinyshakespeare/input.txt'
    """
    if name not in FILES:
        raise DataError(f"fetch({name!r}): no such file is known; there are: "
                        f"{', '.join(sorted(FILES))}.")
    if near is not None and (found := Path(near) / name).is_file():
        return found
    target = Path(setting("GOSSAMER_DATA")) / name
    if target.is_file():
        return target
    complaints = []
    for url in FILES[name].urls:
        complaint = _attempts(url, target, FILES[name].sha256)
        if complaint is None:
            return target
        complaints.append(f"{url}: {complaint}")
    raise DataError(
        f"fetch({name!r}): it is not on this machine, and no address gave it ("
        f"{'; '.join(complaints)}). Connect to the internet, put it at {target} by hand, or set "
        "GOSSAMER_DATA to a folder that has it.")


def _attempts(url: str, target: Path, sha256: str) -> str | None:
    """None when `target` is there, else what went wrong the last time."""
    complaint = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _download(url, target, sha256)
            return None
        except urllib.error.HTTPError as error:
            complaint = str(error)
            if error.code in (401, 403, 404, 410):
                break  # asking again will not make it appear
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError,
                ConnectionError, _BadContent) as error:
            reason = getattr(error, "reason", error)  # of a URLError, without its brackets
            complaint = str(reason) or type(error).__name__
    return complaint


class _BadContent(Exception):
    """The bytes that came are not the file."""


def _download(url: str, target: Path, sha256: str) -> None:
    """Fetch `url` beside `target`, check it, and only then give it its name."""
    request = urllib.request.Request(url, headers={"User-Agent": "gossamer"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        expected = answer.headers.get("Content-Length")
        part, got = _write(iter(lambda: answer.read(CHUNK), b""), target)
    try:
        if expected is not None and got != int(expected):
            raise _BadContent(f"{got} of {expected} bytes came")
        _verify(part, target.suffix == ".gz", sha256)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _write(blocks: Iterator[bytes], target: Path) -> tuple[Path, int]:
    """A file beside `target` with all blocks, and its length in bytes."""
    part = target.with_name(f"{target.name}.{os.getpid()}.{time.monotonic_ns()}.part")
    got = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        out = part.open("wb")
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        with out:
            for block in blocks:
                got += _put(out, block, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part, got


def _put(out: BinaryIO, block: bytes, target: Path) -> int:
    """Write and flush, so that a full disk is told from a broken connection."""
    try:
        written = out.write(block)
        out.flush()
        return written
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(f"fetch: {target} cannot be written ({error.strerror}). Make room, or set "
                     "GOSSAMER_DATA to a folder that can be written.")


def _verify(path: Path, packed: bool, sha256: str) -> None:
    """Raise _BadContent unless the (unpacked) content has that digest."""
    digest = hashlib.sha256()
    try:
        with (gzip.open(path) if packed else path.open("rb")) as content:
            while block := content.read(CHUNK):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        raise _BadContent(f"the content cannot be unpacked ({error})") from None
    if digest.hexdigest() != sha256:
        raise _BadContent(f"its SHA-256 is {digest.hexdigest()[:12]}..., not {sha256[:12]}...")


def read_idx(path: str | Path) -> np.ndarray:
    """Array of a file in the IDX format, packed (.gz) or plain.

    The header is two zero bytes, a type code, the number of dimensions and each as a big-endian
    32-bit integer; unsigned bytes (type 8) are the only type that MNIST's files use.

    Args:
        path: the file.

    Returns:
        uint8 array of the header's shape.

    Raises:
        DataError: the file is damaged, truncated or of another type.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file format.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"read_idx({path.name!r}): the file cannot be read ({error}). Delete it "
                        "and fetch it again.") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"read_idx({path.name!r}): the header is {data[:4]!r}; a file of bytes "
                        "starts with b'\\x00\\x00\\x08'. Is it another file?")
    start = 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    size = int(np.prod(shape, dtype=np.int64))
    if len(data) - start != size:
        raise DataError(f"read_idx({path.name!r}): shape {shape} needs {size} bytes, the file has "
                        f"{len(data) - start}. Delete it and fetch it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def mnist(near: str | Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The digits of MNIST, in their original order.

    Args:
        near: a folder to look into first (see `fetch`).

    Returns:
        Training images uint8 (60000, 28, 28), their labels uint8 (60000,), test images
        (10000, 28, 28), their labels (10000,).

    Raises:
        DataError: as `fetch` and `read_idx`.
    """
    images, labels, test_images, test_labels = (
        read_idx(fetch(f"mnist_idx/{part}-ubyte.gz", near)) for part in (
            "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"))
    return images, labels, test_images, test_labels
