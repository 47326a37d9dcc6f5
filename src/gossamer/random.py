"""Random numbers: generators, and tensors drawn from them. Layer 4.

A generator is a key (its seed) and a counter (how many numbers it has drawn), both tensors; a draw
is a pure function of the two, so it fuses into what reads it, is the same bit for bit for any
number of threads, and advances inside compiled functions. Numbers differ from PyTorch's.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from gossamer import prims
from gossamer.core.dtype import (
    DType,
    as_dtype,
    float32,
    float64,
    get_default_dtype,
    int32,
    int64,
    uint8,
)
from gossamer.core.errors import DTypeError, ShapeError
from gossamer.creation import array_node, finish
from gossamer.dispatch import (
    PUBLIC,
    checked_shape,
    fit,
    give,
    need_float,
    node_of,
    public,
    same_type,
    write_out,
)
from gossamer.ir.node import Node, Shape, type_text
from gossamer.ir.op import TABLE
from gossamer.modes import no_grad
from gossamer.tensor import Tensor, attach, wrap

__all__ = ["Generator", "default_generator", "draw", "get_rng_state", "initial_seed", "manual_seed",
           "seed", "set_rng_state"]

_DEFAULT_SEED = 67280421310721  # PyTorch's, so that both start "unseeded" alike


def _words(seed: int) -> np.ndarray:
    """A seed as two int32 words."""
    seed &= (1 << 64) - 1
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32).copy()


class Generator:
    """A source of random numbers with its own seed and position.

    Args:
        device: "cpu".

    Example:
        >>> g = gs.Generator().manual_seed(0)
        >>> bool((gs.rand(3, generator=g) < 1).all())
        True
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device
        self._seed = _DEFAULT_SEED
        self._key = wrap(array_node(_words(_DEFAULT_SEED), int32))
        self._counter = wrap(array_node(np.zeros((), np.int64), int64))

    def manual_seed(self, seed: int) -> Generator:
        """Start again from `seed`. Returns the generator."""
        self._seed = int(seed)
        with no_grad():
            self._key._write(array_node(_words(self._seed), int32))
            self._counter._write(array_node(np.zeros((), np.int64), int64))
        return self

    def seed(self) -> int:
        """Start again from a seed taken from the clock. Returns it."""
        self.manual_seed(time.time_ns() & ((1 << 63) - 1))
        return self._seed

    def initial_seed(self) -> int:
        """The seed it was started from."""
        return self._seed

    def get_state(self) -> Tensor:
        """The state as 24 bytes: key, counter and seed."""
        key = self._key._value().array().view(np.uint8)
        counter = np.asarray(self._counter._value().array(), np.int64).reshape(1).view(np.uint8)
        seed = np.array([self._seed & ((1 << 64) - 1)], np.uint64).view(np.uint8)
        return wrap(array_node(np.concatenate([key, counter, seed]), uint8))

    def set_state(self, new_state: Tensor) -> Generator:
        """Go on from a state that `get_state` gave.

        Raises:
            ShapeError: it is not one.
        """
        if new_state.dtype is not uint8 or new_state._node.shape != (24,):
            raise ShapeError(f"Generator.set_state: got {type_text(new_state._node)}; expected the "
                             "24 bytes (uint8) that get_state returned.")
        raw = new_state._value().array().copy()
        with no_grad():
            self._key._write(array_node(raw[:8].view(np.int32), int32))
            self._counter._write(array_node(raw[8:16].view(np.int64).reshape(()), int64))
        self._seed = int(raw[16:].view(np.uint64)[0])
        return self

    def clone_state(self) -> Generator:
        """Another generator that gives the same numbers from here on."""
        return Generator().set_state(self.get_state())

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.set_state(state["state"])


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Start the default generator again from `seed`. Returns it."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Start the default generator from the clock. Returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The state of the default generator."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Put the default generator into a state that `get_rng_state` gave."""
    default_generator.set_state(new_state)


def draw(record: str, count: int, generator: Generator | None, **attrs: Any) -> Node:
    """A node of that random operator, `count` numbers of the generator used up."""
    g = default_generator if generator is None else generator
    with no_grad():
        counter = g._counter._read()
        node = TABLE[record](g._key._read(), counter, **attrs)
        g._counter._write(prims.add(counter, prims.const(max(count, 1), counter)))
    return node


def _size(shape: Shape) -> int:
    return math.prod(shape)


def _uniform(shape: Shape, dtype: DType, generator: Generator | None) -> Node:
    return draw("random_uniform", _size(shape), generator, shape=shape, dtype=dtype)


def _normal(shape: Shape, dtype: DType, generator: Generator | None) -> Node:
    return draw("random_normal", _size(shape), generator, shape=shape, dtype=dtype)


def _float_dtype(dtype: Any, name: str) -> DType:
    chosen = as_dtype(dtype) if dtype is not None else get_default_dtype()
    if chosen.kind != "f":
        raise DTypeError(f"{name}(dtype={chosen!r}): the numbers are floating; pass a float dtype, "
                         "or use gs.randint.")
    return chosen


def _maker(name: str, source: Any, doc: str) -> None:
    def fn(*size: Any, generator: Generator | None = None, out: Tensor | None = None,
           dtype: Any = None, device: Any = None, requires_grad: bool = False, layout: Any = None,
           pin_memory: bool = False) -> Tensor:
        shape = checked_shape(size, f"gs.{name}")
        made = finish(source(shape, _float_dtype(dtype, f"gs.{name}"), generator), device,
                      requires_grad)
        return made if out is None else write_out(out, made._node, f"gs.{name}")

    def like(input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False,
             layout: Any = None, memory_format: Any = None, generator: Generator | None = None,
             ) -> Tensor:
        node = node_of(input, f"gs.{name}_like")
        return finish(source(node.shape, _float_dtype(dtype or node.dtype, f"gs.{name}_like"),
                             generator), device or input.device, requires_grad)
    for function, label, text in ((fn, name, f"A tensor of shape `size` of {doc}."),
                                  (like, f"{name}_like", f"A tensor shaped as `input` of {doc}.")):
        function.__name__ = function.__qualname__ = label
        function.__doc__ = text
        public(method=False)(function)


_maker("rand", _uniform, "random numbers uniform in [0, 1)")
_maker("randn", _normal, "random numbers of the standard normal distribution")


def _integers(shape: Shape, low: int, high: int, dtype: DType, generator: Generator | None,
              name: str) -> Node:
    if low >= high:
        raise ShapeError(f"{name}: low={low}, high={high}; low must be smaller than high.")
    node = draw("random_integers", _size(shape), generator, shape=shape, low=int(low),
                high=int(high))
    return prims.cast(node, dtype)


@public(method=False)
def randint(*args: Any, low: int | None = None, high: int | None = None, size: Any = None,
            generator: Generator | None = None, out: Tensor | None = None, dtype: Any = None,
            device: Any = None, requires_grad: bool = False, layout: Any = None) -> Tensor:
    """randint(high, size), randint(low, high, size): integers with low <= value < high.

    Args:
        low: the smallest value (0).
        high: one more than the largest.
        size: the shape.

    Returns:
        An int64 tensor, or of `dtype`.
    """
    rest = list(args)
    if size is None and rest and isinstance(rest[-1], (tuple, list)):
        size = rest.pop()
    if high is None and rest:
        high = rest.pop()
    if low is None:
        low = rest.pop() if rest else 0
    if high is None or size is None or rest:
        raise DTypeError("gs.randint: expected (high, size) or (low, high, size), the size a "
                         "tuple.")
    node = _integers(checked_shape((size,), "gs.randint"), int(low), int(high),
                     as_dtype(dtype) if dtype is not None else int64, generator, "gs.randint")
    made = finish(node, device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.randint")


@public(method=False)
def randint_like(input: Tensor, low: int, high: int | None = None, *, dtype: Any = None,
                 device: Any = None, requires_grad: bool = False, layout: Any = None,
                 memory_format: Any = None) -> Tensor:
    """Integers with low <= value < high, shaped and typed as `input`."""
    low, high = (0, low) if high is None else (low, high)
    node = node_of(input, "gs.randint_like")
    return finish(_integers(node.shape, low, high,
                            as_dtype(dtype) if dtype is not None else node.dtype, None,
                            "gs.randint_like"), device or input.device, requires_grad)


@public(method=False)
def randperm(n: int, *, generator: Generator | None = None, out: Tensor | None = None,
             dtype: Any = None, device: Any = None, requires_grad: bool = False,
             layout: Any = None) -> Tensor:
    """The numbers 0 to n - 1 in random order: the order that sorts random keys."""
    if n < 0:
        raise ShapeError(f"gs.randperm(n={n}): n must not be negative.")
    keys = draw("random_integers", n, generator, shape=(n,), low=-2**62, high=2**62)
    node = prims.argsort(keys, 0) if n else prims.full(0, (0,), int64)
    made = finish(prims.cast(node, as_dtype(dtype) if dtype is not None else int64), device,
                  requires_grad)
    return made if out is None else write_out(out, made._node, "gs.randperm")


@public(method=False)
def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *,
           generator: Generator | None = None, out: Tensor | None = None, dtype: Any = None,
           device: Any = None, requires_grad: bool = False, layout: Any = None,
           pin_memory: bool = False) -> Tensor:
    """Normal random numbers with given means and standard deviations (numbers or tensors)."""
    if not isinstance(std, Tensor) and std < 0:
        raise ShapeError(f"gs.normal(std={std}): the standard deviation must not be negative.")
    if size is not None:
        shape = checked_shape((size,), "gs.normal")
        node = _normal(shape, _float_dtype(dtype, "gs.normal"), generator)
        m, s = prims.const(mean, node), prims.const(std, node)
    else:
        tensors = [v for v in (mean, std) if isinstance(v, Tensor)]
        if not tensors:
            raise DTypeError("gs.normal: mean and std are numbers; pass size=.")
        m, s = fit("gs.normal", *same_type("gs.normal", (mean, std), "float"))
        node = _normal(m.shape, m.dtype, generator)
    made = finish(prims.add(prims.mul(node, s), m), device, requires_grad)
    return made if out is None else write_out(out, made._node, "gs.normal")


# ------------------------------------------------------------------------------------- draws by

@public()
def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None,
              out: Tensor | None = None) -> Tensor:
    """1 with the probability that each element gives (or with probability `p`), else 0."""
    node = node_of(input, "gs.bernoulli")
    chance = prims.detach(node) if p is None else prims.const(p, node)
    if chance.dtype.kind != "f":
        chance = prims.full(0.5 if p is None else p, node.shape, float32)
    u = _uniform(node.shape, chance.dtype, generator)
    made = prims.cast(TABLE["lt"](u, chance), node.dtype)
    return wrap(made) if out is None else write_out(out, made, "gs.bernoulli")


@public()
def multinomial(input: Tensor, num_samples: int, replacement: bool = False, *,
                generator: Generator | None = None, out: Tensor | None = None) -> Tensor:
    """Indices drawn with probabilities in proportion to the weights in the last dimension.

    With replacement by inverting the running sum; without by the largest of exponential races
    (Efraimidis and Spirakis 2006), which needs no loop.

    Args:
        input: (n,) or (rows, n), not negative.
        num_samples: how many a row.
        replacement: whether an index may come twice.

    Returns:
        int64 (num_samples,) or (rows, num_samples).
    """
    name = "gs.multinomial"
    weights = prims.detach(node_of(input, name))
    need_float(weights, name)
    if weights.ndim not in (1, 2):
        raise ShapeError(f"{name}: x is {type_text(weights)}; it must have 1 or 2 dimensions.")
    n = weights.shape[-1]
    if num_samples <= 0 or not replacement and num_samples > n:
        raise ShapeError(f"{name}(num_samples={num_samples}): there are {n} categories; draw at "
                         "least 1 and, without replacement, at most that many.")
    if weights.dtype.itemsize == 2:
        weights = prims.cast(weights, float32)
    rows = prims.reshape(weights, (weights.size // n if n else 0, n))
    if num_samples == 1 or not replacement:
        found = _race(rows, num_samples, generator)
    else:
        found = _invert(rows, num_samples, generator)
    made = prims.reshape(found, (*weights.shape[:-1], num_samples))
    return wrap(made) if out is None else write_out(out, made, name)


def _race(rows: Node, count: int, generator: Generator | None) -> Node:
    """The `count` first arrivals of exponential clocks that tick at the rates `rows`."""
    u = _uniform(rows.shape, rows.dtype, generator)
    clock = prims.neg(TABLE["log1p"](prims.neg(u)))  # exponential, 0 possible
    tiny = prims.const(1e-37, clock)
    time_ = prims.div(TABLE["maximum"](clock, tiny), rows)  # a rate of 0 never arrives
    if count == 1:
        return prims.reshape(TABLE["argmin"](time_, axis=1), (rows.shape[0], 1))
    return prims.narrow(prims.argsort(time_, 1), 1, 0, count)


def _invert(rows: Node, count: int, generator: Generator | None) -> Node:
    total = prims.scan(prims.cast(rows, float64), 1, "add")
    n = rows.shape[1]
    shape = (rows.shape[0], count)
    u = _uniform(shape, float64, generator)
    target = prims.mul(u, prims.expand(prims.narrow(total, 1, n - 1, n), shape))
    wide = (rows.shape[0], count, n)
    below = TABLE["le"](prims.expand(prims.reshape(total, (rows.shape[0], 1, n)), wide),
                        prims.expand(prims.reshape(target, (*shape, 1)), wide))
    index = prims.reduce_sum(prims.cast(below, int64), (2,))
    return TABLE["minimum"](index, prims.const(n - 1, index))


@public()
def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Poisson random numbers with the rates in `input`. Computes them (on the host)."""
    rates = input._value().array()
    words = draw("random_bits", 4, generator, shape=(4,))
    seeds = wrap(words)._value().array().view(np.uint32)
    made = np.random.default_rng(seeds).poisson(rates)
    return wrap(array_node(made, input._node.dtype))


# ------------------------------------------------------------------------------------ in place

def _float_like(self: Tensor) -> DType:
    return self._node.dtype if self._node.dtype.kind == "f" else float32


def _filled(self: Tensor, node: Node, name: str) -> Tensor:
    self._check_inplace(f"x.{name}")
    return self._write(prims.cast(node, self._node.dtype))


def uniform_(self: Tensor, from_: float = 0.0, to: float = 1.0, *,
             generator: Generator | None = None, **words: float) -> Tensor:
    """Fill with random numbers uniform in [from, to)."""
    low = words.pop("from", from_)
    if low > to:
        raise ShapeError(f"x.uniform_({low}, {to}): the first bound must not be the larger.")
    u = _uniform(self._node.shape, _float_like(self), generator)
    made = prims.add(prims.mul(u, prims.const(to - low, u)), prims.const(low, u))
    return _filled(self, made, "uniform_")


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *,
            generator: Generator | None = None) -> Tensor:
    """Fill with normal random numbers."""
    if std < 0:
        raise ShapeError(f"x.normal_(std={std}): the standard deviation must not be negative.")
    z = _normal(self._node.shape, _float_like(self), generator)
    return _filled(self, prims.add(prims.mul(z, prims.const(std, z)), prims.const(mean, z)),
                   "normal_")


def _open(self: Tensor, generator: Generator | None) -> Node:
    """Uniform numbers in (0, 1)."""
    u = _uniform(self._node.shape, _float_like(self), generator)
    return TABLE["maximum"](u, prims.const(2.0 ** -25, u))


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with exponential random numbers of rate `lambd`."""
    if lambd <= 0:
        raise ShapeError(f"x.exponential_(lambd={lambd}): the rate must be positive.")
    logs = TABLE["log"](_open(self, generator))
    return _filled(self, prims.mul(logs, prims.const(-1 / lambd, logs)), "exponential_")


def log_normal_(self: Tensor, mean: float = 1.0, std: float = 2.0, *,
                generator: Generator | None = None) -> Tensor:
    """Fill with the exponentials of normal random numbers."""
    z = _normal(self._node.shape, _float_like(self), generator)
    made = TABLE["exp"](prims.add(prims.mul(z, prims.const(std, z)), prims.const(mean, z)))
    return _filled(self, made, "log_normal_")


def cauchy_(self: Tensor, median: float = 0.0, sigma: float = 1.0, *,
            generator: Generator | None = None) -> Tensor:
    """Fill with Cauchy random numbers."""
    u = _open(self, generator)
    angle = prims.mul(prims.sub(u, prims.const(0.5, u)), prims.const(math.pi, u))
    made = prims.mul(TABLE["tan"](angle), prims.const(sigma, u))
    return _filled(self, prims.add(made, prims.const(median, u)), "cauchy_")


def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Fill with the number of trials up to the first success of probability `p`."""
    if not 0 < p < 1:
        raise ShapeError(f"x.geometric_(p={p}): the probability must lie between 0 and 1.")
    logs = TABLE["log"](_open(self, generator))
    return _filled(self, TABLE["ceil"](prims.mul(logs, prims.const(1 / math.log1p(-p), logs))),
                   "geometric_")


def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fill with 1 with probability `p` (a number or a tensor), else 0."""
    u = _uniform(self._node.shape, float32, generator)
    chance = prims.const(p, u) if not isinstance(p, Tensor) else prims.expand(
        prims.cast(p._read(), float32), u.shape)
    self._check_inplace("x.bernoulli_")
    return give(self, prims.cast(TABLE["lt"](u, chance), self._node.dtype), "x.bernoulli_")


def random_(self: Tensor, from_: int = 0, to: int | None = None, *,
            generator: Generator | None = None, **words: int) -> Tensor:
    """Fill with integers: random_(to), random_(from, to), or all that the dtype holds exactly."""
    low = words.pop("from", from_)
    dtype = self._node.dtype
    if to is None and low:
        low, to = 0, low
    if to is None:
        digits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "bool": 1}.get(
            dtype.name, 8 * dtype.itemsize - (dtype.kind == "i"))
        to = 2 ** digits + (1 if dtype.kind == "f" else 0)
    return _filled(self, _integers(self._node.shape, low, to, int64, generator, "x.random_"),
                   "random_")


for _method in (uniform_, normal_, exponential_, log_normal_, cauchy_, geometric_, bernoulli_,
                random_):
    attach(_method.__name__, _method)


@public(method=False)
def dropout(input: Tensor, p: float = 0.5, train: bool = True, *,
            generator: Generator | None = None) -> Tensor:
    """x / (1 - p), but 0 with probability `p`; x itself outside of training.

    The mask is recomputed in the backward pass, not kept.
    """
    if not 0 <= p <= 1:
        raise ShapeError(f"dropout(p={p}): the probability must lie between 0 and 1.")
    x = node_of(input, "dropout")
    if not train or p == 0:
        return input
    need_float(x, "dropout")
    g = default_generator if generator is None else generator
    counter = g._counter._read()
    made = TABLE["dropout"](x, g._key._read(), counter, p=float(p))
    with no_grad():
        g._counter._write(prims.add(counter, prims.const(max(x.size, 1), counter)))
    return wrap(made)


for _function in (manual_seed, seed, initial_seed, get_rng_state, set_rng_state):
    PUBLIC[_function.__name__] = _function
PUBLIC["Generator"] = Generator
PUBLIC["default_generator"] = default_generator
