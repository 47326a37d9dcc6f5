"""NumPy, DLPack, pickle, copy: memory is shared as PyTorch shares it."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from tests.surface.twin import compare, scenarios


def case_from_numpy_shares(m: Any) -> Any:
    a = np.ones(4, np.float32)
    t = m.from_numpy(a)
    a[0] = 5
    before = t * 1
    t.mul_(2)
    t[1:3] += 1
    a[3] = 9
    return before, t, a


def case_from_numpy_of_a_part(m: Any) -> Any:
    whole = np.zeros((3, 3), np.float32)
    t = m.from_numpy(whole[1])
    whole[1, 1] = 4
    t += 1
    return t, whole


def case_numpy_shares(m: Any) -> Any:
    t = m.zeros(2, 3)
    a = t.numpy()
    a[0, 1] = 7
    t[1] = 3
    part = t[:, 1:].numpy()
    part[0, 0] += 1
    return t, a, part


def case_numpy_of_a_transposed_view(m: Any) -> Any:
    t = m.arange(6).float().view(2, 3)
    a = t.t().numpy()
    a[2, 0] = -1
    return t, a, list(a.shape)


def case_detached_numpy_of_a_parameter(m: Any) -> Any:
    w = m.ones(3, requires_grad=True)
    w.detach().numpy()[0] = 6
    (w * w).sum().backward()
    return w, w.grad


def case_numpy_of_a_result_keeps_its_history(m: Any) -> Any:
    w = m.ones(2, requires_grad=True)
    y = w * 3
    a = y.detach().numpy()
    z = (y * y).sum()
    z.backward()
    return a, w.grad


def case_numpy_scalars_and_arrays_as_operands(m: Any) -> Any:
    t = m.tensor([1.0, 2.0])
    return t * np.float32(2), np.float64(3) * t, t + np.int64(1), np.float32(1) - t


def case_arrays_from_tensors(m: Any) -> Any:
    t = m.arange(4).float()
    return t.numpy().sum().item(), np.stack([t.numpy(), t.numpy()]), float(np.max(t.numpy()))


def case_tensor_copies(m: Any) -> Any:
    a = np.ones(2)
    t = m.tensor(a)
    a[0] = 5
    return t, m.tensor([np.float32(1), np.float32(2)]), m.as_tensor(a)


def case_dtypes_from_python(m: Any) -> Any:
    return [m.tensor(v) for v in (True, 3, 2.5, [1, 2.0], [True, 2], [], [[]],
                                  np.arange(2, dtype=np.int16), np.float64(1.0))]


def case_element_access(m: Any) -> Any:
    t = m.tensor([[1, 2], [3, 4]])
    return [t.tolist(), t[0, 1].item(), int(t[1, 1]), float(t[0, 0]), bool(t[0, 0]),
            list(range(4))[t[0, 1]], len(t), [r.tolist() for r in t], t.size(), t.size(-1),
            t.numel(), t.dim(), t.element_size(), t.nbytes, 4 in t, 9 in t]


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)


def test_memory_is_taken_back_when_the_array_is_gone() -> None:
    t = gs.zeros(3)
    a = t.numpy()
    a[1] = 4
    view = a[1:]
    del a
    view[1] = 5
    assert t.tolist() == [0, 4, 5]
    del view
    gc.collect()
    assert t.tolist() == [0, 4, 5] and t._base is None


def test_array_protocol() -> None:
    t = gs.arange(4).float()
    assert np.asarray(t).tolist() == np.array(t, np.int8).tolist() == [0, 1, 2, 3]
    assert np.stack([t, t]).shape == (2, 4)
    with pytest.raises(gs.GradientError, match="detach"):
        np.asarray(gs.ones(2, requires_grad=True))


def test_dlpack_with_numpy() -> None:
    t = gs.arange(3).float()
    a = np.from_dlpack(t)
    assert a.tolist() == [0, 1, 2]
    b = np.ones(2, np.float32)
    u = gs.from_dlpack(b)
    b[0] = 3
    assert u.tolist() == [3, 1]


def test_dlpack_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the yardstick, is not installed")
    theirs = torch.zeros(3)
    ours = gs.from_dlpack(theirs)
    ours[1] = 2
    theirs[2] = 3
    assert ours.tolist() == theirs.tolist() == [0, 2, 3]
    back = torch.from_dlpack(ours)
    back[0] = 1
    assert ours.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_pickle(dtype: str) -> None:
    x = gs.tensor([[0.0, 1.0], [1.0, 3.0]]).to(getattr(gs, dtype))
    y = pickle.loads(pickle.dumps(x))
    assert y.dtype is x.dtype and gs.equal(x, y) and not y.requires_grad


def test_pickle_of_parameters() -> None:
    p = gs.Parameter(gs.arange(3).float())
    q = pickle.loads(pickle.dumps(p))
    assert type(q) is gs.Parameter and q.requires_grad and q.is_leaf and q.tolist() == [0, 1, 2]
    with pytest.raises(gs.GradientError, match="detach"):
        pickle.dumps(p * 2)


def test_deepcopy() -> None:
    p = gs.Parameter(gs.ones(2))
    p.note = "kept"
    (p * p).sum().backward()
    a, b = copy.deepcopy([p, p])
    assert a is b and type(a) is gs.Parameter and a.grad is not p.grad and a.note == "kept"
    assert a.grad.tolist() == [2, 2]
    with gs.no_grad():
        a.zero_()
    assert p.tolist() == [1, 1]
    with pytest.raises(gs.GradientError):
        copy.deepcopy(p * 2)


def address(value: Any) -> int:
    found: int = value.__array_interface__["data"][0]
    return found


@pytest.mark.parametrize("detached", [False, True])
def test_a_result_that_nothing_else_reads_gives_its_memory_away(detached: bool) -> None:
    x = gs.arange(4).float() + 1
    kept = x._value().buffer.address
    a = x.detach().numpy() if detached else x.numpy()
    assert address(a) == kept
    a[0] = 9
    assert x.tolist() == [9, 2, 3, 4]
    x[1] = 7
    assert a.tolist() == x.tolist() == [9, 7, 3, 4]
    assert x.numpy() is a


def test_memory_that_something_else_reads_is_not_given_away() -> None:
    x = gs.arange(4).float() + 1
    later = x * 2  # not computed yet
    part, same = x[1:], x.detach()
    a = x.numpy()
    a[:] = 0
    assert later.tolist() == [2, 4, 6, 8]
    assert part.tolist() == [0, 0, 0] and same.tolist() == [0] * 4
    y, z = x + 3, gs.ones(4) + 2  # equal programs' results, and a value that two nodes hold
    twice = z.requires_grad_()
    b = y.numpy()
    twice.detach().numpy()[0] = 5
    assert b.tolist() == [3] * 4 and twice.tolist() == [5, 3, 3, 3]


def test_a_view_from_before_sees_what_was_written_to_an_array_that_is_gone() -> None:
    x = gs.zeros(4) + 1
    part = x[:2]
    assert part.tolist() == [1, 1]
    x.numpy()[0] = 5
    assert (x + 0).tolist() == [5, 1, 1, 1]
    assert part.tolist() == [5, 1]


def test_bfloat16_to_numpy() -> None:
    x = gs.tensor([1.0, 2.0], dtype=gs.bfloat16)
    with pytest.raises(gs.DTypeError, match="bfloat16"):
        x.numpy()
    assert x.numpy(force=True).dtype == np.float32


def test_unknown_dtype() -> None:
    with pytest.raises(gs.DTypeError, match="complex"):
        gs.from_numpy(np.zeros(2, complex))
    with pytest.raises(gs.DTypeError, match="complex"):
        gs.tensor(1j)


@pytest.mark.parametrize("array", [
    np.arange(600, dtype=np.float64).reshape(20, 30), np.arange(600.0).reshape(20, 30).T,
    np.arange(1200.0)[::-2], np.arange(600, dtype=">i4"), np.linspace(-300, 300, 2400) > 0,
    np.broadcast_to(np.float32(3), (20, 30)), np.linspace(-9, 9, 700)],
    ids=["plain", "transposed", "backwards", "byteorder", "bool", "broadcast", "fractions"])
@pytest.mark.parametrize("dtype", [None, gs.float32, gs.int32, gs.float64])
def test_a_large_array_is_copied_to_whole_cache_lines(array: np.ndarray, dtype: object) -> None:
    before = array.copy()
    made = gs.tensor(array, dtype=dtype)
    data = made._node.value
    assert data.buffer.address % 64 == 0 and not data.buffer.borrowed
    np.testing.assert_array_equal(made.numpy(), before.astype(made.dtype.numpy))
    made.zero_()
    np.testing.assert_array_equal(array, before)
