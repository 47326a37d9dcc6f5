"""Convolutions and pooling against PyTorch: values and gradients, compiled and not, every shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.compile import winograd
from gossamer.ir.node import Node
from gossamer.runtime.engine import clear

torch = pytest.importorskip("torch")
F, T = gs.nn.functional, torch.nn.functional


@dataclass(frozen=True)
class Case:
    """A convolution of an image x (N, C, ...) with a weight w (O, C / groups, ...)."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1


CASES = {
    "plain": Case((2, 3, 8, 9), (4, 3, 3, 3)),
    "padded": Case((2, 3, 8, 9), (4, 3, 3, 3), padding=1),
    "one channel": Case((2, 1, 28, 28), (32, 1, 3, 3)),
    "wide": Case((3, 32, 14, 14), (64, 32, 3, 3), padding=1),
    "stride, groups": Case((2, 4, 11, 9), (6, 2, 3, 3), stride=2, padding=1, groups=2),
    "depthwise": Case((3, 4, 11, 13), (8, 1, 3, 3), padding=1, groups=4),
    "depthwise, stride": Case((3, 6, 9, 33), (6, 1, 3, 3), stride=(1, 2), padding=1, groups=6),
    "wide 5 x 5": Case((3, 32, 14, 14), (64, 32, 5, 5), padding=2),
    "tiles, odd": Case((5, 20, 13, 17), (35, 20, 3, 3)),
    "tiles, narrow": Case((17, 16, 7, 3), (24, 16, 3, 3), padding=(1, 2)),
    "tiles in bands": Case((2, 40, 70, 37), (17, 40, 3, 3), padding=2),
    "depthwise, dilated": Case((2, 4, 13, 37), (8, 1, 5, 4), stride=(3, 2), padding=2, dilation=2,
                               groups=4),
    "depthwise, stride 3": Case((2, 5, 20, 65), (5, 1, 3, 5), stride=(2, 3), padding=(1, 2),
                                groups=5),
    "depthwise, one axis": Case((2, 4, 70), (8, 1, 7), stride=2, padding=3, groups=4),
    "depthwise, 7 x 7": Case((2, 4, 30, 18), (4, 1, 7, 7), padding=3, groups=4),
    "depthwise, stride above the kernel": Case((2, 4, 9, 9), (4, 1, 3, 3), stride=4, padding=1,
                                               groups=4),
    "three channels a group": Case((2, 6, 12, 20), (8, 3, 3, 3), padding=1, groups=2),
    "dilated": Case((4, 8, 12, 12), (16, 8, 3, 3), padding=2, dilation=2),
    "7 x 7": Case((2, 3, 20, 21), (5, 3, 7, 7), stride=2, padding=3),
    "11 x 11": Case((2, 1, 30, 30), (1, 1, 11, 11), padding=5),
    "1 x 1": Case((2, 3, 20, 21), (5, 3, 1, 1)),
    "small images": Case((5, 16, 4, 4), (32, 16, 3, 3), padding=1),
    "small images, 1 x 1": Case((5, 16, 4, 4), (32, 16, 1, 1), stride=2),
    "odd": Case((3, 5, 17, 40), (7, 5, 2, 5), stride=(2, 3), padding=(1, 2), dilation=(1, 2)),
    "one window": Case((7, 16, 6, 6), (20, 16, 6, 6)),
    "one image, one window": Case((1, 16, 6, 6), (20, 16, 6, 6)),
    "one axis": Case((3, 4, 50), (6, 4, 5), stride=2, padding=3),
    "stride above the kernel": Case((2, 3, 12, 7), (4, 3, 3, 3), stride=4, padding=1),
    "two strides": Case((3, 5, 17, 40), (7, 5, 2, 5), stride=(2, 3), padding=(1, 2)),
    "three axes": Case((2, 2, 5, 6, 7), (3, 2, 2, 3, 2), padding=(0, 1, 1)),
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = gs.get_num_threads()
    gs.set_num_threads(request.param)
    yield request.param
    gs.set_num_threads(before)


def arrays(case: Case, dtype: Any) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s).astype(dtype) for s in (case.x, case.w, case.w[:1]))


def theirs(case: Case, x: Any, w: Any, b: Any) -> Any:
    conv = (T.conv1d, T.conv2d, T.conv3d)[len(case.x) - 3]
    return torch.relu(conv(x, w, b, case.stride, case.padding, case.dilation, case.groups))


def ours(case: Case, x: gs.Tensor, w: gs.Tensor, b: gs.Tensor) -> gs.Tensor:
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(case.x) - 3]
    return F.relu(conv(x, w, b, case.stride, case.padding, case.dilation, case.groups))


def step(case: Case) -> Any:
    """(x, w, b, g) -> (y, dx, dw, db)."""
    def run(x: gs.Tensor, w: gs.Tensor, b: gs.Tensor, g: gs.Tensor) -> tuple[gs.Tensor, ...]:
        y = ours(case, x, w, b)
        return (y.detach(), *gs.autograd.grad((y * g).sum(), (x, w, b)))
    return run


def close(found: gs.Tensor, wanted: Any, tolerance: float) -> None:
    """Equal up to `tolerance` times the largest value."""
    a, b = found.detach().float().numpy(), wanted.detach().float().numpy()
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)],
                         ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: Any, tolerance: float, compiled: bool) -> None:
    case = CASES[name]
    given = arrays(case, dtype)
    their = [torch.tensor(v, requires_grad=True) for v in given]
    y = theirs(case, *their)
    g = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    (y * torch.tensor(g)).sum().backward()
    run = gs.compile(step(case)) if compiled else step(case)
    found = run(*(gs.tensor(v, requires_grad=True) for v in given), gs.tensor(g))
    for mine, wanted in zip(found, (y, *(v.grad for v in their)), strict=True):
        close(mine, wanted, tolerance)


@pytest.mark.parametrize("name", ["wide", "wide 5 x 5", "7 x 7", "stride, groups",
                                  "tiles, odd", "one window", "small images, 1 x 1"])
def test_bfloat16_accumulates_in_float32(name: str) -> None:
    case = CASES[name]
    given = [torch.tensor(v).bfloat16() for v in arrays(case, np.float32)]
    wanted = theirs(case, *(v.float() for v in given))
    x, w, b = (gs.tensor(v.float().numpy()).bfloat16() for v in given)
    found = gs.compile(lambda x, w, b: ours(case, x, w, b))(x, w, b)
    assert found.dtype is gs.bfloat16
    close(found, wanted, 1e-2)


@pytest.mark.parametrize("name", ["wide", "odd", "one window", "two strides"])
def test_bfloat16_gradients(name: str) -> None:
    case = CASES[name]
    x, w = (torch.tensor(v).bfloat16() for v in arrays(case, np.float32)[:2])
    their = [v.double().requires_grad_() for v in (x, w)]
    y = T.conv2d(*their, None, case.stride, case.padding, case.dilation)
    g = torch.tensor(np.random.default_rng(1).normal(size=y.shape)).bfloat16()
    y.backward(g.double())

    def run(x: gs.Tensor, w: gs.Tensor, g: gs.Tensor) -> tuple[gs.Tensor, ...]:
        y = F.conv2d(x, w, None, case.stride, case.padding, case.dilation)
        return (y.detach(), *gs.autograd.grad(y, (x, w), g))

    mine = [gs.tensor(v.float().numpy()).bfloat16().requires_grad_() for v in (x, w, g)]
    for found, wanted in zip(gs.compile(run)(*mine), (y, *(v.grad for v in their)), strict=True):
        close(found, wanted, 1e-2)


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 1), (3, 16)],
                         ids=["tiles", "windows", "planes"])
def test_threads_do_not_change_a_bit(threads: int, kernel: int, groups: int) -> None:
    case = Case((16, 16, 30, 30), (32, 16 // groups, kernel, kernel), padding=kernel // 2,
                groups=groups)
    x, w, b = arrays(case, np.float32)
    g = np.random.default_rng(1).normal(size=(16, 32, 30, 30)).astype(np.float32)
    given = [gs.tensor(v, requires_grad=True) for v in (x, w, b)]
    found = gs.compile(step(case))(*given, gs.tensor(g))
    seen = _BITS.setdefault(f"conv {kernel} {groups}", [v.numpy().copy() for v in found])
    for mine, before in zip(found, seen, strict=True):
        np.testing.assert_array_equal(mine.numpy(), before, strict=True)


_BITS: dict[str, list[np.ndarray]] = {}  # of the first thread count, which the second must repeat


def compiled_buffers(fn: Any, *args: gs.Tensor) -> int:
    """Bytes of everything that a compiled function computes."""
    run = gs.compile(fn)
    run(*args)
    program, = run.programs()
    return sum(program.compiled.sizes.values())


def test_windows_are_not_unfolded_in_memory() -> None:
    case = CASES["wide 5 x 5"]
    x, w, b = (gs.tensor(v) for v in arrays(case, np.float32))
    y = ours(case, x, w, b)
    assert compiled_buffers(lambda x, w, b: ours(case, x, w, b), x, w, b) == 4 * y.numel()


def test_windows_are_not_unfolded_for_gradients() -> None:
    case = CASES["wide 5 x 5"]
    x, w, b = (gs.tensor(v, requires_grad=True) for v in arrays(case, np.float32))
    g = gs.ones(*ours(case, x, w, b).shape)
    size = sum(v.numel() for v in (x, w, b, g))
    assert compiled_buffers(step(case), x, w, b, g) <= 4 * 3 * size


def test_a_weight_is_not_repeated_for_each_image() -> None:
    x, w = gs.randn(32, 64, 4, 4), gs.randn(64, 64, 3, 3, requires_grad=True)

    def grad(x: gs.Tensor) -> gs.Tensor:
        return gs.autograd.grad(F.conv2d(x, w, padding=1).sum(), x)[0]

    x.requires_grad_()
    assert compiled_buffers(grad, x) < 4 * 3 * (x.numel() + w.numel())


def call_names(fn: Any, *args: gs.Tensor) -> list[str]:
    run = gs.compile(fn)
    run(*args)
    program, = run.programs()
    return [call.name for call in program.compiled.calls]


@pytest.mark.parametrize(("name", "tiled"), [
    ("wide", True), ("tiles, odd", True), ("tiles, narrow", True), ("tiles in bands", True),
    ("wide 5 x 5", False), ("plain", False), ("dilated", False), ("small images", False)])
def test_tiles_where_they_pay(name: str, tiled: bool) -> None:
    case = CASES[name]
    x, w, b = (gs.tensor(v, requires_grad=True) for v in arrays(case, np.float32))
    g = gs.ones(*ours(case, x, w, b).shape)
    names = call_names(step(case), x, w, b, g)
    assert any("winograd" in n for n in names) == tiled


@pytest.mark.parametrize("name", ["depthwise", "depthwise, stride", "depthwise, one axis",
                                  "depthwise, 7 x 7", "stride, groups"])
def test_few_channels_go_plane_by_plane(name: str) -> None:
    case = CASES[name]
    x, w, b = (gs.tensor(v, requires_grad=True) for v in arrays(case, np.float32))
    g = gs.ones(*ours(case, x, w, b).shape)
    names = call_names(step(case), x, w, b, g)
    assert "convolution by planes" in names and "convolution by planes: weights" in names


def test_an_infinity_stays_in_its_windows() -> None:
    """Lanes behind the end of a row multiply nothing."""
    x, w = np.ones((1, 2, 6, 22), np.float32), np.ones((2, 1, 3, 3), np.float32)
    x[0, 0, 3, 21] = np.inf  # no window of stride 2 sees it
    g = np.ones((1, 2, 2, 10), np.float32)
    their = torch.tensor(w, requires_grad=True)
    T.conv2d(torch.tensor(x), their, stride=2, groups=2).backward(torch.tensor(g))

    def run(x: gs.Tensor, w: gs.Tensor, g: gs.Tensor) -> gs.Tensor:
        return gs.autograd.grad(F.conv2d(x, w, stride=2, groups=2), w, g)[0]

    found = gs.compile(run)(gs.tensor(x), gs.tensor(w, requires_grad=True), gs.tensor(g))
    np.testing.assert_array_equal(found.numpy(), their.grad.numpy())


def test_chunks_of_images_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a last chunk of fewer images, and bands of fewer rows."""
    case = Case((7, 16, 12, 18), (33, 16, 3, 3), padding=1)
    x, w, b = (gs.tensor(v, requires_grad=True) for v in arrays(case, np.float32))
    g = gs.randn(*ours(case, x, w, b).shape)
    whole = gs.compile(step(case))(x, w, b, g)
    monkeypatch.setattr(winograd, "_CHUNK", 16 * 4 * 49 * 54 * 2)
    monkeypatch.setattr(winograd, "_BAND", 4 * 20 * 16 * 6)
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    clear()
    run = gs.compile(step(case))
    parts = run(x, w, b, g)
    program, = run.programs()
    clear()
    assert sum(c.name == "winograd input" for c in program.compiled.calls) == 3 * 4
    for mine, wanted in zip(parts, whole, strict=True):
        close(mine, torch.tensor(wanted.detach().numpy()), 2e-6)


def test_tiles_are_as_exact_as_windows() -> None:
    """The error against float64 stays within three times that of PyTorch's direct sums."""
    case = Case((4, 64, 16, 16), (64, 64, 3, 3), padding=1)
    x, w, _ = arrays(case, np.float32)
    exact = T.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), padding=1).numpy()
    direct = T.conv2d(torch.tensor(x), torch.tensor(w), padding=1).numpy()
    found = gs.compile(lambda x, w: F.conv2d(x, w, padding=1))(gs.tensor(x), gs.tensor(w)).numpy()
    assert np.abs(found - exact).max() <= 3 * np.abs(direct - exact).max()


def pool_cases() -> list[tuple[Any, ...]]:
    return [((2, 3, 8, 8), 2, None, 0, 1), ((2, 3, 9, 7), 2, 2, 0, 1), ((2, 3, 9, 9), 3, 2, 1, 1),
            ((1, 2, 12, 10), (3, 2), (1, 2), (1, 0), (1, 2)), ((2, 3, 6, 6), 3, None, 0, 1),
            ((2, 4, 5, 32), (2, 4), None, 0, 1), ((1, 1, 7, 7), 2, 3, 0, 1),
            ((2, 3, 40, 37), 3, 1, 1, 1), ((1, 2, 21, 50), (2, 4), (1, 3), (1, 2), 1)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", pool_cases(), ids=str)
def test_max_pool_gives_the_gradient_to_the_first_largest(case: Any, compiled: bool) -> None:
    shape, kernel, stride, padding, dilation = case
    x = np.random.default_rng(0).integers(0, 4, size=shape).astype(np.float32)  # many ties
    x[0, 0, 1, 1] = np.nan
    their = torch.tensor(x, requires_grad=True)
    y = T.max_pool2d(their, kernel, stride, padding, dilation)
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    y.backward(torch.tensor(g))

    def run(x: gs.Tensor, g: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        y = F.max_pool2d(x, kernel, stride, padding, dilation)
        return y.detach(), gs.autograd.grad(y, x, g)[0]

    run = gs.compile(run) if compiled else run
    found, dx = run(gs.tensor(x, requires_grad=True), gs.tensor(g))
    np.testing.assert_array_equal(found.numpy(), y.detach().numpy())
    np.testing.assert_allclose(dx.numpy(), their.grad.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 7), (4, 5), (16, 1), (32, 30)], ids=str)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_adaptive_pools(kind: str, size: tuple[int, int]) -> None:
    """Even windows, and those of unequal length that overlap."""
    x = np.random.default_rng(0).integers(0, 9, size=(2, 3, 32, 30)).astype(np.float32)
    their = torch.tensor(x, requires_grad=True)
    y = getattr(T, f"adaptive_{kind}_pool2d")(their, size)
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    y.backward(torch.tensor(g))

    def run(x: gs.Tensor, g: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        y = getattr(F, f"adaptive_{kind}_pool2d")(x, size)
        return y.detach(), gs.autograd.grad(y, x, g)[0]

    found, dx = gs.compile(run)(gs.tensor(x, requires_grad=True), gs.tensor(g))
    close(found, y, 1e-6)
    close(dx, their.grad, 1e-6)


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil", "counts"), [
    (2, 2, 0, False, True), (3, 2, 1, False, False), (3, 1, 1, False, True),
    ((2, 5), (1, 3), (1, 2), True, False), (4, 3, 2, True, True)])
def test_average_pools(kernel: Any, stride: Any, padding: Any, ceil: bool, counts: bool) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 21, 50)).astype(np.float32)
    their = torch.tensor(x, requires_grad=True)
    y = T.avg_pool2d(their, kernel, stride, padding, ceil, counts)
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    y.backward(torch.tensor(g))

    def run(x: gs.Tensor, g: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor]:
        y = F.avg_pool2d(x, kernel, stride, padding, ceil, counts)
        return y.detach(), gs.autograd.grad(y, x, g)[0]

    found, dx = gs.compile(run)(gs.tensor(x, requires_grad=True), gs.tensor(g))
    close(found, y, 1e-6)
    close(dx, their.grad, 1e-6)


def test_a_concatenated_image_is_convolved() -> None:
    """Several leaves under one operand: windows of a concatenation."""
    a, b, w = gs.randn(2, 3, 9, 9), gs.randn(2, 2, 9, 9), gs.randn(4, 5, 3, 3)
    found = gs.compile(lambda a, b, w: F.conv2d(gs.cat([a, b], 1), w, padding=1))(a, b, w)
    wanted = T.conv2d(torch.cat([torch.tensor(a.numpy()), torch.tensor(b.numpy())], 1),
                      torch.tensor(w.numpy()), padding=1)
    close(found, wanted, 1e-5)


def test_the_epilogue_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias and activation cost no kernel of their own."""
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")  # a plan from disk does not name its clusters
    case = CASES["plain"]
    run = gs.compile(lambda x, w, b: ours(case, x, w, b))
    run(*(gs.tensor(v) for v in arrays(case, np.float32)))
    program, = run.programs()
    assert len(program.compiled.calls) == 1
    assert isinstance(program.compiled.owners[0].members[0], Node)
    assert len(program.compiled.owners[0].members) > 1
