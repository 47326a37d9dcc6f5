"""Attention of a few new positions to a cache of keys and values. Layer 2.

The one idea: how many positions are filled is a number in memory, so one kernel serves every
position and reads only what has been written. The query heads that share a key head go through its
keys together: scores into the worker's memory, their exponentials, then the sum of the values.
Adding up the lanes of each score costs more than multiplying; a cache is read from memory, and
hides it.

Source: Shazeer 2019 (incremental decoding); Ainslie et al. 2023 (grouped heads).
"""

from __future__ import annotations

from functools import cache
from math import prod

from gossamer.compile.attention import rows_of
from gossamer.compile.builder import FunctionBuilder
from gossamer.compile.calls import BufferRef, Call, FloatWord, KernelSource, Scratch, Word
from gossamer.compile.emitter import Emitter
from gossamer.compile.gemm import Target
from gossamer.compile.schedule import Cluster
from gossamer.core.dtype import float32, int64
from gossamer.ir.node import Node

__all__ = ["decoding_calls", "has_kernel"]

_WORDS = ("q", "k", "v", "start", "out", "lse", "scale", "window", "keys", "t", "heads", "steps",
          "q_b", "q_h", "q_t", "k_b", "k_h", "k_t", "v_b", "v_h", "v_t", "scratch", "area")
_POINTERS = frozenset(("q", "k", "v", "start", "out", "lse", "scratch"))
_LONGEST = 32  # new positions, beyond which products of whole tiles are faster
_HELD = 16  # vectors of queries, or of sums, that are held in registers
_WIDEST = 256  # head size up to which one row of them is
_AHEAD = 8  # rows of keys that are on their way while one is multiplied
_LINE = 16  # floats in a line of the cache
_SERIAL = 400_000  # multiply-adds over the whole cache below which one worker does it all


def has_kernel(node: Node) -> bool:
    """Whether a composite is attention to a cache, of a form that the kernel computes."""
    at = node.attrs
    if node.op.name != "attention" or not at["start"] or not at["causal"] or at.get("begins"):
        return False
    q, k, v = node.inputs[:3]
    sizes = q.shape[-1], v.shape[-1]
    return (not at["mask"] and q.dtype is float32 and bool(q.size and v.size)
            and q.shape[-2] <= _LONGEST and max(sizes) <= _WIDEST and not any(n % 4 for n in sizes)
            and node.inputs[3].ndim <= 1)


class _Decoding:
    """Writes the kernel: an item is one position of one key head of one sequence."""

    def __init__(self, shared: int, size: int, value_size: int, lanes: int) -> None:
        self.b = b = FunctionBuilder(
            "void @kernel(ptr noalias %args, i64 %lo, i64 %hi, i64 %tid)")
        self.shared, self.size, self.value_size, self.lanes = shared, size, value_size, lanes
        self.w: dict[str, str] = {}
        for i, name in enumerate(_WORDS):
            kind = "ptr" if name in _POINTERS else "double" if name == "scale" else "i64"
            self.w[name] = b.load(kind, b.gep("%args", str(8 * i)), 8)
        self.e, self.one = Emitter(b, float32, lanes), Emitter(b, float32, 0)
        self.scale = b.value(f"fptrunc double {self.w['scale']} to float")
        self.scores = b.gep(self.w["scratch"], b.mul("%tid", self.w["area"]))

    def at(self, pointer: str, index: str) -> str:
        return self.b.gep(pointer, index, "float")

    def write(self) -> None:
        b, w = self.b, self.w
        with b.loop("%lo", "%hi") as item:
            t, rest = b.urem(item, w["t"]), b.udiv(item, w["t"])
            head, batch = b.urem(rest, w["heads"]), b.udiv(rest, w["heads"])
            start = b.load("i64", b.gep(w["start"], b.mul(batch, w["steps"]), "i64"), 8)
            position = b.add(start, t)
            windowed = b.compare("ne", w["window"], "0")
            far = b.sub(b.add(position, "1"), w["window"])
            behind = b.value(f"and i1 {windowed}, {b.compare('sgt', far, '0')}")
            first = b.select(behind, far, "0")
            end = b.minimum(b.add(position, "1"), w["keys"])
            end = b.select(b.compare("sgt", end, first), end, first)  # a start may lie outside
            k, v = (self.at(w[x], b.add(b.mul(batch, w[f"{x}_b"]), b.mul(head, w[f"{x}_h"])))
                    for x in ("k", "v"))
            top = b.mul(head, str(self.shared))  # the first query head of the group
            q = self.at(w["q"], b.add(b.add(b.mul(batch, w["q_b"]), b.mul(t, w["q_t"])),
                                      b.mul(top, w["q_h"])))
            row = b.add(b.mul(b.add(b.mul(b.mul(batch, w["heads"]), str(self.shared)), top),
                              w["t"]), t)
            held = max(1, _HELD * self.lanes // max(self.size, self.value_size))
            for r in range(0, self.shared, held):
                count = min(held, self.shared - r)
                self.rows(self.at(q, b.mul(str(r), w["q_h"])), k, v, first, end, count,
                          b.add(row, b.mul(str(r), w["t"])))

    def rows(self, q: str, k: str, v: str, first: str, end: str, count: int, row: str) -> None:
        """`count` query heads over keys [first, end); `row` is the first one's row of the result.
        Rows of a position's heads are T apart."""
        b, w, one = self.b, self.w, self.one
        tops = [b.alloca("float") for _ in range(count)]
        for top in tops:
            b.store("float", one.const(float("-inf")), top, 64)
        self.dots(q, k, v, first, end, tops)
        totals = [self.exponentials(r, first, end, top) for r, top in enumerate(tops)]
        sums = self.values(v, first, end, count)
        for r, (total, parts) in enumerate(zip(totals, sums, strict=True)):
            none = one.eq(total, one.const(0))
            factor = one.select(none, one.const(0), one.div(one.const(1), total))
            place = b.add(row, b.mul(str(r), w["t"]))
            out = self.at(w["out"], b.mul(place, str(self.value_size)))
            for i, part in enumerate(parts):
                self.e.store(self.e.mul(part, self.e.splat(factor)),
                             self.at(out, str(i * self.lanes)))
            with b.when(b.value(f"icmp ne ptr {w['lse']}, null")):
                lse = one.add(one.log(total), b.load("float", tops[r], 64))
                one.store(one.select(none, one.const(float("-inf")), lse), self.at(w["lse"], place))

    def score(self, r: int, place: str) -> str:
        """Address of the score of row r for a key."""
        return self.at(self.scores, self.b.add(self.b.mul(str(r), self.w["keys"]), place))

    def fetch(self, row: str, size: int) -> None:
        """Ask for a row that is read soon: rows of a head lie too far apart for the prefetcher."""
        for i in range(0, size, _LINE):
            self.b.intrinsic("llvm.prefetch.p0", "void", [
                ("ptr", self.at(row, str(i))), ("i32", "0"), ("i32", "3"), ("i32", "1")])

    def dots(self, q: str, k: str, v: str, first: str, end: str, tops: list[str]) -> None:
        b, e, one, steps = self.b, self.e, self.one, range(0, self.size, self.lanes)
        queries = [[e.load(self.at(self.at(q, b.mul(str(r), self.w["q_h"])), str(i)))
                    for i in steps] for r in range(len(tops))]
        with b.loop(first, end) as j:
            row = self.at(k, b.mul(j, self.w["k_t"]))
            self.fetch(self.at(row, b.mul(str(_AHEAD), self.w["k_t"])), self.size)
            self.fetch(self.at(v, b.mul(j, self.w["v_t"])), self.value_size)
            keys = [e.load(self.at(row, str(i))) for i in steps]
            for r, top in enumerate(tops):
                total = e.mul(queries[r][0], keys[0])
                for x, y in zip(queries[r][1:], keys[1:], strict=True):
                    total = e.fma(x, y, total)
                score = one.mul(e.reduce("add", total), self.scale)
                one.store(score, self.score(r, j))
                one.store(one.maximum(b.load("float", top, 64), score), top, align=64)

    def exponentials(self, r: int, first: str, end: str, top: str) -> str:
        """Scores become exp(score - top); returns their sum."""
        b, e, one, lanes = self.b, self.e, self.one, self.lanes
        sums, rest = b.alloca(e.t), b.alloca("float")
        b.store(e.t, e.const(0), sums, 64)
        b.store("float", one.const(0), rest, 64)
        most = b.load("float", top, 64)
        whole = b.add(first, b.value(f"and i64 {b.sub(end, first)}, {-lanes}"))
        for kind, start, stop, cell in ((e, first, whole, sums), (one, whole, end, rest)):
            with b.loop(start, stop, max(kind.width, 1)) as j:
                place = self.score(r, j)
                p = kind.exp(kind.sub(kind.load(place), kind.splat(most)))
                kind.store(p, place)
                kind.store(kind.add(b.load(kind.t, cell, 64), p), cell, align=64)
        return one.add(e.reduce("add", b.load(e.t, sums, 64)), b.load("float", rest, 64))

    def values(self, v: str, first: str, end: str, count: int) -> list[list[str]]:
        """The sums of the values, weighted by each row's exponentials."""
        b, e, steps = self.b, self.e, range(0, self.value_size, self.lanes)
        cells = [[b.alloca(e.t) for _ in steps] for _ in range(count)]
        for cell in (c for row in cells for c in row):
            b.store(e.t, e.const(0), cell, 64)
        with b.loop(first, end) as j:
            row = self.at(v, b.mul(j, self.w["v_t"]))
            values = [e.load(self.at(row, str(i))) for i in steps]
            for r in range(count):
                p = e.splat(self.one.load(self.score(r, j)))
                for cell, value in zip(cells[r], values, strict=True):
                    b.store(e.t, e.fma(p, value, b.load(e.t, cell, 64)), cell, 64)
        return [[b.load(e.t, c, 64) for c in row] for row in cells]


@cache
def _source(shared: int, size: int, value_size: int, lanes: int) -> KernelSource:
    made = _Decoding(shared, size, value_size, lanes)
    made.write()
    text = made.b.finish()
    text += "\n".join(made.b.declares[k] for k in sorted(made.b.declares)) + "\n"
    name = f"decoding_{shared}_{size}_{value_size}_{lanes}"
    return KernelSource(name, text.replace("@kernel", "@" + name))


def decoding_calls(cluster: Cluster, buffers: dict[int, int], target: Target,
                   specialize: bool) -> list[Call]:
    """The call that computes attention to a cache, and its log-sum-exps if they are wanted."""
    node = cluster.members[0]
    q, k, v, start = node.inputs
    shared, t, keys = q.shape[-3] // k.shape[-3], q.shape[-2], k.shape[-2]
    assert start.dtype is int64
    base = start
    while base.op.name == "reshape":
        base = base.inputs[0]
    size, value_size = q.shape[-1], v.shape[-1]
    area = -(-shared * keys * 4 // 64) * 64
    words: dict[str, Word] = {
        "start": BufferRef(buffers[id(base)]), "scale": FloatWord(float(node.attrs["scale"])),
        "window": node.attrs["window"], "keys": keys, "t": t, "heads": k.shape[-3],
        "steps": int(start.ndim == 1), "scratch": Scratch(area, per_thread=True), "area": area}
    for name, x in (("q", q), ("k", k), ("v", v)):
        rows = rows_of(x)
        assert rows is not None, "the graph was prepared before scheduling"
        words |= {name: BufferRef(buffers[id(rows.base)], rows.offset * 4),
                  f"{name}_b": rows.batch, f"{name}_h": rows.head, f"{name}_t": rows.row}
    results = {p.attrs["index"]: BufferRef(buffers[id(p)]) for p in cluster.outputs}
    words["out"] = results.get(0, Scratch(4 * prod(node.outs[0][0]) if node.outs else 0))
    words["lse"] = results.get(1, 0)
    written = tuple(r.index for r in results.values())
    read = {w.index for w in words.values() if isinstance(w, BufferRef)} - set(written)
    n = prod(q.shape[:-3]) * k.shape[-3] * t
    lanes = min(target.vector_bytes // 4, size & -size, value_size & -value_size)
    work = n * shared * keys * (size + value_size)
    grain = 0 if target.threads == 1 or work < _SERIAL else 1
    return [Call(_source(shared, size, value_size, lanes), tuple(words[x] for x in _WORDS), n,
                 grain, f"attention to {keys} positions", tuple(sorted(read)), written)]
