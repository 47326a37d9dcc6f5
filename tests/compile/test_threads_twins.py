"""Results do not depend on the number of threads: every kind of kernel, bit for bit.

Each case is run compiled with 1, 2 and 5 threads. A case names the kernels that must have been cut
into more than one chunk: without that the test would hold one thread to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn, optim
from gossamer.compile.calls import Call

F = nn.functional


@dataclass(frozen=True)
class Case:
    """One kind of kernel.

    Attributes:
        make: the function to compile and its arguments; called anew for each number of threads.
        split: words of kernel names, each of which some kernel in several chunks must have.
    """

    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    split: tuple[str, ...]


CASES: dict[str, Case] = {}


def case(*split: str, name: str = "") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a function that makes (function, arguments) to the cases."""
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name or make.__name__] = Case(make, split)
        return make
    return add


def real(*shape: int, dtype: Any = np.float32) -> Any:
    """Values of all magnitudes, so that another order of sums has other bits."""
    rng = np.random.default_rng(sum(shape))
    values = rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))
    return gs.tensor(values.astype(dtype))


def trained(loss: Callable[..., Any], *tensors: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that returns a loss and all gradients."""
    for t in tensors:
        t.requires_grad_()

    def step() -> Any:
        value = loss(*tensors)
        return (value.detach(), *gs.autograd.grad(value, tensors))
    return step, ()


# ------------------------------------------------------------------------------------ elementwise

@case("tanh")
def elementwise() -> Any:
    return lambda x, y: (x.exp() * y + x.tanh()).sqrt(), (real(300_001), real(300_001))


@case("mul")
def elementwise_of_views() -> Any:
    return lambda x, y: x.t() + y[:, ::2] * x[0, 0], (real(513, 611), real(611, 1026))


@case("reduce_sum")
def sums_down_columns() -> Any:
    return lambda x: (x.sum(0).tanh(), (x * x).sum(0)), (real(3000, 300),)


@case("mul")
def bfloat16() -> Any:
    return lambda x: (x * 2 + 1).to(gs.bfloat16), (real(300_001).to(gs.bfloat16),)


@case("bitwise_xor")
def random_numbers() -> Any:
    def draw() -> Any:
        gs.manual_seed(3)
        return gs.rand(300_001), gs.randn(70_001), gs.randint(0, 9, (100_003,)), \
            F.dropout(gs.ones(200_001), 0.3)
    return draw, ()


# ------------------------------------------------------------------------------------- reductions

@case("reduce_sum+reduce_max")
def rows() -> Any:
    return lambda x: (x.sum(1), x.amax(1), x.var(1), x.softmax(1), F.layer_norm(x, (733,))), \
        (real(517, 733),)


@case("reduce_sum+reduce_min")
def columns() -> Any:
    return lambda x: (x.sum(0), x.amin(0), x.mean(0)), (real(1517, 733),)


@case("reduce_sum")
def middle_axis() -> Any:
    return lambda x: (x.sum(1), x.sum((0, 2))), (real(37, 129, 113),)


@case("reduce_sum", "reduce_max")
def everything() -> Any:
    return lambda x: (x.sum(), x.amax(), (x * x).mean()), (real(1_310_720),)


@case("reduce_sum")
def everything_in_half_precision() -> Any:
    return lambda x: (x.sum(), x.float().sum()), (real(1_310_720).clamp(-9, 9).to(gs.bfloat16),)


@case("reduce_max", "reduce_min")
def places_of_the_largest() -> Any:
    return lambda x: (x.argmax(), x.argmin(1), x.argmax(0)), (real(700, 1500),)


@case("reduce_sum")
def narrow_columns() -> Any:
    return lambda x: x.sum(0), (real(200_000, 3),)


# --------------------------------------------------------------------------------------- products

def _layouts() -> Iterator[tuple[str, Callable[[], Any]]]:
    for a in "nt":
        for b in "nt":
            def make(a: str = a, b: str = b) -> Any:
                x = real(257, 311) if a == "n" else real(311, 257)
                y = real(311, 403) if b == "n" else real(403, 311)
                return lambda x, y: (x if a == "n" else x.t()) @ (y if b == "n" else y.t()), (x, y)
            yield a + b, make


for _name, _make in _layouts():
    case("gemm", name=f"product_{_name}")(_make)


@case("gemm")
def product_with_an_epilogue() -> Any:
    return lambda x, w, b: F.gelu(F.linear(x, w, b)) + x[:, :1], \
        (real(301, 257), real(503, 257), real(503))


@case("gemm")
def product_in_bfloat16() -> Any:
    return lambda x, y: x @ y, (real(301, 257).to(gs.bfloat16), real(257, 403).to(gs.bfloat16))


@case("gemm")
def product_in_float64() -> Any:
    return lambda x, y: x @ y, (real(301, 257, dtype=np.float64), real(257, 403, dtype=np.float64))


@case("gemm")
def product_with_a_long_inner_axis() -> Any:
    return lambda x, y: x @ y, (real(7, 60_001), real(60_001, 9))


@case("gemm")
def product_that_widens_what_it_packs() -> Any:
    return lambda x, w: x @ w.float().t(), (real(301, 257), real(503, 257).to(gs.bfloat16))


@case("gemm")
def product_with_packed_weights() -> Any:
    layer = nn.Sequential(nn.Linear(256, 503, bias=False))
    with gs.no_grad():
        layer[0].weight.copy_(real(503, 256).clamp(-9, 9))
    gs.quantization.quantize_(layer, gs.quantization.Int4WeightOnlyConfig())
    return lambda x: layer(x), (real(301, 256),)


@case("gemm")
def matrix_times_vector() -> Any:
    return lambda x, y: (x @ y, y @ x), (real(1501, 1501), real(1501))


@case("gemm")
def batched_products() -> Any:
    return lambda x, y: (x @ y, x.mT @ x), (real(37, 65, 77), real(37, 77, 59))


@case("gemm")
def many_small_products() -> Any:
    return lambda x, y: x @ y, (real(60_001, 5, 7), real(60_001, 7, 3))


@case("gemm")
def convolution() -> Any:
    return trained(lambda x, w, b: F.conv2d(x, w, b, padding=1).tanh().sum(),
                   real(5, 7, 33, 35) * 0.01, real(13, 7, 3, 3), real(13))


@case("maximum", "reduce_sum")
def pools() -> Any:
    return trained(lambda x: (F.max_pool2d(x, 2) * F.avg_pool2d(x, 2)).sum(), real(7, 13, 64, 66))


# -------------------------------------------------------------------------------------- attention

def _attention(causal: bool) -> Any:
    q, k, v = (real(3, 5, 257, 32) * 0.1 for _ in range(3))
    return trained(lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, is_causal=causal).tanh().sum(), q, k, v)


@case("attention", "attention backward")
def attention() -> Any:
    return _attention(False)


@case("attention", "attention backward")
def causal_attention() -> Any:
    return _attention(True)


# ------------------------------------------------------------------------- scans, sorts, scatters

@case("scan")
def scans() -> Any:
    return lambda x: (x.cumsum(1), x.cumsum(0), (x * 0.01).tanh().cumprod(1)), (real(517, 733),)


@case("recurrence")
def recurrences() -> Any:
    return trained(lambda x: (x * 0.01).tanh().cumprod(1).sum() + x.logcumsumexp(0).sum(),
                   real(517, 733))


@case("argsort", "take")
def sorts() -> Any:
    return lambda x: (*gs.sort(x, dim=1), *gs.topk(x, 9), *gs.sort(x, dim=0)), (real(217, 533),)


@case("scatter_add", "take")
def gradient_of_an_embedding() -> Any:
    table = real(501, 129)
    index = gs.tensor(np.random.default_rng(1).integers(0, 501, 20_003))
    return trained(lambda t: (F.embedding(index, t).tanh() ** 2).sum(), table)


@case("scatter_add")
def sums_to_places() -> Any:
    rng = np.random.default_rng(2)
    index = gs.tensor(rng.integers(0, 77, (20_003,)))
    return lambda x: (gs.zeros(77, 257).index_add(0, index, x), gs.zeros(77).scatter_add(
        0, index, x[:, 0])), (real(20_003, 257),)


@case("reduce_max")
def losses() -> Any:
    target = gs.tensor(np.random.default_rng(3).integers(0, 1031, 603))
    return trained(lambda x: F.cross_entropy(x, target), real(603, 1031))


# --------------------------------------------------------------------------------------- training

def _training(make: Callable[[Any], Any]) -> Any:
    gs.manual_seed(5)
    model = nn.Sequential(nn.Linear(130, 515), nn.GELU(), nn.LayerNorm(515), nn.Linear(515, 65))
    optimizer = make(model.parameters())
    x, y = real(258, 130), real(258, 65)

    def step() -> Any:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return (loss.detach(), *(p.detach().clone() for p in model.parameters()))
    return step, ()


@case("gemm", "mul+")
def training_by_sgd() -> Any:
    return _training(lambda ps: optim.SGD(ps, lr=0.01, momentum=0.9))


@case("gemm", "mul+")
def training_by_adamw() -> Any:
    return _training(lambda ps: optim.AdamW(ps, lr=0.01))


@case("gemm", "mul+")
def training_by_muon() -> Any:
    return _training(lambda ps: optim.Muon([p for p in ps if p.ndim == 2], lr=0.01))


# ------------------------------------------------------------------------------------------- test

def bits(value: Any) -> Any:
    """The bytes of all results."""
    if isinstance(value, (tuple, list)):
        return [bits(v) for v in value]
    value = value.detach()
    return (value.float() if value.dtype is gs.bfloat16 else value).numpy().tobytes()


def run(chosen: Case, threads: int, times: int = 2) -> tuple[Any, list[Call]]:
    """The results, uncompiled and of some compiled runs, and the calls of the program."""
    before = gs.get_num_threads()
    gs.set_num_threads(threads)
    try:
        function, arguments = chosen.make()
        found = [bits(function(*arguments))]
        function, arguments = chosen.make()  # training begins again
        compiled = gs.compile(function)
        found += [bits(compiled(*arguments)) for _ in range(times)]
        return found, [c for p in compiled.programs() for c in p.compiled.calls]
    finally:
        gs.set_num_threads(before)


@pytest.mark.parametrize("chosen", CASES.values(), ids=CASES)
def test_the_number_of_threads_changes_no_bit(chosen: Case) -> None:
    alone, _ = run(chosen, 1)
    for threads in (2, 5):
        together, calls = run(chosen, threads)
        chunked = [c.name for c in calls if isinstance(c.n, int) and c.n > c.grain > 0]
        for kind in chosen.split:
            assert any(kind in name for name in chunked), (kind, chunked)
        assert together == alone, f"{threads} threads"
