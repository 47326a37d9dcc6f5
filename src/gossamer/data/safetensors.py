"""The safetensors format: named tensors in one file, nothing executable. Layer 5.

A file is 8 bytes (length N of the header, little endian), N bytes of JSON and the tensors' bytes.
The header maps a name to dtype, shape and [begin, end) in the last part; `__metadata__` maps
strings to strings. Every bound is checked before any byte is used, so a damaged or hostile file is
an error that says what is wrong. Source: huggingface/safetensors, "Format".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gossamer.functional as gf
from gossamer.core.dtype import DTYPES, bfloat16, round_to_bfloat16
from gossamer.core.errors import CheckpointError
from gossamer.tensor import Tensor

__all__ = ["SafeFile", "load", "load_file", "safe_open", "save", "save_file", "write_atomically"]

_MAX_HEADER = 100_000_000  # bytes; the published limit
_MAX_DIMS = 64  # NumPy's limit, through which every array goes
_MAX_EXTENT = 2**63  # an extent beyond it cannot be indexed, even where another one is 0
_ALIGN = 8  # the header is padded with spaces so that tensors start aligned
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
          "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
_BY_NAME = {d.safetensors: d for d in DTYPES.values()}


def _bad(source: str, what: str, todo: str = "Download or save the file again.") -> CheckpointError:
    return CheckpointError(f"safetensors {source}: {what} {todo}")


# -------------------------------------------------------------------------- the header

def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} occurs twice")
        if any("\ud800" <= c <= "\udfff" for c in key):
            raise ValueError(f"the name {key!r} has half a surrogate pair")
        found[key] = value
    return found


def _parse(source: str, raw: bytes, data_bytes: int) -> tuple[dict[str, dict[str, Any]],
                                                              dict[str, str]]:
    """Entries and metadata of a header, checked against the number of data bytes."""
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad(source, f"the header is not valid JSON ({error}).") from None
    if not isinstance(header, dict):
        raise _bad(source, f"the header is a JSON {type(header).__name__}, not an object.")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(source, "__metadata__ must map strings to strings.")
    spans = []
    for name, entry in header.items():
        _check_entry(source, name, entry)
        begin, end = entry["data_offsets"]
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            kind = "overlaps the one before" if begin < position else "leaves a hole before it"
            raise _bad(source, f"tensor {name!r} {kind}: bytes {begin} to {end}, expected to start "
                               f"at {position}.")
        position = end
    if position != data_bytes:
        kind = "is truncated" if position > data_bytes else "has bytes that no tensor owns"
        raise _bad(source, f"it {kind}: the header describes {position} bytes of tensors, there "
                           f"are {data_bytes}.")
    return header, metadata


def _check_entry(source: str, name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _bad(source, f"the entry of tensor {name!r} needs dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _bad(source, f"tensor {name!r} has the unknown dtype {dtype!r}.",
                   "A newer version of the format?")
    for what, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or any(type(n) is not int or n < 0 for n in value):
            raise _bad(source, f"tensor {name!r} has {what} {value!r}; it must be a list of whole "
                               "numbers, none negative.")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(source, f"tensor {name!r} has data_offsets {offsets}; it must be [begin, end].")
    size = _SIZES[dtype]
    for extent in shape:
        size *= extent  # Python's integers do not overflow
    if offsets[1] - offsets[0] != size:
        raise _bad(source, f"tensor {name!r} of {dtype}{shape} takes {size} bytes, its "
                           f"data_offsets {offsets} span {offsets[1] - offsets[0]}.")
    # An empty tensor takes no bytes whatever its other extents say, so they are held to limits too.
    if len(shape) > _MAX_DIMS or math.prod(max(1, extent) for extent in shape) >= _MAX_EXTENT:
        raise _bad(source, f"tensor {name!r} has {len(shape)} dimensions of up to {max(shape)}; "
                           f"at most {_MAX_DIMS} of together 2^63 elements are possible.")


def _header_size(source: str, first: bytes, total: int) -> int:
    if len(first) < 8:
        raise _bad(source, f"it has {total} bytes; the header alone takes 8 and more.")
    size = int(struct.unpack("<Q", first)[0])
    if size > _MAX_HEADER or size > total - 8:
        raise _bad(source, f"the header claims {size} bytes, the file has {total}: it is truncated "
                           "or not a safetensors file.")
    return size


# -------------------------------------------------------------------------- reading

class SafeFile:
    """A safetensors file, open: tensors are read when asked for.

    Example:
        >>> with safe_open("model.safetensors") as f:  # doctest: +SKIP
        ...     weight = f.get_tensor("head.weight")
    """

    def __init__(self, filename: Any) -> None:
        self._source = os.fspath(filename)
        if isinstance(self._source, bytes):
            self._source = os.fsdecode(self._source)
        try:
            total = os.path.getsize(self._source)
            with open(self._source, "rb") as file:
                size = _header_size(self._source, file.read(8), total)
                raw = file.read(size)
            self._entries, self._metadata = _parse(self._source, raw, total - 8 - size)
            empty = total == 8 + size
            self._bytes: np.ndarray | None = np.zeros(0, np.uint8) if empty else np.memmap(
                self._source, np.uint8, "r", 8 + size)
        except FileNotFoundError:
            raise _bad(self._source, "there is no such file.", "Check the path.") from None
        except OSError as error:
            raise _bad(self._source, f"it cannot be read ({error}).", "Check the path.") from error

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._entries)

    def offset_keys(self) -> list[str]:
        """Names in the order of the file."""
        return sorted(self._entries, key=lambda name: self._entries[name]["data_offsets"])

    def metadata(self) -> dict[str, str]:
        """The strings saved beside the tensors."""
        return dict(self._metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._entry(name)["shape"])

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._entries:
            raise _bad(self._source, f"it has no tensor {name!r}.", f"It has {self.keys()[:8]}.")
        return self._entries[name]

    def array(self, name: str) -> np.ndarray:
        """The bytes of a tensor as a read-only array (uint16 for bfloat16), not copied.

        Raises:
            CheckpointError: no such tensor, or a dtype that Gossamer lacks; the file is closed.
        """
        entry = self._entry(name)
        if self._bytes is None:
            raise _bad(self._source, "it is closed.", "Read inside the `with` block.")
        dtype = _BY_NAME.get(entry["dtype"])
        if dtype is None:
            raise _bad(self._source, f"tensor {name!r} is {entry['dtype']}; Gossamer has "
                                     f"{', '.join(sorted(_BY_NAME))}.", "Convert the file first.")
        begin, end = entry["data_offsets"]
        storage = dtype.storage.newbyteorder("<")
        return self._bytes[begin:end].view(storage).reshape(entry["shape"])

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, copied into memory."""
        return _to_tensor(self._source, self.array(name), self._entry(name)["dtype"])

    def get_slice(self, name: str) -> Slice:
        """A tensor of which only the indexed part is read: `f.get_slice(name)[:, 2:4]`."""
        return Slice(self, name)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes = None

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Slice:
    """Part of a tensor in a file; basic indexing reads it."""

    def __init__(self, file: SafeFile, name: str) -> None:
        self._file, self._name = file, name

    def get_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self._file.shape(self._name))

    def get_dtype(self) -> str:
        """The dtype as the format calls it."""
        return str(self._file._entry(self._name)["dtype"])

    def __getitem__(self, index: Any) -> Tensor:
        part = self._file.array(self._name)[index]
        return _to_tensor(self._file._source, part, self.get_dtype())


def safe_open(filename: Any, framework: str = "gs", device: str = "cpu") -> SafeFile:
    """Open a file for lazy reading (use `with`).

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.
    """
    return SafeFile(filename)


def _to_tensor(source: str, array: np.ndarray, name: str) -> Tensor:
    if name == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        # Kernels combine truth values bit by bit: `2 & 1` would be False.
        raise _bad(source, f"a BOOL tensor holds the byte {array.view(np.uint8).max()}; only 0 and "
                           "1 are truth values.")
    if name == "BF16":
        wide = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return gf.tensor(wide.reshape(array.shape)).to(bfloat16)
    return gf.tensor(np.array(array, array.dtype.newbyteorder("="), copy=True))


def load_file(filename: Any, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.

    Cost: reads every byte once.
    """
    with SafeFile(filename) as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}


def load(data: bytes) -> dict[str, Tensor]:
    """All tensors of a file that is in memory."""
    size = _header_size("(bytes)", data[:8], len(data))
    entries, _ = _parse("(bytes)", data[8:8 + size], len(data) - 8 - size)
    result = {}
    for name, entry in entries.items():
        dtype = _BY_NAME.get(entry["dtype"])
        if dtype is None:
            raise _bad("(bytes)", f"tensor {name!r} is {entry['dtype']}, which Gossamer lacks.",
                       "Convert the file first.")
        begin, end = (8 + size + n for n in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], dtype.storage.newbyteorder("<"))
        result[name] = _to_tensor("(bytes)", array.reshape(entry["shape"]), entry["dtype"])
    return result


# -------------------------------------------------------------------------- writing

def _to_bytes(t: Tensor) -> np.ndarray:
    """The elements, little endian, flat, as the format stores them."""
    t = t.detach()
    if t.dtype is bfloat16:
        bits = round_to_bfloat16(t.float().numpy()).view(np.uint32) >> np.uint32(16)
        return bits.astype("<u2").reshape(-1)
    array = np.ascontiguousarray(t.numpy())
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1)


def _dtype_name(t: Tensor) -> str:
    return DTYPES[str(t.dtype).rpartition(".")[2]].safetensors


def _header(tensors: Mapping[str, Tensor],
            metadata: Mapping[str, str] | None) -> tuple[bytes, list[str]]:
    """The first bytes of the file, and the names in the order in which tensors follow."""
    for name, t in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CheckpointError(f"save_file: {name!r} is not a possible name; names are strings "
                                  "other than '__metadata__'.")
        if not isinstance(t, Tensor):
            raise CheckpointError(f"save_file: {name!r} is a {type(t).__name__}; only tensors can "
                                  "be saved. Put other values in `metadata` as strings.")
    if metadata is not None and not all(isinstance(k, str) and isinstance(v, str)
                                        for k, v in metadata.items()):
        raise CheckpointError("save_file: metadata must map strings to strings. Use json.dumps.")
    # Large elements first, so that every tensor is aligned to its element's size.
    names = sorted(tensors, key=lambda name: (-_SIZES[_dtype_name(tensors[name])], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        t = tensors[name]
        dtype = _dtype_name(t)
        end = position + t.numel() * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % _ALIGN)
    return struct.pack("<Q", len(raw)) + raw, names


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a file with these tensors."""
    head, names = _header(tensors, metadata)
    return b"".join([head, *(_to_bytes(tensors[name]).tobytes() for name in names)])


def save_file(tensors: Mapping[str, Tensor], filename: Any,
              metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file, whole or not at all.

    Args:
        tensors: by name; views and shared tensors are written in full.
        metadata: strings beside them.

    Raises:
        CheckpointError: a value is not a tensor, or the file cannot be written (the old one stays).
    """
    head, names = _header(tensors, metadata)
    with write_atomically(filename) as file:
        file.write(head)
        for name in names:
            file.write(_to_bytes(tensors[name]).data)


@contextlib.contextmanager
def write_atomically(filename: Any) -> Iterator[Any]:
    """A binary file that appears under its name only when it is complete and on the disk.

    Raises:
        CheckpointError: it cannot be written; what was under the name stays.
    """
    path = Path(os.fsdecode(filename))
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"write {path}: {error.strerror or error}; the file was not written. "
                              "Check the path, the permissions and the free space.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
