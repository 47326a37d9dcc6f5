"""Many conversations decoded together: continuous batching over one key/value cache. Layer 7.

The one idea: a slot is a row of the cache with a list of tokens still to be read. A round feeds one
piece of every list that is longer than one token (a prompt, a tool's answer), then one token to all
other slots at once. New requests join and finished ones leave between rounds, and every round is
one of a few compiled programs. A slot keeps what it has read: a request whose beginning is in a
slot already (the conversation so far) is read from where they part.

Source: Yu et al. 2022, "Orca"; the samplers: Holtzman et al. 2020 (top-p), Nguyen et al. 2024
(min-p).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import gossamer as gs
from gossamer.models.gpt import GPT, SMEAR
from gossamer.nn import functional as F

__all__ = ["Engine", "Reply", "Request", "Sampling", "Token", "choose"]

CHUNK = 128  # most prompt tokens fed in one round, so that others need not wait for a long prompt
STEP = 32  # short pieces are padded to this, longer ones to CHUNK: two shapes, few programs
ALTERNATIVES = 20  # tokens listed beside the chosen one when alternatives are asked for
COLDEST = 1e-6  # temperatures below divide by this; greedy rows do not look at the quotient


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: 0 takes the likeliest; above, samples from softmax(logits / temperature).
        top_k: among the k likeliest only; 0 = all.
        top_p: among the likeliest that together have this probability; 1 = all.
        min_p: among those at least this share as likely as the likeliest; 0 = all.
        seed: of the random numbers; a request's tokens depend on nothing else that is decoded.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"Sampling(temperature={self.temperature}): it must be from 0 to 100.")
        if self.top_k < 0 or not 0.0 < self.top_p <= 1.0 or not 0.0 <= self.min_p <= 1.0:
            raise ValueError(
                f"Sampling(top_k={self.top_k}, top_p={self.top_p}, min_p={self.min_p}): top_k must "
                "be 0 or more, top_p in (0, 1] and min_p in [0, 1]."
            )


@dataclass(frozen=True)
class Token:
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
        s = self.request.sampling
        return [s.temperature, s.top_k, s.top_p, s.min_p, self._random.random()]


@dataclass
class _Slot:
    """One row of the cache.

    Attributes:
        ids: the tokens whose keys and values it holds.
        todo: tokens to feed next.
        reply: what it works for, if anything.
        used: number of the round in which it was last used.
    """

    row: int
    ids: list[int] = field(default_factory=list)
    todo: list[int] = field(default_factory=list)
    reply: Reply | None = None
    used: int = 0


_GREEDY = [0.0, 0.0, 1.0, 0.0, 0.0]


class Engine:
    """Decodes requests together. One thread at a time may call it; `Reply.cancel` is free to all.

    Args:
        model: a trained GPT.
        rows: most requests decoded at once; more wait their turn.

    >>> from gossamer.models.gpt import GPTConfig
    >>> engine = Engine(GPT(GPTConfig(vocab_size=65, n_layer=1, n_head=2, n_embd=16)), rows=2)
    >>> len([t.id for t in engine.generate(Request([1, 2, 3], max_tokens=4))])
    4
    """

    def __init__(self, model: GPT, rows: int = 8) -> None:
        self.model, self.rows = model, rows
        self.context = model.config.sequence_len
        self.cache = model.cache(rows)
        self.slots = [_Slot(row) for row in range(rows)]
        self.waiting: deque[Reply] = deque()
        self.rounds = 0
        self._advance = gs.compile(self._compute)

    # requests ---------------------------------------------------------------------------------
    def check(self, request: Request) -> None:
        """Refuse what cannot be decoded. Any thread may call it.

        Raises:
            ValueError: an empty prompt, one that fills the context, or an unknown token.
        """
        count, vocab = len(request.ids), self.model.config.vocab_size
        if not 0 < count < self.context:
            raise ValueError(
                f"Engine: the prompt has {count} tokens; it must have between 1 and "
                f"{self.context - 1} to leave room for a reply. Shorten it."
            )
        if not all(0 <= i < vocab for i in request.ids):
            raise ValueError(
                f"Engine: the prompt has token {max(request.ids, key=abs)}; the model knows "
                f"0 to {vocab - 1}. Encode it with the model's own tokenizer."
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
        for slot in self.slots:
            if slot.reply is not None and slot.reply.cancelled:
                self._finish(slot, "cancelled")
        self._admit()
        active = [slot for slot in self.slots if slot.reply is not None]
        # At the very end of the context there is no room for a padded piece.
        ready = [slot for slot in active
                 if len(slot.todo) == 1 or self.context - len(slot.ids) < STEP]
        for slot in active:
            if slot not in ready:
                self._prefill(slot)
        if ready:
            self._decode(ready)

    def warm_up(self) -> None:
        """Compile every program now, so that no request waits for it."""
        for sampling in (Sampling(), Sampling(1.0)):
            for length in (1, STEP, min(CHUNK, self.context - 1)):
                for _ in self.generate(Request([0] * length, max_tokens=1, sampling=sampling)):
                    pass
        self.reset()

    def reset(self) -> None:
        """Forget everything: requests and what the cache holds."""
        self.waiting.clear()
        self.slots = [_Slot(row) for row in range(self.rows)]

    # slots ------------------------------------------------------------------------------------
    def _admit(self) -> None:
        while self.waiting:
            free = [slot for slot in self.slots if slot.reply is None]
            if not free:
                return
            reply = self.waiting.popleft()
            if reply.cancelled:
                reply._end("cancelled")
                continue
            ids = list(reply.request.ids)
            # The longest beginning in common; among equals the one not used for longest.
            slot = max(free, key=lambda s: (_common(s.ids, ids), -s.used))
            keep = min(_common(slot.ids, ids), len(ids) - 1)
            slot.reply, slot.ids, slot.todo = reply, ids[:keep], ids[keep:]
            if reply.request.max_tokens <= 0:
                self._finish(slot, "length")

    def _finish(self, slot: _Slot, reason: str) -> None:
        reply, slot.reply, slot.todo, slot.used = slot.reply, None, [], self.rounds
        if reply is not None:
            reply._end(reason)

    def _prefill(self, slot: _Slot) -> None:
        """Feed one piece of a prompt to one row."""
        assert slot.reply is not None
        long = len(slot.todo) > STEP and self.context - len(slot.ids) >= CHUNK
        padded = CHUNK if long else STEP
        piece = slot.todo[:padded]
        last = len(piece) == len(slot.todo)
        knobs = slot.reply._knobs() if last else _GREEDY
        found = self._run([piece + [0] * (padded - len(piece))], [slot], [knobs],
                          slot.reply.request.alternatives and last, [slot.row], len(piece) - 1)
        slot.ids += piece
        del slot.todo[:len(piece)]
        if last:
            self._take(slot, found[0])

    def _decode(self, slots: list[_Slot]) -> None:
        """Feed one token to each of `slots`, all rows of the cache in one call."""
        chosen = {slot.row: slot for slot in slots}
        ids, knobs, wanted = [], [], False
        for slot in self.slots:
            reply = slot.reply if slot.row in chosen else None
            ids.append([slot.todo[0] if reply is not None else 0])
            last = reply is not None and len(slot.todo) == 1
            knobs.append(reply._knobs() if reply is not None and last else _GREEDY)
            wanted = wanted or (reply is not None and reply.request.alternatives)
        found = self._run(ids, self.slots, knobs, wanted)
        for slot in slots:
            slot.ids.append(slot.todo.pop(0))
            if not slot.todo:
                self._take(slot, found[slot.row])

    def _take(self, slot: _Slot, token: Token) -> None:
        """A token was chosen for a slot: hand it out, and see how it goes on."""
        reply = slot.reply
        assert reply is not None
        request = reply.request
        if token.id in request.stop:
            self._finish(slot, "stop")
            return
        reply._add(token if request.alternatives else Token(token.id, token.logprob))
        forced = list(request.follow(token.id)) if request.follow is not None else []
        room = min(self.context - len(slot.ids), request.max_tokens - len(reply.tokens) + 1)
        for i in forced[:max(room - 1, 0)]:
            reply._add(Token(i, 0.0, forced=True))
        slot.todo = [token.id, *forced]
        if len(slot.todo) >= room:
            self._finish(slot, "length")

    # the model --------------------------------------------------------------------------------
    def _run(self, ids: list[list[int]], slots: list[_Slot], knobs: list[list[float]],
             alternatives: bool, rows: list[int] | None = None, last: int = 0) -> list[Token]:
        """Feed ids, (B, T), to slots and choose a token for each after position `last`."""
        # An idle row writes where nothing is kept: behind what it holds.
        starts = [min(len(s.ids), self.context - 1) for s in slots]
        before = zip(*([*[0] * SMEAR, *s.ids][-SMEAR:] for s in slots), strict=True)
        with gs.no_grad():
            made = self._advance(
                gs.tensor(ids), gs.tensor([starts, *before]), gs.tensor(knobs), gs.tensor([last]),
                None if rows is None else gs.tensor(rows),
                alternatives or any(k[0] > 0 for k in knobs))
        tokens, logprobs, *more = (t.tolist() for t in made)
        if not more:
            return [Token(i, p) for i, p in zip(tokens, logprobs, strict=True)]
        return [Token(i, p, False, tuple(zip(names, values, strict=True)))
                for i, p, names, values in zip(tokens, logprobs, *more, strict=True)]

    def _compute(self, ids: gs.Tensor, where: gs.Tensor, knobs: gs.Tensor, last: gs.Tensor,
                 rows: gs.Tensor | None, full: bool) -> tuple[gs.Tensor, ...]:
        """The compiled step: extend the cache, choose a token of each row.

        Without `full` the likeliest; with it as `knobs` say, and with the alternatives.
        """
        starts, before = where[0], where[1:].transpose(0, 1)  # (B,), (B, SMEAR)
        place = self.cache.place(starts, ids.shape[1], rows)
        logits = self.model(ids, place, before).index_select(1, last)[:, 0]  # (B, V)
        chosen = choose(logits, knobs) if full else logits.argmax(-1)
        logprobs = F.log_softmax(logits, dim=-1)
        own = logprobs.gather(1, chosen[:, None])[:, 0]
        if not full:
            return chosen, own
        best = logprobs.topk(min(ALTERNATIVES, logprobs.shape[1]))
        return chosen, own, best.indices, best.values


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def choose(logits: gs.Tensor, knobs: gs.Tensor) -> gs.Tensor:
    """One token of each row.

    The filters act one after the other, each on what the one before left: temperature, top-k,
    top-p, min-p. Then the token is where the running sum of what is left passes the random number.

    Args:
        logits: (B, V).
        knobs: (B, 5): temperature (0 = the likeliest), top_k (0 = all), top_p, min_p, and a
            uniform random number in [0, 1).

    Returns:
        (B,) int64.

    Cost: a sort of each row.
    """
    temperature, k, top_p, min_p, uniform = (knobs[:, i:i + 1] for i in range(5))
    values, order = (logits / temperature.clamp(min=COLDEST)).sort(dim=-1, descending=True)
    rank = gs.arange(logits.shape[1])
    p = F.softmax(values, dim=-1)  # (B, V), largest first
    p = p * ((rank < k) | (k == 0))
    p = p / p.sum(dim=-1, keepdim=True)
    p = p * (p.cumsum(dim=-1) - p < top_p) * (p >= min_p * p[:, :1])
    total = p.cumsum(dim=-1)
    # Rounding may leave the sum short of the number: the last that is left is the limit.
    last = ((p > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    place = (total <= uniform * total[:, -1:]).sum(dim=-1, keepdim=True)
    sampled = order.gather(1, gs.minimum(place, last))[:, 0]
    return gs.where(temperature[:, 0] > 0, sampled, logits.argmax(-1))
