"""Convolutions of few channels with each other (depthwise ones above all), plane by plane. Layer 2.

The one idea: a plane of an image is copied into memory of the worker with zeros around it, and, for
a stride s, with the columns of each residue modulo s side by side; there every place of the kernel
is a plain vector load, and a result is as many multiply-adds as the kernel has places. Zeros that
stand between elements (`interior`: gradients by the input) are never multiplied: each residue of
the result's rows and columns sees its own places of the kernel.

With so few channels a product would pack more than it multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, KernelSource, Scratch, Word
from gossamer.compile.contraction import strides_of
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm import Target
from gossamer.compile.llvm import named
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import float32, int32, int64
from gossamer.ir.node import Node

__all__ = ["has_kernel", "plane_calls", "plane_weight_calls", "pool_grad_calls"]

_FEW = 4  # input channels of a group up to which products lose
_PLACES = 64  # of a kernel, which are written out
_SUMS = 24  # vectors of sums that stay in registers
_PLANE = 512 << 10  # bytes of a plane that still stays in L2
_CLAIM = 1 << 15  # multiply-adds in vectors' lanes that a worker claims at once (about 4 us)


@dataclass(frozen=True)
class _Shape:
    """A convolution over two axes (one of extent 1 is added to one-dimensional ones).

    `residues` is the stride if `spread` is false: result p sees element p * s + k * d - low. If it
    is true, it is the step between the zeros: element q adds to result q * s + low - k * d.
    """

    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    residues: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]
    spread: bool
    inside: int  # input channels of a group
    chosen: bool = False  # no weights: a second plane says which place each element adds to


def _pair(values: tuple[int, ...], one: int) -> tuple[int, int]:
    return (one, values[0]) if len(values) == 1 else (values[0], values[1])


def _shape_of(node: Node) -> _Shape | None:
    """The geometry of a node that is computed here, or None."""
    at = node.attrs
    if node.op.name == "max_pool_grad":
        return _pool_shape(node)
    if node.op.name == "conv":
        x, kernel, out, groups = node.inputs[0], node.inputs[1].shape[2:], node.shape, at["groups"]
        inside = node.inputs[1].shape[1]
    elif node.op.name == "conv_weight":
        x, kernel, out, groups = node.inputs[1], at["kernel"], node.inputs[0].shape, at["groups"]
        inside = node.shape[1]
    else:
        return None
    spread = any(at["interior"])
    few = inside <= _FEW and (groups > 1 or out[1] == 1) and len(kernel) <= 2
    if node.dtype is not float32 or not few or prod(kernel) > _PLACES or not prod(out):
        return None
    if spread and (set(at["stride"]) != {1} or node.op.name != "conv"):
        return None
    steps = tuple(i + 1 for i in at["interior"]) if spread else at["stride"]
    return _Shape(_pair(x.shape[2:], 1), _pair(out[2:], 1), _pair(kernel, 1), _pair(steps, 1),
                  _pair(at["dilation"], 1), _pair(at["low"], 0), spread, inside)


def _pool_shape(node: Node) -> _Shape | None:
    """Of the gradient of max pooling: g, spread by the stride, adds to the winners' places."""
    at, g = node.attrs, node.inputs[0]
    rank = len(at["kernel"])
    if node.dtype is not float32 or rank > 2 or prod(at["kernel"]) > _PLACES or not g.size:
        return None
    low = tuple((k - 1) * d - a
                for k, d, a in zip(at["kernel"], at["dilation"], at["low"], strict=True))
    lead = g.ndim - rank
    return _Shape(_pair(g.shape[lead:], 1), _pair(node.shape[lead:], 1), _pair(at["kernel"], 1),
                  _pair(at["stride"], 1), _pair(at["dilation"], 1), _pair(low, 0), True, 2, True)


class _Plan:
    """Where elements lie in the worker's memory.

    Attributes:
        rows, pitch: rows, and elements from one residue of a row to the next.
        top, left: zeros before the image, in elements of the image.
        split: residues of a row that lie side by side.
        area: elements of a plane.
    """

    def __init__(self, s: _Shape, lanes: int) -> None:
        self.lanes = lanes
        wide = -(-s.out[1] // lanes) * lanes
        reach = tuple((k - 1) * d for k, d in zip(s.kernel, s.dilation, strict=True))
        if s.spread:
            # In the grid of u = q * s + k' * d, k' counting from the kernel's end, result p is at
            # u = p + shift; the part of residue u % s at place u // s sees x[u // s - k' d // s].
            self.shift = tuple(r - a for r, a in zip(reach, s.low, strict=True))
            self.top, self.left = (r // n for r, n in zip(reach, s.residues, strict=True))
            ends = [(o - 1 + max(a, 0)) // n + 1 for o, a, n in
                    zip(s.out, self.shift, s.residues, strict=True)]
            self.places = -(-ends[1] // lanes) * lanes  # of each residue, in whole vectors
            self.rows = max(ends[0], s.image[0]) + self.top
            self.split, self.pitch = 1, max(self.places, s.image[1]) + self.left + lanes
        else:
            self.shift = (0, 0)
            self.top, self.left = s.low
            self.places = wide
            self.split = s.residues[1]
            self.rows = (s.out[0] - 1) * s.residues[0] + reach[0] + 1
            self.pitch = wide + reach[1] // self.split
        self.row = self.split * self.pitch
        self.area = -(-(self.rows * self.row) // 16) * 16


def has_kernel(node: Node) -> bool:
    """Whether a convolution, or the gradient of its weight, is computed plane by plane."""
    s = _shape_of(node)
    return s is not None and 4 * s.inside * _Plan(s, 16).area <= _PLANE


# the kernels -------------------------------------------------------------------------------------
_WORDS = ("x", "w", "y", "scratch", "area", "images", "inside", "group", "groups", "w_o", "w_c",
          "w_h", "w_w")
_POINTERS = frozenset({"x", "w", "y", "scratch"})


class _Writer:
    """Shared tools of the three kernels."""

    def __init__(self, s: _Shape, target: Target) -> None:
        self.s = s
        self.b = FunctionBuilder("void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)")
        self.lanes = target.vector_bytes // 4
        self.e, self.one = Emitter(self.b, float32, self.lanes), Emitter(self.b, float32, 0)
        self.i32 = Emitter(self.b, int32, self.lanes)
        self.p = _Plan(s, self.lanes)
        self.w: dict[str, str] = {}
        for i, name in enumerate(_WORDS):
            kind = "ptr" if name in _POINTERS else "i64"
            self.w[name] = self.b.load(kind, self.b.gep("%args", str(8 * i)), 8)
        self.planes = self.b.gep(self.w["scratch"], self.b.mul("%tid", self.w["area"]))
        self.zero(self.planes, self.b.udiv(self.w["area"], "4"))

    def source(self) -> KernelSource:
        text = self.b.finish()
        lines = "\n".join(self.b.declares[k] for k in sorted(self.b.declares))
        return named(text + lines + "\n!0 = !{}\n", "@kernel")

    def at(self, pointer: str, *indices: str) -> str:
        for index in indices:
            pointer = self.b.gep(pointer, index, "float")
        return pointer

    def zero(self, pointer: str, count: str) -> None:
        self.b.intrinsic("llvm.memset.p0.i64", "void", [
            ("ptr", pointer), ("i8", "0"), ("i64", self.b.mul(count, "4")), ("i1", "false")])

    def mask(self, first: str, end: int) -> str | None:
        """The lanes from `first` on that are below `end`; None if all always are."""
        if end % self.lanes == 0:
            return None
        i64 = Emitter(self.b, int64, self.lanes)
        return i64.lt(i64.add(i64.splat(first), i64.lanes()), i64.splat(str(end)))

    # the image into the worker's memory -----------------------------------------------------------
    def copy_in(self, source: str, to: str) -> None:
        """A plane of the image; what stands around it is zero already."""
        s, p, b = self.s, self.p, self.b
        h, w = s.image
        top, left, end = max(0, -p.top), max(0, -p.left), min(h, p.rows - p.top)
        width = min(w, p.split * p.pitch - p.left) - left
        if width <= 0:
            return
        with b.loop(str(top), str(end)) as r:
            row = self.at(source, b.mul(r, str(w)))
            place = self.at(to, b.mul(b.add(r, str(p.top)), str(p.row)))
            if p.split == 1:
                b.intrinsic("llvm.memcpy.p0.p0.i64", "void", [
                    ("ptr", self.at(place, str(left + p.left))), ("ptr", self.at(row, str(left))),
                    ("i64", str(4 * width)), ("i1", "false")])
            else:
                self.deal(row, place, left, left + width)

    def deal(self, row: str, place: str, start: int, end: int) -> None:
        """A row to its residues."""
        b, p = self.b, self.p
        done = start
        if p.split == 2:
            done = start + (end - start) // (2 * self.lanes) * 2 * self.lanes
            with b.loop(str(start), str(done), 2 * self.lanes) as c:
                pair = [self.e.load(self.at(row, c, str(i * self.lanes))) for i in range(2)]
                for i in range(2):
                    lanes = ", ".join(f"i32 {2 * k + i}" for k in range(self.lanes))
                    part = b.value(f"shufflevector {self.e.t} {pair[0]}, {self.e.t} {pair[1]}, "
                                   f"<{self.lanes} x i32> <{lanes}>")
                    residue, first = (start + i + p.left) % 2, (i + p.left + start) // 2
                    spot = b.add(b.udiv(b.sub(c, str(start)), "2"),
                                 str(first + residue * p.pitch))
                    self.e.store(part, self.at(place, spot))
        with b.loop(str(done), str(end)) as c:
            u = b.add(c, str(p.left))
            spot = b.add(b.mul(b.urem(u, str(p.split)), str(p.pitch)), b.udiv(u, str(p.split)))
            self.one.store(self.one.load(self.at(row, c)), self.at(place, spot))

    def taps(self, residues: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(row of the kernel, column, distance in memory) of the places that results see.

        `residues` of the results, where zeros are spread; then places count backwards.
        """
        s, p = self.s, self.p
        found = []
        for i in range(s.kernel[0]):
            for j in range(s.kernel[1]):
                reach = i * s.dilation[0], j * s.dilation[1]
                if not s.spread:
                    found.append((i, j, reach[0] * p.row + reach[1] % p.split * p.pitch
                                  + reach[1] // p.split))
                elif all(r % n == m for r, n, m in
                         zip(reach, s.residues, residues, strict=True)):
                    up, back = (r // n for r, n in zip(reach, s.residues, strict=True))
                    found.append((s.kernel[0] - 1 - i, s.kernel[1] - 1 - j,
                                  (p.top - up) * p.row + p.left - back))
        return found

    def weights(self, o: str) -> dict[tuple[int, int, int], str]:
        """Vectors full of each weight of an output channel, by (c, row, column)."""
        b, w = self.b, self.w
        if self.s.chosen:
            return {}
        origin = self.at(w["w"], b.mul(o, w["w_o"]))
        found = {}
        for c, i, j in np.ndindex(self.s.inside, *self.s.kernel):
            place = self.at(origin, b.mul(str(c), w["w_c"]), b.mul(str(i), w["w_h"]),
                            b.mul(str(j), w["w_w"]))
            found[c, i, j] = self.e.splat(self.one.load(place))
        return found

    def sums(self, weights: dict[tuple[int, int, int], str], place: str,
             residues: tuple[int, int]) -> str:
        """One vector of results: the places that they see, of all channels of the group."""
        total = self.e.const(0)
        if self.s.chosen:
            for i, j, distance in self.taps(residues):
                number = (self.s.kernel[0] - 1 - i) * self.s.kernel[1] + self.s.kernel[1] - 1 - j
                own = self.i32.load(self.at(place, str(self.p.area + distance)))
                mine = self.i32.eq(own, self.i32.const(number))
                x = self.e.load(self.at(place, str(distance)))
                total = self.e.add(total, self.e.select(mine, x, self.e.const(0)))
            return total
        for c in range(self.s.inside):
            for i, j, distance in self.taps(residues):
                x = self.e.load(self.at(place, str(c * self.p.area + distance)))
                total = self.e.fma(weights[c, i, j], x, total)
        return total

    def items(self, item: str) -> tuple[str, str]:
        """Copies the planes of an item, (image, group); its first output channel, and where its
        results begin."""
        b, w = self.b, self.w
        size, inside = prod(self.s.image), self.s.inside
        if self.s.chosen:
            for number, name in enumerate("xw"):
                self.copy_in(self.at(w[name], b.mul(item, str(size))),
                             self.at(self.planes, str(number * self.p.area)))
            return "0", self.at(w["y"], b.mul(item, str(prod(self.s.out))))
        source = self.at(w["x"], b.mul(item, str(inside * size)))
        for c in range(inside):
            self.copy_in(self.at(source, str(c * size)),
                         self.at(self.planes, str(c * self.p.area)))
        first = b.mul(b.urem(item, w["groups"]), w["group"])
        return first, self.at(w["y"], b.mul(b.mul(item, w["group"]), str(prod(self.s.out))))


@cache
def _gather_source(s: _Shape, target: Target) -> KernelSource:
    """y[n, o] = sum over the group's planes and the kernel's places."""
    f = _Writer(s, target)
    b, p, width = f.b, f.p, s.out[1]
    with b.loop("%lo", "%hi") as item:
        first, results = f.items(item)
        with b.loop("0", f.w["group"]) as o:
            weights = f.weights(b.add(first, o))
            with b.loop("0", str(s.out[0])) as r:
                row = f.at(f.planes, b.mul(r, str(s.residues[0] * p.row)))
                to = f.at(results, b.mul(o, str(prod(s.out))), b.mul(r, str(width)))
                with b.loop("0", str(p.places), f.lanes) as c:
                    found = f.sums(weights, f.at(row, c), (0, 0))
                    mask, place = f.mask(c, width), f.at(to, c)
                    if mask is None:
                        f.e.store(found, place)
                    else:
                        f.e.store_masked(found, place, mask)
    return f.source()


@cache
def _spread_source(s: _Shape, target: Target) -> KernelSource:
    """The same over an image with zeros between its elements: residue by residue."""
    f = _Writer(s, target)
    b, p, (high, wide) = f.b, f.p, s.residues
    line = f.at(f.planes, str(s.inside * p.area))  # a row of results from residue 0 on
    first_row, first_column = p.shift
    seen = p.places * wide  # beyond these results are zero, as before the first
    start, end = max(0, -first_column), min(s.out[1], seen - first_column)
    with b.loop("%lo", "%hi") as item:
        first, results = f.items(item)
        with b.loop("0", f.w["group"]) as o:
            whole = f.at(results, b.mul(o, str(prod(s.out))))
            f.zero(whole, str(prod(s.out)))
            weights = f.weights(b.add(first, o))
            for residue in range(high):
                begin = -(-max(0, first_row - residue) // high)
                stop = (s.out[0] - 1 + first_row - residue) // high + 1
                with b.loop(str(begin), str(max(begin, stop))) as q:
                    row = f.at(f.planes, b.mul(q, str(p.row)))
                    with b.loop("0", str(p.places), f.lanes) as c:
                        parts = [f.sums(weights, f.at(row, c), (residue, j)) for j in range(wide)]
                        _interleave(f, parts, f.at(line, b.mul(c, str(wide))))
                    place = b.sub(b.add(b.mul(q, str(high)), str(residue)), str(first_row))
                    if end > start:
                        b.intrinsic("llvm.memcpy.p0.p0.i64", "void", [
                            ("ptr", f.at(whole, b.mul(place, str(s.out[1])), str(start))),
                            ("ptr", f.at(line, str(start + first_column))),
                            ("i64", str(4 * (end - start))), ("i1", "false")])
    return f.source()


def _interleave(f: _Writer, parts: list[str], to: str) -> None:
    """to[k * n + i] = parts[i][k]."""
    count, t = len(parts), f.e.t
    if count == 1:
        f.e.store(parts[0], to)
        return
    if count == 2:
        for half in range(2):
            lanes = ", ".join(f"i32 {half * f.lanes // 2 + k // 2 + k % 2 * f.lanes}"
                              for k in range(f.lanes))
            mixed = f.b.value(f"shufflevector {t} {parts[0]}, {t} {parts[1]}, "
                              f"<{f.lanes} x i32> <{lanes}>")
            f.e.store(mixed, f.at(to, str(half * f.lanes)))
        return
    for i, part in enumerate(parts):
        for k in range(f.lanes):
            one = f.b.value(f"extractelement {t} {part}, i64 {k}")
            f.one.store(one, f.at(to, str(k * count + i)))


@cache
def _weight_source(s: _Shape, target: Target) -> KernelSource:
    """w[o, c] = sum over images and results of g times what each place of the kernel sees.

    An item is a pair (o, c); `w` is the cotangent of the result, `y` the gradient.
    """
    f = _Writer(s, target)
    b, e, w, p, width = f.b, f.e, f.w, f.p, s.out[1]
    taps = f.taps((0, 0))
    slots = [b.alloca(e.t) for _ in range(min(_SUMS, len(taps)))]
    channels, outputs = b.mul(w["groups"], w["inside"]), b.mul(w["groups"], w["group"])
    with b.loop("%lo", "%hi") as item:
        o = b.udiv(item, w["inside"])
        c = b.add(b.mul(b.udiv(o, w["group"]), w["inside"]), b.urem(item, w["inside"]))
        to = f.at(w["y"], b.mul(item, str(len(taps))))
        for begin in range(0, len(taps), _SUMS):
            part = taps[begin:begin + _SUMS]
            for slot, _ in zip(slots, part, strict=False):
                e.store(e.const(0), slot)
            with b.loop("0", w["images"]) as n:
                x = b.mul(b.add(b.mul(n, channels), c), str(prod(s.image)))
                f.copy_in(f.at(w["x"], x), f.planes)
                g = b.mul(b.add(b.mul(n, outputs), o), str(prod(s.out)))
                with b.loop("0", str(s.out[0])) as r, b.loop("0", str(p.places), f.lanes) as q:
                    place = f.at(w["w"], g, b.mul(r, str(width)), q)
                    mask = f.mask(q, width)
                    factor = e.load(place) if mask is None else e.load_masked(place, mask)
                    origin = f.at(f.planes, b.mul(r, str(s.residues[0] * p.row)), q)
                    for slot, (_, _, distance) in zip(slots, part, strict=False):
                        old = e.load(slot)
                        new = e.fma(factor, e.load(f.at(origin, str(distance))), old)
                        e.store(new if mask is None else e.select(mask, new, old), slot)
            for number, (slot, _) in enumerate(zip(slots, part, strict=False)):
                f.one.store(e.reduce("add", e.load(slot)), f.at(to, str(begin + number)))
    return f.source()


# calls -------------------------------------------------------------------------------------------
def _pointer(node: Node, buffers: dict[int, int]) -> BufferRef:
    while node.op.name == "reshape":
        node = node.inputs[0]
    return BufferRef(buffers[id(node)])


def _call(s: _Shape, source: KernelSource, words: dict[str, Word], work: int, n: int, name: str,
          out: int, target: Target) -> Call:
    """`work`: vectors' multiply-adds in all."""
    plan = _Plan(s, target.vector_bytes // 4)
    more = plan.places * s.residues[1] + plan.lanes if s.spread else 0
    area = 4 * (s.inside * plan.area + more + plan.lanes)
    area = -(-area // 64) * 64
    words |= {"scratch": Scratch(area, per_thread=True), "area": area}
    read = {w.index for w in words.values() if isinstance(w, BufferRef)} - {out}
    grain = max(1, min(n // 8, _CLAIM * n // max(work, 1))) if work > 4 * _CLAIM else 0
    return Call(source, tuple(words[x] for x in _WORDS), n, grain, name, tuple(sorted(read)),
                (out,))


def plane_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                specialize: bool) -> list[Call]:
    """The call of a convolution."""
    node = cluster.members[0]
    x, w = node.inputs
    s = _shape_of(node)
    view = strides_of(w)
    assert s is not None and view is not None, "the graph was prepared before scheduling"
    base, offset, steps = view
    groups, out = node.attrs["groups"], buffers[id(node)]
    words: dict[str, Word] = {
        "x": _pointer(x, buffers), "w": BufferRef(buffers[id(base)], 4 * offset),
        "y": BufferRef(out), "images": x.shape[0], "inside": w.shape[1],
        "group": node.shape[1] // groups, "groups": groups, "w_o": steps[0], "w_c": steps[1],
        "w_h": steps[2] if len(steps) == 4 else 0, "w_w": steps[-1]}
    source = (_spread_source if s.spread else _gather_source)(s, target)
    return [_call(s, source, words, node.size * w.shape[1] * prod(s.kernel), x.shape[0] * groups,
                  "convolution by planes", out, target)]


def plane_weight_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                       specialize: bool) -> list[Call]:
    """The call of a convolution's gradient by its weight."""
    node = cluster.members[0]
    g, x = node.inputs
    s = _shape_of(node)
    assert s is not None
    groups, out = node.attrs["groups"], buffers[id(node)]
    words: dict[str, Word] = {
        "x": _pointer(x, buffers), "w": _pointer(g, buffers), "y": BufferRef(out),
        "images": x.shape[0], "inside": node.shape[1], "group": g.shape[1] // groups,
        "groups": groups, "w_o": 0, "w_c": 0, "w_h": 0, "w_w": 0}
    return [_call(s, _weight_source(s, target), words, g.size * node.shape[1] * prod(s.kernel),
                  node.shape[0] * node.shape[1], "convolution by planes: weights", out, target)]


def pool_grad_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                    specialize: bool) -> list[Call]:
    """The call of max pooling's gradient."""
    node = cluster.members[0]
    g, winners = node.inputs
    s = _shape_of(node)
    assert s is not None
    out, planes = buffers[id(node)], g.size // prod(s.image)
    words: dict[str, Word] = {
        "x": _pointer(g, buffers), "w": _pointer(winners, buffers), "y": BufferRef(out),
        "images": planes, "inside": 1, "group": 1, "groups": 1, "w_o": 0, "w_c": 0, "w_h": 0,
        "w_w": 0}
    return [_call(s, _spread_source(s, target), words, g.size * prod(s.kernel), planes,
                  "max pooling by planes: gradient", out, target)]
