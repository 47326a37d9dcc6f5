"""Slow paths, found and named: nothing slow happens in silence. Surface.

The one idea: each rule looks at one kernel (or program) and says in a sentence what is slow and
what to do about it; tables and pages show these sentences in red. A rule that would cry at every
program is worse than none, so rules that depend on the time ask for a share of it first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gossamer.compile.llvm import choose_vector
from gossamer.compile.pipeline import has_kernel
from gossamer.insight.cost import gathers
from gossamer.insight.view import KernelRecord, Line, ProgramView
from gossamer.ir.loop import Val
from gossamer.ir.node import Node, toposort, user_line
from gossamer.runtime.device import host

__all__ = ["find_problems", "find_program_problems"]

SLOW_ROOF, SLOW_SHARE = 0.10, 0.05  # below this fraction of the roofline, above this share of time
NOTABLE_SHARE = 0.01  # smaller kernels are not worth a sentence
# A kernel of less than both takes what starting it costs, whatever it does.
FEW_BYTES, FEW_FLOPS = 1 << 14, 1 << 17
LARGE_SCORES = 1 << 20  # bytes of attention's scores from which writing and reading them costs
FEW_SAMPLES = 3  # runs below which a time says nothing: the first finds cold pages and caches
_ITEM = {"float64": 8, "float32": 4, "float16": 4, "bfloat16": 4}  # bytes of a lane: 16 bits widen
_VECTOR = re.compile(r"<\d+ x (?:float|double|half|bfloat|i\d+)>")


def find_problems(views: Sequence[ProgramView]) -> list[str]:
    """Note the problems of every kernel in its record; returns those of whole programs.

    Kernels must have their share of the time and their roofline already.
    """
    for view in views:
        for k in view.kernels:
            causes = [p for rule in _CAUSES if (p := rule(k)) is not None]
            far = _far_from_roof(k)
            advice = "" if causes else ("; no rule knows why: time it on a quiet machine, and "
                                        "report it if it stays")
            k.problems = [*([far + advice] if far else []), *causes]
    return [p for view in views for p in find_program_problems(view)]


def find_program_problems(view: ProgramView) -> list[str]:
    """What is slow about a program as a whole."""
    found = []
    if view.uncompiled:
        found.append(f"{view.name} runs uncompiled: {view.uncompiled}")
    members = [m for k in view.kernels if k.cluster is not None for m in k.cluster.members]
    wide = [m for m in members if m.dtype.name == "float64" and m.size > 1]
    narrow = [m for m in members if m.dtype.name == "float32" and m.size > 1]
    if wide and narrow and len(narrow) >= len(wide):
        lines = ", ".join(dict.fromkeys(Line(*user_line(m)).short for m in wide[:4]))
        found.append(f"{len(wide)} float64 operations in a float32 program ({lines}): half the "
                     "speed and twice the bytes; make the constant or array float32")
    return [*found, *_scores_in_memory(view)]


def _scores_in_memory(view: ProgramView) -> list[str]:
    """Attention that no kernel of tiles computes."""
    found: dict[str, int] = {}
    for node in toposort(view.origin.roots):
        if node.op.name not in ("attention", "attention_grad") or has_kernel(node):
            continue
        q, k, v = node.inputs[:3]
        nbytes = q.size // q.shape[-1] * k.shape[-2] * q.dtype.itemsize if q.size else 0
        why = ("with a mask (is_causal, window and begins need none)" if node.attrs["mask"] else
               "of many positions to a cache" if node.attrs["start"] else
               f"with heads of {max(q.shape[-1], v.shape[-1])} numbers, more than 256")
        if nbytes > LARGE_SCORES:
            place = f"{why} at {Line(*user_line(node)).short}"
            found[place] = max(found.get(place, 0), nbytes)
    return [f"attention {place} writes its scores to memory ({nbytes:,} bytes): several times as "
            "slow as by tiles" for place, nbytes in found.items()]


def _far_from_roof(k: KernelRecord) -> str | None:
    large = k.work.nbytes > FEW_BYTES or k.work.flops > FEW_FLOPS
    slow = k.share > SLOW_SHARE and k.roofline < SLOW_ROOF
    if large and slow and k.samples >= FEW_SAMPLES:
        return f"{k.roofline:.1%} of the roofline with {k.share:.0%} of the time"
    return None


def _scalar(k: KernelRecord) -> str | None:
    if k.share < NOTABLE_SHARE or k.work.nbytes <= FEW_BYTES:
        return None
    if any(_VECTOR.search(s.text) for s in k.sources):
        return None
    return ("scalar code: no vector instructions, so about a tenth of the speed; an axis of "
            "extent 1 or a stride in the innermost loop prevents them")


def _idle_lanes(k: KernelRecord) -> str | None:
    if k.kernel is None or k.kind != "loops" or k.share < NOTABLE_SHARE:
        return None
    name = choose_vector(k.kernel)
    axis = next((a for a in (*k.kernel.kept, *k.kernel.reduced) if a.name == name), None)
    lanes = host().vector_bytes // _ITEM.get(k.work.dtype, 4)
    if axis is None or 2 * axis.extent > lanes or k.work.nbytes <= FEW_BYTES:
        return None
    return (f"vectors of {lanes} lanes along an axis of {axis.extent} ({axis.name} in the loops): "
            f"{lanes - axis.extent} lanes idle; a layout with a longer innermost axis fills them")


def _strided(k: KernelRecord) -> str | None:
    if k.kernel is None or k.kind != "loops" or k.share < NOTABLE_SHARE or gathers(k.kernel):
        return None
    if not any("llvm.masked.gather" in s.text for s in k.sources):
        return None
    return ("neighbouring lanes read places far apart (a strided gather, about one element a "
            "cycle): the operand's layout does not fit the loops")


def _gathers(k: KernelRecord) -> str | None:
    if k.kernel is None or k.share < NOTABLE_SHARE:
        return None
    inner = [v for v in gathers(k.kernel) if _per_element(v, k)]
    if not inner:
        return None
    return (f"{len(inner)} loads in the inner loop go where an index says (a gather, about one "
            "element a cycle); index whole rows, or gather once and keep the result")


def _per_element(load: Val, k: KernelRecord) -> bool:
    """Whether a gather's innermost step is itself read from data: no run of neighbours."""
    assert k.kernel is not None
    index = load.data[1]
    axes = [*k.kernel.kept, *k.kernel.reduced]
    own = {getattr(atom, "name", None) for atom in index.terms}
    return bool(axes) and not any(a.name in own and a.extent > 1 for a in axes)


def _copies(k: KernelRecord) -> str | None:
    if k.cluster is None or k.share < NOTABLE_SHARE:
        return None
    found = [m for m in k.cluster.members
             if m.op.name == "cast" and m.dtype is m.inputs[0].dtype and _is_view(m.inputs[0])]
    if not found or len(found) < len(k.cluster.members):
        return None
    return (f"a copy made for its layout ({found[0].size * found[0].dtype.itemsize:,} bytes): the "
            "kernel that reads it needs its elements in another order")


def _is_view(node: Node) -> bool:
    return node.op.kind in ("movement", "leaf")


_CAUSES = (_scalar, _idle_lanes, _gathers, _strided, _copies)
