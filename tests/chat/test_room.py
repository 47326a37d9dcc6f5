"""Which turns are read: the newest that leave room for a reply, each encoded once."""

from __future__ import annotations

import threading
import time

import pytest

from gossamer.chat.message import Message
from gossamer.chat.room import REPLY_ROOM, newest_turns
from gossamer.chat.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well."] * 9, 290)


def conversation(exchanges: int, repeat: int = 1) -> list[Message]:
    """So many exchanges of different lengths, and a question."""
    turns: list[Message] = []
    for n in range(exchanges):
        turns += [{"role": "user", "content": f"how are you, {n}? " * (n % 3 + 1) * repeat},
                  {"role": "assistant", "content": "I am well. " * (n % 4)}]
    return [*turns, {"role": "user", "content": "hello"}]


@pytest.mark.parametrize("context", [8, 70, 90, 128, 200, 333, 1000])
def test_the_longest_end_of_the_conversation_that_fits(context: int) -> None:
    turns = conversation(12)
    ends = {first: TOKENIZER.render_prompt(turns[first:]) for first in range(0, len(turns), 2)}
    first = min((n for n, ids in ends.items() if len(ids) <= context - REPLY_ROOM),
                default=len(turns) - 1)
    assert newest_turns(TOKENIZER, turns, context) == (ends[first], first)


def test_what_is_left_out_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is read, once: a thousand turns cost no more than ten."""
    seen: list[str] = []
    encode = TOKENIZER.encode

    def counted(text: str) -> list[int]:
        seen.append(text)
        return encode(text)

    monkeypatch.setattr(TOKENIZER, "encode", counted)
    turns = conversation(500)
    ids, dropped = newest_turns(TOKENIZER, turns, 256)
    assert len(ids) <= 256 - REPLY_ROOM and 0 < dropped < len(turns) - 1
    assert len(seen) == len(turns) - dropped + 2  # one exchange more
    assert sorted(seen) == sorted(str(t["content"]) for t in turns[dropped - 2:])


def test_a_long_turn_lets_other_threads_run() -> None:
    """Encoding half a megabyte takes a while, in which a server has other things to do."""
    text, turns, running, done = "how are you?\n" * 40_000, 0, False, False

    def count() -> None:
        nonlocal turns
        while not done:
            turns += running
            time.sleep(0)

    other = threading.Thread(target=count)
    other.start()
    running = True
    ids = TOKENIZER.encode(text)
    running, done = False, True
    other.join()
    assert turns > 20
    assert ids == TOKENIZER.encode("how are you?\n") * 40_000
