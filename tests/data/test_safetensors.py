"""safetensors: equal to the published library both ways; every kind of damage is a clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.core.errors import CheckpointError
from gossamer.data import load_file, safe_open, safetensors as ours, save_file

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
          "bool"]


def _example(name: str) -> Any:
    values = gs.tensor([[0.0, 1.5, -2.0], [3.0, 100.0, -0.25]])
    return values.to(getattr(gs, name))


def _raw(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


@pytest.mark.parametrize("name", DTYPES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    tensors = {"a.weight": _example(name), "scalar": _example(name)[0, 1],
               "empty": _example(name)[:0], "ünïcode": gs.ones(3, dtype=gs.float32)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for key, t in tensors.items():
        assert loaded[key].dtype is t.dtype
        assert tuple(loaded[key].shape) == tuple(t.shape)
        assert loaded[key].tolist() == t.tolist()
    assert {k: v.tolist() for k, v in ours.load(ours.save(tensors)).items()} == {
        k: v.tolist() for k, v in tensors.items()}


def test_same_as_the_published_library(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy", reason="the format's own library")
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([1, -2], np.int64),
              "h": np.ones(3, np.float16), "b": np.array([True, False])}
    reference.save_file(arrays, str(tmp_path / "theirs"), {"made": "there"})
    loaded = load_file(tmp_path / "theirs")
    save_file({k: gs.tensor(v) for k, v in arrays.items()}, tmp_path / "ours", {"made": "there"})
    back = reference.load_file(str(tmp_path / "ours"))
    for key, array in arrays.items():
        assert np.array_equal(loaded[key].numpy(), array)
        assert np.array_equal(back[key], array) and back[key].dtype == array.dtype
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


def test_lazy_reading(tmp_path: Path) -> None:
    save_file({"w": gs.arange(12).reshape(3, 4), "v": gs.ones(2)}, tmp_path / "x", {"k": "v"})
    with safe_open(tmp_path / "x") as file:
        assert file.keys() == ["v", "w"]
        assert file.metadata() == {"k": "v"}
        assert file.get_slice("w").get_shape() == [3, 4]
        assert file.get_slice("w")[1:, 2].tolist() == [6, 10]
        assert file.get_tensor("w").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        with pytest.raises(CheckpointError, match="no tensor 'u'"):
            file.get_tensor("u")
    with pytest.raises(CheckpointError, match="closed"):
        file.get_tensor("w")


_F = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(("content", "text"), [
    (b"", "0 bytes"),
    (b"\x01\x02", "2 bytes"),
    (struct.pack("<Q", 50) + b"{}", "claims 50 bytes"),
    (struct.pack("<Q", 2**63) + b"{}", "claims"),
    (_raw(b"not json"), "not valid JSON"),
    (_raw(b"\xff\xfe{}"), "not valid JSON"),
    (_raw(b"[" * 100_000), "not valid JSON"),
    (_raw([1]), "not an object"),
    (_raw({"a": 3}), "needs dtype"),
    (_raw({"a": {**_F, "dtype": "F31"}}, b"0" * 8), "unknown dtype"),
    (_raw({"a": {**_F, "shape": [-2]}}, b"0" * 8), "whole numbers"),
    (_raw({"a": {**_F, "shape": [True, 2]}}, b"0" * 8), "whole numbers"),
    (_raw({"a": {**_F, "shape": 2}}, b"0" * 8), "whole numbers"),
    (_raw({"a": {**_F, "data_offsets": [8, 0]}}, b"0" * 8), "must be"),
    (_raw({"a": {**_F, "data_offsets": [0]}}, b"0" * 8), "must be"),
    (_raw({"a": {**_F, "shape": [3]}}, b"0" * 8), "takes 12 bytes"),
    (_raw({"a": {**_F, "shape": [2**62, 2**62]}}, b"0" * 8), "takes"),
    (_raw({"a": _F}, b"0" * 7), "truncated"),
    (_raw({"a": _F}, b"0" * 9), "no tensor owns"),
    (_raw({"a": _F, "b": _F}, b"0" * 8), "overlaps"),
    (_raw({"a": _F, "b": {**_F, "data_offsets": [12, 20]}}, b"0" * 20), "hole"),
    (_raw({"a": {**_F, "data_offsets": [0, 2**64]}}, b"0" * 8), "takes 8 bytes"),
    (_raw(b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, '
          b'"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'), "twice"),
    (_raw({"__metadata__": {"a": 1}}), "strings to strings"),
    (_raw({"a": {**_F, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}), "dimensions"),
    (_raw({"a": {**_F, "shape": [1] * 70 + [2]}}, b"0" * 8), "70|71 dimensions"),
    (_raw({"\ud800": _F}, b"0" * 8), "surrogate"),
    (_raw({"a": {**_F, "dtype": "BOOL", "shape": [8]}}, b"\1\0\2" + b"\0" * 5), "the byte 2"),
])
def test_damage(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=text):
        ours.load(content)


def test_every_truncation_and_missing_file(tmp_path: Path) -> None:
    whole = ours.save({"w": gs.arange(5), "v": gs.ones(3)})
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            ours.load(whole[:length])
    with pytest.raises(CheckpointError, match="no such file"):
        load_file(tmp_path / "nowhere")


def test_a_flipped_bit_in_the_header_is_an_error_or_harmless(tmp_path: Path) -> None:
    """Every bit of length and header: refused, or the tensors still fill the file exactly."""
    whole = ours.save({"w": gs.arange(3), "b": gs.tensor([True, False])}, {"k": "v"})
    end, accepted = len(whole) - 3 * 8 - 2, 0
    for bit in range(8 * end):
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        try:
            found = ours.load(bytes(harmed))
        except CheckpointError:
            continue
        accepted += 1  # a letter of a name or of the metadata, or a type of the same size
        assert sum(t.numel() * t.element_size() for t in found.values()) == 3 * 8 + 2
    assert 0 < accepted < end


def test_dtype_that_gossamer_lacks(tmp_path: Path) -> None:
    path = tmp_path / "u16"
    path.write_bytes(_raw({"a": {"dtype": "U16", "shape": [1], "data_offsets": [0, 2]}}, b"00"))
    with safe_open(path) as file:
        assert file.keys() == ["a"]
        with pytest.raises(CheckpointError, match="U16"):
            file.get_tensor("a")


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": gs.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="only tensors"):
        save_file({"a": [1.0]}, path)  # type: ignore[dict-item]
    with pytest.raises(ZeroDivisionError), ours.write_atomically(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    with pytest.raises(CheckpointError, match="was not written"):
        save_file({"a": gs.ones(2)}, tmp_path / "no" / "folder")
