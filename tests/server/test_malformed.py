"""Hundreds of malformed requests: each is refused with a 4xx that names what was wrong."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import CONTEXT, Running

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
NAN, INF = float("nan"), float("inf")
HUGE = 10**400  # more than a float holds

NUMBERS = {name: ["hot", "", [], [1], {}, {"a": 1}, True, low, high, NAN, INF, -INF, HUGE, -HUGE]
           for name, low, high in [("temperature", -0.1, 2.1), ("top_p", 0, 1.1),
                                   ("min_p", -0.1, 1.1), ("frequency_penalty", -2.1, 2.1),
                                   ("presence_penalty", -2.1, 2.1)]}
WHOLES = {name: ["many", [], {}, True, 1.5, low, high, HUGE, NAN]
          for name, low, high in [("n", -1, 17), ("top_k", -1, 2**32), ("seed", -2**63 - 1, 2**63),
                                  ("max_tokens", -1, 2**31), ("max_completion_tokens", 0, 2**31),
                                  ("top_logprobs", -1, 21), ("best_of", -1, 17)]}
FLAGS = {name: ["yes", 1, 0, [], {}, NAN] for name in ("stream", "logprobs")}
OTHERS: dict[str, list[Any]] = {
    "model": [5, True, [], {}, "", "gpt-9", "x" * 999],
    "truncation": [1, True, [], "always"],
    "stop": [5, True, {}, "", [""], [5], ["a", None], ["a"] * 5, [["a"]], "x" * 257],
    "stream_options": [3, "usage", [1], True],
    "include_usage": [],  # inside stream_options, below
    "tools": [[{"type": "function"}], {"a": 1}, "x", 5], "tool_choice": ["required", {"a": 1}],
    "functions": [[{}]], "function_call": [{"name": "f"}], "response_format": [{"type": "x"}, 5],
    "logit_bias": [{"5": 1}, [1]], "audio": [{"voice": "x"}], "prediction": [{"a": 1}],
    "web_search_options": [{"a": 1}], "suffix": ["x"],
}
MESSAGES: list[tuple[str, Any]] = [
    ("messages", given) for given in (None, [], {}, {"0": USER}, "hi", 5, True, NAN, [USER] * 1001)
] + [
    ("messages[0]", [given]) for given in ("hi", 5, None, [], True)
] + [
    ("messages[1]", [USER, given]) for given in ("hi", None, [USER])
] + [
    ("role", [{**USER, "role": role}]) for role in (
        None, "", "wizard", "tool", "function", "User", 5, True, [], {}, ["user"])
] + [
    ("role", [{"content": "hi"}]), ("content", [{"role": "user"}]),
    ("role", [{**USER, "role": HUGE}])
] + [
    ("content", [{**USER, "content": content}]) for content in (
        None, 5, True, [], {}, ["hi"], [{"type": "image_url"}], [{"type": "text"}],
        [{"type": "text", "text": 5}], [{"text": "hi"}], [USER["content"]], NAN)
] + [
    ("assistant", [{"role": "assistant", "content": "x"}]),
    ("assistant", [USER, {"role": "assistant", "content": "x"}]),
    ("assistant", [USER, *[{"role": "assistant", "content": "x"}] * 2, USER]),
    ("tokens", [{**USER, "content": "long " * 400}]), ("tokens", [USER] * 1000),
]
PROMPTS: list[tuple[str, Any]] = [("prompt", given) for given in (
    None, 5, True, {}, [], [1.5], [[]], ["a", 1], ["a", None], [True], [[1], "a"], ["a"] * 17,
    [[1]] * 17, NAN, [HUGE], [-1], [10**6], [1] * CONTEXT, "long " * 400, [["a"]])]
BODIES = [b"", b" ", b"{", b"}", b"[]", b"5", b"null", b"true", b'"text"', b"{'a': 1}", b"{a: 1}",
          b'{"a": 1,}', b'{"a" 1}', b"{}{}", b"\xff\xfe{\x00}\x00", b"\xff", b'{"a": "\xc3("}',
          b'{"a": "\\ud800"}', b'{"a": "\\x"}', b'{"a": "\n"}', b"[" * 100_000, b'{"a":' * 50_000,
          b"\x00" * 64, b'{"a": ' + b"9" * 5000 + b"}", b"messages=hi", b"<messages/>",
          b"\x1f\x8b\x08\x00\x00"]
TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
         "application/xml", "json", "application/jsonx", "*/*"]
ROUTES = [("GET", CHAT, 405), ("PUT", CHAT, 405), ("DELETE", CHAT, 405), ("PATCH", PLAIN, 405),
          ("GET", PLAIN, 405), ("POST", "/health", 405), ("POST", "/v1/models", 405),
          ("POST", "/", 405), ("OPTIONS", CHAT, 405), ("GET", "/nowhere", 404),
          ("POST", "/v1/chat", 404), ("GET", "/v1", 404), ("GET", "/v1/models/gpt-9", 404),
          ("GET", "/static/none.js", 404), ("GET", "/static/%2e%2e/server/app.py", 404),
          ("GET", "/%00", 404), ("GET", "/" + "x" * 2000, 404), ("BREW", CHAT, 405)]
LINES = [b"HELLO\r\n\r\n", b"GET\r\n\r\n", b"POST " + CHAT.encode() + b" HTTP/9.9\r\n\r\n",
         b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
         b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\n",
         b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
         b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
         b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]


def chats() -> Iterator[tuple[str, dict[str, Any]]]:
    """(the field at fault, the body)."""
    for name, values in {**NUMBERS, **WHOLES, **FLAGS, **OTHERS}.items():
        for value in values:
            body = {"messages": [USER], "max_tokens": 2, name: value}
            if name == "top_logprobs":
                body["logprobs"] = True
            yield name, body
    for value in ("yes", 1, [], {}):
        yield "include_usage", {"messages": [USER], "stream_options": {"include_usage": value}}
    yield "top_logprobs", {"messages": [USER], "top_logprobs": 3}
    yield "messages", {}
    yield from ((name, {"messages": given, "max_tokens": 2}) for name, given in MESSAGES)


def completions() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "prompt", {}
    yield from (("token" if name == "tokens" else name, {"prompt": given})
                for name, given in PROMPTS)
    for name, values in {"logprobs": ["x", True, -1, 21, 1.5, []], "echo": ["yes", 1, []],
                         "suffix": ["x"], "n": [-1, 0, "x"], "stop": [5, [1]],
                         "temperature": [NAN, -1, "x"], "max_tokens": [0, -1, "x"]}.items():
        yield from ((name, {"prompt": "a", name: value}) for value in values)


def named(case: tuple[str, Any]) -> str:
    return ascii(case)[:60]


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert response.status_code == status, error
    assert error["type"] == "invalid_request_error" and 0 < len(error["message"]) < 300
    assert error["message"].endswith("."), error
    return error


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    # Not `json=`: the client refuses NaN itself.
    return client.post(path, content=json.dumps(body),
                       headers={"Content-Type": "application/json"})


def test_there_are_enough() -> None:
    counts = [len(list(cases)) for cases in (chats(), completions(), BODIES, TYPES, ROUTES, LINES)]
    assert sum(counts) >= 300, counts


@pytest.mark.parametrize("case", [*chats()], ids=named)
def test_chat(client: httpx.Client, case: tuple[str, dict[str, Any]]) -> None:
    name, body = case
    error = refused(post(client, CHAT, body), 404 if error_is_a_name(name, body) else 400)
    assert name in error["message"] and error["param"], error


def error_is_a_name(name: str, body: dict[str, Any]) -> bool:
    """A model that is not here is not found; everything else is a bad request."""
    return name == "model" and isinstance(body["model"], str)


@pytest.mark.parametrize("case", [*completions()], ids=named)
def test_completions(client: httpx.Client, case: tuple[str, dict[str, Any]]) -> None:
    name, body = case
    error = refused(post(client, PLAIN, body))
    assert name in error["message"] and error["param"], error


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body[:24]))
def test_bodies(client: httpx.Client, body: bytes) -> None:
    error = refused(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}))
    assert "The body is" in error["message"] or error["param"] == "messages", error


@pytest.mark.parametrize("kind", TYPES)
def test_media_types(client: httpx.Client, kind: str) -> None:
    body = json.dumps({"messages": [USER]})
    error = refused(client.post(CHAT, content=body, headers={"Content-Type": kind}), 415)
    assert "Content-Type" in error["message"] and "application/json" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_routes(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    error = refused(response, status)
    assert (method if status == 405 else "model" if "models" in path else "nothing at") \
        in error["message"]
    assert status != 405 or response.headers["Allow"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line[:24]))
def test_what_is_no_http(server: Running, client: httpx.Client, line: bytes) -> None:
    with socket.create_connection(server.socket.getsockname(), timeout=20) as raw:
        raw.sendall(line)
        assert raw.recv(64).startswith(b"HTTP/1.1 4")
    assert client.get("/health").status_code == 200


def test_nothing_is_left(server: Running, client: httpx.Client) -> None:
    """After all of this every slot is free, and a good request gets its answer."""
    found = client.post(CHAT, json={"messages": [USER], "max_tokens": 2})
    assert found.status_code == 200 and found.json()["usage"]["completion_tokens"] == 2
    health = server.health()
    assert (health["active"], health["waiting"], health["status"]) == (0, 0, "ok")
