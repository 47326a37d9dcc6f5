"""A small model behind a real server on a real port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="Starlette is not installed (extra `chat`)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra `chat`)")
pytest.importorskip("httpx", reason="httpx is not installed (extra `dev`)")

import httpx
import uvicorn

import gossamer as gs
from gossamer.chat.engine import Engine, Sampling
from gossamer.chat.tokenizer import SPECIALS, Tokenizer
from gossamer.models.gpt import GPT, GPTConfig
from gossamer.server.app import Served, build_app
from gossamer.server.host import Host
from gossamer.server.serve import bind

CONTEXT = 128


def build(rows: int = 4, most_waiting: int = 256) -> Served:
    tokenizer = Tokenizer.train(["hello there, how are you? I am well."] * 9, 290)
    gs.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32,
                          sequence_len=CONTEXT))
    with gs.no_grad():
        for parameter in model.parameters():
            gs.nn.init.normal_(parameter, std=0.3)
        for name in SPECIALS:  # never the likeliest
            model.head.weight[tokenizer.special[name]] = 0.0
    return Served("tiny", Host(Engine(model, rows), most_waiting), tokenizer, Sampling(), 1, {})


class Running:
    """A server in a thread."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(build_app(served), log_level="error", lifespan="on",
                                timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run,
                                       kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 120
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.server.started

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()
        assert not self.thread.is_alive()

    def health(self) -> dict[str, object]:
        return httpx.get(self.url + "/health", timeout=30).json()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    running = Running(build())
    yield running
    running.stop()
    assert not running.served.host.healthy


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made
