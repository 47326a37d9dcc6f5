"""Convolutions with 3x3 kernels by Winograd's algorithm: the calls. Layer 2.

The one idea: cut images into tiles of 2x2 results, transform tiles and weights to 16 planes, and a
convolution is 16 small products, one a plane, with 4/9 of the multiplications; the gradient of the
weights is the same planes contracted over the tiles. A chunk of images is worked off at a time, so
that its planes stay in the caches. Sums are float32's; the largest error against the definition
grows about twofold, and an infinity becomes NaN in its tile.

What this does not cover (other kernels, strides, groups, few channels) stays the composite's body:
a product over windows.
"""

from __future__ import annotations

from dataclasses import replace

from gossamer.compile.calls import BufferRef, Call, KernelSource, Scratch, Word
from gossamer.compile.contraction import strides_of
from gossamer.compile.gemm import Operand, Output, Target, gemm
from gossamer.compile.schedule import Cluster
from gossamer.compile.winograd_tiles import (
    FILTER_WORDS,
    GATHER_WORDS,
    SCATTER_WORDS,
    SUM_WORDS,
    filter_source,
    gather_source,
    scatter_source,
    sum_source,
)
from gossamer.core.dtype import float32
from gossamer.ir.node import Node

__all__ = ["convolution_calls", "has_kernel", "weight_calls"]

_CHANNELS = 16  # the fewest that fill a vector of every machine
_TILES = 64  # of all images, below which transforming the weights costs more than it saves
_BAND = 128 << 10  # bytes of pixels that a worker transposes at a time: they stay in L2
_CHUNK = 8 << 20  # bytes of planes that are written and read again: they stay in L3
_FACTORS, _WEIGHTS, _RESULTS = -2, -3, -4  # stand for scratch memory in products' operands


def has_kernel(node: Node) -> bool:
    """Whether a convolution, or the gradient of its weight, is computed so."""
    if node.op.name == "conv":
        x, w = node.inputs
        y, kernel, outputs = node.shape, w.shape[2:], w.shape[0]
    elif node.op.name == "conv_weight":
        g, x = node.inputs
        y, kernel, outputs = g.shape, node.attrs["kernel"], g.shape[1]
    else:
        return False
    at = node.attrs
    if node.dtype is not float32 or kernel != (3, 3) or at["groups"] != 1:
        return False
    if set(at["stride"]) != {1} or set(at["dilation"]) != {1} or any(at["interior"]):
        return False
    tiles = y[0] * -(-y[2] // 2) * -(-y[3] // 2)
    whole = min(y[2], y[3]) > 1 and (y[3] >= 16 or y[2] * y[3] >= 16)
    return min(x.shape[1], outputs) >= _CHANNELS and tiles >= _TILES and whole


class _Tiles:
    """The tiles of a convolution's results, and the chunks of images.

    Args:
        x: the input. out: shape of the result. low: zeros before the input.
    """

    def __init__(self, x: Node, out: tuple[int, ...], low: tuple[int, ...], key: int) -> None:
        self.x_shape, self.out, self.low, self.key = x.shape, out, low, key
        self.high, self.wide = -(-out[2] // 2), -(-out[3] // 2)
        self.c, self.o = x.shape[1], out[1]
        each = 16 * 4 * (self.c + self.o) * self.high * self.wide
        count = max(1, round(out[0] * each / _CHUNK))
        self.images = -(-out[0] // min(count, out[0]))  # in a chunk

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(first image, number of images)."""
        total = self.out[0]
        return [(i, min(self.images, total - i)) for i in range(0, total, self.images)]

    def plane(self, channels: int) -> int:
        """Elements of a plane; five lines more than whole, as planes a power of two apart would
        fall into one set of a cache."""
        return self.images * self.high * self.wide * channels + 80

    def scratch(self, name: str, elements: int) -> Scratch:
        return Scratch(4 * elements, key=(name, self.key))

    def band(self, pixels: int, channels: int, halo: int) -> tuple[int, int]:
        """(number, rows of tiles) of the bands of an image."""
        row = pixels * channels * 4
        most = max(1, (_BAND // row - halo) // 2) if self.out[3] >= 16 else self.high
        count = -(-self.high // most)
        rows = -(-self.high // count)
        return -(-self.high // rows), rows


def _call(source: KernelSource, names: tuple[str, ...], words: dict[str, Word], n: int, name: str,
          writes: tuple[int, ...] = ()) -> Call:
    read = {w.index for w in words.values() if isinstance(w, BufferRef)} - set(writes)
    return Call(source, tuple(words[x] for x in names), n, 1, name, tuple(sorted(read)), writes)


def _pointer(node: Node, buffers: dict[int, int]) -> BufferRef:
    while node.op.name == "reshape":
        node = node.inputs[0]
    return BufferRef(buffers[id(node)])


def _gather(t: _Tiles, kind: str, source: Word, planes: Scratch, chunk: tuple[int, int],
            target: Target) -> Call:
    """Images of a chunk to planes."""
    shape, low, halo = (t.x_shape, t.low, 2) if kind == "input" else (t.out, (0, 0), 0)
    _, channels, height, width = shape
    pixels = 2 * t.wide + halo
    left, start = max(low[1], 0), max(-low[1], 0)
    bands, band = t.band(pixels, channels, halo)
    area = -(-((2 * band + halo) * pixels * channels + 16) * 4 // 64) * 64
    words: dict[str, Word] = {
        "x": source, "planes": planes, "scratch": Scratch(area, per_thread=True), "area": area,
        "channels": channels, "height": height, "width": width, "above": low[0],
        "left": min(left, pixels), "start": start,
        "count": max(0, min(width - start, pixels - left)), "tiles_h": t.high, "tiles_w": t.wide,
        "pitch": channels, "plane": t.plane(channels), "image": chunk[0], "bands": bands,
        "band": band}
    return _call(gather_source(target, kind), GATHER_WORDS, words, chunk[1] * bands,
                 f"winograd {kind}")


def _scatter(t: _Tiles, planes: Scratch, buffer: int, chunk: tuple[int, int],
             target: Target) -> Call:
    """Planes of results to images."""
    _, channels, height, width = t.out
    bands, band = t.band(width, channels, 0)
    area = -(-(2 * band * width * channels + 16) * 4 // 64) * 64
    words: dict[str, Word] = {
        "planes": planes, "y": BufferRef(buffer), "scratch": Scratch(area, per_thread=True),
        "area": area, "channels": channels, "height": height, "width": width, "tiles_h": t.high,
        "tiles_w": t.wide, "pitch": channels, "plane": t.plane(channels), "image": chunk[0],
        "bands": bands, "band": band}
    return _call(scatter_source(target), SCATTER_WORDS, words, chunk[1] * bands,
                 "winograd convolution", (buffer,))


def _filter(t: _Tiles, w: Node, buffers: dict[int, int], planes: Scratch,
            target: Target) -> tuple[Call, tuple[int, int]]:
    """The weights to planes, along whichever of their channels lie closer; strides of (k, n)."""
    view = strides_of(w)
    assert view is not None, "the graph was prepared before scheduling"
    base, offset, (step_o, step_c, step_h, step_w) = view
    by_input = abs(step_c) < abs(step_o)
    lanes, rows = (t.c, t.o) if by_input else (t.o, t.c)
    words: dict[str, Word] = {
        "w": BufferRef(buffers[id(base)], 4 * offset), "planes": planes, "rows": rows,
        "lanes": lanes, "row_step": step_o if by_input else step_c,
        "lane_step": step_c if by_input else step_o, "step_h": step_h, "step_w": step_w,
        "plane": t.c * t.o + 80}
    call = _call(filter_source(target), FILTER_WORDS, words, rows, "winograd filter")
    return call, (1, t.c) if by_input else (t.o, 1)


def _placed(calls: list[Call], places: dict[int, Word]) -> list[Call]:
    """Products whose operands are scratch memory: these instead of buffers below 0."""
    return [replace(c, words=tuple(places.get(w.index, w) if isinstance(w, BufferRef) else w
                                   for w in c.words)) for c in calls]


def convolution_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                      specialize: bool) -> list[Call]:
    """The calls of a convolution: weights once, then chunk by chunk."""
    node = cluster.members[0]
    x, w = node.inputs
    out = buffers[id(node)]
    t = _Tiles(x, node.shape, node.attrs["low"], out)
    factors = t.scratch("winograd factors", 16 * t.plane(t.c))
    results = t.scratch("winograd results", 16 * t.plane(t.o))
    weights = t.scratch("winograd weights", 16 * (t.c * t.o + 80))
    first, (step_k, step_n) = _filter(t, w, buffers, weights, target)
    calls = [first]
    for chunk in t.chunks:
        a = Operand(_FACTORS, 0, (t.plane(t.c), 0, t.c, 1))
        b = Operand(_WEIGHTS, 0, (t.c * t.o + 80, 0, step_k, step_n))
        c = Output(_RESULTS, 0, (t.plane(t.o), 0, t.o, 1))
        products = gemm((16, 1), chunk[1] * t.high * t.wide, t.o, t.c, float32, a, b, c, target)
        calls += [_gather(t, "input", _pointer(x, buffers), factors, chunk, target),
                  *_placed(products, {_FACTORS: factors, _WEIGHTS: weights, _RESULTS: results}),
                  _scatter(t, results, out, chunk, target)]
    return calls


def weight_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                 specialize: bool) -> list[Call]:
    """The calls of a convolution's gradient by its weight: each chunk's part, then their sum."""
    node = cluster.members[0]
    g, x = node.inputs
    out = buffers[id(node)]
    t = _Tiles(x, g.shape, node.attrs["low"], out)
    chunks = t.chunks
    plane = t.c * t.o + 80
    factors = t.scratch("winograd factors", 16 * t.plane(t.c))
    cotangents = t.scratch("winograd cotangents", 16 * t.plane(t.o))
    results = t.scratch("winograd weights", len(chunks) * 16 * plane)
    calls = []
    for number, chunk in enumerate(chunks):
        a = Operand(_WEIGHTS, 0, (t.plane(t.o), 0, 1, t.o))
        b = Operand(_FACTORS, 0, (t.plane(t.c), 0, t.c, 1))
        part = replace(results, offset=4 * number * 16 * plane)
        c = Output(_RESULTS, 0, (plane, 0, t.c, 1))
        products = gemm((16, 1), t.o, t.c, chunk[1] * t.high * t.wide, float32, a, b, c, target)
        calls += [_gather(t, "input", _pointer(x, buffers), factors, chunk, target),
                  _gather(t, "cotangent", _pointer(g, buffers), cotangents, chunk, target),
                  *_placed(products, {_FACTORS: factors, _WEIGHTS: cotangents,
                                      _RESULTS: part})]
    area = -(-(18 * t.c + 16) * 4 // 64) * 64
    words: dict[str, Word] = {
        "planes": results, "w": BufferRef(out), "scratch": Scratch(area, per_thread=True),
        "area": area, "lanes": t.c, "parts": len(chunks), "part": 16 * plane, "plane": plane}
    calls.append(_call(sum_source(target), SUM_WORDS, words, t.o, "winograd weight gradient",
                       (out,)))
    return calls
