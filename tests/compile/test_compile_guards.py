"""A compiled function's result never comes from another world's program.

Whatever a user may change between two calls (arguments, flags of modules and optimizers, numbers
behind names, which parameters learn) is changed here, with and without `compile`, and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gossamer as gs
from gossamer import nn, optim
from tests.compile.test_compile_function import same, seen, twins

F = nn.functional
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


# --------------------------------------------------------------------------------- the arguments

VIEWS = (lambda t: t, lambda t: t.mT, lambda t: t[::2], lambda t: t[:, 1:], lambda t: t.flip(0),
         lambda t: t[:1].expand(3, -1), lambda t: t.contiguous(), lambda t: t[0])
CALL = st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([2, 3, 4]),
                 st.integers(0, len(VIEWS) - 1),
                 st.sampled_from([gs.float32, gs.float64, gs.int64, gs.int32]), st.booleans(),
                 st.sampled_from([0, 1, -1, True, 1.0, 0.5, -0.0, "mean", None, (1, 2), [1]]),
                 st.booleans())


def answer(x: Any, y: Any, constant: Any, *, flag: bool = False) -> Any:
    """Something that depends on all that a signature has."""
    scale = constant if isinstance(constant, (int, float)) else len(str(constant))
    out = x * scale + (y if flag else x.sum())
    square = x @ x.mT if x.ndim == 2 and x.dtype.is_floating_point else x
    return {"out": out, "copied": square.sum(),
            "type": str(out.dtype), "again": [out.shape, np.copysign(1, scale)]}


def call(function: Any, choice: tuple[Any, ...]) -> Any:
    rows, columns, view, dtype, grad, constant, flag = choice
    base = (gs.arange(rows * columns).reshape(rows, columns) - 3).to(dtype)
    if grad and dtype.is_floating_point:
        base.requires_grad_()
    x = VIEWS[view](base)
    found = function(x, x.detach() * 2, constant, flag=flag)
    if found["out"].requires_grad:
        found["out"].float().sum().backward()
    return seen([found, base.grad])


@settings(max_examples=8)
@given(st.lists(CALL, min_size=2, max_size=6))
def test_a_result_belongs_to_its_signature(choices: list[tuple[Any, ...]]) -> None:
    compiled = gs.compile(answer)
    for choice in (*choices, *choices):
        same(call(compiled, choice), call(answer, choice))


def test_derivatives_leave_by_an_argument_that_has_a_history() -> None:
    def story(wrap: Wrap) -> Any:
        weight, own = gs.ones(3, requires_grad=True), gs.ones(3, requires_grad=True)
        f = wrap(lambda x: (x * 3 * own).sum())
        plain = f(weight.detach() * 2).requires_grad
        f(weight * 2).backward()
        f(weight[:2].repeat(2)[1:]).backward()
        with gs.no_grad():
            free = f(weight * 2)
        return plain, free, weight.grad, own.grad
    twins(story)


# --------------------------------------------------------------------------- flags of optimizers

CHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]] = {
    "lr": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: g.update(lr=0.5)),
    "momentum from none": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: g.update(
        momentum=0.5)),
    "momentum": (lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9),
                 lambda o, m, g: g.update(momentum=0.1)),
    "nesterov": (lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9),
                 lambda o, m, g: g.update(nesterov=True)),
    "maximize": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: g.update(maximize=True)),
    "weight decay": (lambda ps: optim.AdamW(ps, lr=0.1), lambda o, m, g: g.update(
        weight_decay=0.5)),
    "betas": (lambda ps: optim.AdamW(ps, lr=0.1), lambda o, m, g: g.update(betas=(0.5, 0.6))),
    "eps": (lambda ps: optim.AdamW(ps, lr=0.1), lambda o, m, g: g.update(eps=1.0)),
    "add a group": (lambda ps: optim.SGD(ps[:2], lr=0.1), lambda o, m, g: o.add_param_group(
        {"params": list(m[1].parameters()), "lr": 0.2})),
    "remove a parameter": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: g["params"].pop()),
    "freeze": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: (
        m.zero_grad(), m[0].weight.requires_grad_(False))),
    "melt": (lambda ps: optim.SGD([p.requires_grad_(p.ndim > 1) for p in ps], lr=0.1),
        lambda o, m, g: [p.requires_grad_() for p in m.parameters()]),
    "momentum of RMSprop": (lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.9),
                            lambda o, m, g: g.update(momentum=0.2)),
    "state dict": (lambda ps: optim.AdamW(ps, lr=0.1), lambda o, m, g: o.load_state_dict(
        {**o.state_dict(), "param_groups": [{**x, "lr": 0.3}
                                            for x in o.state_dict()["param_groups"]]})),
    "another optimizer's parameters": (lambda ps: optim.SGD(ps, lr=0.1), lambda o, m, g: setattr(
        m[0], "weight", nn.Parameter(gs.ones(3, 4)))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_optimizers_changed_between_calls(what: str) -> None:
    make, change = CHANGES[what]

    def story(wrap: Wrap) -> Any:
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = make(list(model.parameters()))

        def step(x: Any) -> Any:
            loss = (model(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        step = wrap(step)
        x = gs.arange(8).float().view(2, 4) / 8
        log = [step(x), step(x)]
        change(optimizer, model, optimizer.param_groups[0])
        return [*log, step(x), step(x), list(model.parameters())]
    twins(story)


# ------------------------------------------------------------------------------ flags of modules

class Scaled(nn.Module):
    """A module with numbers and an object of settings."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.config = SimpleNamespace(power=2, names=["a"])
        self.inner = nn.Linear(4, 4)
        self.unread = 0

    def helper(self, x: Any) -> Any:
        return x ** self.config.power + len(self.config.names)

    def forward(self, x: Any) -> Any:
        return self.inner(self.helper(x) * self.scale)


MODULES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "eval": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), lambda m: m.eval()),
    "dropout p": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
                  lambda m: setattr(m[1], "p", 0.0)),
    "submodule": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
                  lambda m: m.__setitem__(1, nn.Tanh())),
    "appended": (lambda: nn.Sequential(nn.Linear(4, 4)), lambda m: m.append(nn.ReLU())),
    "norm eps": (lambda: nn.LayerNorm(4), lambda m: setattr(m, "eps", 1.0)),
    "batch norm momentum": (lambda: nn.BatchNorm1d(4), lambda m: setattr(m, "momentum", 0.9)),
    "a number": (Scaled, lambda m: setattr(m, "scale", 3.0)),
    "a setting": (Scaled, lambda m: setattr(m.config, "power", 3)),
    "a list of settings": (Scaled, lambda m: m.config.names.append("b")),
    "a hook": (lambda: nn.Linear(4, 4), lambda m: m.register_forward_hook(
        lambda m, args, out: out * 2)),
    "a parameter removed": (lambda: nn.Linear(4, 4), lambda m: setattr(m, "bias", None)),
    "a parameter shared": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
                           lambda m: setattr(m[1], "weight", m[0].weight)),
    "a buffer replaced": (lambda: nn.BatchNorm1d(4).eval(), lambda m: setattr(
        m, "running_mean", gs.ones(4))),
    "half": (lambda: nn.Linear(4, 4), lambda m: m.double()),
}


@pytest.mark.parametrize("what", MODULES)
@pytest.mark.parametrize("inside", [False, True], ids=["the module", "a function"])
def test_modules_changed_between_calls(what: str, inside: bool) -> None:
    make, change = MODULES[what]

    def story(wrap: Wrap) -> Any:
        model = make()
        x = gs.arange(12).float().view(3, 4) / 7

        def run(x: Any) -> Any:
            return model(x.to(next(model.parameters()).dtype)).detach()

        step = wrap(run) if inside else wrap(model)
        log = [step(x).detach(), step(x).detach()]
        change(model)
        if what == "half":
            x = x.double()
        return [*log, step(x).detach(), step(x).detach(), dict(model.state_dict())]
    twins(story)


# ------------------------------------------------------------------------------------------ names

factor = 2.0
table = {"scale": 3.0, "shift": [1.0, 2.0]}


def helped(x: Any) -> Any:
    return x * factor + table["shift"][1]


def test_numbers_behind_the_names_of_helpers() -> None:
    def story(wrap: Wrap) -> Any:
        global factor
        factor, table["scale"], table["shift"] = 2.0, 3.0, [1.0, 2.0]
        f = wrap(lambda x: helped(x) * table["scale"])
        x = gs.ones(2)
        log = [f(x)]
        factor = 5.0
        log.append(f(x))
        table["scale"] = 7.0
        log.append(f(x))
        table["shift"][1] = -1.0
        return [*log, f(x), f(x)]
    twins(story)


class Trainer:
    """State of a training run, as people write it."""

    def __init__(self) -> None:
        self.rate = 0.5
        self.iteration = 0
        self.hidden = gs.zeros(3)
        self.model = nn.Linear(3, 3)

    def rule(self, x: Any) -> Any:
        return self.model(x) * self.rate + self.hidden

    def step(self, x: Any) -> Any:
        return self.rule(x).detach()


def test_attributes_of_a_trainer() -> None:
    def story(wrap: Wrap) -> Any:
        trainer = Trainer()
        step = wrap(trainer.step)
        x = gs.ones(2, 3)
        log = [step(x)]
        trainer.rate = 2.0
        log.append(step(x))
        trainer.hidden = gs.ones(3)
        log.append(step(x))
        trainer.model = nn.Linear(3, 3)
        return [*log, step(x), step(x)]
    twins(story)


def test_what_the_function_does_not_read_does_not_retrace() -> None:
    trainer, model = Trainer(), Scaled()
    step, forward = gs.compile(trainer.step), gs.compile(lambda x: model(x).detach())
    for number in range(4):
        trainer.iteration = model.unread = number
        step(gs.ones(2, 3))
        forward(gs.ones(2, 4))
    assert step.traced == 1 and forward.traced == 1


@pytest.mark.parametrize("schedule", ["lr", "betas", "momentum"])
def test_schedules_do_not_retrace(schedule: str) -> None:
    p = nn.Parameter(gs.ones(3))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9) if schedule == "momentum" else optim.AdamW([p])

    def step() -> Any:
        p.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    f = gs.compile(step)
    for number in range(5):
        value = 0.1 * number + 0.1
        optimizer.param_groups[0][schedule] = (value, 0.5) if schedule == "betas" else value
        f()
    assert f.traced == 1
