"""`gs.explain`: figures add up, lines are the user's, nothing is changed, slow paths are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.insight import Explanation, limits, problems
from gossamer.insight.limits import Peaks
from gossamer.insight.view import STAGES

F = nn.functional
HERE = Path(__file__).name

# Of no real machine: rooflines in these tests must not depend on the one that runs them.
PEAKS = Peaks({"float32": 1e11, "float64": 5e10}, {"float32": 5e10, "float64": 2.5e10},
              {"L2": 2e11, "L3": 1e11, "memory": 2e10}, {"L2": 1e11, "L3": 5e10, "memory": 1e10},
              {"L2": 1 << 21, "L3": 1 << 25}, 3e-7, 6e-9, 2)


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.insight.explanation.peaks", lambda: PEAKS)


def line_of(text: str) -> int:
    """Number of the first line of this file that holds `text`."""
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, t in enumerate(lines, 1) if text in t)


def two_products(a: gs.Tensor, b: gs.Tensor) -> gs.Tensor:
    c = a @ b  # first product
    return (c.relu() @ b).sum()  # second product


@pytest.fixture(scope="module")
def trained() -> tuple[Explanation, nn.Module, np.ndarray]:
    """A small training step, explained; the model, and its weights before."""
    gs.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 10))
    optimizer = gs.optim.AdamW(model.parameters(), lr=1e-2)

    def step(x: gs.Tensor, y: gs.Tensor) -> gs.Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    before = model[0].weight.detach().numpy().copy()
    x, y = gs.randn(64, 48), gs.randint(0, 10, (64,))
    patch = pytest.MonkeyPatch()
    patch.setattr("gossamer.insight.explanation.peaks", lambda: PEAKS)
    found = gs.explain(gs.compile(step), x, y)
    patch.undo()
    return found, model, before


# figures ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("m", "k", "n"), [(64, 32, 48), (7, 129, 33), (1, 64, 64)])
def test_flops_of_a_product_are_exact(m: int, k: int, n: int) -> None:
    found = gs.explain(lambda a, b: a @ b, gs.randn(m, k), gs.randn(k, n))
    assert [kernel.flops for kernel in found.kernels] == [2 * m * n * k]
    work = found.kernels[0].work
    assert (work.bytes_read, work.bytes_written) == (4 * (m * k + k * n), 4 * m * n)


def test_flops_of_elementwise_work_and_reductions() -> None:
    found = gs.explain(lambda x: (x + x * x).sum(), gs.randn(4096))
    assert sum(k.flops for k in found.kernels) == pytest.approx(3 * 4096, rel=0.05)
    assert sum(k.work.bytes_read for k in found.kernels) == pytest.approx(4 * 4096, rel=0.1)


def test_a_gather_reads_the_rows_it_takes_not_the_table() -> None:
    table, index = gs.randn(10000, 16), gs.arange(8)
    found = gs.explain(lambda t, i: t[i] * 2, table, index)
    assert sum(k.work.bytes_read for k in found.kernels) < 100 * 16 * 4


def test_attention_that_is_causal_counts_the_pairs_that_see_each_other() -> None:
    q = gs.randn(1, 2, 64, 16)
    full, causal = (gs.explain(lambda q, c=c: F.scaled_dot_product_attention(q, q, q, is_causal=c),
                               q) for c in (False, True))
    ratio = causal.kernels[0].flops / full.kernels[0].flops
    assert ratio == pytest.approx(65 / 128)


def test_kernel_times_add_up_to_the_step(trained) -> None:
    found, _, _ = trained
    total = sum(k.seconds for k in found.kernels)
    assert total <= 1.05 * found.seconds
    # Between kernels there is nothing but the walker: tens of ns each, and the call from Python.
    assert found.seconds <= 3 * total + 1e-3
    assert sum(k.share for k in found.kernels) == pytest.approx(1)
    assert [k.seconds for k in found.kernels] == sorted((k.seconds for k in found.kernels),
                                                        reverse=True)


def test_the_roofline_takes_the_larger_of_compute_and_traffic() -> None:
    assert PEAKS.bound(1e11, "float32", 8) == (1.0, "compute")
    assert PEAKS.bound(1, "float32", 1 << 20) == ((1 << 20) / 2e11, "L2")
    assert PEAKS.bound(1, "float32", 1 << 24) == ((1 << 24) / 1e11, "L3")
    assert PEAKS.bound(1, "float64", 1 << 30) == ((1 << 30) / 2e10, "memory")
    found = gs.explain(lambda a: a @ a, gs.randn(128, 128)).kernels[0]
    assert found.roofline == pytest.approx(max(found.flops / 1e11, found.work.nbytes / 2e11)
                                           / found.seconds)
    assert found.gflops == pytest.approx(1e-9 * found.flops / found.seconds)


# where it came from -------------------------------------------------------------------------------
def test_source_lines_are_the_users() -> None:
    found = gs.explain(two_products, gs.randn(32, 32), gs.randn(32, 32))
    lines = {(Path(line.file).name, line.number) for k in found.kernels for line in k.lines}
    assert lines == {(HERE, line_of("# first product")), (HERE, line_of("# second product"))}
    products = [k for k in found.programs[0].kernels if k.kind == "dot"]
    assert [k.lines[0].text for k in products] == [
        "c = a @ b  # first product", "return (c.relu() @ b).sum()  # second product"]


def test_every_kernel_of_a_training_step_has_a_line_of_this_file(trained) -> None:
    found, _, _ = trained
    for k in found.kernels:
        assert k.lines, k.name
        assert {Path(line.file).name for line in k.lines} == {HERE}, k.members


def test_reasons_and_members_say_what_was_fused() -> None:
    found = gs.explain(lambda x: gs.softmax(x * 2, dim=1), gs.randn(64, 32))
    (kernel,) = found.kernels
    assert "row kernel" in kernel.reason
    assert any(m.startswith("reduce_max") for m in kernel.members)
    assert any(m.startswith("exp") for m in kernel.members)
    assert "for r1_0 in 32" in kernel.loops and "acc0 max=" in kernel.loops


# texts --------------------------------------------------------------------------------------------
def test_every_stage_can_be_printed(trained) -> None:
    found, _, _ = trained
    marks = {"traced": "cross_entropy|log_softmax|gelu|layer_norm", "expanded": "reduce_sum",
             "simplified": "dot_general", "prepared": "dot_general", "scheduled": "kernel 0",
             "loops": "for ", "memory": "arena", "llvm": "define ", "optimised": "define ",
             "assembly": "ret"}
    assert set(marks) == set(STAGES)
    for stage, mark in marks.items():
        text = found.stage(stage)
        assert any(m in text for m in mark.split("|")), (stage, text[:300])
    assert found.graph() == found.stage("traced")


def test_a_stage_that_does_not_exist_is_refused_with_the_names_of_those_that_do() -> None:
    found = gs.explain(lambda x: x + 1, gs.randn(3))
    with pytest.raises(gs.GossamerError, match=r"stage\('simple'\).*simplified"):
        found.stage("simple")


def test_llvm_and_assembly_belong_to_the_kernel() -> None:
    (kernel,) = gs.explain(lambda x: x.exp() + 1, gs.randn(1000)).kernels
    assert "define void" in kernel.llvm() and "define void" in kernel.optimised()
    assert kernel.sources[0].symbol in kernel.assembly()


def test_it_prints_as_a_table_with_and_without_rich(trained, monkeypatch) -> None:
    found, _, _ = trained
    monkeypatch.setitem(__import__("sys").modules, "rich", None)
    plain = str(found)
    monkeypatch.undo()
    for text in (plain, str(found)):
        assert "kernels from" in text and "GFLOP/s" in text and HERE in text
        assert len([t for t in text.splitlines() if "gemm" in t]) >= 2


# what it may be asked -----------------------------------------------------------------------------
def test_nothing_is_trained_by_explaining(trained) -> None:
    _, model, before = trained
    assert np.array_equal(model[0].weight.detach().numpy(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_lazy_tensor_can_be_explained_and_stays_lazy() -> None:
    x = gs.randn(32, 32)
    y = (x @ x).tanh() * 3.7
    found = gs.explain(y)
    assert any(k.kind == "dot" for k in found.kernels)
    assert y._node.value is None
    want = np.tanh(x.numpy() @ x.numpy()) * 3.7
    np.testing.assert_allclose(y.numpy(), want, rtol=2e-4, atol=1e-5)
    with pytest.raises(gs.GossamerError, match="known already"):
        gs.explain(y)


def test_a_module_and_a_compiled_module_can_be_explained() -> None:
    model, x = nn.Linear(8, 4), gs.randn(2, 8)
    with gs.no_grad():
        for thing in (model, gs.compile(model)):
            assert sum(k.flops for k in gs.explain(thing, x).kernels) >= 2 * 2 * 8 * 4


def test_functions_that_compute_nothing_have_no_kernels(tmp_path: Path) -> None:
    for thing, arguments in ((lambda x: x, (gs.ones(3),)), (lambda: None, ()),
                             (lambda x: x * 2, (gs.ones(0, 3),))):
        found = gs.explain(thing, *arguments)
        assert found.kernels == [] and found.roofline == 0
        assert "0 kernels" in str(found) and found.html(tmp_path / "empty.html").is_file()


def test_products_of_16_bit_numbers_are_compared_with_their_own_peak() -> None:
    x = gs.randn(64, 64).bfloat16()
    product = next(k for k in gs.explain(lambda x: x @ x, x).kernels if k.kind == "dot")
    assert product.work.dtype == "bfloat16" and product.flops >= 2 * 64**3


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(gs.GossamerError, match="pass a function with its arguments"):
        gs.explain(3.0)


# slow paths ---------------------------------------------------------------------------------------
def test_a_function_that_looks_at_values_is_run_and_named_uncompiled() -> None:
    def looks(x: gs.Tensor) -> gs.Tensor:
        if x.sum().item() > 1e9:
            return x
        return x @ x

    found = gs.explain(looks, gs.randn(64, 64))
    assert any("would run uncompiled" in p for p in found.problems)
    assert max(k.flops for k in found.kernels) == 2 * 64**3
    with pytest.raises(gs.TraceError):
        gs.explain(gs.compile(looks), gs.randn(64, 64))


def test_scores_that_are_written_to_memory_are_named() -> None:
    x, seen = gs.randn(2, 520, 8), gs.ones(520, 520, dtype=gs.bool)
    attend = F.scaled_dot_product_attention
    found = gs.explain(lambda x, seen: attend(x, x, x, seen), x, seen)  # with a mask
    (told,) = [p for p in found.problems if "writes its scores to memory" in p]
    assert "with a mask" in told and f"{HERE}:{line_of('# with a mask')}" in told
    found = gs.explain(lambda x: attend(x, x, x, is_causal=True), x)
    assert not any("scores" in p for p in found.problems)


def test_a_function_that_changes_its_argument_is_named_uncompiled() -> None:
    found = gs.explain(lambda x: x.add_(1), gs.zeros(1000))
    assert any("changes an argument" in p for p in found.problems)


def test_numpy_in_the_middle_is_named() -> None:
    found = gs.explain(lambda x: gs.linalg.inv(x @ x.T + gs.eye(8)), gs.randn(8, 8))
    assert any("runs in NumPy" in p and "inv" in p for p in found.problems)


def test_float64_in_a_float32_program_is_named_with_its_line() -> None:
    wide = gs.ones(100, dtype=gs.float64)

    def mixed(x: gs.Tensor) -> gs.Tensor:
        y = (x * 2 + 1).relu()
        return y.sum() + (y.double() * wide).sum()  # widened

    found = gs.explain(mixed, gs.randn(100))
    told = [p for p in found.problems if "float64" in p]
    assert told and f"{HERE}:{line_of('# widened')}" in told[0]


def test_gathers_of_single_elements_are_named_and_of_rows_are_not() -> None:
    def elements(x: gs.Tensor, i: gs.Tensor) -> gs.Tensor:
        return x[i] * 2

    single = gs.explain(elements, gs.randn(5000), gs.randint(0, 5000, (20000,)))
    rows = gs.explain(elements, gs.randn(500, 64), gs.randint(0, 500, (300,)))
    assert any("gather" in p for k in single.kernels for p in k.problems)
    assert not any("gather" in p for k in rows.kernels for p in k.problems)


def test_idle_lanes_and_strided_loads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "choose_vector", lambda kernel: kernel.reduced[-1].name)
    short = gs.explain(lambda x: x.view(5000, 2).sum(dim=1), gs.randn(10000))
    long = gs.explain(lambda x: x.view(10, 1000).sum(dim=1), gs.randn(10000))
    assert any("lanes idle" in p for k in short.kernels for p in k.problems)
    assert not any("lanes idle" in p for k in long.kernels for p in k.problems)


def test_retraces_of_one_signature_are_named() -> None:
    factor = 0

    @gs.compile
    def step(x: gs.Tensor) -> gs.Tensor:
        return x * factor

    x = gs.randn(10)
    for n in range(4):
        factor = n
        step(x)
    assert any("traced 4 times" in p for p in gs.explain(step, x).problems)


def test_good_code_has_no_problems(trained) -> None:
    found, _, _ = trained
    # The roofline rule depends on the machine's load; all others must be silent here.
    assert found.problems == []
    assert [p for k in found.kernels for p in k.problems if "roofline" not in p] == []


def test_limits_are_kept_in_the_cache_folder(tmp_path, monkeypatch) -> None:
    made = []
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(limits, "_measure", lambda *_: made.append(1) or PEAKS)
    assert limits.peaks() == limits.peaks() == PEAKS
    limits._known.cache_clear()
    assert limits.peaks() == PEAKS and made == [1]
    assert limits.peaks(measure=True) == PEAKS and made == [1, 1]
    (file,) = tmp_path.glob("peaks-*.json")
    file.write_text("not json")
    limits._known.cache_clear()
    assert limits.peaks() == PEAKS and made == [1, 1, 1]


@pytest.mark.slow
def test_measured_limits_are_those_of_a_computer() -> None:
    found = limits._measure(limits.host(), 2)
    assert 1e9 < found.flops_core["float32"] < 1e13
    assert found.flops["float32"] >= found.flops_core["float32"] > found.flops_core["float64"]
    assert found.bandwidth["L2"] > 0.5 * found.bandwidth["memory"] > 1e8
    assert 0 < found.call < 1e-5 and 0 < found.region < 1e-2
