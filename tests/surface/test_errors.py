"""Mistakes that users make, beside what PyTorch says: each is refused at once, with what was
written, what was given, the rule and the way out (template of the style guide)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import gossamer as gs

# what the user writes | what our message must hold (as a regular expression)
MISTAKES = r"""
m.ones(2, 3) + m.ones(4) | ^x \+ y: shapes \(2, 3\) and \(4,\) do not broadcast
m.ones(2, 3) @ m.ones(2, 3) | ^x @ y: got float32\[2,3\] and float32\[2,3\]; .* 3, must equal
m.ones(2, 3) @ m.ones(3, dtype=m.float64) | ^x @ y: got float32\[2,3\] and float64.*\.to\(float64\)
m.mm(m.ones(2, 3), m.ones(3)) | ^gs\.mm: .* must have 2 and 2 dimensions
m.bmm(m.ones(2, 3, 4), m.ones(3, 4, 5)) | ^gs\.bmm: .* same number of matrices
m.ones(6).view(4, 2) | ^x\.view\(4, 2\): x has 6 elements
m.ones(6).reshape(-1, 4) | ^x\.reshape\(-1, 4\): x has 6 elements
m.ones(2, 3).t().view(6) | ^x\.view\(6\): .* Use x\.reshape
m.ones(2, 3)[5] | index 5 is out of range for dimension 0 with extent 2
m.ones(2, 3)[:, 3] | index 3 is out of range for dimension 1 with extent 3
m.ones(2, 3)[0, 0, 0] | 3 indices for a tensor with 2 dimensions
m.ones(3)[m.tensor([0, 3])] | index 3 is out of range for dimension 0
m.ones(3)[m.tensor([True, False])] | ^x\[mask\]: the mask has shape \(2,\)
m.ones(3)[::-1] | ^x\[::-1\]: .* Use x\.flip
m.ones(3)[1.5] | float cannot be an index
m.ones(2, 3).sum(2) | ^gs\.sum: dim=2, but the tensor has 2 dimensions
m.ones(2, 3).sum(dim=(0, 0)) | names a dimension twice
m.arange(3).mean() | ^gs\.mean: x is int64\[3\].*x\.float\(\)\.mean
m.cat([]) | ^gs\.cat: the list of tensors is empty
m.cat([m.ones(2, 3), m.ones(3, 2)]) | ^gs\.cat\(dim=0\): tensors\[0\] is float32\[2,3\] and
m.stack([m.ones(2), m.ones(3)]) | ^gs\.stack: tensors\[0\] has shape \(2,\).*gs\.cat
m.ones(2).item() | ^x\.item\(\): x is float32\[2\] .* x\.tolist
bool(m.ones(2)) | ^bool\(x\): x is float32\[2\].*any\(\) or x\.all
len(m.tensor(1.0)) | ^len\(x\): x has no dimensions
iter(m.tensor(1.0)) | without dimensions
m.ones(2, requires_grad=True).numpy() | x\.detach\(\)\.numpy
m.ones(2, requires_grad=True).add_(1) | ^x\.add_: float32\[2\] is a leaf that requires grad
m.ones(2, requires_grad=True)[0].add_(1) | is a view of a leaf that requires grad
m.ones(2).backward() | does not require grad and has no graph
(m.ones(2, requires_grad=True) * 2).backward() | ^backward\(\): the result is float32\[2\]
m.ones(2, dtype=m.int64).requires_grad_() | only floating-point tensors have gradients
setattr(m.ones(2), "grad", m.ones(3)) | ^x\.grad: x is float32\[2\] and the gradient float32\[3\]
(m.ones(2, requires_grad=True) * 2).requires_grad_(False) | Use x\.detach\(\)
m.arange(3).add_(1.5) | ^x\.add_: the result is float32, which int64 cannot hold
m.ones(3).add_(m.ones(2, 3)) | ^x\.add_: the result has shape \(2, 3\), but x has \(3,\)
m.ones(3, 1).expand(3, 4).add_(1) | is expanded.*x\.clone
m.ones(2).expand(3, 3) | ^x\.expand\(3, 3\): x has shape \(2,\)
m.ones(2, 3).permute(0, 0) | each dimension must be named once
m.ones(2, 3).transpose(0, 2) | dim1=2, but the tensor has 2 dimensions
m.zeros(-1) | shape \(-1,\) has a negative extent
m.full((2,), 300, dtype=m.uint8) | 300 does not fit uint8
m.tensor([[1, 2], [3]]) | rows of the nested lists have different lengths
m.tensor("abc") | ^gs\.tensor: cannot make a tensor of str
m.tensor([object()]) | ^gs\.tensor: cannot make a tensor of list data
m.zeros(2, device="gpu") | ^device\('gpu'\): no such device
m.ones(2).split(0) | split_size=0
m.ones(5).split([2, 2]) | add up to 4; they must add up to 5
m.ones(5).chunk(0) | chunks=0
m.ones(3).topk(5) | ^gs\.topk\(k=5\): dimension 0 has extent 3
m.multinomial(m.ones(3), 4) | there are 3 categories
m.gather(m.ones(2, 2), 0, m.tensor([[0.5]])) | must hold integers
m.ones(2, 2).index_select(0, m.tensor([2])) | index 2 is out of range for dimension 0
m.ones(2).masked_fill(m.tensor([1, 0]), 0.0) | the mask is int64\[2\]; it must be bool
m.where(m.ones(2), 1.0, 0.0) | the condition is float32\[2\]; it must be bool
m.einsum("ij,jk->ik", m.ones(2, 3), m.ones(4, 5)) | 'j' is 3 in one operand and 4 in another
m.einsum("ij->k", m.ones(2, 3)) | letter of the result must occur in an operand
m.ones(2) + None | ^x \+ y: expected a tensor or a number, not NoneType
m.ones(2) + "a" | ^x \+ y: expected a tensor or a number, not str
m.ones(2) * [1, 2] | ^x \* y: expected a tensor or a number, not list
m.tensor([True]) - m.tensor([True]) | ^x - y: got two bool tensors.*\^
-m.tensor([True]) | not defined for bool
m.arange(3) ** -1 | ^x \*\* y: int64\[3\] to the power -1
m.autograd.grad(m.ones(1, requires_grad=True), m.ones(1, requires_grad=True)) | allow_unused=True
m.ones(2).softmax(1) | ^gs\.softmax: dim=1, but the tensor has 1 dimension
m.linspace(0, 1, -1) | steps=-1
m.arange(0, 5, -1) | ^gs\.arange\(0, 5, -1\): the step must lead
m.randint(5, 5, (2,)) | low=5, high=5
m.ones(2).uniform_(2, 1) | ^x\.uniform_\(2, 1\)
m.nn.Linear(8, 4)(m.ones(3, 4)) | ^linear \(in_features=8\): x has shape \(3, 4\)
m.nn.functional.conv2d(m.ones(1, 3, 8, 8), m.ones(4, 2, 3, 3)) | x must have 2 channels
m.nn.functional.conv_transpose1d(m.ones(1, 2, 2), m.ones(2, 1, 1), padding=2) | Use less padding
m.nn.functional.conv_transpose1d(m.ones(1, 2, 2), m.ones(2, 1, 1), output_padding=-1) | negative
m.from_numpy([1, 2]) | ^gs\.from_numpy: expected a NumPy array, not list
m.index_add(m.ones(3), 0, m.tensor([0]), m.ones(2)) | source has shape \(2,\); it must be \(1,\)
m.ones(2, 2).diagonal(0, 1, 1) | two different ones
m.clamp(m.ones(2)) | at least one of min and max
m.ones(2, 3).t_().foo | foo
"""

ROWS = [tuple(part.strip() for part in line.split(" | ", 1))
        for line in MISTAKES.strip().splitlines()]


def test_there_are_enough() -> None:
    assert len(ROWS) >= 40


def _raised(code: str, module: Any) -> BaseException:
    try:
        eval(code, {"m": module, "np": np})
    except Exception as error:
        return error
    raise AssertionError(f"{module.__name__} accepts {code}")


@pytest.mark.parametrize(("code", "pattern"), ROWS, ids=[code for code, _ in ROWS])
def test_mistake(code: str, pattern: str) -> None:
    """Ours names what was written; and code that catches PyTorch's exception catches ours."""
    error = _raised(code, gs)
    message = str(error)
    assert re.search(pattern, message), message
    if not isinstance(error, AttributeError):
        assert isinstance(error, gs.GossamerError), type(error)
        assert ": " in message and message.endswith((".", ")")), message
        assert not re.search(r"\bndarray\b|\bnode\b|dot_general|reduce_", message), message
    torch = pytest.importorskip("torch", reason="PyTorch, the yardstick, is not installed")
    theirs = _raised(code, torch)
    # NotImplementedError is a RuntimeError of PyTorch's that names a missing kernel.
    expected = RuntimeError if isinstance(theirs, NotImplementedError) else type(theirs)
    assert isinstance(error, expected), f"PyTorch: {type(theirs).__name__}: {theirs}"


def test_error_stands_on_the_users_line() -> None:
    x = gs.ones(2)
    try:
        x + gs.ones(3)
    except gs.ShapeError as error:
        frame = error.__traceback__
        assert frame is not None and frame.tb_frame.f_code.co_filename == __file__
    else:
        raise AssertionError("shapes 2 and 3 were added")


def test_meta_has_no_values() -> None:
    with pytest.raises(gs.DeviceError, match="to_empty"):
        gs.empty(2, device="meta").tolist()
    with pytest.raises(gs.DeviceError, match="to_empty"):
        gs.empty(2, device="meta").to("cpu")


def test_absent_devices() -> None:
    with pytest.raises(gs.DeviceError, match="'cpu' and 'meta'"):
        gs.ones(2).to("cuda:0")


def test_freed_graph_names_the_line_that_made_it() -> None:
    x = gs.ones(2, requires_grad=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(gs.GradientError, match=r"test_errors\.py:\d+.*retain_graph=True"):
        y.backward()


def test_reading_a_value_under_vmap() -> None:
    def f(x: gs.Tensor) -> gs.Tensor:
        return x if x.sum() > 0 else -x
    with pytest.raises(gs.TraceError, match=r"gs\.where"):
        gs.vmap(f)(gs.ones(3, 2))
