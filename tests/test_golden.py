"""Golden IR: for small programs, the graph that the user's line makes, the graph after
simplification, and which nodes share a kernel; also of their gradients.

A change of the compiler that changes one of these shows as a difference in tests/golden. Read it,
and if it is meant, `make golden` accepts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import gossamer as gs
from gossamer.compile import pipeline
from gossamer.compile.attention import has_kernel
from gossamer.compile.expand import expand
from gossamer.compile.prepare import prepare
from gossamer.compile.schedule import schedule
from gossamer.compile.simplify import simplify
from gossamer.ir.node import Node
from gossamer.ir.printer import format_graph
from gossamer.runtime.engine import Canonical

F = gs.nn.functional
Make = Callable[..., gs.Tensor]

# name -> (shapes of the float32 inputs x, y, z, the program)
PROGRAMS: dict[str, tuple[list[tuple[int, ...]], Make]] = {
    "add_broadcast": ([(3, 4), (4,)], lambda x, y: x + y),
    "chain": ([(8,)], lambda x: (x * 2 + 1).tanh().exp()),
    "used_twice": ([(8,)], lambda x: x.exp() + x.exp()),
    "identities": ([(8,)], lambda x: (x * 1 + 0) / 1 - 0),
    "constants_fold": ([(8,)], lambda x: x * (gs.full((8,), 2.0) * 3)),
    "double_negation": ([(8,)], lambda x: x.neg().neg()),
    "square": ([(8,)], lambda x: x ** 2),
    "root": ([(8,)], lambda x: x ** 0.5),
    "promotion": ([(8,)], lambda x: x + gs.arange(8)),
    "where": ([(8,), (8,)], lambda x, y: gs.where(x > y, x, y)),
    "clamp": ([(8,)], lambda x: x.clamp(-1, 1)),
    "sum_all": ([(3, 4)], lambda x: x.sum()),
    "mean_rows": ([(3, 4)], lambda x: x.mean(dim=1)),
    "sum_columns": ([(3, 4)], lambda x: x.sum(dim=0)),
    "sum_of_sum": ([(2, 3, 4)], lambda x: x.sum(dim=2).sum(dim=1)),
    "max_rows": ([(3, 4)], lambda x: x.amax(dim=1)),
    "variance": ([(3, 4)], lambda x: x.var(dim=1)),
    "softmax": ([(3, 4)], lambda x: x.softmax(dim=1)),
    "log_softmax": ([(3, 4)], lambda x: x.log_softmax(dim=1)),
    "logsumexp": ([(3, 4)], lambda x: x.logsumexp(dim=1)),
    "layer_norm": ([(3, 4), (4,), (4,)], lambda x, y, z: F.layer_norm(x, (4,), y, z)),
    "rms_norm": ([(3, 4), (4,)], lambda x, y: F.rms_norm(x, (4,), y)),
    "gelu": ([(8,)], lambda x: F.gelu(x)),
    "silu_gate": ([(8,), (8,)], lambda x, y: F.silu(x) * y),
    "transpose_twice": ([(3, 4)], lambda x: x.t().t()),
    "reshape_twice": ([(3, 4)], lambda x: x.reshape(2, 6).reshape(12)),
    "permute_reshape": ([(2, 3, 4)], lambda x: x.permute(2, 0, 1).reshape(4, 6)),
    "slice": ([(8,)], lambda x: x[2:7:2]),
    "slice_of_pad": ([(8,)], lambda x: F.pad(x, (2, 2))[2:10]),
    "flip_twice": ([(8,)], lambda x: x.flip(0).flip(0)),
    "cat": ([(3,), (4,)], lambda x, y: gs.cat([x, y])),
    "matmul": ([(3, 4), (4, 5)], lambda x, y: x @ y),
    "linear_relu": ([(3, 4), (5, 4), (5,)], lambda x, y, z: F.relu(F.linear(x, y, z))),
    "batched_matmul": ([(2, 3, 4), (2, 4, 5)], lambda x, y: x @ y),
    "einsum": ([(2, 3, 4), (5, 4)], lambda x, y: gs.einsum("bij,kj->bik", x, y)),
    "attention": ([(2, 3, 4), (2, 3, 4), (2, 3, 4)],
                  lambda x, y, z: F.scaled_dot_product_attention(x, y, z, is_causal=True)),
    "conv2d": ([(1, 2, 5, 5), (3, 2, 3, 3)], lambda x, y: F.conv2d(x, y, padding=1)),
    "max_pool": ([(1, 1, 4, 4)], lambda x: F.max_pool2d(x, 2)),
    "embedding": ([(6, 4)], lambda x: F.embedding(gs.tensor([1, 5, 1]), x)),
    "gather": ([(3, 4)], lambda x: x.gather(1, gs.tensor([[0], [2], [1]]))),
    "cross_entropy": ([(3, 4)], lambda x: F.cross_entropy(x, gs.tensor([0, 3, 1]))),
    "cumsum": ([(3, 4)], lambda x: x.cumsum(dim=1)),
    "write_through_view": ([(3, 4)], lambda x: _write_through_view(x)),
}


def _write_through_view(x: gs.Tensor) -> gs.Tensor:
    y = x * 1
    y[1] = 0.0
    y[:, 2] += 1
    return y


def _kernels(roots: list[Node], leaves: set[int]) -> str:
    """One line for each kernel: its kind and the operators it computes, in order."""
    stored = [pipeline._in_memory(r) for r in prepare(roots)]
    plan = schedule([r for r in stored if id(r) not in leaves], leaves)
    return "\n".join(f"{cluster.kind}: " + " ".join(n.op.name for n in cluster.members)
                     for cluster in plan.clusters)


def _report(nodes: list[Node]) -> str:
    roots, inputs = Canonical(nodes).graph(literal=True)
    simple = simplify(expand(roots, keep=has_kernel))
    return "\n".join([format_graph(roots), "-- simplified", format_graph(simple),
                      "-- kernels", _kernels(simple, {id(x) for x in inputs})])


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    shapes, program = PROGRAMS[name]
    inputs = [gs.zeros(*shape) for shape in shapes]
    for t in inputs:
        t.tolist()  # a value, so that the program starts here
        t.requires_grad_()
    result = program(*inputs)
    cotangent = gs.ones(*result.shape)
    cotangent.tolist()
    text = _report([result._read()])
    if result.requires_grad:
        gradients = gs.autograd.grad(result, inputs, cotangent, create_graph=True)
        text += "\n\n== gradient\n" + _report([g._read() for g in gradients])
    golden(name, text)


def test_every_golden_file_has_its_program() -> None:
    files = {p.stem for p in (Path(__file__).parent / "golden").glob("*.txt")}
    assert files == set(PROGRAMS)
