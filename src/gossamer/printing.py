"""How a tensor prints: `tensor([[1., 2.], [3., 4.]])`. Layer 4.

Numbers of one tensor share a format: whole floats end in a point, others get `precision` digits,
and a wide range goes to scientific notation. Large tensors show their edges.

Source of the format: PyTorch's printing, which follows NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossamer.core.dtype import bool_, get_default_dtype, int64
from gossamer.core.errors import DTypeError
from gossamer.devices import CPU
from gossamer.dispatch import PUBLIC
from gossamer.tensor import Parameter, Tensor, attach

__all__ = ["set_printoptions", "text"]


@dataclass
class Options:
    """Print options.

    Attributes:
        precision: digits after the point.
        threshold: from this many elements on only the edges are shown.
        edgeitems: how many elements of an edge.
        linewidth: characters of a line.
        sci_mode: scientific notation always (True), never (False), by range (None).
    """

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


OPTIONS = Options()
_PROFILES = {"default": Options(), "short": Options(precision=2, edgeitems=2),
             "full": Options(threshold=math.inf)}


def set_printoptions(precision: int | None = None, threshold: float | None = None,
                     edgeitems: int | None = None, linewidth: int | None = None,
                     profile: str | None = None, sci_mode: bool | None = None) -> None:
    """Set how tensors print.

    Args:
        precision: digits after the point (4).
        threshold: from this many elements on only the edges are shown (1000).
        edgeitems: how many elements of an edge (3).
        linewidth: characters of a line (80).
        profile: "default", "short" or "full": a set of the above.
        sci_mode: scientific notation always, never, or (None) by range.
    """
    if profile is not None:
        if profile not in _PROFILES:
            raise DTypeError(f"set_printoptions(profile={profile!r}): it must be one of "
                             f"{', '.join(_PROFILES)}.")
        OPTIONS.__dict__.update(_PROFILES[profile].__dict__)
    for name, value in (("precision", precision), ("threshold", threshold),
                        ("edgeitems", edgeitems), ("linewidth", linewidth)):
        if value is not None:
            setattr(OPTIONS, name, value)
    OPTIONS.sci_mode = sci_mode


class Format:
    """The common format of some numbers."""

    def __init__(self, values: np.ndarray, kind: str) -> None:
        self.kind = kind
        self.whole = self.scientific = False
        flat = values.reshape(-1)
        if kind == "f":
            flat = flat.astype(np.float64)
            flat = flat[np.isfinite(flat) & (flat != 0)]
            self._study(np.abs(flat))
        self.width = max((len(self._plain(v)) for v in flat.tolist()), default=1)

    def _study(self, finite: np.ndarray) -> None:
        """Choose by the sizes of the numbers other than 0."""
        self.whole = bool(np.all(finite == np.ceil(finite)))
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
            # PyTorch's limits: beyond them fixed point would lose digits or grow too wide.
            wide = high / low > 1000.0 or high > 1.0e8
            self.scientific = wide or not self.whole and low < 1.0e-4
        if OPTIONS.sci_mode is not None:
            self.scientific = OPTIONS.sci_mode

    def _plain(self, value: Any) -> str:
        if self.kind != "f":
            return str(value)
        if self.scientific:
            return f"{value:.{OPTIONS.precision}e}"
        if self.whole:
            return f"{value:.0f}." if math.isfinite(value) else f"{value:.0f}"
        return f"{value:.{OPTIONS.precision}f}"

    def __call__(self, value: Any) -> str:
        return self._plain(value).rjust(self.width)


def _edges(array: np.ndarray) -> np.ndarray:
    """The elements that will be shown."""
    n = OPTIONS.edgeitems
    for axis in range(array.ndim):
        if array.shape[axis] > 2 * n:
            picked = np.r_[:n, array.shape[axis] - n:array.shape[axis]]
            array = np.take(array, picked, axis)
    return array


def _row(array: np.ndarray, indent: int, short: bool, form: Format) -> str:
    values = array.tolist()
    if short and len(values) > 2 * OPTIONS.edgeitems:
        n = OPTIONS.edgeitems
        items = [form(v) for v in values[:n]] + [" ..."] + [form(v) for v in values[-n:]]
    else:
        items = [form(v) for v in values]
    per_line = max(1, (OPTIONS.linewidth - indent) // (form.width + 2))
    lines = [", ".join(items[i:i + per_line]) for i in range(0, len(items), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _block(array: np.ndarray, indent: int, short: bool, form: Format) -> str:
    if array.ndim == 0:
        return form(array.item())
    if array.ndim == 1:
        return _row(array, indent, short, form)
    parts = list(_slices(array, indent, short, form))
    gap = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
    return "[" + gap.join(parts) + "]"


def _slices(array: np.ndarray, indent: int, short: bool, form: Format) -> Iterator[str]:
    n = OPTIONS.edgeitems
    cut = short and array.shape[0] > 2 * n
    for i in range(array.shape[0]):
        if cut and i == n:
            yield "..."
        if not cut or i < n or i >= array.shape[0] - n:
            yield _block(array[i], indent + 1, short, form)


def _suffixes(t: Tensor, with_size: bool) -> list[str]:
    node = t._node
    out = []
    if t.device != CPU:
        out.append(f"device='{t.device}'")
        out.append(f"size={tuple(node.shape)}")
    elif with_size and node.ndim != 1:
        out.append(f"size={tuple(node.shape)}")
    usual = node.dtype in (get_default_dtype(), int64, bool_)
    if not usual or with_size and node.dtype is not get_default_dtype():
        out.append(f"dtype={node.dtype!r}")
    made_by = t.grad_fn
    if made_by is not None:
        out.append(f"grad_fn={made_by!r}")
    elif t.requires_grad:
        out.append("requires_grad=True")
    return out


def _assemble(prefix: str, body: str, suffixes: list[str], indent: int) -> str:
    parts = [prefix + body]
    last = len(body) - body.rfind("\n") + (len(prefix) if "\n" not in body else 0)
    for suffix in suffixes:
        if last + len(suffix) + 2 > OPTIONS.linewidth:
            parts.append(",\n" + " " * indent + suffix)
            last = indent + len(suffix)
        else:
            parts.append(", " + suffix)
            last += len(suffix) + 2
    return "".join(parts) + ")"


def text(t: Tensor) -> str:
    """The tensor as `repr` shows it. Computes it."""
    prefix = "tensor("
    node = t._node
    if t.device != CPU:
        return _assemble(prefix, "...", _suffixes(t, True), len(prefix))
    if node.size == 0:
        return _assemble(prefix, "[]", _suffixes(t, True), len(prefix))
    array = t._value().array()
    short = array.size > OPTIONS.threshold
    kind = "f" if node.dtype.kind == "f" else "i"
    form = Format(_edges(array) if short else array, kind)
    body = _block(array, len(prefix), short, form)
    if array.ndim == 0:
        body = body.strip()
    return _assemble(prefix, body, _suffixes(t, False), len(prefix))


def _repr(self: Tensor) -> str:
    if isinstance(self, Parameter):
        return f"Parameter containing:\n{text(self)}"
    return text(self)


attach("__repr__", _repr)
attach("__str__", _repr)
PUBLIC["set_printoptions"] = set_printoptions
