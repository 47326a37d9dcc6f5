"""Memory stays bounded, whatever a process goes on doing: new programs, new shapes."""

from __future__ import annotations

import gc

import gossamer as gs
from gossamer.runtime import engine, jit, loader
from tests.runtime.kernels import python

PROGRAMS = """
import gc, itertools
import gossamer as gs
from gossamer.runtime import engine, jit, loader

OPERATORS = ["sin", "cos", "tanh", "exp", "sigmoid", "relu", "abs", "neg"]
FORMS = itertools.product(OPERATORS, repeat=3)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def run(count):
    for form in itertools.islice(FORMS, count):
        y = gs.ones(8, 16)
        for name in form:
            y = getattr(y, name)()
        (y.softmax(-1) if len(set(form)) < 3 else y).sum(0).numpy()

"""


def test_300_programs_cost_little() -> None:
    """Each is about one and a half kernels: 4 KB of code, and what Python keeps of a plan."""
    done = python(PROGRAMS + """
run(60)
gc.collect()
before, compiled = resident(), jit.stats.compiled
run(300)
gc.collect()
print(jit.stats.compiled - compiled, (resident() - before) // 1000)
""", GOSSAMER_NO_CACHE="1")
    compiled, grown = map(int, done.stdout.split())
    assert compiled >= 300, done.stderr
    # 6 MB here; one LLVM library for each kernel took 27.
    assert grown < 12_000


def test_programs_that_nobody_uses_are_dropped_with_their_code() -> None:
    done = python(PROGRAMS + """
engine._MAX_PROGRAMS, jit._MOST_RECENT = 20, 20
run(30)
gc.collect()
before, code = resident(), loader.code_bytes()
run(100)
gc.collect()
print(engine.cached_programs(), len(jit._alive) < 60, (resident() - before) // 1000,
      loader.code_bytes() - code)
""", GOSSAMER_NO_CACHE="1")
    programs, few, grown, code = done.stdout.split()
    assert (programs, few) == ("20", "True"), done.stderr
    assert int(grown) < 5_000 and abs(int(code)) < 400_000


def test_a_program_that_is_used_keeps_its_code() -> None:
    step = gs.compile(lambda x: (x * 3.25).sin() + 1)
    x = gs.arange(5.0)
    expected = step(x).tolist()
    for i in range(3):
        engine.clear()
        jit.forget()
        gc.collect()
        for name in ("sinh", "cosh", "tanh")[i:]:
            getattr(gs.ones(3), name)().tolist()
        assert step(x).tolist() == expected


def test_the_program_used_last_is_dropped_last(monkeypatch) -> None:
    engine.clear()
    monkeypatch.setattr(engine, "_MAX_PROGRAMS", 2)
    for name in ("sin", "cos", "sin", "tan", "sin"):
        getattr(gs.ones(4), name)().tolist()
    assert [key[0][1][0] for key in engine._programs] == ["tan", "sin"]


def test_a_large_program_pushes_many_small_ones_out(monkeypatch) -> None:
    engine.clear()
    monkeypatch.setattr(engine, "_MAX_WEIGHT", 200_000)
    for name in ("sin", "cos", "tan", "exp"):
        getattr(gs.ones(4), name)().tolist()
    assert engine.cached_programs() == 4
    x = gs.ones(4)
    for _ in range(120):
        x = x.sin().neg()
    x.tolist()
    assert engine.cached_programs() == 1  # the one that has just been made stays in any case
    code = loader.code_bytes()
    engine.clear()
    jit.forget()
    gc.collect()
    assert loader.code_bytes() < code and engine._weight == 0
