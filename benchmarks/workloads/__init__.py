"""What is measured, one file a family of work. `WORKLOADS` has every row by name, in order."""

from __future__ import annotations

import importlib

from benchmarks.workloads.base import Workload

__all__ = ["GROUPS", "WORKLOADS", "chosen"]

_MODULES = ("mlp", "cnn", "gpt", "nanochat", "resnet18", "lstm", "embed", "gemm", "pointwise",
            "rows", "attention", "decode", "small", "derived", "scaling")

_found = {name: importlib.import_module(f"benchmarks.workloads.{name}").WORKLOADS
          for name in _MODULES}
WORKLOADS: dict[str, Workload] = {w.name: w for rows in _found.values() for w in rows}
# A module with several rows can be asked for by its own name.
GROUPS: dict[str, list[str]] = {name: [w.name for w in rows] for name, rows in _found.items()}


def chosen(names: list[str]) -> list[Workload]:
    """The rows that these names of rows or modules mean; all for none.

    Raises:
        ValueError: there is no such workload.
    """
    wanted: dict[str, None] = {}
    for name in names or list(WORKLOADS):
        if name not in WORKLOADS and name not in GROUPS:
            raise ValueError(f"benchmarks {name}: there is no such workload; there are "
                             f"{', '.join({**GROUPS, **WORKLOADS})}.")
        wanted.update(dict.fromkeys([name] if name in WORKLOADS else GROUPS[name]))
    return [WORKLOADS[name] for name in wanted]
