"""`gossamer explain script.py`: everything that a script computes, by time. Surface.

The one idea: the script runs as it is, with its own arguments, while a recorder times the kernels
of every program that it runs; nothing is run twice, so training is trained once. What the table
shows are medians of real runs.
"""

from __future__ import annotations

import runpy
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from gossamer.core.errors import DataError
from gossamer.insight import table
from gossamer.insight.explanation import Explanation
from gossamer.insight.recorder import Recorder
from gossamer.runtime.watch import watching

__all__ = ["explain_script"]

_PROGRAMS = 24  # explained in full; the rest is summed up in a note


def explain_script(path: str | Path, arguments: Sequence[str] = ()) -> Explanation:
    """Run a script and explain every compiled program and realised graph, by total time.

    Args:
        path: of the script; it runs as `__main__`, in this process.
        arguments: its `sys.argv[1:]`.

    Returns:
        An `Explanation`; its times are medians over the runs that the script made. If the script
        fails or is interrupted, its traceback is printed and what ran until then is explained.

    Raises:
        DataError: there is no such file.

    Cost: two clock readings a kernel while the script runs.

    Example:
        >>> found = gs.insight.explain_script("train.py", ["--steps", "20"])
        >>> max(p.runs for p in found.programs)
        20
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"explain {path}: there is no such file; give the path of a Python script.")
    recorder, notes = Recorder(), []
    start = time.perf_counter()
    with watching(recorder):
        failure = _run(path, arguments)
    wall = time.perf_counter() - start
    if failure:
        notes.append(f"the script ended early: {failure}; what ran until then is explained")
    views, left = recorder.views(_PROGRAMS)
    native = 1e-9 * sum(r.total for r in recorder.runs.values())
    notes.append(f"the script took {table.duration(wall)}: {table.duration(native)} in "
                 f"{len(recorder.runs)} programs, the rest in Python, tracing and compiling"
                 + "".join(f"; {name} {table.duration(1e-9 * ns)}"
                           for name, ns in recorder.spans.items()))
    if left:
        notes.append(f"{left} programs with less time are left out")
    return Explanation(path.name, views, recorder.problems(), notes)


def _run(path: Path, arguments: Sequence[str]) -> str:
    """Run the script; why it ended early, or nothing."""
    before, folder = sys.argv, str(path.resolve().parent)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, folder)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        return "" if error.code in (None, 0) else f"exit status {error.code}"
    except KeyboardInterrupt:
        return "interrupted"
    except Exception as error:  # the script's own: its author wants to see both it and the table
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        sys.argv = before
        if folder in sys.path:
            sys.path.remove(folder)
    return ""
