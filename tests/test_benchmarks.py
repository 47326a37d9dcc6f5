"""The benchmarks run, refuse to compare what is not the same work, and write what they say."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import apart, bars, harness, machine, report
from benchmarks.__main__ import main
from benchmarks.adapters import torchlike
from benchmarks.peers import PEERS, Peer, cores, environment, find
from benchmarks.process import Process
from benchmarks.worker import fingerprint
from benchmarks.workloads import GROUPS, WORKLOADS, chosen

TINY = harness.Plan(rounds=2, target=0.01, steps=20, patience=120, size="tiny")


@pytest.fixture(scope="module")
def mlp() -> dict:
    pytest.importorskip("torch")
    return harness.run(WORKLOADS["mlp"], find(["gossamer", "torch"]), 1, TINY)


def test_a_row_is_measured_and_the_losses_agree(mlp: dict) -> None:
    ours, torch = mlp["peers"]["gossamer"], mlp["peers"]["torch"]
    assert "failed" not in ours and "failed" not in torch, mlp
    assert len(ours["losses"]) == len(torch["losses"]) == 20
    assert ours["losses"][-1] < ours["losses"][0]
    assert set(torch["checked"]) == {"1", "20"} and max(torch["checked"].values()) < 1e-4
    for answers in (ours, torch):
        assert len(answers["wall"]["samples"]) == 2 and answers["cpu"]["median"] > 0
        assert answers["version"] and answers["peak_mb"] > 0 and answers["first_s"] > 0
    assert 0 < report.ratio(mlp) < 1e3 and report.best(mlp)[0] == "torch"


# Adapters that stand in for a peer. The first trains at half the rate: only later steps differ.
STRANGE = {
    "cheats": ("from benchmarks.adapters import torchlike\n"
               "class Cheat(torchlike.TorchLike):\n"
               "    def train(self, model, p, inputs, optimizer, lr, dtype):\n"
               "        return super().train(model, p, inputs, optimizer, lr / 2, dtype)\n"
               "adapter = Cheat\n", "computes something else: step 20 gives "),
    "raises": ("raise ImportError('a library is missing')", "ImportError: a library is missing"),
    "dies": ("import os, sys; print('out of order', file=sys.stderr, flush=True); os._exit(7)",
             "ended with status 7: out of order"),
    "hangs": ("import time; time.sleep(60)", "no answer to 'build' within 4 s"),
}


@pytest.mark.parametrize("way", STRANGE)
def test_a_peer_that_does_something_else_is_left_out(
        way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, says = STRANGE[way]
    (tmp_path / "strange.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(
        [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    ours = PEERS["gossamer"]
    other = dataclasses.replace(ours, name="tinygrad", adapter="strange")
    plan = dataclasses.replace(TINY, patience=4 if way == "hangs" else 120)
    peers = [other] if way == "hangs" else [ours, other]
    record = harness.run(WORKLOADS["mlp"], peers, 1, plan)
    assert "failed" not in record["peers"].get("gossamer", {})
    answers = record["peers"]["tinygrad"]
    assert says in answers["failed"] and "wall" not in answers
    assert math.isnan(report.ratio(record))
    assert any(says in line for line in report.table([record]))


def test_who_did_not_answer_once_is_not_waited_for_again() -> None:
    record = harness.run(WORKLOADS["mlp"], find(["gossamer", "torch"]), 1, TINY,
                         known={"torch": "no answer before"})
    assert record["peers"]["torch"] == {"skipped": "no answer before"}
    assert "wall" in record["peers"]["gossamer"]


def test_a_missing_peer_is_said_and_skipped() -> None:
    absent = Peer("jax", "no_such_framework", "", True, lambda n: {}, lambda folder: {})
    assert "no_such_framework is not installed" in absent.missing
    record = harness.run(WORKLOADS["mlp"], [absent], 1, TINY)
    assert record["peers"] == {"jax": {"skipped": absent.missing}}
    assert any("left out" in line for line in report.table([record]))


def test_json_table_and_plots_are_written_and_grow(mlp: dict, tmp_path: Path) -> None:
    results = report.Results(tmp_path)
    results.add({**mlp, "others": 0.0, "busy": False})
    again = report.Results(tmp_path)
    again.add({**mlp, "threads": 2, "busy": True})
    again.add({**mlp, "threads": 2, "busy": True})
    written = {path.name for path in report.write(again, tmp_path)}
    assert written == {"results.md", "ratios-1.png", "ratios-2.png"}
    known = json.loads((tmp_path / "results.json").read_text())
    assert [r["threads"] for r in known["records"]] == [1, 2]
    assert known["machine"]["cores"] == os.cpu_count()
    text = (tmp_path / "results.md").read_text()
    assert "| mlp " in text and "| mlp* " in text and "the machine was busy" in text
    assert f"{report.ratio(mlp):.2f}" in text
    assert all((tmp_path / name).stat().st_size > 1000 for name in written if name != "results.md")


def _record(name: str, ours: float, torch: float, default: float = math.nan) -> dict:
    def times(seconds: float) -> dict:
        return {"wall": harness.summary([seconds]), "cpu": harness.summary([seconds])}

    return {"workload": name, "threads": 1, "dtype": "float32", "size": "full", "busy": False,
            "peers": {"gossamer": times(ours), "torch": times(torch),
                      "torch:default": times(default)}}


def test_the_table_is_sorted_worst_first_and_defaults_are_not_the_best_peer() -> None:
    fast, slow = _record("fast", 1.0, 3.0, default=0.5), _record("slow", 2.0, 1.0)
    assert report.best(fast) == ("torch", 3.0) and report.ratio(fast) == 3.0
    rows = [line.split("|")[1].strip() for line in report.table([fast, slow]) if "|" in line]
    assert rows[2:] == ["slow", "fast"]
    assert report.duration(0.0123) == "12.3 ms" and report.duration(2.0e-6) == "2.00 us"


def test_medians_and_spread() -> None:
    made = harness.summary([1.0, 2.0, 10.0])
    assert (made["median"], made["mad"], made["samples"]) == (2.0, 1.0, [1.0, 2.0, 10.0])


def test_a_fingerprint_tells_permutations_scales_and_nan_apart() -> None:
    x = np.random.default_rng(0).normal(size=1000)
    mine = fingerprint(x)
    assert harness.difference(mine, fingerprint(x * (1 + 1e-7))) < 1e-6
    assert harness.difference(mine, fingerprint(x[::-1])) > 1e-2
    assert harness.difference(mine, fingerprint(-x)) > 1e-2
    assert harness.difference(mine, fingerprint(x * 1.01)) > 1e-3
    assert harness.difference(mine, fingerprint(np.full(1000, np.nan))) == math.inf
    assert harness.difference(mine, mine + mine) == math.inf


def test_the_environment_is_made_here_and_nowhere_else(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOSSAMER_VERIFY", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    tuned = environment(PEERS["torch"], 2, tmp_path)
    assert tuned["OMP_NUM_THREADS"] == "2" and tuned["OMP_WAIT_POLICY"] == "PASSIVE"
    default = environment(PEERS["torch:default"], 2, tmp_path)
    assert "OMP_NUM_THREADS" not in default and "OMP_WAIT_POLICY" not in default
    ours = environment(PEERS["gossamer"], 1, tmp_path)
    assert "GOSSAMER_VERIFY" not in ours and ours["GOSSAMER_CACHE"].startswith(str(tmp_path))
    assert "PYTHONDONTWRITEBYTECODE" not in ours


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc")
def test_own_work_does_not_make_the_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    # While 2 s pass, all cores work for 3 s; process 7 and this one did 1 s each.
    now = iter([(10.0, 100.0), (12.0, 103.0)])
    used = {7: iter([5.0, 6.0]), os.getpid(): iter([1.0, 2.0])}
    state: list[float] = []

    def busy_seconds() -> float:
        state[:] = next(now)
        return state[1]

    monkeypatch.setattr(machine, "_busy_seconds", busy_seconds)
    monkeypatch.setattr(machine, "_used", lambda pid: next(used[pid]))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 10.0 + 2.0 * bool(state[1:]))
    watch = machine.Watch([7])
    others = watch.others()
    assert others == pytest.approx((3.0 - 2.0) / 2.0)
    assert machine.busy(others, 0.0) and not machine.busy(0.0, 9.0)
    assert machine.busy(None, 1.0) and not machine.busy(None, 0.1)
    monkeypatch.undo()
    assert machine._busy_seconds() > 0 and machine._used(os.getpid()) > 0


def test_names_are_found_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert [w.name for w in chosen(["mlp", "gpt"])][:2] == ["mlp", "gpt"]
    assert {w.name for w in chosen([])} == set(WORKLOADS)
    assert main(["nothing"]) == 2 and "there is no such workload" in capsys.readouterr().err
    assert main(["--peers", "theano"]) == 2 and "there is no such peer" in capsys.readouterr().err
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*WORKLOADS, *PEERS))


def test_one_file_of_arrays_serves_all(tmp_path: Path) -> None:
    for workload in WORKLOADS.values():
        first, second = workload.arrays("tiny"), workload.arrays("tiny")
        assert all(np.array_equal(first[k], second[k]) for k in first | second)
        assert {"full", "tiny"} <= set(workload.sizes)
    assert set(GROUPS) >= {"mlp", "cnn", "gpt"}


# One of those that differ only in their full size.
RUN_HERE = list({(w.kind, id(w.models)): name for name, w in WORKLOADS.items()
                 if w.models and w.kind != "first"}.values())


@pytest.mark.parametrize("name", RUN_HERE)
def test_every_workload_is_the_same_work_in_gossamer_and_torch(name: str) -> None:
    pytest.importorskip("torch")
    workload, results = WORKLOADS[name], []
    for package in ("gossamer", "torch"):
        adapter = torchlike.adapter(package, package == "gossamer", 0)
        task = workload.build(adapter, workload.sizes["tiny"], workload.arrays("tiny"))
        calls = [task.look(task.call()) for _ in range(3 if workload.kind == "train" else 1)]
        results.append([p for arrays in calls for a in arrays for p in fingerprint(a)])
    assert harness.difference(*results) < 10 * workload.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_HERE)
def test_every_workload_is_the_same_work_in_all_peers(name: str) -> None:
    peers = [p for p in PEERS.values() if p.tuned and not p.missing]
    only = WORKLOADS[name].only
    peers = [p for p in peers if not only or p.name in only]
    plan = dataclasses.replace(TINY, patience=300, steps=3)
    record = harness.run(WORKLOADS[name], peers, 1, plan)
    assert [p for p, a in record["peers"].items() if "wall" not in a and "skipped" not in a] == []


def test_peers_of_one_thread_build_on_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "cores", lambda: [0, 1, 2, 3])
    torch, default = PEERS["torch"], PEERS["torch:default"]
    assert [apart.binding(torch, 1, lane) for lane in range(4)] == [[3], [2], [1], [0]]
    assert [apart.binding(torch, 2, lane) for lane in range(2)] == [[2, 3], [0, 1]]
    assert apart.binding(torch, 4) == apart.binding(default, 1) == []


@pytest.mark.skipif(len(cores()) < 2 or not hasattr(os, "sched_setaffinity"),
                    reason="needs two cores and a say over them")
def test_all_peers_of_a_row_are_timed_on_the_same_core(monkeypatch: pytest.MonkeyPatch) -> None:
    built, timed = set(), set()
    ask = harness.Process.ask

    def asked(process: harness.Process, do: str, **request: object) -> dict:
        bound = tuple(os.sched_getaffinity(process.process.pid))
        if do in ("step", "round"):
            (built if do == "step" else timed).add(bound)
        return ask(process, do, **request)

    monkeypatch.setattr(harness.Process, "ask", asked)
    ours = PEERS["gossamer"]
    peers = [ours, dataclasses.replace(ours, name="tinygrad")]
    record = harness.run(WORKLOADS["mlp"], peers, 1, TINY)
    assert all("wall" in a for a in record["peers"].values()), record
    assert len(built) == 2 and timed == {(cores()[-1],)}


def test_a_roofline_is_explained() -> None:
    record = harness.run(WORKLOADS["roofline-gpt"], find(["gossamer"]), 1, TINY)
    answers = record["peers"]["gossamer"]
    assert 0 < answers["roofline"] < 1 and answers["least"] < answers["kernels"]
    assert answers["count"] > 10 and len(answers["slow"]) == 5
    text = "\n".join(report.rooflines([record]))
    assert f"{answers['roofline']:.0%} of the roofline" in text and answers["slow"][0] in text


def test_beside_bytes_stands_what_memory_gave_in_the_same_row() -> None:
    record = harness.run(WORKLOADS["decode15m-int8"], find(["gossamer"]), 1, TINY)
    assert record["peak_bandwidth"] > 1e8
    seconds = record["peers"]["gossamer"]["wall"]["median"]
    share = bars.bandwidth([record]).value
    assert share == pytest.approx(record["bytes"] / seconds / record["peak_bandwidth"])
    del record["peak_bandwidth"]
    assert math.isnan(bars.bandwidth([record]).value)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no times of threads")
def test_the_next_round_waits_for_what_a_peer_does_after_its_answer() -> None:
    code = ("import threading, time\n"
            "def work():\n    while time.process_time() < 0.5: pass\n    time.sleep(60)\n"
            "threading.Thread(target=work).start()\nprint('answer', flush=True)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as peer:
        assert peer.stdout is not None and peer.stdout.readline()
        Process.rest(SimpleNamespace(process=peer), patience=30.0)
        assert machine.thread_seconds(peer.pid) > 0.49
        begin = time.monotonic()
        Process.rest(SimpleNamespace(process=peer), patience=30.0)
        peer.kill()
    assert time.monotonic() - begin < 15.0, "it rests"


@pytest.mark.skipif(len(cores()) < 2, reason="one busy core of one leaves nothing")
def test_a_busy_neighbour_comes_and_goes() -> None:
    record = harness.run(WORKLOADS["busy-mlp"], find(["gossamer"]), len(cores()), TINY)
    answers = record["peers"]["gossamer"]
    assert answers["slowdown"] == answers["wall"]["median"] / answers["quiet"]["median"] > 0


def test_every_bar_is_about_rows_that_there_are() -> None:
    assert {name for bar in bars.BARS for name in bar.rows} <= set(WORKLOADS)
    texts = {bar.text for bar in bars.BARS}
    assert len(texts) == len(bars.BARS) and {text for text, _ in bars.EXPLAINED} <= texts


def test_bars_are_held_against_what_was_measured() -> None:
    good, bad = _record("mlp", 1.0, 1.06), _record("cnn", 1.0, 1.4)
    lost = _record("gpt", 1.0, 9.0)
    lost["size"] = "tiny"  # tiny sizes prove nothing
    slow, fast = _record("nodes-100", 1.0, 1.0), _record("nodes-1000", 1.0, 1.0)
    slow.update(nodes=100)
    slow["peers"]["gossamer"]["first_s"] = 0.1
    fast.update(nodes=1000)
    fast["peers"]["gossamer"]["first_s"] = 1.5
    lines = bars.table([good, bad, lost, slow, fast])
    row = {name: next(x for x in lines if f"| {name} " in x) for name in
           ("mlp", "cnn", "gpt", "nodes-100 ...")}
    assert "1.06 x" in row["mlp"] and "yes" in row["mlp"]
    assert ">= 1.50 x" in row["cnn"] and "1.40 x" in row["cnn"] and "NO" in row["cnn"]
    assert "not measured" in row["gpt"]
    assert "<= 1.30 x" in row["nodes-100 ..."] and "1.50 x" in row["nodes-100 ..."]
    assert lines[0].startswith("1 bars met, 2 not")


def test_a_row_on_a_busy_machine_is_judged_by_processor_time() -> None:
    record = _record("mlp", 1.0, 2.0)
    record["peers"]["torch"]["cpu"] = harness.summary([1.02])
    assert bars.faster([record]).value == 2.0
    record["busy"] = True
    assert bars.faster([record]).value == pytest.approx(1.02)
    record["threads"] = 2
    assert bars.faster([record]).value == 2.0


def test_peers_without_a_time_are_named() -> None:
    against = bars.faster([_record("mlp", 1.0, 2.0)]).against
    assert against.endswith("; not timed: torch-compile, jax, tinygrad")
    assert bars.faster([_record("gemm-256", 1.0, 2.0)]).against.endswith("; not timed: jax")


def test_the_command_measures_and_reports(tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlp", "--tiny", "--rounds", "1", "--threads", "1", "--peers", "gossamer",
                 "--out", str(tmp_path)]) == 0
    assert "results.json" in capsys.readouterr().out
    assert (tmp_path / "results.md").exists()
    capsys.readouterr()
    assert main(["--bars", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert all(bar.text in told for bar in bars.BARS) and "not measured" in told
