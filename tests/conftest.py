"""What every test shares: the environment, the seed, golden files and the data folder.

The environment is set before NumPy, PyTorch or Gossamer are imported: one thread for the others'
libraries (two xdist workers share the cores), two for Gossamer (so that every test also runs its
parallel paths), the verifier on, and a cache of compiled kernels inside `build/`, never the user's.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("GOSSAMER_THREADS", "2")
os.environ.setdefault("GOSSAMER_VERIFY", "1")
os.environ.setdefault("GOSSAMER_CACHE", str(ROOT / "build" / "test-cache"))

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from gossamer.runtime import plans  # noqa: E402

SEED = int(os.environ.get("GOSSAMER_TEST_SEED", "0"))

# The same examples at every run: a red CI is a red desk. `make fuzz` draws new ones.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept-golden", action="store_true",
                     help="write what is printed now into tests/golden instead of comparing")


def pytest_report_header(config: pytest.Config) -> str:
    return (f"seed: {SEED} (GOSSAMER_TEST_SEED), kernel cache: "
            f"{os.path.relpath(os.environ['GOSSAMER_CACHE'], ROOT)}, "
            f"threads: {os.environ['GOSSAMER_THREADS']}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a name with an address in it: each worker would see another, and no seed return."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: the name holds an address; give `ids`")


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed of this test: a function of GOSSAMER_TEST_SEED and the test's name alone.

    Python's, NumPy's and (once imported) PyTorch's and Gossamer's global generators are set to
    it, so a test gives the same result alone, in any order and on any worker.
    """
    value = (SEED * 0x9E3779B1 + zlib.crc32(request.node.nodeid.encode())) % 2**31
    random.seed(value)
    np.random.seed(value)
    for name in ("torch", "gossamer"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "manual_seed"):
            module.manual_seed(value)
    return value


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"GOSSAMER_TEST_SEED={SEED} for {item.nodeid}"))


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: text must equal tests/golden/<name>.txt (`make golden` rewrites it)."""
    def compare(name: str, text: str) -> None:
        path = ROOT / "tests" / "golden" / f"{name}.txt"
        text = "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
        if request.config.getoption("--accept-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path.name} does not exist; `make golden` writes it"
        assert text == path.read_text(), f"{path.name} differs; `make golden` accepts the change"
    return compare


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside a checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder

@pytest.fixture
def arenas(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the arena of every program that is compiled from here on."""
    monkeypatch.setenv("GOSSAMER_NO_CACHE", "1")
    found: list[int] = []
    compile_graph = plans.compile_graph

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = compile_graph(*args, **kwargs)
        found.append(made.arena.nbytes)
        return made

    monkeypatch.setattr(plans, "compile_graph", noted)
    return found
