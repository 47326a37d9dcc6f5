"""`Optimizer`: parameter groups, state, and the loop around one parameter's update. Layer 5.

An optimizer is two functions: `init_one` makes the state of a parameter, `apply_one` updates a
parameter in place. Both use tensor arithmetic only; step counts are tensors and hyper-parameters
are runtime scalars, so a step traced by `compile` serves every learning rate and every count.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import gossamer.functional as gf
from gossamer.core.dtype import float32, float64
from gossamer.modes import MODES
from gossamer.optim.state import Removable, load_state, save_state
from gossamer.realize import settle
from gossamer.tensor import Tensor, enable_grad, no_grad
from gossamer.tracing import outside, runtime_scalar

__all__ = ["Group", "Hyper", "Optimizer", "State", "blend_", "scalar"]

Group = dict[str, Any]
State = dict[str, Any]


def scalar(group: Group, name: str, pick: Callable[[Any], float] | None = None) -> Any:
    """A hyper-parameter as a number, or as a runtime scalar while a function is traced.

    Args:
        group: the parameter group, read again before each run of a compiled step.
        name: its key; the value may be a Python number, a tuple or a 0-d tensor.
        pick: takes the number out of the value (an entry of `betas`, say).
    """
    value = group[name] if pick is None else pick(group[name])
    if isinstance(value, Tensor):
        return value
    if pick is None:
        return runtime_scalar(lambda: float(group[name]), float64)
    return runtime_scalar(lambda: float(pick(group[name])), float64)


def blend_(mean: Tensor, new: Tensor, share: Any) -> Tensor:
    """mean ← mean + share·(new - mean), the step of a running mean; `share` is any scalar."""
    return mean.add_((new - mean) * share)


class Hyper:
    """The numbers of one group during one step, each fetched once: `h["lr"]`, `h["betas", 0]`.

    Attributes:
        group: the parameter group, for flags that choose the formula.
        count: the step count after this step, a float32 tensor, or None without one.
    """

    def __init__(self, group: Group, count: Tensor | None = None) -> None:
        self.group = group
        self.count = count
        self._known: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        if key not in self._known:
            if isinstance(key, tuple):
                name, place = key
                self._known[key] = scalar(self.group, name, lambda value: value[place])
            else:
                self._known[key] = scalar(self.group, key)
        return self._known[key]

    def active(self, name: str) -> bool:
        """Whether a term can be left out: no, if it is not 0 or may change after tracing."""
        if MODES.tracing is not None:
            return True
        value = self.group[name]
        return isinstance(value, Tensor) or value != 0

    def steps(self) -> Tensor:
        """The step count in float64: powers of betas near 1 need it."""
        assert self.count is not None
        return self.derived("steps", lambda: self.count.to(float64))  # type: ignore[union-attr]

    def correction(self, place: int) -> Tensor:
        """1 - betas[place]ᵗ, the bias correction of Adam and its relatives."""
        return self.derived(("correction", place), lambda: 1 - self["betas", place] ** self.steps())

    def derived(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()`, computed once per step."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Optimizer:
    """Base class of all optimizers.

    Args:
        params: parameters, pairs (name, parameter), or dicts with "params" and own settings.
        defaults: settings of groups that do not give them.

    Attributes:
        param_groups: list of dicts: "params" and the settings; change them at any time.
        state: parameter to dict of its state.
    """

    counts = True  # whether there is a step count

    def __init__(self, params: Iterable[Any], defaults: Group) -> None:
        self.defaults = defaults
        self.state: defaultdict[Any, State] = defaultdict(dict)
        self.param_groups: list[Group] = []
        self._pre_hooks: OrderedDict[int, Any] = OrderedDict()
        self._post_hooks: OrderedDict[int, Any] = OrderedDict()
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params argument given to the optimizer should "
                            "be an iterable of Tensors or dicts, but got a Tensor. Pass [tensor].")
        groups = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__}: optimizer got an empty parameter list. Pass "
                             "model.parameters() once; a generator can be used up only once.")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # ---------------------------------------------------------------- to be defined by subclasses

    def init_one(self, p: Tensor, group: Group) -> State:
        """State of a parameter that has none (without the step count)."""
        return {}

    def apply_one(self, p: Tensor, grad: Tensor, state: State, h: Hyper) -> None:
        """Update `p` and the tensors of `state` in place; all are float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__}.apply_one is not defined")

    # ---------------------------------------------------------------- groups

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with their own settings.

        Raises:
            TypeError: "params" is a set, or holds something that is not a tensor.
            ValueError: a parameter is not a leaf, is in another group, or a setting is missing.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}.")
        group = dict(param_group)
        params = group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError("optimizer parameters need to be organized in ordered collections, but "
                            "the ordering of tensors in sets will change between runs. Please use "
                            "a list instead.")
        params = list(params)
        if params and all(isinstance(p, tuple) for p in params):
            group["param_names"] = [name for name, _ in params]
            params = [p for _, p in params]
        group["params"] = params
        for p in params:
            self._check_param(p)
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        if len({id(p) for p in params}) != len(params):
            warnings.warn("optimizer contains a parameter group with duplicate parameters; in "
                          "future, this will cause an error", stacklevel=3)
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        if any(id(p) in taken for p in params):
            raise ValueError("some parameters appear in more than one parameter group. Give each "
                             "parameter to one group.")
        self.param_groups.append(group)

    def _check_param(self, p: Any) -> None:
        if not isinstance(p, Tensor):
            raise TypeError(f"{type(self).__name__}: optimizer can only optimize Tensors, but one "
                            f"of the params is {type(p).__name__}.")
        if not p.is_leaf and not getattr(p, "retains_grad", False):
            raise ValueError(f"{type(self).__name__}: can't optimize a non-leaf Tensor. Pass the "
                             "parameters themselves, not results of operations on them.")

    # ---------------------------------------------------------------- stepping

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.detach_()
                    p.grad.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: computes the loss again with gradients; its result is returned.
        """
        for hook in list(self._pre_hooks.values()):
            hook(self, (closure,), {})
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            touched: list[Tensor] = []
            for group in self.param_groups:
                touched += self.apply_group(group)
            # In one native call: parameters, state and step counts together.
            settle([t._read() for t in touched])
        for hook in list(self._post_hooks.values()):
            hook(self, (closure,), {})
        return loss

    def apply_group(self, group: Group) -> list[Tensor]:
        """Update the parameters of a group; returns every tensor that was written."""
        live = [p for p in group["params"] if p.grad is not None]
        self._prepare([p for p in live if not self.state.get(p)], group)
        touched: list[Tensor] = []
        hypers: dict[int, Hyper] = {}
        if self.counts:
            touched += self._advance(live, group, hypers)
        plain = Hyper(group)
        for p in live:
            state = self.state[p]
            h = hypers[id(state["step"])] if self.counts else plain
            self._update(p, state, h)
            touched.append(p)
            touched += [v for k, v in state.items() if k != "step" and isinstance(v, Tensor)]
        return touched

    def _prepare(self, new: list[Tensor], group: Group) -> None:
        """Make the state of parameters that have none, outside a trace: it is there before."""
        if not new:
            return
        made: list[Tensor] = []
        with outside(), no_grad():
            for p in new:
                state = self.init_one(p, group)
                if self.counts:
                    state = {"step": self._shared_count(group), **state}
                self.state[p] = state
                made += [v for v in state.values() if isinstance(v, Tensor)]
            settle([t._read() for t in made])

    def _shared_count(self, group: Group) -> Tensor:
        """A step count of 0; parameters of a group that start together share one tensor."""
        fresh = group.get("_fresh")
        if fresh is None:
            fresh = group["_fresh"] = gf.zeros((), dtype=float32)
        return fresh

    def _advance(self, live: list[Tensor], group: Group, hypers: dict[int, Hyper]) -> list[Tensor]:
        """Add 1 to the counts of the live parameters, each shared count once."""
        group.pop("_fresh", None)
        users: dict[int, list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if self.state.get(p):
                users[id(self.state[p]["step"])].append(p)
        alive = {id(p) for p in live}
        counts: dict[int, Tensor] = {}
        for sharing in users.values():
            moving = [p for p in sharing if id(p) in alive]
            if moving and len(moving) < len(sharing):  # some stand still: they part
                with outside():
                    own = self.state[moving[0]]["step"].clone()
                    settle([own._read()])
                for p in moving:
                    self.state[p]["step"] = own
            for p in moving:
                counts[id(self.state[p]["step"])] = self.state[p]["step"]
        for key, count in counts.items():
            count.add_(1)
            hypers[key] = Hyper(group, count)
        return list(counts.values())

    def _update(self, p: Tensor, state: State, h: Hyper) -> None:
        """`apply_one`; half-precision parameters and state are widened and rounded once."""
        grad = p.grad
        assert grad is not None
        if h.group.get("maximize"):
            grad = -grad
        if p.dtype.itemsize >= 4:
            self.apply_one(p, grad, state, h)
            return
        wide_p = p.to(float32)
        wide = {k: v.to(float32) if k != "step" and isinstance(v, Tensor) and v.is_floating_point()
                else v for k, v in state.items()}
        self.apply_one(wide_p, grad.to(float32), wide, h)
        p.copy_(wide_p)
        for k, v in wide.items():
            if v is not state.get(k):
                state[k].copy_(v)

    # ---------------------------------------------------------------- hooks, state, printing

    def register_step_pre_hook(self, hook: Any) -> Removable:
        """`hook(optimizer, args, kwargs)` before each step."""
        return Removable(self._pre_hooks, hook)

    def register_step_post_hook(self, hook: Any) -> Removable:
        """`hook(optimizer, args, kwargs)` after each step."""
        return Removable(self._post_hooks, hook)

    def state_dict(self) -> dict[str, Any]:
        """State by parameter number, and the groups with numbers in place of parameters."""
        return save_state(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: another number of groups, or of parameters in a group.
        """
        load_state(self, state_dict)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group)
                      if key not in ("params", "_fresh")]
        return "\n".join(lines) + "\n)"

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pre_hooks, self._post_hooks = OrderedDict(), OrderedDict()
