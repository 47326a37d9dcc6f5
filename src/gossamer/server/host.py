"""The engine in a thread of its own, requests from asyncio. Layer 8.

The one idea: only one thread ever touches the engine. Requests reach it through a queue; the tokens
of a round go back together, one call to the event loop of those who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator

from gossamer.chat.engine import Engine, Reply, Request, Token

__all__ = ["Busy", "Host", "Ticket"]

_log = logging.getLogger(__name__)
_IDLE = 0.05  # seconds between looks at the stop flag while nothing is asked


class Busy(Exception):
    """Too many requests wait already."""


class Ticket:
    """One request on its way: an asynchronous iterator of its tokens.

    Args:
        request: what is asked.
        outbox: where the engine's thread puts (ticket, token), and at the end (ticket, None).

    Must be made inside a running event loop; `close` may be called any number of times.
    """

    def __init__(self, request: Request, outbox: Outbox) -> None:
        self.reply, self.loop = Reply(request), asyncio.get_running_loop()
        self.tokens: asyncio.Queue[Token | None] = asyncio.Queue()
        self.reply.on_token = lambda token: outbox.append((self, token))
        self.reply.on_end = lambda: outbox.append((self, None))
        self.begun = time.perf_counter()
        self.first: float | None = None  # seconds until the first token

    async def __aiter__(self) -> AsyncIterator[Token]:
        while (token := await self.tokens.get()) is not None:
            if self.first is None:
                self.first = time.perf_counter() - self.begun
            yield token

    def close(self) -> None:
        """Give the slot back, whether or not the reply is complete."""
        self.reply.cancel()


Outbox = list[tuple[Ticket, Token | None]]


def _hand_out(sent: Outbox) -> None:
    """In the event loop: what a round made, to those who wait for it."""
    for ticket, token in sent:
        ticket.tokens.put_nowait(token)


class Host:
    """Runs an engine.

    Args:
        engine: from now on touched by the host's thread only.
        most_waiting: requests that may wait for a slot; further ones are refused.
    """

    def __init__(self, engine: Engine, most_waiting: int = 256) -> None:
        self.engine, self.most_waiting = engine, most_waiting
        self.failure: Exception | None = None  # of the last round
        self._inbox: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._outbox: Outbox = []
        self._stopping, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="gossamer-engine", daemon=True)

    def start(self) -> None:
        """Begin to serve, after compiling what requests will need."""
        self._thread.start()
        while not self._ready.wait(_IDLE) and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """End every reply as cancelled, and the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether every program has been compiled."""
        return self._ready.is_set()

    @property
    def healthy(self) -> bool:
        """Whether the engine's thread runs and its last round succeeded."""
        return self._thread.is_alive() and self.failure is None

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return self._inbox.qsize() + len(self.engine.waiting)

    @property
    def active(self) -> int:
        """Requests with a slot."""
        return sum(slot.reply is not None for slot in self.engine.slots)

    def submit(self, request: Request) -> Ticket:
        """Ask; called inside an event loop.

        Raises:
            ValueError: the engine cannot decode it.
            Busy: too many wait already, or the host has stopped.
        """
        self.engine.check(request)
        if self._stopping.is_set() or not self._thread.is_alive():
            raise Busy("the engine has stopped")
        if self.waiting >= self.most_waiting:
            raise Busy(f"{self.most_waiting} requests wait already")
        ticket = Ticket(request, self._outbox)
        self._inbox.put(ticket.reply)
        return ticket

    def _run(self) -> None:
        try:
            self.engine.warm_up()
            self._ready.set()
            while not self._stopping.is_set():
                self._collect()
                if self.engine.busy:
                    self._step()
        except Exception as error:
            _log.exception("the engine has stopped")
            self.failure = error
        finally:
            self._end_all("cancelled")

    def _step(self) -> None:
        """One round; if it fails, all who take part are told, and the engine begins anew."""
        try:
            self.engine.step()
        except Exception as error:
            _log.exception("a round of decoding failed")
            self.failure = error
            self._end_all("failed")
            self.engine.reset()
        else:
            self.failure = None
            self._flush()

    def _flush(self) -> None:
        """Send what the round made."""
        sent: dict[asyncio.AbstractEventLoop, Outbox] = {}
        for ticket, token in self._outbox:
            sent.setdefault(ticket.loop, []).append((ticket, token))
        self._outbox.clear()
        for loop, items in sent.items():
            try:
                loop.call_soon_threadsafe(_hand_out, items)
            except RuntimeError:  # the loop is closed: nobody listens any more
                for ticket, _ in items:
                    ticket.close()

    def _collect(self) -> None:
        """Take all that is in the inbox; wait a moment if there is nothing at all to do."""
        with contextlib.suppress(queue.Empty):
            while True:
                reply = self._inbox.get(block=not self.engine.busy, timeout=_IDLE)
                self.engine.waiting.append(reply)  # from now on it is busy, and does not wait

    def _end_all(self, reason: str) -> None:
        replies = [slot.reply for slot in self.engine.slots if slot.reply is not None]
        replies += self.engine.waiting
        while not self._inbox.empty():
            replies.append(self._inbox.get())
        for reply in replies:
            reply._end(reason)
        self._flush()
