"""One self-contained page of an explanation: data into `page.html`, nothing fetched. Surface.

The one idea: the page is a template with one block of JSON. Figures, lines and loops are plain
text in it; LLVM IR and assembly, twenty times as large, are deflated and unpacked by the browser
when somebody opens them. Equal sources are stored once.
"""

from __future__ import annotations

import base64
import json
import linecache
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.compile.calls import KernelSource
from gossamer.insight.view import KernelRecord, Line, ProgramView
from gossamer.runtime import jit
from gossamer.runtime.device import host

if TYPE_CHECKING:
    from gossamer.insight.explanation import Explanation

__all__ = ["write"]

_TEMPLATE = Path(__file__).with_name("page.html")
_AROUND = 6  # lines shown before and after a source line
_GRAPHS = ("traced", "expanded", "simplified", "prepared", "scheduled", "memory")


def write(explanation: Explanation) -> str:
    """The page as text."""
    data = json.dumps(_data(explanation), separators=(",", ":"), ensure_ascii=False)
    # `</script>` and `<!--` inside a string would end the block; < is the same character to JSON.
    data = data.replace("<", "\\u003c")
    title = _escaped(explanation.name)
    page = _TEMPLATE.read_text(encoding="utf-8")
    return page.replace("{{title}}", title).replace("{{data}}", data)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _data(explanation: Explanation) -> dict[str, Any]:
    views = explanation.programs
    sources = list(dict.fromkeys(s for v in views for k in v.kernels for s in k.sources))
    numbers = {s: i for i, s in enumerate(sources)}
    lines = dict.fromkeys(line for v in views for k in v.kernels for line in k.lines)
    machine = host()
    return {
        "name": explanation.name, "seconds": explanation.seconds,
        "roofline": explanation.roofline, "problems": explanation.problems,
        "notes": explanation.notes, "peaks": asdict(explanation.peaks),
        "machine": f"{machine.cpu}, {8 * machine.vector_bytes}-bit vectors, "
                   f"{explanation.peaks.threads} thread(s)",
        "snippets": {_place(line): _snippet(line) for line in lines},
        "programs": [_program(i, v) for i, v in enumerate(views)],
        "kernels": [_kernel(i, k, numbers) for i, v in enumerate(views) for k in v.kernels],
        "sources": [_packed(s) for s in sources],
    }


def _program(number: int, view: ProgramView) -> dict[str, Any]:
    wrote = {b: k.number for k in reversed(view.kernels) for i, _ in k.calls
             for b in view.compiled.calls[i].writes}
    return {"name": view.name, "seconds": view.seconds, "runs": view.runs, "nodes": view.nodes,
            "calls": len(view.compiled.calls), "arena": view.compiled.arena.nbytes,
            "in_place": len(view.compiled.shared), "number": number,
            "buffers": [[*b, wrote.get(b[0], -1)] for b in view.buffers()],
            "stages": {name: _deflated(view.stage(name)) for name in _GRAPHS}}


def _kernel(program: int, k: KernelRecord, sources: dict[KernelSource, int]) -> dict[str, Any]:
    return {"program": program, "number": k.number, "name": k.name, "kind": k.kind,
            "lines": [_place(line) for line in k.lines], "reason": k.reason,
            "members": k.members, "loops": k.loops, "calls": k.calls,
            "sources": [sources[s] for s in k.sources], "flops": k.work.flops,
            "dtype": k.work.dtype, "read": k.work.bytes_read, "written": k.work.bytes_written,
            "seconds": k.seconds, "runs": k.runs, "least": k.least, "bound": k.bound,
            "share": k.share, "problems": k.problems}


def _place(line: Line) -> str:
    return f"{line.file}:{line.number}"


def _snippet(line: Line) -> dict[str, Any]:
    """The lines around one, as far as the file can be read."""
    texts = linecache.getlines(line.file)
    first = max(1, line.number - _AROUND)
    return {"short": line.short, "first": first, "number": line.number,
            "texts": [t.rstrip("\n") for t in texts[first - 1:line.number + _AROUND]]}


def _packed(source: KernelSource) -> dict[str, str]:
    texts = {"llvm": source.text, "optimised": jit.machine_text(source),
             "assembly": jit.assembly(source)}
    return {"symbol": source.symbol, "texts": _deflated(json.dumps(texts))}


def _deflated(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()
