"""The server over real sockets: right answers, clear refusals, no lost slots."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from gossamer.chat.engine import Engine, Reply, Request
from gossamer.server import app
from gossamer.server.app import _Offsets, _Reader
from gossamer.server.serve import ServeError, bind, model_name
from tests.server.conftest import Running, build

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def say(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 12, **options}


def events(response: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def expected(server: Running, text: str, count: int) -> str:
    """What an engine of its own replies, decoded in one go."""
    tokenizer = server.served.tokenizer
    engine = Engine(server.served.host.engine.model, rows=1)
    ids = tokenizer.render_prompt([{"role": "user", "content": text}])
    stop = (tokenizer.assistant_end, tokenizer.bos)
    tokens = [t.id for t in engine.generate(Request(ids, count, stop=stop))]
    return b"".join(tokenizer.token_bytes[t] for t in tokens).decode("utf-8", "replace")


# answers ------------------------------------------------------------------------------------------

def test_health_and_models(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["slots"] == 4
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["object"] == "model"
    assert client.get("/v1/models/other").status_code == 404


def test_chat_in_one_piece(server: Running, client: httpx.Client) -> None:
    found = client.post(CHAT, json=say("hello", model="tiny")).json()
    choice = found["choices"][0]
    assert choice["message"]["content"] == expected(server, "hello", 12)
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length"
    usage = found["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == 12 + usage["prompt_tokens"]
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")


def test_chat_streamed(client: httpx.Client) -> None:
    whole = client.post(CHAT, json=say("how are you")).json()
    response = client.post(CHAT, json=say("how are you", stream=True,
                                          stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response)
    assert found[-1] == "[DONE]"
    assert found[-2]["choices"] == [] and found[-2]["usage"] == whole["usage"]
    chunks = [c["choices"][0] for c in found[:-2]]
    assert chunks[0]["delta"]["role"] == "assistant"
    assert "".join(c["delta"].get("content") or "" for c in chunks) == \
        whole["choices"][0]["message"]["content"]
    assert [c["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_seed_temperature_and_copies(client: httpx.Client) -> None:
    hot = say("hello", temperature=1.5, seed=7, n=3)
    one, two = (client.post(CHAT, json=hot).json()["choices"] for _ in range(2))
    texts = [c["message"]["content"] for c in one]
    assert texts == [c["message"]["content"] for c in two]
    assert len(set(texts)) > 1 and [c["index"] for c in one] == [0, 1, 2]
    streamed = [c["choices"][0] for c in events(client.post(CHAT, json={**hot, "stream": True}))
                if c != "[DONE]"]
    for n in range(3):
        assert "".join(c["delta"].get("content") or "" for c in streamed
                       if c["index"] == n) == texts[n]


def test_stop_strings(client: httpx.Client) -> None:
    free = client.post(CHAT, json=say("hello")).json()["choices"][0]["message"]["content"]
    stop = free[4:6]
    choice = client.post(CHAT, json=say("hello", stop=[stop, "never there"])).json()["choices"][0]
    assert choice["message"]["content"] == free[:free.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_probabilities(client: httpx.Client) -> None:
    choice = client.post(CHAT, json=say("hello", logprobs=True, top_logprobs=3)).json()[
        "choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 12
    assert bytes(b for e in entries for b in e["bytes"]).decode("utf-8", "replace") == \
        choice["message"]["content"]
    for entry in entries:  # greedy: the likeliest is the one that was taken
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)


def test_completions(client: httpx.Client) -> None:
    one = client.post(PLAIN, json={"prompt": "hello", "max_tokens": 5, "echo": True}).json()
    assert one["choices"][0]["text"].startswith("hello") and one["object"] == "text_completion"
    many = client.post(PLAIN, json={"prompt": ["hello", "there"], "n": 2, "logprobs": 2}).json()
    assert [c["index"] for c in many["choices"]] == [0, 1, 2, 3]
    counts = [len(c["logprobs"]["tokens"]) for c in many["choices"]]
    assert 0 < max(counts) <= 16 and many["usage"]["completion_tokens"] == sum(counts)
    ids = client.post(PLAIN, json={"prompt": [5, 6, 7], "stream": True})
    assert events(ids)[-1] == "[DONE]"


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("prompt", ["hello é", [5, 6, 7]])
def test_text_offsets(server: Running, client: httpx.Client, prompt: Any, echo: bool) -> None:
    """Of each token in the prompt and what follows it, whether or not the prompt is repeated."""
    body = {"prompt": prompt, "logprobs": 0, "max_tokens": 40, "echo": echo, "temperature": 1.2,
            "seed": 4}
    tokenizer = server.served.tokenizer
    asked = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    choice = client.post(PLAIN, json=body).json()["choices"][0]
    text = choice["text"] if echo else asked + choice["text"]
    offsets, said = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    assert len(offsets) == len(said) == 40 and offsets[0] == len(asked)
    assert offsets == sorted(offsets)
    whole = [(place, token) for place, token in zip(offsets, said, strict=True)
             if "\ufffd" not in token]
    assert len(whole) > 10
    assert all(text[place:place + len(token)] == token for place, token in whole)
    streamed = [c["choices"][0] for c in events(client.post(PLAIN, json={**body, "stream": True}))
                if c != "[DONE]"]
    assert sum((c["logprobs"]["text_offset"] for c in streamed if c["logprobs"]), []) == offsets


def test_offsets_inside_a_character() -> None:
    """What goes on a character begins with it; what breaks one off begins after it."""
    tokenizer = build().tokenizer
    byte = {tokenizer.token_bytes[i]: i for i in range(len(tokenizer.token_bytes))}
    offsets = _Offsets(tokenizer, 5)
    e, acute, a = byte[b"\xc3"], byte[b"\xa9"], byte[b"a"]
    assert [offsets.push(i) for i in (a, e, acute, a, e, a, a)] == [5, 6, 6, 7, 8, 9, 10]
    assert offsets.push(tokenizer.python_start) == offsets.push(a) == 11


def test_a_conversation_that_outgrows_the_context(client: httpx.Client) -> None:
    turns = [{"role": r, "content": "how are you there hello " * 3}
             for _ in range(8) for r in ("user", "assistant")][:-1]
    refused = client.post(CHAT, json={"messages": turns})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "truncation" in refused.json()["error"]["message"]
    auto = {"truncation": "auto", "max_tokens": 3}
    cut = client.post(CHAT, json={"messages": turns, **auto})
    assert cut.status_code == 200 and cut.json()["dropped_messages"] > 0
    long = client.post(CHAT, json={**say("how are you? " * 60), **auto}).json()["error"]
    assert "last message" in long["message"] and "truncation" not in long["message"]


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_a_long_text_does_not_hold_up_others(server: Running, monkeypatch: pytest.MonkeyPatch,
                                             path: str) -> None:
    """While one request is encoded, others are answered."""
    tokenizer, begun, go_on = server.served.tokenizer, Event(), Event()
    encode = tokenizer.encode

    def slow(text: str) -> list[int]:
        begun.set()
        assert go_on.wait(30)
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", slow)
    body = {**say("hello"), "prompt": "hello"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, server.url + path, json=body, timeout=60)
        try:
            assert begun.wait(30)
            assert httpx.get(server.url + "/health", timeout=20).status_code == 200
        finally:
            go_on.set()
        assert asked.result().status_code == 200


def test_openai_client(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as api:
        assert [m.id for m in api.models.list()] == ["tiny"]
        ask: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]}
        whole = api.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        text = whole.choices[0].message.content
        assert text and whole.usage.completion_tokens == 6
        pieces = [c.choices[0].delta.content or "" for c in api.chat.completions.create(
            **ask, stream=True) if c.choices]
        assert "".join(pieces) == text
        assert api.completions.create(model="tiny", prompt="hello", max_tokens=4).choices[0].text
        with pytest.raises(openai.NotFoundError, match="is not here"):
            api.chat.completions.create(**{**ask, "model": "gpt-9"})
        with pytest.raises(openai.BadRequestError, match="top_p"):
            api.chat.completions.create(**ask, temperature=1.9, top_p=7)


# refusals (test_malformed.py has hundreds) -------------------------------------------------------

def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    large = client.post(CHAT, content=b" " * (1 << 20) + b"{}")
    assert large.status_code == 413 and "1,048,576" in large.json()["error"]["message"]


def test_a_body_that_never_comes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "UPLOAD_SECONDS", 0.2)
    with socket.create_connection(server.socket.getsockname(), timeout=20) as raw:
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
        said = b""
        while part := raw.recv(4096):  # to the end: the connection is closed
            said += part
    assert said.startswith(b"HTTP/1.1 408") and b"not whole after 0.2 seconds" in said
    assert b"connection: close" in said.lower()


@pytest.mark.parametrize(("path", "body", "code", "param"), [
    (PLAIN, {"prompt": [1, 10**6]}, "invalid_value", "prompt"),
    (PLAIN, {"prompt": [1] * 128}, "context_length_exceeded", "prompt"),
    (CHAT, say("long " * 400), "context_length_exceeded", "messages")])
def test_why_a_prompt_is_refused(client: httpx.Client, path: str, body: dict[str, Any], code: str,
                                 param: str) -> None:
    error = client.post(path, json=body).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_what_a_chat_cannot_decode_is_told_of_its_messages(
        server: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Request) -> None:
        raise ValueError("no such token.")

    monkeypatch.setattr(server.served.host.engine, "check", refuse)
    assert client.post(CHAT, json=say("hello")).json()["error"]["param"] == "messages"


def test_a_port_in_use() -> None:
    taken = bind("127.0.0.1", 0)
    with pytest.raises(ServeError, match="cannot be used"):
        bind("127.0.0.1", taken.getsockname()[1])
    taken.close()


def test_a_port_is_not_shared_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the option that elsewhere only skips a wait lets a second server take the port."""
    flag = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with monkeypatch.context() as patch:
        patch.setattr("os.name", "nt")
        made = bind("127.0.0.1", 0)
    assert not made.getsockopt(*flag)
    made.close()


@pytest.mark.parametrize(("path", "name"), [
    ("runs/mine/checkpoints/step-000400", "mine"), ("./copy", "copy"), (".", "here"),
    ("checkpoints/step-000400", "here"), ("../here/../there", "there")])
def test_every_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str,
                                name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert model_name(Path(path)) == name


# many clients -------------------------------------------------------------------------------------

def test_many_clients_get_their_own_words(server: Running) -> None:
    texts = ["hello", "there", "how are you", "I am well", "hello you", "are you well?"]
    right = {text: expected(server, text, 10) for text in texts}

    def ask(number: int) -> bool:
        text = texts[number % len(texts)]
        body = say(text, max_tokens=10, stream=number % 2 == 0)
        response = httpx.post(server.url + CHAT, json=body, timeout=120)
        if number % 2:
            return response.json()["choices"][0]["message"]["content"] == right[text]
        found = "".join(c["choices"][0]["delta"].get("content") or ""
                        for c in events(response) if c != "[DONE]")
        return found == right[text]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(48)))


def wait_until_idle(server: Running) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        health = server.health()
        if not health["active"] and not health["waiting"]:
            return
        time.sleep(0.05)
    raise AssertionError(f"slots are still taken: {health}")


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_vanish_free_their_slots(server: Running, stream: bool) -> None:
    body = json.dumps(say("hello", max_tokens=100, stream=stream)).encode()
    for _ in range(8):  # twice as many as there are slots
        with socket.create_connection(server.socket.getsockname()) as raw:
            raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                raw.recv(64)
    wait_until_idle(server)
    assert httpx.post(server.url + CHAT, json=say("hello"), timeout=60).status_code == 200


def test_those_who_have_gone_do_not_count() -> None:
    """The only slot is taken for long, and whoever waited has vanished: there is room again."""
    running = Running(build(rows=1, most_waiting=2))
    body = say("hello", max_tokens=100)
    engine, release = running.served.host.engine, Event()
    decode = engine._decode

    def slowly(slots: Any) -> None:
        release.wait(0.3)
        decode(slots)

    engine._decode = slowly  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(httpx.post, running.url + CHAT, json=body, timeout=120)
            until(lambda: running.health()["active"] == 1)
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(running.url + CHAT, json=body, timeout=0.5)
            until(lambda: running.health()["waiting"] == 0)
            assert running.health()["active"] == 1 and not first.done()
            second = pool.submit(httpx.post, running.url + CHAT, json=body, timeout=120)
            release.set()
            assert first.result().status_code == second.result().status_code == 200
    finally:
        release.set()
        running.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_that_wait_are_admitted_at_once() -> None:
    host = build(rows=4).host
    for _ in range(5):
        host._inbox.put(Reply(Request([1, 2], max_tokens=2)))
    host._collect()
    assert len(host.engine.waiting) == 5
    host.engine.step()
    assert host.active == 4 and host.waiting == 1


def test_a_failing_round_is_told_and_does_not_end_the_server(
        server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = server.served.host.engine
    right = httpx.post(server.url + CHAT, json=say("hello"), timeout=60).json()["choices"]

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", fail)
        response = httpx.post(server.url + CHAT, json=say("hello"), timeout=60)
        assert response.status_code == 500 and "Decoding failed" in response.text
        assert httpx.get(server.url + "/health").status_code == 503
    assert httpx.post(server.url + CHAT, json=say("hello"), timeout=60).json()["choices"] == right
    assert server.health()["status"] == "ok"


def test_an_error_in_a_stream_is_told_and_logged(
        client: httpx.Client, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(_Reader, "probability", fail)
        found = events(client.post(CHAT, json=say("hello", stream=True, logprobs=True)))
    assert found[-1]["error"]["type"] == "server_error" and "[DONE]" not in found
    assert "a bug" in caplog.text and "could not be sent" in caplog.text


def test_too_many_wait_and_a_stopped_server_says_so() -> None:
    running = Running(build(rows=1, most_waiting=2))
    try:
        body = say("hello", max_tokens=100)
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(
                lambda _: httpx.post(running.url + CHAT, json=body, timeout=120).status_code,
                range(12)))
        assert set(found) == {200, 503} and found.count(200) >= 2
        with httpx.stream("POST", running.url + CHAT, timeout=60,
                          json=say("hello", max_tokens=100, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            running.server.should_exit = True
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest
    finally:
        running.stop()
    assert not running.served.host.healthy
