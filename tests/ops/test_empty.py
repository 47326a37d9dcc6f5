"""No elements: every operator of the table on empty operands, and the surface as PyTorch has it.

Most operators have an empty sample, which the laws run; those whose first operand never is have one
here. Compiled code must give the reference's shape and dtype, in a program of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile.vjp import vjp
from gossamer.core.dtype import float32
from gossamer.core.errors import GossamerError
from gossamer.ir.op import TABLE, Op
from gossamer.runtime.reference import evaluate
from tests.ops.laws import about, buffer, compiled, results, samples
from tests.ops.test_laws import LEAVES

torch = pytest.importorskip("torch")

_ATTEND: dict[str, Any] = {"mask": False, "start": False, "causal": False, "window": 0,
                           "scale": 0.5}

# operator -> (shapes of its float operands, attributes), where its samples have no empty operand
EMPTY: dict[str, list[tuple[tuple[tuple[int, ...], ...], dict[str, Any]]]] = {
    "slice": [(((0, 4),), {"starts": (0, 1), "stops": (0, 3), "steps": (1, 2)}),
              (((5,),), {"starts": (2,), "stops": (2,), "steps": (1,)})],
    "windows": [(((0, 9, 3),), {"axis": 1, "stride": 1, "dilation": 1})],
    "unwindows": [(((0, 7, 3),), {"axis": 1, "stride": 1, "dilation": 1, "length": 9})],
    "broadcast": [(((0,),), {"shape": (3, 0), "axes": (0,)}),
                  (((2,),), {"shape": (0, 2), "axes": (0,)})],
    "detach": [(((0, 3),), {})],
    "attention": [(((0, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3, 4)), _ATTEND),
                  (((2, 0, 4), (2, 3, 4), (2, 3, 4)), _ATTEND)],
    "attention_grad": [(((0, 2, 3, 4),) * 3 + ((0, 2, 3), (0, 2, 3, 4), (0, 2, 3)),
                        {**_ATTEND, "mask_grad": False})],
    "max_pool": [(((0, 2, 6),), {"kernel": (2,), "stride": (2,), "low": (0,), "high": (0,),
                                 "dilation": (1,)})],
    "sum_pool": [(((0, 2, 6),), {"kernel": (2,), "stride": (2,), "low": (0,), "high": (0,),
                                 "dilation": (1,)})],
    "conv_weight": [(((0, 1, 3), (0, 1, 5)),
                     {"kernel": (3,), "stride": (1,), "low": (0,), "high": (0,), "interior": (0,),
                      "dilation": (1,), "groups": 1})],
    "strided": [(((7,),), {"extents": (0, 3), "strides": (2, 1), "offset": 0})],
}
# Marks on values or functions of the user's, which the surface below meets; and what has no
# empty form.
OTHERWISE = {"leaf": "a mark on a parameter", "custom": "the user's own rule",
             "max_pool_grad": "max_pool's derivative, below",
             "dequantize": "packed weights come in blocks of rows",
             "random_bits": "its operand is a key; shapes are attributes, below",
             "random_uniform": "the same", "random_normal": "the same",
             "random_integers": "the same"}


def _has_empty_sample(op: Op) -> bool:
    return any(x.size == 0 for s in samples(op) for x in s.inputs)


@pytest.mark.parametrize("op", [op for op in TABLE.values() if op.name not in LEAVES],
                         ids=lambda op: op.name)
def test_every_operator_meets_no_elements(op: Op) -> None:
    assert _has_empty_sample(op) or op.name in EMPTY or op.name in OTHERWISE, \
        f"{op.name}: none of its samples has an operand without elements; add one"


@pytest.mark.parametrize("name", EMPTY)
def test_compiled_code_gives_the_references_shapes(name: str) -> None:
    for shapes, attrs in EMPTY[name]:
        with about(f"{shapes} {attrs}"):
            xs = [buffer(np.ones(shape, np.float32), float32) for shape in shapes]
            ys = results(TABLE[name](*xs, **attrs))
            wanted = evaluate(ys)
            for found, expected in zip(compiled(ys), wanted, strict=True):
                assert found.shape == expected.shape and found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [n for n in EMPTY if n != "attention_grad"])
def test_derivatives_have_the_operands_shapes(name: str) -> None:
    for shapes, attrs in EMPTY[name]:
        xs = [buffer(np.ones(shape)) for shape in shapes]
        ys = [y for y in results(TABLE[name](*xs, **attrs)) if y.grad]
        if not ys:
            continue
        found = vjp(ys, [buffer(np.ones(y.shape), grad=False) for y in ys], xs)
        for x, g in zip(xs, found, strict=True):
            assert g is None or g.shape == x.shape
        kept = [g for g in found if g is not None]
        for array, g in zip(compiled(kept), kept, strict=True):
            assert array.shape == g.shape and not array.any()


# the surface ------------------------------------------------------------------------------------
Case = Callable[[Any, Any], Any]  # (library, its nn.functional) -> tensor or tuple

CASES: dict[str, Case] = {
    "add": lambda t, f: t.zeros(0, 3) + t.ones(3),
    "compare": lambda t, f: t.zeros(0) < 1,
    "sum": lambda t, f: t.zeros(0, 3).sum(0),
    "sum of rows": lambda t, f: t.zeros(3, 0).sum(1),
    "sum of all": lambda t, f: t.zeros(0).sum(),
    "mean": lambda t, f: t.zeros(0).mean(),
    "prod": lambda t, f: t.zeros(2, 0).prod(1),
    "any, all": lambda t, f: (t.zeros(0).any(), t.zeros(0).all()),
    "max of no rows": lambda t, f: t.zeros(0, 3).amax(1),
    "argmax of no rows": lambda t, f: t.zeros(0, 3).argmax(1),
    "var": lambda t, f: t.zeros(3, 0).var(1),
    "median": lambda t, f: t.zeros(0).median(),
    "norm": lambda t, f: t.zeros(0).norm(),
    "logsumexp": lambda t, f: t.zeros(3, 0).logsumexp(1),
    "softmax": lambda t, f: (t.zeros(0, 3).softmax(-1), t.zeros(3, 0).softmax(-1)),
    "log_softmax": lambda t, f: t.zeros(0, 3).log_softmax(-1),
    "layer_norm": lambda t, f: f.layer_norm(t.zeros(0, 4), (4,), t.ones(4), t.zeros(4)),
    "rms_norm": lambda t, f: f.rms_norm(t.zeros(0, 4), (4,)),
    "group_norm": lambda t, f: f.group_norm(t.zeros(0, 4, 5), 2),
    "no rows @": lambda t, f: t.zeros(0, 3) @ t.ones(3, 4),
    "no columns @": lambda t, f: t.ones(2, 3) @ t.zeros(3, 0),
    "@ over nothing": lambda t, f: t.zeros(2, 0) @ t.zeros(0, 3),
    "no batch @": lambda t, f: t.zeros(0, 2, 3) @ t.ones(3, 4),
    "einsum": lambda t, f: t.einsum("bij,bjk->bik", t.zeros(0, 2, 3), t.zeros(0, 3, 4)),
    "linear": lambda t, f: f.linear(t.zeros(0, 3), t.ones(4, 3), t.ones(4)),
    "linear of nothing": lambda t, f: f.linear(t.zeros(2, 0), t.zeros(4, 0), t.ones(4)),
    "conv2d": lambda t, f: f.conv2d(t.zeros(0, 3, 8, 8), t.ones(4, 3, 3, 3), t.ones(4)),
    "max_pool2d": lambda t, f: f.max_pool2d(t.zeros(0, 3, 8, 8), 2),
    "avg_pool2d": lambda t, f: f.avg_pool2d(t.zeros(0, 3, 8, 8), 2),
    "attention": lambda t, f: f.scaled_dot_product_attention(
        t.zeros(0, 2, 5, 4), t.zeros(0, 2, 5, 4), t.zeros(0, 2, 5, 4), is_causal=True),
    "embedding": lambda t, f: f.embedding(t.zeros(0, 3, dtype=t.int64), t.ones(5, 4)),
    "cross_entropy": lambda t, f: f.cross_entropy(t.zeros(0, 3), t.zeros(0, dtype=t.int64)),
    "cross_entropy, sum": lambda t, f: f.cross_entropy(
        t.zeros(0, 3), t.zeros(0, dtype=t.int64), reduction="sum"),
    "cumsum": lambda t, f: (t.zeros(0, 3).cumsum(0), t.zeros(3, 0).cumsum(1)),
    "sort": lambda t, f: tuple(t.zeros(3, 0).sort(1)),
    "sort no rows": lambda t, f: tuple(t.zeros(0, 3).sort(1)),
    "topk": lambda t, f: tuple(t.zeros(0, 5).topk(2)),
    "gather": lambda t, f: t.ones(3, 4).gather(1, t.zeros(3, 0, dtype=t.int64)),
    "scatter_add": lambda t, f: t.ones(4).scatter_add(0, t.zeros(0, dtype=t.int64), t.zeros(0)),
    "index_select": lambda t, f: t.ones(3, 4).index_select(0, t.zeros(0, dtype=t.int64)),
    "index": lambda t, f: t.ones(3, 4)[t.zeros(0, dtype=t.int64)],
    "mask": lambda t, f: t.ones(3)[t.zeros(3, dtype=t.bool)],
    "nonzero": lambda t, f: t.zeros(3).nonzero(),
    "where": lambda t, f: t.where(t.zeros(0, dtype=t.bool), t.zeros(0), 1.0),
    "cat": lambda t, f: t.cat([t.zeros(0, 3), t.ones(2, 3), t.zeros(0, 3)]),
    "stack": lambda t, f: t.stack([t.zeros(0), t.zeros(0)]),
    "split": lambda t, f: tuple(t.zeros(0, 4).split(2, dim=1)),
    "slice": lambda t, f: t.ones(4)[2:2],
    "pad": lambda t, f: f.pad(t.zeros(0, 2), (1, 1)),
    "flip, roll": lambda t, f: (t.zeros(0, 3).flip(0), t.zeros(0, 3).roll(1, 0)),
    "reshape": lambda t, f: t.zeros(0, 3).reshape(3, 0, 2),
    "expand": lambda t, f: t.zeros(1, 0).expand(5, 0),
    "repeat": lambda t, f: t.ones(2).repeat(0, 3),
    "unfold": lambda t, f: t.zeros(0, 6).unfold(1, 2, 2),
    "tril": lambda t, f: t.zeros(0, 3).tril(),
    "cast": lambda t, f: t.zeros(0).to(t.bfloat16).to(t.int64),
    "arange, linspace": lambda t, f: (t.arange(0), t.linspace(0, 1, 0), t.eye(0)),
    "random": lambda t, f: (t.rand(0, 2) * 0, t.randn(0) * 0, t.randint(0, 3, (2, 0)) * 0),
    "write": lambda t, f: t.ones(3).index_fill(0, t.zeros(0, dtype=t.int64), 2.0),
    "cumprod": lambda t, f: t.zeros(0, 4).cumprod(1),
}


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_surface_does_as_pytorch(name: str) -> None:
    case = CASES[name]
    wanted = _flat(case(torch, torch.nn.functional))
    ways = [case(gs, gs.nn.functional)]
    if name not in ("mask", "nonzero"):  # their shapes hang on values
        ways.append(gs.compile(lambda: case(gs, gs.nn.functional))())
    for result in ways:
        for found, expected in zip(_flat(result), wanted, strict=True):
            assert tuple(found.shape) == tuple(expected.shape)
            assert str(found.dtype).split(".")[-1] == str(expected.dtype).split(".")[-1]
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("name", ["amax", "argmax", "max"])
def test_a_largest_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises((GossamerError, ValueError, RuntimeError, IndexError)) as told:
        getattr(gs.zeros(0), name)().item()
    assert name.removeprefix("arg") in str(told.value) and "Traceback" not in str(told.value)


def test_a_model_trains_on_an_empty_batch() -> None:
    """Zero gradients, no NaN: PyTorch's sums over nothing."""
    model = gs.nn.Sequential(gs.nn.Linear(3, 4), gs.nn.GELU(), gs.nn.LayerNorm(4),
                             gs.nn.Linear(4, 2))
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone().numpy() for p in model.parameters()]

    def step(x: gs.Tensor) -> gs.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    for run in (step, gs.compile(step)):
        assert run(gs.zeros(0, 3)).item() == 0
        for p, old in zip(model.parameters(), before, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), old)
