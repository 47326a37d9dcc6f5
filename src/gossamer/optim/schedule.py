"""Learning-rate schedules, all of them. Layer 5.

A schedule rewrites `group["lr"]` when stepped. Each states how the rate follows from the last one
(so that schedules chain, as PyTorch's do) and, where it matters, from the start alone. Sources:
Loshchilov & Hutter 2016 (cosine, warm restarts), Smith 2017 (cyclic, one cycle), Hu et al. 2024
(warmup-stable-decay).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from gossamer.optim.base import Group, Optimizer
from gossamer.tensor import Tensor, no_grad

__all__ = [
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
    "ExponentialLR", "LRScheduler", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR",
    "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "SequentialLR", "StepLR",
    "WarmupStableDecay",
]


def _set(group: Group, name: str, value: float) -> None:
    if isinstance(group[name], Tensor):
        with no_grad():
            group[name].fill_(value)
    else:
        group[name] = value


def _each(name: str, value: Any, count: int) -> list[float]:
    """One number per group."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: expected {count} values, one per group, got {len(values)}.")
    return values


class LRScheduler:
    """Base of schedules: `step()` after each optimizer step (or epoch).

    Args:
        optimizer: its groups' "lr" are rewritten; "initial_lr" remembers where they started.
        last_epoch: number of steps already taken; -1 starts anew.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: {type(optimizer).__name__} is not an "
                            "Optimizer.")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(f"param 'initial_lr' is not specified in param_groups[{i}] when "
                               "resuming a scheduler with last_epoch >= 0. Load the optimizer's "
                               "state first.")
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._step_count = 0
        self._is_initial = False
        self._initial_step()

    def _initial_step(self) -> None:
        self._step_count = 0
        self._is_initial = True
        self.step()
        self._is_initial = False

    def get_lr(self) -> list[float]:
        """The rates of this step, from those of the last one."""
        raise NotImplementedError(f"{type(self).__name__}.get_lr is not defined")

    def closed_form(self) -> list[float] | None:
        """The rates of this step from `base_lrs` alone, where there is a formula."""
        return None

    def get_last_lr(self) -> list[float]:
        """The rates set by the last step."""
        return self._last_lr

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the next step, or of step `epoch`."""
        self._step_count += 1
        if epoch is None:
            self.last_epoch += 1
            rates = self.get_lr()
        else:
            self.last_epoch = epoch
            closed = self.closed_form()
            rates = self.get_lr() if closed is None else closed
        self._apply(rates)

    def _apply(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            _set(group, "lr", rate)
        self._last_lr = self._rates()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.__dict__.update(state_dict)


class _Lambdas(LRScheduler):
    """Schedules by a function per group."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        count = len(optimizer.param_groups)
        several = isinstance(lr_lambda, (list, tuple))
        self.lr_lambdas: list[Callable[[int], float]] = (
            list(lr_lambda) if several else [lr_lambda] * count)
        if len(self.lr_lambdas) != count:
            raise ValueError(f"{type(self).__name__}: expected {count} lr_lambdas, but got "
                             f"{len(self.lr_lambdas)}.")
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and the functions."""
        return {k: v for k, v in super().state_dict().items() if k != "lr_lambdas"}


class LambdaLR(_Lambdas):
    """initial lr · lr_lambda(step)."""

    def get_lr(self) -> list[float]:
        return [base * f(self.last_epoch)
                for f, base in zip(self.lr_lambdas, self.base_lrs, strict=True)]


class MultiplicativeLR(_Lambdas):
    """last lr · lr_lambda(step)."""

    def get_lr(self) -> list[float]:
        if self._is_initial:
            return self._rates()
        return [lr * f(self.last_epoch)
                for f, lr in zip(self.lr_lambdas, self._rates(), strict=True)]


class StepLR(LRScheduler):
    """Times gamma every step_size steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1,
                 last_epoch: int = -1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0 or self.last_epoch % self.step_size:
            return self._rates()
        return [lr * self.gamma for lr in self._rates()]

    def closed_form(self) -> list[float]:
        return [b * self.gamma ** (self.last_epoch // self.step_size) for b in self.base_lrs]


class MultiStepLR(LRScheduler):
    """Times gamma at each milestone."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1,
                 last_epoch: int = -1) -> None:
        self.milestones, self.gamma = dict(Counter(milestones)), gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        times = self.milestones.get(self.last_epoch, 0)
        return [lr * self.gamma ** times for lr in self._rates()]

    def closed_form(self) -> list[float]:
        passed = sum(n for at, n in self.milestones.items() if at <= self.last_epoch)
        return [b * self.gamma ** passed for b in self.base_lrs]


class ExponentialLR(LRScheduler):
    """Times gamma every step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        factor = 1.0 if self._is_initial else self.gamma
        return [lr * factor for lr in self._rates()]

    def closed_form(self) -> list[float]:
        return [b * self.gamma ** self.last_epoch for b in self.base_lrs]


class ConstantLR(LRScheduler):
    """Times factor for the first total_iters steps."""

    def __init__(self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5,
                 last_epoch: int = -1) -> None:
        if not 0 <= factor <= 1.0:
            raise ValueError(f"ConstantLR: factor={factor} expected to be between 0 and 1.")
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self._rates()]
        if self.last_epoch != self.total_iters:
            return self._rates()
        return [lr / self.factor for lr in self._rates()]

    def closed_form(self) -> list[float]:
        now = self.factor if self.last_epoch < self.total_iters else 1.0
        return [b * now for b in self.base_lrs]


class LinearLR(LRScheduler):
    """From start_factor to end_factor of the rate in total_iters steps."""

    def __init__(self, optimizer: Optimizer, start_factor: float = 1.0 / 3,
                 end_factor: float = 1.0, total_iters: int = 5, last_epoch: int = -1) -> None:
        if not 0 < start_factor <= 1.0 or not 0 <= end_factor <= 1.0:
            raise ValueError(f"LinearLR: start_factor={start_factor} must be in (0, 1], end_factor="
                             f"{end_factor} in [0, 1].")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in self._rates()]
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        rise = self.end_factor - self.start_factor
        ratio = 1.0 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise)
        return [lr * ratio for lr in self._rates()]

    def closed_form(self) -> list[float]:
        done = min(self.total_iters, self.last_epoch) / self.total_iters
        factor = self.start_factor + (self.end_factor - self.start_factor) * done
        return [b * factor for b in self.base_lrs]


class PolynomialLR(LRScheduler):
    """initial lr · (1 - step/total_iters)^power, then 0."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0,
                 last_epoch: int = -1) -> None:
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self._is_initial or self.last_epoch == 0 or self.last_epoch > self.total_iters:
            return self._rates()
        left = 1.0 - self.last_epoch / self.total_iters
        before = 1.0 - (self.last_epoch - 1) / self.total_iters
        return [lr * (left / before) ** self.power for lr in self._rates()]

    def closed_form(self) -> list[float]:
        done = min(self.total_iters, self.last_epoch) / self.total_iters
        return [b * (1.0 - done) ** self.power for b in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate to eta_min in T_max steps (and back)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0,
                 last_epoch: int = -1) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        t, span = self.last_epoch, self.T_max
        if self._is_initial:
            return self._rates()
        if self._step_count == 1 and t > 0:
            return self.closed_form()
        if (t - 1 - span) % (2 * span) == 0:  # leaving the minimum: the ratio below is 0 / 0
            return [lr + (b - self.eta_min) * (1 - math.cos(math.pi / span)) / 2
                    for b, lr in zip(self.base_lrs, self._rates(), strict=True)]
        ratio = (1 + math.cos(math.pi * t / span)) / (1 + math.cos(math.pi * (t - 1) / span))
        return [ratio * (lr - self.eta_min) + self.eta_min for lr in self._rates()]

    def closed_form(self) -> list[float]:
        wave = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (b - self.eta_min) * wave for b in self.base_lrs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half cosines of T_0, T_0·T_mult, … steps, each starting at the initial rate."""

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0,
                 last_epoch: int = -1) -> None:
        if not isinstance(T_0, int) or not isinstance(T_mult, int) or T_0 <= 0 or T_mult < 1:
            raise ValueError("CosineAnnealingWarmRestarts: expected positive integers, but got "
                             f"T_0={T_0}, T_mult={T_mult}.")
        self.T_0, self.T_i, self.T_mult, self.eta_min = T_0, T_0, T_mult, eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        wave = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (b - self.eta_min) * wave for b in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Next step, or go to `epoch` (a fraction is allowed)."""
        self._step_count += 1
        if epoch is None and self.last_epoch < 0:
            epoch = 0
        if epoch is None:
            self.last_epoch += 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur -= self.T_i
                self.T_i *= self.T_mult
        else:
            self._go_to(epoch)
        self._apply(self.get_lr())

    def _go_to(self, epoch: float) -> None:
        if epoch < 0:
            raise ValueError(f"CosineAnnealingWarmRestarts: expected non-negative epoch, but "
                             f"got {epoch}.")
        self.last_epoch = math.floor(epoch)
        if self.T_mult == 1:
            self.T_cur, self.T_i = epoch % self.T_0, self.T_0
            return
        start, length = 0, self.T_0
        while epoch >= start + length:
            start, length = start + length, length * self.T_mult
        self.T_cur, self.T_i = epoch - start, length


class OneCycleLR(LRScheduler):
    """Up to max_lr in pct_start of the steps, then down to nearly nothing; momentum the other way.

    Args:
        max_lr: one number or one per group.
        total_steps, or epochs and steps_per_epoch.
        anneal_strategy: "cos" or "linear".
        div_factor, final_div_factor: first rate max_lr/div_factor; the last is that divided by
            final_div_factor.
        three_phase: back to the first rate before the last descent.
    """

    def __init__(self, optimizer: Optimizer, max_lr: Any, total_steps: int | None = None,
                 epochs: int | None = None, steps_per_epoch: int | None = None,
                 pct_start: float = 0.3, anneal_strategy: str = "cos",
                 cycle_momentum: bool = True, base_momentum: Any = 0.85, max_momentum: Any = 0.95,
                 div_factor: float = 25.0, final_div_factor: float = 1e4,
                 three_phase: bool = False, last_epoch: int = -1) -> None:
        if total_steps is None:
            if not epochs or not steps_per_epoch:
                raise ValueError("OneCycleLR: you must define either total_steps OR (epochs AND "
                                 "steps_per_epoch).")
            total_steps = epochs * steps_per_epoch
        if total_steps <= 0 or not 0 <= pct_start <= 1 or anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: total_steps={total_steps} must be positive, pct_start="
                             f"{pct_start} in [0, 1], anneal_strategy={anneal_strategy!r} 'cos' or "
                             "'linear'.")
        self.total_steps, self.anneal_strategy = total_steps, anneal_strategy
        self._phases = self._plan(total_steps, pct_start, three_phase)
        count = len(optimizer.param_groups)
        highest, low_m, high_m = (_each("OneCycleLR", v, count) for v in
                                  (max_lr, base_momentum, max_momentum))
        self.cycle_momentum = cycle_momentum
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group["initial_lr"] = highest[i] / div_factor
                group["max_lr"] = highest[i]
                group["min_lr"] = group["initial_lr"] / final_div_factor
            if cycle_momentum and "momentum" not in group and "betas" not in group:
                raise ValueError("OneCycleLR: optimizer must support momentum or beta1 with "
                                 "`cycle_momentum` option enabled.")
            if cycle_momentum and last_epoch == -1:
                group["base_momentum"], group["max_momentum"] = low_m[i], high_m[i]
                self._set_momentum(group, high_m[i])
        super().__init__(optimizer, last_epoch)

    @staticmethod
    def _plan(total: int, share: float, three: bool) -> list[tuple[float, str, str, str, str]]:
        """Phases: last step, rate from and to, momentum from and to (keys of the group)."""
        peak = float(share * total) - 1
        up = (peak, "initial_lr", "max_lr", "max_momentum", "base_momentum")
        if not three:
            return [up, (total - 1, "max_lr", "min_lr", "base_momentum", "max_momentum")]
        return [up,
                (float(2 * share * total) - 2, "max_lr", "initial_lr", "base_momentum",
                 "max_momentum"),
                (total - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum")]

    def _between(self, start: float, end: float, done: float) -> float:
        if self.anneal_strategy == "linear":
            return (end - start) * done + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * done) + 1)

    @staticmethod
    def _set_momentum(group: Group, value: float) -> None:
        if "betas" in group:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value

    def get_lr(self) -> list[float]:
        t = self.last_epoch
        if t > self.total_steps:
            raise ValueError(f"Tried to step {t} times. The specified number of total steps is "
                             f"{self.total_steps}")
        begin = 0.0
        for end, *keys in self._phases:  # noqa: B007
            if t <= end:
                break
            begin = end
        else:
            begin = self._phases[-2][0]
        done = (t - begin) / (end - begin)
        rates = []
        for group in self.optimizer.param_groups:
            rates.append(self._between(group[keys[0]], group[keys[1]], done))
            if self.cycle_momentum:
                self._set_momentum(group, self._between(group[keys[2]], group[keys[3]], done))
        return rates


class SequentialLR(LRScheduler):
    """One schedule after the other, switching at milestones."""

    def __init__(self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int],
                 last_epoch: int = -1) -> None:
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise ValueError(f"SequentialLR: {len(schedulers)} schedulers need one milestone "
                             f"fewer, got {len(milestones)}.")
        if any(s.optimizer is not optimizer for s in schedulers):
            raise ValueError("SequentialLR: all schedulers must belong to the same optimizer.")
        self.optimizer = optimizer
        self._schedulers, self._milestones = schedulers, milestones
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:
            _set(group, "lr", float(group["initial_lr"]))
        for s in schedulers:  # undo the first step that each took when it was made
            s.last_epoch -= 1
        schedulers[0]._initial_step()
        self._last_lr = schedulers[0].get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """Step the schedule whose turn it is."""
        self.last_epoch += 1
        i = bisect_right(self._milestones, self.last_epoch)
        current = self._schedulers[i]
        if i > 0 and self._milestones[i - 1] == self.last_epoch:
            current.step(0)
        else:
            current.step()
        self._last_lr = current.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """State of all schedules."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "_schedulers")}
        return {**own, "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        state = dict(state_dict)
        for s, saved in zip(self._schedulers, state.pop("_schedulers"), strict=True):
            s.load_state_dict(saved)
        self.__dict__.update(state)


class ChainedScheduler(SequentialLR):
    """All schedules at once, each acting on what the one before left."""

    def __init__(self, schedulers: list[LRScheduler], optimizer: Optimizer | None = None) -> None:
        if not schedulers:
            raise ValueError("ChainedScheduler expects at least one scheduler to be chained, but "
                             "got no scheduler.")
        self._schedulers = list(schedulers)
        self.optimizer = optimizer or schedulers[0].optimizer
        if any(s.optimizer is not self.optimizer for s in schedulers):
            raise ValueError("ChainedScheduler: all schedulers must belong to the same optimizer.")
        self._last_lr = self._rates()

    def step(self, epoch: int | None = None) -> None:
        """Step all schedules, in order."""
        for s in self._schedulers:
            s.step()
        self._last_lr = self._rates()


class ReduceLROnPlateau(LRScheduler):
    """Times factor when a metric has not improved for `patience` steps.

    Args:
        mode: whether the metric should get smaller ("min") or larger ("max").
        threshold, threshold_mode: what counts as better, relative ("rel") or absolute ("abs").
        cooldown: steps to wait after a reduction.
        min_lr: floor, one number or one per group; eps: smaller changes are left out.
    """

    def __init__(self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1,
                 patience: int = 10, threshold: float = 1e-4, threshold_mode: str = "rel",
                 cooldown: int = 0, min_lr: Any = 0.0, eps: float = 1e-8) -> None:
        if factor >= 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor={factor} should be < 1.0.")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(f"ReduceLROnPlateau: mode={mode!r} is 'min' or 'max', threshold_mode="
                             f"{threshold_mode!r} 'rel' or 'abs'.")
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.eps = threshold, threshold_mode, eps
        count = len(optimizer.param_groups)
        self.min_lrs = _each("ReduceLROnPlateau", min_lr, count)
        self.cooldown = cooldown
        self.last_epoch = 0
        self._last_lr = self._rates()
        self._reset()

    def _reset(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def is_better(self, a: float, best: float) -> bool:
        """Whether `a` counts as an improvement over `best`."""
        if self.threshold_mode == "rel":
            sign = -1 if self.mode == "min" else 1
            bar = best * (1.0 + sign * self.threshold)
        else:
            bar = best + (self.threshold if self.mode == "max" else -self.threshold)
        return a < bar if self.mode == "min" else a > bar

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take note of a metric (a number or a tensor, which is looked at)."""
        current = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.is_better(current, self.best):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self._rates()

    def _reduce(self) -> None:
        for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            old = float(group["lr"])
            new = max(old * self.factor, floor)
            if old - new > self.eps:
                _set(group, "lr", new)


class WarmupStableDecay(LRScheduler):
    """Linear warmup, a constant stretch, then decay to a fraction of the rate.

    Args:
        total_steps: all steps together.
        warmup_steps: from 1/warmup_steps of the rate up to it.
        decay_share: the last part of the steps, during which the rate falls.
        final_fraction: of the rate, reached at total_steps.
        shape: "linear", "cosine" or "sqrt" (1 - √x, Hägele et al. 2024).
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0,
                 decay_share: float = 0.2, final_fraction: float = 0.0, shape: str = "linear",
                 last_epoch: int = -1) -> None:
        if shape not in ("linear", "cosine", "sqrt"):
            raise ValueError(f"WarmupStableDecay: shape={shape!r} is not linear, cosine or sqrt.")
        if not 0 <= decay_share <= 1 or warmup_steps < 0 or total_steps <= 0:
            raise ValueError(f"WarmupStableDecay: total_steps={total_steps}, "
                             f"warmup_steps={warmup_steps}, decay_share={decay_share}; counts must "
                             "not be negative, the share in [0, 1].")
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.decay_share, self.final_fraction, self.shape = decay_share, final_fraction, shape
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Fraction of the initial rate at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        length = self.decay_share * self.total_steps
        into = step - (self.total_steps - length)
        if into <= 0 or length == 0:
            return 1.0
        x = min(into / length, 1.0)
        fallen = {"linear": x, "cosine": (1 - math.cos(math.pi * x)) / 2, "sqrt": math.sqrt(x)}
        return 1.0 + (self.final_fraction - 1.0) * fallen[self.shape]

    def get_lr(self) -> list[float]:
        return [b * self.factor(self.last_epoch) for b in self.base_lrs]

    closed_form = get_lr
