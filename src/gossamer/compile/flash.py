"""Attention by tiles: scores never leave the cache. Layer 2.

The one idea: queries are vector lanes. For a chunk of 64 queries the transposed scores S^T (keys in
rows, queries in columns) are small products of K with Q^T, and softmax over keys is elementwise
work on whole vectors: a running maximum and sum per lane. K and V are read where they are, one
element broadcast at a time, so nothing but the chunk's own queries is ever packed. Key blocks that
no query of the chunk sees are skipped: those behind it (causal), those out of its window, and those
before its text where several texts share a row (`begins`); so are whole vectors of a block.

Queries are multiplied by scale * log2(e) where they are packed, so that weights are powers of two.
Every product here, forward and backward, is one shape: C[r, lanes] += A[r, p] B[p, lanes].

Sources: Dao et al., "FlashAttention" (2022) and "FlashAttention-2" (2023); results are rescaled
only where a maximum rises by much, as in FlashAttention-4 (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import KernelSource
from gossamer.compile.emitter import Emitter
from gossamer.compile.flash_tiles import product_functions
from gossamer.compile.gemm import Target
from gossamer.compile.gemm.pack import transpose
from gossamer.compile.gemm.target import tile_for
from gossamer.compile.llvm import named
from gossamer.core.dtype import DType, bool_, float64, int64

__all__ = ["BACKWARD_WORDS", "CHUNK", "FORWARD_WORDS", "KEYS", "Seen", "backward_source",
           "backward_scratch", "forward_scratch", "forward_source"]

CHUNK = 64  # queries worked on together: four AVX-512 vectors of float32
KEYS = 48  # keys in a block: S^T of a block is 12 KiB, and a multiple of the 6 rows of a product
DIAGONAL = 16  # keys in a block of those that some queries of a chunk see and others do not
RISE = 8.0  # by which a maximum rises before sums and results are scaled: weights stay below 2^8

_SHARED = ("q", "q_b", "q_h", "q_t", "k", "k_b", "k_h", "k_t", "v", "v_b", "v_h", "v_t")
FORWARD_WORDS = (*_SHARED, "out", "out_b", "out_h", "out_t", "lse", "heads", "shared", "t", "s",
                 "size", "value_size", "scale", "window", "begins", "scratch", "area")
BACKWARD_WORDS = (*_SHARED, "g", "g_b", "g_h", "g_t", "lse", "delta", "dq", "dq_b", "dq_h", "dq_t",
                  "dk", "dk_b", "dk_h", "dk_t", "dv", "dv_b", "dv_h", "dv_t", "heads", "shared",
                  "t", "s", "size", "value_size", "scale", "window", "begins", "scratch", "area")
_POINTERS = frozenset({"q", "k", "v", "g", "out", "lse", "delta", "dq", "dk", "dv", "begins",
                       "scratch"})
_NEVER = (1 << 63) - 1  # a key that no query sees: where the lanes beyond the last query begin
_WHOLE = 16  # rows that a transpose writes at once, at most
_MINUS = float("-inf")
_LOG2_E, _LN_2 = 1.4426950408889634, 0.6931471805599453


@dataclass(frozen=True)
class Seen:
    """Which keys a query sees.

    Args:
        causal: those up to its own position.
        window: the last `window` of them.
        begins: those from the position on that the operand `begins` names for each query.
    """

    causal: bool = False
    window: bool = False
    begins: bool = False


def forward_scratch(size: int, value_size: int, itemsize: int) -> int:
    """Bytes of a worker's memory: Q^T, O^T, S^T and two rows of statistics."""
    return CHUNK * (_whole(size) + _whole(value_size) + KEYS + 2) * itemsize


def backward_scratch(size: int, value_size: int, itemsize: int) -> int:
    """Bytes of a worker's memory: Q^T, dO^T, dQ^T, P^T, dS^T and two rows of statistics."""
    return CHUNK * (2 * _whole(size) + _whole(value_size) + 2 * KEYS + 2) * itemsize


def _whole(rows: int) -> int:
    """Rows of a matrix that transposes write whole vectors of rows to."""
    return -(-rows // _WHOLE) * _WHOLE


class _Writer:
    """Shared tools of the two kernels."""

    def __init__(self, words: tuple[str, ...], dtype: DType, target: Target, seen: Seen) -> None:
        self.b = FunctionBuilder("void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)",
                                 avx512=target.vector_bytes == 64)
        self.dtype, self.seen = dtype, seen
        self.lanes = target.vector_bytes // dtype.itemsize
        self.e = Emitter(self.b, dtype, self.lanes)
        self.count = CHUNK // self.lanes  # vectors in a chunk of queries
        self.square = tile_for(dtype, target)
        wide = target.registers >= 32
        self.tiles = ((4, 6), (2, 12), (1, 12)) if wide else ((2, 6), (1, 8))
        self.word: dict[str, str] = {}
        for i, name in enumerate(words):
            kind = "ptr" if name in _POINTERS else "double" if name == "scale" else "i64"
            self.word[name] = self.b.load(kind, self.b.gep("%args", str(8 * i)), 8)
        self.scale = self._splat(self.word["scale"])
        log2_e = Emitter(self.b, float64, 0).const(_LOG2_E)
        self.exponents = self._splat(self.b.value(f"fmul double {self.word['scale']}, {log2_e}"))
        self.begins: list[str] = []  # of each vector of the chunk: the first key of each query
        self.earliest: list[str] = []  # the first of them
        self.latest: list[str] = []  # and the last
        self.area = self.b.gep(self.word["scratch"], self.b.mul("%tid", self.word["area"]))

    def _splat(self, number: str) -> str:
        if self.dtype.itemsize == 4:
            number = self.b.value(f"fptrunc double {number} to float")
        return self.e.splat(number)

    # addresses --------------------------------------------------------------------------------
    def at(self, pointer: str, index: str) -> str:
        return self.b.gep(pointer, index, self.dtype.llvm)

    def carve(self, rows: str, turned: bool = False) -> str:
        """The next `rows` x CHUNK elements of the worker's memory; `turned`: a whole number."""
        here = self.area
        if turned:
            more = self.b.add(rows, str(_WHOLE - 1))
            rows = self.b.value(f"and i64 {more}, {-_WHOLE}")
        self.area = self.at(here, self.b.mul(rows, str(CHUNK)))
        return here

    def matrix(self, name: str, batch: str, head: str) -> str:
        w, b = self.word, self.b
        offset = b.add(b.mul(batch, w[f"{name}_b"]), b.mul(head, w[f"{name}_h"]))
        return self.at(w[name], offset)

    # loops over a row of 64 lanes -------------------------------------------------------------
    def each_vector(self, body: Callable[[int, str], None]) -> None:
        for i in range(self.count):
            body(i, str(i * self.lanes))

    def load(self, row: str, place: str) -> str:
        return self.e.load(self.at(row, place))

    def store(self, value: str, row: str, place: str) -> None:
        self.e.store(value, self.at(row, place))

    def fill(self, start: str, rows: str, value: float) -> None:
        with self.b.loop("0", rows) as r:
            row = self.at(start, self.b.mul(r, str(CHUNK)))
            self.each_vector(lambda _, p: self.store(self.e.const(value), row, p))

    def lane_mask(self, first: str, valid: str) -> str:
        e = Emitter(self.b, int64, self.lanes)
        return e.lt(e.add(e.splat(first), e.lanes()), e.splat(valid))

    def turn_in(self, target: str, source: str, pitch: str, size: str, valid: str,
                factor: str) -> None:
        """target[d, i] = factor * source[i, d]; lanes from `valid` on repeat the last query."""
        b, e, last = self.b, self.e, self.b.sub(valid, "1")
        with b.loop("0", str(CHUNK), self.lanes) as i:
            places = [b.minimum(b.add(i, str(r)), last) for r in range(self.lanes)]
            rows = [self.at(source, b.mul(place, pitch)) for place in places]
            with b.loop("0", size, self.lanes) as d:
                mask = self.lane_mask(d, size)
                vectors = [e.load_masked(self.at(row, d), mask) for row in rows]
                to = self.at(target, b.add(b.mul(d, str(CHUNK)), i))
                for r, column in enumerate(transpose(b, self.square, vectors)):
                    self.store(e.mul(column, factor), to, str(r * CHUNK))

    def turn_out(self, target: str, pitch: str, source: str, size: str, valid: str,
                 factors: str = "") -> None:
        """target[i, d] = source[d, i] for i < valid, times factors[i]."""
        b, e = self.b, self.e
        with b.loop("0", valid, self.lanes) as i, b.loop("0", size, self.lanes) as d:
            mask, at = self.lane_mask(d, size), self.at(source, b.add(b.mul(d, str(CHUNK)), i))
            vectors = [self.load(at, str(r * CHUNK)) for r in range(self.lanes)]
            if factors:
                factor = self.load(factors, i)
                vectors = [e.mul(vector, factor) for vector in vectors]
            for r, row in enumerate(transpose(b, self.square, vectors)):
                query = b.add(i, str(r))
                with b.when(b.compare("slt", query, valid)):
                    e.store_masked(row, self.at(target, b.add(b.mul(query, pitch), d)), mask)

    # products ---------------------------------------------------------------------------------
    def product(self, rows: str, columns: str, depth: str, a: tuple[str, str, str],
                b: tuple[str, str], c: tuple[str, str], accumulate: bool) -> None:
        """C[r, n] (+)= sum over p of A[r, p] B[p, n].

        Args:
            a: pointer, stride of r, stride of p. b: pointer, stride of p. c: pointer, stride of r.
        """
        arguments = ", ".join([f"i64 {rows}", f"i64 {columns}", f"i64 {depth}", f"ptr {a[0]}",
                               f"i64 {a[1]}", f"i64 {a[2]}", f"ptr {b[0]}", f"i64 {b[1]}",
                               f"ptr {c[0]}", f"i64 {c[1]}", f"i64 {int(accumulate)}"])
        self.b.line(f"call void @product({arguments})")

    def module(self) -> KernelSource:
        text = [self.b.finish()]
        declares = dict(self.b.declares)
        for builder in product_functions(self.dtype, self.lanes, self.tiles):
            text.append(builder.finish())
            declares.update(builder.declares)
        body = "".join(text) + "\n".join(declares[k] for k in sorted(declares)) + "\n!0 = !{}\n"
        return named(body, "@kernel")

    # which keys -------------------------------------------------------------------------------
    def enter(self, batch: str, first: str, valid: str) -> None:
        """Read where the texts of a chunk's queries begin: queries [first, first + valid)."""
        if not self.seen.begins:
            return
        b, e = self.b, Emitter(self.b, int64, self.lanes)
        row = b.gep(self.word["begins"], b.add(b.mul(batch, self.word["t"]), first), "i64")
        places = [str(i * self.lanes) for i in range(self.count)]
        self.begins = [e.load_masked(b.gep(row, place, "i64"), self.lane_mask(place, valid),
                                     e.const(_NEVER)) for place in places]
        self.earliest = [e.reduce("min", x) for x in self.begins]
        self.latest = [e.reduce("max", x) for x in self.begins]

    def key_range(self, first: str, last: str) -> tuple[str, str]:
        """Keys that some query in [first, last) sees."""
        b, start, end = self.b, "0", self.word["s"]
        if self.seen.causal:
            end = b.minimum(end, last)
        if self.seen.window:
            start = b.add(b.sub(first, self.word["window"]), "1")
            start = b.select(b.compare("sgt", start, "0"), start, "0")
        if self.seen.begins:
            earliest = self.earliest[0]
            for other in self.earliest[1:]:
                earliest = b.minimum(earliest, other)
            start = b.select(b.compare("sgt", earliest, start), earliest, start)
        return b.minimum(start, end), end  # a window, or a text, may lie behind the last key

    def hide(self, st: str, key: str, keys: str, first: str, i: int) -> None:
        """Set what vector `i` of the queries from `first` on does not see of a block to -inf."""
        b, hidden = self.b, self._partly(key, keys, first, i)
        if not hidden:
            return
        some = reduce(lambda x, y: b.value(f"or i1 {x}, {y}"), hidden)
        with b.when(some), b.loop("0", keys) as j:
            row, place = self.at(st, b.mul(j, str(CHUNK))), str(i * self.lanes)
            seen = self.visible(b.add(key, j), first, i)
            score = self.e.select(seen, self.load(row, place), self.e.const(_MINUS))
            self.store(score, row, place)

    def _partly(self, key: str, keys: str, first: str, i: int) -> list[str]:
        """Conditions; where none holds, every query of vector `i` sees the whole block."""
        b, found = self.b, []
        query = b.add(first, str(i * self.lanes))
        if self.seen.causal:
            found.append(b.compare("sgt", b.add(key, keys), b.add(query, "1")))
        if self.seen.window:
            reach = b.add(key, self.word["window"])
            found.append(b.compare("slt", reach, b.add(query, str(self.lanes))))
        if self.seen.begins:
            found.append(b.compare("sgt", self.latest[i], key))
        return found

    def visible(self, key: str, first: str, i: int) -> str:
        """Mask of the lanes of vector `i` (queries from `first`) that see `key`."""
        e, either = Emitter(self.b, int64, self.lanes), Emitter(self.b, bool_, self.lanes)
        query = e.add(e.splat(self.b.add(first, str(i * self.lanes))), e.lanes())
        masks: list[str] = []
        if self.seen.causal:
            masks.append(e.le(e.splat(key), query))
        if self.seen.window:
            masks.append(e.gt(e.splat(key), e.sub(query, e.splat(self.word["window"]))))
        if self.seen.begins:
            masks.append(e.le(self.begins[i], e.splat(key)))
        return reduce(either.and_, masks)

    def seeing(self, key: str, keys: str, first: str) -> tuple[str, str]:
        """Lanes [start, stop) of a chunk (whole vectors) that see some of a block of keys.

        The first queries of a chunk see nothing of a causal chunk's last keys, its last queries
        nothing of the keys before their text.
        """
        b, start, stop = self.b, "0", str(CHUNK)
        if self.seen.causal:
            ahead = b.sub(key, first)
            ahead = b.select(b.compare("sgt", ahead, "0"), ahead, "0")
            start = b.sub(ahead, b.urem(ahead, str(self.lanes)))
        if self.seen.begins:
            end, stop = b.add(key, keys), start
            for i, earliest in enumerate(self.earliest):
                inside = b.compare("slt", earliest, end)
                stop = b.select(inside, str((i + 1) * self.lanes), stop)
            stop = b.select(b.compare("sgt", stop, start), stop, start)
        return start, stop

    @contextmanager
    def key_blocks(self, first: str, start: str, end: str) -> Iterator[tuple[str, str]]:
        """For each block of keys: its first key and how many. Blocks are small from `first` on if
        attention is causal: the later a key, the fewer queries see it."""
        b, middle, fine = self.b, end, DIAGONAL if self.seen.causal else KEYS
        if self.seen.causal:
            middle = b.minimum(b.select(b.compare("sgt", first, start), first, start), end)
        long = b.udiv(b.add(b.sub(middle, start), str(KEYS - 1)), str(KEYS))
        short = b.udiv(b.add(b.sub(end, middle), str(fine - 1)), str(fine))
        with b.loop("0", b.add(long, short)) as n:
            whole = b.compare("slt", n, long)
            key = b.select(whole, b.add(start, b.mul(n, str(KEYS))),
                           b.add(middle, b.mul(b.sub(n, long), str(fine))))
            most = b.select(whole, str(KEYS), str(fine))
            yield key, b.minimum(b.sub(b.select(whole, middle, end), key), most)


def forward_source(dtype: DType, target: Target, seen: Seen) -> KernelSource:
    """The kernel of `attention`; its index space is batch x heads x chunks of queries."""
    f = _Writer(FORWARD_WORDS, dtype, target, seen)
    b, w = f.b, f.word
    chunks = b.udiv(b.add(w["t"], str(CHUNK - 1)), str(CHUNK))
    qt, ot = f.carve(w["size"], True), f.carve(w["value_size"], True)
    st, top, total = f.carve(str(KEYS)), f.carve("1"), f.carve("1")
    with b.loop("%lo", "%hi") as item:
        head_item = b.udiv(item, chunks)
        first = b.mul(b.urem(item, chunks), str(CHUNK))
        valid = b.minimum(b.sub(w["t"], first), str(CHUNK))
        batch, head = b.udiv(head_item, w["heads"]), b.urem(head_item, w["heads"])
        group = b.udiv(head, w["shared"])
        q, k, v = (f.matrix(n, batch, h) for n, h in (("q", head), ("k", group), ("v", group)))
        f.turn_in(qt, f.at(q, b.mul(first, w["q_t"])), w["q_t"], w["size"], valid, f.exponents)
        f.fill(ot, w["value_size"], 0.0)
        f.fill(top, "1", float("-inf"))
        f.fill(total, "1", 0.0)
        f.enter(batch, first, valid)
        start, end = f.key_range(first, b.add(first, valid))
        with f.key_blocks(first, start, end) as (key, keys):
            skip, stop = f.seeing(key, keys, first)
            seeing = b.sub(stop, skip)
            f.product(keys, seeing, w["size"], (f.at(k, b.mul(key, w["k_t"])), w["k_t"], "1"),
                      (f.at(qt, skip), str(CHUNK)), (f.at(st, skip), str(CHUNK)), False)
            _online_softmax(f, st, key, keys, (first, skip, stop), top, total, ot)
            f.product(w["value_size"], seeing, keys,
                      (f.at(v, b.mul(key, w["v_t"])), "1", w["v_t"]), (f.at(st, skip), str(CHUNK)),
                      (f.at(ot, skip), str(CHUNK)), True)
        _finish_forward(f, (batch, head), first, valid, top, total, ot)
    return f.module()


def _each_seeing(f: _Writer, skip: str, stop: str) -> Iterator[int]:
    """Write what follows for each vector of lanes, to be run where it is within [skip, stop)."""
    for i in range(f.count):
        place = str(i * f.lanes)
        inside = f.b.compare("sle", skip, place)
        if stop != str(CHUNK):
            inside = f.b.value(f"and i1 {inside}, {f.b.compare('slt', place, stop)}")
        with f.b.when(inside):
            yield i


def _online_softmax(f: _Writer, st: str, key: str, keys: str, lanes: tuple[str, str, str],
                    top: str, total: str, ot: str) -> None:
    """st becomes 2^(st - top), top being about the maximum so far; the sums and O^T so far follow.
    `lanes`: the chunk's first query, and the lanes that see something here, from and to."""
    b, e = f.b, f.e
    first, skip, stop = lanes
    for i in _each_seeing(f, skip, stop):
        place = str(i * f.lanes)
        f.hide(st, key, keys, first, i)
        _raise_top(f, st, keys, place, (top, total, ot))
        now = f.load(top, place)
        safe = e.select(e.eq(now, e.const(_MINUS)), e.const(0), now)
        sums = b.alloca(e.t)
        b.store(e.t, f.load(total, place), sums)
        with b.loop("0", keys) as j:
            row = f.at(st, b.mul(j, str(CHUNK)))
            p = e.exp2(e.sub(f.load(row, place), safe))
            f.store(p, row, place)
            b.store(e.t, e.add(b.load(e.t, sums), p), sums)
        f.store(b.load(e.t, sums), total, place)


def _raise_top(f: _Writer, st: str, keys: str, place: str, sofar: tuple[str, str, str]) -> None:
    """Where a score of a block is far above `top` it becomes the new one, and what was summed with
    the old one is scaled to match. Any top serves that keeps powers of two in range."""
    b, e = f.b, f.e
    top, total, ot = sofar
    before = f.load(top, place)
    peak = b.alloca(e.t)
    b.store(e.t, before, peak)
    with b.loop("0", keys) as j:
        s = f.load(f.at(st, b.mul(j, str(CHUNK))), place)
        b.store(e.t, e.larger(s, b.load(e.t, peak)), peak)
    rises = e.gt(b.load(e.t, peak), e.add(before, e.const(RISE)))
    with b.when(e.any(rises)):
        now = e.select(rises, b.load(e.t, peak), before)
        # A lane that has seen nothing yet stays at -inf, and its sum and results at 0.
        shrink = e.exp2(e.sub(before, e.select(rises, now, e.const(0))))
        shrink = e.select(rises, shrink, e.const(1))
        f.store(now, top, place)
        f.store(e.mul(f.load(total, place), shrink), total, place)
        with b.loop("0", f.word["value_size"]) as d:
            row = f.at(ot, b.mul(d, str(CHUNK)))
            f.store(e.mul(f.load(row, place), shrink), row, place)


def _finish_forward(f: _Writer, item: tuple[str, str], first: str, valid: str, top: str, total: str,
                    ot: str) -> None:
    """Divide by the sums, write the rows and (if wanted) their log-sum-exps."""
    b, e, w = f.b, f.e, f.word
    batch, head = item
    row = b.add(b.mul(b.add(b.mul(batch, w["heads"]), head), w["t"]), first)
    for i in range(f.count):
        place = str(i * f.lanes)
        sums = f.load(total, place)
        empty = e.eq(sums, e.const(0))
        sums = e.select(empty, e.const(1), sums)
        f.store(e.reciprocal(sums), total, place)
        lse = e.fma(f.load(top, place), e.const(_LN_2), e.log(sums))
        lse = e.select(empty, e.const(_MINUS), lse)
        with b.when(b.value(f"icmp ne ptr {w['lse']}, null")):
            mask = f.lane_mask(place, valid)
            e.store_masked(lse, f.at(w["lse"], b.add(row, place)), mask)
    out = f.at(f.matrix("out", batch, head), b.mul(first, w["out_t"]))
    f.turn_out(out, w["out_t"], ot, w["value_size"], valid, total)


def backward_source(dtype: DType, target: Target, seen: Seen) -> KernelSource:
    """The kernel of `attention_grad`; its index space is batch x key heads."""
    f = _Writer(BACKWARD_WORDS, dtype, target, seen)
    b, w = f.b, f.word
    qt, gt = f.carve(w["size"], True), f.carve(w["value_size"], True)
    dqt = f.carve(w["size"], True)
    pt, dst = f.carve(str(KEYS)), f.carve(str(KEYS))
    lse, delta = f.carve("1"), f.carve("1")
    groups = b.udiv(w["heads"], w["shared"])
    with b.loop("%lo", "%hi") as item:
        batch, group = b.udiv(item, groups), b.urem(item, groups)
        k, v = f.matrix("k", batch, group), f.matrix("v", batch, group)
        dk, dv = f.matrix("dk", batch, group), f.matrix("dv", batch, group)
        with b.loop("0", w["s"]) as j:
            _zero(f, f.at(dk, b.mul(j, w["dk_t"])), w["size"])
            _zero(f, f.at(dv, b.mul(j, w["dv_t"])), w["value_size"])
        with b.loop("0", w["shared"]) as member, b.loop("0", w["t"], CHUNK) as first:
            head = b.add(b.mul(group, w["shared"]), member)
            valid = b.minimum(b.sub(w["t"], first), str(CHUNK))
            row = b.add(b.mul(b.add(b.mul(batch, w["heads"]), head), w["t"]), first)
            q = f.at(f.matrix("q", batch, head), b.mul(first, w["q_t"]))
            g = f.at(f.matrix("g", batch, head), b.mul(first, w["g_t"]))
            f.turn_in(qt, q, w["q_t"], w["size"], valid, f.exponents)
            f.turn_in(gt, g, w["g_t"], w["value_size"], valid, f.scale)
            _statistics(f, row, valid, lse, delta)
            f.fill(dqt, w["size"], 0.0)
            f.enter(batch, first, valid)
            start, end = f.key_range(first, b.add(first, valid))
            with f.key_blocks(first, start, end) as (key, keys):
                kk, vv = f.at(k, b.mul(key, w["k_t"])), f.at(v, b.mul(key, w["v_t"]))
                skip, stop = f.seeing(key, keys, first)
                seeing, left = b.sub(stop, skip), b.sub(b.minimum(valid, stop), skip)
                scores, slopes = f.at(pt, skip), f.at(dst, skip)
                f.product(keys, seeing, w["size"], (kk, w["k_t"], "1"),
                          (f.at(qt, skip), str(CHUNK)), (scores, str(CHUNK)), False)
                f.product(keys, seeing, w["value_size"], (vv, w["v_t"], "1"),
                          (f.at(gt, skip), str(CHUNK)), (slopes, str(CHUNK)), False)
                _weights(f, pt, dst, key, keys, (first, skip, stop), lse, delta)
                f.product(keys, w["value_size"], left, (scores, str(CHUNK), "1"),
                          (f.at(g, b.mul(skip, w["g_t"])), w["g_t"]),
                          (f.at(dv, b.mul(key, w["dv_t"])), w["dv_t"]), True)
                f.product(keys, w["size"], left, (slopes, str(CHUNK), "1"),
                          (f.at(q, b.mul(skip, w["q_t"])), w["q_t"]),
                          (f.at(dk, b.mul(key, w["dk_t"])), w["dk_t"]), True)
                f.product(w["size"], seeing, keys, (kk, "1", w["k_t"]), (slopes, str(CHUNK)),
                          (f.at(dqt, skip), str(CHUNK)), True)
            dq = f.at(f.matrix("dq", batch, head), b.mul(first, w["dq_t"]))
            f.turn_out(dq, w["dq_t"], dqt, w["size"], valid)
    return f.module()


def _zero(f: _Writer, start: str, count: str) -> None:
    with f.b.loop("0", count, f.lanes) as i:
        f.e.store_masked(f.e.const(0), f.at(start, i), f.lane_mask(i, count))


def _statistics(f: _Writer, row: str, valid: str, lse: str, delta: str) -> None:
    """The chunk's log-sum-exps (a row that sees nothing counts as 0) as powers of two, and deltas
    times the scale; 0 beyond."""
    e = f.e
    for i in range(f.count):
        place = str(i * f.lanes)
        mask = f.lane_mask(place, valid)
        for name, target in (("lse", lse), ("delta", delta)):
            value = e.load_masked(f.at(f.word[name], f.b.add(row, place)), mask)
            if name == "lse":
                value = e.select(e.isinf(value), e.const(0), value)
            factor = e.const(_LOG2_E) if name == "lse" else f.scale
            f.store(e.mul(value, factor), target, place)


def _weights(f: _Writer, pt: str, dst: str, key: str, keys: str, lanes: tuple[str, str, str],
             lse: str, delta: str) -> None:
    """pt: scores to weights; dst: their cotangents to those of the scores, both scaled."""
    b, e = f.b, f.e
    first, skip, stop = lanes
    for i in _each_seeing(f, skip, stop):
        place = str(i * f.lanes)
        f.hide(pt, key, keys, first, i)
        shift, subtract = f.load(lse, place), f.load(delta, place)
        with b.loop("0", keys) as j:
            p_row, d_row = (f.at(x, b.mul(j, str(CHUNK))) for x in (pt, dst))
            p = e.exp2(e.sub(f.load(p_row, place), shift))
            f.store(p, p_row, place)
            f.store(e.mul(p, e.sub(f.load(d_row, place), subtract)), d_row, place)
