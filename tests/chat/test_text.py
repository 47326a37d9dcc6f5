"""The text stream: whole characters, stop strings across tokens, nothing lost."""

from __future__ import annotations

from hypothesis import given, strategies as st

from gossamer.chat.text import TextStream
from gossamer.chat.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["hello there, how are you? STOP it now\n\nUser: "] * 9, 290)


def streamed(text: str, stop: tuple[str, ...] = ()) -> tuple[str, list[str], bool]:
    stream = TextStream(TOKENIZER, stop)
    pieces = [stream.push(i) for i in TOKENIZER.encode(text)]
    pieces.append(stream.rest())
    return "".join(pieces), pieces, stream.stopped


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_equals_cutting_the_whole_text(text: str, stop: list[str]) -> None:
    places = [at for at in (text.find(s) for s in stop) if at >= 0]
    found, pieces, stopped = streamed(text, tuple(stop))
    if places:
        # Of two stop strings the one that is complete first ends the text.
        assert stopped and any(found == text[:at] for at in places)
    else:
        assert found == text and not stopped
    assert not any("\ufffd" in piece for piece in pieces)


def test_characters_of_many_bytes_come_whole() -> None:
    found, pieces, _ = streamed("a🙂é漢")
    assert found == "a🙂é漢" and {p for p in pieces if p} == {"a", "🙂", "é", "漢"}


def test_a_stop_string_over_several_tokens() -> None:
    found, pieces, stopped = streamed("go on\n\nUser: x", ("\n\nUser:",))
    assert found == "go on" and stopped
    assert all("\n" not in piece for piece in pieces)
    assert streamed("a\n\nUse", ("\n\nUser:",))[0] == "a\n\nUse"


@given(st.binary(max_size=12))
def test_broken_bytes_do_not_hold_the_text_back(tail: bytes) -> None:
    """Any bytes a model may produce: what follows them still comes out."""
    token = {b: i for i, b in enumerate(TOKENIZER.token_bytes) if len(b) == 1}
    stream = TextStream(TOKENIZER)
    text = "".join(stream.push(token[bytes([b])]) for b in tail + "é!".encode())
    assert text == (tail + "é!".encode()).decode(errors="replace") and text.endswith("é!")
    assert stream.rest() == ""


def test_bytes_of_tokens() -> None:
    for text in ("hello there", "é漢🙂\n\t\x00", "a  b"):
        ids = TOKENIZER.encode(text)
        assert b"".join(TOKENIZER.token_bytes[i] for i in ids) == text.encode()
    assert TOKENIZER.token_bytes[TOKENIZER.bos] == b"<|bos|>"
    assert sorted(b for b in TOKENIZER.token_bytes if len(b) == 1) == [bytes([b])
                                                                       for b in range(256)]
