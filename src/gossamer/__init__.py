"""Gossamer: a deep-learning framework, light enough to see through.

The public API has PyTorch's names and semantics: `import gossamer as gs` where one would import
torch. This file only gathers; functions live in the module of their family, and register themselves
in `dispatch.PUBLIC`.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from gossamer import (
    amp as amp,
    autograd as autograd,
    func as func,
    functional as functional,
    linalg as linalg,
    masked as masked,
    signal as signal,
    special as special,
)
from gossamer.compile_ import compile as compile
from gossamer.core.dtype import (
    DType as dtype,  # noqa: F401
    bfloat16 as bfloat16,
    bool_ as bool,  # noqa: F401
    float16 as float16,
    float32 as float32,
    float64 as float64,
    int8 as int8,
    int16 as int16,
    int32 as int32,
    int64 as int64,
    uint8 as uint8,
)
from gossamer.core.errors import (
    CheckpointError as CheckpointError,
    CompileError as CompileError,
    DeviceError as DeviceError,
    DTypeError as DTypeError,
    GossamerError as GossamerError,
    GradientError as GradientError,
    IndexingError as IndexingError,
    ShapeError as ShapeError,
    TraceError as TraceError,
)
from gossamer.core.precision import (
    get_float32_matmul_precision as get_float32_matmul_precision,
    set_float32_matmul_precision as set_float32_matmul_precision,
)
from gossamer.devices import (
    Device as device,  # noqa: F401
    get_default_device as get_default_device,
    set_default_device as set_default_device,
)
from gossamer.dispatch import PUBLIC
from gossamer.modes import is_inference_mode_enabled as is_inference_mode_enabled
from gossamer.runtime.threads import (
    get_num_threads as get_num_threads,
    set_num_threads as set_num_threads,
)
from gossamer.tensor import Parameter as Parameter, Size as Size, Tensor as Tensor

if TYPE_CHECKING:
    from gossamer import (
        data as data,
        insight as insight,
        nn as nn,
        optim as optim,
        quantization as quantization,
    )
    from gossamer.creation import tensor as tensor  # not the module of that name
    from gossamer.insight import explain as explain, profile as profile
    from gossamer.quantization import quantize_ as quantize_

# Rooms that are loaded when somebody names them: a third of the time that importing all would take.
_ROOMS = ("data", "insight", "nn", "optim", "quantization")
_LATE = {"explain": "insight", "profile": "insight", "quantize_": "quantization"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"gossamer.{name}")
    if name in _LATE:
        return getattr(importlib.import_module(f"gossamer.{_LATE[name]}"), name)
    raise AttributeError(f"module 'gossamer' has no attribute {name!r}")


__version__ = "0.1.0"
double, float, half = float64, float32, float16
long, int, short = int64, int32, int16
inf, nan, pi, e = math.inf, math.nan, math.pi, math.e
strided = "strided"
contiguous_format, channels_last, preserve_format = "contiguous", "channels_last", "preserve"

globals().update(PUBLIC)
