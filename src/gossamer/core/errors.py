"""Exceptions raised on purpose. Layer 0.

Every message follows one template: what the user wrote: what was given, with full types; the
rule; what to do. Each class also derives from the built-in exception that PyTorch raises in the
same place, so that code written against PyTorch catches it.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CompileError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "GossamerError",
    "GradientError",
    "IndexingError",
    "ShapeError",
    "TraceError",
]


class GossamerError(Exception):
    """Base class: `except GossamerError` catches everything this package raises on purpose."""


class ShapeError(GossamerError, RuntimeError, ValueError):
    """Operand shapes do not fit the operator."""


class DTypeError(GossamerError, RuntimeError, TypeError):
    """Operand dtypes do not fit the operator."""


class IndexingError(GossamerError, IndexError):
    """An index, a dimension or a slice is out of range or of the wrong kind."""


class DeviceError(GossamerError, RuntimeError):
    """A device name is unknown, or a value is asked of a tensor that has none (`meta`)."""


class GradientError(GossamerError, RuntimeError):
    """Autograd was asked for something it cannot give (no graph, freed graph, not a scalar)."""


class TraceError(GossamerError, RuntimeError):
    """A function under `compile` or `vmap` looked at a value that is not known while tracing."""


class CompileError(GossamerError, RuntimeError):
    """The compiler failed; this is a defect of ours and the message says how to report it."""


class CheckpointError(GossamerError, RuntimeError, ValueError):
    """A checkpoint or safetensors file is damaged, truncated or does not fit the model."""


class DataError(GossamerError, RuntimeError):
    """A data set cannot be downloaded, or a file of it is damaged."""
