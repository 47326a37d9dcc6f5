"""Devices: where a tensor lives. Layer 4.

There are two: `cpu`, and `meta`, whose tensors have shape and dtype but no values, so that a model
can be built without memory and filled from a checkpoint. `with device("meta"):` makes new tensors
there. A node of the meta device holds the mark META in its `value`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.core.errors import DeviceError
from gossamer.modes import MODES

__all__ = ["CPU", "META", "META_DEVICE", "Device", "as_device", "get_default_device",
           "is_meta_default", "set_default_device"]

_KNOWN = ("cpu", "meta", "cuda", "mps", "xpu", "mkldnn", "xla", "vulkan")


class MetaValue:
    """The value of a tensor without one."""

    used = False  # whether any meta tensor was ever made: ordinary operations skip the check

    def array(self) -> np.ndarray:
        raise DeviceError("reading a tensor on the meta device: it has a shape and a dtype but no "
                          "values. Move the model with to_empty(device='cpu') and load its "
                          "weights.")


META = MetaValue()


class Device:
    """A device, as in PyTorch: `device("cpu")`, also a context manager for new tensors.

    Args:
        type: "cpu" or "meta", optionally with an index ("cpu:0"), or a Device.
        index: the number of the device, or None.

    Raises:
        DeviceError: the name is not a device's.
    """

    __slots__ = ("_before", "index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | Device, index: int | None = None) -> None:
        if isinstance(type, Device):
            index, type = type.index, type.type
        name, _, number = type.partition(":")
        if name not in _KNOWN or number and not number.isdigit():
            raise DeviceError(f"device({type!r}): no such device. Gossamer has 'cpu' and 'meta'.")
        self.type = name
        self.index = int(number) if number else index
        self._before: list[Any] = []

    def __enter__(self) -> Device:
        self._before.append(MODES.device)
        MODES.device = as_device(self)
        return self

    def __exit__(self, *_: object) -> None:
        MODES.device = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Device) and self.type == other.type and self.index == other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self) -> tuple[object, ...]:
        return (Device, (self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"


CPU = Device("cpu")
META_DEVICE = Device("meta")


def as_device(value: Any) -> Device:
    """The Device meant by `value` (a Device, a name, or None for the default).

    Raises:
        DeviceError: the device does not exist here.
    """
    if value is None:
        return MODES.device or CPU
    if isinstance(value, int):
        value = f"cuda:{value}"
    if not isinstance(value, (str, Device)):
        raise DeviceError(f"device={value!r}: expected a name such as 'cpu' or a gossamer.device.")
    found = value if isinstance(value, Device) else Device(value)
    if found.type not in ("cpu", "meta"):
        raise DeviceError(f"device={str(found)!r}: this machine offers 'cpu' and 'meta'. "
                          "Leave `device` out, or pass device='cpu'.")
    if found.type == "meta":
        MetaValue.used = True
        return META_DEVICE
    return CPU


def is_meta_default() -> bool:
    """Whether new tensors go to the meta device now."""
    return MODES.device is not None and MODES.device.type == "meta"


def get_default_device() -> Device:
    """The device of new tensors."""
    return MODES.device or CPU


def set_default_device(device: Any) -> None:
    """Make `device` the device of new tensors in this thread; None restores the CPU."""
    MODES.device = None if device is None else as_device(device)
