"""Many conversations decoded together: continuous batching over one key/value cache. Layer 7.

The one idea: a slot is a row of the cache with a list of tokens still to be read. A round feeds one
piece of every list that is longer than one token (a prompt, a tool's answer), then one token to all
other slots at once. New requests join and finished ones leave between rounds, and every round is
one of a few compiled programs. A row keeps what it has read: a request whose beginning is in a free
slot is read from where they part, and one whose beginning is in another row, even in a prompt that
is being read just now, gets a copy of it.

Source: Yu et al. 2022, "Orca"; Zheng et al. 2024, "SGLang" (prefixes are shared).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import gossamer as gs
from gossamer.chat.sampling import ALTERNATIVES, KNOBS, Sampling, choose
from gossamer.models.gpt import GPT, SMEAR
from gossamer.nn import functional as F

__all__ = ["Engine", "PromptTooLong", "Reply", "Request", "Sampling", "Token"]

CHUNK = 128  # most prompt tokens fed in one round, so that others need not wait for a long prompt
# A prompt is read in pieces of CHUNK, the rest in pieces of STEP, the last of them padded: two
# shapes, so few programs, and little padding.
STEP = 32
WORTH = STEP  # positions that are worth a place on the shelf
_AHEAD = [0] * SMEAR  # stands for tokens before the first
LIKELIEST, DRAWN, RANKED = range(3)  # programs: greedy; temperature too; filters, alternatives too


class PromptTooLong(ValueError):
    """A prompt fills the context."""


class Token(NamedTuple):
    """One token of a reply.

    Attributes:
        id: the token.
        logprob: log of its probability before temperature and filters; 0 if it was forced.
        forced: it was given (a tool's answer), not chosen.
        alternatives: (id, logprob) of the likeliest, if they were asked for.
    """

    id: int
    logprob: float
    forced: bool = False
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass
class Request:
    """What to continue, and how.

    Args:
        ids: the prompt; not empty, and shorter than the context.
        max_tokens: most tokens of the reply.
        sampling: how tokens are chosen.
        stop: tokens that end the reply; they are not part of it.
        follow: called with each chosen token; what it returns is forced after it.
        alternatives: whether to list the likeliest tokens beside each.
    """

    ids: Sequence[int]
    max_tokens: int = 1 << 30
    sampling: Sampling = Sampling()
    stop: tuple[int, ...] = ()
    follow: Callable[[int], Sequence[int]] | None = None
    alternatives: bool = False


class Reply:
    """The tokens of one request as they come.

    Attributes:
        tokens: so far.
        finish: None while it goes on; then "stop", "length", "cancelled" or "failed".
        on_token: called with each token; on_end: called once at the end.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens: list[Token] = []
        self.finish: str | None = None
        self.cancelled = False
        self.on_token: Callable[[Token], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self._random = random.Random(request.sampling.seed)

    def cancel(self) -> None:
        """Give the slot back at the next round. Any thread may call it."""
        self.cancelled = True

    def _add(self, token: Token) -> None:
        self.tokens.append(token)
        if self.on_token is not None:
            self.on_token(token)

    def _end(self, reason: str) -> None:
        self.finish = reason
        if self.on_end is not None:
            self.on_end()

    def _knobs(self) -> list[float]:
        """Of the next token; each choice takes one random number."""
        return self.request.sampling.knobs(self._random.random())

    @property
    def _kind(self) -> int:
        """The least program that serves it."""
        if self.request.alternatives or self.request.sampling.filters:
            return RANKED
        return DRAWN if self.request.sampling.temperature else LIKELIEST


@dataclass
class _Row:
    """One row of the cache.

    Attributes:
        ids: the tokens whose keys and values it holds.
        base: position of the first one that its layers with a window hold.
        used: number of the round in which it was last used.
    """

    number: int
    ids: list[int] = field(default_factory=list)
    base: int = 0
    used: int = 0


@dataclass
class _Slot(_Row):
    """A row that decodes.

    Attributes:
        todo: tokens to feed next.
        reply: what it works for, if anything.
        source: the slot whose prompt begins like its own and is still being read, how many tokens
            of it to wait for, and the reply that slot worked for.
    """

    todo: list[int] = field(default_factory=list)
    reply: Reply | None = None
    source: tuple[_Slot, int, Reply | None] | None = None


class Engine:
    """Decodes requests together. One thread at a time may call it; `Reply.cancel` is free to all.

    Args:
        model: a trained GPT.
        rows: most requests decoded at once; more wait their turn.
        kept: conversations remembered besides, the least recently used leave first.

    >>> from gossamer.models.gpt import GPTConfig
    >>> engine = Engine(GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16)), rows=2)
    >>> len([t.id for t in engine.generate(Request([1, 2, 3], max_tokens=4))])
    4
    """

    def __init__(self, model: GPT, rows: int = 8, kept: int = 0) -> None:
        self.model, self.rows, self.kept = model, rows, kept
        self.context = model.config.sequence_len
        self.cache = model.cache(rows + kept, CHUNK)
        self.waiting: deque[Reply] = deque()
        self.rounds = self.copied = 0
        self._advance = gs.compile(self._compute)
        self._copy, self._slide = gs.compile(self.cache.copy), gs.compile(self.cache.slide)
        self.reset()

    # requests ---------------------------------------------------------------------------------
    def check(self, request: Request) -> None:
        """Refuse what cannot be decoded. Any thread may call it.

        Raises:
            PromptTooLong: it fills the context.
            ValueError: it is empty, or has an unknown token.
        """
        count, vocab = len(request.ids), self.model.config.vocab_size
        if not 0 < count < self.context:
            raise (PromptTooLong if count else ValueError)(
                f"Engine: the prompt has {count} tokens; it must have between 1 and "
                f"{self.context - 1} to leave room for a reply. Shorten it."
            )
        for token in request.ids:
            if not 0 <= token < vocab:
                shown = str(token) if abs(token) < 1 << 63 else "of more than 64 bits"
                raise ValueError(
                    f"Engine: the prompt has token {shown}; the model knows 0 to {vocab - 1}. "
                    "Encode it with the model's own tokenizer."
                )

    def submit(self, request: Request) -> Reply:
        """Queue a request that `check` lets pass."""
        self.check(request)
        reply = Reply(request)
        self.waiting.append(reply)
        return reply

    def generate(self, request: Request) -> Iterator[Token]:
        """Yield the tokens of one request; others that wait are decoded beside it."""
        reply, shown = self.submit(request), 0
        try:
            while reply.finish is None or shown < len(reply.tokens):
                if shown < len(reply.tokens):
                    shown += 1
                    yield reply.tokens[shown - 1]
                else:
                    self.step()
        finally:  # also when the caller stops early
            reply.cancel()

    @property
    def busy(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.waiting) or any(slot.reply is not None for slot in self.slots)

    def step(self) -> None:
        """One round: admit, feed one piece of each prompt, decode one token of everything else."""
        self.rounds += 1
        self._end_cancelled()
        for slot in self.slots:
            self._fetch(slot)
        self._admit()
        ready = []
        for slot in self.slots:
            if slot.reply is None or slot.source is not None:
                continue
            if not self._has_piece(slot):
                ready.append(slot)
            enough = len(slot.ids) + CHUNK
            while self._has_piece(slot) and len(slot.ids) < enough:
                if self._prefill(slot):
                    break
        if ready:
            self._decode(ready)

    def _has_piece(self, slot: _Slot) -> bool:
        """Whether a slot has more than a token to read, and room for a padded piece."""
        return (slot.reply is not None and len(slot.todo) > 1
                and self.context - len(slot.ids) >= STEP)

    def warm_up(self) -> None:
        """Compile every program now, so that no request waits for it."""
        for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, top_k=1)):
            for length in (1, STEP, min(CHUNK, self.context - 1)):
                self.reset()  # or it would know the prompt
                for _ in self.generate(Request([0] * length, max_tokens=1, sampling=sampling)):
                    pass
        self._move(self.slots[0], self.slots[-1])
        if self.cache.window:
            self._slide(gs.tensor([0]), gs.tensor([0]))
        self.reset()

    def reset(self) -> None:
        """Forget everything: requests and what the cache holds."""
        self.waiting.clear()
        self.slots = [_Slot(row) for row in range(self.rows)]
        self.shelf = [_Row(self.rows + row) for row in range(self.kept)]

    # slots ------------------------------------------------------------------------------------
    def _end_cancelled(self) -> None:
        """Who has gone keeps no slot, and no place among those that wait."""
        for slot in self.slots:
            if slot.reply is not None and slot.reply.cancelled:
                self._finish(slot, "cancelled")
        for _ in range(len(self.waiting)):
            reply = self.waiting.popleft()
            if reply.cancelled:
                reply._end("cancelled")
            else:
                self.waiting.append(reply)

    def _admit(self) -> None:
        while self.waiting:
            free = [slot for slot in self.slots if slot.reply is None]
            if not free:
                return
            reply = self.waiting.popleft()
            slot = self._seat(reply, free)
            if reply.request.max_tokens <= 0:
                self._finish(slot, "length")

    def _seat(self, reply: Reply, free: list[_Slot]) -> _Slot:
        """Give a request the free slot from which it has least to read."""
        ids = list(reply.request.ids)
        # The longest beginning in common; among equals the one not used for longest.
        slot = max(free, key=lambda s: (self._known(s, ids), -s.used))
        keep = self._known(slot, ids)
        busy = [s for s in self.slots if s.reply is not None]
        promised = [self._known(s, ids, s.todo) for s in busy]
        rows, known = [*busy, *self.shelf], [*promised, *(self._known(r, ids) for r in self.shelf)]
        best = max(range(len(rows)), key=known.__getitem__, default=-1)
        other = None
        # A piece costs as much as twenty copies of a row (1.8 and 0.09 ms, 4 layers of 128).
        if best >= 0 and _pieces(len(ids) - known[best]) < _pieces(len(ids) - keep):
            other = rows[best]
        if other is not None:
            slot, keep = min(free, key=lambda s: s.used), 0
        self._shelve(slot, keep, other)
        slot.reply, slot.ids, slot.todo = reply, ids[:keep], ids[keep:]
        slot.base = slot.base if keep else 0
        if isinstance(other, _Slot):
            slot.source = other, known[best], other.reply
            self._fetch(slot)
        elif other is not None:
            self._take_over(slot, other)
        return slot

    def _known(self, row: _Row, ids: list[int], ahead: Sequence[int] = ()) -> int:
        """How many of a prompt's tokens need not be read by who has a row (and reads `ahead`)."""
        count = min(_common([*row.ids, *ahead] if ahead else row.ids, ids), len(ids) - 1)
        return count if not row.base or count >= row.base + self.cache.window else 0

    def _fetch(self, slot: _Slot) -> None:
        """Copy the beginning of a slot's prompt from its source, if that has read it by now."""
        if slot.source is None:
            return
        row, count, reply = slot.source
        if len(row.ids) >= count or row.reply is not reply:
            slot.source = None
            self._take_over(slot, row)

    def _take_over(self, slot: _Slot, row: _Row) -> None:
        """Copy what a row knows of a slot's prompt."""
        count = self._known(row, slot.todo)
        if count:
            self._move(row, slot)
            row.used, slot.base = self.rounds, row.base
            slot.ids, slot.todo = slot.todo[:count], slot.todo[count:]
            self.copied += count

    def _shelve(self, slot: _Slot, keep: int, needed: _Row | None) -> None:
        """Before a slot is used anew from position `keep` on, save what it held, if no other row
        has it; what is `needed` just now stays on the shelf."""
        places = [row for row in self.shelf if row is not needed]
        if len(slot.ids) - keep < WORTH or not places:
            return
        others = [row for row in (*self.slots, *self.shelf) if row is not slot]
        if any(_common(row.ids, slot.ids) == len(slot.ids) for row in others):
            return
        # What is a beginning of it is not needed any more; else the one not used for longest goes.
        place = min(places, key=lambda r: (_common(r.ids, slot.ids) < len(r.ids), r.used))
        self._move(slot, place)
        place.base, place.used = slot.base, slot.used
        place.ids = slot.ids

    def _move(self, source: _Row, target: _Row) -> None:
        """Copy a row's memory; the target has no ids until the caller sets them."""
        # Ctrl-C may come between any two lines, and the engine goes on to be used: so a row whose
        # memory is rewritten knows nothing, and its ids are set last, after its base.
        target.ids = []
        with gs.no_grad():
            self._copy(gs.tensor([source.number]), gs.tensor([target.number]))

    def _finish(self, slot: _Slot, reason: str) -> None:
        reply, slot.reply, slot.todo, slot.source = slot.reply, None, [], None
        slot.used = self.rounds
        if reply is not None:
            reply._end(reason)

    def _prefill(self, slot: _Slot) -> bool:
        """Feed one piece of a prompt to one row; whether it was the last, and chose a token."""
        reply = slot.reply
        assert reply is not None
        long = len(slot.todo) >= CHUNK and self.context - len(slot.ids) >= CHUNK
        padded = CHUNK if long else STEP
        piece = slot.todo[:padded]
        last = len(piece) == len(slot.todo)
        kind = reply._kind if last else LIKELIEST
        knobs = [reply._knobs()] if kind != LIKELIEST else None
        found = self._run([piece + [0] * (padded - len(piece))], [slot], kind, knobs,
                          len(piece) - 1)
        slot.ids += piece
        del slot.todo[:len(piece)]
        if last:
            self._take(slot, found[0])
        return last

    def _decode(self, slots: list[_Slot]) -> None:
        """Feed one token to each of `slots`, all rows of the cache in one call."""
        ids = [[0] for _ in self.slots]
        choosing = []  # those for which a token is chosen now
        for slot in slots:
            ids[slot.number][0] = slot.todo[0]
            if len(slot.todo) == 1 and slot.reply is not None:
                choosing.append((slot.number, slot.reply))
        kind = max((reply._kind for _, reply in choosing), default=LIKELIEST)
        knobs = None
        if kind != LIKELIEST:
            knobs = [[0.0] * KNOBS] * self.rows
            for number, reply in choosing:
                if reply._kind != LIKELIEST:
                    knobs[number] = reply._knobs()
        found = self._run(ids, self.slots, kind, knobs)
        for slot in slots:
            slot.ids.append(slot.todo.pop(0))
            if not slot.todo:
                self._take(slot, found[slot.number])

    def _take(self, slot: _Slot, token: Token) -> None:
        """A token was chosen for a slot: hand it out, and see how it goes on."""
        reply = slot.reply
        assert reply is not None
        request = reply.request
        if token.id in request.stop:
            self._finish(slot, "stop")
            return
        if token.alternatives and not request.alternatives:  # a neighbour asked for them
            token = token._replace(alternatives=())
        reply._add(token)
        forced = list(request.follow(token.id)) if request.follow is not None else []
        room = min(self.context - len(slot.ids), request.max_tokens - len(reply.tokens) + 1)
        for i in forced[:max(room - 1, 0)]:
            reply._add(Token(i, 0.0, forced=True))
        slot.todo = [token.id, *forced]
        if len(slot.todo) >= room:
            self._finish(slot, "length")

    # the model --------------------------------------------------------------------------------
    def _run(self, ids: list[list[int]], slots: Sequence[_Slot], kind: int,
             knobs: list[list[float]] | None, last: int | None = None) -> list[Token]:
        """Feed ids, (B, T), to slots and choose a token for each after position `last` (None: the
        slots are all of them, and T is 1)."""
        if self.cache.window:
            for slot in slots:
                self._make_room(slot, len(ids[0]))
        # An idle row writes where nothing is kept: behind what it holds.
        given = [[min(len(slot.ids), self.context - 1), slot.base, slot.number, last or 0,
                  *_AHEAD[len(slot.ids):], *slot.ids[-SMEAR:], *fed]
                 for slot, fed in zip(slots, ids, strict=True)]
        with gs.no_grad():
            made = self._advance(gs.tensor(given), None if knobs is None else gs.tensor(knobs),
                                 kind, last is None)
        tokens, logprobs, *more = (t.tolist() for t in made)
        if not more:
            return [Token(i, p) for i, p in zip(tokens, logprobs, strict=True)]
        return [Token(i, p, False, tuple(zip(names, values, strict=True)))
                for i, p, names, values in zip(tokens, logprobs, *more, strict=True)]

    def _make_room(self, slot: _Row, count: int) -> None:
        """Let a row's windows slide if `count` positions more have no room behind them."""
        first = len(slot.ids) - slot.base - self.cache.window
        if first + self.cache.window + count > self.cache.room:
            ids, slot.ids = slot.ids, []  # as for `_move`
            with gs.no_grad():
                self._slide(gs.tensor([slot.number]), gs.tensor([first]))
            slot.base += first
            slot.ids = ids

    def _compute(self, given: gs.Tensor, knobs: gs.Tensor | None, kind: int,
                 every: bool) -> tuple[gs.Tensor, ...]:
        """The compiled step: extend the cache, choose a token of each row.

        A line of `given`, (B, 4 + SMEAR + T): its start, base, row, the position after which to
        choose (the same in all), the SMEAR tokens before, and those to feed. `kind` is LIKELIEST
        without knobs, DRAWN where no row has filters; RANKED lists the alternatives too.
        """
        ids, before = given[:, 4 + SMEAR:], given[:, 4:4 + SMEAR]
        place = self.cache.place(given[:, 0], ids.shape[1], None if every else given[:, 2],
                                 given[:, 1])
        logits = self.model(ids, place, before, last=given[0, 3:4])[:, 0]  # (B, V)
        logprobs = F.log_softmax(logits, dim=-1)
        if knobs is None:
            chosen = logits.argmax(-1)
            return chosen, logprobs.gather(1, chosen[:, None])[:, 0]
        ranked = logits.sort(dim=-1, descending=True) if kind == RANKED else None
        chosen = choose(logits, knobs, None if ranked is None else ranked.values)
        own = logprobs.gather(1, chosen[:, None])[:, 0]
        if ranked is None:
            return chosen, own
        best = ranked.indices[:, :ALTERNATIVES]
        return chosen, own, best, logprobs.gather(1, best)


def _pieces(count: int) -> int:
    """Pieces in which so many tokens are read; a single one is decoded beside the others."""
    return 0 if count == 1 else -(-count // STEP)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
