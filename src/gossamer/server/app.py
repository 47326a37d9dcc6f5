"""The web application: OpenAI's routes, health, and the chat page. Layer 8.

Every answer that is not 200 is JSON with the reason; a client that goes away gives its slot back.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request as HTTPRequest
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gossamer.chat.calculator import Calculator
from gossamer.chat.engine import PromptTooLong, Request, Sampling, Token
from gossamer.chat.message import Message
from gossamer.chat.room import newest_turns
from gossamer.chat.text import ReplyStream
from gossamer.chat.tokenizer import Tokenizer
from gossamer.server.api import (
    ApiError,
    Asked,
    chat_messages,
    check_media_type,
    completion_prompts,
    parse,
    read_json,
)
from gossamer.server.host import Busy, Host, Ticket

__all__ = ["Served", "build_app"]

MOST_BYTES = 1 << 20  # of a request's body
UPLOAD_SECONDS = 60.0  # that a body may take to come
PAGE = Path(__file__).parent.parent / "web"

_log = logging.getLogger(__name__)
_Utf8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True)
class Served:
    """What the server offers.

    Args:
        name: the model's name in the API.
        host: its engine.
        tokenizer: of the model.
        defaults: sampling where a request says nothing.
        created: when the model was made, seconds since 1970.
        facts: more about the model, for the page.
    """

    name: str
    host: Host
    tokenizer: Tokenizer
    defaults: Sampling
    created: int
    facts: dict[str, Any]


class _Reader:
    """One reply on its way to a client: tokens in, pieces and probabilities out."""

    def __init__(self, ticket: Ticket, tokenizer: Tokenizer, asked: Asked) -> None:
        self.ticket, self.tokenizer, self._asked = ticket, tokenizer, asked
        self._stream = ReplyStream(tokenizer, asked.stop)
        self.count = 0
        self.stopped = False

    async def read(self) -> AsyncIterator[tuple[list[tuple[str, str]], list[Token]]]:
        """(pieces, their tokens), as they become certain."""
        tokens: list[Token] = []
        async for token in self.ticket:
            self.count += 1
            tokens.append(token)
            pieces = self._stream.push(token.id)
            if pieces or self._asked.alternatives is not None:
                yield pieces, tokens
                tokens = []
            if self._stream.stopped:
                self.stopped = True
                self.ticket.close()
                return
        if self.ticket.reply.finish == "cancelled":
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        if self.ticket.reply.finish == "failed":
            raise ApiError(500, "Decoding failed; the server's log says why.", code="failed")
        rest = self._stream.rest()
        self.stopped = self._stream.stopped
        if rest or tokens:
            yield rest, tokens

    @property
    def finish(self) -> str:
        """Why it ended, in OpenAI's words."""
        return "stop" if self.stopped else self.ticket.reply.finish or "stop"

    def probability(self, token: Token) -> dict[str, Any]:
        """A token's entry in `logprobs.content`."""
        top = token.alternatives[:self._asked.alternatives or 0]
        return {**self._entry(token.id, token.logprob), "forced": token.forced,
                "top_logprobs": [self._entry(i, p) for i, p in top]}

    def _entry(self, index: int, logprob: float) -> dict[str, Any]:
        raw = self.tokenizer.token_bytes[index]
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class _Offsets:
    """Where each token of a text begins, in characters; what goes on a character begins with it.

    Args:
        tokenizer: of the model.
        start: characters before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, start: int) -> None:
        self._bytes, self._at = tokenizer.token_bytes, start
        self._decoder = _Utf8("replace")
        self._unseen = {tokenizer.python_start, tokenizer.python_end,  # not shown as text
                        tokenizer.output_start, tokenizer.output_end}

    def push(self, token: int) -> int:
        """The place of the next token."""
        raw = b"" if token in self._unseen else self._bytes[token]
        begun = self._decoder.getstate()[0]  # of a character that is not whole yet
        broken = bool(begun and raw) and not 0x80 <= raw[0] < 0xC0
        place = self._at + broken  # what is broken is shown as one character
        self._at += len(self._decoder.decode(raw))
        return place


class _Api:
    """The handlers."""

    def __init__(self, served: Served) -> None:
        self.served = served

    # routes -----------------------------------------------------------------------------------
    async def health(self, _: HTTPRequest) -> Response:
        host = self.served.host
        return JSONResponse(
            {"status": "ok" if host.healthy else "failed", "model": self.served.name,
             "slots": host.engine.rows, "active": host.active, "waiting": host.waiting},
            200 if host.healthy else 503)

    async def models(self, _: HTTPRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: HTTPRequest) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def chat(self, request: HTTPRequest) -> Response:
        body = read_json(await _body(request))
        asked = parse(body, self.served.defaults, chat=True)
        self._check_model(asked.model)
        # In a thread: a megabyte takes a while to encode, and other replies are streaming.
        ids, dropped = await asyncio.to_thread(self._prompt, chat_messages(body), asked.cut)
        tickets = self._submit([ids], asked, chat=True)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()),
                "model": self.served.name, "system_fingerprint": None}
        if dropped:
            head["dropped_messages"] = dropped
        if asked.stream:
            return self._streamed(request, _Chat(head), tickets, asked, len(ids))
        return await self._whole(request, _Chat(head), tickets, asked, len(ids))

    async def completions(self, request: HTTPRequest) -> Response:
        body = read_json(await _body(request))
        asked = parse(body, self.served.defaults, chat=False)
        self._check_model(asked.model)
        t = self.served.tokenizer
        prompts = await asyncio.to_thread(
            lambda given: [[t.bos, *t.encode(p)] if isinstance(p, str) else p for p in given],
            completion_prompts(body))
        tickets = self._submit(prompts, asked, chat=False)
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()),
                "model": self.served.name}
        texts = [t.decode(p[1:] if p[:1] == [t.bos] else p)
                 for p in prompts for _ in range(asked.copies)]
        form, count = _Completion(head, texts), sum(map(len, prompts))
        if asked.stream:
            return self._streamed(request, form, tickets, asked, count)
        return await self._whole(request, form, tickets, asked, count)

    async def page(self, _: HTTPRequest) -> Response:
        return FileResponse(PAGE / "index.html")

    async def facts(self, _: HTTPRequest) -> Response:
        return JSONResponse({"name": self.served.name, **self.served.facts,
                             "context": self.served.host.engine.context})

    # parts ------------------------------------------------------------------------------------
    def _model(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": self.served.created,
                "owned_by": "gossamer"}

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.served.name:
            shown = name if len(name) <= 80 else name[:77] + "..."
            raise ApiError(404, f"The model {shown!r} is not here; this server has "
                           f"{self.served.name!r}.", "model", "model_not_found")

    def _prompt(self, turns: list[Message], cut: bool) -> tuple[list[int], int]:
        """Ids of the conversation, and how many of its oldest turns were left out."""
        context, t = self.served.host.engine.context, self.served.tokenizer
        ids, dropped = newest_turns(t, turns, context) if cut else (t.render_prompt(turns), 0)
        if len(ids) < context:
            return ids, dropped
        what, way = ("last message", "it") if cut else (
            "conversation", 'it, or send "truncation": "auto" to leave the oldest turns out')
        raise ApiError(400, f"The {what} has {len(ids)} tokens; this model reads at most "
                       f"{context - 1}. Shorten {way}.", "messages", "context_length_exceeded")

    def _submit(self, prompts: Sequence[list[int]], asked: Asked, chat: bool) -> list[Ticket]:
        t, tickets = self.served.tokenizer, []
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        try:
            for ids in prompts:
                for copy in range(asked.copies):
                    tickets.append(self.served.host.submit(Request(
                        ids, asked.max_tokens, replace(asked.sampling, seed=seed + copy),
                        (t.assistant_end, t.bos), Calculator(t).follow if chat else None,
                        bool(asked.alternatives))))
        except Busy as error:
            _close(tickets)
            raise ApiError(503, f"The server is busy: {error}. Try again in a moment.",
                           code="overloaded") from None
        except ValueError as error:
            _close(tickets)
            long = isinstance(error, PromptTooLong)
            raise ApiError(400, str(error), "messages" if chat else "prompt",
                           "context_length_exceeded" if long else "invalid_value") from None
        return tickets

    async def _whole(self, request: HTTPRequest, form: _Form, tickets: list[Ticket],
                     asked: Asked, prompt_tokens: int) -> Response:
        """The answer in one piece; a client that goes away meanwhile gives its slots back."""
        readers = [_Reader(ticket, self.served.tokenizer, asked) for ticket in tickets]

        async def gather() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*(form.whole(n, r, asked)
                                               for n, r in enumerate(readers))))

        work = asyncio.ensure_future(gather())
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            choices = work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            _close(tickets)
        usage = _usage(prompt_tokens, readers)
        return JSONResponse({**form.head, "object": form.kind, "choices": choices, "usage": usage})

    def _streamed(self, request: HTTPRequest, form: _Form, tickets: list[Ticket], asked: Asked,
                  prompt_tokens: int) -> Response:
        """Server-sent events, the replies interleaved as they come."""
        readers = [_Reader(ticket, self.served.tokenizer, asked) for ticket in tickets]
        chunks: asyncio.Queue[dict[str, Any] | ApiError | None] = asyncio.Queue()

        async def feed(number: int, reader: _Reader) -> None:
            try:
                async for choice in form.pieces(number, reader, asked):
                    chunks.put_nowait({"choices": [choice]})
            except ApiError as error:
                chunks.put_nowait(error)
            except Exception:
                _log.exception("a reply could not be sent")
                chunks.put_nowait(_server_failed())
            finally:
                chunks.put_nowait(None)

        async def events() -> AsyncIterator[str]:
            feeds = [asyncio.ensure_future(feed(n, r)) for n, r in enumerate(readers)]
            # Who goes away while the request waits is seen here; later a write would fail too.
            gone = asyncio.ensure_future(_gone(request))
            gone.add_done_callback(lambda _: _close(tickets))
            try:
                left = len(feeds)
                while left:
                    ready = [await chunks.get()]
                    while not chunks.empty():
                        ready.append(chunks.get_nowait())
                    text = ""  # in one piece: of many writes to who went away each is logged
                    for chunk in ready:
                        if isinstance(chunk, ApiError):
                            yield text + _event(chunk.body())
                            return
                        if chunk is None:
                            left -= 1
                        else:
                            text += _event({**form.head, "object": form.chunk_kind, **chunk})
                    if text:
                        yield text
                if asked.usage_at_end:
                    yield _event({**form.head, "object": form.chunk_kind, "choices": [],
                                  "usage": _usage(prompt_tokens, readers)})
                yield "data: [DONE]\n\n"
            finally:  # also when the client goes away
                for task in (*feeds, gone):
                    task.cancel()
                _close(tickets)

        return StreamingResponse(events(), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


class _Form(ABC):
    """How a reply is written as JSON: chat or plain completion."""

    kind = chunk_kind = ""

    def __init__(self, head: dict[str, Any]) -> None:
        self.head = head

    @abstractmethod
    async def whole(self, number: int, reader: _Reader, asked: Asked) -> dict[str, Any]:
        """The choice of a reply that is sent in one piece."""

    @abstractmethod
    def pieces(self, number: int, reader: _Reader, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """The choices of a reply that is streamed."""


class _Chat(_Form):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    async def whole(self, number: int, reader: _Reader, asked: Asked) -> dict[str, Any]:
        text, calls, entries = "", [], []
        async for pieces, tokens in reader.read():
            text += "".join(t for kind, t in pieces if kind == "text")
            calls += [{"type": kind, "text": t} for kind, t in pieces if kind != "text"]
            entries += [reader.probability(token) for token in tokens]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["calculator"] = calls
        return {"index": number, "message": message, "finish_reason": reader.finish,
                "logprobs": None if asked.alternatives is None else {"content": entries}}

    async def pieces(self, number: int, reader: _Reader,
                     asked: Asked) -> AsyncIterator[dict[str, Any]]:
        yield {"index": number, "delta": {"role": "assistant", "content": ""},
               "finish_reason": None}
        async for pieces, tokens in reader.read():
            delta: dict[str, Any] = {}
            words = "".join(t for kind, t in pieces if kind == "text")
            calls = [{"type": kind, "text": t} for kind, t in pieces if kind != "text"]
            if words or not calls:
                delta["content"] = words
            if calls:
                delta["calculator"] = calls
            choice: dict[str, Any] = {"index": number, "delta": delta, "finish_reason": None}
            if asked.alternatives is not None:
                choice["logprobs"] = {"content": [reader.probability(t) for t in tokens]}
            yield choice
        yield {"index": number, "delta": {}, "finish_reason": reader.finish}


class _Completion(_Form):
    kind = chunk_kind = "text_completion"

    def __init__(self, head: dict[str, Any], prompts: list[str]) -> None:
        super().__init__(head)
        self._prompts = prompts  # of each reply

    async def whole(self, number: int, reader: _Reader, asked: Asked) -> dict[str, Any]:
        text, entries = "", []
        async for said, found in self._parts(number, reader, asked):
            text += said
            entries += found
        return {"index": number, "text": text, "finish_reason": reader.finish,
                "logprobs": _flat(entries) if asked.alternatives is not None else None}

    async def pieces(self, number: int, reader: _Reader,
                     asked: Asked) -> AsyncIterator[dict[str, Any]]:
        async for said, found in self._parts(number, reader, asked):
            yield {"index": number, "text": said, "finish_reason": None,
                   "logprobs": _flat(found) if found else None}
        yield {"index": number, "text": "", "finish_reason": reader.finish, "logprobs": None}

    async def _parts(self, number: int, reader: _Reader,
                     asked: Asked) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """Texts, and the probabilities of their tokens if they are wanted."""
        prompt = self._prompts[number]
        if asked.echo and prompt:
            yield prompt, []
        offsets = _Offsets(reader.tokenizer, len(prompt))
        async for pieces, tokens in reader.read():
            found = []
            if asked.alternatives is not None:
                found = [{**reader.probability(t), "offset": offsets.push(t.id)} for t in tokens]
            yield "".join(t for _, t in pieces), found


def _flat(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The older form of probabilities, one list a property; offsets count from the first character
    of the prompt, echoed or not."""
    return {"tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]}
                             for e in entries],
            "text_offset": [e["offset"] for e in entries]}


def _usage(prompt_tokens: int, readers: Sequence[_Reader]) -> dict[str, int]:
    made = sum(reader.count for reader in readers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made,
            "total_tokens": prompt_tokens + made}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _body(request: HTTPRequest) -> bytes:
    """The body, if it is JSON by its type and not too large."""
    check_media_type(request.headers.get("content-type"))
    parts, size = [], 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BYTES:
                    raise ApiError(413, f"The body has more than {MOST_BYTES:,} bytes. Send less.")
                parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "The client went away.") from None
    except TimeoutError:
        raise ApiError(408, f"The body was not whole after {UPLOAD_SECONDS:g} seconds. Send it "
                       "faster.") from None
    return b"".join(parts)


async def _gone(request: HTTPRequest) -> None:
    """Return when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _close(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.close()


def _answer_error(request: HTTPRequest, error: Exception) -> Response:
    if isinstance(error, ApiError):
        # What is still to come of a slow body would be taken for the next request.
        return JSONResponse(error.body(), error.status,
                            {"Connection": "close"} if error.status == 408 else None)
    if isinstance(error, HTTPException):
        path = request.url.path if len(request.url.path) <= 80 else request.url.path[:77] + "..."
        made = ApiError(error.status_code, {
            404: f"There is nothing at {path}. The API is at /v1/chat/completions, "
                 "/v1/completions, /v1/models and /health; the page is at /.",
            405: f"{path} does not take {request.method}. It takes "
                 f"{(error.headers or {}).get('Allow', 'another method')}.",
        }.get(error.status_code, error.detail))
        return JSONResponse(made.body(), error.status_code, error.headers)
    return JSONResponse(_server_failed().body(), 500)


def _server_failed() -> ApiError:
    return ApiError(500, "The server failed; its log says why.", code="failed")


def build_app(served: Served) -> Starlette:
    """The application; its lifespan starts and stops the engine's thread."""
    api = _Api(served)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(served.host.start)
        try:
            yield
        finally:
            await asyncio.to_thread(served.host.stop)

    def post(path: str, handler: Callable[[HTTPRequest], Awaitable[Response]]) -> Route:
        return Route(path, handler, methods=["POST"])

    routes: list[BaseRoute] = [
        Route("/health", api.health), Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model), post("/v1/chat/completions", api.chat),
        post("/v1/completions", api.completions), Route("/api/model", api.facts),
    ]
    if PAGE.is_dir():
        routes += [Route("/", api.page),
                   Mount("/static", StaticFiles(directory=PAGE))]
    handlers: Any = {ApiError: _answer_error, HTTPException: _answer_error,
                     Exception: _answer_error}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
