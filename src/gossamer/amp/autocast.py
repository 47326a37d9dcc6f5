"""`autocast`: products in a low dtype for a block or a function. Layer 4.

The one idea: a thread has at most one autocast dtype, `MODES.autocast`; the functions of the
surface read it (see `casting`). Entering a region sets it, leaving restores what was before, so
regions nest; a region with `enabled=False` is float32 inside a bfloat16 one.

Source: PyTorch, "Automatic Mixed Precision package - torch.amp".
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from gossamer.core.dtype import DType, as_dtype, bfloat16, float16
from gossamer.core.errors import DeviceError, DTypeError
from gossamer.dispatch import PUBLIC
from gossamer.modes import MODES, Mode
from gossamer.tensor import Tensor

__all__ = ["autocast", "custom_bwd", "custom_fwd", "is_autocast_available"]

_DEFAULT: dict[str, DType] = {"cpu": bfloat16, "cuda": float16}
_CACHE = {"enabled": True}  # what regions that do not say take for `cache_enabled`


def _device_type(value: Any, name: str) -> str:
    """A device's type from its name or a Device."""
    kind = getattr(value, "type", value)
    if not isinstance(kind, str):
        raise DeviceError(f"{name}: expected a device type such as 'cpu', not {value!r}.")
    kind = kind.partition(":")[0]
    if kind not in _DEFAULT:
        raise DeviceError(f"{name}: no autocast for {value!r}. Gossamer has it for 'cpu'.")
    return kind


def is_autocast_available(device_type: Any) -> bool:
    """Whether `autocast` does anything on a device type here: on "cpu" it does."""
    return bool(getattr(device_type, "type", device_type) == "cpu")


class autocast(Mode):
    """Run products in `dtype` inside a block or a decorated function.

    Matrix products, `linear`, convolutions and attention take their floating-point arguments in
    `dtype` (float64 stays), losses and decompositions take low ones in float32, all else takes
    what comes. Parameters and their gradients stay in their own dtype. Inside `compile` the casts
    become part of the kernels that read the weights. The backward pass belongs outside the block.

    Args:
        device_type: "cpu" ("cuda" is accepted, with a warning, and does nothing).
        dtype: bfloat16 or float16; None: `get_autocast_dtype`.
        enabled: False turns autocast off in the block.
        cache_enabled: keep the casts of parameters until the outermost block ends; None: as set.

    Raises:
        DeviceError: no such device type.

    Example:
        >>> with gs.autocast("cpu", dtype=gs.bfloat16):
        ...     (gs.ones(2, 2) @ gs.ones(2, 2)).dtype
        gossamer.bfloat16
    """

    def __init__(self, device_type: Any = "cpu", dtype: Any = None, enabled: bool = True,
                 cache_enabled: bool | None = None) -> None:
        self.device = _device_type(device_type, "autocast")
        self.fast_dtype = _DEFAULT[self.device] if dtype is None else as_dtype(dtype)
        self._cache = _CACHE["enabled"] if cache_enabled is None else bool(cache_enabled)
        self._enabled = bool(enabled)
        if self._enabled and self.device != "cpu":
            warnings.warn(f"autocast({self.device!r}): there is no such device here; the block "
                          "runs without autocast. Pass 'cpu'.", stacklevel=2)
            self._enabled = False
        if self._enabled and self.fast_dtype not in (bfloat16, float16):
            warnings.warn(f"autocast(dtype={self.fast_dtype!r}): the dtype must be bfloat16 or "
                          "float16; the block runs without autocast.", stacklevel=2)
            self._enabled = False
        self._before: list[tuple[Any, Any]] = []

    def _again(self) -> autocast:
        return autocast(self.device, self.fast_dtype, self._enabled, self._cache)

    def __enter__(self) -> autocast:  # type: ignore[override]
        self._before.append((MODES.autocast, MODES.cast_cache))
        if self.device != "cpu":
            return self
        MODES.autocast = self.fast_dtype if self._enabled else None
        if not self._cache:
            MODES.cast_cache = None
        elif MODES.cast_cache is None:
            MODES.cast_cache = {}
        return self

    def __exit__(self, *_: object) -> None:
        MODES.autocast, MODES.cast_cache = self._before.pop()


# --------------------------------------------------------------------- functions of your own

def custom_fwd(fwd: Any = None, *, device_type: str = "cpu", cast_inputs: Any = None) -> Any:
    """Decorator of `Function.forward`: what autocast means for an operation of your own.

    Args:
        device_type: "cpu".
        cast_inputs: a dtype: in an autocast region, floating-point tensors (float64 apart) are
            cast to it and autocast is off inside. None: forward runs as the region says.
    """
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)
    kind = _device_type(device_type, "custom_fwd")

    @functools.wraps(fwd)
    def wrapped(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        ctx._amp_dtype = MODES.autocast
        if cast_inputs is None or MODES.autocast is None:
            return fwd(ctx, *args, **kwargs)
        ctx._amp_dtype = None
        with autocast(kind, enabled=False):
            return fwd(ctx, *(_as_float(x, cast_inputs) for x in args),
                       **{k: _as_float(x, cast_inputs) for k, x in kwargs.items()})
    return wrapped


def custom_bwd(bwd: Any = None, *, device_type: str = "cpu") -> Any:
    """Decorator of `Function.backward`: it runs with the autocast that `custom_fwd` ran with."""
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)
    kind = _device_type(device_type, "custom_bwd")

    @functools.wraps(bwd)
    def wrapped(ctx: Any, *args: Any) -> Any:
        dtype = ctx._amp_dtype
        with autocast(kind, dtype=dtype, enabled=dtype is not None):
            return bwd(ctx, *args)
    return wrapped


def _as_float(x: Any, dtype: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 8:
        return x.to(dtype)
    if isinstance(x, (list, tuple)):
        return type(x)(_as_float(y, dtype) for y in x)
    return x


# ------------------------------------------------------------------------------- the questions

def _offer(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make it a function of the package."""
    PUBLIC[fn.__name__] = fn
    return fn


@_offer
def is_autocast_enabled(device_type: str = "cpu") -> bool:
    """Whether products run in a low dtype here."""
    return _device_type(device_type, "is_autocast_enabled") == "cpu" and MODES.autocast is not None


@_offer
def set_autocast_enabled(device_type: Any, enabled: bool | None = None) -> None:
    """Turn autocast on or off for this thread, until a region says otherwise."""
    if enabled is None:  # PyTorch's older form has the flag alone
        device_type, enabled = "cpu", bool(device_type)
    if _device_type(device_type, "set_autocast_enabled") == "cpu":
        MODES.autocast = _DEFAULT["cpu"] if enabled else None


@_offer
def get_autocast_dtype(device_type: str) -> DType:
    """The dtype of the region we are in, else that of regions which do not say."""
    kind = _device_type(device_type, "get_autocast_dtype")
    here: DType | None = MODES.autocast
    return here if kind == "cpu" and here is not None else _DEFAULT[kind]


@_offer
def set_autocast_dtype(device_type: str, dtype: Any) -> None:
    """Set the dtype of regions that do not say.

    Raises:
        DTypeError: it is neither bfloat16 nor float16.
    """
    chosen = as_dtype(dtype)
    if chosen not in (bfloat16, float16):
        raise DTypeError(f"set_autocast_dtype({device_type!r}, {dtype!r}): the dtype must be "
                         "bfloat16 or float16.")
    _DEFAULT[_device_type(device_type, "set_autocast_dtype")] = chosen
    if MODES.autocast is not None and device_type == "cpu":
        MODES.autocast = chosen


@_offer
def is_autocast_cache_enabled() -> bool:
    """Whether regions that do not say keep the casts of parameters."""
    return _CACHE["enabled"]


@_offer
def set_autocast_cache_enabled(enabled: bool) -> None:
    """Set whether regions that do not say keep the casts of parameters."""
    _CACHE["enabled"] = bool(enabled)


@_offer
def clear_autocast_cache() -> None:
    """Forget the casts of parameters of the region we are in."""
    if MODES.cast_cache is not None:
        MODES.cast_cache.clear()


@_offer
def is_autocast_cpu_enabled() -> bool:
    """`is_autocast_enabled("cpu")`, PyTorch's older name."""
    return MODES.autocast is not None


@_offer
def get_autocast_cpu_dtype() -> DType:
    """`get_autocast_dtype("cpu")`, PyTorch's older name."""
    found: DType = get_autocast_dtype("cpu")
    return found


PUBLIC["autocast"] = autocast
