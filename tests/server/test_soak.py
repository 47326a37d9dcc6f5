"""Sixty-four clients at once, and some that read slowly or vanish, against a server process.

Two minutes, or as many seconds as SOAK_SECONDS says:

    SOAK_SECONDS=20 pytest -m slow -s tests/server/test_soak.py
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from gossamer.chat.checkpoint import save
from gossamer.chat.engine import Engine, Request, Sampling
from gossamer.server.app import Served
from tests.server.conftest import build

CLIENTS, SLOW, VANISHING, ROWS = 64, 4, 4, 16
SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
CHAT = "/v1/chat/completions"
WORDS = ["hello", "there", "how", "are", "you", "I", "am", "well"]
SHARED = "hello there, I am well, how are you? hello you, are you well? "  # worth a copy

pytestmark = pytest.mark.slow


@dataclass
class Asked:
    """A request and the reply that it must get."""

    body: dict[str, Any]
    text: str
    tokens: int


@dataclass
class Seen:
    """What the clients saw."""

    replies: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    first: list[float] = field(default_factory=list)  # seconds until the first token
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    left: int = 0  # replies that nobody waited for
    dawdled: int = 0  # replies that were read slowly, and right


def expected(served: Served, messages: list[dict[str, str]], options: dict[str, Any]) -> Asked:
    """Decoded alone, by an engine of its own."""
    t = served.tokenizer
    engine = Engine(served.host.engine.model, rows=1)
    knobs = {k: options[k] for k in ("temperature", "top_k", "seed") if k in options}
    found = [token.id for token in engine.generate(Request(
        t.render_prompt(messages), options["max_tokens"], Sampling(**knobs),
        (t.assistant_end, t.bos)))]
    text = b"".join(t.token_bytes[i] for i in found).decode("utf-8", "replace")
    return Asked({"messages": messages, **options}, text, len(found))


def scripts(served: Served) -> list[list[Asked]]:
    """Conversations of two turns: plain and sampled, some with a beginning in common."""
    rng, found = Random(5), []
    for number in range(24):
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 6)))
        first = [{"role": "user", "content": (SHARED if number % 2 else "") + words}]
        options: dict[str, Any] = {"max_tokens": rng.randrange(4, 20)}
        if number % 3 == 0:
            options |= {"temperature": 0.9, "seed": number, "top_k": number % 2 * 9}
        one = expected(served, first, options)
        # A reply may hold bytes that are no character: what is sent back is what was shown.
        more = [*first, {"role": "assistant", "content": one.text},
                {"role": "user", "content": rng.choice(WORDS)}]
        short = len(served.tokenizer.render_prompt(more)) < 100
        found.append([one, expected(served, more, options)] if short else [one])
    return found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `gossamer serve` with an untrained model."""
    made, root = build(rows=1), tmp_path_factory.mktemp("runs")
    save(root / "tiny" / "checkpoints", made.host.engine.model, made.tokenizer, [], {"step": 0})
    command = [sys.executable, "-m", "gossamer", "serve", "tiny", "--root", str(root), "--port",
               "0", "--rows", str(ROWS)]
    with (Path(root) / "errors").open("w+") as errors, \
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()
        process.wait(30)
        errors.seek(0)
        assert errors.read() == ""


async def ask(api: httpx.AsyncClient, asked: Asked, seen: Seen, client: int) -> None:
    """One request, streamed or whole; its reply is compared letter by letter."""
    if seen.replies[client] % 4 == 3:
        found = (await api.post(CHAT, json=asked.body)).raise_for_status().json()
        text, usage = found["choices"][0]["message"]["content"], found["usage"]
    else:
        text, usage, began = "", None, time.perf_counter()
        body = {**asked.body, "stream": True, "stream_options": {"include_usage": True}}
        async with api.stream("POST", CHAT, json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage")
                for choice in chunk["choices"]:
                    if not text and choice["delta"].get("content"):
                        seen.first.append(time.perf_counter() - began)
                    text += choice["delta"].get("content") or ""
    seen.replies[client] += 1
    seen.tokens += asked.tokens
    if text != asked.text or usage["completion_tokens"] != asked.tokens:
        seen.wrong.append(f"{text!r} ({usage}) is not {asked.text!r} ({asked.tokens})")


async def talk(api: httpx.AsyncClient, client: int, known: list[list[Asked]], seen: Seen,
               until: float) -> None:
    for number in count(client):  # all go through the same conversations, each begins elsewhere
        for asked in known[number % len(known)]:
            if time.monotonic() > until or seen.wrong:
                return
            await ask(api, asked, seen, client)


async def raw_stream(url: httpx.URL, asked: Asked) -> tuple[Any, asyncio.StreamWriter]:
    """A streamed request over a plain socket with a small window."""
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=64)
    body = json.dumps({**asked.body, "stream": True}).encode()
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                 % (CHAT.encode(), len(body)) + body)
    await writer.drain()
    return reader, writer


async def dawdle(url: httpx.URL, asked: Asked, seen: Seen, until: float) -> None:
    """Read a few bytes at a time, and slowly."""
    while time.monotonic() < until:
        reader, writer = await raw_stream(url, asked)
        got = b""
        while part := await reader.read(64):
            got += part
            await asyncio.sleep(0.02)
        writer.close()
        lines = got.replace(b"\r", b"").split(b"\n")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        if text != asked.text:
            seen.wrong.append(f"slowly: {text!r} is not {asked.text!r}")
        seen.dawdled += 1


async def vanish(url: httpx.URL, asked: Asked, seen: Seen, until: float) -> None:
    """Ask, and go away: at once, or after the first bytes."""
    rng = Random(1)
    long = Asked({**asked.body, "max_tokens": 90}, "", 0)
    while time.monotonic() < until:
        reader, writer = await raw_stream(url, long)
        if rng.random() < 0.5:
            await reader.read(64)
        writer.transport.abort()
        seen.left += 1
        await asyncio.sleep(0.2)


async def everybody(address: str, known: list[list[Asked]]) -> Seen:
    seen, until, url = Seen(), time.monotonic() + SECONDS, httpx.URL(address)
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=address, timeout=90, limits=limits) as api:
        await asyncio.gather(
            *(talk(api, n, known, seen, until) for n in range(CLIENTS)),
            *(dawdle(url, known[n][0], seen, until) for n in range(SLOW)),
            *(vanish(url, known[n][0], seen, until) for n in range(VANISHING)))
    return seen


def test_no_error_no_lost_token_and_fair(address: str) -> None:
    seen = asyncio.run(everybody(address, scripts(build(rows=1))))
    assert not seen.wrong, seen.wrong[:3]
    seen.first.sort()
    half, most = (seen.first[int(len(seen.first) * share)] for share in (0.5, 0.95))
    counts = sorted(seen.replies)
    print(f"\n{SECONDS:.0f} s, {CLIENTS} clients, {ROWS} slots: {sum(counts):,} replies, "
          f"{seen.tokens / SECONDS:,.0f} tokens/s; replies a client {counts[0]} to {counts[-1]}, "
          f"median {counts[CLIENTS // 2]}; first token after {half * 1e3:.0f} ms (median), "
          f"{most * 1e3:.0f} ms (p95); {seen.dawdled} read slowly, {seen.left} vanished")
    assert counts[0] > 0 and seen.dawdled >= SLOW and seen.left >= VANISHING
    # Who asks is served in turn: differences come from the lengths of what was asked so far.
    usual = counts[CLIENTS // 2]
    assert usual / 2 - 2 <= counts[0] and counts[-1] <= 2 * usual + 2, counts
    deadline = time.monotonic() + 30
    while (health := httpx.get(address + "/health").json())["active"] or health["waiting"]:
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
    assert health["status"] == "ok" and health["slots"] == ROWS
