"""What the tests of operators share: nodes with values, derivatives by differences, evaluators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import gossamer.ops  # noqa: F401  (fills the table)
from gossamer.compile.vjp import vjp
from gossamer.core.dtype import DType, as_dtype, float64
from gossamer.core.errors import GossamerError
from gossamer.ir.node import Node
from gossamer.ir.op import BUFFER, PICK, TABLE, Op, Sample
from gossamer.runtime import engine
from gossamer.runtime.data import Data
from gossamer.runtime.reference import evaluate

Build = Callable[..., Node]


def buffer(data: np.ndarray, dtype: DType | None = None, grad: bool = True) -> Node:
    """A leaf with that value, converted to `dtype`; floats take part in differentiation."""
    data = np.asarray(data)
    dtype = dtype or as_dtype(data.dtype)
    with np.errstate(over="ignore"):  # an edge of float64 may be beyond the dtype
        data = data.astype(dtype.numpy)
    node = BUFFER(shape=data.shape, dtype=dtype)
    node.value = Data.from_array(np.ascontiguousarray(data).reshape(data.shape), dtype)
    node.grad = grad and dtype.kind == "f"
    return node


def results(node: Node) -> list[Node]:
    """The node, or a `pick` for each of its results."""
    return [node] if node.outs is None else [PICK(node, index=i) for i in range(len(node.outs))]


def value(node: Node) -> np.ndarray:
    return evaluate([node])[0]


def compiled(nodes: Sequence[Node]) -> list[np.ndarray]:
    """Values by compiled code, all in one program. The nodes must have no values yet."""
    pending = [n for n in nodes if n.value is None]
    engine.evaluate(pending)
    return [n.value.array() for n in nodes]


@contextlib.contextmanager
def about(what: object) -> Iterator[None]:
    """Adds `what` to an error's message: which sample of many it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {what}")
        raise


def each(op: Op, gradient: bool = False) -> Iterator[tuple[int, Sample]]:
    """The samples of an operator (those that may be differentiated), errors naming them."""
    for i, sample in enumerate(samples(op)):
        if sample.gradient or not gradient:
            shapes = [f"{x.dtype}{list(x.shape)}" for x in sample.inputs]
            with about(f"{op.name} sample {i}: {', '.join(shapes)} {sample.attrs}"):
                yield i, sample


def samples(op: Op) -> list[Sample]:
    return op.samples(np.random.default_rng(1))


def differentiable(op: Op, sample: Sample) -> bool:
    """Whether some float64 result depends smoothly on some float64 operand."""
    if not sample.gradient:
        return False
    node = op(*(buffer(x) for x in sample.inputs), **sample.attrs)
    return any(y.grad and y.dtype is float64 for y in results(node))


def smooth_operators() -> list[Op]:
    """Operators that have a derivative."""
    return [op for op in TABLE.values() if any(differentiable(op, s) for s in samples(op))]


def directional(build: Callable[..., Sequence[Node]], arrays: Sequence[np.ndarray],
                h: float = 1e-6) -> tuple[float, float]:
    """<v, J u> twice: by the derivative rules, and by central differences.

    u and v are random directions in the space of the float64 inputs and of the float64 results; a
    result that is cut off from its inputs by mistake counts too, and shows by its differences.
    """
    rng = np.random.default_rng(2)
    xs = [buffer(x) for x in arrays]
    ys = [y for y in build(*xs) if y.dtype is float64]
    vs = [rng.normal(size=y.shape) for y in ys]
    us = [rng.normal(size=x.shape) if x.dtype.kind == "f" else None for x in arrays]
    cotangents = vjp(ys, [buffer(v, grad=False) for v in vs], xs)
    by_rule = sum(float(np.sum(value(g) * u)) for g, u in zip(cotangents, us, strict=True)
                  if g is not None and u is not None)

    def moved(step: float) -> float:
        at = [buffer(x if u is None else x + step * u) for x, u in zip(arrays, us, strict=True)]
        there = [y for y in build(*at) if y.dtype is float64]
        return sum(float(np.sum(v * value(y))) for v, y in zip(vs, there, strict=True))

    return by_rule, (moved(h) - moved(-h)) / (2 * h)


def check_first(op: Op, sample: Sample) -> None:
    """The derivative rule agrees with central differences."""
    by_rule, by_difference = directional(
        lambda *xs: results(op(*xs, **sample.attrs)), sample.inputs)
    np.testing.assert_allclose(by_rule, by_difference, rtol=1e-5, atol=1e-7)


def check_second(op: Op, sample: Sample) -> None:
    """The derivative of the derivative rule, also with respect to the cotangent, agrees too."""
    probe = results(op(*(buffer(x) for x in sample.inputs), **sample.attrs))
    rng = np.random.default_rng(3)
    gs = [rng.normal(size=y.shape) for y in probe if y.dtype is float64 and y.grad]

    def gradient(*nodes: Node) -> list[Node]:
        xs, cotangents = nodes[:len(sample.inputs)], nodes[len(sample.inputs):]
        ys = [y for y in results(op(*xs, **sample.attrs)) if y.dtype is float64 and y.grad]
        return [g for g in vjp(ys, list(cotangents), [x for x in xs if x.grad]) if g is not None]

    by_rule, by_difference = directional(gradient, [*sample.inputs, *gs])
    np.testing.assert_allclose(by_rule, by_difference, rtol=1e-4, atol=1e-6)


def in_dtype(op: Op, sample: Sample, dtype: DType) -> list[Node] | None:
    """The sample's float64 inputs as `dtype`, if the operator accepts them."""
    xs = [buffer(x, dtype if x.dtype == np.float64 else None, grad=False) for x in sample.inputs]
    with contextlib.suppress(GossamerError):
        op(*xs, **sample.attrs)
        return xs
    return None
