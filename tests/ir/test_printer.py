"""The printed graph: one line a node, the same text for the same graph."""

from __future__ import annotations

import numpy as np

from gossamer import ops
from gossamer.core.dtype import float32, int64
from gossamer.ir.op import CONSTANT, INPUT, PICK
from gossamer.ir.printer import draw, format_graph
from tests.ops.laws import buffer


def small_graph() -> list:
    x = INPUT(index=0, shape=(2, 3), dtype=float32)
    half = CONSTANT(value=0.5, shape=(2, 3), dtype=float32)
    y = ops.reduce_sum(ops.mul(x, half), axes=(1,))
    return [y, ops.cast(y, dtype=int64)]


def test_text() -> None:
    assert format_graph(small_graph()) == """\
%0 = input(index=0) : float32[2,3]
%1 = constant(value=0.5) : float32[2,3]
%2 = mul(%0, %1) : float32[2,3]
%3 = reduce_sum(%2, axes=(1)) : float32[2]
%4 = cast(%3, dtype=int64) : int64[2]
return %3, %4"""


def test_equal_graphs_have_equal_texts() -> None:
    assert format_graph(small_graph()) == format_graph(small_graph())


def test_lines_of_the_user() -> None:
    text = format_graph([ops.exp(buffer(np.zeros(2)))], lines=True)
    assert "# test_printer.py:" in text.splitlines()[1]


def test_several_results_and_values() -> None:
    q = INPUT(index=0, shape=(1, 2, 3), dtype=float32)
    both = ops.attention(q, q, q, mask=False, start=False, causal=True, window=0, scale=1.0)
    text = format_graph([PICK(both, index=1)])
    assert ": (float32[1,2,3], float32[1,2])" in text
    x = ops.exp(buffer(np.zeros(2)))
    x.value = x.inputs[0].value
    assert format_graph([ops.neg(x)]).splitlines()[0] == "%0 = value of exp() : float64[2]"
    assert "buffer" in format_graph([ops.neg(x)], into_values=True)


def test_drawing_is_a_graph_of_graphviz() -> None:
    text = draw(small_graph())
    assert text.startswith("digraph {") and text.endswith("}")
    assert text.count("->") == 4 and text.count("penwidth") == 2
    assert 'label="reduce_sum\\naxes=(1)\\nfloat32[2]"' in text
