"""`gossamer explain`, `gossamer doctor`: scripts as they run, and what is wrong with a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer as gs
from gossamer.cli import see
from gossamer.insight import diagnosis, doctor, explain_script
from gossamer.runtime import engine, jit
from tests.insight.test_explain import PEAKS

SCRIPT = '''
import sys
import gossamer as gs

@gs.compile
def step(x):
    return (x @ x).tanh().sum()  # step

x = gs.randn(96, 96)
for _ in range(int(sys.argv[1])):
    step(x).item()
y = (x * 3).exp().sum().item()  # looked at
if len(sys.argv) > 2:
    raise RuntimeError(sys.argv[2])
'''


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.insight.explanation.peaks", lambda: PEAKS)
    monkeypatch.setattr("gossamer.insight.limits.peaks", lambda measure=False: PEAKS)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_is_run_once_and_its_programs_are_found(script: Path) -> None:
    before = sys.argv[:]
    found = explain_script(script, ["5"])
    assert sys.argv == before
    step = next(p for p in found.programs if p.name == "step")
    assert step.runs == 5 and all(k.runs == 5 for k in step.kernels)
    product = next(k for k in step.kernels if k.kind == "dot")
    assert product.lines[0].text == "return (x @ x).tanh().sum()  # step"
    assert product.flops >= 2 * 96**3
    lines = {line.text for p in found.programs for k in p.kernels for line in k.lines}
    assert "y = (x * 3).exp().sum().item()  # looked at" in lines
    assert sum(k.share for k in found.kernels) == pytest.approx(1)


def test_a_script_that_fails_is_explained_until_there(script: Path, capsys) -> None:
    found = explain_script(script, ["1", "boom"])
    assert "RuntimeError: boom" in capsys.readouterr().err
    assert any("ended early: RuntimeError: boom" in n for n in found.notes)
    assert any(p.name == "step" for p in found.programs)


def test_the_commands(script: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "out.html"
    assert see.run(["explain", "--rows", "2", "--html", str(page), str(script), "3"]) == 0
    told = capsys.readouterr().out
    assert "train.py" in told and f"wrote {page}" in told
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert see.run(["explain", str(tmp_path / "none.py")]) == 1
    assert "there is no such file" in capsys.readouterr().err
    assert see.run(["doctor"]) in (0, 1)
    assert "self test" in capsys.readouterr().out


def test_the_commands_need_no_extra(script: Path) -> None:
    code = ("import sys\nfor name in ('rich', 'typer', 'click', 'tokenizers', 'matplotlib'):\n"
            "    sys.modules[name] = None\n"
            "from gossamer.cli import main\nfrom gossamer.insight import limits\n"
            "from tests.insight.test_explain import PEAKS\n"
            "limits.peaks = lambda measure=False: PEAKS\n"
            "sys.argv = ['gossamer', 'doctor']\nmain()")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env=environment, check=False)
    assert "peak float32" in done.stdout, done.stderr


# doctor -------------------------------------------------------------------------------------------
def named(name: str) -> diagnosis.Finding:
    return next(f for f in doctor().findings if f.name == name)


def test_a_healthy_row_says_what_is_there() -> None:
    assert named("gossamer").value
    assert str(gs.get_num_threads()) in named("threads").value
    assert named("self test").problem == ""
    assert "100 GFLOP/s with 2 thread(s)" in named("peak float32").value
    assert named("kernel start").advice == ""


def test_slow_settings_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("GOSSAMER_VERIFY").problem  # on in every test
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    assert "unset GOSSAMER_NO_CACHE" in named("kernel cache").problem
    monkeypatch.setenv("GOSSAMER_CPU_FEATURES", "-avx512f")
    assert "GOSSAMER_CPU_FEATURES" in named("features").problem


def test_more_threads_than_cores_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.runtime.threads._wanted", 2)  # else they follow the quota
    monkeypatch.setattr(diagnosis.device, "cpu_quota", lambda: 1.0)
    assert "take turns" in named("threads").problem
    monkeypatch.setattr(diagnosis.device, "cpu_quota", lambda: 1.5)
    assert "limit 1.5 cores" in named("threads").value


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("GOSSAMER_CACHE", str(file / "below"))
    engine.clear()
    jit.forget()  # so that there is something to write
    with pytest.warns(RuntimeWarning, match="GOSSAMER_CACHE"):
        gs.tensor([1.0, 2.0]).cos().cumsum(0).sinh().logsumexp(0).item()
        found = diagnosis._cache_state()[0]
    assert "cannot be written" in found.problem


def test_wrong_values_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosis.from_numpy
    monkeypatch.setattr(diagnosis, "from_numpy", lambda a: real(a) * 1.01)
    assert "wrong values" in named("self test").problem
    assert any("wrong values" in p for p in doctor().problems)
    assert "! self test" in str(doctor())
