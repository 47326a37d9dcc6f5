"""Autograd as PyTorch's: accumulation, retained and freed graphs, hooks, functions, modes."""

from __future__ import annotations

from typing import Any

import pytest

import gossamer as gs
from tests.surface.twin import compare, scenarios


def _outcome(fn: Any) -> str:
    try:
        fn()
    except RuntimeError:
        return "RuntimeError"
    return "no error"


def case_accumulation(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    held = x.grad
    (3 * x).sum().backward()
    return x.grad, held


def case_second_backward_is_refused(m: Any) -> Any:
    x = m.tensor([1.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()
    return _outcome(y.backward), x.grad


def case_retain_graph(m: Any) -> Any:
    x = m.tensor([2.0], requires_grad=True)
    y = (x ** 3).sum()
    y.backward(retain_graph=True)
    y.backward()
    return x.grad, _outcome(y.backward)


def case_two_losses_share_a_trunk(m: Any) -> Any:
    x = m.tensor([2.0], requires_grad=True)
    trunk = x * x
    (trunk * 2).sum().backward(retain_graph=True)
    (trunk * 3).sum().backward()
    return x.grad


def case_create_graph(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    (g,) = m.autograd.grad((x ** 3).sum(), x, create_graph=True)
    (h,) = m.autograd.grad((g * g).sum(), x)
    return g, h


def case_backward_with_create_graph(m: Any) -> Any:
    x = m.tensor([2.0], requires_grad=True)
    (x ** 3).sum().backward(create_graph=True)
    first = x.grad
    x.grad = None
    first.sum().backward()
    return first.detach(), x.grad


def case_gradient_argument(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    y = x * 4
    y.backward(m.tensor([1.0, -1.0]))
    return x.grad


def case_non_scalar_is_refused(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    return _outcome((x * 2).backward), _outcome(m.ones(()).backward)


def case_grad_of_intermediate(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    h = x.exp()
    return m.autograd.grad((h * h).sum(), [h, x])


def case_allow_unused(m: Any) -> Any:
    x, y = m.ones(1, requires_grad=True), m.ones(1, requires_grad=True)
    z = (x * 2).sum()
    found = m.autograd.grad(z, [x, y], allow_unused=True, retain_graph=True)
    return found, _outcome(lambda: m.autograd.grad(z, [y]))


def case_several_outputs(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    a, b = x * 2, x * x
    return m.autograd.grad([a, b], x, [m.ones(2), m.tensor([1.0, 10.0])])


def case_backward_inputs(m: Any) -> Any:
    x, y = m.ones(1, requires_grad=True), m.ones(1, requires_grad=True)
    (x * y * 3).sum().backward(inputs=[x])
    return x.grad, y.grad


def case_retain_grad(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    h = x * 3
    h.retain_grad()
    (h * h).sum().backward()
    return h.grad, x.grad, h.is_leaf, h.retains_grad


def case_tensor_hooks(m: Any) -> Any:
    x = m.tensor([1.0, 2.0], requires_grad=True)
    h = x * 3
    seen: list[Any] = []
    h.register_hook(lambda g: seen.append(g.tolist()))
    handle = h.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    y = (h * 2).sum()
    y.backward(retain_graph=True)
    handle.remove()
    y.backward()
    return seen, x.grad


def case_post_accumulate_hook(m: Any) -> Any:
    x = m.tensor([1.0], requires_grad=True)
    seen: list[Any] = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    for _ in range(2):
        (x * 2).sum().backward()
    return seen


def case_grad_modes(m: Any) -> Any:
    x = m.ones(1, requires_grad=True)
    out = [m.is_grad_enabled()]
    with m.no_grad():
        out += [m.is_grad_enabled(), (x * 2).requires_grad]
        with m.enable_grad():
            out.append((x * 2).requires_grad)
        out.append(m.is_grad_enabled())
    with m.set_grad_enabled(False):
        out.append((x * 2).requires_grad)
    m.set_grad_enabled(False)
    out.append((x * 2).requires_grad)
    m.set_grad_enabled(True)
    with m.inference_mode():
        out += [m.is_inference_mode_enabled(), (x * 2).requires_grad]
    return out, m.is_grad_enabled()


def case_modes_as_decorators(m: Any) -> Any:
    x = m.ones(1, requires_grad=True)

    @m.no_grad()
    def f(y: Any) -> Any:
        return (y * 2).requires_grad

    @m.no_grad
    def g(y: Any) -> Any:
        return (y * 2).requires_grad

    @m.enable_grad()
    def h(y: Any) -> Any:
        return (y * 2).requires_grad

    @m.inference_mode()
    def i(y: Any) -> Any:
        return (y * 2).requires_grad
    with m.no_grad():
        inside = h(x)
    return f(x), g(x), inside, i(x), m.is_grad_enabled()


def case_generators_under_inference_mode(m: Any) -> Any:
    x = m.ones(1, requires_grad=True)

    @m.inference_mode()
    def numbers() -> Any:
        sent = None
        for _ in range(3):
            sent = yield (x * 2).requires_grad, m.is_grad_enabled(), sent
        return "end"
    steps = numbers()
    out = [next(steps), m.is_grad_enabled()]
    with m.no_grad():
        out.append(steps.send("a"))
    out += [steps.send("b"), m.is_grad_enabled()]
    try:
        next(steps)
    except StopIteration as stop:
        out.append(stop.value)
    return out


def case_custom_function(m: Any) -> Any:
    class Cube(m.autograd.Function):  # type: ignore[name-defined,misc]
        @staticmethod
        def forward(ctx: Any, x: Any, power: int) -> Any:
            ctx.save_for_backward(x)
            ctx.power = power
            return x ** power

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            assert ctx.needs_input_grad == (True, False)
            return g * ctx.power * x ** (ctx.power - 1), None
    x = m.tensor([2.0, 3.0], requires_grad=True)
    (g,) = m.autograd.grad(Cube.apply(x, 3).sum(), x, create_graph=True)
    return g, m.autograd.grad(g.sum(), x)


def case_custom_function_of_several_results(m: Any) -> Any:
    calls: list[Any] = []

    class Split(m.autograd.Function):  # type: ignore[name-defined,misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            positions = x.argmax()
            ctx.mark_non_differentiable(positions)
            return x * 2, x * 3, positions

        @staticmethod
        def backward(ctx: Any, a: Any, b: Any, c: Any) -> Any:
            calls.append((a.tolist(), b.tolist()))
            return 2 * a + 3 * b
    x = m.tensor([2.0, 3.0], requires_grad=True)
    a, b, c = Split.apply(x)
    (a.sum() + (b * b).sum()).backward()
    return calls, x.grad, c


def case_straight_through(m: Any) -> Any:
    class Round(m.autograd.Function):  # type: ignore[name-defined,misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.round()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g
    x = m.tensor([0.3, 1.7], requires_grad=True)
    (Round.apply(x) * 5).sum().backward()
    return x.grad


def case_setup_context(m: Any) -> Any:
    class Double(m.autograd.Function):  # type: ignore[name-defined,misc]
        @staticmethod
        def forward(x: Any) -> Any:
            return x * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.factor = 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * ctx.factor
    x = m.tensor([1.0], requires_grad=True)
    Double.apply(x).sum().backward()
    return x.grad


def case_broadcast_and_dtype_of_gradients(m: Any) -> Any:
    x = m.ones(3, 1, requires_grad=True)
    y = m.ones(2, dtype=m.float64, requires_grad=True)
    (x * y).sum().backward()
    return x.grad, y.grad


def case_shared_subexpressions(m: Any) -> Any:
    x = m.tensor([0.5], requires_grad=True)
    y = x
    for _ in range(20):
        y = y * y + y
        y = y / (1 + y.detach())
    y.sum().backward()
    return x.grad


def case_inplace_on_a_leaf_is_refused(m: Any) -> Any:
    x = m.ones(2, requires_grad=True)
    view = x[0]
    return _outcome(lambda: x.add_(1)), _outcome(lambda: view.add_(1)), _outcome(
        lambda: x.__setitem__(0, 1.0)), x


def case_requires_grad_of_integers_is_refused(m: Any) -> Any:
    return _outcome(lambda: m.ones(2, dtype=m.int64).requires_grad_())


def case_deep_chain(m: Any) -> Any:
    x = m.tensor([0.1], requires_grad=True)
    y = x
    for _ in range(300):
        y = y.tanh()
    y.sum().backward()
    return x.grad


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)


def test_no_recursion_limit() -> None:
    x = gs.tensor([0.5], requires_grad=True)
    y = x
    for _ in range(3000):
        y = y * 1.0
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0]


def test_a_training_loop_does_not_chain() -> None:
    """Values of one step are not recomputed from those of all steps before."""
    w = gs.ones(3, requires_grad=True)
    for _ in range(5):
        loss = (w * w).sum()
        loss.backward()
        with gs.no_grad():
            w -= 0.1 * w.grad
        w.grad = None
    depth, node = 0, w._read()
    while node.inputs and node.value is None:
        depth, node = depth + 1, node.inputs[0]
    assert depth < 8


def test_once_differentiable() -> None:
    class Square(gs.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @gs.autograd.once_differentiable
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g
    x = gs.tensor([3.0], requires_grad=True)
    (g,) = gs.autograd.grad(Square.apply(x).sum(), x, create_graph=True)
    assert g.tolist() == [6.0] and not g.requires_grad
    with pytest.raises(gs.GradientError):
        gs.autograd.grad(g.sum(), x)
