"""`gs.profile`: events load, nest and add up; results do not depend on being watched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from gossamer.insight import profile
from gossamer.runtime.watch import WATCHERS

HERE = Path(__file__).name


def program(x: gs.Tensor) -> gs.Tensor:
    return (x @ x).tanh().sum()  # the line


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[profile, list[dict]]:
    path = tmp_path_factory.mktemp("profile") / "trace.json"
    step, x = gs.compile(program), gs.randn(300, 300)
    x.numpy()  # drawn before the block
    with profile(path) as p:
        for _ in range(3):
            step(x).item()
        (x + 1).sum().item()
    events = json.loads(path.read_text())["traceEvents"]
    return p, events


def test_the_trace_is_chromes(recorded) -> None:
    _, events = recorded
    assert {e["ph"] for e in events} == {"X", "M"}
    for e in events:
        assert {"name", "pid", "tid"} <= set(e)
        if e["ph"] == "X":
            assert e["ts"] >= 0 and e["dur"] >= 0
    kinds = {e["cat"] for e in events if e["ph"] == "X"}
    assert {"trace", "compile", "realise", "program", "kernel", "chunk"} <= kinds


def test_events_of_a_thread_nest(recorded) -> None:
    _, events = recorded
    for thread in {e["tid"] for e in events}:
        stack: list[float] = []
        for e in (e for e in events if e["ph"] == "X" and e["tid"] == thread):
            while stack and stack[-1] <= e["ts"]:
                stack.pop()
            end = e["ts"] + e["dur"]
            assert not stack or end <= stack[-1] + 1e-3, e
            stack.append(end)


def test_kernels_lie_in_programs_and_chunks_in_kernels(recorded) -> None:
    _, events = recorded
    spans = {kind: [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == kind]
             for kind in ("program", "kernel", "chunk")}
    for inner, outer in (("kernel", "program"), ("chunk", "kernel")):
        assert spans[inner]
        for begin, end in spans[inner]:
            assert any(a - 1e-3 <= begin and end <= b + 1e-3 for a, b in spans[outer])


def test_chunks_cover_each_parallel_kernel_once(recorded) -> None:
    _, events = recorded
    kernels = [e for e in events if e.get("cat") == "kernel" and e["name"].startswith("gemm")]
    assert len(kernels) == 3
    for k in kernels:
        parts = sorted((e["args"]["from"], e["args"]["to"]) for e in events
                       if e.get("cat") == "chunk" and e["name"] == k["name"]
                       and k["ts"] - 1e-3 <= e["ts"] <= k["ts"] + k["dur"])
        assert parts[0][0] == 0
        assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))


def test_kernels_know_their_line_also_if_compiled_before(recorded, tmp_path) -> None:
    step, x = gs.compile(program), gs.randn(64, 64)
    step(x).item()
    with profile(tmp_path / "trace.json") as p:
        step(x).item()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert not [e for e in events if e.get("cat") == "compile"]
    for found in (p.averages(), recorded[0].averages()):
        assert {r.line.partition(":")[0] for r in found} == {HERE}


def test_averages_add_up(recorded) -> None:
    p, events = recorded
    rows = p.averages()
    kernels = [e for e in events if e.get("cat") == "kernel"]
    assert sum(r.calls for r in rows) == len(kernels)
    assert sum(r.seconds for r in rows) == pytest.approx(1e-6 * sum(e["dur"] for e in kernels))
    gemm = next(r for r in rows if r.name.startswith("gemm 300x300x300"))
    assert gemm.calls == 3
    steps = {s.name: s for s in p.steps()}
    assert steps["trace"].calls == 1 and steps["program"].calls == 4
    assert sum(r.seconds for r in rows) <= steps["program"].seconds
    text = p.table()
    assert "gemm 300x300x300" in text and "threads busy" in text and HERE in text


def test_watching_changes_no_value_and_leaves_no_watcher() -> None:
    x = gs.randn(200, 200)
    plain = (x @ x).exp().sum(dim=0).numpy().copy()
    with profile(), profile(threads=False) as inner:
        watched = (x @ x).exp().sum(dim=0).numpy().copy()
    assert np.array_equal(plain, watched)
    assert inner.averages() and WATCHERS == []
    with pytest.raises(ValueError, match="mine"), profile():
        raise ValueError("mine")
    assert WATCHERS == []


def test_a_table_of_an_open_block_is_refused() -> None:
    with profile() as p, pytest.raises(gs.GossamerError, match="still open"):
        p.table()


def test_it_is_gs_profile() -> None:
    assert gs.profile is profile
