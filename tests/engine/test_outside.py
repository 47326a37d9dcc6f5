"""Seen from outside: signals, limits, fewer cores, other instruction sets, damaged files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.kernels import ROOT, python

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")

@posix
def test_an_interrupt_ends_a_long_step_at_the_next_boundary() -> None:
    """Ctrl-C while native code runs: KeyboardInterrupt once, no deadlock, and all goes on."""
    done = python("""
import signal, threading, time
import numpy as np
import gossamer as gs

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
x = gs.arange(1 << 21) / (1 << 21)

def step(x):
    for _ in range(12):
        x = x.sin() + x.cos() * 0.25
    return x

x.sum().item()
expected = step(x)[::50_000].numpy()  # compiled now, and right
begin = time.perf_counter()
step(x).sum().item()
took = time.perf_counter() - begin
main = threading.main_thread().ident
caught = 0
for part in (0.3, 0.6):  # the middle of the step, wherever the machine is slower or faster
    threading.Timer(part * took, signal.pthread_kill, (main, signal.SIGINT)).start()
    try:
        for _ in range(50):
            y = step(x)
            y.sum().item()
    except KeyboardInterrupt:
        caught += 1
np.testing.assert_array_equal(step(x)[::50_000].numpy(), expected)
print(caught, gs.ones(3).tolist())
""")
    assert done.stdout == "2 [1.0, 1.0, 1.0]\n", done.stderr


@posix
def test_too_little_memory_names_the_arena_and_the_largest_buffers() -> None:
    done = python("""
import resource
import gossamer as gs

def attend(n):
    a = gs.arange(float(n)).reshape(n, 1) / n * gs.ones(1, 8)
    return ((a @ a.T).softmax(-1) @ a).sum(0)

small = attend(20).tolist()
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)
for way in (attend, gs.compile(attend)):
    try:
        way(20_000).tolist()
    except MemoryError as error:
        print(error)
print(attend(20).tolist() == small)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("allocate(") == 2 and done.stdout.endswith("True\n")
    assert "for what lives between them (arena)" in done.stdout
    assert "Its largest buffers: 1.5 GiB (" in done.stdout
    assert "gemm 20000x" in done.stdout and "<string>:6)" in done.stdout


TRAIN = """
import os, sys
if {cores} and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
import gossamer as gs
from gossamer import nn
from gossamer.runtime.threads import get_num_threads

gs.manual_seed(3)
model = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 10))
optimizer = gs.optim.SGD(model.parameters(), lr=0.5)
x, y = gs.randn(256, 40), gs.randint(0, 10, (256,))

def step():
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

print(get_num_threads(), *[step().item() for _ in range(5)])
"""


def losses(cores: int = 0, **environment: str) -> tuple[int, list[float]]:
    done = python(TRAIN.format(cores=cores), **environment)
    assert done.returncode == 0, done.stderr
    threads, *values = done.stdout.split()
    return int(threads), [float(v) for v in values]


def test_one_core_and_an_older_instruction_set_train_alike() -> None:
    """Other widths add in another order: equal to rounding. Fewer cores: equal."""
    threads, here = losses(GOSSAMER_THREADS="2")
    assert threads == 2 and here[-1] < here[0] - 0.05
    alone, one = losses(1, GOSSAMER_THREADS="0")
    assert one == here
    if hasattr(os, "sched_setaffinity"):
        assert alone == 1
    if platform.machine() in ("x86_64", "AMD64"):
        _, older = losses(GOSSAMER_CPU_FEATURES="-avx512f", GOSSAMER_THREADS="2")
        assert older == pytest.approx(here, rel=2e-4)


def test_more_elements_than_32_bits_count() -> None:
    """A broadcast has them without the memory for them."""
    done = python("""
import gossamer as gs
print(gs.zeros(1).expand(2**33).sum().item(), gs.tensor([1]).expand(2**33).sum().item(),
      gs.tensor([0.5]).expand(2**32 + 8).max().item(), gs.zeros(1).expand(2**33).numel())
""")
    assert done.stdout.split() == ["0.0", str(2**33), "0.5", str(2**33)], done.stderr


WORKERS = """
import json, multiprocessing, sys
import gossamer as gs

def work(n, queue):
    x = gs.arange(float(n)).reshape(-1, 4)
    queue.put((n, (x @ x.T).softmax(-1).sum().item(), gs.arange(200_000.0).sum().item()))

if __name__ == "__main__":
    gs.arange(200_000.0).sin().sum().item()  # workers of the pool run in the parent
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    children = [context.Process(target=work, args=(n, queue)) for n in (8, 400)]
    for child in children:
        child.start()
    found = sorted(queue.get(timeout=60) for _ in children)
    for child in children:
        child.join(60)
    print(json.dumps([found, [child.exitcode for child in children]]))
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_child_processes_compute(method: str, tmp_path: Path) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True,
                          env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found, codes = json.loads(done.stdout)
    assert codes == [0, 0] and [n for n, _, _ in found] == [8, 400]
    for n, rows, total in found:
        assert rows == pytest.approx(n / 4, rel=1e-5)
        assert total == pytest.approx(199_999 * 100_000, rel=1e-5)


STEP = """
import gossamer as gs
from gossamer.runtime import jit
step = gs.compile(lambda x: (x.tanh() * 2).softmax(-1).sum(0))
print(step(gs.arange(60.0).reshape(5, 12)).tolist())
print((gs.arange(7.0).exp() + 1).tolist(), jit.stats.compiled)
"""


def test_damaged_files_of_the_cache_cost_only_time(tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    def run() -> tuple[str, int]:
        done = python(STEP, GOSSAMER_CACHE=str(folder), GOSSAMER_NO_CACHE="0")
        assert done.returncode == 0 and not done.stderr, done.stderr
        text, compiled = done.stdout.rsplit(None, 1)
        return text, int(compiled)

    expected, compiled = run()
    assert compiled > 0 and run() == (expected, 0)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 64)
    assert len(files) > compiled  # the plan, too
    damages = [lambda old: b"", lambda old: old[:len(old) // 2], lambda old: os.urandom(len(old)),
               lambda old: old[:-9] + bytes([old[-9] ^ 1]) + old[-8:]]
    for i, file in enumerate(files):
        file.write_bytes(damages[i % len(damages)](file.read_bytes()))
    again, compiled_again = run()
    assert again == expected and compiled_again > 0
    assert run() == (expected, 0)  # whole again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_compiles_a_graph() -> None:
    """The child has no such thread: the locks that it held are free there."""
    done = python("""
import os, signal, threading
import gossamer as gs
from gossamer.runtime import engine

gs.ones(4).sin().tolist()
inside, leave = threading.Event(), threading.Event()
compile_graph = engine.compile_graph

def slow(*args, **more):
    inside.set()
    leave.wait(60)
    return compile_graph(*args, **more)

engine.compile_graph = slow
other = threading.Thread(target=lambda: gs.ones(4).cos().exp().tolist())
other.start()
inside.wait(60)
engine.compile_graph = compile_graph
child = os.fork()
if child == 0:
    signal.alarm(20)  # a deadlock ends
    os._exit(0 if gs.zeros(3).cos().tolist() == [1.0] * 3 else 1)
status = os.waitpid(child, 0)[1]
leave.set()
other.join()
print(status, gs.zeros(2).tolist())
""")
    assert done.stdout == "0 [0.0, 0.0]\n", done.stderr
