"""Programs of few elements, cut into as many chunks as large ones.

The one idea: what is split among threads is decided by thresholds of work. With all of them down,
small random programs go where otherwise only large tensors do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from unittest import mock

import gossamer as gs
from gossamer.compile import remembered
from gossamer.runtime import engine
from tests.fuzz.ways import environment

THRESHOLDS = {
    "llvm": {"SERIAL_WORK": 0, "CHUNK_WORK": 1},
    "sort": {"_SERIAL": 1},
    "planes": {"_CLAIM": 0},
    "decoding": {"_SERIAL": 0},
    "quantized": {"_SERIAL": 0, "_CHUNK": 1, "_ROUND_CHUNK": 1},
    "gemm.plan": {"_SERIAL": 0},
}


@contextmanager
def everywhere(threads: int = 2) -> Iterator[None]:
    """No kernel is too small to be cut, and so many threads run its parts."""
    before = gs.get_num_threads()
    patches = [mock.patch.multiple(import_module(f"gossamer.compile.{module}"), **values)
               for module, values in THRESHOLDS.items()]
    for p in patches:
        p.start()
    gs.set_num_threads(threads)
    try:
        with environment("GOSSAMER_NO_CACHE", "1"):  # stored plans were cut otherwise
            _forget()
            yield
    finally:
        for p in patches:
            p.stop()
        gs.set_num_threads(before)
        _forget()


def _forget() -> None:
    remembered.forget()
    engine.clear()
