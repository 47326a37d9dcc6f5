"""`GradScaler`: losses scaled up, so that small float16 gradients do not vanish. Layer 4.

The one idea: whether a gradient overflowed is a tensor, and what follows from it is arithmetic: the
new scale and the growth count are selected by it, and inside `compile` so are the parameters and
the optimizer's state before or after the step. So a compiled step never waits for a value.
Outside `compile` the one number is looked at, and a step that overflowed is not run at all.

Source: Micikevicius et al., "Mixed Precision Training", 2018; PyTorch's `torch.amp.GradScaler`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import gossamer.functional as gf
from gossamer import prims
from gossamer.amp.autocast import is_autocast_available
from gossamer.core.dtype import float16, float32, int32
from gossamer.modes import MODES
from gossamer.tensor import Tensor, no_grad, wrap

__all__ = ["GradScaler"]

_READY, _UNSCALED, _STEPPED = "ready", "unscaled", "stepped"


class _Progress:
    """What happened to one optimizer since the last `update`."""

    def __init__(self) -> None:
        self.stage = _READY
        self.found: Tensor | None = None  # whether a gradient was infinite or NaN


class GradScaler:
    """Scales a loss, and undoes it in the gradients before the optimizer uses them.

    scale ← scale · backoff_factor after a step with infinite or NaN gradients (which is skipped),
    scale ← scale · growth_factor after growth_interval good steps in a row.

    Args:
        device: "cpu" ("cuda" is accepted and turns scaling off, with a warning).
        init_scale: the first scale.
        growth_factor: above 1.
        backoff_factor: below 1.
        growth_interval: good steps until the scale grows.
        enabled: False: every method passes through.
        dynamic: False keeps the scale as it is; steps that overflow are still skipped.

    Raises:
        ValueError: a factor does not grow or shrink.

    Example:
        >>> scaler = GradScaler(init_scale=1024.0)
        >>> with gs.autocast("cpu", dtype=gs.float16):
        ...     loss = F.mse_loss(model(x), y)
        >>> scaler.scale(loss).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
    """

    def __init__(self, device: str = "cpu", init_scale: float = 2.0**16,
                 growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000, enabled: bool = True, *,
                 dynamic: bool = True) -> None:
        if enabled and not is_autocast_available(device):
            warnings.warn(f"GradScaler({device!r}): there is no such device here; the scaler does "
                          "nothing. Pass 'cpu'.", stacklevel=2)
            enabled = False
        if growth_factor <= 1.0:
            raise ValueError(f"GradScaler(growth_factor={growth_factor}): it must be above 1.")
        if not 0.0 < backoff_factor < 1.0:
            raise ValueError(f"GradScaler(backoff_factor={backoff_factor}): it must lie between 0 "
                             "and 1.")
        self._enabled, self._dynamic = enabled, dynamic
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval = growth_interval
        self._scale = gf.tensor(float(init_scale), dtype=float32)
        self._growth_tracker = gf.tensor(0, dtype=int32)
        self._progress: dict[int, _Progress] = {}

    # scaling ----------------------------------------------------------------------------------
    def scale(self, outputs: Any) -> Any:
        """A tensor, or every tensor in lists and tuples, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._scale
        if isinstance(outputs, (list, tuple)):
            return type(outputs)(self.scale(x) for x in outputs)
        raise ValueError(f"GradScaler.scale: got {type(outputs).__name__}; outputs must be a "
                         "tensor or an iterable of tensors.")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients by the scale now, for clipping; `step` does it otherwise.

        Raises:
            RuntimeError: called twice since `update`, or after `step`.
            ValueError: a gradient is float16: keep parameters in float32.
        """
        if not self._enabled:
            return
        progress = self._of(optimizer)
        if progress.stage == _UNSCALED:
            raise RuntimeError("unscale_() has already been called on this optimizer since the "
                               "last update().")
        if progress.stage == _STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        with no_grad():
            inverse = self._scale.double().reciprocal().float()
            bad: Tensor | None = None
            for grad in _gradients(optimizer):
                if grad.dtype is float16:
                    raise ValueError("Attempting to unscale FP16 gradients. Keep the parameters "
                                     "in float32 and use autocast.")
                found = grad.isfinite().logical_not().any()
                bad = found if bad is None else bad | found
                grad.mul_(inverse)
            if bad is not None:
                progress.found = bad.float()
        progress.stage = _UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """`optimizer.step(*args)`, unless a gradient is infinite or NaN.

        Returns:
            What the optimizer's step returns; None if it was skipped.

        Raises:
            RuntimeError: called twice since `update`, or with a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or args and args[0] is not None:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        progress = self._of(optimizer)
        if progress.stage == _STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if progress.stage == _READY:
            self.unscale_(optimizer)
        if progress.found is None:
            raise RuntimeError("No inf checks were recorded for this optimizer: none of its "
                               "parameters has a gradient. Call backward() first.")
        progress.stage = _STEPPED
        if MODES.tracing is not None:
            return _step_where_finite(optimizer, progress.found, args, kwargs)
        return None if progress.found.item() else optimizer.step(*args, **kwargs)

    def update(self, new_scale: Any = None) -> None:
        """Grow or shrink the scale after the steps of all optimizers.

        Args:
            new_scale: a number or a tensor to use instead.

        Raises:
            RuntimeError: no optimizer was unscaled or stepped since the last update.
        """
        if not self._enabled:
            return
        with no_grad():
            if new_scale is not None:
                self._scale.copy_(new_scale if isinstance(new_scale, Tensor)
                                  else gf.tensor(float(new_scale), dtype=float32))
            else:
                found = [p.found for p in self._progress.values() if p.found is not None]
                if not found:
                    raise RuntimeError("No inf checks were recorded prior to update. Call step() "
                                       "first.")
                if self._dynamic:
                    self._grow_or_shrink(sum(found[1:], found[0]) > 0)
        self._progress.clear()

    def _grow_or_shrink(self, bad: Tensor) -> None:
        count = gf.where(bad, 0, self._growth_tracker + 1)
        full = count == self._growth_interval
        grown = self._scale * self._growth_factor
        grown = gf.where(full & grown.isfinite(), grown, self._scale)
        self._scale.copy_(gf.where(bad, self._scale * self._backoff_factor, grown))
        self._growth_tracker.copy_(gf.where(full, 0, count))

    def _of(self, optimizer: Any) -> _Progress:
        return self._progress.setdefault(id(optimizer), _Progress())

    # settings ---------------------------------------------------------------------------------
    def is_enabled(self) -> bool:
        """Whether this scaler does anything."""
        return self._enabled

    def get_scale(self) -> float:
        """The scale as a number; 1.0 if disabled. Computes it."""
        return float(self._scale.item()) if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._growth_interval = new_interval

    def state_dict(self) -> dict[str, Any]:
        """Scale, factors, interval and growth count as numbers; empty if disabled."""
        if not self._enabled:
            return {}
        return {"scale": self.get_scale(), "growth_factor": self._growth_factor,
                "backoff_factor": self._backoff_factor, "growth_interval": self._growth_interval,
                "_growth_tracker": int(self._growth_tracker.item())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            RuntimeError: the state is empty: it comes from a disabled scaler.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("The source state dict is empty, possibly because it was saved "
                               "from a disabled instance of GradScaler.")
        with no_grad():
            self._scale.fill_(float(state_dict["scale"]))
            self._growth_tracker.fill_(int(state_dict["_growth_tracker"]))
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]


def _gradients(optimizer: Any) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                yield p.grad


def _tensors(optimizer: Any) -> dict[int, Tensor]:
    """Everything that a step may write: parameters and state."""
    found = [p for group in optimizer.param_groups for p in group["params"]]
    found += [v for state in optimizer.state.values() for v in state.values()
              if isinstance(v, Tensor)]
    return {id(t): t for t in found}


def _step_where_finite(optimizer: Any, found: Tensor, args: tuple[Any, ...],
                       kwargs: dict[str, Any]) -> Any:
    """The step in a trace: everything it writes keeps its old value if `found` is not 0."""
    before = {key: t._read() for key, t in _tensors(optimizer).items()}
    result = optimizer.step(*args, **kwargs)
    bad = found > 0
    with no_grad():
        for key, t in _tensors(optimizer).items():
            old = before.get(key)
            if old is None and key in MODES.tracing.written:  # state made by this very step
                old = MODES.tracing.written[key][1]
            if old is not None and old is not t._read():
                t.copy_(gf.where(bad, wrap(prims.detach(old)), t))
    return result
