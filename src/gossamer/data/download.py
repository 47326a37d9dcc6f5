"""Small public data sets: found beside the checkout, or downloaded once. Layer 5.

The one idea: a file is accepted by the SHA-256 of its content, never by its name or its source;
`transfer` gives it its name only when it is complete. So a broken download, a full disk or two
processes at once leave either a good file or none.

Sources: MNIST (LeCun, Cortes, Burges; IDX files), the Shakespeare file of karpathy/char-rnn, the
260,032-parameter Llama of karpathy/tinyllamas.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossamer.core.errors import DataError
from gossamer.core.settings import setting
from gossamer.data.transfer import CHUNK, Headers, Transfer, TransferError

__all__ = ["FILES", "RemoteFile", "fetch", "mnist", "read_idx"]


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
        try:
            Transfer(url, target, _accept(name, target), target.is_file).run()
            return target
        except TransferError as error:
            complaints.append(f"{url}: {error}")
    raise DataError(
        f"fetch({name!r}): it is not on this machine, and no address gave it ("
        f"{'; '.join(complaints)}). Connect to the internet, put it at {target} by hand, or set "
        "GOSSAMER_DATA to a folder that has it.")


def _accept(name: str, target: Path) -> Callable[[Path, Headers], str | None]:
    """What `Transfer` does with the complete file."""
    def accept(path: Path, headers: Headers) -> str | None:
        complaint = _complaint(path, name.endswith(".gz"), FILES[name].sha256)
        if complaint is None:
            path.replace(target)
        return complaint

    return accept


def _complaint(path: Path, packed: bool, sha256: str) -> str | None:
    """What is wrong, unless the (unpacked) content has that digest."""
    digest = hashlib.sha256()
    try:
        with (gzip.open(path) if packed else path.open("rb")) as content:
            while block := content.read(CHUNK):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        return f"the content cannot be unpacked ({error})"
    if digest.hexdigest() == sha256:
        return None
    return f"its SHA-256 is {digest.hexdigest()[:12]}..., not {sha256[:12]}..."


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
