"""How fast a model answers: first token, tokens a second, share of the bandwidth. Layer 7.

Decoding reads every weight once a round, whatever the number of rows, so its limit is how fast the
machine reads the level of memory that holds them; the share says how near to it a round comes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rich.console import Console
from rich.table import Table

import gossamer as gs
from gossamer.chat.engine import Engine, Request
from gossamer.models.gpt import GPT

__all__ = ["Decoding", "FirstToken", "decoding", "first_token", "print_speed"]

_REPEATS = 9  # prompts a length; the median is told
_WARM_ROUNDS = 3


@dataclass(frozen=True)
class FirstToken:
    """Seconds from a request to its first token, the median of several prompts.

    Args:
        prompt: tokens of the prompt.
        seconds: until the first token.
    """

    prompt: int
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """One round gives a token to each row.

    Args:
        rows: replies decoded at once.
        tokens_per_second: of all rows together.
        round_seconds: the median.
        read: bytes that a round must read: weights once, keys and values of each row.
        share: of the bandwidth of the level of memory that holds them.
        level: "L2", "L3" or "memory".
    """

    rows: int
    tokens_per_second: float
    round_seconds: float
    read: int
    share: float
    level: str


def _prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(vocab_size) for _ in range(length)]


def first_token(engine: Engine, prompt: int) -> FirstToken:
    """Time prompts of one length, each unlike the one before, so that no prefix is known.

    Args:
        engine: idle; what it has cached is forgotten.
        prompt: tokens, fewer than the context.
    """
    taken = []
    for repeat in range(_REPEATS + 1):
        engine.reset()
        ids = _prompt(prompt, engine.model.config.vocab_size, repeat)
        began = time.perf_counter()
        for _ in engine.generate(Request(ids, max_tokens=1)):
            taken.append(time.perf_counter() - began)
    return FirstToken(prompt, statistics.median(taken[1:]))  # the first may have compiled


def decoding(model: GPT, rows: int, rounds: int = 64) -> Decoding:
    """Time rounds in which every row decodes one token.

    Args:
        model: in evaluation mode.
        rows: replies at once.
        rounds: how many; fewer where the context is shorter.
    """
    engine = Engine(model, rows)
    rounds = min(rounds, engine.context - 8)
    vocab = model.config.vocab_size
    for row in range(rows):
        engine.submit(Request(_prompt(2, vocab, row), max_tokens=rounds + _WARM_ROUNDS))
    while any(len(slot.todo) != 1 or slot.reply is None for slot in engine.slots):
        engine.step()  # prompts
    taken = []
    while engine.busy:
        began = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken[_WARM_ROUNDS:-1] or taken)
    read = bytes_read(model, rows, rounds // 2)
    peaks = gs.insight.peaks()
    level = peaks.level(read)
    return Decoding(rows, rows / seconds, seconds, read, read / seconds / peaks.bandwidth[level],
                    level)


def bytes_read(model: GPT, rows: int, filled: int) -> int:
    """Bytes that one round must read: weights but for the tables of embeddings, of which only a
    line a token is, and the filled part of the cache."""
    tables = [model.wte.weight, *model.value_tables()]
    weights = sum(t.nbytes for t in model.state_dict().values()) - sum(t.nbytes for t in tables)
    c = model.config
    return weights + rows * filled * 2 * c.n_layer * c.kv_heads * c.head_dim * 4


def print_speed(console: Console, model: GPT, rows: Sequence[int], prompts: Sequence[int]) -> None:
    """Measure and print both tables."""
    engine = Engine(model, rows=1)
    prompts = [p for p in prompts if p < engine.context]
    first = Table("prompt, tokens", "first token, ms", "prompt, tokens/s",
                  title="time to the first token")
    for length in prompts:
        found = first_token(engine, length)
        first.add_row(str(length), f"{found.seconds * 1e3:.2f}", f"{length / found.seconds:,.0f}")
    console.print(first)
    many = Table("rows", "tokens/s", "a round, ms", "GB/s", "of the bandwidth of", title="decoding")
    for count in rows:
        made = decoding(model, count)
        many.add_row(str(count), f"{made.tokens_per_second:,.0f}",
                     f"{made.round_seconds * 1e3:.2f}",
                     f"{made.read / made.round_seconds / 1e9:.1f}",
                     f"{made.share:.0%} ({made.level})")
    console.print(many)
