"""`gs.compile` is invisible: state, aliases, gradients, modes and errors are those of plain calls.

Most tests run the same steps twice, with and without `compile`, and compare everything that a user
can see. What compiled functions refuse is in test_compile_errors.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim

F = nn.functional
Step = Callable[..., Any]


def seen(value: Any) -> Any:
    """What a user sees of a value."""
    if isinstance(value, gs.Tensor):
        return value.detach().float().numpy().copy()
    if isinstance(value, (list, tuple)):
        return [seen(v) for v in value]
    if isinstance(value, dict):
        return {k: seen(v) for k, v in value.items()}
    return value


def same(a: Any, b: Any) -> None:
    if isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=2e-5, abs=2e-6)
    else:
        assert a == b


def twins(story: Callable[[Callable[[Step], Step]], Any]) -> None:
    """A story told with and without `compile` ends in the same way."""
    results = []
    for wrap in (lambda f: f, gs.compile):
        gs.manual_seed(11)
        results.append(seen(story(wrap)))
    same(results[1], results[0])


# --------------------------------------------------------------------------------------- training

def mlp(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), *extra, nn.Tanh(), nn.Linear(8, 3))


def batch(i: int, n: int = 6) -> tuple[Any, Any]:
    g = np.random.default_rng(i)
    return gs.tensor(g.normal(size=(n, 5)).astype(np.float32)), gs.tensor(g.integers(0, 3, n))


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("zero", ["first", "last", "zeros", "never"])
def test_training(name: str, zero: str) -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        model = mlp()
        optimizer = OPTIMIZERS[name](model.parameters())

        def step(x: Any, y: Any) -> Any:
            if zero == "first":
                optimizer.zero_grad()
            elif zero == "zeros":
                optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if zero == "last":
                optimizer.zero_grad()
            return loss, norm

        step = wrap(step)
        log = []
        for i in range(5):
            if i == 3:
                optimizer.param_groups[0]["lr"] *= 0.1
            log += [step(*batch(i))]
            log += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return log, model.state_dict(), optimizer.state_dict()["state"]
    twins(story)


def test_a_schedule_compiles_once() -> None:
    model = mlp()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    @gs.compile
    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for i in range(6):
        step(*batch(i))
        schedule.step()
    assert step.traced == 1


def test_running_statistics_modes_and_dropout() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        @gs.no_grad()
        def predict(x: Any) -> Any:
            return model(x)

        step, predict = wrap(step), wrap(predict)
        log = []
        for i in range(6):
            model.train(i % 3 != 2)
            log += [step(*batch(i)), predict(batch(i)[0])]
            model.eval()
            log += [predict(batch(i)[0])]
        return log, model.state_dict()
    twins(story)


def test_a_compiled_module_is_differentiated_outside() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.25))
        run = wrap(model)
        for i in range(3):
            x, y = batch(i)
            F.cross_entropy(run(x), y).backward()
        return [p.grad for p in model.parameters()], model.state_dict()
    twins(story)


def test_a_compiled_module_is_the_module() -> None:
    model = mlp()
    run = gs.compile(model)
    assert run.state_dict().keys() == model.state_dict().keys()
    assert len(list(run.parameters())) == 4 and "compiled" in repr(run)
    run.eval()
    assert not model.training


@pytest.mark.parametrize("what", ["kept", "none inside", "zeroed inside", "none between",
                                  "set between", "zeroed between"])
def test_gradients_between_calls(what: str) -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        w = gs.arange(3.0).requires_grad_(True)

        def step(x: Any) -> Any:
            if what == "none inside":
                w.grad = None
            loss = (w * w * x).sum()
            loss.backward()
            if what == "zeroed inside":
                w.grad.zero_()
            return loss.detach()

        step = wrap(step)
        log = []
        for i in range(5):
            log += [step(gs.full((3,), i + 1.0)), w.grad.clone()]
            if what == "none between" and i % 2:
                w.grad = None
            elif what == "set between" and i == 2:
                w.grad = gs.ones(3)
            elif what == "zeroed between":
                w.grad.zero_()
        return log
    twins(story)


def test_the_gradient_of_an_argument() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        x = gs.ones(3, requires_grad=True)

        def step(x: Any) -> Any:
            loss = (x * x).sum()
            loss.backward()
            return loss

        step = wrap(step)
        step(x)
        step(x)
        return x.grad
    twins(story)


def test_manual_updates_with_autograd_grad() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        w = gs.ones(3, requires_grad=True)

        def step(x: Any) -> Any:
            loss = ((w * x).sum() - 1) ** 2
            (g,) = gs.autograd.grad(loss, w)
            with gs.no_grad():
                w.sub_(0.1 * g)
            return loss.detach()

        step = wrap(step)
        return [step(gs.tensor([0.1, 0.2, 0.3])) for _ in range(4)], w
    twins(story)


# ---------------------------------------------------------------------------- state from outside

def test_parameters_changed_between_calls() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        m = nn.Linear(2, 1, bias=False)

        @gs.no_grad()
        def f(x: Any) -> Any:
            return m(x)

        f, x, log = wrap(f), gs.ones(1, 2), []
        log += [f(x)]
        m.weight.data.fill_(3)
        log += [f(x)]
        m.weight.data = gs.full((1, 2), 4.0)
        log += [f(x)]
        with gs.no_grad():
            m.weight.mul_(2)
        log += [f(x)]
        m.load_state_dict({"weight": gs.full((1, 2), 5.0)})
        log += [f(x)]
        m.load_state_dict({"weight": gs.full((1, 2), 6.0)}, assign=True)
        log += [f(x)]
        m.weight = nn.Parameter(gs.full((1, 2), 7.0))
        log += [f(x)]
        m.bias = nn.Parameter(gs.ones(1))
        return [*log, f(x)]
    twins(story)


def test_names_rebound_between_calls() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        scale, model = 2, nn.Linear(2, 2)

        def f(x: Any) -> Any:
            return (model(x) * scale).detach()

        run = wrap(f)
        log = [run(gs.ones(1, 2))]
        scale = 3
        log += [run(gs.ones(1, 2))]
        model = nn.Linear(2, 2)
        return [*log, run(gs.ones(1, 2))]
    twins(story)


def test_a_counter_that_the_function_rebinds_does_not_retrace() -> None:
    count = 0

    @gs.compile
    def f(x: Any) -> Any:
        nonlocal count
        count += 1
        return x + 1

    for _ in range(4):
        f(gs.ones(2))
    assert f.traced == count == 1


def test_random_numbers_advance() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        f = wrap(lambda: (gs.randn(5), gs.rand(2, 3), gs.randint(0, 9, (4,))))
        log = [f(), gs.randn(3), f()]
        state = gs.get_rng_state()
        log += [f()]
        gs.set_rng_state(state)
        log += [f()]
        gs.manual_seed(4)
        return [*log, f(), gs.randn(2)]
    twins(story)


def test_the_default_dtype_is_part_of_the_signature() -> None:
    f = gs.compile(lambda: gs.ones(2))
    assert f().dtype is gs.float32
    gs.set_default_dtype(gs.float64)
    try:
        assert f().dtype is gs.float64
    finally:
        gs.set_default_dtype(gs.float32)


# ----------------------------------------------------------------------------------------- aliases

def test_what_a_user_holds_is_not_overwritten() -> None:
    """Graphs not computed yet keep the old value; views and detached handles see the new one."""
    def story(wrap: Callable[[Step], Step]) -> Any:
        p = gs.zeros(4)

        def f() -> Any:
            p.add_(1)
            return p.sum(), p * 2

        f = wrap(f)
        log = [f()]
        lazy, view, detached, clone = p * 2 + 1, p.view(2, 2), p.detach(), p.clone()
        log += [f(), f(), lazy, view, detached, clone]
        kept = f()
        f()
        view.mul_(2)
        return [*log, kept, f(), p, detached]
    twins(story)


def test_arrays_of_numpy_share_the_state() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        p, foreign = gs.zeros(4), np.ones(3, np.float32)
        q = gs.from_numpy(foreign)

        def f() -> Any:
            p.add_(1)
            q.mul_(2)
            return p.sum() + q.sum()

        f = wrap(f)
        log = [f()]
        array = p.numpy()
        log += [f(), array.copy(), foreign.copy()]
        array[:] = 10
        foreign[0] = 100
        log += [f(), p, q, array.copy(), foreign.copy()]
        del array
        return [*log, f(), p]
    twins(story)


def test_a_state_written_in_place_is_seen_by_the_array_made_later() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        p = gs.zeros(4)

        def f() -> Any:
            p.add_(1)
            return gs.ones(2)

        f = wrap(f)
        f()
        array = p.numpy()
        return [f(), array.copy(), f(), array.copy(), p]
    twins(story)


def test_parameters_shared_with_numpy() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.5)

        def f(x: Any) -> Any:
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

        f = wrap(f)
        f(gs.ones(1, 3))
        array, held = model.weight.detach().numpy(), model.weight.data
        f(gs.ones(1, 3))
        log = [array.copy(), held.clone()]
        array *= 2
        f(gs.ones(1, 3))
        return [*log, array.copy(), held, model.weight]
    twins(story)


def test_state_seen_through_a_view() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        cache = gs.zeros(3, 4)
        row, column = cache[1], cache[:, 2]

        def f(x: Any) -> Any:
            row.add_(x)
            column.mul_(2)
            return cache.sum(), row

        f = wrap(f)
        return [f(gs.ones(4)), f(gs.full((4,), 2.0)), f(gs.ones(4))], cache, row, column
    twins(story)


def test_a_returned_state_is_the_state() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        p = gs.zeros(3)

        def f(x: Any) -> Any:
            p.add_(1)
            y = x + p
            y[0] = 7
            return p, p[1:], x, x[:2], y

        f, x = wrap(f), gs.ones(3)
        a = f(x)
        a[0].mul_(2)
        a[2].add_(1)
        b = f(x)
        b[1].zero_()
        assert a[0] is p and a[2] is x and b[4] is not a[4]
        return a, b, p, x
    twins(story)


def test_arguments_that_show_state_or_each_other() -> None:
    def story(wrap: Callable[[Step], Step]) -> Any:
        s = gs.arange(4.0)

        def f(v: Any) -> Any:
            s.add_(1)
            return v.sum()

        def g(a: Any, b: Any) -> Any:
            a.add_(1)
            return b.sum()

        f, g = wrap(f), wrap(g)
        return [f(gs.ones(4)), f(s[1:]), f(s), f(s.view(2, 2)), g(s, s), g(s, s[1:]), g(s[2:], s)]
    twins(story)


def test_outputs_outlive_later_calls() -> None:
    f = gs.compile(lambda x: (x * 2, (x * 3).sum(), x.reshape(7, -1).t()))
    first = f(gs.ones(70_000))
    f(gs.full((70_000,), 9.0))
    assert first[0].unique().tolist() == [2] and first[1].item() == 210_000
    assert first[2].shape == (10_000, 7) and first[2].unique().tolist() == [1]


# -------------------------------------------------------------------------------------- signatures

def test_every_view_dtype_and_length_has_its_own_result() -> None:
    def f(x: Any) -> Any:
        return (x * 2).sum(0) + x[:1].sum(0), x.t() @ x if x.is_floating_point() else x

    run = gs.compile(f)
    b = gs.arange(60.0).reshape(5, 12) / 8
    views = [b, b[:3], b[1:4], b[:, ::2], b[:, 1::2], b.t(), b.t()[:5], b[::2], b.flip(0), b[:1],
             gs.ones(1, 12).expand(5, 12), b[:, :1].expand(5, 12), b.double(), (b * 8).long(),
             b.int(), b[:, 3:4], b[4:4], b.unsqueeze(1)[:, 0], b.reshape(12, 5)[1:6, :3]]
    for x in [*views, *views]:
        for got, wanted in zip(run(x), f(x), strict=True):
            assert got.dtype is wanted.dtype and got.shape == wanted.shape
            np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize("values", [(1, True, 1.0), (0.0, -0.0), (None, 0, ""), ("a", b"a"),
                                    (slice(0, 1), slice(0, 2)), ((1, 2), [1, 2]),
                                    (np.float32(1), np.float32(2))])
def test_constants_are_told_apart(values: tuple[Any, ...]) -> None:
    f = gs.compile(lambda x, k: (x * 1, repr(k)))
    assert [f(gs.ones(1), k)[1] for k in values] == [
        repr(k.item() if isinstance(k, np.generic) else k) for k in values]


def test_equal_constants_do_not_retrace() -> None:
    f = gs.compile(lambda x, **k: x * 2)
    for _ in range(3):
        f(gs.ones(1), a=[1, (2.0, float("nan"))], b={"c": slice(1, None)}, d=np.float64(3))
    assert f.traced == 1


def test_objects_that_died_are_not_mistaken_for_new_ones() -> None:
    class Scale:
        def __init__(self, k: int) -> None:
            self.k = k

        @gs.compile
        def method(self, x: Any) -> Any:
            return x * self.k

    @gs.compile
    def function(scale: Scale, x: Any) -> Any:
        return x * scale.k

    for k in range(6):
        scale = Scale(k)
        assert scale.method(gs.ones(1)).item() == function(scale, gs.ones(1)).item() == k
        del scale
        gc.collect()


def test_nested_structures_and_keywords() -> None:
    @gs.compile
    def f(d: Any, *, k: int = 1) -> Any:
        return {"a": d["x"] * k, "b": [d["y"], None, 3], "c": (d["x"][0],)}

    r = f({"x": gs.ones(2), "y": [gs.zeros(1)]}, k=2)
    assert r["a"].tolist() == [2, 2] and r["b"][1:] == [None, 3] and isinstance(r["c"], tuple)
    assert f({"x": gs.ones(2), "y": [gs.zeros(1)]}, k=3)["a"].tolist() == [3, 3]


def test_nested_compiled_functions() -> None:
    inner = gs.compile(lambda x: x.sin() * 2)
    outer = gs.compile(lambda x: inner(x) + inner(x + 1))
    np.testing.assert_allclose(outer(gs.ones(3)).numpy(), 2 * np.sin(1) + 2 * np.sin(2), rtol=1e-6)


def test_the_number_of_threads_and_grad_mode_are_part_of_the_signature() -> None:
    w = gs.ones(2, requires_grad=True)
    f = gs.compile(lambda: w * 2)
    with gs.no_grad():
        assert not f().requires_grad
    assert f().requires_grad


def test_what_was_taken_before_a_call_keeps_its_value() -> None:
    """A state's node is given its new value in place only if nobody else looks at it."""
    state, p = gs.zeros(5), gs.zeros(5, requires_grad=True)

    @gs.compile
    def step(x: gs.Tensor) -> gs.Tensor:
        loss = (p.flip(0) * x).sum()
        loss.backward()
        with gs.no_grad():
            p.copy_(p.flip(0) - p.grad)
        p.grad = None
        state.copy_(state.flip(0) * 2 + x)  # reads what it would overwrite
        return loss

    for n in range(4):
        step(gs.arange(5.0))
        was, weights = state.numpy().copy(), p.detach().numpy().copy()
        product, view, alias, clone = state * 1, state[1:3], state.detach(), state.clone()
        loss = (p * p).sum()
        step(gs.arange(5.0))
        now = was[::-1] * 2 + np.arange(5.0)
        for taken, value in ((product, was), (clone, was), (view, now[1:3]), (alias, now),
                             (state, now), (p.detach(), weights[::-1] - np.arange(5.0)[::-1])):
            np.testing.assert_array_equal(taken.numpy(), value, err_msg=f"call {n}")
        assert loss.item() == (weights * weights).sum()
        loss.backward()
        np.testing.assert_array_equal(p.grad.numpy(), 2 * weights)
        p.grad = None
